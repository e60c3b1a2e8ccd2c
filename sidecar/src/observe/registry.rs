//! The table of all cells and gauges of this process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::cell::{Cell, CellSnapshot};
use super::count::Counts;

/// Direction as the app sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Towards the app.
    Inbound,
    /// From the app.
    Outbound,
}

impl Direction {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What a cell counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Direction as the app sees it.
    pub direction: Direction,
    /// `namespace/service`, or `external`.
    pub service: Arc<str>,
    /// Port name.
    pub port: Arc<str>,
}

/// Values of the whole process, written from anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gauge {
    /// Client connections refused at the cap.
    ConnectionsRefused,
    /// HTTP/2 connections ended for what their client did: floods, and reading nothing under pressure.
    ClientsEnded,
    /// HTTP/2 connections ended for what an app or a peer's sidecar did: floods.
    UpstreamsEnded,
    /// Requests answered `overloaded` because too many bytes waited.
    Shed,
    /// Times that accepting paused because the process had no file descriptor left.
    AcceptPaused,
    /// Unknown configuration fields ignored.
    UnknownFieldsIgnored,
    /// Resources refused.
    ResourcesRejected,
    /// Access-log lines dropped because the writer was behind.
    AccessLogDropped,
    /// Informational answers (102, 103) dropped.
    InformationalDropped,
    /// 1 while connected to the control plane.
    ControlPlaneConnected,
    /// Panics, caught or not.
    Panics,
    /// Tasks run again after a panic.
    Restarts,
    /// Upstream connections open.
    UpstreamConnections,
    /// When the workload's own certificate expires, Unix seconds; 0 while there is none.
    IdentityNotAfter,
    /// Certificates after the first.
    IdentityRenewals,
    /// Tries to get a certificate that failed.
    IdentityRenewalFailures,
    /// TLS handshakes of clients that were let in.
    Handshakes,
    /// TLS handshakes of clients that failed.
    HandshakesFailed,
    /// Requests and connections that only `audit` let through.
    Audited,
    /// Requests that the app may get at a time; 0 while that is not bounded.
    AdmissionLimit,
    /// Requests that have a place at the app.
    AdmissionInFlight,
    /// Requests that wait for a place at the app.
    AdmissionQueued,
    /// 1 while the app drops the deadline of its requests.
    DropsDeadline,
}

impl Gauge {
    /// All, with metric name and help text.
    pub const ALL: [(Self, &'static str, &'static str, &'static str); 23] = [
        (
            Self::ConnectionsRefused,
            "outrigger_connections_refused_total",
            "counter",
            "Client connections refused at the cap.",
        ),
        (
            Self::ClientsEnded,
            "outrigger_clients_ended_total",
            "counter",
            "HTTP/2 connections ended for frame floods, or for reading nothing under pressure.",
        ),
        (
            Self::UpstreamsEnded,
            "outrigger_upstreams_ended_total",
            "counter",
            "HTTP/2 connections to apps and peers ended for frame floods.",
        ),
        (
            Self::Shed,
            "outrigger_shed_total",
            "counter",
            "Requests answered overloaded because too many bytes waited.",
        ),
        (
            Self::AcceptPaused,
            "outrigger_accept_paused_total",
            "counter",
            "Times that accepting paused for lack of file descriptors.",
        ),
        (
            Self::UnknownFieldsIgnored,
            "outrigger_unknown_fields_ignored_total",
            "counter",
            "Unknown configuration fields ignored.",
        ),
        (
            Self::ResourcesRejected,
            "outrigger_resources_rejected_total",
            "counter",
            "Resources refused.",
        ),
        (
            Self::AccessLogDropped,
            "outrigger_access_log_dropped_total",
            "counter",
            "Access-log lines dropped.",
        ),
        (
            Self::InformationalDropped,
            "outrigger_informational_dropped_total",
            "counter",
            "Informational answers (102, 103) dropped.",
        ),
        (
            Self::ControlPlaneConnected,
            "outrigger_control_plane_connected",
            "gauge",
            "1 while connected to the control plane.",
        ),
        (
            Self::Panics,
            "outrigger_panics_total",
            "counter",
            "Panics, caught or not.",
        ),
        (
            Self::Restarts,
            "outrigger_task_restarts_total",
            "counter",
            "Tasks run again after a panic.",
        ),
        (
            Self::UpstreamConnections,
            "outrigger_upstream_connections",
            "gauge",
            "Upstream connections open.",
        ),
        (
            Self::IdentityNotAfter,
            "outrigger_identity_not_after_seconds",
            "gauge",
            "Unix time at which the workload's certificate expires; 0 while there is none.",
        ),
        (
            Self::IdentityRenewals,
            "outrigger_identity_renewals_total",
            "counter",
            "Certificates after the first.",
        ),
        (
            Self::IdentityRenewalFailures,
            "outrigger_identity_renewal_failures_total",
            "counter",
            "Tries to get a certificate that failed.",
        ),
        (
            Self::Handshakes,
            "outrigger_handshakes_total",
            "counter",
            "TLS handshakes of clients that were let in.",
        ),
        (
            Self::HandshakesFailed,
            "outrigger_handshakes_failed_total",
            "counter",
            "TLS handshakes of clients that failed.",
        ),
        (
            Self::Audited,
            "outrigger_access_audited_total",
            "counter",
            "Requests and connections that only audit let through.",
        ),
        (
            Self::AdmissionLimit,
            "outrigger_admission_limit",
            "gauge",
            "Requests that the app may get at a time; 0 while that is not bounded.",
        ),
        (
            Self::AdmissionInFlight,
            "outrigger_admission_in_flight",
            "gauge",
            "Requests that have a place at the app.",
        ),
        (
            Self::AdmissionQueued,
            "outrigger_admission_queued",
            "gauge",
            "Requests that wait for a place at the app.",
        ),
        (
            Self::DropsDeadline,
            "outrigger_app_drops_deadline",
            "gauge",
            "1 while the app gets requests with a deadline and calls others without one.",
        ),
    ];
}

/// What a caller knows of one service, at one moment.
#[derive(Debug, Clone, Default)]
pub struct GuardSnapshot {
    /// `namespace/service`.
    pub service: String,
    /// 0 closed, 1 probing, 2 open.
    pub breaker: u8,
    /// Endpoints that get no requests.
    pub ejected: Vec<String>,
    /// Tokens left of the retry budget.
    pub budget_left: u64,
    /// Tries again: of what was never sent, and of what may have been processed.
    pub again: [u64; 2],
    /// Of these the ones that were well.
    pub again_well: [u64; 2],
    /// Tries that the budget did not allow.
    pub unaffordable: u64,
    /// Second requests sent while the first was slow.
    pub hedges: u64,
    /// Those that answered first.
    pub hedges_won: u64,
    /// Requests in flight, while they are bounded.
    pub in_flight: u32,
    /// Connections with one user each, while they are bounded.
    pub connections: u32,
    /// Requests that wait for a place.
    pub pending: u32,
}

/// Whoever knows something of a service.
pub trait Guarding: std::fmt::Debug + Send + Sync {
    /// What is known at `now`.
    fn snapshot(&self, now: Instant) -> GuardSnapshot;
}

/// The table of all cells and gauges.
#[derive(Debug, Default)]
pub struct Stats {
    guards: Mutex<Vec<Weak<dyn Guarding>>>,
    cells: Mutex<BTreeMap<Key, Vec<Arc<Cell>>>>,
    gauges: [AtomicU64; Gauge::ALL.len()],
    /// Counters named by configuration.
    pub counts: Counts,
}

impl Stats {
    /// Makes a cell for one worker. Called when configuration is applied, never per request.
    pub fn cell(&self, key: Key) -> Arc<Cell> {
        let cell = Arc::new(Cell::default());
        self.cells.lock().entry(key).or_default().push(cell.clone());
        cell
    }

