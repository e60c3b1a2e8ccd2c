//! Over a real socket, as a browser, a scraper or a supervisor would ask.

use super::Listener;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::config::Bootstrap;
use crate::drain::Phase;
use crate::health::Life;
use crate::shared::Shared;

async fn start() -> (SocketAddr, Arc<Shared>) {
    let text = r#"{
        "service": "post", "instance": "p1",
        "inbound": [{"name": "http", "protocol": "http", "listen": "127.0.0.1:1", "app": "127.0.0.1:2"}],
        "resources": {"services": [{"name": "default/user", "ports": [{"name": "http", "protocol": "http"}]}],
                      "endpoints": [{"name": "default/user/u1", "address": "127.0.0.1", "ports": [{"name": "http", "port": 3}]}]}
    }"#;
    let bootstrap: Bootstrap = serde_json::from_str(text).expect("a bootstrap");
    let shared = Arc::new(Shared::new(bootstrap).expect("valid"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(super::serve(Listener::Tcp(listener), shared.clone()));
    (address, shared)
}

/// Sends `head` (lines end in \n) and `body`; answers the status and the rest.
async fn ask(to: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.expect("connected");
    let host = if head.to_ascii_lowercase().contains("\nhost:") {
        String::new()
    } else {
        format!("\nHost: {to}")
    };
    let head = format!("{head}{host}\nConnection: close\nContent-Length: {}\n\n", body.len()).replace('\n', "\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answered");
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, text)
}

