//! Apps that die: never a clean end, never a request executed twice, always a reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{Client, get, once};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::Plan;
use outrigger_tests::{over_both, ports, wait};

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        a_body_cut_short_is_never_a_clean_end_for_http1,
        a_body_cut_short_is_never_a_clean_end_for_http2,
        an_http2_body_cut_short_is_never_a_clean_end,
        a_cut_grpc_stream_has_no_status_0,
        a_post_that_was_executed_is_not_sent_again,
        a_post_on_a_reused_connection_is_not_sent_again,
        an_idle_connection_that_the_app_closed_is_not_used,
        a_dead_endpoint_is_passed_over,
        an_unreachable_app_makes_the_caller_try_another,
        an_unreachable_app_has_a_reason,
        killing_one_of_two_replicas_loses_only_what_it_had_read,
        a_service_unknown_to_the_mesh_has_an_answer,
        a_service_without_endpoints_has_an_answer,
        a_silent_app_meets_the_deadline,
        grpc_timeout_is_honoured_and_shortened,
        an_answer_that_is_not_http_has_a_reason,
    ]
}

async fn a_body_cut_short_is_never_a_clean_end_for_http1(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::die_in_body).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    for path in ["/chunked", "/chunked/reset", "/length", "/length/reset"] {
        let mut client = Client::connect(mesh.to("app")?).await?;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await?;
        // The reset may overtake the head: then a 502, or no answer at all; neither is a clean end.
        let Ok(head) = client.head().await else { continue };
        if head.word(1) == "502" {
            continue;
        }
        let body = client.body(&head, "GET").await?;
        ensure!(
            !body.complete,
            "{path}: the client took the cut for an end: {head:?} {body:?}"
        );
        ensure!(body.bytes.len() <= 5, "{path}: bytes came from nowhere: {body:?}");
        ensure!(client.rest().await?.is_empty(), "{path}: the connection goes on");
    }
    mesh.check_well()
}

async fn a_body_cut_short_is_never_a_clean_end_for_http2(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::die_in_body).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    for path in ["/chunked", "/chunked/reset", "/length", "/length/reset"] {
        let mut client = H2Client::connect(addr, 1 << 20).await?;
        // The reset may overtake the head; then there is no answer at all.
        if let Ok(answer) = client.exchange(request("GET", addr, path, &[])?, None).await {
            ensure!(
                answer.head.status() == 502 || answer.error.is_some(),
                "{path}: a clean end: {answer:?}"
            );
        }
    }
    mesh.check_well()
}

async fn dying_h2_app() -> Result<H2App> {
    H2App::start(|_, _| async {
        let body = Broken(Some(Bytes::from_static(b"\0\0\0\0\x02hi")));
        let mut answer = http::Response::new(http_body_util::BodyExt::boxed(body));
        answer
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static("application/grpc"));
        answer
    })
    .await
}

/// One part, then an error: hyper resets the stream.
struct Broken(Option<Bytes>);

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(Some(match self.0.take() {
            Some(part) => Ok(http_body::Frame::data(part)),
            None => Err(std::io::Error::other("broken on purpose")),
        }))
    }
}

async fn an_http2_body_cut_short_is_never_a_clean_end(world: Arc<World>) -> Result<()> {
    let app = dying_h2_app().await?;
    let mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let answer = client.exchange(request("GET", addr, "/", &[])?, None).await;
    let clean = answer
        .as_ref()
        .is_ok_and(|a| a.error.is_none() && a.head.status() != 502);
    ensure!(!clean, "a clean end: {answer:?}");
    // An HTTP/1 client of the same app.
    let mut client = Client::connect(addr).await?;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    let head = client.head().await?;
    let body = client.body(&head, "GET").await?;
    ensure!(
        head.word(1) == "502" || !body.complete,
        "a clean end: {head:?} {body:?}"
    );
    Ok(())
}

async fn a_cut_grpc_stream_has_no_status_0(world: Arc<World>) -> Result<()> {
    let app = dying_h2_app().await?;
    let mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = client
        .exchange(request("POST", addr, "/a.B/C", &fields)?, Some(Bytes::new()))
        .await?;
    let status = answer
        .trailers
        .get("grpc-status")
        .or_else(|| answer.head.headers().get("grpc-status"));
    ensure!(status.is_none_or(|s| s != "0"), "{answer:?}");
    ensure!(
        status.is_some() || answer.error.is_some(),
        "a clean end without status: {answer:?}"
    );
    Ok(())
}

