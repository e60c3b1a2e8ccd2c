//! Clients that send without end, or read without end: each meets its limit, and those beside it do not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::client::{Client, get, get_ok};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::{Mesh, PORT, Plan, Sidecar};
use outrigger_tests::{ports, scenarios, wait};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        pings_without_end,
        settings_without_end,
        window_updates_without_end,
        priorities_without_end,
        unknown_frames_without_end,
        empty_data_without_end,
        continuations_without_end,
        streams_reset_without_end,
        floods_of_an_app_end_its_connection_and_nothing_else,
        pings_and_updates_of_an_ordinary_client_are_welcome,
        connections_of_one_listener_leave_room_for_the_others,
        files_are_kept_back_for_what_must_open,
        readers_that_do_not_read_are_not_fed_without_end,
        header_names_with_an_underscore_are_refused_by_default,
    ]
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `GET / http`, HPACK's static table.
const GET: &[u8] = &[0x82, 0x84, 0x86, 0x41, 1, b'h'];
/// The same as a POST.
const POST: &[u8] = &[0x83, 0x84, 0x86, 0x41, 1, b'h'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn metric(page: &str, name: &str) -> f64 {
    let value = |line: &str| line.rsplit_once(' ').and_then(|(_, v)| v.parse::<f64>().ok());
    page.lines().filter(|l| l.starts_with(name)).filter_map(value).sum()
}

/// Sends `first` and then what `next` makes, reading what comes, until the sidecar ends the connection.
/// Answers how many frames it took.
async fn flood(addr: SocketAddr, first: &[u8], mut next: impl FnMut(u32) -> Vec<u8>) -> Result<u32> {
    let stream = TcpStream::connect(addr).await?;
    let (mut read, mut write) = stream.into_split();
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    write.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    write.write_all(first).await?;
    let drain = tokio::spawn(async move {
        let mut waste = vec![0; 64 * 1024];
        while matches!(read.read(&mut waste).await, Ok(n) if n > 0) {}
    });
    let sent = wait::soon("the end of a flood", async {
        let mut n = 0u32;
        loop {
            let mut some = Vec::new();
            for _ in 0..50 {
                some.extend(next(n));
                n += 1;
            }
            if drain.is_finished() || write.write_all(&some).await.is_err() {
                return Ok(n);
            }
        }
    })
    .await;
    drain.abort();
    sent
}

/// A flood ends, takes little memory, and requests beside it are answered as ever.
async fn judged(world: &World, counted: bool, first: &[u8], next: impl FnMut(u32) -> Vec<u8> + Clone) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default().service("app", "http", &[app.addr]).start(world).await?;
    let addr = mesh.to("app")?;
    get_ok(addr, "/").await?;
    let before = mesh.caller.process.rss_kib()?;
    let beside = async {
        let mut slowest = Duration::ZERO;
        let mut client = Client::connect(addr).await?;
        for _ in 0..100 {
            let asked = Instant::now();
            let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
            ensure!(answer.status() == 200, "{answer:?}");
            slowest = slowest.max(asked.elapsed());
        }
        Ok(slowest)
    };
    let floods = async {
        for _ in 0..3 {
            flood(addr, first, next.clone()).await?;
        }
        Ok(())
    };
    let (slowest, ()) = tokio::try_join!(beside, floods)?;
    ensure!(slowest < Duration::from_secs(5), "a request beside it took {slowest:?}");
    well(&mut mesh, before, counted).await
}

async fn well(mesh: &mut Mesh, before: u64, counted: bool) -> Result<()> {
    let peak = mesh.caller.process.peak_rss_kib()?;
    ensure!(peak < before + 32 * 1024, "memory grew from {before} to {peak} KiB");
    // A connection counts when it has ended here as well, a moment after the client saw it end.
    wait::until("the connections are counted that were ended for it", || async {
        let page = mesh.caller.metrics().await.unwrap_or_default();
        !counted || metric(&page, "outrigger_clients_ended_total") >= 3.0
    })
    .await?;
    mesh.check_well()
}

async fn pings_without_end(world: Arc<World>) -> Result<()> {
    judged(&world, true, &[], |_| frame(PING, 0, 0, &[7; 8])).await
}

async fn settings_without_end(world: Arc<World>) -> Result<()> {
    judged(&world, true, &[], |_| frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0])).await
}

async fn window_updates_without_end(world: Arc<World>) -> Result<()> {
    judged(&world, true, &[], |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await
}

async fn priorities_without_end(world: Arc<World>) -> Result<()> {
    judged(&world, true, &[], |n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1])).await
}

async fn unknown_frames_without_end(world: Arc<World>) -> Result<()> {
    judged(&world, true, &[], |_| frame(0xfa, 0, 0, &[])).await
}

