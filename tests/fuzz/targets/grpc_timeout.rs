//! `grpc-timeout`: what is read is a duration, and what is written is read again, never longer.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use outrigger_sidecar::policy::deadline::{format_grpc_timeout, parse_grpc_timeout};

const HOUR: Duration = Duration::from_secs(3600);

fuzz_target!(|bytes: &[u8]| {
    let Some(read) = parse_grpc_timeout(bytes) else { return };
    let written = format_grpc_timeout(read);
    let again = parse_grpc_timeout(written.as_bytes()).expect("of the form that we read");
    assert!(again <= read && read - again < HOUR, "{read:?} → {written} → {again:?}");
    assert_eq!(format_grpc_timeout(again), written);
});
