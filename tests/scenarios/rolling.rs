//! `outrigger restart` under load: the whole blog, real databases; no request fails and each POST counts once.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use outrigger_tests::client::{get_ok, once};
use outrigger_tests::process::Process;
use outrigger_tests::runner::scenario;
use outrigger_tests::world::{program, root};
use outrigger_tests::{World, ports, wait};
use serde_json::{Value, json};
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        scenario(module_path!(), "seven_services_of_one_instance_each", |world| {
            seven(world, 1)
        }),
        scenario(module_path!(), "seven_services_of_two_instances_each", |world| {
            seven(world, 2)
        }),
        scenario(
            module_path!(),
            "one_that_never_gets_well_changes_nothing",
            one_that_never_gets_well_changes_nothing,
        ),
        scenario(
            module_path!(),
            "killed_in_the_middle_it_leaves_nothing",
            killed_in_the_middle_it_leaves_nothing,
        ),
    ]
}

/// Replacing all of them, which takes seconds on an idle machine.
const RESTARTED: Duration = Duration::from_secs(100);
const UP: Duration = Duration::from_secs(60);
const SERVICES: [&str; 7] = ["auth", "user", "blog", "post", "subscribe", "visitor", "gateway"];
const CLIENTS: usize = 3;

async fn seven(world: Arc<World>, replicas: usize) -> Result<()> {
    let at = ports::free()?;
    let data = world.dir().join("data");
    world.write("mesh.yaml", &mesh(at, replicas, &data)?)?;
    let mut up = world.spawn(
        "up",
        outrigger(
            &world,
            &[
                "up",
                "--no-build",
                "--control-plane-port",
                &ports::free()?.port().to_string(),
            ],
        )?,
    )?;
    let healthy = format!("{} of {} healthy", count(replicas), count(replicas));
    wait::until_within(UP, "the blog is up", || {
        let up = up.output().contains(&healthy);
        std::future::ready(up)
    })
    .await?;

    let load = Arc::new(Load::begin(at).await?);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(Arc::clone(&load).work(number));
    }
    load.wait(CLIENTS).await?;
    let restart = world
        .spawn("restart", outrigger(&world, &["restart"])?)?
        .succeed(RESTARTED)
        .await;
    let more = load.wait(CLIENTS).await;
    load.stop.store(true, Ordering::SeqCst);
    while let Some(done) = clients.join_next().await {
        done?.context("a request failed")?;
    }
    let said = restart?;
    more?;
    for service in SERVICES {
        let replaced = said
            .lines()
            .filter(|line| line.starts_with(service) && line.ends_with(": stopped"))
            .count();
        let wanted = if service == "gateway" { 1 } else { replicas };
        ensure!(
            replaced == wanted,
            "{service}: {replaced} of {wanted} replaced:\n{said}"
        );
    }
    load.counted(&data)?;
    down(&world, &mut up).await
}

/// An app that is well for as long as the folder says so when it starts; else it says why and waits.
const MOODY: &str = r#"
import http.server, os, sys, time
if os.path.exists("broken"):
    print("no database", flush=True)
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["OUTRIGGER_INSTANCE"].encode())
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// One app on a fixed port, whose next instance will not become well.
async fn moody(world: &World) -> Result<(Process, SocketAddr)> {
    let at = ports::free()?;
    world.write("app.py", MOODY)?;
    let app = "service: app\nrun: exec python3 app.py\nprotocol: http\nmode: permissive\nhealth: { http: / }";
    world.write("mesh.yaml", &format!("{app}\nport: {}\n", at.port()))?;
    let control = ports::free()?.port().to_string();
    let up = world.spawn("up", outrigger(world, &["up", "--control-plane-port", &control])?)?;
    wait::until_within(UP, "the app is up", || {
        std::future::ready(up.output().contains("1 of 1 healthy"))
    })
    .await?;
    world.write("broken", "")?;
    Ok((up, at))
}

