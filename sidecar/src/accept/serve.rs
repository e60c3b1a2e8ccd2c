//! Serves HTTP on one connection, with the limits, the maximum age and the drain that all share.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_proto::model::Limits;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::client::Client;
use super::gate::Gate;
use super::head::Watch;
use super::stream::{self, Streams};
use crate::connect::{CONNECTION_WINDOW, FRAME, Frames, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::contain::{self, Caught, Panicked, caught};
use crate::drain::{Drain, Phase};
use crate::forward::body::{Body, BodyError};
use crate::forward::chunk::Chunk;
use crate::observe::Stats;
use crate::reason::Reason;
use crate::respond::{self, Dress};

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
    gate: Gate,
}

impl<S: Serve> Service<Request<Incoming>> for Bridge<S> {
    type Response = Response<Answer>;
    type Error = h2::Error;
    type Future = Answering;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let watch = self.watch.clone();
        if let Some(watch) = &watch {
            watch.begin();
            if request.body().is_end_stream() {
                watch.read_whole();
            }
        }
        let no_trailers = self.gate.drops_trailers(&mut request);
        let work = match self.gate.refuses(&mut request) {
            None => caught(|| self.inner.serve(request, watch.clone())),
            Some((reason, detail)) => {
                let dress = Dress::of(request.headers());
                caught(move || std::future::ready(Ok(respond::answer(reason, dress, detail))))
            }
        };
        Answering {
            work,
            watch,
            no_trailers,
        }
    }
}

/// One request being answered. A panic in it costs this request: HTTP/1 answers 500 and closes, HTTP/2
/// resets this stream and the connection goes on.
#[derive(Debug)]
struct Answering {
    work: Caught<Result<Response<Body>, h2::Error>>,
    watch: Option<Arc<Watch>>,
    no_trailers: bool,
}

impl Future for Answering {
    type Output = Result<Response<Answer>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match ready!(Pin::new(&mut self.work).poll(cx)) {
            Ok(answer) => answer,
            Err(Panicked) if self.watch.is_some() => {
                let mut answer = respond::answer(Reason::Internal, Dress::Http, "");
                answer
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
                Ok(answer)
            }
            Err(Panicked) => Err(h2::Reason::INTERNAL_ERROR.into()),
        };
        let (watch, no_trailers) = (self.watch.take(), self.no_trailers);
        Poll::Ready(answer.map(|response| {
            if let Some(stall) = response.body().stall() {
                match &watch {
                    Some(watch) => watch.stalls(stall.clone()),
                    None => stream::tell(stall.clone()),
                }
            }
            response.map(|body| Answer {
                body,
                watch,
                no_trailers,
            })
        }))
    }
}

/// An answer's body, which tells the connection when it is done with.
#[derive(Debug)]
struct Answer {
    body: Body,
    watch: Option<Arc<Watch>>,
    no_trailers: bool,
}

impl hyper::body::Body for Answer {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Chunk>, BodyError>>> {
        // On HTTP/1 the connection's task polls this; on HTTP/2 the stream's own.
        let frame = contain::step(|| Pin::new(&mut self.body).poll_frame(cx))
            .unwrap_or_else(|Panicked| Poll::Ready(Some(Err(h2::Error::from(h2::Reason::INTERNAL_ERROR).into()))));
        match frame {
            Poll::Ready(Some(Ok(frame))) if self.no_trailers && frame.is_trailers() => Poll::Ready(None),
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.answered();
            if self.body.stall().is_some() {
                watch.stalls_no_more();
            }
        }
    }
}

/// The client's socket of an HTTP/1 connection that was upgraded, and what was read of it already.
///
/// # Errors
/// With the upgraded stream, when it is not a plain socket of HTTP/1.
pub fn socket(upgraded: Upgraded) -> Result<(TcpStream, Vec<u8>), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<Client<TcpStream>>>()?;
    let (stream, ahead) = parts.io.into_inner().into_parts();
    Ok((stream, [&*ahead, &*parts.read_buf].concat()))
}

/// How a connection is bounded.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Limits on what the client may ask.
    pub limits: Limits,
    /// True when clients are sidecars: their upgrades come as extended CONNECT.
    pub meshed: bool,
    /// Where refusals are counted.
    pub stats: Arc<Stats>,
    /// When clients are told to go.
    pub until: Phase,
}

/// How long an HTTP/1 connection is served without a request before it is put down.
const PUT_DOWN: Duration = Duration::from_secs(1);

/// Streams that a client may have reset before they were begun to be served; h2's own default.
const PENDING_RESETS: usize = 20;
/// Streams that a client may make us reset by errors of its own in one connection's life.
const ERRORS: usize = 256;

