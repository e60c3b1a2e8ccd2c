//! Memory stays flat: long bodies stream, stopped readers stop their own stream only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{Client, get_ok};
use outrigger_tests::h2::{H2Client, request, whole};
use outrigger_tests::http1::Io;
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{over_both, runner, world};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) fn tests() -> Vec<Trial> {
    let long = Duration::from_secs(300);
    let room = module_path!();
    let mut tests = over_both![a_stopped_reader_holds_back_the_app, stopped_streams_do_not_delay_others];
    tests.extend(runner::over_both(
        room,
        "a_long_download_needs_no_memory",
        long,
        a_long_download_needs_no_memory,
    ));
    tests.extend(runner::over_both(
        room,
        "a_long_upload_needs_no_memory",
        long,
        a_long_upload_needs_no_memory,
    ));
    tests
}

/// A body that no memory would hold; `OUTRIGGER_BULK_MIB` shortens it on slow machines.
fn bulk_bytes() -> u64 {
    let mib = std::env::var("OUTRIGGER_BULK_MIB").ok().and_then(|v| v.parse().ok());
    mib.unwrap_or(1024_u64) << 20
}

/// The most that one sidecar may grow while it passes on one long body.
const GROWTH_KIB: u64 = 32 * 1024;
/// The most that one sidecar may hold with 1,000 stopped streams.
const STOPPED_KIB: u64 = 256 * 1024;

async fn bulk(world: &World) -> Result<(H1App, Mesh)> {
    let app = H1App::start(h1::bulk).await?;
    let mesh = Plan::default().service("app", "http", &[app.addr]).start(world).await?;
    Ok((app, mesh))
}

fn check_growth(mesh: &mut Mesh, before: [u64; 2]) -> Result<()> {
    let peaks = [
        mesh.caller.process.peak_rss_kib()?,
        mesh.inbound("app", 0)?.process.peak_rss_kib()?,
    ];
    for (peak, before) in peaks.into_iter().zip(before) {
        ensure!(peak < before + GROWTH_KIB, "memory grew from {before} to {peak} KiB");
    }
    mesh.check_well()
}

async fn a_long_download_needs_no_memory(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = bulk(&world).await?;
    get_ok(mesh.to("app")?, "/1000").await?;
    let before = [
        mesh.caller.process.rss_kib()?,
        mesh.inbound("app", 0)?.process.rss_kib()?,
    ];
    let (bytes, start) = (bulk_bytes(), Instant::now());
    let mut stream = tokio::net::TcpStream::connect(mesh.to("app")?).await?;
    stream
        .write_all(format!("GET /{bytes} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let (mut got, mut block) = (0_u64, vec![0; 256 * 1024]);
    loop {
        let read = stream.read(&mut block).await?;
        if read == 0 {
            break;
        }
        got += read as u64;
    }
    ensure!(got > bytes && got < bytes + 1000, "{got} bytes of {bytes} and a head");
    note("download", bytes, start);
    check_growth(&mut mesh, before)
}

async fn a_long_upload_needs_no_memory(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = bulk(&world).await?;
    get_ok(mesh.to("app")?, "/1000").await?;
    let before = [
        mesh.caller.process.rss_kib()?,
        mesh.inbound("app", 0)?.process.rss_kib()?,
    ];
    let (bytes, start) = (bulk_bytes(), Instant::now());
    let mut client = Client::connect(mesh.to("app")?).await?;
    client
        .send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {bytes}\r\n\r\n"))
        .await?;
    let block = vec![b'x'; 1 << 20];
    for _ in 0..bytes >> 20 {
        client.send(&block).await?;
    }
    let answer = client.answer("POST").await?;
    ensure!(answer.text() == bytes.to_string(), "{answer:?}");
    note("upload", bytes, start);
    check_growth(&mut mesh, before)
}

fn note(what: &str, bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let mib = bytes >> 20;
    world::figure(format!("{what} of {mib} MiB through two sidecars: {seconds:.1} s"));
}

async fn a_stopped_reader_holds_back_the_app(world: Arc<World>) -> Result<()> {
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let app = H1App::start(move |mut request: h1::Request| {
        let counter = Arc::clone(&counter);
        async move {
            request
                .io
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
                .await?;
            let block = vec![b'x'; 64 * 1024];
            loop {
                request.io.write_all(&block).await?;
                counter.fetch_add(block.len() as u64, std::sync::atomic::Ordering::SeqCst);
            }
            #[allow(unreachable_code, reason = "gives the block its type")]
            anyhow::Ok(None::<Io>)
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    client.head().await?;
    // The app stands still when two looks a good while apart show the same count.
    let mut last = u64::MAX;
    outrigger_tests::wait::until("the app is held back", || {
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        let stands = now == last;
        last = now;
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stands
        }
    })
    .await?;
    let held = sent.load(std::sync::atomic::Ordering::SeqCst);
    let (caller, inbound) = (
        mesh.caller.process.rss_kib()?,
        mesh.inbound("app", 0)?.process.rss_kib()?,
    );
    world::figure(format!("bytes on their way to a stopped reader: {held}"));
    ensure!(
        held < 64 << 20,
        "{held} bytes are on their way to a client that reads nothing; caller {caller} KiB, inbound {inbound} KiB"
    );
    mesh.check_well()
}

async fn stopped_streams_do_not_delay_others(world: Arc<World>) -> Result<()> {
    let app = H2App::start(|request, _| async move {
        let size = if request.uri().path() == "/small" { 2 } else { 1 << 20 };
        outrigger_tests::apps::h2c::full(vec![b'x'; size])
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    // Ten clients with a hundred streams each that read the head and then nothing.
    let (mut clients, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let mut client = H2Client::connect(addr, 65_535).await?;
        let mut answers = Vec::new();
        for _ in 0..100 {
            let (answer, _) = client.start(request("GET", addr, "/big", &[])?, true).await?;
            answers.push(answer);
        }
        for answer in answers {
            stopped.push(outrigger_tests::wait::soon("a head", async { Ok(answer.await?) }).await?);
        }
        clients.push(client);
    }
    ensure!(stopped.len() == 1000);
    let start = Instant::now();
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let (answer, _) = client.start(request("GET", addr, "/small", &[])?, true).await?;
    let answer = whole(answer).await?;
    ensure!(answer.body == b"xx" && answer.error.is_none(), "{answer:?}");
    world::figure(format!(
        "request beside 1,000 stopped streams: {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    ));
    let (caller, inbound) = (
        mesh.caller.process.peak_rss_kib()?,
        mesh.inbound("app", 0)?.process.peak_rss_kib()?,
    );
    world::figure(format!(
        "memory with 1,000 stopped streams: caller {caller} KiB, inbound {inbound} KiB"
    ));
    ensure!(
        caller < STOPPED_KIB && inbound < STOPPED_KIB,
        "caller {caller} KiB, inbound {inbound} KiB"
    );
    mesh.check_well()
}