async fn a_post_that_was_executed_is_not_sent_again(world: Arc<World>) -> Result<()> {
    let (first, second) = (
        H1App::start(h1::execute_then_reset).await?,
        H1App::start(h1::execute_then_reset).await?,
    );
    let mut mesh = Plan::default()
        .service("app", "http", &[first.addr, second.addr])
        .start(&world)
        .await?;
    for i in 1..=20 {
        let answer = once(
            mesh.to("app")?,
            "POST /pay HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
        )
        .await?;
        ensure!(answer.status() == 502, "{answer:?}");
        ensure!(answer.reason() == Some("upstream_reset"), "{answer:?}");
        let seen = first.seen.requests() + second.seen.requests();
        ensure!(seen == i, "{i} requests were executed {seen} times");
    }
    mesh.check_well()
}

async fn a_post_on_a_reused_connection_is_not_sent_again(world: Arc<World>) -> Result<()> {
    // Answers GET, and resets at POST: the second request travels on a connection that worked.
    let app = H1App::start(|request: h1::Request| async move {
        match request.head.word(0) {
            "POST" => h1::execute_then_reset(request).await,
            _ => h1::echo(request).await,
        }
    })
    .await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    for i in 1..=10 {
        ensure!(client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?.status() == 200);
        let answer = client
            .exchange("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi")
            .await?;
        ensure!(answer.status() == 502, "{answer:?}");
        let posts = app.seen.heads().iter().filter(|h| h.word(0) == "POST").count();
        ensure!(posts == i, "{i} posts were executed {posts} times");
        if answer.head.field("connection") == Some("close") {
            client = Client::connect(mesh.to("app")?).await?;
        }
    }
    Ok(())
}

async fn an_idle_connection_that_the_app_closed_is_not_used(world: Arc<World>) -> Result<()> {
    // Says keep-alive, and closes all the same: a stale connection waits in every pool.
    let app = H1App::start(|request: h1::Request| async move {
        let seen = Arc::clone(&request.seen);
        if let Some(io) = h1::echo(request).await? {
            h1::close_and_tell(io).await?;
        }
        seen.cancelled.fetch_add(1, Ordering::SeqCst);
        Ok(None)
    })
    .await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    for i in 1..=50 {
        let answer = client
            .exchange("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi")
            .await?;
        ensure!(answer.status() == 200, "request {i}: {answer:?}");
        ensure!(app.seen.requests() == i, "request {i} arrived twice");
        // While it is not closed yet, nobody could know that it will be.
        app.seen.wait_cancelled(i).await?;
    }
    Ok(())
}

async fn a_dead_endpoint_is_passed_over(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let nobody = ports::free()?;
    let mesh = Plan::default()
        .bare_service("app", "http", &[nobody, app.addr])
        .start(&world)
        .await?;
    for _ in 0..50 {
        let answer = once(
            mesh.to("app")?,
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
        )
        .await?;
        ensure!(answer.status() == 200, "{answer:?}");
    }
    ensure!(app.seen.requests() == 50);
    Ok(())
}

async fn an_unreachable_app_makes_the_caller_try_another(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let nobody = ports::free()?;
    // The sidecar of the dead app lives: it must hand every request back.
    let mut mesh = Plan::default()
        .service("app", "http", &[nobody, app.addr])
        .start(&world)
        .await?;
    for i in 0..50 {
        let answer = once(
            mesh.to("app")?,
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
        )
        .await?;
        ensure!(answer.status() == 200, "request {i}: {answer:?}");
    }
    ensure!(app.seen.requests() == 50);
    mesh.check_well()
}

async fn an_unreachable_app_has_a_reason(world: Arc<World>) -> Result<()> {
    let nobody = ports::free()?;
    let mesh = Plan::default().service("app", "http", &[nobody]).start(&world).await?;
    let addr = mesh.to("app")?;
    let answer = get(addr, "/").await?;
    ensure!(
        answer.status() == 503 && answer.reason() == Some("app_unreachable"),
        "{answer:?}"
    );
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = client
        .exchange(request("POST", addr, "/a.B/C", &fields)?, Some(Bytes::new()))
        .await?;
    ensure!(answer.field("grpc-status") == Some("14"), "{answer:?}");
    ensure!(
        answer.field("outrigger-reason") == Some("app_unreachable"),
        "{answer:?}"
    );
    Ok(())
}

