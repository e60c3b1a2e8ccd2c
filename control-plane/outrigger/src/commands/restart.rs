//! `outrigger restart`: starts services again without losing a request.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::supervise::console::Console;
use crate::supervise::control::{self, Answer, Ask};
use crate::supervise::state::Layout;

/// Restart services one instance after the other: drain, stop, start.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestartArgs {
    /// A service or instance; all when none is named.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// The folder of mesh.yaml, or the file.
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
}

/// Runs `restart`.
pub(crate) fn restart(args: &RestartArgs) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&args.dir)?;
    if layout.up().is_none() {
        bail!("nothing runs here");
    }
    let answer = crate::supervise::runtime()?
        .block_on(control::ask(&layout, &Ask::Restart(args.service.clone())))
        .context("the supervisor does not answer")?;
    match answer {
        Answer::Restarted(instances) => {
            let console = Console::silent();
            for instance in instances {
                console.say(&format!("restarted {instance}"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Answer::Error(error) => bail!(error),
        Answer::Rows(_) => bail!("the supervisor gave another answer than was asked for"),
    }
}
