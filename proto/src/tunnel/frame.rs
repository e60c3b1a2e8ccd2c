//! Frames and their codec.

use super::{HEADER, MAX_DATA, MAX_OPEN, Violation};

const OPEN: u8 = 1;
const ACCEPT: u8 = 2;
const REJECT: u8 = 3;
const DATA: u8 = 4;
const FIN: u8 = 5;
const PING: u8 = 6;
const DRAIN: u8 = 7;

/// A frame that is not DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Asks for a stream; what follows the header, see [`Open`](super::Open).
    Open(&'a [u8]),
    /// The stream has an app at its other end.
    Accept(u32),
    /// The stream is refused.
    Reject(u32, Refusal),
    /// The sender's app has ended its direction after so many bytes.
    Fin(u32, u64),
    /// Nothing of this stream or one before it is left at the sender; from the dialler: a question.
    Ping(u32),
    /// Streams above this one are not, and will not be, looked at.
    Drain(u32),
}

/// Why a stream is refused. Not one byte of it reached an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No rule allows it.
    Denied,
    /// The workload has no such service or port.
    UnknownPort,
    /// The app does not accept connections.
    AppUnreachable,
    /// The caller's certificate has expired or is revoked.
    Identity,
    /// OPEN has a critical part that the acceptor does not know.
    Unsupported,
    /// The acceptor is at a limit.
    Overloaded,
    /// A reason of a later version.
    Other(u8),
}

impl Refusal {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Denied => 1,
            Self::UnknownPort => 2,
            Self::AppUnreachable => 3,
            Self::Identity => 4,
            Self::Unsupported => 5,
            Self::Overloaded => 6,
            Self::Other(code) => code,
        }
    }

    /// Reads the number on the wire.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Denied,
            2 => Self::UnknownPort,
            3 => Self::AppUnreachable,
            4 => Self::Identity,
            5 => Self::Unsupported,
            6 => Self::Overloaded,
            other => Self::Other(other),
        }
    }

    /// True when another instance of the service may well accept the same stream.
    #[must_use]
    pub fn another_may_accept(self) -> bool {
        !matches!(self, Self::Denied | Self::Identity)
    }
}

impl Frame<'_> {
    /// Appends the frame to `out`. An OPEN longer than [`MAX_OPEN`] is cut off by no one here: see
    /// [`Open::write`](super::Open::write).
    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Open(tlvs) => put(out, OPEN, tlvs),
            Self::Accept(number) => put(out, ACCEPT, &number.to_be_bytes()),
            Self::Reject(number, refusal) => {
                let [a, b, c, d] = number.to_be_bytes();
                put(out, REJECT, &[a, b, c, d, refusal.code()]);
            }
            Self::Fin(number, count) => {
                let mut both = [0; 12];
                let (low, high) = both.split_at_mut(4);
                low.copy_from_slice(&number.to_be_bytes());
                high.copy_from_slice(&count.to_be_bytes());
                put(out, FIN, &both);
            }
            Self::Ping(number) => put(out, PING, &number.to_be_bytes()),
            Self::Drain(last) => put(out, DRAIN, &last.to_be_bytes()),
        }
    }
}

/// The header of a DATA frame with `length` bytes.
#[must_use]
pub fn put_data_header(length: usize) -> [u8; HEADER] {
    header(DATA, length)
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    // Every length is at most MAX_DATA, far below 2^24.
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    [kind, high, middle, low]
}

fn put(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.extend_from_slice(&header(kind, body.len()));
    out.extend_from_slice(body);
}

/// What stands next in the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Nothing whole.
    More,
    /// A part of a DATA frame; a frame may come in many.
    Data(&'a [u8]),
    /// A whole frame.
    Frame(Frame<'a>),
}

/// Finds frames in bytes that arrive in any pieces. Keeps no bytes.
#[derive(Debug, Default, Clone)]
pub struct Decoder {
    /// Bytes of the current DATA frame that have not come.
    left: usize,
}

impl Decoder {
    /// How many bytes of `input` are used, and what they are.
    ///
    /// # Errors
    /// When the header is not one. It is an error as soon as the header is there.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Piece<'a>), Violation> {
        if self.left > 0 {
            return Ok(self.data(input, 0));
        }
        let Some((&[kind, a, b, c], rest)) = input.split_first_chunk::<HEADER>() else {
            return Ok((0, Piece::More));
        };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let legal = match kind {
            OPEN => (1..=MAX_OPEN).contains(&length),
            ACCEPT | PING | DRAIN => length == 4,
            REJECT => length == 5,
            FIN => length == 12,
            DATA => (1..=MAX_DATA).contains(&length),
            _ => false,
        };
        if !legal {
            return Err(Violation::Malformed { kind, length });
        }
        if kind == DATA {
            self.left = length;
            return Ok(self.data(rest, HEADER));
        }
        let Some(body) = rest.get(..length) else {
            return Ok((0, Piece::More));
        };
        Ok((HEADER + length, Piece::Frame(frame(kind, body))))
    }

    /// True inside a DATA frame.
    #[must_use]
    pub fn in_data(&self) -> bool {
        self.left > 0
    }

    fn data<'a>(&mut self, input: &'a [u8], before: usize) -> (usize, Piece<'a>) {
        let n = self.left.min(input.len());
        self.left -= n;
        match input.get(..n) {
            Some(data) if n > 0 => (before + n, Piece::Data(data)),
            _ => (before, Piece::More),
        }
    }
}

/// How many more bytes make `part`, the beginning of a frame, into a header, or a header into a whole
/// frame; 0 for a whole one. A DATA frame is whole with its header.
#[must_use]
pub fn missing(part: &[u8]) -> usize {
    match part.split_first_chunk::<HEADER>() {
        None => HEADER - part.len(),
        Some((&[DATA, ..], _)) => 0,
        Some((&[_, a, b, c], body)) => (u32::from_be_bytes([0, a, b, c]) as usize).saturating_sub(body.len()),
    }
}

/// Reads a body whose length its kind has.
fn frame(kind: u8, body: &[u8]) -> Frame<'_> {
    let number = body.first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
    match kind {
        OPEN => Frame::Open(body),
        ACCEPT => Frame::Accept(number),
        REJECT => Frame::Reject(number, Refusal::from_code(body.last().copied().unwrap_or_default())),
        FIN => Frame::Fin(number, body.last_chunk().map_or(0, |b| u64::from_be_bytes(*b))),
        PING => Frame::Ping(number),
        _ => Frame::Drain(number),
    }
}
