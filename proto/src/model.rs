//! The validated model: what the programs decide with.
//!
//! Every value comes from the wire by `TryFrom`, so one parser serves sidecar, control plane and
//! command line. A value that exists is valid; nothing downstream checks again. No I/O, no clock.

mod access;
mod endpoint;
mod identity;
mod limits;
pub(crate) mod name;
mod policy;
mod protect;
mod proxy;
mod resource;
mod route;
mod service;
#[cfg(test)]
mod tests;
mod token;

pub use access::{Access, Principal, Rule};
pub use endpoint::{Endpoint, EndpointPort};
pub use identity::{Revocation, SpiffeId, TrustBundle, check_trust_domain};
pub use limits::{Limits, Trailers, Underscores};
pub(crate) use name::label as check_label;
pub use name::{EndpointName, ServiceName};
pub use policy::{Breaker, Concurrency, Hedge, Outcomes, Outlier, Policy, Priority, Retry, RetryBudget, Trip};
pub use protect::{Admission, Limit, PriorityRule, RateLimit, RateLimitBy};
pub use proxy::{AccessLog, Dependency, DependencyCheck, Drain, External, Health, Probe, Proxy};
pub use resource::{Resource, ResourceType};
pub use route::{
    Action, Destination, DirectResponse, Fault, FieldMatch, Forward, Harm, HashOn, HeaderEdits, Match, Mirror, NewPath,
    PathMatch, Redirect, Route, Subset, ValueMatch,
};
pub use service::{Balance, Hash, Mode, Port, Protocol, Service, ZonePreference};
pub use token::JoinToken;

/// Why a wire value is not valid: the path of the field and the reason, both for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FieldError {
    /// For example `ports[1].name`.
    pub path: String,
    /// Lower case, no full stop; names the value.
    pub reason: String,
}

impl FieldError {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }

    /// Puts `outer` before the path: `name` becomes `ports[1].name`.
    pub(crate) fn under(mut self, outer: impl std::fmt::Display) -> Self {
        self.path = if self.path.is_empty() {
            outer.to_string()
        } else {
            format!("{outer}.{}", self.path)
        };
        self
    }
}

/// Milliseconds of the wire as a duration; 0 means `default`, and more than a day is an error.
fn duration(ms: u32, path: &str, default: std::time::Duration) -> Result<std::time::Duration, FieldError> {
    const DAY: u32 = 86_400_000;
    match ms {
        0 => Ok(default),
        DAY.. => Err(FieldError::new(path, format!("{ms} ms is a day or more"))),
        _ => Ok(std::time::Duration::from_millis(u64::from(ms))),
    }
}
