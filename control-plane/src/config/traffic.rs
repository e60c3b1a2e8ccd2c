//! What holds for requests to a service, from what a person wrote: `defaults`, then the service, then a route, each in
//! place of what was before, key by key.

use std::time::Duration;

use outrigger_proto::model::{
    Admission, Balance, Breaker, Concurrency, Destination, Fault, Hash, HashOn, Hedge, Limit, Outcomes, Outlier,
    Policy, Priority, PriorityRule, RateLimit, Retry, RetryBudget, Route, Subset, Trip, ZonePreference,
};

use super::codes::{self, Code};
use super::raw;
use super::reader::Reader;
use super::suggest::did_you_mean;
use super::words;

/// What holds for requests to a service; for callers, but for the last three, which are its own sidecars'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Bound on making one connection.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How long a new endpoint takes to its full share.
    pub slow_start: Option<Duration>,
    /// Endpoints of the caller's zone first.
    pub zone: Option<ZonePreference>,
    /// Where requests go while there is no usable endpoint.
    pub failover: Vec<Destination>,
    /// What holds for requests that match no route.
    pub policy: Policy,
    /// Over all tries of what may have been processed, of one caller.
    pub retry_budget: RetryBudget,
    /// When one caller stops calling it.
    pub breaker: Option<Breaker>,
    /// When one caller stops using an endpoint.
    pub outlier: Outlier,
    /// Bounds of one caller.
    pub concurrency: Concurrency,
    /// The first that matches is taken.
    pub routes: Vec<Route>,
    /// Named sets of endpoints.
    pub subsets: Vec<Subset>,
    /// Failures on purpose.
    pub faults: Vec<Fault>,
    /// How many requests the app gets at a time.
    pub admission: Option<Admission>,
    /// How many in a time.
    pub rate_limits: Vec<RateLimit>,
    /// Which requests matter more.
    pub priorities: Vec<PriorityRule>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            balance: Balance::default(),
            slow_start: None,
            zone: None,
            failover: Vec::new(),
            policy: Policy::default(),
            retry_budget: RetryBudget::default(),
            breaker: None,
            outlier: Outlier::default(),
            concurrency: Concurrency::default(),
            routes: Vec::new(),
            subsets: Vec::new(),
            faults: Vec::new(),
            admission: None,
            rate_limits: Vec::new(),
            priorities: Vec::new(),
        }
    }
}

