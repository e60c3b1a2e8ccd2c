//! What an app is spared: rate limits, a limit of requests in flight, a queue by importance.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{Client, once};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::Plan;
use outrigger_tests::{over_both, wait};
use serde_json::json;
use tokio::sync::Semaphore;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        a_rate_limit_lets_the_burst_and_the_rate_through,
        a_rate_limit_by_header_or_caller_has_a_bucket_for_each,
        a_grpc_call_over_the_rate_hears_it_in_grpc,
        the_more_important_goes_first_and_the_least_is_shed,
        an_overloaded_app_answers_what_it_can,
    ]
}

async fn get(addr: SocketAddr, path: &str, field: &str) -> Result<outrigger_tests::client::Answer> {
    once(
        addr,
        &format!("GET {path} HTTP/1.1\r\nHost: h\r\n{field}Connection: close\r\n\r\n"),
    )
    .await
}

async fn a_rate_limit_lets_the_burst_and_the_rate_through(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let limit = json!({"name": "few", "requests": 100, "period_ms": 1000, "burst": 10, "all": true});
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"rate_limits": [limit]}))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let (begin, mut passed, mut refused) = (Instant::now(), 0_u32, 0_u32);
    while begin.elapsed() < Duration::from_secs(3) {
        let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
        match answer.status() {
            200 => passed += 1,
            429 => {
                refused += 1;
                ensure!(answer.reason() == Some("rate_limited"), "{answer:?}");
                ensure!(answer.head.field("retry-after") == Some("1"), "{answer:?}");
            }
            _ => anyhow::bail!("{answer:?}"),
        }
    }
    let most = 10.0 + begin.elapsed().as_secs_f64() * 100.0;
    ensure!(f64::from(passed) <= most, "{passed} passed, at most {most}");
    // One client on a busy machine may be slower than the rate, but then nothing is refused.
    ensure!(
        refused > 0 && f64::from(passed) > most * 0.8,
        "{passed} of {most}, {refused} refused"
    );
    ensure!(
        app.seen.requests() == passed as usize,
        "the app saw {}",
        app.seen.requests()
    );
    Ok(())
}

async fn a_rate_limit_by_header_or_caller_has_a_bucket_for_each(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let hour = 3_600_000;
    let limits = json!([
        {"name": "user", "requests": 2, "period_ms": hour, "burst": 2, "header": "x-user"},
        {"name": "caller", "requests": 5, "period_ms": hour, "burst": 5, "caller": true},
    ]);
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({ "rate_limits": limits }))
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut statuses = Vec::new();
    for user in ["a", "a", "a", "b", "b", "b", "c", "d"] {
        statuses.push(get(to, "/", &format!("X-User: {user}\r\n")).await?.status());
    }
    // What the first limit refuses the second does not count; the second is the caller's.
    ensure!(statuses == [200, 200, 429, 200, 200, 429, 200, 429], "{statuses:?}");
    let page = mesh.inbound("app", 0)?.metrics().await?;
    for line in [
        "outrigger_rate_limited_total{limit=\"user\"} 2",
        "outrigger_rate_limited_total{limit=\"caller\"} 1",
    ] {
        ensure!(page.contains(line), "no {line} in\n{page}");
    }
    mesh.check_well()
}

async fn a_grpc_call_over_the_rate_hears_it_in_grpc(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let limit = json!({"name": "few", "requests": 1, "period_ms": 3_600_000, "burst": 1, "all": true});
    let mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .inbound(json!({"rate_limits": [limit]}))
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    let call = || {
        request(
            "POST",
            to,
            "/a.B/C",
            &[("content-type", "application/grpc"), ("te", "trailers")],
        )
    };
    client.exchange(call()?, None).await?;
    let answer = client.exchange(call()?, None).await?;
    ensure!(answer.field("grpc-status") == Some("8"), "{answer:?}");
    ensure!(answer.field("outrigger-reason") == Some("rate_limited"), "{answer:?}");
    ensure!(answer.field("retry-after").is_some(), "{answer:?}");
    Ok(())
}

