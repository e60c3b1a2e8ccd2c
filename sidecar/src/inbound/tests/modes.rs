//! What each mode takes and turns away, from sidecars, foreign clients and plain ones.

use super::*;

#[tokio::test]
async fn strict_turns_plain_clients_away_in_their_own_words() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let mut plain = TcpStream::connect(post.address).await.expect("connects");
    let (head, body) = get(&mut plain, "/", "").await;
    assert!(
        head.starts_with("HTTP/1.1 400") && head.contains("outrigger-reason: plaintext"),
        "{head}{body}"
    );
    let mut other = TcpStream::connect(post.address).await.expect("connects");
    other.write_all(b"*1\r\n$4\r\nPING\r\n").await.expect("writes");
    let end = tokio::time::timeout(SOON, other.read(&mut [0; 1]))
        .await
        .expect("closed");
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert_eq!(post.reason(Reason::Plaintext), 2);
    // Nor does a sidecar that was told `off` get anything.
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Off);
    let (head, body) = calls.get("/").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}{body}");
}

#[tokio::test]
async fn permissive_takes_plain_and_mesh_on_one_port_and_tells_them_apart() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Permissive).await;
    let mut plain = TcpStream::connect(post.address).await.expect("connects");
    let (head, body) = get(&mut plain, "/", "outrigger-caller: forged\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && !body.contains("outrigger-caller"),
        "{head}{body}"
    );
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Permissive);
    let (head, body) = calls.get("/").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && body.contains(&id("default/user")),
        "{head}{body}"
    );
    // A plain client matches only rules that name it.
    post.set(
        Mode::Permissive,
        only(vec![rule("allow[0]", Principal::Authenticated, &[])]),
    );
    let (head, _) = get(&mut plain, "/", "").await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let (head, _) = calls.get("/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    post.set(
        Mode::Permissive,
        only(vec![rule("allow[0]", Principal::Unauthenticated, &[])]),
    );
    let (head, _) = get(&mut plain, "/", "").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    // Going strict ends it.
    post.set(Mode::Strict, Access::default());
    let end = tokio::time::timeout(SOON, plain.read(&mut [0; 1]))
        .await
        .expect("closed");
    assert!(matches!(end, Ok(0)), "{end:?}");
    let (head, _) = calls.get("/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn permissive_passes_the_apps_own_tls_through_byte_for_byte() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Tls, Mode::Permissive).await;
    let mut hello = b"\x16\x03\x01\x00\x2a\x01\x00\x00\x26\x03\x03".to_vec();
    hello.extend([9; 32]);
    hello.extend(b"\x00\x00\x00\x00");
    hello.extend(b"whatever follows");
    let mut client = TcpStream::connect(post.address).await.expect("connects");
    for byte in &hello {
        client.write_all(std::slice::from_ref(byte)).await.expect("writes");
    }
    let mut echoed = vec![0; hello.len()];
    tokio::time::timeout(SOON, client.read_exact(&mut echoed))
        .await
        .expect("soon")
        .expect("reads");
    assert_eq!(echoed, hello);
    client.shutdown().await.expect("closes its half");
    let end = tokio::time::timeout(SOON, client.read(&mut [0; 1]))
        .await
        .expect("ends");
    assert!(matches!(end, Ok(0)), "{end:?}");
}

#[tokio::test]
async fn a_foreign_client_with_a_certificate_is_served_and_no_sidecar() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let curl = ca.identity("default/curl");
    for alpn in [Foreign::Http1, Foreign::None] {
        let stream = TcpStream::connect(post.address).await.expect("connects");
        let expected = id("default/post").parse().expect("an id");
        let mut tls = curl
            .connect(stream, &expected, Alpn::Foreign(alpn))
            .await
            .expect("a handshake");
        let (head, body) = get(&mut tls, "/", "outrigger-origin: 2\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(body.contains(&id("default/curl")) && !body.contains("origin"), "{body}");
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_under_permissive() {
    let ca = Ca::new();
    for mesh_listen in [None, Some("127.0.0.1:3")] {
        let shared = Arc::new(sidecar("post", ca.identity("default/post"), mesh_listen));
        let proxy = Proxy {
            mode: Mode::Permissive,
            ..Proxy::new(shared.name.clone())
        };
        shared.directory.set_proxy(proxy);
        let plain = server_first(&shared, false).await;
        let began = tokio::time::Instant::now();
        let mut client = TcpStream::connect(plain).await.expect("connects");
        let mut line = [0; 13];
        tokio::time::timeout(SOON, client.read_exact(&mut line))
            .await
            .expect("soon")
            .expect("reads");
        assert_eq!(&line, b"220 welcome\r\n");
        let Some(_) = mesh_listen else { continue };
        assert!(
            began.elapsed() < detect::PATIENCE,
            "declared: nobody waits for the client"
        );
        // The second port takes nothing but TLS.
        let meshed = server_first(&shared, true).await;
        let mut client = TcpStream::connect(meshed).await.expect("connects");
        client.write_all(b"helo").await.expect("writes");
        let end = tokio::time::timeout(SOON, client.read(&mut [0; 1]))
            .await
            .expect("closed");
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    }
}

#[tokio::test]
async fn no_request_fails_while_callers_and_callee_hear_of_another_mode() {
    let ca = Ca::new();
    for (callee, caller) in [
        (Mode::Off, Mode::Permissive),
        (Mode::Permissive, Mode::Off),
        (Mode::Permissive, Mode::Strict),
        (Mode::Strict, Mode::Permissive),
        (Mode::Off, Mode::Strict),
    ] {
        let post = Callee::new(ca.identity("default/post"), Protocol::Http, callee).await;
        let calls = Calls::new(ca.identity("default/user"), post.address, caller);
        let (head, body) = calls.get("/").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{callee:?} {caller:?}: {head}{body}");
    }
}

/// The mesh's HTTP and a foreign client's alike: rules about bytes are not those about requests.
#[tokio::test]
async fn requests_are_refused_where_only_bytes_are_declared() {
    let ca = Ca::new();
    for protocol in [Protocol::Tcp, Protocol::Tls] {
        let post = Callee::new(ca.identity("default/post"), protocol, Mode::Strict).await;
        let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
        let (head, body) = calls.get("/").await;
        assert!(head.starts_with("HTTP/1.1 400"), "{head}{body}");
        assert!(head.contains("outrigger-reason: not_http\r\n"), "{head}{body}");
        let mut grpc = calls.connection();
        let (head, _) = get(&mut grpc, "/a.B/C", "Content-Type: application/grpc\r\n").await;
        assert!(
            head.contains("grpc-status: 12\r\n") && head.contains("not_http"),
            "{head}"
        );

        let stream = TcpStream::connect(post.address).await.expect("connects");
        let expected = id("default/post").parse().expect("an id");
        let curl = ca.identity("default/curl");
        let alpn = Alpn::Foreign(Foreign::Http1);
        let mut tls = curl.connect(stream, &expected, alpn).await.expect("a handshake");
        let (head, body) = get(&mut tls, "/", "").await;
        assert!(head.contains("outrigger-reason: not_http\r\n"), "{head}{body}");

        assert_eq!(post.reason(Reason::NotHttp), 3);
        let dialled = post.shared.stats.get(Gauge::UpstreamConnections);
        assert_eq!(dialled, 0, "the app was not even dialled");
    }
}
