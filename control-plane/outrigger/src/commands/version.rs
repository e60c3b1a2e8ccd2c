//! `outrigger version`: which one this is, and what it implements.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::output::{self, Output, cell};

/// Print the version and what it implements
#[derive(Debug, Clone, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    output: Output,
}

/// Runs `version`.
pub(crate) fn version(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let version = json!({ "version": env!("CARGO_PKG_VERSION"), "features": outrigger_proto::features::ALL });
    output::print(&args.output.text(&version, |version: &Value| {
        format!(
            "outrigger {}\nfeatures  {}\n",
            cell(version.get("version")),
            cell(version.get("features"))
        )
    })?)?;
    Ok(ExitCode::SUCCESS)
}
