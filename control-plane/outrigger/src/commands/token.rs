//! `outrigger token`: lets services join the mesh, and operators reach the control plane from elsewhere.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use outrigger_control_plane::config::RESERVED_NAMESPACE;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{self, Output, cell, table};
use crate::plane::{Plane, Target, service_name};

/// Create, list and revoke the tokens with which services join and operators ask from elsewhere
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    Create(Create),
    /// List the tokens that are still good, without their secrets
    List(List),
    /// End a token; who has joined with it stays
    Revoke(Revoke),
}

/// Print a token with which instances of one service join; or, with --operator, one for this command line elsewhere
///
/// The token is shown this once: only its hash is kept. It also carries the hash of the mesh's root certificate, by
/// which the joining side knows the control plane.
#[derive(Debug, Clone, Args)]
#[group(id = "whom", required = true, multiple = false, args = ["service", "operator"])]
struct Create {
    /// The service that joins with it, as `service` or `namespace/service`
    #[arg(long, value_name = "NS/SVC")]
    service: Option<String>,
    /// For people: all that the control plane's socket allows
    #[arg(long)]
    operator: bool,
    /// How often it can be used; 0 for any number of times. For operators 0 unless said
    #[arg(long, value_name = "N")]
    uses: Option<u32>,
    /// How long it is good; for operators 30 days unless said
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value_if("operator", "true", "30d"), default_value = "10m")]
    ttl: Duration,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Args)]
struct List {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Args)]
struct Revoke {
    /// The id as `list` shows it, or the token itself
    id: String,
    #[command(flatten)]
    target: Target,
}

/// Runs `token`.
pub(crate) fn token(args: &TokenArgs) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    match &args.what {
        What::Create(args) => runtime.block_on(create(args))?,
        What::List(args) => runtime.block_on(list(args))?,
        What::Revoke(args) => runtime.block_on(revoke(args))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: &Create) -> anyhow::Result<()> {
    let plane = args.target.plane()?;
    let document = match &args.service {
        Some(service) => for_service(service, args.uses.unwrap_or(1), args.ttl)?,
        None => json!({"operator": true, "uses": args.uses.unwrap_or(0), "ttl_s": args.ttl.as_secs()}),
    };
    let made = plane.send(PATH, &document).await?;
    output::print(
        &args
            .output
            .text(&made, |made| format!("{}\n", cell(made.get("token"))))?,
    )?;
    let whom = args.service.as_deref().map_or_else(
        || "an operator; to be put into OUTRIGGER_TOKEN or a file for --token-file".to_owned(),
        |service| format!("{service}; to be given to `outrigger run --service {service} --token-file FILE`"),
    );
    // Aside, so that `$(outrigger token create …)` is the token alone.
    writeln!(
        anstream::stderr(),
        "token {} for {whom}; good until {}; it is not shown again",
        cell(made.get("id")),
        cell(made.get("expires"))
    )?;
    Ok(())
}

/// What the control plane is asked for a token of `service`.
fn for_service(service: &str, uses: u32, ttl: Duration) -> Result<Value, Failure> {
    let (namespace, service) = service_name(service)?;
    if namespace == RESERVED_NAMESPACE {
        return Err(Failure::Usage(format!("the namespace {namespace} is the mesh's own")));
    }
    Ok(json!({"namespace": namespace, "service": service, "uses": uses, "ttl_s": ttl.as_secs()}))
}

async fn list(args: &List) -> anyhow::Result<()> {
    let all = args.target.plane()?.get(PATH).await?;
    output::print(&args.output.text(&all, |all| {
        let rows = all.as_array().into_iter().flatten().map(|one| {
            let whom = match one.get("operator") {
                Some(Value::Bool(true)) => "operators".to_owned(),
                _ => cell(one.get("service")),
            };
            let uses = match one.get("uses_left").and_then(Value::as_u64) {
                None => "any".to_owned(),
                Some(left) => left.to_string(),
            };
            vec![
                cell(one.get("id")),
                whom,
                uses,
                cell(one.get("used")),
                cell(one.get("expires")),
            ]
        });
        table(&["ID", "FOR", "USES LEFT", "USED", "EXPIRES"], rows)
    })?)?;
    Ok(())
}

async fn revoke(args: &Revoke) -> anyhow::Result<()> {
    let id = id(&args.id);
    let legal = |c: char| c.is_ascii_alphanumeric();
    if id.is_empty() || !id.chars().all(legal) {
        return Err(Failure::Usage(format!("`{id}` is no token's id; `outrigger token list` shows them")).into());
    }
    end(&args.target.plane()?, id).await?;
    output::print(&format!("revoked {id}\n"))?;
    Ok(())
}

/// The id within a token; an id as it is.
pub(crate) fn id(text: &str) -> &str {
    text.strip_prefix("ogt1.")
        .and_then(|rest| rest.split('.').next())
        .unwrap_or(text)
}

/// Ends the token `id`.
async fn end(plane: &Plane, id: &str) -> anyhow::Result<()> {
    plane.delete(&format!("{PATH}/{id}")).await?;
    Ok(())
}

const PATH: &str = "/v1/tokens";

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.as_secs() >= 1 => Ok(duration),
        Ok(_) => Err("at least 1s".to_owned()),
        Err(_) => Err("write for example 10m, 12h or 30d".to_owned()),
    }
}
