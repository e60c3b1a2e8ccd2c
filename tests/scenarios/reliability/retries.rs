//! What is tried again, when, how often, and by whom no more.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, Fixed, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{self};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::Plan;
use outrigger_tests::over_both;
use tokio::io::AsyncWriteExt as _;

use super::{metric, obedient, policy, retries, told};

pub(super) fn tests() -> Vec<Trial> {
    over_both![
        a_post_is_never_repeated_after_its_first_byte,
        what_the_app_calls_idempotent_is_repeated,
        a_get_is_tried_again_elsewhere,
        a_body_that_is_too_long_is_not_sent_twice,
        the_budget_bounds_a_storm,
        retry_after_is_obeyed,
        pushback_is_obeyed,
        the_last_word_stops_the_chain
    ]
}

async fn a_post_is_never_repeated_after_its_first_byte(world: Arc<World>) -> Result<()> {
    let apps = [
        H1App::start(h1::execute_then_reset).await?,
        H1App::start(h1::execute_then_reset).await?,
    ];
    let mut mesh = Plan::default()
        .service("app", "http", &[apps[0].addr, apps[1].addr])
        .policy(retries(5))
        .start(&world)
        .await?;
    let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none";
    let answer = client::once(mesh.to("app")?, post).await?;
    ensure!(
        answer.status() == 502 && answer.reason() == Some("upstream_reset"),
        "{answer:?}"
    );
    ensure!(apps[0].seen.requests() + apps[1].seen.requests() == 1);
    mesh.check_well()
}

async fn what_the_app_calls_idempotent_is_repeated(world: Arc<World>) -> Result<()> {
    let apps = [
        H1App::start(h1::execute_then_reset).await?,
        H1App::start(h1::execute_then_reset).await?,
    ];
    let mut mesh = Plan::default()
        .service("app", "http", &[apps[0].addr, apps[1].addr])
        .policy(retries(4))
        .policy(|service| policy(service).idempotent = true)
        .start(&world)
        .await?;
    let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none";
    let answer = client::once(mesh.to("app")?, post).await?;
    ensure!(answer.status() == 502, "{answer:?}");
    ensure!(answer.head.field("outrigger-final") == Some("retried"), "{answer:?}");
    let seen = [apps[0].seen.requests(), apps[1].seen.requests()];
    ensure!(seen == [2, 2] || seen == [1, 3] || seen == [3, 1], "{seen:?}");
    mesh.check_well()
}

async fn a_get_is_tried_again_elsewhere(world: Arc<World>) -> Result<()> {
    let (bad, good) = (told(503), told(200));
    let apps = [
        H1App::start(obedient(&bad)).await?,
        H1App::start(obedient(&good)).await?,
    ];
    let mut mesh = Plan::default()
        .service("app", "http", &[apps[0].addr, apps[1].addr])
        .policy(retries(2))
        .start(&world)
        .await?;
    for _ in 0..20 {
        client::get_ok(mesh.to("app")?, "/").await?;
    }
    ensure!(apps[1].seen.requests() == 20, "each once: {}", apps[1].seen.requests());
    ensure!(apps[0].seen.requests() > 0, "the failing one was never asked");
    let text = mesh.caller.metrics().await?;
    let again = format!(
        "outrigger_retries_total{{service=\"default/app\",class=\"maybe_processed\",result=\"well\"}} {}",
        apps[0].seen.requests()
    );
    ensure!(text.contains(&again), "{again}\n{text}");
    // The app is told which try it is.
    let seconds = apps[1]
        .seen
        .heads()
        .iter()
        .filter(|h| h.field("outrigger-attempt") == Some("2"))
        .count();
    ensure!(seconds == apps[0].seen.requests(), "{seconds}");
    mesh.check_well()
}

async fn a_body_that_is_too_long_is_not_sent_twice(world: Arc<World>) -> Result<()> {
    let bad = told(503);
    let apps = [H1App::start(obedient(&bad)).await?, H1App::start(obedient(&bad)).await?];
    let mut mesh = Plan::default()
        .service("app", "http", &[apps[0].addr, apps[1].addr])
        .policy(retries(2))
        .start(&world)
        .await?;
    for (length, expected) in [(60_000, 2), (70_000, 3)] {
        let put = format!(
            "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{}",
            "x".repeat(length)
        );
        let answer = client::once(mesh.to("app")?, &put).await?;
        ensure!(answer.status() == 503 && answer.reason().is_none(), "{answer:?}");
        let seen = apps[0].seen.requests() + apps[1].seen.requests();
        ensure!(seen == expected, "{seen} after {length} bytes");
    }
    mesh.check_well()
}

