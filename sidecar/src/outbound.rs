//! The journey of a request from the app: local listener → service → endpoint → answer.
//!
//! Reads like its table of contents: `connection`, `exchange`, `call`, `route`, `tries`. Knows the order of the rooms and the details of none.

pub mod cluster;
mod hash;
mod mirror;
mod opaque;
mod route;
mod tries;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderValue, RETRY_AFTER};
use http::{Request, Response};
use hyper::body::Incoming;
use outrigger_proto::model::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use self::cluster::Cluster;
use self::route::{Course, Routed};
use self::tries::{Answered, Call};
use crate::accept::head::Watch;
use crate::accept::serve::{self, Bounds, Serve};
use crate::detect::{self, Detected};
use crate::drain::Phase;
use crate::exchange::{Exchange, Line};
use crate::forward::body::Body;
use crate::forward::fields;
use crate::forward::replay::Source;
use crate::forward::translate::Plan;
use crate::forward::tunnel;
use crate::observe::Direction;
use crate::observe::access_log::AccessLog;
use crate::policy::deadline::{Deadline, GRPC_TIMEOUT, parse_timeout};
use crate::policy::retry::Outcome;
use crate::reason::Reason;
use crate::respond::{self, Dress};
use crate::shared::Shared;

/// One local listener's journey on one worker.
#[derive(Debug)]
pub struct Outbound {
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    log: Option<AccessLog>,
    /// Copies on their way.
    flying: mirror::Flying,
}

/// Why a request has no answer from upstream.
#[derive(Debug)]
pub struct Problem {
    reason: Reason,
    detail: String,
    /// Why nobody up the chain is to try again.
    last_word: Option<&'static str>,
    /// It is no use before.
    not_before: Option<Duration>,
}

