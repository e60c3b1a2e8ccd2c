//! Who gets a request: every way of balancing with real programs, and endpoints that come and go meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh::{self as wire, Balance, HashOn, Protocol, hash_on::On};
use outrigger_tests::World;
use outrigger_tests::apps::h1::{H1App, echo};
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::Client;
use outrigger_tests::fleet::{Fleet, service};
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Plan;
use outrigger_tests::{over_both, scenarios, wait};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        every_way_shares_evenly,
        the_slow_one_of_three_is_avoided,
        weights_are_kept,
        a_value_keeps_to_its_endpoint_while_another_dies,
        a_request_without_the_value_is_served_and_counted,
        one_endpoint_has_no_more_than_the_bound,
        the_own_zone_comes_first_and_overflows,
        a_zone_that_is_half_well_keeps_its_part,
        connections_of_one_caller_keep_to_one_endpoint,
        a_subset_is_by_labels_and_may_fail_over_to_another,
    ];
    tests.extend(scenarios![
        endpoints_that_come_and_go_cost_no_request,
        few_values_move_when_an_endpoint_leaves,
        failover_lasts_as_long_as_nobody_is_there,
        connections_fail_over_too,
        a_new_endpoint_gets_its_share_by_and_by,
    ]);
    tests
}

/// What a hash is taken of in these tests.
const USER: &str = "x-user";

fn by_user(service: &mut wire::Service, balance: Balance) {
    service.balance = balance.into();
    service.hash = Some(HashOn {
        on: Some(On::Header(USER.to_owned())),
    });
}

/// A handshake on a busy machine is no failure: who is tried next is what is counted here.
fn patient(service: &mut wire::Service) {
    service.connect_timeout_ms = 10_000;
}

async fn apps(n: usize) -> Result<Vec<H1App>> {
    let mut apps = Vec::new();
    for _ in 0..n {
        apps.push(H1App::echo().await?);
    }
    Ok(apps)
}

fn addrs(apps: &[H1App]) -> Vec<SocketAddr> {
    apps.iter().map(|a| a.addr).collect()
}

fn counts(apps: &[H1App]) -> Vec<usize> {
    apps.iter().map(|a| a.seen.requests()).collect()
}

