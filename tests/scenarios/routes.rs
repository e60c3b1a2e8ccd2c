//! Routes: which one a request meets, what it does, and that nobody else notices.

mod edits;
mod faults;
mod mirror;
mod split;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{Answer, get, once};
use outrigger_tests::control::Control;
use outrigger_tests::h2::{H2Client, Whole, request};
use outrigger_tests::load::Load;
use outrigger_tests::mesh::{Plan, Sidecar, saw};
use outrigger_tests::{over_both, scenarios, wait};
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        the_first_route_that_matches_is_taken,
        a_grpc_route_matches_and_answers_in_grpc,
        a_route_leads_to_another_service_under_its_own_policy,
        the_proxy_port_follows_routes,
    ];
    tests.extend(split::tests());
    tests.extend(mirror::tests());
    tests.extend(edits::tests());
    tests.extend(faults::tests());
    tests.extend(scenarios![routes_change_under_load_without_a_failed_request]);
    tests
}

/// Gives the service named last these routes.
fn routed(plan: Plan, routes: Value) -> Plan {
    plan.policy(move |service| {
        service.routes = serde_json::from_value(routes).expect("routes");
    })
}

/// Two subsets by the label `version` of the first two endpoints.
fn versions(plan: Plan) -> Plan {
    plan.labels(0, json!({"version": "1"}))
        .labels(1, json!({"version": "2"}))
        .policy(|service| {
            service.subsets = ["1", "2"]
                .map(|v| wire::Subset {
                    name: format!("v{v}"),
                    labels: BTreeMap::from([("version".to_owned(), v.to_owned())]),
                })
                .into();
        })
}

/// A route that answers with its own name.
fn says(name: &str, matches: Value) -> Value {
    json!({"name": name, "matches": [matches], "action": {"respond": {"status": 200, "body": name}}})
}

fn forward(name: &str, matches: Value, forward: Value) -> Value {
    json!({"name": name, "matches": [matches], "action": {"forward": forward}})
}

/// The sum of the counters called `name` whose labels have all of `labels`.
async fn counted(sidecar: &Sidecar, name: &str, labels: &[&str]) -> Result<u64> {
    let page = sidecar.metrics().await?;
    let lines = page
        .lines()
        .filter_map(|l| l.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    Ok(lines
        .filter(|(found, _)| labels.iter().all(|l| found.contains(l)))
        .filter_map(|(_, n)| n.parse::<u64>().ok())
        .sum())
}

async fn wait_counted(sidecar: &Sidecar, name: &str, labels: &[&str], n: u64) -> Result<()> {
    let what = format!("{name}{labels:?} is {n}");
    let reached = wait::until(&what, || async {
        counted(sidecar, name, labels).await.is_ok_and(|found| found == n)
    });
    match reached.await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(sidecar.metrics().await?)),
    }
}

async fn h1(addr: SocketAddr, head: &str) -> Result<Answer> {
    once(addr, &format!("{head}\r\nConnection: close\r\n\r\n")).await
}

async fn h2(addr: SocketAddr, method: &str, path: &str, fields: &[(&str, &str)]) -> Result<Whole> {
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    client.exchange(request(method, addr, path, fields)?, None).await
}

async fn grpc(addr: SocketAddr, path: &str) -> Result<Whole> {
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    client
        .exchange(request("POST", addr, path, &fields)?, Some(Bytes::new()))
        .await
}

