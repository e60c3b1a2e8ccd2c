//! Policies from and to the wire, where 0 is a default.

use std::time::Duration;

use super::{
    BACKOFF, Breaker, Concurrency, Hedge, MAX_ATTEMPTS, Outcomes, Outlier, Policy, Priority, Retry, RetryBudget, Trip,
};
use crate::model::{FieldError, duration};
use crate::wire::mesh as wire;

impl TryFrom<wire::Policy> for Policy {
    type Error = FieldError;

    fn try_from(wire: wire::Policy) -> Result<Self, FieldError> {
        let retry = wire.retry.map(|r| Retry::try_from(r).map_err(|e| e.under("retry")));
        let failures = wire
            .failures
            .map(|o| Outcomes::try_from(o).map_err(|e| e.under("failures")));
        let hedge = wire.hedge.map(|h| {
            Ok(Hedge {
                after: optional(h.after_ms, "hedge.after_ms")?,
            })
        });
        Ok(Self {
            timeout: optional(wire.timeout_ms, "timeout_ms")?,
            per_try: optional(wire.per_try_timeout_ms, "per_try_timeout_ms")?,
            idle: optional(wire.idle_timeout_ms, "idle_timeout_ms")?,
            queue: duration(wire.queue_timeout_ms, "queue_timeout_ms", Self::default().queue)?,
            idempotent: wire.idempotent,
            retry: retry.transpose()?.unwrap_or_default(),
            hedge: hedge.transpose()?,
            failures: failures.transpose()?.unwrap_or_else(Outcomes::failures),
            priority: Priority::try_from_wire(wire.priority)?,
        })
    }
}

impl From<&Policy> for wire::Policy {
    fn from(policy: &Policy) -> Self {
        Self {
            timeout_ms: policy.timeout.map_or(0, millis),
            per_try_timeout_ms: policy.per_try.map_or(0, millis),
            idle_timeout_ms: policy.idle.map_or(0, millis),
            queue_timeout_ms: millis(policy.queue),
            idempotent: policy.idempotent,
            retry: Some(wire::Retry {
                attempts: policy.retry.attempts,
                on: Some((&policy.retry.on).into()),
                backoff_ms: millis(policy.retry.backoff),
                max_backoff_ms: millis(policy.retry.max_backoff),
            }),
            hedge: policy.hedge.map(|h| wire::Hedge {
                after_ms: h.after.map_or(0, millis),
            }),
            failures: Some((&policy.failures).into()),
            priority: policy.priority.wire(),
        }
    }
}

impl TryFrom<wire::Retry> for Retry {
    type Error = FieldError;

    fn try_from(wire: wire::Retry) -> Result<Self, FieldError> {
        if wire.attempts > MAX_ATTEMPTS {
            return Err(FieldError::new(
                "attempts",
                format!("{} is more than {MAX_ATTEMPTS}", wire.attempts),
            ));
        }
        let backoff = duration(wire.backoff_ms, "backoff_ms", BACKOFF)?;
        let on = wire.on.map(|o| Outcomes::try_from(o).map_err(|e| e.under("on")));
        Ok(Self {
            attempts: wire.attempts.max(1),
            on: on.transpose()?.unwrap_or_else(Outcomes::retried),
            backoff,
            max_backoff: duration(wire.max_backoff_ms, "max_backoff_ms", backoff.saturating_mul(10))?.max(backoff),
        })
    }
}

impl TryFrom<wire::Outcomes> for Outcomes {
    type Error = FieldError;

    fn try_from(wire: wire::Outcomes) -> Result<Self, FieldError> {
        let mut set = Self {
            timeout: wire.timeout,
            reset: wire.reset,
            connect: wire.connect,
            ..Self::default()
        };
        for status in wire.statuses {
            match u16::try_from(status) {
                Ok(status @ 100..=599) => set.add_status(status),
                _ => return Err(FieldError::new("statuses", format!("{status} is not 100 to 599"))),
            }
        }
        for code in wire.grpc {
            match code {
                1..=16 => set.add_grpc(code),
                _ => return Err(FieldError::new("grpc", format!("{code} is not 1 to 16"))),
            }
        }
        Ok(set)
    }
}

impl From<&Outcomes> for wire::Outcomes {
    fn from(set: &Outcomes) -> Self {
        Self {
            statuses: set.statuses().map(u32::from).collect(),
            grpc: set.grpc().collect(),
            timeout: set.timeout,
            reset: set.reset,
            connect: set.connect,
        }
    }
}

impl Priority {
    pub(in super::super) fn try_from_wire(number: u32) -> Result<Self, FieldError> {
        Ok(match number {
            1 => Self::Low,
            0 | 2 => Self::Normal,
            3 => Self::High,
            _ => return Err(FieldError::new("priority", format!("{number} is unknown"))),
        })
    }

    pub(in super::super) fn wire(self) -> u32 {
        match self {
            Self::Low => 1,
            Self::Normal => 2,
            Self::High => 3,
        }
    }

    /// The spelling in files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl TryFrom<wire::RetryBudget> for RetryBudget {
    type Error = FieldError;

    fn try_from(wire: wire::RetryBudget) -> Result<Self, FieldError> {
        let default = Self::default();
        Ok(Self {
            percent: percent(wire.percent, "percent", default.percent)?,
            min_per_second: or(wire.min_per_second, default.min_per_second),
        })
    }
}

