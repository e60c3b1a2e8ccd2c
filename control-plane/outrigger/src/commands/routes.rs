//! `outrigger routes`: which requests go where, in the order in which it is decided.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::output::{self, Watched, cell, table};
use crate::plane::{Target, service_name};

/// Show which requests to a service go where, in the order in which it is decided
#[derive(Debug, Clone, Args)]
pub(crate) struct RoutesArgs {
    /// As `service` or `namespace/service`; all services that have routes when left out
    service: Option<String>,
    #[command(flatten)]
    output: Watched,
    #[command(flatten)]
    target: Target,
}

/// Runs `routes`.
pub(crate) fn routes(args: &RoutesArgs) -> anyhow::Result<ExitCode> {
    let path = match &args.service {
        None => "/v1/routes".to_owned(),
        Some(service) => {
            let (namespace, service) = service_name(service)?;
            format!("/v1/routes?service={namespace}/{service}")
        }
    };
    let plane = args.target.plane()?;
    super::runtime()?.block_on(output::show(args.output.watch, async || {
        let services = plane.get(&path).await?;
        args.output.output.text(&services, |services| {
            let services = services.as_array().into_iter().flatten();
            rows(services.flat_map(|service| {
                let name = cell(service.get("service"));
                let routes = service
                    .get("routes")
                    .and_then(Value::as_array)
                    .map_or(&[][..], Vec::as_slice);
                // What matches none, so that a table says where everything goes.
                let rest = routes.iter().all(|route| cell(route.get("match")) != "everything");
                let own = name.rsplit('/').next().unwrap_or_default().to_owned();
                let last = vec![
                    name.clone(),
                    "-".to_owned(),
                    "everything else".to_owned(),
                    own,
                    "-".to_owned(),
                ];
                let rows: Vec<_> = routes.iter().map(|route| row(name.clone(), route)).collect();
                rows.into_iter().chain(rest.then_some(last))
            }))
        })
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// A table of routes.
pub(crate) fn rows(rows: impl IntoIterator<Item = Vec<String>>) -> String {
    table(&["SERVICE", "ROUTE", "MATCH", "TO", "POLICY"], rows)
}

/// One route of `service`.
pub(crate) fn row(service: String, route: &Value) -> Vec<String> {
    let policy = route.get("policy").and_then(Value::as_array);
    let said = policy
        .into_iter()
        .flatten()
        .map(|setting| format!("{} {}", cell(setting.get("key")), cell(setting.get("value"))));
    let said: Vec<String> = said.collect();
    vec![
        service,
        cell(route.get("name")),
        cell(route.get("match")),
        cell(route.get("action")),
        if said.is_empty() {
            "-".to_owned()
        } else {
            said.join(", ")
        },
    ]
}
