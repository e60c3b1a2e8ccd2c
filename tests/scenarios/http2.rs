//! HTTP/2 by prior knowledge, and every pair of versions on the two sides.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::once;
use outrigger_tests::h2::{H2Client, request, whole};
use outrigger_tests::mesh::Plan;
use outrigger_tests::over_both;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        http2_to_an_http2_app,
        http2_to_an_http1_app,
        http1_to_an_http2_app,
        te_trailers_reaches_the_app,
        cookie_crumbs_are_rejoined,
        request_trailers_arrive,
        many_streams_share_one_connection,
        an_undeclared_protocol_is_detected,
    ]
}

async fn http2_to_an_http2_app(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let head = request("POST", addr, "/a//b?x=%2F", &[("x-one", "a"), ("x-one", "b")])?;
    let answer = client.exchange(head, Some(Bytes::from_static(b"hello"))).await?;
    ensure!(answer.head.status() == 200 && answer.error.is_none(), "{answer:?}");
    let seen: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let line = seen["line"].as_str().unwrap_or_default();
    ensure!(
        line.starts_with("POST ") && line.contains("/a//b?x=%2F") && line.ends_with("HTTP/2.0"),
        "{line}"
    );
    ensure!(
        line.contains(&addr.to_string()),
        "the authority is the client's: {line}"
    );
    ensure!(seen["body"] == "hello", "{seen}");
    mesh.check_well()
}

async fn http2_to_an_http1_app(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let answer = client
        .exchange(
            request("POST", addr, "/x?y", &[("x-a", "1")])?,
            Some(Bytes::from_static(b"hi")),
        )
        .await?;
    ensure!(answer.head.status() == 200, "{answer:?}");
    let seen: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(seen["line"] == "POST /x?y HTTP/1.1" && seen["body"] == "hi", "{seen}");
    let head = &app.seen.heads()[0];
    ensure!(head.field("host") == Some(addr.to_string().as_str()), "{head:?}");
    Ok(())
}

async fn http1_to_an_http2_app(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let answer = once(
        mesh.to("app")?,
        "POST /x?y HTTP/1.1\r\nHost: some.host\r\nContent-Length: 2\r\n\r\nhi",
    )
    .await?;
    ensure!(answer.status() == 200, "{answer:?}");
    let seen = answer.json()?;
    let line = seen["line"].as_str().unwrap_or_default();
    ensure!(
        line.contains("some.host/x?y") && line.ends_with("HTTP/2.0") && seen["body"] == "hi",
        "{seen}"
    );
    Ok(())
}

async fn te_trailers_reaches_the_app(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    client
        .exchange(request("GET", addr, "/", &[("te", "trailers")])?, None)
        .await?;
    let head = &app.seen.heads()[0];
    ensure!(head.field("te") == Some("trailers"), "{head:?}");
    Ok(())
}

async fn cookie_crumbs_are_rejoined(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    client
        .exchange(
            request("GET", addr, "/", &[("cookie", "a=1"), ("cookie", "b=2")])?,
            None,
        )
        .await?;
    let head = &app.seen.heads()[0];
    ensure!(head.all("cookie").eq(["a=1; b=2"]), "{head:?}");
    Ok(())
}

async fn request_trailers_arrive(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 20).await?;
    let (answer, mut stream) = client.start(request("POST", addr, "/", &[])?, false).await?;
    stream.send_data(Bytes::from_static(b"x"), false)?;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("42"));
    stream.send_trailers(trailers)?;
    let answer = whole(answer).await?;
    let seen: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(seen["trailers"].to_string().contains("42"), "{seen}");
    Ok(())
}

async fn many_streams_share_one_connection(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mut mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .start(&world)
        .await?;
    let addr = mesh.to("app")?;
    let mut client = H2Client::connect(addr, 1 << 16).await?;
    let mut answers = Vec::new();
    for i in 0..200 {
        let (answer, _) = client.start(request("GET", addr, &format!("/{i}"), &[])?, true).await?;
        answers.push(answer);
    }
    for answer in answers {
        let answer = whole(answer).await?;
        ensure!(answer.head.status() == 200 && answer.error.is_none(), "{answer:?}");
    }
    mesh.check_well()
}

async fn an_undeclared_protocol_is_detected(world: Arc<World>) -> Result<()> {
    let h1 = H1App::echo().await?;
    let mesh = Plan::default().service("app", "auto", &[h1.addr]).start(&world).await?;
    let answer = once(mesh.to("app")?, "GET /auto HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(answer.json()?["line"] == "GET /auto HTTP/1.1", "{answer:?}");
    Ok(())
}
