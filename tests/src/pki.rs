//! A certificate authority of the test's own, for certificates that are good and ones that are bad on purpose.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// The trust domain of every test.
pub const TRUST_DOMAIN: &str = "test.local";

/// A root and what it signs.
pub struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// What a leaf says; the default is a good one.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Valid from this long before now; negative: not yet.
    pub since: i64,
    /// Valid until this many seconds from now; negative: no longer.
    pub until: i64,
    /// Extended key usages.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// Intermediates between root and leaf.
    pub intermediates: usize,
}

/// A leaf on disk.
#[derive(Debug, Clone)]
pub struct Files {
    /// Leaf, then intermediates.
    pub chain: PathBuf,
    /// Its key, PKCS#8, readable by its owner alone.
    pub key: PathBuf,
    /// The root that signed it.
    pub roots: PathBuf,
}

impl Files {
    /// A bootstrap's `identity`.
    #[must_use]
    pub fn identity(&self) -> Value {
        json!({"files": {"chain": self.chain, "key": self.key, "roots": self.roots}})
    }
}

/// The SPIFFE id of a service of the namespace `default`.
#[must_use]
pub fn id(service: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/default/svc/{service}")
}

impl Leaf {
    /// A good leaf of `service`.
    #[must_use]
    pub fn of(service: &str) -> Self {
        Self {
            uris: vec![id(service)],
            dns: Vec::new(),
            since: 600,
            until: 3600,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            intermediates: 0,
        }
    }
}

impl Authority {
    /// A new root.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        Ok(Self {
            root: CertifiedIssuer::self_signed(authority_params("test root"), KeyPair::generate()?)?,
        })
    }

    /// Signs a leaf and writes it below `dir` as `name.*`.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn issue(&self, dir: &Path, name: &str, leaf: &Leaf) -> Result<Files> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for uri in &leaf.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        for dns in &leaf.dns {
            params
                .subject_alt_names
                .push(SanType::DnsName(dns.as_str().try_into()?));
        }
        params.not_before = moment(-leaf.since).into();
        params.not_after = moment(leaf.until).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&leaf.usages);
        let key = KeyPair::generate()?;
        let mut between: Vec<CertifiedIssuer<'static, KeyPair>> = Vec::new();
        for i in 0..leaf.intermediates {
            let params = authority_params(&format!("intermediate {i}"));
            let issuer = between.last().unwrap_or(&self.root);
            between.push(CertifiedIssuer::signed_by(params, KeyPair::generate()?, issuer)?);
        }
        let signed = params.signed_by(&key, between.last().unwrap_or(&self.root))?;
        let mut chain = signed.pem();
        for issuer in between.iter().rev() {
            chain.push_str(&issuer.pem());
        }
        let files = Files {
            chain: dir.join(format!("{name}.chain.pem")),
            key: dir.join(format!("{name}.key.pem")),
            roots: dir.join(format!("{name}.roots.pem")),
        };
        std::fs::write(&files.chain, chain)?;
        std::fs::write(&files.key, key.serialize_pem())?;
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600))?;
        std::fs::write(&files.roots, self.root.pem())?;
        Ok(files)
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = moment(-86_400).into();
    params.not_after = moment(30 * 86_400).into();
    params
}

/// `seconds` from now.
fn moment(seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::now() - by
    } else {
        SystemTime::now() + by
    }
}
