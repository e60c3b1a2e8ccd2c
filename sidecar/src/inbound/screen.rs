//! The app's end of a stream on a port whose protocol is detected: requests do not come in as mere bytes.
//!
//! A caller's sidecar detects too, and sends requests as requests. One that sends them through the tunnel
//! anyway would pass by rules about methods and paths, and could write the mesh's own fields.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::detect::{self, Detected};
use crate::tunnel::{App, Socket};

/// Bytes that always decide.
const ENOUGH: usize = 64;

/// The app's socket.
#[derive(Debug)]
pub(super) struct Screen {
    socket: Socket,
    /// The first bytes, until they tell that they are no request; none when nothing is held back.
    held: Option<Vec<u8>>,
    /// How many of them the app has, once they may go.
    passed: Option<usize>,
}

impl Screen {
    /// Looks at the first bytes when `detects`; otherwise everything passes.
    pub(super) fn new(socket: Socket, detects: bool) -> Self {
        Self {
            socket,
            held: detects.then(Vec::new),
            passed: None,
        }
    }

    /// Lets go of what is held, once it may go.
    fn poll_let_go(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let (Some(held), Some(passed)) = (&self.held, &mut self.passed) {
            let Some(rest) = held.get(*passed..).filter(|rest| !rest.is_empty()) else {
                (self.held, self.passed) = (None, None);
                break;
            };
            *passed += ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// True when `bytes` begin a request, none when more are needed. Servers skip empty lines before a
/// request (RFC 9112 §2.2), and some do not mind small letters.
fn is_request(bytes: &[u8], last: bool) -> Option<bool> {
    let lines = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let text = bytes.get(lines..).unwrap_or_default().to_ascii_uppercase();
    match detect::classify(&text, last) {
        None if bytes.len() < ENOUGH => None,
        found => Some(matches!(found, Some(Detected::Http1 | Detected::Http2))),
    }
}

fn refused() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "a request came as mere bytes on a port whose protocol is detected",
    )
}

impl AsyncWrite for Screen {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_let_go(cx))?;
        let Some(held) = &mut this.held else {
            return Pin::new(&mut this.socket).poll_write(cx, buf);
        };
        let n = buf.len().min(ENOUGH.saturating_sub(held.len()).max(1));
        held.extend_from_slice(buf.get(..n).unwrap_or_default());
        match is_request(held, false) {
            Some(true) => return Poll::Ready(Err(refused())),
            Some(false) => {
                this.passed = Some(0);
                if let Poll::Ready(Err(error)) = this.poll_let_go(cx) {
                    return Poll::Ready(Err(error));
                }
            }
            None => {}
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_let_go(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let (Some(held), None) = (&this.held, this.passed) {
            if is_request(held, true) == Some(true) {
                return Poll::Ready(Err(refused()));
            }
            this.passed = Some(0);
        }
        ready!(this.poll_let_go(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl AsyncRead for Screen {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl App for Screen {
    fn socket(&self) -> Option<&Socket> {
        Some(&self.socket)
    }

    fn poll_read_gaps(&mut self, cx: &mut Context<'_>, gaps: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        self.socket.poll_read_gaps(cx, gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair(detects: bool) -> (Screen, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (ours, theirs) = tokio::join!(
            TcpStream::connect(listener.local_addr().expect("bound")),
            listener.accept()
        );
        let socket = Socket::of_app(ours.expect("connects"));
        (Screen::new(socket, detects), theirs.expect("accepts").0)
    }

    #[tokio::test]
    async fn requests_do_not_come_in_as_bytes_however_they_are_cut() {
        for request in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"\r\n\r\nPOST /x HTTP/1.1\r\n\r\n",
            b"get / http/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            for cut in [1, 3, request.len()] {
                let (mut screen, mut app) = pair(true).await;
                let mut result = Ok(());
                for piece in request.chunks(cut) {
                    result = result.and(screen.write_all(piece).await);
                }
                let result = match result {
                    Ok(()) => screen.shutdown().await,
                    error => error,
                };
                assert_eq!(
                    result.map_err(|e| e.kind()),
                    Err(io::ErrorKind::PermissionDenied),
                    "{}",
                    request.escape_ascii()
                );
                drop(screen);
                let mut got = Vec::new();
                app.read_to_end(&mut got).await.expect("an end");
                assert!(got.is_empty(), "the app got {}", got.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn everything_else_does_in_order_and_so_does_everything_on_other_ports() {
        for (bytes, detects) in [
            (&b"*1\r\n$4\r\nPING\r\n"[..], true),
            (b"\x16\x03\x01\x02\x00", true),
            (b"QUIT\r\n", true),
            (b"Q", true),
            (b"", true),
            (b"GET / HTTP/1.1\r\n\r\n", false),
        ] {
            for cut in [1, 64] {
                let (mut screen, mut app) = pair(detects).await;
                for piece in bytes.chunks(cut) {
                    screen.write_all(piece).await.expect("passes");
                }
                screen.shutdown().await.expect("passes");
                let mut got = Vec::new();
                app.read_to_end(&mut got).await.expect("an end");
                assert_eq!(got, bytes);
            }
        }
    }
}