impl Outbound {
    /// The journey to `cluster`.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, shared: Arc<Shared>, log: Option<AccessLog>) -> Self {
        Self {
            cluster,
            shared,
            log,
            flying: mirror::Flying::default(),
        }
    }

    /// The service it leads to.
    #[must_use]
    pub fn cluster(&self) -> Arc<Cluster> {
        self.cluster.clone()
    }

    /// Closes connections that nobody used for `idle`.
    pub fn prune(&self, now: Instant, idle: Duration) {
        self.cluster.prune(now, idle);
    }

    /// Serves one connection of the app: by the declared protocol, or by what its first bytes say.
    pub async fn connection(self: Arc<Self>, stream: TcpStream, client: SocketAddr) {
        let _open = self.cluster.cell.opened();
        let served = match self.cluster.resolve().await.map(|r| r.protocol) {
            Ok(Protocol::Tcp | Protocol::Tls) => self.opaque(stream).await,
            Ok(Protocol::Auto) => match detect::detect(&stream, detect::PATIENCE).await {
                Ok(Detected::Opaque) => self.opaque(stream).await,
                Ok(found) => self.http(stream, found == Detected::Http2, client).await,
                Err(error) => Err(error.into()),
            },
            // A service that is not known yet may still be answered with a reason, in HTTP.
            Ok(_) | Err(_) => {
                match detect::speaks_http2(&stream, self.shared.directory.proxy().limits.idle_timeout).await {
                    Ok(http2) => self.http(stream, http2, client).await,
                    Err(error) => Err(error.into()),
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(service = self.cluster.name(), %error, "outbound connection ended");
        }
    }

    /// Serves HTTP on a stream that leads to this service.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn http<I>(
        self: &Arc<Self>,
        stream: I,
        http2: bool,
        client: SocketAddr,
    ) -> Result<(), respond::ConnectionError>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Requests {
            journey: self.clone(),
            client,
        };
        let bounds = Bounds {
            limits: self.shared.directory.proxy().limits.clone(),
            meshed: false,
            stats: self.shared.stats.clone(),
            until: Phase::Parting,
        };
        match http2 {
            true => serve::http2(stream, service, &bounds, &self.shared.drain, std::future::pending()).await?,
            false => serve::http1(stream, service, &bounds, &self.shared.drain, std::future::pending()).await?,
        }
        Ok(())
    }

    /// Answers one request, whatever happens.
    pub async fn exchange(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
        watch: Option<Arc<Watch>>,
    ) -> Response<Body> {
        let dress = Dress::of(request.headers());
        let mut exchange = Exchange::start(
            self.cluster.cell.clone(),
            dress == Dress::Grpc,
            self.line(&request, client),
        );
        let doubtful = watch.as_ref().is_some_and(|w| w.doubtful());
        let answer = match doubtful {
            true => Err(Problem::new(
                Reason::BadRequest,
                "Content-Length stands twice or beside Transfer-Encoding".into(),
            )),
            false => self.call(request, &mut exchange, watch.as_deref()).await,
        };
        match answer {
            Ok((response, None)) => response.map(|body| body.told(exchange)),
            Ok((response, Some((client, upstream)))) => {
                tunnel::join(client, upstream, exchange);
                response
            }
            Err(problem) => {
                exchange.refused(problem.reason);
                problem.answer(dress).map(|body| body.told(exchange))
            }
        }
    }

    /// Plans the request, bounds its time, tries endpoints, and takes the answer's head.
    async fn call(
        &self,
        mut request: Request<Incoming>,
        exchange: &mut Exchange,
        watch: Option<&Watch>,
    ) -> Result<(Response<Body>, Option<tunnel::Ends>), Problem> {
        let resolved = self.cluster.resolve().await.map_err(|reason| self.unresolved(reason))?;
        let client_upgrade = tunnel::client_end(&mut request);
        let (mut parts, body) = request.into_parts();
        let mut plan =
            Plan::read(&mut parts, false).map_err(|e| Problem::new(Reason::BadRequest, e.as_str().into()))?;
        let routed = match &resolved.traffic {
            None => None,
            // Boxed: only services with routes or faults pay for it.
            Some(traffic) => match Box::pin(self.route(traffic, &resolved, &mut plan, &mut parts, exchange)).await? {
                Course::Answered(answer) => return Ok((*answer, None)),
                Course::On(routed) => Some(routed),
            },
        };
        let routed = routed.as_deref();
        let (there, toward) = routed.map_or((self, &resolved), |r| r.destination(self, &resolved));
        let policy = routed.map_or(resolved.policy(), Routed::policy);
        let now = exchange.started();
        let told = plan.timeout.as_ref().and_then(|v| parse_timeout(v.as_bytes()));
        let deadline = Deadline::new(now, &parts.headers, told, policy.timeout);
        // By the app itself: the policy's time-out holds anyway.
        self.cluster.cell.timed(told.is_some() || deadline.whole.is_some());
        if let Some(left) = deadline.forwarded(now) {
            parts.headers.insert(GRPC_TIMEOUT, left);
        }
        let subset = routed.and_then(|r| r.subset.clone());
        let aim = toward.aim(subset, &parts.uri, &parts.headers, &self.cluster.cell);
        let source = (!http_body::Body::is_end_stream(&body)).then(|| Source::new(body, &parts.extensions));
        if let (Some(source), Some(_)) = (&source, policy.idle) {
            source.watch(now);
        }
        let body = source
            .as_ref()
            .and_then(Source::take)
            .map_or_else(Body::empty, Body::replay);
        let mut request = Some(Request::from_parts(parts, body));
        if let (Some(routed), Some(head)) = (routed, &request) {
            self.mirror(routed, &resolved, &plan, head, source.as_ref());
        }

        let sent = || source.as_ref().is_none_or(Source::ended);
        let answered = {
            // Pinned here, or the state would be in this future twice, and each request copies it.
            let call = Call {
                plan: &plan,
                aim: &aim,
                policy,
                source: source.as_ref(),
                deadline,
                began: now,
                routed,
            };
            let tries = std::pin::pin!(there.tries(&mut request, toward.clone(), &call, exchange));
            respond::within(&deadline, sent, tries).await
        };
        let Some(answered) = answered else {
            return Err(there.late(exchange));
        };
        let Answered {
            mut response,
            first,
            lease,
            wire,
            last_word,
        } = answered?;

        if let Some(source) = &source {
            source.commit();
            if let (Some(watch), true) = (watch, source.ended()) {
                watch.read_whole();
            }
        }
        let granted = plan.receive(&mut response, wire);
        if let Some(why) = last_word {
            response
                .headers_mut()
                .insert(fields::FINAL, HeaderValue::from_static(why));
        }
        exchange.answered(response.status(), response.headers(), lease);
        let ends = if granted {
            client_upgrade.map(|client| (client, hyper::upgrade::on(&mut response)))
        } else {
            None
        };
        let body = |body| Body::bounded(body, first, deadline.whole).unless_idle(policy.idle, source.as_ref());
        let response = response.map(body);
        let response = match routed {
            Some(routed) => routed.returned(response),
            None => response,
        };
        Ok((response, ends))
    }

    /// Time ran out; the try that was on its way, if there is one, is the endpoint's failure.
    fn late(&self, exchange: &mut Exchange) -> Problem {
        if let Some(account) = exchange.account() {
            account.settle(Instant::now(), Outcome::Timeout);
        }
        exchange.unaccounted();
        let detail = format!("{} did not answer in time", self.cluster.name());
        let problem = Problem::new(Reason::Deadline, detail);
        // Others would have no more time.
        problem.finally((exchange.tries() > 1).then_some(tries::RETRIED))
    }

    fn unresolved(&self, reason: Reason) -> Problem {
        Problem::new(reason, format!("{}: {}", self.cluster.name(), reason.help()))
    }

    fn line(&self, request: &Request<Incoming>, client: SocketAddr) -> Option<Box<Line>> {
        let log = self.log.as_ref().filter(|_| self.shared.logs_requests());
        log.map(|log| {
            Box::new(Line {
                log: log.clone(),
                direction: Direction::Outbound,
                service: self.cluster.name().into(),
                client: Some(client),
                method: request.method().to_string(),
                path: request.uri().path().to_owned(),
                upstream: None,
                caller: None,
                rule: None,
                route: None,
            })
        })
    }
}

impl Problem {
    fn new(reason: Reason, detail: String) -> Self {
        Self {
            reason,
            detail,
            last_word: None,
            not_before: None,
        }
    }

    fn finally(self, last_word: Option<&'static str>) -> Self {
        Self { last_word, ..self }
    }

    fn not_before(self, left: Duration) -> Self {
        Self {
            not_before: Some(left),
            ..self
        }
    }

    fn answer(&self, dress: Dress) -> Response<Body> {
        let mut response = respond::answer(self.reason, dress, &self.detail);
        let headers = response.headers_mut();
        if let Some(why) = self.last_word {
            headers.insert(fields::FINAL, HeaderValue::from_static(why));
        }
        if let Some(left) = self.not_before {
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[derive(Debug, Clone)]
struct Requests {
    journey: Arc<Outbound>,
    client: SocketAddr,
}

impl Serve for Requests {
    fn serve(
        &self,
        request: Request<Incoming>,
        watch: Option<Arc<Watch>>,
    ) -> impl Future<Output = Result<Response<Body>, h2::Error>> + Send + 'static {
        let (journey, client) = (self.journey.clone(), self.client);
        async move { Ok(journey.exchange(request, client, watch).await) }
    }
}