async fn json(to: SocketAddr, path: &str) -> serde_json::Value {
    let (_, text) = ask(to, &format!("GET {path} HTTP/1.1"), "").await;
    serde_json::from_str(text.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

#[tokio::test]
async fn every_page_answers() {
    let (at, shared) = start().await;
    for path in ["/metrics", "/stats", "/livez", "/config"] {
        assert_eq!(ask(at, &format!("GET {path} HTTP/1.1"), "").await.0, 200, "{path}");
    }
    assert_eq!(*shared.admin.borrow(), Some(crate::config::Admin::Tcp(at)));
    // The app was not probed yet.
    for path in ["/health", "/readyz"] {
        assert_eq!(ask(at, &format!("GET {path} HTTP/1.1"), "").await.0, 503, "{path}");
    }
    assert_eq!(json(at, "/health").await["status"], "starting");
    assert!(
        json(at, "/stats").await["process"]["rss_bytes"]
            .as_u64()
            .is_some_and(|n| n > 0)
    );
    let (_, metrics) = ask(at, "GET /metrics HTTP/1.1", "").await;
    assert!(
        metrics.contains("text/plain; version=0.0.4") && metrics.contains("process_open_fds"),
        "{metrics}"
    );
}

#[tokio::test]
async fn only_known_pages_and_methods() {
    let (at, _) = start().await;
    assert_eq!(ask(at, "GET / HTTP/1.1", "").await.0, 404);
    assert_eq!(ask(at, "GET /etc/passwd HTTP/1.1", "").await.0, 404);
    for line in ["POST /stats", "DELETE /config", "PUT /drain", "PUT /workload"] {
        let (status, text) = ask(at, &format!("{line} HTTP/1.1"), "").await;
        assert_eq!(status, 405, "{line}");
        assert!(text.to_ascii_lowercase().contains("\nallow: "), "{text}");
    }
}

#[tokio::test]
async fn a_page_in_a_browser_cannot_reach_it() {
    let (at, shared) = start().await;
    for host in [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        "a b",
    ] {
        assert_eq!(
            ask(at, &format!("GET /config HTTP/1.1\nHost: {host}"), "").await.0,
            403,
            "{host}"
        );
    }
    for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:9", "127.1.2.3:4"] {
        assert_eq!(
            ask(at, &format!("GET /config HTTP/1.1\nHost: {host}"), "").await.0,
            200,
            "{host}"
        );
    }
    let (status, _) = ask(at, "GET http://evil.example/config HTTP/1.1\nHost: localhost", "").await;
    assert_eq!(status, 403);
    for origin in ["http://evil.example", "null"] {
        let head = format!("POST /drain HTTP/1.1\nHost: localhost\nOrigin: {origin}");
        assert_eq!(ask(at, &head, "").await.0, 403, "{origin}");
    }
    let waiting = tokio::time::timeout(std::time::Duration::ZERO, shared.drain_requested.notified()).await;
    assert!(waiting.is_err(), "nobody was asked to drain");
}

#[tokio::test]
async fn a_drain_is_walked_by_hand() {
    let (at, shared) = start().await;
    assert_eq!(ask(at, "POST /drain?phase=leaving HTTP/1.1", "").await.0, 202);
    assert_eq!(shared.drain.phase(), Phase::Leaving);
    let (status, text) = ask(at, "GET /drain HTTP/1.1", "").await;
    assert!(status == 200 && text.ends_with("leaving\n"), "{text}");
    assert_eq!(ask(at, "POST /drain?phase=ended HTTP/1.1", "").await.0, 400);
    assert_eq!(shared.drain.phase(), Phase::Leaving);
    let waiting = tokio::time::timeout(std::time::Duration::ZERO, shared.drain_requested.notified()).await;
    assert!(waiting.is_err(), "it does not end by itself");
}

#[tokio::test]
async fn drain_is_handed_on() {
    let (at, shared) = start().await;
    assert_eq!(ask(at, "POST /drain HTTP/1.1", "").await.0, 202);
    shared.drain_requested.notified().await;
}

#[tokio::test]
async fn the_supervisor_reports_the_apps_life() {
    let (at, shared) = start().await;
    let report = async |body: &str| {
        ask(at, "POST /workload HTTP/1.1\nContent-Type: application/json", body)
            .await
            .0
    };
    assert_eq!(report(r#"{"state":"started","pid":7}"#).await, 200);
    assert_eq!(shared.app.now().pid, Some(7));
    assert_eq!(report(r#"{"state":"exited","code":3}"#).await, 200);
    assert_eq!(shared.app.now().life, Life::Exited);
    let health = json(at, "/health").await;
    assert_eq!(health["status"], "failing");
    assert_eq!(health["app"]["reason"], "the app exited with code 3");
    assert_eq!(report(r#"{"state":"exited","signal":9}"#).await, 200);
    assert!(shared.app.now().reason.contains("signal 9"));
    assert_eq!(report(r#"{"state":"started","pid":8}"#).await, 200);
    assert_eq!(shared.app.now().life, Life::Starting);
    for bad in ["", "{}", r#"{"state":"bored"}"#, r#"{"state":"started","pdi":8}"#, "[]"] {
        assert_eq!(report(bad).await, 400, "{bad}");
    }
    assert_eq!(report(&"x".repeat(17_000)).await, 413);
}

#[tokio::test]
async fn the_effective_configuration_is_shown() {
    let (at, shared) = start().await;
    let discovery = tokio::spawn(crate::discover::run(shared.clone()));
    let user = shared.directory.declare(&"default/user".parse().expect("a name"));
    user.wait(std::time::Duration::from_secs(10)).await;
    let config = json(at, "/config").await;
    assert_eq!(config["bootstrap"]["instance"], "p1");
    assert_eq!(config["proxy"]["name"], "default/post");
    assert_eq!(config["destinations"][0]["endpoints"][0]["name"], "default/user/u1");
    discovery.abort();
}

#[tokio::test]
async fn telemetry_shows_metrics_and_health_and_nothing_else() {
    let (_, shared) = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(super::serve_telemetry(listener, false, shared.clone()));
    for (line, status) in [
        ("GET /metrics HTTP/1.1", 200),
        ("GET /livez HTTP/1.1", 200),
        ("GET /readyz HTTP/1.1", 503),
        ("GET /health HTTP/1.1", 503),
        ("POST /metrics HTTP/1.1", 405),
        ("GET /config HTTP/1.1", 404),
        ("GET /stats HTTP/1.1", 404),
        ("POST /drain HTTP/1.1", 404),
        ("POST /debug/panic?in=admin HTTP/1.1", 404),
    ] {
        assert_eq!(ask(at, line, "").await.0, status, "{line}");
    }
    assert_eq!(shared.drain.phase(), Phase::Serving);
}

#[tokio::test]
async fn a_socket_of_the_owner_serves_and_is_taken_over_from_the_dead_only() {
    use std::os::unix::fs::PermissionsExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    // Left behind by somebody who is gone.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    let listener = Listener::unix(&path).expect("replaces it");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(Listener::unix(&path).is_err(), "somebody listens there now");
    let (_, shared) = start().await;
    tokio::spawn(super::serve(listener, shared));
    let mut stream = tokio::net::UnixStream::connect(&path).await.expect("connects");
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("asks");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answered");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}
