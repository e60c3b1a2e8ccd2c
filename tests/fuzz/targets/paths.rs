//! Normal forms of paths: their own normal form, without what is ambiguous, and the same once decoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_proto::access::normalise;

fuzz_target!(|path: &str| {
    let Ok(normal) = normalise(path) else { return };
    assert!(normal.is_ascii() && normal.starts_with('/'));
    assert_eq!(normalise(&normal).as_deref(), Ok(&*normal));
    let upper = normal.to_ascii_uppercase();
    for never in ["%2E", "%2F", "%5C", "%00", "//", "/./", "/../", "\\", "\0"] {
        assert!(!upper.contains(never), "{path} → {normal}");
    }
    // What an app does: decode, then (some) decode again. Neither makes a separator that was not there.
    let once = decoded(normal.as_bytes());
    assert_eq!(once, decoded(path.as_bytes()));
    let slashes = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'/').count();
    for seen in [once.clone(), decoded(&once)] {
        assert_eq!(slashes(&seen), slashes(path.as_bytes()), "{path}");
        let dots = |s: &[u8]| s == b"." || s == b"..";
        assert!(!seen.split(|b| *b == b'/').any(dots), "{path}");
        assert!(!seen.contains(&0) && !seen.contains(&b'\\'), "{path}");
    }
});

fn decoded(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [first, more @ ..] = rest {
        let digits = more.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let text = digits.and_then(|d| std::str::from_utf8(d).ok());
        match text.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &more[2..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}
