//! The strict port as foreign TLS stacks see it: OpenSSL, Go, Python, and scanners. Who has a good
//! certificate is let in and known by its id; nobody else gets one byte to the app.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::Client;
use outrigger_tests::mesh::{Mesh, Plan, secure, start as sidecar};
use outrigger_tests::pki::{Authority, Files, Leaf, TRUST_DOMAIN, id};
use outrigger_tests::{World, ports, secure_scenarios, tools};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    secure_scenarios![
        go_with_a_good_certificate_is_known_by_its_id,
        python_with_a_good_certificate_is_known_by_its_id,
        a_bad_certificate_reaches_no_app,
        older_versions_are_refused,
        openssl_sees_what_is_promised,
        sslyze_finds_one_version_and_no_resumption,
        a_plain_client_reaches_no_app,
        telemetry_in_tls_is_for_the_mesh,
    ]
}

const LIMIT: Duration = Duration::from_secs(60);

async fn start(world: &World) -> Result<(H1App, Mesh)> {
    let app = H1App::echo().await?;
    let mesh = Plan::default().service("app", "http", &[app.addr]).start(world).await?;
    Ok((app, mesh))
}

fn authority(world: &World) -> Result<&Authority> {
    world.authority().context("a secure world")
}

/// Two connections of one foreign client.
async fn ask(world: &World, client: &str, more: &[&str], files: Option<&Files>, mesh: &mut Mesh) -> Result<Vec<Value>> {
    let listen = mesh.inbound("app", 0)?.listen;
    ask_at(world, client, more, files, listen, "/who").await
}

