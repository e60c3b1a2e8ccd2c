//! `outrigger describe`: everything about one service.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::get::{endpoints, ports};
use super::routes;
use crate::output::{self, Watched, cell, table};
use crate::plane::{Target, service_name};

/// Show everything about one service: routes, what is in force and who says it, endpoints, callers
#[derive(Debug, Clone, Args)]
pub(crate) struct DescribeArgs {
    /// As `service` or `namespace/service`
    service: String,
    #[command(flatten)]
    output: Watched,
    #[command(flatten)]
    target: Target,
}

/// Runs `describe`.
pub(crate) fn describe(args: &DescribeArgs) -> anyhow::Result<ExitCode> {
    let (namespace, service) = service_name(&args.service)?;
    let plane = args.target.plane()?;
    let path = format!("/v1/services/{namespace}/{service}");
    super::runtime()?.block_on(output::show(args.output.watch, async || {
        let detail = plane.get(&path).await?;
        args.output.output.text(&detail, page)
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn page(detail: &Value) -> String {
    let mut lines: Vec<(String, String)> = [
        "name", "language", "ports", "calls", "callers", "version", "stale", "degraded",
    ]
    .into_iter()
    .map(|key| {
        (
            key.to_owned(),
            if key == "ports" {
                ports(detail.get(key))
            } else {
                cell(detail.get(key))
            },
        )
    })
    .filter(|(_, text)| text != "-")
    .collect();
    if let Some(document) = detail.get("document") {
        lines.push(("document".to_owned(), cell(document.get("location"))));
    }
    lines.retain(|(_, text)| text != "-");
    let width = lines
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, _)| key.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (key, value) in lines {
        text.push_str(format!("{key:<width$}  {value}").trim_end());
        text.push('\n');
    }
    let list = |key: &str| detail.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let title = |title: &str| format!("\n\x1b[1m{title}\x1b[0m\n");
    if !list("routes").is_empty() {
        text.push_str(&title("ROUTES"));
        let name = cell(detail.get("service"));
        text.push_str(&routes::rows(
            list("routes").iter().map(|route| routes::row(name.clone(), route)),
        ));
    }
    if !list("settings").is_empty() {
        text.push_str(&title("IN FORCE"));
        let row = |setting: &Value| {
            vec![
                cell(setting.get("key")),
                cell(setting.get("value")),
                cell(setting.get("from")),
                cell(setting.get("at")),
            ]
        };
        // Those of routes stand above.
        let own = |setting: &&Value| !cell(setting.get("key")).starts_with("routes.");
        text.push_str(&table(
            &["KEY", "VALUE", "FROM", "AT"],
            list("settings").iter().filter(own).map(row),
        ));
    }
    format!("{text}{}{}", title("INSTANCES"), endpoints(list("instances")))
}
