//! One endpoint as one worker sees it: its connections, its load, how a request gets there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::dial::dial;
use super::http2::NotBegun;
use super::lease::{Held, Lease};
use super::secure::{Security, Unconnected, barred, secured};
use super::{http1, http2};
use crate::balance::ewma::PeakEwma;
use crate::contain::{self, Place};
use crate::forward::body::Body;
use crate::identify::Alpn;
use crate::observe::{Gauge, Stats};
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::shared::Shared;
use crate::tunnel::{self, Socket};

/// Connections to one endpoint that exist because one alone does not carry enough bytes. More exist only
/// when all their streams are taken.
const SIDE_BY_SIDE: usize = 4;

/// What the endpoint's listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Another sidecar: HTTP/2, whatever the app speaks.
    Mesh,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub wire: Wire,
    /// How connections are protected.
    pub security: Security,
    /// Relative share of requests.
    pub weight: u32,
    /// Bound on making one connection, its handshake included.
    pub connect_timeout: Duration,
    /// Connections that are older take no more requests.
    pub max_age: Duration,
    /// Whether HTTP/1 connections are kept for the next request. Not where connections are bounded: one that idles here
    /// would have the place of one that is needed elsewhere.
    pub keep: bool,
}

/// One endpoint as one worker sees it.
#[derive(Debug)]
pub struct Upstream {
    /// How it is reached.
    pub route: Route,
    /// Requests and opaque connections without an end yet.
    pub(super) in_flight: AtomicU32,
    load: Mutex<PeakEwma>,
    idle: Mutex<Vec<http1::Connection>>,
    streams: Mutex<Vec<Arc<http2::Connection>>>,
    /// One dial at a time for a shared connection: a burst makes one connection, not many.
    dialling: tokio::sync::Mutex<()>,
    /// Connections for opaque bytes that carry none at the moment.
    tunnels: Arc<tunnel::Pool>,
    shared: Arc<Shared>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub struct SendError {
    /// Whether it may have been processed.
    pub failure: Failure,
    /// Why no connection could be made at all.
    pub unconnected: Option<Reason>,
    /// What happened.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Upstream {
    /// An endpoint without connections; nothing is dialled before the first request.
    #[must_use]
    pub fn new(route: Route, shared: Arc<Shared>) -> Self {
        Self {
            route,
            in_flight: AtomicU32::new(0),
            load: Mutex::new(PeakEwma::new(Instant::now())),
            idle: Mutex::new(Vec::new()),
            streams: Mutex::new(Vec::new()),
            dialling: tokio::sync::Mutex::new(()),
            tunnels: Arc::new(tunnel::Pool::new(shared.tunnels.clone())),
            shared,
        }
    }

    /// What an answer takes by peak-EWMA, in nanoseconds.
    #[must_use]
    pub fn latency(&self, now: Instant) -> f64 {
        self.load.lock().latency(now)
    }

    /// Requests and opaque connections of this worker without an end yet.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Takes in how long the head of an answer took.
    pub fn observe(&self, now: Instant, took: Duration) {
        self.load.lock().observe(now, took);
    }

    /// Counts a failure as a slow answer, so that other endpoints are preferred for a while.
    pub fn penalize(&self, now: Instant) {
        self.load.lock().penalize(now, Duration::from_secs(1));
    }

    /// Sends one request and waits for the head of its answer. The request stays where it is until a connection takes
    /// it: futures that carry it would copy it from one to the next.
    ///
    /// # Errors
    /// When there is no answer. The request is still there when not one byte was accepted, and only then.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream or closes the connection: the upstream sees it.
    pub async fn send(
        self: &Arc<Self>,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        match self.route.wire {
            Wire::Http1 => self.send_http1(request).await,
            Wire::Http2 | Wire::Mesh => self.send_http2(request).await,
        }
    }

    /// Connects a plain stream: opaque bytes, or HTTP to what is no sidecar.
    ///
    /// # Errors
    /// When nobody accepts within the connect time-out, or the endpoint must not be spoken to in plain.
    pub async fn connect(&self) -> Result<tokio::net::TcpStream, Unconnected> {
        let why = match self.route.security {
            Security::Plain => return Ok(dial(self.route.address, self.route.connect_timeout).await?),
            Security::Mutual(_) => "it takes nothing but mutual TLS",
            Security::Impossible(why) => why,
        };
        Err(Unconnected::Impossible(self.route.address, why))
    }

    /// A connection for an opaque stream to another sidecar: a kept one, and then nothing was dialled, or
    /// a new one, and then the flag says so.
    ///
    /// # Errors
    /// When there is none, and none can be made within the connect time-out.
    pub async fn tunnel(&self) -> Result<(tunnel::Connection, bool), Unconnected> {
        let route = &self.route;
        let service = match &route.security {
            Security::Mutual(service) => service,
            Security::Plain => return Err(Unconnected::Impossible(route.address, "it speaks no TLS")),
            Security::Impossible(why) => return Err(Unconnected::Impossible(route.address, why)),
        };
        if let Some(kept) = self.tunnels.take(self.generation()).await {
            return Ok((kept, false));
        }
        let identity = &self.shared.identity;
        let made = secured(
            route.address,
            service,
            Alpn::Tcp,
            route.connect_timeout,
            identity,
            Socket::new,
        )
        .await?;
        // A tenth of jitter: connections made together do not end together.
        let age = route.max_age.mul_f64(0.9 + 0.2 * fastrand::f64());
        let expires = tokio::time::Instant::now() + age;
        let connection = tunnel::Connection::new(made.stream, Some(made.peer), made.generation, expires);
        Ok((connection, true))
    }

    /// Takes back a connection whose stream has ended well.
    pub fn put_back_tunnel(&self, connection: tunnel::Connection, ending: Option<tunnel::Ending>) {
        self.tunnels.put_back(connection, ending);
    }

    /// A stream has begun to end: the next one may wait for its connection.
    #[must_use]
    pub fn tunnel_ending(&self) -> tunnel::Ending {
        self.tunnels.ending()
    }

    async fn send_http1(
        self: &Arc<Self>,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        loop {
            let (connection, fresh) = match self.take_idle() {
                Some(connection) => (connection, false),
                // Boxed: rare, and otherwise part of every request.
                None => match Box::pin(self.counted_open(self.open_http1())).await {
                    Ok(connection) => (connection, true),
                    Err(source) => return Err(SendError::never(source)),
                },
            };
            let mut lease = Lease::new(self.clone(), Held::Http1(Some(connection)));
            let Some(connection) = lease.http1() else {
                return Err(SendError::unsent("the connection is gone".into()));
            };
            let Some(taken) = request.take() else {
                return Err(SendError::unsent("there is no request".into()));
            };
            match connection.send(taken).await {
                Ok(response) => return Ok((response, lease)),
                Err(mut error) => match error.take_message() {
                    // A pooled connection that ended before it took the request says nothing of the endpoint.
                    Some(back) => {
                        *request = Some(back);
                        if fresh {
                            return Err(SendError::unsent(error.into_error().into()));
                        }
                    }
                    None => return Err(SendError::after(error.into_error())),
                },
            }
        }
    }

    async fn send_http2(
        self: &Arc<Self>,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        // Connections that close under our hands are replaced; each round retires one, so this ends.
        for _ in 0..3 {
            let (connection, fresh) = match self.take_shared() {
                Some(connection) => (connection, false),
                None => match Box::pin(self.counted_open(self.open_http2())).await {
                    Ok(connection) => (connection, true),
                    Err(source) => return Err(SendError::never(source)),
                },
            };
            let mut sender = connection.sender();
            let lease = Lease::new(self.clone(), Held::Http2(connection));
            let Some(taken) = request.take() else {
                return Err(SendError::unsent("there is no request".into()));
            };
            match sender.try_send_request(taken).await {
                Ok(response) => return Ok((response, lease)),
                Err(mut error) => match error.take_message() {
                    Some(back) => {
                        *request = Some(back);
                        if fresh {
                            return Err(SendError::unsent(error.into_error().into()));
                        }
                    }
                    None => return Err(SendError::after(error.into_error())),
                },
            }
        }
        Err(SendError::unsent(
            "every connection closed before it took the request".into(),
        ))
    }

    /// Counts the request while its connection is opened: others that come meanwhile must see that it is here, or a
    /// burst goes to one endpoint whole.
    async fn counted_open<T>(self: &Arc<Self>, open: impl Future<Output = T>) -> T {
        let _here = Lease::counted(self.clone());
        open.await
    }

    fn take_idle(&self) -> Option<http1::Connection> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        contain::here(Place::Lock);
        let mut waiting: Option<http1::Connection> = None;
        let mut found = None;
        while let Some(connection) = idle.pop() {
            if connection.usable(now) {
                found = Some(connection);
                break;
            }
            // Its last answer has been read but its task has not run yet: keep one of these.
            if !connection.sender.is_closed()
                && now.saturating_duration_since(connection.idle_since) < http1::IDLE
                && waiting.is_none()
                && !connection.sender.is_ready()
            {
                waiting = Some(connection);
            }
        }
        idle.extend(waiting);
        found
    }

