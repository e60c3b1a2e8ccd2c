//! HTTP/1 through two sidecars: what the app sees is what the client sent.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::{Client, get_ok, once};
use outrigger_tests::mesh::{Mesh, Plan, saw};
use outrigger_tests::over_both;
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        path_host_and_fields_arrive_as_sent,
        version_1_0_arrives_as_1_0,
        hop_by_hop_fields_stop_at_the_sidecar,
        nothing_is_added_between_services,
        the_reserved_field_of_a_client_is_not_believed,
        head_has_no_body_and_keeps_its_length,
        connections_are_kept_alive,
        pipelined_requests_are_answered_in_order,
        chunked_request_with_trailers_arrives,
        content_length_stays_content_length,
        answer_trailers_reach_the_client,
        trailers_are_dropped_both_ways_where_they_are_not_wanted,
        the_other_version_of_ip_carries_it_as_well,
        an_expecting_client_is_told_to_continue_when_the_app_reads,
        an_early_final_status_stops_the_upload,
        early_hints_are_dropped_not_an_error,
        status_line_and_fields_of_the_answer_arrive,
        an_answer_without_length_ends_with_the_connection,
        a_bodyless_204_and_304_stay_so,
    ]
}

async fn echo(world: &World) -> Result<(H1App, Mesh)> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("echo", "http", &[app.addr])
        .start(world)
        .await?;
    Ok((app, mesh))
}

async fn path_host_and_fields_arrive_as_sent(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world).await?;
    // Every byte of the target that a proxy might want to tidy up.
    for path in [
        "/a/../b//c",
        "/%2e%2E/%zz?q=a+b&c=%20#",
        "/;p=1/?",
        "/a%00b",
        "/~*'()!$&,;=:@",
        "/?",
        "/caf\u{e9}",
    ] {
        let path = path.split('#').next().unwrap_or(path);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: Some-Host.example:99\r\nX-One: a\r\nX-One: b\r\nx-empty:\r\nX-Quoted: \"a, b\"\r\n\r\n"
        );
        if !path.is_ascii() {
            continue;
        }
        let answer = once(mesh.to("echo")?, &request).await?;
        ensure!(answer.status() == 200, "{path}: {answer:?}");
        let heads = app.seen.heads();
        let head = heads.last().expect("a head");
        ensure!(
            head.line == format!("GET {path} HTTP/1.1"),
            "{path} arrived as {}",
            head.line
        );
        saw(head, "host", "Some-Host.example:99")?;
        ensure!(head.all("x-one").eq(["a", "b"]), "{head:?}");
        saw(head, "x-empty", "")?;
        saw(head, "x-quoted", "\"a, b\"")?;
    }
    mesh.check_well()
}

async fn version_1_0_arrives_as_1_0(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world).await?;
    let mut client = Client::connect(mesh.to("echo")?).await?;
    let answer = client.exchange("GET /old HTTP/1.0\r\nHost: h\r\n\r\n").await?;
    ensure!(answer.status() == 200 && answer.body.complete, "{answer:?}");
    ensure!(!answer.body.chunked, "HTTP/1.0 knows no chunks: {answer:?}");
    ensure!(client.rest().await?.is_empty(), "the connection ends after the answer");
    ensure!(
        app.seen.heads()[0].line == "GET /old HTTP/1.0",
        "{:?}",
        app.seen.heads()
    );
    Ok(())
}

async fn hop_by_hop_fields_stop_at_the_sidecar(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world).await?;
    let request = "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nX-Stays: 1\r\n\r\n";
    once(mesh.to("echo")?, request).await?;
    let head = &app.seen.heads()[0];
    saw(head, "x-stays", "1")?;
    for name in ["x-mine", "keep-alive", "proxy-connection"] {
        ensure!(head.field(name).is_none(), "{name} went through: {head:?}");
    }
    Ok(())
}

async fn nothing_is_added_between_services(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world).await?;
    let answer = once(mesh.to("echo")?, "GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n").await?;
    let mut names: Vec<String> = app.seen.heads()[0]
        .fields
        .iter()
        .map(|(n, _)| n.to_lowercase())
        .collect();
    names.sort();
    // A caller that has proven who it is is named.
    let mut expected = vec!["host", "x-a"];
    if world.authority().is_some() {
        expected.insert(1, "outrigger-caller");
    }
    ensure!(names == expected, "the app saw {names:?}");
    for name in ["date", "via", "server", "x-forwarded-for", "x-forwarded-proto"] {
        ensure!(answer.head.field(name).is_none(), "{name} was added: {:?}", answer.head);
    }
    ensure!(
        !answer
            .head
            .fields
            .iter()
            .any(|(n, _)| n.to_lowercase().starts_with("outrigger")),
        "{:?}",
        answer.head
    );
    Ok(())
}

