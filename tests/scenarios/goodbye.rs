//! Real servers that say goodbye by GOAWAY while requests go on: grpc-go to connections of age and when it is told to
//! end, nginx after so many requests. No request fails, and each is done exactly once although none may be done twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::h2::{H2Client, request, whole};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::process::{Process, accepts, read_lossy};
use outrigger_tests::{World, over_both, ports, tools, wait};
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        connections_of_age_at_grpc_go_cost_no_call,
        a_graceful_stop_of_grpc_go_costs_no_call,
        requests_above_the_last_id_of_nginx_are_sent_again,
    ]
}

const UNARY: &str = "/grpc.testing.TestService/UnaryCall";
/// A message without fields (gRPC over HTTP/2, "Length-Prefixed-Message").
const EMPTY: &[u8] = &[0; 5];

/// Nothing here depends on how busy the machine is, and nothing that failed is done twice or left alone.
fn plain(service: &mut wire::Service) {
    service.connect_timeout_ms = 30_000;
    service.outlier = Some(wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
}

/// grpc-go's interop service that says goodbye; `call ID` in its output is a call.
async fn grpc_go(world: &World, at: SocketAddr, args: &[&str]) -> Result<Process> {
    let mut command = tools::tool("grpc_goodbye")?;
    command.arg("-listen").arg(at.to_string()).args(args);
    let process = world.spawn("grpc-goodbye", command)?;
    accepts(at).await?;
    Ok(process)
}

/// How many lines of `output` are `line`.
fn lines(output: &str, line: &str) -> usize {
    output.lines().filter(|l| *l == line).count()
}

/// Calls that go on, each with a number of its own.
struct Calls {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    numbers: Arc<AtomicUsize>,
    tasks: JoinSet<Result<()>>,
}

impl Calls {
    fn on(to: SocketAddr) -> Self {
        let (stop, failed, numbers) = (Arc::default(), Arc::default(), Arc::default());
        let mut calls = Self {
            stop,
            failed,
            numbers,
            tasks: JoinSet::new(),
        };
        for _ in 0..4 {
            let (stop, failed, numbers) = (calls.stop.clone(), calls.failed.clone(), calls.numbers.clone());
            calls.tasks.spawn(async move {
                let mut client = H2Client::connect(to, 1 << 16).await?;
                while !stop.load(SeqCst) {
                    let id = numbers.fetch_add(1, SeqCst).to_string();
                    let fields = [("content-type", "application/grpc"), ("te", "trailers"), ("x-id", &id)];
                    let head = request("POST", to, UNARY, &fields)?;
                    let answer = client.exchange(head, Some(Bytes::from_static(EMPTY))).await;
                    let answer = answer.inspect_err(|_| failed.store(true, SeqCst))?;
                    let status = answer.trailers.get("grpc-status").and_then(|v| v.to_str().ok());
                    let well = status == Some("0") && answer.error.is_none();
                    if !well {
                        failed.store(true, SeqCst);
                    }
                    ensure!(well, "call {id}: {answer:?}");
                }
                Ok(())
            });
        }
        calls
    }

    /// Waits for `more` calls.
    async fn wait(&self, more: usize) -> Result<()> {
        let goal = self.numbers.load(SeqCst) + more;
        wait::until("the calls go on", || async {
            self.numbers.load(SeqCst) >= goal || self.is_over()
        })
        .await
    }

    /// True when a call has failed.
    fn is_over(&self) -> bool {
        self.failed.load(SeqCst)
    }

    /// How many there were; the first that failed fails the test.
    async fn end(mut self) -> Result<usize> {
        self.stop.store(true, SeqCst);
        while let Some(done) = self.tasks.join_next().await {
            done??;
        }
        Ok(self.numbers.load(SeqCst))
    }
}

/// Each of `calls` was done once by one of those that printed `outputs`.
fn once_each(calls: usize, outputs: &str) -> Result<()> {
    let mut done = vec![0; calls];
    for id in outputs.lines().filter_map(|l| l.strip_prefix("call ")) {
        let id: usize = id.parse()?;
        if let Some(n) = done.get_mut(id) {
            *n += 1;
        }
    }
    let wrong: Vec<_> = done.iter().enumerate().filter(|(_, n)| **n != 1).collect();
    ensure!(wrong.is_empty(), "calls and how often each was done: {wrong:?}");
    Ok(())
}

async fn connections_of_age_at_grpc_go_cost_no_call(world: Arc<World>) -> Result<()> {
    const GOODBYES: usize = 12;
    let (meshed, bare) = (ports::free()?, ports::free()?);
    let aged = ["-age", "100ms", "-takes", "3ms"];
    let (behind, alone) = (
        grpc_go(&world, meshed, &aged).await?,
        grpc_go(&world, bare, &aged).await?,
    );
    let mut mesh = Plan::default()
        .service("behind", "grpc", &[meshed])
        .policy(plain)
        .bare_service("alone", "grpc", &[bare])
        .policy(plain)
        .start(&world)
        .await?;
    for (service, server) in [("behind", behind), ("alone", alone)] {
        let calls = Calls::on(mesh.to(service)?);
        // Each connection but the last ends by a goodbye: calls go on all the time.
        wait::until(&format!("connections of {service} are replaced"), || async {
            lines(&server.output(), "connection") > GOODBYES || calls.is_over()
        })
        .await?;
        once_each(calls.end().await?, &server.output())?;
    }
    mesh.check_well()
}

async fn a_graceful_stop_of_grpc_go_costs_no_call(world: Arc<World>) -> Result<()> {
    let at = [ports::free()?, ports::free()?];
    let takes = ["-takes", "10ms"];
    let mut servers = Vec::new();
    for at in at {
        servers.push(grpc_go(&world, at, &takes).await?);
    }
    let mut mesh = Plan::default()
        .service("app", "grpc", &at)
        .policy(plain)
        .start(&world)
        .await?;
    let calls = Calls::on(mesh.to("app")?);
    let mut outputs = String::new();
    for (server, at) in servers.iter_mut().zip(at) {
        wait::until("it has calls", || async {
            server.output().lines().filter(|l| l.starts_with("call ")).count() > 20 || calls.is_over()
        })
        .await?;
        server.signal(Signal::SIGTERM)?;
        outputs += &server.succeed(Duration::from_secs(60)).await?;
        calls.wait(40).await?;
        *server = grpc_go(&world, at, &takes).await?;
    }
    for server in &servers {
        wait::until("it has calls again", || async {
            server.output().contains("call ") || calls.is_over()
        })
        .await?;
    }
    let calls = calls.end().await?;
    servers.iter().for_each(|server| outputs += &server.output());
    once_each(calls, &outputs)?;
    mesh.check_well()
}

/// Sends `BURST` POSTs at once, numbered from `first`.
async fn burst(to: SocketAddr, client: &mut H2Client, first: usize) -> Result<()> {
    let mut answers = JoinSet::new();
    for id in first..first + BURST {
        let (answer, mut stream) = client
            .start(request("POST", to, &format!("/{id}"), &[])?, false)
            .await?;
        stream.send_data(Bytes::from_static(b"one"), true).ok();
        answers.spawn(async move { whole(answer).await });
    }
    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        ensure!(answer.head.status() == 200 && answer.body == b"nginx", "{answer:?}");
    }
    Ok(())
}