async fn the_first_route_that_matches_is_taken(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let routes = json!([
        says("deleted", json!({"methods": ["DELETE"]})),
        says("exact", json!({"path": {"exact": "/users/me"}})),
        says(
            "beta",
            json!({"path": {"prefix": "/users"}, "headers": [{"name": "x-beta", "value": {"prefix": "y"}}]})
        ),
        says("template", json!({"path": {"template": "/users/{id}"}})),
        says("prefix", json!({"path": {"prefix": "/users"}})),
        says("regex", json!({"path": {"regex": "/v[0-9]+/.*"}})),
        says("page", json!({"query": [{"name": "page", "value": {"exact": "1 a"}}]})),
        says("host", json!({"hosts": ["*.example.com"]})),
        says("after", json!({"path": {"exact": "/users/me"}})),
    ]);
    let plan = Plan::default().service("app", "http", &[app.addr]).access_log();
    let mut mesh = routed(plan, routes).start(&world).await?;
    let addr = mesh.to("app")?;
    let cases = [
        ("DELETE /users/me", "Host: h", "deleted"),
        ("GET /users/me?page=1+a", "Host: a.example.com", "exact"),
        ("GET /%75sers/me", "Host: h", "exact"),
        ("GET /users/me/x", "Host: h\r\nX-Beta: yes", "beta"),
        ("GET /users/7", "Host: h\r\nX-Beta: no", "template"),
        ("GET /users/7/posts", "Host: h", "prefix"),
        ("GET /users", "Host: h", "prefix"),
        ("GET /v12/", "Host: h", "regex"),
        ("GET /x?page=1%20a", "Host: h", "page"),
        ("GET /x?page=2", "Host: WWW.Example.com:80", "host"),
    ];
    for (line, fields, expected) in cases {
        let answer = h1(addr, &format!("{line} HTTP/1.1\r\n{fields}")).await?;
        ensure!(
            answer.status() == 200 && answer.text() == expected,
            "{line}: {answer:?}"
        );
        ensure!(answer.reason() == Some("respond"), "{answer:?}");
        let (method, path) = line.split_once(' ').context("a line")?;
        let host = fields
            .lines()
            .next()
            .and_then(|l| l.strip_prefix("Host: "))
            .unwrap_or("h");
        let beta = fields.split_once("X-Beta: ").map(|(_, v)| ("x-beta", v));
        let mut client = H2Client::connect(addr, 1 << 20).await?;
        let mut head = request(method, addr, path, beta.as_slice())?;
        *head.uri_mut() = format!("http://{host}{path}").parse()?;
        let answer = client.exchange(head, None).await?;
        ensure!(answer.body == expected.as_bytes(), "{line} over HTTP/2: {answer:?}");
    }
    ensure!(app.seen.requests() == 0, "the app saw what routes answered");
    let other = h1(addr, "GET /other HTTP/1.1\r\nHost: h").await?;
    ensure!(other.head.field("x-app") == Some("echo"), "no route: {other:?}");
    let bad = h1(addr, "GET /users/%2e%2e/me HTTP/1.1\r\nHost: h").await?;
    ensure!(bad.status() == 400 && bad.reason() == Some("bad_path"), "{bad:?}");
    let head = h1(addr, "HEAD /users/me HTTP/1.1\r\nHost: h").await?;
    ensure!(head.head.field("content-length") == Some("5"), "{head:?}");
    wait_counted(
        &mesh.caller,
        "outrigger_route_requests_total",
        &["route=\"exact\"", "to=\"respond\"", "class=\"success\""],
        5,
    )
    .await?;
    let line = "\"route\":\"template\"";
    wait::until("the log names the route", || async { world.logs().contains(line) }).await?;
    mesh.check_well()
}

async fn a_grpc_route_matches_and_answers_in_grpc(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let routes = json!([
        says("add", json!({"grpc": ["shop.Cart/Add"]})),
        {"name": "gone", "matches": [{"grpc": ["shop.Old/*"]}],
         "action": {"respond": {"status": 404, "body": "gone: 100 %"}}},
    ]);
    let plan = Plan::default().service("app", "grpc", &[app.addr]);
    let mut mesh = routed(plan, routes).start(&world).await?;
    let addr = mesh.to("app")?;
    let gone = grpc(addr, "/shop.Old/Any").await?;
    ensure!(
        gone.head.status() == 200 && gone.field("grpc-status") == Some("12"),
        "{gone:?}"
    );
    ensure!(gone.field("grpc-message") == Some("gone: 100 %25"), "{gone:?}");
    let add = grpc(addr, "/shop.Cart/Add").await?;
    ensure!(add.field("grpc-message") == Some("add"), "{add:?}");
    let other = grpc(addr, "/shop.Cart/Remove").await?;
    ensure!(app.seen.requests() == 1 && !other.body.is_empty(), "{other:?}");
    mesh.check_well()
}

