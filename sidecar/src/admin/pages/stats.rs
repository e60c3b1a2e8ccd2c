//! `/stats`: the counters as JSON, for `outrigger stats`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use outrigger_proto::model::RateLimit;
use serde::Serialize;

use crate::admin::process;
use crate::observe::{CellSnapshot, Gauge, GuardSnapshot, HistogramSnapshot, Key};
use crate::protect::Standing;
use crate::reason::Reason;
use crate::shared::Shared;

#[derive(Debug, Serialize)]
pub(in crate::admin) struct Stats {
    service: String,
    instance: String,
    process: Process,
    /// Values of the whole process, by metric name.
    gauges: BTreeMap<&'static str, u64>,
    services: Vec<Row>,
    /// What was learnt of each service called.
    guards: Vec<Guard>,
    /// Rate limits that all instances of the service keep together.
    shared_limits: Vec<SharedLimit>,
    /// Changes of breakers and endpoints that the control plane was never told.
    changes_dropped: u64,
}

#[derive(Debug, Serialize)]
struct SharedLimit {
    limit: Arc<str>,
    /// The part of its rate that this instance lets through: 1 is all of it.
    share: f64,
    /// The part of its rate that was asked here lately, let through or not; may be more than 1. 0 in static mode.
    asked: f64,
}

#[derive(Debug, Serialize)]
struct Guard {
    service: String,
    /// `closed`, `probing`, `open`.
    breaker: &'static str,
    /// `namespace/service/instance` of those that get no requests.
    ejected: Vec<String>,
    /// Requests that wait for a place.
    pending: u32,
    budget_left: u64,
}

#[derive(Debug, Serialize)]
struct Process {
    rss_bytes: u64,
    fds: u64,
    cpu_seconds: f64,
    uptime_ms: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    direction: &'static str,
    service: String,
    port: String,
    requests: u64,
    success: u64,
    client_error: u64,
    server_error: u64,
    tries: u64,
    cancelled: u64,
    connections: u64,
    connections_open: u64,
    /// Of all connections and requests, those inside mutual TLS; the rest is still plain.
    connections_secured: u64,
    requests_secured: u64,
    bytes_in: u64,
    bytes_out: u64,
    reasons: BTreeMap<&'static str, u64>,
    latency_ms: Latency,
    /// From, to (milliseconds) and how many, for those who compare two pages; without what is empty.
    latency_buckets: Vec<(f64, f64, u64)>,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// Makes the page.
pub(in crate::admin) fn stats(shared: &Shared) -> Stats {
    let process = process::read();
    shared.directory.measure();
    Stats {
        service: shared.name.to_string(),
        instance: shared.bootstrap.instance.clone(),
        process: Process {
            rss_bytes: process.rss_bytes,
            fds: process.fds,
            cpu_seconds: process.cpu_seconds,
            uptime_ms: super::age(shared.started),
        },
        gauges: Gauge::ALL
            .iter()
            .map(|(gauge, name, _, _)| (*name, shared.stats.get(*gauge)))
            .collect(),
        services: shared.stats.snapshot().into_iter().map(row).collect(),
        guards: shared.stats.guarded(Instant::now()).into_iter().map(guard).collect(),
        shared_limits: shared.quotas.standing().into_iter().map(shared_limit).collect(),
        changes_dropped: shared.events.dropped(),
    }
}

fn row((key, cell): (Key, CellSnapshot)) -> Row {
    Row {
        direction: key.direction.as_str(),
        service: key.service.to_string(),
        port: key.port.to_string(),
        requests: cell.requests,
        success: cell.success,
        client_error: cell.client_error,
        server_error: cell.server_error,
        tries: cell.tries,
        cancelled: cell.cancelled,
        connections: cell.connections,
        connections_open: cell.connections_open,
        connections_secured: cell.connections_secured,
        requests_secured: cell.requests_secured,
        bytes_in: cell.bytes_in,
        bytes_out: cell.bytes_out,
        reasons: Reason::ALL
            .iter()
            .zip(cell.reasons)
            .filter(|(_, n)| *n > 0)
            .map(|(r, n)| (r.as_str(), n))
            .collect(),
        latency_ms: latency(&cell.latency),
        latency_buckets: buckets(&cell.latency).collect(),
    }
}

fn shared_limit(standing: Standing) -> SharedLimit {
    let part = |millionths: u32| f64::from(millionths) / f64::from(RateLimit::WHOLE);
    SharedLimit {
        limit: standing.limit,
        share: part(standing.share),
        asked: part(standing.asked),
    }
}

fn guard(guard: GuardSnapshot) -> Guard {
    Guard {
        service: guard.service,
        breaker: match guard.breaker {
            0 => "closed",
            1 => "probing",
            _ => "open",
        },
        ejected: guard.ejected,
        pending: guard.pending,
        budget_left: guard.budget_left,
    }
}

/// Bounds in milliseconds and count of each bucket that is not empty. The last has no upper bound: it is one of width 0.
fn buckets(histogram: &HistogramSnapshot) -> impl Iterator<Item = (f64, f64, u64)> {
    let ms = |i: usize| HistogramSnapshot::upper_bound(i).map(|bound| bound.as_secs_f64() * 1e3);
    let all = histogram.buckets.iter().enumerate();
    all.filter(|(_, n)| **n > 0).map(move |(i, n)| {
        let lower = i.checked_sub(1).and_then(ms).unwrap_or_default();
        (lower, ms(i).unwrap_or(lower), *n)
    })
}

fn latency(histogram: &HistogramSnapshot) -> Latency {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a mean in milliseconds needs no more than f64 has"
    )]
    let mean = match histogram.count() {
        0 => 0.0,
        n => histogram.sum_ns as f64 / n as f64 / 1e6,
    };
    Latency {
        mean,
        p50: quantile(histogram, 0.50),
        p95: quantile(histogram, 0.95),
        p99: quantile(histogram, 0.99),
    }
}

/// The quantile in milliseconds, as if values were spread evenly inside their bucket: buckets double,
/// so their upper bounds alone would be wrong by up to a factor of two.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of requests fit f64 well enough for a quantile"
)]
fn quantile(histogram: &HistogramSnapshot, q: f64) -> f64 {
    let target = histogram.count() as f64 * q;
    let mut below = 0u64;
    for (lower, upper, n) in buckets(histogram) {
        if (below + n) as f64 >= target {
            return lower + (upper - lower) * ((target - below as f64) / n as f64).clamp(0.0, 1.0);
        }
        below += n;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::Cell;

    #[test]
    fn quantiles_lie_inside_their_bucket() {
        let cell = Cell::default();
        for _ in 0..98 {
            cell.ended(crate::observe::StatusClass::Success, Duration::from_micros(700));
        }
        for _ in 0..2 {
            cell.ended(crate::observe::StatusClass::Success, Duration::from_millis(50));
        }
        let mut snapshot = CellSnapshot::default();
        cell.merge(&mut snapshot);
        let latency = latency(&snapshot.latency);
        assert!((0.5..1.1).contains(&latency.p50), "{latency:?}");
        assert!((0.5..1.1).contains(&latency.p95), "{latency:?}");
        assert!((32.0..66.0).contains(&latency.p99), "{latency:?}");
        assert!((1.6..1.8).contains(&latency.mean), "{latency:?}");
        let buckets: Vec<_> = buckets(&snapshot.latency).collect();
        assert_eq!(buckets, [(0.512, 1.024, 98), (32.768, 65.536, 2)]);
    }

    #[test]
    fn nothing_recorded_is_zero() {
        assert!(quantile(&HistogramSnapshot::default(), 0.99).abs() < f64::EPSILON);
    }
}
