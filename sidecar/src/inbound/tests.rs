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

mod modes;
mod peers;
mod rules;

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
            connect_timeout: Duration::from_secs(5),
            ..Service::new(
                name.clone(),
                vec![Port {
                    name: "main".into(),
                    protocol: Protocol::Http,
                }],
                mode,
            )
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
