//! Upgrades: 101 with its fields, bytes both ways, refusals unchanged.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::client::Client;
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{over_both, wait};

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        a_websocket_handshake_and_its_fields_go_through,
        another_token_goes_through,
        a_refusal_goes_through_unchanged,
        bytes_sent_with_the_handshake_are_not_lost,
        the_end_of_an_upgraded_connection_reaches_the_app,
    ]
}

async fn upgrading(world: &World) -> Result<(H1App, Mesh)> {
    let app = H1App::start(h1::upgrade_echo).await?;
    let mesh = Plan::default().service("app", "http", &[app.addr]).start(world).await?;
    Ok((app, mesh))
}

fn handshake(token: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: {token}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, b\r\nOrigin: http://h\r\n\r\n"
    )
}

async fn a_websocket_handshake_and_its_fields_go_through(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = upgrading(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let answer = client.exchange(&handshake("websocket")).await?;
    ensure!(answer.status() == 101, "{answer:?}");
    ensure!(answer.head.field("upgrade") == Some("websocket"), "{answer:?}");
    ensure!(
        answer.head.field("sec-websocket-accept") == Some("dGhlIHNhbXBsZQ=="),
        "{answer:?}"
    );
    ensure!(answer.head.field("x-app") == Some("up"), "{answer:?}");
    let head = &app.seen.heads()[0];
    ensure!(head.line == "GET /chat HTTP/1.1", "{head:?}");
    for (name, value) in [
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZQ=="),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "a, b"),
        ("origin", "http://h"),
        ("host", "h"),
    ] {
        ensure!(head.field(name) == Some(value), "{name}: {head:?}");
    }
    for i in 0..10_u8 {
        let block = vec![i; 10_000];
        client.send(&block).await?;
        ensure!(client.bytes(block.len()).await? == block, "bytes came back changed");
    }
    mesh.check_well()
}

async fn another_token_goes_through(world: Arc<World>) -> Result<()> {
    let (app, mesh) = upgrading(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let answer = client.exchange(&handshake("x-echo")).await?;
    ensure!(
        answer.status() == 101 && answer.head.field("upgrade") == Some("x-echo"),
        "{answer:?}"
    );
    ensure!(app.seen.heads()[0].field("upgrade") == Some("x-echo"));
    client.send("ping").await?;
    ensure!(client.bytes(4).await? == b"ping");
    Ok(())
}

async fn a_refusal_goes_through_unchanged(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = upgrading(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let answer = client.exchange(&handshake("unknown")).await?;
    ensure!(answer.status() == 426 && answer.text() == "nope", "{answer:?}");
    ensure!(answer.head.field("x-refused") == Some("yes"), "{answer:?}");
    Ok(())
}

async fn bytes_sent_with_the_handshake_are_not_lost(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = upgrading(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send(format!("{}early", handshake("websocket"))).await?;
    let answer = client.answer("GET").await?;
    ensure!(answer.status() == 101, "{answer:?}");
    ensure!(client.bytes(5).await? == b"early");
    Ok(())
}

async fn the_end_of_an_upgraded_connection_reaches_the_app(world: Arc<World>) -> Result<()> {
    let app = H1App::start(|mut request: h1::Request| async move {
        use tokio::io::AsyncWriteExt as _;
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        request.io.write_all(answer.as_bytes()).await?;
        h1::watch_end(&mut request.io).await;
        request.seen.cancelled.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(None)
    })
    .await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    ensure!(client.exchange(&handshake("websocket")).await?.status() == 101);
    client.close()?;
    wait::until("the app sees the end", || async {
        app.seen.cancelled.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await
}
