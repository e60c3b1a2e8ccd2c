//! Serves HTTP on one connection, with the limits, the maximum age and the drain that all share.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_proto::model::Limits;
use tokio::io::{AsyncRead, AsyncWrite};

use super::head::Watch;
use super::linger::Lingering;
use crate::connect::{CONNECTION_WINDOW, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::drain::{Drain, Phase};
use crate::forward::body::Body;
use crate::forward::tap::Tap;

/// Answers one request. `Err` resets an HTTP/2 stream with the reason in it and closes an HTTP/1 connection.
pub trait Serve: Clone + Send + Sync + 'static {
    /// Answers one request; `watch` is there on HTTP/1.
    fn serve(
        &self,
        request: Request<Incoming>,
        watch: Option<Arc<Watch>>,
    ) -> impl Future<Output = Result<Response<Body>, h2::Error>> + Send + 'static;
}

#[derive(Debug, Clone)]
struct Bridge<S> {
    inner: S,
    watch: Option<Arc<Watch>>,
}

impl<S: Serve> Service<Request<Incoming>> for Bridge<S> {
    type Response = Response<Body>;
    type Error = h2::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, h2::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // Boxed once a request: hyper keeps the future inline in the connection otherwise, and an
        // idle connection would hold room for the largest state of a request.
        Box::pin(self.inner.serve(request, self.watch.clone()))
    }
}

/// How a connection is bounded.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Limits on what the client may ask.
    pub limits: Limits,
    /// True when clients are sidecars: their upgrades come as extended CONNECT.
    pub meshed: bool,
}

/// Serves HTTP/1.0 and 1.1 until the connection ends.
pub async fn http1<I, S>(io: I, service: S, bounds: &Bounds, drain: &Drain) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Serve,
{
    let watch = Arc::new(Watch::default());
    let seen = watch.clone();
    let limits = &bounds.limits;
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .half_close(false)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_header_bytes.max(8192))
        .serve_connection(
            TokioIo::new(Lingering::new(Tap::new(io, move |bytes: &[u8]| seen.saw(bytes)))),
            Bridge {
                inner: service,
                watch: Some(watch.clone()),
            },
        )
        .with_upgrades();
    tokio::pin!(connection);
    let mut draining = drain.watch();
    let started = tokio::time::Instant::now();
    let age = jittered(limits.max_connection_age);
    // One timer a connection looks at all its limits; exact times are not worth a timer each.
    let mut look = tokio::time::interval(
        limits
            .header_timeout
            .min(Duration::from_secs(10))
            .max(Duration::from_millis(100)),
    );
    look.reset();
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = draining.wait_for(|p| *p >= Phase::Closing), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.reached(Phase::Ended), if leaving => return Ok(()),
            _ = look.tick() => {
                let (head, idle) = watch.waiting();
                if head >= limits.header_timeout {
                    return Ok(());
                }
                if !leaving && (idle >= limits.idle_timeout || started.elapsed() >= age) {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Serves HTTP/2 by prior knowledge until the connection ends.
pub async fn http2<I, S>(io: I, service: S, bounds: &Bounds, drain: &Drain) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Serve,
{
    let limits = &bounds.limits;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(u32::try_from(MAX_STREAMS).ok())
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    if bounds.meshed {
        builder
            .enable_connect_protocol()
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
    }
    let connection = builder.serve_connection(
        TokioIo::new(Lingering::new(io)),
        Bridge {
            inner: service,
            watch: None,
        },
    );
    tokio::pin!(connection);
    let mut draining = drain.watch();
    let age = tokio::time::sleep(jittered(limits.max_connection_age));
    tokio::pin!(age);
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = draining.wait_for(|p| *p >= Phase::Closing), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.reached(Phase::Ended), if leaving => return Ok(()),
            () = age.as_mut(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A tenth more or less: connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}
