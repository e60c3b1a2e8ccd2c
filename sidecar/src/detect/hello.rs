//! Whose TLS a connection begins with: the mesh's or the app's own, by the ClientHello's ALPN.
//!
//! A parser of our own for the few fields that decide (RFC 8446 §4.1.2, §5.1; RFC 7301 §3.1), because
//! the bytes have to be given on unchanged when they are the app's. Takes pieces of any size, one byte
//! at a time too, and several records; keeps at most [`MOST`] bytes. What is not a well-formed
//! ClientHello is not the mesh's: its own peers send nothing else.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Prefixed;

/// The first byte of a TLS record that carries a handshake (RFC 8446 §5.1).
pub const HANDSHAKE: u8 = 22;
/// Bytes of a beginning that are kept; a longer ClientHello is the app's.
pub const MOST: usize = 16 * 1024;
/// How the names of the mesh's own protocols begin.
const OURS: &[u8] = b"outrigger-";

/// Whose TLS a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// A sidecar's: it offers a protocol of the mesh.
    Mesh,
    /// Anything else.
    App,
}

/// Reads until the beginning is decided, and gives every byte back with the stream.
///
/// # Errors
/// When the stream fails or ends before that, or `limit` passes.
pub async fn read<S: AsyncRead + Unpin>(mut stream: S, limit: Duration) -> io::Result<(Whose, Prefixed<S>)> {
    let mut seen = Vec::new();
    let mut hello = Hello::default();
    let look = async {
        // On the heap: a future is as large as all it may hold, for the connection's whole life.
        let mut piece = vec![0u8; 4096];
        loop {
            let room = piece.get_mut(..(MOST - seen.len()).min(4096)).unwrap_or_default();
            let n = match stream.read(room).await? {
                0 if seen.len() < MOST => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                n => n,
            };
            let new = room.get(..n).unwrap_or_default();
            seen.extend_from_slice(new);
            if let Some(whose) = hello.feed(new) {
                return Ok(whose);
            }
            if seen.len() >= MOST {
                return Ok(Whose::App);
            }
        }
    };
    match tokio::time::timeout(limit, look).await {
        Ok(whose) => Ok((whose?, Prefixed::new(seen, stream))),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A ClientHello as it arrives.
#[derive(Debug, Default)]
pub struct Hello {
    /// The record's header, as far as it is here.
    header: [u8; 5],
    in_header: usize,
    /// Bytes of the present record that are still to come.
    left: usize,
    /// The handshake message, records joined.
    message: Vec<u8>,
    decided: Option<Whose>,
}

impl Hello {
    /// Takes in the next bytes; none while more are needed.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Whose> {
        if self.decided.is_none() {
            self.decided = self.take(bytes);
        }
        self.decided
    }

    fn take(&mut self, mut bytes: &[u8]) -> Option<Whose> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, rest) = bytes.split_at_checked(self.left).unwrap_or((bytes, &[]));
                self.message.extend_from_slice(now);
                self.left -= now.len();
                bytes = rest;
                let whose = self.complete();
                if whose.is_some() {
                    return whose;
                }
                continue;
            }
            let (byte, rest) = bytes.split_first()?;
            bytes = rest;
            if let Some(slot) = self.header.get_mut(self.in_header) {
                *slot = *byte;
            }
            self.in_header += 1;
            // Decided by the first byte that is wrong: a client that waits for an answer to its own
            // protocol sends no more.
            let [kind, major, _, high, low] = self.header;
            let wrong = kind != HANDSHAKE || (self.in_header > 1 && major != 3);
            if wrong {
                return Some(Whose::App);
            }
            if self.in_header == 5 {
                self.in_header = 0;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                // RFC 8446 §5.1: neither an empty handshake record nor one of more than 2^14 bytes.
                if self.left == 0 || self.left > 1 << 14 {
                    return Some(Whose::App);
                }
            }
        }
        None
    }

    /// Decides when the message is complete, or is not a ClientHello.
    fn complete(&self) -> Option<Whose> {
        let mut message = Cursor(&self.message);
        let (kind, length) = match (message.u8(), message.u24()) {
            (Some(kind), _) if kind != CLIENT_HELLO => return Some(Whose::App),
            (Some(kind), Some(length)) => (kind, length),
            _ => return None,
        };
        if kind != CLIENT_HELLO || length > MOST {
            return Some(Whose::App);
        }
        let body = message.take(length)?;
        match offers_ours(body) {
            Some(true) => Some(Whose::Mesh),
            Some(false) | None => Some(Whose::App),
        }
    }
}

const CLIENT_HELLO: u8 = 1;
/// `application_layer_protocol_negotiation` (RFC 7301 §3.1).
const ALPN: u16 = 16;

/// True when a ClientHello's body offers a protocol of the mesh; none when it is malformed.
fn offers_ours(body: &[u8]) -> Option<bool> {
    let mut hello = Cursor(body);
    hello.take(2 + 32)?; // legacy_version, random
    let session = usize::from(hello.u8()?);
    hello.take(session)?;
    let suites = usize::from(hello.u16()?);
    hello.take(suites)?;
    let compressions = usize::from(hello.u8()?);
    hello.take(compressions)?;
    let extensions = usize::from(hello.u16()?);
    let mut extensions = Cursor(hello.take(extensions)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let data = extensions.take(length)?;
        if kind != ALPN {
            continue;
        }
        let mut data = Cursor(data);
        let length = usize::from(data.u16()?);
        let mut names = Cursor(data.take(length)?);
        while !names.0.is_empty() {
            let length = usize::from(names.u8()?);
            if names.take(length)?.starts_with(OURS) {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// Reads from the front; none when there is not enough.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u24(&mut self) -> Option<usize> {
        match self.take(3)? {
            [a, b, c] => Some(usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
