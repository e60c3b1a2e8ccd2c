//! The counters as Prometheus text (exposition format 0.0.4).
//!
//! Every name is in this file, in [`Family::ALL`] or in [`Gauge::ALL`]; a scraper may rely on them. Formats when somebody
//! looks; nothing here runs per request.

#[cfg(test)]
mod tests;

use outrigger_proto::exposition::{Page, escaped};

use super::cell::CellSnapshot;
use super::count::Family;
use super::held;
use super::histogram::HistogramSnapshot;
use super::registry::{Gauge, GuardSnapshot, Key, Stats};
use crate::reason::Reason;

/// Facts of the process, from `/proc/self`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Memory held, bytes.
    pub rss_bytes: u64,
    /// Open file descriptors.
    pub fds: u64,
    /// Processor time used, seconds.
    pub cpu_seconds: f64,
    /// Unix time of the start, seconds.
    pub start_seconds: f64,
}

/// A value counted per cell: name, type, help.
type Column = (&'static str, &'static str, &'static str, fn(&CellSnapshot) -> u64);

const COLUMNS: [Column; 10] = [
    ("outrigger_requests_total", "counter", "Requests that began.", |c| {
        c.requests
    }),
    ("outrigger_tries_total", "counter", "Tries sent upstream.", |c| c.tries),
    (
        "outrigger_cancelled_total",
        "counter",
        "Requests that the client gave up.",
        |c| c.cancelled,
    ),
    (
        "outrigger_connections_total",
        "counter",
        "Client connections accepted.",
        |c| c.connections,
    ),
    (
        "outrigger_connections_open",
        "gauge",
        "Client connections open now.",
        |c| c.connections_open,
    ),
    (
        "outrigger_secured_connections_total",
        "counter",
        "Client connections that began with mutual TLS; the others were plain.",
        |c| c.connections_secured,
    ),
    (
        "outrigger_secured_requests_total",
        "counter",
        "Requests that crossed the mesh inside mutual TLS; the others went in plain.",
        |c| c.requests_secured,
    ),
    (
        "outrigger_unhashed_requests_total",
        "counter",
        "Requests without the value that their service is balanced by; they went to the better of two random endpoints.",
        |c| c.unhashed,
    ),
    (
        "outrigger_bounded_requests_total",
        "counter",
        "Requests that bore a deadline when they came; of outbound ones the app passed it on.",
        |c| c.bounded,
    ),
    (
        "outrigger_unbounded_requests_total",
        "counter",
        "Requests that bore no deadline when they came.",
        |c| c.unbounded,
    ),
];

/// Writes everything that `stats` counts, and the facts of the process.
#[must_use]
pub fn render(stats: &Stats, process: &Process, app_ok: bool) -> String {
    let cells: Vec<(String, CellSnapshot)> = stats
        .snapshot()
        .into_iter()
        .map(|(key, cell)| (labels(&key), cell))
        .collect();
    let mut page = Page::with_capacity(16 * 1024);
    for (name, kind, help, value) in COLUMNS {
        page.family(name, kind, help);
        for (labels, cell) in &cells {
            page.sample(name, labels, value(cell));
        }
    }
    page.family(
        "outrigger_responses_total",
        "counter",
        "Requests that ended, by class of status.",
    );
    for (labels, c) in &cells {
        for (class, n) in [
            ("success", c.success),
            ("client_error", c.client_error),
            ("server_error", c.server_error),
        ] {
            page.sample("outrigger_responses_total", &format!("{labels},class=\"{class}\""), n);
        }
    }
    page.family(
        "outrigger_opaque_bytes_total",
        "counter",
        "Bytes of opaque connections, from and to the client.",
    );
    for (labels, c) in &cells {
        for (way, n) in [("from_client", c.bytes_in), ("to_client", c.bytes_out)] {
            page.sample("outrigger_opaque_bytes_total", &format!("{labels},way=\"{way}\""), n);
        }
    }
    page.family(
        "outrigger_reasons_total",
        "counter",
        "Answers that the mesh made itself, by reason.",
    );
    for (labels, c) in &cells {
        // A reason that never came up is no series: thirteen for each service would be most of the page.
        for (reason, n) in Reason::ALL.iter().zip(c.reasons).filter(|(_, n)| *n > 0) {
            page.sample(
                "outrigger_reasons_total",
                &format!("{labels},reason=\"{}\"", reason.as_str()),
                n,
            );
        }
    }
    page.family(
        "outrigger_request_duration_seconds",
        "histogram",
        "From a request's head to the end of its answer.",
    );
    for (labels, c) in &cells {
        histogram(&mut page, "outrigger_request_duration_seconds", labels, &c.latency);
    }
    for (family, name, help) in Family::ALL {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        page.family(name, kind, help);
        for (labels, n) in stats.counts.snapshot(family) {
            page.sample(name, &labels, n);
        }
    }
    guards(&mut page, &stats.guarded(std::time::Instant::now()));
    for (gauge, name, kind, help) in Gauge::ALL {
        page.single(name, kind, help, stats.get(gauge));
    }
    page.single(
        "outrigger_buffered_bytes",
        "gauge",
        "Bytes of messages held.",
        held::total(),
    );
    page.single(
        "outrigger_app_healthy",
        "gauge",
        "1 while the app passes its probe.",
        u8::from(app_ok),
    );
    page.family("outrigger_build_info", "gauge", "1, with the version as label.");
    page.sample(
        "outrigger_build_info",
        concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""),
        1,
    );
    process_facts(&mut page, process);
    page.text()
}

