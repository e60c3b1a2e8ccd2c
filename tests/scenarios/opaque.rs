//! Real programs that speak no HTTP, through the tunnel: PostgreSQL, Redis, netcat, and TLS of the app's own.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::mesh::Plan;
use outrigger_tests::pki::{Authority, Leaf};
use outrigger_tests::process::{Process, accepts};
use outrigger_tests::{World, over_both, ports, tools};
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        psql_copies_rows_out_and_in,
        redis_cli_pipes,
        netcat_half_closes,
        nginx_ends_its_own_tls,
        haproxy_ends_its_own_tls,
    ]
}

const LIMIT: Duration = Duration::from_secs(60);

/// A PostgreSQL of the test's own. It refuses to run as root, so it runs as `nobody`.
async fn postgres(world: &World) -> Result<(Process, SocketAddr)> {
    let addr = ports::free()?;
    let home = tempfile::Builder::new().prefix("outrigger-pg-").tempdir()?.keep();
    let nobody = nix::unistd::User::from_name("nobody")?.context("no user `nobody`")?;
    nix::unistd::chown(&home, Some(nobody.uid), Some(nobody.gid))?;
    let as_nobody = |mut command: Command| {
        command
            .uid(nobody.uid.as_raw())
            .gid(nobody.gid.as_raw())
            .current_dir(&home);
        command
    };
    let mut init = tools::tool("initdb")?;
    init.args(["-U", "test", "-A", "trust", "-N", "-D"])
        .arg(home.join("data"));
    world.spawn("initdb", as_nobody(init))?.succeed(LIMIT).await?;
    let mut server = tools::tool("postgres")?;
    server.arg("-D").arg(home.join("data")).arg("-k").arg(&home);
    server.args(["-h", "127.0.0.1", "-p", &addr.port().to_string(), "-c", "fsync=off"]);
    let process = world.spawn("postgres", as_nobody(server))?;
    accepts(addr).await?;
    Ok((process, addr))
}

async fn psql(world: &World, addr: SocketAddr, sql: &str) -> Result<String> {
    let mut command = tools::tool("psql")?;
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &addr.port().to_string(),
        "-U",
        "test",
        "-d",
        "postgres",
    ]);
    command.args(["-v", "ON_ERROR_STOP=1", "-X", "-A", "-t", "-c", sql]);
    world.spawn("psql", command)?.succeed(LIMIT).await
}

async fn psql_copies_rows_out_and_in(world: Arc<World>) -> Result<()> {
    let (_server, addr) = postgres(&world).await?;
    let mut mesh = Plan::default().service("db", "tcp", &[addr]).start(&world).await?;
    let through = mesh.to("db")?;
    let ready = async {
        while psql(&world, addr, "select 1").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, ready)
        .await
        .context("PostgreSQL never answered")?;
    psql(&world, through, "create table rows (n bigint, text text)").await?;
    let file = world.dir().join("rows.csv");
    let out = format!(
        "\\copy (select n, md5(n::text) from generate_series(1, 200000) n) to '{}' csv",
        file.display()
    );
    psql(&world, through, &out).await?;
    psql(&world, through, &format!("\\copy rows from '{}' csv", file.display())).await?;
    let sums = "select count(*), sum(n), sum(hashtext(text)) from rows";
    let (here, there) = (psql(&world, addr, sums).await?, psql(&world, through, sums).await?);
    ensure!(
        here == there && here.starts_with("200000|20000100000|"),
        "{here} is not {there}"
    );
    mesh.check_well()
}

async fn redis_cli_pipes(world: Arc<World>) -> Result<()> {
    let addr = ports::free()?;
    let mut server = tools::tool("redis_server")?;
    server.args([
        "--bind",
        "127.0.0.1",
        "--port",
        &addr.port().to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    server.current_dir(world.dir());
    let _server = world.spawn("redis", server)?;
    accepts(addr).await?;
    let mut mesh = Plan::default().service("cache", "tcp", &[addr]).start(&world).await?;
    let port = mesh.to("cache")?.port().to_string();
    let commands: String = (0..100_000).map(|i| format!("SET key:{i} value-{i}\r\n")).collect();
    let file = world.write("commands.txt", &commands)?;
    let mut pipe = tools::tool("redis_cli")?;
    pipe.args(["-p", &port, "--pipe"]);
    let said = feed(&world, "redis-cli", pipe, &file).await?;
    ensure!(said.contains("errors: 0, replies: 100000"), "{said}");
    let value = tools::run(&world, "redis_cli", &["-p", &port, "GET", "key:99999"], LIMIT).await?;
    ensure!(value.contains("value-99999"), "{value}");
    let size = tools::run(&world, "redis_cli", &["-p", &port, "DBSIZE"], LIMIT).await?;
    ensure!(size.contains("100000"), "{size}");
    mesh.check_well()
}

/// Runs `command` with `file` as its standard input.
async fn feed(world: &World, name: &str, command: Command, file: &std::path::Path) -> Result<String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" < \"$INPUT\""]).env("INPUT", file);
    shell
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(world.dir());
    world.spawn(name, shell)?.succeed(LIMIT).await
}

