//! A real toxiproxy between a sidecar and its app: what the caller sees, how often the app was asked, and what
//! breaker and ejection make of it. Each toxic is taken away again, and the service must be as before.
//!
//! ```text
//! test -> caller sidecar -> inbound sidecar -> toxiproxy -> app
//! ```

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::apps::h1::{self, H1App};
use outrigger_tests::apps::h2c::H2App;
use outrigger_tests::client::{Answer, Client, get, get_ok, once};
use outrigger_tests::h2::{H2Client, request};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::toxiproxy::{Toxiproxy, Way};
use outrigger_tests::{World, over_both, wait};
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![
        latency_ends_with_the_deadline_and_is_not_asked_twice,
        latency_is_tried_as_often_as_the_policy_says,
        a_reset_answer_is_not_asked_for_again_unless_it_may_be,
        an_endpoint_whose_answers_are_reset_is_ejected_and_returns,
        a_narrow_line_changes_nothing_but_the_pace,
        a_line_that_slices_everything_changes_no_byte,
        a_line_that_slices_everything_changes_no_grpc_call,
        swallowed_requests_open_the_breaker_and_their_return_closes_it,
        an_answer_cut_in_its_head_has_a_reason,
        an_answer_cut_in_its_body_has_no_clean_end,
        a_closed_line_costs_no_request_while_another_instance_is_there,
    ]
}

const POST: &str = "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none";

fn policy(service: &mut wire::Service) -> &mut wire::Policy {
    // A handshake may take long on a busy machine, and is not what is tested.
    service.connect_timeout_ms = 15_000;
    // Tests of one thing: nothing is ejected unless a test says so.
    service.outlier.get_or_insert_with(|| wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
    service.policy.get_or_insert_default()
}

fn retries(attempts: u32, per_try_ms: u32) -> impl FnOnce(&mut wire::Service) + Send + 'static {
    move |service| {
        policy(service).per_try_timeout_ms = per_try_ms;
        policy(service).retry = Some(wire::Retry {
            attempts,
            backoff_ms: 1,
            ..wire::Retry::default()
        });
    }
}

fn ejecting(consecutive: u32) -> impl FnOnce(&mut wire::Service) + Send + 'static {
    move |service| {
        service.connect_timeout_ms = 15_000;
        // Each in turn: who is asked is known.
        service.balance = wire::Balance::RoundRobin as i32;
        service.outlier = Some(wire::Outlier {
            trip: Some(wire::Trip {
                consecutive,
                ..wire::Trip::default()
            }),
            ejection_ms: 6_000,
            ..wire::Outlier::default()
        });
    }
}

/// Asks until the service answers, so that handshakes are no part of what is timed; what the app saw of it.
async fn well(mesh: &Mesh, app: &H1App) -> Result<usize> {
    let to = mesh.to("app")?;
    wait::until("the service answers", || async {
        get(to, "/well").await.is_ok_and(|a| a.status() == 200)
    })
    .await?;
    Ok(app.seen.requests())
}

fn is(answer: &Answer, status: u16, reason: &str) -> Result<()> {
    ensure!(
        answer.status() == status && answer.reason() == Some(reason),
        "not {status} {reason}: {answer:?}"
    );
    Ok(())
}

async fn metric(mesh: &Mesh, name: &str) -> Result<u64> {
    let start = format!("{name}{{service=\"default/app\"}} ");
    let text = mesh.caller.metrics().await?;
    let line = text.lines().find_map(|l| l.strip_prefix(&start));
    Ok(line.with_context(|| format!("no {start}"))?.parse()?)
}

async fn latency_ends_with_the_deadline_and_is_not_asked_twice(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .timeout_ms(1_500)
        .policy(|service| {
            policy(service);
        })
        .workers(1)
        .start(&world)
        .await?;
    let before = well(&mesh, &app).await?;
    toxi.poison("latency", Way::Answers, json!({"latency": 60_000})).await?;
    for (i, ask) in [POST, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"].into_iter().enumerate() {
        is(&once(mesh.to("app")?, ask).await?, 504, "deadline")?;
        ensure!(app.seen.requests() == before + i + 1, "{ask}");
    }
    toxi.cure("latency").await?;
    well(&mesh, &app).await?;
    mesh.check_well()
}

