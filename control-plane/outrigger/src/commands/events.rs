//! `outrigger events`: what happened lately, and what happens.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::output::{self, Format, Output, cell, table};
use crate::plane::{Plane, Target, service_name};

/// Show what happened lately: configurations, registrations, certificates, breakers, ejected endpoints, findings
///
/// The control plane keeps the last 1000 changes of breakers and endpoints, which sidecars tell, and the last 1000 others.
#[derive(Debug, Clone, Args)]
pub(crate) struct EventsArgs {
    /// Only what names this service, as `service` or `namespace/service`
    service: Option<String>,
    /// Go on and print what happens, until interrupted
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs `events`.
pub(crate) fn events(args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let plane = args.target.plane()?;
    let service = args
        .service
        .as_deref()
        .map(service_name)
        .transpose()?
        .map(|(namespace, name)| format!("{namespace}/{name}"));
    super::runtime()?.block_on(async {
        let mut after = 0;
        let all = next(&plane, &mut after).await?;
        let lately: Vec<Value> = all
            .into_iter()
            .filter(|event| names(event, service.as_deref()))
            .collect();
        if args.follow {
            lines(&lately, args.output.output)?;
        } else {
            output::print(&args.output.text(&lately, |lately| page(lately))?)?;
        }
        if args.follow {
            let on = async {
                loop {
                    tokio::time::sleep(PERIOD).await;
                    let new = next(&plane, &mut after).await?;
                    let new: Vec<Value> = new
                        .into_iter()
                        .filter(|event| names(event, service.as_deref()))
                        .collect();
                    lines(&new, args.output.output)?;
                }
            };
            output::until_interrupted(on).await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The events after the one with id `after`, which becomes the last of them.
async fn next(plane: &Plane, after: &mut u64) -> anyhow::Result<Vec<Value>> {
    let get = async |after: u64| -> anyhow::Result<Vec<Value>> {
        let answer = plane.get(&format!("/v1/events?after={after}")).await?;
        Ok(answer.as_array().cloned().unwrap_or_default())
    };
    let id = |event: &Value| event.get("id").and_then(Value::as_u64).unwrap_or_default();
    // The last one again, which is always kept: one that does not know it began anew and counts from 1.
    let mut events = get(after.saturating_sub(1)).await?;
    if events.is_empty() && *after > 0 {
        *after = 0;
        events = get(0).await?;
    }
    events.retain(|event| id(event) > *after);
    *after = events.last().map_or(*after, id);
    Ok(events)
}

/// Whether an event names the service, or one of its instances.
fn names(event: &Value, service: Option<&str>) -> bool {
    let Some(service) = service else { return true };
    let named = |text: &str| {
        text.strip_prefix(service)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let fields = event.as_object().into_iter().flatten();
    fields.filter(|(key, _)| *key != "says").any(|(_, value)| match value {
        Value::String(text) => named(text),
        Value::Array(items) => items.iter().filter_map(Value::as_str).any(named),
        _ => false,
    })
}

fn page(events: &[Value]) -> String {
    table(
        &["TIME", "EVENT", "SERVICE", "ENDPOINT", "CALLER", "CAUSE", "NEXT PROBE"],
        events.iter().map(row),
    )
}

/// One line each, so that nothing has to be printed again.
fn lines(events: &[Value], format: Format) -> anyhow::Result<()> {
    for event in events {
        output::print(&match format {
            Format::Table => row(event).join("  ").trim_end().to_owned() + "\n",
            Format::Json => format!("{event}\n"),
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(event)?),
        })?;
    }
    Ok(())
}

fn row(event: &Value) -> Vec<String> {
    let said = |key: &str| cell(event.get(key));
    let time = said("at");
    // Whole seconds are enough for people; the other forms have it whole.
    let second = |time: &str| match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    };
    if said("event") != "traffic_changed" {
        let none = || "-".to_owned();
        return vec![
            second(&time),
            said("event"),
            none(),
            none(),
            none(),
            said("says"),
            none(),
        ];
    }
    vec![
        second(&time),
        said("what"),
        said("service"),
        said("endpoint"),
        said("caller"),
        said("cause"),
        second(&said("next_probe")),
    ]
}