async fn netcat_half_closes(world: Arc<World>) -> Result<()> {
    let app = TcpApp::count_then_answer().await?;
    let mut mesh = Plan::default().service("app", "tcp", &[app.addr]).start(&world).await?;
    let file = world.write("input.txt", &"x".repeat(300_000))?;
    let through = mesh.to("app")?;
    for _ in 0..3 {
        let mut command = tools::tool("nc")?;
        command.args(["-N", "127.0.0.1", &through.port().to_string()]);
        let said = feed(&world, "nc", command, &file).await?;
        ensure!(said.contains("read 300000"), "{said}");
    }
    mesh.check_well()
}

/// An app behind a server that ends its own TLS; the client verifies the server through the mesh.
async fn own_tls(
    world: &World,
    server: impl AsyncFnOnce(SocketAddr, &str) -> Result<(Process, SocketAddr)>,
) -> Result<()> {
    let app = H1App::echo().await?;
    let authority = Authority::new()?;
    let leaf = Leaf {
        uris: Vec::new(),
        dns: vec!["app.example".to_owned()],
        ..Leaf::of("app")
    };
    let files = authority.issue(world.dir(), "own", &leaf)?;
    let both = std::fs::read_to_string(&files.chain)? + &std::fs::read_to_string(&files.key)?;
    let pem = world.write("both.pem", &both)?;
    let (_server, addr) = server(app.addr, &pem.display().to_string()).await?;
    let mut mesh = Plan::default()
        .service("app", "tls", &[addr])
        .inbound(json!({ "mode": if world.authority().is_some() { "permissive" } else { "off" } }))
        .start(world)
        .await?;
    let roots = files.roots.display().to_string();
    // Through the mesh; and as a client that has no sidecar yet, at the same port as the mesh's own TLS.
    for at in [mesh.to("app")?, mesh.inbound("app", 0)?.listen] {
        let port = at.port();
        let (url, at) = (
            format!("https://app.example:{port}/x"),
            format!("app.example:{port}:127.0.0.1"),
        );
        for version in ["--http1.1", "--http2"] {
            let args = ["-sS", version, "--cacert", &roots, "--resolve", &at, &url];
            let said = tools::run(world, "curl", &args, LIMIT).await?;
            ensure!(said.contains("/x"), "{version}: {said}");
        }
    }
    mesh.check_well()
}

async fn nginx_ends_its_own_tls(world: Arc<World>) -> Result<()> {
    own_tls(&world, async |app, pem| {
        let addr = ports::free()?;
        let here = world.dir().display();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|k| format!("{k}_temp_path {here}/{k};"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {here}/nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log off; {temp} server {{ listen {addr} ssl http2; ssl_certificate {pem}; \
             ssl_certificate_key {pem}; location / {{ proxy_pass http://{app}; }} }} }}\n"
        );
        let file = world.write("nginx.conf", &config)?;
        let mut command = tools::tool("nginx")?;
        command.arg("-e").arg("stderr").arg("-c").arg(file);
        let process = world.spawn("nginx", command)?;
        accepts(addr).await?;
        Ok((process, addr))
    })
    .await
}

async fn haproxy_ends_its_own_tls(world: Arc<World>) -> Result<()> {
    own_tls(&world, async |app, pem| {
        let addr = ports::free()?;
        let config = format!(
            "defaults\n mode http\n timeout client 20s\n timeout server 20s\n timeout connect 5s\n\
             listen tls\n bind {addr} ssl crt {pem} alpn h2,http/1.1\n server app {app}\n"
        );
        let file = world.write("haproxy.cfg", &config)?;
        let mut command = tools::tool("haproxy")?;
        command.args(["-db", "-q", "-f"]).arg(file);
        let process = world.spawn("haproxy", command)?;
        accepts(addr).await?;
        Ok((process, addr))
    })
    .await
}
