//! `outrigger stats`: each sidecar's counters and latencies.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::health::ask;
use crate::output::{self, Watched, cell, table};
use crate::plane::{Target, service_name};

/// Show requests, failures and latency by sidecar, direction and service
#[derive(Debug, Clone, Args)]
pub(crate) struct StatsArgs {
    /// Only the sidecars of this service, as `service` or `namespace/service`
    service: Option<String>,
    #[command(flatten)]
    output: Watched,
    #[command(flatten)]
    target: Target,
}

/// Runs `stats`.
pub(crate) fn stats(args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let plane = args.target.plane()?;
    let service = args
        .service
        .as_deref()
        .map(service_name)
        .transpose()?
        .map(|(ns, name)| format!("{ns}/{name}"));
    super::runtime()?.block_on(output::show(args.output.watch, async || {
        let all = ask(&plane, service.as_deref(), "/stats").await?;
        args.output.output.text(&all, |all| page(all))
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// What came in without mutual TLS: requests, or connections of bytes that have none. Apps come to their own sidecar
/// always so, which says nothing.
fn plain(row: &Value) -> String {
    let count = |key: &str| row.get(key).and_then(Value::as_u64).unwrap_or_default();
    if row.get("direction").and_then(Value::as_str) != Some("inbound") {
        return "-".to_owned();
    }
    let (all, secured) = match count("requests") {
        0 => (count("connections"), count("connections_secured")),
        requests => (requests, count("requests_secured")),
    };
    all.saturating_sub(secured).to_string()
}

fn page(all: &[Value]) -> String {
    let mut rows = Vec::new();
    for one in all {
        let sidecar = format!("{}/{}", cell(one.get("service")), cell(one.get("instance")));
        if one.get("status").is_some() {
            let reason = cell(one.get("app").and_then(|app| app.get("reason")));
            rows.push(vec![sidecar, "unreachable".to_owned(), reason]);
            continue;
        }
        for row in one.get("services").and_then(Value::as_array).into_iter().flatten() {
            // A declared call that nobody made yet says nothing.
            let used = ["requests", "connections"]
                .iter()
                .any(|key| row.get(key).and_then(Value::as_u64) > Some(0));
            if !used && row.get("direction").and_then(Value::as_str) != Some("inbound") {
                continue;
            }
            let latency = |key: &str| {
                let ms = row
                    .get("latency_ms")
                    .and_then(|latency| latency.get(key))
                    .and_then(Value::as_f64);
                ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
            };
            rows.push(vec![
                sidecar.clone(),
                cell(row.get("direction")),
                format!("{}:{}", cell(row.get("service")), cell(row.get("port"))),
                cell(row.get("requests")),
                cell(row.get("client_error")),
                cell(row.get("server_error")),
                cell(row.get("connections_open")),
                plain(row),
                latency("p50"),
                latency("p95"),
                latency("p99"),
                cell(row.get("reasons")),
            ]);
        }
    }
    let header = [
        "SIDECAR",
        "DIRECTION",
        "SERVICE",
        "REQUESTS",
        "4XX",
        "5XX",
        "OPEN",
        "PLAIN",
        "P50 MS",
        "P95 MS",
        "P99 MS",
        "REASONS",
    ];
    let mut text = table(&header, rows);
    let shared: Vec<_> = all.iter().flat_map(shared_limits).collect();
    if !shared.is_empty() {
        text.push('\n');
        text.push_str(&table(&["SIDECAR", "SHARED LIMIT", "SHARE", "ASKED"], shared));
    }
    text
}

/// Rate limits of all instances together: which part of the rate one lets through, and which is asked of it.
fn shared_limits(one: &Value) -> Vec<Vec<String>> {
    let sidecar = format!("{}/{}", cell(one.get("service")), cell(one.get("instance")));
    let limits = one.get("shared_limits").and_then(Value::as_array);
    let part = |limit: &Value, key: &str| {
        let part = limit.get(key).and_then(Value::as_f64).unwrap_or_default();
        format!("{:.1} %", part * 100.0)
    };
    let row = |limit: &Value| {
        let name = cell(limit.get("limit"));
        vec![sidecar.clone(), name, part(limit, "share"), part(limit, "asked")]
    };
    limits.into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_stand_below_the_counters() {
        let one = |limits: Value| json!({"service": "default/app", "instance": "a1", "shared_limits": limits});
        assert!(!page(&[one(json!([]))]).contains("SHARED"));
        let limits = json!([{"limit": "all", "share": 0.933_334, "asked": 2.5}]);
        let page = page(&[one(limits)]);
        let row: Vec<&str> = page.lines().last().unwrap_or_default().split_whitespace().collect();
        assert_eq!(row, ["default/app/a1", "all", "93.3", "%", "250.0", "%"]);
    }
}