/// Two connections of one foreign client to `listen`.
async fn ask_at(
    world: &World,
    client: &str,
    more: &[&str],
    files: Option<&Files>,
    listen: SocketAddr,
    path: &str,
) -> Result<Vec<Value>> {
    // The client's own idea of who signed the server is always the right one.
    let trusted = authority(world)?.issue(world.dir(), "trusted", &Leaf::of("nobody"))?;
    let mut args = match client {
        "python3" => vec![world.write("client.py", PYTHON)?.display().to_string()],
        _ => Vec::new(),
    };
    args.extend(["-roots".to_owned(), trusted.roots.display().to_string()]);
    if let Some(files) = files {
        args.extend(["-chain".to_owned(), files.chain.display().to_string()]);
        args.extend(["-key".to_owned(), files.key.display().to_string()]);
    }
    args.extend(more.iter().map(|a| (*a).to_owned()));
    args.extend([listen.to_string(), path.to_owned()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = tools::run(world, client, &args, LIMIT).await?;
    let line = said.lines().find(|l| l.starts_with('[')).context("no JSON line")?;
    Ok(serde_json::from_str(line)?)
}

async fn good(world: &World, client: &str) -> Result<Vec<Value>> {
    let (_app, mut mesh) = start(world).await?;
    let files = authority(world)?.issue(world.dir(), "visitor", &Leaf::of("visitor"))?;
    let mut all = Vec::new();
    for alpn in ["http/1.1", ""] {
        for answer in ask(world, client, &["-alpn", alpn], Some(&files), &mut mesh).await? {
            ensure!(answer["status"] == 200, "{answer}");
            ensure!(
                answer["version"].as_str().is_some_and(|v| v.ends_with("1.3")),
                "{answer}"
            );
            ensure!(answer["resumed"] == false, "a session was resumed: {answer}");
            ensure!(answer["alpn"].as_str().unwrap_or_default() == alpn, "{answer}");
            let seen = answer["body"].as_str().unwrap_or_default().to_lowercase();
            ensure!(
                seen.contains(&id("visitor")),
                "the app does not know its caller: {seen}"
            );
            ensure!(!seen.contains("forged"), "a forged caller arrived: {seen}");
            all.push(answer);
        }
    }
    mesh.check_well()?;
    Ok(all)
}

async fn go_with_a_good_certificate_is_known_by_its_id(world: Arc<World>) -> Result<()> {
    for answer in good(&world, "tls_client").await? {
        ensure!(answer["ids"] == serde_json::json!([id("app")]), "{answer}");
        ensure!(answer["curve"] == "X25519MLKEM768", "{answer}");
    }
    Ok(())
}

async fn python_with_a_good_certificate_is_known_by_its_id(world: Arc<World>) -> Result<()> {
    good(&world, "python3").await.map(drop)
}

/// Name, certificate, and whether another authority signs it.
fn bad_leaves() -> Vec<(&'static str, Leaf, bool)> {
    let good = || Leaf::of("visitor");
    let with = |uris: &[String]| Leaf {
        uris: uris.to_vec(),
        ..good()
    };
    let usage = |usages: &[ExtendedKeyUsagePurpose]| Leaf {
        usages: usages.to_vec(),
        ..good()
    };
    vec![
        ("another-authority", good(), true),
        (
            "expired",
            Leaf {
                since: 7200,
                until: -60,
                ..good()
            },
            false,
        ),
        (
            "not-yet-valid",
            Leaf {
                since: -1800,
                until: 7200,
                ..good()
            },
            false,
        ),
        ("server-only", usage(&[ExtendedKeyUsagePurpose::ServerAuth]), false),
        ("no-name", with(&[]), false),
        (
            "dns-only",
            Leaf {
                uris: Vec::new(),
                dns: vec!["visitor.default".to_owned()],
                ..good()
            },
            false,
        ),
        ("two-ids", with(&[id("visitor"), id("other")]), false),
        (
            "another-domain",
            with(&["spiffe://elsewhere.local/ns/default/svc/visitor".to_owned()]),
            false,
        ),
        ("no-service", with(&[format!("spiffe://{TRUST_DOMAIN}/visitor")]), false),
        (
            "long-chain",
            Leaf {
                intermediates: 8,
                ..good()
            },
            false,
        ),
    ]
}

async fn a_bad_certificate_reaches_no_app(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = start(&world).await?;
    let other = Authority::new()?;
    let mut all = vec![("none", None)];
    for (name, leaf, foreign) in bad_leaves() {
        let signer = if foreign { &other } else { authority(&world)? };
        all.push((name, Some(signer.issue(world.dir(), name, &leaf)?)));
    }
    for (name, files) in &all {
        for client in ["tls_client", "python3"] {
            for answer in ask(&world, client, &[], files.as_ref(), &mut mesh).await? {
                let refused = answer["error"].as_str().is_some_and(|e| !e.is_empty()) && answer["status"] != 200;
                ensure!(refused, "{client} was let in with {name}: {answer}");
            }
        }
    }
    ensure!(
        app.seen.requests.load(Ordering::SeqCst) == 0,
        "a request reached the app"
    );
    mesh.check_well()
}

async fn older_versions_are_refused(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = start(&world).await?;
    let files = authority(&world)?.issue(world.dir(), "visitor", &Leaf::of("visitor"))?;
    for client in ["tls_client", "python3"] {
        for answer in ask(&world, client, &["-max", "1.2"], Some(&files), &mut mesh).await? {
            ensure!(
                answer["error"].as_str().is_some_and(|e| !e.is_empty()),
                "{client}: {answer}"
            );
        }
    }
    mesh.check_well()
}

async fn telemetry_in_tls_is_for_the_mesh(world: Arc<World>) -> Result<()> {
    let (listen, telemetry) = (ports::free()?, ports::free()?);
    let mut config = json!({
        "service": "app",
        "admin": ports::free()?,
        "http_proxy": listen,
        "telemetry": {"listen": telemetry, "tls": true},
        "resources": {"proxy": {"name": "default/app"}},
    });
    secure(&world, "app", &mut config)?;
    let mut sidecar = sidecar(&world, "app", config, listen, false)?;
    sidecar.ready().await?;
    let scraper = authority(&world)?.issue(world.dir(), "scraper", &Leaf::of("scraper"))?;
    let stranger = Authority::new()?.issue(world.dir(), "stranger", &Leaf::of("scraper"))?;
    for client in ["tls_client", "python3"] {
        for answer in ask_at(
            &world,
            client,
            &["-alpn", "http/1.1"],
            Some(&scraper),
            telemetry,
            "/metrics",
        )
        .await?
        {
            let page = answer["body"].as_str().unwrap_or_default();
            ensure!(
                answer["status"] == 200 && page.contains("outrigger_"),
                "{client}: {answer}"
            );
        }
        for files in [None, Some(&stranger)] {
            for answer in ask_at(&world, client, &[], files, telemetry, "/metrics").await? {
                ensure!(answer["status"] != 200, "{client} was let in: {answer}");
            }
        }
    }
    sidecar.check_well()
}

/// `openssl s_client` with `more` arguments; its exit code does not matter.
async fn s_client(world: &World, mesh: &mut Mesh, files: Option<&Files>, more: &[&str]) -> Result<String> {
    let mut command = tools::tool("openssl")?;
    let addr = mesh.inbound("app", 0)?.listen.to_string();
    command.args(["s_client", "-connect", &addr, "-tls1_3", "-ign_eof"]);
    if let Some(files) = files {
        command.arg("-cert").arg(&files.chain).arg("-key").arg(&files.key);
        command.arg("-CAfile").arg(&files.roots);
    }
    command.args(more);
    let mut process = world.spawn("s_client", command)?;
    process.wait(LIMIT).await?;
    Ok(process.output())
}

async fn openssl_sees_what_is_promised(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = start(&world).await?;
    let files = authority(&world)?.issue(world.dir(), "visitor", &Leaf::of("visitor"))?;
    for alpn in ["outrigger-h2/1", "outrigger-tcp/1", "http/1.1"] {
        // Standard input is empty, and without -ign_eof the client leaves after the handshake.
        let mut command = tools::tool("openssl")?;
        let addr = mesh.inbound("app", 0)?.listen.to_string();
        command.args(["s_client", "-connect", &addr, "-alpn", alpn, "-verify_return_error"]);
        command.arg("-cert").arg(&files.chain).arg("-key").arg(&files.key);
        command.arg("-CAfile").arg(&files.roots);
        let mut process = world.spawn("s_client", command)?;
        process.wait(LIMIT).await?;
        let said = process.output();
        for expected in [
            "New, TLSv1.3",
            &format!("ALPN protocol: {alpn}"),
            "Verification: OK",
            "Server Temp Key: X25519",
        ] {
            ensure!(said.contains(expected), "{alpn}: no `{expected}` in:\n{said}");
        }
        ensure!(!said.contains("New Session Ticket"), "a ticket was given:\n{said}");
    }
    let said = s_client(&world, &mut mesh, None, &[]).await?;
    ensure!(
        said.contains("certificate required"),
        "no certificate was asked for:\n{said}"
    );
    mesh.check_well()
}

async fn sslyze_finds_one_version_and_no_resumption(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = start(&world).await?;
    let files = authority(&world)?.issue(world.dir(), "visitor", &Leaf::of("visitor"))?;
    let report = world.dir().join("sslyze.json");
    let mut command = tools::tool("sslyze")?;
    command.arg(format!("--json_out={}", report.display())).args([
        "--sslv2",
        "--sslv3",
        "--tlsv1",
        "--tlsv1_1",
        "--tlsv1_2",
        "--tlsv1_3",
        "--resum",
        "--early_data",
        "--heartbleed",
        "--openssl_ccs",
        "--compression",
        "--reneg",
        "--elliptic_curves",
    ]);
    command.arg("--cert").arg(&files.chain).arg("--key").arg(&files.key);
    command.arg(mesh.inbound("app", 0)?.listen.to_string());
    let mut process = world.spawn("sslyze", command)?;
    process.wait(Duration::from_secs(110)).await?;
    let text = std::fs::read_to_string(&report).with_context(|| process.output())?;
    let report: Value = serde_json::from_str(&text)?;
    let scan = &report["server_scan_results"][0];
    ensure!(scan["scan_status"] == "COMPLETED", "{}", process.output());
    let result = &scan["scan_result"];
    for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3"] {
        let accepted = result[format!("{version}_cipher_suites")]["result"]["accepted_cipher_suites"]
            .as_array()
            .with_context(|| format!("no result for {version}: {result}"))?
            .len();
        ensure!(
            (accepted > 0) == (version == "tls_1_3"),
            "{version}: {accepted} suites accepted"
        );
    }
    let no = |path: &str| {
        let found = result.pointer(path);
        ensure!(found == Some(&Value::Bool(false)), "{path}: {found:?}");
        Ok(())
    };
    no("/tls_1_3_early_data/result/supports_early_data")?;
    no("/heartbleed/result/is_vulnerable_to_heartbleed")?;
    no("/openssl_ccs_injection/result/is_vulnerable_to_ccs_injection")?;
    no("/tls_compression/result/supports_compression")?;
    mesh.check_well()
}

async fn a_plain_client_reaches_no_app(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = start(&world).await?;
    let addr = mesh.inbound("app", 0)?.listen;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"\0\0\0\0",
    ] {
        let mut client = Client::connect(addr).await?;
        client.send(bytes).await.ok();
        // Whatever is said, it is said and the connection ends.
        client.rest().await.ok();
    }
    ensure!(
        app.seen.requests.load(Ordering::SeqCst) == 0,
        "a request reached the app"
    );
    mesh.check_well()
}