async fn empty_data_without_end(world: Arc<World>) -> Result<()> {
    // h2 ends this one itself, before our budget is used up.
    let open = frame(HEADERS, END_HEADERS, 1, POST);
    judged(&world, false, &open, |_| frame(DATA, 0, 1, &[])).await
}

async fn continuations_without_end(world: Arc<World>) -> Result<()> {
    let open = frame(HEADERS, END_STREAM, 1, GET);
    judged(&world, false, &open, |_| {
        frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'])
    })
    .await
}

async fn streams_reset_without_end(world: Arc<World>) -> Result<()> {
    // Ours, or h2's bound on streams that wait to be begun: whichever is met first.
    judged(&world, false, &[], |n| {
        let mut pair = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET);
        pair.extend(frame(RESET, 0, 2 * n + 1, &[0, 0, 0, 8]));
        pair
    })
    .await
}

/// Answers a connection's first request with `first` and then `next` without end.
async fn hostile_server(stream: TcpStream, first: Arc<[u8]>, next: Arc<[u8]>) -> Result<()> {
    let (mut read, mut write) = stream.into_split();
    write.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    read.read_exact(&mut [0; 24]).await?;
    let mut head = [0; 9];
    while head[3] != HEADERS {
        read.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        read.read_exact(&mut vec![0; length as usize]).await?;
    }
    let drain = async {
        let mut waste = vec![0; 64 * 1024];
        while matches!(read.read(&mut waste).await, Ok(n) if n > 0) {}
    };
    let flood = async {
        write.write_all(&first).await?;
        loop {
            write.write_all(&next).await?;
        }
    };
    tokio::select! {
        () = drain => Ok(()),
        ended = flood => ended,
    }
}

/// An HTTP/2 app whose every connection is like that.
async fn hostile_app(first: Vec<u8>, next: Vec<u8>) -> Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (first, next): (Arc<[u8]>, Arc<[u8]>) = (first.into(), next.into());
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(hostile_server(stream, first.clone(), next.clone()));
        }
    });
    Ok((addr, task))
}

/// What an app or a peer sends without end meets the same limits as what clients send.
async fn floods_of_an_app_end_its_connection_and_nothing_else(world: Arc<World>) -> Result<()> {
    let answer = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    // `:status: 103`
    let early = frame(HEADERS, END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3']);
    let floods = [
        ("pings", true, Vec::new(), frame(PING, 0, 0, &[7; 8])),
        (
            "settings",
            true,
            Vec::new(),
            frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0]),
        ),
        ("resets", true, Vec::new(), frame(RESET, 0, 1, &[0, 0, 0, 8])),
        ("updates", true, Vec::new(), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("early answers", true, Vec::new(), early),
        ("empty data", false, answer, frame(DATA, 0, 1, &[])),
        (
            "continuations",
            false,
            frame(HEADERS, 0, 1, &[0x88]),
            frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y']),
        ),
    ];
    for (what, counted, first, one) in floods {
        let (hostile, task) = hostile_app(first, one.repeat(50)).await?;
        let good = H1App::echo().await?;
        let mut mesh = Plan::default()
            .service("hostile", "http2", &[hostile])
            .service("good", "http", &[good.addr])
            .start(&world)
            .await?;
        let (bad, good) = (mesh.to("hostile")?, mesh.to("good")?);
        get_ok(good, "/").await?;
        let before = mesh.inbound("hostile", 0)?.process.rss_kib()?;
        for _ in 0..3 {
            // Soon: the connection ends although the flood does not.
            let asked = wait::soon(what, async { Ok(get(bad, "/").await) }).await?;
            // A head may have been passed on by then; a whole answer never.
            ensure!(
                !asked.is_ok_and(|a| a.status() < 500 && a.body.complete),
                "{what}: an answer"
            );
            get_ok(good, "/").await?;
        }
        let sidecar = mesh.inbound("hostile", 0)?;
        wait::until("the connections are counted that were ended for it", || async {
            drop(get(bad, "/").await);
            let page = sidecar.metrics().await.unwrap_or_default();
            !counted || metric(&page, "outrigger_upstreams_ended_total") >= 3.0
        })
        .await
        .context(what)?;
        let peak = sidecar.process.peak_rss_kib()?;
        ensure!(
            peak < before + 32 * 1024,
            "{what}: memory grew from {before} to {peak} KiB"
        );
        mesh.check_well().context(what)?;
        task.abort();
    }
    Ok(())
}

