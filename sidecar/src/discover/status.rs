//! What discovery runs with now: the connection, and the version applied or refused of each resource.
//!
//! One state a resource, so a slow reader sees the latest and nothing queues. Holds facts; decides
//! nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use outrigger_proto::model::{FieldError, ResourceType};
use parking_lot::Mutex;
use tokio::sync::watch;

/// One resource's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its type.
    pub kind: ResourceType,
    /// Its full name.
    pub name: String,
    /// The version that was sent.
    pub version: String,
    /// Why it was refused; none when applied.
    pub rejection: Option<FieldError>,
    /// True when the control plane took it away.
    pub removed: bool,
}

/// Facts about discovery, for `/config`, `/health` and the session.
#[derive(Debug)]
pub struct Status {
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    connected: bool,
    since: Instant,
    error: String,
    /// The version in force and the last refusal are both shown.
    resources: BTreeMap<(ResourceType, String), Outcome>,
}

/// What is known of one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The version in force; empty when none is, or when it came from the file.
    pub version: String,
    /// The version refused last and why; none after a later one was applied.
    pub refused: Option<(String, FieldError)>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                connected: false,
                since: Instant::now(),
                error: String::new(),
                resources: BTreeMap::new(),
            }),
            revision: watch::Sender::new(0),
        }
    }
}

impl Status {
    /// Notes whether the stream is up, and the error when it is not.
    pub fn set_connected(&self, connected: bool, error: impl Into<String>) {
        let mut inner = self.inner.lock();
        if inner.connected != connected {
            inner.connected = connected;
            inner.since = Instant::now();
        }
        inner.error = error.into();
    }

    /// Whether the stream is up, since when, and the last error.
    #[must_use]
    pub fn connection(&self) -> (bool, Instant, String) {
        let inner = self.inner.lock();
        (inner.connected, inner.since, inner.error.clone())
    }

    /// Takes over what happened to some resources.
    pub fn record(&self, applied: Vec<Applied>) {
        if applied.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for one in applied {
            let key = (one.kind, one.name);
            match (one.removed, one.rejection) {
                (true, _) => drop(inner.resources.remove(&key)),
                (false, Some(why)) => inner.resources.entry(key).or_default().refused = Some((one.version, why)),
                (false, None) => drop(inner.resources.insert(
                    key,
                    Outcome {
                        version: one.version,
                        refused: None,
                    },
                )),
            }
        }
        drop(inner);
        self.revision.send_modify(|n| *n += 1);
    }

    /// Every resource's outcome.
    #[must_use]
    pub fn resources(&self) -> BTreeMap<(ResourceType, String), Outcome> {
        self.inner.lock().resources.clone()
    }

    /// Changes whenever [`resources`](Self::resources) does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
