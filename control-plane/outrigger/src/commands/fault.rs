//! `outrigger fault`: makes requests fail on purpose, for a while.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use outrigger_control_plane::config::Edit;

use crate::exit::Failure;
use crate::revise::{Revise, yaml};

/// Make requests to a service fail on purpose for a while: edits mesh.yaml and applies it
///
/// Shows the edit first; comments and order of the rest stay. The fault ends by itself. A second one of the same kind
/// takes the place of the first.
#[derive(Debug, Clone, Args)]
pub(crate) struct FaultArgs {
    /// As `service` or `namespace/service`
    service: String,
    /// Requests wait for so long before they are sent
    #[arg(long, value_name = "DURATION")]
    delay: Option<String>,
    /// Requests are answered with this HTTP status
    #[arg(long, value_name = "STATUS")]
    abort: Option<u16>,
    /// Requests are answered with this gRPC code, for example UNAVAILABLE
    #[arg(long, value_name = "CODE")]
    grpc: Option<String>,
    /// The answer breaks off after so much of its body, for example 1kb
    #[arg(long, value_name = "SIZE")]
    reset_after: Option<String>,
    /// Connections of tcp and tls ports are closed at once
    #[arg(long)]
    refuse: bool,
    /// Share of the requests
    #[arg(long, value_name = "PERCENT", default_value = "100%")]
    percent: String,
    /// When it ends, from now; at most 24h
    #[arg(long = "for", value_name = "DURATION", default_value = "5m")]
    lasts: humantime::Duration,
    /// Only requests of this caller; may be given again
    #[arg(long, value_name = "CALLER")]
    from: Vec<String>,
    /// Only requests with this path, as in a route's `match`; may be given again
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
    /// What it is called
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take out the fault of this name; without a name, all faults of the service
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        conflicts_with_all = ["delay", "abort", "grpc", "reset_after", "refuse", "percent", "lasts", "from", "path", "name"]
    )]
    clear: Option<Option<String>>,
    #[command(flatten)]
    revise: Revise,
}

/// The longest fault.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs `fault`.
pub(crate) fn fault(args: &FaultArgs) -> anyhow::Result<ExitCode> {
    let mut document = args.revise.read(&args.service)?;
    let list = "faults";
    if let Some(named) = &args.clear {
        let faults = &document.service()?.traffic.faults;
        let known: Vec<String> = faults.iter().map(|fault| fault.name.clone()).collect();
        let gone: Vec<String> = known
            .iter()
            .filter(|name| named.as_ref().is_none_or(|named| named == *name))
            .cloned()
            .collect();
        if let (Some(named), true) = (named, gone.is_empty()) {
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let said = format!("{} has no fault `{named}`; it has {known}", args.service);
            return Err(Failure::NotFound(said).into());
        }
        for name in &gone {
            document.edit(Edit::Remove { list, name })?;
        }
    } else {
        let (name, entry) = entry(args)?;
        document.edit(Edit::Put {
            list,
            name: &name,
            entry: &entry,
        })?;
    }
    super::runtime()?.block_on(args.revise.put(&document))?;
    Ok(ExitCode::SUCCESS)
}

/// The fault's name and its line in mesh.yaml.
fn entry(args: &FaultArgs) -> anyhow::Result<(String, String)> {
    let answer = args.abort.is_some() || args.grpc.is_some();
    let given = [
        (args.delay.is_some(), "cli-delay"),
        (answer, "cli-abort"),
        (args.reset_after.is_some(), "cli-reset"),
        (args.refuse, "cli-refuse"),
    ];
    let mut given = given.iter().filter(|(given, _)| *given).map(|(_, name)| *name);
    let (Some(name), None) = (given.next(), given.next()) else {
        let said = "exactly one of --delay, --abort or --grpc, --reset-after, --refuse, --clear is needed";
        return Err(Failure::Usage(said.to_owned()).into());
    };
    let lasts = *args.lasts;
    if lasts.is_zero() || lasts > LONGEST {
        return Err(Failure::Usage(format!("--for {}: a fault lasts at most 24h", args.lasts)).into());
    }
    let name = args.name.clone().unwrap_or_else(|| name.to_owned());
    // A moment less than was asked for, so that the longest is not refused by a control plane whose clock is behind.
    let until = jiff::Timestamp::from_second((jiff::Timestamp::now() + lasts).as_second())?;
    let mut parts = vec![format!("name: {}", yaml(&name))];
    let mut part = |key: &str, value: String| parts.push(format!("{key}: {value}"));
    if let Some(delay) = &args.delay {
        part("delay", yaml(delay));
    }
    if let Some(status) = args.abort {
        part("abort", status.to_string());
    }
    if let Some(code) = &args.grpc {
        part("grpc", yaml(code));
    }
    if let Some(size) = &args.reset_after {
        part("reset_after", yaml(size));
    }
    if args.refuse {
        part("refuse", "true".to_owned());
    }
    let percent = args.percent.trim_end_matches('%');
    if percent != "100" {
        part("percent", yaml(&format!("{percent}%")));
    }
    if !args.from.is_empty() {
        let callers: Vec<String> = args.from.iter().map(|caller| yaml(caller)).collect();
        part("from", format!("[{}]", callers.join(", ")));
    }
    let paths: Vec<String> = args
        .path
        .iter()
        .map(|path| format!("{{ path: {} }}", yaml(path)))
        .collect();
    match paths.as_slice() {
        [] => {}
        [one] => part("match", one.clone()),
        many => part("match", format!("[{}]", many.join(", "))),
    }
    part("until", yaml(&until.to_string()));
    Ok((name, format!("{{ {} }}", parts.join(", "))))
}
