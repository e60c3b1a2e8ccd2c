//! The corpus of paths once more, through two sidecars: raw path × pattern × what the app received.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::Client;
use outrigger_tests::mesh::Plan;
use outrigger_tests::secure_scenarios;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    secure_scenarios![
        paths_are_compared_in_one_form_and_forwarded_as_they_came,
        grpc_methods_are_paths_that_nobody_misreads,
    ]
}

const CORPUS: &str = include_str!("../corpus/paths.tsv");

/// One line of the corpus.
struct Case {
    raw: &'static str,
    pattern: &'static str,
    expected: &'static str,
}

fn corpus() -> impl Iterator<Item = Case> {
    let lines = CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let mut columns = line.split('\t');
        let mut column = || columns.next().unwrap_or_default();
        Case {
            raw: column(),
            pattern: column(),
            expected: column(),
        }
    })
}

async fn paths_are_compared_in_one_form_and_forwarded_as_they_came(world: Arc<World>) -> Result<()> {
    let cases: Vec<Case> = corpus().filter(|case| case.pattern.starts_with('/')).collect();
    // A method of its own for each line, so that one workload holds all patterns.
    let rule = |(i, case): (usize, &Case)| {
        json!({
            "name": format!("allow[{i}]"),
            "methods": [format!("M{i}")],
            "paths": [case.pattern],
        })
    };
    let rules = cases.iter().enumerate().map(rule).collect();
    check(&world, rules, &cases, |i| format!("M{i}")).await
}

async fn grpc_methods_are_paths_that_nobody_misreads(world: Arc<World>) -> Result<()> {
    let patterns = corpus()
        .map(|case| case.pattern)
        .filter(|pattern| !pattern.starts_with('/'));
    let mut patterns: Vec<_> = patterns.collect();
    patterns.sort_unstable();
    patterns.dedup();
    ensure!(patterns.len() > 1, "the corpus has no gRPC any more");
    for pattern in patterns {
        let cases: Vec<Case> = corpus().filter(|case| case.pattern == pattern).collect();
        let rules = vec![json!({"name": "allow[0]", "grpc": [pattern]})];
        check(&world, rules, &cases, |_| "POST".into()).await?;
    }
    Ok(())
}

/// Sends each case with its method through the caller's sidecar; the app's own record tells what arrived.
async fn check(world: &World, rules: Vec<Value>, cases: &[Case], method: impl Fn(usize) -> String) -> Result<()> {
    let app = H1App::echo().await?;
    let access = json!({"default": "deny", "default_source": "the test", "rules": rules});
    let mut mesh = Plan::default()
        .service("app", "http", &[app.addr])
        .inbound(json!({"access": access}))
        .start(world)
        .await?;
    for (i, case) in cases.iter().enumerate() {
        let (Case { raw, pattern, expected }, method) = (case, method(i));
        let before = app.seen.requests();
        let mut client = Client::connect(mesh.to("app")?).await?;
        let request = format!("{method} {raw}?q=/..//%2f HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        let answer = client
            .exchange(&request)
            .await
            .with_context(|| format!("{raw} × {pattern}"))?;
        let seen = (answer.status(), answer.reason().unwrap_or_default());
        let wanted = match *expected {
            "allowed" => (200, ""),
            "denied" => (403, "denied"),
            _ => (400, "bad_path"),
        };
        ensure!(
            seen == wanted,
            "{raw} × {pattern}: {seen:?}, not {wanted:?}: {}",
            answer.text()
        );
        let arrived: Vec<_> = app.seen.heads().split_off(before);
        let arrived: Vec<_> = arrived.iter().map(|head| head.word(1)).collect();
        let forwarded = format!("{raw}?q=/..//%2f");
        match wanted.0 {
            200 => ensure!(arrived == [forwarded.as_str()], "{raw}: the app received {arrived:?}"),
            _ => ensure!(arrived.is_empty(), "{raw}: the app received {arrived:?}"),
        }
    }
    mesh.check_well()
}
