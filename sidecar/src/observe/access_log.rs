//! The access log: JSON lines, written by a thread of its own.
//!
//! A data worker only hands over a record; when the writer is behind, the record is dropped and
//! counted. Off unless configured.

use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::registry::{Gauge, Stats};

/// Records that may wait for the writer.
const QUEUE: usize = 8192;

/// One request or one opaque connection.
#[derive(Debug, Serialize)]
pub struct Record {
    /// Unix time of the end, seconds.
    pub time: f64,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// The service called.
    pub service: Arc<str>,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// The endpoint that answered.
    pub upstream: Option<SocketAddr>,
    /// HTTP method; empty for opaque connections.
    pub method: String,
    /// Path without query; empty for opaque connections.
    pub path: String,
    /// HTTP status; 0 when none.
    pub status: u16,
    /// gRPC status, when there was one.
    pub grpc_status: Option<i32>,
    /// Why the mesh answered by itself.
    pub reason: Option<&'static str>,
    /// Inbound: who called, when it proved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Inbound: the rule that allowed the request or did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Outbound: the route that the request took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// Outbound: where the route led.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Arc<str>>,
    /// Tries sent upstream.
    pub tries: u32,
    /// From the request's head to the end of the answer.
    pub duration_ms: f64,
}

impl Record {
    /// The present as Unix seconds.
    #[must_use]
    pub fn now() -> f64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs_f64()
    }
}

/// The workers' end of the log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: SyncSender<Record>,
    stats: Arc<Stats>,
}

impl AccessLog {
    /// Opens `target` (a path, or `-` for standard output) and starts the writer thread, which ends
    /// when the last handle is dropped.
    ///
    /// # Errors
    /// When the file cannot be opened for appending or the thread cannot start.
    pub fn open(target: &str, stats: Arc<Stats>) -> std::io::Result<Self> {
        let sink: Box<dyn Write + Send> = match target {
            "-" => Box::new(std::io::stdout()),
            path => Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, records) = sync_channel::<Record>(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut out = BufWriter::with_capacity(64 * 1024, sink);
            while let Ok(first) = records.recv() {
                for record in std::iter::once(first).chain(records.try_iter()) {
                    // A disk that is full loses log lines, not requests.
                    if serde_json::to_writer(&mut out, &record).is_ok() {
                        drop(out.write_all(b"\n"));
                    }
                }
                drop(out.flush());
            }
        })?;
        Ok(Self { queue, stats })
    }

    /// Hands over one record; drops and counts it when the writer is behind.
    pub fn write(&self, record: Record) {
        match self.queue.try_send(record) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.stats.add(Gauge::AccessLogDropped, 1),
        }
    }
}
