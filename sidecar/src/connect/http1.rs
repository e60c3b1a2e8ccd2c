//! HTTP/1 connections: a stack of idle ones, each checked for an end before reuse.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::forward::body::Body;
use crate::observe::{Gauge, Stats};

/// Idle connections are used no longer than this; below the 5 s after which common servers
/// (Node's default) close theirs, so that a request does not meet a closing socket.
pub(super) const IDLE: Duration = Duration::from_secs(4);
/// Unused for longer than this, a connection is looked at before it is used.
const RESTED: Duration = Duration::from_micros(100);
/// Idle connections kept an endpoint and worker.
pub(super) const KEEP: usize = 64;

/// A connection that can carry one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Body>,
    socket: Arc<TcpStream>,
    pub(super) idle_since: Instant,
}

impl Connection {
    /// Speaks HTTP/1 over a fresh connection.
    pub(super) async fn handshake(
        stream: TcpStream,
        stats: Arc<Stats>,
        on_close: impl FnOnce() + Send + 'static,
    ) -> hyper::Result<Self> {
        let socket = Arc::new(stream);
        let (sender, connection) = http1::Builder::new()
            .max_headers(256)
            .handshake(TokioIo::new(SharedSocket {
                socket: socket.clone(),
                stats,
            }))
            .await?;
        // Owned by the connection itself: it ends with the socket or with the last sender.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "http/1 upstream connection ended");
            }
            on_close();
        });
        Ok(Self {
            sender,
            socket,
            idle_since: Instant::now(),
        })
    }

    /// Sends a delayed acknowledgement now.
    pub(super) fn acknowledge(&self) {
        drop(SockRef::from(&*self.socket).set_tcp_quickack(true));
    }

    /// True when the connection may carry a request: ready, young enough, and the peer has neither
    /// ended it nor sent what nobody asked for.
    pub(super) fn usable(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.idle_since);
        if !self.sender.is_ready() || idle > IDLE {
            return false;
        }
        let mut byte = [MaybeUninit::uninit(); 1];
        let mut look = || SockRef::from(&*self.socket).peek(&mut byte);
        // In a busy pool the event loop's word is enough, and there is no system call. It may not have come
        // round since an end that came before this request, which a connection that rested may have had.
        let open = match idle > RESTED {
            true => look(),
            false => self.socket.try_io(Interest::READABLE, look),
        };
        matches!(open, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A socket that the pool can look at while hyper owns the connection.
#[derive(Debug)]
struct SharedSocket {
    socket: Arc<TcpStream>,
    stats: Arc<Stats>,
}

/// How 102 (Processing) and 103 (Early Hints) begin. hyper drops them; they are counted here, when a
/// read begins with one, because a callback would cost every request an allocation.
const INFORMATIONAL: [&[u8]; 2] = [b"HTTP/1.1 102", b"HTTP/1.1 103"];

impl AsyncRead for SharedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read_buf(buf) {
                Ok(n) => {
                    if n > 0 && buf.remaining() > 0 {
                        // The socket is empty now; saying so saves the read that would find it so.
                        drop(
                            self.socket
                                .try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into())),
                        );
                    }
                    let new = buf.filled().get(before..).unwrap_or_default();
                    if INFORMATIONAL.iter().any(|head| new.starts_with(head)) {
                        self.stats.add(Gauge::InformationalDropped, 1);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl SharedSocket {
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match send(&self.socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |s| s.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |s| s.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(
            match self.socket.try_io(Interest::WRITABLE, || {
                SockRef::from(&*self.socket).shutdown(std::net::Shutdown::Write)
            }) {
                // Not connected any more: the peer was faster.
                Err(e) if e.kind() != io::ErrorKind::NotConnected && e.kind() != io::ErrorKind::WouldBlock => Err(e),
                _ => Ok(()),
            },
        )
    }
}
