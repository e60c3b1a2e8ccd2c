//! Joining and renewing against a control plane over TLS.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;

use super::super::Own;
use super::super::testing::Ca;
use super::super::testing::authority::{Authority, Came, token};
use crate::config::Bootstrap;
use crate::observe::Gauge;
use crate::shared::Shared;

/// Every wait of these tests.
const SOON: Duration = Duration::from_secs(20);

/// A sidecar's identity task. Dropping it ends it.
struct Sidecar {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bootstrap(url: &str, token: &str, state: Option<&Path>) -> Bootstrap {
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": "post", "instance": "p1", "control_plane": url, "state_dir": state,
        "identity": {"token": token},
    }))
    .expect("a bootstrap");
    bootstrap.check().expect("a good one");
    bootstrap
}

fn start(bootstrap: Bootstrap) -> Sidecar {
    let shared = Arc::new(Shared::new(bootstrap).expect("valid"));
    shared.identity.open(&shared.bootstrap).expect("opens");
    let task = tokio::spawn(super::super::run(shared.clone()));
    Sidecar { shared, task }
}

impl Sidecar {
    /// The certificate that follows `before`.
    async fn certificate(&self, before: Option<&Own>) -> Arc<Own> {
        let identity = &self.shared.identity;
        let mut changes = identity.changes();
        let next = async {
            loop {
                match identity.current() {
                    Some(own) if Some(&*own) != before => return own,
                    _ => changes.changed().await.expect("goes on"),
                }
            }
        };
        tokio::time::timeout(SOON, next).await.expect("a certificate in time")
    }

    /// Waits for a failure that says `what`.
    async fn fails(&self, what: &str) {
        let failed = async {
            loop {
                let error = self.shared.identity.progress.lock().last_error.clone();
                if error.as_ref().is_some_and(|(_, why)| why.contains(what)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, failed).await;
        let error = self.shared.identity.progress.lock().last_error.clone();
        waited.unwrap_or_else(|_| panic!("no failure says {what:?}, but {error:?}"));
    }
}

async fn came(authority: &mut Authority) -> Came {
    tokio::time::timeout(SOON, authority.came.recv())
        .await
        .expect("in time")
        .expect("it runs")
}

#[tokio::test]
async fn a_workload_joins_by_token_and_renews_by_its_certificate() {
    let mut authority = Authority::start().await;
    authority.script.lock().ttl = Duration::from_secs(2);
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    let first = sidecar.certificate(None).await;
    assert_eq!(first.id.to_string(), "spiffe://test.local/ns/default/svc/post");
    assert_eq!(came(&mut authority).await, Came::Token(authority.token()));
    let second = sidecar.certificate(Some(&first)).await;
    assert_eq!(came(&mut authority).await, Came::Leaf);
    assert!(second.generation > first.generation && second.serial != first.serial);
    assert!(second.not_before < first.not_after, "renewed before it expired");
    assert_eq!(sidecar.shared.stats.get(Gauge::IdentityRenewals), 1);
}
