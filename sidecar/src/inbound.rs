//! The journey of a request to the app: listener → app → answer.
//!
//! What could not be handed to the app at all is refused so that a calling sidecar knows that it may
//! try another instance: `REFUSED_STREAM` (RFC 9113 §8.7).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use outrigger_proto::model::Protocol;
use tokio::net::TcpStream;

use crate::accept::head::Watch;
use crate::accept::serve::{self, Bounds, Serve};
use crate::connect::{Lease, SendError, Upstream, Wire};
use crate::detect::{self, Detected};
use crate::exchange::{Exchange, Line};
use crate::forward::body::Body;
use crate::forward::replay::Source;
use crate::forward::translate::{self, Plan, Unplannable};
use crate::forward::{copy, tunnel};
use crate::observe::access_log::AccessLog;
use crate::observe::{Cell, Direction, Key};
use crate::policy::deadline::{Deadline, GRPC_TIMEOUT};
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::respond::{self, ConnectionError, Dress};
use crate::shared::Shared;

/// Bound on connecting to the app: it runs on the same machine.
const CONNECT: Duration = Duration::from_secs(1);
/// The connection to the app is as old as the app.
const APP_AGE: Duration = Duration::from_secs(24 * 3600);

/// One app port's journey on one worker.
#[derive(Debug)]
pub struct Inbound {
    protocol: Protocol,
    http1: Arc<Upstream>,
    http2: Arc<Upstream>,
    authority: Authority,
    shared: Arc<Shared>,
    cell: Arc<Cell>,
    log: Option<AccessLog>,
}

/// Why the app did not answer.
#[derive(Debug)]
enum Problem {
    /// An answer of the mesh.
    Answer(Reason, String),
    /// Not one byte reached the app.
    Untouched(String),
}

impl Inbound {
    /// The journey to the app's port `name` at `app`.
    #[must_use]
    pub fn new(name: &str, protocol: Protocol, app: SocketAddr, shared: Arc<Shared>, log: Option<AccessLog>) -> Self {
        let upstream = |wire| Arc::new(Upstream::new(app, wire, 1, CONNECT, APP_AGE, shared.stats.clone()));
        let key = Key {
            direction: Direction::Inbound,
            service: shared.name.as_str().into(),
            port: name.into(),
        };
        Self {
            protocol,
            http1: upstream(Wire::Http1),
            http2: upstream(Wire::Http2),
            authority: Authority::try_from(app.to_string()).unwrap_or(Authority::from_static("localhost")),
            cell: shared.stats.cell(key),
            shared,
            log,
        }
    }

    /// Serves one connection of a sidecar or of a plain client.
    pub async fn connection(self: Arc<Self>, stream: TcpStream, client: SocketAddr) {
        let _open = self.cell.opened();
        let served = match self.protocol {
            Protocol::Tcp | Protocol::Tls => self.opaque(stream).await,
            Protocol::Auto => match detect::detect(&stream, detect::PATIENCE).await {
                Ok(Detected::Opaque) => self.opaque(stream).await,
                Ok(found) => self.http(stream, found == Detected::Http2, client).await,
                Err(error) => Err(error.into()),
            },
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                match detect::speaks_http2(&stream, self.shared.directory.proxy().limits.idle_timeout).await {
                    Ok(http2) => self.http(stream, http2, client).await,
                    Err(error) => Err(error.into()),
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "inbound connection ended");
        }
    }

    /// Closes connections to the app that nobody used for `idle`.
    pub fn prune(&self, now: Instant, idle: Duration) {
        self.http1.prune(now, idle);
        self.http2.prune(now, idle);
    }

    async fn http(self: &Arc<Self>, stream: TcpStream, http2: bool, client: SocketAddr) -> Result<(), ConnectionError> {
        let service = Requests {
            journey: self.clone(),
            client,
        };
        let bounds = Bounds {
            limits: self.shared.directory.proxy().limits.clone(),
            meshed: true,
        };
        match http2 {
            true => serve::http2(stream, service, &bounds, &self.shared.drain).await?,
            false => serve::http1(stream, service, &bounds, &self.shared.drain).await?,
        }
        Ok(())
    }

