//! Requests that two parsers could read in two ways: refused, closed, never forwarded in doubt.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::Client;
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::{scenarios, wait};

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        ambiguous_requests_are_refused_outbound,
        ambiguous_requests_are_refused_inbound,
        ambiguous_requests_are_refused_by_the_proxy_port,
        over_long_and_over_many_fields_are_refused,
        a_head_that_never_ends_is_cut,
        noise_does_no_harm,
        ambiguous_answers_are_not_forwarded,
    ]
}

/// What follows each case on the same connection: seeing it at the app is the smuggle.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

/// Requests that must not reach the app; the last part is sent after the first in one write.
const CORPUS: &[(&str, &str)] = &[
    (
        "length and chunks",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks and length",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    ),
    (
        "two lengths in one field",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2, 3\r\n\r\nhi!",
    ),
    (
        "a signed length",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +2\r\n\r\nhi",
    ),
    (
        "a negative length",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\nhi",
    ),
    (
        "a hexadecimal length",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x2\r\n\r\nhi",
    ),
    (
        "a length beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\nhi",
    ),
    (
        "an empty length",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nhi",
    ),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nHost: h\r\nX-A: a\rb\r\n\r\n"),
    ("a bare CR in the line", "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX-A: a\0b\r\n\r\n"),
    (
        "space before the colon",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 2\r\n\r\nhi",
    ),
    ("a folded field", "GET / HTTP/1.1\r\nHost: h\r\nX-A: a\r\n b\r\n\r\n"),
    (
        "an unknown coding",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked not last",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked with a control byte",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    ),
    ("two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: other\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nX-A: 1\r\n\r\n"),
    ("two words", "GET /\r\nHost: h\r\n\r\n"),
    ("an unknown version", "GET / HTTP/1.9.1\r\nHost: h\r\n\r\n"),
    ("a colon alone", "GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n"),
    (
        "a field without a colon",
        "GET / HTTP/1.1\r\nHost: h\r\nnonsense\r\n\r\n",
    ),
];

/// Heads that may be forwarded before their body turns out to be wrong; the body must not end well.
const BAD_CHUNKS: &[(&str, &str)] = &[
    ("a chunk size that is no number", "zz\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size beyond 64 bits", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("a negative chunk size", "-3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than said", "3\r\nabcdef\r\n0\r\n\r\n"),
    ("an empty chunk size", "\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
];

async fn corpus(addr: SocketAddr, app: &H1App, absolute: bool) -> Result<()> {
    let mut broken = Vec::new();
    for (what, case) in CORPUS {
        let case = if absolute {
            case.replacen(" /", " http://app/", 1)
        } else {
            (*case).to_owned()
        };
        if let Err(error) = one_case(addr, app, &case).await {
            broken.push(format!("{what}: {error:#}"));
        }
    }
    for (what, body) in BAD_CHUNKS {
        let target = if absolute { "http://app/bad" } else { "/bad" };
        let head = format!("POST {target} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
        if let Err(error) = one_body(addr, &format!("{head}{body}")).await {
            broken.push(format!("{what}: {error:#}"));
        }
    }
    let smuggled = app.seen.heads().iter().filter(|h| h.line.contains("smuggled")).count();
    ensure!(
        broken.is_empty() && smuggled == 0,
        "{smuggled} smuggled requests arrived\n{}",
        broken.join("\n")
    );
    Ok(())
}

/// Refused, closed, never forwarded.
async fn one_case(addr: SocketAddr, app: &H1App, case: &str) -> Result<()> {
    let before = app.seen.requests();
    let mut client = Client::connect(addr).await?;
    client.send(format!("{case}{SMUGGLED}")).await?;
    let answer = String::from_utf8_lossy(&client.rest_within(CLOSES).await?).into_owned();
    let status = answer.split(' ').nth(1).unwrap_or("4");
    ensure!(
        status.starts_with('4') || status.starts_with('5'),
        "it was answered: {answer}"
    );
    ensure!(answer.matches("HTTP/1.").count() <= 1, "a second answer: {answer}");
    ensure!(
        app.seen.requests() == before,
        "it reached the app: {:?}",
        app.seen.heads().last()
    );
    Ok(())
}

/// The head may be forwarded, but the body never ends well, and the connection ends.
async fn one_body(addr: SocketAddr, case: &str) -> Result<()> {
    let mut client = Client::connect(addr).await?;
    client.send(format!("{case}{SMUGGLED}")).await?;
    let answer = String::from_utf8_lossy(&client.rest_within(CLOSES).await?).into_owned();
    ensure!(
        !answer.contains(" 200 ") || answer.contains("\"complete\":false"),
        "it was answered: {answer}"
    );
    Ok(())
}

/// A refused connection is closed at once; this is for slow machines.
const CLOSES: Duration = Duration::from_secs(5);

async fn echo(world: &World) -> Result<(H1App, Mesh)> {
    let app = H1App::echo().await?;
    let mesh = Plan::default().service("app", "http", &[app.addr]).start(world).await?;
    Ok((app, mesh))
}

async fn ambiguous_requests_are_refused_outbound(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world).await?;
    corpus(mesh.to("app")?, &app, false).await?;
    mesh.check_well()
}

async fn ambiguous_requests_are_refused_inbound(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world).await?;
    let addr = mesh.inbound("app", 0)?.listen;
    corpus(addr, &app, false).await?;
    mesh.check_well()
}

async fn ambiguous_requests_are_refused_by_the_proxy_port(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world).await?;
    corpus(mesh.proxy(), &app, true).await?;
    mesh.check_well()
}

async fn over_long_and_over_many_fields_are_refused(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world).await?;
    let many: String = (0..5000).map(|i| format!("X-{i}: 1\r\n")).collect();
    let cases = [
        (
            "a long field",
            format!("GET / HTTP/1.1\r\nHost: h\r\nX-A: {}\r\n\r\n", "a".repeat(2 << 20)),
        ),
        (
            "a long target",
            format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(2 << 20)),
        ),
        ("many fields", format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")),
    ];
    for (what, case) in cases {
        let mut client = Client::connect(mesh.to("app")?).await?;
        // The sidecar may close while we are still sending.
        client.send(case).await.ok();
        let answer = String::from_utf8_lossy(&client.rest().await?).into_owned();
        ensure!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{what}: {answer}"
        );
    }
    ensure!(app.seen.requests() == 0, "{:?}", app.seen.heads());
    mesh.check_well()
}

