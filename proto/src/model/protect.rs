//! What a sidecar does so that its own app is not asked for more than it can answer.

use std::time::Duration;

use super::policy::{millis, or};
use super::route::Match;
use super::{FieldError, Priority, duration};
use crate::wire::mesh as wire;

/// How many requests the app gets at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// How the limit is found.
    pub limit: Limit,
    /// The adaptive limit never goes below. Default 4.
    pub min: u32,
    /// The adaptive limit never goes above. Default 1,000.
    pub max: u32,
    /// Where it begins. Default 20.
    pub initial: u32,
    /// A request that waited longer is shed. Default 100 ms.
    pub queue: Duration,
    /// Requests that wait; above, shed at once. Default 128.
    pub queue_length: u32,
}

/// How the limit of requests in flight is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// It is known.
    Fixed(u32),
    /// Grows while latency stays near its long-term value, shrinks by the ratio of both.
    Gradient,
    /// Grows by one, shrinks by a tenth on failure or lateness.
    Aimd,
}

/// Requests a second, in a token bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Unique in the service; shown in answers and counters.
    pub name: String,
    /// Which requests; none = all.
    pub matches: Vec<Match>,
    /// In [`period`](Self::period); at least 1.
    pub requests: u64,
    /// Default 1 s.
    pub period: Duration,
    /// Size of the bucket. Default one period's worth.
    pub burst: u32,
    /// Whose requests share a bucket.
    pub by: RateLimitBy,
    /// The quota holds for all instances together.
    pub mesh: bool,
}

impl RateLimit {
    /// In these parts the rate of a limit that holds for all instances together is divided.
    pub const WHOLE: u32 = 1_000_000;
    /// What an instance lets through of such a limit until the control plane told it its first share.
    pub const START: u32 = Self::WHOLE / 10;
}

/// Whose requests share a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateLimitBy {
    /// All of them.
    All,
    /// Those of one identity; callers without one share one.
    Caller,
    /// Those with one value of this header, lower case; requests without it share one.
    Header(String),
}

/// Which requests matter more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityRule {
    /// Any of them; none = all.
    pub matches: Vec<Match>,
    /// What they get.
    pub priority: Priority,
}

impl TryFrom<wire::Admission> for Admission {
    type Error = FieldError;

    fn try_from(wire: wire::Admission) -> Result<Self, FieldError> {
        use wire::admission::Limit as Wire;
        let limit = match wire.limit {
            Some(Wire::Fixed(n @ 1..)) => Limit::Fixed(n),
            Some(Wire::Gradient(true)) => Limit::Gradient,
            Some(Wire::Aimd(true)) => Limit::Aimd,
            _ => return Err(FieldError::new("limit", "it is neither a number above 0 nor a rule")),
        };
        let (min, max) = (or(wire.min, 4), or(wire.max, 1000));
        if min > max {
            return Err(FieldError::new("min", format!("{min} is more than the max of {max}")));
        }
        Ok(Self {
            limit,
            min,
            max,
            initial: or(wire.initial, 20).clamp(min, max),
            queue: duration(wire.queue_ms, "queue_ms", Duration::from_millis(100))?,
            queue_length: or(wire.queue, 128),
        })
    }
}

impl From<&Admission> for wire::Admission {
    fn from(admission: &Admission) -> Self {
        use wire::admission::Limit as Wire;
        Self {
            limit: Some(match admission.limit {
                Limit::Fixed(n) => Wire::Fixed(n),
                Limit::Gradient => Wire::Gradient(true),
                Limit::Aimd => Wire::Aimd(true),
            }),
            min: admission.min,
            max: admission.max,
            initial: admission.initial,
            queue_ms: millis(admission.queue),
            queue: admission.queue_length,
        }
    }
}

impl TryFrom<wire::RateLimit> for RateLimit {
    type Error = FieldError;

    fn try_from(wire: wire::RateLimit) -> Result<Self, FieldError> {
        use wire::rate_limit::By;
        if wire.requests == 0 {
            return Err(FieldError::new("requests", "0 would refuse everything"));
        }
        Ok(Self {
            name: wire.name,
            matches: Match::list(wire.matches)?,
            requests: wire.requests,
            period: duration(wire.period_ms, "period_ms", Duration::from_secs(1))?,
            burst: or(wire.burst, u32::try_from(wire.requests).unwrap_or(u32::MAX)),
            by: match wire.by {
                None | Some(By::All(_)) => RateLimitBy::All,
                Some(By::Caller(_)) => RateLimitBy::Caller,
                Some(By::Header(name)) => RateLimitBy::Header(name.to_ascii_lowercase()),
            },
            mesh: wire.mesh,
        })
    }
}

impl From<&RateLimit> for wire::RateLimit {
    fn from(limit: &RateLimit) -> Self {
        use wire::rate_limit::By;
        Self {
            name: limit.name.clone(),
            matches: limit.matches.iter().map(Into::into).collect(),
            requests: limit.requests,
            period_ms: millis(limit.period),
            burst: limit.burst,
            by: Some(match &limit.by {
                RateLimitBy::All => By::All(true),
                RateLimitBy::Caller => By::Caller(true),
                RateLimitBy::Header(name) => By::Header(name.clone()),
            }),
            mesh: limit.mesh,
        }
    }
}

impl TryFrom<wire::Priority> for PriorityRule {
    type Error = FieldError;

    fn try_from(wire: wire::Priority) -> Result<Self, FieldError> {
        Ok(Self {
            matches: Match::list(wire.matches)?,
            priority: Priority::try_from_wire(wire.priority)?,
        })
    }
}

impl From<&PriorityRule> for wire::Priority {
    fn from(rule: &PriorityRule) -> Self {
        Self {
            matches: rule.matches.iter().map(Into::into).collect(),
            priority: rule.priority.wire(),
        }
    }
}
