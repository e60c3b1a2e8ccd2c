//! Detection of a connection's protocol: what is decided by a prefix stays, and silence decides at last.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_sidecar::detect::classify;

fuzz_target!(|bytes: &[u8]| {
    let mut decided = None;
    for cut in 0..=bytes.len().min(64) {
        let now = classify(&bytes[..cut], false);
        if decided.is_some() {
            assert_eq!(now, decided, "changed its mind at {cut}");
        }
        decided = now;
        assert!(classify(&bytes[..cut], true).is_some());
    }
});
