//! One endpoint as one worker sees it: its connections, its load, how a request gets there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::dial::{DialError, dial};
use super::lease::{Held, Lease};
use super::{http1, http2};
use crate::balance::ewma::PeakEwma;
use crate::contain::{self, Place};
use crate::forward::body::Body;
use crate::observe::{Gauge, Stats};
use crate::policy::retry::Failure;

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

/// One endpoint as one worker sees it.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub wire: Wire,
    /// Relative share of requests.
    pub weight: u32,
    /// Requests and opaque connections without an end yet.
    pub(super) in_flight: AtomicU32,
    load: Mutex<PeakEwma>,
    idle: Mutex<Vec<http1::Connection>>,
    shared: Mutex<Vec<Arc<http2::Connection>>>,
    /// One dial at a time for a shared connection: a burst makes one connection, not many.
    dialling: tokio::sync::Mutex<()>,
    connect_timeout: Duration,
    max_age: Duration,
    stats: Arc<Stats>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub struct SendError {
    /// Whether it may have been processed.
    pub failure: Failure,
    /// The request, when not one byte of it was accepted.
    pub request: Option<Request<Body>>,
    /// No connection could be made at all.
    pub unconnected: bool,
    /// What happened.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Upstream {
    /// An endpoint without connections; nothing is dialled before the first request.
    #[must_use]
    pub fn new(
        address: SocketAddr,
        wire: Wire,
        weight: u32,
        connect_timeout: Duration,
        max_age: Duration,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            address,
            wire,
            weight,
            in_flight: AtomicU32::new(0),
            load: Mutex::new(PeakEwma::new(Instant::now())),
            idle: Mutex::new(Vec::new()),
            shared: Mutex::new(Vec::new()),
            dialling: tokio::sync::Mutex::new(()),
            connect_timeout,
            max_age,
            stats,
        }
    }

    /// Peak-EWMA latency times requests; lower is better.
    #[must_use]
    pub fn load(&self, now: Instant) -> f64 {
        self.load.lock().load(now, self.in_flight.load(Relaxed), self.weight)
    }

    /// Takes in how long the head of an answer took.
    pub fn observe(&self, now: Instant, took: Duration) {
        self.load.lock().observe(now, took);
    }

    /// Counts a failure as a slow answer, so that other endpoints are preferred for a while.
    pub fn penalize(&self, now: Instant) {
        self.load.lock().penalize(now, Duration::from_secs(1));
    }

    /// Sends one request and waits for the head of its answer.
    ///
    /// # Errors
    /// With the request, when not one byte was accepted.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream or closes the connection: the upstream sees it.
    pub async fn send(self: &Arc<Self>, request: Request<Body>) -> Result<(Response<Incoming>, Lease), SendError> {
        match self.wire {
            Wire::Http1 => self.send_http1(request).await,
            Wire::Http2 | Wire::Mesh => self.send_http2(request).await,
        }
    }

    /// Connects an opaque stream.
    ///
    /// # Errors
    /// When nobody accepts within the connect time-out.
    pub async fn connect(&self) -> Result<tokio::net::TcpStream, DialError> {
        dial(self.address, self.connect_timeout).await
    }

    async fn send_http1(
        self: &Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        loop {
            let (connection, fresh) = match self.take_idle() {
                Some(connection) => (connection, false),
                // Boxed: rare, and otherwise part of every request.
                None => match Box::pin(self.open_http1()).await {
                    Ok(connection) => (connection, true),
                    Err(source) => return Err(SendError::never(request, source)),
                },
            };
            let mut lease = Lease::new(self.clone(), Held::Http1(Some(connection)));
            let Some(connection) = lease.http1() else {
                return Err(SendError::never(request, "the connection is gone".into()));
            };
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, lease)),
                Err(mut error) => match error.take_message() {
                    // A pooled connection that ended before it took the request says nothing of the endpoint.
                    Some(back) if !fresh => request = back,
                    Some(back) => {
                        return Err(SendError {
                            unconnected: false,
                            ..SendError::never(back, error.into_error().into())
                        });
                    }
                    None => return Err(SendError::after(error.into_error())),
                },
            }
        }
    }

    async fn send_http2(
        self: &Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        // Connections that close under our hands are replaced; each round retires one, so this ends.
        for _ in 0..3 {
            let (connection, fresh) = match self.take_shared() {
                Some(connection) => (connection, false),
                None => match Box::pin(self.open_http2()).await {
                    Ok(connection) => (connection, true),
                    Err(source) => return Err(SendError::never(request, source)),
                },
            };
            let mut sender = connection.sender();
            let lease = Lease::new(self.clone(), Held::Http2(connection));
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, lease)),
                Err(mut error) => match error.take_message() {
                    Some(back) if !fresh => request = back,
                    Some(back) => {
                        return Err(SendError {
                            unconnected: false,
                            ..SendError::never(back, error.into_error().into())
                        });
                    }
                    None => return Err(SendError::after(error.into_error())),
                },
            }
        }
        Err(SendError::never(
            request,
            "every connection closed before it took the request".into(),
        ))
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

    pub(super) fn put_back(&self, mut connection: http1::Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        if idle.len() < http1::KEEP {
            idle.push(connection);
        }
    }

    async fn open_http1(&self) -> Result<http1::Connection, Box<dyn std::error::Error + Send + Sync>> {
        let stream = dial(self.address, self.connect_timeout).await?;
        Ok(http1::Connection::handshake(stream, self.stats.clone(), self.counted()).await?)
    }

    fn take_shared(&self) -> Option<Arc<http2::Connection>> {
        let now = Instant::now();
        let mut shared = self.shared.lock();
        contain::here(Place::Lock);
        shared.retain(|c| !c.retired(now));
        shared.iter().find(|c| c.usable(now)).cloned()
    }

    async fn open_http2(&self) -> Result<Arc<http2::Connection>, Box<dyn std::error::Error + Send + Sync>> {
        let _one = self.dialling.lock().await;
        if let Some(made_meanwhile) = self.take_shared() {
            return Ok(made_meanwhile);
        }
        let stream = dial(self.address, self.connect_timeout).await?;
        // A tenth of jitter: connections made together do not end together.
        let age = self.max_age.mul_f64(0.9 + 0.2 * fastrand::f64());
        let connection = http2::Connection::handshake(
            stream,
            self.wire == Wire::Mesh,
            age,
            self.connect_timeout,
            self.counted(),
        )
        .await?;
        self.shared.lock().push(connection.clone());
        Ok(connection)
    }

    /// Counts an open connection until the returned closure runs.
    fn counted(&self) -> impl FnOnce() + Send + 'static {
        self.stats.add(Gauge::UpstreamConnections, 1);
        let counted = Counted(self.stats.clone());
        move || drop(counted)
    }

    /// True while a connection is kept.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        !self.idle.lock().is_empty() || !self.shared.lock().is_empty()
    }

    /// Closes connections that nobody used for `idle`. Called now and then, not per request.
    pub fn prune(&self, now: Instant, idle: Duration) {
        self.idle
            .lock()
            .retain(|c| now.saturating_duration_since(c.idle_since) <= http1::IDLE && !c.sender.is_closed());
        let mut shared = self.shared.lock();
        contain::here(Place::Pool);
        shared.retain(|c| {
            let unused = c.streams.load(Relaxed) == 0 && now.saturating_duration_since(*c.last_used.lock()) > idle;
            !(unused || c.retired(now))
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
    fn never(request: Request<Body>, source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self {
            failure: Failure::NeverSent,
            request: Some(request),
            unconnected: true,
            source,
        }
    }

    fn after(error: hyper::Error) -> Self {
        Self {
            failure: classify(&error),
            request: None,
            unconnected: false,
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
