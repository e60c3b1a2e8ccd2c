//! An app that is a process of its own is killed with requests in flight and under load: what it had is done once or said
//! to be lost, what it never got is done by another, and when it is there again it is used again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::client::{Client, get};
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Plan;
use outrigger_tests::process::{Process, accepts, read_lossy};
use outrigger_tests::{World, over_both, ports, tools, wait};
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![a_killed_app_costs_what_it_had_and_nothing_more]
}

/// Writes each request into its log before it answers; the first of them never answers what it is to hold.
const APP: &str = r#"
import http.server, os, sys, threading

name, port = sys.argv[1], int(sys.argv[2])
log = os.open(sys.argv[3], os.O_APPEND | os.O_CREAT | os.O_WRONLY)

class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        os.write(log, f"{self.command} {self.path}\n".encode())
        if self.path.startswith("/hold/") and name == "first":
            threading.Event().wait()
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())

    do_GET = do_POST = answer
    log_message = lambda *_: None

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

Server(("127.0.0.1", port), App).serve_forever()
"#;

struct App {
    process: Process,
    log: PathBuf,
}

async fn app(world: &World, name: &str, at: SocketAddr) -> Result<App> {
    let log = world.dir().join(format!("{name}.requests"));
    let script = world.write("app.py", APP)?;
    let mut command = tools::tool("python3")?;
    command.arg(script).arg(name).arg(at.port().to_string()).arg(&log);
    let process = world.spawn(name, command)?;
    accepts(at).await?;
    Ok(App { process, log })
}

/// How often `line` is in the log.
fn times(log: &Path, line: &str) -> usize {
    read_lossy(log).lines().filter(|l| *l == line).count()
}

fn turns(service: &mut wire::Service) {
    service.connect_timeout_ms = 30_000;
    service.balance = wire::Balance::RoundRobin as i32;
    service.outlier = Some(wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
    service.retry_budget = Some(wire::RetryBudget {
        percent: 100,
        min_per_second: 100,
    });
    // GET may be done twice (RFC 9110 §9.2.2), POST may not.
    service.policy.get_or_insert_default().retry = Some(wire::Retry {
        attempts: 3,
        backoff_ms: 1,
        ..wire::Retry::default()
    });
}

/// Asks `path` on a connection of its own.
async fn ask(to: SocketAddr, method: &str, path: &str) -> Result<(u16, Option<String>, String)> {
    let body = if method == "POST" { "one" } else { "" };
    let length = body.len();
    let mut client = Client::connect(to).await?;
    let answer = client
        .exchange(&format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await?;
    Ok((answer.status(), answer.reason().map(str::to_owned), answer.text()))
}

/// POSTs of four clients, each with a path of its own; which of them were answered.
async fn posts(to: SocketAddr, stop: Arc<AtomicBool>, dead: Arc<AtomicBool>) -> Result<Vec<(String, bool)>> {
    let mut clients = JoinSet::new();
    for client in 0..4 {
        let (stop, dead) = (stop.clone(), dead.clone());
        clients.spawn(async move {
            let mut sent = Vec::new();
            while !stop.load(SeqCst) {
                let path = format!("/load/{client}/{}", sent.len());
                // What begins when the app is gone is never lost.
                let after = dead.load(SeqCst);
                let (status, reason, text) = ask(to, "POST", &path).await?;
                let well = status == 200;
                ensure!(
                    well || (!after && status == 502 && reason.as_deref() == Some("upstream_reset")),
                    "{path}, after the end: {after}: {status} {reason:?} {text}"
                );
                sent.push((path, well));
            }
            Ok(sent)
        });
    }
    let mut all = Vec::new();
    while let Some(sent) = clients.join_next().await {
        all.extend(sent??);
    }
    Ok(all)
}

async fn a_killed_app_costs_what_it_had_and_nothing_more(world: Arc<World>) -> Result<()> {
    const HELD: usize = 3;
    let at = [ports::free()?, ports::free()?];
    let mut first = app(&world, "first", at[0]).await?;
    let second = app(&world, "second", at[1]).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &at)
        .policy(turns)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    // As many of each kind as are needed: in turn, so that every other one is answered by the second.
    let mut held = JoinSet::new();
    for method in ["POST", "GET"] {
        let mut number = 0;
        let holds = || {
            let log = read_lossy(&first.log);
            log.lines()
                .filter(|l| l.starts_with(&format!("{method} /hold/")))
                .count()
        };
        while holds() < HELD {
            let path = format!("/hold/{number}");
            number += 1;
            let line = format!("{method} {path}");
            held.spawn(async move { Ok::<_, anyhow::Error>((method, path.clone(), ask(to, method, &path).await?)) });
            wait::until("one of them has it", || async {
                times(&first.log, &line) + times(&second.log, &line) == 1
            })
            .await?;
        }
    }
    let (stop, dead) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let gets = Load::on(to);
    let posting = tokio::spawn(posts(to, stop.clone(), dead.clone()));
    gets.wait(200).await?;
    first.process.kill()?;
    dead.store(true, SeqCst);
    gets.wait(400).await?;
    // What it had: nobody knows of a POST, so it is not done again; a GET is answered by the other one.
    let (mut broken, mut again) = (0, 0);
    while let Some(done) = held.join_next().await {
        let (method, path, (status, reason, text)) = done??;
        let line = format!("{method} {path}");
        let had = times(&first.log, &line) == 1;
        match (had, method) {
            (true, "POST") => {
                broken += 1;
                ensure!(
                    status == 502 && reason.as_deref() == Some("upstream_reset"),
                    "{line}: {status} {reason:?} {text}"
                );
                ensure!(times(&second.log, &line) == 0, "{line} was done twice");
            }
            _ => {
                again += usize::from(had);
                ensure!(status == 200 && text == "second", "{line}: {status} {reason:?} {text}");
                ensure!(times(&second.log, &line) == 1, "{line}");
            }
        }
    }
    ensure!(broken == HELD && again == HELD, "{broken} broken, {again} done again");
    // Back again: the same port, another process.
    first = app(&world, "first", at[0]).await?;
    wait::until("the first one is used again", || async {
        get(to, "/back").await.is_ok_and(|a| a.text() == "first")
    })
    .await?;
    gets.wait(200).await?;
    stop.store(true, SeqCst);
    let sent = posting.await??;
    gets.end().await?;
    let log = read_lossy(&first.log) + &read_lossy(&second.log);
    let mut counts = HashMap::new();
    for line in log.lines() {
        *counts.entry(line).or_insert(0) += 1;
    }
    for (path, well) in sent {
        let line = format!("POST {path}");
        let done = counts.get(&*line).copied().unwrap_or(0);
        ensure!(
            done <= 1 && (done == 1 || !well),
            "{line}: done {done} times, answered: {well}"
        );
    }
    mesh.check_well()
}
