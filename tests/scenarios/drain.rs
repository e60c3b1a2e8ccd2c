//! Leaving in order: nothing that was accepted is lost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::client::{Client, once};
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Plan;
use outrigger_tests::{over_both, wait};
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        a_sidecar_that_leaves_under_load_fails_nothing,
        a_request_in_flight_is_finished,
        a_request_that_never_ends_is_cut_at_the_deadline,
        drain_by_the_admin_port_ends_the_program,
        connections_of_age_are_replaced_without_failure,
    ]
}

const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

async fn a_sidecar_that_leaves_under_load_fails_nothing(world: Arc<World>) -> Result<()> {
    let (leaving, staying) = (H1App::echo().await?, H1App::echo().await?);
    // Static mode has no registry: the other endpoint must be found by GOAWAY and refused connections alone.
    let mut mesh = Plan::default()
        .service("app", "http", &[leaving.addr, staying.addr])
        .inbound(json!({"drain": {"delay_ms": 200, "deadline_ms": 5000}}))
        .start(&world)
        .await?;
    let load = Load::on(mesh.to("app")?);
    load.wait(500).await?;
    let sidecar = mesh.inbound("app", 0)?;
    sidecar.process.signal(Signal::SIGTERM)?;
    let status = sidecar.process.wait(DRAIN_DEADLINE).await?;
    load.wait(500).await?;
    load.end().await?;
    ensure!(status.success(), "the drained sidecar: {status}");
    Ok(())
}

async fn slow_app() -> Result<(H1App, Arc<tokio::sync::Notify>)> {
    let gate = Arc::new(tokio::sync::Notify::new());
    let held = Arc::clone(&gate);
    let app = H1App::start(move |request: h1::Request| {
        let held = Arc::clone(&held);
        async move {
            held.notified().await;
            h1::echo(request).await
        }
    })
    .await?;
    Ok((app, gate))
}

async fn a_request_in_flight_is_finished(world: Arc<World>) -> Result<()> {
    let (app, gate) = slow_app().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"drain": {"delay_ms": 10, "deadline_ms": 20_000}}))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    app.seen.wait_requests(1).await?;
    let sidecar = mesh.inbound("app", 0)?;
    sidecar.process.signal(Signal::SIGTERM)?;
    // It has begun to leave when nobody is accepted any more, or when it says so.
    let (admin, listen) = (sidecar.admin, sidecar.listen);
    wait::until("the sidecar begins to leave", || async move {
        let refused = tokio::net::TcpStream::connect(listen).await.is_err();
        refused
            || outrigger_tests::client::get(admin, "/readyz")
                .await
                .is_ok_and(|a| a.status() == 503)
    })
    .await?;
    gate.notify_one();
    let answer = client.answer("GET").await?;
    ensure!(answer.status() == 200 && answer.body.complete, "{answer:?}");
    let status = mesh.inbound("app", 0)?.process.wait(DRAIN_DEADLINE).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn a_request_that_never_ends_is_cut_at_the_deadline(world: Arc<World>) -> Result<()> {
    let app = H1App::silent().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"drain": {"delay_ms": 10, "deadline_ms": 500}}))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("GET /never HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    app.seen.wait_requests(1).await?;
    let sidecar = mesh.inbound("app", 0)?;
    sidecar.process.signal(Signal::SIGTERM)?;
    let status = sidecar.process.wait(DRAIN_DEADLINE).await?;
    ensure!(status.success(), "{status}");
    let answer = client.answer("GET").await?;
    ensure!(answer.status() >= 500, "{answer:?}");
    Ok(())
}

async fn drain_by_the_admin_port_ends_the_program(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"drain": {"delay_ms": 10, "deadline_ms": 1000}}))
        .start(&world)
        .await?;
    let sidecar = mesh.inbound("app", 0)?;
    let answer = once(
        sidecar.admin,
        "POST /drain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(answer.status() < 300, "{answer:?}");
    let status = sidecar.process.wait(DRAIN_DEADLINE).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn connections_of_age_are_replaced_without_failure(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"limits": {"max_connection_age_ms": 200}}))
        .start(&world)
        .await?;
    let load = Load::on(mesh.to("app")?);
    // Several ages, so that several connections between the sidecars came and went.
    let begin = std::time::Instant::now();
    wait::until("several ages went by", || {
        std::future::ready(begin.elapsed() > Duration::from_millis(1500) || load.is_over())
    })
    .await?;
    load.wait(100).await?;
    load.end().await?;
    mesh.check_well()
}