    pub(super) fn put_back(&self, mut connection: http1::Connection, now: Instant) {
        if connection.sender.is_closed() {
            return;
        }
        connection.idle_since = now;
        let mut idle = self.idle.lock();
        if self.route.keep && idle.len() < http1::KEEP {
            idle.push(connection);
        }
    }

    async fn open_http1(&self) -> Result<http1::Connection, Unconnected> {
        let stream = self.connect().await?;
        http1::Connection::handshake(stream, self.shared.stats.clone(), self.counted())
            .await
            .map_err(|e| Unconnected::Mute(self.route.address, e.into()))
    }

    /// A connection that takes another stream; none when another connection has to be opened.
    fn take_shared(&self) -> Option<Arc<http2::Connection>> {
        let now = Instant::now();
        let generation = self.generation();
        let mut streams = self.streams.lock();
        contain::here(Place::Lock);
        streams.retain(|c| !c.retired(now, generation));
        let mut usable = streams.iter().filter(|c| c.usable());
        let first = usable.next()?;
        if !first.is_full() {
            return Some(first.clone());
        }
        // One connection's throughput is used up: its socket takes no more bytes.
        match usable.find(|c| !c.is_full()) {
            Some(other) => Some(other.clone()),
            None if streams.len() < SIDE_BY_SIDE => None,
            None => Some(first.clone()),
        }
    }

