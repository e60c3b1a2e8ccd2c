//! Files that do not belong together, or are not what they should be, are refused by name.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};

use super::*;

const NOW: Unix = 1_800_000_000;

struct Ca {
    pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

fn params(name: &str, below: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = match below {
        Some(below) => IsCa::Ca(BasicConstraints::Constrained(below)),
        None => IsCa::NoCa,
    };
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root(params: &CertificateParams) -> Ca {
    let key = KeyPair::generate().expect("a key");
    let cert = params.self_signed(&key).expect("signs");
    Ca {
        pem: cert.pem(),
        der: cert.der().clone(),
        key,
    }
}

fn below(ca: &Ca, params: &CertificateParams) -> Ca {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let issuer = Issuer::from_ca_cert_der(&ca.der, &ca.key).expect("an issuer");
    let cert = params.signed_by(&key, &issuer).expect("signs");
    Ca {
        pem: cert.pem(),
        der: cert.der().clone(),
        key,
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("scratch"))
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        files::write(&path, text.as_bytes()).expect("writes");
        path
    }

    fn load(&self, cert: &str, key: &str, chain: Option<&str>) -> Result<Signer, String> {
        let files = CaFiles {
            cert: self.put("ca.pem", cert),
            key: self.put("ca.key", key),
            chain: chain.map(|text| self.put("chain.pem", text)),
        };
        load(NOW, &files, "mesh.local").map_err(|e| e.to_string())
    }
}

#[test]
fn a_root_or_an_intermediate_with_its_chain_signs() {
    let files = Files::new();
    let top = root(&params("top", Some(1)));
    assert!(
        files
            .load(&top.pem, &top.key.serialize_pem(), None)
            .expect("a root")
            .chain
            .is_empty()
    );
    let issuer = below(&top, &params("issuer", Some(0)));
    let signer = files
        .load(&issuer.pem, &issuer.key.serialize_pem(), Some(&top.pem))
        .expect("an intermediate");
    assert_eq!((signer.chain, signer.root), (vec![issuer.der], top.der));
}

#[test]
fn each_mistake_names_its_file() {
    let files = Files::new();
    let (top, other) = (root(&params("top", Some(1))), root(&params("top", Some(1))));
    let issuer = below(&top, &params("issuer", Some(0)));
    let deep = below(&issuer, &params("deep", Some(0)));
    let (no_ca, mut no_sign, mut old) = (
        root(&params("leaf", None)),
        params("top", Some(1)),
        params("top", Some(1)),
    );
    no_sign.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (no_sign, old) = (root(&no_sign), root(&old));
    let rsa_less = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let key = |ca: &Ca| ca.key.serialize_pem();
    for (cert, key, chain, file, what) in [
        (&top.pem, key(&other), None, "ca.key", "is not the key of"),
        (&issuer.pem, key(&issuer), None, "ca.pem", "is not a root"),
        (
            &issuer.pem,
            key(&issuer),
            Some(issuer.pem.clone()),
            "chain.pem",
            "is not a root",
        ),
        (
            &issuer.pem,
            key(&issuer),
            Some(other.pem.clone()),
            "ca.pem",
            "does not verify",
        ),
        (
            &deep.pem,
            key(&deep),
            Some(format!("{}{}", issuer.pem, top.pem)),
            "ca.pem",
            "does not verify",
        ),
        (&no_ca.pem, key(&no_ca), None, "ca.pem", "not a CA"),
        (&no_sign.pem, key(&no_sign), None, "ca.pem", "keyCertSign"),
        (&old.pem, key(&old), None, "ca.pem", "the clock says 2027-01-15"),
        (&top.pem, rsa_less.serialize_pem(), None, "ca.key", "neither ECDSA"),
        (&top.pem, "garbage".into(), None, "ca.key", "no private key"),
        (&"garbage".to_owned(), key(&top), None, "ca.pem", "no certificate"),
        (
            &format!("{}{}", top.pem, other.pem),
            key(&top),
            None,
            "ca.pem",
            "holds 2 certificates",
        ),
    ] {
        let error = files.load(cert, &key, chain.as_deref()).expect_err(what);
        assert!(error.contains(file) && error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_key_that_others_can_read_and_a_missing_one_are_refused() {
    let files = Files::new();
    let top = root(&params("top", Some(1)));
    let (cert, key) = (
        files.put("ca.pem", &top.pem),
        files.put("ca.key", &top.key.serialize_pem()),
    );
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("sets");
    let mut brought = CaFiles { cert, key, chain: None };
    let error = load(NOW, &brought, "mesh.local").expect_err("exposed").to_string();
    assert!(
        error.contains(&format!("chmod 600 {}", brought.key.display())),
        "{error}"
    );
    brought.key = files.0.path().join("nowhere.key");
    let error = load(NOW, &brought, "mesh.local").expect_err("missing").to_string();
    assert!(error.contains("nowhere.key"), "{error}");
}
