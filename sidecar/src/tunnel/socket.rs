//! TCP sockets as the tunnel needs them: watched for errors while nobody reads, and reset unless told
//! otherwise.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::detect::Prefixed;

/// Unacknowledged bytes after which a peer on another machine is dead (RFC 5482). The system counts a
/// peer that lives and takes nothing (a closed window) too, so this is also how long an app may stand
/// still while the other one has more to say; minutes, because a person may be paging through it.
const PEER_TIMEOUT: Duration = Duration::from_secs(600);

/// A TCP socket that somebody else can watch while it is read and written.
#[derive(Debug)]
pub struct Socket {
    io: Arc<TcpStream>,
    written: AtomicU64,
}

/// Sees a socket's error while nobody reads or writes it, because that direction is blocked.
#[derive(Debug, Clone)]
pub(super) struct Watcher(Arc<TcpStream>);

impl Socket {
    /// Takes over a socket as it is.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self {
            io: Arc::new(stream),
            written: AtomicU64::new(0),
        }
    }

    /// Takes over a socket to or from an app of this machine: an app may stand still as long as it likes.
    #[must_use]
    pub fn of_app(stream: TcpStream) -> Self {
        // A machine that is up answers for its own sockets.
        drop(SockRef::from(&stream).set_tcp_user_timeout(None));
        Self::new(stream)
    }

    /// From now on streams flow to or from another sidecar.
    pub(super) fn bears_streams(&self) {
        drop(SockRef::from(&*self.io).set_tcp_user_timeout(Some(PEER_TIMEOUT)));
    }

    /// The socket itself.
    #[must_use]
    pub fn get_ref(&self) -> &TcpStream {
        &self.io
    }

    /// Bytes that the system has taken from here.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    pub(super) fn watcher(&self) -> Watcher {
        Watcher(self.io.clone())
    }

    /// From now on closing it, however that happens, resets it.
    pub(super) fn guard(&self) {
        drop(SockRef::from(&*self.io).set_linger(Some(Duration::ZERO)));
    }

    /// From now on closing it is a clean end.
    pub(super) fn release(&self) {
        drop(SockRef::from(&*self.io).set_linger(None));
    }

    /// Ends the writing half, below TLS.
    pub(super) fn end(&self) {
        drop(SockRef::from(&*self.io).shutdown(std::net::Shutdown::Write));
    }

    /// Reads by `read`, which says how many bytes there was room for. A short read means that there is
    /// no more, which saves the system call that would say so.
    fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut read: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_read_ready(cx))?;
            let mut got = None;
            let tried = self.io.try_io(Interest::READABLE, || {
                let n = read(&self.io)?;
                got = Some(n);
                // 0 is the end, which stays readable.
                if 0 < n && n < room {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (got, tried) {
                (Some(n), _) => return Poll::Ready(Ok(n)),
                (None, Err(e)) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                (None, Err(e)) => return Poll::Ready(Err(e)),
                (None, Ok(())) => return Poll::Ready(Ok(0)),
            }
        }
    }
}

impl Watcher {
    /// Waits until the socket has an error: the peer reset it, or it timed out. A peer that only ended
    /// its direction is no error.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn broken(self) -> io::Error {
        match self.0.ready(Interest::ERROR).await {
            Err(error) => error,
            Ok(_) => match self.0.take_error() {
                Ok(Some(error)) | Err(error) => error,
                // Somebody who read has taken it.
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            },
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        self.poll_read_with(cx, room, |io| io.try_read_buf(buf)).map_ok(drop)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_write_ready(cx))?;
            match self.io.try_write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.written.fetch_add(n as u64, Relaxed);
                    return Poll::Ready(Ok(n));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_write_ready(cx))?;
            match self.io.try_write_vectored(bufs) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.written.fetch_add(n as u64, Relaxed);
                    return Poll::Ready(Ok(n));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.io).shutdown(std::net::Shutdown::Write))
    }
}

/// The app's end of a stream.
pub trait App: AsyncRead + AsyncWrite + Unpin + Send {
    /// Its socket, when there is one to watch and to reset.
    fn socket(&self) -> Option<&Socket> {
        None
    }

    /// Reads into `gaps`, one after the other; 0 is the end.
    fn poll_read_gaps(&mut self, cx: &mut Context<'_>, gaps: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let Some(first) = gaps.first_mut() else {
            return Poll::Ready(Ok(0));
        };
        let mut space = ReadBuf::new(first);
        ready!(Pin::new(self).poll_read(cx, &mut space))?;
        Poll::Ready(Ok(space.filled().len()))
    }
}

impl App for Socket {
    fn socket(&self) -> Option<&Socket> {
        Some(self)
    }

    fn poll_read_gaps(&mut self, cx: &mut Context<'_>, gaps: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let room = gaps.iter().map(|gap| gap.len()).sum();
        self.poll_read_with(cx, room, |io| io.try_read_vectored(gaps))
    }
}

impl<A: App> App for Prefixed<A> {
    fn socket(&self) -> Option<&Socket> {
        self.get_ref().socket()
    }
}

/// An app's end that is no socket of its own.
#[derive(Debug)]
pub struct Plain<I>(pub I);

impl<I: AsyncRead + AsyncWrite + Unpin + Send> App for Plain<I> {}

impl<I: AsyncRead + Unpin> AsyncRead for Plain<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Plain<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
