//! What people are told of: breakers, ejected endpoints, apps that drop the deadline. Each change is one line of the
//! sidecar's log and one event of the control plane, as the command line shows them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, Fixed, H1App};
use outrigger_tests::client::{get, get_ok, once};
use outrigger_tests::control::Control;
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::process::Process;
use outrigger_tests::{ports, scenarios, wait};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        an_ejected_endpoint_is_told_of_once_and_so_is_its_return,
        a_breaker_is_told_of_once_at_each_step,
        an_app_that_drops_the_deadline_is_named_and_one_that_forwards_it_is_not,
    ]
}

/// Answers with the status that `told` holds at the moment.
async fn obedient(told: &Arc<AtomicUsize>) -> Result<H1App> {
    let told = Arc::clone(told);
    H1App::start(move |mut request: h1::Request| {
        let status = told.load(SeqCst);
        async move {
            let answer = format!("HTTP/1.1 {status} As Told\r\nContent-Length: 2\r\n\r\nok");
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        }
    })
    .await
}

/// What became of breakers, endpoints and apps, oldest first, as `events` says for `service`.
async fn changes(control: &Control, world: &World, service: &str) -> Result<Vec<Value>> {
    let said = control.say(world, &["events", service, "-o", "json"]).await?;
    let all: Vec<Value> = serde_json::from_str(&said)?;
    Ok(all.into_iter().filter(|e| e["event"] == "traffic_changed").collect())
}

fn whats(changes: &[Value]) -> Vec<&str> {
    changes.iter().filter_map(|change| change["what"].as_str()).collect()
}

/// Waits until so many changes of `service` are told; they are all there are.
async fn told(control: &Control, world: &World, service: &str, whole: &[&str]) -> Result<Vec<Value>> {
    wait::until(&format!("{service}: {whole:?} is told"), || async {
        changes(control, world, service)
            .await
            .is_ok_and(|c| c.len() >= whole.len())
    })
    .await?;
    let changes = changes(control, world, service).await?;
    ensure!(whats(&changes) == whole, "{changes:#?}");
    Ok(changes)
}

/// How often the log says `text`.
fn lines(process: &Process, text: &str) -> usize {
    process.output().lines().filter(|line| line.contains(text)).count()
}

/// A process that follows the events of `service`, and has printed what was there.
async fn follow(control: &Control, world: &World, service: &str) -> Result<Process> {
    let command = control.command(world, &["events", service, "--follow", "-o", "json"])?;
    let follower = world.spawn("follower", command)?;
    wait::until("it shows what was there", || async {
        follower.output().contains("registered")
    })
    .await?;
    Ok(follower)
}

/// It ends by `signal` as by a wish, and printed whole lines.
async fn ends_cleanly(follower: &mut Process, signal: Signal) -> Result<()> {
    follower.signal(signal)?;
    let said = follower.succeed(wait::SOON).await.context(signal.as_str())?;
    for line in said.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("{signal}: {line:?}"))?;
    }
    ensure!(said.ends_with('\n'), "{said:?}");
    Ok(())
}

