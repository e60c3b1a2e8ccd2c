//! A mesh over several machines: a control plane on one, and on each other one service that `outrigger run --address` joins
//! with a token. Each machine is an address of its own (127.0.0.0/8); what listens on one does not answer on another.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::client::get;
use outrigger_tests::control::Control;
use outrigger_tests::process::Process;
use outrigger_tests::{World, ports, scenarios, wait};
use tokio::net::TcpStream;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        two_services_on_two_machines_call_each_other,
        a_token_of_another_mesh_joins_nobody,
    ]
}

const MESH: &str = "\
service: app
ports: [{name: http, protocol: http}]
allow: [caller]
---
service: caller
ports: [{name: http, protocol: http}]
calls: [app]
";

/// Answers who called, and `/call` with what APP_ADDR answers.
const APP: &str = r#"
import http.server, os, urllib.error, urllib.request

class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = 200, f"{os.environ['OUTRIGGER_INSTANCE']} was called by {self.headers.get('outrigger-caller')}"
        if self.path == "/call":
            try:
                body = urllib.request.urlopen(f"http://{os.environ['APP_ADDR']}/").read().decode()
            except urllib.error.HTTPError as error:
                status, body = error.code, str(error.headers.get("outrigger-reason"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    log_message = lambda *_: None

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"#;

/// A free port of the machine `n`.
fn machine(n: u8) -> Result<SocketAddr> {
    let mut at = ports::free()?;
    at.set_ip(Ipv4Addr::new(127, 0, 0, n).into());
    Ok(at)
}

/// `outrigger run` of `service` at `at`, its app at `app`.
fn run(
    world: &World,
    control: &Control,
    service: &str,
    (at, app): (SocketAddr, SocketAddr),
    token: &str,
) -> Result<Command> {
    world.write("app.py", APP)?;
    let mut command = world.program("outrigger")?;
    command
        .args(["run", "--service", service, "--protocol", "http", "--health", "http:/"])
        .args(["--address", &at.ip().to_string(), "--port", &at.port().to_string()])
        .args(["--control-plane", &format!("https://{}", control.addr)])
        .args(["--app-port", &app.port().to_string()])
        .args(["--state-dir", &format!("{service}-{}", at.port())])
        .env("OUTRIGGER_TOKEN", token);
    if service == "caller" {
        command.args(["--calls", "app"]);
    }
    command.args(["--", "python3", "app.py"]);
    Ok(command)
}

/// Starts `service` on a machine and waits until callers know it.
async fn joined(world: &World, control: &Control, service: &str, at: (SocketAddr, SocketAddr)) -> Result<Process> {
    let token = control.token(service).await?;
    let mut process = world.spawn(service, run(world, control, service, at, &token)?)?;
    control
        .wait_endpoints(service, 1)
        .await
        .with_context(|| process.output())?;
    process.check_alive()?;
    Ok(process)
}

async fn two_services_on_two_machines_call_each_other(world: Arc<World>) -> Result<()> {
    let control = Control::start_at(&world, MESH, machine(2)?, "control-plane").await?;
    let (app_at, caller_at) = (machine(3)?, machine(4)?);
    let _callee = joined(&world, &control, "app", (app_at, ports::free()?)).await?;
    // What the caller's app answers is asked behind its sidecar, which is strict.
    let app = ports::free()?;
    let _caller = joined(&world, &control, "caller", (caller_at, app)).await?;
    let known = control.json("/v1/endpoints").await?.to_string();
    for at in [app_at, caller_at] {
        ensure!(known.contains(&at.ip().to_string()), "{at} is not known: {known}");
        let mut elsewhere = at;
        elsewhere.set_ip(Ipv4Addr::LOCALHOST.into());
        ensure!(
            TcpStream::connect(elsewhere).await.is_err(),
            "{at} answers at {elsewhere}, too"
        );
    }
    wait::until("the caller's calls arrive", || async {
        get(app, "/call").await.is_ok_and(|answer| answer.status() == 200)
    })
    .await?;
    let said = get(app, "/call").await?.text();
    ensure!(
        said.starts_with("app-") && said.ends_with("/ns/default/svc/caller"),
        "{said}"
    );
    // Nobody comes in without a certificate.
    if let Ok(answer) = get(app_at, "/").await {
        ensure!(answer.status() >= 400 && answer.reason().is_some(), "{answer:?}");
    }
    Ok(())
}

async fn a_token_of_another_mesh_joins_nobody(world: Arc<World>) -> Result<()> {
    let ours = Control::start_at(&world, MESH, machine(2)?, "ours").await?;
    let theirs = Control::start_at(&world, MESH, machine(5)?, "theirs").await?;
    // Theirs whole, and ours with the hash of their root: nothing may be sent to whom the token does not name.
    let (own, other) = (ours.token("app").await?, theirs.token("app").await?);
    let hash = other.rsplit('.').next().context("a hash")?;
    let mixed = format!("{}.{hash}", own.rsplit_once('.').context("a token")?.0);
    for (n, token) in [(3, other), (4, mixed)] {
        let at = machine(n)?;
        let mut process = world.spawn("stranger", run(&world, &ours, "app", (at, ports::free()?), &token)?)?;
        wait::until("it is said that the root is another", || async {
            process
                .output()
                .contains("the token is of another mesh, or somebody answers")
        })
        .await?;
        process.kill()?;
    }
    for control in [&ours, &theirs] {
        ensure!(control.endpoints("app").await? == 0, "it was registered");
    }
    Ok(())
}