fn histogram(page: &mut Page, name: &str, labels: &str, latency: &HistogramSnapshot) {
    let mut seen = 0u64;
    for (i, n) in latency.buckets.iter().enumerate() {
        seen += n;
        if let Some(bound) = HistogramSnapshot::upper_bound(i) {
            page.sample(
                &format!("{name}_bucket"),
                &format!("{labels},le=\"{}\"", bound.as_secs_f64()),
                seen,
            );
        }
    }
    page.sample(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), seen);
    page.sample(
        &format!("{name}_sum"),
        labels,
        std::time::Duration::from_nanos(latency.sum_ns).as_secs_f64(),
    );
    page.sample(&format!("{name}_count"), labels, seen);
}

fn guards(page: &mut Page, all: &[GuardSnapshot]) {
    type Value = fn(&GuardSnapshot) -> u64;
    let columns: [(&str, &str, &str, Value); 8] = [
        (
            "outrigger_breaker_state",
            "gauge",
            "0 closed, 1 probing, 2 open.",
            |g| g.breaker.into(),
        ),
        (
            "outrigger_ejected_endpoints",
            "gauge",
            "Endpoints that get no requests.",
            |g| g.ejected.len() as u64,
        ),
        (
            "outrigger_retry_budget_left",
            "gauge",
            "Tries of what may have been processed that the budget allows now.",
            |g| g.budget_left,
        ),
        (
            "outrigger_retries_unaffordable_total",
            "counter",
            "Tries that the retry budget did not allow.",
            |g| g.unaffordable,
        ),
        ("outrigger_hedges_total", "counter", "Second requests sent.", |g| {
            g.hedges
        }),
        (
            "outrigger_hedges_won_total",
            "counter",
            "Second requests that answered first.",
            |g| g.hedges_won,
        ),
        (
            "outrigger_pending_requests",
            "gauge",
            "Requests that wait for a place.",
            |g| g.pending.into(),
        ),
        (
            "outrigger_bounded_connections",
            "gauge",
            "Opaque and HTTP/1 connections open, where concurrency.connections bounds them.",
            |g| g.connections.into(),
        ),
    ];
    let named: Vec<_> = all
        .iter()
        .map(|g| (format!("service=\"{}\"", escaped(&g.service)), g))
        .collect();
    for (name, kind, help, value) in columns {
        page.family(name, kind, help);
        for (labels, guard) in &named {
            page.sample(name, labels, value(guard));
        }
    }
    page.family(
        "outrigger_retries_total",
        "counter",
        "Tries after the first, by what the one before had been and how they went.",
    );
    for (labels, guard) in &named {
        for (i, class) in ["never_sent", "maybe_processed"].into_iter().enumerate() {
            let (all, well) = (guard.again.get(i).copied(), guard.again_well.get(i).copied());
            let (all, well) = (all.unwrap_or(0), well.unwrap_or(0));
            // A class that never came up is no series.
            for (result, n) in [("well", well), ("failed", all.saturating_sub(well))] {
                if all > 0 {
                    let labels = format!("{labels},class=\"{class}\",result=\"{result}\"");
                    page.sample("outrigger_retries_total", &labels, n);
                }
            }
        }
    }
}

fn process_facts(page: &mut Page, process: &Process) {
    page.single(
        "process_resident_memory_bytes",
        "gauge",
        "Memory held, bytes.",
        process.rss_bytes,
    );
    page.single("process_open_fds", "gauge", "Open file descriptors.", process.fds);
    page.single(
        "process_cpu_seconds_total",
        "counter",
        "Processor time used, seconds.",
        process.cpu_seconds,
    );
    page.single(
        "process_start_time_seconds",
        "gauge",
        "Unix time of the start, seconds.",
        process.start_seconds,
    );
}

fn labels(key: &Key) -> String {
    let (service, port) = (escaped(&key.service), escaped(&key.port));
    format!(
        "direction=\"{}\",service=\"{service}\",port=\"{port}\"",
        key.direction.as_str()
    )
}
