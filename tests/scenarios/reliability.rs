//! Retries, time-outs, breaker, ejection, bounds and hedging of the caller's sidecar, against apps that fail on command.

mod circuit;
mod retries;
mod time;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use anyhow::{Context as _, Result};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::apps::h1::{self, Fixed};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait;
use tokio::io::AsyncWriteExt as _;

pub(crate) fn tests() -> Vec<Trial> {
    let parts = [retries::tests(), time::tests(), circuit::tests()];
    parts.into_iter().flatten().collect()
}

/// Answers with the status that `command` holds at the moment.
fn obedient(command: &Arc<AtomicUsize>) -> impl Fn(h1::Request) -> Fixed + Clone + Send + Sync + 'static {
    let command = command.clone();
    move |mut request| {
        let command = command.clone();
        Box::pin(async move {
            outrigger_tests::http1::read_request_body(&mut request.io, &request.head).await?;
            let status = command.load(SeqCst);
            let answer = format!("HTTP/1.1 {status} As Told\r\nContent-Length: 2\r\n\r\nok");
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
    }
}

fn told(status: usize) -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(status))
}

fn policy(service: &mut wire::Service) -> &mut wire::Policy {
    // Tests of one thing: nothing is ejected unless a test says so.
    service.outlier.get_or_insert_with(|| wire::Outlier {
        off: true,
        ..wire::Outlier::default()
    });
    service.policy.get_or_insert_default()
}

fn retries(attempts: u32) -> impl FnOnce(&mut wire::Service) + Send + 'static {
    move |service| {
        policy(service).retry = Some(wire::Retry {
            attempts,
            backoff_ms: 1,
            ..wire::Retry::default()
        });
    }
}

/// The value of a metric of `service`.
async fn metric(mesh: &Mesh, name: &str, service: &str) -> Result<u64> {
    let start = format!("{name}{{service=\"default/{service}\"}} ");
    let text = mesh.caller.metrics().await?;
    let line = text.lines().find_map(|l| l.strip_prefix(&start));
    Ok(line.with_context(|| format!("no {start}"))?.parse()?)
}

async fn logged(mesh: &Mesh, text: &str) -> Result<()> {
    wait::until(&format!("the log says {text}"), || async {
        mesh.caller.process.output().contains(text)
    })
    .await
}
