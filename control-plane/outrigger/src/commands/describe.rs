//! `outrigger describe`: everything about one service.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::get::{endpoints, ports};
use crate::output::{self, Watched, cell, leaves};
use crate::plane::{Target, service_name};

/// Show everything about one service: document, policy, endpoints, callers
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
    for part in ["document", "policy", "proxy"] {
        let Some(value) = detail.get(part) else { continue };
        let mut found = Vec::new();
        leaves("", value, &mut found);
        // These stand above already.
        found.retain(|(key, _)| !matches!(key.as_str(), "name" | "calls") && !key.starts_with("ports["));
        if !found.is_empty() {
            lines.push((format!("\n\x1b[1m{}\x1b[0m", part.to_uppercase()), String::new()));
            lines.append(&mut found);
        }
    }
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
    let instances = detail
        .get("instances")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    format!("{text}\n{}", endpoints(instances))
}
