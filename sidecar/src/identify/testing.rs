//! A CA for tests: certificates good and bad.

pub(crate) mod authority;

use std::time::{Duration, SystemTime};

use outrigger_proto::model::TrustBundle;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Identity;
use super::leaf::Leaf;
use super::trust::Trust;
use crate::config;

/// The trust domain of these tests.
pub(crate) const DOMAIN: &str = "test.local";

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A root with one intermediate.
pub(crate) struct Ca {
    pub(crate) root: Issuer,
    pub(crate) issuing: Issuer,
    /// A root that is still trusted.
    pub(crate) older: Option<CertificateDer<'static>>,
}

/// What a leaf says.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) uris: Vec<String>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Spec {
    /// A good leaf of `service`, as `namespace/service`.
    pub(crate) fn of(service: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![id(service)],
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            not_before: now - Duration::from_secs(600),
            not_after: now + Duration::from_secs(3600),
        }
    }

    /// The request for a certificate, and what it is signed for.
    pub(crate) fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII")))
            .collect();
        params.extended_key_usages = self.usages.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (self.not_before.into(), self.not_after.into());
        params
    }
}

/// The id of `namespace/service` in the domain of these tests.
pub(crate) fn id(service: &str) -> String {
    let (namespace, service) = service.split_once('/').expect("namespace/service");
    format!("spiffe://{DOMAIN}/ns/{namespace}/svc/{service}")
}

/// A CA's certificate.
pub(crate) fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

impl Ca {
    pub(crate) fn new() -> Self {
        let root = Issuer::self_signed(authority("root"), key()).expect("a root");
        let issuing = Issuer::signed_by(authority("issuing"), key(), &root).expect("an intermediate");
        Self {
            root,
            issuing,
            older: None,
        }
    }

    /// The one that replaces `older`, which is still trusted.
    pub(crate) fn after(older: &Self) -> Self {
        Self {
            older: Some(older.root.der().clone()),
            ..Self::new()
        }
    }

    /// All that is trusted, the newest last.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let newest = self.root.der().clone();
        self.older.iter().cloned().chain([newest]).collect()
    }

    /// What those who trust this CA have.
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle {
            trust_domain: DOMAIN.into(),
            roots: self.roots().iter().map(|der| der.to_vec()).collect(),
            generation: if self.older.is_some() { 2 } else { 1 },
            revoked: Vec::new(),
        }
    }

    /// A chain and its key.
    pub(crate) fn leaf(&self, spec: &Spec) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = key();
        let leaf = spec.params().signed_by(&key, &self.issuing).expect("a leaf");
        let chain = vec![leaf.der().clone(), self.issuing.der().clone()];
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// An identity that shows a leaf of `spec` and trusts this CA.
    pub(crate) fn with(&self, spec: &Spec) -> Identity {
        self.with_settings(&settings(), spec)
    }

    /// The same under other settings.
    pub(crate) fn with_settings(&self, settings: &config::Identity, spec: &Spec) -> Identity {
        let (chain, key) = self.leaf(spec);
        let identity = Identity::new(Some(settings));
        let leaf = Leaf::new(chain, &key, SystemTime::now()).expect("a leaf");
        identity.replace(leaf, Trust::new(self.bundle()).expect("a root"));
        identity
    }

    /// An identity that shows a leaf of `spec` although it is none, and does not look at it itself.
    pub(crate) fn bare(&self, spec: &Spec) -> Identity {
        let (chain, key) = self.leaf(spec);
        let identity = self.identity("default/any");
        let leaf = Leaf::bare(chain, &key);
        identity.replace(leaf, Trust::new(self.bundle()).expect("a root"));
        identity
    }

    /// A good identity of `namespace/service`.
    pub(crate) fn identity(&self, service: &str) -> Identity {
        self.with(&Spec::of(service))
    }
}

/// Settings with everything at its default.
pub(crate) fn settings() -> config::Identity {
    serde_json::from_value(serde_json::json!({})).expect("defaults")
}

/// An identity that has nothing yet.
pub(crate) fn empty() -> Identity {
    Identity::new(Some(&settings()))
}