async fn the_reserved_field_of_a_client_is_not_believed(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world).await?;
    let wire = [
        "outrigger-wire",
        "outrigger-version",
        "outrigger-framing",
        "outrigger-hop",
        "x-outrigger",
    ];
    let forged: String = wire.iter().map(|n| format!("{n}: HTTP/1.0\r\n")).collect();
    once(mesh.to("echo")?, &format!("GET / HTTP/1.1\r\nHost: h\r\n{forged}\r\n")).await?;
    ensure!(app.seen.heads()[0].word(2) == "HTTP/1.1", "{:?}", app.seen.heads());
    Ok(())
}

async fn head_has_no_body_and_keeps_its_length(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world).await?;
    let mut client = Client::connect(mesh.to("echo")?).await?;
    let answer = client.exchange("HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(
        answer.status() == 200 && answer.head.field("content-length").is_some(),
        "{answer:?}"
    );
    // The connection is still in step: no stray byte of a body came.
    let next = client.exchange("GET /next HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(next.json()?["line"] == "GET /next HTTP/1.1", "{next:?}");
    ensure!(app.seen.heads()[0].line == "HEAD /h HTTP/1.1");
    Ok(())
}

async fn connections_are_kept_alive(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world).await?;
    let mut client = Client::connect(mesh.to("echo")?).await?;
    for i in 0..20 {
        let answer = client
            .exchange(&format!("GET /{i} HTTP/1.1\r\nHost: h\r\n\r\n"))
            .await?;
        ensure!(answer.json()?["line"] == format!("GET /{i} HTTP/1.1"), "{answer:?}");
    }
    let used = app.seen.first_bytes.load(std::sync::atomic::Ordering::SeqCst);
    ensure!(
        used <= 2,
        "20 requests one after the other used {used} connections to the app"
    );
    Ok(())
}

async fn pipelined_requests_are_answered_in_order(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world).await?;
    let mut client = Client::connect(mesh.to("echo")?).await?;
    let all: String = (0..10)
        .map(|i| format!("GET /{i} HTTP/1.1\r\nHost: h\r\n\r\n"))
        .collect();
    client.send(all).await?;
    for i in 0..10 {
        let answer = client.answer("GET").await?;
        ensure!(
            answer.json()?["line"] == format!("GET /{i} HTTP/1.1"),
            "{i}: {answer:?}"
        );
    }
    Ok(())
}

async fn chunked_request_with_trailers_arrives(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world).await?;
    let request = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 42\r\n\r\n";
    let seen = once(mesh.to("echo")?, request).await?.json()?;
    ensure!(
        seen["body"] == "abcde" && seen["chunked"] == true && seen["complete"] == true,
        "{seen}"
    );
    let trailers = seen["trailers"].to_string().to_lowercase();
    ensure!(trailers.contains("x-sum") && trailers.contains("42"), "{seen}");
    Ok(())
}

async fn content_length_stays_content_length(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world).await?;
    let seen = once(
        mesh.to("echo")?,
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    )
    .await?
    .json()?;
    ensure!(seen["body"] == "hello" && seen["chunked"] == false, "{seen}");
    let empty = once(
        mesh.to("echo")?,
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    )
    .await?
    .json()?;
    ensure!(empty["length"] == 0 && empty["chunked"] == false, "{empty}");
    Ok(())
}

async fn answer_trailers_reach_the_client(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::with_trailers).await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let request = "GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    let answer = once(mesh.to("app")?, request).await?;
    ensure!(
        answer.text() == "abcde" && answer.body.chunked && answer.body.complete,
        "{answer:?}"
    );
    let sum = answer
        .body
        .trailers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case("x-sum"));
    ensure!(sum.is_some_and(|(_, v)| v == "42"), "{answer:?}");
    Ok(())
}

