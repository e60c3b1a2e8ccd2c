//! Talks to a sidecar's admin port: reads its health, reports the app's life.
//!
//! Every call has a deadline; the sidecar may be starting, stopping or dead.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::keep::{Life, Seen};
use super::reap::Exit;

/// Why a call to an admin port failed.
#[derive(Debug, Error)]
pub(crate) enum AdminError {
    /// Nobody listens (yet).
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// The exchange broke.
    #[error("no answer")]
    Exchange(#[source] hyper::Error),
    /// The answer was too long or broke off.
    #[error("no complete answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request could not be built.
    #[error("bad request")]
    Request(#[from] http::Error),
    /// It took too long.
    #[error("no answer in time")]
    Deadline,
}

const DEADLINE: Duration = Duration::from_secs(2);
const LARGEST_ANSWER: usize = 1024 * 1024;

/// What `/health` says, as far as we need it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    /// ok, degraded, failing or starting.
    pub(crate) status: String,
    /// Why not ok.
    pub(crate) reason: Option<String>,
    /// How callers have to come, and what is wrong with its own certificate.
    pub(crate) mtls: String,
}

/// Reads `/health`.
pub(crate) async fn health(admin: SocketAddr) -> Result<Health, AdminError> {
    let (_, body) = request(admin, Method::GET, "/health", Bytes::new()).await?;
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |path: &str| {
        value
            .pointer(path)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let dependency = value
        .get("dependencies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find_map(|one| {
            let bad = one.get("ok").and_then(Value::as_bool) == Some(false);
            bad.then(|| {
                format!(
                    "{}: {}",
                    one["name"].as_str().unwrap_or("?"),
                    one["reason"].as_str().unwrap_or("failing")
                )
            })
        });
    let well = value.pointer("/app/ok").and_then(Value::as_bool) == Some(true);
    let app = text("/app/reason").filter(|_| !well).map(str::to_owned);
    let mesh = ["/identity/warning", "/lease/reason", "/control_plane/reason"]
        .into_iter()
        .find_map(text)
        .map(str::to_owned);
    let status = text("/status").unwrap_or("unknown");
    let mtls = mtls(value.get("identity").unwrap_or(&Value::Null));
    // An app that is well is of no use to callers before they are told of it.
    let unknown = matches!(text("/lease/state"), Some("none" | "asked")) && text("/control_plane/address").is_some();
    Ok(match status {
        "ok" if unknown => Health {
            status: "starting".to_owned(),
            reason: Some("not registered yet".to_owned()),
            mtls,
        },
        "ok" => Health {
            status: status.to_owned(),
            reason: None,
            mtls,
        },
        _ => Health {
            status: status.to_owned(),
            reason: app.or(dependency).or(mesh),
            mtls,
        },
    })
}

/// `strict`, `permissive` or `off`, from `identity` of `/health`; with the certificate's state when that is not valid.
pub(crate) fn mtls(identity: &Value) -> String {
    let text = |key: &str| identity.get(key).and_then(Value::as_str).unwrap_or("-");
    match (text("mode"), text("state")) {
        (mode, "valid") => mode.to_owned(),
        (_, "off") => "off".to_owned(),
        ("off", _) => "off".to_owned(),
        (mode, state) => format!("{mode}, {state}"),
    }
}

/// Moves a leaving sidecar on: `leaving` takes it out of the registry, `closing` sends its callers away.
pub(crate) async fn leave(admin: SocketAddr, phase: &str) -> Result<(), AdminError> {
    let path = format!("/drain?phase={phase}");
    request(admin, Method::POST, &path, Bytes::new()).await.map(|_| ())
}

/// Whether no caller is connected to a sidecar that is closing.
pub(crate) async fn quiet(admin: SocketAddr) -> Result<bool, AdminError> {
    let (_, phase) = request(admin, Method::GET, "/drain", Bytes::new()).await?;
    Ok(matches!(phase.trim_ascii_end(), b"quiet" | b"parting" | b"ended"))
}

/// Whether the admin port answers at all.
pub(crate) async fn alive(admin: SocketAddr) -> bool {
    request(admin, Method::GET, "/livez", Bytes::new()).await.is_ok()
}

/// Keeps the sidecar informed about its app: whenever the app's life changes or the sidecar is a new process, the state
/// of the moment is sent until it has arrived. Ends when either is no longer kept.
pub(crate) async fn announce(admin: SocketAddr, mut app: watch::Receiver<Seen>, mut sidecar: watch::Receiver<Seen>) {
    loop {
        let report = report(&app.borrow_and_update().life);
        let running = sidecar.borrow_and_update().life.pid().is_some();
        let send = async {
            match report {
                Some(report) if running => deliver(admin, report).await,
                _ => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = send => {}
            changed = app.changed() => if changed.is_err() { return },
            changed = sidecar.changed() => if changed.is_err() { return },
        }
    }
}

async fn deliver(admin: SocketAddr, report: Value) {
    let body = Bytes::from(report.to_string());
    loop {
        if let Ok((status, _)) = request(admin, Method::POST, "/workload", body.clone()).await
            && status.is_success()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn report(life: &Life) -> Option<Value> {
    match life {
        Life::Running { pid } => Some(json!({"state": "started", "pid": pid})),
        Life::Ended {
            exit: Exit::Code(code), ..
        } => Some(json!({"state": "exited", "code": code})),
        Life::Ended {
            exit: Exit::Signal(signal),
            ..
        } => Some(json!({"state": "exited", "signal": signal})),
        Life::Unstartable { .. } => Some(json!({"state": "exited", "code": 127})),
        Life::Stopped => None,
    }
}

/// One request on a connection of its own.
pub(crate) async fn request(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), AdminError> {
    let exchange = async {
        let stream = TcpStream::connect(to).await.map_err(AdminError::Connect)?;
        let (mut send, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(AdminError::Exchange)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, to.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))?;
        let answer = async {
            let answer = send.send_request(request).await.map_err(AdminError::Exchange)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST_ANSWER)
                .collect()
                .await
                .map_err(AdminError::Body)?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer, connection);
        // The connection may end first, having delivered the whole answer.
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    };
    tokio::time::timeout(DEADLINE, exchange)
        .await
        .unwrap_or(Err(AdminError::Deadline))
}
