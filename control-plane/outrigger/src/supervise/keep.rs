//! Keeps one process running: starts it, takes its lines, starts it again with back-off when it ends, stops it when told.
//!
//! What the process is (app, sidecar, control plane) is not known here. Leftovers of an ended process, children it did
//! not take along, are found by their mark and ended before the next start, or they would hold its port.

use std::ffi::OsString;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::console::Console;
use super::logs::Sink;
use super::reap::{Exit, Reaper, Running};
use super::{ITSELF, guard, tree};

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The program.
    pub(crate) program: OsString,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Its working folder.
    pub(crate) dir: PathBuf,
    /// Variables added to our own environment; marks among them.
    pub(crate) env: Vec<(String, String)>,
    /// What it reads from its standard input; at most what a pipe holds (64 KiB).
    pub(crate) stdin: Option<String>,
    /// Listening sockets that are handed to it over its standard input, each time that it starts. They stay ours, so
    /// that connections wait in their queues while it is replaced.
    pub(crate) listeners: Vec<Arc<TcpListener>>,
    /// Which of the variables find this process's leftovers.
    pub(crate) marks: Vec<String>,
}

impl Launch {
    /// A shell line as in `run:`. The shell replaces itself by a single command, so signals reach that one.
    pub(crate) fn shell(line: &str, dir: PathBuf) -> Self {
        Self {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), line.into()],
            dir,
            env: Vec::new(),
            stdin: None,
            listeners: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// The command, tied to our life, its output piped to us.
    pub(crate) fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        if self.program == ITSELF {
            command.arg0("outrigger");
        }
        command.args(&self.args).current_dir(&self.dir);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(if self.stdin.is_some() {
            Stdio::piped()
        } else if self.listeners.is_empty() {
            Stdio::null()
        } else {
            OwnedFd::from(hand(&self.listeners)?).into()
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        guard::tie(&mut command, Signal::SIGKILL);
        Ok(command)
    }
}

/// A socket in which a message with `listeners` waits to be read.
fn hand(listeners: &[Arc<TcpListener>]) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let sockets: Vec<_> = listeners.iter().map(|one| one.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&sockets).size()];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !rights.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(&ours, &[IoSlice::new(b".")], &mut rights, SendFlags::empty())?;
    Ok(theirs)
}

/// What the owner of a keeper wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// It shall run.
    Run,
    /// It shall end, politely first.
    Stop,
    /// It shall end at once.
    Kill,
}

/// What the process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// It has not been started yet, or was stopped on purpose.
    Stopped,
    /// It runs.
    Running {
        /// Its process id.
        pid: i32,
    },
    /// It ended by itself and will be started again.
    Ended {
        /// How.
        exit: Exit,
        /// Whether it does so again and again.
        looping: bool,
    },
    /// It could not be started.
    Unstartable {
        /// Why.
        reason: String,
    },
}

impl Life {
    /// The process id while it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self {
            Self::Running { pid } => Some(*pid),
            _ => None,
        }
    }
}

/// A process's life as seen from outside.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// What it does now.
    pub(crate) life: Life,
    /// How many times it was started.
    pub(crate) starts: u64,
    /// Since when it does what it does.
    pub(crate) since: Instant,
}

/// The handle on a kept process.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    want: watch::Sender<Want>,
    /// Its life.
    pub(crate) seen: watch::Receiver<Seen>,
    /// Its lines.
    pub(crate) sink: Sink,
}

impl Kept {
    /// Says what is wanted; a kill is not taken back by a stop.
    pub(crate) fn want(&self, next: Want) {
        self.want.send_if_modified(|now| {
            let change = *now != next && !(*now == Want::Kill && next == Want::Stop);
            if change {
                *now = next;
            }
            change
        });
    }

    /// Waits until the process is stopped on purpose and its leftovers are gone.
    pub(crate) async fn stopped(&self) {
        self.seen.clone().wait_for(|seen| seen.life == Life::Stopped).await.ok();
    }
}

/// Starts to keep `launch` running as soon as [`Want::Run`] is wanted.
pub(crate) fn keep(
    name: &str,
    launch: Launch,
    sink: Sink,
    grace: Duration,
    reaper: &Reaper,
    console: &Console,
) -> Kept {
    let (want, wanted) = watch::channel(Want::Stop);
    let (seen, see) = watch::channel(Seen {
        life: Life::Stopped,
        starts: 0,
        since: Instant::now(),
    });
    let keeper = Keeper {
        name: name.to_owned(),
        launch,
        sink: sink.clone(),
        grace,
        reaper: reaper.clone(),
        console: console.clone(),
        wanted,
        seen,
        backoff: Backoff::default(),
    };
    // Its owner is the handle: the task ends when the last one is dropped.
    tokio::spawn(keeper.run());
    Kept { want, seen: see, sink }
}

