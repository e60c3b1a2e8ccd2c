//! The journey of a request to the app: listener → who calls, and may it → app → answer.
//!
//! What could not be handed to the app at all is refused so that a calling sidecar knows that it may
//! try another instance: `REFUSED_STREAM` (RFC 9113 §8.7).

mod admit;
pub mod caller;
mod enter;
mod opaque;
mod screen;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::uri::Authority;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use outrigger_proto::access;
use outrigger_proto::model::{Protocol, SpiffeId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use self::caller::{Caller, Callers};
use crate::accept::head::Watch;
use crate::accept::serve::{self, Bounds, Serve};
use crate::connect::{Lease, Route, Security, SendError, Upstream, Wire};
use crate::detect::{self, Detected};
use crate::drain::Phase;
use crate::exchange::live::Ticket;
use crate::exchange::{Exchange, Line};
use crate::forward::body::Body;
use crate::forward::fields;
use crate::forward::replay::Source;
use crate::forward::translate::{self, Plan, Unplannable};
use crate::forward::tunnel;
use crate::observe::access_log::AccessLog;
use crate::observe::{Cell, Direction, Gauge, Key};
use crate::policy::deadline::{Deadline, GRPC_TIMEOUT, parse_timeout};
use crate::policy::retry::Failure;
use crate::protect::Protection;
use crate::reason::Reason;
use crate::respond::{self, ConnectionError, Dress};
use crate::shared::Shared;

/// Bound on connecting to the app. It runs on the same machine and one that is down refuses at once; one whose
/// backlog is full makes the kernel ask again after 1 s and after 3 s (RFC 6298 §5), which a burst must survive.
const CONNECT: Duration = Duration::from_secs(5);
/// The connection to the app is as old as the app.
const APP_AGE: Duration = Duration::from_secs(24 * 3600);
/// Time between two warnings of one port and worker: a client that does not know better tries again.
const QUIET: Duration = Duration::from_secs(10);

/// One app port's journey on one worker.
#[derive(Debug)]
pub struct Inbound {
    /// The port's name.
    port: Arc<str>,
    protocol: Protocol,
    /// TLS has a listener of its own, because servers of this protocol speak first.
    mesh_port: bool,
    http1: Arc<Upstream>,
    http2: Arc<Upstream>,
    authority: Authority,
    shared: Arc<Shared>,
    cell: Arc<Cell>,
    log: Option<AccessLog>,
    callers: Callers,
    /// Milliseconds since the sidecar's start of the last warning, and how many were swallowed since.
    warned: AtomicU64,
    swallowed: AtomicU64,
}

/// What a plain connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Opaque,
    Http1,
    Http2,
}

