//! Opaque TCP: bytes, half-close, server-first protocols, the end of either side.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::Client;
use outrigger_tests::mesh::Plan;
use outrigger_tests::over_both;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        bytes_go_both_ways,
        a_half_closed_connection_stays_half_open,
        the_server_may_speak_first,
        a_dead_app_ends_the_connection,
        what_looks_like_http_stays_opaque,
    ]
}

async fn bytes_go_both_ways(world: Arc<World>) -> Result<()> {
    let app = TcpApp::echo().await?;
    let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    for i in 0..20_u8 {
        let block = vec![i; 1 + 5_000 * usize::from(i)];
        client.send(&block).await?;
        ensure!(client.bytes(block.len()).await? == block, "block {i} came back changed");
    }
    mesh.check_well()
}

async fn a_half_closed_connection_stays_half_open(world: Arc<World>) -> Result<()> {
    let app = TcpApp::count_then_answer().await?;
    let mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send(vec![b'x'; 300_000]).await?;
    client.end_writing().await?;
    let answer = client.rest().await?;
    ensure!(answer == b"read 300000", "{:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

async fn the_server_may_speak_first(world: Arc<World>) -> Result<()> {
    let app = TcpApp::server_first().await?;
    let mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    ensure!(client.bytes(11).await? == b"220 ready\r\n");
    client.send("HELO\r\n").await?;
    ensure!(client.rest().await? == b"HELO\r\n");
    Ok(())
}

async fn a_dead_app_ends_the_connection(world: Arc<World>) -> Result<()> {
    let app = TcpApp::echo().await?;
    let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("x").await?;
    ensure!(client.bytes(1).await? == b"x");
    drop(app);
    ensure!(client.rest().await?.is_empty());
    // And while nobody listens a new connection ends too, it does not hang.
    if let Ok(mut client) = Client::connect(mesh.to("app")?).await {
        client.send("x").await.ok();
        ensure!(client.rest().await?.is_empty());
    }
    mesh.check_well()
}

async fn what_looks_like_http_stays_opaque(world: Arc<World>) -> Result<()> {
    let app = TcpApp::echo().await?;
    let mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let text = b"GET /bare\rcr HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
    client.send(text).await?;
    ensure!(client.bytes(text.len()).await? == text);
    Ok(())
}
