//! `outrigger restart`: starts services again without losing a request.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::supervise::console::Console;
use crate::supervise::control::{self, Answer, Ask};
use crate::supervise::rolling::Wanted;
use crate::supervise::state::Layout;

/// Replace the instances of services one after the other, without losing a request
///
/// Another instance is started beside each. Once it is healthy and callers have heard of it the old one leaves: out of the
/// registry, its callers told to go, what is in flight answered, then stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestartArgs {
    /// A service or instance; all when none is named.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// How long a new instance may take to become healthy; then it is stopped and the old one goes on.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Stop each instance before it starts again: for apps of which only one can run at a time. Always so where mesh.yaml
    /// fixes the app's own port.
    #[arg(long)]
    in_place: bool,
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
    let wanted = Wanted {
        service: args.service.clone(),
        patience: args.timeout,
        in_place: args.in_place,
    };
    let console = Console::silent();
    let answer = crate::supervise::runtime()?
        .block_on(control::ask(&layout, &Ask::Restart(wanted), |step| console.say(step)))
        .context("the supervisor does not answer")?;
    match answer {
        Answer::Restarted(instances) => {
            console.say(&format!("restarted: {}", instances.join(", ")));
            Ok(ExitCode::SUCCESS)
        }
        Answer::Error(error) => bail!(error),
        Answer::Rows(_) | Answer::Step(_) => bail!("the supervisor gave another answer than was asked for"),
    }
}