/// Runs `clients` clients, of which each sends `requests` requests of the user that `user` names; all must succeed.
async fn rush(at: SocketAddr, clients: usize, requests: usize, user: impl Fn(usize) -> String) -> Result<()> {
    let mut tasks = JoinSet::new();
    for c in 0..clients {
        let users: Vec<String> = (0..requests).map(|i| user(c * requests + i)).collect();
        tasks.spawn(async move {
            let mut client = Client::connect(at).await?;
            for user in users {
                let answer = client
                    .exchange(&format!("GET / HTTP/1.1\r\nHost: h\r\n{USER}: {user}\r\n\r\n"))
                    .await?;
                ensure!(answer.status() == 200 && answer.body.complete, "{user}: {answer:?}");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Which users each app has seen.
fn users(apps: &[H1App]) -> Vec<BTreeMap<String, usize>> {
    let seen = |app: &H1App| {
        let heads = app.seen.heads();
        heads
            .iter()
            .filter_map(|h| h.field(USER))
            .fold(BTreeMap::new(), |mut all, user| {
                *all.entry(user.to_owned()).or_default() += 1;
                all
            })
    };
    apps.iter().map(seen).collect()
}

/// Fails when a user was seen by two of `apps`.
fn sticks(apps: &[H1App]) -> Result<()> {
    let mut all = BTreeSet::new();
    for user in users(apps).iter().flat_map(BTreeMap::keys) {
        ensure!(all.insert(user.clone()), "{user} went to two endpoints");
    }
    Ok(())
}

async fn every_way_shares_evenly(world: Arc<World>) -> Result<()> {
    let apps = apps(3).await?;
    let ways = [
        ("p2c", Balance::P2cPeakEwma),
        ("least", Balance::LeastRequest),
        ("turns", Balance::RoundRobin),
        ("random", Balance::Random),
        ("ring", Balance::Ring),
        ("maglev", Balance::Maglev),
    ];
    for (name, way) in ways {
        let plan = Plan::default()
            .service(name, "http", &addrs(&apps))
            .policy(patient)
            .workers(1);
        let mut mesh = plan.policy(move |s| by_user(s, way)).start(&world).await?;
        let before = counts(&apps);
        rush(mesh.to(name)?, 4, 150, |i| format!("user-{i}")).await?;
        let got: Vec<usize> = counts(&apps)
            .iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect();
        // By latency or load, apps on a busy machine are not equal; the others are as good as chance.
        let least = match way {
            Balance::RoundRobin => 200,
            Balance::P2cPeakEwma | Balance::LeastRequest => 40,
            _ => 140,
        };
        ensure!(
            got.iter().sum::<usize>() == 600 && got.iter().all(|n| *n >= least),
            "{name}: {got:?}"
        );
        mesh.check_well()?;
    }
    Ok(())
}

async fn the_slow_one_of_three_is_avoided(world: Arc<World>) -> Result<()> {
    for (way, most) in [
        (Balance::P2cPeakEwma, 60),
        (Balance::LeastRequest, 120),
        (Balance::RoundRobin, 200),
    ] {
        let mut three = apps(2).await?;
        three.push(
            H1App::start(|request| async move {
                tokio::time::sleep(Duration::from_millis(40)).await;
                echo(request).await
            })
            .await?,
        );
        let name = format!("slow-{}", way as i32);
        let plan = Plan::default()
            .service(&name, "http", &addrs(&three))
            .policy(patient)
            .workers(1);
        let mesh = plan.policy(move |s| s.balance = way.into()).start(&world).await?;
        rush(mesh.to(&name)?, 6, 100, |i| i.to_string()).await?;
        let got = counts(&three);
        ensure!(got[2] <= most, "{way:?}: the slow one got {got:?}");
        // Which only shows that the others avoid it.
        ensure!(way != Balance::RoundRobin || got[2] == 200, "{got:?}");
    }
    Ok(())
}

async fn weights_are_kept(world: Arc<World>) -> Result<()> {
    let apps = apps(3).await?;
    let mesh = Plan::default()
        .service("app", "http", &addrs(&apps))
        .policy(patient)
        .policy(|s| s.balance = Balance::RoundRobin.into())
        .endpoints(|i, e| e.weight = [1, 3, 6][i])
        .workers(1)
        .start(&world)
        .await?;
    rush(mesh.to("app")?, 2, 200, |i| i.to_string()).await?;
    let got = counts(&apps);
    ensure!(
        got.iter()
            .zip([40, 120, 240])
            .all(|(n, w): (&usize, usize)| n.abs_diff(w) <= 2),
        "{got:?}"
    );
    Ok(())
}

async fn a_value_keeps_to_its_endpoint_while_another_dies(world: Arc<World>) -> Result<()> {
    for way in [Balance::Ring, Balance::Maglev] {
        let apps = apps(3).await?;
        let mut mesh = Plan::default()
            .service("app", "http", &addrs(&apps))
            .policy(patient)
            .policy(move |s| by_user(s, way))
            .start(&world)
            .await?;
        let at = mesh.to("app")?;
        // All workers, and all connections.
        rush(at, 4, 60, |i| format!("user-{}", i % 60)).await?;
        sticks(&apps)?;
        let before = users(&apps);
        ensure!(before.iter().all(|u| u.len() >= 8), "{before:?}");
        apps[1].die().await?;
        rush(at, 4, 60, |i| format!("user-{}", i % 60)).await?;
        let after = users(&apps);
        for app in [0, 2] {
            for (user, count) in &before[app] {
                ensure!(after[app][user] == 2 * count, "{user} left app {app}, which lives");
            }
        }
        mesh.check_well()?;
    }
    Ok(())
}

async fn a_request_without_the_value_is_served_and_counted(world: Arc<World>) -> Result<()> {
    let apps = apps(2).await?;
    let mesh = Plan::default()
        .service("app", "http", &addrs(&apps))
        .policy(patient)
        .policy(|s| by_user(s, Balance::Ring))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    for _ in 0..40 {
        ensure!(client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?.status() == 200);
    }
    ensure!(counts(&apps).iter().all(|n| *n > 0), "{:?}", counts(&apps));
    let metrics = mesh.caller.metrics().await?;
    let counted = metrics
        .lines()
        .any(|l| l.starts_with("outrigger_unhashed_requests_total") && l.contains("outbound") && l.ends_with(" 40"));
    ensure!(counted, "{metrics}");
    Ok(())
}

async fn one_endpoint_has_no_more_than_the_bound(world: Arc<World>) -> Result<()> {
    let most = Arc::new(AtomicUsize::new(0));
    let mut three = Vec::new();
    for _ in 0..3 {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&most));
        three.push(
            H1App::start(move |request| {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    echo(request).await
                }
            })
            .await?,
        );
    }
    let mesh = Plan::default()
        .service("app", "http", &addrs(&three))
        .policy(patient)
        .policy(|s| {
            by_user(s, Balance::Ring);
            s.hash_bound_percent = 125;
        })
        .workers(1)
        .start(&world)
        .await?;
    rush(mesh.to("app")?, 36, 3, |_| "one".to_owned()).await?;
    // 36 in flight, a third of them and a quarter more.
    let most = most.load(Ordering::SeqCst);
    ensure!((12..=15).contains(&most), "{most} at a time of 36 on one of three");
    Ok(())
}

async fn the_own_zone_comes_first_and_overflows(world: Arc<World>) -> Result<()> {
    let apps = apps(4).await?;
    let mesh = Plan::default()
        .service("app", "http", &addrs(&apps))
        .policy(patient)
        .policy(|s| {
            s.balance = Balance::RoundRobin.into();
            s.zone = Some(wire::ZonePreference { healthy_percent: 70 });
        })
        .endpoints(|i, e| {
            let zone = if i < 2 { "here" } else { "there" };
            e.labels.insert("zone".to_owned(), zone.to_owned());
        })
        .caller_labels(json!({"zone": "here"}))
        .workers(1)
        .start(&world)
        .await?;
    let at = mesh.to("app")?;
    rush(at, 2, 50, |i| i.to_string()).await?;
    ensure!(counts(&apps) == [50, 50, 0, 0], "{:?}", counts(&apps));
    // Nobody here: everybody there, and not a request failed.
    apps[0].die().await?;
    apps[1].die().await?;
    rush(at, 2, 50, |i| i.to_string()).await?;
    let got = counts(&apps);
    ensure!(got[2] + got[3] == 100 && got[2].abs_diff(got[3]) <= 2, "{got:?}");
    Ok(())
}

async fn a_zone_that_is_half_well_keeps_its_part(world: Arc<World>) -> Result<()> {
    let mut four = apps(1).await?;
    four.push(
        H1App::start(|mut request| async move {
            let answer = "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n";
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
        .await?,
    );
    four.extend(apps(2).await?);
    let mesh = Plan::default()
        .service("app", "http", &addrs(&four))
        .policy(patient)
        .policy(|s| {
            s.balance = Balance::RoundRobin.into();
            s.zone = Some(wire::ZonePreference { healthy_percent: 70 });
        })
        .endpoints(|i, e| {
            let zone = if i < 2 { "here" } else { "there" };
            e.labels.insert("zone".to_owned(), zone.to_owned());
        })
        .caller_labels(json!({"zone": "here"}))
        .workers(1)
        .start(&world)
        .await?;
    let at = mesh.to("app")?;
    // Turn by turn, until the fifth failure in a row.
    let mut client = Client::connect(at).await?;
    for _ in 0..10 {
        client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    }
    ensure!(counts(&four) == [5, 5, 0, 0], "{:?}", counts(&four));
    // The share of the zone is counted again after 10 ms; each of these rushes takes longer.
    rush(at, 1, 40, |i| i.to_string()).await?;
    let before = counts(&four);
    rush(at, 1, 280, |i| i.to_string()).await?;
    let got: Vec<usize> = counts(&four)
        .iter()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect();
    // One of two is well where 70 % are enough: 5/7 stay.
    ensure!(got[1] == 0 && (165..=235).contains(&got[0]), "{got:?}");
    ensure!(got[2].abs_diff(got[3]) <= 2, "{got:?}");
    Ok(())
}

async fn connections_of_one_caller_keep_to_one_endpoint(world: Arc<World>) -> Result<()> {
    let (one, other) = (TcpApp::echo().await?, TcpApp::echo().await?);
    let mesh = Plan::default()
        .service("app", "tcp", &[one.addr, other.addr])
        .policy(patient)
        .policy(|s| {
            s.balance = Balance::Maglev.into();
            s.hash = Some(HashOn {
                on: Some(On::Caller(true)),
            });
        })
        .start(&world)
        .await?;
    for i in 0..20_u8 {
        let mut client = Client::connect(mesh.to("app")?).await?;
        client.send([i]).await?;
        ensure!(client.bytes(1).await? == [i]);
    }
    let mut got = [one.seen.requests(), other.seen.requests()];
    got.sort_unstable();
    ensure!(got == [0, 20], "{got:?}");
    Ok(())
}

async fn a_subset_is_by_labels_and_may_fail_over_to_another(world: Arc<World>) -> Result<()> {
    let apps = apps(3).await?;
    let subset = |version: &str| wire::Subset {
        name: format!("v{version}"),
        labels: [("version".to_owned(), version.to_owned())].into(),
    };
    let to = |subset: &str| wire::Destination {
        service: String::new(),
        subset: subset.to_owned(),
    };
    let (subsets, first, second) = (vec![subset("1"), subset("2")], to("v1"), to("v2"));
    let mesh = Plan::default()
        .service("app", "http", &addrs(&apps))
        .policy(patient)
        .policy(move |s| {
            s.balance = Balance::RoundRobin.into();
            s.subsets = subsets;
            s.failover = vec![first];
            s.routes = vec![wire::Route {
                name: "canary".to_owned(),
                matches: vec![wire::Match {
                    headers: vec![wire::FieldMatch {
                        name: USER.to_owned(),
                        value: Some(wire::field_match::Value::Exact("brave".to_owned())),
                    }],
                    ..wire::Match::default()
                }],
                action: Some(wire::route::Action::Forward(wire::Forward {
                    to: vec![wire::WeightedDestination {
                        to: Some(second),
                        weight: 1,
                    }],
                    ..wire::Forward::default()
                })),
                ..wire::Route::default()
            }];
        })
        .endpoints(|i, e| {
            let version = if i == 2 { "2" } else { "1" };
            e.labels.insert("version".to_owned(), version.to_owned());
        })
        .workers(1)
        .start(&world)
        .await?;
    let at = mesh.to("app")?;
    rush(at, 2, 30, |_| "brave".to_owned()).await?;
    ensure!(counts(&apps) == [0, 0, 60], "{:?}", counts(&apps));
    rush(at, 2, 30, |_| "other".to_owned()).await?;
    ensure!(counts(&apps) == [20, 20, 80], "{:?}", counts(&apps));
    apps[2].die().await?;
    rush(at, 2, 30, |_| "brave".to_owned()).await?;
    ensure!(counts(&apps) == [50, 50, 80], "{:?}", counts(&apps));
    Ok(())
}

async fn endpoints_that_come_and_go_cost_no_request(world: Arc<World>) -> Result<()> {
    let apps = apps(4).await?;
    let mut fleet = Fleet::start(&world, vec![service("app", Protocol::Http)], &addrs(&apps)).await?;
    let load = Load::on(fleet.caller.listen);
    let ways = [
        Balance::P2cPeakEwma,
        Balance::LeastRequest,
        Balance::RoundRobin,
        Balance::Random,
        Balance::Ring,
        Balance::Maglev,
    ];
    for way in ways {
        fleet
            .change("app", |s| {
                s.balance = way.into();
                // The second segment of the load's paths is another for each request.
                s.hash = Some(HashOn {
                    on: Some(On::PathSegment(2)),
                });
                s.slow_start_ms = 500;
            })
            .await?;
        for i in 0..apps.len() {
            // Down to one, and all again with new epochs.
            for other in (0..apps.len()).filter(|o| *o != i) {
                fleet.go("app", other).await?;
                load.wait(5).await?;
            }
            for other in (0..apps.len()).filter(|o| *o != i) {
                fleet.come("app", other, apps[other].addr).await?;
                load.wait(5).await?;
            }
        }
    }
    ensure!(!load.is_over(), "a client gave up");
    let passed = load.end().await?;
    outrigger_tests::world::figure(format!(
        "balance: {passed} requests over 144 changes of endpoints, 0 failed"
    ));
    fleet.caller.check_well()
}

async fn few_values_move_when_an_endpoint_leaves(world: Arc<World>) -> Result<()> {
    for way in [Balance::Ring, Balance::Maglev] {
        let apps = apps(5).await?;
        let mut resource = service("app", Protocol::Http);
        by_user(&mut resource, way);
        let fleet = Fleet::start(&world, vec![resource], &addrs(&apps)).await?;
        let at = fleet.caller.listen;
        rush(at, 4, 100, |i| format!("user-{i}")).await?;
        let before = users(&apps);
        fleet.go("app", 2).await?;
        rush(at, 4, 100, |i| format!("user-{i}")).await?;
        let after = users(&apps);
        let moved = |app: usize| before[app].keys().filter(|u| after[app][*u] < 2).count();
        // Its own had to; of the others, Maglev moves a few in a hundred.
        let needless: usize = [0, 1, 3, 4].into_iter().map(moved).sum();
        ensure!(
            needless <= if way == Balance::Ring { 0 } else { 12 },
            "{way:?}: {needless} moved"
        );
        // And back: it has the same again, though it began anew.
        fleet.come("app", 2, apps[2].addr).await?;
        rush(at, 4, 100, |i| format!("user-{i}")).await?;
        let back = users(&apps);
        ensure!(before[2].keys().all(|u| back[2][u] == 2), "{way:?}: {:?}", back[2]);
    }
    Ok(())
}

async fn failover_lasts_as_long_as_nobody_is_there(world: Arc<World>) -> Result<()> {
    let (own, other) = (apps(2).await?, apps(1).await?);
    let mut app = service("app", Protocol::Http);
    app.failover = vec![wire::Destination {
        service: "default/spare".to_owned(),
        subset: String::new(),
    }];
    let fleet = Fleet::start(&world, vec![app, service("spare", Protocol::Http)], &[]).await?;
    fleet.come("spare", 0, other[0].addr).await?;
    let at = fleet.caller.listen;
    let went = async || -> Result<(usize, usize)> {
        let sum = |apps: &[H1App]| counts(apps).iter().sum::<usize>();
        let before = (sum(&own), sum(&other));
        rush(at, 2, 20, |i| i.to_string()).await?;
        Ok((sum(&own) - before.0, sum(&other) - before.1))
    };
    ensure!(went().await? == (0, 40), "nobody was there");
    fleet.come("app", 0, own[0].addr).await?;
    fleet.come("app", 1, own[1].addr).await?;
    ensure!(went().await? == (40, 0), "they came");
    // They take no connections, which the request itself finds out.
    own[0].die().await?;
    own[1].die().await?;
    ensure!(went().await? == (0, 40), "they are dead");
    fleet.go("app", 0).await?;
    fleet.go("app", 1).await?;
    ensure!(went().await? == (0, 40), "they are gone");
    let new = H1App::echo().await?;
    fleet.come("app", 0, new.addr).await?;
    rush(at, 1, 10, |i| i.to_string()).await?;
    ensure!(new.seen.requests() == 10, "one came back: {}", new.seen.requests());
    fleet.go("spare", 0).await?;
    rush(at, 1, 10, |i| i.to_string()).await?;
    ensure!(new.seen.requests() == 20, "the spare one left");
    Ok(())
}

async fn connections_fail_over_too(world: Arc<World>) -> Result<()> {
    let spare = TcpApp::echo().await?;
    let mut app = service("app", Protocol::Tcp);
    app.failover = vec![wire::Destination {
        service: "default/spare".to_owned(),
        subset: String::new(),
    }];
    let fleet = Fleet::start(&world, vec![app, service("spare", Protocol::Tcp)], &[]).await?;
    fleet.come("spare", 0, spare.addr).await?;
    let mut client = Client::connect(fleet.caller.listen).await?;
    client.send("hello").await?;
    ensure!(client.bytes(5).await? == b"hello");
    Ok(())
}

async fn a_new_endpoint_gets_its_share_by_and_by(world: Arc<World>) -> Result<()> {
    let apps = apps(3).await?;
    let mut resource = service("app", Protocol::Http);
    resource.balance = Balance::RoundRobin.into();
    resource.slow_start_ms = 4000;
    let fleet = Fleet::start(&world, vec![resource], &addrs(&apps[..2])).await?;
    let at = fleet.caller.listen;
    // What was there from the start is warm.
    rush(at, 1, 20, |i| i.to_string()).await?;
    ensure!(counts(&apps)[..2] == [10, 10], "{:?}", counts(&apps));
    fleet.come("app", 2, apps[2].addr).await?;
    let share = async || -> Result<usize> {
        let before = counts(&apps)[2];
        rush(at, 1, 60, |i| i.to_string()).await?;
        Ok(counts(&apps)[2] - before)
    };
    let first = share().await?;
    ensure!(first < 15, "{first} of 60 at once");
    let share = &share;
    wait::until("the new one has a third", || async move {
        share().await.is_ok_and(|n| n >= 18)
    })
    .await
}
