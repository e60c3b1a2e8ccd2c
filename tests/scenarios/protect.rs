//! What an app is spared: rate limits, a limit of requests in flight, a queue by importance.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
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
    let limit = json!({"name": "few", "requests": 20, "period_ms": 1000, "burst": 10, "by": {"all": true}});
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"rate_limits": [limit]}))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let (begin, mut passed, mut refused) = (Instant::now(), 0_u32, 0_u32);
    // Until some were refused and what they waited for has come: the burst, and a few of the rate.
    while passed < 30 || refused == 0 {
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
        // However slow this machine is, no more passes than the time since the first allows.
        let most = 10.0 + begin.elapsed().as_secs_f64() * 20.0;
        ensure!(f64::from(passed) <= most, "{passed} passed, at most {most}");
    }
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
        {"name": "user", "requests": 2, "period_ms": hour, "burst": 2, "by": {"header": "x-user"}},
        {"name": "caller", "requests": 5, "period_ms": hour, "burst": 5, "by": {"caller": true}},
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
    let limit = json!({"name": "few", "requests": 1, "period_ms": 3_600_000, "burst": 1, "by": {"all": true}});
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
            "admission": {"limit": {"fixed": 1}, "queue_ms": 15_000, "queue": 2},
            "priorities": [
                {"matches": [{"path": {"prefix": "/low"}}], "priority": 1},
                {"matches": [{"path": {"prefix": "/high"}}], "priority": 3},
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
