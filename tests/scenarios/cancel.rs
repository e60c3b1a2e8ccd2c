//! A client that gives up is seen by the app, on every pair of protocols. How fast is a figure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::Seen;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::Client;
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::Plan;
use outrigger_tests::{over_both, world};

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        http1_client_of_an_http1_app,
        http1_client_of_an_http2_app,
        http2_client_of_an_http1_app,
        http2_client_of_an_http2_app,
        a_reset_connection_counts_as_well,
        a_cancel_costs_the_neighbours_nothing,
    ]
}

async fn give_up_http1(pair: &str, addr: SocketAddr, seen: &Seen) -> Result<()> {
    let mut client = Client::connect(addr).await?;
    client.send("GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    seen.wait_requests(1).await?;
    ensure!(
        seen.cancelled.load(std::sync::atomic::Ordering::SeqCst) == 0,
        "too early"
    );
    let start = Instant::now();
    client.close()?;
    seen.wait_cancelled(1).await?;
    world::figure(format!(
        "cancel seen by the app, {pair}: {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    ));
    Ok(())
}

async fn give_up_http2(pair: &str, addr: SocketAddr, seen: &Seen) -> Result<()> {
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let (answer, mut stream) = client.start(request("GET", addr, "/hang", &[])?, true).await?;
    seen.wait_requests(1).await?;
    let start = Instant::now();
    stream.send_reset(h2::Reason::CANCEL);
    drop(answer);
    seen.wait_cancelled(1).await?;
    world::figure(format!(
        "cancel seen by the app, {pair}: {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    ));
    Ok(())
}

async fn http1_client_of_an_http1_app(world: Arc<World>) -> Result<()> {
    let app = H1App::silent().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    give_up_http1("h1 -> h1", mesh.to("app")?, &app.seen).await
}

async fn http1_client_of_an_http2_app(world: Arc<World>) -> Result<()> {
    let app = H2App::silent().await?;
    let mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    give_up_http1("h1 -> h2", mesh.to("app")?, &app.seen).await
}

async fn http2_client_of_an_http1_app(world: Arc<World>) -> Result<()> {
    let app = H1App::silent().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    give_up_http2("h2 -> h1", mesh.to("app")?, &app.seen).await
}

async fn http2_client_of_an_http2_app(world: Arc<World>) -> Result<()> {
    let app = H2App::silent().await?;
    let mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .start(&world)
        .await?;
    give_up_http2("h2 -> h2", mesh.to("app")?, &app.seen).await
}

async fn a_reset_connection_counts_as_well(world: Arc<World>) -> Result<()> {
    let app = H1App::silent().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    app.seen.wait_requests(1).await?;
    client.reset()?;
    app.seen.wait_cancelled(1).await
}

async fn a_cancel_costs_the_neighbours_nothing(world: Arc<World>) -> Result<()> {
    let app = H2App::silent().await?;
    let other = H2App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .service("echo", "http2", &[other.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let (kept, _open) = client.start(request("GET", addr, "/kept", &[])?, true).await?;
    for i in 1..=50 {
        let (answer, mut stream) = client.start(request("GET", addr, "/hang", &[])?, true).await?;
        app.seen.wait_requests(i + 1).await?;
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
        app.seen.wait_cancelled(i).await?;
    }
    ensure!(
        app.seen.cancelled.load(std::sync::atomic::Ordering::SeqCst) == 50,
        "the kept stream was cancelled too"
    );
    drop(kept);
    let to = mesh.to("echo")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    ensure!(
        client
            .exchange(request("GET", to, "/", &[])?, None)
            .await?
            .head
            .status()
            == 200
    );
    mesh.check_well()
}
