//! What a fuzzer calls; only there with `--cfg fuzzing`.

use outrigger_proto::model::TrustBundle;

use super::trust::Trust;
use super::verify;

/// Reads `der` as a peer's leaf and as a root of a bundle. Panics when an id is not spelled as it is compared.
pub fn certificate(der: &[u8]) {
    if let Ok(peer) = verify::read(der, [0; 32]) {
        assert_eq!(peer.id.as_str().parse(), Ok(peer.id.clone()));
        assert!(!peer.serial.is_empty() && peer.serial.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    let bundle = TrustBundle {
        trust_domain: "mesh.local".into(),
        roots: vec![der.to_vec()],
        generation: 1,
        revoked: Vec::new(),
    };
    if let Ok(trust) = Trust::new(bundle) {
        assert_eq!(trust.anchors().len(), 1);
    }
}
