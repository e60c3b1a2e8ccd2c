//! How long each wait may last.

use std::time::{Duration, Instant};

/// What a side waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wait {
    /// For nothing that has to come: a stream flows as its apps please.
    Nothing,
    /// For the next stream.
    Stream,
    /// Dialler: for ACCEPT or REJECT, or for the answer to a question.
    Answer,
    /// For the second FIN, after the first; or for the app to take what is left.
    OtherHalf,
    /// Dialler: for the acceptor to be done with a stream that has ended both ways.
    Settled,
}

/// How long each wait may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between streams. Less at the dialler than at the acceptor, so that the one who opens streams is
    /// also the one who gives up first, and no OPEN meets a connection that is being closed.
    pub idle: Duration,
    /// For an answer.
    pub answer: Duration,
    /// Half-closed, without one byte in the other direction.
    pub half_closed: Duration,
}

impl Limits {
    /// The dialler's: 30 s, 5 s, 1 h.
    pub const DIALLER: Self = Self {
        idle: Duration::from_secs(30),
        answer: Duration::from_secs(5),
        half_closed: Duration::from_secs(3600),
    };
    /// The acceptor's: 60 s; it waits for no answer; 1 h.
    pub const ACCEPTOR: Self = Self {
        idle: Duration::from_secs(60),
        ..Self::DIALLER
    };

    fn of(&self, wait: Wait) -> Option<Duration> {
        match wait {
            Wait::Nothing => None,
            Wait::Stream | Wait::Settled => Some(self.idle),
            Wait::Answer => Some(self.answer),
            Wait::OtherHalf => Some(self.half_closed),
        }
    }
}

/// A wait took too long; the connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", match .0 {
    Wait::Nothing | Wait::Stream => "no stream for a while",
    Wait::Answer => "no answer to OPEN or PING in time",
    Wait::OtherHalf => "half-closed and silent for too long",
    Wait::Settled => "the other end does not finish with the last stream",
})]
pub struct Late(pub Wait);

/// Watches one side's waits.
#[derive(Debug, Clone)]
pub struct Clock {
    limits: Limits,
    wait: Wait,
    until: Option<Instant>,
    moved: u64,
}

impl Clock {
    /// Watches from now on.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            wait: Wait::Nothing,
            until: None,
            moved: 0,
        }
    }

    /// What the side waits for now, having moved so many bytes. Gives when to look again at the latest.
    /// Bytes that moved while half-closed give the whole time again.
    ///
    /// # Errors
    /// When the wait took too long.
    pub fn look(&mut self, wait: Wait, moved: u64, now: Instant) -> Result<Option<Instant>, Late> {
        let late = self.until.is_some_and(|until| until <= now);
        if wait != self.wait || (late && wait == Wait::OtherHalf && moved != self.moved) {
            self.wait = wait;
            self.moved = moved;
            self.until = self.limits.of(wait).and_then(|limit| now.checked_add(limit));
        } else if late {
            return Err(Late(wait));
        }
        Ok(self.until)
    }

    /// True when [`look`](Self::look) would change nothing before its time: no clock need be read.
    #[must_use]
    pub fn knows(&self, wait: Wait) -> bool {
        self.wait == wait
    }
}
