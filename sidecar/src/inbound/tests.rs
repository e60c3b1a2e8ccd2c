//! Two sidecars' data paths in one process, over real sockets, with certificates of a CA for tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::features;
use outrigger_proto::model::{
    Access, Endpoint, EndpointPort, Mode, Port, Principal, Proxy, Revocation, Rule, Service, ServiceName,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::Bootstrap;
use crate::identify::testing::{Ca, id};
use crate::identify::{Alpn, Foreign, Identity};
use crate::outbound::Outbound;
use crate::outbound::cluster::Cluster;

const SOON: Duration = Duration::from_secs(20);

/// A sidecar's shared parts with this identity.
fn sidecar(service: &str, identity: Identity, mesh_listen: Option<&str>) -> Shared {
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": service,
        "inbound": [{
            "name": "main",
            "protocol": "http",
            "listen": "127.0.0.1:1",
            "mesh_listen": mesh_listen,
            "app": "127.0.0.1:2",
        }],
    }))
    .expect("a bootstrap");
    let mut shared = Shared::new(bootstrap).expect("valid");
    shared.identity = Arc::new(identity);
    shared
}

/// Post's sidecar with its app behind it.
struct Callee {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Callee {
    async fn new(identity: Identity, protocol: Protocol, mode: Mode) -> Self {
        let shared = Arc::new(sidecar("post", identity, None));
        let callee = Self {
            address: serve(&shared, protocol).await,
            shared,
        };
        callee.set(mode, Access::default());
        callee
    }

    fn set(&self, mode: Mode, access: Access) {
        let proxy = Proxy {
            mode,
            access,
            ..Proxy::new(self.shared.name.clone())
        };
        self.shared.directory.set_proxy(proxy);
    }

    fn reason(&self, reason: Reason) -> u64 {
        let cells = self.shared.stats.snapshot();
        cells.iter().map(|(_, c)| c.reasons[reason.index()]).sum()
    }
}

/// Serves post's inbound port, with an app behind that sends back what it got: the head as the body on
/// HTTP, the bytes else.
async fn serve(shared: &Arc<Shared>, protocol: Protocol) -> SocketAddr {
    let app = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let inbound = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (app_address, address) = (
        app.local_addr().expect("an address"),
        inbound.local_addr().expect("an address"),
    );
    tokio::spawn(async move {
        while let Ok((stream, _)) = app.accept().await {
            match protocol {
                Protocol::Http => drop(tokio::spawn(answer(stream))),
                _ => drop(tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await
                })),
            }
        }
    });
    let journey = Arc::new(Inbound::new("main", protocol, app_address, shared.clone(), None));
    let (reviewed, shared) = (journey.clone(), shared.clone());
    tokio::spawn(async move {
        let (mut trust, mut settings) = (shared.identity.changes(), shared.directory.proxy_changes());
        loop {
            tokio::select! {
                _ = trust.changed() => {}
                _ = settings.changed() => {}
            }
            reviewed.review();
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, client)) = inbound.accept().await {
            tokio::spawn(Box::pin(journey.clone().connection(stream, client, false)));
        }
    });
    address
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let head = read_head(&mut stream).await;
        if head.is_empty() {
            return Ok(());
        }
        if head.starts_with("GET /stream") {
            // A piece, and then nothing more until the client goes.
            let first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            stream.write_all(first).await?;
            stream.read_u8().await?;
        }
        let own = "outrigger-caller: spiffe://forged\r\noutrigger-reason: forged";
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{own}\r\nContent-Length: {}\r\n\r\n{head}",
            head.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("text")
}

/// An app that speaks first, behind an inbound port of protocol `tcp`; `mesh` tells that TLS has its own port.
async fn server_first(shared: &Arc<Shared>, meshed: bool) -> SocketAddr {
    let app = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let inbound = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (app_address, address) = (
        app.local_addr().expect("an address"),
        inbound.local_addr().expect("an address"),
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = app.accept().await {
            stream.write_all(b"220 welcome\r\n").await.expect("writes");
        }
    });
    let journey = Arc::new(Inbound::new("main", Protocol::Tcp, app_address, shared.clone(), None));
    tokio::spawn(async move {
        while let Ok((stream, client)) = inbound.accept().await {
            tokio::spawn(Box::pin(journey.clone().connection(stream, client, meshed)));
        }
    });
    address
}

/// What user's sidecar knows of post, with its app's connection.
struct Calls {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
}

impl Calls {
    fn new(identity: Identity, to: SocketAddr, mode: Mode) -> Self {
        let shared = Arc::new(sidecar("user", identity, None));
        let name: ServiceName = "default/post".parse().expect("a name");
        let destination = shared.directory.declare(&name);
        let service = Service {
            name: name.clone(),
            ports: vec![Port {
                name: "main".into(),
                protocol: Protocol::Http,
            }],
            timeout: None,
            connect_timeout: Duration::from_secs(5),
            balance: outrigger_proto::model::Balance::default(),
            mode,
        };
        let endpoint = Endpoint {
            name: "default/post/a".parse().expect("a name"),
            address: to.ip(),
            ports: vec![EndpointPort {
                name: "main".into(),
                port: to.port(),
                mesh_port: None,
            }],
            epoch: 1,
            labels: std::collections::BTreeMap::new(),
            weight: 1,
            capabilities: features::ALL.iter().map(ToString::to_string).collect(),
            meshed: true,
        };
        shared.directory.publish(Arc::new(service), vec![Arc::new(endpoint)]);
        let cluster = Arc::new(Cluster::new(destination, None, shared.clone()));
        Self { shared, cluster }
    }

