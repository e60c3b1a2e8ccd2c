//! Gets the first certificate and every next one, and keeps them. Decides by [`schedule`].

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::JoinToken;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Identity;
use super::files::Files;
use super::issue::{self, IssueError, Issued, Proof, Question, Wanted};
use super::leaf::Leaf;
use super::progress::Said;
use super::schedule::{self, Due, LOOK};
use super::trust::{Fingerprint, Trust};
use crate::config;
use crate::observe::Gauge;
use crate::shared::Shared;

/// After a renewal whose leaf still does not lead to the newest root.
const STALE: Duration = Duration::from_secs(30);
/// Renewals because of a new root are spread over this.
const SPREAD: Duration = Duration::from_secs(2);

/// What the task remembers over a panic.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Of the present leaf: where in its life it is renewed.
    part: Option<(u64, f64)>,
    failures: u32,
    /// No try before.
    rest_until: Option<Instant>,
    /// The newest root for which a renewal is due, and when.
    root: Option<(Fingerprint, Instant)>,
    /// The key whose certificate was asked for and did not come yet.
    wanted: Option<Wanted>,
    /// The trust that is on disk.
    kept: Option<Arc<Trust>>,
}

/// Keeps the workload's certificate good. Runs until the process ends.
pub(super) async fn run(shared: &Shared, settings: &config::Identity, url: &str, memory: &mut Memory) {
    let identity = &shared.identity;
    let mut changes = identity.changes();
    loop {
        changes.mark_unchanged();
        identity.tell(&shared.stats);
        keep_trust(identity, memory).await;
        let pause = match memory.due(identity) {
            Due::In(pause) => pause,
            due => {
                let began = Instant::now();
                memory.attempt(shared, settings, url, due).await;
                // Whatever comes of it, the loop does not spin.
                Duration::from_millis(u64::from(began.elapsed() < Duration::from_millis(1)))
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause.min(LOOK)) => {}
            // The sender lives in `shared`.
            _ = changes.changed() => {}
        }
    }
}

impl Memory {
    /// What is due now, the rests after failures included.
    fn due(&mut self, identity: &Identity) -> Due {
        let (leaf, trust) = identity.parts();
        let part = leaf.as_ref().map_or(0.5, |leaf| self.part(leaf));
        let stale = leaf
            .as_ref()
            .zip(trust)
            .is_some_and(|(leaf, trust)| self.is_stale(leaf, &trust));
        let rest = self
            .rest_until
            .map(|until| until.saturating_duration_since(Instant::now()));
        match rest.filter(|rest| !rest.is_zero()) {
            Some(rest) => Due::In(rest),
            None => schedule::due(leaf.as_deref().map(Leaf::times), SystemTime::now(), part, stale),
        }
    }

    fn part(&mut self, leaf: &Leaf) -> f64 {
        match self.part {
            Some((generation, part)) if generation == leaf.own.generation => part,
            _ => {
                let part = schedule::part();
                self.part = Some((leaf.own.generation, part));
                part
            }
        }
    }

    /// True when another root than the leaf's signs now. Not at once: all sidecars hear of it together.
    fn is_stale(&mut self, leaf: &Leaf, trust: &Trust) -> bool {
        let newest = trust.newest().map(|root| root.fingerprint);
        let Some(newest) = newest.filter(|newest| leaf.root.as_ref() != Some(newest)) else {
            self.root = None;
            return false;
        };
        match self.root {
            Some((root, at)) if root == newest => Instant::now() >= at,
            _ => {
                let at = Instant::now() + SPREAD.mul_f64(fastrand::f64());
                self.root = Some((newest, at));
                self.rest_until = Some(self.rest_until.map_or(at, |rest| rest.max(at)));
                false
            }
        }
    }

    fn wanted(&mut self) -> Result<Wanted, rcgen::Error> {
        if let Some(wanted) = &self.wanted {
            return Ok(wanted.clone());
        }
        let wanted = Wanted::new()?;
        self.wanted = Some(wanted.clone());
        Ok(wanted)
    }

    /// Tries each proof there is until one is taken.
    async fn attempt(&mut self, shared: &Shared, settings: &config::Identity, url: &str, due: Due) {
        let identity = &shared.identity;
        let had = identity.parts().0.is_some();
        let asked = match self.wanted() {
            Ok(wanted) => ask(shared, settings, url, due, &wanted).await,
            Err(error) => Err(format!("a key cannot be made: {error}")),
        };
        match asked {
            Ok((issued, by_token)) => {
                // Each certificate has a key of its own.
                self.wanted = None;
                self.failures = 0;
                self.rest_until = None;
                if let Some(clock) = issue::clock(issued.clock_ahead_ms) {
                    tracing::warn!("{clock}: certificates seem expired or not yet valid when it is far enough");
                }
                keep_pair(identity, &issued, &identity.instance(&shared.bootstrap.instance)).await;
                tracing::info!(
                    id = %issued.leaf.own.id, serial = issued.leaf.own.serial,
                    lifetime = ?issued.leaf.lifetime(), joined = !had, "a new certificate"
                );
                identity.adopt(issued, by_token);
                if had {
                    shared.stats.add(Gauge::IdentityRenewals, 1);
                    identity.progress.lock().renewals += 1;
                }
                if self.root.is_some() {
                    // Still the old root: the control plane is not that far yet.
                    self.root = None;
                    let (leaf, trust) = identity.parts();
                    let stale = leaf
                        .zip(trust)
                        .is_some_and(|(l, t)| l.root != t.newest().map(|r| r.fingerprint));
                    self.rest_until = stale.then(|| Instant::now() + STALE);
                }
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                let pause = schedule::pause(self.failures);
                self.rest_until = Some(Instant::now() + pause);
                shared.stats.add(Gauge::IdentityRenewalFailures, 1);
                identity.failed(why, self.failures);
            }
        }
    }
}

