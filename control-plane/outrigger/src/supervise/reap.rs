//! The only place that waits for children: it reaps ours and, because the process is a subreaper, orphans that were
//! handed to it, and tells the owner of each child how it ended.
//!
//! It looks at an ended child without reaping it first, because `std` itself waits for a child whose exec failed; a
//! careless `waitpid(-1)` would take that away and make `std` panic. A lock held while spawning keeps the two apart.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::Arc;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The code a shell would report: 128 + n for a signal.
    pub(crate) fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {}", signal.as_str()),
                Err(_) => write!(f, "killed by signal {number}"),
            },
        }
    }
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its process id, which is also its process group's.
    pub(crate) pid: Pid,
    /// The parent's ends of its pipes, where such were asked for.
    pub(crate) stdin: Option<ChildStdin>,
    /// Its standard output.
    pub(crate) stdout: Option<ChildStdout>,
    /// Its standard error.
    pub(crate) stderr: Option<ChildStderr>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Running {
    /// Waits until the child has ended and was reaped.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(crate) async fn exited(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Code(0)),
            // The reaper ends only with the runtime.
            Err(_) => Exit::Signal(9),
        }
    }
}

type Owners = Arc<Mutex<HashMap<Pid, watch::Sender<Option<Exit>>>>>;

/// Spawns children and learns of their end.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    owners: Owners,
}

impl Reaper {
    /// Starts listening for ended children.
    pub(crate) fn start() -> io::Result<Self> {
        let mut ended = signal(SignalKind::child())?;
        let reaper = Self {
            owners: Owners::default(),
        };
        let owners = Arc::clone(&reaper.owners);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                reap(&owners);
            }
        });
        Ok(reaper)
    }

    /// Starts `command`. Must be called from the main thread, see [`super::guard`].
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Running> {
        let mut owners = self.owners.lock();
        let mut child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let (tell, exit) = watch::channel(None);
        owners.insert(pid, tell);
        Ok(Running {
            pid,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            exit,
        })
    }

    /// Reaps what has ended by now, without waiting for the signal.
    pub(crate) fn sweep(&self) {
        reap(&self.owners);
    }
}

fn reap(owners: &Owners) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) = waitid(Id::All, look) else {
            return;
        };
        let mut owners = owners.lock();
        let exit = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32),
            Ok(_) | Err(_) => continue,
        };
        if let Some(owner) = owners.remove(&pid) {
            owner.send_replace(Some(exit));
        }
    }
}
