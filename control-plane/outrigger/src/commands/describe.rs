//! `outrigger describe`: everything about one service; what its sidecars found of their apps, as far as they can be asked from here.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::get::{endpoints, ports};
use super::{health, routes};
use crate::output::{self, Watched, cell, table};
use crate::plane::{Plane, Target, service_name};

/// Show everything about one service: routes, what is in force and who says it, endpoints, callers, findings
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
        let mut detail = plane.get(&path).await?;
        detail["findings"] = findings(&plane, &format!("{namespace}/{service}")).await;
        args.output.output.text(&detail, page)
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// What the service's sidecars found. One that does not answer from here says nothing: everything else is worth showing.
async fn findings(plane: &Plane, service: &str) -> Value {
    let asked = tokio::time::timeout(PATIENCE, health::ask(plane, Some(service), "/health")).await;
    let all = asked.ok().and_then(Result::ok).unwrap_or_default();
    let each = all.iter().flat_map(|one| {
        let instance = one.get("instance").cloned().unwrap_or_default();
        health::findings(one)
            .map(move |(finding, says)| json!({"instance": instance, "finding": finding, "says": says}))
    });
    each.collect()
}

/// For all sidecars together.
const PATIENCE: Duration = Duration::from_secs(2);

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
    if !list("findings").is_empty() {
        text.push_str(&title("FINDINGS"));
        let row = |found: &Value| ["instance", "finding", "says"].map(|key| cell(found.get(key))).to_vec();
        text.push_str(&table(
            &["INSTANCE", "FINDING", "SAYS"],
            list("findings").iter().map(row),
        ));
    }
    format!("{text}{}{}", title("INSTANCES"), endpoints(list("instances")))
}