async fn trailers_are_dropped_both_ways_where_they_are_not_wanted(world: Arc<World>) -> Result<()> {
    let app = H1App::start(|request| async move {
        match request.head.word(0) {
            "POST" => h1::echo(request).await,
            _ => h1::with_trailers(request).await,
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .caller(json!({"limits": {"trailers": "drop"}}))
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    for _ in 0..3 {
        let answer = client
            .exchange("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
            .await?;
        ensure!(answer.text() == "abcde" && answer.body.complete, "{answer:?}");
        ensure!(answer.body.trailers.is_empty(), "{answer:?}");
        let request = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nabcde\r\n0\r\nX-Sum: 42\r\n\r\n";
        let seen = client.exchange(request).await?.json()?;
        ensure!(seen["body"] == "abcde" && seen["complete"] == true, "{seen}");
        ensure!(seen["trailers"].as_array().is_none_or(Vec::is_empty), "{seen}");
    }
    mesh.check_well()
}

async fn the_other_version_of_ip_carries_it_as_well(world: Arc<World>) -> Result<()> {
    let (web, echo) = (H1App::echo().await?, TcpApp::echo().await?);
    let mut mesh = Plan::default()
        .over_ipv6()
        .service("web", "http", &[web.addr])
        .service("echo", "tcp", &[echo.addr])
        .start(&world)
        .await?;
    ensure!(mesh.to("web")?.is_ipv6() && mesh.inbound("web", 0)?.listen.is_ipv6());
    get_ok(mesh.to("web")?, "/").await?;
    let mut client = Client::connect(mesh.to("echo")?).await?;
    client.send("hello").await?;
    ensure!(client.bytes(5).await? == b"hello", "other bytes came back");
    mesh.check_well()
}

async fn an_expecting_client_is_told_to_continue_when_the_app_reads(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world).await?;
    let mut client = Client::connect(mesh.to("echo")?).await?;
    client
        .send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await?;
    let interim = client.head().await?;
    ensure!(interim.word(1) == "100", "{interim:?}");
    client.send("hello").await?;
    let answer = client.answer("POST").await?;
    ensure!(
        answer.status() == 200 && answer.json()?["body"] == "hello",
        "{answer:?}"
    );
    Ok(())
}

async fn an_early_final_status_stops_the_upload(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::refuse_early).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let mut client = Client::connect(mesh.to("app")?).await?;
    client
        .send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n")
        .await?;
    // A sidecar may read ahead, so a 100 is no mistake; the final answer without a body is the point.
    let answer = client.answer("POST").await?;
    ensure!(answer.status() == 413 && answer.text() == "big", "{answer:?}");
    // And the same when the client did not ask but is sending already.
    let mut client = Client::connect(mesh.to("app")?).await?;
    client
        .send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\nsome of it")
        .await?;
    let answer = client.answer("POST").await?;
    ensure!(answer.status() == 413 && answer.text() == "big", "{answer:?}");
    mesh.check_well()
}

async fn early_hints_are_dropped_not_an_error(world: Arc<World>) -> Result<()> {
    let hints = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let app = H1App::start(h1::fixed(hints)).await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let answer = get_ok(mesh.to("app")?, "/").await?;
    ensure!(answer.text() == "ok" && answer.interim.is_empty(), "{answer:?}");
    Ok(())
}

async fn status_line_and_fields_of_the_answer_arrive(world: Arc<World>) -> Result<()> {
    let odd = "HTTP/1.1 418 I'm a teapot\r\nX-A: 1\r\nX-A: 2\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nServer: mine\r\nContent-Length: 3\r\n\r\nbad";
    let app = H1App::start(h1::fixed(odd)).await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let answer = once(mesh.to("app")?, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(answer.status() == 418 && answer.text() == "bad", "{answer:?}");
    let head = &answer.head;
    ensure!(
        head.all("x-a").eq(["1", "2"]) && head.all("set-cookie").eq(["a=1; Path=/", "b=2"]),
        "{head:?}"
    );
    ensure!(
        head.all("date").eq(["Mon, 01 Jan 2001 00:00:00 GMT"]) && head.all("server").eq(["mine"]),
        "{head:?}"
    );
    Ok(())
}

async fn an_answer_without_length_ends_with_the_connection(world: Arc<World>) -> Result<()> {
    let app = H1App::start(|mut request: h1::Request| async move {
        use tokio::io::AsyncWriteExt as _;
        request
            .io
            .write_all(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nto the end")
            .await?;
        request.io.get_mut().shutdown().await?;
        Ok(None)
    })
    .await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let answer = get_ok(mesh.to("app")?, "/").await?;
    ensure!(answer.text() == "to the end" && answer.body.complete, "{answer:?}");
    Ok(())
}

async fn a_bodyless_204_and_304_stay_so(world: Arc<World>) -> Result<()> {
    for status in ["204 No Content\r\n", "304 Not Modified\r\nETag: \"x\"\r\n"] {
        let text: &'static str = format!("HTTP/1.1 {status}\r\n").leak();
        let app = H1App::start(h1::fixed(text)).await?;
        let mesh = Plan::default()
            .service("app", "http", &[app.addr])
            .start(&world)
            .await?;
        let mut client = Client::connect(mesh.to("app")?).await?;
        for _ in 0..2 {
            let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
            ensure!(
                status.starts_with(answer.head.word(1)) && answer.body.bytes.is_empty(),
                "{answer:?}"
            );
            ensure!(answer.head.field("transfer-encoding").is_none(), "{answer:?}");
        }
    }
    Ok(())
}
