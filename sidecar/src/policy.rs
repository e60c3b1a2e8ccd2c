//! Decisions about a request, pure: `now` and chance are arguments, nothing waits, nothing is sent.
//!
//! What the workers of a sidecar share are atomics without a lock: each state that has to be seen whole is one number.

pub mod admission;
pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod concurrency;
pub mod deadline;
pub mod external;
pub mod hedge;
pub mod outlier;
pub mod passing;
pub mod rate;
pub mod retry;
pub mod trip;
pub mod window;

/// The cells take their atomics from here, so that a test can try every interleaving of them.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
}

#[cfg(test)]
mod interleaved;
#[cfg(test)]
mod tests;
