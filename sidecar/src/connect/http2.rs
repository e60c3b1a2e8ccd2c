//! HTTP/2 connections: shared, and more of them when one is used up.
//!
//! Streams allowed on a connection times the stream window never exceed the connection window:
//! clients that stopped reading fill their own streams and cannot hold up another request. Beyond
//! that many streams another connection opens. The connection window also sets h2's budget for small
//! DATA frames (half of it), which a chatty gRPC stream would otherwise exhaust.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::forward::body::Body;
use crate::forward::tap::Tap;

/// Streams that one connection carries at a time.
pub const MAX_STREAMS: usize = 128;
/// Bytes that a peer may send on one stream before somebody reads them.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes that a peer may send on one connection before somebody reads them.
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Bytes kept for one stream that the peer does not take.
pub const SEND_BUFFER: usize = 64 * 1024;

const _: () = assert!(
    MAX_STREAMS * (STREAM_WINDOW as usize) <= CONNECTION_WINDOW as usize,
    "streams must not starve each other"
);

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A shared connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http2::SendRequest<Body>,
    pub(super) streams: AtomicUsize,
    pub(super) last_used: parking_lot::Mutex<Instant>,
    expires: Instant,
}

impl Connection {
    /// Speaks HTTP/2 by prior knowledge over a fresh connection that lives for `age`, and is ready within `limit`. Between sidecars
    /// (`meshed`) dead connections are found by pings; an app may refuse pings (traps: gRPC servers do).
    pub(super) async fn handshake(
        stream: TcpStream,
        meshed: bool,
        age: Duration,
        limit: Duration,
        on_close: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, Failed> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(64 * 1024);
        if meshed {
            builder
                .keep_alive_interval(Duration::from_secs(15))
                .keep_alive_timeout(Duration::from_secs(10));
        }
        let (told, greeted) = oneshot::channel();
        let mut told = Some(told);
        let stream = Tap::new(stream, move |_: &[u8]| {
            // The first bytes are the server's SETTINGS (RFC 9113 §3.4). Nobody waits for an app's.
            let _waiting = told.take().map(|told| told.send(()));
        });
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // Owned by the connection itself: it ends with the socket or with the last sender and stream.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "http/2 upstream connection ended");
            }
            on_close();
        });
        if meshed {
            // A sidecar that is leaving may never accept what its kernel accepted for it. Until its
            // SETTINGS tell that somebody is there nothing is sent, and so nothing is lost.
            tokio::time::timeout(limit, greeted).await??;
        }
        let now = Instant::now();
        Ok(Arc::new(Self {
            sender,
            streams: AtomicUsize::new(0),
            last_used: parking_lot::Mutex::new(now),
            expires: now + age,
        }))
    }

    /// True when another stream may start.
    pub(super) fn usable(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now < self.expires && self.streams.load(Relaxed) < MAX_STREAMS
    }

    /// True when nothing will start any more; the connection ends after its last stream.
    pub(super) fn retired(&self, now: Instant) -> bool {
        self.sender.is_closed() || now >= self.expires
    }

    /// A sender for one request.
    pub(super) fn sender(&self) -> http2::SendRequest<Body> {
        self.sender.clone()
    }
}
