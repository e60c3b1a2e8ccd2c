//! Retries, time-outs, breaker, ejection, bounds and hedging of the caller's sidecar, against apps that fail on command.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use libtest_mimic::Trial;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, Fixed, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{self, Client};
use outrigger_tests::control_script::{Script, resource, response};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::{Mesh, PORT, Plan, start};
use outrigger_tests::{over_both, ports, scenarios, wait};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        a_post_is_never_repeated_after_its_first_byte,
        what_the_app_calls_idempotent_is_repeated,
        a_get_is_tried_again_elsewhere,
        a_body_that_is_too_long_is_not_sent_twice,
        the_budget_bounds_a_storm,
        retry_after_is_obeyed,
        pushback_is_obeyed,
        the_last_word_stops_the_chain,
        one_try_and_all_of_them_end_in_time,
        an_idle_stream_ends,
        what_is_left_of_the_time_is_told,
        the_breaker_opens_probes_and_closes,
        an_endpoint_that_fails_is_ejected_and_returns,
        no_more_than_a_share_is_ejected,
        bounds_are_exact,
        a_hedge_is_sent_once_and_the_loser_is_cancelled,
    ];
    tests.extend(scenarios![a_policy_change_under_load_fails_no_request]);
    tests
}

/// Answers with the status that `command` holds at the moment.
fn obedient(command: &Arc<AtomicUsize>) -> impl Fn(h1::Request) -> Fixed + Clone + Send + Sync + 'static {
    let command = command.clone();
    move |mut request| {
        let command = command.clone();
        Box::pin(async move {
            outrigger_tests::http1::read_request_body(&mut request.io, &request.head).await?;
            let status = command.load(SeqCst);
            let answer = format!("HTTP/1.1 {status} As Told\r\nContent-Length: 2\r\n\r\nok");
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
    }
}

fn told(status: usize) -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(status))
}

fn policy(service: &mut wire::Service) -> &mut wire::Policy {
    // Tests of one thing: nothing is ejected unless a test says so.
    service.outlier.get_or_insert_with(|| wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
    service.policy.get_or_insert_default()
}

fn retries(attempts: u32) -> impl FnOnce(&mut wire::Service) + Send + 'static {
    move |service| {
        policy(service).retry = Some(wire::Retry {
            attempts,
            backoff_ms: 1,
            ..wire::Retry::default()
        });
    }
}

/// The value of a metric of `service`.
async fn metric(mesh: &Mesh, name: &str, service: &str) -> Result<u64> {
    let start = format!("{name}{{service=\"default/{service}\"}} ");
    let text = mesh.caller.metrics().await?;
    let line = text.lines().find_map(|l| l.strip_prefix(&start));
    Ok(line.with_context(|| format!("no {start}"))?.parse()?)
}

