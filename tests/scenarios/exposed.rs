//! What leaves the machine and what must not: an app that others reach past its sidecar, the listeners for people.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::client::get;
use outrigger_tests::mesh::{PORT, Sidecar, secure, start};
use outrigger_tests::{ports, scenarios, secure_scenarios, wait};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = secure_scenarios![an_app_that_listens_on_every_address_is_not_well_until_that_is_acknowledged];
    tests.extend(scenarios![telemetry_is_a_listener_of_its_own]);
    tests
}

/// A strict sidecar before an app on `port`.
async fn strict(world: &World, name: &str, port: u16, exposed_app: bool) -> Result<Sidecar> {
    let listen = ports::free()?;
    let mut config = json!({
        "service": "app",
        "instance": name,
        "admin": ports::free()?,
        "inbound": [{"name": PORT, "protocol": "tcp", "listen": listen, "app": format!("127.0.0.1:{port}")}],
        "resources": {"proxy": {"name": "default/app"}},
    });
    secure(world, "app", &mut config)?;
    config["resources"]["proxy"]["exposed_app"] = json!(exposed_app);
    let mut sidecar = start(world, name, config, listen, false)?;
    sidecar.ready().await?;
    Ok(sidecar)
}

async fn health(sidecar: &Sidecar) -> Result<Value> {
    get(sidecar.admin, "/health").await?.json()
}

async fn an_app_that_listens_on_every_address_is_not_well_until_that_is_acknowledged(world: Arc<World>) -> Result<()> {
    let app = TcpListener::bind("0.0.0.0:0").await?;
    let port = app.local_addr()?.port();
    let open = strict(&world, "open", port, false).await?;
    wait::until("the finding is shown", || async {
        let health = health(&open).await.unwrap_or_default();
        let reason = health["app"]["reason"].as_str().unwrap_or_default();
        reason.contains(&format!("0.0.0.0:{port}")) && reason.contains("HOST") && reason.contains("exposed_app: true")
    })
    .await?;
    ensure!(health(&open).await?["status"] == "starting");
    ensure!(get(open.admin, "/readyz").await?.status() == 503);
    let acknowledged = strict(&world, "acknowledged", port, true).await?;
    wait::until("an acknowledged app is well", || async {
        health(&acknowledged).await.is_ok_and(|h| h["status"] == "ok")
    })
    .await?;
    // The same app, but where nobody else reaches it.
    drop(app);
    let _app = TcpListener::bind(("127.0.0.1", port)).await?;
    wait::until("it is well where nobody else reaches it", || async {
        health(&open).await.is_ok_and(|h| h["status"] == "ok")
    })
    .await
}

async fn telemetry_is_a_listener_of_its_own(world: Arc<World>) -> Result<()> {
    let (listen, telemetry) = (ports::free()?, ports::free()?);
    let config = json!({
        "service": "caller",
        "admin": ports::free()?,
        "http_proxy": listen,
        "telemetry": {"listen": telemetry},
    });
    let mut sidecar = start(&world, "caller", config, listen, false)?;
    sidecar.ready().await?;
    for (path, status) in [("/metrics", 200), ("/livez", 200), ("/config", 404), ("/stats", 404)] {
        let answer = get(telemetry, path).await?;
        ensure!(answer.status() == status, "{path}: {answer:?}");
    }
    let socket = world.dir().join("admin.sock");
    let config = json!({
        "service": "caller",
        "admin": format!("unix:{}", socket.display()),
        "http_proxy": ports::free()?,
        "telemetry": {"listen": ports::free()?, "tls": true},
    });
    let path = world.write("refused.yaml", &config.to_string())?;
    let mut command = world.program("outrigger-sidecar")?;
    command.arg("--config").arg(path);
    let mut refused = world.spawn("refused", command)?;
    let status = refused.wait(wait::SOON).await?;
    ensure!(
        !status.success() && refused.output().contains("telemetry.tls"),
        "{}",
        refused.output()
    );
    sidecar.check_well()
}
