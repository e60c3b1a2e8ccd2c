//! Time that is up: of one try, of all of them, of a stream, and what is left of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::client::{self, Client};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{over_both, wait};
use tokio::io::AsyncWriteExt as _;

use super::{logged, policy, retries};

pub(super) fn tests() -> Vec<Trial> {
    over_both![
        one_try_and_all_of_them_end_in_time,
        an_idle_stream_ends,
        an_answer_that_its_client_does_not_read_ends,
        what_is_left_of_the_time_is_told
    ]
}

/// Answers `/`, so that there is a connection; anything else never.
async fn hangs(request: h1::Request) -> Result<Option<outrigger_tests::http1::Io>> {
    match request.head.word(1) {
        "/" => h1::echo(request).await,
        _ => h1::silent(request).await,
    }
}

/// Connects, so that handshakes are no part of what is timed. What the app saw of it.
async fn warm(mesh: &Mesh, service: &str, app: &H1App) -> Result<usize> {
    let to = mesh.to(service)?;
    wait::until("a connection", || async {
        client::get(to, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    Ok(app.seen.requests())
}

async fn one_try_and_all_of_them_end_in_time(world: Arc<World>) -> Result<()> {
    let (tries, whole) = (H1App::start(hangs).await?, H1App::start(hangs).await?);
    let mut mesh = Plan::default()
        .service("tries", "http", &[tries.addr])
        .policy(retries(2))
        .policy(|service| policy(service).per_try_timeout_ms = 150)
        .service("whole", "http", &[whole.addr])
        .timeout_ms(500)
        .policy(retries(10))
        .policy(|service| policy(service).per_try_timeout_ms = 200)
        // Each worker has its own connections.
        .workers(1)
        .start(&world)
        .await?;
    let before = warm(&mesh, "tries", &tries).await?;
    let answer = client::get(mesh.to("tries")?, "/hang").await?;
    ensure!(
        answer.status() == 504 && answer.reason() == Some("per_try_timeout"),
        "{answer:?}"
    );
    ensure!(answer.head.field("outrigger-final") == Some("retried"), "{answer:?}");
    ensure!(tries.seen.requests() == before + 2);
    tries.seen.wait_cancelled(2).await?;
    let before = warm(&mesh, "whole", &whole).await?;
    let start = Instant::now();
    let answer = client::get(mesh.to("whole")?, "/hang").await?;
    ensure!(
        answer.status() == 504 && answer.reason() == Some("deadline"),
        "{answer:?}"
    );
    ensure!(start.elapsed() >= Duration::from_millis(500));
    whole.seen.wait_cancelled(whole.seen.requests() - before).await?;
    // Each try is told less than the one before.
    let left: Vec<u64> = whole
        .seen
        .heads()
        .iter()
        .skip(before)
        .filter_map(|h| h.field("outrigger-timeout-ms")?.parse().ok())
        .collect();
    ensure!(
        left.len() > 1 && left.is_sorted_by(|a, b| a > b) && left[0] <= 500,
        "{left:?}"
    );
    mesh.check_well()
}

async fn an_idle_stream_ends(world: Arc<World>) -> Result<()> {
    let app = H1App::start(|mut request: h1::Request| async move {
        if request.head.word(1) == "/" {
            return h1::echo(request).await;
        }
        outrigger_tests::http1::read_request_body(&mut request.io, &request.head).await?;
        let start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        request.io.write_all(start).await?;
        h1::watch_end(&mut request.io).await;
        Ok(None)
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .policy(|service| policy(service).idle_timeout_ms = 300)
        .workers(1)
        .start(&world)
        .await?;
    warm(&mesh, "app", &app).await?;
    let start = Instant::now();
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(client.head().await?.word(1) == "200");
    let rest = client.rest().await?;
    ensure!(!rest.ends_with(b"0\r\n\r\n"), "a clean end: {rest:?}");
    ensure!(start.elapsed() >= Duration::from_millis(300));
    logged(&mesh, "idle_timeout").await?;
    mesh.check_well()
}

/// Answers `/`, and anything else with a body that never ends; counts those that are given up.
async fn endless(request: h1::Request, given_up: Arc<AtomicUsize>) -> Result<Option<outrigger_tests::http1::Io>> {
    if request.head.word(1) == "/" {
        return h1::echo(request).await;
    }
    let mut io = request.io;
    io.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let block = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    while io.write_all(block.as_bytes()).await.is_ok() {}
    given_up.fetch_add(1, SeqCst);
    Ok(None)
}

async fn an_answer_that_its_client_does_not_read_ends(world: Arc<World>) -> Result<()> {
    const STOPPED: &str = "a stream ended by idle_timeout: its client has stopped reading";
    let given_up = Arc::new(AtomicUsize::new(0));
    let count = given_up.clone();
    let app = H1App::start(move |request: h1::Request| endless(request, count.clone())).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .policy(|service| policy(service).idle_timeout_ms = 1_000)
        .workers(1)
        .start(&world)
        .await?;
    warm(&mesh, "app", &app).await?;
    let to = mesh.to("app")?;
    let said = |n: usize| {
        let (mesh, given_up) = (&mesh, &given_up);
        wait::until("the stream ends", move || async move {
            mesh.caller.process.output().matches(STOPPED).count() == n && given_up.load(SeqCst) == n
        })
    };
    // HTTP/1: the connection ends without the body's end.
    let mut client = Client::connect(to).await?;
    client.send("GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(client.head().await?.word(1) == "200");
    said(1).await?;
    ensure!(!client.rest().await?.ends_with(b"0\r\n\r\n"), "a clean end");
    // HTTP/2: the stream is reset, and its neighbours go on.
    let mut client = H2Client::connect(to, 1 << 16).await?;
    let (answer, _stream) = client.start(request("GET", to, "/endless", &[])?, true).await?;
    let mut body = answer.await?.into_body();
    said(2).await?;
    let neighbour = client.exchange(request("GET", to, "/", &[])?, None).await?;
    ensure!(
        neighbour.head.status() == 200 && neighbour.error.is_none(),
        "{neighbour:?}"
    );
    let error = loop {
        match body.data().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => bail!("a clean end"),
        }
    };
    ensure!(
        error.is_reset() && error.reason() == Some(h2::Reason::CANCEL),
        "{error}"
    );
    let metrics = mesh.caller.metrics().await?;
    let counted = |l: &&str| l.contains("reason=\"idle_timeout\"") && l.ends_with(" 2");
    ensure!(metrics.lines().any(|l| counted(&l)), "{metrics}");
    mesh.check_well()
}

async fn what_is_left_of_the_time_is_told(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .timeout_ms(5_000)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let left = |i: usize| {
        let heads = app.seen.heads();
        heads
            .get(i)
            .and_then(|h| h.field("outrigger-timeout-ms")?.parse::<u64>().ok())
    };
    client::get_ok(to, "/").await?;
    ensure!(left(0).is_some_and(|ms| ms > 1_000 && ms <= 5_000), "{:?}", left(0));
    // From the app it only shortens.
    for (i, (says, most)) in [("700", 700), ("60000", 5_000), ("soon", 5_000)]
        .into_iter()
        .enumerate()
    {
        let get = format!("GET / HTTP/1.1\r\nHost: h\r\noutrigger-timeout-ms: {says}\r\n\r\n");
        let answer = client::once(to, &get).await?;
        ensure!(answer.status() == 200, "{answer:?}");
        ensure!(
            left(i + 1).is_some_and(|ms| ms > 100 && ms <= most),
            "{says}: {:?}",
            left(i + 1)
        );
    }
    mesh.check_well()
}
