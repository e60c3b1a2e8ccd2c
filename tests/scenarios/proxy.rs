//! The calling app's `HTTP_PROXY`: mesh services by name, the world outside by permission.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::apps::tcp::TcpApp;
use outrigger_tests::client::{Client, once};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::over_both;
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        an_absolute_form_request_reaches_a_mesh_service,
        connect_to_a_mesh_service_speaks_http_inside,
        connect_to_a_mesh_service_speaks_http2_inside,
        connect_to_a_tcp_service_is_opaque,
        an_external_host_is_reached_when_allowed,
        an_external_host_is_refused_when_denied,
        a_listed_external_host_alone_is_reached,
        metadata_addresses_are_refused,
        the_proxy_does_not_call_itself,
        an_unknown_host_has_an_answer,
        proxy_credentials_stay_here,
    ]
}

async fn echo(world: &World, external: &str) -> Result<(H1App, Mesh)> {
    let app = H1App::echo().await?;
    let mesh = Plan::default()
        .service("echo", "http", &[app.addr])
        .caller(json!({"external": {"mode": external}}))
        .start(world)
        .await?;
    Ok((app, mesh))
}

async fn an_absolute_form_request_reaches_a_mesh_service(world: Arc<World>) -> Result<()> {
    let (app, mut mesh) = echo(&world, "deny").await?;
    let answer = once(mesh.proxy(), "GET http://echo/a//b?c HTTP/1.1\r\nHost: echo\r\n\r\n").await?;
    ensure!(answer.status() == 200, "{answer:?}");
    let head = &app.seen.heads()[0];
    ensure!(
        head.line == "GET /a//b?c HTTP/1.1",
        "the app sees origin form: {head:?}"
    );
    ensure!(head.field("host") == Some("echo"), "{head:?}");
    mesh.check_well()
}

async fn connect(proxy: SocketAddr, to: &str) -> Result<Client> {
    let mut client = Client::connect(proxy).await?;
    let answer = client
        .exchange(&format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n"))
        .await?;
    ensure!(answer.status() == 200, "CONNECT {to}: {answer:?}");
    ensure!(answer.head.field("content-length").is_none(), "{answer:?}");
    ensure!(answer.head.field("transfer-encoding").is_none(), "{answer:?}");
    Ok(client)
}

async fn connect_to_a_mesh_service_speaks_http_inside(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world, "deny").await?;
    let mut client = connect(mesh.proxy(), "echo:80").await?;
    for i in 0..3 {
        let answer = client
            .exchange(&format!("GET /{i} HTTP/1.1\r\nHost: echo\r\n\r\n"))
            .await?;
        ensure!(answer.json()?["line"] == format!("GET /{i} HTTP/1.1"), "{answer:?}");
    }
    ensure!(app.seen.requests() == 3);
    Ok(())
}

async fn connect_to_a_mesh_service_speaks_http2_inside(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let mesh = Plan::default()
        .service("app", "http2", &[app.addr])
        .caller(json!({"external": {"mode": "deny"}}))
        .start(&world)
        .await?;
    let mut client = connect(mesh.proxy(), "app:80").await?;
    // The preface and an empty SETTINGS frame; a server answers with its own SETTINGS first.
    client
        .send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await?;
    let frame = client.bytes(9).await?;
    ensure!(frame[3] == 4, "the first frame is not SETTINGS: {frame:?}");
    Ok(())
}

async fn connect_to_a_tcp_service_is_opaque(world: Arc<World>) -> Result<()> {
    let app = TcpApp::server_first().await?;
    let mesh = Plan::default()
        .service("db", "tcp", &[app.addr])
        .caller(json!({"external": {"mode": "deny"}}))
        .start(&world)
        .await?;
    let mut client = connect(mesh.proxy(), "db:5432").await?;
    ensure!(client.bytes(11).await? == b"220 ready\r\n");
    Ok(())
}

