//! What a joiner sends: a certificate request, and the parts of a late renewal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_control_plane::identity::fuzz;

fuzz_target!(|input: &[u8]| {
    fuzz::csr(input);
    // Divided by bars; DER that holds one is cut there, which is as good an input as another.
    let mut parts = input.splitn(3, |b| *b == b'|');
    if let (Some(leaf), Some(signature), Some(csr)) = (parts.next(), parts.next(), parts.next()) {
        fuzz::late(leaf, signature, csr);
    }
});