async fn one_that_never_gets_well_changes_nothing(world: Arc<World>) -> Result<()> {
    let (mut up, at) = moody(&world).await?;
    let mut restart = world.spawn("restart", outrigger(&world, &["restart", "app", "--timeout", "5s"])?)?;
    ensure!(restart.wait(RESTARTED).await?.code() == Some(1), "{}", restart.output());
    let said = restart.output();
    for part in [
        "app-2 did not become healthy within 5s",
        "app-1 goes on",
        "\n  no database",
    ] {
        ensure!(said.contains(part), "no {part:?} in {said}");
    }
    ensure!(get_ok(at, "/").await?.body.bytes == b"app-1", "the old one answers");
    let rows = world
        .spawn("ps", outrigger(&world, &["ps", "-o", "json"])?)?
        .succeed(wait::SOON)
        .await?;
    ensure!(rows.contains("app-1") && !rows.contains("app-2"), "{rows}");

    // The next one is well, and takes the port over.
    std::fs::remove_file(world.dir().join("broken"))?;
    let said = world
        .spawn("again", outrigger(&world, &["restart", "app"])?)?
        .succeed(RESTARTED)
        .await?;
    ensure!(said.ends_with("restarted: app-2\n"), "{said}");
    ensure!(get_ok(at, "/").await?.body.bytes == b"app-2", "the new one answers");
    down(&world, &mut up).await
}

async fn killed_in_the_middle_it_leaves_nothing(world: Arc<World>) -> Result<()> {
    let (mut up, _) = moody(&world).await?;
    let restart = world.spawn("restart", outrigger(&world, &["restart", "app"])?)?;
    let described = world.dir().join(".outrigger/run/up.json");
    let both = || {
        let text = std::fs::read_to_string(&described).ok()?;
        let up: Value = serde_json::from_str(&text).ok()?;
        let pids: Vec<_> = up["services"]
            .as_array()?
            .iter()
            .filter_map(|one| one["app_pid"].as_i64())
            .collect();
        (pids.len() == 2).then(|| (up["supervisor"].as_i64(), pids))
    };
    wait::until("both instances run", || std::future::ready(both().is_some())).await?;
    let (supervisor, pids) = both().context("both run")?;
    let supervisor = Pid::from_raw(i32::try_from(supervisor.context("a supervisor")?)?);
    nix::sys::signal::kill(supervisor, Signal::SIGKILL)?;
    // The front ends what the supervisor cannot any more.
    up.wait(wait::SOON).await?;
    let gone = |pid: &i64| !Path::new("/proc").join(pid.to_string()).exists();
    wait::until("no app remains", || std::future::ready(pids.iter().all(gone))).await?;
    world
        .spawn("down", outrigger(&world, &["down"])?)?
        .succeed(wait::SOON)
        .await?;
    ensure!(!world.dir().join(".outrigger/run").exists(), "the run folder remains");
    drop(restart);
    Ok(())
}

/// The blog's own mesh.yaml with the programs under test, its data in `data`, and its web address at `at`.
fn mesh(at: SocketAddr, replicas: usize, data: &Path) -> Result<String> {
    let text = std::fs::read_to_string(root().join("examples/blog/mesh.yaml"))?;
    let programs = program("outrigger")?;
    let programs = programs.parent().context("a program lies in a folder")?;
    let lines = text.lines().filter(|line| !line.starts_with("build:")).map(|line| {
        let line = line
            .replace("../..", &root().display().to_string())
            .replace("target/release", &programs.display().to_string())
            .replace("examples/blog/.outrigger/state/data", &data.display().to_string())
            // Slow is not wrong: the machine has other things to do.
            .replace("timeout: 5s", "timeout: 15s")
            .replace("port: 8080", &format!("port: {}", at.port()));
        // A fixed port is one instance's.
        match line.starts_with("run:") && !line.ends_with("blog-gateway") {
            true => format!("{line}\nreplicas: {replicas}\n"),
            false => format!("{line}\n"),
        }
    });
    Ok(lines.collect())
}

fn count(replicas: usize) -> usize {
    (SERVICES.len() - 1) * replicas + 1
}

fn outrigger(world: &World, args: &[&str]) -> Result<Command> {
    let mut command = world.program("outrigger")?;
    command.args(args);
    Ok(command)
}

async fn down(world: &World, up: &mut Process) -> Result<()> {
    up.signal(Signal::SIGTERM)?;
    ensure!(up.wait(wait::SOON).await?.success(), "the mesh ends");
    let run = world.dir().join(".outrigger/run");
    ensure!(!run.exists(), "{} remains", run.display());
    Ok(())
}

