//! Makes certificates: roots, the intermediates that issue, and leaves (RFC 5280, SPIFFE X.509-SVID).
//!
//! There are no name constraints: verifiers disagree on those for URIs (rustls refuses every chain
//! that has one), so the trust domain stands as a URI name in the CA certificates, and verifiers
//! compare the whole id.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::csr::sha256;

/// Seconds since 1970, by this machine's clock.
pub type Unix = u64;

/// Clocks of machines differ: certificates are valid this long before they are made.
pub(super) const BACKDATED: u64 = 600;
const DAY: u64 = 86_400;
const ROOT_LIFE: u64 = 3650 * DAY;
const ISSUER_LIFE: u64 = 365 * DAY;

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// The library says no.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// There is no randomness.
    #[error("the system gives no random bytes")]
    Random,
    /// The issuer is not valid now.
    #[error("the certificate that signs is valid from {from} until {until}, and the clock says {now}")]
    Clock {
        /// RFC 3339.
        from: String,
        /// RFC 3339.
        until: String,
        /// RFC 3339.
        now: String,
    },
}

/// A leaf that was signed.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) der: CertificateDer<'static>,
    /// 32 lower-case hexadecimal digits.
    pub(super) serial: String,
    pub(super) not_before: Unix,
    pub(super) not_after: Unix,
    /// SHA-256 of `der`, hexadecimal.
    pub(super) hash: String,
}

/// A certificate and its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) der: CertificateDer<'static>,
    pub(super) key: KeyPair,
}

/// What signs leaves.
#[derive(Debug)]
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificates below the root, nearest first; empty when the root itself signs.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) root: CertificateDer<'static>,
    pub(super) not_before: Unix,
    pub(super) not_after: Unix,
}

/// When a certificate is valid, from and until.
pub(super) fn validity(der: &CertificateDer<'_>) -> Option<(Unix, Unix)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Unix::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    Some((at(validity.not_before), at(validity.not_after)))
}

/// A moment as people read it.
pub(super) fn shown(at: Unix) -> String {
    let seconds = i64::try_from(at).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "after the year 9999".to_owned(), |at| at.to_string())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
            // Writing to a string does not fail.
            let _infallible = write!(text, "{b:02x}").is_ok();
            text
        })
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], X509Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| X509Error::Random)?;
    Ok(bytes)
}

/// 16 bytes of which the first is 0x40 to 0x7f: positive, and as long in DER as in text.
fn serial() -> Result<[u8; 16], X509Error> {
    let mut bytes: [u8; 16] = random()?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(bytes)
}

fn params(now: Unix, life: u64, name: Option<(String, &str)>) -> Result<CertificateParams, X509Error> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATED));
    params.not_after = epoch + Duration::from_secs(now.saturating_add(life));
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.distinguished_name = DistinguishedName::new();
    if let Some((common, trust_domain)) = name {
        params.distinguished_name.push(DnType::CommonName, common);
        // RFC 5280 A.1 allows 64 characters.
        let organization: String = trust_domain.chars().take(64).collect();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca(params: &mut CertificateParams, below: u8) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

/// Makes root number `number`: its subject is no other root's, so that chains are told apart by it.
pub(super) fn make_root(now: Unix, trust_domain: &str, number: u32) -> Result<Pair, X509Error> {
    let key = KeyPair::generate()?;
    let name = (format!("Outrigger root {number}"), trust_domain);
    let mut params = params(now, ROOT_LIFE, Some(name))?;
    ca(&mut params, 1);
    params.use_authority_key_identifier_extension = false;
    let der = params.self_signed(&key)?.der().clone();
    Ok(Pair { der, key })
}

/// Makes the intermediate number `number` of `root`.
pub(super) fn make_issuer(
    now: Unix,
    trust_domain: &str,
    root: &Pair,
    names: (u32, u32),
    ends: Unix,
) -> Result<Pair, X509Error> {
    let key = KeyPair::generate()?;
    let name = (format!("Outrigger issuer {}.{}", names.0, names.1), trust_domain);
    let mut params = params(now, ISSUER_LIFE.min(ends.saturating_sub(now)), Some(name))?;
    ca(&mut params, 0);
    let issuer = Issuer::from_ca_cert_der(&root.der, &root.key)?;
    let der = params.signed_by(&key, &issuer)?.der().clone();
    Ok(Pair { der, key })
}

impl Signer {
    /// Signs with `key`, whose certificate is the first of `chain`, or `root` when that is empty.
    pub(super) fn new(
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, X509Error> {
        // No link of the chain may end before the leaf does.
        let mut span = (0, Unix::MAX);
        for der in chain.iter().chain([&root]) {
            let (from, until) = validity(der).ok_or(rcgen::Error::CouldNotParseCertificate)?;
            span = (span.0.max(from), span.1.min(until));
        }
        let issuer = Issuer::from_ca_cert_der(chain.first().unwrap_or(&root), key)?;
        Ok(Self {
            issuer,
            chain,
            root,
            not_before: span.0,
            not_after: span.1,
        })
    }

    /// Signs a leaf for `key` (SubjectPublicKeyInfo, DER) that is valid for `life` seconds, or until
    /// the issuer ends.
    pub(super) fn leaf(&self, now: Unix, key: &[u8], id: &str, life: u64) -> Result<Leaf, X509Error> {
        if now < self.not_before || now >= self.not_after {
            return Err(X509Error::Clock {
                from: shown(self.not_before),
                until: shown(self.not_after),
                now: shown(now),
            });
        }
        let mut params = params(now, life.min(self.not_after - now), None)?;
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes);
        let key = SubjectPublicKeyInfo::from_der(key)?;
        let der = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Leaf {
            serial: hex(&serial.unwrap_or_default()),
            not_before: now.saturating_sub(BACKDATED),
            not_after: now.saturating_add(life.min(self.not_after - now)),
            hash: hex(&sha256(&der)),
            der,
        })
    }

    /// The leaf's chain as it is sent: the leaf, then the issuers below the root.
    pub(super) fn chain_of(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        std::iter::once(leaf).chain(self.chain.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests;
