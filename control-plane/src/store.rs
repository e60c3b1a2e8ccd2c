//! What must outlive a crash, in one redb file: the last good configuration and the registrations.
//!
//! Writes happen on a thread of their own and are coalesced: one pending value a key, so a slow disk
//! costs memory for at most what there is to store. A file that cannot be opened, read or written is
//! told once (log, event, health) and the control plane goes on from memory; nothing waits for it.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_proto::model::{Endpoint, EndpointName};
use outrigger_proto::wire::mesh;
use parking_lot::{Condvar, Mutex};
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::events::{Event, Events};

#[cfg(test)]
mod tests;

const ENDPOINTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("endpoints");
const CONFIG: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("config");
const FILE: &str = "control-plane.redb";
/// Between two tries to write to a disk that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error("cannot create the state directory: {0}")]
    Directory(#[from] std::io::Error),
    #[error("{0}")]
    File(#[from] redb::Error),
}

/// What a file held when it was opened.
#[derive(Debug, Default)]
pub struct Restored {
    /// The text of the last good configuration.
    pub config: Option<String>,
    /// Registrations, with the reason for those whose app was unwell.
    pub endpoints: Vec<(Endpoint, Option<String>)>,
}

/// The way to the writing thread. Dropping it writes what is pending and ends the thread.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
    failure: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Pending {
    config: Option<String>,
    /// `None` deletes.
    endpoints: BTreeMap<String, Option<Vec<u8>>>,
    writing: bool,
    closed: bool,
}

impl Store {
    /// Opens the file in `directory`, or keeps everything in memory when there is none.
    #[must_use]
    pub fn open(directory: Option<&Path>, events: &Arc<Events>) -> (Self, Restored) {
        let shared = Arc::new(Shared::default());
        let Some(directory) = directory else {
            return (Self { shared, writer: None }, Restored::default());
        };
        let path = directory.join(FILE);
        let opened = open_file(directory, &path).and_then(|db| read(&db).map(|restored| (db, restored)));
        match opened {
            Ok((db, restored)) => {
                let (theirs, events, directory) = (Arc::clone(&shared), Arc::clone(events), directory.to_owned());
                let writer = std::thread::Builder::new()
                    .name("store".into())
                    .spawn(move || write_until_closed(db, &directory, &path, &theirs, &events));
                match writer {
                    Ok(writer) => (
                        Self {
                            shared,
                            writer: Some(writer),
                        },
                        restored,
                    ),
                    Err(error) => {
                        shared.fail(error.to_string());
                        (Self { shared, writer: None }, restored)
                    }
                }
            }
            Err(error) => {
                let reason = format!("{}: {error}; going on from memory", path.display());
                shared.fail(reason.clone());
                events.record(Event::StoreFailed { reason });
                (Self { shared, writer: None }, Restored::default())
            }
        }
    }

    /// Keeps `text` as the last good configuration.
    pub fn put_config(&self, text: &str) {
        self.change(|pending| pending.config = Some(text.to_owned()));
    }

    /// Keeps a registration.
    pub fn put_endpoint(&self, endpoint: &Endpoint, unhealthy: Option<&str>) {
        let stored = StoredEndpoint {
            endpoint: Some(endpoint.clone().into()),
            unhealthy: unhealthy.map(str::to_owned),
        };
        let bytes = stored.encode_to_vec();
        self.change(|pending| pending.endpoints.insert(endpoint.name.to_string(), Some(bytes)));
    }

    /// Forgets a registration.
    pub fn remove_endpoint(&self, name: &EndpointName) {
        self.change(|pending| pending.endpoints.insert(name.to_string(), None));
    }

    /// Why the file cannot be used; none when all is well or nothing has to be stored.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().clone()
    }

    /// Blocks until everything so far is on disk, or the disk has failed.
    pub fn flush(&self) {
        let mut pending = self.shared.pending.lock();
        while self.writer.is_some() && !pending.is_empty() && self.failure().is_none() {
            self.shared.changed.wait(&mut pending);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Pending) -> T) {
        if self.writer.is_some() {
            change(&mut self.shared.pending.lock());
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.pending.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing more to say here.
            let _panicked = writer.join().is_err();
        }
    }
}

impl Shared {
    fn fail(&self, reason: String) {
        *self.failure.lock() = Some(reason);
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.config.is_none() && self.endpoints.is_empty() && !self.writing
    }

