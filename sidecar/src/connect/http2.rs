//! HTTP/2 connections: shared, and more of them when one is used up.
//!
//! Streams allowed on a connection times the stream window never exceed the connection window:
//! clients that stopped reading fill their own streams and cannot hold up another request. Beyond
//! that many streams another connection opens. The connection window also sets h2's budget for small
//! DATA frames (half of it), which a chatty gRPC stream would otherwise exhaust.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::boxed::Boxed;
use super::frames::Frames;
use crate::forward::body::Body;
use crate::identify::TlsError;
use crate::observe::{Gauge, Stats};

/// Streams that one connection carries at a time.
pub const MAX_STREAMS: usize = 128;
/// Bytes that a peer may send on one stream before somebody reads them.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes that a peer may send on one connection before somebody reads them.
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Longest frame between sidecars: with its header of 9 bytes (RFC 9113 §4.1) it fills two TLS records exactly
/// (RFC 8446 §5.1). Frames of 16 KiB would leave 9 bytes for a record of their own each. Half the stream window,
/// so that one frame is on its way while the other is read.
pub const FRAME: u32 = 2 * (1 << 14) - 9;
/// Bytes kept for one stream that the peer does not take.
pub const SEND_BUFFER: usize = 64 * 1024;

const _: () = assert!(
    MAX_STREAMS * (STREAM_WINDOW as usize) <= CONNECTION_WINDOW as usize,
    "streams must not starve each other"
);

/// Why a connection did not begin to speak HTTP/2.
#[derive(Debug)]
pub(super) enum NotBegun {
    /// TLS says why: a client hears only at its first read that its certificate was refused (RFC 8446 §4.4.2).
    Tls(TlsError),
    /// Anything else.
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for NotBegun {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// What a connection is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// The peer is a sidecar: dead connections are found by pings. An app may refuse pings (traps: gRPC
    /// servers do).
    pub(super) meshed: bool,
    /// How long it takes new streams.
    pub(super) age: Duration,
    /// How long the peer may take to begin.
    pub(super) limit: Duration,
    /// The generation of the own identity; 0 for plain connections.
    pub(super) generation: u64,
}

/// A shared connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http2::SendRequest<Body>,
    pub(super) streams: AtomicUsize,
    pub(super) last_used: parking_lot::Mutex<Instant>,
    /// Set while the socket takes no more bytes.
    full: Arc<AtomicBool>,
    expires: Instant,
    generation: u64,
}

impl Connection {
    /// Speaks HTTP/2 by prior knowledge over a fresh connection. It is cut, with its streams, when
    /// `barred` says why.
    pub(super) async fn handshake<S>(
        stream: S,
        settings: &Settings,
        stats: Arc<Stats>,
        barred: impl Future<Output = String> + Send + 'static,
        on_close: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, NotBegun>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http2::Builder::new(Boxed);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(64 * 1024);
        if settings.meshed {
            builder
                .max_frame_size(FRAME)
                .keep_alive_interval(Duration::from_secs(15))
                .keep_alive_timeout(Duration::from_secs(10));
        }
        let (told, greeted) = oneshot::channel();
        let full = Arc::new(AtomicBool::new(false));
        let cut = Arc::new(Cut::default());
        let stream = Watched {
            cut: cut.clone(),
            stream,
            // The first bytes are the server's SETTINGS (RFC 9113 §3.4). Nobody waits for an app's.
            greeting: Some(told),
            full: full.clone(),
            counted: Box::new(Counted {
                frames: Frames::of_server(),
                began: Instant::now(),
                stats,
            }),
        };
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // Owned by the connection itself: it ends with the socket or with the last sender and stream.
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "http/2 upstream connection ended");
                },
                why = barred => {
                    tracing::warn!(why, "a connection to a peer was cut");
                    cut.now();
                }
            }
            on_close();
        });
        if settings.meshed {
            // A sidecar that is leaving may never accept what its kernel accepted for it. Until its
            // SETTINGS tell that somebody is there nothing is sent, and so nothing is lost.
            if let Some(error) = tokio::time::timeout(settings.limit, greeted).await?? {
                return Err(NotBegun::Tls(error));
            }
        }
        let now = Instant::now();
        Ok(Arc::new(Self {
            sender,
            streams: AtomicUsize::new(0),
            last_used: parking_lot::Mutex::new(now),
            full,
            expires: now + settings.age,
            generation: settings.generation,
        }))
    }

    /// True when another stream may start on a connection that is not retired.
    pub(super) fn usable(&self) -> bool {
        self.streams.load(Relaxed) < MAX_STREAMS
    }

    /// True while the socket takes no more bytes.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// True when nothing will start any more, because of its age or because the own identity or what is
    /// trusted is another than `generation`; the connection ends after its last stream.
    pub(super) fn retired(&self, now: Instant, generation: u64) -> bool {
        self.sender.is_closed() || now >= self.expires || self.generation != generation
    }

    /// A sender for one request.
    pub(super) fn sender(&self) -> http2::SendRequest<Body> {
        self.sender.clone()
    }
}

/// Ends a connection whose streams hyper would see through to their ends.
#[derive(Debug, Default)]
struct Cut {
    done: AtomicBool,
    reader: AtomicWaker,
}

impl Cut {
    fn now(&self) {
        self.done.store(true, Relaxed);
        self.reader.wake();
    }
}

/// A stream that tells of its first byte, and of a socket that takes no more.
#[derive(Debug)]
struct Watched<S> {
    stream: S,
    cut: Arc<Cut>,
    greeting: Option<oneshot::Sender<Option<TlsError>>>,
    full: Arc<AtomicBool>,
    /// Boxed: hyper copies the stream.
    counted: Box<Counted>,
}

/// What the server sends, counted: an app or a peer is trusted no more than a client.
#[derive(Debug)]
struct Counted {
    frames: Frames,
    began: Instant,
    stats: Arc<Stats>,
}

impl Counted {
    fn feed(&mut self, new: &[u8]) -> io::Result<()> {
        self.frames.feed(new, self.began.elapsed()).map_err(|flood| {
            self.stats.add(Gauge::UpstreamsEnded, 1);
            let connections = self.stats.get(Gauge::UpstreamsEnded);
            // The more there are, the fewer lines: the log is not theirs to fill.
            if connections.is_power_of_two() {
                tracing::warn!(
                    connections,
                    "an HTTP/2 connection to an app or a peer is ended: {flood}"
                );
            }
            io::Error::other(flood)
        })
    }
}

impl<S> Watched<S> {
    fn wrote(&mut self, result: &Poll<io::Result<usize>>) {
        self.full.store(result.is_pending(), Relaxed);
        if let Poll::Ready(Ok(n)) = result {
            self.counted.frames.sent(*n);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        self.cut.reader.register(cx.waker());
        if self.cut.done.load(Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if self.greeting.is_some() {
            let refused = result.as_ref().err().and_then(TlsError::of);
            if refused.is_some() || buf.filled().len() > before {
                let _waiting = self.greeting.take().map(|told| told.send(refused));
            }
        }
        if let Some(new) = buf.filled().get(before..).filter(|new| !new.is_empty()) {
            self.counted.feed(new)?;
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
