//! One child process in a process group of its own; ended, with its children, when dropped.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait;

/// A running program, its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its output going to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            ended: None,
        })
    }

    /// The process id, which is also the group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the program printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        read_lossy(&self.log)
    }

    /// Empties the log of a program that ended.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_output(&self) -> Result<()> {
        Ok(std::fs::write(&self.log, "")?)
    }

    /// Sends `signal` to the program alone.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Stops the program by SIGSTOP, and waits until each of its threads has stopped: the signal is only the wish.
    ///
    /// # Errors
    /// When it is gone, or does not stop.
    pub async fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.pid());
        wait::until(&format!("{} has stopped", self.name), || async {
            let Ok(threads) = std::fs::read_dir(&tasks) else {
                return false;
            };
            // proc(5), `stat`: the state follows the name, which stands in parentheses.
            threads.flatten().all(|thread| {
                let text = read_lossy(&thread.path().join("stat"));
                text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        })
        .await
    }

    /// `kill -9` and reaping.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended.is_none() {
            self.kill_group();
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// Whether it ended, and how, without waiting.
    ///
    /// # Errors
    /// When the OS does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits for the program's own end.
    ///
    /// # Errors
    /// After `deadline`, with the end of its output.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = format!("{} ends", self.name);
        let end = tokio::time::Instant::now() + deadline;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if tokio::time::Instant::now() >= end {
                return Err(anyhow!("waited {deadline:?} in vain: {name}\n{}", self.output()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the program's exit code is 0.
    ///
    /// # Errors
    /// Another code or a signal, with the end of its output.
    pub async fn succeed(&mut self, deadline: Duration) -> Result<String> {
        let status = self.wait(deadline).await?;
        if status.success() {
            return Ok(self.output());
        }
        let how = match status.signal() {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("exited with {}", status.code().unwrap_or(-1)),
        };
        Err(anyhow!("{} {how}\n{}", self.name, tail(&self.output(), 40)))
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn rss_kib(&self) -> Result<u64> {
        self.status_kib("VmRSS:")
    }

    /// The largest resident memory so far in KiB.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        self.status_kib("VmHWM:")
    }

    /// Fails early with the program's output when it is gone although it should run.
    ///
    /// # Errors
    /// When it ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended: {status}\n{}", self.name, tail(&self.output(), 40))),
        }
    }

    fn status_kib(&self, key: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse().ok())
            .with_context(|| format!("{key} in {path}"))
    }

    fn kill_group(&self) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            // Gone already is as good.
            killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A program that ended may have left children in its group. Its number cannot have been
        // reused: the group lives as long as one member does, and nobody else could reap the leader.
        self.kill_group();
        if self.ended.is_none() {
            drop(self.child.wait());
        }
    }
}

/// The last `lines` lines of `text`.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A file's text; empty when there is none.
#[must_use]
pub fn read_lossy(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Waits until something accepts connections at `addr`.
///
/// # Errors
/// After the usual deadline.
pub async fn accepts(addr: std::net::SocketAddr) -> Result<()> {
    wait::until(&format!("{addr} accepts connections"), || async move {
        tokio::net::TcpStream::connect(addr).await.is_ok()
    })
    .await
}
