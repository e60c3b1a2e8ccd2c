//! Configuration by file and by POST, and what the API shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use outrigger_proto::wire::agent::{self, up};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::client::{Ads, Session, World, eventually};
use crate::server::Options;

const GOOD: &str = "mesh: blog\n---\nservice: user\nport: 8081\nprotocol: http\n---\nservice: post\ncalls: [user]\n";
const BAD: &str = "service: user\nprotocl: http\n";

pub(super) async fn ask(world: &World, method: &str, path: &str, extra: &str, body: &str) -> (u16, Value) {
    let stream = world.connect().await.expect("connects");
    let (status, _, body) = ask_over(stream, method, path, extra, body).await;
    (status, body)
}

/// One request over any connection: the status, the head, and the body when it is JSON.
pub(super) async fn ask_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    extra: &str,
    body: &str,
) -> (u16, String, Value) {
    let length = body.len();
    let host = if extra.contains("Host:") {
        ""
    } else {
        "Host: localhost\r\n"
    };
    let head =
        format!("{method} {path} HTTP/1.1\r\n{host}{extra}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .expect("writes");
    let mut text = Vec::new();
    // TLS without a goodbye is an error after the last byte.
    let _ended = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (
        status,
        head.to_ascii_lowercase(),
        serde_json::from_str(body).unwrap_or(Value::Null),
    )
}

pub(super) async fn get(world: &World, path: &str) -> Value {
    let (status, body) = ask(world, "GET", path, "", "").await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

fn with_file(path: &Path) -> Options {
    Options {
        config: Some(path.to_owned()),
        ..Options::default()
    }
}

#[tokio::test]
async fn a_posted_configuration_is_taken_whole_or_refused_whole() {
    let world = World::start(Options::default()).await;
    assert_eq!(get(&world, "/v1/config").await["status"], "none");
    let (status, applied) = ask(&world, "POST", "/v1/config", "", GOOD).await;
    assert_eq!(
        (status, &applied["changed"]),
        (200, &serde_json::json!(["default/post", "default/user"]))
    );
    let (status, problems) = ask(&world, "POST", "/v1/config", "", BAD).await;
    assert_eq!(status, 422);
    assert_eq!(
        (&problems["errors"][0]["line"], &problems["errors"][0]["column"]),
        (&2.into(), &1.into()),
        "{problems}"
    );
    let config = get(&world, "/v1/config").await;
    assert_eq!(
        (&config["status"], &config["version"]),
        (&"refused".into(), &applied["version"]),
        "{config}"
    );
    let services = get(&world, "/v1/services").await;
    assert_eq!(
        services.as_array().map(Vec::len),
        Some(2),
        "the last good one stays: {services}"
    );
    let user = get(&world, "/v1/services/default/user").await;
    assert_eq!(user["callers"], serde_json::json!(["default/post"]));
    assert_eq!(user["policy"]["ports"][0]["protocol"], "http", "{user}");
    let (status, unknown) = ask(&world, "GET", "/v1/services/default/usre", "", "").await;
    assert_eq!(status, 404);
    assert!(
        unknown["error"]
            .as_str()
            .is_some_and(|e| e.contains("did you mean default/user")),
        "{unknown}"
    );
    let events = get(&world, "/v1/events").await;
    let kinds: Vec<_> = events
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| e["event"].as_str())
        .collect();
    assert_eq!(kinds, [Some("config_applied"), Some("config_refused")]);
    world.stop().await;
}

#[tokio::test]
async fn a_changed_file_is_applied_and_an_invalid_one_leaves_the_last_good() {
    let scratch = tempfile::tempdir().expect("scratch");
    let file = scratch.path().join("mesh.yaml");
    std::fs::write(&file, GOOD).expect("writes");
    let world = World::start(with_file(scratch.path())).await;
    let version = get(&world, "/v1/config").await["version"].clone();
    std::fs::write(&file, BAD).expect("writes");
    eventually("refused", async || {
        get(&world, "/v1/config").await["status"] == "refused"
    })
    .await;
    assert_eq!(get(&world, "/v1/config").await["version"], version);
    assert_eq!(get(&world, "/healthz").await["status"], "degraded");
    // Editors write beside the file and rename.
    let beside = scratch.path().join(".mesh.yaml.swp");
    std::fs::write(&beside, GOOD.replace("post", "blog")).expect("writes");
    std::fs::rename(&beside, &file).expect("renames");
    eventually("applied", async || {
        get(&world, "/v1/config").await["status"] == "applied"
    })
    .await;
    assert_eq!(get(&world, "/v1/services").await[0]["name"], "default/blog");
    world.stop().await;
}

#[tokio::test]
async fn the_last_good_configuration_outlives_a_restart_even_when_the_file_went_bad() {
    let scratch = tempfile::tempdir().expect("scratch");
    let file = scratch.path().join("mesh.yaml");
    std::fs::write(&file, GOOD).expect("writes");
    let options = Options {
        state_dir: Some(scratch.path().join("state")),
        ..with_file(&file)
    };
    let world = World::start(options.clone()).await;
    world.stop().await;
    std::fs::write(&file, BAD).expect("writes");
    let world = World::start(options).await;
    assert_eq!(get(&world, "/v1/config").await["status"], "refused");
    assert_eq!(get(&world, "/v1/services").await.as_array().map(Vec::len), Some(2));
    world.stop().await;
}

#[tokio::test]
async fn sidecars_endpoints_and_the_alarm_are_shown() {
    let options = Options {
        lease: Duration::from_millis(300),
        grace: Duration::from_millis(1),
        ..Options::default()
    };
    let world = World::start(options).await;
    ask(&world, "POST", "/v1/config", "", GOOD).await;
    let mut session = Session::open(&world, "user", "u1", 4).await;
    session.register(3001).await;
    let applied = agent::Applied {
        type_url: super::client::ENDPOINT.into(),
        resource: "default/post/p1".into(),
        version: "v".into(),
        rejection: "ports: odd".into(),
    };
    session.send(Some(up::Body::Applied(applied))).await;
    let mut ads = Ads::open(&world, "default/user/u1", &["default/user/*"], &BTreeMap::new()).await;
    ads.refuse = Some("default/user/u1".into());
    ads.step().await;
    eventually("shown", async || {
        let sidecars = get(&world, "/v1/sidecars").await;
        let shown = &sidecars[0];
        let rejected = shown["rejected"].as_array().map_or(0, Vec::len);
        shown["connected"] == true && shown["subscribed"] == true && shown["epoch"] == 4 && rejected == 2
    })
    .await;
    assert_eq!(
        get(&world, "/v1/endpoints?service=user").await[0]["ports"]["http"],
        3001
    );
    // The session stays open but nothing renews: the only endpoint stays, and everybody is told.
    eventually("stale", async || {
        get(&world, "/v1/services").await[1]["stale"]["of"] == 1
    })
    .await;
    assert_eq!(get(&world, "/v1/endpoints").await[0]["state"], "stale");
    let events = get(&world, "/v1/events").await;
    let seen = |kind: &str| events.as_array().expect("a list").iter().any(|e| e["event"] == kind);
    assert!(seen("registered") && seen("nack") && seen("stale_alarm"), "{events}");
    drop(session);
    eventually("disconnected", async || {
        get(&world, "/v1/sidecars").await[0]["connected"] == false
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_sidecar_is_asked_to_drain() {
    let world = World::start(Options::default()).await;
    let mut session = Session::open(&world, "user", "u1", 1).await;
    let answering = async {
        let down = session.downs.message().await.expect("no error").expect("a request");
        assert!(matches!(down.body, Some(agent::down::Body::DrainNow(_))), "{down:?}");
        let result = Some(agent::answer::Result::Done(true));
        session
            .send(Some(up::Body::Answer(agent::Answer { of: down.id, result })))
            .await;
    };
    let path = "/v1/sidecars/default/user/u1/drain";
    let ((status, _), ()) = tokio::join!(ask(&world, "POST", path, "", ""), answering);
    assert_eq!(status, 202);
    let (status, _) = ask(&world, "POST", "/v1/sidecars/default/user/u9/drain", "", "").await;
    assert_eq!(status, 404);
    world.stop().await;
}

#[tokio::test]
async fn the_document_names_every_route() {
    let world = World::start(Options::default()).await;
    let document = get(&world, "/v1/openapi.json").await;
    let paths: Vec<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
    assert_eq!(paths.len(), 24, "{paths:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_is_refused() {
    let scratch = tempfile::tempdir().expect("scratch");
    let not_a_folder = scratch.path().join("file");
    std::fs::write(&not_a_folder, "").expect("writes");
    let options = Options {
        state_dir: Some(not_a_folder),
        ..Options::default()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    // Without its keys nobody that joined before would be known.
    let refused = crate::server::serve(listener, options, std::future::pending()).await;
    assert!(matches!(refused, Err(crate::server::Error::Identity(_))), "{refused:?}");
}