/// `app` as many times as there are addresses, and a caller that reaches each of them.
async fn called(world: &World, mesh_yaml: &str, apps: &[SocketAddr]) -> Result<(Control, Vec<Sidecar>, Sidecar)> {
    let control = Control::start(world, mesh_yaml).await?;
    let mut workloads = Vec::new();
    for (i, app) in apps.iter().enumerate() {
        workloads.push(control.workload(world, "app", i, *app).await?);
    }
    control.wait_endpoints("app", apps.len()).await?;
    let caller = control.caller(world, "app", world.dir().join("state/caller")).await?;
    wait::until("a request is answered", || async {
        get(caller.listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    Ok((control, workloads, caller))
}

async fn an_ejected_endpoint_is_told_of_once_and_so_is_its_return(world: Arc<World>) -> Result<()> {
    let (status, well) = (Arc::new(AtomicUsize::new(200)), Arc::new(AtomicUsize::new(200)));
    let (bad, good) = (obedient(&status).await?, obedient(&well).await?);
    let mesh = "service: app\nprotocol: http\nhealth: { tcp: true, every: 200ms }\nbalance: round_robin\n\
                outlier: { failures: 3, ejection: 6s }\n---\nservice: caller\ncalls: [app]\n";
    let (mut control, _workloads, mut caller) = called(&world, mesh, &[bad.addr, good.addr]).await?;
    wait::until("both are used", || async {
        get(caller.listen, "/").await.is_ok() && bad.seen.requests() > 0 && good.seen.requests() > 0
    })
    .await?;
    let mut follower = follow(&control, &world, "app").await?;
    ensure!(changes(&control, &world, "app").await?.is_empty());

    status.store(500, SeqCst);
    let ejected = "outrigger_ejected_endpoints{service=\"default/app\"} 1";
    wait::until("it is ejected", || async {
        drop(get(caller.listen, "/").await);
        caller.metrics().await.is_ok_and(|page| page.contains(ejected))
    })
    .await?;
    // From now on it would be well: it is ejected once.
    status.store(200, SeqCst);
    let one = &told(&control, &world, "app", &["endpoint_ejected"]).await?[0];
    let said = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
    ensure!(said("endpoint") == "default/app/app-0", "{one}");
    ensure!(
        said("service") == "default/app" && said("caller") == "default/caller/caller-0",
        "{one}"
    );
    ensure!(said("cause").contains("3 failures in a row"), "{one}");
    let (at, next) = (said("at"), said("next_probe"));
    ensure!(next[..19] > at[..19], "{one}");
    // The table says the same.
    let table = control.say(&world, &["events", "app"]).await?;
    let row = table
        .lines()
        .find(|line| line.contains("endpoint_ejected"))
        .unwrap_or_default();
    ensure!(row.contains(&said("cause")) && row.contains(&next[..19]), "{table}");

    let before = bad.seen.requests();
    wait::until("it gets requests again", || async {
        drop(get(caller.listen, "/").await);
        bad.seen.requests() > before
    })
    .await?;
    let both = told(&control, &world, "app", &["endpoint_ejected", "endpoint_returned"]).await?;
    ensure!(
        both[1]["endpoint"] == "default/app/app-0" && both[1]["next_probe"].is_null(),
        "{both:#?}"
    );
    for (text, line) in [
        ("endpoint_ejected", "endpoint ejected"),
        ("endpoint_returned", "endpoint is used again"),
    ] {
        wait::until(&format!("the follower shows {text}"), || async {
            lines(&follower, text) > 0
        })
        .await?;
        ensure!(lines(&follower, text) == 1, "{}", follower.output());
        ensure!(lines(&caller.process, line) == 1, "{}", caller.process.output());
    }
    ends_cleanly(&mut follower, Signal::SIGINT).await?;
    caller.check_well()?;
    control.check_well()
}

async fn a_breaker_is_told_of_once_at_each_step(world: Arc<World>) -> Result<()> {
    let status = Arc::new(AtomicUsize::new(200));
    let app = obedient(&status).await?;
    let mesh = "service: app\nprotocol: http\nhealth: { tcp: true, every: 200ms }\noutlier: off\n\
                breaker: { failures: 3, cooldown: 3s }\n---\nservice: caller\ncalls: [app]\n";
    let (mut control, _workloads, mut caller) = called(&world, mesh, &[app.addr]).await?;
    let mut follower = follow(&control, &world, "app").await?;
    status.store(500, SeqCst);
    wait::until("it opens", || async {
        get(caller.listen, "/")
            .await
            .is_ok_and(|a| a.reason() == Some("breaker_open"))
    })
    .await?;
    status.store(200, SeqCst);
    let opened = &told(&control, &world, "app", &["breaker_opened"]).await?[0];
    ensure!(
        opened["endpoint"].is_null() && opened["next_probe"].is_string(),
        "{opened}"
    );
    let closed = "outrigger_breaker_state{service=\"default/app\"} 0";
    wait::until("it closes", || async {
        drop(get(caller.listen, "/").await);
        caller.metrics().await.is_ok_and(|page| page.contains(closed))
    })
    .await?;
    let steps = ["breaker_opened", "breaker_probing", "breaker_closed"];
    told(&control, &world, "app", &steps).await?;
    for (text, line) in steps
        .iter()
        .zip(["breaker opened", "breaker lets probes through", "breaker closed"])
    {
        wait::until(&format!("the follower shows {text}"), || async {
            lines(&follower, text) > 0
        })
        .await?;
        ensure!(lines(&follower, text) == 1, "{}", follower.output());
        ensure!(lines(&caller.process, line) == 1, "{}", caller.process.output());
    }
    ends_cleanly(&mut follower, Signal::SIGTERM).await?;
    caller.check_well()?;
    control.check_well()
}

/// For each request calls `leaf`, with what the request said of the time left while `forwards`.
async fn hop(leaf: SocketAddr, forwards: &Arc<AtomicBool>) -> Result<H1App> {
    let forwards = Arc::clone(forwards);
    H1App::start(move |mut request: h1::Request| -> Fixed {
        let told = request.head.field("outrigger-timeout-ms").map(str::to_owned);
        let told = told.filter(|_| forwards.load(SeqCst));
        Box::pin(async move {
            let told = told.map_or_else(String::new, |left| format!("Outrigger-Timeout-Ms: {left}\r\n"));
            let call = format!("GET /leaf HTTP/1.1\r\nHost: leaf\r\nConnection: close\r\n{told}\r\n");
            let status = once(leaf, &call).await.map_or(502, |answer| answer.status());
            let answer = format!("HTTP/1.1 {status} Hop\r\nContent-Length: 0\r\n\r\n");
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
    })
    .await
}

async fn an_app_that_drops_the_deadline_is_named_and_one_that_forwards_it_is_not(world: Arc<World>) -> Result<()> {
    let mesh = "service: leaf\nprotocol: http\nhealth: { tcp: true }\ntimeout: 30s\n---\n\
                service: one\nprotocol: http\nhealth: { tcp: true }\ntimeout: 30s\ncalls: [leaf]\n---\n\
                service: two\nprotocol: http\nhealth: { tcp: true }\ntimeout: 30s\ncalls: [leaf]\n---\n\
                service: front\nprotocol: http\nhealth: { tcp: true }\ncalls: [one, two]\n";
    let mut control = Control::start(&world, mesh).await?;
    let app = H1App::echo().await?;
    let _leaf = control.workload(&world, "leaf", 0, app.addr).await?;
    control.wait_endpoints("leaf", 1).await?;
    let (mut hops, mut forwards, mut apps) = (Vec::new(), Vec::new(), Vec::new());
    for (service, passes) in [("one", false), ("two", true)] {
        let (leaf, passes) = (ports::free()?, Arc::new(AtomicBool::new(passes)));
        let app = hop(leaf, &passes).await?;
        hops.push(
            control
                .calling_workload(&world, service, 0, app.addr, &[("leaf", leaf)])
                .await?,
        );
        forwards.push(passes);
        apps.push(app);
        control.wait_endpoints(service, 1).await?;
    }
    let to = [ports::free()?, ports::free()?];
    let calls = [("one", to[0]), ("two", to[1])];
    let _front = control.calling_workload(&world, "front", 0, app.addr, &calls).await?;
    for at in to {
        wait::until("a request goes through", || async {
            get(at, "/").await.is_ok_and(|a| a.status() == 200)
        })
        .await?;
    }
    let gauge = async |sidecar: &Sidecar, value: u8| {
        let page = sidecar.metrics().await.unwrap_or_default();
        page.contains(&format!("outrigger_app_drops_deadline {value}\n"))
    };
    // Requests to both until the finding is (`named`) or is not there of the first, and of the second the other way round.
    let load = async |first: u8, second: u8| {
        wait::until("the verdicts", || async {
            for at in to {
                for _ in 0..10 {
                    drop(get(at, "/").await);
                }
            }
            gauge(&hops[0], first).await && gauge(&hops[1], second).await
        })
        .await
    };
    load(1, 0).await?;
    let dropped = &told(&control, &world, "one", &["deadline_dropped"]).await?[0];
    ensure!(
        dropped["caller"] == "default/one/one-0" && dropped["service"] == "default/one",
        "{dropped}"
    );
    let cause = dropped["cause"].as_str().unwrap_or_default();
    ensure!(
        cause == "100 % of its requests bear a deadline, 100 % of its calls bear none",
        "{dropped}"
    );
    ensure!(
        changes(&control, &world, "two").await?.is_empty(),
        "it forwards what it is told"
    );
    // A sidecar that does not answer in time is left out.
    wait::until("describe shows it", || async {
        let said = control.say(&world, &["describe", "one"]).await.unwrap_or_default();
        ["FINDINGS", "drops_deadline", "forward `outrigger-timeout-ms`"]
            .iter()
            .all(|part| said.contains(part))
    })
    .await?;
    let described = control.say(&world, &["describe", "two"]).await?;
    ensure!(!described.contains("FINDINGS"), "{described}");
    let health = control.say(&world, &["health"]).await?;
    ensure!(health.matches("drops_deadline").count() == 1, "{health}");
    // It is no reason to send requests elsewhere.
    ensure!(get_ok(hops[0].admin, "/health").await?.json()?["status"] == "ok");

    // Each learns the other's manners.
    forwards[0].store(true, SeqCst);
    forwards[1].store(false, SeqCst);
    load(0, 1).await?;
    told(&control, &world, "one", &["deadline_dropped", "deadline_passed_on"]).await?;
    told(&control, &world, "two", &["deadline_dropped"]).await?;
    let described = control.say(&world, &["describe", "one"]).await?;
    ensure!(!described.contains("FINDINGS"), "{described}");
    for (sidecar, passes) in hops.iter_mut().zip([1, 0]) {
        ensure!(
            lines(&sidecar.process, "the app drops the deadline") == 1,
            "{}",
            sidecar.process.output()
        );
        ensure!(
            lines(&sidecar.process, "the app passes the deadline on") == passes,
            "{}",
            sidecar.process.output()
        );
        sidecar.check_well()?;
    }
    control.check_well()
}
