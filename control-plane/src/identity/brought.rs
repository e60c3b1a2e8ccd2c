//! A certificate authority that the operator brings along: every file is checked before it signs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{self, FileError};
use super::x509::{Signer, Unix, X509Error, shown};

/// The files, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// The certificate that signs leaves.
    pub cert: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
    /// The certificates above it, nearest first, the root last; none when `cert` is the root.
    pub chain: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BroughtError {
    /// One cannot be read, or others can.
    #[error(transparent)]
    File(#[from] FileError),
    /// One does not hold what it should.
    #[error("{path}: {reason}")]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is of another certificate.
    #[error("{key} is not the key of {cert}: the public keys differ")]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
}

fn wrong(path: &Path, reason: impl Into<String>) -> BroughtError {
    let (path, reason) = (path.to_owned(), reason.into());
    BroughtError::Wrong { path, reason }
}

/// Reads and checks the files.
///
/// # Errors
/// With the file that is wrong, and how.
pub(super) fn load(now: Unix, files: &CaFiles, trust_domain: &str) -> Result<Signer, BroughtError> {
    let cert = certificates(&files.cert)?;
    let [cert] = <[_; 1]>::try_from(cert).map_err(|all| {
        wrong(
            &files.cert,
            format!("holds {} certificates; the others belong into `chain`", all.len()),
        )
    })?;
    let pem = files::read_key(&files.key)?;
    let key = KeyPair::from_pem(&pem)
        .map_err(|_| wrong(&files.key, "holds no private key that can be read (PEM, not encrypted)"))?;
    let alg = key.algorithm();
    if alg != &rcgen::PKCS_ECDSA_P256_SHA256 && alg != &rcgen::PKCS_ECDSA_P384_SHA384 {
        return Err(wrong(&files.key, "the key is neither ECDSA P-256 nor P-384"));
    }
    let above = files
        .chain
        .as_deref()
        .map(certificates)
        .transpose()?
        .unwrap_or_default();
    {
        let parsed = parse(&cert, &files.cert)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            let (key, cert) = (files.key.clone(), files.cert.clone());
            return Err(BroughtError::Mismatch { key, cert });
        }
        check_ca(now, &parsed, &files.cert)?;
        if let Some(chain) = &files.chain {
            for der in &above {
                check_ca(now, &parse(der, chain)?, chain)?;
            }
        }
    }
    let mut all: Vec<_> = std::iter::once(cert).chain(above).collect();
    let last = files.chain.as_deref().unwrap_or(&files.cert);
    let root = all.pop().ok_or_else(|| wrong(last, "holds no certificate"))?;
    {
        let parsed = parse(&root, last)?;
        if parsed.subject() != parsed.issuer() {
            let issuer = parsed.issuer();
            let reason = format!("`{}` is not a root: bring {issuer} along in `chain`", parsed.subject());
            return Err(wrong(last, reason));
        }
    }
    let signer = Signer::new(key, all, root).map_err(|e| wrong(&files.cert, e.to_string()))?;
    try_out(now, &signer, trust_domain).map_err(|reason| wrong(&files.cert, reason))?;
    Ok(signer)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BroughtError> {
    let text = files::read(path)?;
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(wrong(path, "holds no certificate (PEM)")),
        Err(error) => Err(wrong(path, format!("is not PEM: {error}"))),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>, path: &Path) -> Result<X509Certificate<'a>, BroughtError> {
    match X509Certificate::from_der(der) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(wrong(path, "holds a certificate that cannot be read")),
    }
}

fn check_ca(now: Unix, certificate: &X509Certificate<'_>, path: &Path) -> Result<(), BroughtError> {
    let subject = certificate.subject();
    if !certificate.is_ca() {
        return Err(wrong(
            path,
            format!("`{subject}` is not a CA's certificate (basicConstraints CA is not set)"),
        ));
    }
    let signs = certificate
        .key_usage()
        .ok()
        .flatten()
        .is_none_or(|usage| usage.value.key_cert_sign());
    if !signs {
        return Err(wrong(
            path,
            format!("`{subject}` may not sign certificates (keyUsage lacks keyCertSign)"),
        ));
    }
    let at = |time: x509_parser::time::ASN1Time| Unix::try_from(time.timestamp()).unwrap_or(0);
    let (from, until) = (
        at(certificate.validity().not_before),
        at(certificate.validity().not_after),
    );
    if now < from || now > until {
        let (from, until, now) = (shown(from), shown(until), shown(now));
        return Err(wrong(
            path,
            format!("`{subject}` is valid from {from} until {until}, and the clock says {now}"),
        ));
    }
    Ok(())
}

/// Signs a leaf and has it verified as every sidecar will: what a field-by-field check misses (path
/// lengths, constraints, signatures, order) shows here and not at the first join.
fn try_out(now: Unix, signer: &Signer, trust_domain: &str) -> Result<(), String> {
    let text = |e: X509Error| e.to_string();
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let id = format!("spiffe://{trust_domain}/ns/outrigger/svc/control-plane");
    let leaf = signer
        .leaf(now, &key.subject_public_key_info(), &id, 60)
        .map_err(text)?;
    let mut roots = RootCertStore::empty();
    roots
        .add(signer.root.clone())
        .map_err(|e| format!("its root cannot be trusted: {e}"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let verified = verifier
        .map_err(|e| e.to_string())?
        .verify_client_cert(&leaf.der, &signer.chain, at);
    match verified {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("a certificate signed by it does not verify: {error}")),
    }
}

#[cfg(test)]
mod tests;
