//! `outrigger apply`: gives a mesh.yaml to the control plane.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::offer;
use crate::output::{self, Output, cell};
use crate::plane::Target;

/// Put a mesh.yaml into force, or learn why not
///
/// It is accepted or refused as a whole; when it is refused, the last good version stays in force.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApplyArgs {
    /// A mesh.yaml, or the folder of one
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

/// Runs `apply`.
pub(crate) fn apply(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let target = &args.target;
    let applied = super::runtime()?.block_on(offer::send(&args.file, target, "/v1/config"))?;
    output::print(&args.output.text(&applied, |applied| {
        let changed = applied.get("changed").and_then(Value::as_array).map_or(0, Vec::len);
        let version = cell(applied.get("version"));
        match changed {
            0 => format!("version {version}: nothing changed\n"),
            _ => format!("version {version}: changed {}\n", cell(applied.get("changed"))),
        }
    })?)?;
    Ok(ExitCode::SUCCESS)
}
