//! Counters whose names come from configuration: of routes, copies, faults and rate limits.
//!
//! All workers write one counter: what they write is rare, or belongs to services that have routes. A counter that
//! configuration no longer names is forgotten; one that it still names goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_proto::exposition::escaped;
use parking_lot::Mutex;

use super::cell::StatusClass;

/// What is counted: metric name and help text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Requests by route and destination.
    Routed,
    /// Requests without the value that a split sticks to.
    Unsticky,
    /// Copies by result.
    Mirrored,
    /// Failures on purpose.
    Faults,
    /// Requests refused by a rate limit.
    RateLimited,
    /// Requests that came to a rate limit of all instances together.
    RateAsked,
    /// How much of such a limit this sidecar lets through; goes up and down.
    RateShare,
    /// Requests that were not handed to the app because it had enough to do.
    Shed,
}

impl Family {
    /// All, with metric name and help text. What does not end in `_total` is a gauge.
    pub const ALL: [(Self, &'static str, &'static str); 8] = [
        (
            Self::Routed,
            "outrigger_route_requests_total",
            "Requests that ended, by route, destination and class of status.",
        ),
        (
            Self::Unsticky,
            "outrigger_route_unsticky_total",
            "Requests without the value that their route's split sticks to; chance decided.",
        ),
        (
            Self::Mirrored,
            "outrigger_mirrored_total",
            "Requests that a route mirrors, by what became of the copy.",
        ),
        (Self::Faults, "outrigger_faults_total", "Failures made on purpose."),
        (
            Self::RateLimited,
            "outrigger_rate_limited_total",
            "Requests refused by a rate limit, by its name.",
        ),
        (
            Self::RateAsked,
            "outrigger_rate_limit_asked_total",
            "Requests that came to a rate limit of all instances together, let through or not, by its name.",
        ),
        (
            Self::RateShare,
            "outrigger_rate_limit_share_millionths",
            "Part of the rate of a rate limit of all instances together that this one lets through.",
        ),
        (
            Self::Shed,
            "outrigger_admission_shed_total",
            "Requests not handed to the app because it had enough to do, by priority and cause.",
        ),
    ];
}

/// One counter; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Another value, of what goes up and down.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
}

/// How requests of one kind ended.
#[derive(Debug)]
pub struct Tally {
    success: Count,
    client: Count,
    server: Count,
}

impl Tally {
    /// One more that ended so.
    pub fn add(&self, class: StatusClass) {
        match class {
            StatusClass::Success => self.success.add(),
            StatusClass::Client => self.client.add(),
            StatusClass::Server => self.server.add(),
        }
    }
}

/// All counters of this kind.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<(Family, String), Count>>);

impl Counts {
    /// The counter with these labels. Called when configuration is applied, never per request.
    #[must_use]
    pub fn get(&self, family: Family, labels: &[(&str, &str)]) -> Count {
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        self.0.lock().entry((family, labels.join(","))).or_default().clone()
    }

    /// One counter for each class, with these labels.
    #[must_use]
    pub fn tally(&self, family: Family, labels: &[(&str, &str)]) -> Tally {
        let of = |class| self.get(family, &[labels, &[("class", class)]].concat());
        Tally {
            success: of("success"),
            client: of("client_error"),
            server: of("server_error"),
        }
    }

    /// Forgets those that nobody holds.
    pub fn prune(&self) {
        self.0.lock().retain(|_, count| Arc::strong_count(&count.0) > 1);
    }

    /// Those of `family` that have counted, with their labels.
    #[must_use]
    pub fn snapshot(&self, family: Family) -> Vec<(String, u64)> {
        let all = self.0.lock();
        let of = all.iter().filter(|((f, _), _)| *f == family);
        of.map(|((_, labels), count)| (labels.clone(), count.0.load(Relaxed)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_goes_on_while_it_is_named_and_is_forgotten_after() {
        let counts = Counts::default();
        let first = counts.get(Family::Faults, &[("fault", "a\"b")]);
        first.add();
        counts.get(Family::Faults, &[("fault", "a\"b")]).add();
        counts.prune();
        assert_eq!(counts.snapshot(Family::Faults), [("fault=\"a\\\"b\"".to_owned(), 2)]);
        assert_eq!(counts.snapshot(Family::Mirrored), []);
        drop(first);
        counts.prune();
        assert_eq!(counts.snapshot(Family::Faults), []);
    }
}
