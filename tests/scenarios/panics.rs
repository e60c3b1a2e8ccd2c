//! What a panic costs: a request, the streams of a connection, or nothing; the rest goes on.
//!
//! Each test injects panics by the debug switch and looks at what the others notice. A supervised task
//! gets two in a row: the second proves that it runs again after the first.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use libtest_mimic::Trial;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::agent::up::Body as Up;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use outrigger_proto::wire::mesh;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::h2c::{self, H2App};
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::{Client, get, get_ok};
use outrigger_tests::control_script::{Script, resource, response};
use outrigger_tests::h2::{H2Client, request, whole};
use outrigger_tests::mesh::{PORT, Plan, Sidecar, start};
use outrigger_tests::{over_both, ports, scenarios, secure_scenarios, wait};
use serde_json::json;
use tokio::sync::Notify;

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = over_both![
        in_a_request_over_http1_it_costs_that_request,
        in_a_request_over_http2_it_costs_that_stream,
        in_a_request_at_the_callee_the_others_go_on,
        while_accepting_it_costs_nothing,
        with_the_pools_lock_held_it_costs_one_request,
        in_a_pool_or_a_timer_it_costs_nothing,
        in_a_worker_thread_it_costs_that_workers_connections,
    ];
    tests.extend(secure_scenarios![in_a_tunnel_it_costs_that_stream]);
    tests.extend(scenarios![
        in_a_connection_it_costs_the_streams_of_that_connection,
        in_discovery_it_costs_nothing,
        in_the_session_it_costs_nothing,
        in_the_probes_it_costs_nothing,
        in_the_admin_listener_it_costs_nothing,
        the_switch_is_off_unless_asked_for,
    ]);
    tests
}

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

fn metric(page: &str, name: &str) -> f64 {
    let value = |line: &str| line.rsplit_once(' ').and_then(|(_, v)| v.parse::<f64>().ok());
    page.lines().filter(|l| l.starts_with(name)).filter_map(value).sum()
}

async fn count(sidecar: &Sidecar, name: &str) -> Result<f64> {
    Ok(metric(&sidecar.metrics().await?, name))
}

/// Waits until `sidecar` has panicked `n` times.
async fn panicked(sidecar: &Sidecar, n: u32) -> Result<()> {
    wait::until(&format!("{n} panics"), || async {
        count(sidecar, "outrigger_panics_total")
            .await
            .is_ok_and(|c| c >= f64::from(n))
    })
    .await
}

/// Waits until tasks of `sidecar` ran again `n` times, each within 100 ms.
pub(crate) async fn restarted(sidecar: &mut Sidecar, n: u32) -> Result<()> {
    wait::until(&format!("{n} restarts"), || async {
        count(sidecar, "outrigger_task_restarts_total")
            .await
            .is_ok_and(|c| c >= f64::from(n))
    })
    .await?;
    sidecar.process.check_alive()?;
    let output = sidecar.process.output();
    let plain: String = output
        .split('\u{1b}')
        .map(|s| s.split_once('m').map_or(s, |(_, t)| t))
        .collect();
    let pauses: Vec<u64> = plain
        .split("down_ms=")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
        .collect();
    ensure!(pauses.len() >= n as usize, "{n} restarts are logged: {plain}");
    ensure!(
        pauses.iter().all(|p| *p <= 100),
        "a task was away too long: {pauses:?} ms"
    );
    Ok(())
}

/// Waits until no client connection counts as open.
async fn none_open(sidecar: &Sidecar) -> Result<()> {
    let waited = wait::until("no connection counts as open", || async {
        count(sidecar, "outrigger_connections_open")
            .await
            .is_ok_and(|n| n == 0.0)
    })
    .await;
    match waited {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(sidecar.metrics().await?)),
    }
}

