//! The harness itself, without sidecars: scripted apps do what they say, cut bodies are seen as cut.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::{Client, get_ok, once};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::{scenarios, tools};

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        the_echo_app_reports_what_it_saw,
        a_cut_body_is_not_complete,
        trailers_and_upgrades_work_directly,
        the_http2_apps_work_directly,
        a_cancel_is_counted,
        half_close_works_directly,
        etcd_starts,
    ]
}

async fn the_echo_app_reports_what_it_saw(_: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let request = "POST /a?b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n";
    let answer = once(app.addr, request).await?;
    ensure!(answer.interim.len() == 1, "{answer:?}");
    let seen = answer.json()?;
    ensure!(
        seen["line"] == "POST /a?b HTTP/1.1" && seen["body"] == "abc" && seen["complete"] == true,
        "{seen}"
    );
    ensure!(app.seen.requests() == 1);
    Ok(())
}

async fn a_cut_body_is_not_complete(_: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::die_in_body).await?;
    for path in ["/chunked", "/length"] {
        let answer = once(app.addr, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await?;
        ensure!(!answer.body.complete && answer.text() == "hello", "{path}: {answer:?}");
    }
    Ok(())
}

async fn trailers_and_upgrades_work_directly(_: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::with_trailers).await?;
    let answer = get_ok(app.addr, "/").await?;
    ensure!(
        answer.text() == "abcde" && answer.body.trailers.len() == 1 && answer.body.complete,
        "{answer:?}"
    );
    let app = H1App::start(h1::upgrade_echo).await?;
    let mut client = Client::connect(app.addr).await?;
    let answer = client
        .exchange("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x-echo\r\n\r\n")
        .await?;
    ensure!(answer.status() == 101, "{answer:?}");
    client.send("ping").await?;
    ensure!(client.bytes(4).await? == b"ping");
    Ok(())
}

async fn the_http2_apps_work_directly(_: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mut client = H2Client::connect(app.addr, 1 << 20).await?;
    let head = request("POST", app.addr, "/x", &[("x-a", "1")])?;
    let answer = client.exchange(head, Some(Bytes::from_static(b"hi"))).await?;
    let seen: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(seen["body"] == "hi" && answer.error.is_none(), "{seen}");
    Ok(())
}

async fn a_cancel_is_counted(_: Arc<World>) -> Result<()> {
    let (old, new) = (H1App::silent().await?, H2App::silent().await?);
    let mut client = Client::connect(old.addr).await?;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    old.seen.wait_requests(1).await?;
    client.close()?;
    old.seen.wait_cancelled(1).await?;
    let mut client = H2Client::connect(new.addr, 1 << 20).await?;
    let (answer, mut stream) = client.start(request("GET", new.addr, "/", &[])?, true).await?;
    new.seen.wait_requests(1).await?;
    stream.send_reset(h2::Reason::CANCEL);
    drop(answer);
    new.seen.wait_cancelled(1).await
}

async fn half_close_works_directly(_: Arc<World>) -> Result<()> {
    let app = TcpApp::count_then_answer().await?;
    let mut client = Client::connect(app.addr).await?;
    client.send(vec![b'x'; 100_000]).await?;
    client.end_writing().await?;
    ensure!(client.rest().await? == b"read 100000");
    Ok(())
}

async fn etcd_starts(world: Arc<World>) -> Result<()> {
    let (mut etcd, _) = tools::etcd(&world).await?;
    etcd.check_alive()
}