async fn latency_is_tried_as_often_as_the_policy_says(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .policy(retries(3, 1_000))
        .workers(1)
        .start(&world)
        .await?;
    let before = well(&mesh, &app).await?;
    toxi.poison("latency", Way::Answers, json!({"latency": 60_000})).await?;
    let answer = get(mesh.to("app")?, "/").await?;
    is(&answer, 504, "per_try_timeout")?;
    ensure!(answer.head.field("outrigger-final") == Some("retried"), "{answer:?}");
    ensure!(app.seen.requests() == before + 3, "{}", app.seen.requests() - before);
    is(&once(mesh.to("app")?, POST).await?, 504, "per_try_timeout")?;
    ensure!(app.seen.requests() == before + 4, "a POST was sent again");
    toxi.cure("latency").await?;
    well(&mesh, &app).await?;
    mesh.check_well()
}

async fn a_reset_answer_is_not_asked_for_again_unless_it_may_be(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .policy(retries(3, 0))
        .start(&world)
        .await?;
    let before = well(&mesh, &app).await?;
    toxi.poison("reset_peer", Way::Answers, json!({"timeout": 0})).await?;
    is(&once(mesh.to("app")?, POST).await?, 502, "upstream_reset")?;
    ensure!(app.seen.requests() == before + 1, "{}", app.seen.requests() - before);
    let answer = get(mesh.to("app")?, "/").await?;
    is(&answer, 502, "upstream_reset")?;
    ensure!(answer.head.field("outrigger-final") == Some("retried"), "{answer:?}");
    ensure!(app.seen.requests() == before + 4, "{}", app.seen.requests() - before);
    toxi.cure("reset_peer").await?;
    // Reset before the app has it: nobody can know that, so a POST is not sent again either.
    let before = well(&mesh, &app).await?;
    toxi.poison("reset_peer", Way::Requests, json!({"timeout": 0})).await?;
    is(&once(mesh.to("app")?, POST).await?, 502, "upstream_reset")?;
    ensure!(app.seen.requests() == before, "{}", app.seen.requests() - before);
    toxi.cure("reset_peer").await?;
    well(&mesh, &app).await?;
    mesh.check_well()
}

async fn an_endpoint_whose_answers_are_reset_is_ejected_and_returns(world: Arc<World>) -> Result<()> {
    let (sick, sound) = (H1App::echo().await?, H1App::echo().await?);
    let toxi = Toxiproxy::before(&world, sick.addr).await?;
    toxi.poison("reset_peer", Way::Answers, json!({"timeout": 0})).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen, sound.addr])
        .policy(ejecting(3))
        .workers(1)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut failed = 0;
    for i in 0..20 {
        let answer = once(to, POST).await?;
        match answer.status() {
            200 => {}
            _ => {
                is(&answer, 502, "upstream_reset")?;
                failed += 1;
                ensure!(i < 7, "not ejected after {i} requests in turn");
            }
        }
    }
    ensure!(
        failed == 3 && sick.seen.requests() == 3,
        "{failed} of {}",
        sick.seen.requests()
    );
    ensure!(
        mesh.caller.process.output().contains("ejected"),
        "no line of the log tells it"
    );
    toxi.cure("reset_peer").await?;
    wait::until("it is asked again", || async {
        get(to, "/").await.is_ok_and(|a| a.status() == 200) && sick.seen.requests() > 3
    })
    .await?;
    ensure!(metric(&mesh, "outrigger_ejected_endpoints").await? == 0);
    mesh.check_well()
}

