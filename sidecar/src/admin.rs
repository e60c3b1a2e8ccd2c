//! The admin listener of one sidecar: what it does now, for people, scrapers and `outrigger`.
//!
//! Loopback or a socket of its owner only, bounded bodies and connections. The Host field must name loopback and
//! a POST must not come from another origin, so that a page in a browser cannot reach it (DNS
//! rebinding, cross-site requests). The telemetry listener shows metrics and health, and may be elsewhere.
//! Serves no request of the mesh.

mod listen;
mod pages;
mod process;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::contain::{self, Place, Task};
use crate::drain::Phase;
use crate::observe::prometheus;
use crate::shared::Shared;

pub use listen::Listener;
use listen::Stream;

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 64;
/// The largest body that is read.
const BODY: usize = 16 * 1024;
/// To send a request's head; also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(30);
/// A connection's whole life: a scraper comes again.
const AGE: Duration = Duration::from_secs(3600);
/// To send a request's body.
const READ: Duration = Duration::from_secs(5);
/// After accepting failed, for example for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the admin pages on `listener` until the process ends.
pub async fn serve(listener: Listener, shared: Arc<Shared>) {
    let address = listener.address().unwrap_or_else(|| shared.bootstrap.admin.clone());
    shared.admin.send_replace(Some(address));
    run(listener, Pages::All, shared).await;
}

/// Serves metrics and health alone, to anybody or to who has a certificate of the mesh, until the process ends.
pub async fn serve_telemetry(listener: TcpListener, tls: bool, shared: Arc<Shared>) {
    let pages = if tls { Pages::SecretTelemetry } else { Pages::Telemetry };
    run(Listener::Tcp(listener), pages, shared).await;
}

/// What a listener shows, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// Everything, to whom the address or the socket lets in.
    All,
    /// What changes nothing and names no peer.
    Telemetry,
    /// The same over mutual TLS.
    SecretTelemetry,
}

async fn run(listener: Listener, pages: Pages, shared: Arc<Shared>) {
    let mut task = Task::new(Place::Admin, shared.stats.clone());
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while task
        .again(accept(&listener, pages, &permits, &mut connections, &shared))
        .await
    {}
}

async fn accept(
    listener: &Listener,
    pages: Pages,
    permits: &Arc<Semaphore>,
    connections: &mut JoinSet<()>,
    shared: &Arc<Shared>,
) {
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(stream) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    connection(stream, pages, shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: Stream, pages: Pages, shared: Arc<Shared>) {
    if pages != Pages::SecretTelemetry {
        return speak(stream, pages, shared).await;
    }
    // Bounded in itself.
    match Box::pin(shared.identity.accept(stream)).await {
        Ok((stream, _, _)) => speak(stream, pages, shared).await,
        Err(error) => tracing::debug!(%error, "nobody of the mesh asked for telemetry"),
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, pages: Pages, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move {
            Ok::<_, std::convert::Infallible>(match pages {
                Pages::All => answer(&shared, request).await,
                Pages::Telemetry | Pages::SecretTelemetry => telemetry(&shared, &request),
            })
        }
    });
    // A scraper that offers HTTP/2 in TLS is taken at its word: the mesh's server prefers it.
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(32 * 1024);
    builder
        .http2()
        .max_concurrent_streams(8)
        .max_header_list_size(32 * 1024);
    let served = tokio::time::timeout(AGE, builder.serve_connection(TokioIo::new(stream), service)).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "an admin connection broke");
    }
}

type Answer = Response<Full<Bytes>>;

/// Answers one request.
async fn answer(shared: &Shared, request: Request<Incoming>) -> Answer {
    if !is_local(&request) {
        return text(
            StatusCode::FORBIDDEN,
            "the admin listener answers only under a loopback name\n",
        );
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match (&method, path.as_str()) {
        (&Method::GET, "/metrics") => metrics(shared),
        (&Method::GET, "/stats") => json(StatusCode::OK, &pages::stats(shared)),
        (&Method::GET, "/health") => health(shared),
        (&Method::GET, "/livez") => text(StatusCode::OK, "ok\n"),
        (&Method::GET, "/readyz") => readiness(shared),
        (&Method::GET, "/identity") => json(StatusCode::OK, &shared.identity.page()),
        (&Method::GET, "/config") => json(StatusCode::OK, &pages::config(shared)),
        (&Method::POST, "/drain") => drain(shared, request.uri().query()),
        (&Method::GET, "/drain") => text(StatusCode::OK, format!("{}\n", shared.drain.phase().as_str())),
        (&Method::POST, "/workload") => workload(shared, request).await,
        (&Method::POST, "/debug/panic") if shared.bootstrap.debug => panic(request.uri().query()),
        (_, "/metrics" | "/stats" | "/health" | "/livez" | "/readyz" | "/identity" | "/config") => not_allowed("GET"),
        (_, "/drain") => not_allowed("GET, POST"),
        (_, "/workload") => not_allowed("POST"),
        _ => text(StatusCode::NOT_FOUND, format!("{PAGES}\n")),
    }
}

/// Answers one request for telemetry. Under any name: there is nothing to change here.
fn telemetry(shared: &Shared, request: &Request<Incoming>) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => metrics(shared),
        (&Method::GET, "/livez") => text(StatusCode::OK, "ok\n"),
        (&Method::GET, "/readyz") => readiness(shared),
        (&Method::GET, "/health") => health(shared),
        (_, "/metrics" | "/livez" | "/readyz" | "/health") => not_allowed("GET"),
        _ => text(StatusCode::NOT_FOUND, "pages: /metrics /livez /readyz /health\n"),
    }
}

