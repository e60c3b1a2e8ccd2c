//! One writer's counters for one service and direction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::histogram::{Histogram, HistogramSnapshot};
use crate::reason::Reason;

/// How a request ended, by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusClass {
    /// 1xx, 2xx and 3xx, and grpc-status 0.
    Success,
    /// 4xx, and gRPC codes that blame the caller.
    Client,
    /// 5xx, other gRPC codes, and answers that broke off.
    Server,
}

/// Counters that one worker writes and anybody reads.
///
/// Plain load and store instead of a locked add: there is one writer, a worker thread.
#[derive(Debug, Default)]
pub struct Cell {
    requests: AtomicU64,
    success: AtomicU64,
    client_error: AtomicU64,
    server_error: AtomicU64,
    tries: AtomicU64,
    cancelled: AtomicU64,
    connections: AtomicU64,
    connections_open: AtomicU64,
    connections_secured: AtomicU64,
    requests_secured: AtomicU64,
    unhashed: AtomicU64,
    bounded: AtomicU64,
    unbounded: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    reasons: [AtomicU64; Reason::COUNT],
    latency: Histogram,
}

/// One open client connection of a cell.
#[derive(Debug)]
pub struct OpenConnection(Arc<Cell>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        add(&self.0.connections_open, u64::MAX);
    }
}

/// A cell's values at one moment; snapshots of several workers add up.
#[derive(Debug, Clone, Default)]
pub struct CellSnapshot {
    /// Requests that began.
    pub requests: u64,
    /// Requests that ended well.
    pub success: u64,
    /// Requests that ended with the caller's fault.
    pub client_error: u64,
    /// Requests that ended with another fault.
    pub server_error: u64,
    /// Tries sent upstream.
    pub tries: u64,
    /// Requests that the client gave up.
    pub cancelled: u64,
    /// Client connections accepted.
    pub connections: u64,
    /// Client connections open now.
    pub connections_open: u64,
    /// Client connections that began with mutual TLS; the others were plain.
    pub connections_secured: u64,
    /// Requests that crossed the mesh inside mutual TLS; the others went in plain.
    pub requests_secured: u64,
    /// Requests without the value that their service is balanced by.
    pub unhashed: u64,
    /// Requests that bore a deadline when they came.
    pub bounded: u64,
    /// Requests that bore none.
    pub unbounded: u64,
    /// Bytes from the client, opaque connections only.
    pub bytes_in: u64,
    /// Bytes to the client, opaque connections only.
    pub bytes_out: u64,
    /// Answers that the mesh made itself, by [`Reason`] index.
    pub reasons: [u64; Reason::COUNT],
    /// Time from the request's head to the end of the answer.
    pub latency: HistogramSnapshot,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Cell {
    /// A request's head was read.
    pub fn request(&self) {
        add(&self.requests, 1);
    }
    /// A try was sent upstream.
    pub fn try_sent(&self) {
        add(&self.tries, 1);
    }
    /// The client gave up before the answer's end.
    pub fn cancelled(&self) {
        add(&self.cancelled, 1);
    }
    /// A request ended.
    pub fn ended(&self, class: StatusClass, took: Duration) {
        add(
            match class {
                StatusClass::Success => &self.success,
                StatusClass::Client => &self.client_error,
                StatusClass::Server => &self.server_error,
            },
            1,
        );
        self.latency.record(took);
    }
    /// The mesh answered by itself.
    pub fn reason(&self, reason: Reason) {
        if let Some(counter) = self.reasons.get(reason.index()) {
            add(counter, 1);
        }
    }
    /// A client connection opened; it counts as open until the answer is dropped, by a panic too.
    #[must_use]
    pub fn opened(self: &Arc<Self>) -> OpenConnection {
        add(&self.connections, 1);
        add(&self.connections_open, 1);
        OpenConnection(self.clone())
    }
    /// A client connection is secured by mutual TLS.
    pub fn secured(&self) {
        add(&self.connections_secured, 1);
    }
    /// A request crosses the mesh inside mutual TLS.
    pub fn secured_request(&self) {
        add(&self.requests_secured, 1);
    }
    /// A request has not the value that its service is balanced by.
    pub fn unhashed(&self) {
        add(&self.unhashed, 1);
    }
    /// A request goes on, and bore a deadline when it came, or not.
    pub fn timed(&self, bounded: bool) {
        add(if bounded { &self.bounded } else { &self.unbounded }, 1);
    }
    /// Opaque bytes moved.
    pub fn moved(&self, from_client: u64, to_client: u64) {
        add(&self.bytes_in, from_client);
        add(&self.bytes_out, to_client);
    }

    /// How many requests bore a deadline, and how many did not.
    pub(super) fn timings(&self) -> (u64, u64) {
        (self.bounded.load(Relaxed), self.unbounded.load(Relaxed))
    }

    /// Adds this cell's values to `into`.
    pub fn merge(&self, into: &mut CellSnapshot) {
        let pairs = [
            (&self.requests, &mut into.requests),
            (&self.success, &mut into.success),
            (&self.client_error, &mut into.client_error),
            (&self.server_error, &mut into.server_error),
            (&self.tries, &mut into.tries),
            (&self.cancelled, &mut into.cancelled),
            (&self.connections, &mut into.connections),
            (&self.connections_open, &mut into.connections_open),
            (&self.connections_secured, &mut into.connections_secured),
            (&self.requests_secured, &mut into.requests_secured),
            (&self.unhashed, &mut into.unhashed),
            (&self.bounded, &mut into.bounded),
            (&self.unbounded, &mut into.unbounded),
            (&self.bytes_in, &mut into.bytes_in),
            (&self.bytes_out, &mut into.bytes_out),
        ];
        for (from, to) in pairs {
            *to = to.wrapping_add(from.load(Relaxed));
        }
        for (from, to) in self.reasons.iter().zip(&mut into.reasons) {
            *to += from.load(Relaxed);
        }
        self.latency.merge(&mut into.latency);
    }
}
