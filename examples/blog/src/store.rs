//! A service's own database: one SQLite file that no other service opens.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rusqlite::Connection;
use tonic::Status;
use tracing::error;

/// An open database; clones share it.
#[derive(Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
}

impl Store {
    /// Opens `$DB`, or `<service>.db` in `$DATA_DIR` (the working directory when that is unset), and applies `schema`.
    ///
    /// # Errors
    /// When the file cannot be made or opened, or is no database.
    pub fn open(service: &str, schema: &str) -> anyhow::Result<Self> {
        let path = std::env::var_os("DB").map_or_else(
            || PathBuf::from(std::env::var_os("DATA_DIR").unwrap_or_default()).join(format!("{service}.db")),
            PathBuf::from,
        );
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // SQLite's switch to WAL fails at once when another replica is just at it, whatever the busy timeout says.
        let lock = path.with_extension("lock");
        let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock()?;
        Self::prepare(&path, schema).with_context(|| format!("cannot open {}", path.display()))
    }

    fn prepare(path: &Path, schema: &str) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        // A second replica may have the file open: wait for its transactions instead of failing.
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(schema)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs `work` on a thread that may block; a database error becomes `INTERNAL`.
    ///
    /// # Errors
    /// `INTERNAL` when the database refuses.
    pub async fn run<T, W>(&self, work: W) -> Result<T, Status>
    where
        T: Send + 'static,
        W: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let done = blocking(move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))).await?;
        done.map_err(|cause| {
            error!("database: {cause}");
            Status::internal("the database refused")
        })
    }
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// `INTERNAL` when `work` panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|cause| {
        error!("{cause}");
        Status::internal("the work was not finished")
    })
}

/// Seconds since the Unix epoch.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