    async fn opaque(&self, mut client: TcpStream) -> Result<(), ConnectionError> {
        let mut exchange = Exchange::start(self.cell.clone(), false, None);
        exchange.tried();
        let mut app = match self.http1.connect().await {
            Ok(app) => app,
            Err(error) => {
                tracing::debug!(%error, "app unreachable");
                self.shared.app.reachable_hint(false);
                exchange.refused(Reason::AppUnreachable);
                exchange.ended(None);
                copy::reset(&client);
                return Err(ConnectionError::Refused(Reason::AppUnreachable));
            }
        };
        exchange.answered(
            http::StatusCode::OK,
            &http::HeaderMap::new(),
            Lease::counted(self.http1.clone()),
        );
        let (moved, result) = copy::both(&mut client, &mut app).await;
        self.cell.moved(moved.forth, moved.back);
        match result {
            Ok(()) => exchange.ended(None),
            Err(_) => {
                exchange.broken();
                copy::reset(&client);
                copy::reset(&app);
            }
        }
        Ok(result?)
    }

    /// Answers one request, whatever happens.
    async fn exchange(
        &self,
        mut request: Request<Incoming>,
        client: SocketAddr,
        watch: Option<Arc<Watch>>,
    ) -> Result<Response<Body>, h2::Error> {
        let dress = Dress::of(request.headers());
        let mut exchange = Exchange::start(self.cell.clone(), dress == Dress::Grpc, self.line(&request, client));
        let doubtful = watch.as_ref().is_some_and(|w| w.doubtful());
        let client_upgrade = tunnel::client_end(&mut request);
        let (mut parts, body) = request.into_parts();
        let version = parts.version;
        let planned = match doubtful {
            true => Err("Content-Length stands twice or beside Transfer-Encoding"),
            false => Plan::read(&mut parts, true).map_err(Unplannable::as_str),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(detail) => return Ok(bad_request(exchange, dress, detail)),
        };
        let answer = self
            .call(
                Request::from_parts(parts, body),
                version,
                &plan,
                &mut exchange,
                watch.as_deref(),
            )
            .await;
        let (reason, detail) = match answer {
            Ok((response, None)) => return Ok(response.map(|body| body.told(exchange))),
            Ok((response, Some(upstream))) => {
                if let Some(client) = client_upgrade {
                    tunnel::join(client, upstream, exchange);
                }
                return Ok(response);
            }
            Err(Problem::Untouched(detail)) => {
                tracing::debug!(%detail, "app unreachable");
                self.shared.app.reachable_hint(false);
                if plan.meshed {
                    exchange.refused(Reason::AppUnreachable);
                    exchange.ended(None);
                    return Err(h2::Reason::REFUSED_STREAM.into());
                }
                (Reason::AppUnreachable, detail)
            }
            Err(Problem::Answer(reason, detail)) => (reason, detail),
        };
        exchange.refused(reason);
        Ok(respond::answer(reason, dress, &detail).map(|body| body.told(exchange)))
    }

