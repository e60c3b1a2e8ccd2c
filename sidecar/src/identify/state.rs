//! How an [`Identity`] changes: leaf and trust come in, a whole new view goes out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::TrustBundle;

use super::files::{Files, Kept};
use super::issue::Issued;
use super::leaf::Leaf;
use super::pem::FileError;
use super::progress::Said;
use super::schedule;
use super::trust::{NoRoot, Trust};
use super::view::View;
use super::{Identity, brought, keep};
use crate::config::Bootstrap;
use crate::observe::{Gauge, Stats};

/// Why a sidecar does not start with the key and certificates that it has.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file.
    #[error("identity: {0}")]
    File(#[from] FileError),
    /// The directory.
    #[error("identity: cannot use {path}: {source}")]
    Dir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Key and chain are no pair, or somebody else's.
    #[error("identity: {key} and {chain}: {why}")]
    Pair {
        /// The key's file.
        key: PathBuf,
        /// The chain's file.
        chain: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What a view is made of.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) leaf: Option<Arc<Leaf>>,
    pub(super) trust: Option<Arc<Trust>>,
}

impl Identity {
    /// Reads the key and certificates that the bootstrap names, or that were kept. Blocks on the disk; called
    /// once, before anything is served.
    ///
    /// # Errors
    /// When they are there and cannot be used: nothing is thrown away, and nothing is let in. A directory that
    /// cannot be made is told, and the sidecar goes on from memory.
    pub fn open(&self, bootstrap: &Bootstrap) -> Result<(), OpenError> {
        let Some(settings) = &bootstrap.identity else {
            return Ok(());
        };
        let service = format!("{}/{}", bootstrap.namespace, bootstrap.service);
        match (&settings.files, &bootstrap.state_dir) {
            (Some(files), _) => brought::load(self, files, &service),
            (None, Some(dir)) if settings.persist => match keep::load(self, dir, &service) {
                // As with everything else that is kept there: without it a restart needs the control plane.
                Err(OpenError::Dir { path, source }) => {
                    tracing::warn!(path = %path.display(), %source, "key and certificate are kept in memory only");
                    Ok(())
                }
                done => done,
            },
            _ => Ok(()),
        }
    }

    /// True once it is known whom to trust.
    #[must_use]
    pub fn has_trust(&self) -> bool {
        self.parts.lock().trust.is_some()
    }

    /// Takes over what is trusted from now on. An older bundle than the one in use is ignored, and so is
    /// one of another trust domain or without a root: what was trusted stays so.
    pub fn trust(&self, bundle: &TrustBundle) {
        if !self.on {
            return;
        }
        let mut parts = self.parts.lock();
        let mut bundle = bundle.clone();
        if let Some(before) = &parts.trust {
            if before.trust_domain() != bundle.trust_domain {
                tracing::error!(
                    ours = before.trust_domain(),
                    theirs = bundle.trust_domain,
                    "a trust bundle of another trust domain is ignored"
                );
                return;
            }
            if self.brought {
                // Whoever brought the files says who is trusted; the mesh says who is not any more.
                bundle.roots.clone_from(&before.bundle.roots);
                bundle.generation = before.bundle.generation;
            }
            if bundle.generation < before.bundle.generation || bundle == before.bundle {
                return;
            }
        }
        let generation = bundle.generation;
        match Trust::new(bundle) {
            Ok(trust) => {
                parts.trust = Some(Arc::new(trust));
                self.renew_view(&parts);
            }
            Err(error) => tracing::error!(generation, %error, "the trust bundle is ignored"),
        }
    }

    /// Uses what the control plane issued. By token, its trust replaces the one before: a person said so.
    pub(super) fn adopt(&self, issued: Issued, by_token: bool) {
        {
            let mut progress = self.progress.lock();
            progress.last_error = None;
            progress.clock_ahead_ms = Some(issued.clock_ahead_ms);
        }
        let mut parts = self.parts.lock();
        let newer = |before: &Arc<Trust>| issued.trust.bundle.generation >= before.bundle.generation;
        if by_token || parts.trust.as_ref().is_none_or(newer) {
            parts.trust = Some(Arc::new(issued.trust));
        }
        parts.leaf = Some(Arc::new(issued.leaf));
        self.renew_view(&parts);
    }

    /// Uses a leaf and what it trusts.
    pub(super) fn replace(&self, leaf: Leaf, trust: Trust) {
        let mut parts = self.parts.lock();
        (parts.leaf, parts.trust) = (Some(Arc::new(leaf)), Some(Arc::new(trust)));
        self.renew_view(&parts);
    }

