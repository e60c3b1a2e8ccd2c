//! The certificates, judged by OpenSSL and by rustls.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::UnixTime;

use super::*;

const NOW: Unix = 1_800_000_000;
const ID: &str = "spiffe://mesh.local/ns/default/svc/post";

fn signer() -> Signer {
    let root = make_root(NOW, "mesh.local", 1).expect("a root");
    let issuer = make_issuer(NOW, "mesh.local", &root, (1, 1), NOW + ROOT_LIFE).expect("an issuer");
    Signer::new(issuer.key, vec![issuer.der], root.der).expect("signs")
}

fn leaf(signer: &Signer, now: Unix, life: u64) -> Result<Leaf, X509Error> {
    let key = KeyPair::generate().expect("a key");
    signer.leaf(now, &rcgen::PublicKeyData::subject_public_key_info(&key), ID, life)
}

fn pem(path: &Path, certificates: &[CertificateDer<'_>]) {
    use base64::Engine as _;
    let text: String = certificates
        .iter()
        .map(|der| {
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            let lines: Vec<&str> = body
                .as_bytes()
                .chunks(64)
                .filter_map(|c| std::str::from_utf8(c).ok())
                .collect();
            format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                lines.join("\n")
            )
        })
        .collect();
    std::fs::write(path, text).expect("writes");
}

#[test]
fn openssl_accepts_the_chain_for_both_ends_and_no_other_purpose() {
    let signer = signer();
    let leaf = leaf(&signer, NOW, 3600).expect("a leaf");
    let scratch = tempfile::tempdir().expect("scratch");
    let file = |name: &str| scratch.path().join(name);
    pem(&file("root"), std::slice::from_ref(&signer.root));
    pem(&file("chain"), &signer.chain);
    pem(&file("leaf"), std::slice::from_ref(&leaf.der));
    let verify = |purpose: &str, at: Unix, root: &str| {
        let output = Command::new("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-attime",
                &at.to_string(),
                "-CAfile",
            ])
            .args([file(root), "-untrusted".into(), file("chain"), file("leaf")])
            .output()
            .expect("openssl runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(text)
    };
    for purpose in ["sslserver", "sslclient"] {
        assert_eq!(verify(purpose, NOW, "root"), Ok(()));
        assert_eq!(verify(purpose, NOW - BACKDATED, "root"), Ok(()), "backdated");
        for (at, why) in [(NOW - BACKDATED - 1, "not yet valid"), (NOW + 3601, "expired")] {
            assert!(verify(purpose, at, "root").expect_err("wrong time").contains(why));
        }
    }
    assert!(verify("smimesign", NOW, "root").is_err(), "a wrong purpose");
    pem(&file("other"), &[make_root(NOW, "mesh.local", 1).expect("a root").der]);
    assert!(
        verify("sslserver", NOW, "other").is_err(),
        "another root of the same name"
    );
    let output = Command::new("openssl")
        .args([
            "x509",
            "-noout",
            "-ext",
            "subjectAltName,keyUsage,extendedKeyUsage,basicConstraints",
            "-in",
        ])
        .arg(file("leaf"))
        .output()
        .expect("openssl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.matches("URI:").count(), 1, "{text}");
    for part in [
        format!("URI:{ID}").as_str(),
        "Digital Signature",
        "CA:FALSE",
        "TLS Web Client Authentication",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(file("root"))
        .output();
    let text = String::from_utf8_lossy(&output.expect("openssl runs").stdout).into_owned();
    for part in [
        "CA:TRUE, pathlen:1",
        "Certificate Sign, CRL Sign",
        "URI:spiffe://mesh.local\n",
        "prime256v1",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn rustls_accepts_the_chain_while_it_is_valid() {
    let signer = signer();
    let leaf = leaf(&signer, NOW, 3600).expect("a leaf");
    let mut roots = RootCertStore::empty();
    roots.add(signer.root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("builds");
    let verify = |at: Unix| {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        verifier.verify_client_cert(&leaf.der, &signer.chain, at).map(drop)
    };
    assert_eq!(verify(NOW), Ok(()));
    assert_eq!(verify(NOW + 3600), Ok(()));
    assert!(verify(NOW + 3601).is_err() && verify(NOW - BACKDATED - 1).is_err());
}

#[test]
fn a_leaf_ends_with_its_issuer_and_a_wrong_clock_is_named() {
    let signer = signer();
    let last = leaf(&signer, NOW + ISSUER_LIFE - 100, 3600).expect("a leaf");
    assert_eq!(last.not_after, NOW + ISSUER_LIFE);
    assert_eq!(
        validity(&last.der),
        Some((NOW + ISSUER_LIFE - 100 - BACKDATED, last.not_after))
    );
    for wrong in [NOW + ISSUER_LIFE, NOW - BACKDATED - 1, 0] {
        let error = leaf(&signer, wrong, 3600).expect_err("refused").to_string();
        assert!(error.contains(&shown(wrong)), "{error}");
    }
}

#[test]
fn a_serial_is_as_long_in_der_as_in_text() {
    let signer = signer();
    let leaves: Vec<Leaf> = (0..50).map(|_| leaf(&signer, NOW, 60).expect("a leaf")).collect();
    for leaf in &leaves {
        let (_, parsed) = X509Certificate::from_der(&leaf.der).expect("a certificate");
        assert_eq!((hex(parsed.raw_serial()), leaf.serial.len()), (leaf.serial.clone(), 32));
    }
    let different: std::collections::BTreeSet<_> = leaves.iter().map(|l| &l.serial).collect();
    assert_eq!(different.len(), leaves.len());
}