/// Asks with each proof until one is taken or nobody answers. True: by token.
async fn ask(
    shared: &Shared,
    settings: &config::Identity,
    url: &str,
    due: Due,
    wanted: &Wanted,
) -> Result<(Issued, bool), String> {
    let identity = &shared.identity;
    let (leaf, trust) = identity.parts();
    let trust_domain = settings.trust_domain.clone();
    let instance = identity.instance(&shared.bootstrap.instance);
    let question = Question {
        url,
        service: &shared.name,
        instance: &instance,
        trust_domain: trust_domain.as_deref(),
        provider: &identity.provider,
    };
    let by_leaf = leaf.zip(trust).and_then(|(leaf, trust)| match due {
        Due::Renew => Some(Proof::Leaf(leaf, trust)),
        Due::Late => Some(Proof::Late(leaf, trust)),
        Due::In(_) | Due::Join => None,
    });
    let mut refused = None;
    if let Some(proof) = by_leaf {
        match question.ask(proof, wanted).await {
            Ok(issued) => return Ok((issued, false)),
            Err(error) if error.is_final() => refused = Some(said(&error)),
            Err(error) => return Err(said(&error)),
        }
    }
    let (text, token) = match token(settings).await {
        Ok(Some(token)) => token,
        Ok(None) => {
            return Err(refused.unwrap_or_else(|| match due {
                Due::Join if identity.parts().0.is_some() => {
                    "the certificate expired more than 7 days ago; give it a new token: `outrigger token create`".into()
                }
                _ => "there is no token: set identity.token or identity.token_file".into(),
            }));
        }
        Err(why) => return Err(why),
    };
    match question.ask(Proof::Token(text, token), wanted).await {
        Ok(issued) => Ok((issued, true)),
        // What became of the leaf says more than what became of a token that was used long ago.
        Err(error) => Err(match refused {
            Some(first) => format!("{first}; and by token: {}", said(&error)),
            None => said(&error),
        }),
    }
}

/// Reads the token; a file may hold a newer one each time.
async fn token(settings: &config::Identity) -> Result<Option<(Zeroizing<String>, JoinToken)>, String> {
    let text = match (&settings.token, &settings.token_file) {
        (Some(token), _) => Zeroizing::new(token.reveal().to_owned()),
        (None, Some(path)) => match tokio::fs::read_to_string(path).await {
            Ok(text) => Zeroizing::new(text),
            Err(error) => return Err(format!("cannot read the token in {}: {error}", path.display())),
        },
        (None, None) => return Ok(None),
    };
    let text = Zeroizing::new(text.trim().to_owned());
    match text.parse() {
        Ok(token) => Ok(Some((text, token))),
        Err(error) => Err(format!("identity.{error}")),
    }
}

/// Writes a pair before it is used: a certificate that nobody kept could not be renewed late.
async fn keep_pair(identity: &Identity, issued: &Issued, instance: &str) {
    let Some(files) = identity.files() else {
        return;
    };
    let key = issued.key.clone();
    let chain: Vec<CertificateDer<'static>> = issued.leaf.key.cert.clone();
    let (bundle, instance) = (issued.trust.bundle.clone(), instance.to_owned());
    blocking(identity, move || {
        files.keep_trust(&bundle)?;
        files.keep(&key.0, &chain, &instance)
    })
    .await;
}

/// Writes what is trusted, when that is not what is on disk.
async fn keep_trust(identity: &Identity, memory: &mut Memory) {
    let (Some(files), Some(trust)) = (identity.files(), identity.parts().1) else {
        return;
    };
    if memory.kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &trust)) {
        return;
    }
    let bundle = trust.bundle.clone();
    if blocking(identity, move || files.keep_trust(&bundle)).await {
        memory.kept = Some(trust);
    }
}

/// Writes off the runtime. A disk that takes nothing is said, and work goes on from memory.
async fn blocking(identity: &Identity, write: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> bool {
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            if identity.progress.lock().may_say(Said::Disk) {
                tracing::warn!(%error, "the workload's key or roots cannot be kept; going on from memory");
            }
            false
        }
        Err(_) => false,
    }
}

fn said(error: &IssueError) -> String {
    error.to_string()
}

/// The kept pair, when there is one.
///
/// # Errors
/// When it is there and cannot be used.
pub(super) fn load(identity: &Identity, state_dir: &Path, service: &str) -> Result<(), super::OpenError> {
    let dir = |source| super::OpenError::Dir {
        path: state_dir.join("identity"),
        source,
    };
    let files = Files::open(state_dir).map_err(dir)?;
    let kept = files.load()?;
    *identity.files.lock() = Some(Arc::new(files));
    let Some(kept) = kept else {
        return Ok(());
    };
    identity.use_kept(kept, service)
}