async fn in_a_request_over_http1_it_costs_that_request(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut other = Client::connect(addr).await?;
    ensure!(other.exchange(GET).await?.status() == 200);
    mesh.caller.panic("request").await?;
    let mut client = Client::connect(addr).await?;
    let answer = client.exchange(GET).await?;
    ensure!(
        answer.status() == 500 && answer.reason() == Some("internal"),
        "{answer:?}"
    );
    ensure!(client.rest().await?.is_empty(), "closed after the answer");
    ensure!(other.exchange(GET).await?.status() == 200, "another connection goes on");
    ensure!(get(addr, "/").await?.status() == 200, "and so does a new one");
    let page = mesh.caller.metrics().await?;
    ensure!(metric(&page, "outrigger_panics_total") == 1.0, "{page}");
    drop(other);
    none_open(&mesh.caller).await?;
    mesh.caller.process.check_alive()
}

async fn in_a_request_over_http2_it_costs_that_stream(world: Arc<World>) -> Result<()> {
    let gate = Arc::new(Notify::new());
    let app = gated(gate.clone()).await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 16).await?;
    let (waiting, _body) = client.start(request("GET", addr, "/gate", &[])?, true).await?;
    app.seen.wait_requests(1).await?;
    mesh.caller.panic("request").await?;
    let (broken, _body) = client.start(request("GET", addr, "/", &[])?, true).await?;
    let error = broken.await.err().context("the stream is reset")?;
    ensure!(error.reason() == Some(h2::Reason::INTERNAL_ERROR), "{error}");
    let next = client.exchange(request("GET", addr, "/", &[])?, None).await?;
    ensure!(next.head.status() == 200 && next.error.is_none(), "{next:?}");
    gate.notify_one();
    let kept = whole(waiting).await?;
    ensure!(kept.head.status() == 200 && kept.error.is_none(), "{kept:?}");
    panicked(&mesh.caller, 1).await?;
    mesh.caller.process.check_alive()
}

/// Answers at once, but `/gate` only when the gate opens.
async fn gated(gate: Arc<Notify>) -> Result<H2App> {
    H2App::start(move |request, _| {
        let gate = gate.clone();
        async move {
            if request.uri().path() == "/gate" {
                gate.notified().await;
            }
            h2c::full("well")
        }
    })
    .await
}

async fn in_a_request_at_the_callee_the_others_go_on(world: Arc<World>) -> Result<()> {
    let gate = Arc::new(Notify::new());
    let app = gated(gate.clone()).await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 16).await?;
    let (waiting, _body) = client.start(request("GET", addr, "/gate", &[])?, true).await?;
    app.seen.wait_requests(1).await?;
    mesh.inbound("app", 0)?.panic("request").await?;
    let broken = client.exchange(request("GET", addr, "/", &[])?, None).await?;
    ensure!(
        broken.head.status() == 502 && broken.field("outrigger-reason") == Some("upstream_reset"),
        "{broken:?}"
    );
    gate.notify_one();
    let kept = whole(waiting).await?;
    ensure!(
        kept.head.status() == 200 && kept.error.is_none(),
        "a stream of the same connection: {kept:?}"
    );
    panicked(mesh.inbound("app", 0)?, 1).await?;
    mesh.caller.check_well()
}