async fn a_narrow_line_changes_nothing_but_the_pace(world: Arc<World>) -> Result<()> {
    const LENGTH: usize = 192 * 1024;
    let app = H1App::start(h1::bulk).await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        // Both end with the head of the answer, or with silence: neither cuts what is merely slow.
        .policy(retries(3, 10_000))
        .policy(|service| policy(service).idle_timeout_ms = 10_000)
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    toxi.poison("bandwidth", Way::Answers, json!({"rate": 128})).await?;
    let answer = get_ok(to, &format!("/{LENGTH}")).await?;
    ensure!(
        answer.body.complete && answer.body.bytes.len() == LENGTH,
        "{} bytes",
        answer.body.bytes.len()
    );
    toxi.cure("bandwidth").await?;
    toxi.poison("bandwidth", Way::Requests, json!({"rate": 128})).await?;
    let mut client = Client::connect(to).await?;
    let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {LENGTH}\r\n\r\n");
    client.send([head.as_bytes(), &vec![b'y'; LENGTH]].concat()).await?;
    let answer = client.answer("POST").await?;
    ensure!(
        answer.status() == 200 && answer.text() == LENGTH.to_string(),
        "{answer:?}"
    );
    toxi.cure("bandwidth").await?;
    ensure!(app.seen.requests() == 2, "{}", app.seen.requests());
    mesh.check_well()
}

async fn a_line_that_slices_everything_changes_no_byte(world: Arc<World>) -> Result<()> {
    let app = H1App::start(|request: h1::Request| async move {
        match request.head.word(1) {
            "/trailers" => h1::with_trailers(request).await,
            _ => h1::echo(request).await,
        }
    })
    .await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let sliced = json!({"average_size": 3, "size_variation": 2, "delay": 10});
    toxi.poison("slicer", Way::Answers, sliced.clone()).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let text = "0123456789".repeat(100);
    let chunked = format!(
        "POST /chunked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\nX-Sum: 7\r\n\r\n",
        text.len()
    );
    let mut client = Client::connect(to).await?;
    for way in [Way::Answers, Way::Requests] {
        let answer = client.exchange(&chunked).await?;
        ensure!(answer.status() == 200 && answer.body.complete, "{way:?}: {answer:?}");
        ensure!(answer.json()?["body"] == text, "{way:?}: {answer:?}");
        let answer = client
            .exchange("GET /trailers HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n")
            .await?;
        ensure!(
            answer.body.bytes == b"abcde" && answer.body.complete,
            "{way:?}: {answer:?}"
        );
        toxi.cure("slicer").await?;
        toxi.poison("slicer", Way::Requests, sliced.clone()).await?;
    }
    mesh.check_well()
}

async fn a_line_that_slices_everything_changes_no_grpc_call(world: Arc<World>) -> Result<()> {
    let app = H2App::echo().await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let sliced = json!({"average_size": 5, "size_variation": 4, "delay": 10});
    toxi.poison("slicer", Way::Answers, sliced.clone()).await?;
    let mut mesh = Plan::default()
        .service("app", "grpc", &[toxi.listen])
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = H2Client::connect(to, 1 << 20).await?;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let message = Bytes::from("m".repeat(2_000));
    for way in [Way::Answers, Way::Requests] {
        for _ in 0..5 {
            let answer = client
                .exchange(request("POST", to, "/a.B/C", &fields)?, Some(message.clone()))
                .await?;
            ensure!(
                answer.error.is_none() && answer.head.status() == 200,
                "{way:?}: {answer:?}"
            );
            let report: serde_json::Value = serde_json::from_slice(&answer.body)?;
            ensure!(report["length"] == message.len(), "{way:?}: {report}");
        }
        toxi.cure("slicer").await?;
        toxi.poison("slicer", Way::Requests, sliced.clone()).await?;
    }
    ensure!(app.seen.requests() == 10, "{}", app.seen.requests());
    mesh.check_well()
}