async fn an_external_host_is_reached_when_allowed(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world, "allow").await?;
    let outside = H1App::echo().await?;
    let (at, proxy) = (outside.addr, mesh.proxy());
    let answer = once(proxy, &format!("GET http://{at}/x HTTP/1.1\r\nHost: {at}\r\n\r\n")).await?;
    ensure!(answer.json()?["line"] == "GET /x HTTP/1.1", "{answer:?}");
    let mut client = connect(proxy, &at.to_string()).await?;
    let answer = client.exchange("GET /tunnel HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    ensure!(answer.json()?["line"] == "GET /tunnel HTTP/1.1", "{answer:?}");
    Ok(())
}

async fn refused(proxy: SocketAddr, authority: &str) -> Result<()> {
    let absolute = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let tunnel = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    for request in [absolute, tunnel] {
        let answer = once(proxy, &request).await?;
        ensure!(answer.status() == 403, "{request} got {answer:?}");
        ensure!(answer.reason() == Some("external_denied"), "{request} got {answer:?}");
    }
    Ok(())
}

async fn an_external_host_is_refused_when_denied(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = echo(&world, "deny").await?;
    let outside = H1App::echo().await?;
    refused(mesh.proxy(), &outside.addr.to_string()).await?;
    ensure!(outside.seen.requests() == 0);
    mesh.check_well()
}

async fn a_listed_external_host_alone_is_reached(world: Arc<World>) -> Result<()> {
    let (listed, other) = (H1App::echo().await?, H1App::echo().await?);
    let mesh = Plan::default()
        .caller(json!({"external": {"mode": "list", "hosts": ["localhost"]}}))
        .start(&world)
        .await?;
    let port = listed.addr.port();
    let request = format!("GET http://localhost:{port}/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
    let answer = once(mesh.proxy(), &request).await?;
    ensure!(answer.status() == 200, "{answer:?}");
    refused(mesh.proxy(), &other.addr.to_string()).await
}

async fn metadata_addresses_are_refused(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world, "allow").await?;
    for host in [
        "169.254.169.254",
        "169.254.1.1:80",
        "[fe80::1]:80",
        "[::ffff:169.254.169.254]:80",
        "[fd00:ec2::254]",
    ] {
        let authority = if host.contains(':') && !host.ends_with(']') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        refused(mesh.proxy(), &authority).await?;
    }
    Ok(())
}

async fn the_proxy_does_not_call_itself(world: Arc<World>) -> Result<()> {
    let (_app, mut mesh) = echo(&world, "allow").await?;
    let own = mesh.proxy();
    let answer = once(own, &format!("GET http://{own}/ HTTP/1.1\r\nHost: {own}\r\n\r\n")).await?;
    ensure!(answer.status() >= 400 && answer.reason().is_some(), "{answer:?}");
    mesh.check_well()
}

async fn an_unknown_host_has_an_answer(world: Arc<World>) -> Result<()> {
    let (_app, mesh) = echo(&world, "allow").await?;
    for request in [
        "GET http://nosuch.invalid/ HTTP/1.1\r\nHost: nosuch.invalid\r\n\r\n",
        "CONNECT nosuch.invalid:443 HTTP/1.1\r\nHost: nosuch.invalid:443\r\n\r\n",
    ] {
        let answer = once(mesh.proxy(), request).await?;
        ensure!(answer.status() >= 400 && answer.reason().is_some(), "{answer:?}");
    }
    Ok(())
}

async fn proxy_credentials_stay_here(world: Arc<World>) -> Result<()> {
    let (app, mesh) = echo(&world, "deny").await?;
    let request = "GET http://echo/ HTTP/1.1\r\nHost: echo\r\nProxy-Authorization: Basic eDp5\r\nAuthorization: Basic YTpi\r\n\r\n";
    once(mesh.proxy(), request).await?;
    let head = &app.seen.heads()[0];
    ensure!(head.field("proxy-authorization").is_none(), "{head:?}");
    ensure!(head.field("authorization") == Some("Basic YTpi"), "{head:?}");
    Ok(())
}
