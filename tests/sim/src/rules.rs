//! What a caller does: which endpoint, when again, when not at all.

mod envoy;
mod linkerd;
mod none;
mod outrigger;

use outrigger_sidecar::policy::breaker::Pass;

use crate::scenes::Movement;
use crate::world::Nanos;

pub use envoy::Envoy;
pub use linkerd::Linkerd;
pub use none::None as Nothing;
pub use outrigger::{Outrigger, Setting};

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A good answer.
    Good,
    /// A failure, like 503.
    Failed,
    /// A failure of one that has tried again already, and says so.
    FailedFinally,
    /// An overload answer, like 429.
    Overloaded,
    /// No connection: nothing was sent.
    Refused,
    /// No answer in time.
    Timeout,
    /// Nobody waits for it any more.
    Cancelled,
}

/// What a caller does. Times are nanoseconds since the beginning.
pub trait Rules {
    /// The service's endpoints, by number; those that stay keep what is known of them.
    fn endpoints(&mut self, now: Nanos, endpoints: &[usize]);
    /// Whether a new request may go at all; what it gives comes back in [`over`](Self::over).
    fn admit(&mut self, _now: Nanos) -> Option<Pass> {
        Some(Pass::Free)
    }
    /// A request that was let through has ended; `failed` is none when it told nothing of the service.
    fn over(&mut self, _now: Nanos, _pass: Pass, _failed: Option<bool>, _took: Nanos) {}
    /// The endpoint of the next try, by place in the list. `hedge`: beside one that is under way.
    fn pick(&mut self, now: Nanos, rng: &mut fastrand::Rng, tried: &[usize], hedge: bool) -> Option<usize>;
    /// A try has ended.
    fn ended(&mut self, now: Nanos, endpoint: usize, outcome: Outcome, took: Nanos);
    /// Whether to try again after a failure, and after which wait. `tries`: so far. `spent`: since the request began.
    fn again(
        &mut self,
        now: Nanos,
        rng: &mut fastrand::Rng,
        outcome: Outcome,
        tries: u32,
        spent: Nanos,
    ) -> Option<Nanos>;
    /// Bound on the whole request.
    fn timeout(&self) -> Option<Nanos>;
    /// Bound on one try.
    fn per_try(&self) -> Option<Nanos> {
        None
    }
    /// When to send a second one beside the first.
    fn hedge_after(&mut self, _now: Nanos) -> Option<Nanos> {
        None
    }
    /// Whether a failed answer after so many tries tells callers not to try again.
    fn answers_are_final(&self, _tries: u32) -> bool {
        false
    }
}

/// Keys that move when one of `n` endpoints leaves a hash.
#[must_use]
pub fn hash_movement(n: usize) -> Movement {
    outrigger::movement(n)
}
