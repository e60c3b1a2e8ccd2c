//! Changes that people want to hear of, kept until they are sent to the control plane.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use outrigger_proto::model::ServiceName;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Events kept while nobody takes them; then the oldest go.
pub const KEPT: usize = 256;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// Of which service, as this sidecar calls it; the own one for what its app does.
    pub service: ServiceName,
    /// Of which endpoint; none for the service as a whole.
    pub endpoint: Option<String>,
    /// What became of it.
    pub what: What,
    /// Why; empty when time alone is the cause.
    pub cause: String,
    /// Time until it is tried again.
    pub next: Option<Duration>,
}

/// What became of a breaker or an endpoint, or what was found of the own app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// No request passes.
    BreakerOpened,
    /// A few requests pass.
    BreakerProbing,
    /// All pass.
    BreakerClosed,
    /// It gets no requests.
    Ejected,
    /// It gets requests again.
    Returned,
    /// The app gets requests with a deadline and calls others without one.
    DeadlineDropped,
    /// The app passes it on.
    DeadlinePassedOn,
}

impl What {
    /// The word in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerProbing => "breaker_probing",
            Self::BreakerClosed => "breaker_closed",
            Self::Ejected => "endpoint_ejected",
            Self::Returned => "endpoint_returned",
            Self::DeadlineDropped => "deadline_dropped",
            Self::DeadlinePassedOn => "deadline_passed_on",
        }
    }
}

/// A queue with an end. Changes are rare: a lock is no matter here.
#[derive(Debug, Default)]
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    dropped: AtomicU64,
    some: Notify,
}

impl Events {
    /// Adds one; the oldest goes when there are too many.
    pub fn push(&self, event: Event) {
        let mut queue = self.queue.lock();
        if queue.len() >= KEPT {
            queue.pop_front();
            self.dropped.fetch_add(1, Relaxed);
        }
        queue.push_back(event);
        drop(queue);
        self.some.notify_one();
    }

    /// Takes all that are there.
    pub fn take(&self) -> Vec<Event> {
        self.queue.lock().drain(..).collect()
    }

    /// Waits until there are some. For one waiter.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn some(&self) {
        while self.queue.lock().is_empty() {
            self.some.notified().await;
        }
    }

    /// Events that nobody took in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}