/// As `tls-client` in Go, with Python's `ssl`.
const PYTHON: &str = r#"
import argparse, json, socket, ssl
parser = argparse.ArgumentParser()
for flag in ("-chain", "-key", "-roots", "-alpn", "-max"):
    parser.add_argument(flag, default="")
parser.add_argument("addr")
parser.add_argument("path")
a = parser.parse_args()
host, port = a.addr.rsplit(":", 1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations(a.roots)
if a.chain:
    context.load_cert_chain(a.chain, a.key)
if a.alpn:
    context.set_alpn_protocols(a.alpn.split(","))
if a.max == "1.2":
    context.maximum_version = ssl.TLSVersion.TLSv1_2
session, results = None, []
for _ in range(2):
    r = {"status": 0, "resumed": False, "alpn": ""}
    try:
        with socket.create_connection((host, int(port)), 5) as raw:
            raw.settimeout(10)
            with context.wrap_socket(raw, session=session) as s:
                r.update(version=s.version(), alpn=s.selected_alpn_protocol() or "", resumed=s.session_reused)
                s.sendall((f"GET {a.path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n"
                           "Outrigger-Caller: spiffe://test.local/ns/default/svc/forged\r\n\r\n").encode())
                text = b""
                while chunk := s.recv(65536):
                    text += chunk
                head, _, body = text.partition(b"\r\n\r\n")
                r["status"] = int(head.split()[1])
                r["body"] = body.decode(errors="replace")
                session = s.session
    except (OSError, IndexError) as e:
        r["error"] = f"{type(e).__name__}: {e}"
    results.append(r)
print(json.dumps(results))
"#;
