//! The journey through the proxy port (`HTTP_PROXY`): a mesh service by name, or the world outside.
//!
//! Absolute-form requests and CONNECT (RFC 9110 §7.1, §9.3.6), from loopback only. A name that the
//! mesh knows goes the outbound journey as its declared protocol; anything else is external and needs
//! the workload's permission.

mod external;
mod names;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use outrigger_proto::model::{Protocol, ServiceName};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use self::external::External;
use crate::accept::head::Watch;
use crate::accept::serve::{self, Bounds, Serve};
use crate::detect::{self, Detected, Prefixed};
use crate::directory::Known;
use crate::drain::Phase;
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::{copy, fields};
use crate::observe::access_log::AccessLog;
use crate::observe::{Cell, Direction, Key};
use crate::outbound::Outbound;
use crate::outbound::cluster::Cluster;
use crate::reason::Reason;
use crate::respond::{self, ConnectionError, Dress};
use crate::shared::Shared;
use crate::tunnel::{App, Plain, Socket};

/// Services known by name on one worker; with more, further names count as external.
const MOST_SERVICES: usize = 1024;
/// A service that was not called for this long is forgotten, and unsubscribed.
const FORGET: Duration = Duration::from_secs(600);

/// The proxy port's journey on one worker.
#[derive(Debug)]
pub struct Egress {
    shared: Arc<Shared>,
    services: Mutex<HashMap<ServiceName, Called>>,
    external: External,
    cell: Arc<Cell>,
    log: Option<AccessLog>,
}

/// A service and when it was last called.
#[derive(Debug)]
struct Called {
    outbound: Arc<Outbound>,
    at: Instant,
}

/// Where a request goes.
enum Destination {
    Service(Arc<Outbound>, Arc<Cluster>),
    External,
}

impl Egress {
    /// The journey on one worker.
    #[must_use]
    pub fn new(shared: Arc<Shared>, log: Option<AccessLog>) -> Self {
        let key = Key {
            direction: Direction::Outbound,
            service: "external".into(),
            port: "proxy".into(),
        };
        Self {
            cell: shared.stats.cell(key),
            external: External::new(shared.clone()),
            services: Mutex::new(HashMap::new()),
            shared,
            log,
        }
    }

    /// Serves one connection of the app.
    pub async fn connection(self: Arc<Self>, stream: TcpStream, client: SocketAddr) {
        if !client.ip().is_loopback() {
            // Never an open relay.
            copy::reset(&stream);
            return;
        }
        let _open = self.cell.opened();
        let bounds = Bounds {
            limits: self.shared.directory.proxy().limits.clone(),
            meshed: false,
            stats: self.shared.stats.clone(),
            until: Phase::Parting,
        };
        let service = Requests {
            journey: self.clone(),
            client,
        };
        if let Err(error) = serve::http1(stream, service, &bounds, &self.shared.drain, std::future::pending()).await {
            tracing::debug!(%error, "proxy connection ended");
        }
    }

    /// Closes connections that nobody used for `idle`.
    pub fn prune(&self, now: Instant, idle: Duration) {
        self.external.prune(now, idle);
        self.services.lock().retain(|_, called| {
            called.outbound.prune(now, idle);
            now.saturating_duration_since(called.at) < FORGET
        });
    }

    async fn exchange(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: SocketAddr,
        watch: Option<Arc<Watch>>,
    ) -> Response<Body> {
        let Some(authority) = request.uri().authority().cloned() else {
            return self.refuse(
                &request,
                Reason::BadRequest,
                "the proxy port takes absolute-form requests and CONNECT",
            );
        };
        match (
            self.destination(authority.host()).await,
            request.method() == Method::CONNECT,
        ) {
            (Ok(Destination::Service(outbound, cluster)), true) => {
                self.connect_service(request, outbound, cluster, client).await
            }
            (Ok(Destination::Service(outbound, _)), false) => {
                let mut request = request;
                fields::strip_proxy(request.headers_mut());
                outbound.exchange(request, client, watch).await
            }
            (Ok(Destination::External), true) => self.connect_external(request, &authority).await,
            (Ok(Destination::External), false) => self.request_external(request, &authority, watch).await,
            (Err(reason), _) => self.refuse(&request, reason, &format!("{authority}: {}", reason.help())),
        }
    }

