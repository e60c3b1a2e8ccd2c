//! Handshakes with real certificates, good and bad.

use super::super::testing::{Ca, id};
use super::super::{Alpn, TlsError};

#[tokio::test]
async fn two_workloads_know_each_other() {
    let ca = Ca::new();
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    let (a, b) = tokio::io::duplex(16 * 1024);
    let expected = id("default/user").parse().expect("an id");
    let (client, server) = tokio::join!(post.connect(a, &expected, Alpn::Tcp), user.accept(b));
    client.expect("a connection");
    let (_, alpn, peer) = server.expect("a connection");
    assert_eq!((alpn, peer.id.to_string()), (Alpn::Tcp, id("default/post")));
    assert_eq!(user.admits(&peer), Ok(()));
}

#[tokio::test]
async fn a_server_that_is_somebody_else_gets_nothing() {
    let ca = Ca::new();
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    let (a, b) = tokio::io::duplex(16 * 1024);
    let expected = id("default/other").parse().expect("an id");
    let (client, server) = tokio::join!(post.connect(a, &expected, Alpn::H2), user.accept(b));
    let Err(TlsError::Unverified(why)) = client else {
        panic!("refused")
    };
    assert!(why.contains("default/svc/other was expected"), "{why}");
    assert!(matches!(server, Err(TlsError::Rejected(_))));
}
