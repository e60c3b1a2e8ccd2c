//! Who is at the other end, and what becomes of connections when that is no longer so.

use super::*;

#[tokio::test]
async fn two_sidecars_prove_themselves_and_the_app_learns_who_calls() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let user = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
    let forged = "outrigger-caller: spiffe://forged\r\nOutrigger-Origin: 2\r\nx-own: 1\r\n";
    let (head, body) = get(&mut user.connection(), "/a/%2e/..//b?c=%2F", forged).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!head.contains("outrigger"), "{head}");
    assert!(body.starts_with("GET /a/%2e/..//b?c=%2F HTTP/1.1\r\n"), "{body}");
    assert!(
        body.contains(&format!("outrigger-caller: {}\r\n", id("default/user"))),
        "{body}"
    );
    assert!(
        body.contains("x-own: 1\r\n") && !body.contains("forged") && !body.contains("origin"),
        "{body}"
    );
    let secured: Vec<_> = post
        .shared
        .stats
        .snapshot()
        .iter()
        .map(|(_, c)| (c.connections_secured, c.requests_secured))
        .collect();
    assert_eq!(secured, [(1, 1)]);
}

#[tokio::test]
async fn a_peer_that_is_somebody_else_gets_nothing() {
    let ca = Ca::new();
    for (server, client, reason) in [
        (
            ca.identity("default/other"),
            ca.identity("default/user"),
            "peer_unverified",
        ),
        (
            Ca::new().identity("default/post"),
            ca.identity("default/user"),
            "peer_unverified",
        ),
        (
            ca.identity("default/post"),
            Ca::new().identity("default/user"),
            "peer_unverified",
        ),
        (
            ca.identity("default/post"),
            crate::identify::testing::empty(),
            "no_identity",
        ),
        (ca.identity("default/post"), Identity::default(), "no_identity"),
    ] {
        let post = Callee::new(server, Protocol::Http, Mode::Strict).await;
        let user = Calls::new(client, post.address, Mode::Strict);
        let (head, body) = user.get("/").await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}{body}");
        assert!(
            head.contains(&format!("outrigger-reason: {reason}\r\n")),
            "{head}{body}"
        );
        let requests: u64 = post.shared.stats.snapshot().iter().map(|(_, c)| c.requests).sum();
        assert_eq!(requests, 0, "{body}");
    }
}

#[tokio::test]
async fn a_client_whose_certificate_is_refused_is_told_so_and_nothing_was_sent() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let identity = ca.identity("default/user");
    post.shared.identity.trust(&outrigger_proto::model::TrustBundle {
        revoked: vec![Revocation::Service("default/user".parse().expect("a name"))],
        generation: 2,
        ..ca.bundle()
    });
    let user = Calls::new(identity, post.address, Mode::Strict);
    let (head, body) = user.get("/").await;
    assert!(head.contains("outrigger-reason: peer_unverified\r\n"), "{head}{body}");
    assert!(post.reason(Reason::PeerUnverified) >= 1);
}

#[tokio::test]
async fn a_revoked_peers_connections_end_on_either_side() {
    let revoked = |ca: &Ca, who: &str| outrigger_proto::model::TrustBundle {
        revoked: vec![Revocation::Service(who.parse().expect("a name"))],
        generation: 2,
        ..ca.bundle()
    };
    for callee_hears in [true, false] {
        let ca = Ca::new();
        let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
        let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
        let app = streaming(&calls).await;
        match callee_hears {
            true => post.shared.identity.trust(&revoked(&ca, "default/user")),
            false => calls.shared.identity.trust(&revoked(&ca, "default/post")),
        }
        breaks_off(app).await;
        let (head, body) = calls.get("/").await;
        assert!(head.contains("outrigger-reason: peer_unverified"), "{head}{body}");
    }
}

#[tokio::test]
async fn another_generation_takes_a_new_connection_and_lets_the_old_one_end() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
    let mut app = streaming(&calls).await;
    let another = outrigger_proto::model::TrustBundle {
        revoked: vec![Revocation::Service("default/somebody".parse().expect("a name"))],
        generation: 2,
        ..ca.bundle()
    };
    calls.shared.identity.trust(&another);
    let (head, _) = calls.get("/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let connections = |calls: &Calls| calls.shared.stats.get(Gauge::UpstreamConnections);
    assert_eq!(connections(&calls), 2);
    let early = tokio::time::timeout(Duration::from_millis(50), app.read_u8()).await;
    assert!(early.is_err(), "the old answer goes on: {early:?}");
    drop(app);
    let alone = async {
        while connections(&calls) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, alone)
        .await
        .expect("the old connection ends with its last answer");
}

#[tokio::test]
async fn a_handshake_that_outlasts_one_request_serves_the_next() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    // Between the two: the first bytes of each connection are held back until somebody says so.
    let between = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = between.local_addr().expect("an address");
    let (go, hold) = tokio::sync::watch::channel(false);
    let to = post.address;
    let dialled = Arc::new(AtomicU64::new(0));
    let count = dialled.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = between.accept().await {
            count.fetch_add(1, Relaxed);
            let mut hold = hold.clone();
            tokio::spawn(async move {
                hold.wait_for(|go| *go).await.expect("told");
                let mut server = TcpStream::connect(to).await.expect("connects");
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let calls = Calls::new(ca.identity("default/user"), address, Mode::Strict);
    let mut first = calls.connection();
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .expect("writes");
    let begun = async {
        while dialled.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, begun).await.expect("dialled");
    // Its app gives up.
    drop(first);
    go.send_replace(true);
    let (head, body) = calls.get("/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}{body}");
    assert_eq!(dialled.load(Relaxed), 1);
}