    /// A mesh service when the mesh knows the name, else external.
    async fn destination(&self, host: &str) -> Result<Destination, Reason> {
        let Some(name) = names::service(host, self.shared.name.namespace()) else {
            return Ok(Destination::External);
        };
        let known = self.services.lock().get_mut(&name).map(|called| {
            called.at = Instant::now();
            called.outbound.clone()
        });
        if let Some(outbound) = known {
            let cluster = outbound.cluster();
            return match cluster.resolve().await {
                Ok(_) => Ok(Destination::Service(outbound, cluster)),
                Err(Reason::UnknownService) => Ok(Destination::External),
                Err(reason) => Err(reason),
            };
        }
        if self.services.lock().len() >= MOST_SERVICES {
            return Ok(Destination::External);
        }
        let destination = self.shared.directory.destination(&name);
        match &*destination.wait(Duration::from_secs(3)).await {
            Known::Present(_) => {
                let cluster = Arc::new(Cluster::new(destination, None, self.shared.clone()));
                let outbound = Arc::new(Outbound::new(cluster.clone(), self.shared.clone(), self.log.clone()));
                let called = Called {
                    outbound: outbound.clone(),
                    at: Instant::now(),
                };
                self.services.lock().insert(name, called);
                Ok(Destination::Service(outbound, cluster))
            }
            Known::Absent => Ok(Destination::External),
            // The mesh cannot say: a name without a dot is ours or nobody's.
            Known::Waiting if !host.contains('.') && host != "localhost" => Err(Reason::NotReady),
            Known::Waiting => Ok(Destination::External),
        }
    }

    /// Opens a tunnel to a mesh service: what is inside goes as the declared protocol.
    async fn connect_service(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        outbound: Arc<Outbound>,
        cluster: Arc<Cluster>,
        client: SocketAddr,
    ) -> Response<Body> {
        let protocol = match cluster.resolve().await {
            Ok(resolved) => resolved.protocol,
            Err(reason) => return self.refuse(&request, reason, reason.help()),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let inside = match serve::socket(upgraded) {
                Ok((stream, ahead)) => {
                    let stream = Prefixed::new(ahead, Socket::of_app(stream));
                    Box::pin(inside(&outbound, protocol, stream, client)).await
                }
                Err(upgraded) => {
                    let stream = Plain(TokioIo::new(upgraded));
                    Box::pin(inside(&outbound, protocol, stream, client)).await
                }
            };
            if let Err(error) = inside {
                tracing::debug!(%error, "tunnel ended");
            }
        });
        Response::new(Body::empty())
    }

    async fn connect_external(&self, mut request: Request<Incoming>, authority: &Authority) -> Response<Body> {
        let mut upstream = match self.external.connect(authority).await {
            Ok(stream) => stream,
            Err((reason, detail)) => return self.refuse(&request, reason, &detail),
        };
        let mut exchange = Exchange::start(self.cell.clone(), false, None);
        exchange.tried();
        let upgrade = hyper::upgrade::on(&mut request);
        let cell = self.cell.clone();
        tokio::spawn(async move {
            let Ok(client) = upgrade.await else { return };
            let (moved, result) = copy::both(&mut TokioIo::new(client), &mut upstream).await;
            cell.moved(moved.forth, moved.back);
            match result {
                Ok(()) => exchange.ended(None),
                Err(_) => {
                    exchange.broken();
                    copy::reset(&upstream);
                }
            }
        });
        Response::new(Body::empty())
    }

    async fn request_external(
        &self,
        mut request: Request<Incoming>,
        authority: &Authority,
        watch: Option<Arc<Watch>>,
    ) -> Response<Body> {
        let dress = Dress::of(request.headers());
        let mut exchange = Exchange::start(self.cell.clone(), dress == Dress::Grpc, None);
        fields::strip_proxy(request.headers_mut());
        let doubtful = watch.as_ref().is_some_and(|w| w.doubtful());
        let answer = match doubtful {
            true => Err((
                Reason::BadRequest,
                "Content-Length stands twice or beside Transfer-Encoding".to_owned(),
            )),
            false => self.external.send(request, authority, &mut exchange).await,
        };
        match answer {
            Ok(response) => response.map(|body| body.told(exchange)),
            Err((reason, detail)) => {
                exchange.refused(reason);
                respond::answer(reason, dress, &detail).map(|body| body.told(exchange))
            }
        }
    }

    fn refuse(&self, request: &Request<Incoming>, reason: Reason, detail: &str) -> Response<Body> {
        let dress = Dress::of(request.headers());
        let mut exchange = Exchange::start(self.cell.clone(), dress == Dress::Grpc, None);
        exchange.refused(reason);
        respond::answer(reason, dress, detail).map(|body| body.told(exchange))
    }
}

/// What is inside CONNECT goes as the service's protocol.
async fn inside<A: App + 'static>(
    outbound: &Arc<Outbound>,
    protocol: Protocol,
    stream: A,
    client: SocketAddr,
) -> Result<(), ConnectionError> {
    if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        return outbound.carry(stream).await;
    }
    let (found, stream) = detect::detect_read(stream).await?;
    if found == Detected::Opaque && protocol == Protocol::Auto {
        return outbound.carry(stream).await;
    }
    outbound.http(stream, found == Detected::Http2, client).await
}

#[derive(Debug, Clone)]
struct Requests {
    journey: Arc<Egress>,
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
