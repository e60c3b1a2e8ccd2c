//! Retries of gRPC requests whose status stands in trailers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::apps::h2c::{Answer, H2App};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::Plan;
use outrigger_tests::{World, over_both, wait};
use tokio::sync::Notify;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        a_status_in_trailers_is_tried_again_unless_a_message_came_first,
        the_last_word_in_trailers_is_passed_on,
        a_stream_that_is_silent_at_first_gets_its_head,
    ]
}

const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];
const MESSAGE: &[u8] = &[0, 0, 0, 0, 1, 42];

/// A head, then `message`, then `status` in trailers.
fn answer(message: Option<&'static [u8]>, status: &'static str) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    let message = message.map(|m| Ok(Frame::data(Bytes::from_static(m))));
    let frames = message.into_iter().chain([Ok(Frame::trailers(trailers))]);
    let body = BodyExt::boxed(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())));
    http::Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .expect("a head")
}

fn twice(service: &mut wire::Service) {
    // A handshake on a machine that is busy takes its time.
    service.connect_timeout_ms = 20_000;
    service.outlier = Some(wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
    let policy = service.policy.get_or_insert_default();
    policy.idempotent = true;
    policy.retry = Some(wire::Retry {
        attempts: 2,
        backoff_ms: 1,
        ..wire::Retry::default()
    });
}

async fn a_status_in_trailers_is_tried_again_unless_a_message_came_first(world: Arc<World>) -> Result<()> {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let app = H2App::start(move |request, _| {
        let second = counted.fetch_add(1, SeqCst) % 2 == 1;
        let after = request.uri().path().ends_with("After");
        async move {
            // A head that comes before the request has been sent whole is passed on.
            drop(request.into_body().collect().await);
            match (after, second) {
                (true, _) => answer(Some(MESSAGE), "14"),
                (false, false) => answer(None, "14"),
                (false, true) => answer(Some(MESSAGE), "0"),
            }
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .policy(twice)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    for (method, body, status, tries) in [("Before", MESSAGE, "0", 2), ("After", MESSAGE, "14", 1)] {
        for _ in 0..3 {
            let before = asked.load(SeqCst);
            let request = request("POST", to, &format!("/blog.Post/{method}"), &GRPC)?;
            let whole = client.exchange(request, Some(Bytes::from_static(MESSAGE))).await?;
            ensure!(whole.error.is_none() && whole.body == body, "{method}: {whole:?}");
            let told = whole.trailers.get("grpc-status").and_then(|v| v.to_str().ok());
            ensure!(told == Some(status), "{method}: {whole:?}");
            let tried = asked.load(SeqCst) - before;
            ensure!(tried == tries, "{method}: {tried} tries");
        }
    }
    mesh.check_well()
}

async fn the_last_word_in_trailers_is_passed_on(world: Arc<World>) -> Result<()> {
    let app = H2App::start(|request, _| async move {
        drop(request.into_body().collect().await);
        answer(None, "14")
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .policy(twice)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    let request = request("POST", to, "/blog.Post/Never", &GRPC)?;
    let whole = client.exchange(request, Some(Bytes::from_static(MESSAGE))).await?;
    let told = whole.trailers.get("grpc-status").and_then(|v| v.to_str().ok());
    ensure!(whole.error.is_none() && told == Some("14"), "{whole:?}");
    ensure!(whole.field("outrigger-final") == Some("retried"), "{whole:?}");
    ensure!(app.seen.requests() == 2, "{}", app.seen.requests());
    mesh.check_well()
}

async fn a_stream_that_is_silent_at_first_gets_its_head(world: Arc<World>) -> Result<()> {
    let go = Arc::new(Notify::new());
    let held = go.clone();
    let app = H2App::start(move |_, _| {
        let held = held.clone();
        async move {
            let frames = stream::once(async move {
                held.notified().await;
                Ok(Frame::data(Bytes::from_static(MESSAGE)))
            });
            http::Response::builder()
                .header("content-type", "application/grpc")
                .body(BodyExt::boxed(StreamBody::new(Box::pin(frames))))
                .expect("a head")
        }
    })
    .await?;
    let mut mesh = Plan::default()
        .service("app", "grpc", &[app.addr])
        .policy(twice)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    let request = request("POST", to, "/blog.Post/Watch", &GRPC)?;
    let (head, mut send) = client.start(request, false).await?;
    send.send_data(Bytes::from_static(MESSAGE), true)?;
    // The app says nothing before the head is here.
    let head = wait::soon("the head", async { Ok(head.await?) }).await?;
    go.notify_one();
    let mut body = head.into_body();
    let first = wait::soon("the message", async { Ok(body.data().await.transpose()?) }).await?;
    ensure!(first.as_deref() == Some(MESSAGE), "{first:?}");
    ensure!(app.seen.requests() == 1, "{}", app.seen.requests());
    mesh.check_well()
}
