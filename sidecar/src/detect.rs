//! Which protocol a connection speaks, by a bounded look at its first bytes.
//!
//! The fallback for ports declared `auto`; a declared protocol is never questioned. A server-first
//! protocol sends nothing, so after [`PATIENCE`] without a byte the connection is opaque.

mod ahead;
pub mod hello;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, Interest};
use tokio::net::TcpStream;

pub use ahead::Prefixed;

/// How long the first bytes may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// HTTP/2's connection preface (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of it that decide: `PRI * HTTP/2.0`.
const DECIDED: usize = 14;
/// Bytes looked at.
const LOOK: usize = 32;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// Anything else, or silence.
    Opaque,
}

/// Looks at the first bytes without taking them, at most for `patience`; silence is opaque.
///
/// # Errors
/// When the connection fails.
///
/// # Cancel safety
/// Safe: nothing is consumed.
pub async fn detect(stream: &TcpStream, patience: Duration) -> io::Result<Detected> {
    let mut buffer = [0u8; LOOK];
    let mut seen = 0;
    let look = async {
        let mut last = false;
        loop {
            seen = stream.peek(&mut buffer).await?;
            if let Some(found) = classify(buffer.get(..seen).unwrap_or_default(), last || seen == 0) {
                return Ok(found);
            }
            last = more(stream).await?;
        }
    };
    match tokio::time::timeout(patience, look).await {
        Ok(found) => found,
        Err(_) => Ok(classify(buffer.get(..seen).unwrap_or_default(), true).unwrap_or(Detected::Opaque)),
    }
}

/// True when a client of a port that is declared HTTP speaks HTTP/2 by prior knowledge. Waits for
/// the first byte at most `idle`; the rest of the preface has [`PATIENCE`].
///
/// # Errors
/// When the connection fails, ends, or stays silent.
///
/// # Cancel safety
/// Safe: nothing is consumed.
pub async fn speaks_http2(stream: &TcpStream, idle: Duration) -> io::Result<bool> {
    let mut buffer = [0u8; DECIDED];
    let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
    let mut n = tokio::time::timeout(idle, stream.peek(&mut buffer))
        .await
        .map_err(silent)??;
    let preface = async {
        let mut last = false;
        loop {
            match n {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if buffer.get(..n) != PREFACE.get(..n) => return Ok(false),
                DECIDED.. => return Ok(true),
                _ if last => return Ok(false),
                _ => last = more(stream).await?,
            }
            n = stream.peek(&mut buffer).await?;
        }
    };
    tokio::time::timeout(PATIENCE, preface).await.unwrap_or(Ok(false))
}

