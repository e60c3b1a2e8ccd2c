//! How instances are shown: the table after start-up, the table of `ps`, and the line of progress before them.

use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::console::Console;
use super::workload::Row;

/// Service, language, health, address.
pub(crate) fn summary(rows: &[Row]) -> Table {
    let mut table = plain(&["SERVICE", "LANGUAGE", "HEALTH", "MTLS", "ADDRESS"]);
    for row in rows {
        table.add_row([
            Cell::new(name(row, rows)),
            Cell::new(&row.language),
            health(row),
            Cell::new(&row.mtls),
            Cell::new(&row.address),
        ]);
    }
    table
}

/// What `ps` shows; under RESTARTS how often the app and how often its sidecar was started again.
pub(crate) fn processes(rows: &[Row]) -> Table {
    let mut table = plain(&[
        "INSTANCE", "LANGUAGE", "STATE", "HEALTH", "MTLS", "AGE", "RESTARTS", "APP", "SIDECAR", "ADDRESS",
    ]);
    let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    for row in rows {
        table.add_row([
            Cell::new(&row.instance),
            Cell::new(&row.language),
            Cell::new(&row.state),
            health(row),
            Cell::new(&row.mtls),
            Cell::new(humantime(row.age_seconds)),
            Cell::new(format!("{}/{}", row.restarts, row.sidecar_restarts)),
            Cell::new(pid(row.app_pid)),
            Cell::new(pid(row.sidecar_pid)),
            Cell::new(&row.address),
        ]);
    }
    table
}

/// The lines of a table without blanks at their ends.
pub(crate) fn text(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    // Colours are decided once for the whole program, by `anstream`, not by the table.
    if anstream::AutoStream::choice(&std::io::stdout()) == anstream::ColorChoice::Never {
        table.force_no_tty();
    } else {
        table.enforce_styling();
    }
    table
}

fn name<'a>(row: &'a Row, rows: &[Row]) -> &'a str {
    let replicas = rows.iter().filter(|other| other.service == row.service).count();
    if replicas > 1 { &row.instance } else { &row.service }
}

fn health(row: &Row) -> Cell {
    let (text, colour) = match (row.state.as_str(), row.health.as_str()) {
        ("running", "ok") => ("ok", Color::Green),
        ("running", health @ ("degraded" | "starting")) => (health, Color::Yellow),
        ("running", health) => (health, Color::Red),
        (state, _) => (state, Color::Red),
    };
    let text = match &row.reason {
        Some(reason) if text != "ok" => format!("{text}: {}", reason.chars().take(60).collect::<String>()),
        _ => text.to_owned(),
    };
    Cell::new(text).fg(colour)
}

fn humantime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// How many are healthy: a moving line on a terminal, nothing elsewhere (the table follows within seconds).
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last: Mutex<String>,
}

impl Progress {
    /// Begins.
    pub(crate) fn start(all: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all as u64);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} of {len} healthy {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            last: Mutex::default(),
        }
    }

    /// Shows the state of the moment.
    pub(crate) fn show(&self, healthy: usize, rows: &[Row]) {
        let waiting: Vec<String> = rows
            .iter()
            .filter(|row| !row.healthy())
            .map(|row| match &row.reason {
                Some(reason) => format!("{} ({reason})", row.instance),
                None => row.instance.clone(),
            })
            .collect();
        let waiting = waiting.join(", ");
        if let Some(bar) = &self.bar {
            bar.set_position(healthy as u64);
            bar.set_message(if waiting.is_empty() {
                String::new()
            } else {
                format!("· waiting for {waiting}")
            });
        }
        *self.last.lock() = waiting;
    }

    /// Ends; says what could not be waited for.
    pub(crate) fn finish(self, console: &Console) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let last = self.last.into_inner();
        if !last.is_empty() {
            console.note(&format!("not healthy: {last}"));
        }
    }
}
