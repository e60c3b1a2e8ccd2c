//! Copies: they slow nobody, and are whole or not sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::Client;
use outrigger_tests::mesh::{Plan, saw};
use outrigger_tests::{over_both, wait};
use serde_json::{Value, json};

use super::{counted, forward, routed, wait_counted};

pub(super) fn tests() -> Vec<Trial> {
    over_both![a_mirror_that_hangs_slows_nobody, mirrored_bodies_are_whole_or_not_sent]
}

fn mirrored(matches: Value) -> Value {
    json!([forward(
        "copied",
        matches,
        json!({"mirror": {"to": {"service": "default/shadow"}, "per_million": 1_000_000}})
    )])
}

async fn a_mirror_that_hangs_slows_nobody(world: Arc<World>) -> Result<()> {
    let (app, shadow) = (H1App::echo().await?, H1App::silent().await?);
    let plan = Plan::default().service("shadow", "http", &[shadow.addr]);
    let plan = plan.service("app", "http", &[app.addr]).workers(1);
    let mut mesh = routed(plan, mirrored(json!({}))).start(&world).await?;
    let addr = mesh.to("app")?;
    let mut client = Client::connect(addr).await?;
    let start = Instant::now();
    for i in 0..70 {
        let answer = client
            .exchange(&format!("GET /{i}?q HTTP/1.1\r\nHost: h\r\n\r\n"))
            .await?;
        ensure!(answer.status() == 200, "{answer:?}");
    }
    let took = start.elapsed();
    // One of them alone would wait for the copy's 15 s.
    ensure!(took < Duration::from_secs(10), "70 requests took {took:?}");
    // 64 at most are on their way; the rest is told and forgotten.
    shadow.seen.wait_requests(64).await?;
    let full = ["route=\"copied\"", "result=\"full\""];
    wait_counted(&mesh.caller, "outrigger_mirrored_total", &full, 6).await?;
    for head in shadow.seen.heads() {
        saw(&head, "outrigger-mirror", "1")?;
        saw(&head, "host", "h")?;
    }
    ensure!(shadow.seen.requests() == 64, "{}", shadow.seen.requests());
    let marked = app.seen.heads().iter().any(|h| h.field("outrigger-mirror").is_some());
    ensure!(!marked, "the original is marked as a copy");
    // What does not answer is given up, and counted.
    let late = ["route=\"copied\"", "result=\"late\""];
    wait::until_within(Duration::from_secs(40), "hanging copies are given up", || async {
        counted(&mesh.caller, "outrigger_mirrored_total", &late)
            .await
            .is_ok_and(|n| n == 64)
    })
    .await?;
    mesh.check_well()
}

async fn mirrored_bodies_are_whole_or_not_sent(world: Arc<World>) -> Result<()> {
    let (app, shadow) = (H1App::echo().await?, H1App::echo().await?);
    let plan = Plan::default().service("shadow", "http", &[shadow.addr]);
    let plan = plan.service("app", "http", &[app.addr]);
    let routes = mirrored(json!({"methods": ["POST"]}));
    let mut mesh = routed(plan, routes).start(&world).await?;
    let addr = mesh.to("app")?;
    let post = |body: &str| {
        format!(
            "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut client = Client::connect(addr).await?;
    for i in 0..20 {
        ensure!(client.exchange(&post(&format!("body {i}"))).await?.status() == 200);
    }
    ensure!(client.exchange(&post(&"x".repeat(65_537))).await?.status() == 200);
    ensure!(client.exchange("GET /g HTTP/1.1\r\nHost: h\r\n\r\n").await?.status() == 200);
    let result = |result| ["route=\"copied\"", result];
    let name = "outrigger_mirrored_total";
    wait_counted(&mesh.caller, name, &result("result=\"answered\""), 20).await?;
    wait_counted(&mesh.caller, name, &result("result=\"too_large\""), 1).await?;
    wait_counted(&mesh.caller, name, &["route=\"copied\""], 21).await?;
    ensure!(
        shadow.seen.requests() == 20 && app.seen.requests() == 22,
        "{:?}",
        shadow.seen
    );
    let lengths = shadow.seen.heads();
    ensure!(lengths.iter().all(|h| h.line.starts_with("POST /p ")), "{lengths:?}");
    mesh.check_well()
}