/// The first byte, without taking it; none when the client closes first.
///
/// # Errors
/// When the connection fails, or stays silent for `idle`.
///
/// # Cancel safety
/// Safe: nothing is consumed.
pub async fn first_byte(stream: &TcpStream, idle: Duration) -> io::Result<Option<u8>> {
    let mut byte = [0u8; 1];
    match tokio::time::timeout(idle, stream.peek(&mut byte)).await {
        Ok(seen) => Ok((seen? > 0).then_some(byte[0])),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Waits until more arrives than was peeked; true when the client has ended its half.
async fn more(stream: &TcpStream) -> io::Result<bool> {
    // Peeked bytes keep the socket readable. The system tells of each arrival once (epoll(7),
    // edge-triggered): forgetting what it told makes the next wait one for more.
    drop(stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
    Ok(stream.ready(Interest::READABLE).await?.is_read_closed())
}

/// As [`detect`], for a stream that cannot be peeked: reads, and gives the bytes back with the stream.
///
/// # Errors
/// When the stream fails.
pub async fn detect_read<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Detected, Prefixed<S>)> {
    let mut prefix = Vec::with_capacity(LOOK);
    let look = async {
        loop {
            let mut buffer = [0u8; LOOK];
            let room = buffer
                .get_mut(..LOOK.saturating_sub(prefix.len()).max(1))
                .unwrap_or_default();
            let n = stream.read(room).await?;
            prefix.extend_from_slice(room.get(..n).unwrap_or_default());
            if let Some(found) = classify(&prefix, n == 0 || prefix.len() >= LOOK) {
                return Ok::<_, io::Error>(found);
            }
        }
    };
    let found = match tokio::time::timeout(PATIENCE, look).await {
        Ok(found) => found?,
        Err(_) => Detected::Opaque,
    };
    Ok((found, Prefixed::new(prefix, stream)))
}

/// Decides by a prefix; none when more bytes are needed. `last` tells that no more came. What a prefix
/// decides stays, whatever follows.
#[must_use]
pub fn classify(bytes: &[u8], last: bool) -> Option<Detected> {
    // Nothing behind the bytes looked at may unsettle what they decided, and with all of them at hand no
    // more are waited for.
    let last = last || bytes.len() >= LOOK;
    let bytes = bytes.get(..LOOK).unwrap_or(bytes);
    if bytes.is_empty() {
        return last.then_some(Detected::Opaque);
    }
    // Only as many bytes as decide: with more of them at hand the answer is the same.
    let n = bytes.len().min(DECIDED);
    if bytes.get(..n) == PREFACE.get(..n) {
        // `PRI * HTTP/2.0` is decided at once; shorter could still be a method.
        return if n == DECIDED {
            Some(Detected::Http2)
        } else {
            last.then_some(Detected::Opaque)
        };
    }
    // Servers skip empty lines before a request (RFC 9112 §2.2), so rules about requests must not be passed by them.
    let lines = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let bytes = bytes.get(lines..).unwrap_or_default();
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase()).count();
    match bytes.get(method) {
        Some(b' ') if (3..=20).contains(&method) => match bytes.get(method + 1) {
            Some(b'/' | b'*' | b'h' | b'H') => Some(Detected::Http1),
            Some(_) if bytes.starts_with(b"CONNECT ") => Some(Detected::Http1),
            Some(_) => Some(Detected::Opaque),
            None => last.then_some(Detected::Opaque),
        },
        Some(_) => Some(Detected::Opaque),
        None => last.then_some(Detected::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_bytes_decide() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Detected::Http1)),
            (b"OPTIONS * HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"\r\n", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Some(Detected::Http2)),
            // Broken off after the bytes that decide; cut there, it was HTTP/2 too.
            (b"PRI * HTTP/2.0\r\nHost: a\r\n", Some(Detected::Http2)),
            (b"PRI", None),
            (b"GE", None),
            (b"\x16\x03\x01", Some(Detected::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Detected::Opaque)),
            (b"SELECT 1", Some(Detected::Opaque)),
            (b"CONNECT a:1 HTTP/1.1", Some(Detected::Http1)),
            (b"get / ", Some(Detected::Opaque)),
        ] {
            assert_eq!(classify(bytes, false), expected, "{}", bytes.escape_ascii());
        }
    }

    /// What only a long start shows: bytes behind those looked at change nothing.
    #[test]
    fn a_decision_stays() {
        for text in ["GET / HTTP/1.1", "CONNECT a:1", "SELECT 1", "PRI * HTTP/2.0"] {
            for lines in 0..2 * LOOK {
                let bytes = [&b"\n".repeat(lines), text.as_bytes()].concat();
                let decided = (0..=bytes.len()).find_map(|n| classify(&bytes[..n], false));
                let before = (0..=bytes.len()).take_while(|&n| classify(&bytes[..n], false).is_none());
                for n in before.count()..=bytes.len() {
                    assert_eq!(
                        classify(&bytes[..n], false),
                        decided,
                        "{lines} lines, {n} bytes of {text}"
                    );
                }
                assert!(bytes.len() < LOOK || decided.is_some(), "{lines} lines before {text}");
            }
        }
    }

    proptest! {
        #[test]
        fn always_decided_at_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let n = bytes.len().min(LOOK);
            prop_assert!(classify(&bytes[..n], true).is_some());
        }
    }
}