/// A request that the rules let in: its place among those on the connection, and what bounds it.
type LetIn = (Ticket, Option<Arc<Protection>>);

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
        let upstream = |wire| {
            let route = Route {
                address: app,
                wire,
                security: Security::Plain,
                weight: 1,
                connect_timeout: CONNECT,
                max_age: APP_AGE,
                keep: true,
            };
            Arc::new(Upstream::new(route, shared.clone()))
        };
        let key = Key {
            direction: Direction::Inbound,
            service: shared.name.as_str().into(),
            port: name.into(),
        };
        let config = shared.bootstrap.inbound.iter().find(|i| i.name == name);
        Self {
            port: name.into(),
            protocol,
            callers: Callers::default(),
            mesh_port: config.is_some_and(|i| i.mesh_listen.is_some()),
            warned: AtomicU64::new(0),
            swallowed: AtomicU64::new(0),
            http1: upstream(Wire::Http1),
            http2: upstream(Wire::Http2),
            authority: Authority::try_from(app.to_string()).unwrap_or(Authority::from_static("localhost")),
            cell: shared.stats.cell(key),
            shared,
            log,
        }
    }

    /// Serves one connection of a sidecar or of a plain client. `meshed` on the listener for nothing but TLS.
    pub async fn connection(self: Arc<Self>, stream: TcpStream, client: SocketAddr, meshed: bool) {
        let _open = self.cell.opened();
        if let Err(error) = self.enter(stream, client, meshed).await {
            tracing::debug!(%error, "inbound connection ended");
        }
    }

    /// Judges every connection and request anew: to be called after each change of the own settings, of what is
    /// trusted, and now and then, because certificates expire.
    pub fn review(&self) {
        self.callers.review(&self.shared, &self.port);
    }

    /// Closes connections to the app that nobody used for `idle`.
    pub fn prune(&self, now: Instant, idle: Duration) {
        self.http1.prune(now, idle);
        self.http2.prune(now, idle);
    }

    /// What a plain connection speaks: as declared, or by its first bytes.
    async fn speaks(&self, stream: &TcpStream) -> std::io::Result<Speaks> {
        let http2 = match self.protocol {
            Protocol::Tcp | Protocol::Tls => return Ok(Speaks::Opaque),
            Protocol::Auto => match detect::detect(stream, detect::PATIENCE).await? {
                Detected::Opaque => return Ok(Speaks::Opaque),
                found => found == Detected::Http2,
            },
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                detect::speaks_http2(stream, self.shared.directory.proxy().limits.idle_timeout).await?
            }
        };
        Ok(if http2 { Speaks::Http2 } else { Speaks::Http1 })
    }

    /// Serves HTTP to `caller` while it is let in.
    /// In a box: a connection waits through most of its life at one place, and is not to be as large as the largest.
    fn http<I>(
        self: &Arc<Self>,
        stream: I,
        http2: bool,
        caller: Caller,
    ) -> Pin<Box<impl Future<Output = Result<(), ConnectionError>> + use<'_, I>>>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(self.serve(stream, http2, caller))
    }

    async fn serve<I>(self: &Arc<Self>, stream: I, http2: bool, caller: Caller) -> Result<(), ConnectionError>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let caller = Arc::new(caller);
        self.callers.enter(&caller, &self.shared, &self.port);
        let service = Requests {
            journey: self.clone(),
            caller: caller.clone(),
        };
        let bounds = Bounds {
            limits: self.shared.directory.proxy().limits.clone(),
            meshed: caller.sidecar,
            stats: self.shared.stats.clone(),
            until: Phase::Closing,
        };
        let drain = &self.shared.drain;
        let serve = async {
            match http2 {
                true => serve::http2(stream, service, &bounds, drain, caller.leaving()).await?,
                false => {
                    serve::http1(stream, service, &bounds, drain, caller.leaving()).await?;
                    // An upgraded connection goes on without its server, and has to be watched over.
                    tokio::select! {
                        () = caller.live.emptied() => {}
                        () = drain.reached(Phase::Closing) => {}
                    }
                }
            }
            Ok(())
        };
        tokio::select! {
            served = serve => served,
            why = caller.ended() => {
                caller.live.review(|_, _| false);
                self.cell.reason(why);
                Err(ConnectionError::Refused(why))
            }
        }
    }

    /// Warns now and then, not for each connection.
    fn warn(&self, client: SocketAddr, what: &str) {
        let now = u64::try_from(self.shared.started.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let last = self.warned.load(Relaxed);
        if last != 0 && Duration::from_millis(now.saturating_sub(last)) < QUIET {
            self.swallowed.fetch_add(1, Relaxed);
            return;
        }
        self.warned.store(now, Relaxed);
        let others = self.swallowed.swap(0, Relaxed);
        tracing::warn!(port = &*self.port, %client, others, "{what}");
    }

    /// Answers one request, whatever happens.
    async fn exchange(
        &self,
        mut request: Request<Incoming>,
        caller: &Caller,
        watch: Option<Arc<Watch>>,
    ) -> Result<Response<Body>, h2::Error> {
        let dress = Dress::of(request.headers());
        let mut exchange = Exchange::start(self.cell.clone(), dress == Dress::Grpc, self.line(&request, caller));
        if caller.peer.is_some() {
            exchange.secured();
        }
        // A caller that speaks HTTP to such a port would be judged by other rules than its bytes would be.
        if matches!(self.protocol, Protocol::Tcp | Protocol::Tls) {
            return Ok(refused(exchange, Reason::NotHttp, dress, ""));
        }
        let doubtful = watch.as_ref().is_some_and(|w| w.doubtful());
        let client_upgrade = tunnel::client_end(&mut request);
        let (mut parts, body) = request.into_parts();
        let version = parts.version;
        let planned = match doubtful {
            true => Err("Content-Length stands twice or beside Transfer-Encoding"),
            false => Plan::read(&mut parts, caller.sidecar).map_err(Unplannable::as_str),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(detail) => return Ok(refused(exchange, Reason::BadRequest, dress, detail)),
        };
        let (ticket, protection) = match self.authorize(caller, &plan, &mut exchange) {
            Ok(ticket) => ticket,
            Err((reason, detail)) => return Ok(refused(exchange, reason, dress, &detail)),
        };
        let place = match &protection {
            None => None,
            Some(protection) => {
                let now = exchange.started();
                let admitted = tokio::select! {
                    biased;
                    admitted = admit::admit(protection, caller, &plan, &parts, now) => admitted,
                    () = std::future::poll_fn(|cx| ticket.poll_cut(cx)) => {
                        return Ok(refused(exchange, Reason::Denied, dress, ""));
                    }
                };
                match admitted {
                    Ok(place) => place,
                    Err(refusal) => return Ok(refusal.answer(exchange, dress)),
                }
            }
        };
        caller.introduce(&mut parts.headers);
        let answer = {
            let call = std::pin::pin!(self.call(
                Request::from_parts(parts, body),
                version,
                &plan,
                &mut exchange,
                watch.as_deref(),
            ));
            tokio::select! {
                biased;
                answer = call => answer,
                () = std::future::poll_fn(|cx| ticket.poll_cut(cx)) => {
                    Err(Problem::Answer(Reason::Denied, Reason::Denied.help().into()))
                }
            }
        };
        exchange.under(ticket);
        if let Some(place) = place {
            let failed = answer.as_ref().map_or(true, |(response, _)| admit::failed(response));
            let held = place.answered(Instant::now(), failed);
            // What follows an upgrade is no request any more.
            if matches!(answer, Ok((_, None))) {
                exchange.holds(held);
            }
        }
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
        Ok(refused(exchange, reason, dress, &detail))
    }

    /// Asks the rules, before anything of the body is read. One atomic load, and no allocation unless the
    /// answer is no.
    fn authorize(&self, caller: &Caller, plan: &Plan, exchange: &mut Exchange) -> Result<LetIn, (Reason, String)> {
        let admission = self.shared.directory.admission();
        let verdict = admission.decide(&caller.asks(&self.port, plan.method(), plan.path()));
        exchange.decided(verdict.rule());
        match verdict {
            access::Verdict::Allowed { .. } => {}
            access::Verdict::Audited { rule } => self.audited(caller, rule),
            access::Verdict::Denied { rule } => {
                let who = caller.id().map_or("a plain client", SpiffeId::as_str);
                self.warn(caller.client, "a caller was denied; the access log has each request");
                return Err((Reason::Denied, format!("{who} may not do that here ({rule})")));
            }
            access::Verdict::BadPath => {
                let why = access::normalise(plan.path().path()).err();
                let why = why.map_or_else(|| Reason::BadPath.help().to_owned(), |why| why.to_string());
                return Err((Reason::BadPath, why));
            }
        }
        // From here on until it ends the request is among those that a change of the rules can cut.
        let ticket = caller.live.enter(plan.method().clone(), plan.path().clone());
        Ok((ticket, admission.protection.clone()))
    }

    fn audited(&self, caller: &Caller, rule: &str) {
        self.shared.stats.add(Gauge::Audited, 1);
        tracing::debug!(
            caller = caller.id().map(SpiffeId::as_str),
            rule,
            "let through by audit only"
        );
        self.warn(
            caller.client,
            "audit let through what the rules deny; the access log has each request",
        );
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
        let told = plan.timeout.as_ref().and_then(|v| parse_timeout(v.as_bytes()));
        let deadline = Deadline::new(now, &parts.headers, told, None);
        self.cell.timed(!deadline.is_none());
        // As it came: what is left is less by microseconds, and the app passes it on, or not.
        if let Some(left) = plan.timeout.as_ref().filter(|_| told.is_some()) {
            parts.headers.insert(fields::TIMEOUT, left.clone());
        }
        if let Some(attempt) = &plan.attempt {
            parts.headers.insert(fields::ATTEMPT, attempt.clone());
        }
        if let Some(left) = deadline.forwarded(now) {
            parts.headers.insert(GRPC_TIMEOUT, left);
        }
        let source = (!http_body::Body::is_end_stream(&body)).then(|| Source::new(body, &parts.extensions));
        let body = source
            .as_ref()
            .and_then(Source::take)
            .map_or_else(Body::empty, Body::replay);
        let mut request = Request::from_parts(parts, body);
        let app = self.app(plan, version);
        plan.dress(&mut request, app.route.wire, &self.authority);
        let mut request = Some(request);

        let sent = || source.as_ref().is_none_or(Source::ended);
        let handed = {
            let hand = std::pin::pin!(hand(app, &mut request, source.as_ref(), exchange));
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
        let granted = plan.receive(&mut response, app.route.wire);
        exchange.answered(response.status(), response.headers(), lease);
        let upstream = granted.then(|| hyper::upgrade::on(&mut response));
        let mut response = response.map(|b| Body::bounded(b, None, deadline.whole));
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

    fn line(&self, request: &Request<Incoming>, caller: &Caller) -> Option<Box<Line>> {
        let log = self.log.as_ref().filter(|_| self.shared.logs_requests());
        log.map(|log| {
            Box::new(Line {
                log: log.clone(),
                direction: Direction::Inbound,
                service: self.shared.name.as_str().into(),
                client: Some(caller.client),
                method: request.method().to_string(),
                path: request.uri().path().to_owned(),
                upstream: None,
                caller: caller.id().map(SpiffeId::to_string),
                rule: None,
                route: None,
            })
        })
    }
}

/// Sends to the app; once more when the app's connection went away before it took the request.
async fn hand(
    app: &Arc<Upstream>,
    request: &mut Option<Request<Body>>,
    source: Option<&Source>,
    exchange: &mut Exchange,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let copy = request
        .as_ref()
        .filter(|_| app.route.wire != Wire::Http1)
        .map(translate::copy_head);
    exchange.tried();
    let error = match app.send(request).await {
        Err(error) if error.failure == Failure::Refused => error,
        done => return done,
    };
    let again = source.map_or(Some(Body::empty()), |s| s.take().map(Body::replay));
    match (copy, again) {
        (Some(head), Some(body)) => {
            exchange.tried();
            *request = Some(head.map(|_| body));
            app.send(request).await
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

fn refused(mut exchange: Box<Exchange>, reason: Reason, dress: Dress, detail: &str) -> Response<Body> {
    exchange.refused(reason);
    respond::answer(reason, dress, detail).map(|body| body.told(exchange))
}

#[derive(Debug, Clone)]
struct Requests {
    journey: Arc<Inbound>,
    caller: Arc<Caller>,
}

impl Serve for Requests {
    fn serve(
        &self,
        request: Request<Incoming>,
        watch: Option<Arc<Watch>>,
    ) -> impl Future<Output = Result<Response<Body>, h2::Error>> + Send + 'static {
        let (journey, caller) = (self.journey.clone(), self.caller.clone());
        async move { journey.exchange(request, &caller, watch).await }
    }
}

#[cfg(test)]
mod tests;
