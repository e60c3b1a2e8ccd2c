//! Joining and renewing against a control plane over TLS.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;

use super::super::testing::Ca;
use super::super::testing::authority::{Authority, Came, token};
use super::super::{Alpn, Own};
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

#[tokio::test]
async fn a_control_plane_with_another_root_gets_no_token() {
    let mut authority = Authority::start().await;
    let sidecar = start(bootstrap(&authority.url, &token(&Ca::new()), None));
    sidecar.fails("does not show the root that the token names").await;
    assert!(sidecar.shared.identity.current().is_none());
    assert!(authority.came.try_recv().is_err(), "nothing was sent");
}

#[tokio::test]
async fn a_control_plane_of_another_trust_domain_gets_no_token() {
    let mut authority = Authority::start().await;
    let mut bootstrap = bootstrap(&authority.url, &authority.token(), None);
    bootstrap.identity.as_mut().expect("an identity").trust_domain = Some("other.local".into());
    let sidecar = start(bootstrap);
    sidecar.fails("of another trust domain").await;
    assert!(authority.came.try_recv().is_err(), "nothing was sent");
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_used() {
    let authority = Authority::start().await;
    authority.script.lock().other = Some("default/user".into());
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    sidecar
        .fails("svc/user, and this workload is spiffe://test.local/ns/default/svc/post")
        .await;
    assert!(sidecar.shared.identity.current().is_none());
}

#[tokio::test]
async fn bad_tokens_are_named_without_their_secret() {
    let authority = Authority::start().await;
    let sidecar = start(bootstrap(&authority.url, "ogt1.garbage", None));
    sidecar.fails("identity.token: not a token").await;
    authority.script.lock().refuse = Some("the token has expired".into());
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    sidecar.fails("the control plane refuses: the token has expired").await;
    let shown = format!(
        "{:?} {}",
        sidecar.shared.bootstrap,
        serde_json::json!(sidecar.shared.bootstrap)
    );
    assert!(!shown.contains("ogt1."), "{shown}");
}

#[tokio::test]
async fn clocks_that_differ_are_told_apart_plainly() {
    let authority = Authority::start().await;
    {
        let mut script = authority.script.lock();
        (script.ahead, script.backdate) = (3700, Duration::from_secs(600));
    }
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    sidecar
        .fails("this machine's clock is 61 min behind the control plane's")
        .await;
    authority.script.lock().ahead = -7300;
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    sidecar
        .fails("this machine's clock is 2 h ahead of the control plane's")
        .await;
    assert!(sidecar.shared.identity.current().is_none());
}

#[tokio::test]
async fn a_failed_renewal_is_tried_again_and_the_certificate_stays_in_use() {
    let mut authority = Authority::start().await;
    authority.script.lock().ttl = Duration::from_secs(6);
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    let first = sidecar.certificate(None).await;
    authority.script.lock().away = true;
    sidecar.fails("it is away").await;
    assert_eq!(
        sidecar.shared.identity.current(),
        Some(first.clone()),
        "still the first"
    );
    authority.script.lock().away = false;
    sidecar.certificate(Some(&first)).await;
    assert!(sidecar.shared.stats.get(Gauge::IdentityRenewalFailures) >= 1);
    assert_eq!(sidecar.shared.identity.progress.lock().last_error, None);
    assert_eq!(came(&mut authority).await, Came::Token(authority.token()));
    assert_eq!(came(&mut authority).await, Came::Leaf);
}

#[tokio::test]
async fn a_certificate_is_kept_and_used_without_a_control_plane() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::start().await;
    let settings = bootstrap(&authority.url, &authority.token(), Some(dir.path()));
    let sidecar = start(settings.clone());
    let first = sidecar.certificate(None).await;
    let kept = dir.path().join("identity");
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&kept), 0o700);
    for file in ["key.pem", "chain.pem", "roots.pem", "current/key.pem"] {
        assert_eq!(mode(&kept.join(file)), 0o600, "{file}");
    }
    drop((sidecar, authority));
    let sidecar = start(settings);
    let again = sidecar.shared.identity.current().expect("at once");
    assert_eq!((&again.serial, &again.id), (&first.serial, &first.id));
}