    /// The generation that connections must have.
    fn generation(&self) -> u64 {
        match self.route.security {
            Security::Mutual(_) => self.shared.identity.generation(),
            Security::Plain | Security::Impossible(_) => 0,
        }
    }

    /// Opens a shared connection, one at a time.
    async fn open_http2(self: &Arc<Self>) -> Result<Arc<http2::Connection>, Unconnected> {
        let (told, made) = oneshot::channel();
        let this = self.clone();
        // A task of its own, bounded by the connect time-out: a handshake that takes longer than one request
        // may wait is there for the next, instead of being begun anew by each.
        tokio::spawn(async move {
            let _one = this.dialling.lock().await;
            // Behind others who failed: nobody waits any more.
            if told.is_closed() {
                return;
            }
            let made = match this.take_shared() {
                Some(meanwhile) => Ok(meanwhile),
                None => this.dial_http2().await,
            };
            // Whoever asked may be gone; the connection is kept for others.
            drop(told.send(made));
        });
        made.await
            .unwrap_or_else(|panicked| Err(Unconnected::Mute(self.route.address, panicked.into())))
    }

    async fn dial_http2(&self) -> Result<Arc<http2::Connection>, Unconnected> {
        let route = &self.route;
        // A tenth of jitter: connections made together do not end together.
        let mut settings = http2::Settings {
            meshed: route.wire == Wire::Mesh,
            age: route.max_age.mul_f64(0.9 + 0.2 * fastrand::f64()),
            limit: route.connect_timeout,
            generation: 0,
        };
        let connection = match &route.security {
            Security::Mutual(service) => {
                let identity = &self.shared.identity;
                let made = secured(
                    route.address,
                    service,
                    Alpn::H2,
                    route.connect_timeout,
                    identity,
                    |io| io,
                )
                .await?;
                // Streams that live longer than the peer's certificate would be cut: begin them elsewhere.
                let left = made
                    .peer
                    .not_after
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                settings.age = settings.age.min(left.mul_f64(0.8));
                settings.generation = made.generation;
                let (shared, peer) = (self.shared.clone(), made.peer);
                let barred = async move { barred(&shared.identity, &peer).await.to_string() };
                let stats = self.shared.stats.clone();
                http2::Connection::handshake(made.stream, &settings, stats, barred, self.counted()).await
            }
            Security::Plain | Security::Impossible(_) => {
                let stream = self.connect().await?;
                let stats = self.shared.stats.clone();
                http2::Connection::handshake(stream, &settings, stats, std::future::pending(), self.counted()).await
            }
        };
        let connection = connection.map_err(|error| self.not_begun(error))?;
        self.streams.lock().push(connection.clone());
        Ok(connection)
    }

