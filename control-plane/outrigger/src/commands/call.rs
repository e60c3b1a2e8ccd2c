//! `outrigger call`: one request to a service, HTTP or gRPC, through its sidecar.
//!
//! The endpoint comes from the control plane; nothing is retried and nothing balanced: what is seen is what that one
//! endpoint answered. `call/web` and `call/grpc` speak on a `call/line`, this file decides which and to whom.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use outrigger_proto::model::ServiceName;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::cell;
use crate::plane::{Plane, Target, service_name};

mod grpc;
mod line;
mod web;

use line::{Line, Mesh};

/// Send one request to a service: HTTP, or gRPC with JSON
///
/// A second argument that starts with / is a path, anything else a gRPC method (`Method` or `package.Service/Method`);
/// without it, a gRPC service lists its methods and another one is asked for /. The message of a gRPC method is JSON;
/// its types come from the service's reflection, or from --descriptor. The service sees the operator as its caller, or
/// with --as another one.
#[derive(Debug, Clone, Args)]
pub(crate) struct CallArgs {
    /// As `service` or `namespace/service`
    service: String,
    /// A path, or a gRPC method
    #[arg(value_name = "METHOD|PATH")]
    what: Option<String>,
    /// The body; several JSON values make several messages of a gRPC stream. `-` reads standard input
    json: Option<String>,
    /// A header, as `name: value`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The HTTP method; POST with a body, else GET
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    method: Option<http::Method>,
    /// The port's name; else the first
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// Call as this service, `service` or `namespace/service`; else as the operator
    #[arg(long = "as", value_name = "SERVICE")]
    caller: Option<String>,
    /// A file of descriptors (`protoc --descriptor_set_out --include_imports`) instead of reflection
    #[arg(long, value_name = "FILE")]
    descriptor: Option<std::path::PathBuf>,
    /// Seconds to wait for the whole answer
    #[arg(long, default_value = "30", value_name = "SECONDS")]
    timeout: u64,
    /// Show status and headers too (HTTP)
    #[arg(short, long)]
    include: bool,
    #[command(flatten)]
    target: Target,
}

/// Runs `call`; exit code 1 for an HTTP status from 400 and for a gRPC status other than OK.
pub(crate) fn call(args: &CallArgs) -> anyhow::Result<ExitCode> {
    let (namespace, service) = service_name(&args.service)?;
    let body = match args.json.as_deref() {
        Some("-") => Some(std::io::read_to_string(std::io::stdin())?),
        given => given.map(str::to_owned),
    };
    let headers = args
        .headers
        .iter()
        .map(|header| split(header))
        .collect::<Result<Vec<_>, _>>()?;
    let limit = Duration::from_secs(args.timeout.max(1));
    let name = ServiceName::new(&namespace, &service)?;
    super::runtime()?.block_on(async {
        let plane = args.target.plane()?;
        let port = port(&plane, name.as_str(), args.port.as_deref()).await?;
        let line = Line {
            address: port.address,
            mesh: match port.plain {
                true => None,
                false => Some(Mesh::new(&plane, args.caller.as_deref(), &name).await?),
            },
        };
        let path = args.what.as_deref().filter(|what| what.starts_with('/'));
        let is_grpc = match &args.what {
            Some(_) => path.is_none(),
            None => port.protocol == "grpc",
        };
        let exchange = async {
            if is_grpc {
                let ask = grpc::Ask {
                    line: &line,
                    host: &service,
                    method: args.what.as_deref(),
                    json: body.as_deref(),
                    headers: &headers,
                    descriptor: args.descriptor.as_deref(),
                };
                grpc::call(ask).await
            } else {
                let ask = web::Ask {
                    line: &line,
                    host: &service,
                    path: path.unwrap_or("/"),
                    method: args.method.clone(),
                    headers: &headers,
                    body,
                    include: args.include,
                };
                web::call(ask).await
            }
        };
        let outcome = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {limit:?}"))??;
        if let (Outcome::Denied(method, path), Some(mesh)) = (&outcome, &line.mesh) {
            explain(&plane, mesh, &name, &port.name, (method, path)).await?;
        }
        Ok(match outcome {
            Outcome::Well => ExitCode::SUCCESS,
            Outcome::Failed | Outcome::Denied(..) => ExitCode::FAILURE,
        })
    })
}

