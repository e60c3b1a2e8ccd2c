//! `outrigger explain-access`: whether a caller may, and which rule says so.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{self, Output, cell};
use crate::plane::{Target, service_name};

/// Tell whether a caller may call a service, and by which rule; exit code 6 when it may not
///
/// Decided by the control plane as the service's sidecar decides it, from the configuration in force.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExplainAccessArgs {
    /// Who calls: `service`, `namespace/service`, a whole `spiffe://…`, or `unauthenticated`
    from: String,
    /// The service that is called, as `service` or `namespace/service`
    to: String,
    /// The HTTP method; POST for gRPC
    #[arg(requires = "path")]
    method: Option<String>,
    /// The path as it is sent; for gRPC /package.Service/Method
    path: Option<String>,
    /// The port's name; else the first
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

/// Runs `explain-access`.
pub(crate) fn explain_access(args: &ExplainAccessArgs) -> anyhow::Result<ExitCode> {
    let from = caller(&args.from)?;
    let (namespace, service) = service_name(&args.to)?;
    let mut question = json!({"from": from, "to": format!("{namespace}/{service}")});
    for (key, value) in [("port", &args.port), ("method", &args.method), ("path", &args.path)] {
        if let Some(value) = value {
            question[key] = json!(value);
        }
    }
    let answer = super::runtime()?.block_on(async { args.target.plane()?.send(PATH, &question).await })?;
    output::print(&args.output.text(&answer, |answer| page(args, answer))?)?;
    let allowed = answer.get("allowed").and_then(Value::as_bool) == Some(true);
    Ok(if allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DENIED)
    })
}

/// A caller as the control plane reads it.
fn caller(text: &str) -> Result<String, Failure> {
    if text == "unauthenticated" {
        return Ok(text.to_owned());
    }
    if text.starts_with("spiffe:") {
        return match text.parse::<outrigger_proto::model::SpiffeId>() {
            Ok(id) => Ok(id.to_string()),
            Err(error) => Err(Failure::Usage(error.reason)),
        };
    }
    service_name(text).map(|(namespace, service)| format!("{namespace}/{service}"))
}

fn page(args: &ExplainAccessArgs, answer: &Value) -> String {
    let yes = |key: &str| answer.get(key).and_then(Value::as_bool) == Some(true);
    let decision = match (yes("allowed"), yes("audit")) {
        (true, true) => "\x1b[33mallowed\x1b[0m, as its denial is only logged (audit)",
        (true, false) => "\x1b[32mallowed\x1b[0m",
        (false, _) => "\x1b[31mdenied\x1b[0m",
    };
    let mut text = format!("{decision}\n");
    let mut line = |name: &str, value: String| {
        if value != "-" {
            text.push_str(&format!("  {name:<9}{value}\n"));
        }
    };
    let part = |key: &str| cell(answer.get(key));
    line("by", part("rule"));
    line("said in", part("source"));
    let from = match part("from") {
        nobody if nobody == "-" => "unauthenticated".to_owned(),
        id => id,
    };
    line("from", from);
    line("to", format!("{} port {} ({})", part("to"), part("port"), part("mode")));
    let asked = [part("method"), part("path")].join(" ");
    line("asks", if asked == "- -" { "-".to_owned() } else { asked });
    // Only where it says something new.
    let normalised = part("normalised_path");
    line(
        "read as",
        if args.path.as_ref() == Some(&normalised) {
            "-".to_owned()
        } else {
            normalised
        },
    );
    line("bad path", part("bad_path"));
    line("note", part("note"));
    for one in answer.get("considered").and_then(Value::as_array).into_iter().flatten() {
        text.push_str(&format!("  not {}: {}\n", cell(one.get("rule")), cell(one.get("why"))));
    }
    text
}

/// The exit code of a denial.
const DENIED: u8 = 6;
const PATH: &str = "/v1/access/explain";

#[cfg(test)]
mod tests {
    use super::caller;

    #[test]
    fn callers_are_services_ids_or_nobody() {
        assert_eq!(caller("post").unwrap(), "default/post");
        assert_eq!(caller("shop/post").unwrap(), "shop/post");
        assert_eq!(caller("unauthenticated").unwrap(), "unauthenticated");
        let id = "spiffe://outrigger.local/ns/default/svc/post";
        assert_eq!(caller(id).unwrap(), id);
        assert!(caller("spiffe://x").is_err() && caller("Post").is_err());
    }
}
