//! A client's stream: watched, closed slowly, and able to be put down and taken up again.
//!
//! Closing a socket that has unread bytes resets it, and a reset destroys what the peer has not read
//! yet: the GOAWAY that would have told it what was not processed (RFC 9113 §6.8), or an early answer
//! (RFC 9112 §9.6). So the writing half closes first, and what still arrives is read and thrown away
//! until the peer closes too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::head::Watch;
use super::serve::Bounds;
use crate::connect::Frames;
use crate::contain::{self, Place};
use crate::observe::{Gauge, Stats, held};

/// How long the peer may take to close its half.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client's stream.
#[derive(Debug)]
pub(super) struct Client<S> {
    stream: S,
    /// There on HTTP/1.
    watch: Option<Arc<Watch>>,
    /// There on HTTP/2.
    frames: Option<Box<Counted>>,
    /// Bytes read while nobody served the connection.
    ahead: Bytes,
    /// Set when the writing half is closed. Boxed: most connections never have it.
    closing: Option<Pin<Box<Sleep>>>,
}

/// An HTTP/2 client's frames, and how it takes what is sent to it.
#[derive(Debug)]
struct Counted {
    frames: Frames,
    began: Instant,
    most: usize,
    stats: Arc<Stats>,
    /// Since when the client takes less than comes, and the bytes that it has taken since.
    blocked: Option<Instant>,
    taken: usize,
}

/// How long a client may take little while the sidecar holds too much, and how much little is.
const LITTLE: (Duration, usize) = (Duration::from_secs(5), 64 * 1024);

/// A client that does not read what it asked for, while the sidecar holds too much.
#[derive(Debug, thiserror::Error)]
#[error("the client hardly reads what it asked for, and too many bytes wait")]
pub(super) struct Slow;

impl Counted {
    /// Counts a connection that is ended for what its client did, and says so now and then: h2 keeps
    /// nothing of an error but its text.
    fn ended(&self, why: impl std::error::Error + Send + Sync + 'static) -> io::Error {
        self.stats.add(Gauge::ClientsEnded, 1);
        let connections = self.stats.get(Gauge::ClientsEnded);
        // The more there are, the fewer lines: the log is not theirs to fill.
        if connections.is_power_of_two() {
            tracing::warn!(connections, "an HTTP/2 connection is ended: {why}");
        }
        io::Error::other(why)
    }

    /// Takes in a write's result. A client that reads nothing at all wakes nobody, and its socket ends by
    /// TCP_USER_TIMEOUT; this one finds those that read a little now and then.
    fn wrote(&mut self, result: &Poll<io::Result<usize>>) -> Result<(), Slow> {
        match result {
            Poll::Ready(Ok(n)) => {
                self.frames.sent(*n);
                self.taken = self.taken.saturating_add(*n);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let since = *self.blocked.get_or_insert_with(|| {
                    self.taken = 0;
                    Instant::now()
                });
                if self.taken >= LITTLE.1 {
                    (self.blocked, self.taken) = (None, 0);
                } else if since.elapsed() >= LITTLE.0 && held::over(self.most) {
                    return Err(Slow);
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Wraps the stream of an HTTP/1 client.
    pub(super) fn http1(stream: S, watch: Arc<Watch>) -> Self {
        Self::new(stream, Some(watch), None)
    }

    /// Wraps the stream of an HTTP/2 client, whose frames are counted.
    /// While the sidecar holds too much it has to take what it asked for.
    pub(super) fn http2(stream: S, frames: Frames, bounds: &Bounds) -> Self {
        let now = Instant::now();
        let counted = Counted {
            frames,
            began: now,
            most: bounds.limits.max_buffered_bytes,
            stats: bounds.stats.clone(),
            blocked: None,
            taken: 0,
        };
        Self::new(stream, None, Some(Box::new(counted)))
    }

    fn new(stream: S, watch: Option<Arc<Watch>>, frames: Option<Box<Counted>>) -> Self {
        Self {
            stream,
            watch,
            frames,
            ahead: Bytes::new(),
            closing: None,
        }
    }

    /// The stream, and what was read of it and not used.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.ahead)
    }

    /// Puts back bytes that were read and not used: the beginning of a head.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        if let (Some(watch), false) = (&self.watch, bytes.is_empty()) {
            watch.saw(&bytes);
        }
        self.ahead = bytes;
    }

    /// Waits for the client's next bytes; false when it has closed.
    ///
    /// # Cancel safety
    /// Safe: bytes are kept as soon as they are read.
    pub(super) async fn awakened(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| {
            if !self.ahead.is_empty() {
                return Poll::Ready(Ok(true));
            }
            let mut some = [0u8; 64];
            let mut space = ReadBuf::new(&mut some);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
            self.ahead = Bytes::copy_from_slice(space.filled());
            if let (Some(watch), false) = (&self.watch, self.ahead.is_empty()) {
                watch.saw(&self.ahead);
            }
            Poll::Ready(Ok(!self.ahead.is_empty()))
        })
        .await
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Some(watch) = &self.watch {
            watch.wrote(result.is_ready());
        }
        if let Some(counted) = &mut self.frames {
            counted.wrote(&result).map_err(|why| counted.ended(why))?;
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Client<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        contain::here(Place::Connection);
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(this.ahead.get(..n).unwrap_or_default());
            this.ahead.advance(n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let Some(new) = buf.filled().get(before..).filter(|new| !new.is_empty()) else {
            return Poll::Ready(Ok(()));
        };
        if let Some(watch) = &this.watch {
            watch.saw(new);
        }
        if let Some(counted) = &mut this.frames {
            let fed = counted.frames.feed(new, counted.began.elapsed());
            fed.map_err(|why| counted.ended(why))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Client<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(watch) = &this.watch {
            // Not idle any more: it must not be put down while it waits for the peer to close.
            watch.wrote(false);
        }
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let until = this
            .closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + PATIENCE)));
        let mut waste = [0u8; 4096];
        loop {
            let mut space = ReadBuf::new(&mut waste);
            match Pin::new(&mut this.stream).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) if !space.filled().is_empty() => {}
                // The peer has closed, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return until.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
