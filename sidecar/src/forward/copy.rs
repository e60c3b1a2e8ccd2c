//! Opaque bytes between two streams, each direction on its own, with half-close.
//!
//! Buffers grow with what they carry (1 KiB, 16 KiB, 256 KiB), so that an idle connection costs
//! little and bulk costs few system calls.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::observe::held::Held;

const STEPS: [(u64, usize); 3] = [(0, 1024), (64 * 1024, 16 * 1024), (4 * 1024 * 1024, 256 * 1024)];

/// Bytes moved in each direction.
#[derive(Debug, Default, Clone, Copy)]
pub struct Moved {
    /// From the first stream to the second.
    pub forth: u64,
    /// From the second stream to the first.
    pub back: u64,
}

/// Copies until both directions have ended. An end of one direction is passed on as an end
/// (FIN); an error of either ends both at once, so that it is never taken for a clean end.
///
/// # Errors
/// The first error of either stream.
///
/// # Cancel safety
/// Not safe: bytes in a buffer are lost.
pub async fn both<A, B>(a: &mut A, b: &mut B) -> (Moved, io::Result<()>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut forth = OneWay::new();
    let mut back = OneWay::new();
    let result = std::future::poll_fn(|cx| {
        let forward = forth.poll(cx, a, b)?;
        let backward = back.poll(cx, b, a)?;
        if forward.is_ready() && backward.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await;
    (
        Moved {
            forth: forth.moved,
            back: back.moved,
        },
        result,
    )
}

/// Makes the socket's close a reset (RST), so that the peer never takes it for a clean end.
pub fn reset(stream: &tokio::net::TcpStream) {
    drop(socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)));
}

/// Makes the socket's close a clean end again.
pub fn release(stream: &tokio::net::TcpStream) {
    drop(socket2::SockRef::from(stream).set_linger(None));
}

#[derive(Debug)]
struct OneWay {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    moved: u64,
    state: State,
    held: Held,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Copying,
    ShuttingDown,
    Done,
}

impl OneWay {
    fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            moved: 0,
            state: State::Copying,
            held: Held::default(),
        }
    }

    fn grow(&mut self) {
        let wanted = STEPS
            .iter()
            .rev()
            .find(|(after, _)| self.moved >= *after)
            .map_or(1024, |(_, size)| *size);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
            self.held.set(wanted);
        }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::ShuttingDown => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                    self.buffer = Vec::new();
                    self.held.set(0);
                }
                State::Copying if self.start < self.end => {
                    let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
                    let n = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
                    if n == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.start += n;
                    self.moved += n as u64;
                }
                State::Copying => {
                    self.grow();
                    let mut space = ReadBuf::new(&mut self.buffer);
                    match Pin::new(&mut *from).poll_read(cx, &mut space)? {
                        Poll::Pending => {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            return Poll::Pending;
                        }
                        Poll::Ready(()) => {
                            (self.start, self.end) = (0, space.filled().len());
                            if self.end == 0 {
                                self.state = State::ShuttingDown;
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn half_close_passes_on_and_the_other_direction_goes_on() {
        let (mut client, mut a) = tokio::io::duplex(64);
        let (mut b, mut app) = tokio::io::duplex(64);
        let copy = tokio::spawn(async move { both(&mut a, &mut b).await });
        client.write_all(b"question").await.expect("writes");
        client.shutdown().await.expect("closes its side");
        let mut asked = Vec::new();
        app.read_to_end(&mut asked).await.expect("sees the end");
        assert_eq!(asked, b"question");
        let answer = vec![7u8; 300_000];
        let (written, mut got) = (answer.clone(), Vec::new());
        let write = async move {
            app.write_all(&written).await.expect("writes");
            app.shutdown().await.expect("closes");
        };
        tokio::join!(write, async { client.read_to_end(&mut got).await.expect("reads") });
        assert_eq!(got, answer);
        let (moved, result) = copy.await.expect("no panic");
        result.expect("clean");
        assert_eq!((moved.forth, moved.back), (8, 300_000));
    }
}
