//! Bounds, breaker and ejection where no request is seen: connections of opaque bytes, and connections as such.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::{self, Client};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{over_both, ports, scenarios, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        streams_are_bounded_exactly,
        an_endpoint_that_takes_no_stream_is_ejected,
        an_open_breaker_refuses_streams_until_a_probe_is_accepted,
    ];
    tests.extend(scenarios![connections_with_one_request_each_are_bounded]);
    tests
}

/// A handshake on a machine that is busy takes its time.
const PATIENT: u32 = 20_000;

/// The sum of all metrics whose line begins with `name` and contains `label`; 0 while there is none.
async fn metric(mesh: &Mesh, name: &str, label: &str) -> Result<u64> {
    let text = mesh.caller.metrics().await?;
    let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(label));
    let values = lines.filter_map(|l| l.rsplit(' ').next());
    values.map(|v| v.parse::<u64>().context("a number")).sum()
}

async fn refused(mesh: &Mesh, reason: &str) -> Result<u64> {
    metric(mesh, "outrigger_reasons_total", &format!("reason=\"{reason}\"")).await
}

/// A connection of which one byte came back.
async fn echoed(mesh: &Mesh) -> Result<Client> {
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("x").await?;
    ensure!(client.bytes(1).await? == b"x", "another byte came back");
    Ok(client)
}

/// Connects and waits for the end, whichever it is.
async fn tried(mesh: &Mesh) -> Result<()> {
    // Its sidecar may have reset it already, at any of these steps.
    let Ok(mut client) = Client::connect(mesh.to("app")?).await else {
        return Ok(());
    };
    drop(client.send("x").await);
    ensure!(client.end().await.unwrap_or_default().is_empty(), "somebody answered");
    Ok(())
}

async fn streams_are_bounded_exactly(world: Arc<World>) -> Result<()> {
    for workers in [1, 4] {
        let app = TcpApp::echo().await?;
        let mut mesh = Plan::default()
            .service("app", "tcp", &[app.addr])
            .policy(|service| {
                service.connect_timeout_ms = PATIENT;
                service.concurrency = Some(wire::Concurrency {
                    connections: 3,
                    pending: 2,
                    ..wire::Concurrency::default()
                });
            })
            .workers(workers)
            .start(&world)
            .await?;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(echoed(&mesh).await?);
        }
        let mut others = JoinSet::new();
        let to = mesh.to("app")?;
        for _ in 0..6 {
            others.spawn(async move { Client::connect(to).await?.rest().await });
        }
        while let Some(other) = others.join_next().await {
            ensure!(other?.unwrap_or_default().is_empty(), "it got through");
        }
        let (late, full) = (
            refused(&mesh, "connections_full").await?,
            refused(&mesh, "pending_full").await?,
        );
        ensure!((late, full) == (2, 4), "{late} waited, {full} did not");
        ensure!(app.seen.requests() == 3, "{}", app.seen.requests());
        ensure!(metric(&mesh, "outrigger_bounded_connections", "default/app").await? == 3);
        // A place that comes free goes to the next one.
        drop(open.pop());
        wait::until("a place is free", || async { echoed(&mesh).await.is_ok() }).await?;
        mesh.check_well()?;
    }
    Ok(())
}

async fn an_endpoint_that_takes_no_stream_is_ejected(world: Arc<World>) -> Result<()> {
    for workers in [1, 4] {
        let (nobody, app) = (ports::free()?, TcpApp::echo().await?);
        let mut mesh = Plan::default()
            .service("app", "tcp", &[nobody, app.addr])
            .policy(|service| {
                service.connect_timeout_ms = PATIENT;
                service.balance = wire::Balance::RoundRobin as i32;
                service.outlier = Some(wire::Outlier {
                    trip: Some(wire::Trip {
                        consecutive: 3,
                        ..wire::Trip::default()
                    }),
                    ejection_ms: 60_000,
                    ..wire::Outlier::default()
                });
            })
            .workers(workers)
            .start(&world)
            .await?;
        wait::until("the one without an app is ejected", || async {
            drop(echoed(&mesh).await);
            metric(&mesh, "outrigger_ejected_endpoints", "default/app")
                .await
                .is_ok_and(|n| n == 1)
        })
        .await?;
        for _ in 0..20 {
            echoed(&mesh).await?;
        }
        mesh.check_well()?;
    }
    Ok(())
}

async fn an_open_breaker_refuses_streams_until_a_probe_is_accepted(world: Arc<World>) -> Result<()> {
    for workers in [1, 4] {
        let at = ports::free()?;
        let mut mesh = Plan::default()
            .service("app", "tcp", &[at])
            .policy(|service| {
                service.connect_timeout_ms = PATIENT;
                service.outlier = Some(wire::Outlier {
                    off: true,
                    ..wire::Outlier::default()
                });
                service.breaker = Some(wire::Breaker {
                    trip: Some(wire::Trip {
                        consecutive: 3,
                        ..wire::Trip::default()
                    }),
                    cooldown_ms: 3_000,
                    max_cooldown_ms: 3_000,
                    probes: 2,
                });
            })
            .workers(workers)
            .access_log()
            .start(&world)
            .await?;
        // Whoever looked whether the port is open was a failed stream as well.
        wait::until("the breaker opens after the third failure", || async {
            drop(tried(&mesh).await);
            mesh.caller.process.output().contains("3 failures in a row")
        })
        .await?;
        wait::until("a stream is refused by it, which the log says", || async {
            drop(tried(&mesh).await);
            mesh.caller.process.output().contains("\"reason\":\"breaker_open\"")
        })
        .await?;
        ensure!(refused(&mesh, "breaker_open").await? > 0, "nothing was counted");
        let listener = tokio::net::TcpListener::bind(at).await?;
        let serving = tokio::spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                all.spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
                });
            }
        });
        wait::until("probes are accepted", || async {
            drop(echoed(&mesh).await);
            metric(&mesh, "outrigger_breaker_state", "default/app")
                .await
                .is_ok_and(|n| n == 0)
        })
        .await?;
        for _ in 0..5 {
            echoed(&mesh).await?;
        }
        serving.abort();
        mesh.check_well()?;
    }
    Ok(())
}

async fn connections_with_one_request_each_are_bounded(world: Arc<World>) -> Result<()> {
    let app = H1App::silent().await?;
    let mut mesh = Plan::default()
        .bare_service("app", "http", &[app.addr])
        .policy(|service| {
            service.concurrency = Some(wire::Concurrency {
                connections: 2,
                pending: 1,
                ..wire::Concurrency::default()
            });
        })
        .workers(4)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(to).await?;
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
        clients.push(client);
    }
    app.seen.wait_requests(2).await?;
    let mut others = JoinSet::new();
    for _ in 0..3 {
        others.spawn(async move { client::get(to, "/").await });
    }
    let mut reasons = Vec::new();
    while let Some(answer) = others.join_next().await {
        let answer = answer??;
        ensure!(answer.head.field("outrigger-final") == Some("shed"), "{answer:?}");
        reasons.push(answer.reason().unwrap_or_default().to_owned());
    }
    reasons.sort();
    ensure!(
        reasons == ["connections_full", "pending_full", "pending_full"],
        "{reasons:?}"
    );
    ensure!(app.seen.requests() == 2, "{}", app.seen.requests());
    mesh.check_well()
}
