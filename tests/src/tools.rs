//! Judges that did not come from us; `tests/run` installs them and says where they are.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::World;
use crate::process::{Process, accepts};
use crate::{client, ports, wait};

/// A command that runs the tool `name`: `OUTRIGGER_TOOL_<NAME>` is its path.
///
/// # Errors
/// When the variable is not set or the tool is not there. A missing judge is never a pass.
pub fn tool(name: &str) -> Result<Command> {
    let key = format!("OUTRIGGER_TOOL_{}", name.to_uppercase());
    let path = std::env::var_os(&key)
        .map(PathBuf::from)
        .with_context(|| format!("{key} is not set: start the tests by `tests/run`, which installs {name}"))?;
    anyhow::ensure!(path.exists(), "{key} names {}, which is not there", path.display());
    let mut command = Command::new(path);
    for key in ["http_proxy", "https_proxy", "no_proxy", "grpc_proxy", "all_proxy"] {
        command.env_remove(key).env_remove(key.to_uppercase());
    }
    Ok(command)
}

/// Runs a tool to its end; its exit code must be 0.
///
/// # Errors
/// Another exit code, with the tool's output.
pub async fn run(world: &World, name: &str, args: &[&str], deadline: Duration) -> Result<String> {
    let mut command = tool(name)?;
    command.args(args).current_dir(world.dir());
    world.spawn(name, command)?.succeed(deadline).await
}

/// grpc-go's interop server.
///
/// # Errors
/// When it does not come up.
pub async fn interop_server(world: &World) -> Result<(Process, SocketAddr)> {
    let addr = ports::free()?;
    let mut command = tool("interop_server")?;
    command.arg("-port").arg(addr.port().to_string());
    let process = world.spawn("interop-server", command)?;
    accepts(addr).await?;
    Ok((process, addr))
}

/// A real etcd with one member.
///
/// # Errors
/// When it does not come up.
pub async fn etcd(world: &World) -> Result<(Process, SocketAddr)> {
    let (listen, peer) = (ports::free()?, ports::free()?);
    let mut command = tool("etcd")?;
    command
        .args(["--name", "t1", "--log-level", "warn"])
        .arg("--data-dir")
        .arg(world.dir().join("etcd"))
        .args(["--listen-client-urls", &format!("http://{listen}")])
        .args(["--advertise-client-urls", &format!("http://{listen}")])
        .args(["--listen-peer-urls", &format!("http://{peer}")])
        .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
        .args(["--initial-cluster", &format!("t1=http://{peer}")]);
    let process = world.spawn("etcd", command)?;
    wait::until("etcd is ready", || async {
        client::get(listen, "/readyz").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    Ok((process, listen))
}

/// An nginx in one process, with `server` inside its only server block.
///
/// # Errors
/// When it does not come up.
pub async fn nginx(world: &World, listen: &str, server: &str) -> Result<(Process, SocketAddr)> {
    let addr = ports::free()?;
    let here = world.dir().join(format!("nginx-{}", addr.port()));
    std::fs::create_dir_all(&here)?;
    let here = here.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|k| format!("{k}_temp_path {here}/{k};"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {here}/nginx.pid; error_log stderr; events {{}}\n\
         http {{ access_log off; {temp} server {{ listen {addr} {listen}; {server} }} }}\n"
    );
    let file = world.write(&format!("nginx-{}.conf", addr.port()), &config)?;
    let mut command = tool("nginx")?;
    command.arg("-e").arg("stderr").arg("-c").arg(file);
    let process = world.spawn("nginx", command)?;
    accepts(addr).await?;
    Ok((process, addr))
}

/// A WebSocket echo app on Autobahn's own library, which answers frame by frame. An app that looks
/// ahead in what it read would answer otherwise when two small packets arrive as one, with or
/// without a proxy.
///
/// # Errors
/// When it does not come up.
pub async fn websocket_echo(world: &World) -> Result<(Process, SocketAddr)> {
    let addr = ports::free()?;
    let script = world.write("echo.py", WEBSOCKET_ECHO)?;
    let mut command = tool("wstest_python")?;
    command.arg(script).arg(addr.port().to_string());
    let process = world.spawn("websocket-echo", command)?;
    accepts(addr).await?;
    Ok((process, addr))
}

/// Without a URL the factory does not compare the Host field with its own port.
const WEBSOCKET_ECHO: &str = r#"
import sys
from twisted.internet import reactor
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

class Echo(WebSocketServerProtocol):
    def onMessage(self, payload, binary):
        self.sendMessage(payload, binary)

factory = WebSocketServerFactory()
factory.protocol = Echo
reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
reactor.run()
"#;
