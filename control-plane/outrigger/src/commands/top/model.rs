//! The numbers of `top`: what lies between two looks at all sidecars. Pure: each sidecar says itself how long it was.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

/// What all sidecars said.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// By `namespace/service/instance`.
    pages: BTreeMap<String, Page>,
    /// Sidecars that said nothing.
    pub(super) unreachable: Vec<String>,
}

/// Who saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The sidecars of the service.
    In,
    /// The sidecars of its callers.
    Calls,
}

/// One service from one side.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// `namespace/service`.
    pub(super) service: String,
    pub(super) side: Side,
    /// Requests that ended, a second.
    pub(super) rps: f64,
    /// Share of the answers that are no server errors; none without answers.
    pub(super) success: Option<f64>,
    /// p50, p95 and p99 in milliseconds; none without answers.
    pub(super) latency: Option<[f64; 3]>,
    /// Tries for each request; none without requests.
    pub(super) tries: Option<f64>,
    /// Callers whose breaker is open, and that let probes through.
    pub(super) open: usize,
    pub(super) probing: usize,
    /// Sidecars that call it.
    pub(super) callers: usize,
    /// Instances that some caller sends nothing to.
    pub(super) ejected: BTreeSet<String>,
}

/// `/stats` of one sidecar, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
struct Page {
    service: String,
    instance: String,
    process: Process,
    services: Vec<Counts>,
    /// A sidecar of an earlier version says nothing of them.
    #[serde(default)]
    guards: Vec<Guard>,
}

#[derive(Debug, Clone, Deserialize)]
struct Process {
    uptime_ms: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Counts {
    direction: String,
    service: String,
    port: String,
    requests: u64,
    success: u64,
    client_error: u64,
    server_error: u64,
    tries: u64,
    connections: u64,
    /// From, to and how many.
    #[serde(default)]
    latency_buckets: Vec<(f64, f64, u64)>,
}

#[derive(Debug, Clone, Deserialize)]
struct Guard {
    service: String,
    breaker: String,
    ejected: Vec<String>,
}

impl Look {
    /// Reads `/stats` of each sidecar, or that it did not answer.
    pub(super) fn read(answers: &[Value]) -> Self {
        let mut look = Self::default();
        for answer in answers {
            match Page::deserialize(answer) {
                Ok(page) => {
                    look.pages.insert(format!("{}/{}", page.service, page.instance), page);
                }
                Err(_) => {
                    let part = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
                    look.unreachable
                        .push(format!("{}/{}", part("service"), part("instance")));
                }
            }
        }
        look
    }

    /// How many sidecars said something.
    pub(super) fn sidecars(&self) -> usize {
        self.pages.len()
    }
}

/// What happened between two looks, for each service that is used.
pub(super) fn rows(before: &Look, now: &Look) -> Vec<Row> {
    let mut sums: BTreeMap<(String, Side), Sum> = BTreeMap::new();
    for (name, page) in &now.pages {
        let old = before.pages.get(name);
        // One that began again since counts from nothing.
        let old = old.filter(|old| old.process.uptime_ms <= page.process.uptime_ms);
        let since = old.map_or(0, |old| old.process.uptime_ms);
        // One that is new here and older than a moment has a past of which nothing is known.
        let known = old.is_some() || page.process.uptime_ms <= YOUNG_MS;
        let seconds = float(page.process.uptime_ms.saturating_sub(since)) / 1000.0;
        let mut called = BTreeSet::new();
        for counts in &page.services {
            let side = if counts.direction == "inbound" {
                Side::In
            } else {
                Side::Calls
            };
            if side == Side::Calls && counts.requests == 0 && counts.connections == 0 {
                // A declared call that nobody made yet.
                continue;
            }
            let none = Counts::default();
            let then = old.into_iter().flat_map(|old| &old.services).find(|then| {
                (&then.direction, &then.service, &then.port) == (&counts.direction, &counts.service, &counts.port)
            });
            let sum = sums.entry((counts.service.clone(), side)).or_default();
            if known {
                sum.add(then.unwrap_or(&none), counts, seconds);
            }
            if side == Side::Calls && called.insert(&counts.service) {
                sum.callers += 1;
            }
        }
        for guard in &page.guards {
            let Some(sum) = sums.get_mut(&(guard.service.clone(), Side::Calls)) else {
                continue;
            };
            sum.open += usize::from(guard.breaker == "open");
            sum.probing += usize::from(guard.breaker == "probing");
            sum.ejected.extend(guard.ejected.iter().cloned());
        }
    }
    sums.into_iter()
        .map(|((service, side), sum)| sum.row(service, side))
        .collect()
}

/// A sidecar that was not there at the last look and is no older than this began since.
const YOUNG_MS: u64 = 1500;

#[derive(Debug, Default)]
struct Sum {
    rps: f64,
    requests: u64,
    answers: u64,
    errors: u64,
    tries: u64,
    /// By lower bound in microseconds: upper bound in milliseconds, and how many.
    buckets: BTreeMap<u64, (f64, u64)>,
    callers: usize,
    open: usize,
    probing: usize,
    ejected: BTreeSet<String>,
}

impl Sum {
    fn add(&mut self, then: &Counts, now: &Counts, seconds: f64) {
        let since = |count: fn(&Counts) -> u64| count(now).saturating_sub(count(then));
        let answers = |counts: &Counts| counts.success + counts.client_error + counts.server_error;
        let requests = since(|counts| counts.requests);
        if seconds > 0.0 {
            self.rps += float(requests) / seconds;
        }
        self.requests += requests;
        self.answers += answers(now).saturating_sub(answers(then));
        self.errors += since(|counts| counts.server_error);
        self.tries += since(|counts| counts.tries);
        for (lower, upper, n) in &now.latency_buckets {
            let same = |bucket: &&(f64, f64, u64)| micros(bucket.0) == micros(*lower);
            let had = then.latency_buckets.iter().find(same).map_or(0, |(_, _, had)| *had);
            let bucket = self.buckets.entry(micros(*lower)).or_insert((*upper, 0));
            bucket.1 += n.saturating_sub(had);
        }
    }

