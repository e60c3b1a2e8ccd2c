//! `outrigger ps`: what runs, how long, how often it was started again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::supervise::console::Console;
use crate::supervise::control::{self, Answer, Ask};
use crate::supervise::state::Layout;
use crate::supervise::table;

/// Show the processes of a running mesh.
#[derive(Debug, Clone, Args)]
pub(crate) struct PsArgs {
    /// The folder of mesh.yaml, or the file.
    #[arg(default_value = ".", value_name = "DIR")]
    target: PathBuf,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

/// Runs `ps`.
pub(crate) fn ps(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&args.target)?;
    let console = Console::silent();
    let rows = match layout.up() {
        None => Vec::new(),
        Some(up) => match crate::supervise::runtime()?.block_on(control::ask(&layout, &Ask::Ps, |_| {})) {
            Ok(Answer::Rows(rows)) => rows,
            Ok(Answer::Error(error)) => bail!(error),
            Ok(Answer::Restarted(_) | Answer::Step(_)) => {
                bail!("the supervisor gave another answer than was asked for")
            }
            // It has no socket while it builds and while it stops.
            Err(_) if !up.ready => bail!("starting or stopping (pid {})", up.pid),
            Err(error) => bail!("the supervisor (pid {}) does not answer: {error}", up.supervisor),
        },
    };
    match args.output {
        Form::Json => console.say(&serde_json::to_string_pretty(&rows)?),
        Form::Table if rows.is_empty() => console.say("nothing runs here"),
        Form::Table => console.say(&table::text(&table::processes(&rows))),
    }
    Ok(ExitCode::SUCCESS)
}