async fn in_a_connection_it_costs_the_streams_of_that_connection(world: Arc<World>) -> Result<()> {
    let gate = Arc::new(Notify::new());
    let app = gated(gate.clone()).await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    // The test's own connection to the callee's sidecar, beside the one of the caller's sidecar.
    let direct = mesh.inbound("app", 0)?.listen;
    let mut beside = H2Client::connect(direct, 1 << 16).await?;
    let (kept, _body) = beside.start(request("GET", direct, "/gate", &[])?, true).await?;
    app.seen.wait_requests(1).await?;
    let mut client = H2Client::connect(addr, 1 << 16).await?;
    let mut lost = Vec::new();
    for _ in 0..3 {
        lost.push(client.start(request("GET", addr, "/gate", &[])?, true).await?.0);
    }
    app.seen.wait_requests(4).await?;
    let inbound = mesh.inbound("app", 0)?;
    inbound.panic("connection").await?;
    // It goes off at the next bytes on that connection. Whether this request was read is not known.
    let last = client.exchange(request("GET", addr, "/", &[])?, None).await?;
    ensure!(last.field("outrigger-reason") == Some("upstream_reset"), "{last:?}");
    for answer in lost {
        let answer = whole(answer).await?;
        ensure!(answer.field("outrigger-reason") == Some("upstream_reset"), "{answer:?}");
    }
    let fresh = client.exchange(request("GET", addr, "/", &[])?, None).await?;
    ensure!(fresh.head.status() == 200, "on a new connection: {fresh:?}");
    gate.notify_one();
    let kept = whole(kept).await?;
    ensure!(kept.head.status() == 200, "the other connection: {kept:?}");
    mesh.inbound("app", 0)?.process.check_alive()?;
    mesh.caller.check_well()
}

async fn in_a_tunnel_it_costs_that_stream(world: Arc<World>) -> Result<()> {
    let app = TcpApp::echo().await?;
    let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let addr = mesh.to("app")?;
    for (n, callee) in [(1, false), (1, true), (2, false)] {
        let (mut lost, mut kept) = (Client::connect(addr).await?, Client::connect(addr).await?);
        for client in [&mut lost, &mut kept] {
            client.send("hello").await?;
            ensure!(client.bytes(5).await? == b"hello");
        }
        let sidecar = if callee {
            mesh.inbound("app", 0)?
        } else {
            &mut mesh.caller
        };
        sidecar.panic("tunnel").await?;
        lost.send("more").await?;
        ensure!(lost.rest().await?.is_empty(), "no byte, and no answer");
        panicked(sidecar, n).await?;
        sidecar.process.check_alive()?;
        kept.send("again").await?;
        ensure!(kept.bytes(5).await? == b"again", "another stream goes on");
        let mut fresh = Client::connect(addr).await?;
        fresh.send("fresh").await?;
        ensure!(fresh.bytes(5).await? == b"fresh");
    }
    Ok(())
}

async fn while_accepting_it_costs_nothing(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut kept = Client::connect(addr).await?;
    ensure!(kept.exchange(GET).await?.status() == 200);
    for n in 1..=2 {
        mesh.caller.panic("accept").await?;
        let answer = get(addr, "/").await.context("the connection in hand is served")?;
        ensure!(answer.status() == 200);
        restarted(&mut mesh.caller, n).await?;
        let many = try_join_all((0..20).map(|_| get_ok(addr, "/"))).await?;
        ensure!(many.len() == 20);
    }
    ensure!(kept.exchange(GET).await?.status() == 200);
    Ok(())
}

async fn with_the_pools_lock_held_it_costs_one_request(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = Client::connect(addr).await?;
    ensure!(client.exchange(GET).await?.status() == 200);
    let before = count(&mesh.caller, "outrigger_upstream_connections").await?;
    mesh.caller.panic("lock").await?;
    ensure!(client.exchange(GET).await?.reason() == Some("internal"));
    // The client is on a new connection, perhaps of another worker; the pool is what it was.
    for _ in 0..20 {
        get_ok(addr, "/").await?;
    }
    ensure!(count(&mesh.caller, "outrigger_upstream_connections").await? >= before);
    panicked(&mesh.caller, 1).await?;
    mesh.caller.process.check_alive()
}

async fn in_a_pool_or_a_timer_it_costs_nothing(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = Client::connect(addr).await?;
    let mut n = 0;
    for place in ["timer", "pool", "timer", "pool"] {
        ensure!(client.exchange(GET).await?.status() == 200);
        mesh.caller.panic(place).await?;
        n += 1;
        restarted(&mut mesh.caller, n).await?;
        ensure!(client.exchange(GET).await?.status() == 200, "after a panic in {place}");
    }
    Ok(())
}

