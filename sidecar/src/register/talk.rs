//! What to say to the control plane: pure. Facts go in, messages come out.
//!
//! Remembers what it told on the present stream and says only what differs. Knows no stream, clock or
//! probe.

use std::time::Duration;

use outrigger_proto::wire::agent::{Check, HealthChange, Leaving, Register, Renew, up::Body};
use outrigger_proto::wire::mesh::Endpoint;

use super::LeaseState;

/// What is true here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    /// The app starts; nothing is promised yet.
    Starting,
    /// The app is well.
    Well,
    /// The app is not well, and why.
    Failing(String),
    /// The app ended or the sidecar drains, and why.
    Leaving(String),
}

/// What was said last on this stream.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Nothing,
    Registered,
    Unhealthy(String),
    Left,
}

/// One workload's side of the conversation.
#[derive(Debug)]
pub(super) struct Talk {
    endpoint: Endpoint,
    told: Told,
    checks: Vec<Check>,
    /// Registered at least once by this process, perhaps on an earlier stream.
    ever: bool,
    lease: Option<Duration>,
}

/// What a refusal asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// The control plane forgot a lease that was held: register again now.
    Now,
    /// It does not want this registration: ask again later.
    Later,
    /// Nothing is to be registered.
    Never,
}

impl Talk {
    /// Has said nothing about `endpoint`.
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            told: Told::Nothing,
            checks: Vec::new(),
            ever: false,
            lease: None,
        }
    }

    /// A new stream: the control plane heard nothing on it.
    pub(super) fn restart(&mut self) {
        self.told = Told::Nothing;
        self.checks.clear();
        self.lease = None;
    }

    /// What to say about `fact`, with the state of what the app needs.
    pub(super) fn tell(&mut self, fact: &Fact, checks: &[Check]) -> Vec<Body> {
        let mut said = Vec::new();
        let reached = self.told != Told::Nothing || self.ever;
        match (fact, &self.told) {
            (Fact::Well, Told::Nothing | Told::Left) => {
                said.push(Body::Register(Register {
                    endpoint: Some(self.endpoint.clone()),
                }));
                if !checks.is_empty() {
                    said.push(health(true, "", checks));
                }
                self.told = Told::Registered;
            }
            (Fact::Well, Told::Unhealthy(_)) => {
                said.push(health(true, "", checks));
                self.told = Told::Registered;
            }
            (Fact::Well, Told::Registered) if self.checks != checks => said.push(health(true, "", checks)),
            // A restart of an app that never exited in our eyes: its successor is not probed yet.
            (Fact::Starting, Told::Registered) => {
                let reason = "the app starts".to_owned();
                said.push(health(false, &reason, checks));
                self.told = Told::Unhealthy(reason);
            }
            (Fact::Failing(_), Told::Left) => {}
            (Fact::Failing(reason), told) if reached && *told != Told::Unhealthy(reason.clone()) => {
                said.push(health(false, reason, checks));
                self.told = Told::Unhealthy(reason.clone());
            }
            (Fact::Leaving(reason), told) if reached && *told != Told::Left => {
                said.push(Body::Leaving(Leaving { reason: reason.clone() }));
                self.told = Told::Left;
                self.ever = false;
            }
            _ => {}
        }
        self.checks = checks.to_vec();
        said
    }

    /// The control plane holds the lease for `lease` from now on. Answers how the registration stands.
    pub(super) fn registered(&mut self, lease: Duration) -> LeaseState {
        // An interval of zero would spin.
        self.lease = Some(lease.max(Duration::from_millis(300)));
        match self.told {
            Told::Registered => {
                self.ever = true;
                LeaseState::Held
            }
            Told::Unhealthy(_) | Told::Left => LeaseState::Withdrawn,
            Told::Nothing => LeaseState::None,
        }
    }

    /// The control plane refused what was said last.
    pub(super) fn refused(&mut self) -> Retry {
        let held = self.lease.take().is_some();
        match std::mem::replace(&mut self.told, Told::Nothing) {
            Told::Registered if held => Retry::Now,
            Told::Registered => Retry::Later,
            Told::Left => {
                self.told = Told::Left;
                Retry::Never
            }
            Told::Unhealthy(_) | Told::Nothing => {
                // It knows of no registration, so there is nothing to withdraw.
                self.ever = false;
                Retry::Never
            }
        }
    }

    /// Time between two renewals; none while nothing is registered.
    pub(super) fn renewal(&self) -> Option<Duration> {
        match self.told {
            Told::Registered | Told::Unhealthy(_) => self.lease.map(|lease| lease / 3),
            Told::Nothing | Told::Left => None,
        }
    }

    /// The message that keeps the lease.
    pub(super) fn renew() -> Body {
        Body::Renew(Renew {})
    }
}

fn health(healthy: bool, reason: &str, checks: &[Check]) -> Body {
    Body::Health(HealthChange {
        healthy,
        reason: reason.to_owned(),
        checks: checks.to_vec(),
    })
}