#[tokio::test]
async fn an_expired_certificate_renews_by_proof_of_its_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut authority = Authority::start().await;
    authority.script.lock().ttl = Duration::from_secs(1);
    let settings = bootstrap(&authority.url, &authority.token(), Some(dir.path()));
    let sidecar = start(settings.clone());
    let first = sidecar.certificate(None).await;
    drop(sidecar);
    while SystemTime::now() < first.not_after {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    authority.script.lock().ttl = Duration::from_secs(3600);
    while authority.came.try_recv().is_ok() {}
    let sidecar = start(settings);
    assert!(
        sidecar
            .shared
            .identity
            .connect(tokio::io::duplex(1).0, &first.id, Alpn::H2)
            .await
            .is_err()
    );
    let second = sidecar
        .certificate(Some(&sidecar.shared.identity.current().expect("the first")))
        .await;
    assert_eq!(came(&mut authority).await, Came::Late);
    assert_eq!(second.id, first.id);
}

#[tokio::test]
async fn a_certificate_that_is_refused_falls_back_to_a_token() {
    let mut authority = Authority::start().await;
    authority.script.lock().ttl = Duration::from_secs(3);
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    let first = sidecar.certificate(None).await;
    assert_eq!(came(&mut authority).await, Came::Token(authority.token()));
    // The control plane lost everything and has another CA. The same token cannot lead there.
    *authority.ca.lock() = Arc::new(Ca::new());
    sidecar.fails("is not the one that is trusted here").await;
    sidecar.fails("and by token: ").await;
    assert!(authority.came.try_recv().is_err(), "nothing was sent");
    drop(sidecar);
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    let second = sidecar.certificate(None).await;
    assert_ne!(second.serial, first.serial);
}

#[tokio::test]
async fn a_new_root_renews_at_once_and_an_older_bundle_changes_nothing() {
    let mut authority = Authority::start().await;
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    let first = sidecar.certificate(None).await;
    assert_eq!(came(&mut authority).await, Came::Token(authority.token()));
    let identity = &sidecar.shared.identity;
    let old = authority.ca.lock().clone();
    let new = Arc::new(Ca::after(&old));
    let both = new.bundle();
    assert_eq!((both.roots.len(), both.generation), (2, 2));
    *authority.ca.lock() = new;
    let generation = identity.generation();
    identity.trust(&both);
    assert_eq!(identity.generation(), generation + 1);
    let second = sidecar.certificate(Some(&first)).await;
    assert_eq!(came(&mut authority).await, Came::Leaf);
    assert_ne!(second.serial, first.serial);
    let (leaf, trust) = identity.parts();
    let (leaf, trust) = (leaf.expect("a leaf"), trust.expect("trust"));
    assert_eq!(leaf.root, trust.newest().map(|root| root.fingerprint));
    identity.trust(&old.bundle());
    assert_eq!(
        identity.parts().1.expect("trust").bundle.generation,
        2,
        "an older bundle is ignored"
    );
    let mut revoked = both;
    revoked.revoked = vec![outrigger_proto::model::Revocation::Serial(second.serial.clone())];
    let generation = identity.generation();
    identity.trust(&revoked);
    identity.trust(&revoked);
    assert_eq!(identity.generation(), generation + 1, "what is the same is no change");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let authority = Authority::start().await;
    authority.script.lock().away = true;
    let sidecar = start(bootstrap(&authority.url, &authority.token(), None));
    sidecar.fails("it is away").await;
    authority.script.lock().away = false;
    authority.script.lock().ttl = Duration::from_secs(2);
    let first = sidecar.certificate(None).await;
    sidecar.certificate(Some(&first)).await;
    let requests = authority.requests.lock().clone();
    let (last, before) = requests.split_last().expect("three at least");
    assert!(
        before.len() >= 2 && before.windows(2).all(|pair| pair[0] == pair[1]),
        "one key until it is answered"
    );
    assert_ne!(Some(last), before.last(), "the next certificate has another");
}