async fn in_a_worker_thread_it_costs_that_workers_connections(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    for n in 1..=2 {
        // So many that every worker has some.
        let mut kept = Vec::new();
        for _ in 0..16 {
            let mut client = Client::connect(addr).await?;
            ensure!(client.exchange(GET).await?.status() == 200);
            kept.push(client);
        }
        mesh.caller.panic("worker").await?;
        restarted(&mut mesh.caller, n).await?;
        let mut lost = 0;
        for client in &mut kept {
            lost += u32::from(client.exchange(GET).await.is_err());
        }
        ensure!(lost > 0, "one worker's connections");
        try_join_all((0..20).map(|_| get_ok(addr, "/")))
            .await
            .context("new connections")?;
        drop(kept);
        none_open(&mesh.caller).await?;
    }
    Ok(())
}

/// A service `app` with one instance at `at`, of `version`.
fn mesh_of(at: SocketAddr) -> impl Fn(&DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> + Send + Sync {
    move |request| {
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for name in &request.resource_names_subscribe {
            match (ResourceType::from_url(&request.type_url), name.as_str()) {
                _ if request.initial_resource_versions.contains_key(INSTANCE) => {}
                (Some(ResourceType::Service), SERVICE) => resources.push(service()),
                (Some(ResourceType::Endpoint), "default/app/*") => resources.push(endpoint(at, 5)),
                _ => removed.push(name.as_str()),
            }
        }
        match resources.is_empty() && removed.is_empty() {
            true => Vec::new(),
            false => vec![response(&request.type_url, "n", resources, &removed)],
        }
    }
}

const SERVICE: &str = "default/app";
const INSTANCE: &str = "default/app/app-0";

fn service() -> Resource {
    let message = mesh::Service {
        name: SERVICE.to_owned(),
        ports: vec![mesh::Port {
            name: PORT.to_owned(),
            protocol: mesh::Protocol::Http as i32,
        }],
        ..Default::default()
    };
    resource(ResourceType::Service.url(), SERVICE, "1", &message)
}

fn endpoint(at: SocketAddr, epoch: u64) -> Resource {
    let message = mesh::Endpoint {
        name: INSTANCE.to_owned(),
        address: at.ip().to_string(),
        ports: vec![mesh::EndpointPort {
            name: PORT.to_owned(),
            port: u32::from(at.port()),
            mesh_port: 0,
        }],
        epoch,
        ..Default::default()
    };
    resource(ResourceType::Endpoint.url(), INSTANCE, &epoch.to_string(), &message)
}

async fn in_discovery_it_costs_nothing(world: Arc<World>) -> Result<()> {
    let (old, new) = (H1App::echo().await?, H1App::echo().await?);
    let script = Script::start(mesh_of(old.addr)).await?;
    let listen = ports::free()?;
    let config = json!({
        "service": "caller",
        "instance": "caller-0",
        "admin": ports::free()?,
        "control_plane": format!("http://{}", script.addr),
        "outbound": [{"service": "app", "port": PORT, "listen": listen}],
    });
    let mut caller = start(&world, "caller", config, listen, false)?;
    caller.ready().await?;
    wait::until("calls arrive", || async {
        get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    let resumed = || {
        let all = script.requests();
        all.iter()
            .filter(|r| r.initial_resource_versions.contains_key(INSTANCE))
            .count()
    };
    for n in 1..=2u32 {
        caller.panic("discovery").await?;
        restarted(&mut caller, n).await?;
        get_ok(listen, "/").await.context("what was known serves on")?;
        wait::until("the stream resumes with what it had", || async {
            resumed() >= n as usize
        })
        .await?;
    }
    wait::until("a push arrives on the new stream", || async {
        let push = response(ResourceType::Endpoint.url(), "late", vec![endpoint(new.addr, 9)], &[]);
        script.push(push).await.is_ok() && get(listen, "/").await.is_ok() && new.seen.requests() > 0
    })
    .await?;
    caller.process.check_alive()
}

/// A sidecar before `app` that registers with `script`.
async fn workload(world: &World, script: &Script, app: SocketAddr) -> Result<Sidecar> {
    let listen = ports::free()?;
    let config = json!({
        "service": "app",
        "instance": "app-0",
        "epoch": 7,
        "admin": ports::free()?,
        "control_plane": format!("http://{}", script.addr),
        "inbound": [{"name": PORT, "protocol": "http", "listen": listen, "app": app}],
    });
    let mut sidecar = start(world, "app", config, listen, false)?;
    sidecar.ready().await?;
    wait::until("it registers", || async { registered(script) == 1 }).await?;
    Ok(sidecar)
}

fn registered(script: &Script) -> usize {
    let all = script.ups();
    all.iter().filter(|u| matches!(u.body, Some(Up::Register(_)))).count()
}

/// Messages that take the endpoint away from callers.
fn withdrawn(script: &Script) -> usize {
    let takes = |body: &Option<Up>| match body {
        Some(Up::Health(change)) => !change.healthy,
        Some(Up::Leaving(_)) => true,
        _ => false,
    };
    script.ups().iter().filter(|u| takes(&u.body)).count()
}

async fn in_the_session_it_costs_nothing(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let script = Script::with_session(|_| Vec::new()).await?;
    let mut sidecar = workload(&world, &script, app.addr).await?;
    for n in 1..=2u32 {
        sidecar.panic("session").await?;
        restarted(&mut sidecar, n).await?;
        wait::until("it registers again", || async { registered(&script) == 1 + n as usize }).await?;
        get_ok(sidecar.listen, "/").await?;
    }
    let renewals = || {
        let all = script.ups();
        all.iter().filter(|u| matches!(u.body, Some(Up::Renew(_)))).count()
    };
    let before = renewals();
    wait::until("the lease is renewed", || async { renewals() > before }).await?;
    ensure!(withdrawn(&script) == 0, "{:?}", script.ups());
    sidecar.process.check_alive()
}

async fn in_the_probes_it_costs_nothing(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let script = Script::with_session(|_| Vec::new()).await?;
    let mut sidecar = workload(&world, &script, app.addr).await?;
    for n in 1..=2 {
        sidecar.panic("health").await?;
        restarted(&mut sidecar, n).await?;
        ensure!(withdrawn(&script) == 0, "{:?}", script.ups());
        ensure!(
            get(sidecar.admin, "/readyz").await?.status() == 200,
            "the app is still well"
        );
    }
    app.die().await?;
    wait::until("the probes still see the app's end", || async {
        withdrawn(&script) > 0
    })
    .await?;
    sidecar.process.check_alive()
}

async fn in_the_admin_listener_it_costs_nothing(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::echo).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut open = Client::connect(mesh.caller.admin).await?;
    let live = format!("GET /livez HTTP/1.1\r\nHost: {}\r\n\r\n", mesh.caller.admin);
    for n in 1..=2 {
        ensure!(open.exchange(&live).await?.status() == 200);
        mesh.caller.panic("admin").await?;
        restarted(&mut mesh.caller, n).await?;
        ensure!(
            open.exchange(&live).await?.status() == 200,
            "an open connection goes on"
        );
    }
    Ok(())
}

async fn the_switch_is_off_unless_asked_for(world: Arc<World>) -> Result<()> {
    let (listen, admin) = (ports::free()?, ports::free()?);
    let config = json!({"service": "caller", "admin": admin, "http_proxy": listen, "debug": false});
    let mut sidecar = start(&world, "caller", config, listen, false)?;
    sidecar.ready().await?;
    let mut client = Client::connect(admin).await?;
    let ask = format!("POST /debug/panic?in=admin HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\n\r\n");
    ensure!(client.exchange(&ask).await?.status() == 404);
    // A page in a browser cannot use it either.
    client.end_writing().await?;
    sidecar.check_well()
}
