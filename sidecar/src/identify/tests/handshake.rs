//! Handshakes with real certificates, good and bad.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::{Revocation, SpiffeId};
use rcgen::{BasicConstraints, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::HandshakeKind;
use rustls::client::Resumption;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::super::leaf::Leaf;
use super::super::testing::{Ca, Spec, authority, empty, id, settings};
use super::super::trust::Trust;
use super::super::verify::Verifier;
use super::super::{Alpn, Foreign, Identity, NotAdmitted, Peer, TlsError, TlsStream, crypto, view};

type Connection = TlsStream<DuplexStream>;

fn spiffe(service: &str) -> SpiffeId {
    id(service).parse().expect("an id")
}

/// `client` calls `server`, which it expects to be `expected`.
async fn call(
    client: &Identity,
    server: &Identity,
    expected: &str,
    alpn: Alpn,
) -> (Result<Connection, TlsError>, Result<(Connection, Alpn, Peer), TlsError>) {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let expected = spiffe(expected);
    tokio::join!(client.connect(a, &expected, alpn), server.accept(b))
}

/// `server` must not let `client` in, and say why.
async fn server_refuses(client: &Identity, server: &Identity, why: &str) {
    let (opened, accepted) = call(client, server, "default/user", Alpn::H2).await;
    match accepted {
        Err(TlsError::Unverified(said)) => assert!(said.contains(why), "{said}"),
        other => panic!("refused for {why:?}, not {other:?}"),
    }
    // Under TLS 1.3 the client hears of it at its first read: an alert, and not one byte.
    let error = opened.expect("our side is done").read_u8().await.expect_err("an alert");
    assert!(matches!(TlsError::of(&error), Some(TlsError::Rejected(_))), "{error}");
}

/// `client` must not talk to `server`, and say why.
async fn client_refuses(client: &Identity, server: &Identity, why: &str) {
    let (opened, accepted) = call(client, server, "default/user", Alpn::H2).await;
    match opened {
        Err(TlsError::Unverified(said)) => assert!(said.contains(why), "{said}"),
        other => panic!("refused for {why:?}, not {other:?}"),
    }
    assert!(matches!(accepted, Err(TlsError::Rejected(_))), "{accepted:?}");
}

/// Both directions refuse a workload with that certificate.
async fn both_refuse(ca: &Ca, spec: &Spec, why: &str) {
    let (bad, post, user) = (ca.with(spec), ca.identity("default/post"), ca.identity("default/user"));
    server_refuses(&bad, &user, why).await;
    client_refuses(&post, &bad, why).await;
}

#[tokio::test]
async fn two_workloads_know_each_other() {
    let ca = Ca::new();
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    for alpn in [
        Alpn::H2,
        Alpn::Tcp,
        Alpn::Foreign(Foreign::H2),
        Alpn::Foreign(Foreign::Http1),
        Alpn::Foreign(Foreign::None),
    ] {
        let (client, server) = call(&post, &user, "default/user", alpn).await;
        let (mut server, got, peer) = server.expect("a connection");
        assert_eq!((got, &peer.id), (alpn, &spiffe("default/post")));
        assert_eq!(peer.serial, post.current().expect("a leaf").serial);
        assert_eq!(user.admits(&peer), Ok(()));
        client.expect("a connection").write_all(b"hello").await.expect("sent");
        let mut read = [0; 5];
        server.read_exact(&mut read).await.expect("received");
        assert_eq!(&read, b"hello");
    }
}

#[tokio::test]
async fn a_server_that_is_somebody_else_gets_nothing() {
    let ca = Ca::new();
    let (post, other) = (ca.identity("default/post"), ca.identity("default/other"));
    client_refuses(
        &post,
        &other,
        "svc/other, and spiffe://test.local/ns/default/svc/user was expected",
    )
    .await;
    let elsewhere = ca.identity("shop/user");
    client_refuses(&post, &elsewhere, "was expected").await;
}

#[tokio::test]
async fn another_ca_is_not_trusted() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (post, user) = (ours.identity("default/post"), ours.identity("default/user"));
    let spec = Spec::of("default/user");
    let trust = || Trust::new(ours.bundle()).expect("a root");
    // Trusts us, and shows what another CA signed.
    let forged = theirs.with(&spec);
    let (chain, key) = theirs.leaf(&spec);
    forged.replace(Leaf::new(chain, &key, SystemTime::now()).expect("a pair"), trust());
    server_refuses(&forged, &user, "does not lead to a root").await;
    client_refuses(&post, &forged, "does not lead to a root").await;
    // Signed by nobody but itself.
    let key = KeyPair::generate().expect("a key");
    let alone = spec.params().self_signed(&key).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    forged.replace(
        Leaf::new(vec![alone.der().clone()], &key, SystemTime::now()).expect("a pair"),
        trust(),
    );
    server_refuses(&forged, &user, "does not lead to a root").await;
    client_refuses(&post, &forged, "does not lead to a root").await;
}

