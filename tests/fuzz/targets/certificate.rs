//! A peer's leaf, read for its id, serial and dates; and a root of a trust bundle.
#![no_main]

libfuzzer_sys::fuzz_target!(|der: &[u8]| outrigger_sidecar::identify::fuzz::certificate(der));