const BURST: usize = 32;

async fn requests_above_the_last_id_of_nginx_are_sent_again(world: Arc<World>) -> Result<()> {
    let (mut servers, mut logs) = (Vec::new(), Vec::new());
    for name in ["behind", "alone"] {
        let log = world.dir().join(format!("{name}-access.log"));
        // A goodbye in the middle of every fourth burst or so, and room for those that come again.
        let server = format!(
            "keepalive_requests 100; access_log {}; location / {{ return 200 nginx; }}",
            log.display()
        );
        servers.push(tools::nginx(&world, "http2", &server).await?);
        logs.push(log);
    }
    let mut mesh = Plan::default()
        .service("behind", "http2", &[servers[0].1])
        .policy(plain)
        .bare_service("alone", "http2", &[servers[1].1])
        .policy(plain)
        .workers(1)
        .start(&world)
        .await?;
    for (service, log) in ["behind", "alone"].into_iter().zip(&logs) {
        let to = mesh.to(service)?;
        let mut client = H2Client::connect(to, 1 << 16).await?;
        let (mut first, mut bursts) = (0, 0);
        loop {
            burst(to, &mut client, first).await?;
            (first, bursts) = (first + BURST, bursts + 1);
            let enough = service == "behind" || again(&mesh, service).await? > 0;
            ensure!(enough || bursts < 400, "no stream was above the last id");
            if bursts >= 40 && enough {
                break;
            }
        }
        let posts = || {
            let log = read_lossy(log);
            let paths = log
                .lines()
                .filter_map(|l| l.split("\"POST /").nth(1)?.split(' ').next());
            paths.map(|id| format!("call {id}\n")).collect::<String>()
        };
        wait::until("nginx has written its log", || async {
            posts().lines().count() >= first
        })
        .await?;
        once_each(first, &posts())?;
    }
    mesh.check_well()
}

/// How often what the app had not taken was sent again by the caller's sidecar.
async fn again(mesh: &Mesh, service: &str) -> Result<u64> {
    let text = mesh.caller.metrics().await?;
    let of = |l: &&str| {
        l.starts_with("outrigger_retries_total{")
            && l.contains(&format!("\"default/{service}\""))
            && l.contains("never_sent")
    };
    let counts = text
        .lines()
        .filter(of)
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}
