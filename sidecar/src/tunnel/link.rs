//! One TLS connection of the tunnel: frames in, frames out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use outrigger_proto::tunnel::{Event, Open, Refusal, Side, missing};
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt as _};

use super::pump::Broken;
use super::socket::Socket;
use crate::detect::Prefixed;
use crate::identify::TlsStream;

/// How long a connection that is closed in order is read, so that what was said last arrives.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long one that is broken off may take to deliver what the peer is ready to take. With the time
/// that a broken app is given at both sides it stays below a second.
const BREAK: Duration = Duration::from_millis(300);

/// A TLS connection: its plaintext is decoded where TLS has put it.
pub trait Wire: AsyncBufRead + AsyncWrite + Unpin + Send {
    /// The socket below, when there is one to watch and to reset.
    fn socket(&self) -> Option<&Socket>;
}

impl Wire for TlsStream<Prefixed<Socket>> {
    fn socket(&self) -> Option<&Socket> {
        Some(self.get_ref().0.get_ref())
    }
}

/// What has come.
#[derive(Debug)]
pub(super) enum Got {
    /// So many bytes for the app stand first in [`Link::payload`].
    Data(usize),
    Fin,
    Accepted,
    Rejected(Refusal),
    Unprocessed,
    Draining,
    Settled,
    Open(Box<Open>),
    Asked,
    /// The peer has ended the connection.
    Ended,
}

/// One connection, between and during streams.
#[derive(Debug)]
pub(super) struct Link<W> {
    pub(super) wire: W,
    /// The beginning of a frame that is not DATA; the rest has not come.
    input: Vec<u8>,
    /// Bytes that the connection has not taken yet, from `at` on.
    pub(super) out: Vec<u8>,
    at: usize,
    /// TLS holds bytes that the socket has not taken.
    dirty: bool,
}

impl<W: Wire> Link<W> {
    pub(super) fn new(wire: W) -> Self {
        if let Some(socket) = wire.socket() {
            socket.bears_streams();
        }
        Self {
            wire,
            input: Vec::new(),
            out: Vec::new(),
            at: 0,
            dirty: false,
        }
    }

    /// What waits to be written.
    pub(super) fn pending(&self) -> &[u8] {
        self.out.get(self.at..).unwrap_or_default()
    }

    /// Forgets what waits to be written: somebody else has taken it.
    pub(super) fn taken(&mut self) {
        self.out.clear();
        self.at = 0;
        // Most of the time there is nothing to say, and many connections are idle.
        if self.out.capacity() > 256 {
            self.out = Vec::new();
        }
    }

    /// Writes `bytes` at once as far as they go, and keeps the rest. Nothing may be pending.
    pub(super) fn poll_offer(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), Broken> {
        let mut n = 0;
        while n < bytes.len() {
            let rest = bytes.get(n..).unwrap_or_default();
            match Pin::new(&mut self.wire).poll_write(cx, rest).map_err(Broken::Wire)? {
                Poll::Ready(0) => return Err(Broken::Wire(io::ErrorKind::WriteZero.into())),
                Poll::Ready(wrote) => n += wrote,
                Poll::Pending => break,
            }
        }
        self.dirty = true;
        self.out.extend_from_slice(bytes.get(n..).unwrap_or_default());
        Ok(())
    }

