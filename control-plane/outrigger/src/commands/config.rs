//! `outrigger config`: mesh.yaml checked and explained, without a control plane; and compared with what is in force.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use outrigger_control_plane::config::{self, Explanation};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::offer;
use crate::output::{self, Output, cell, table};
use crate::plane::Target;

/// Check, explain and describe mesh.yaml, which needs no control plane; compare it with what is in force
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Check a file and show every mistake in it
    #[command(alias = "check")]
    Validate {
        /// A mesh.yaml, or the folder of one
        #[arg(default_value = ".", value_name = "FILE|DIR")]
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Show what `apply` would change of what is in force; exit code 1 when it would change something
    Diff {
        /// A mesh.yaml, or the folder of one
        #[arg(default_value = ".", value_name = "FILE|DIR")]
        file: PathBuf,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Print the JSON schema of mesh.yaml, for editors
    Schema,
    /// Say what a field means, its default, and who sets it, or what a number such as OR1101 means; without either,
    /// list all
    Explain {
        /// For example `timeout`, `routes.match`, `defaults.timeout`, `OR1101`
        field: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

/// Runs `config`.
pub(crate) fn config(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Validate { file, output } => validate(file, output),
        Command::Diff { file, output, target } => diff(file, output, target),
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
                let numbers = config::codes().iter();
                let numbers = numbers.map(|code| vec![code.code.to_owned(), "-".to_owned(), code.title.to_owned()]);
                table(&["FIELD", "DEFAULT", "MEANING"], fields.iter().map(row).chain(numbers))
            })?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Explain {
            field: Some(field),
            output,
        } if config::code(field).is_some() => {
            let code = config::code(field);
            output::print(&output.text(&code, |code| {
                code.map(|code| {
                    format!(
                        "{}: {}\n  cause  {}\n  fix    {}\n",
                        code.code, code.title, code.cause, code.fix
                    )
                })
                .unwrap_or_default()
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
            let value =
                json!({ "valid": true, "mesh": mesh.name, "services": names, "errors": [], "warnings": mesh.warnings });
            offer::warn(&mesh.warnings)?;
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

fn diff(file: &std::path::Path, output: &Output, target: &Target) -> anyhow::Result<ExitCode> {
    let diff = super::runtime()?.block_on(offer::send(file, target, "/v1/config/diff"))?;
    let services = diff
        .get("services")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    output::print(&output.text(&diff, |_| page(services))?)?;
    Ok(match services {
        [] => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    })
}

fn page(services: &[Value]) -> String {
    if services.is_empty() {
        return "nothing would change\n".to_owned();
    }
    let mut text = String::new();
    for service in services {
        let mark = match cell(service.get("change")).as_str() {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        text.push_str(&format!("{mark} {}\n", cell(service.get("service"))));
        let fields = service
            .get("fields")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let said = |field: &Value, side: &str| {
            let setting = field.get(side).filter(|setting| !setting.is_null())?;
            let at = match cell(setting.get("at")).as_str() {
                "-" => cell(setting.get("from")),
                at => format!("{}, {at}", cell(setting.get("from"))),
            };
            Some(format!("{} ({at})", cell(setting.get("value"))))
        };
        for field in fields {
            let key = cell(field.get("key"));
            text.push_str(&match (said(field, "old"), said(field, "new")) {
                (Some(old), Some(new)) => format!("    ~ {key}: {old} -> {new}\n"),
                (None, Some(new)) => format!("    + {key}: {new}\n"),
                (Some(old), None) => format!("    - {key}: {old}\n"),
                (None, None) => String::new(),
            });
        }
    }
    text
}
