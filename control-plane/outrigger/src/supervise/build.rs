//! Runs the `build` steps of a mesh, each command once, and shows how far it is.
//!
//! Whether there is anything to do is left to the build tools, which know it best.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use thiserror::Error;

use super::console::Console;
use super::keep::Launch;
use super::logs::{Follower, Sink};
use super::reap::{Exit, Reaper};
use super::state::Layout;

/// One build step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The shell line.
    pub(crate) command: String,
    /// Where it runs.
    pub(crate) dir: PathBuf,
}

/// Why building failed.
#[derive(Debug, Error)]
pub(crate) enum BuildError {
    /// The shell could not be started.
    #[error("cannot start `{command}`")]
    Start {
        /// The step.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The command failed; its output has been shown.
    #[error("build failed: `{command}` {exit}")]
    Failed {
        /// The step.
        command: String,
        /// How it ended.
        exit: Exit,
    },
}

/// The lines shown of a failed build.
const SHOWN: usize = 400;

/// Runs `steps` in order, leaving out what has run already.
pub(crate) async fn run(steps: &[Step], layout: &Layout, reaper: &Reaper, console: &Console) -> Result<(), BuildError> {
    let mut done: Vec<&Step> = Vec::new();
    for step in steps {
        if !done.contains(&step) {
            one(step, layout, reaper, console).await?;
            done.push(step);
        }
    }
    Ok(())
}

async fn one(step: &Step, layout: &Layout, reaper: &Reaper, console: &Console) -> Result<(), BuildError> {
    let started = Instant::now();
    let progress = Progress::start(&step.command, console);
    let log = layout.log("build");
    let sink = Sink::new("build", &log, None, console);
    let start = |source| BuildError::Start {
        command: step.command.clone(),
        source,
    };
    let mut command = Launch::shell(&step.command, step.dir.clone())
        .command()
        .map_err(start)?;
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_cargo_run(name)) {
        command.env_remove(name);
    }
    let mut running = reaper.spawn(&mut command).map_err(start)?;
    let pipes = [
        running.stdout.take().map(OwnedFd::from),
        running.stderr.take().map(OwnedFd::from),
    ];
    let readers: Vec<_> = pipes
        .into_iter()
        .flatten()
        .map(|pipe| tokio::spawn(sink.clone().capture(pipe)))
        .collect();
    let exit = loop {
        tokio::select! {
            exit = running.exited() => break exit,
            () = tokio::time::sleep(Duration::from_millis(100)) => progress.show(sink.last_lines().last()),
        }
    };
    for reader in readers {
        // A daemon that a build tool left behind (sccache, gradle) may hold the pipe open.
        tokio::time::timeout(Duration::from_millis(500), reader).await.ok();
    }
    if exit == Exit::Code(0) {
        progress.done(started.elapsed());
        return Ok(());
    }
    progress.clear();
    let lines = Follower::new(log).read();
    for entry in lines.iter().skip(lines.len().saturating_sub(SHOWN)) {
        console.say(&entry.text);
    }
    Err(BuildError::Failed {
        command: step.command.clone(),
        exit,
    })
}

/// What `cargo run` tells the program it runs about its package. A cargo that is a build step would take it for a change
/// of its environment and build anew what has not changed.
fn is_of_cargo_run(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        name.starts_with("CARGO_PKG_") || matches!(name, "CARGO" | "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH")
    })
}

/// A moving line on a terminal, two plain lines elsewhere.
struct Progress<'a> {
    command: &'a str,
    bar: Option<ProgressBar>,
    console: &'a Console,
}

impl<'a> Progress<'a> {
    fn start(command: &'a str, console: &'a Console) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(command.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} build {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            console.say(&format!("build  {command}"));
        }
        Self { command, bar, console }
    }

    fn show(&self, line: Option<&String>) {
        if let (Some(bar), Some(line)) = (&self.bar, line) {
            bar.set_message(format!("{} · {}", self.command, line.trim()));
        }
    }

    fn done(&self, took: Duration) {
        self.clear();
        self.console
            .say(&format!("built  {} ({:.1} s)", self.command, took.as_secs_f64()));
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
