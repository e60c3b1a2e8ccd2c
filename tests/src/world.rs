//! One test's world: a scratch folder, the programs it started, and the figures it measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};

use crate::pki::Authority;
use crate::process::{Process, read_lossy, tail};

/// Everything that one test owns; dropping it removes the scratch folder.
#[derive(Debug)]
pub struct World {
    dir: tempfile::TempDir,
    logs: Mutex<Vec<(String, PathBuf)>>,
    started: AtomicUsize,
    authority: Option<Authority>,
}

impl World {
    /// An empty world; in a secure one every mesh is under mutual TLS.
    ///
    /// # Errors
    /// When no scratch folder can be made.
    pub fn new(secure: bool) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("outrigger-test-").tempdir()?;
        Ok(Self {
            dir,
            logs: Mutex::default(),
            started: AtomicUsize::new(0),
            authority: secure.then(Authority::new).transpose()?,
        })
    }

    /// The scratch folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who signs the sidecars' certificates in a secure world.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// Writes a file into the scratch folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Starts a program whose output is shown when the test fails.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.dir().join(format!("{number}-{name}.log"));
        if let Ok(mut logs) = self.logs.lock() {
            logs.push((name.to_owned(), log.clone()));
        }
        Process::start(name, command, log)
    }

    /// A command that runs one of our programs.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn program(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(program(name)?);
        command.current_dir(self.dir());
        // What the tester's shell says about proxies is not part of the test.
        for key in ["http_proxy", "https_proxy", "no_proxy"] {
            command.env_remove(key).env_remove(key.to_uppercase());
        }
        Ok(command)
    }

    /// The ends of all logs, for a failure's message.
    #[must_use]
    pub fn logs(&self) -> String {
        let Ok(logs) = self.logs.lock() else {
            return String::new();
        };
        logs.iter()
            .map(|(name, path)| (name, read_lossy(path)))
            .filter(|(_, text)| !text.trim().is_empty())
            .map(|(name, text)| format!("\n--- {name} ---\n{}", tail(&text, 40)))
            .collect()
    }
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// Where one of our programs was built: `OUTRIGGER_BIN` names the folder, else `target/release`.
///
/// # Errors
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("OUTRIGGER_BIN").map_or_else(|| root().join("target/release"), PathBuf::from);
    let path = folder.join(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not built; `tests/run` builds it, or set OUTRIGGER_BIN",
        path.display()
    );
    Ok(path)
}

/// Measured values, printed once at the end of the run; no test passes or fails by them.
static FIGURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes a measured value.
pub fn figure(text: String) {
    if let Ok(mut figures) = FIGURES.lock() {
        figures.push(text);
    }
}

/// All noted values in order.
#[must_use]
pub fn figures() -> Vec<String> {
    FIGURES.lock().map(|f| f.clone()).unwrap_or_default()
}
