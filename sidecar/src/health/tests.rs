//! Probes against real sockets and programs.

use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::model::{Dependency, DependencyCheck, Health, Probe};
use outrigger_proto::wire::grpc::health::v1 as grpc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::tracker::{Tracker, Verdict};
use super::{AppState, Life, dependency, probe};
use crate::config::Bootstrap;
use crate::shared::Shared;

const SOON: Duration = Duration::from_secs(20);

fn shared(app: std::net::SocketAddr, protocol: &str) -> Arc<Shared> {
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": "post",
        "inbound": [{"name": "main", "protocol": protocol, "listen": "127.0.0.1:1", "app": app}],
    }))
    .expect("a bootstrap");
    Arc::new(Shared::new(bootstrap).expect("valid"))
}

fn health(probe: Probe) -> Health {
    Health {
        probe,
        interval: Duration::from_millis(50),
        ..Health::default()
    }
}

fn set(shared: &Shared, health: Health) {
    let mut proxy = (*shared.directory.proxy()).clone();
    proxy.health = health;
    shared.directory.set_proxy(proxy);
}

/// A server that answers every request with `status`.
async fn http(status: u16) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                drop(stream.read(&mut head).await);
                drop(
                    stream
                        .write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes())
                        .await,
                );
            });
        }
    });
    address
}

struct Checker;

#[tonic::async_trait]
impl grpc::health_server::Health for Checker {
    async fn check(
        &self,
        request: tonic::Request<grpc::HealthCheckRequest>,
    ) -> Result<tonic::Response<grpc::HealthCheckResponse>, tonic::Status> {
        use grpc::health_check_response::ServingStatus;
        let status = match request.into_inner().service.as_str() {
            "" => ServingStatus::Serving,
            "busy" => ServingStatus::NotServing,
            other => return Err(tonic::Status::not_found(format!("no {other}"))),
        };
        Ok(tonic::Response::new(grpc::HealthCheckResponse {
            status: status.into(),
        }))
    }
}

async fn wait(shared: &Shared, what: impl Fn(&AppState) -> bool) -> AppState {
    let mut watch = shared.app.watch();
    let found = tokio::time::timeout(SOON, watch.wait_for(|s| what(s))).await;
    found
        .unwrap_or_else(|_| panic!("still {:?}", shared.app.now()))
        .expect("the app is there")
        .clone()
}

#[test]
fn thresholds_count_consecutive_results() {
    let health = Health {
        healthy_threshold: 2,
        unhealthy_threshold: 3,
        ..Health::default()
    };
    let mut tracker = Tracker::default();
    let mut observe = |ok: bool| tracker.observe(if ok { Ok(()) } else { Err("no".into()) }, &health);
    let failing = Some(Verdict::Failing("no".into()));
    assert_eq!(observe(false), failing);
    assert_eq!(observe(true), None);
    assert_eq!(observe(true), Some(Verdict::Well));
    assert_eq!(observe(false), None);
    assert_eq!(observe(false), None);
    assert_eq!(observe(true), Some(Verdict::Well));
    assert_eq!(observe(false), None);
    assert_eq!(observe(false), None);
    assert_eq!(observe(false), failing);
    assert_eq!(observe(true), None);
}

#[tokio::test]
async fn an_http_probe_passes_by_status() {
    for (status, passes) in [(200, true), (204, true), (302, true), (404, false), (503, false)] {
        let shared = shared(http(status).await, "http");
        let asked = probe::app(
            &shared.bootstrap,
            &health(Probe::Http {
                path: "/h".into(),
                port: None,
            }),
        )
        .await;
        assert_eq!(asked.is_ok(), passes, "{status}: {asked:?}");
        if !passes {
            assert!(asked.is_err_and(|why| why.contains(&status.to_string())));
        }
    }
}

#[tokio::test]
async fn a_grpc_probe_passes_when_serving() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let shared = shared(listener.local_addr().expect("an address"), "grpc");
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(grpc::health_server::HealthServer::new(Checker))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    for (service, expected) in [
        ("", None),
        ("busy", Some("NOT_SERVING")),
        ("other", Some("knows no `other`")),
    ] {
        let asked = probe::app(
            &shared.bootstrap,
            &health(Probe::Grpc {
                service: service.into(),
                port: None,
            }),
        )
        .await;
        match expected {
            None => assert_eq!(asked, Ok(())),
            Some(words) => assert!(asked.as_ref().is_err_and(|why| why.contains(words)), "{asked:?}"),
        }
    }
}

