//! What is said when (tables), and the session against a real server.

mod server;

use outrigger_proto::wire::agent::{Check, up::Body};
use outrigger_proto::wire::mesh::Endpoint;

use super::LeaseState;
use super::talk::{Fact, Retry, Talk};
use std::time::Duration;

fn words(said: &[Body]) -> Vec<String> {
    said.iter()
        .map(|body| match body {
            Body::Register(_) => "register".into(),
            Body::Health(h) if h.healthy => format!("healthy({})", h.checks.len()),
            Body::Health(h) => format!("unhealthy: {}", h.reason),
            Body::Leaving(l) => format!("leaving: {}", l.reason),
            other => format!("{other:?}"),
        })
        .collect()
}

#[track_caller]
fn says(talk: &mut Talk, fact: Fact, expected: &[&str]) {
    assert_eq!(words(&talk.tell(&fact, &[])), expected);
}

fn failing() -> Fact {
    Fact::Failing("no answer".into())
}

fn left() -> Fact {
    Fact::Leaving("exited".into())
}

const LEASE: Duration = Duration::from_secs(15);

#[test]
fn an_endpoint_is_registered_only_while_the_app_is_well() {
    let mut talk = Talk::new(Endpoint::default());
    says(&mut talk, Fact::Starting, &[]);
    says(&mut talk, failing(), &[]);
    assert_eq!(talk.renewal(), None);
    says(&mut talk, Fact::Well, &["register"]);
    assert_eq!(talk.registered(LEASE), LeaseState::Held);
    assert_eq!(talk.renewal(), Some(LEASE / 3));
    says(&mut talk, Fact::Well, &[]);
    says(&mut talk, failing(), &["unhealthy: no answer"]);
    assert_eq!(talk.registered(LEASE), LeaseState::Withdrawn);
    assert_eq!(talk.renewal(), Some(LEASE / 3), "the registration is kept while the app is unwell");
    says(&mut talk, failing(), &[]);
    says(&mut talk, Fact::Well, &["healthy(0)"]);
}

#[test]
fn an_app_that_exits_leaves_and_registers_again_after_its_start() {
    let mut talk = Talk::new(Endpoint::default());
    says(&mut talk, left(), &[]);
    says(&mut talk, Fact::Well, &["register"]);
    talk.registered(LEASE);
    says(&mut talk, left(), &["leaving: exited"]);
    assert_eq!(talk.renewal(), None);
    says(&mut talk, left(), &[]);
    says(&mut talk, Fact::Starting, &[]);
    says(&mut talk, failing(), &[]);
    says(&mut talk, Fact::Well, &["register"]);
}

#[test]
fn a_new_stream_says_what_changed_while_there_was_none() {
    for (fact, expected) in [
        (Fact::Well, "register"),
        (failing(), "unhealthy: no answer"),
        (left(), "leaving: exited"),
    ] {
        let mut talk = Talk::new(Endpoint::default());
        talk.tell(&Fact::Well, &[]);
        talk.registered(LEASE);
        talk.restart();
        says(&mut talk, fact, &[expected]);
    }
}

#[test]
fn a_change_of_what_the_app_needs_is_said_once() {
    let mut talk = Talk::new(Endpoint::default());
    let check = |ok| vec![Check { name: "db".into(), ok, reason: String::new() }];
    assert_eq!(words(&talk.tell(&Fact::Well, &check(true))), ["register", "healthy(1)"]);
    assert!(talk.tell(&Fact::Well, &check(true)).is_empty());
    assert_eq!(words(&talk.tell(&Fact::Well, &check(false))), ["healthy(1)"]);
}

#[test]
fn a_lost_lease_is_taken_again_at_once_and_a_refusal_later() {
    let mut talk = Talk::new(Endpoint::default());
    talk.tell(&Fact::Well, &[]);
    assert_eq!(talk.refused(), Retry::Later);
    says(&mut talk, Fact::Well, &["register"]);
    talk.registered(LEASE);
    assert_eq!(talk.refused(), Retry::Now);
    says(&mut talk, Fact::Well, &["register"]);
    assert_eq!(talk.refused(), Retry::Later);
    says(&mut talk, left(), &["leaving: exited"]);
    assert_eq!(talk.refused(), Retry::Never);
    says(&mut talk, left(), &[]);
}
