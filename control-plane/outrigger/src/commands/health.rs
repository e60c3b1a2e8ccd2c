//! `outrigger health`: what each sidecar says of its app and of what the app needs, with reasons and ages.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::output::{self, Watched, age, cell, table};
use crate::plane::{Plane, Target, service_name};
use crate::supervise::admin;

/// Ask every sidecar how its app is; exit code 1 when something is not well
#[derive(Debug, Clone, Args)]
pub(crate) struct HealthArgs {
    /// Only this service, as `service` or `namespace/service`
    service: Option<String>,
    #[command(flatten)]
    output: Watched,
    #[command(flatten)]
    target: Target,
}

/// Runs `health`.
pub(crate) fn health(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let plane = args.target.plane()?;
    let service = args
        .service
        .as_deref()
        .map(service_name)
        .transpose()?
        .map(|(ns, name)| format!("{ns}/{name}"));
    let well = std::cell::Cell::new(true);
    super::runtime()?.block_on(output::show(args.output.watch, async || {
        let all = ask(&plane, service.as_deref(), "/health").await?;
        well.set(
            all.iter()
                .all(|one| one.get("status").and_then(Value::as_str) == Some("ok")),
        );
        args.output.output.text(&all, |all| page(all))
    }))?;
    Ok(if well.get() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Asks each sidecar for `page`; one that does not answer is `unreachable` with the reason.
pub(crate) async fn ask(plane: &Plane, service: Option<&str>, page: &str) -> anyhow::Result<Vec<Value>> {
    let sidecars = plane.get("/v1/sidecars").await?;
    let sidecars = sidecars
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter(|sidecar| {
            service.is_none_or(|service| sidecar.get("service").and_then(Value::as_str) == Some(service))
        });
    let answers: Vec<Value> = futures_util::future::join_all(sidecars.map(async |sidecar| {
        let admin = cell(sidecar.get("admin"));
        plane.admin(&admin, page).await.unwrap_or_else(|error| {
            json!({
                "service": sidecar.get("service"), "instance": sidecar.get("instance"),
                "status": "unreachable", "app": { "reason": format!("its sidecar at {admin}: {error:#}") },
            })
        })
    }))
    .await;
    if let (Some(service), true) = (service, answers.is_empty()) {
        // Tells a service without sidecars from one that does not exist.
        plane.get(&format!("/v1/services/{service}")).await?;
    }
    Ok(answers)
}

/// What a sidecar found of its app that does not keep requests away: name and text.
pub(crate) fn findings(health: &Value) -> impl Iterator<Item = (String, String)> {
    let all = health.get("findings").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .map(|one| (cell(one.get("finding")), cell(one.get("says"))))
}

fn page(all: &[Value]) -> String {
    let mut rows = Vec::new();
    for one in all {
        let app = one.get("app").unwrap_or(&Value::Null);
        let mut reasons = vec![cell(app.get("reason"))];
        let identity = one.get("identity").unwrap_or(&Value::Null);
        reasons.push(cell(identity.get("warning")));
        for (part, name) in [("lease", "lease"), ("control_plane", "control plane")] {
            let part = one.get(part).unwrap_or(&Value::Null);
            let reason = cell(part.get("reason"));
            if reason != "-" {
                reasons.push(format!("{name}: {reason} ({})", age(part.get("age_ms"))));
            }
        }
        reasons.extend(findings(one).map(|(name, says)| format!("{name}: {says}")));
        reasons.retain(|reason| reason != "-");
        rows.push(vec![
            cell(one.get("service")),
            cell(one.get("instance")),
            cell(one.get("status")),
            admin::mtls(identity),
            age(app.get("age_ms")),
            reasons.join("; "),
        ]);
        for needed in one.get("dependencies").and_then(Value::as_array).into_iter().flatten() {
            let ok = needed.get("ok").and_then(Value::as_bool) == Some(true);
            rows.push(vec![
                format!("  needs {}", cell(needed.get("name"))),
                String::new(),
                if ok { "ok" } else { "failing" }.to_owned(),
                String::new(),
                age(needed.get("age_ms")),
                cell(needed.get("reason")).replace('-', if ok { "" } else { "-" }),
            ]);
        }
    }
    table(&["SERVICE", "INSTANCE", "STATUS", "MTLS", "FOR", "REASON"], rows)
}
