//! `outrigger new`: a service document to start from.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::exit::Failure;
use crate::output;

/// Print a service document to start from; append it to mesh.yaml
#[derive(Debug, Clone, Args)]
pub(crate) struct NewArgs {
    /// What the service speaks
    #[arg(value_enum)]
    kind: Kind,
    /// Its name
    name: String,
    /// The command that starts it
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// HTTP/1.1, with a health path
    Http,
    /// gRPC, with its standard health service
    Grpc,
    /// Anything else on a TCP connection
    Tcp,
}

/// Runs `new`.
pub(crate) fn new(args: &NewArgs) -> anyhow::Result<ExitCode> {
    outrigger_proto::model::ServiceName::new("default", &args.name).map_err(|e| Failure::Usage(e.reason))?;
    output::print(&document(args.kind, &args.name, args.run.as_deref()))?;
    Ok(ExitCode::SUCCESS)
}

fn document(kind: Kind, name: &str, run: Option<&str>) -> String {
    let (protocol, health, note) = match kind {
        Kind::Http => (
            "http",
            "{ http: /healthz, every: 2s }",
            "answers GET /healthz with 200 while it is well",
        ),
        Kind::Grpc => (
            "grpc",
            "{ grpc: \"\", every: 2s }",
            "answers grpc.health.v1.Health/Check with SERVING while it is well",
        ),
        Kind::Tcp => ("tcp", "{ tcp: true, every: 2s }", "well while it accepts connections"),
    };
    // JSON's strings are YAML's too; a command may hold any character.
    let run = serde_json::Value::from(run.map_or_else(|| format!("./{name}"), str::to_owned));
    format!(
        "---
service: {name}
run: {run}        # listens on $HOST:$PORT
protocol: {protocol}
health: {health}  # {note}
# port: 8080            # where callers outside the mesh find it; any free port without
# allow: [other]        # who may call it; without, every service of the mesh
# calls: [other]        # gives the app OTHER_ADDR and OTHER_URL
# timeout: 2s
# replicas: 2
"
    )
}

#[cfg(test)]
mod tests {
    use outrigger_control_plane::config::parse;
    use outrigger_proto::model::Probe;

    use super::{Kind, document};

    #[test]
    fn scaffolds_are_valid() {
        for kind in [Kind::Http, Kind::Grpc, Kind::Tcp] {
            let mesh = parse("new", &document(kind, "shop", Some("sh -c 'echo \"# hi\"'"))).unwrap();
            assert_eq!(mesh.services[0].run.as_deref(), Some("sh -c 'echo \"# hi\"'"));
            let grpc = matches!(mesh.services[0].health.probe, Probe::Grpc { .. });
            assert_eq!(grpc, kind == Kind::Grpc);
        }
    }
}
