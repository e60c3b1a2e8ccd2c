//! `outrigger get`: what the control plane knows, in lists.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::output::{self, Watched, age, cell, table};
use crate::plane::{Plane, Target, service_name};

/// List services, endpoints, sidecars, or the configuration in force
#[derive(Debug, Clone, Args)]
pub(crate) struct GetArgs {
    /// What to list
    #[arg(value_enum)]
    what: What,
    /// Only of this service, as `service` or `namespace/service`
    service: Option<String>,
    #[command(flatten)]
    output: Watched,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// What is configured, and how much of it serves
    #[value(alias = "service")]
    Services,
    /// Running instances and their leases
    #[value(alias = "endpoint")]
    Endpoints,
    /// Sidecars and what they run with
    #[value(alias = "sidecar")]
    Sidecars,
    /// The version in force, and what was refused since
    Config,
}

/// Runs `get`.
pub(crate) fn get(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let plane = args.target.plane()?;
    let service = args
        .service
        .as_deref()
        .map(service_name)
        .transpose()?
        .map(|(ns, name)| format!("{ns}/{name}"));
    super::runtime()?.block_on(async {
        if args.what != What::Config {
            warn_of_refused(&plane).await?;
        }
        output::show(args.output.watch, async || page(args, &plane, service.as_deref()).await).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn page(args: &GetArgs, plane: &Plane, service: Option<&str>) -> anyhow::Result<String> {
    let (path, key) = match args.what {
        What::Services => ("/v1/services", "name"),
        What::Endpoints => ("/v1/endpoints", "service"),
        What::Sidecars => ("/v1/sidecars", "service"),
        What::Config => ("/v1/config", ""),
    };
    let mut value = plane.get(path).await?;
    if let (Some(service), Some(items)) = (service, value.as_array_mut()) {
        items.retain(|item| item.get(key).and_then(Value::as_str) == Some(service));
    }
    args.output.output.text(&value, |value| {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        match args.what {
            What::Services => services(items),
            What::Endpoints => endpoints(items),
            What::Sidecars => sidecars(items),
            What::Config => config(value),
        }
    })
}

/// Nobody should look at a list and believe that it is what the newest file says.
async fn warn_of_refused(plane: &Plane) -> anyhow::Result<()> {
    let config = plane.get("/v1/config").await?;
    if let Some(refused) = config.get("refused").filter(|refused| refused.is_object()) {
        let mut err = anstream::stderr();
        let version = cell(config.get("version"));
        let from = cell(refused.get("origin"));
        writeln!(err, "note: a newer configuration ({from}) was refused; version {version} stays in force, `outrigger get config` says why").ok();
    }
    Ok(())
}

fn services(items: &[Value]) -> String {
    table(
        &["SERVICE", "LANGUAGE", "PORTS", "ENDPOINTS", "NOTES"],
        items.iter().map(|item| {
            let mut notes = Vec::new();
            if item.get("configured") == Some(&Value::Bool(false)) {
                notes.push("not configured".to_owned());
            }
            if item.get("stale").is_some_and(Value::is_object) {
                notes.push("stale: its last endpoints are kept".to_owned());
            }
            if item
                .get("degraded")
                .and_then(Value::as_array)
                .is_some_and(|list| !list.is_empty())
            {
                notes.push(format!("degraded: {}", cell(item.get("degraded"))));
            }
            vec![
                cell(item.get("name")),
                cell(item.get("language")),
                ports(item.get("ports")),
                format!("{}/{}", cell(item.get("endpoints")), cell(item.get("registered"))),
                notes.join("; "),
            ]
        }),
    )
}

/// `http` for a port called after its protocol, else `metrics:http`; endpoints' maps as they are.
pub(crate) fn ports(value: Option<&Value>) -> String {
    let Some(list) = value.and_then(Value::as_array) else {
        return cell(value);
    };
    let port = |port: &Value| match (cell(port.get("name")), cell(port.get("protocol"))) {
        (name, protocol) if name == protocol => name,
        (name, protocol) => format!("{name}:{protocol}"),
    };
    list.iter().map(port).collect::<Vec<_>>().join(", ")
}

pub(crate) fn endpoints(items: &[Value]) -> String {
    table(
        &[
            "ENDPOINT",
            "ADDRESS",
            "PORTS",
            "STATE",
            "LABELS",
            "WEIGHT",
            "LEASE LEFT",
            "REASON",
        ],
        items.iter().map(|item| {
            vec![
                cell(item.get("name")),
                cell(item.get("address")),
                cell(item.get("ports")),
                cell(item.get("state")),
                cell(item.get("labels")),
                cell(item.get("weight")),
                age(item.get("lease_left_ms")),
                cell(item.get("reason")),
            ]
        }),
    )
}

fn sidecars(items: &[Value]) -> String {
    table(
        &[
            "SIDECAR",
            "ADMIN",
            "VERSION",
            "CONNECTED",
            "STATE",
            "HEARD",
            "APPLIED",
            "REJECTED",
        ],
        items.iter().map(|item| {
            let count = |key: &str| item.get(key).and_then(Value::as_array).map_or(0, Vec::len).to_string();
            vec![
                cell(item.get("name")),
                cell(item.get("admin")),
                cell(item.get("version")),
                cell(item.get("connected")),
                cell(item.get("state")),
                age(item.get("heard_ms")),
                count("applied"),
                count("rejected"),
            ]
        }),
    )
}

fn config(value: &Value) -> String {
    let line = |name: &str, key: &str| format!("{name:<9}{}\n", cell(value.get(key)));
    let mut text = [
        ("mesh", "mesh"),
        ("version", "version"),
        ("status", "status"),
        ("from", "origin"),
        ("since", "at"),
    ]
    .map(|(name, key)| line(name, key))
    .concat();
    if let Some(refused) = value.get("refused").filter(|refused| refused.is_object()) {
        let part = |key: &str| cell(refused.get(key));
        text.push_str(&format!(
            "refused  {} at {}; the version above stays in force\n",
            part("origin"),
            part("at")
        ));
        for reason in refused.get("reasons").and_then(Value::as_array).into_iter().flatten() {
            let part = |key: &str| cell(reason.get(key));
            text.push_str(&format!(
                "  {}:{}:{}: {}",
                part("file"),
                part("line"),
                part("column"),
                part("message")
            ));
            if let Some(help) = reason.get("help").and_then(Value::as_str) {
                text.push_str(&format!(" ({help})"));
            }
            text.push('\n');
        }
    }
    text
}
