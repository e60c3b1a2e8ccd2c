//! Reads a certificate request (PKCS#10, RFC 2986): only its key counts.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use outrigger_proto::model::SpiffeId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A request with a P-256 key takes some 300 bytes.
const LARGEST: usize = 4096;

/// A request whose sender has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Csr {
    /// The key as a certificate carries it (SubjectPublicKeyInfo, DER).
    pub(super) key: Vec<u8>,
    /// SHA-256 of `key`.
    pub(super) key_hash: [u8; 32],
    names: Vec<String>,
}

impl Csr {
    /// Parses a request and checks that it is signed by its own key.
    ///
    /// # Errors
    /// With what is wrong with it, for people.
    pub(super) fn parse(der: &[u8]) -> Result<Self, String> {
        if der.len() > LARGEST {
            return Err(format!("the request has {} bytes, more than {LARGEST}", der.len()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der)
            .map_err(|_| "it is not a certificate request (PKCS#10, DER)".to_owned())?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate request".into());
        }
        let info = &csr.certification_request_info;
        let public = p256(&info.subject_pki)?;
        if csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err("it is not signed by ECDSA with SHA-256".into());
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public)
            .verify(info.raw, &csr.signature_value.data)
            .map_err(|_| "its signature is not of its own key".to_owned())?;
        let mut names = Vec::new();
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                names.extend(san.general_names.iter().map(|name| match name {
                    GeneralName::URI(uri) => (*uri).to_owned(),
                    other => other.to_string(),
                }));
            }
        }
        let key = info.subject_pki.raw.to_vec();
        let key_hash = sha256(&key);
        Ok(Self { key, key_hash, names })
    }

    /// Refuses a request that asks for another name than `id`.
    ///
    /// # Errors
    /// With the other name.
    pub(super) fn asks_only_for(&self, id: &SpiffeId) -> Result<(), String> {
        match self.names.iter().find(|name| *name != id.as_str()) {
            Some(other) => {
                let shown: String = other.chars().take(300).collect();
                Err(format!("it asks for `{shown}`, and what is granted is {id}"))
            }
            None => Ok(()),
        }
    }
}

/// The point of a P-256 key.
///
/// # Errors
/// When it is another key.
pub(super) fn p256<'a>(key: &'a SubjectPublicKeyInfo<'_>) -> Result<&'a [u8], String> {
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err("its key is not on the curve P-256".into());
    }
    Ok(&key.subject_public_key.data)
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};

    use super::*;

    fn id() -> SpiffeId {
        "spiffe://mesh.local/ns/default/svc/post".parse().expect("an id")
    }

    fn request(key: &KeyPair, sans: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans.to_vec();
        params.serialize_request(key).expect("a request").der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ASCII"))
    }

    #[test]
    fn only_the_granted_name_may_be_asked_for() {
        let key = KeyPair::generate().expect("a key");
        let ask = |sans: &[SanType]| {
            let csr = Csr::parse(&request(&key, sans)).expect("well formed");
            csr.asks_only_for(&id())
        };
        assert_eq!(ask(&[]), Ok(()));
        assert_eq!(ask(&[uri(id().as_str())]), Ok(()));
        for wrong in [
            vec![uri("spiffe://mesh.local/ns/default/svc/user")],
            vec![uri(id().as_str()), uri("spiffe://mesh.local/ns/default/svc/user")],
            vec![uri(id().as_str()), SanType::DnsName("post".try_into().expect("ASCII"))],
            vec![SanType::DnsName(id().as_str().try_into().expect("ASCII"))],
            vec![SanType::IpAddress([127, 0, 0, 1].into())],
        ] {
            assert!(ask(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_p256_keys_that_the_sender_has_are_taken() {
        let key = KeyPair::generate().expect("a key");
        let good = request(&key, &[]);
        assert!(Csr::parse(&good).is_ok());
        for alg in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let other = KeyPair::generate_for(alg).expect("a key");
            let error = Csr::parse(&request(&other, &[])).expect_err("another curve");
            assert!(error.contains("P-256"), "{error}");
        }
        // Somebody else's key in a request that one has signed: every changed bit is noticed, or (in
        // the unsigned frame around it) means nothing.
        let whole = Csr::parse(&good).expect("well formed");
        for i in 0..good.len() {
            let mut changed = good.clone();
            changed[i] ^= 1;
            assert!(
                Csr::parse(&changed).is_ok_and(|csr| csr == whole) || Csr::parse(&changed).is_err(),
                "byte {i}"
            );
        }
        for cut in 0..good.len() {
            assert!(Csr::parse(&good[..cut]).is_err());
        }
        assert!(Csr::parse(&[&good[..], &[0]].concat()).is_err());
        assert!(Csr::parse(&vec![0x30; LARGEST + 1]).is_err());
    }
}
