//! The keys of the authority: in memory, and as files of which a crash leaves none half written.
//!
//! A file counts only when the stored state names its number, so files are written before the state
//! and removed after it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::csr::sha256;
use super::files::{self, FileError};
use super::rotation::{Root, Trust};
use super::x509::{self, Pair, Signer, Unix, X509Error, hex};

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A file cannot be read or written, or others can read a key.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate cannot be made.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// A file does not hold what it should.
    #[error("{path}: {reason}")]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// One root and what signs under it.
#[derive(Debug)]
pub(super) struct Held {
    /// None when the CA was brought along: its key signs leaves and nothing else.
    pub(super) root: Option<Pair>,
    pub(super) signer: Signer,
}

/// Every root that is trusted or soon will be, by number.
#[derive(Debug, Default)]
pub(super) struct Vault {
    /// None keeps everything in memory.
    pub(super) directory: Option<PathBuf>,
    pub(super) held: BTreeMap<u32, Held>,
}

impl Vault {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        let held = BTreeMap::new();
        Self { directory, held }
    }

    /// Makes root `number` with its first intermediate, and writes both.
    pub(super) fn make_root(&mut self, now: Unix, trust_domain: &str, number: u32) -> Result<Root, VaultError> {
        let root = x509::make_root(now, trust_domain, number)?;
        self.save(&format!("root-{number}"), &root)?;
        let (_, not_after) = x509::validity(&root.der).unwrap_or_default();
        let hash = hex(&sha256(&root.der));
        let signer = self.make_issuer(now, trust_domain, &root, (number, 1), not_after)?;
        let root = Some(root);
        self.held.insert(number, Held { root, signer });
        Ok(Root {
            number,
            issuer: 1,
            hash,
            not_after,
            last_leaf: now,
        })
    }

    /// Makes the next intermediate of `root`, and writes it; it signs after [`Vault::put_signer`].
    pub(super) fn next_issuer(&self, now: Unix, trust_domain: &str, root: &Root) -> Result<Option<Signer>, VaultError> {
        let Some(pair) = self.held.get(&root.number).and_then(|h| h.root.as_ref()) else {
            return Ok(None);
        };
        let names = (root.number, root.issuer.saturating_add(1));
        self.make_issuer(now, trust_domain, pair, names, root.not_after)
            .map(Some)
    }

    pub(super) fn put_signer(&mut self, root: u32, signer: Signer) {
        if let Some(held) = self.held.get_mut(&root) {
            held.signer = signer;
        }
    }

    /// Holds a CA that was brought along.
    pub(super) fn hold_brought(&mut self, signer: Signer) -> Root {
        let (_, not_after) = x509::validity(&signer.root).unwrap_or_default();
        let hash = hex(&sha256(&signer.root));
        self.held.insert(1, Held { root: None, signer });
        Root {
            number: 1,
            issuer: 0,
            hash,
            not_after,
            last_leaf: 0,
        }
    }

    /// Reads what `trust` names.
    pub(super) fn load(directory: &Path, trust: &Trust) -> Result<Self, VaultError> {
        let mut vault = Self::new(Some(directory.to_owned()));
        for root in &trust.roots {
            let pair = load(directory, &format!("root-{}", root.number))?;
            if hex(&sha256(&pair.der)) != root.hash {
                let path = directory.join(format!("root-{}.pem", root.number));
                let reason = format!("is not the root that the state names: its SHA-256 is not {}", root.hash);
                return Err(VaultError::Wrong { path, reason });
            }
            let issuer = load(directory, &format!("issuer-{}-{}", root.number, root.issuer))?;
            let signer = Signer::new(issuer.key, vec![issuer.der], pair.der.clone())?;
            let root_pair = Some(pair);
            vault.held.insert(
                root.number,
                Held {
                    root: root_pair,
                    signer,
                },
            );
        }
        Ok(vault)
    }

    /// Forgets what `trust` does not name: an old root, or what a crash left behind.
    pub(super) fn clean(&mut self, trust: &Trust) -> Result<(), FileError> {
        self.held
            .retain(|number, _| trust.roots.iter().any(|r| r.number == *number));
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let named: Vec<String> = trust
            .roots
            .iter()
            .flat_map(|r| {
                [
                    format!("root-{}", r.number),
                    format!("issuer-{}-{}", r.number, r.issuer),
                ]
            })
            .collect();
        for entry in fs::read_dir(directory).map_err(files::io_error(directory))? {
            let path = entry.map_err(files::io_error(directory))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let ours = name.starts_with("root-") || name.starts_with("issuer-");
            let stem = name.split('.').next().unwrap_or_default();
            if ours && !named.iter().any(|n| n == stem) {
                fs::remove_file(&path).map_err(files::io_error(&path))?;
            }
        }
        files::sync_directory(directory)
    }

    fn make_issuer(
        &self,
        now: Unix,
        trust_domain: &str,
        root: &Pair,
        names: (u32, u32),
        ends: Unix,
    ) -> Result<Signer, VaultError> {
        let issuer = x509::make_issuer(now, trust_domain, root, names, ends)?;
        self.save(&format!("issuer-{}-{}", names.0, names.1), &issuer)?;
        Ok(Signer::new(issuer.key, vec![issuer.der], root.der.clone())?)
    }

    fn save(&self, name: &str, pair: &Pair) -> Result<(), FileError> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let key = Zeroizing::new(pair.key.serialize_pem());
        files::write(&directory.join(format!("{name}.key")), key.as_bytes())?;
        files::write(&directory.join(format!("{name}.pem")), pem(&pair.der).as_bytes())
    }
}

fn load(directory: &Path, name: &str) -> Result<Pair, VaultError> {
    let (cert_path, key_path) = (
        directory.join(format!("{name}.pem")),
        directory.join(format!("{name}.key")),
    );
    let wrong = |path: &Path, reason: &str| VaultError::Wrong {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let text = files::read(&cert_path)?;
    let der =
        CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong(&cert_path, "holds no certificate (PEM)"))?;
    let key = files::read_key(&key_path)?;
    let key = KeyPair::from_pem(&key).map_err(|_| wrong(&key_path, "holds no private key (PEM)"))?;
    let (_, parsed) =
        X509Certificate::from_der(&der).map_err(|_| wrong(&cert_path, "holds a certificate that cannot be read"))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        let reason = format!("is not the key of {}: the public keys differ", cert_path.display());
        return Err(wrong(&key_path, &reason));
    }
    Ok(Pair { der, key })
}

/// A certificate as text (RFC 7468).
pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap_or_default());
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
