//! Clients that read large answers a byte at a time, over HTTP/1, HTTP/2 and the tunnel: what is held for each is bounded,
//! the app stands still meanwhile, others go on, and all of it is given back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::get_ok;
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{World, over_both, wait, world};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        over_http1_they_cost_little,
        over_http2_they_cost_little,
        over_the_tunnel_they_cost_little,
    ]
}

const READERS: usize = 60;
/// What a sidecar may hold for each, and for other things meanwhile. A piece of 64 KiB that was read, one that waits to be
/// taken, and room for a third is what HTTP holds of an answer.
const EACH_KIB: u64 = 250;
const OTHER_KIB: u64 = 16 * 1024;

/// A handshake may take long on a busy machine, and is not what is tested.
fn patient(service: &mut wire::Service) {
    service.connect_timeout_ms = 30_000;
}

/// What the app did for slow readers.
#[derive(Debug, Default)]
struct Fed {
    bytes: AtomicU64,
    begun: AtomicUsize,
    given_up: AtomicUsize,
}

/// Writes until nobody listens any more.
async fn feed(io: &mut (impl AsyncWrite + Unpin), fed: &Fed) {
    let block = vec![b'x'; 64 * 1024];
    fed.begun.fetch_add(1, SeqCst);
    while let Ok(n) = io.write(&block).await {
        fed.bytes.fetch_add(n as u64, SeqCst);
    }
    fed.given_up.fetch_add(1, SeqCst);
}

/// Reads a byte now and then, until the connection ends or the test does.
async fn read_slowly(to: SocketAddr, says: Vec<u8>) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    // As few bytes as possible are the kernel's.
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(&says).await?;
    let mut pace = tokio::time::interval(Duration::from_millis(250));
    let mut byte = [0];
    while stream.read(&mut byte).await? > 0 {
        pace.tick().await;
    }
    Ok(())
}

async fn feeder(fed: &Arc<Fed>) -> Result<H1App> {
    let fed = fed.clone();
    H1App::start(move |mut request: h1::Request| {
        let fed = fed.clone();
        async move {
            if request.head.word(1) == "/" {
                return h1::echo(request).await;
            }
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
            request.io.write_all(head).await?;
            feed(&mut request.io, &fed).await;
            Ok(None)
        }
    })
    .await
}

/// Begins with `says` for each reader at `to`; `beside` goes on meanwhile.
async fn bounded(mesh: &mut Mesh, fed: &Fed, to: SocketAddr, says: &[u8], beside: SocketAddr) -> Result<JoinSet<()>> {
    get_ok(beside, "/").await?;
    let before = [
        mesh.caller.process.rss_kib()?,
        mesh.inbound("app", 0)?.process.rss_kib()?,
    ];
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let says = says.to_vec();
        readers.spawn(async move { drop(read_slowly(to, says).await) });
    }
    wait::until("all of them read", || async { fed.begun.load(SeqCst) >= READERS }).await?;
    // Beside them; the app stands still when it has written nothing while many others were answered.
    wait::until("the app is held back", || async {
        let bytes = fed.bytes.load(SeqCst);
        for _ in 0..40 {
            if get_ok(beside, "/").await.is_err() {
                return false;
            }
        }
        fed.bytes.load(SeqCst) < bytes + 1024 * 1024
    })
    .await?;
    let after = [
        mesh.caller.process.rss_kib()?,
        mesh.inbound("app", 0)?.process.rss_kib()?,
    ];
    for (who, (before, after)) in ["caller", "callee"].into_iter().zip(before.into_iter().zip(after)) {
        let grown = after.saturating_sub(before);
        world::figure(format!("{READERS} slow readers: {who} grew by {grown} KiB"));
        let most = EACH_KIB * READERS as u64 + OTHER_KIB;
        ensure!(grown < most, "{who} grew from {before} to {after} KiB");
    }
    for _ in 0..50 {
        get_ok(beside, "/").await?;
    }
    Ok(readers)
}

/// The clients go, and all of it with them. Those that only stop are closed after 65 s (SECURITY.md).
async fn end(mesh: &mut Mesh, fed: &Fed, mut readers: JoinSet<()>, beside: SocketAddr) -> Result<()> {
    readers.shutdown().await;
    wait::until("the app is let go", || async {
        fed.given_up.load(SeqCst) == fed.begun.load(SeqCst)
    })
    .await?;
    get_ok(beside, "/").await?;
    mesh.check_well()
}

async fn over_http1_they_cost_little(world: Arc<World>) -> Result<()> {
    over_http(world, b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n").await
}

async fn over_http2_they_cost_little(world: Arc<World>) -> Result<()> {
    // RFC 9113 §3.4 and §6.5.2: the largest windows, so that nothing but the socket bounds what is sent; HPACK's static
    // table has all of the head but its path.
    let mut says = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    says.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]);
    says.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0]);
    let head = [&[0x82, 0x86, 0x04, 5][..], b"/long", &[0x41, 1, b'h']].concat();
    says.extend([0, 0, u8::try_from(head.len())?, 1, 5, 0, 0, 0, 1]);
    says.extend(head);
    over_http(world, &says).await
}

async fn over_http(world: Arc<World>, says: &[u8]) -> Result<()> {
    let fed = Arc::new(Fed::default());
    let app = feeder(&fed).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .policy(patient)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let readers = bounded(&mut mesh, &fed, to, says, to).await?;
    end(&mut mesh, &fed, readers, to).await
}

async fn over_the_tunnel_they_cost_little(world: Arc<World>) -> Result<()> {
    let fed = Arc::new(Fed::default());
    let echo = H1App::echo().await?;
    let feeds = fed.clone();
    let app = TcpApp::start(move |mut stream, _| {
        let fed = feeds.clone();
        async move {
            feed(&mut stream, &fed).await;
            Ok(())
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "tcp", &[app.addr])
        .policy(patient)
        .service("echo", "http", &[echo.addr])
        .policy(patient)
        .start(&world)
        .await?;
    let (to, beside) = (mesh.to("app")?, mesh.to("echo")?);
    let readers = bounded(&mut mesh, &fed, to, b"", beside).await?;
    end(&mut mesh, &fed, readers, beside).await
}
