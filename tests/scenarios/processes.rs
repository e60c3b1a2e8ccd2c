//! Real programs that stop, are killed, run out of descriptors or leave without a word, and servers that say goodbye
//! with GOAWAY: every request gets an answer or a reason, and afterwards everything is as before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::client::{Answer, Client, get, get_ok, once};
use outrigger_tests::h2::{H2Client, request, whole};
use outrigger_tests::line::Line;
use outrigger_tests::mesh::{Mesh, PORT, Plan, Sidecar, secure};
use outrigger_tests::{World, over_both, ports, tools, wait};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        a_stopped_app_is_left_alone_until_it_goes_on,
        a_stopped_sidecar_is_left_alone_until_it_goes_on,
        a_killed_sidecar_costs_what_it_had_and_nothing_more,
        a_sidecar_without_descriptors_for_its_app_says_so_and_comes_back,
        an_app_that_never_reads_meets_the_deadline,
        an_app_that_takes_no_connection_is_passed_over,
        a_machine_that_is_gone_without_a_word_is_noticed,
        a_caller_that_is_gone_without_a_word_is_noticed,
        the_goodbye_of_nginx_costs_no_request,
    ]
}

const POST: &str = "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none";

fn turns(service: &mut wire::Service) {
    // A handshake may take long on a busy machine, and is not what is tested.
    service.connect_timeout_ms = 15_000;
    // Each in turn: who is asked is known.
    service.balance = wire::Balance::RoundRobin as i32;
    service.outlier = Some(wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
}

fn ejecting(service: &mut wire::Service) {
    service.connect_timeout_ms = 15_000;
    service.balance = wire::Balance::RoundRobin as i32;
    service.outlier = Some(wire::Outlier {
        trip: Some(wire::Trip {
            consecutive: 2,
            ..wire::Trip::default()
        }),
        ejection_ms: 6_000,
        ..wire::Outlier::default()
    });
}

/// Answers its name.
fn named(name: &'static str) -> impl Fn(h1::Request) -> h1::Fixed + Clone + Send + Sync + 'static {
    h1::fixed(match name {
        "first" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond",
    })
}

/// Waits until `who` answers.
async fn answers(to: SocketAddr, who: &str) -> Result<()> {
    wait::until_within(Duration::from_secs(60), &format!("{who} answers"), || async {
        get(to, "/").await.is_ok_and(|a| a.status() == 200 && a.text() == who)
    })
    .await
}

/// While `first` is stopped: two time-outs in turn at most, then everything goes to `second`.
async fn stopped(to: SocketAddr) -> Result<()> {
    let mut late = 0;
    for _ in 0..20 {
        let answer = once(to, POST).await?;
        if answer.status() != 200 {
            ensure!(
                answer.status() == 504 && answer.reason() == Some("deadline"),
                "{answer:?}"
            );
            late += 1;
        } else {
            ensure!(answer.text() == "second", "{answer:?}");
        }
    }
    ensure!(late == 2, "{late} met the deadline, two in a row are ejected");
    Ok(())
}

async fn a_stopped_app_is_left_alone_until_it_goes_on(world: Arc<World>) -> Result<()> {
    let (first, at) = tools::nginx(&world, "", "location / { return 200 first; }").await?;
    let second = H1App::start(named("second")).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[at, second.addr])
        .timeout_ms(1_500)
        .policy(ejecting)
        .workers(1)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    answers(to, "first").await?;
    answers(to, "second").await?;
    first.stop().await?;
    stopped(to).await?;
    first.signal(Signal::SIGCONT)?;
    answers(to, "first").await?;
    mesh.check_well()
}

async fn a_stopped_sidecar_is_left_alone_until_it_goes_on(world: Arc<World>) -> Result<()> {
    let (first, second) = (
        H1App::start(named("first")).await?,
        H1App::start(named("second")).await?,
    );
    let mut mesh = Plan::default()
        .service("app", "http", &[first.addr, second.addr])
        .timeout_ms(1_500)
        .policy(ejecting)
        .workers(1)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    answers(to, "first").await?;
    answers(to, "second").await?;
    mesh.inbound("app", 0)?.process.stop().await?;
    stopped(to).await?;
    mesh.inbound("app", 0)?.process.signal(Signal::SIGCONT)?;
    answers(to, "first").await?;
    mesh.check_well()
}

async fn a_killed_sidecar_costs_what_it_had_and_nothing_more(world: Arc<World>) -> Result<()> {
    const HELD: usize = 5;
    let first = H1App::start(|request: h1::Request| async move {
        match request.head.word(1) {
            "/hold" => h1::silent(request).await,
            _ => named("first")(request).await,
        }
    })
    .await?;
    let second = H1App::start(named("second")).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[first.addr, second.addr])
        .policy(turns)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    answers(to, "first").await?;
    answers(to, "second").await?;
    let mut held = JoinSet::new();
    // In turn, so that as many are held by the first as are answered by the second.
    let before = first.seen.requests();
    while first.seen.requests() < before + HELD {
        let mut client = Client::connect(to).await?;
        let (seen, reached) = (first.seen.requests(), second.seen.requests());
        client
            .send("POST /hold HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none")
            .await?;
        wait::until("one of them has it", || async {
            first.seen.requests() > seen || second.seen.requests() > reached
        })
        .await?;
        if first.seen.requests() > seen {
            held.spawn(async move { client.answer("POST").await });
        }
    }
    let reached = second.seen.requests();
    mesh.inbound("app", 0)?.process.kill()?;
    while let Some(answer) = held.join_next().await {
        let answer: Answer = answer??;
        ensure!(
            answer.status() == 502 && answer.reason() == Some("upstream_reset"),
            "{answer:?}"
        );
    }
    ensure!(second.seen.requests() == reached, "what was held was sent again");
    for _ in 0..20 {
        let answer = once(to, POST).await?;
        ensure!(answer.status() == 200 && answer.text() == "second", "{answer:?}");
    }
    let file = world.dir().join("app-0.yaml");
    let mut command = world.program("outrigger-sidecar")?;
    command.arg("--config").arg(file);
    mesh.inbound("app", 0)?.process = world.spawn("app-0-again", command)?;
    mesh.inbound("app", 0)?.ready().await?;
    answers(to, "first").await?;
    mesh.check_well()
}