async fn a_head_that_never_ends_is_cut(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .caller(serde_json::json!({"limits": {"header_timeout_ms": 300}}))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-Slow: ").await?;
    let answer = String::from_utf8_lossy(&client.rest().await?).into_owned();
    ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    Ok(())
}

async fn noise_does_no_harm(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world).await?;
    let addrs = [mesh.to("app")?, mesh.proxy(), mesh.inbound("app", 0)?.listen];
    // The same noise at every run: a counter run through a cheap mixer.
    let noise: Vec<u8> = (0..8192_u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), noise.clone()].concat();
    for addr in addrs {
        for bytes in [&noise, &tls, &preface, &b"\r\n\r\n\r\n".to_vec(), &b"\0".to_vec()] {
            let mut client = Client::connect(addr).await?;
            client.send(bytes).await.ok();
            client.end_writing().await.ok();
            client.rest().await?;
        }
    }
    ensure!(app.seen.requests() == 0, "{:?}", app.seen.heads());
    mesh.check_well()
}

async fn ambiguous_answers_are_not_forwarded(world: Arc<World>) -> Result<()> {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
    ];
    for text in answers {
        let app = H1App::start(outrigger_tests::apps::h1::fixed(text)).await?;
        let mut mesh = Plan::default()
            .service("app", "http", &[app.addr])
            .start(&world)
            .await?;
        let mut client = Client::connect(mesh.to("app")?).await?;
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
        let head = client.head().await?;
        if head.word(1) == "200" {
            let body = client.body(&head, "GET").await?;
            ensure!(!body.complete, "{text:?} became {head:?} {body:?}");
        } else {
            ensure!(head.word(1) == "502", "{text:?} became {head:?}");
        }
        wait::until("the sidecars are well", || {
            std::future::ready(mesh.check_well().is_ok())
        })
        .await?;
    }
    Ok(())
}