async fn the_more_important_goes_first_and_the_least_is_shed(world: Arc<World>) -> Result<()> {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let app = H1App::start(move |request: h1::Request| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await?.forget();
            h1::echo(request).await
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({
            "admission": {"fixed": 1, "queue_ms": 15_000, "queue": 2},
            "priorities": [
                {"matches": [{"prefix": "/low"}], "priority": 1},
                {"matches": [{"prefix": "/high"}], "priority": 3},
            ],
        }))
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let sidecar = mesh.inbound("app", 0)?;
    let send = async |path: &str| -> Result<Client> {
        let mut client = Client::connect(to).await?;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await?;
        Ok(client)
    };
    let queued = async |n: u32| {
        let line = format!("outrigger_admission_queued {n}");
        wait::until(&line, || async {
            sidecar.metrics().await.is_ok_and(|p| p.contains(&line))
        })
        .await
    };
    let mut first = send("/first").await?;
    app.seen.wait_requests(1).await?;
    let mut low = send("/low").await?;
    queued(1).await?;
    let mut normal = send("/normal").await?;
    queued(2).await?;
    let mut high = send("/high").await?;
    let shed = low.answer("GET").await?;
    ensure!(shed.status() == 503 && shed.reason() == Some("overloaded"), "{shed:?}");
    ensure!(shed.head.field("retry-after") == Some("1"), "{shed:?}");
    ensure!(shed.head.field("outrigger-final") == Some("shed"), "{shed:?}");
    gate.add_permits(2);
    ensure!(first.answer("GET").await?.status() == 200);
    ensure!(high.answer("GET").await?.status() == 200);
    // The normal one is at the app now; who goes away leaves nothing behind.
    app.seen.wait_requests(3).await?;
    let going = send("/going").await?;
    queued(1).await?;
    going.close()?;
    queued(0).await?;
    gate.add_permits(1);
    ensure!(normal.answer("GET").await?.status() == 200);
    mesh.check_well()
}

/// An app of four places and 10 ms.
#[derive(Debug)]
struct Kitchen {
    places: Semaphore,
    inside: AtomicU32,
    most: AtomicU32,
    busy_us: AtomicU64,
}

async fn an_overloaded_app_answers_what_it_can(world: Arc<World>) -> Result<()> {
    let kitchen = Arc::new(Kitchen {
        places: Semaphore::new(4),
        inside: AtomicU32::new(0),
        most: AtomicU32::new(0),
        busy_us: AtomicU64::new(0),
    });
    let cooks = Arc::clone(&kitchen);
    let app = H1App::start(move |request: h1::Request| {
        let kitchen = Arc::clone(&cooks);
        async move {
            let now = kitchen.inside.fetch_add(1, SeqCst) + 1;
            kitchen.most.fetch_max(now, SeqCst);
            let place = kitchen.places.acquire().await?;
            let begin = Instant::now();
            tokio::time::sleep(Duration::from_millis(10)).await;
            let took = u64::try_from(begin.elapsed().as_micros())?;
            kitchen.busy_us.fetch_add(took, SeqCst);
            drop(place);
            kitchen.inside.fetch_sub(1, SeqCst);
            h1::echo(request).await
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"admission": {"gradient": true}}))
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let (good, shed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let end = Instant::now() + Duration::from_secs(14);
    let mut clients = tokio::task::JoinSet::new();
    // Each asks every 40 ms: 1,200 a second, where 400 can be answered.
    for n in 0..48_u64 {
        let (good, shed) = (Arc::clone(&good), Arc::clone(&shed));
        clients.spawn(async move {
            let mut client = Client::connect(to).await?;
            let mut ticks = tokio::time::interval(Duration::from_millis(40 + n % 5));
            while Instant::now() < end {
                ticks.tick().await;
                let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
                match answer.status() {
                    200 => good.fetch_add(1, SeqCst),
                    503 => shed.fetch_add(1, SeqCst),
                    _ => anyhow::bail!("{answer:?}"),
                };
            }
            anyhow::Ok(())
        });
    }
    let begin = Instant::now();
    wait::until("the limit is found", || async {
        begin.elapsed() > Duration::from_secs(8)
    })
    .await?;
    kitchen.most.store(0, SeqCst);
    let (from, good_then, busy_then) = (Instant::now(), good.load(SeqCst), kitchen.busy_us.load(SeqCst));
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let (took, answered) = (from.elapsed().as_secs_f64(), good.load(SeqCst) - good_then);
    let busy = (kitchen.busy_us.load(SeqCst) - busy_then) as f64 / 1e6;
    let most = kitchen.most.load(SeqCst);
    // What four places can do with requests that take as long as they did.
    let capacity = took * 4.0 / (busy / f64::from(answered.max(1)));
    let share = f64::from(answered) / capacity;
    let page = mesh.inbound("app", 0)?.metrics().await?;
    let limit = page.lines().find(|l| l.starts_with("outrigger_admission_limit "));
    println!(
        "figure: overload: {answered} of {capacity:.0} answered ({:.1} %), {} shed, at most {most} at the app, {}",
        share * 100.0,
        shed.load(SeqCst),
        limit.context("a limit")?
    );
    ensure!(share >= 0.9, "{share}");
    ensure!(most <= 20, "{most} at the app");
    ensure!(shed.load(SeqCst) > 0, "nothing was shed");
    mesh.check_well()
}