struct Keeper {
    name: String,
    launch: Launch,
    sink: Sink,
    grace: Duration,
    reaper: Reaper,
    console: Console,
    wanted: watch::Receiver<Want>,
    seen: watch::Sender<Seen>,
    backoff: Backoff,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            if self.wanted.wait_for(|want| *want == Want::Run).await.is_err() {
                return;
            }
            let started = Instant::now();
            let life = match self.start() {
                Ok(mut running) => {
                    self.set(
                        Life::Running {
                            pid: running.pid.as_raw(),
                        },
                        1,
                    );
                    tokio::select! {
                        exit = running.exited() => Life::Ended { exit, looping: false },
                        () = unwanted(&mut self.wanted) => {
                            self.stop(&mut running).await;
                            self.backoff = Backoff::default();
                            self.set(Life::Stopped, 0);
                            continue;
                        }
                    }
                }
                Err(error) => Life::Unstartable {
                    reason: self.explain(&error),
                },
            };
            let wait = self.backoff.after(started.elapsed(), fastrand::f64());
            let life = match life {
                Life::Ended { exit, .. } => Life::Ended {
                    exit,
                    looping: self.backoff.crash_loop(),
                },
                other => other,
            };
            self.report(&life, wait);
            self.set(life, 0);
            self.end_leftovers(Duration::ZERO).await;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = unwanted(&mut self.wanted) => {
                    self.backoff = Backoff::default();
                    self.set(Life::Stopped, 0);
                }
            }
        }
    }

    fn start(&self) -> io::Result<Running> {
        self.sink.forget();
        let mut running = self.reaper.spawn(&mut self.launch.command()?)?;
        if let (Some(text), Some(mut pipe)) = (&self.launch.stdin, running.stdin.take()) {
            // A process that dies before it reads is reported as ended.
            pipe.write_all(text.as_bytes()).ok();
        }
        let pipes = [
            running.stdout.take().map(OwnedFd::from),
            running.stderr.take().map(OwnedFd::from),
        ];
        for pipe in pipes.into_iter().flatten() {
            // Its owner is the pipe: the task ends when all writers have ended.
            tokio::spawn(self.sink.clone().capture(pipe));
        }
        Ok(running)
    }

    async fn stop(&mut self, running: &mut Running) {
        killpg(running.pid, Signal::SIGTERM).ok();
        tokio::select! {
            _ = running.exited() => {}
            () = tokio::time::sleep(self.grace) => {}
            _ = self.wanted.wait_for(|want| *want == Want::Kill) => {}
        }
        // Harmless when the leader is gone; otherwise it takes the group along.
        killpg(running.pid, Signal::SIGKILL).ok();
        running.exited().await;
        let grace = if *self.wanted.borrow() == Want::Kill {
            Duration::ZERO
        } else {
            Duration::from_secs(1)
        };
        self.end_leftovers(grace).await;
    }

    async fn end_leftovers(&self, grace: Duration) {
        if !self.launch.marks.is_empty() {
            tree::end(&self.reaper, grace, || tree::marked(&self.launch.marks)).await;
        }
    }

    fn set(&self, life: Life, starts: u64) {
        self.seen.send_modify(|seen| {
            // A restart that was asked for is not counted: the count shows what happened by itself.
            seen.starts = if life == Life::Stopped { 0 } else { seen.starts + starts };
            seen.life = life;
            seen.since = Instant::now();
        });
    }

    fn explain(&self, error: &io::Error) -> String {
        format!(
            "cannot start `{}` in {}: {error}",
            self.launch.program.to_string_lossy(),
            self.launch.dir.display()
        )
    }

    fn report(&self, life: &Life, wait: Duration) {
        let what = match life {
            Life::Ended { exit, .. } => exit.to_string(),
            Life::Unstartable { reason } => reason.clone(),
            Life::Stopped | Life::Running { .. } => return,
        };
        let wait = wait.as_secs_f64();
        self.console
            .note(&format!("{} {what}; next start in {wait:.1} s", self.name));
    }
}

async fn unwanted(wanted: &mut watch::Receiver<Want>) {
    // A dropped handle wants nothing any more.
    wanted.wait_for(|want| *want != Want::Run).await.ok();
}
