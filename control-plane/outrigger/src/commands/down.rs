//! `outrigger down`: ends a running mesh and waits until nothing of it is left.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::supervise::console::Console;
use crate::supervise::state::Layout;

/// Stop a running mesh.
#[derive(Debug, Clone, Args)]
pub(crate) struct DownArgs {
    /// The folder of mesh.yaml, or the file.
    #[arg(default_value = ".", value_name = "DIR")]
    target: PathBuf,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `down`.
pub(crate) fn down(args: &DownArgs) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&args.target)?;
    let console = Console::silent();
    let up = layout.up();
    if up.is_none() && !layout.busy() {
        // What a power cut may have left.
        layout.clean();
        console.say("nothing runs here");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(up) = up.filter(|up| up.front_alive()) {
        kill(Pid::from_raw(up.pid), Signal::SIGTERM).ok();
    }
    crate::supervise::runtime()?.block_on(gone(&layout))?;
    console.say("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn gone(layout: &Layout) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while layout.busy() {
        if Instant::now() > until {
            bail!("not stopped after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