    fn row(self, service: String, side: Side) -> Row {
        let share = |part: u64, of: u64| (of > 0).then(|| float(part) / float(of));
        let measured = self.buckets.values().any(|(_, n)| *n > 0);
        Row {
            service,
            side,
            rps: self.rps,
            success: share(self.answers.saturating_sub(self.errors), self.answers),
            latency: measured.then(|| [0.50, 0.95, 0.99].map(|q| quantile(&self.buckets, q))),
            tries: share(self.tries, self.requests).filter(|_| side == Side::Calls),
            open: self.open,
            probing: self.probing,
            callers: self.callers,
            ejected: self.ejected,
        }
    }
}

/// As if values were spread evenly inside their bucket.
fn quantile(buckets: &BTreeMap<u64, (f64, u64)>, q: f64) -> f64 {
    let target = float(buckets.values().map(|(_, n)| n).sum()) * q;
    let (mut below, mut last) = (0.0, 0.0);
    for (lower, (upper, n)) in buckets.iter().filter(|(_, (_, n))| *n > 0) {
        let (lower, n) = (float(*lower) / 1000.0, float(*n));
        if below + n >= target {
            return lower + (upper - lower) * ((target - below) / n).clamp(0.0, 1.0);
        }
        below += n;
        last = *upper;
    }
    last
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people need no more than f64 has")]
fn float(n: u64) -> f64 {
    n as f64
}

/// A bound in milliseconds as a whole number, to compare it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounds are whole microseconds, from 0 to minutes"
)]
fn micros(ms: f64) -> u64 {
    (ms * 1000.0).round() as u64
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::{Look, Side, rows};

    /// What a sidecar of `web` says that calls `user`.
    pub(in super::super) fn web(uptime_ms: u64, requests: u64, errors: u64, breaker: &str, ejected: &[&str]) -> Value {
        json!({
            "service": "default/web", "instance": "w1", "process": { "uptime_ms": uptime_ms },
            "services": [
                { "direction": "inbound", "service": "default/web", "port": "http", "requests": requests, "success": requests,
                  "client_error": 0, "server_error": 0, "tries": requests, "connections": 3, "connections_open": 3,
                  "latency_buckets": [[2.048, 4.096, requests]] },
                { "direction": "outbound", "service": "default/user", "port": "http", "requests": requests,
                  "success": requests - errors, "client_error": 0, "server_error": errors, "tries": requests + errors,
                  "connections": 1, "connections_open": 1, "latency_buckets": [[0.512, 1.024, requests - errors], [32.768, 65.536, errors]] },
                { "direction": "outbound", "service": "default/unused", "port": "http", "requests": 0, "success": 0,
                  "client_error": 0, "server_error": 0, "tries": 0, "connections": 0, "connections_open": 0 },
            ],
            "guards": [{ "service": "default/user", "breaker": breaker, "ejected": ejected }],
        })
    }

    fn look(pages: &[Value]) -> Look {
        Look::read(pages)
    }

    #[test]
    fn what_lies_between_two_looks_is_shown_by_service_and_side() {
        let before = look(&[web(10_000, 1000, 100, "closed", &[])]);
        let now = look(&[web(12_000, 1200, 120, "open", &["default/user/u1"])]);
        let rows = rows(&before, &now);
        let [user, web] = rows.as_slice() else {
            panic!("two rows: {rows:?}")
        };
        assert_eq!((user.service.as_str(), user.side), ("default/user", Side::Calls));
        assert!((user.rps - 100.0).abs() < 1e-9, "{user:?}");
        assert!((user.success.unwrap() - 0.9).abs() < 1e-9, "{user:?}");
        assert!((user.tries.unwrap() - 1.1).abs() < 1e-9, "{user:?}");
        let [p50, p95, p99] = user.latency.unwrap();
        assert!((0.5..1.1).contains(&p50) && (32.0..66.0).contains(&p95) && (p95..66.0).contains(&p99));
        assert_eq!((user.open, user.probing, user.callers), (1, 0, 1));
        assert!(user.ejected.contains("default/user/u1"));
        assert_eq!((web.side, web.tries), (Side::In, None));
        assert_eq!(web.success, Some(1.0));
    }

    #[test]
    fn one_that_began_again_counts_from_nothing_and_one_with_an_unknown_past_not_yet() {
        let before = look(&[web(10_000, 1000, 0, "closed", &[])]);
        let again = rows(&before, &look(&[web(500, 50, 0, "closed", &[])]));
        assert!((again[0].rps - 100.0).abs() < 1e-9, "{again:?}");
        let unknown = rows(&Look::default(), &look(&[web(10_000, 1000, 0, "closed", &[])]));
        assert_eq!(
            (unknown[0].rps, unknown[0].success, unknown[0].latency),
            (0.0, None, None)
        );
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let silent = json!({ "service": "default/web", "instance": "w1", "status": "unreachable" });
        assert_eq!(look(&[silent]).unreachable, ["default/web/w1"]);
    }
}
