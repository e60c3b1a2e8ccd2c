//! One question to the app: HTTP, gRPC health, TCP or a command. A fresh connection each time, so that
//! the answer says that the app accepts one. Answers with a reason for people.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_proto::model::{Health, Probe, Protocol};
use outrigger_proto::wire::grpc::health::v1::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tokio::net::TcpStream;

use crate::config::{Bootstrap, Inbound};

/// Asks the app once, within the probe's time.
pub(super) async fn app(bootstrap: &Bootstrap, health: &Health) -> Result<(), String> {
    let asked = async {
        match &health.probe {
            Probe::Http { path, port } => {
                let inbound = inbound(bootstrap, port.as_deref())?;
                match Protocol::try_from_wire(inbound.protocol) {
                    Ok(Protocol::Http2 | Protocol::Grpc) => http2(inbound.app, path).await,
                    _ => http1(inbound.app, &inbound.app.to_string(), path).await,
                }
            }
            Probe::Grpc { service, port } => grpc(inbound(bootstrap, port.as_deref())?.app, service).await,
            // A workload without ports only calls others; there is nothing to ask.
            Probe::Tcp { port: None } if bootstrap.inbound.is_empty() => Ok(()),
            Probe::Tcp { port } => connect(inbound(bootstrap, port.as_deref())?.app).await.map(drop),
            Probe::Exec { command } => exec(command).await,
        }
    };
    within(health.timeout, asked).await
}

/// Bounds one question.
pub(super) async fn within(limit: Duration, asked: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    match tokio::time::timeout(limit, asked).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer in {} ms", limit.as_millis())),
    }
}

fn inbound<'a>(bootstrap: &'a Bootstrap, port: Option<&str>) -> Result<&'a Inbound, String> {
    match port {
        None => bootstrap
            .inbound
            .first()
            .ok_or_else(|| "the workload has no port to probe".to_owned()),
        Some(name) => bootstrap
            .inbound
            .iter()
            .find(|i| i.name == name)
            .ok_or_else(|| format!("the workload has no port called `{name}` to probe")),
    }
}

pub(super) async fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(to).await.map_err(|e| refused(to, &e))
}

pub(super) fn refused(to: impl std::fmt::Display, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("nothing listens on {to}"),
        _ => format!("cannot connect to {to}: {error}"),
    }
}

/// `GET path` over HTTP/1.1.
pub(super) async fn http1(to: SocketAddr, host: &str, path: &str) -> Result<(), String> {
    let io = TokioIo::new(connect(to).await?);
    let (mut send, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|e| failed(to, &e))?;
    let request = Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, USER_AGENT)
        .body(Empty::<Bytes>::new())
        .map_err(|e| format!("GET {path} is no request: {e}"))?;
    let status = drive(connection, send.send_request(request))
        .await
        .map_err(|e| failed(to, &e))?
        .status();
    passed(path, status)
}

/// `GET path` over HTTP/2 with prior knowledge.
async fn http2(to: SocketAddr, path: &str) -> Result<(), String> {
    let io = TokioIo::new(connect(to).await?);
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .map_err(|e| failed(to, &e))?;
    let request = Request::get(format!("http://{to}{path}"))
        .header(http::header::USER_AGENT, USER_AGENT)
        .body(Empty::<Bytes>::new())
        .map_err(|e| format!("GET {path} is no request: {e}"))?;
    let status = drive(connection, send.send_request(request))
        .await
        .map_err(|e| failed(to, &e))?
        .status();
    passed(path, status)
}

/// Runs a connection for as long as one answer's head takes; nothing outlives the probe.
async fn drive<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    answer: impl Future<Output = hyper::Result<T>>,
) -> hyper::Result<T> {
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            answered = &mut answer => return answered,
            ended = &mut connection, if open => {
                ended?;
                open = false;
            }
        }
    }
}

fn passed(path: &str, status: StatusCode) -> Result<(), String> {
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("GET {path} answered {status}"))
    }
}

fn failed(to: SocketAddr, error: &hyper::Error) -> String {
    format!("{to} gave no HTTP answer: {error}")
}

/// `grpc.health.v1.Health/Check`.
async fn grpc(to: SocketAddr, service: &str) -> Result<(), String> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{to}"))
        .map_err(|e| e.to_string())?
        .connect()
        .await
        .map_err(|e| match io_error(&e) {
            Some(io) => refused(to, io),
            None => format!("cannot connect to {to}: {e}"),
        })?;
    let asked = HealthCheckRequest {
        service: service.to_owned(),
    };
    match HealthClient::new(channel).check(asked).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("health check of `{service}` answered {}", other.as_str_name())),
        },
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            Err("the app has no grpc.health.v1.Health service".into())
        }
        Err(status) if status.code() == tonic::Code::NotFound => {
            Err(format!("the app's health service knows no `{service}`"))
        }
        Err(status) => Err(format!(
            "health check of `{service}` failed: {:?} {}",
            status.code(),
            status.message()
        )),
    }
}

/// The system's error behind a transport error.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref())
}

async fn exec(command: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("the probe names no program".into());
    };
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|e| format!("cannot run `{program}`: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{program}` ended with {status}"))
    }
}

const USER_AGENT: &str = concat!("outrigger-probe/", env!("CARGO_PKG_VERSION"));