    /// Writes what is pending, and sees it out of TLS into the socket.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.at < self.out.len() {
            let rest = self.out.get(self.at..).unwrap_or_default();
            let n = ready!(Pin::new(&mut self.wire).poll_write(cx, rest)).map_err(Broken::Wire)?;
            if n == 0 {
                return Poll::Ready(Err(Broken::Wire(io::ErrorKind::WriteZero.into())));
            }
            self.at += n;
            self.dirty = true;
        }
        self.taken();
        if self.dirty {
            ready!(Pin::new(&mut self.wire).poll_flush(cx)).map_err(Broken::Wire)?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// True when the connection does not take what there is to say.
    pub(super) fn blocked(&self) -> bool {
        self.dirty || self.at < self.out.len()
    }

    /// True when a part of a frame has come.
    pub(super) fn in_frame(&self) -> bool {
        !self.input.is_empty()
    }

    /// What comes next. Bytes for the app stay where they are, see [`payload`](Self::payload).
    pub(super) fn poll_got(&mut self, cx: &mut Context<'_>, side: &mut impl Side) -> Poll<Result<Got, Broken>> {
        loop {
            let data = ready!(Pin::new(&mut self.wire).poll_fill_buf(cx)).map_err(Broken::Wire)?;
            if data.is_empty() {
                return Poll::Ready(Ok(Got::Ended));
            }
            let (used, event) = if self.input.is_empty() {
                let (used, event) = side.receive(data, &mut self.out)?;
                if used == 0 && event == Event::More {
                    let n = data.len();
                    self.input.extend_from_slice(data);
                    Pin::new(&mut self.wire).consume(n);
                    continue;
                }
                (used, event)
            } else {
                let n = missing(&self.input).min(data.len());
                self.input.extend_from_slice(data.get(..n).unwrap_or_default());
                Pin::new(&mut self.wire).consume(n);
                let (used, event) = side.receive(&self.input, &mut self.out)?;
                if used == 0 {
                    continue;
                }
                // The beginning was no DATA, or only the header of it: no payload stands here.
                let got = got(event);
                self.input = Vec::new();
                match got {
                    Some(got) => return Poll::Ready(Ok(got)),
                    None => continue,
                }
            };
            let payload = match &event {
                Event::Data(bytes) => bytes.len(),
                _ => 0,
            };
            let got = got(event);
            Pin::new(&mut self.wire).consume(used - payload);
            if let Some(got) = got {
                return Poll::Ready(Ok(got));
            }
        }
    }

    /// The bytes that stand first. At least as many as [`Got::Data`] said, less what was
    /// [`eaten`](Self::eaten).
    pub(super) fn payload(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], Broken>> {
        Pin::new(&mut self.wire).poll_fill_buf(cx).map_err(Broken::Wire)
    }

    /// The app has taken so many bytes.
    pub(super) fn eaten(&mut self, n: usize) {
        Pin::new(&mut self.wire).consume(n);
    }

    /// Closes in order: says what is pending, then the end of TLS, and reads for a moment so that it
    /// arrives (closing a socket with unread bytes resets it).
    pub(super) async fn close(mut self) {
        if let Some(socket) = self.wire.socket() {
            socket.release();
        }
        let farewell = async {
            std::future::poll_fn(|cx| self.poll_send(cx)).await.ok()?;
            self.wire.shutdown().await.ok()?;
            self.read_out().await;
            Some(())
        };
        drop(tokio::time::timeout(FAREWELL, farewell).await);
    }

    /// Breaks off: the peer sees an end without FIN. What it is ready to take arrives before that.
    pub(super) async fn abort(mut self) {
        if self.blocked() {
            return;
        }
        let Some(socket) = self.wire.socket() else {
            return;
        };
        // Closing it from here on, or when the time is over, resets it.
        socket.guard();
        socket.end();
        drop(tokio::time::timeout(BREAK, self.read_out()).await);
    }

    /// Reads and throws away, until the peer has ended too.
    async fn read_out(&mut self) {
        std::future::poll_fn(|cx| {
            loop {
                let n = match ready!(Pin::new(&mut self.wire).poll_fill_buf(cx)) {
                    Ok(data) => data.len(),
                    Err(_) => 0,
                };
                if n == 0 {
                    return Poll::Ready(());
                }
                Pin::new(&mut self.wire).consume(n);
            }
        })
        .await;
    }
}

fn got(event: Event<'_>) -> Option<Got> {
    Some(match event {
        Event::More => return None,
        Event::Data(bytes) => Got::Data(bytes.len()),
        Event::Fin => Got::Fin,
        Event::Accepted => Got::Accepted,
        Event::Rejected(refusal) => Got::Rejected(refusal),
        Event::Unprocessed => Got::Unprocessed,
        Event::Draining => Got::Draining,
        Event::Settled => Got::Settled,
        Event::Open(open) => Got::Open(open),
        Event::Asked => Got::Asked,
    })
}
