//! The look at a ClientHello: the same however the bytes are cut (the first byte says how), bounded, and of one mind
//! with rustls about whether a protocol of the mesh is offered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_sidecar::detect::hello::{Hello, MOST, Whose};
use rustls::server::Acceptor;

fn ours(bytes: &[u8], cut: usize) -> Option<Whose> {
    let mut hello = Hello::default();
    bytes.chunks(cut).fold(None, |known, piece| {
        let now = hello.feed(piece);
        assert!(known.is_none() || known == now, "changed its mind");
        now
    })
}

/// What rustls makes of the first message; none when it is not complete, or not one.
fn theirs(mut bytes: &[u8]) -> Option<Whose> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let mut names = hello.alpn().into_iter().flatten();
            return Some(match names.any(|name| name.starts_with(b"outrigger-")) {
                true => Whose::Mesh,
                false => Whose::App,
            });
        }
    }
    None
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let bytes = &bytes[..bytes.len().min(MOST)];
    let whole = ours(bytes, MOST);
    assert_eq!(ours(bytes, usize::from(*cut).max(1)), whole, "cuts matter");
    if let Some(theirs) = theirs(bytes) {
        assert_eq!(whole, Some(theirs), "rustls thinks otherwise");
    }
});
