//! What an operator can see: counters, health, configuration, the access log, the exit.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::{get, get_ok};
use outrigger_tests::mesh::{self, Plan};
use outrigger_tests::{ports, scenarios, wait};
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        requests_are_counted_by_service_and_direction,
        refusals_are_counted_by_reason,
        health_names_the_app_and_its_dependencies,
        health_notices_an_app_that_dies_and_comes_back,
        the_effective_configuration_is_shown,
        every_request_has_an_access_log_line,
        wrong_bootstrap_files_are_refused_with_a_position,
        a_listener_beyond_loopback_needs_insecure,
        a_port_in_use_is_named,
        an_idle_sidecar_is_small_and_ends_at_once,
    ]
}

/// One sample of a Prometheus page: the sum of all series of `name` whose labels hold all of `labels`.
fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

async fn requests_are_counted_by_service_and_direction(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    for _ in 0..7 {
        get_ok(mesh.to("app")?, "/").await?;
    }
    let outbound = mesh.caller.metrics().await?;
    let counted = sum(
        &outbound,
        "outrigger_requests_total",
        &["direction=\"outbound\"", "default/app"],
    );
    ensure!((counted - 7.0).abs() < 0.1, "{counted} requests counted:\n{outbound}");
    let inbound = mesh.inbound("app", 0)?.metrics().await?;
    let counted = sum(&inbound, "outrigger_requests_total", &["direction=\"inbound\""]);
    ensure!((counted - 7.0).abs() < 0.1, "{counted} requests counted:\n{inbound}");
    ensure!(inbound.contains("# HELP") && inbound.contains("# TYPE"), "{inbound}");
    ensure!(mesh.caller.stats().await?.to_string().contains("default/app"));
    Ok(())
}

async fn refusals_are_counted_by_reason(world: Arc<World>) -> Result<()> {
    let mesh = Plan::default().service("empty", "http", &[]).start(&world).await?;
    get(mesh.to("empty")?, "/").await?;
    let page = mesh.caller.metrics().await?;
    ensure!(
        page.lines()
            .any(|line| line.contains("reason=\"no_endpoints\"") && line.ends_with(" 1")),
        "{page}"
    );
    Ok(())
}

async fn health_names_the_app_and_its_dependencies(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let file = world.write("app.db", "x")?;
    let depends = json!([
        {"name": "db", "check": {"file": file}},
        {"name": "gone", "check": {"file": world.dir().join("not-there")}},
    ]);
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"depends": depends, "health": {"interval_ms": 100}}))
        .start(&world)
        .await?;
    let admin = mesh.inbound("app", 0)?.admin;
    wait::until("both dependencies are checked", || async {
        let Ok(health) = get(admin, "/health").await.and_then(|a| a.json()) else {
            return false;
        };
        let ok = |name: &str| {
            health["dependencies"]
                .as_array()
                .and_then(|all| all.iter().find(|d| d["name"] == name).map(|d| d["ok"].clone()))
        };
        health["app"]["ok"] == true && ok("db") == Some(json!(true)) && ok("gone") == Some(json!(false))
    })
    .await
}

async fn health_notices_an_app_that_dies_and_comes_back(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"health": {"interval_ms": 100, "timeout_ms": 500}}))
        .start(&world)
        .await?;
    let admin = mesh.inbound("app", 0)?.admin;
    let status = |wanted: u16| async move { get(admin, "/health").await.is_ok_and(|a| a.status() == wanted) };
    wait::until("the app is well", || status(200)).await?;
    app.die().await?;
    wait::until("the app is seen to be dead", || status(503)).await?;
    let text = get(admin, "/health").await?.text();
    ensure!(text.contains("reason"), "{text}");
    Ok(())
}

async fn the_effective_configuration_is_shown(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let config = get_ok(mesh.caller.admin, "/config").await?.json()?.to_string();
    ensure!(
        config.contains("default/app/app-0") && config.contains("caller-0"),
        "{config}"
    );
    Ok(())
}