    fn not_begun(&self, error: NotBegun) -> Unconnected {
        let address = self.route.address;
        match (error, &self.route.security) {
            (NotBegun::Tls(error), Security::Mutual(service)) => Unconnected::Tls {
                service: service.clone(),
                address,
                error,
            },
            (NotBegun::Tls(error), _) => Unconnected::Mute(address, error.into()),
            (NotBegun::Other(source), _) => Unconnected::Mute(address, source),
        }
    }

    /// Counts an open connection until the returned closure runs.
    fn counted(&self) -> impl FnOnce() + Send + 'static {
        self.shared.stats.add(Gauge::UpstreamConnections, 1);
        let counted = Counted(self.shared.stats.clone());
        move || drop(counted)
    }

    /// True while a connection is kept.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        !self.idle.lock().is_empty() || !self.streams.lock().is_empty()
    }

    /// Closes connections that nobody used for `idle`. Called now and then, not per request.
    pub fn prune(&self, now: Instant, idle: Duration) {
        let generation = self.generation();
        self.tunnels.prune(generation);
        self.idle
            .lock()
            .retain(|c| now.saturating_duration_since(c.idle_since) <= http1::IDLE && !c.sender.is_closed());
        let mut streams = self.streams.lock();
        contain::here(Place::Pool);
        streams.retain(|c| {
            let unused = c.streams.load(Relaxed) == 0 && now.saturating_duration_since(*c.last_used.lock()) > idle;
            !(unused || c.retired(now, generation))
        });
    }
}

/// One open connection; counted until dropped, so that a panic of its task counts as its end too.
struct Counted(Arc<Stats>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sub(Gauge::UpstreamConnections, 1);
    }
}

impl SendError {
    fn never(source: Unconnected) -> Self {
        Self {
            unconnected: Some(source.reason()),
            ..Self::unsent(source.into())
        }
    }

    fn unsent(source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self {
            failure: Failure::NeverSent,
            unconnected: None,
            source,
        }
    }

    fn after(error: hyper::Error) -> Self {
        Self {
            failure: classify(&error),
            unconnected: None,
            source: error.into(),
        }
    }
}

/// `REFUSED_STREAM`, or a stream above the last id of the peer's GOAWAY: h2 gives the peer's GOAWAY
/// as the error of exactly those streams; the others get an I/O error when the connection ends.
fn classify(error: &hyper::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(h2) = e.downcast_ref::<h2::Error>() {
            let refused = h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            let gone = h2.is_go_away() && h2.is_remote();
            return if refused || gone {
                Failure::Refused
            } else {
                Failure::MaybeProcessed
            };
        }
        cause = e.source();
    }
    Failure::MaybeProcessed
}