impl From<&RetryBudget> for wire::RetryBudget {
    fn from(budget: &RetryBudget) -> Self {
        Self {
            percent: budget.percent,
            min_per_second: budget.min_per_second,
        }
    }
}

impl TryFrom<wire::Trip> for Trip {
    type Error = FieldError;

    fn try_from(wire: wire::Trip) -> Result<Self, FieldError> {
        let default = Self::default();
        Ok(Self {
            consecutive: wire.consecutive,
            rate_percent: percent(wire.rate_percent, "rate_percent", 0)?,
            slow: optional(wire.slow_ms, "slow_ms")?,
            slow_percent: percent(wire.slow_percent, "slow_percent", 0)?,
            min_requests: or(wire.min_requests, default.min_requests),
            window: duration(wire.window_ms, "window_ms", default.window)?,
        })
    }
}

impl From<&Trip> for wire::Trip {
    fn from(trip: &Trip) -> Self {
        Self {
            consecutive: trip.consecutive,
            rate_percent: trip.rate_percent,
            slow_ms: trip.slow.map_or(0, millis),
            slow_percent: trip.slow_percent,
            min_requests: trip.min_requests,
            window_ms: millis(trip.window),
        }
    }
}

impl TryFrom<wire::Breaker> for Breaker {
    type Error = FieldError;

    fn try_from(wire: wire::Breaker) -> Result<Self, FieldError> {
        let cooldown = duration(wire.cooldown_ms, "cooldown_ms", Duration::from_secs(10))?;
        Ok(Self {
            trip: Trip::try_from(wire.trip.unwrap_or_default()).map_err(|e| e.under("trip"))?,
            cooldown,
            max_cooldown: duration(wire.max_cooldown_ms, "max_cooldown_ms", Duration::from_secs(300))?.max(cooldown),
            probes: or(wire.probes, 3),
        })
    }
}

impl From<&Breaker> for wire::Breaker {
    fn from(breaker: &Breaker) -> Self {
        Self {
            trip: Some((&breaker.trip).into()),
            cooldown_ms: millis(breaker.cooldown),
            max_cooldown_ms: millis(breaker.max_cooldown),
            probes: breaker.probes,
        }
    }
}

impl TryFrom<wire::Outlier> for Outlier {
    type Error = FieldError;

    fn try_from(wire: wire::Outlier) -> Result<Self, FieldError> {
        let default = Self::default();
        let trip = wire.trip.map(|t| Trip::try_from(t).map_err(|e| e.under("trip")));
        let ejection = duration(wire.ejection_ms, "ejection_ms", default.ejection)?;
        Ok(Self {
            trip: match wire.off {
                true => None,
                false => trip.transpose()?.or(default.trip),
            },
            ejection,
            max_ejection: duration(wire.max_ejection_ms, "max_ejection_ms", default.max_ejection)?.max(ejection),
            max_ejected_percent: percent(
                wire.max_ejected_percent,
                "max_ejected_percent",
                default.max_ejected_percent,
            )?,
            panic_percent: match wire.panic_percent {
                None => default.panic_percent,
                // 0 is not the default here: it means never.
                Some(share) => percent(share, "panic_percent", 0)?,
            },
        })
    }
}

impl From<&Outlier> for wire::Outlier {
    fn from(outlier: &Outlier) -> Self {
        Self {
            off: outlier.trip.is_none(),
            trip: outlier.trip.as_ref().map(Into::into),
            ejection_ms: millis(outlier.ejection),
            max_ejection_ms: millis(outlier.max_ejection),
            max_ejected_percent: outlier.max_ejected_percent,
            panic_percent: Some(outlier.panic_percent),
        }
    }
}

impl From<wire::Concurrency> for Concurrency {
    fn from(wire: wire::Concurrency) -> Self {
        let some = |n: u32| (n > 0).then_some(n);
        Self {
            requests: some(wire.requests),
            endpoint_requests: some(wire.endpoint_requests),
            pending: or(wire.pending, Self::default().pending),
            connections: some(wire.connections),
        }
    }
}

impl From<&Concurrency> for wire::Concurrency {
    fn from(bounds: &Concurrency) -> Self {
        Self {
            requests: bounds.requests.unwrap_or(0),
            endpoint_requests: bounds.endpoint_requests.unwrap_or(0),
            pending: bounds.pending,
            connections: bounds.connections.unwrap_or(0),
        }
    }
}

/// 0 of the wire as none.
pub(in super::super) fn optional(ms: u32, path: &str) -> Result<Option<Duration>, FieldError> {
    match ms {
        0 => Ok(None),
        ms => duration(ms, path, Duration::ZERO).map(Some),
    }
}

/// Milliseconds of the wire; at least 1, because 0 means the default.
pub(in super::super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

pub(in super::super) fn or(number: u32, default: u32) -> u32 {
    if number == 0 { default } else { number }
}

fn percent(number: u32, path: &str, default: u32) -> Result<u32, FieldError> {
    match number {
        0..=100 => Ok(or(number, default)),
        _ => Err(FieldError::new(path, format!("{number} is more than 100"))),
    }
}
