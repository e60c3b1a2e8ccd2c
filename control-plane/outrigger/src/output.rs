//! What commands print: one value as a table, JSON or YAML, once or again and again.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// How to print.
#[derive(Debug, Clone, Args)]
pub(crate) struct Output {
    /// The form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

/// How to print, and whether to go on.
#[derive(Debug, Clone, Args)]
pub(crate) struct Watched {
    #[command(flatten)]
    pub(crate) output: Output,
    /// Print again whenever something changes, until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
}

impl Output {
    /// Text of `value`; `table` makes the table.
    pub(crate) fn text<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<String> {
        Ok(match self.output {
            Format::Table => table(value),
            Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
            Format::Yaml => serde_saphyr::to_string(value)?,
        })
    }
}

/// Writes to standard output, without colours where they do not belong.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints what `page` gives, once, or with `watch` each time it differs.
pub(crate) async fn show(watch: bool, page: impl AsyncFn() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let mut last = page().await?;
    let clears = std::io::stdout().is_terminal();
    let write = |text: &str| {
        if clears && watch {
            print(&format!("\x1b[2J\x1b[H{text}"))
        } else {
            print(text)
        }
    };
    write(&last)?;
    if !watch {
        return Ok(());
    }
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    until_interrupted(async {
        loop {
            ticks.tick().await;
            let next = page().await?;
            if next != last {
                write(&next)?;
                last = next;
            }
        }
    })
    .await
}

/// Goes on with what never ends by itself until it fails, or SIGINT or SIGTERM ends it, which is no failure. Nothing is printed
/// in part: signals are looked at between the waits of `endless`.
pub(crate) async fn until_interrupted(endless: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        ended = endless => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// A table without lines; the header in bold.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    if table.is_empty() {
        return "none\n".to_owned();
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut lines = table.lines();
    // Styled last: the escape codes would count as width.
    let head = lines
        .next()
        .map(|line| format!("\x1b[1m{}\x1b[0m\n", line.trim_end()))
        .unwrap_or_default();
    lines.fold(head, |text, line| text + line.trim_end() + "\n")
}

/// What a cell shows of a JSON value: text without quotes, lists with commas, `-` for nothing.
pub(crate) fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(", "),
        Some(Value::Object(map)) if map.is_empty() => "-".to_owned(),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(key, value)| format!("{key}={}", cell(Some(value))))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// Milliseconds as people say them.
pub(crate) fn age(value: Option<&Value>) -> String {
    match value.and_then(Value::as_u64) {
        None => "-".to_owned(),
        Some(ms @ 0..1000) => format!("{ms}ms"),
        Some(ms @ 1000..60_000) => format!("{}s", ms / 1000),
        Some(ms @ 60_000..3_600_000) => format!("{}m", ms / 60_000),
        Some(ms) => format!("{}h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{age, cell, table};

    #[test]
    fn columns_stand_under_their_headers() {
        let text = table(
            &["A", "LONGER"],
            [vec!["value".into(), "x".into()], vec!["y".into(), String::new()]],
        );
        assert_eq!(text, "\x1b[1mA      LONGER\x1b[0m\nvalue  x\ny\n");
        assert_eq!(table(&["A"], []), "none\n");
    }

    #[test]
    fn values_read_like_prose() {
        assert_eq!(
            cell(Some(&json!({ "version": "v1", "zone": "a" }))),
            "version=v1, zone=a"
        );
        assert_eq!(cell(Some(&json!([]))), "-");
        assert_eq!(cell(None), "-");
        for (ms, text) in [(999, "999ms"), (1000, "1s"), (61_000, "1m"), (7_200_000, "2h")] {
            assert_eq!(age(Some(&json!(ms))), text);
        }
    }
}
