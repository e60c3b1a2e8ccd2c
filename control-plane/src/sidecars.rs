//! What every sidecar said about itself, for people: nothing decides with it.

use std::collections::BTreeMap;

use outrigger_proto::model::EndpointName;
use outrigger_proto::wire::agent;
use tokio::sync::{mpsc, oneshot};

use crate::registry::{Millis, SessionId};

/// Resources whose status is kept for one sidecar.
const MAX_APPLIED: usize = 10_000;
/// How long a sidecar that is gone is still shown.
const SHOWN_AFTER: Millis = 600_000;

/// A request down to a sidecar, and where its answer goes.
#[derive(Debug)]
pub struct Command {
    /// What is asked.
    pub body: agent::down::Body,
    /// Dropped unanswered when the session ends; none when no answer belongs to it.
    pub reply: Option<oneshot::Sender<agent::answer::Result>>,
}

/// One sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// Its first message.
    pub hello: agent::Hello,
    /// Its session, when one is open.
    pub session: Option<SessionId>,
    /// When it was heard last.
    pub heard: Millis,
    /// What it runs with, by type and resource.
    pub applied: BTreeMap<(String, String), Status>,
    /// Its last health checks.
    pub checks: Vec<agent::Check>,
    /// The way down, while a session is open.
    pub commands: mpsc::Sender<Command>,
}

/// What became of one resource at one sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The version that it runs with; empty when it has none.
    pub applied: String,
    /// The version that it refused since, and why.
    pub refused: Option<(String, String)>,
}

/// Every sidecar heard of lately.
#[derive(Debug, Default)]
pub struct Sidecars {
    all: BTreeMap<EndpointName, Sidecar>,
}

impl Sidecars {
    /// A session opened; a session that the same instance had before is no longer the one shown.
    pub fn open(
        &mut self,
        now: Millis,
        name: &EndpointName,
        hello: agent::Hello,
        session: SessionId,
        commands: mpsc::Sender<Command>,
    ) {
        if self.all.get(name).is_some_and(|s| s.hello.epoch > hello.epoch) {
            return;
        }
        let applied = match self.all.remove(name) {
            // What an earlier boot ran with says nothing about this one.
            Some(before) if before.hello.epoch == hello.epoch => before.applied,
            _ => BTreeMap::new(),
        };
        let sidecar = Sidecar {
            hello,
            session: Some(session),
            heard: now,
            applied,
            checks: Vec::new(),
            commands,
        };
        self.all.insert(name.clone(), sidecar);
    }

    /// A session closed.
    pub fn close(&mut self, now: Millis, name: &EndpointName, session: SessionId) {
        if let Some(sidecar) = self.current(name, session) {
            sidecar.session = None;
            sidecar.heard = now;
        }
    }

    /// The sidecar, when `session` is its open session.
    pub fn current(&mut self, name: &EndpointName, session: SessionId) -> Option<&mut Sidecar> {
        self.all.get_mut(name).filter(|s| s.session == Some(session))
    }

    /// Forgets those that closed long ago.
    pub fn forget(&mut self, now: Millis) {
        self.all
            .retain(|_, s| s.session.is_some() || s.heard + SHOWN_AFTER > now);
    }

    /// Every sidecar by name.
    pub fn iter(&self) -> impl Iterator<Item = (&EndpointName, &Sidecar)> {
        self.all.iter()
    }

    /// One sidecar.
    #[must_use]
    pub fn get(&self, name: &EndpointName) -> Option<&Sidecar> {
        self.all.get(name)
    }
}

impl Sidecar {
    /// Writes down what the sidecar runs with.
    pub fn note(&mut self, applied: agent::Applied) {
        let key = (applied.type_url, applied.resource);
        if applied.version.is_empty() && applied.rejection.is_empty() {
            self.applied.remove(&key);
        } else if self.applied.len() < MAX_APPLIED || self.applied.contains_key(&key) {
            let status = self.applied.entry(key).or_default();
            if applied.rejection.is_empty() {
                status.applied = applied.version;
                status.refused = None;
            } else {
                status.refused = Some((applied.version, applied.rejection));
            }
        }
    }
}
