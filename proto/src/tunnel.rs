//! `outrigger-tcp/1`: opaque TCP between two sidecars, inside TLS.
//!
//! One TLS connection carries one application stream at a time and is reused for the next, so a new
//! application connection costs no handshake, bulk data has no HTTP/2 framing, and a slow stream
//! blocks nobody. The protocol is written down in `proto/tunnel.md`; this room is its codec and its
//! two state machines.
//!
//! Pure: bytes in, events out; no I/O, no task, and no clock but `now` arguments.
//!
//! - [`Decoder`], [`Frame`]: frames, decoded in place, however the bytes are cut.
//! - [`Open`]: what a stream asks for.
//! - [`Dialler`], [`Acceptor`]: the two sides. [`Side`]: what they do alike while a stream flows.
//! - [`Clock`]: how long each wait may last.
//! - [`fuzz`]: what a fuzzer calls.

mod acceptor;
mod clock;
mod dialler;
mod flow;
mod frame;
pub mod fuzz;
mod open;
#[cfg(test)]
mod tests;

pub use acceptor::Acceptor;
pub use clock::{Clock, Late, Limits, Wait};
pub use dialler::Dialler;
pub use frame::{Decoder, Frame, Piece, Refusal, missing, put_data_header};
pub use open::Open;

/// The protocol's name in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"outrigger-tcp/1";
/// Bytes of a frame's header: type (u8), length of what follows (u24, big-endian).
pub const HEADER: usize = 4;
/// Most bytes in one DATA frame: with the header they fill one TLS record (RFC 8446 §5.1).
pub const MAX_DATA: usize = 16_384 - HEADER;
/// Most bytes of an OPEN frame after its header.
pub const MAX_OPEN: usize = 1024;
/// Most bytes of data that the dialler sends, and keeps, before ACCEPT.
pub const EARLY: u64 = 64 * 1024;
/// Questions that an acceptor answers between two streams; a patient dialler asks a handful.
pub const MOST_QUESTIONS: u32 = 16;

/// What the peer did that the protocol forbids; the TLS connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of a type that does not exist, or whose length its type does not have.
    #[error("a frame of type {kind} and length {length} does not exist")]
    Malformed {
        /// The first octet.
        kind: u8,
        /// What its header says.
        length: usize,
    },
    /// A frame that must not come now.
    #[error("{0} must not come now")]
    Unexpected(&'static str),
    /// A number that is not the current stream's.
    #[error("{what} of stream {got}, and the stream is {expected}")]
    Number {
        /// The frame.
        what: &'static str,
        /// What it says.
        got: u32,
        /// What it should say.
        expected: u32,
    },
    /// FIN tells another count of bytes than have arrived.
    #[error("FIN after {told} bytes, and {received} have arrived")]
    Count {
        /// What FIN says.
        told: u64,
        /// What came.
        received: u64,
    },
    /// An OPEN that is not well formed.
    #[error("OPEN: {0}")]
    Open(&'static str),
    /// The own side asked for something that its state does not allow.
    #[error("own side: {0} in this state")]
    Misuse(&'static str),
}

/// What the bytes from the peer mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// More bytes are needed.
    More,
    /// Bytes for the own app.
    Data(&'a [u8]),
    /// The other app has ended its direction: after what came before, the own app gets a FIN.
    Fin,
    /// Dialler: the stream has an app at its other end.
    Accepted,
    /// Dialler: the stream was refused; not one byte of it reached an app. Acceptor: it was refused
    /// already, because OPEN asks for what this version does not know.
    Rejected(Refusal),
    /// Dialler: the acceptor leaves and never looked at the stream.
    Unprocessed,
    /// Dialler: the acceptor leaves after the current stream.
    Draining,
    /// Dialler: the acceptor is between streams.
    Settled,
    /// Acceptor: a stream is asked for; [`Acceptor::accept`] or [`Acceptor::reject`] answers.
    Open(Box<Open>),
    /// Acceptor: a question whether it is still there; the answer has been written.
    Asked,
}

/// What both sides do alike while a stream flows.
pub trait Side {
    /// Takes bytes from the peer: how many were used, and what they mean. Answers go to `out`.
    /// Called again with the rest until [`Event::More`].
    ///
    /// # Errors
    /// When the peer broke the protocol: the connection is to be closed, and the app reset.
    fn receive<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> Result<(usize, Event<'a>), Violation>;

    /// How many bytes of the own app may be sent now.
    fn may_send(&self) -> u64;

    /// The header of `length` bytes of the own app, 1 to [`MAX_DATA`].
    ///
    /// # Errors
    /// When [`may_send`](Self::may_send) is less.
    fn data(&mut self, length: usize) -> Result<[u8; HEADER], Violation>;

    /// The own app has ended its direction by a FIN of its own.
    ///
    /// # Errors
    /// When no stream is open, or FIN was sent.
    fn fin(&mut self, out: &mut Vec<u8>) -> Result<(), Violation>;

    /// Everything received, the end included, has been handed to the own app.
    ///
    /// # Errors
    /// When FIN has not been received.
    fn delivered(&mut self, out: &mut Vec<u8>) -> Result<(), Violation>;

    /// The own sidecar leaves: no stream after the current one. A dialler just opens no other.
    fn leave(&mut self, out: &mut Vec<u8>);

    /// What is waited for now.
    fn waits(&self) -> Wait;

    /// True while a stream is neither over at both ends nor refused.
    fn streaming(&self) -> bool;

    /// Bytes of the current or last stream, both directions together.
    fn moved(&self) -> u64;

    /// The peer has ended the connection: true when nothing is lost by that.
    fn may_end(&self) -> bool;
}
