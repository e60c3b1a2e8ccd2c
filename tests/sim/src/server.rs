//! An endpoint: so many places, a queue before them, and a service time.

use std::collections::VecDeque;

use crate::world::{Nanos, TryId};

/// How an endpoint treats what reaches it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    /// Answers, taking this many times its usual service time.
    Up(f64),
    /// Answers a failure after a thousandth of its service time.
    Failing,
    /// Refuses connections.
    Refusing,
    /// Takes requests and never answers.
    Silent,
}

/// One endpoint.
#[derive(Debug)]
pub struct Server {
    /// How it is at the moment.
    pub state: State,
    /// Mean service time; the time of one request is exponentially distributed.
    pub mean: Nanos,
    /// Requests served side by side.
    pub places: usize,
    /// Requests that wait; more are refused with an overload answer.
    pub queue_length: usize,
    /// What it calls before it answers.
    pub calls: Option<usize>,
    /// Requests served so far.
    pub served: u64,
    /// While above 0, this endpoint is cold: service takes longer until so many have been served.
    pub cold: u64,
    pub(crate) busy: usize,
    pub(crate) waiting: VecDeque<TryId>,
    /// Requests that reached it, answered or not.
    pub reached: u64,
}

impl Server {
    /// An endpoint of `places` with a mean service time in milliseconds.
    #[must_use]
    pub fn new(places: usize, mean_ms: f64) -> Self {
        Self {
            state: State::Up(1.0),
            mean: ms(mean_ms),
            places,
            queue_length: 1000,
            calls: None,
            served: 0,
            cold: 0,
            busy: 0,
            waiting: VecDeque::new(),
            reached: 0,
        }
    }

    /// How long the next request takes.
    pub(crate) fn service_time(&self, rng: &mut fastrand::Rng) -> Nanos {
        let slow = match self.state {
            State::Up(times) => times,
            State::Failing => 0.001,
            State::Refusing | State::Silent => 1.0,
        };
        // A cold cache: each request fills a part of it.
        let cold = if self.served < self.cold {
            1.0 + 9.0 * (1.0 - self.served as f64 / self.cold as f64)
        } else {
            1.0
        };
        exponential(rng, self.mean as f64 * slow * cold)
    }
}

/// A random time with that mean.
pub(crate) fn exponential(rng: &mut fastrand::Rng, mean: f64) -> Nanos {
    (-(1.0 - rng.f64()).ln() * mean) as Nanos
}

/// Milliseconds in nanoseconds.
#[must_use]
pub fn ms(millis: f64) -> Nanos {
    (millis * 1e6) as Nanos
}

/// Seconds in nanoseconds.
#[must_use]
pub fn secs(seconds: f64) -> Nanos {
    ms(seconds * 1e3)
}
