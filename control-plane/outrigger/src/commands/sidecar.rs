//! `outrigger sidecar`: the proxy beside one app, in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use outrigger_sidecar::config::Bootstrap;

/// Run the sidecar of one app, as its bootstrap file says
#[derive(Debug, Clone, Args)]
pub(crate) struct SidecarArgs {
    /// The bootstrap file, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs `sidecar` until SIGTERM or SIGINT, then drains.
pub(crate) fn sidecar(args: &SidecarArgs) -> anyhow::Result<ExitCode> {
    let bootstrap = Bootstrap::from_file(&args.config).with_context(|| args.config.display().to_string())?;
    outrigger_sidecar::init_logs();
    outrigger_sidecar::run(bootstrap)?;
    Ok(ExitCode::SUCCESS)
}
