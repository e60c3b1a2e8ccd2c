//! HTTP/1 connections: a stack of idle ones. Each is asked for its end at the last moment before a request is
//! written, because a request that met a closed connection may have been read and is lost.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::forward::body::Body;
use crate::observe::{Gauge, Stats};

/// Idle connections are used no longer than this; below the 5 s after which common servers
/// (Node's default) close theirs, so that a request does not meet a closing socket.
pub(super) const IDLE: Duration = Duration::from_secs(4);
/// Bytes read at once, and of a head at most, as on HTTP/2: no more of a body can be on its way on a stream
/// (`STREAM_WINDOW`), and what is read waits here while the client does not take it. hyper's own number is 408 KiB, and
/// three times that is held for a client that has stopped reading.
const READ: usize = 64 * 1024;
/// Idle connections kept an endpoint and worker.
pub(super) const KEEP: usize = 64;

/// A connection that can carry one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Body>,
    socket: Arc<Socket>,
    pub(super) idle_since: Instant,
}

impl Connection {
    /// Speaks HTTP/1 over a fresh connection.
    pub(super) async fn handshake(
        stream: TcpStream,
        stats: Arc<Stats>,
        on_close: impl FnOnce() + Send + 'static,
    ) -> hyper::Result<Self> {
        let socket = Arc::new(Socket {
            stream,
            look: AtomicBool::new(false),
        });
        let (sender, connection) = http1::Builder::new()
            .max_headers(256)
            .max_buf_size(READ)
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
        drop(SockRef::from(&self.socket.stream).set_tcp_quickack(true));
    }

    /// True when the connection may carry a request: ready, young enough, and the peer has neither
    /// ended it nor sent what nobody asked for.
    pub(super) fn usable(&self, now: Instant) -> bool {
        if !self.sender.is_ready() || now.saturating_duration_since(self.idle_since) > IDLE {
            return false;
        }
        // The event loop's word is enough here, and without one there is no system call: `send` looks itself.
        let look = || self.socket.look();
        matches!(self.socket.stream.try_io(Interest::READABLE, look), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Hands the request to the connection, which gives it back when it has ended already.
    pub(super) fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>> + use<> {
        self.socket.look.store(true, Relaxed);
        self.sender.try_send_request(request)
    }
}

/// The socket of a connection, and what the pool wants of it.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// A request is about to be written: the next read asks the system itself.
    look: AtomicBool,
}

impl Socket {
    /// What a read would find, without the event loop's knowledge; nothing is taken.
    fn look(&self) -> io::Result<usize> {
        SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit(); 1])
    }
}

/// A socket that the pool can look at while hyper owns the connection.
#[derive(Debug)]
struct SharedSocket {
    socket: Arc<Socket>,
    stats: Arc<Stats>,
}

/// How 102 (Processing) and 103 (Early Hints) begin. hyper drops them; they are counted here, when a
/// read begins with one, because a callback would cost every request an allocation.
const INFORMATIONAL: [&[u8]; 2] = [b"HTTP/1.1 102", b"HTTP/1.1 103"];

impl AsyncRead for SharedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Socket { stream, look } = &*self.socket;
        loop {
            if stream.poll_read_ready(cx)?.is_pending() {
                // hyper reads before it takes a request, and gives that back when it finds an end. The event loop
                // tells of an end when it comes round, which on a busy worker is many requests later, and a
                // connection is idle for microseconds there. So each request costs one system call here.
                // Nothing can have come that somebody asked for, so bytes are an end as well.
                return match look.swap(false, Relaxed).then(|| self.socket.look()) {
                    None => Poll::Pending,
                    Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                    Some(Err(e)) => Poll::Ready(Err(e)),
                    Some(Ok(_)) => Poll::Ready(Ok(())),
                };
            }
            look.store(false, Relaxed);
            match stream.try_read_buf(buf) {
                Ok(n) => {
                    if n > 0 && buf.remaining() > 0 {
                        // The socket is empty now; saying so saves the read that would find it so.
                        drop(stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
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
            ready!(self.socket.stream.poll_write_ready(cx))?;
            match send(&self.socket.stream) {
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
            match self.socket.stream.try_io(Interest::WRITABLE, || {
                SockRef::from(&self.socket.stream).shutdown(std::net::Shutdown::Write)
            }) {
                // Not connected any more: the peer was faster.
                Err(e) if e.kind() != io::ErrorKind::NotConnected && e.kind() != io::ErrorKind::WouldBlock => Err(e),
                _ => Ok(()),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// The event loop comes round when nothing else is to be done, which is never between the end and the request.
    #[tokio::test]
    async fn a_request_does_not_meet_an_end_that_the_event_loop_has_not_told_of() {
        for (used, ended) in [(false, true), (true, true), (false, false), (true, false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut app, _) = listener.accept().unwrap();
            let mut connection = Connection::handshake(stream, Arc::default(), || ()).await.unwrap();
            let request = || Request::get("/").header("host", "h").body(Body::empty()).unwrap();
            if used {
                let answer = connection.send(request());
                tokio::task::yield_now().await;
                assert!(app.read(&mut [0; 1024]).unwrap() > 0);
                app.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                assert_eq!(answer.await.unwrap().status(), 204);
                connection.sender.ready().await.unwrap();
            }
            if ended {
                drop(app);
            } else {
                app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                    .unwrap();
            }
            let mut error = connection.send(request()).await.unwrap_err();
            assert!(
                error.take_message().is_some(),
                "used {used}, ended {ended}: the request was written: {error:?}"
            );
        }
    }
}
