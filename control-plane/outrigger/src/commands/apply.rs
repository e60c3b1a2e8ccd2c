//! `outrigger apply`: gives a mesh.yaml to the control plane.
//!
//! The file is checked here first, so that mistakes are shown with their snippet even when nobody answers.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use http::StatusCode;
use outrigger_control_plane::config;
use serde_json::Value;

use crate::exit::Failure;
use crate::output::{self, Output, cell};
use crate::plane::{Target, said};

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
    let applied = send(&args.file, &args.target, "/v1/config")?;
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

/// Checks a file, says what may be wanted, gives it to the control plane at `path` and returns what it answers.
pub(crate) fn send(file: &Path, target: &Target, path: &str) -> anyhow::Result<Value> {
    let mesh = config::load(file).map_err(Failure::Config)?;
    warn(&mesh.warnings)?;
    let file = if file.is_dir() {
        file.join(config::FILE)
    } else {
        file.to_path_buf()
    };
    let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
    let reply = super::runtime()?.block_on(target.plane()?.post(path, text.into()))?;
    if reply.status == StatusCode::UNPROCESSABLE_ENTITY {
        let said: Value = serde_json::from_slice(&reply.body)?;
        let reasons = said
            .get("errors")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|error| {
                let part = |key: &str| cell(error.get(key));
                let help = error
                    .get("help")
                    .and_then(Value::as_str)
                    .map(|help| format!(" ({help})"))
                    .unwrap_or_default();
                format!(
                    "{}:{}:{}: {}{help}",
                    file.display(),
                    part("line"),
                    part("column"),
                    part("message")
                )
            });
        return Err(Failure::Refused(reasons.collect::<Vec<_>>().join("\n")).into());
    }
    anyhow::ensure!(
        reply.status.is_success(),
        "the control plane answered {}: {}",
        reply.status,
        said(&reply.body)
    );
    Ok(serde_json::from_slice(&reply.body)?)
}

/// Writes warnings to standard error.
pub(crate) fn warn(warnings: &[config::ConfigError]) -> std::io::Result<()> {
    match warnings {
        [] => Ok(()),
        warnings => anstream::stderr().write_all(config::render(warnings, true).as_bytes()),
    }
}
