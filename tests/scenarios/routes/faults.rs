//! Faults on purpose: whom they meet, what they do, and when they end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{Client, get};
use outrigger_tests::mesh::Plan;
use outrigger_tests::{over_both, wait};
use serde_json::{Value, json};

use super::{counted, grpc, h2, wait_counted};

pub(super) fn tests() -> Vec<Trial> {
    over_both![
        a_fault_aborts_or_delays_until_its_end,
        a_fault_breaks_a_body,
        a_fault_refuses_opaque_connections,
        faults_of_other_callers_meet_nobody_here
    ]
}

/// Gives the service named last these faults, until a moment from now.
fn faulty(plan: Plan, until: Duration, faults: Value) -> Plan {
    plan.policy(move |service| {
        service.faults = serde_json::from_value(faults).expect("faults");
        let end = SystemTime::now() + until;
        let end = end
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        for fault in &mut service.faults {
            fault.until_unix_ms = u64::try_from(end).unwrap_or(u64::MAX);
        }
    })
}

async fn a_fault_aborts_or_delays_until_its_end(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let faults = json!([
        {"name": "slow", "matches": [{"path": {"prefix": "/slow"}}], "per_million": 1_000_000,
         "harm": {"delay_ms": 400}},
        {"name": "down", "matches": [{"path": {"prefix": "/down"}}], "per_million": 1_000_000,
         "callers": ["default/caller"], "harm": {"abort": {"status": 418, "grpc": 8}}},
        {"name": "never", "per_million": 0, "harm": {"abort": {"status": 500, "grpc": 13}}},
    ]);
    let until = Duration::from_secs(10);
    let plan = Plan::default().service("app", "grpc", &[app.addr]);
    let started = Instant::now();
    let mut mesh = faulty(plan, until, faults).start(&world).await?;
    let addr = mesh.to("app")?;
    let start = Instant::now();
    let slow = h2(addr, "GET", "/slow", &[]).await?;
    let took = start.elapsed();
    let down = grpc(addr, "/down.A/B").await?;
    let plain = h2(addr, "GET", "/down/x", &[]).await?;
    let status = (plain.head.status().as_u16(), plain.field("outrigger-reason"));
    let harmed = grpc(addr, "/down/B").await?;
    // On a machine that took so long to get here, the end is all that can be seen.
    if started.elapsed() < until {
        ensure!(
            slow.head.status() == 200 && took >= Duration::from_millis(400),
            "{took:?} {slow:?}"
        );
        ensure!(
            down.field("grpc-status").is_none(),
            "a prefix is whole segments: {down:?}"
        );
        ensure!(status == (418, Some("fault")), "{plain:?}");
        ensure!(harmed.field("grpc-status") == Some("8"), "{harmed:?}");
        ensure!(harmed.field("outrigger-reason") == Some("fault"), "{harmed:?}");
        let faults = "outrigger_faults_total";
        ensure!(counted(&mesh.caller, faults, &["fault=\"slow\""]).await? == 1);
        ensure!(counted(&mesh.caller, faults, &["fault=\"down\""]).await? == 2);
    }
    wait::until("the fault has ended", || async {
        h2(addr, "GET", "/down/x", &[])
            .await
            .is_ok_and(|a| a.head.status() == 200)
    })
    .await?;
    // The end is a time of day in milliseconds, and that clock is not this one.
    let apart = Duration::from_millis(100);
    ensure!(started.elapsed() + apart >= until, "it ended early");
    mesh.check_well()
}

async fn a_fault_breaks_a_body(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let faults = json!([
        {"name": "cut", "matches": [{"path": {"prefix": "/cut"}}], "per_million": 1_000_000,
         "harm": {"reset_after_bytes": 5}},
        {"name": "first", "matches": [{"path": {"prefix": "/none"}}], "per_million": 1_000_000,
         "harm": {"reset_after_bytes": 0}},
        {"name": "long", "matches": [{"path": {"prefix": "/long"}}], "per_million": 1_000_000,
         "harm": {"reset_after_bytes": 1_000_000}},
    ]);
    let plan = Plan::default().service("app", "http", &[app.addr]);
    let mut mesh = faulty(plan, Duration::from_secs(3600), faults).start(&world).await?;
    let addr = mesh.to("app")?;
    for (path, length) in [("/cut", 5), ("/none", 0)] {
        let mut client = Client::connect(addr).await?;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await?;
        let head = client.head().await?;
        ensure!(head.word(1) == "200", "{head:?}");
        let body = client.body(&head, "GET").await?;
        ensure!(!body.complete && body.bytes.len() == length, "{path}: {body:?}");
        let answer = h2(addr, "GET", path, &[]).await?;
        ensure!(
            answer.error.is_some() && answer.body.len() == length,
            "{path}: {answer:?}"
        );
    }
    let whole = get(addr, "/long").await?;
    ensure!(whole.body.complete && whole.status() == 200, "{whole:?}");
    wait_counted(&mesh.caller, "outrigger_faults_total", &["fault=\"cut\""], 2).await?;
    ensure!(counted(&mesh.caller, "outrigger_faults_total", &["fault=\"long\""]).await? == 0);
    wait_counted(&mesh.caller, "outrigger_reasons_total", &["reason=\"fault\""], 4).await?;
    mesh.check_well()
}

async fn a_fault_refuses_opaque_connections(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let faults = json!([
        {"name": "refused", "per_million": 1_000_000, "harm": {"refuse_connection": true}},
    ]);
    let plan = Plan::default().service("app", "tcp", &[app.addr]);
    let mut mesh = faulty(plan, Duration::from_secs(3600), faults).start(&world).await?;
    // The reset may come before the test knows that it is connected, or before this is written.
    if let Ok(mut client) = Client::connect(mesh.to("app")?).await {
        drop(client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await);
        ensure!(client.rest().await?.is_empty(), "the connection was carried");
    }
    // This one; those of the harness while it waited for the listener count as well.
    wait::until("a refusal is counted", || async {
        let refused = counted(&mesh.caller, "outrigger_faults_total", &["fault=\"refused\""]).await;
        refused.is_ok_and(|n| n >= 1)
    })
    .await?;
    ensure!(app.seen.requests() == 0);
    mesh.check_well()
}

async fn faults_of_other_callers_meet_nobody_here(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let faults = json!([
        {"name": "theirs", "callers": ["default/other"], "per_million": 1_000_000,
         "harm": {"abort": {"status": 503, "grpc": 14}}},
        {"name": "half", "matches": [{"path": {"prefix": "/half"}}], "per_million": 500_000,
         "harm": {"abort": {"status": 503, "grpc": 14}}},
    ]);
    let plan = Plan::default().service("app", "http", &[app.addr]);
    let mut mesh = faulty(plan, Duration::from_secs(3600), faults).start(&world).await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let mut failed = 0;
    for _ in 0..400 {
        let answer = client.exchange("GET /half HTTP/1.1\r\nHost: h\r\n\r\n").await?;
        failed += u32::from(answer.status() == 503);
        let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
        ensure!(answer.status() == 200, "{answer:?}");
    }
    // 200 are expected with a deviation of 10.
    ensure!((150..=250).contains(&failed), "{failed} of 400 failed");
    mesh.check_well()
}