async fn logged(mesh: &Mesh, text: &str) -> Result<()> {
    wait::until(&format!("the log says {text}"), || async {
        mesh.caller.process.output().contains(text)
    })
    .await
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

async fn the_breaker_opens_probes_and_closes(world: Arc<World>) -> Result<()> {
    for workers in [1, 4] {
        let status = told(500);
        let app = H1App::start(obedient(&status)).await?;
        let mut mesh = Plan::default()
            .service("app", "http", &[app.addr])
            .policy(|service| {
                policy(service);
                service.breaker = Some(wire::Breaker {
                    trip: Some(wire::Trip {
                        consecutive: 5,
                        ..wire::Trip::default()
                    }),
                    cooldown_ms: 1_000,
                    max_cooldown_ms: 1_000,
                    probes: 2,
                });
            })
            .workers(workers)
            .start(&world)
            .await?;
        let to = mesh.to("app")?;
        for i in 0..8 {
            // A connection each: they spread over the workers.
            let answer = client::get(to, "/").await?;
            match i {
                0..5 => ensure!(answer.status() == 500, "{i}: {answer:?}"),
                _ => {
                    ensure!(answer.reason() == Some("breaker_open"), "{i}: {answer:?}");
                    ensure!(answer.head.field("retry-after").is_some(), "{answer:?}");
                }
            }
        }
        ensure!(
            app.seen.requests() == 5,
            "{} with {workers} workers",
            app.seen.requests()
        );
        ensure!(metric(&mesh, "outrigger_breaker_state", "app").await? == 2);
        logged(&mesh, "breaker opened").await?;
        // A probe that fails opens it again.
        wait::until("a probe", || async {
            client::get(to, "/").await.is_ok_and(|a| a.status() == 500)
        })
        .await?;
        ensure!(app.seen.requests() == 6);
        let answer = client::get(to, "/").await?;
        ensure!(answer.reason() == Some("breaker_open"), "{answer:?}");
        status.store(200, SeqCst);
        wait::until("two probes that are well", || async {
            drop(client::get(to, "/").await);
            metric(&mesh, "outrigger_breaker_state", "app")
                .await
                .is_ok_and(|s| s == 0)
        })
        .await?;
        ensure!(app.seen.requests() >= 8);
        for _ in 0..10 {
            client::get_ok(to, "/").await?;
        }
        logged(&mesh, "breaker closed").await?;
        mesh.check_well()?;
    }
    Ok(())
}

fn ejecting(consecutive: u32, ejection_ms: u32) -> impl FnOnce(&mut wire::Service) + Send + 'static {
    move |service| {
        // Each gets its share, however slow its first handshake was.
        service.balance = wire::Balance::RoundRobin as i32;
        service.outlier = Some(wire::Outlier {
            trip: Some(wire::Trip {
                consecutive,
                ..wire::Trip::default()
            }),
            ejection_ms,
            ..wire::Outlier::default()
        });
    }
}

async fn an_endpoint_that_fails_is_ejected_and_returns(world: Arc<World>) -> Result<()> {
    for workers in [1, 4] {
        let (bad, good) = (told(500), told(200));
        let apps = [
            H1App::start(obedient(&bad)).await?,
            H1App::start(obedient(&good)).await?,
            H1App::start(obedient(&good)).await?,
        ];
        let mut mesh = Plan::default()
            .service("app", "http", &apps.each_ref().map(|a| a.addr))
            .policy(ejecting(3, 3_000))
            .workers(workers)
            .start(&world)
            .await?;
        let to = mesh.to("app")?;
        wait::until("an endpoint is ejected", || async {
            drop(client::get(to, "/").await);
            metric(&mesh, "outrigger_ejected_endpoints", "app")
                .await
                .is_ok_and(|n| n == 1)
        })
        .await?;
        let ejected = Instant::now();
        ensure!(
            apps[0].seen.requests() == 3,
            "{} with {workers} workers",
            apps[0].seen.requests()
        );
        logged(&mesh, "endpoint ejected").await?;
        // Workers count anew who is well every 10 ms.
        for _ in 0..20 {
            let answer = client::get(to, "/").await?;
            ensure!(
                answer.status() == 200 || ejected.elapsed() > Duration::from_secs(2),
                "{answer:?}"
            );
        }
        bad.store(200, SeqCst);
        wait::until("it gets requests again", || async {
            drop(client::get(to, "/").await);
            apps[0].seen.requests() > 3
        })
        .await?;
        ensure!(ejected.elapsed() > Duration::from_secs(2), "too early");
        logged(&mesh, "endpoint is used again").await?;
        mesh.check_well()?;
    }
    Ok(())
}

