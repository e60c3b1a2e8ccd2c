//! `outrigger certs`: who holds which certificate until when, rotation of the root, and revocation.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{self, Output, Watched, cell, table};
use crate::plane::{Plane, Target, service_name};

/// Show every sidecar's certificate and the mesh's roots; rotate the root, revoke and allow identities
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    show: Show,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Replace the root without losing a request, or continue and watch that
    ///
    /// First every sidecar trusts the new root beside the old one; when all with a live lease have said so, leaves come
    /// from the new one; the old one is dropped after its last leaf has expired.
    Rotate(Rotate),
    /// End an identity: its connections within seconds, and its certificates until `certs allow`
    Revoke(Whom),
    /// Take a revocation back
    Allow(Whom),
}

#[derive(Debug, Clone, Args)]
struct Show {
    /// Only this service, as `service` or `namespace/service`
    service: Option<String>,
    #[command(flatten)]
    output: Watched,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Args)]
struct Rotate {
    /// Do not rotate: show how far it is and whom it waits for
    #[arg(long)]
    status: bool,
    /// Go on after this time even if some sidecars have not taken the new root; they have to join again
    #[arg(long, value_parser = duration, value_name = "DURATION", conflicts_with = "status")]
    force_after: Option<Duration>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Args)]
struct Whom {
    /// One certificate's serial as `certs` shows it, or all of a service: `service` or `namespace/service`
    #[arg(value_name = "SERIAL|SERVICE")]
    whom: String,
    #[command(flatten)]
    target: Target,
}

/// Runs `certs`.
pub(crate) fn certs(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    match &args.what {
        None => runtime.block_on(show(&args.show))?,
        Some(What::Rotate(args)) => runtime.block_on(rotate(args))?,
        Some(What::Revoke(args)) => runtime.block_on(judge(args, "/v1/certs/revoke", "revoked"))?,
        Some(What::Allow(args)) => runtime.block_on(judge(args, "/v1/certs/allow", "allowed"))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: &Show) -> anyhow::Result<()> {
    let plane = args.target.plane()?;
    let service = args.service.as_deref().map(service_name).transpose()?;
    let service = service.map(|(namespace, name)| format!("{namespace}/{name}"));
    output::show(args.output.watch, async || {
        let mut all = plane.get("/v1/certs").await?;
        if let (Some(service), Some(leaves)) = (&service, all.get_mut("certs").and_then(Value::as_array_mut)) {
            leaves.retain(|leaf| leaf.get("service").and_then(Value::as_str) == Some(service));
        }
        args.output.output.text(&all, |all| page(all, Timestamp::now()))
    })
    .await
}

fn page(all: &Value, now: Timestamp) -> String {
    let list = |key: &str| {
        all.get(key)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    };
    let yes = |one: &Value, key: &str| one.get(key).and_then(Value::as_bool) == Some(true);
    let leaves = table(
        &[
            "SERVICE",
            "INSTANCE",
            "SERIAL",
            "EXPIRES IN",
            "ROOT",
            "RENEWALS",
            "NOTES",
        ],
        list("certs").iter().filter(|leaf| !is_call(leaf)).map(|leaf| {
            let mut notes = Vec::new();
            if yes(leaf, "revoked") {
                notes.push("revoked");
            }
            if !yes(leaf, "current_root") {
                notes.push("of the old root");
            }
            vec![
                cell(leaf.get("service")),
                cell(leaf.get("instance")),
                cell(leaf.get("serial")),
                left(leaf.get("not_after"), now),
                cell(leaf.get("root")),
                cell(leaf.get("renewals")),
                notes.join(", "),
            ]
        }),
    );
    let roots = table(
        &["ROOT", "SHA-256", "EXPIRES IN", "LAST LEAF EXPIRES IN", "NOTES"],
        list("roots").iter().map(|root| {
            vec![
                cell(root.get("number")),
                cell(root.get("sha256")).chars().take(16).collect(),
                left(root.get("not_after"), now),
                match left(root.get("last_leaf"), now) {
                    gone if gone.starts_with("expired") => "-".to_owned(),
                    left => left,
                },
                if yes(root, "signs") { "signs" } else { "" }.to_owned(),
            ]
        }),
    );
    let mut text = format!("{leaves}\n{roots}\ntrust domain  {}\n", cell(all.get("trust_domain")));
    let revoked = cell(all.get("revoked"));
    if revoked != "-" {
        text.push_str(&format!("revoked       {revoked}\n"));
    }
    let rotating = all
        .get("rotation")
        .filter(|state| state.get("phase").and_then(Value::as_str) != Some("steady"));
    if let Some(state) = rotating {
        text.push('\n');
        text.push_str(&rotation(state, now));
    }
    text
}

/// Whether it is the certificate of one `outrigger call`: nobody's but a person's, and gone within the hour.
fn is_call(leaf: &Value) -> bool {
    let instance = leaf.get("instance").and_then(Value::as_str).unwrap_or_default();
    leaf.get("token").is_some_and(Value::is_null) && instance.starts_with("operator-")
}

async fn rotate(args: &Rotate) -> anyhow::Result<()> {
    let plane = args.target.plane()?;
    if !args.status {
        let document = match args.force_after {
            Some(limit) => json!({"force_after_s": limit.as_secs()}),
            None => json!({}),
        };
        plane.send("/v1/certs/rotate", &document).await?;
    }
    let state = plane.get("/v1/certs/rotation").await?;
    output::print(&args.output.text(&state, |state| rotation(state, Timestamp::now()))?)?;
    Ok(())
}

fn rotation(state: &Value, now: Timestamp) -> String {
    let phase = match state.get("phase").and_then(Value::as_str) {
        Some("steady") => "steady: one root",
        Some("spreading") => "1 of 2: the new root is told to every sidecar, the old one signs",
        Some("renewing") => "2 of 2: the new root signs, the old one goes when nothing of it is in use",
        other => other.unwrap_or("unknown"),
    };
    let mut text = format!("rotation      {phase}\n");
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("{name:<14}{value}\n"));
        }
    };
    let unix = |key: &str| state.get(key).and_then(Value::as_i64).map(|at| now.as_second() - at);
    line("since", unix("since").map(|ago| format!("{} ago", span(ago))));
    line("forced in", unix("force_at").map(|ago| span((-ago).max(0))));
    let ends =
        time(state.get("ends_by")).map(|at| format!("in {} at the latest", span(at.duration_since(now).as_secs())));
    line("ends", ends);
    let waiting = state
        .get("waiting_for")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    line(
        "waiting for",
        (!waiting.is_empty()).then(|| cell(state.get("waiting_for"))),
    );
    text
}