#[tokio::test]
async fn a_probe_that_fails_says_why() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("an address");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let exec = |command: &[&str]| Probe::Exec {
        command: command.iter().map(|c| (*c).to_owned()).collect(),
    };
    let path = |path: &str| Probe::Http {
        path: path.into(),
        port: None,
    };
    for (app, probe, words) in [
        (free, Probe::Tcp { port: None }, "nothing listens"),
        (free, path("/"), "nothing listens"),
        (
            free,
            Probe::Grpc {
                service: String::new(),
                port: None,
            },
            "nothing listens",
        ),
        (
            free,
            Probe::Tcp {
                port: Some("other".into()),
            },
            "no port called `other`",
        ),
        (
            silent.local_addr().expect("an address"),
            path("/"),
            "no answer in 200 ms",
        ),
        (free, exec(&["false"]), "exit status: 1"),
        (free, exec(&["/no/such/program"]), "cannot run"),
        (free, exec(&["sleep", "60"]), "no answer in 200 ms"),
    ] {
        let shared = shared(app, "http");
        let health = Health {
            timeout: Duration::from_millis(200),
            ..health(probe.clone())
        };
        let asked = probe::app(&shared.bootstrap, &health).await;
        assert!(
            asked.as_ref().is_err_and(|why| why.contains(words)),
            "{probe:?}: {asked:?}"
        );
    }
    let shared = shared(free, "http");
    assert_eq!(probe::app(&shared.bootstrap, &health(exec(&["true"]))).await, Ok(()));
}

#[tokio::test]
async fn what_the_app_needs_is_looked_at() {
    let up = http(200).await;
    let down = http(500).await;
    for (check, ok) in [
        (DependencyCheck::File("/dev/null".into()), true),
        (DependencyCheck::File("/no/such/file".into()), false),
        (DependencyCheck::Tcp(up.to_string()), true),
        (DependencyCheck::Tcp("127.0.0.1:1".into()), false),
        (DependencyCheck::Http(format!("http://{up}/x?y")), true),
        (DependencyCheck::Http(format!("http://{down}/")), false),
        (DependencyCheck::Http("https://127.0.0.1/".into()), false),
        (DependencyCheck::Http("nonsense".into()), false),
    ] {
        let found = dependency::check(
            &Dependency {
                name: "d".into(),
                check: check.clone(),
            },
            SOON,
        )
        .await;
        assert_eq!((found.ok, found.reason.is_empty()), (ok, ok), "{check:?}: {found:?}");
    }
}

#[tokio::test]
async fn an_app_that_comes_up_is_seen_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let shared = shared(address, "http");
    set(
        &shared,
        Health {
            interval: Duration::from_secs(3600),
            ..Health::default()
        },
    );
    tokio::spawn(super::run(shared.clone()));
    wait(&shared, |s| {
        s.life == Life::Starting && s.reason.contains("nothing listens")
    })
    .await;
    // Nobody waits for the interval while the app starts.
    let _app = TcpListener::bind(address).await.expect("the same port");
    wait(&shared, AppState::ok).await;
}

#[tokio::test]
async fn reports_of_the_supervisor_count_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let shared = shared(listener.local_addr().expect("an address"), "http");
    tokio::spawn(super::run(shared.clone()));
    wait(&shared, AppState::ok).await;
    shared.app.started(Some(1));
    assert!(
        shared.app.now().ok(),
        "the process that was found well is reported for the first time"
    );
    shared.app.exited(Some(0), None);
    assert_eq!(shared.app.now().life, Life::Exited);
    shared.app.started(Some(2));
    wait(&shared, AppState::ok).await;
    shared.app.started(Some(2));
    assert!(shared.app.now().ok(), "the same process is reported again");
    shared.app.started(Some(3));
    assert_eq!(shared.app.now().life, Life::Starting);
    wait(&shared, AppState::ok).await;
}

#[tokio::test]
async fn a_refused_request_is_a_reason_to_ask_now() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let shared = shared(listener.local_addr().expect("an address"), "http");
    let long = Duration::from_secs(3600);
    set(
        &shared,
        Health {
            interval: long,
            ..Health::default()
        },
    );
    tokio::spawn(super::run(shared.clone()));
    wait(&shared, AppState::ok).await;
    drop(listener);
    shared.app.reachable_hint(false);
    let failing = wait(&shared, |s| s.life == Life::Failing).await;
    assert!(failing.reason.contains("nothing listens"), "{failing:?}");
}

#[tokio::test]
async fn a_changed_probe_applies() {
    let shared = shared(http(200).await, "http");
    // Nobody waits for the old interval.
    set(
        &shared,
        Health {
            interval: Duration::from_secs(3600),
            ..health(Probe::Tcp { port: None })
        },
    );
    tokio::spawn(super::run(shared.clone()));
    wait(&shared, AppState::ok).await;
    set(
        &shared,
        health(Probe::Exec {
            command: vec!["false".into()],
        }),
    );
    wait(&shared, |s| s.life == Life::Failing).await;
    set(
        &shared,
        health(Probe::Http {
            path: "/".into(),
            port: None,
        }),
    );
    wait(&shared, AppState::ok).await;
}
