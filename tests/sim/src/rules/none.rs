//! No policy: one endpoint after another, one try, a time-out.

use super::{Outcome, Rules};
use crate::server::secs;
use crate::world::Nanos;

/// Round robin and nothing else.
#[derive(Debug, Default)]
pub struct None {
    count: usize,
    next: usize,
}

impl Rules for None {
    fn endpoints(&mut self, _now: Nanos, endpoints: &[usize]) {
        self.count = endpoints.len();
    }

    fn pick(&mut self, _now: Nanos, rng: &mut fastrand::Rng, _tried: &[usize], _hedge: bool) -> Option<usize> {
        if self.next == 0 {
            self.next = rng.usize(..self.count.max(1));
        }
        self.next += 1;
        (self.count > 0).then(|| self.next % self.count)
    }

    fn ended(&mut self, _now: Nanos, _endpoint: usize, _outcome: Outcome, _took: Nanos) {}

    fn again(&mut self, _: Nanos, _: &mut fastrand::Rng, _: Outcome, _: u32, _: Nanos) -> Option<Nanos> {
        Option::None
    }

    fn timeout(&self) -> Option<Nanos> {
        Some(secs(1.0))
    }
}
