//! The scan of HTTP/1 heads: how the bytes are cut does not matter, and lines that two lengths or a
//! length beside a coding begin are always found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_sidecar::accept::head::Scan;

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let (mut whole, mut pieces) = (Scan::default(), Scan::default());
    whole.feed(bytes);
    bytes
        .chunks(usize::from(cut).max(1))
        .for_each(|piece| pieces.feed(piece));
    assert_eq!(whole.doubtful(), pieces.doubtful());

    let (mut lengths, mut codings) = (0, 0);
    let lines = bytes
        .split_inclusive(|b| *b == b'\n')
        .filter_map(|line| line.strip_suffix(b"\n"));
    for line in lines.take_while(|line| !line.is_empty() && *line != b"\r") {
        let line = line.to_ascii_lowercase();
        lengths += usize::from(line.starts_with(b"content-length:"));
        codings += usize::from(line.starts_with(b"transfer-encoding:"));
    }
    assert_eq!(whole.doubtful(), lengths > 1 || (lengths > 0 && codings > 0));
});
