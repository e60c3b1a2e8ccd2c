//! What a scraper reads, and who may be one.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::api::{ask, get};
use super::client::{Ads, Session, World, eventually};
use super::member::{Client, Member};
use crate::server::Options;

/// The samples, each by its name with its labels.
async fn scrape(mut stream: impl AsyncRead + AsyncWrite + Unpin, extra: &str) -> Result<BTreeMap<String, f64>, String> {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{extra}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut text = Vec::new();
    // TLS without a goodbye is an error after the last byte.
    let _ended = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    assert!(
        head.to_ascii_lowercase()
            .contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a sample");
        let family = name.split('{').next().expect("a name");
        assert!(body.contains(&format!("# TYPE {family} ")), "{family} has no type");
        (name.to_owned(), value.parse().expect("a number"))
    };
    Ok(samples.map(sample).collect())
}

async fn own(world: &World) -> BTreeMap<String, f64> {
    let stream = world.connect().await.expect("connects");
    scrape(stream, "").await.expect("let in")
}

#[tokio::test]
async fn a_scraper_reads_expiries_and_counts() {
    let world = World::start(Options::default()).await;
    let before = own(&world).await;
    let at =
        |page: &BTreeMap<String, f64>, name: &str| *page.get(name).unwrap_or_else(|| panic!("no {name}: {page:?}"));
    assert_eq!(at(&before, "outrigger_workloads{state=\"good\"}"), 0.0);
    assert_eq!(at(&before, "outrigger_workload_not_after_seconds"), 0.0);

    let member = Member::join(&world, "user", "u1").await;
    let kind = "Content-Type: application/json\r\n";
    let (status, made) = ask(&world, "POST", "/v1/tokens", kind, "{\"operator\": true}").await;
    assert_eq!(status, 201, "{made}");
    ask(&world, "POST", "/v1/config", "", "service: user\nprotocl: http\n").await;
    let mut session = Session::open(&world, "user", "u1", 1).await;
    session.register(3001).await;
    let mut ads = Ads::open(&world, "default/user/u1", &["default/user/*"], &BTreeMap::new()).await;
    ads.step().await;

    // Who may not is refused, and that is counted.
    let nobody = Client::new(world.address, None, None);
    let refused = scrape(nobody.connect().await.expect("connects"), "").await;
    assert_eq!(refused, Err("HTTP/1.1 401 Unauthorized".to_owned()));
    let workload = member.client(&world);
    let refused = scrape(workload.connect().await.expect("connects"), "").await;
    assert_eq!(refused, Err("HTTP/1.1 403 Forbidden".to_owned()));
    let bearer = format!("Authorization: Bearer {}\r\n", made["token"].as_str().expect("a token"));
    let page = scrape(nobody.connect().await.expect("connects"), &bearer)
        .await
        .expect("an operator");

    let certs = get(&world, "/v1/certs").await;
    let seconds = |value: &Value| {
        let at: jiff::Timestamp = value.as_str().expect("a time").parse().expect("RFC 3339");
        at.as_second() as f64
    };
    let (root, cert) = (&certs["roots"][0], &certs["certs"][0]);
    let number = &root["number"];
    let ca = |what: &str| format!("outrigger_ca_not_after_seconds{{certificate=\"{what}\",root=\"{number}\"}}");
    assert_eq!(at(&page, &ca("root")), seconds(&root["not_after"]));
    assert_eq!(at(&page, &ca("intermediate")), seconds(&root["issuer_not_after"]));
    assert_eq!(
        at(&page, "outrigger_workload_not_after_seconds"),
        seconds(&cert["not_after"])
    );
    let now = crate::identity::clock() as f64;
    let left = at(&page, "outrigger_ca_not_after_seconds{certificate=\"own\"}") - now;
    assert!((11.0 * 3600.0..=12.0 * 3600.0).contains(&left), "{left} s");
    for (name, n) in [
        ("outrigger_workloads{state=\"good\"}", 1.0),
        ("outrigger_tokens{for=\"join\"}", 1.0),
        ("outrigger_tokens{for=\"operator\"}", 1.0),
        ("outrigger_leases{state=\"serving\"}", 1.0),
        ("outrigger_leases{state=\"unhealthy\"}", 0.0),
        ("outrigger_sessions_open", 1.0),
        ("outrigger_discovery_streams_open", 1.0),
        ("outrigger_refusals_total{what=\"config\"}", 1.0),
        ("outrigger_refusals_total{what=\"unproven\"}", 1.0),
        ("outrigger_refusals_total{what=\"workload\"}", 1.0),
        ("outrigger_refusals_total{what=\"certificate\"}", 0.0),
        ("outrigger_identity_store_failing", 0.0),
    ] {
        assert_eq!(at(&page, name), n, "{name}");
    }
    assert!(
        at(&page, "outrigger_pushes_total{type=\"Endpoint\"}") >= 1.0,
        "{page:?}"
    );

    let revoke = "{\"service\": \"user\"}";
    assert_eq!(ask(&world, "POST", "/v1/certs/revoke", kind, revoke).await.0, 200);
    drop((session, ads));
    eventually("it is counted no longer", async || {
        let page = own(&world).await;
        at(&page, "outrigger_sessions_open") == 0.0 && at(&page, "outrigger_discovery_streams_open") == 0.0
    })
    .await;
    let page = own(&world).await;
    assert_eq!(at(&page, "outrigger_workloads{state=\"revoked\"}"), 1.0);
    assert_eq!(at(&page, "outrigger_workload_not_after_seconds"), 0.0);
    world.stop().await;
}
