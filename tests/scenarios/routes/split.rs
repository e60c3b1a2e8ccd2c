//! Weighted splits: by chance, and by a value that sticks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::client::{Client, get};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::over_both;
use serde_json::{Value, json};

use super::{forward, routed, versions, wait_counted};

pub(super) fn tests() -> Vec<Trial> {
    over_both![a_split_keeps_its_weights, a_sticky_split_sends_one_value_one_way]
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Sends `n` requests by each of four clients; `fields` is told which one it is.
async fn many(addr: SocketAddr, n: usize, fields: fn(usize) -> String) -> Result<()> {
    let mut clients = tokio::task::JoinSet::new();
    for c in 0..4 {
        clients.spawn(async move {
            let mut client = Client::connect(addr).await?;
            for i in 0..n {
                let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", fields(c * n + i));
                let answer = client.exchange(&head).await?;
                ensure!(answer.status() == 200 && answer.body.complete, "{answer:?}");
            }
            Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

async fn split(world: &World, sticky: Value) -> Result<(Mesh, [H1App; 2])> {
    let apps = [H1App::start(h1::fixed(OK)).await?, H1App::start(h1::fixed(OK)).await?];
    let to = json!([{"to": {"subset": "v1"}, "weight": 90}, {"to": {"subset": "v2"}, "weight": 10}]);
    let plan = Plan::default().service("app", "http", &[apps[0].addr, apps[1].addr]);
    let route = match sticky.is_null() {
        true => json!({"to": to}),
        false => json!({"to": to, "sticky": sticky}),
    };
    let plan = routed(versions(plan), json!([forward("split", json!({}), route)]));
    Ok((plan.start(world).await?, apps))
}

async fn a_split_keeps_its_weights(world: Arc<World>) -> Result<()> {
    let (mut mesh, apps) = split(&world, Value::Null).await?;
    many(mesh.to("app")?, 500, |_| String::new()).await?;
    let seen = apps.each_ref().map(|a| a.seen.requests());
    // Binomial: 200 of 2,000 are expected with a deviation of 13.4; five of them happen once in 2 million runs.
    ensure!(seen[0] + seen[1] == 2000 && seen[1].abs_diff(200) < 67, "{seen:?}");
    for (version, seen) in ["v1", "v2"].iter().zip(seen) {
        let to = format!("to=\"default/app/{version}\"");
        wait_counted(
            &mesh.caller,
            "outrigger_route_requests_total",
            &[&to, "route=\"split\""],
            seen as u64,
        )
        .await?;
    }
    mesh.check_well()
}

async fn a_sticky_split_sends_one_value_one_way(world: Arc<World>) -> Result<()> {
    let (mut mesh, apps) = split(&world, json!({"on": {"header": "x-user"}})).await?;
    many(mesh.to("app")?, 300, |i| format!("X-User: u{}\r\n", i % 100)).await?;
    let mut ways: HashMap<String, [usize; 2]> = HashMap::new();
    for (way, app) in apps.iter().enumerate() {
        for head in app.seen.heads() {
            let user = head.field("x-user").context("no user")?.to_owned();
            ways.entry(user).or_default()[way] += 1;
        }
    }
    ensure!(ways.len() == 100, "{ways:?}");
    let torn = ways.iter().find(|(_, n)| **n != [12, 0] && **n != [0, 12]);
    ensure!(torn.is_none(), "one value went both ways: {torn:?}");
    let second = ways.values().filter(|n| n[1] > 0).count();
    // The hash never changes, so neither does this; of 100 values, 10 are expected.
    ensure!((3..=20).contains(&second), "{second} of 100 values went the second way");
    for _ in 0..3 {
        get(mesh.to("app")?, "/").await?;
    }
    wait_counted(&mesh.caller, "outrigger_route_unsticky_total", &["route=\"split\""], 3).await?;
    mesh.check_well()
}
