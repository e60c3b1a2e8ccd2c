//! Which endpoint next. Pure: time and chance are arguments, and what is seen of the endpoints is asked of [`Sight`].
//!
//! A [`Picker`] is made by each worker whenever a service or its endpoints change; [`choose`] goes over the pickers of a
//! service and of what it fails over to. Hash tables ([`Table`]) are big: they are made once and shared by the workers.

pub mod ewma;
mod hash;
mod order;
mod picker;
mod pool;
mod stride;
mod table;
#[cfg(test)]
mod tests;

pub use hash::hash;
pub use order::{Resort, choose};
pub use picker::{Candidate, Picker, Setting};
pub use table::{Node, Table};

use std::time::Instant;

/// Whether an endpoint may be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Ready,
    /// It has as many requests as it may have; that passes, and says nothing against it.
    Full,
    /// It failed too often, and is left alone for a while.
    Ejected,
}

/// What is seen of the endpoints at one moment, by their number.
pub trait Sight {
    /// Whether it may be used.
    fn standing(&self, endpoint: usize) -> Standing;
    /// Requests without an end yet.
    fn in_flight(&self, endpoint: usize) -> u32;
    /// How long an answer takes, in any unit; above 0.
    fn latency(&self, endpoint: usize) -> f64;
}

/// What one try asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Now.
    pub now: Instant,
    /// Stands for the request, when the service is balanced by hash and the request has the value.
    pub hash: Option<u64>,
    /// Endpoints that the request has tried.
    pub tried: &'a [usize],
}