async fn no_more_than_a_share_is_ejected(world: Arc<World>) -> Result<()> {
    let bad = told(500);
    let apps = [
        H1App::start(obedient(&bad)).await?,
        H1App::start(obedient(&bad)).await?,
        H1App::start(obedient(&bad)).await?,
    ];
    let mut mesh = Plan::default()
        .service("app", "http", &apps.each_ref().map(|a| a.addr))
        .policy(ejecting(2, 60_000))
        .workers(4)
        .start(&world)
        .await?;
    for _ in 0..60 {
        let answer = client::get(mesh.to("app")?, "/").await?;
        ensure!(answer.status() == 500 && answer.reason().is_none(), "{answer:?}");
        ensure!(metric(&mesh, "outrigger_ejected_endpoints", "app").await? <= 1);
    }
    ensure!(
        metric(&mesh, "outrigger_ejected_endpoints", "app").await? == 1,
        "nobody was ejected"
    );
    mesh.check_well()
}

async fn bounds_are_exact(world: Arc<World>) -> Result<()> {
    const PLACES: usize = 5;
    const PENDING: usize = 3;
    const ALL: usize = 12;
    let app = H1App::silent().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .policy(|service| {
            policy(service).queue_timeout_ms = 2_000;
            service.concurrency = Some(wire::Concurrency {
                requests: 5,
                pending: 3,
                ..wire::Concurrency::default()
            });
        })
        .workers(4)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut clients = Vec::new();
    for _ in 0..PLACES {
        let mut client = Client::connect(to).await?;
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
        clients.push(client);
    }
    app.seen.wait_requests(PLACES).await?;
    let mut others = JoinSet::new();
    for _ in PLACES..ALL {
        others.spawn(async move { client::get(to, "/").await });
    }
    let mut reasons = Vec::new();
    while let Some(answer) = others.join_next().await {
        let answer = answer??;
        ensure!(answer.head.field("outrigger-final") == Some("shed"), "{answer:?}");
        reasons.push(answer.reason().unwrap_or_default().to_owned());
    }
    let full = reasons.iter().filter(|r| *r == "pending_full").count();
    let late = reasons.iter().filter(|r| *r == "queue_timeout").count();
    ensure!((full, late) == (ALL - PLACES - PENDING, PENDING), "{reasons:?}");
    ensure!(app.seen.requests() == PLACES, "{}", app.seen.requests());
    // A place that comes free goes to whoever waits.
    let waiting = tokio::spawn(async move { client::get(to, "/").await });
    wait::until("one waits", || async {
        metric(&mesh, "outrigger_pending_requests", "app")
            .await
            .is_ok_and(|n| n == 1)
    })
    .await?;
    clients.pop().context("a client")?.close()?;
    app.seen.wait_requests(PLACES + 1).await?;
    waiting.abort();
    mesh.check_well()
}

async fn a_hedge_is_sent_once_and_the_loser_is_cancelled(world: Arc<World>) -> Result<()> {
    let good = told(200);
    let (slow, quick) = (H1App::silent().await?, H1App::start(obedient(&good)).await?);
    let mut mesh = Plan::default()
        .service("app", "http", &[slow.addr, quick.addr])
        .policy(|service| {
            policy(service).idempotent = true;
            policy(service).hedge = Some(wire::Hedge { after_ms: 50 });
            service.balance = wire::Balance::RoundRobin as i32;
        })
        .start(&world)
        .await?;
    let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none";
    for _ in 0..10 {
        let answer = client::once(mesh.to("app")?, post).await?;
        ensure!(answer.status() == 200, "{answer:?}");
    }
    ensure!(slow.seen.requests() > 0, "the slow one was never asked");
    ensure!(quick.seen.requests() == 10, "{}", quick.seen.requests());
    slow.seen.wait_cancelled(slow.seen.requests()).await?;
    let hedges = metric(&mesh, "outrigger_hedges_total", "app").await?;
    ensure!(usize::try_from(hedges)? == slow.seen.requests(), "{hedges}");
    ensure!(metric(&mesh, "outrigger_hedges_won_total", "app").await? == hedges);
    mesh.check_well()
}