async fn killing_one_of_two_replicas_loses_only_what_it_had_read(world: Arc<World>) -> Result<()> {
    let (doomed, other) = (H1App::echo().await?, H1App::echo().await?);
    let mut mesh = Plan::default()
        .service("app", "http", &[doomed.addr, other.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let (stop, failed, passed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    const CLIENTS: usize = 16;
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (stop, failed, passed) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&passed));
        load.spawn(async move {
            let mut client = Client::connect(addr).await?;
            while !stop.load(Ordering::SeqCst) {
                match client.exchange("GET /load HTTP/1.1\r\nHost: h\r\n\r\n").await {
                    Ok(answer) if answer.status() == 200 && answer.body.complete => {
                        passed.fetch_add(1, Ordering::SeqCst);
                    }
                    _ => {
                        failed.fetch_add(1, Ordering::SeqCst);
                        client = Client::connect(addr).await?;
                    }
                }
            }
            anyhow::Ok(())
        });
    }
    wait::until("both replicas work", || async {
        doomed.seen.requests() > 200 && other.seen.requests() > 200
    })
    .await?;
    doomed.die().await?;
    let before = passed.load(Ordering::SeqCst);
    wait::until("the load goes on", || async {
        passed.load(Ordering::SeqCst) > before + 500
    })
    .await?;
    stop.store(true, Ordering::SeqCst);
    while let Some(done) = load.join_next().await {
        done??;
    }
    let read = doomed.seen.requests() + other.seen.requests() + doomed.seen.unread.load(Ordering::SeqCst);
    let (failed, passed) = (failed.load(Ordering::SeqCst), passed.load(Ordering::SeqCst));
    ensure!(read >= passed, "answers without requests");
    ensure!(
        failed <= read - passed,
        "{failed} failed, but the apps had read only {} that got no answer",
        read - passed
    );
    // One a connection of load: what came afterwards went elsewhere.
    ensure!(failed <= CLIENTS, "{failed} failed of {CLIENTS} at a time");
    outrigger_tests::world::figure(format!(
        "kill of one of two replicas under load: {failed} failed of {}",
        failed + passed
    ));
    mesh.check_well()
}

async fn a_service_unknown_to_the_mesh_has_an_answer(world: Arc<World>) -> Result<()> {
    let mesh = Plan::default().ghost("ghost").start(&world).await?;
    let addr = mesh.to("ghost")?;
    let answer = get(addr, "/").await?;
    ensure!(
        answer.status() == 404 && answer.reason() == Some("unknown_service"),
        "{answer:?}"
    );
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = client
        .exchange(request("POST", addr, "/a.B/C", &fields)?, Some(Bytes::new()))
        .await?;
    ensure!(
        answer.head.status() == 200 && answer.field("grpc-status") == Some("12"),
        "{answer:?}"
    );
    ensure!(
        answer.field("grpc-message").is_some_and(|m| m.contains("ghost")),
        "{answer:?}"
    );
    Ok(())
}

async fn a_service_without_endpoints_has_an_answer(world: Arc<World>) -> Result<()> {
    let mesh = Plan::default().service("empty", "http", &[]).start(&world).await?;
    let answer = get(mesh.to("empty")?, "/").await?;
    ensure!(
        answer.status() == 503 && answer.reason() == Some("no_endpoints"),
        "{answer:?}"
    );
    Ok(())
}

async fn a_silent_app_meets_the_deadline(world: Arc<World>) -> Result<()> {
    let app = H1App::silent().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        // Long enough for connections and handshakes on a busy machine: the app is to be reached.
        .timeout_ms(3000)
        .start(&world)
        .await?;
    let answer = get(mesh.to("app")?, "/").await?;
    ensure!(
        answer.status() == 504 && answer.reason() == Some("deadline"),
        "{answer:?}"
    );
    app.seen.wait_cancelled(1).await
}

async fn grpc_timeout_is_honoured_and_shortened(world: Arc<World>) -> Result<()> {
    let app = H2App::silent().await?;
    let mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .timeout_ms(60_000)
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let fields = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        // Long enough for connections and handshakes on a busy machine: the app is to be reached.
        ("grpc-timeout", "3S"),
    ];
    let answer = client
        .exchange(request("POST", addr, "/a.B/C", &fields)?, Some(Bytes::new()))
        .await?;
    ensure!(answer.field("grpc-status") == Some("4"), "{answer:?}");
    let heads = app.seen.heads();
    let head = heads.first().context("the app was not reached")?;
    let left = head.field("grpc-timeout").map(in_milliseconds).unwrap_or_default();
    ensure!(
        left > 0.0 && left <= 3000.0,
        "the app was told {:?}",
        head.field("grpc-timeout")
    );
    Ok(())
}

/// `grpc-timeout` in milliseconds (gRPC over HTTP/2, "Timeout").
fn in_milliseconds(text: &str) -> f64 {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let factor = match unit {
        "H" => 3_600_000.0,
        "M" => 60_000.0,
        "S" => 1000.0,
        "m" => 1.0,
        "u" => 0.001,
        "n" => 0.000_001,
        _ => 0.0,
    };
    number.parse::<f64>().unwrap_or_default() * factor
}

async fn an_answer_that_is_not_http_has_a_reason(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::fixed("SSH-2.0-OpenSSH_9.2\r\n\r\n")).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let answer = get(mesh.to("app")?, "/").await?;
    ensure!(answer.status() == 502 && answer.reason().is_some(), "{answer:?}");
    mesh.check_well()
}
