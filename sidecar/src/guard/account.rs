//! One try's account: the places it takes, and what its end tells of breaker and endpoint. Told at most once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proto::model::Outcomes;

use super::{Home, Member};
use crate::policy::breaker::Pass;
use crate::policy::retry::Outcome;
use crate::policy::trip::Sample;

/// One try's account. Dropped without an outcome, because the caller gave up, it tells nothing and gives back its places.
#[derive(Debug)]
pub struct Account {
    /// The service called.
    home: Arc<Home>,
    /// The endpoint's: another one after failover.
    at: Arc<Home>,
    member: Arc<Member>,
    /// What counts as a failure, where a route says otherwise than the service.
    failures: Option<Box<Outcomes>>,
    began: Instant,
    /// To the head of the answer.
    took: Option<Duration>,
    /// None once it has been told.
    pass: Option<Pass>,
    counted: bool,
    counted_at_member: bool,
    counted_connection: bool,
}

impl Account {
    pub(super) fn new(
        began: Instant,
        home: &Arc<Home>,
        at: &Arc<Home>,
        member: &Arc<Member>,
        failures: &Outcomes,
        pass: Pass,
        counted: bool,
    ) -> Self {
        Self {
            home: home.clone(),
            at: at.clone(),
            member: member.clone(),
            failures: (!std::ptr::eq(failures, &home.service.policy.failures)).then(|| Box::new(failures.clone())),
            began,
            took: None,
            pass: Some(pass),
            counted,
            counted_at_member: false,
            counted_connection: false,
        }
    }

    pub(super) fn at_member(&mut self, counted: bool) {
        self.counted_at_member = counted;
    }

    pub(super) fn connected(&mut self, counted: bool) {
        self.counted_connection = counted;
    }

    /// The head of the answer arrived.
    pub fn answered(&mut self, now: Instant) {
        self.took = Some(now.saturating_duration_since(self.began));
    }

    /// A stream of opaque bytes was accepted: this is all that is judged of it. What follows is the app's business.
    pub fn accepted(&mut self, now: Instant) {
        let Some(pass) = self.pass.take() else { return };
        let sample = self.sample(now, false);
        self.at.guard.record(now, &self.at.service, &self.member, sample);
        self.home.guard.record_pass(now, &self.home.service, pass, sample);
    }

    /// The try ended so.
    pub fn settle(&mut self, now: Instant, outcome: Outcome) {
        let Some(pass) = self.pass.take() else { return };
        let sample = self.sample(now, outcome.is_in(self.failures()));
        self.at.guard.record(now, &self.at.service, &self.member, sample);
        self.home.guard.record_pass(now, &self.home.service, pass, sample);
    }

    /// Nothing was sent. `at_all`: not even a connection could be made, which tells of the endpoint; of the service only when
    /// it is the `last` word, because other endpoints may be well.
    pub fn unsent(&mut self, now: Instant, at_all: bool, last: bool) {
        let Some(pass) = self.pass.take() else { return };
        let sample = self.sample(now, self.failures().connect);
        if at_all {
            self.at.guard.record(now, &self.at.service, &self.member, sample);
        }
        match at_all && last {
            true => self.home.guard.record_pass(now, &self.home.service, pass, sample),
            false => self.home.guard.breaker.abandon(pass),
        }
    }

    fn failures(&self) -> &Outcomes {
        self.failures.as_deref().unwrap_or(&self.home.service.policy.failures)
    }

    fn sample(&self, now: Instant, failed: bool) -> Sample {
        let took = self.took.unwrap_or_else(|| now.saturating_duration_since(self.began));
        Sample { failed, took }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.home.guard.breaker.abandon(pass);
        }
        if self.counted {
            self.home.guard.places.give_back();
        }
        if self.counted_at_member {
            self.member.places.give_back();
        }
        if self.counted_connection {
            self.home.guard.connections.give_back();
        }
        if self.counted || self.counted_at_member || self.counted_connection {
            self.home.guard.freed.notify_one();
        }
    }
}