/// What came of a call, as far as the exit code and advice go.
enum Outcome {
    Well,
    Failed,
    /// The mesh denied this method and path.
    Denied(String, String),
}

/// The mesh's reason for a denial.
const DENIED: &str = "denied";

/// Says which rule denied us and what can be done.
async fn explain(
    plane: &Plane,
    mesh: &Mesh,
    service: &ServiceName,
    port: &str,
    (method, path): (&str, &str),
) -> anyhow::Result<()> {
    let from = mesh.own.as_str();
    let question = json!({"from": from, "to": service.as_str(), "port": port, "method": method, "path": path});
    let mut err = anstream::stderr();
    // The denial itself has been told already.
    if let Ok(answer) = plane.send("/v1/access/explain", &question).await {
        let part = |key: &str| cell(answer.get(key));
        writeln!(err, "decided by {} ({})", part("rule"), part("source"))?;
    }
    writeln!(
        err,
        "to allow it, add {from} to `allow` of {service}; to call as a service that may: --as SERVICE"
    )?;
    Ok(())
}

/// A port of an endpoint that serves.
struct Port {
    name: String,
    address: String,
    /// Whether the service takes part in the mesh without TLS.
    plain: bool,
    protocol: String,
}

async fn port(plane: &Plane, service: &str, name: Option<&str>) -> anyhow::Result<Port> {
    // Asked first: it tells an unknown service (with a hint) from one that does not run.
    let detail = plane.get(&format!("/v1/services/{service}")).await?;
    let declared = detail
        .get("ports")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let names: Vec<String> = declared.iter().filter_map(|port| text(port, "name")).collect();
    let endpoints = detail
        .get("instances")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let serves = |endpoint: &&Value| matches!(endpoint.get("state").and_then(Value::as_str), Some("serving" | "stale"));
    let Some(endpoint) = endpoints.iter().find(serves) else {
        anyhow::bail!("no endpoint of {service} serves; `outrigger get endpoints {service}` says why");
    };
    let ports = endpoint.get("ports").and_then(Value::as_object);
    let wanted = name.map(str::to_owned).or_else(|| names.first().cloned());
    let wanted = wanted.or_else(|| ports?.keys().next().cloned()).unwrap_or_default();
    let Some(number) = ports.and_then(|ports| ports.get(&wanted)).and_then(Value::as_u64) else {
        return Err(Failure::NotFound(format!("{service} has no port `{wanted}`; it has {}", names.join(", "))).into());
    };
    let address = text(endpoint, "address").unwrap_or_default();
    let address = if address.contains(':') {
        format!("[{address}]:{number}")
    } else {
        format!("{address}:{number}")
    };
    let port = declared
        .iter()
        .find(|port| text(port, "name").as_deref() == Some(wanted.as_str()));
    let mode = detail.pointer("/policy/mode").and_then(Value::as_str);
    let protocol = port.and_then(|port| text(port, "protocol")).unwrap_or_default();
    let plain = matches!(mode, Some("DISABLED" | "off"));
    if !plain && matches!(protocol.as_str(), "tcp" | "tls") {
        anyhow::bail!("port `{wanted}` of {service} carries opaque bytes; `call` speaks HTTP and gRPC");
    }
    Ok(Port {
        address,
        name: wanted.clone(),
        plain,
        protocol,
    })
}

fn split(header: &str) -> Result<(http::HeaderName, http::HeaderValue), Failure> {
    let refuse = || Failure::Usage(format!("`{header}` is not `name: value`"));
    let (name, value) = header.split_once(':').ok_or_else(refuse)?;
    Ok((
        name.trim().parse().map_err(|_| refuse())?,
        value.trim().parse().map_err(|_| refuse())?,
    ))
}
