//! The front of `up`: holds the terminal, passes signals on, and guards the supervisor as that guards everything else.
//!
//! If the front is killed, the kernel sends the supervisor SIGTERM, which stops all in order. If the supervisor is
//! killed, all that it started falls to the front, which is a subreaper, and the front ends it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd;
use tokio::signal::unix::{SignalKind, signal};

use super::console::Console;
use super::reap::{Exit, Reaper};
use super::state::Layout;
use super::{guard, tree};

/// How long what the supervisor left behind may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// What became of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It ended by itself, with this code.
    Ended(i32),
    /// It was killed; so many processes were left and have been ended.
    Killed(usize),
}

/// Guards one `up` in `layout` from its start to its end; returns the exit code. `spawned` is called once the supervisor
/// lives.
pub(crate) async fn run(layout: &Layout, supervisor: Command, spawned: impl FnOnce()) -> anyhow::Result<u8> {
    let Some(_lock) = layout.lock_front().await? else {
        let pid = layout.up().map_or_else(String::new, |up| format!(" (pid {})", up.pid));
        bail!("already running{pid}; `outrigger down` stops it");
    };
    let run = uuid::Uuid::new_v4().simple().to_string();
    match watch(supervisor, &run, spawned)
        .await
        .context("cannot watch the supervisor")?
    {
        Outcome::Ended(code) => Ok(u8::try_from(code).unwrap_or(1)),
        Outcome::Killed(left) => {
            layout.clean();
            Console::silent().note(&format!(
                "the supervisor was killed; ended the {left} processes that it left"
            ));
            Ok(1)
        }
    }
}

/// Starts `supervisor` and watches over it until its end. `run` marks all that it starts; `spawned` is called once it
/// lives.
async fn watch(mut supervisor: Command, run: &str, spawned: impl FnOnce()) -> io::Result<Outcome> {
    prctl::set_child_subreaper(true)?;
    let mut signals = Signals::listen()?;
    let reaper = Reaper::start()?;
    supervisor.env(tree::RUN, run).process_group(0);
    guard::tie(&mut supervisor, Signal::SIGTERM);
    let mut running = reaper.spawn(&mut supervisor)?;
    spawned();
    let exit = loop {
        tokio::select! {
            exit = running.exited() => break exit,
            () = signals.next() => { kill(running.pid, Signal::SIGTERM).ok(); }
        }
    };
    let mark = format!("{}={run}", tree::RUN);
    let left = || {
        let mut left = tree::descendants(unistd::getpid());
        left.extend(tree::marked(std::slice::from_ref(&mark)));
        left.sort();
        left.dedup();
        left
    };
    // Also after a clean end: a promise that nothing remains is kept by looking.
    let found = tree::end(&reaper, GRACE, left).await;
    Ok(match exit {
        Exit::Code(code) => Outcome::Ended(code),
        Exit::Signal(_) => Outcome::Killed(found),
    })
}

/// The signals that ask a program to end.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts listening.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    ///
    /// # Cancel safety
    /// No signal is lost when dropped.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