async fn a_sidecar_without_descriptors_for_its_app_says_so_and_comes_back(world: Arc<World>) -> Result<()> {
    const STREAMS: usize = 110;
    let app = H1App::start(|request: h1::Request| async move {
        match request.head.word(1) {
            "/hold" => h1::silent(request).await,
            _ => h1::echo(request).await,
        }
    })
    .await?;
    let (listen, admin) = (ports::free()?, ports::free()?);
    let mut config = json!({
        "service": "app",
        "instance": "app-0",
        "admin": admin,
        "workers": 1,
        "inbound": [{"name": PORT, "protocol": "http", "listen": listen, "app": app.addr}],
        "resources": {"proxy": {"name": "default/app"}},
    });
    // Its client is the test, in plain; the settings of a secure world are its own.
    secure(&world, "app", &mut config)?;
    config["resources"]["proxy"]["mode"] = json!("permissive");
    let path = world.write("few.yaml", &config.to_string())?;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -n 90; exec \"$0\" --config \"$1\""])
        .arg(outrigger_tests::world::program("outrigger-sidecar")?)
        .arg(path);
    let mut sidecar = Sidecar {
        process: world.spawn("few", command)?,
        admin,
        listen,
    };
    sidecar.ready().await?;
    // One connection, and each of its streams needs one of its own to the app.
    let mut client = H2Client::connect(listen, 1 << 16).await?;
    let whole_one = client.exchange(request("GET", listen, "/", &[])?, None).await?;
    ensure!(whole_one.head.status() == 200, "{whole_one:?}");
    let (mut pending, mut streams) = (JoinSet::new(), Vec::new());
    for _ in 0..STREAMS {
        let (answer, stream) = client.start(request("GET", listen, "/hold", &[])?, true).await?;
        streams.push(stream);
        pending.spawn(answer);
    }
    // Those that found no descriptor have a reason; the others wait for the app.
    let shed = pending.join_next().await.context("an answer")??;
    match shed {
        Ok(answer) => {
            let reason = answer.headers().get("outrigger-reason").and_then(|r| r.to_str().ok());
            ensure!(
                answer.status() == 503 && reason.is_some_and(|r| r == "overloaded" || r == "app_unreachable"),
                "{answer:?}"
            );
        }
        // Nothing of it went anywhere: another instance may be asked.
        Err(error) => ensure!(error.reason() == Some(h2::Reason::REFUSED_STREAM), "{error}"),
    }
    // Alive, and it says so.
    get_ok(admin, "/livez").await?;
    drop((pending, streams));
    wait::until("it serves again", || async {
        get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    sidecar.check_well()
}

async fn an_app_that_never_reads_meets_the_deadline(world: Arc<World>) -> Result<()> {
    let app = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let at = app.local_addr()?;
    let holding = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = app.accept().await {
            kept.push(stream);
        }
    });
    let mut mesh = Plan::default()
        .service("app", "http", &[at])
        .timeout_ms(1_500)
        .policy(turns)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let long = format!(
        "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n{}",
        "x".repeat(200_000)
    );
    for ask in ["GET / HTTP/1.1\r\nHost: h\r\n\r\n", POST, &long] {
        let answer = once(to, ask).await?;
        ensure!(
            answer.status() == 504 && answer.reason() == Some("deadline"),
            "{answer:?}"
        );
    }
    holding.abort();
    mesh.check_well()
}

