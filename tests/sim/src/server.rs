//! An endpoint: so many places, a queue before them, and a service time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outrigger_proto::model::{Admission, Limit};
use outrigger_sidecar::policy::admission::Limiter;

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
    /// The sidecar before it, when that bounds what it gets.
    pub(crate) door: Option<Door>,
}

/// The inbound side of a sidecar: the limit of requests at the app, and the queue before it.
#[derive(Debug)]
pub(crate) struct Door {
    zero: Instant,
    settings: Admission,
    limiter: Limiter,
    pub(crate) queue: VecDeque<TryId>,
}

impl Door {
    /// A place at the app, when one is free and nobody waits.
    pub(crate) fn enter(&self) -> bool {
        self.queue.is_empty() && self.limiter.take()
    }

    /// Whether the queue has room.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < self.settings.queue_length as usize
    }

    /// How long a request may wait.
    pub(crate) fn patience(&self) -> Nanos {
        u64::try_from(self.settings.queue.as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// A request that has its place since `began` is answered.
    pub(crate) fn leaves(&self, began: Nanos, now: Nanos, failed: bool) {
        let at = |nanos| self.zero + Duration::from_nanos(nanos);
        self.limiter.answered(&self.settings, at(began), at(now), failed);
        self.limiter.give_back();
    }

    /// The next of those that wait, with a place; `gone` tells whose caller has gone.
    pub(crate) fn next(&mut self, gone: impl Fn(TryId) -> bool) -> Option<TryId> {
        while self.queue.front().is_some_and(|first| gone(*first)) {
            self.queue.pop_front();
        }
        if self.queue.is_empty() || !self.limiter.take() {
            return None;
        }
        self.queue.pop_front()
    }
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
            door: None,
        }
    }

    /// The same behind a sidecar with `admission: {limit: gradient}`.
    #[must_use]
    pub fn admitting(mut self) -> Self {
        let zero = Instant::now();
        let settings = Admission {
            limit: Limit::Gradient,
            min: 4,
            max: 1000,
            initial: 20,
            queue: Duration::from_millis(100),
            queue_length: 128,
        };
        self.door = Some(Door {
            zero,
            settings,
            limiter: Limiter::new(&settings, zero),
            queue: VecDeque::new(),
        });
        self
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
