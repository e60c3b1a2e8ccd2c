//! Frames of the tunnel: the same however the bytes are cut; an OPEN survives being written again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| outrigger_proto::tunnel::fuzz::frames(bytes));
