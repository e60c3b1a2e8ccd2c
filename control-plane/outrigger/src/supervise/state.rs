//! The folder `.outrigger` beside a mesh.yaml: `run/` describes what runs now and goes with it, `state/` outlives it.
//!
//! Two locks say who is at work: the front holds `up.lock`, the supervisor `supervisor.lock`. A lock ends with its
//! process however that dies, so a stale description is told from a living one without guessing by process ids.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::tree;

/// Where things lie for one mesh.yaml.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The folder of mesh.yaml.
    pub(crate) root: PathBuf,
    /// mesh.yaml itself.
    pub(crate) mesh: PathBuf,
    /// What exists only while the mesh is up.
    pub(crate) run: PathBuf,
    /// What persists.
    pub(crate) state: PathBuf,
}

impl Layout {
    /// The layout for a folder or a mesh file.
    pub(crate) fn of(target: &Path) -> io::Result<Self> {
        let target = fs::canonicalize(target)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", target.display())))?;
        let (root, mesh) = if target.is_dir() {
            (target.clone(), target.join("mesh.yaml"))
        } else {
            (target.parent().unwrap_or(Path::new("/")).to_path_buf(), target)
        };
        // Two mesh files in one folder (mesh.yaml, polyglot.yaml) are two meshes and must not share state.
        let home = match mesh.file_stem().and_then(|stem| stem.to_str()) {
            None | Some("mesh") => root.join(".outrigger"),
            Some(other) => root.join(".outrigger").join(other),
        };
        Ok(Self {
            run: home.join("run"),
            state: home.join("state"),
            root,
            mesh,
        })
    }

    /// Creates the folders; only this user may look into them: there are keys and tokens.
    pub(crate) fn create(&self) -> io::Result<()> {
        let (plane, sidecars) = (self.state.join("control-plane"), self.state.join("sidecars"));
        // A control plane that begins anew is another mesh: what its sidecars kept of the old one nobody trusts, and
        // they would trust nobody.
        if fs::read_dir(&plane).map_or(true, |mut files| files.next().is_none()) && sidecars.exists() {
            fs::remove_dir_all(&sidecars)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", sidecars.display())))?;
        }
        for folder in [&self.run, &self.run.join("tokens"), &self.logs(), &sidecars, &plane] {
            private(folder)?;
        }
        // Those that an older version made.
        for folder in [&self.run, &self.state] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// The folder of the log files.
    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// The log file of a process.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The control plane's socket.
    pub(crate) fn plane_socket(&self) -> PathBuf {
        self.run.join(crate::plane::address::SOCKET)
    }

    /// The control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    fn up_json(&self) -> PathBuf {
        self.run.join("up.json")
    }

    /// Takes the front's lock at once or says that another has it.
    pub(crate) async fn lock_front(&self) -> io::Result<Option<File>> {
        // `ps` may be probing the lock this very moment.
        self.lock("up.lock", Duration::from_millis(300)).await
    }

    /// Takes the supervisor's lock; one whose front was killed may still be stopping its services.
    pub(crate) async fn lock_supervisor(&self) -> io::Result<Option<File>> {
        self.lock("supervisor.lock", Duration::from_secs(20)).await
    }

    async fn lock(&self, name: &str, patience: Duration) -> io::Result<Option<File>> {
        private(&self.state)?;
        let path = self.state.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        let until = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Whether a front or a supervisor is at work here.
    pub(crate) fn busy(&self) -> bool {
        ["up.lock", "supervisor.lock"].iter().any(|name| {
            File::open(self.state.join(name))
                .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
        })
    }

    /// The description of what runs, when it runs.
    pub(crate) fn up(&self) -> Option<Up> {
        let up: Up = serde_json::from_slice(&fs::read(self.up_json()).ok()?).ok()?;
        up.alive().then_some(up)
    }

    /// Writes the description, whole or not at all.
    pub(crate) fn write_up(&self, up: &Up) -> io::Result<()> {
        let next = self.run.join("up.json.next");
        fs::write(&next, serde_json::to_vec_pretty(up)?)?;
        fs::rename(next, self.up_json())
    }

    /// Removes what must not outlive the mesh.
    pub(crate) fn clean(&self) {
        fs::remove_dir_all(&self.run).ok();
    }
}

/// Creates `folder` for this user alone.
fn private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
}

/// `up.json`: what runs now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Up {
    /// The mesh's name.
    pub(crate) mesh: String,
    /// The front: what a person sees as `outrigger up`.
    pub(crate) pid: i32,
    /// When it started, in ticks since boot.
    pub(crate) pid_started: u64,
    /// The supervisor behind it.
    pub(crate) supervisor: i32,
    /// When it started, in ticks since boot.
    pub(crate) supervisor_started: u64,
    /// The mark in the environment of everything that was started.
    pub(crate) run: String,
    /// The control plane's address.
    pub(crate) control_plane: String,
    /// The control plane's socket, for those who may use it.
    #[serde(default)]
    pub(crate) socket: PathBuf,
    /// Whether start-up is over.
    pub(crate) ready: bool,
    /// One entry an instance.
    pub(crate) services: Vec<UpService>,
}

impl Up {
    /// Whether the front lives.
    pub(crate) fn front_alive(&self) -> bool {
        tree::started(Pid::from_raw(self.pid)) == Some(self.pid_started)
    }

    /// Whether the front or the supervisor lives.
    pub(crate) fn alive(&self) -> bool {
        self.front_alive() || tree::started(Pid::from_raw(self.supervisor)) == Some(self.supervisor_started)
    }
}

/// One instance in `up.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UpService {
    /// The service.
    pub(crate) service: String,
    /// The instance.
    pub(crate) instance: String,
    /// The app's process, while it lives.
    pub(crate) app_pid: Option<i32>,
    /// The sidecar's process, while it lives.
    pub(crate) sidecar_pid: Option<i32>,
    /// The sidecar's admin address.
    pub(crate) admin: Option<SocketAddr>,
    /// The ports by name.
    pub(crate) ports: Vec<UpPort>,
    /// The app's log file.
    pub(crate) log: PathBuf,
}

/// One port of an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UpPort {
    /// Its name.
    pub(crate) name: String,
    /// What it speaks.
    pub(crate) protocol: String,
    /// Where callers reach it: the sidecar.
    pub(crate) listen: SocketAddr,
    /// Where sidecars reach it instead, when its server speaks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mesh_listen: Option<SocketAddr>,
    /// Where the app listens.
    pub(crate) app: SocketAddr,
}
