//! Breaker, ejection, bounds, hedging, and a policy that changes under load.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::{self, Client};
use outrigger_tests::control_script::{Script, resource, response};
use outrigger_tests::mesh::{PORT, Plan, start};
use outrigger_tests::{over_both, ports, scenarios, wait};
use tokio::task::JoinSet;

use super::{logged, metric, obedient, policy, retries, told};

pub(super) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        the_breaker_opens_probes_and_closes,
        an_endpoint_that_fails_is_ejected_and_returns,
        no_more_than_a_share_is_ejected,
        bounds_are_exact,
        a_hedge_is_sent_once_and_the_loser_is_cancelled
    ];
    tests.extend(scenarios![a_policy_change_under_load_fails_no_request]);
    tests
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
