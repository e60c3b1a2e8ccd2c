//! What a fuzzer calls; only there with `--cfg fuzzing`.

use outrigger_proto::wire::agent::LateRenewal;

use super::csr::{Csr, sha256};
use super::issue;

/// Reads `der` as a request for a certificate. What is taken has a key, and asks for nothing but what it names.
pub fn csr(der: &[u8]) {
    if let Ok(csr) = Csr::parse(der) {
        assert_eq!(csr.key_hash, sha256(&csr.key));
    }
}

/// A late renewal whose leaf, signature and request are the parts of `input`: there is no proof without the key, so
/// only the seed that was made with one passes.
pub fn late(leaf: &[u8], signature: &[u8], csr: &[u8]) {
    let late = LateRenewal {
        leaf: leaf.to_vec(),
        signature: signature.to_vec(),
    };
    drop(issue::proves_key(&late, csr));
}