    /// Asks `guard` too, as long as it lives. Called when configuration is applied, never per request.
    pub fn guards(&self, guard: Weak<dyn Guarding>) {
        let mut guards = self.guards.lock();
        guards.retain(|g| g.strong_count() > 0);
        guards.push(guard);
    }

    /// What is known of each service called, by name.
    #[must_use]
    pub fn guarded(&self, now: Instant) -> Vec<GuardSnapshot> {
        let guards = self.guards.lock();
        let mut all: Vec<_> = guards.iter().filter_map(|g| Some(g.upgrade()?.snapshot(now))).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }

    /// Merges all cells by key.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(Key, CellSnapshot)> {
        let cells = self.cells.lock();
        cells
            .iter()
            .map(|(key, workers)| {
                let mut sum = CellSnapshot::default();
                workers.iter().for_each(|c| c.merge(&mut sum));
                (key.clone(), sum)
            })
            .collect()
    }

    /// How many requests in `direction` bore a deadline when they came, and how many did not.
    #[must_use]
    pub fn timings(&self, direction: Direction) -> (u64, u64) {
        let cells = self.cells.lock();
        let workers = cells.iter().filter(|(key, _)| key.direction == direction);
        let each = workers.flat_map(|(_, workers)| workers).map(|cell| cell.timings());
        each.fold((0, 0), |(a, b), (c, d)| (a.wrapping_add(c), b.wrapping_add(d)))
    }

    /// Adds to a process-wide value.
    pub fn add(&self, gauge: Gauge, n: u64) {
        if let Some(slot) = self.gauges.get(gauge as usize) {
            slot.fetch_add(n, Relaxed);
        }
    }

    /// Takes from a process-wide value.
    pub fn sub(&self, gauge: Gauge, n: u64) {
        if let Some(slot) = self.gauges.get(gauge as usize) {
            slot.fetch_sub(n, Relaxed);
        }
    }

    /// Sets a process-wide value.
    pub fn set(&self, gauge: Gauge, n: u64) {
        if let Some(slot) = self.gauges.get(gauge as usize) {
            slot.store(n, Relaxed);
        }
    }

    /// Reads a process-wide value.
    #[must_use]
    pub fn get(&self, gauge: Gauge) -> u64 {
        self.gauges.get(gauge as usize).map_or(0, |slot| slot.load(Relaxed))
    }
}
