//! `outrigger describe`: everything about one service.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::get::{endpoints, ports};
use crate::output::{self, Watched, cell};
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
    let plane = args.target.plane();
    let path = format!("/v1/services/{namespace}/{service}");
    super::runtime()?.block_on(output::show(args.output.watch, async || {
        let detail = plane.get(&path).await?;
        args.output.output.text(&detail, page)
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn page(detail: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if value != "-" {
            text.push_str(&format!("{name:<16}{value}\n"));
        }
    };
    line("service", cell(detail.get("name")));
    line("language", cell(detail.get("language")));
    line("ports", ports(detail.get("ports")));
    line("calls", cell(detail.get("calls")));
    line("called by", cell(detail.get("callers")));
    line("version", cell(detail.get("version")));
    line("stale", cell(detail.get("stale")));
    line("degraded", cell(detail.get("degraded")));
    for part in ["document", "policy", "proxy"] {
        for (key, value) in detail.get(part).and_then(Value::as_object).into_iter().flatten() {
            // The name stands above already, and the ports too.
            if !matches!(key.as_str(), "name" | "ports" | "calls") {
                line(key, cell(Some(value)));
            }
        }
    }
    let instances = detail
        .get("instances")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    format!("{text}\n{}", endpoints(instances))
}