/// One policy after another, each with other bounds, breakers and time-outs.
fn changing(i: u32) -> wire::Service {
    let mut service = wire::Service {
        name: "default/app".to_owned(),
        ports: vec![wire::Port {
            name: PORT.to_owned(),
            protocol: wire::Protocol::Http as i32,
        }],
        ..wire::Service::default()
    };
    policy(&mut service).queue_timeout_ms = 15_000;
    policy(&mut service).per_try_timeout_ms = 15_000 * (i % 2);
    if !i.is_multiple_of(3) {
        retries(1 + i % 3)(&mut service);
        service.concurrency = Some(wire::Concurrency {
            requests: 1 + i % 4,
            ..wire::Concurrency::default()
        });
    }
    if i.is_multiple_of(2) {
        service.breaker = Some(wire::Breaker {
            trip: Some(wire::Trip {
                consecutive: 1 + i % 5,
                rate_percent: 50,
                ..wire::Trip::default()
            }),
            ..wire::Breaker::default()
        });
    }
    service
}

async fn a_policy_change_under_load_fails_no_request(world: Arc<World>) -> Result<()> {
    const CHANGES: u32 = 40;
    let good = told(200);
    let app = H1App::start(obedient(&good)).await?;
    let at = app.addr;
    let script = Script::start(move |request| {
        let kind = ResourceType::from_url(&request.type_url);
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for name in &request.resource_names_subscribe {
            match (kind, name.as_str()) {
                (Some(ResourceType::Service), "default/app") => {
                    resources.push(resource(&request.type_url, name, "0", &changing(0)));
                }
                (Some(ResourceType::Endpoint), "default/app/*") => {
                    let endpoint = wire::Endpoint {
                        name: "default/app/app-0".to_owned(),
                        address: at.ip().to_string(),
                        ports: vec![wire::EndpointPort {
                            name: PORT.to_owned(),
                            port: u32::from(at.port()),
                            mesh_port: 0,
                        }],
                        epoch: 1,
                        ..wire::Endpoint::default()
                    };
                    resources.push(resource(&request.type_url, &endpoint.name, "0", &endpoint));
                }
                _ => removed.push(name.as_str()),
            }
        }
        match resources.is_empty() && removed.is_empty() {
            true => Vec::new(),
            false => vec![response(&request.type_url, &request.type_url, resources, &removed)],
        }
    })
    .await?;
    let listen = ports::free()?;
    let config = serde_json::json!({
        "service": "caller",
        "instance": "caller-0",
        "admin": ports::free()?,
        "workers": 4,
        "control_plane": format!("http://{}", script.addr),
        "outbound": [{"service": "app", "listen": listen}],
    });
    let mut caller = start(&world, "caller", config, listen, false)?;
    caller.ready().await?;
    wait::until("a request is answered", || async {
        client::get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    let done = Arc::new(AtomicUsize::new(0));
    let mut load = JoinSet::new();
    for _ in 0..8 {
        let done = done.clone();
        load.spawn(async move {
            let mut client = Client::connect(listen).await?;
            let mut answered = 0;
            while done.load(SeqCst) == 0 {
                let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
                ensure!(answer.status() == 200, "{answer:?}");
                answered += 1;
            }
            Ok::<usize, anyhow::Error>(answered)
        });
    }
    for i in 1..=CHANGES {
        let (url, nonce) = (ResourceType::Service.url(), format!("change-{i}"));
        let changed = resource(url, "default/app", &nonce, &changing(i));
        script.push(response(url, &nonce, vec![changed], &[])).await?;
        let verdict = script.verdict(&nonce).await?;
        ensure!(verdict.error_detail.is_none(), "{verdict:?}");
        let seen = app.seen.requests();
        wait::until("requests go on", || async { app.seen.requests() > seen + 16 }).await?;
    }
    done.store(1, SeqCst);
    let mut answered = 0;
    while let Some(client) = load.join_next().await {
        answered += client??;
    }
    ensure!(
        answered + 1 == app.seen.requests(),
        "{answered} of {}",
        app.seen.requests()
    );
    caller.check_well()
}
