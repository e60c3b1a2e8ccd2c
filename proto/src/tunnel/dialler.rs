//! The side that opens streams.

use super::flow::{Flow, expect};
use super::{Decoder, EARLY, Event, Frame, HEADER, Open, Piece, Side, Violation, Wait};

/// The side that opens streams: one connection of the pool.
#[derive(Debug, Clone)]
pub struct Dialler {
    decoder: Decoder,
    phase: Phase,
    flow: Flow,
    /// No stream will follow the current one.
    draining: bool,
    /// DRAIN has come.
    drained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between streams; asked: a question has no answer yet.
    Idle { asked: bool },
    /// OPEN is written; neither ACCEPT nor REJECT has come.
    Opening,
    /// An app is at the other end. Settled: nothing of the stream is left there.
    Open { settled: bool },
    /// No stream will follow.
    Closed,
}

impl Default for Dialler {
    fn default() -> Self {
        Self {
            decoder: Decoder::default(),
            phase: Phase::Idle { asked: false },
            flow: Flow::default(),
            draining: false,
            drained: false,
        }
    }
}

impl Dialler {
    /// True when a stream may be opened. The caller has to see to it besides that nothing received is
    /// left unread: a byte that stands there now belongs to no stream.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.phase == (Phase::Idle { asked: false })
            && !self.draining
            && !self.decoder.in_data()
            && self.flow.number < u32::MAX
    }

    /// True when a stream was opened before.
    #[must_use]
    pub fn used(&self) -> bool {
        self.flow.number > 0
    }

    /// Asks for a stream, whose number is given here; data may follow at once, up to [`EARLY`].
    ///
    /// # Errors
    /// When not [`ready`](Self::ready).
    pub fn open(&mut self, mut open: Open, out: &mut Vec<u8>) -> Result<u32, Violation> {
        if !self.ready() {
            return Err(Violation::Misuse("OPEN"));
        }
        open.number = self.flow.number + 1;
        open.write(out);
        self.flow = Flow::new(open.number);
        self.phase = Phase::Opening;
        Ok(open.number)
    }

    /// Asks whether the acceptor is still there; the answer is [`Event::Settled`].
    ///
    /// # Errors
    /// When not [`ready`](Self::ready).
    pub fn ask(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        if !self.ready() {
            return Err(Violation::Misuse("PING"));
        }
        self.phase = Phase::Idle { asked: true };
        Frame::Ping(self.flow.number).write(out);
        Ok(())
    }

    fn frame<'a>(&mut self, frame: Frame<'_>) -> Result<Event<'a>, Violation> {
        let number = self.flow.number;
        match (frame, self.phase) {
            (Frame::Accept(n), Phase::Opening) => {
                expect("ACCEPT", n, number)?;
                self.phase = Phase::Open { settled: false };
                Ok(Event::Accepted)
            }
            (Frame::Reject(n, refusal), Phase::Opening) => {
                expect("REJECT", n, number)?;
                self.phase = Phase::Closed;
                Ok(Event::Rejected(refusal))
            }
            (Frame::Fin(n, count), Phase::Open { .. }) => {
                self.flow.receive_fin(n, count)?;
                Ok(Event::Fin)
            }
            (Frame::Ping(n), Phase::Open { settled: false }) if self.flow.both_ended() => {
                expect("PING", n, number)?;
                self.phase = Phase::Open { settled: true };
                self.rest();
                Ok(Event::Settled)
            }
            (Frame::Ping(n), Phase::Idle { asked: true }) => {
                expect("PING", n, number)?;
                self.phase = Phase::Idle { asked: false };
                Ok(Event::Settled)
            }
            (Frame::Drain(last), phase) if !self.drained && phase != Phase::Closed => {
                (self.draining, self.drained) = (true, true);
                if phase == Phase::Opening && last < number {
                    // OPEN and DRAIN crossed: the acceptor never looks at what comes after.
                    expect("DRAIN", last, number - 1)?;
                    self.phase = Phase::Closed;
                    return Ok(Event::Unprocessed);
                }
                expect("DRAIN", last, number)?;
                Ok(Event::Draining)
            }
            (frame, _) => Err(Violation::Unexpected(name(&frame))),
        }
    }

    /// Between streams again when nothing of the last one is left at either side.
    fn rest(&mut self) {
        if self.phase == (Phase::Open { settled: true }) && self.flow.over() {
            self.phase = Phase::Idle { asked: false };
        }
    }
}

impl Side for Dialler {
    fn receive<'a>(&mut self, input: &'a [u8], _out: &mut Vec<u8>) -> Result<(usize, Event<'a>), Violation> {
        let (used, piece) = self.decoder.next(input)?;
        if (self.decoder.in_data() || matches!(piece, Piece::Data(_))) && !matches!(self.phase, Phase::Open { .. }) {
            return Err(Violation::Unexpected("DATA"));
        }
        let event = match piece {
            Piece::More => {
                if self.decoder.in_data() {
                    self.flow.receive_data(0)?;
                }
                Event::More
            }
            Piece::Data(data) => {
                self.flow.receive_data(data.len())?;
                Event::Data(data)
            }
            Piece::Frame(frame) => self.frame(frame)?,
        };
        Ok((used, event))
    }

    fn may_send(&self) -> u64 {
        match self.phase {
            _ if self.flow.fin_sent => 0,
            Phase::Opening => EARLY.saturating_sub(self.flow.sent),
            Phase::Open { .. } => u64::MAX,
            Phase::Idle { .. } | Phase::Closed => 0,
        }
    }

    fn data(&mut self, length: usize) -> Result<[u8; HEADER], Violation> {
        if self.may_send() < length as u64 {
            return Err(Violation::Misuse("DATA"));
        }
        self.flow.data(length)
    }

    fn fin(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        match self.phase {
            Phase::Opening | Phase::Open { .. } => self.flow.fin(out),
            Phase::Idle { .. } | Phase::Closed => Err(Violation::Misuse("FIN")),
        }
    }

    fn delivered(&mut self, _out: &mut Vec<u8>) -> Result<(), Violation> {
        self.flow.deliver()?;
        self.rest();
        Ok(())
    }

    fn leave(&mut self, _out: &mut Vec<u8>) {
        self.draining = true;
    }

    fn waits(&self) -> Wait {
        match self.phase {
            Phase::Idle { asked: false } => Wait::Stream,
            Phase::Idle { asked: true } | Phase::Opening => Wait::Answer,
            Phase::Open { .. } if self.flow.both_ended() => Wait::Settled,
            Phase::Open { .. } if self.flow.fin_sent || self.flow.fin_received => Wait::OtherHalf,
            Phase::Open { .. } => Wait::Nothing,
            Phase::Closed => Wait::Nothing,
        }
    }

    fn streaming(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open { .. })
    }

    fn moved(&self) -> u64 {
        self.flow.sent + self.flow.received
    }

    fn may_end(&self) -> bool {
        match self.phase {
            Phase::Idle { .. } | Phase::Closed => !self.decoder.in_data(),
            Phase::Opening => false,
            Phase::Open { .. } => self.flow.both_ended(),
        }
    }
}

/// A frame's name, for people.
pub(super) fn name(frame: &Frame<'_>) -> &'static str {
    match frame {
        Frame::Open(_) => "OPEN",
        Frame::Accept(_) => "ACCEPT",
        Frame::Reject(..) => "REJECT",
        Frame::Fin(..) => "FIN",
        Frame::Ping(_) => "PING",
        Frame::Drain(_) => "DRAIN",
    }
}
