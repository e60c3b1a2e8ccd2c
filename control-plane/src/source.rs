//! Reads the configuration from a file and reads it again when it changed.
//!
//! The folder is watched, not the file: editors and ConfigMaps replace files by renaming. What counts
//! is the content, compared by hash, so a touched file changes nothing. A file that is invalid or
//! gone is refused like any other mistake; the last good configuration stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::config::{self, FILE};
use crate::plane::Plane;
use crate::push::table::content_version;
use crate::stop::Stop;

/// Several events of one save are one change.
const QUIET: Duration = Duration::from_millis(50);
/// For folders that cannot be watched, and for changes that a watch does not see (links, network disks).
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

/// A file and what it held when it was read last.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    last: Option<Option<String>>,
}

impl Source {
    /// Reads `path`, or mesh.yaml in it when it is a folder.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let file = if path.is_dir() {
            path.join(FILE)
        } else {
            path.to_owned()
        };
        Self { file, last: None }
    }

    /// What the file holds, if it can be read.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        std::fs::read_to_string(&self.file).ok()
    }

    /// Applies what the file holds if that changed; true when the file is good or did not change.
    pub fn look(&mut self, plane: &Plane) -> bool {
        let text = std::fs::read(&self.file).ok();
        let content = text.as_deref().map(content_version);
        if self.last.as_ref() == Some(&content) {
            return true;
        }
        self.last = Some(content);
        let origin = self.file.display().to_string();
        let text = text.unwrap_or_default();
        plane
            .apply(&origin, config::load(&self.file), &String::from_utf8_lossy(&text))
            .is_ok()
    }

    /// Looks whenever the folder changes, until `stop`.
    pub async fn watch(mut self, plane: Arc<Plane>, stop: Stop) {
        let (told, mut changes) = mpsc::channel(1);
        // What changed since the first look and before the watch begins would be missed.
        let _room = told.try_send(()).is_ok();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is an event too; it must not lead to reading the file. A full channel
            // already says that there is something to look at.
            if event.is_ok_and(|e| !e.kind.is_access()) {
                let _told_before = told.try_send(()).is_err();
            }
        });
        let folder = match self.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, folder = %folder.display(), every = ?LOOK_ANYWAY, "cannot watch; looking regularly");
        }
        loop {
            tokio::select! {
                () = stop.stopped() => break,
                () = quiet(&mut changes) => {}
                () = tokio::time::sleep(LOOK_ANYWAY) => {}
            }
            let plane = Arc::clone(&plane);
            let looked = tokio::task::spawn_blocking(move || {
                self.look(&plane);
                self
            });
            match looked.await {
                Ok(source) => self = source,
                // Only when the runtime ends or reading panicked; the configuration in force stays.
                Err(error) => {
                    tracing::error!(%error, "stopped watching the configuration");
                    break;
                }
            }
        }
        drop(watcher);
    }
}

/// Returns once something changed and then nothing did for a moment; never when nothing is watched.
async fn quiet(changes: &mut mpsc::Receiver<()>) {
    if changes.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
    while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {}
}
