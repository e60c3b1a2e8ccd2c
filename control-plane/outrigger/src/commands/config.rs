//! `outrigger config`: mesh.yaml checked and explained, without a control plane.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use outrigger_control_plane::config::{self, Explanation};
use serde_json::json;

use crate::exit::Failure;
use crate::output::{self, Output, table};

/// Check, explain and describe mesh.yaml; needs no control plane
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Check a file and show every mistake in it
    Validate {
        /// A mesh.yaml, or the folder of one
        #[arg(default_value = ".", value_name = "FILE|DIR")]
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Print the JSON schema of mesh.yaml, for editors
    Schema,
    /// Say what a field means, its default, and who sets it; without a field, list all
    Explain {
        /// For example `timeout`, `health.every`, `defaults.timeout`
        field: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

/// Runs `config`.
pub(crate) fn config(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Validate { file, output } => validate(file, output),
        Command::Schema => {
            output::print(&format!("{}\n", serde_json::to_string_pretty(&config::schema())?))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Explain { field: None, output } => {
            output::print(&output.text(&config::fields(), |fields| {
                let row = |field: &Explanation| {
                    let first = field
                        .meaning
                        .split(". ")
                        .next()
                        .unwrap_or_default()
                        .trim_end_matches('.');
                    vec![
                        field.field.clone(),
                        field.default.clone().unwrap_or_else(|| "-".to_owned()),
                        first.to_owned(),
                    ]
                };
                table(&["FIELD", "DEFAULT", "MEANING"], fields.iter().map(row))
            })?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Explain {
            field: Some(field),
            output,
        } => {
            let explanation = config::explain(field).map_err(Failure::NotFound)?;
            output::print(&output.text(&explanation, |e| {
                let default = e.default.as_deref().unwrap_or("none");
                format!(
                    "{}\n  meaning  {}\n  value    {}\n  default  {default}\n  set by   {}\n",
                    e.field, e.meaning, e.kind, e.set_by
                )
            })?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn validate(file: &std::path::Path, output: &Output) -> anyhow::Result<ExitCode> {
    match config::load(file) {
        Ok(mesh) => {
            let names: Vec<String> = mesh.services.iter().map(|service| service.name.to_string()).collect();
            let value = json!({ "valid": true, "mesh": mesh.name, "services": names, "errors": [] });
            output::print(&output.text(&value, |_| format!("{}: valid, {} services\n", mesh.name, names.len()))?)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) if output.output == output::Format::Table => Err(Failure::Config(errors).into()),
        Err(errors) => {
            let value = json!({ "valid": false, "errors": errors.errors });
            output::print(&output.text(&value, |_| String::new())?)?;
            Ok(ExitCode::from(5))
        }
    }
}