async fn a_route_leads_to_another_service_under_its_own_policy(world: Arc<World>) -> Result<()> {
    let (app, other, silent) = (H1App::echo().await?, H1App::echo().await?, H1App::silent().await?);
    let to = |name: &str| json!({"to": [{"to": {"service": format!("default/{name}")}, "weight": 1}]});
    let mut slow = forward("slow", json!({"path": {"prefix": "/slow"}}), to("silent"));
    slow["policy"] = json!({"timeout_ms": 300});
    let routes = json!([
        slow,
        forward("other", json!({"path": {"prefix": "/other"}}), to("other")),
        forward("lost", json!({"path": {"prefix": "/lost"}}), to("nobody")),
        forward(
            "part",
            json!({"path": {"prefix": "/part"}}),
            json!({"to": [{"to": {"service": "default/other", "subset": "v9"}, "weight": 1}]})
        ),
    ]);
    let plan = Plan::default()
        .service("other", "http", &[other.addr])
        .service("silent", "http", &[silent.addr])
        .service("app", "http", &[app.addr]);
    let mut mesh = routed(plan, routes).start(&world).await?;
    let addr = mesh.to("app")?;
    let answer = get(addr, "/other/x").await?;
    ensure!(answer.status() == 200 && other.seen.requests() == 1, "{answer:?}");
    let head = other.seen.heads().pop().context("no request")?;
    saw(&head, "host", &addr.to_string())?;
    let late = get(addr, "/slow").await?;
    ensure!(late.status() == 504 && late.reason() == Some("deadline"), "{late:?}");
    let lost = get(addr, "/lost").await?;
    ensure!(lost.reason() == Some("unknown_service"), "{lost:?}");
    let part = get(addr, "/part").await?;
    ensure!(
        part.status() == 503 && part.reason() == Some("unknown_subset"),
        "{part:?}"
    );
    ensure!(get(addr, "/").await?.status() == 200 && app.seen.requests() == 1);
    mesh.check_well()
}

async fn the_proxy_port_follows_routes(world: Arc<World>) -> Result<()> {
    let (app, other) = (H1App::echo().await?, H1App::echo().await?);
    let routes = json!([
        says(
            "direct",
            json!({"hosts": ["app.default"], "path": {"exact": "/direct"}})
        ),
        forward(
            "other",
            json!({"path": {"prefix": "/other"}}),
            json!({"to": [{"to": {"service": "default/other"}, "weight": 1}]})
        ),
    ]);
    let plan = Plan::default()
        .service("other", "http", &[other.addr])
        .service("app", "http", &[app.addr]);
    let mut mesh = routed(plan, routes).start(&world).await?;
    let direct = h1(
        mesh.proxy(),
        "GET http://app.default/direct HTTP/1.1\r\nHost: app.default",
    )
    .await?;
    ensure!(direct.text() == "direct", "{direct:?}");
    let moved = h1(
        mesh.proxy(),
        "GET http://app.default/other HTTP/1.1\r\nHost: app.default",
    )
    .await?;
    ensure!(moved.status() == 200 && other.seen.requests() == 1, "{moved:?}");
    mesh.check_well()
}

async fn routes_change_under_load_without_a_failed_request(world: Arc<World>) -> Result<()> {
    let (app, other) = (H1App::echo().await?, H1App::echo().await?);
    let mesh = |routes: &str| {
        format!(
            "service: app\nprotocol: http\n{routes}---\nservice: other\nprotocol: http\n---\nservice: caller\ncalls: [app, other]\n"
        )
    };
    let mut control = Control::start(&world, &mesh("")).await?;
    let first = control.workload(&world, "app", 0, app.addr).await?;
    let second = control.workload(&world, "other", 0, other.addr).await?;
    control.wait_endpoints("app", 1).await?;
    control.wait_endpoints("other", 1).await?;
    let mut caller = control.caller(&world, "app", world.dir().join("state/caller")).await?;
    let listen = caller.listen;
    wait::until("a request is answered", || async move {
        get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    let load = Load::on(listen);
    load.wait(50).await?;
    for round in 0..6 {
        // To the other service, then half and half, then back.
        let routes = match round % 3 {
            0 => "routes:\n- { name: all, to: { service: other } }\n",
            1 => "routes:\n- { name: half, to: [{ service: app, weight: 1 }, { service: other, weight: 1 }] }\n",
            _ => "",
        };
        let before = [app.seen.requests(), other.seen.requests()];
        let (status, text) = control.apply(&mesh(routes)).await?;
        ensure!(status == 200, "{status} {text}");
        wait::until("both see what the routes say", || async {
            let wanted: &[(usize, &H1App)] = match round % 3 {
                0 => &[(1, &other)],
                1 => &[(0, &app), (1, &other)],
                _ => &[(0, &app)],
            };
            load.is_over() || wanted.iter().all(|(i, a)| a.seen.requests() > before[*i] + 20)
        })
        .await?;
        ensure!(!load.is_over(), "a request failed");
    }
    let passed = load.end().await?;
    ensure!(passed > 100, "only {passed} requests");
    drop((first, second));
    control.check_well()?;
    caller.check_well()
}