    /// Hands the request to the app and takes the answer's head.
    async fn call(
        &self,
        request: Request<Incoming>,
        version: Version,
        plan: &Plan,
        exchange: &mut Exchange,
        watch: Option<&Watch>,
    ) -> Result<(Response<Body>, Option<hyper::upgrade::OnUpgrade>), Problem> {
        let (mut parts, body) = request.into_parts();
        let now = exchange.started();
        let deadline = Deadline::new(now, &parts.headers, None);
        if let Some(left) = deadline.forwarded(now) {
            parts.headers.insert(GRPC_TIMEOUT, left);
        }
        let source = (!http_body::Body::is_end_stream(&body)).then(|| Source::new(body));
        let body = source
            .as_ref()
            .and_then(Source::take)
            .map_or_else(Body::empty, Body::replay);
        let mut request = Request::from_parts(parts, body);
        let app = self.app(plan, version);
        plan.dress(&mut request, app.wire, &self.authority);

        let sent = || source.as_ref().is_none_or(Source::ended);
        let handed = {
            let hand = std::pin::pin!(hand(app, request, source.as_ref(), exchange));
            respond::within(&deadline, sent, hand).await
        };
        let (mut response, lease) = match handed {
            None => {
                return Err(Problem::Answer(
                    Reason::Deadline,
                    "the app did not answer in time".into(),
                ));
            }
            Some(Err(error)) => return Err(problem(&error)),
            Some(Ok(answered)) => answered,
        };
        if let Some(source) = &source {
            source.commit();
            if let (Some(watch), true) = (watch, source.ended()) {
                watch.read_whole();
            }
        }
        let granted = plan.receive(&mut response, app.wire);
        exchange.answered(response.status(), response.headers(), lease);
        let upstream = granted.then(|| hyper::upgrade::on(&mut response));
        let mut response = response.map(|b| Body::bounded(b, deadline.whole));
        if plan.meshed {
            translate::answer_to_mesh(&mut response, plan.upgrade.is_some());
        }
        Ok((response, upstream))
    }

    /// Which of the app's protocols carries this request.
    fn app(&self, plan: &Plan, version: Version) -> &Arc<Upstream> {
        let original = if plan.meshed { plan.origin.version } else { version };
        match self.protocol {
            Protocol::Http2 | Protocol::Grpc if plan.upgrade.is_none() => &self.http2,
            Protocol::Auto if original == Version::HTTP_2 && plan.upgrade.is_none() => &self.http2,
            _ => &self.http1,
        }
    }

    fn line(&self, request: &Request<Incoming>, client: SocketAddr) -> Option<Box<Line>> {
        let log = self.log.as_ref().filter(|_| self.shared.logs_requests());
        log.map(|log| {
            Box::new(Line {
                log: log.clone(),
                direction: Direction::Inbound,
                service: self.shared.name.as_str().into(),
                client: Some(client),
                method: request.method().to_string(),
                path: request.uri().path().to_owned(),
                upstream: None,
            })
        })
    }
}

/// Sends to the app; once more when the app's connection went away before it took the request.
async fn hand(
    app: &Arc<Upstream>,
    request: Request<Body>,
    source: Option<&Source>,
    exchange: &mut Exchange,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let copy = (app.wire != Wire::Http1).then(|| translate::copy_head(&request));
    exchange.tried();
    let error = match app.send(request).await {
        Err(error) if error.failure == Failure::Refused => error,
        done => return done,
    };
    let again = source.map_or(Some(Body::empty()), |s| s.take().map(Body::replay));
    match (copy, again) {
        (Some(head), Some(body)) => {
            exchange.tried();
            app.send(head.map(|_| body)).await
        }
        _ => Err(error),
    }
}

fn problem(error: &SendError) -> Problem {
    let detail = respond::chain(&*error.source);
    match error.failure {
        Failure::NeverSent | Failure::Refused => Problem::Untouched(detail),
        Failure::MaybeProcessed => Problem::Answer(Reason::UpstreamReset, format!("the app broke off: {detail}")),
    }
}

fn bad_request(mut exchange: Exchange, dress: Dress, detail: &str) -> Response<Body> {
    exchange.refused(Reason::BadRequest);
    respond::answer(Reason::BadRequest, dress, detail).map(|body| body.told(exchange))
}

#[derive(Debug, Clone)]
struct Requests {
    journey: Arc<Inbound>,
    client: SocketAddr,
}

impl Serve for Requests {
    fn serve(
        &self,
        request: Request<Incoming>,
        watch: Option<Arc<Watch>>,
    ) -> impl Future<Output = Result<Response<Body>, h2::Error>> + Send + 'static {
        let (journey, client) = (self.journey.clone(), self.client);
        async move { journey.exchange(request, client, watch).await }
    }
}
