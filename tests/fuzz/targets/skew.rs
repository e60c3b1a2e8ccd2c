//! The walk over raw bytes against the table of known fields, for the messages that peers send: it ends, it agrees
//! with prost on what is a message, and paths of unknown fields name them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_proto::skew::{MUST_UNDERSTAND, walk};

const MESSAGES: [&str; 6] = [
    "outrigger.mesh.v1.Proxy",
    "outrigger.mesh.v1.Service",
    "outrigger.mesh.v1.Endpoint",
    "outrigger.mesh.v1.TrustBundle",
    "outrigger.mesh.v1.Access",
    "outrigger.mesh.v1.Nothing",
];

fuzz_target!(|input: &[u8]| {
    let Some((message, bytes)) = input.split_first() else {
        return;
    };
    let message = MESSAGES[usize::from(*message) % MESSAGES.len()];
    let Ok(skew) = walk(message, bytes) else { return };
    assert_ne!(message, "outrigger.mesh.v1.Nothing");
    for field in skew.must_understand {
        assert!(MUST_UNDERSTAND.contains(&field.number));
        assert!(field.path.ends_with(&field.number.to_string()), "{}", field.path);
    }
});