/// Readers and writers, each call on a connection of its own; all that they wrote is counted.
struct Load {
    at: SocketAddr,
    token: String,
    blog: String,
    stop: AtomicBool,
    /// Rounds of all clients, each with one of every kind of call.
    rounds: AtomicUsize,
}

impl Load {
    async fn begin(at: SocketAddr) -> Result<Self> {
        sign_up(at, "owner").await?;
        let token = session(at, "owner").await?;
        let made = post(at, "/v1/blogs", &json!({"title": "Rolling"}), Some(&token)).await?;
        Ok(Self {
            at,
            token,
            blog: text(&made, "id")?,
            stop: AtomicBool::new(false),
            rounds: AtomicUsize::new(0),
        })
    }

    async fn work(self: Arc<Self>, client: usize) -> Result<()> {
        let (at, blog) = (self.at, format!("/v1/blogs/{}", self.blog));
        for round in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let who = format!("reader-{client}-{round}");
            sign_up(at, &who).await?;
            let token = session(at, &who).await?;
            post(at, &format!("{blog}/subscriptions"), &json!({}), Some(&token)).await?;
            post(at, &format!("{blog}/visits"), &json!({"visitor": who}), None).await?;
            let text = json!({"title": who, "body": "Text"});
            post(at, &format!("{blog}/posts"), &text, Some(&self.token)).await?;
            call(at, "GET", &format!("{blog}/page"), None, None, 200).await?;
            self.rounds.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Waits for `more` rounds.
    async fn wait(&self, more: usize) -> Result<()> {
        let goal = self.rounds.load(Ordering::SeqCst) + more;
        wait::until_within(UP, "the load goes on", || {
            std::future::ready(self.rounds.load(Ordering::SeqCst) >= goal)
        })
        .await
    }

    /// Each round left one row in each database, and none twice.
    fn counted(&self, data: &Path) -> Result<()> {
        let rounds = self.rounds.load(Ordering::SeqCst);
        let tables = [
            ("auth", "account", "user_id", rounds + 1),
            ("auth", "session", "account", rounds + 1),
            ("user", "user", "name", rounds + 1),
            ("post", "post", "title", rounds),
            ("subscribe", "subscription", "subscriber_id", rounds),
            ("visitor", "visit", "visitor", rounds),
        ];
        for (file, table, column, wanted) in tables {
            let found = rows(&data.join(file).with_extension("db"), table, column)?;
            ensure!(
                found == format!("{wanted} {wanted}"),
                "{table}: {wanted} written, rows and different ones: {found}"
            );
        }
        Ok(())
    }
}

/// The rows of a table, and those that differ in `column`.
fn rows(database: &Path, table: &str, column: &str) -> Result<String> {
    let query = format!("SELECT count(*) || ' ' || count(DISTINCT {column}) FROM {table}");
    let script = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])";
    let answer = Command::new("python3")
        .args(["-c", script])
        .arg(database)
        .arg(query)
        .output()?;
    ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

async fn sign_up(at: SocketAddr, name: &str) -> Result<Value> {
    let account = json!({
        "user_id": name, "password": format!("secret of {name}"), "name": name, "email": format!("{name}@example.org"),
    });
    post(at, "/v1/users", &account, None).await
}

async fn session(at: SocketAddr, name: &str) -> Result<String> {
    let who = json!({"user_id": name, "password": format!("secret of {name}")});
    text(&post(at, "/v1/sessions", &who, None).await?, "token")
}

async fn post(at: SocketAddr, path: &str, body: &Value, token: Option<&str>) -> Result<Value> {
    call(at, "POST", path, Some(body), token, 201).await
}

async fn call(
    at: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
    token: Option<&str>,
    wanted: u16,
) -> Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let token = token
        .map(|token| format!("Authorization: Bearer {token}\r\n"))
        .unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\n{token}Content-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = wait::soon(path, once(at, &request))
        .await
        .with_context(|| format!("{method} {path}"))?;
    let said = String::from_utf8_lossy(&answer.body.bytes).into_owned();
    ensure!(
        answer.status() == wanted,
        "{method} {path}: {} {said}",
        answer.head.line
    );
    serde_json::from_str(&said).with_context(|| format!("{method} {path}: {said}"))
}

fn text(value: &Value, field: &str) -> Result<String> {
    Ok(value[field]
        .as_str()
        .with_context(|| format!("no {field} in {value}"))?
        .to_owned())
}
