//! A stream with bytes that were read already: the first ones, to decide by, and in bulk more than was asked for.
//!
//! rustls asks for 4 KiB at a time. When a read of that size comes back full, more is waiting, and the next ones
//! take [`AHEAD`] at once: an eighth of the system calls. A connection that is not in bulk keeps no buffer.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Bytes read at once in bulk.
const AHEAD: usize = 32 * 1024;
/// A read that fills less room than this says nothing of what is waiting.
const TELLS: usize = 4096;

/// A stream with bytes that were read already.
#[derive(Debug)]
pub struct Prefixed<S> {
    ahead: BytesMut,
    /// The last read took all it had room for.
    more: bool,
    stream: S,
}

impl<S> Prefixed<S> {
    /// A stream of which nothing was read.
    #[must_use]
    pub fn untouched(stream: S) -> Self {
        Self {
            ahead: BytesMut::new(),
            more: false,
            stream,
        }
    }

    /// Puts `prefix` before what `stream` still brings.
    #[must_use]
    pub fn new(prefix: Vec<u8>, stream: S) -> Self {
        Self {
            ahead: Bytes::from(prefix).into(),
            ..Self::untouched(stream)
        }
    }

    /// Changes the stream below.
    pub fn map<T>(self, change: impl FnOnce(S) -> T) -> Prefixed<T> {
        Prefixed {
            ahead: self.ahead,
            more: self.more,
            stream: change(self.stream),
        }
    }

    /// The stream below.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Bytes that were read and not taken yet.
    #[must_use]
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            if !this.more {
                let (before, room) = (buf.filled().len(), buf.remaining());
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                this.more = room >= TELLS && buf.filled().len() - before == room;
                return Poll::Ready(Ok(()));
            }
            this.ahead.reserve(AHEAD);
            let read = pin!(this.stream.read_buf(&mut this.ahead)).poll(cx);
            this.more = matches!(read, Poll::Ready(Ok(n)) if n >= AHEAD);
            if this.ahead.is_empty() {
                // Nothing is waiting, or the end: the connection may live for hours.
                this.ahead = BytesMut::new();
                return read.map_ok(drop);
            }
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(this.ahead.get(..n).unwrap_or_default());
        this.ahead.advance(n);
        if this.ahead.is_empty() && !this.more {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    proptest! {
        #[test]
        fn every_byte_comes_once_and_in_order(
            prefix in 0usize..10_000,
            pieces in proptest::collection::vec(1usize..60_000, 0..6),
            rooms in proptest::collection::vec(1usize..9000, 1..5),
        ) {
            let total: usize = prefix + pieces.iter().sum::<usize>();
            let bytes: Vec<u8> = (0..total).map(|i| u8::try_from(i % 251).expect("small")).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let got = runtime.block_on(async {
                let (mut writer, reader) = tokio::io::duplex(64 * 1024);
                let sent = bytes[prefix..].to_vec();
                let write = async move {
                    let mut rest = &sent[..];
                    for piece in pieces {
                        let (now, later) = rest.split_at(piece);
                        writer.write_all(now).await.expect("writes");
                        rest = later;
                        tokio::task::yield_now().await;
                    }
                };
                let read = async {
                    let mut stream = Prefixed::new(bytes[..prefix].to_vec(), reader);
                    let mut got = Vec::new();
                    for room in rooms.iter().cycle() {
                        let mut piece = vec![0; *room];
                        match stream.read(&mut piece).await.expect("reads") {
                            0 => break,
                            n => got.extend_from_slice(&piece[..n]),
                        }
                    }
                    assert_eq!(stream.ahead.capacity(), 0, "no buffer is kept");
                    got
                };
                tokio::join!(write, read).1
            });
            prop_assert_eq!(got, bytes);
        }
    }
}
