//! What holds for a request: time, tries, what counts as a failure; and what one caller does about failures.
//!
//! The control plane merges mesh, service and route; what arrives here is in force.

use std::time::Duration;

mod wire;

pub(super) use wire::{millis, optional, or};

/// What holds for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Bound on the whole request; a stream is not cut by it. Default none.
    pub timeout: Option<Duration>,
    /// To the head of one try's answer. Default none.
    pub per_try: Option<Duration>,
    /// A stream on which nothing moves ends after it. Default none.
    pub idle: Option<Duration>,
    /// Waiting for a place under [`Concurrency`]. Default 1 s.
    pub queue: Duration,
    /// The app says that a request may be done twice.
    pub idempotent: bool,
    /// Tries of what may have been processed.
    pub retry: Retry,
    /// A second request while the first is slow. Default none.
    pub hedge: Option<Hedge>,
    /// What counts for breaker and ejection.
    pub failures: Outcomes,
    /// How much it matters when not everything can be served.
    pub priority: Priority,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            timeout: None,
            per_try: None,
            idle: None,
            queue: Duration::from_secs(1),
            idempotent: false,
            retry: Retry::default(),
            hedge: None,
            failures: Outcomes::failures(),
            priority: Priority::Normal,
        }
    }
}

/// Tries of what may have been processed. What was never sent is tried again always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// In all, the first among them. Default 1: none.
    pub attempts: u32,
    /// After which outcomes.
    pub on: Outcomes,
    /// The first wait, before jitter; doubles. Default 25 ms.
    pub backoff: Duration,
    /// The longest wait, before jitter. Default ten times the first.
    pub max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: Outcomes::retried(),
            backoff: BACKOFF,
            max_backoff: BACKOFF * 10,
        }
    }
}

const BACKOFF: Duration = Duration::from_millis(25);
/// Most tries of one request.
const MAX_ATTEMPTS: u32 = 10;

/// A second request while the first is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedge {
    /// Sent after this time; none: after the 95th percentile of the latency seen.
    pub after: Option<Duration>,
}

/// How much a request matters when not everything can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Shed first.
    Low,
    /// What says nothing.
    #[default]
    Normal,
    /// Shed last.
    High,
}

/// A set of ways to end. Membership is a few instructions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// Bit `status - 100`.
    statuses: [u64; 8],
    /// Bit `grpc-status`.
    grpc: u32,
    /// No head of an answer within the time of one try.
    pub timeout: bool,
    /// The connection or stream broke after something was sent.
    pub reset: bool,
    /// No connection.
    pub connect: bool,
}

impl Outcomes {
    /// What counts as a failure of the service unless the route says otherwise: 500, 502, 503, 504; `UNKNOWN`,
    /// `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`; time-outs, resets, failed connections. Never what the
    /// caller did wrong, and never load (429, `RESOURCE_EXHAUSTED`).
    #[must_use]
    pub fn failures() -> Self {
        Self {
            timeout: true,
            reset: true,
            connect: true,
            ..Self::of(&[500, 502, 503, 504], &[2, 4, 13, 14, 15])
        }
    }

    /// What is tried again unless the route says otherwise: 502, 503, 504, `UNAVAILABLE`, time-outs, resets.
    #[must_use]
    pub fn retried() -> Self {
        Self {
            timeout: true,
            reset: true,
            ..Self::of(&[502, 503, 504], &[14])
        }
    }

    /// The set of these HTTP statuses and gRPC codes; numbers out of range are left out.
    #[must_use]
    pub fn of(statuses: &[u16], grpc: &[u32]) -> Self {
        let mut set = Self::default();
        for status in statuses {
            set.add_status(*status);
        }
        for code in grpc {
            set.add_grpc(*code);
        }
        set
    }

    /// Adds an HTTP status; one that is not 100 to 599 is left out.
    pub fn add_status(&mut self, status: u16) {
        if let Some((word, bit)) = place(status)
            && let Some(word) = self.statuses.get_mut(word)
        {
            *word |= bit;
        }
    }

    /// Adds a `grpc-status`; one that is not 1 to 16 is left out.
    pub fn add_grpc(&mut self, code: u32) {
        if (1..=16).contains(&code) {
            self.grpc |= 1 << code;
        }
    }

    /// Whether an HTTP status is in the set.
    #[must_use]
    pub fn has_status(&self, status: u16) -> bool {
        place(status).is_some_and(|(word, bit)| self.statuses.get(word).is_some_and(|w| w & bit != 0))
    }

    /// Whether a `grpc-status` is in the set; 0 never is.
    #[must_use]
    pub fn has_grpc(&self, code: u32) -> bool {
        (1..=16).contains(&code) && self.grpc & (1 << code) != 0
    }

    /// The HTTP statuses, ascending.
    pub fn statuses(&self) -> impl Iterator<Item = u16> + '_ {
        (100..600).filter(|s| self.has_status(*s))
    }

    /// The gRPC codes, ascending.
    pub fn grpc(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=16).filter(|c| self.has_grpc(*c))
    }
}

fn place(status: u16) -> Option<(usize, u64)> {
    let n = status.checked_sub(100).filter(|n| *n < 500)?;
    Some((usize::from(n / 64), 1 << (n % 64)))
}

/// Bounds the tries of what may have been processed, of one caller to one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the requests of the last 10 s. Default 20.
    pub percent: u32,
    /// Always allowed. Default 3.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            min_per_second: 3,
        }
    }
}

/// When a row of outcomes is too bad. A criterion of 0 is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trip {
    /// Failures in a row.
    pub consecutive: u32,
    /// Failures of all in the window, percent.
    pub rate_percent: u32,
    /// An answer that takes longer is slow.
    pub slow: Option<Duration>,
    /// Slow ones of all in the window, percent.
    pub slow_percent: u32,
    /// Outcomes in the window before a rate counts. Default 20.
    pub min_requests: u32,
    /// Default 10 s.
    pub window: Duration,
}

impl Default for Trip {
    fn default() -> Self {
        Self {
            consecutive: 0,
            rate_percent: 0,
            slow: None,
            slow_percent: 0,
            min_requests: 20,
            window: Duration::from_secs(10),
        }
    }
}

/// One caller stops calling a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// When it opens.
    pub trip: Trip,
    /// Open for so long, then probes; doubles at each failed probe. Default 10 s.
    pub cooldown: Duration,
    /// Bound on the doubling. Default 5 min.
    pub max_cooldown: Duration,
    /// Requests let through to try; all must be well. Default 3.
    pub probes: u32,
}

/// One caller stops using an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlier {
    /// When it is ejected; none: never. Default 5 failures in a row.
    pub trip: Option<Trip>,
    /// Times the number of ejections in a row. Default 30 s.
    pub ejection: Duration,
    /// Bound on the growth. Default 5 min.
    pub max_ejection: Duration,
    /// Of the endpoints, rounded down. Default 50.
    pub max_ejected_percent: u32,
    /// Fewer usable endpoints than this share, and all are used, ejected or not. 0: never. Default 50.
    pub panic_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            trip: Some(Trip {
                consecutive: 5,
                ..Trip::default()
            }),
            ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            panic_percent: 50,
        }
    }
}

/// Bounds of one caller to one service. None: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// Requests in flight to the service.
    pub requests: Option<u32>,
    /// Requests in flight to one endpoint.
    pub endpoint_requests: Option<u32>,
    /// Requests waiting for a place; above, refused at once. Default 1,024.
    pub pending: u32,
    /// Connections to the service.
    pub connections: Option<u32>,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            requests: None,
            endpoint_requests: None,
            pending: 1024,
            connections: None,
        }
    }
}