async fn the_budget_bounds_a_storm(world: Arc<World>) -> Result<()> {
    const REQUESTS: usize = 200;
    let bad = told(503);
    let apps = [H1App::start(obedient(&bad)).await?, H1App::start(obedient(&bad)).await?];
    let mut mesh = Plan::default()
        .service("app", "http", &[apps[0].addr, apps[1].addr])
        .policy(retries(5))
        .policy(|service| {
            service.retry_budget = Some(wire::RetryBudget {
                percent: 20,
                min_per_second: 1,
            });
        })
        .workers(4)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut last_words = 0;
    for _ in 0..REQUESTS {
        let answer = client::get(to, "/").await?;
        ensure!(answer.status() == 503, "{answer:?}");
        last_words += usize::from(answer.head.field("outrigger-final") == Some("budget"));
    }
    let seen = apps[0].seen.requests() + apps[1].seen.requests();
    ensure!(seen <= REQUESTS * 12 / 10 + 10, "{seen} requests for {REQUESTS}");
    ensure!(seen > REQUESTS, "none was tried again");
    ensure!(last_words > 0 && metric(&mesh, "outrigger_retries_unaffordable_total", "app").await? > 0);
    mesh.check_well()
}

async fn retry_after_is_obeyed(world: Arc<World>) -> Result<()> {
    let first = "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    let late = "HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n";
    let busy = H1App::start(h1::fixed(first)).await?;
    let lazy = H1App::start(h1::fixed(late)).await?;
    let mut mesh = Plan::default()
        .service("busy", "http", &[busy.addr])
        .policy(retries(2))
        .service("lazy", "http", &[lazy.addr])
        .timeout_ms(5_000)
        .policy(retries(2))
        .start(&world)
        .await?;
    let start = Instant::now();
    let answer = client::get(mesh.to("busy")?, "/").await?;
    ensure!(
        answer.status() == 503 && start.elapsed() >= Duration::from_secs(1),
        "{answer:?}"
    );
    ensure!(busy.seen.requests() == 2);
    // Later than the deadline: the answer at once.
    let start = Instant::now();
    let answer = client::get(mesh.to("lazy")?, "/").await?;
    ensure!(
        answer.status() == 503 && start.elapsed() < Duration::from_secs(4),
        "{answer:?}"
    );
    ensure!(lazy.seen.requests() == 1);
    mesh.check_well()
}

async fn pushback_is_obeyed(world: Arc<World>) -> Result<()> {
    let app = H2App::start(|request, _| async move {
        let pushback = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let answer = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14")
            .header("grpc-retry-pushback-ms", pushback);
        let body = http_body_util::Empty::<Bytes>::new()
            .map_err(|never| match never {})
            .boxed();
        answer.body(body).expect("a head")
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .policy(retries(2))
        .policy(|service| policy(service).idempotent = true)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    for (pushback, expected, least) in [("-1", 1, 0), ("300", 3, 300)] {
        let start = Instant::now();
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        let request = request("POST", to, &format!("/blog.Post/{pushback}"), &grpc)?;
        let answer = client.exchange(request, Some(Bytes::from_static(&[0; 5]))).await?;
        ensure!(answer.field("grpc-status") == Some("14"), "{answer:?}");
        ensure!(app.seen.requests() == expected, "{pushback}: {}", app.seen.requests());
        ensure!(start.elapsed() >= Duration::from_millis(least), "{pushback}");
    }
    mesh.check_well()
}

/// Calls `back` and passes its status on, and its last word.
fn middle(back: &Arc<OnceLock<SocketAddr>>) -> impl Fn(h1::Request) -> Fixed + Clone + Send + Sync + 'static {
    let back = back.clone();
    move |mut request| {
        let back = back.clone();
        Box::pin(async move {
            outrigger_tests::http1::read_request_body(&mut request.io, &request.head).await?;
            let answer = client::get(*back.get().context("no back yet")?, "/").await?;
            let word = answer
                .head
                .field("outrigger-final")
                .map(|w| format!("outrigger-final: {w}\r\n"));
            let answer = format!(
                "HTTP/1.1 {} Passed On\r\n{}Content-Length: 0\r\n\r\n",
                answer.status(),
                word.unwrap_or_default()
            );
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
    }
}

async fn the_last_word_stops_the_chain(world: Arc<World>) -> Result<()> {
    let (address, bad) = (Arc::new(OnceLock::new()), told(503));
    let front = H1App::start(middle(&address)).await?;
    let back = H1App::start(obedient(&bad)).await?;
    let mut mesh = Plan::default()
        .service("front", "http", &[front.addr])
        .policy(retries(3))
        .service("back", "http", &[back.addr])
        .policy(retries(3))
        .start(&world)
        .await?;
    address.get_or_init(|| mesh.to("back").expect("a service of the plan"));
    let answer = client::get(mesh.to("front")?, "/").await?;
    ensure!(
        answer.status() == 503 && answer.head.field("outrigger-final") == Some("retried"),
        "{answer:?}"
    );
    let seen = (front.seen.requests(), back.seen.requests());
    ensure!(seen == (1, 3), "{seen:?}");
    mesh.check_well()
}
