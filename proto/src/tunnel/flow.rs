//! One stream's two directions, the same at both sides.

use super::{Frame, HEADER, MAX_DATA, Violation, put_data_header};

/// One stream, from OPEN on.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow {
    pub(super) number: u32,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) fin_sent: bool,
    pub(super) fin_received: bool,
    /// Everything received, the end included, is with the own app.
    pub(super) delivered: bool,
}

impl Flow {
    pub(super) fn new(number: u32) -> Self {
        Self {
            number,
            ..Self::default()
        }
    }

    /// Both apps have ended their direction.
    pub(super) fn both_ended(&self) -> bool {
        self.fin_sent && self.fin_received
    }

    /// Nothing of it is left at this side.
    pub(super) fn over(&self) -> bool {
        self.both_ended() && self.delivered
    }

    pub(super) fn data(&mut self, length: usize) -> Result<[u8; HEADER], Violation> {
        if self.fin_sent || !(1..=MAX_DATA).contains(&length) {
            return Err(Violation::Misuse("DATA"));
        }
        self.sent += length as u64;
        Ok(put_data_header(length))
    }

    pub(super) fn fin(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        if std::mem::replace(&mut self.fin_sent, true) {
            return Err(Violation::Misuse("FIN"));
        }
        Frame::Fin(self.number, self.sent).write(out);
        Ok(())
    }

    pub(super) fn receive_data(&mut self, length: usize) -> Result<(), Violation> {
        if self.fin_received {
            return Err(Violation::Unexpected("DATA after FIN"));
        }
        self.received += length as u64;
        Ok(())
    }

    pub(super) fn receive_fin(&mut self, number: u32, told: u64) -> Result<(), Violation> {
        expect("FIN", number, self.number)?;
        if told != self.received {
            return Err(Violation::Count {
                told,
                received: self.received,
            });
        }
        if std::mem::replace(&mut self.fin_received, true) {
            return Err(Violation::Unexpected("a second FIN"));
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self) -> Result<(), Violation> {
        if !self.fin_received || std::mem::replace(&mut self.delivered, true) {
            return Err(Violation::Misuse("the end of delivery"));
        }
        Ok(())
    }
}

/// Compares numbers.
pub(super) fn expect(what: &'static str, got: u32, expected: u32) -> Result<(), Violation> {
    if got == expected {
        return Ok(());
    }
    Err(Violation::Number { what, got, expected })
}