#[tokio::test]
async fn times_usages_and_names_must_be_right() {
    let ca = Ca::new();
    let good = Spec::of("default/user");
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let mut late = good.clone();
    late.not_before = now + hour + Duration::from_secs(30);
    late.not_after = now + 2 * hour;
    both_refuse(&ca, &late, "becomes valid in 60 min by this machine's clock").await;
    let (opened, _) = call(&ca.with(&late), &ca.identity("default/user"), "default/user", Alpn::H2).await;
    let error = opened.expect("our side is done").read_u8().await.expect_err("an alert");
    let said = TlsError::of(&error).expect("it is TLS").to_string();
    assert!(
        said.contains("one of the two clocks is wrong"),
        "the side whose certificate it is: {said}"
    );
    let uris = |uris: &[&str]| Spec {
        uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
        ..good.clone()
    };
    both_refuse(
        &ca,
        &uris(&["spiffe://other.local/ns/default/svc/user"]),
        "of another trust domain",
    )
    .await;
    let usages = |usages: &[ExtendedKeyUsagePurpose]| Spec {
        usages: usages.to_vec(),
        ..good.clone()
    };
    let (user, post) = (ca.identity("default/user"), ca.identity("default/post"));
    let why = "may not be used for this side";
    server_refuses(&ca.with(&usages(&[ExtendedKeyUsagePurpose::ServerAuth])), &user, why).await;
    client_refuses(&post, &ca.with(&usages(&[ExtendedKeyUsagePurpose::ClientAuth])), why).await;
    both_refuse(&ca, &usages(&[]), why).await;
    both_refuse(&ca, &usages(&[ExtendedKeyUsagePurpose::CodeSigning]), why).await;
}