fn health(shared: &Shared) -> Answer {
    let health = pages::health(shared);
    let status = if health.serves() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &health)
}

fn readiness(shared: &Shared) -> Answer {
    match pages::not_ready(shared) {
        None => text(StatusCode::OK, "ok\n"),
        Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// Drains and ends the sidecar; with `phase=` only goes that far, for one who walks the rest by hand and ends it.
fn drain(shared: &Shared, query: Option<&str>) -> Answer {
    match query {
        None => shared.drain_requested.notify_one(),
        Some("phase=leaving") => shared.drain.advance(Phase::Leaving),
        Some("phase=closing") => shared.drain.advance(Phase::Closing),
        Some(_) => return text(StatusCode::BAD_REQUEST, "phase= leaving or closing\n"),
    }
    text(StatusCode::ACCEPTED, "draining\n")
}

/// What the supervisor says of the app.
#[derive(Debug, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
enum Workload {
    Started { pid: Option<u32> },
    Exited { code: Option<i32>, signal: Option<i32> },
}

async fn workload(shared: &Shared, request: Request<Incoming>) -> Answer {
    let read = tokio::time::timeout(READ, Limited::new(request.into_body(), BODY).collect());
    let body = match read.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            return text(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("cannot read the body: {error}\n"),
            );
        }
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n"),
    };
    match serde_json::from_slice(&body) {
        Ok(Workload::Started { pid }) => shared.app.started(pid),
        Ok(Workload::Exited { code, signal }) => shared.app.exited(code, signal),
        Err(error) => {
            return text(
                StatusCode::BAD_REQUEST,
                format!("not a report about the app: {error}\n"),
            );
        }
    }
    text(StatusCode::OK, "noted\n")
}

/// Makes the next one to come by a place panic: `in=request`, `in=accept`, …
fn panic(query: Option<&str>) -> Answer {
    let asked = query.and_then(|q| q.strip_prefix("in="));
    match Place::ALL.into_iter().find(|p| Some(p.as_str()) == asked) {
        Some(place) => {
            tracing::warn!(place = place.as_str(), "the debug switch asks for a panic");
            contain::arm(place);
            text(StatusCode::ACCEPTED, "armed\n")
        }
        None => {
            let places = Place::ALL.map(Place::as_str).join(", ");
            text(StatusCode::BAD_REQUEST, format!("in= one of {places}\n"))
        }
    }
}

fn metrics(shared: &Shared) -> Answer {
    shared.directory.measure();
    let page = prometheus::render(&shared.stats, &process::read(), shared.app.now().ok());
    let mut answer = text(StatusCode::OK, page);
    answer.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    answer
}

/// True when the request came under a loopback name, and a POST from no other origin.
fn is_local<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next().and_then(|h| h.to_str().ok());
    if hosts.next().is_some() || !host.is_some_and(is_loopback) {
        return false;
    }
    // An absolute target overrules Host (RFC 9112 §3.2.2).
    if request.uri().authority().is_some_and(|a| !is_loopback(a.as_str())) {
        return false;
    }
    match request.headers().get(ORIGIN) {
        Some(origin) if request.method() != Method::GET => {
            let origin: Option<Uri> = origin.to_str().ok().and_then(|o| o.parse().ok());
            origin
                .as_ref()
                .and_then(Uri::authority)
                .is_some_and(|a| is_loopback(a.as_str()))
        }
        _ => true,
    }
}

/// True for `localhost` and loopback addresses, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else {
        return false;
    };
    let host = authority.host().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let mut answer = text(status, bytes);
            answer
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer
        }
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot show this: {error}\n"),
        ),
    }
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("only {allowed} is understood here\n"),
    );
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// True while the sidecar takes new work.
fn serving(shared: &Shared) -> bool {
    shared.drain.phase() == Phase::Serving
}

const PAGES: &str = "pages: /metrics /stats /health /livez /readyz /identity /config, and POST to /drain or /workload";