async fn pings_and_updates_of_an_ordinary_client_are_welcome(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::bulk).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    // The client of the h2 crate updates its windows as it reads.
    let mut client = H2Client::connect(addr, 16 * 1024).await?;
    for _ in 0..4 {
        let whole = client.exchange(request("GET", addr, "/8388608", &[])?, None).await?;
        ensure!(whole.head.status() == 200 && whole.error.is_none(), "{:?}", whole.error);
    }
    let page = mesh.caller.metrics().await?;
    ensure!(metric(&page, "outrigger_clients_ended_total") == 0.0);
    mesh.check_well()
}

async fn connections_of_one_listener_leave_room_for_the_others(world: Arc<World>) -> Result<()> {
    let (app, other) = (H1App::echo().await?, H1App::echo().await?);
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .service("other", "http", &[other.addr])
        .caller(json!({"limits": {"max_connections": 30, "max_connections_per_listener": 10}}))
        .start(&world)
        .await?;
    let mut kept = Vec::new();
    for _ in 0..60 {
        kept.push(TcpStream::connect(mesh.to("app")?).await?);
    }
    let caller = &mesh.caller;
    wait::until("connections are refused", || async {
        caller
            .metrics()
            .await
            .is_ok_and(|page| metric(&page, "outrigger_connections_refused_total") >= 45.0)
    })
    .await?;
    get_ok(mesh.to("other")?, "/").await?;
    drop(kept);
    let addr = mesh.to("app")?;
    wait::until("there is room again", || async {
        get(addr, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    mesh.check_well()
}

async fn files_are_kept_back_for_what_must_open(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let (listen, admin) = (ports::free()?, ports::free()?);
    let config = json!({
        "service": "app",
        "admin": admin,
        "inbound": [{"name": PORT, "protocol": "http", "listen": listen, "app": app.addr}],
    });
    let path = world.write("few.yaml", &config.to_string())?;
    let program = outrigger_tests::world::program("outrigger-sidecar")?;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -n 120; exec \"$0\" --config \"$1\""])
        .arg(program)
        .arg(path);
    let mut sidecar = Sidecar {
        process: world.spawn("few", command)?,
        admin,
        listen,
    };
    sidecar.ready().await?;
    let mut first = Client::connect(listen).await?;
    ensure!(first.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?.status() == 200);
    let mut kept = Vec::new();
    for _ in 0..300 {
        kept.push(TcpStream::connect(listen).await.context("the backlog takes them")?);
    }
    let at_limit = wait::until("accepting pauses", || async {
        get_ok(admin, "/metrics")
            .await
            .is_ok_and(|a| metric(&a.text(), "outrigger_accept_paused_total") > 0.0)
    });
    at_limit.await.context("the admin listener answers all the while")?;
    // Longer than an unused connection to the app is kept: this one is new.
    let used = Instant::now();
    wait::until("the app's connection is too old to be used", || {
        std::future::ready(used.elapsed() > Duration::from_secs(5))
    })
    .await?;
    ensure!(first.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?.status() == 200);
    ensure!(get_ok(admin, "/livez").await?.status() == 200);
    drop(kept);
    wait::until("it takes connections again", || async {
        get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    sidecar.check_well()
}

async fn readers_that_do_not_read_are_not_fed_without_end(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::bulk).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .caller(json!({"limits": {"max_buffered_bytes": 1 << 20}}))
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let before = mesh.caller.process.rss_kib()?;
    // Large windows, and nothing is read from the socket: what the client asked for stays with the sidecar.
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(addr).await?;
        socket2::SockRef::from(&stream).set_recv_buffer_size(4096)?;
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
        for n in 0..100u32 {
            let mut head = vec![0x82, 0x86, 0x04, 8];
            head.extend(b"/8388608");
            head.extend([0x41, 1, b'h']);
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head));
        }
        stream.write_all(&bytes).await?;
        stuck.push(stream);
    }
    wait::until("requests are shed", || async {
        let mut shed = 0;
        for _ in 0..4 {
            let answer = get(addr, "/1").await;
            shed += u32::from(answer.is_ok_and(|a| a.status() == 503 && a.reason() == Some("overloaded")));
        }
        shed > 0
    })
    .await?;
    let peak = mesh.caller.process.peak_rss_kib()?;
    ensure!(peak < before + 128 * 1024, "memory grew from {before} to {peak} KiB");
    drop(stuck);
    wait::until("it serves again", || async {
        get(addr, "/1").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    mesh.check_well()
}

async fn header_names_with_an_underscore_are_refused_by_default(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    let answer = client
        .exchange("GET / HTTP/1.1\r\nHost: h\r\nX_User: admin\r\n\r\n")
        .await?;
    ensure!(
        answer.status() == 400 && answer.reason() == Some("bad_request"),
        "{answer:?}"
    );
    ensure!(app.seen.requests() == 0, "the app saw it");
    mesh.check_well()
}