#[tokio::test]
async fn a_certificate_without_exactly_one_id_is_refused() {
    let ca = Ca::new();
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    let one = id("default/user");
    for (uris, why) in [
        (vec![], "carries no id"),
        (vec![one.clone(), one.clone()], "carries 2 ids"),
        (vec![one.clone(), "https://example.org/".into()], "carries 2 ids"),
        (vec!["https://example.org/".into()], "is no id of a workload"),
        (vec![format!("{one}/more")], "is no id of a workload"),
    ] {
        let spec = Spec {
            uris,
            ..Spec::of("default/user")
        };
        let bad = ca.bare(&spec);
        server_refuses(&bad, &user, why).await;
        client_refuses(&post, &bad, why).await;
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_the_other_side() {
    let ca = Ca::new();
    let spec = Spec {
        not_after: SystemTime::now() - Duration::from_secs(7200),
        not_before: SystemTime::now() - Duration::from_secs(9000),
        ..Spec::of("default/user")
    };
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    let expired = ca.with(&spec);
    // Our own code does not even try.
    let refused = expired
        .connect(tokio::io::duplex(1).0, &spiffe("default/post"), Alpn::H2)
        .await;
    assert!(matches!(refused, Err(TlsError::NoIdentity(_))));
    let expired = ca.bare(&spec);
    server_refuses(&expired, &user, "expired 2 h ago by this machine's clock").await;
    client_refuses(&post, &expired, "expired 2 h ago by this machine's clock").await;
}

#[tokio::test]
async fn chains_are_short() {
    let ca = Ca::new();
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    let spec = Spec::of("default/user");
    let deep = |ca: &Ca, more: usize, first: IsCa| {
        let key = || KeyPair::generate().expect("a key");
        let mut params = authority("first");
        params.is_ca = first;
        let mut chain = vec![CertifiedIssuer::signed_by(params, key(), &ca.root).expect("a CA")];
        for depth in 0..more {
            let below = chain.last().expect("a CA");
            chain.push(CertifiedIssuer::signed_by(authority(&format!("{depth}")), key(), below).expect("a CA"));
        }
        let leaf_key = key();
        let leaf = spec
            .params()
            .signed_by(&leaf_key, chain.last().expect("a CA"))
            .expect("a leaf");
        let shown = std::iter::once(leaf.der().clone()).chain(chain.iter().rev().map(|ca| ca.der().clone()));
        let der = PrivatePkcs8KeyDer::from(leaf_key.serialize_der()).into();
        let identity = empty();
        let leaf = Leaf::new(shown.collect(), &der, SystemTime::now()).expect("a pair");
        identity.replace(leaf, Trust::new(ca.bundle()).expect("a root"));
        identity
    };
    let unconstrained = || IsCa::Ca(BasicConstraints::Unconstrained);
    let (opened, accepted) = call(&deep(&ca, 3, unconstrained()), &user, "default/user", Alpn::H2).await;
    assert!(opened.is_ok() && accepted.is_ok(), "four intermediates are enough");
    let long = deep(&ca, 4, unconstrained());
    server_refuses(&long, &user, "a chain of 6 certificates").await;
    client_refuses(&post, &long, "a chain of 6 certificates").await;
    let constrained = deep(&ca, 1, IsCa::Ca(BasicConstraints::Constrained(0)));
    server_refuses(&constrained, &user, "longer than its CA allows").await;
    client_refuses(&post, &constrained, "longer than its CA allows").await;
    let no_ca = deep(&ca, 0, IsCa::ExplicitNoCa);
    server_refuses(&no_ca, &user, "not accepted").await;
}

#[tokio::test]
async fn who_is_revoked_is_let_in_no_longer() {
    let ca = Ca::new();
    let (post, user) = (ca.identity("default/post"), ca.identity("default/user"));
    let (_, accepted) = call(&post, &user, "default/user", Alpn::H2).await;
    let (_, _, peer) = accepted.expect("let in");
    for revoked in [
        Revocation::Serial(format!("00{}", peer.serial)),
        Revocation::Service(peer.id.service().clone()),
    ] {
        let mut bundle = ca.bundle();
        bundle.revoked = vec![revoked];
        let before = user.generation();
        user.trust(&bundle);
        assert!(user.generation() > before);
        assert_eq!(
            user.admits(&peer),
            Err(NotAdmitted::Revoked),
            "a connection that is open"
        );
        server_refuses(&post, &user, "revoked").await;
        user.trust(&ca.bundle());
        assert_eq!(user.admits(&peer), Ok(()), "allowed again");
    }
    let mut bundle = ca.bundle();
    bundle.revoked = vec![Revocation::Service(spiffe("default/user").service().clone())];
    post.trust(&bundle);
    client_refuses(&post, &user, "revoked").await;
}

#[tokio::test]
async fn during_a_rotation_both_roots_count_and_then_one() {
    let old = Ca::new();
    let new = Ca::after(&old);
    let (post, user) = (old.identity("default/post"), new.identity("default/user"));
    post.trust(&new.bundle());
    let (opened, accepted) = call(&post, &user, "default/user", Alpn::H2).await;
    let (_, _, peer) = accepted.expect("let in");
    opened.expect("let in");
    assert_eq!(user.admits(&peer), Ok(()));
    let mut bundle = new.bundle();
    bundle.roots.remove(0);
    bundle.generation = 3;
    user.trust(&bundle);
    assert_eq!(user.admits(&peer), Err(NotAdmitted::Untrusted));
    server_refuses(&post, &user, "does not lead to a root").await;
}

/// A client of ours with its settings laid open.
fn foreign(ca: &Ca, shows: Option<&str>, post_quantum: bool) -> rustls::ClientConfig {
    let provider = crypto::provider(post_quantum);
    let trust = Arc::new(Trust::new(ca.bundle()).expect("a root"));
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Verifier::of_server(trust, algorithms, spiffe("default/user"));
    let own = shows.map(|service| {
        let (chain, key) = ca.leaf(&Spec::of(service));
        view::resolver(&Leaf::new(chain, &key, SystemTime::now()).expect("a pair")) as _
    });
    crypto::client(provider, Arc::new(verifier), own, vec![b"h2".to_vec()]).expect("settings")
}

async fn dial(config: Arc<rustls::ClientConfig>, io: DuplexStream) -> tokio_rustls::client::TlsStream<DuplexStream> {
    let connector = tokio_rustls::TlsConnector::from(config);
    connector
        .connect(view::server_name(), io)
        .await
        .expect("our side is done")
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let user = ca.identity("default/user");
    let (a, b) = tokio::io::duplex(64 * 1024);
    let config = Arc::new(foreign(&ca, None, true));
    let (mut client, accepted) = tokio::join!(dial(config, a), user.accept(b));
    assert!(matches!(accepted, Err(TlsError::Unverified(why)) if why.contains("no certificate")));
    client.read_u8().await.expect_err("an alert");
}

#[tokio::test]
async fn nothing_is_resumed() {
    let ca = Ca::new();
    let user = ca.identity("default/user");
    let mut config = foreign(&ca, Some("default/post"), true);
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..2 {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (mut client, accepted) = tokio::join!(dial(config.clone(), a), user.accept(b));
        let (mut server, ..) = accepted.expect("let in");
        // A ticket would come with the first data.
        server.write_all(b"x").await.expect("sent");
        assert_eq!(client.read_u8().await.expect("received"), b'x');
        let (_, connection) = client.get_ref();
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn key_exchange_is_post_quantum_unless_switched_off() {
    let ca = Ca::new();
    for (theirs, ours, expected) in [
        (true, true, rustls::NamedGroup::X25519MLKEM768),
        (false, true, rustls::NamedGroup::X25519),
        (true, false, rustls::NamedGroup::X25519),
    ] {
        let mut settings = settings();
        settings.post_quantum = ours;
        let user = ca.with_settings(&settings, &Spec::of("default/user"));
        let (a, b) = tokio::io::duplex(64 * 1024);
        let config = Arc::new(foreign(&ca, Some("default/post"), theirs));
        let (client, accepted) = tokio::join!(dial(config, a), user.accept(b));
        accepted.expect("let in");
        let (_, connection) = client.get_ref();
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(expected));
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
    }
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    // A ClientHello of TLS 1.2 (RFC 5246 §7.4.1.2): one suite, P-256, ECDSA with SHA-256.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3, 0, 23, 0, 0,
    ];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    let user = Ca::new().identity("default/user");
    let (mut a, b) = tokio::io::duplex(64 * 1024);
    a.write_all(&hello).await.expect("sent");
    let refused = user.accept(b).await.expect_err("refused");
    assert!(matches!(refused, TlsError::Handshake(_)), "{refused:?}");
    let mut answer = Vec::new();
    a.read_to_end(&mut answer).await.expect("read");
    // An alert, fatal, protocol_version (RFC 8446 §6.2).
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test]
async fn without_an_identity_nothing_passes() {
    let (none, off) = (empty(), Identity::default());
    assert!(none.is_on() && !off.is_on());
    let user = Ca::new().identity("default/user");
    let (_, _, peer) = {
        let ca = Ca::new();
        let (_, accepted) = call(
            &ca.identity("default/post"),
            &ca.identity("default/user"),
            "default/user",
            Alpn::H2,
        )
        .await;
        accepted.expect("let in")
    };
    assert_eq!(user.admits(&peer), Err(NotAdmitted::Untrusted), "another mesh's peer");
    for identity in [&none, &off] {
        assert_eq!(identity.admits(&peer), Err(NotAdmitted::NoIdentity));
        assert!(matches!(
            identity.accept(tokio::io::duplex(1).0).await,
            Err(TlsError::NoIdentity(_))
        ));
        assert!(matches!(
            identity.connect(tokio::io::duplex(1).0, &peer.id, Alpn::H2).await,
            Err(TlsError::NoIdentity(_))
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_is_given_up() {
    let user = Ca::new().identity("default/user");
    let (_a, b) = tokio::io::duplex(64 * 1024);
    assert!(matches!(user.accept(b).await, Err(TlsError::TimedOut)));
    let (_a, b) = tokio::io::duplex(64 * 1024);
    let silent = user.connect(b, &spiffe("default/post"), Alpn::Tcp).await;
    assert!(matches!(silent, Err(TlsError::TimedOut)));
}