    /// A connection of the app.
    fn connection(&self) -> DuplexStream {
        let (app, sidecar) = tokio::io::duplex(64 * 1024);
        let journey = Arc::new(Outbound::new(self.cluster.clone(), self.shared.clone(), None));
        tokio::spawn(async move {
            let client = SocketAddr::from(([127, 0, 0, 1], 9));
            drop(Box::pin(journey.http(sidecar, false, client)).await);
        });
        app
    }

    async fn get(&self, path: &str) -> (String, String) {
        get(&mut self.connection(), path, "").await
    }
}

async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str, fields: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    tokio::time::timeout(SOON, read_answer(stream))
        .await
        .expect("an answer")
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> (String, String) {
    let head = read_head(stream).await;
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|l| l.strip_prefix("content-length: ").map(|n| n.parse().expect("a number")));
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

fn rule(name: &str, from: Principal, paths: &[&str]) -> Rule {
    Rule {
        name: name.into(),
        from: vec![from],
        ports: Vec::new(),
        methods: Vec::new(),
        paths: paths.iter().map(ToString::to_string).collect(),
        grpc: Vec::new(),
    }
}

fn only(rules: Vec<Rule>) -> Access {
    Access {
        default_allow: false,
        default_source: "allow of post".into(),
        rules,
        audit: false,
    }
}

fn user() -> Principal {
    Principal::Service("default/user".parse().expect("a name"))
}

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
async fn rules_decide_before_the_body_and_by_the_path_as_it_was_sent() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
    post.set(Mode::Strict, only(vec![rule("allow[0]", user(), &["/public/*"])]));
    for (path, status, reason) in [
        ("/public/a", "200", None),
        ("/private", "403", Some("denied")),
        ("/public/../private", "400", Some("bad_path")),
        ("/public//a", "400", Some("bad_path")),
        ("/public/%2e%2e/private", "400", Some("bad_path")),
        ("/public/a%2fb", "400", Some("bad_path")),
    ] {
        let (head, body) = calls.get(path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}{body}");
        assert_eq!(
            head.lines().find_map(|l| l.strip_prefix("outrigger-reason: ")),
            reason,
            "{path}: {head}{body}"
        );
    }
    let audit = Access {
        audit: true,
        ..only(Vec::new())
    };
    post.set(Mode::Strict, audit);
    let (head, _) = calls.get("/private").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(post.shared.stats.get(Gauge::Audited), 1);
}

/// Opens an answer that has begun and does not end.
async fn streaming(calls: &Calls) -> DuplexStream {
    let mut app = calls.connection();
    app.write_all(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .expect("writes");
    let head = tokio::time::timeout(SOON, read_head(&mut app)).await.expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut first = [0; 10];
    app.read_exact(&mut first).await.expect("a piece");
    assert_eq!(&first, b"5\r\nfirst\r\n");
    app
}

/// Waits until the answer breaks off: it ends, and without its last chunk.
async fn breaks_off(mut app: DuplexStream) {
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, app.read_to_end(&mut rest))
        .await
        .expect("soon")
        .expect("reads");
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_live_answer_ends_when_no_rule_allows_it_any_more_and_others_go_on() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
    let app = streaming(&calls).await;
    post.set(
        Mode::Strict,
        only(vec![rule("allow[0]", user(), &["/public/*", "/stream"])]),
    );
    let (head, _) = calls.get("/public/a").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(post.reason(Reason::Denied), 0);
    post.set(Mode::Strict, only(vec![rule("allow[0]", user(), &["/public/*"])]));
    breaks_off(app).await;
    assert_eq!(post.reason(Reason::Denied), 1);
    let (head, _) = calls.get("/public/a").await;
    assert!(head.starts_with("HTTP/1.1 200"), "the connection goes on: {head}");
    let connections: u64 = post.shared.stats.snapshot().iter().map(|(_, c)| c.connections).sum();
    assert_eq!(connections, 1);
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
async fn an_opaque_connection_ends_with_the_rule_that_allowed_it() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Tcp, Mode::Permissive).await;
    let mut client = TcpStream::connect(post.address).await.expect("connects");
    client.write_all(b"hello").await.expect("writes");
    let mut echoed = [0; 5];
    client.read_exact(&mut echoed).await.expect("echoed");
    post.set(Mode::Permissive, only(Vec::new()));
    let end = tokio::time::timeout(SOON, client.read(&mut [0; 1]))
        .await
        .expect("ends");
    assert!(end.is_err(), "a reset, never a clean end: {end:?}");
    assert_eq!(post.reason(Reason::Denied), 1);
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