async fn swallowed_requests_open_the_breaker_and_their_return_closes_it(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .timeout_ms(1_000)
        .policy(|service| {
            policy(service);
            service.breaker = Some(wire::Breaker {
                trip: Some(wire::Trip {
                    consecutive: 3,
                    ..wire::Trip::default()
                }),
                cooldown_ms: 4_000,
                max_cooldown_ms: 4_000,
                probes: 1,
            });
        })
        .start(&world)
        .await?;
    let before = well(&mesh, &app).await?;
    // Nothing passes and nobody is told: the line of a machine that is gone.
    toxi.poison("timeout", Way::Requests, json!({"timeout": 0})).await?;
    let to = mesh.to("app")?;
    for _ in 0..3 {
        is(&once(to, POST).await?, 504, "deadline")?;
    }
    for _ in 0..3 {
        let answer = once(to, POST).await?;
        is(&answer, 503, "breaker_open")?;
        ensure!(answer.head.field("retry-after").is_some(), "{answer:?}");
    }
    ensure!(app.seen.requests() == before, "the line was to swallow everything");
    toxi.cure("timeout").await?;
    well(&mesh, &app).await?;
    ensure!(metric(&mesh, "outrigger_breaker_state").await? == 0);
    for _ in 0..5 {
        get_ok(to, "/").await?;
    }
    mesh.check_well()
}

async fn an_answer_cut_in_its_head_has_a_reason(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .policy(retries(2, 0))
        .start(&world)
        .await?;
    let before = well(&mesh, &app).await?;
    toxi.poison("limit_data", Way::Answers, json!({"bytes": 20})).await?;
    is(&once(mesh.to("app")?, POST).await?, 502, "upstream_reset")?;
    ensure!(app.seen.requests() == before + 1);
    let answer = get(mesh.to("app")?, "/").await?;
    is(&answer, 502, "upstream_reset")?;
    ensure!(app.seen.requests() == before + 3, "{}", app.seen.requests() - before);
    toxi.cure("limit_data").await?;
    well(&mesh, &app).await?;
    mesh.check_well()
}

async fn an_answer_cut_in_its_body_has_no_clean_end(world: Arc<World>) -> Result<()> {
    let app = H1App::start(h1::bulk).await?;
    let toxi = Toxiproxy::before(&world, app.addr).await?;
    toxi.poison("limit_data", Way::Answers, json!({"bytes": 8_000_000}))
        .await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen])
        .policy(retries(3, 0))
        .start(&world)
        .await?;
    let to = mesh.to("app")?;
    let mut client = Client::connect(to).await?;
    client.send("GET /16000000 HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    let head = client.head().await?;
    let body = client.body(&head, "GET").await?;
    ensure!(
        head.word(1) == "200" && !body.complete,
        "{head:?}, complete: {}",
        body.complete
    );
    ensure!(body.bytes.len() < 8_000_000, "{} bytes", body.bytes.len());
    ensure!(app.seen.requests() == 1, "an answer that was begun was asked for again");
    toxi.cure("limit_data").await?;
    let answer = get_ok(to, "/16000000").await?;
    ensure!(answer.body.complete && answer.body.bytes.len() == 16_000_000);
    mesh.check_well()
}

async fn a_closed_line_costs_no_request_while_another_instance_is_there(world: Arc<World>) -> Result<()> {
    let (first, second) = (H1App::echo().await?, H1App::echo().await?);
    let toxi = Toxiproxy::before(&world, first.addr).await?;
    let mut mesh = Plan::default()
        .service("app", "http", &[toxi.listen, second.addr])
        .policy(|service| {
            policy(service);
            service.balance = wire::Balance::RoundRobin as i32;
        })
        .start(&world)
        .await?;
    toxi.enable(false).await?;
    let to = mesh.to("app")?;
    for _ in 0..20 {
        let answer = once(to, POST).await?;
        ensure!(answer.status() == 200, "{answer:?}");
    }
    ensure!(second.seen.requests() == 20 && first.seen.requests() == 0);
    toxi.enable(true).await?;
    wait::until("the first is asked again", || async {
        get(to, "/").await.is_ok_and(|a| a.status() == 200) && first.seen.requests() > 0
    })
    .await?;
    mesh.check_well()
}
