//! What is handed out, judged by OpenSSL.

use std::process::Command;

use super::super::vault::pem;
use super::*;

#[test]
fn openssl_accepts_a_whole_answer_against_the_bundle() {
    let authority = open(NOW, None);
    let mut post = Workload::new("default/post", "p1");
    let text = token(&authority, NOW, "default/post", 1);
    let request = post.request(Some(Proof::Token(text)));
    authority.rotate(NOW, None).expect("two roots");
    let granted = authority.issue(NOW, &Asker::Nobody, &request).expect("a certificate");
    post.serial = granted.serial;
    let scratch = tempfile::tempdir().expect("scratch");
    let put = |name: &str, all: &[Vec<u8>]| {
        let text: String = all.iter().map(|der| pem(&CertificateDer::from(der.clone()))).collect();
        let path = scratch.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path
    };
    let (leaf, chain) = (put("leaf", &granted.chain[..1]), put("chain", &granted.chain[1..]));
    let at = NOW.to_string();
    let verify = |roots: &[Vec<u8>]| {
        Command::new("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-purpose",
                "sslclient",
                "-attime",
                &at,
                "-CAfile",
            ])
            .args([&put("roots", roots), &"-untrusted".into(), &chain, &leaf])
            .output()
            .expect("openssl runs")
            .status
            .success()
    };
    let roots = granted.trust.roots;
    assert!(verify(&roots));
    // Spreading: the last one signs, so the first alone does not vouch for it.
    assert!(verify(&roots[1..]) && !verify(&roots[..1]));
    let serial = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(&leaf)
        .output();
    let serial = String::from_utf8_lossy(&serial.expect("openssl runs").stdout).to_lowercase();
    assert_eq!(serial.trim(), format!("serial={}", post.serial));
}