async fn an_app_that_takes_no_connection_is_passed_over(world: Arc<World>) -> Result<()> {
    let second = H1App::start(named("second")).await?;
    // A queue of one, and it is full: the kernel drops every SYN.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(0)?;
    let at = socket.local_addr()?.as_socket().context("an address")?;
    let _in_queue = tokio::net::TcpStream::connect(at).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[at, second.addr])
        .policy(turns)
        .workers(1)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    answers(to, "second").await?;
    let before = second.seen.requests();
    for _ in 0..6 {
        let answer = once(to, POST).await?;
        ensure!(answer.status() == 200 && answer.text() == "second", "{answer:?}");
    }
    ensure!(second.seen.requests() == before + 6);
    mesh.check_well()
}

/// A mesh whose first endpoint is behind a line.
async fn lined(world: &World, apps: &[SocketAddr], timeout_ms: u32) -> Result<(Mesh, Line)> {
    let line = Line::start().await?;
    let port = line.addr.port();
    let mut mesh = Plan::default()
        .service("app", "http", apps)
        .timeout_ms(timeout_ms)
        .policy(turns)
        // Nobody answers on a line that is dead: this is how soon that is known.
        .policy(|service| service.connect_timeout_ms = 1_000)
        .endpoints(move |i, endpoint| {
            if let Some(at) = endpoint.ports.first_mut().filter(|_| i == 0) {
                at.port = u32::from(port);
            }
        })
        .workers(1)
        .start(world)
        .await?;
    line.lead_to(mesh.inbound("app", 0)?.listen);
    Ok((mesh, line))
}

async fn a_machine_that_is_gone_without_a_word_is_noticed(world: Arc<World>) -> Result<()> {
    let (first, second) = (
        H1App::start(named("first")).await?,
        H1App::start(named("second")).await?,
    );
    let (mut mesh, line) = lined(&world, &[first.addr, second.addr], 4_000).await?;
    let to = mesh.to("app")?;
    answers(to, "first").await?;
    answers(to, "second").await?;
    line.go_dead()?;
    let seen = first.seen.requests();
    // What is on the connection that is dead meets the deadline; when pings have found that out nobody is connected
    // to, nothing was sent, and the other one gets it.
    let row = AtomicUsize::new(0);
    wait::until_within(Duration::from_secs(90), "nothing is lost any more", || async {
        let answer = once(to, POST).await;
        match answer.as_ref().map(|a| (a.status(), a.reason())) {
            Ok((200, _)) => row.fetch_add(1, SeqCst),
            _ => row.swap(0, SeqCst),
        };
        row.load(SeqCst) >= 4
    })
    .await?;
    ensure!(first.seen.requests() == seen, "the line was to be dead");
    mesh.check_well()
}

async fn a_caller_that_is_gone_without_a_word_is_noticed(world: Arc<World>) -> Result<()> {
    let app = H1App::start(|request: h1::Request| async move {
        match request.head.word(1) {
            "/hold" => h1::silent(request).await,
            _ => named("first")(request).await,
        }
    })
    .await?;
    let (mesh, line) = lined(&world, &[app.addr], 0).await?;
    let to = mesh.to("app")?;
    answers(to, "first").await?;
    let before = app.seen.requests();
    let mut client = Client::connect(to).await?;
    client.send("GET /hold HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    app.seen.wait_requests(before + 1).await?;
    line.go_dead()?;
    // The app is not left working for nobody.
    wait::until_within(Duration::from_secs(90), "the app hears of it", || async {
        app.seen.cancelled.load(SeqCst) == 1
    })
    .await
}

async fn the_goodbye_of_nginx_costs_no_request(world: Arc<World>) -> Result<()> {
    const CLIENTS: usize = 4;
    const EACH: usize = 60;
    let goodbye = "keepalive_requests 7; location / { return 200 nginx; }";
    let (_nginx, at) = tools::nginx(&world, "http2", goodbye).await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[at])
        .policy(turns)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut client = H2Client::connect(to, 1 << 16).await?;
            for i in 0..EACH {
                // Each kind in turn; a POST is tried again only when nginx said that it did not take it.
                let (method, body) = match i % 2 {
                    0 => ("GET", None),
                    _ => ("POST", Some(Bytes::from_static(b"one"))),
                };
                let (answer, mut stream) = client.start(request(method, to, "/", &[])?, body.is_none()).await?;
                if let Some(body) = body {
                    stream.send_data(body, true).ok();
                }
                let answer = whole(answer).await?;
                ensure!(
                    answer.head.status() == 200 && answer.body == b"nginx",
                    "{i}: {answer:?}"
                );
            }
            Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    mesh.check_well()
}
