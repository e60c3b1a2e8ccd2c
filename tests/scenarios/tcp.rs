//! Opaque TCP: bytes, half-close, server-first protocols, the end of either side.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::Client;
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{over_both, secure_scenarios, wait};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        bytes_go_both_ways,
        a_half_closed_connection_stays_half_open,
        the_server_may_speak_first,
        a_dead_app_ends_the_connection,
        what_looks_like_http_stays_opaque,
        a_reset_of_the_app_is_a_reset_for_the_client,
    ];
    tests.extend(secure_scenarios![
        a_killed_sidecar_is_a_reset_and_no_clean_end,
        a_new_connection_needs_no_handshake,
    ]);
    tests
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

/// What ends a client's stream: nothing, or the error.
async fn end_of(client: &mut Client) -> Result<Option<std::io::ErrorKind>> {
    wait::soon("the stream's end", async {
        Ok(client.end().await.err().map(|e| e.kind()))
    })
    .await
}

async fn a_reset_of_the_app_is_a_reset_for_the_client(world: Arc<World>) -> Result<()> {
    let app = TcpApp::start(|mut stream, _| async move {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
        Ok(())
    })
    .await?;
    let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    for _ in 0..5 {
        let mut client = Client::connect(mesh.to("app")?).await?;
        // More than it reads: an app that is killed with unread data resets as well.
        client.send("xyz").await?;
        ensure!(end_of(&mut client).await? == Some(std::io::ErrorKind::ConnectionReset));
    }
    mesh.check_well()
}

async fn a_killed_sidecar_is_a_reset_and_no_clean_end(world: Arc<World>) -> Result<()> {
    for caller in [false, true] {
        let (told, mut ends) = tokio::sync::mpsc::channel(1);
        let app = TcpApp::start(move |mut stream, _| {
            let told = told.clone();
            async move {
                let mut bytes = [0; 64];
                let mut served = false;
                loop {
                    match stream.read(&mut bytes).await {
                        // A probe of the sidecar connects and goes.
                        Ok(0) if !served => return Ok(()),
                        Ok(0) => return Ok(told.send(None).await?),
                        Ok(n) => {
                            served = true;
                            stream.write_all(&bytes[..n]).await?;
                        }
                        Err(error) => return Ok(told.send(Some(error.kind())).await?),
                    }
                }
            }
        })
        .await?;
        let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
        let mut client = Client::connect(mesh.to("app")?).await?;
        client.send("hello").await?;
        ensure!(client.bytes(5).await? == b"hello");
        let reset = Some(std::io::ErrorKind::ConnectionReset);
        if caller {
            mesh.caller.process.kill()?;
            let seen = wait::soon("the app sees an end", async { Ok(ends.recv().await) }).await?;
            ensure!(seen == Some(reset), "the app saw {seen:?}");
        } else {
            mesh.inbound("app", 0)?.process.kill()?;
            let seen = end_of(&mut client).await?;
            ensure!(seen == reset, "the client saw {seen:?}");
        }
    }
    Ok(())
}

/// Only what is in flight opens TLS connections: one after another travels in the same.
async fn a_new_connection_needs_no_handshake(world: Arc<World>) -> Result<()> {
    let app = TcpApp::echo().await?;
    let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let handshakes = async |mesh: &mut Mesh| -> Result<u64> {
        let page = mesh.inbound("app", 0)?.metrics().await?;
        let line = page.lines().find(|l| l.starts_with("outrigger_handshakes_total "));
        Ok(line
            .and_then(|l| l.rsplit_once(' '))
            .map_or(Ok(0), |(_, n)| n.parse())?)
    };
    let before = handshakes(&mut mesh).await?;
    for i in 0..50_u8 {
        let mut client = Client::connect(mesh.to("app")?).await?;
        client.send([i; 100]).await?;
        ensure!(client.bytes(100).await? == [i; 100]);
        client.end_writing().await?;
        ensure!(client.rest().await?.is_empty());
    }
    let made = handshakes(&mut mesh).await? - before;
    // One a worker, and a few while an end is still on its way.
    ensure!((1..=8).contains(&made), "{made} handshakes for 50 connections");
    mesh.check_well()
}