    /// Uses what was kept, expired or not: an expired leaf may renew.
    ///
    /// # Errors
    /// When it is no pair, or somebody else's.
    pub(super) fn use_kept(&self, kept: Kept, service: &str) -> Result<(), OpenError> {
        let wrong = |why: String| OpenError::Pair {
            key: kept.key_path.clone(),
            chain: kept.chain_path.clone(),
            why,
        };
        let mut leaf = Leaf::new(kept.chain, &kept.key.0, kept.since).map_err(|e| wrong(e.to_string()))?;
        if leaf.own.id.service().as_str() != service {
            return Err(wrong(format!(
                "they belong to {}, and this is {service}: give each service a state_dir of its own",
                leaf.own.id
            )));
        }
        let trust = Trust::new(kept.trust).map_err(|e: NoRoot| wrong(e.to_string()))?;
        let while_it_counted = SystemTime::now().min(leaf.own.not_after - Duration::from_secs(1));
        if let Err(refusal) = leaf.settle(&trust, &self.provider, while_it_counted) {
            tracing::warn!(%refusal, "the kept certificate does not lead to a kept root; it is renewed at once");
        }
        tracing::info!(id = %leaf.own.id, serial = leaf.own.serial, "the kept certificate is used");
        self.progress.lock().instance = Some(kept.instance).filter(|i| !i.is_empty());
        self.replace(leaf, trust);
        Ok(())
    }

    /// The leaf in use and what is trusted.
    pub(super) fn parts(&self) -> (Option<Arc<Leaf>>, Option<Arc<Trust>>) {
        let parts = self.parts.lock();
        (parts.leaf.clone(), parts.trust.clone())
    }

    /// Where key and chain are kept.
    pub(super) fn files(&self) -> Option<Arc<Files>> {
        self.files.lock().clone()
    }

    /// Under which instance certificates are issued: a kept one stays the instance that it was.
    pub(super) fn instance(&self, configured: &str) -> String {
        let kept = self.progress.lock().instance.clone();
        kept.unwrap_or_else(|| configured.to_owned())
    }

    /// Notes that no certificate was got.
    pub(super) fn failed(&self, why: String, in_a_row: u32) {
        let say = self.progress.lock().failed(&why);
        if say {
            tracing::warn!(why, in_a_row, "no new certificate");
        }
        // Who waits for the first certificate wants to know why it does not come.
        if self.parts.lock().leaf.is_none() {
            self.changes.send_replace(self.generation.load(Ordering::Acquire));
        }
    }

    /// Says to counters and log how long the certificate still counts.
    pub(super) fn tell(&self, stats: &Stats) {
        let Some(leaf) = self.parts.lock().leaf.clone() else {
            return;
        };
        let unix = leaf.own.not_after.duration_since(SystemTime::UNIX_EPOCH);
        stats.set(Gauge::IdentityNotAfter, unix.unwrap_or_default().as_secs());
        if let Some(warning) = self.warning()
            && self.progress.lock().may_say(Said::Short)
        {
            tracing::warn!("{warning}");
        }
    }

    /// What a person should know before it bites: less than a third of the lifetime is left, or nothing.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let leaf = self.parts.lock().leaf.clone()?;
        let now = SystemTime::now();
        if !schedule::is_short(leaf.times(), now) {
            return None;
        }
        let why = match &self.progress.lock().last_error {
            Some((_, error)) => format!("; the last try to renew it failed: {error}"),
            None => String::new(),
        };
        Some(match leaf.own.not_after.duration_since(now) {
            Ok(left) if !left.is_zero() => {
                let minutes = left.as_secs() / 60;
                format!("the certificate expires in {minutes} min{why}")
            }
            _ => format!("the certificate has expired{why}"),
        })
    }

    /// Makes the view of `parts` and tells of it.
    pub(super) fn renew_view(&self, parts: &Parts) {
        if let (Some(leaf), Some(trust)) = (&parts.leaf, &parts.trust) {
            match View::new(self.provider.clone(), leaf.clone(), trust.clone()) {
                Ok(view) => self.view.store(Some(Arc::new(view))),
                Err(error) => {
                    // Only a provider without TLS 1.3 fails here. Nothing may pass then.
                    tracing::error!(%error, "no TLS settings can be made");
                    self.view.store(None);
                }
            }
        }
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.changes.send_replace(generation);
    }
}