/// Serves HTTP/1.0 and 1.1 until the connection ends.
///
/// A connection without a request is put down: hyper's state and its two buffers of 8 KiB go, and come
/// back with the client's next byte. Thousands of idle clients then cost little. After `leave` the
/// connection takes no more requests.
pub async fn http1<I, S>(
    io: I,
    service: S,
    bounds: &Bounds,
    drain: &Drain,
    leave: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Serve,
{
    tokio::pin!(leave);
    let limits = &bounds.limits;
    let watch = Arc::new(Watch::default());
    let started = Instant::now();
    let age = jittered(limits.max_connection_age);
    let mut client = Client::http1(io, watch.clone());
    loop {
        let bridge = Bridge {
            inner: service.clone(),
            watch: Some(watch.clone()),
            gate: Gate::new(bounds),
        };
        client = match serve_http1(client, bridge, &watch, bounds, started + age, drain, leave.as_mut()).await? {
            Some(idle) => idle,
            None => return Ok(()),
        };
        let until = (Instant::now() + limits.idle_timeout).min(started + age);
        let awake = tokio::select! {
            // A request that has come is answered.
            biased;
            awake = client.awakened() => awake.unwrap_or(false),
            () = drain.reached(bounds.until) => false,
            () = leave.as_mut() => false,
            () = tokio::time::sleep_until(until) => false,
        };
        if !awake {
            // A failed shutdown means that the client was faster.
            drop(client.shutdown().await);
            return Ok(());
        }
    }
}

/// Serves until the connection ends, or is idle and given back.
async fn serve_http1<I, S>(
    client: Client<I>,
    bridge: Bridge<S>,
    watch: &Watch,
    bounds: &Bounds,
    until: Instant,
    drain: &Drain,
    mut leave: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Client<I>>, hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Serve,
{
    let limits = &bounds.limits;
    let mut connection = http1::Builder::new()
        .auto_date_header(false)
        .half_close(false)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_header_bytes.max(8192))
        .serve_connection(TokioIo::new(client), bridge)
        .with_upgrades();
    // hyper closes a connection on which nothing has come, under the hands of a client whose first request is on its way:
    // such a client is told with its answer, or put down soon. What comes wakes this task, and is looked at first.
    let told = async {
        drain.reached(bounds.until).await;
        std::future::poll_fn(|_| match watch.is_fresh() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    };
    tokio::pin!(told);
    // One timer a connection looks at all its limits; exact times are not worth a timer each.
    let mut look = tokio::time::interval(PUT_DOWN);
    look.reset();
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return ended.map(|()| None),
            () = told.as_mut(), if !leaving => {
                leaving = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            () = leave.as_mut(), if !leaving => {
                leaving = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            () = drain.reached(Phase::Ended), if leaving => return Ok(None),
            _ = look.tick() => {
                let (head, idle) = watch.waiting();
                if head >= limits.header_timeout || watch.is_stalled() {
                    return Ok(None);
                }
                if !leaving && Instant::now() >= until {
                    leaving = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                if !leaving && idle >= PUT_DOWN && watch.is_idle() {
                    break;
                }
            }
        }
    }
    Ok(connection.into_parts().map(|parts| {
        let mut client = parts.io.into_inner();
        client.put_back(parts.read_buf);
        client
    }))
}

/// Serves HTTP/2 by prior knowledge until the connection ends. After `leave` it takes no more requests.
pub async fn http2<I, S>(
    io: I,
    service: S,
    bounds: &Bounds,
    drain: &Drain,
    leave: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Serve,
{
    let limits = &bounds.limits;
    let mut builder = http2::Builder::new(Streams);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_streams.min(u32::try_from(MAX_STREAMS).unwrap_or(u32::MAX)))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERRORS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    if bounds.meshed {
        builder
            .enable_connect_protocol()
            .max_frame_size(FRAME)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
    }
    let frames = Frames::new(limits.max_resets, limits.max_control_frames);
    let connection = builder.serve_connection(
        TokioIo::new(Client::http2(io, frames, bounds)),
        Bridge {
            inner: service,
            watch: None,
            gate: Gate::new(bounds),
        },
    );
    tokio::pin!(connection);
    let mut draining = drain.watch();
    let age = tokio::time::sleep(jittered(limits.max_connection_age));
    tokio::pin!(age, leave);
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = draining.wait_for(|p| *p >= bounds.until), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.reached(Phase::Ended), if leaving => return Ok(()),
            () = leave.as_mut(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
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

#[cfg(test)]
mod tests;