async fn every_request_has_an_access_log_line(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .access_log()
        .start(&world)
        .await?;
    get_ok(mesh.to("app")?, "/logged?a=b").await?;
    wait::until("the line is written", || async {
        mesh.caller.process.output().contains("/logged")
    })
    .await?;
    let output = mesh.caller.process.output();
    let line = output.lines().find(|l| l.contains("/logged")).unwrap_or_default();
    let line: serde_json::Value = serde_json::from_str(line)?;
    ensure!(
        line.to_string().contains("200") && line.to_string().contains("GET"),
        "{line}"
    );
    Ok(())
}

async fn wrong_bootstrap_files_are_refused_with_a_position(world: Arc<World>) -> Result<()> {
    let cases = [
        ("an unknown key", "service: a\nlistne: x\n", "listne"),
        ("a wrong type", "service: a\nworkers: many\n", "workers"),
        (
            "an unknown protocol",
            "service: a\ninbound: [{name: m, protocol: smtp, listen: 127.0.0.1:1, app: 127.0.0.1:2}]\n",
            "smtp",
        ),
        ("no service", "namespace: a\n", "service"),
        ("not YAML", "service: [\n", ""),
    ];
    for (what, text, named) in cases {
        let path = world.write("bad.yaml", text)?;
        let mut command = world.program("outrigger-sidecar")?;
        command.arg("--config").arg(&path);
        let mut process = world.spawn("bad", command)?;
        let status = process.wait(Duration::from_secs(20)).await?;
        let output = process.output();
        ensure!(!status.success(), "{what} was accepted:\n{output}");
        ensure!(
            output.contains(named) && output.contains("bad.yaml"),
            "{what}:\n{output}"
        );
        ensure!(!output.contains("panicked"), "{what}:\n{output}");
    }
    Ok(())
}

async fn a_listener_beyond_loopback_needs_insecure(world: Arc<World>) -> Result<()> {
    let config = json!({"service": "a", "http_proxy": "0.0.0.0:0"});
    let path = world.write("open.yaml", &config.to_string())?;
    let mut command = world.program("outrigger-sidecar")?;
    command.arg("--config").arg(&path);
    let mut process = world.spawn("open", command)?;
    let status = process.wait(Duration::from_secs(20)).await?;
    ensure!(
        !status.success() && process.output().contains("insecure"),
        "{}",
        process.output()
    );
    Ok(())
}

async fn a_port_in_use_is_named(world: Arc<World>) -> Result<()> {
    let holder = std::net::TcpListener::bind(ports::free()?)?;
    let taken = holder.local_addr()?;
    let config = json!({"service": "a", "http_proxy": taken});
    let path = world.write("taken.yaml", &config.to_string())?;
    let mut command = world.program("outrigger-sidecar")?;
    command.arg("--config").arg(&path);
    let mut process = world.spawn("taken", command)?;
    let status = process.wait(Duration::from_secs(20)).await?;
    let output = process.output();
    ensure!(
        !status.success() && output.contains(&taken.port().to_string()),
        "{output}"
    );
    Ok(())
}

async fn an_idle_sidecar_is_small_and_ends_at_once(world: Arc<World>) -> Result<()> {
    let config = json!({"service": "a", "admin": ports::free()?, "http_proxy": ports::free()?});
    let listen = config["http_proxy"].as_str().unwrap_or_default().parse()?;
    let mut sidecar = mesh::start(&world, "idle", config, listen, false)?;
    sidecar.ready().await?;
    let rss = sidecar.process.rss_kib()?;
    outrigger_tests::world::figure(format!("idle sidecar: {rss} KiB"));
    ensure!(rss < 20 * 1024, "{rss} KiB");
    sidecar.process.signal(Signal::SIGINT)?;
    let status = sidecar.process.wait(Duration::from_secs(20)).await?;
    ensure!(status.success(), "{status}\n{}", sidecar.process.output());
    Ok(())
}