impl Reader<'_> {
    /// What `raw` says, and what `base` says where it says nothing.
    pub(super) fn traffic(&mut self, request: &raw::Request, raw: &raw::Caller, base: &Traffic) -> Traffic {
        let policy = self.request(request, &base.policy);
        let budget = request.retry.as_ref().and_then(|retry| retry.budget.clone());
        Traffic {
            connect_timeout: self.duration(
                raw.connect_timeout.as_deref(),
                &["connect_timeout"],
                base.connect_timeout,
            ),
            balance: self.balance(raw.balance.as_ref(), &base.balance),
            slow_start: self.optional(raw.slow_start.as_deref(), &["slow_start"], base.slow_start),
            zone: match &raw.zone {
                None => base.zone,
                Some(raw::ZoneOrOff::Off(_)) => None,
                Some(raw::ZoneOrOff::On(zone)) => {
                    let base = base.zone.map_or(70, |zone| zone.healthy_percent);
                    let healthy_percent = self.percent(zone.healthy.as_deref(), &["zone", "healthy"], base);
                    Some(ZonePreference { healthy_percent })
                }
            },
            policy,
            retry_budget: self.budget(&budget.unwrap_or_default(), base.retry_budget),
            breaker: self.breaker(raw.breaker.as_ref(), base.breaker.as_ref()),
            outlier: self.outlier(raw.outlier.as_ref(), &base.outlier),
            concurrency: concurrency(raw.concurrency.as_ref(), &base.concurrency),
            admission: self.admission(raw.admission.as_ref(), base.admission),
            ..base.clone()
        }
    }

    /// As [`Self::traffic`], for one request.
    pub(super) fn request(&mut self, raw: &raw::Request, base: &Policy) -> Policy {
        let empty = raw::Retry::default();
        let retry = raw.retry.as_ref().unwrap_or(&empty);
        let backoff = self.duration(retry.backoff.as_deref(), &["retry", "backoff"], base.retry.backoff);
        // Ten times the first wait, unless somebody said how long.
        let longest = match base.retry.max_backoff == base.retry.backoff * 10 {
            true => backoff.saturating_mul(10).min(words::DAY - Duration::from_millis(1)),
            false => base.retry.max_backoff,
        };
        let max_backoff = self.duration(retry.max_backoff.as_deref(), &["retry", "max_backoff"], longest);
        if retry.max_backoff.is_some() && max_backoff < backoff {
            self.refuse_as(
                codes::BACKOFF,
                &["retry", "max_backoff"],
                "`retry.max_backoff` is less than `retry.backoff`",
            );
        }
        Policy {
            timeout: self.optional(raw.timeout.as_deref(), &["timeout"], base.timeout),
            per_try: self.optional(retry.per_try.as_deref(), &["retry", "per_try"], base.per_try),
            idle: self.optional(raw.idle_timeout.as_deref(), &["idle_timeout"], base.idle),
            queue: self.duration(raw.queue_timeout.as_deref(), &["queue_timeout"], base.queue),
            idempotent: raw.idempotent.unwrap_or(base.idempotent),
            retry: Retry {
                attempts: retry.attempts.unwrap_or(base.retry.attempts),
                on: self.outcomes(retry.on.as_deref(), &["retry", "on"], &base.retry.on),
                backoff,
                max_backoff: max_backoff.max(backoff),
            },
            hedge: match &raw.hedge {
                None => base.hedge,
                Some(raw::HedgeOrOff::Off(_)) => None,
                Some(raw::HedgeOrOff::On(hedge)) => Some(Hedge {
                    after: match hedge.after.as_deref() {
                        None | Some("p95") => None,
                        text => Some(self.duration(text, &["hedge", "after"], Duration::from_millis(1))),
                    },
                }),
            },
            failures: self.failures(raw.failures.as_deref(), &base.failures),
            priority: raw.priority.map_or(base.priority, priority),
        }
    }

    fn outcomes(&mut self, words: Option<&[String]>, path: &[&str], base: &Outcomes) -> Outcomes {
        let Some(words) = words else { return base.clone() };
        let mut set = Outcomes::default();
        for (i, word) in words.iter().enumerate() {
            if let Err(problem) = words::outcome(&mut set, word) {
                let index = i.to_string();
                let at: Vec<&str> = path.iter().copied().chain([index.as_str()]).collect();
                let help = did_you_mean(word, words::outcome_words())
                    .or_else(|| did_you_mean(&word.to_ascii_uppercase(), words::outcome_words()));
                self.refuse_with(codes::NOT_A_VALUE, &at, problem, help);
            }
        }
        set
    }

    fn failures(&mut self, words: Option<&[String]>, base: &Outcomes) -> Outcomes {
        let mut set = self.outcomes(words, &["failures"], base);
        for (i, word) in words.unwrap_or_default().iter().enumerate() {
            if word == "429" || word == "RESOURCE_EXHAUSTED" {
                let message = format!("`{word}` is load, not failure");
                self.refuse_as(codes::LOAD_IS_NO_FAILURE, &["failures", &i.to_string()], message);
            }
        }
        if words.is_some_and(|words| words.iter().any(|word| word == "4xx")) {
            let mut without = Outcomes::of(
                &set.statuses().filter(|status| *status != 429).collect::<Vec<_>>(),
                &set.grpc().collect::<Vec<_>>(),
            );
            (without.timeout, without.reset, without.connect) = (set.timeout, set.reset, set.connect);
            set = without;
        }
        set
    }

    fn budget(&mut self, raw: &raw::Budget, base: RetryBudget) -> RetryBudget {
        RetryBudget {
            percent: self.above_zero(raw.percent.as_deref(), &["retry", "budget", "percent"], base.percent),
            min_per_second: raw.min_per_second.unwrap_or(base.min_per_second),
        }
    }

    fn balance(&mut self, raw: Option<&raw::Balance>, base: &Balance) -> Balance {
        use raw::BalanceName as Name;
        let hash = match raw {
            None => return base.clone(),
            Some(raw::Balance::Name(name)) => match name {
                Name::P2cPeakEwma => return Balance::P2cPeakEwma,
                Name::LeastRequest => return Balance::LeastRequest,
                Name::RoundRobin => return Balance::RoundRobin,
                Name::Random => return Balance::Random,
                Name::Ring | Name::Maglev => {
                    let message = "it does not say what the hash is taken of";
                    self.refuse_as(codes::HASH_WITHOUT_KEY, &["balance"], message);
                    return base.clone();
                }
            },
            Some(raw::Balance::Hash(hash)) => hash,
        };
        let bound_percent = match hash.bound.as_deref() {
            None => 125,
            Some(text) => match text.strip_suffix('%').unwrap_or(text).parse::<u32>() {
                Ok(n @ 101..=10_000) => n,
                _ => {
                    let message = format!(
                        "`{}` is not a share above 100%, and at most 10000%",
                        super::check::short(text)
                    );
                    self.refuse_as(codes::HASH_WITHOUT_KEY, &["balance", "bound"], message);
                    125
                }
            },
        };
        let (key, on) = match (&hash.ring, &hash.maglev) {
            (Some(on), None) => ("ring", on),
            (None, Some(on)) => ("maglev", on),
            _ => {
                self.refuse_as(codes::ONE_OF, &["balance"], "exactly one of ring, maglev is needed");
                return base.clone();
            }
        };
        let Some(on) = self.hash_on(on, &["balance", key]) else {
            return base.clone();
        };
        let hash = Hash { on, bound_percent };
        if key == "ring" {
            Balance::Ring(hash)
        } else {
            Balance::Maglev(hash)
        }
    }

    /// What a hash is taken of.
    pub(super) fn hash_on(&mut self, raw: &raw::HashOn, path: &[&str]) -> Option<HashOn> {
        let caller = raw.caller.filter(|caller| *caller).map(|_| HashOn::Caller);
        let given: Vec<HashOn> = [
            raw.header
                .as_ref()
                .map(|name| HashOn::Header(name.to_ascii_lowercase())),
            raw.cookie.clone().map(HashOn::Cookie),
            raw.query.clone().map(HashOn::Query),
            raw.path_segment.map(HashOn::PathSegment),
            caller,
        ]
        .into_iter()
        .flatten()
        .collect();
        let empty = |on: &HashOn| match on {
            HashOn::Header(name) => http::HeaderName::from_bytes(name.as_bytes()).is_err(),
            HashOn::Cookie(name) | HashOn::Query(name) => name.is_empty(),
            HashOn::PathSegment(_) | HashOn::Caller => false,
        };
        match given.as_slice() {
            [on] if !empty(on) => Some(on.clone()),
            [_] => {
                self.refuse_as(codes::HASH_WITHOUT_KEY, path, "that is no name to take a hash of");
                None
            }
            _ => {
                let message = "exactly one of header, cookie, query, path_segment, caller is needed";
                self.refuse_as(codes::HASH_WITHOUT_KEY, path, message);
                None
            }
        }
    }

    fn breaker(&mut self, raw: Option<&raw::BreakerOrOff>, base: Option<&Breaker>) -> Option<Breaker> {
        let raw = match raw {
            None => return base.copied(),
            Some(raw::BreakerOrOff::Off(_)) => return None,
            Some(raw::BreakerOrOff::On(raw)) => raw,
        };
        let base = base.copied().unwrap_or(Breaker {
            trip: Trip::default(),
            cooldown: Duration::from_secs(10),
            max_cooldown: Duration::from_secs(300),
            probes: 3,
        });
        let (cooldown, max_cooldown) = self.growing(
            ["breaker", "cooldown", "max_cooldown"],
            (raw.cooldown.as_deref(), base.cooldown),
            (raw.max_cooldown.as_deref(), base.max_cooldown),
        );
        Some(Breaker {
            trip: self.trip("breaker", raw.failures, &raw.shares, base.trip),
            cooldown,
            max_cooldown,
            probes: raw.probes.unwrap_or(base.probes),
        })
    }

    fn outlier(&mut self, raw: Option<&raw::OutlierOrOff>, base: &Outlier) -> Outlier {
        let raw = match raw {
            None => return *base,
            Some(raw::OutlierOrOff::Off(_)) => return Outlier { trip: None, ..*base },
            Some(raw::OutlierOrOff::On(raw)) => raw,
        };
        let trip = base.trip.or(Outlier::default().trip).unwrap_or_default();
        let (ejection, max_ejection) = self.growing(
            ["outlier", "ejection", "max_ejection"],
            (raw.ejection.as_deref(), base.ejection),
            (raw.max_ejection.as_deref(), base.max_ejection),
        );
        Outlier {
            trip: Some(self.trip("outlier", raw.failures, &raw.shares, trip)),
            ejection,
            max_ejection,
            max_ejected_percent: self.above_zero(
                raw.max_ejected.as_deref(),
                &["outlier", "max_ejected"],
                base.max_ejected_percent,
            ),
            panic_percent: self.percent(raw.panic.as_deref(), &["outlier", "panic"], base.panic_percent),
        }
    }

    /// A time and the bound that it grows to.
    fn growing(
        &mut self,
        [part, first, max]: [&str; 3],
        (said_first, base_first): (Option<&str>, Duration),
        (said_max, base_max): (Option<&str>, Duration),
    ) -> (Duration, Duration) {
        let from = self.duration(said_first, &[part, first], base_first);
        let to = self.duration(said_max, &[part, max], base_max);
        if said_max.is_some() && to < from {
            let message = format!("`{part}.{max}` is less than `{part}.{first}`");
            self.refuse_as(codes::MAX_BELOW_FIRST, &[part, max], message);
        }
        (from, to.max(from))
    }

    fn trip(&mut self, key: &str, failures: Option<u32>, raw: &raw::Shares, base: Trip) -> Trip {
        let trip = Trip {
            consecutive: failures.unwrap_or(base.consecutive),
            rate_percent: self.percent(raw.rate.as_deref(), &[key, "rate"], base.rate_percent),
            slow: self.optional(raw.slow.as_deref(), &[key, "slow"], base.slow),
            slow_percent: self.percent(raw.slow_rate.as_deref(), &[key, "slow_rate"], base.slow_percent),
            min_requests: raw.min_requests.unwrap_or(base.min_requests),
            window: self.duration(raw.window.as_deref(), &[key, "window"], base.window),
        };
        if trip.slow.is_some() != (trip.slow_percent > 0) {
            let (given, missing) = match trip.slow {
                Some(_) => ("slow", "slow_rate"),
                None => ("slow_rate", "slow"),
            };
            let message = format!("`{key}.{given}` stands without `{key}.{missing}`");
            self.refuse_as(codes::SLOW_ALONE, &[key, given], message);
        } else if trip.consecutive == 0 && trip.rate_percent == 0 && trip.slow.is_none() {
            let message = format!("`{key}` has nothing to decide by");
            self.refuse_as(codes::NO_CRITERION, &[key], message);
        }
        trip
    }

    fn admission(&mut self, raw: Option<&raw::AdmissionOrOff>, base: Option<Admission>) -> Option<Admission> {
        let raw = match raw {
            None => return base,
            Some(raw::AdmissionOrOff::Off(_)) => return None,
            Some(raw::AdmissionOrOff::On(raw)) => raw,
        };
        let base = base.unwrap_or(Admission {
            limit: Limit::Gradient,
            min: 4,
            max: 1000,
            initial: 20,
            queue: Duration::from_millis(100),
            queue_length: 128,
        });
        let limit = match raw.limit.as_deref() {
            None => base.limit,
            Some("gradient") => Limit::Gradient,
            Some("aimd") => Limit::Aimd,
            Some(text) => match text.parse::<u32>() {
                Ok(n @ 1..=1_000_000) => Limit::Fixed(n),
                _ => {
                    let message = format!("`{}` is no limit", super::check::short(text));
                    self.refuse_as(codes::BAD_LIMIT, &["admission", "limit"], message);
                    base.limit
                }
            },
        };
        for (key, given) in [("min", raw.min), ("max", raw.max), ("initial", raw.initial)] {
            if given.is_some() && matches!(limit, Limit::Fixed(_)) {
                let message = format!("`admission.{key}` is for the limits that are found, and this one is fixed");
                self.refuse_as(codes::BAD_LIMIT, &["admission", key], message);
            }
        }
        let (min, max) = (raw.min.unwrap_or(base.min), raw.max.unwrap_or(base.max));
        if min > max {
            let key = if raw.min.is_some() { "min" } else { "max" };
            let message = format!("`admission.min` of {min} is more than `admission.max` of {max}");
            self.refuse_as(codes::MAX_BELOW_FIRST, &["admission", key], message);
        }
        Some(Admission {
            limit,
            min: min.min(max),
            max,
            initial: raw.initial.unwrap_or(base.initial).clamp(min.min(max), max),
            queue: self.duration(raw.queue.as_deref(), &["admission", "queue"], base.queue),
            queue_length: raw.queue_length.unwrap_or(base.queue_length),
        })
    }

    /// A duration, or `none`.
    pub(super) fn optional(&mut self, text: Option<&str>, path: &[&str], base: Option<Duration>) -> Option<Duration> {
        match text {
            None => base,
            Some("none") => None,
            text => Some(self.duration(text, path, Duration::from_secs(1))),
        }
    }

    fn percent(&mut self, text: Option<&str>, path: &[&str], base: u32) -> u32 {
        let Some(text) = text else { return base };
        words::percent(text).unwrap_or_else(|problem| {
            self.refuse_as(share_code(&problem), path, problem);
            base
        })
    }

    fn above_zero(&mut self, text: Option<&str>, path: &[&str], base: u32) -> u32 {
        match self.percent(text, path, base) {
            0 => {
                self.refuse_as(codes::NOT_A_VALUE, path, format!("`{}` cannot be 0%", path.join(".")));
                base
            }
            percent => percent,
        }
    }

    /// A share of requests.
    pub(super) fn share(&mut self, text: Option<&str>, path: &[&str]) -> u32 {
        let Some(text) = text else { return 1_000_000 };
        words::per_million(text).unwrap_or_else(|problem| {
            self.refuse_as(share_code(&problem), path, problem);
            0
        })
    }
}

fn share_code(problem: &str) -> &'static Code {
    if problem.ends_with("more than 100%") {
        codes::OVER_A_HUNDRED
    } else {
        codes::NOT_A_VALUE
    }
}

fn concurrency(raw: Option<&raw::Concurrency>, base: &Concurrency) -> Concurrency {
    let Some(raw) = raw else { return *base };
    let bound = |raw: Option<raw::Bound>, base| match raw {
        None => base,
        Some(raw::Bound::None(_)) => None,
        Some(raw::Bound::Number(n)) => Some(n),
    };
    Concurrency {
        requests: bound(raw.requests, base.requests),
        endpoint_requests: bound(raw.endpoint_requests, base.endpoint_requests),
        pending: raw.pending.unwrap_or(base.pending),
        connections: bound(raw.connections, base.connections),
    }
}

/// The model's word for a priority.
pub(super) fn priority(raw: raw::Priority) -> Priority {
    match raw {
        raw::Priority::Low => Priority::Low,
        raw::Priority::Normal => Priority::Normal,
        raw::Priority::High => Priority::High,
    }
}