async fn judge(args: &Whom, path: &str, done: &str) -> anyhow::Result<()> {
    let whom = whom(&args.whom)?;
    ask(&args.target.plane()?, path, &whom).await?;
    output::print(&format!("{done} {}\n", args.whom))?;
    Ok(())
}

async fn ask(plane: &Plane, path: &str, whom: &Value) -> anyhow::Result<()> {
    let answer = plane.send(path, whom).await?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        bail!("{error}");
    }
    Ok(())
}

/// A serial has more hexadecimal digits than anybody calls a service.
fn whom(text: &str) -> Result<Value, Failure> {
    let serial: String = text
        .chars()
        .filter(|c| *c != ':')
        .collect::<String>()
        .to_ascii_lowercase();
    if (16..=40).contains(&serial.len()) && serial.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(json!({"serial": serial}));
    }
    service_name(text).map(|(namespace, service)| json!({"service": format!("{namespace}/{service}")}))
}

fn time(value: Option<&Value>) -> Option<Timestamp> {
    value?.as_str()?.parse().ok()
}

fn left(value: Option<&Value>, now: Timestamp) -> String {
    match time(value) {
        None => cell(value),
        Some(end) if end <= now => format!("expired {} ago", span(now.duration_since(end).as_secs())),
        Some(end) => span(end.duration_since(now).as_secs()),
    }
}

/// Seconds as people say them, to two units.
fn span(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..172_800 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d"),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write for example 30s, 10m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{page, rotation, whom};

    #[test]
    fn a_serial_is_told_from_a_service() {
        let serial = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";
        assert_eq!(whom(serial).unwrap(), json!({"serial": serial}));
        assert_eq!(
            whom("0A:1B:2C:3D:4E:5F:60:71").unwrap(),
            json!({"serial": "0a1b2c3d4e5f6071"})
        );
        assert_eq!(whom("cafe").unwrap(), json!({"service": "default/cafe"}));
        assert_eq!(whom("shop/post").unwrap(), json!({"service": "shop/post"}));
        assert!(whom("No Service").is_err());
    }

    #[test]
    fn expiry_is_told_as_what_is_left() {
        let now = "2030-01-01T12:00:00Z".parse().unwrap();
        let leaf = |not_after: &str, revoked: bool| {
            json!({"service": "default/post", "instance": "post-1", "serial": "0a", "root": 1, "renewals": 3,
                   "not_after": not_after, "current_root": true, "revoked": revoked})
        };
        let all = json!({
            "trust_domain": "outrigger.local",
            "certs": [leaf("2030-01-01T12:59:59Z", false), leaf("2030-01-01T11:59:30Z", true)],
            "roots": [{"number": 1, "sha256": "00112233445566778899", "not_after": "2040-01-01T00:00:00Z", "signs": true,
                       "last_leaf": "2030-01-01T12:59:59Z"}],
            "rotation": {"phase": "steady"},
            "revoked": ["default/gone"],
        });
        let text = page(&all, now);
        for part in [
            "59m59s",
            "expired 30s ago",
            "revoked",
            "3651d",
            "signs",
            "outrigger.local",
            "default/gone",
        ] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
        assert!(!text.contains("rotation"), "{text}");
    }

    #[test]
    fn a_rotation_names_whom_it_waits_for() {
        let now = "2030-01-01T12:00:00Z".parse().unwrap();
        let state = json!({"phase": "spreading", "since": 1893499080, "force_at": 1893499260, "waiting_for": ["default/post/post-1"]});
        assert_eq!(
            rotation(&state, now),
            "rotation      1 of 2: the new root is told to every sidecar, the old one signs\nsince         2m00s ago\n\
             forced in     1m00s\nwaiting for   default/post/post-1\n"
        );
    }
}