    /// Puts back what could not be written, unless it changed meanwhile.
    fn take_back(&mut self, config: Option<String>, endpoints: BTreeMap<String, Option<Vec<u8>>>) {
        self.config = self.config.take().or(config);
        for (name, value) in endpoints {
            self.endpoints.entry(name).or_insert(value);
        }
    }
}

/// A registration as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredEndpoint {
    #[prost(message, optional, tag = "1")]
    endpoint: Option<mesh::Endpoint>,
    #[prost(string, optional, tag = "2")]
    unhealthy: Option<String>,
}

fn open_file(directory: &Path, path: &Path) -> Result<Database, StoreError> {
    // The configuration may hold what is nobody else's business.
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let db = Database::create(path).map_err(redb::Error::from)?;
    let transaction = db.begin_write().map_err(redb::Error::from)?;
    transaction.open_table(ENDPOINTS).map_err(redb::Error::from)?;
    transaction.open_table(CONFIG).map_err(redb::Error::from)?;
    transaction.commit().map_err(redb::Error::from)?;
    Ok(db)
}

fn read(db: &Database) -> Result<Restored, StoreError> {
    let transaction = db.begin_read().map_err(redb::Error::from)?;
    let mut restored = Restored::default();
    let config = transaction.open_table(CONFIG).map_err(redb::Error::from)?;
    if let Some(text) = config.get("text").map_err(redb::Error::from)? {
        restored.config = String::from_utf8(text.value().to_vec()).ok();
    }
    let endpoints = transaction.open_table(ENDPOINTS).map_err(redb::Error::from)?;
    for row in endpoints.iter().map_err(redb::Error::from)? {
        let (name, value) = row.map_err(redb::Error::from)?;
        let stored = StoredEndpoint::decode(value.value()).ok();
        let endpoint = stored.and_then(|s| Some((Endpoint::try_from(s.endpoint?).ok()?, s.unhealthy)));
        match endpoint {
            Some(endpoint) => restored.endpoints.push(endpoint),
            None => tracing::warn!(
                name = name.value(),
                "a stored registration cannot be read and is left out"
            ),
        }
    }
    Ok(restored)
}

fn write_until_closed(db: Database, directory: &Path, path: &Path, shared: &Shared, events: &Events) {
    let mut db = Some(db);
    loop {
        let (config, endpoints) = {
            let mut pending = shared.pending.lock();
            while pending.is_empty() && !pending.closed {
                shared.changed.wait(&mut pending);
            }
            if pending.is_empty() {
                return;
            }
            pending.writing = true;
            (pending.config.take(), std::mem::take(&mut pending.endpoints))
        };
        let written = match db.take().map_or_else(|| open_file(directory, path), Ok) {
            Ok(open) => write(&open, config.as_deref(), &endpoints)
                .map(|()| db = Some(open))
                .map_err(StoreError::from),
            Err(error) => Err(error),
        };
        let mut pending = shared.pending.lock();
        pending.writing = false;
        match written {
            Ok(()) => {
                if shared.failure.lock().take().is_some() {
                    tracing::info!(path = %path.display(), "the state file can be written again");
                }
                shared.changed.notify_all();
            }
            Err(error) => {
                pending.take_back(config, endpoints);
                let reason = format!("{}: {error}; going on from memory", path.display());
                if shared.failure.lock().replace(reason.clone()).is_none() {
                    events.record(Event::StoreFailed { reason });
                }
                shared.changed.notify_all();
                let deadline = Instant::now() + RETRY;
                while !pending.closed && !shared.changed.wait_until(&mut pending, deadline).timed_out() {}
                if pending.closed {
                    return;
                }
            }
        }
    }
}

fn write(
    db: &Database,
    config: Option<&str>,
    endpoints: &BTreeMap<String, Option<Vec<u8>>>,
) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    if let Some(text) = config {
        transaction.open_table(CONFIG)?.insert("text", text.as_bytes())?;
    }
    {
        let mut table = transaction.open_table(ENDPOINTS)?;
        for (name, value) in endpoints {
            match value {
                Some(bytes) => table.insert(name.as_str(), bytes.as_slice())?,
                None => table.remove(name.as_str())?,
            };
        }
    }
    transaction.commit()?;
    Ok(())
}
