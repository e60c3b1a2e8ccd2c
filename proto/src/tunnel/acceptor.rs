//! The side that is asked for streams.

use super::dialler::name;
use super::flow::{Flow, expect};
use super::open::{Open, Read};
use super::{Decoder, Event, Frame, HEADER, MOST_QUESTIONS, Piece, Refusal, Side, Violation, Wait};

/// The side that is asked for streams.
#[derive(Debug, Clone)]
pub struct Acceptor {
    decoder: Decoder,
    phase: Phase,
    flow: Flow,
    draining: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between streams, and so many questions answered since the last.
    Idle { questions: u32 },
    /// OPEN has come; what follows it stays unread until the answer.
    Asked,
    /// An app is at this end.
    Open,
    /// No stream will follow, and what still comes is not looked at.
    Closed,
}

impl Default for Acceptor {
    fn default() -> Self {
        Self {
            decoder: Decoder::default(),
            phase: Phase::Idle { questions: 0 },
            flow: Flow::default(),
            draining: false,
        }
    }
}

impl Acceptor {
    /// The stream has an app: what follows OPEN may be read.
    ///
    /// # Errors
    /// When no stream was asked for.
    pub fn accept(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        if self.phase != Phase::Asked {
            return Err(Violation::Misuse("ACCEPT"));
        }
        self.phase = Phase::Open;
        Frame::Accept(self.flow.number).write(out);
        Ok(())
    }

    /// The stream is refused; the connection closes after that, because what the dialler has sent
    /// behind its OPEN has no end that could be waited for.
    ///
    /// # Errors
    /// When no stream was asked for.
    pub fn reject(&mut self, refusal: Refusal, out: &mut Vec<u8>) -> Result<(), Violation> {
        if self.phase != Phase::Asked {
            return Err(Violation::Misuse("REJECT"));
        }
        self.phase = Phase::Closed;
        Frame::Reject(self.flow.number, refusal).write(out);
        Ok(())
    }

    /// True when the connection is to be closed: a stream was refused, or the last one is over.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    fn frame<'a>(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<Event<'a>, Violation> {
        match (frame, self.phase) {
            (Frame::Open(body), Phase::Idle { .. }) => {
                let next = self.flow.number.checked_add(1).ok_or(Violation::Unexpected("OPEN"))?;
                let read = Open::read(body)?;
                let (Read::Whole(Open { number, .. }) | Read::Unsupported(number)) = read;
                expect("OPEN", number, next)?;
                self.flow = Flow::new(number);
                self.phase = Phase::Asked;
                match read {
                    Read::Whole(open) => Ok(Event::Open(Box::new(open))),
                    Read::Unsupported(_) => {
                        self.reject(Refusal::Unsupported, out)?;
                        Ok(Event::Rejected(Refusal::Unsupported))
                    }
                }
            }
            (Frame::Ping(number), Phase::Idle { questions }) if questions < MOST_QUESTIONS => {
                expect("PING", number, self.flow.number)?;
                self.phase = Phase::Idle {
                    questions: questions + 1,
                };
                Frame::Ping(number).write(out);
                Ok(Event::Asked)
            }
            (Frame::Fin(number, count), Phase::Open) => {
                self.flow.receive_fin(number, count)?;
                Ok(Event::Fin)
            }
            (frame, _) => Err(Violation::Unexpected(name(&frame))),
        }
    }

    /// Between streams when nothing of the last one is left here, and says so.
    fn rest(&mut self, out: &mut Vec<u8>) {
        if self.phase != Phase::Open || !self.flow.over() {
            return;
        }
        Frame::Ping(self.flow.number).write(out);
        self.phase = match self.draining {
            true => Phase::Closed,
            false => Phase::Idle { questions: 0 },
        };
    }
}

impl Side for Acceptor {
    fn receive<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> Result<(usize, Event<'a>), Violation> {
        match self.phase {
            // Nothing behind OPEN is looked at before somebody is there to take it.
            Phase::Asked => return Ok((0, Event::More)),
            Phase::Closed => return Ok((input.len(), Event::More)),
            Phase::Idle { .. } | Phase::Open => {}
        }
        let (used, piece) = self.decoder.next(input)?;
        if (self.decoder.in_data() || matches!(piece, Piece::Data(_))) && self.phase != Phase::Open {
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
            Piece::Frame(frame) => self.frame(frame, out)?,
        };
        Ok((used, event))
    }

    fn may_send(&self) -> u64 {
        match self.phase {
            Phase::Open if !self.flow.fin_sent => u64::MAX,
            _ => 0,
        }
    }

    fn data(&mut self, length: usize) -> Result<[u8; HEADER], Violation> {
        if self.phase != Phase::Open {
            return Err(Violation::Misuse("DATA"));
        }
        self.flow.data(length)
    }

    fn fin(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        if self.phase != Phase::Open {
            return Err(Violation::Misuse("FIN"));
        }
        self.flow.fin(out)?;
        self.rest(out);
        Ok(())
    }

    fn delivered(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        self.flow.deliver()?;
        self.rest(out);
        Ok(())
    }

    /// Writes DRAIN once: an OPEN that comes from now on is not looked at.
    fn leave(&mut self, out: &mut Vec<u8>) {
        if self.phase == Phase::Closed || std::mem::replace(&mut self.draining, true) {
            return;
        }
        Frame::Drain(self.flow.number).write(out);
        if matches!(self.phase, Phase::Idle { .. }) {
            self.phase = Phase::Closed;
        }
    }

    fn waits(&self) -> Wait {
        match self.phase {
            Phase::Idle { .. } => Wait::Stream,
            Phase::Asked | Phase::Closed => Wait::Nothing,
            Phase::Open if self.flow.both_ended() => Wait::OtherHalf,
            Phase::Open if self.flow.fin_sent || self.flow.fin_received => Wait::OtherHalf,
            Phase::Open => Wait::Nothing,
        }
    }

    fn streaming(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Open)
    }

    fn moved(&self) -> u64 {
        self.flow.sent + self.flow.received
    }

    fn may_end(&self) -> bool {
        match self.phase {
            Phase::Idle { .. } => !self.decoder.in_data(),
            Phase::Closed => true,
            Phase::Asked => false,
            Phase::Open => self.flow.both_ended(),
        }
    }
}
