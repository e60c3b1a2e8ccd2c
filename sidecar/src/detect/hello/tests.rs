//! Hellos of real TLS stacks, in any number of pieces.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use super::*;

/// Never asked: no handshake gets further than its first message.
#[derive(Debug)]
struct Nobody(Arc<CryptoProvider>);

impl ServerCertVerifier for Nobody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Err(rustls::Error::DecryptError)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::DecryptError)
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::DecryptError)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What rustls really sends first, with these protocols.
fn client_hello(protocols: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Nobody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let name = "localhost".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut sent = Vec::new();
    client.write_tls(&mut sent).expect("writes to memory");
    sent
}

/// The same message in records of `size` bytes each.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|piece| {
            let length = u16::try_from(piece.len()).expect("small").to_be_bytes();
            [&[HANDSHAKE, 3, 1][..], &length, piece].concat()
        })
        .collect()
}

/// Feeds in pieces; the answer, and how many bytes it took.
fn fed(bytes: &[u8], piece: usize) -> (Option<Whose>, usize) {
    let mut hello = Hello::default();
    let mut took = 0;
    for piece in bytes.chunks(piece) {
        took += piece.len();
        if let Some(whose) = hello.feed(piece) {
            return (Some(whose), took);
        }
    }
    (None, took)
}

#[test]
fn the_meshs_protocols_are_known_in_any_place_and_in_any_pieces() {
    for (protocols, expected) in [
        (&[&b"outrigger-h2/1"[..]][..], Whose::Mesh),
        (&[b"outrigger-tcp/1"], Whose::Mesh),
        (&[b"h2", b"outrigger-h2/1"], Whose::Mesh),
        (&[b"h2", b"http/1.1"], Whose::App),
        (&[], Whose::App),
    ] {
        let hello = client_hello(protocols);
        for size in [1, 2, 3, 7, 100, 16_384] {
            let records = in_records(&hello, size);
            for piece in [1, 2, 5, 6, 1000, usize::MAX] {
                assert_eq!(fed(&records, piece).0, Some(expected), "{protocols:?} {size} {piece}");
            }
        }
    }
}

#[test]
fn other_beginnings_are_the_apps_at_the_first_byte_that_tells() {
    for (bytes, took) in [
        (&b"GET / HTTP/1.1\r\n"[..], 1),
        (b"\x15\x03\x01\x00\x02\x02\x28", 1),
        (b"\x16\x02\x00\x00\x10", 2),
        (b"\x16\x03\x01\x00\x00\x16", 5),
        (b"\x16\x03\x01\x40\x01\x16", 5),
        // A ServerHello.
        (b"\x16\x03\x03\x00\x30\x02\x00\x00\x2c", 6),
        // A ClientHello of more than we keep.
        (b"\x16\x03\x03\x00\x30\x01\x00\x40\x01", 9),
    ] {
        assert_eq!(fed(bytes, 1), (Some(Whose::App), took), "{}", bytes.escape_ascii());
    }
}

#[test]
fn grease_before_our_protocol_changes_nothing() {
    // RFC 8701: reserved values in every list, an empty extension first.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x0a, 0x0a, 1, 0]);
    let names = [&b"\x02\x0a\x0a"[..], b"\x0eoutrigger-h2/1"].concat();
    let alpn = [&[0, 16, 0, 20, 0, 18][..], &names].concat();
    let extensions = [&[0x1a, 0x1a, 0, 0][..], &alpn].concat();
    body.extend(u16::try_from(extensions.len()).expect("small").to_be_bytes());
    body.extend(extensions);
    let length = u8::try_from(body.len()).expect("small");
    let message = [&[CLIENT_HELLO, 0, 0, length][..], &body].concat();
    let record = [&[HANDSHAKE, 3, 1, 0, length + 4][..], &message].concat();
    assert_eq!(fed(&record, 1), (Some(Whose::Mesh), record.len()));
}

#[tokio::test]
async fn every_byte_is_given_back() {
    for protocols in [&[&b"outrigger-h2/1"[..]][..], &[b"h2"]] {
        let mut sent = client_hello(protocols);
        sent.extend(b"more");
        let (mut client, server) = tokio::io::duplex(3);
        let bytes = sent.clone();
        let write = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut client, &bytes)
                .await
                .expect("writes");
        });
        let (whose, mut stream) = read(server, Duration::from_secs(5)).await.expect("decided");
        assert_eq!(whose == Whose::Mesh, protocols[0] != b"h2");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.expect("reads");
        assert_eq!(got, sent);
        write.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_hello_is_waited_for_no_longer_than_the_limit() {
    let (mut client, server) = tokio::io::duplex(64);
    tokio::io::AsyncWriteExt::write_all(&mut client, b"\x16\x03\x01")
        .await
        .expect("writes");
    let error = read(server, Duration::from_secs(10)).await.expect_err("never complete");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn an_endless_hello_is_the_apps_and_kept_no_further() {
    let mut sent = Vec::new();
    while sent.len() < 2 * MOST {
        // Records of one byte of a message that claims to be as long as we keep.
        let byte = *[CLIENT_HELLO, 0, 0x40, 0].get(sent.len() / 6).unwrap_or(&0);
        sent.extend([HANDSHAKE, 3, 1, 0, 1, byte]);
    }
    let (whose, stream) = read(&sent[..], Duration::from_secs(5)).await.expect("decided");
    assert_eq!((whose, stream.ahead().len()), (Whose::App, MOST));
}

proptest! {
    #[test]
    fn pieces_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..9, tls in any::<bool>()) {
        let bytes = if tls { [&[HANDSHAKE, 3, 1, 0, 90, CLIENT_HELLO, 0, 0, 80][..], &bytes].concat() } else { bytes };
        prop_assert_eq!(fed(&bytes, piece).0, fed(&bytes, usize::MAX).0);
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0usize..1500, to in any::<u8>(), piece in 1usize..50) {
        let mut hello = client_hello(&[b"outrigger-h2/1"]);
        let n = hello.len();
        hello[at % n] = to;
        let (whose, _) = fed(&hello, piece);
        prop_assert!(whose.is_some() || at % n < 9);
    }

    #[test]
    fn a_cut_hello_is_never_decided_to_be_the_meshs(cut in 0usize..1500) {
        let hello = client_hello(&[b"outrigger-h2/1"]);
        let cut = cut % hello.len();
        prop_assert_eq!(fed(&hello[..cut], 1).0, None);
    }
}
