//! What is said when (tables), and the session against a real server.

mod sharing;

use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::wire::agent::{
    Answer, Check, Down, DrainNow, Refused, Registered, answer, down::Body as DownBody, up::Body,
};
use outrigger_proto::wire::mesh::Endpoint;
use tokio::net::TcpListener;

use super::LeaseState;
use super::talk::{Fact, Retry, Talk};
use crate::config::Bootstrap;
use crate::discover::peer::{self, ControlPlane, Session};
use crate::drain::Phase;
use crate::shared::Shared;

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
    assert_eq!(
        talk.renewal(),
        Some(LEASE / 3),
        "the registration is kept while the app is unwell"
    );
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
    let check = |ok| {
        vec![Check {
            name: "db".into(),
            ok,
            reason: String::new(),
        }]
    };
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

/// A sidecar whose app listens, and the control plane that it talks to.
async fn start() -> (Arc<Shared>, ControlPlane, TcpListener) {
    let peer = peer::start().await;
    let app = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = app.local_addr().expect("an address");
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": "post", "instance": "p1", "epoch": 9, "control_plane": peer.url, "labels": {"zone": "a"},
        "admin": "127.0.0.1:7", "inbound": [
            {"name": "http", "protocol": "http", "listen": "127.0.0.1:8081", "app": address},
        ],
    }))
    .expect("a bootstrap");
    let shared = Arc::new(Shared::new(bootstrap).expect("valid"));
    shared
        .admin
        .send_replace(Some("127.0.0.1:7".parse().expect("an address")));
    tokio::spawn(crate::health::run(shared.clone()));
    tokio::spawn(super::run(shared.clone()));
    (shared, peer, app)
}

/// The next message up that is no renewal.
async fn said(session: &mut Session) -> Body {
    loop {
        match session.next().await.body.expect("a body") {
            Body::Renew(_) => {}
            body => return body,
        }
    }
}

async fn grant(session: &Session, lease_ms: u32) {
    session
        .send(Down {
            id: 1,
            body: Some(DownBody::Registered(Registered { lease_ms })),
        })
        .await;
}

/// Hello and the registration that follows it.
async fn registered(session: &mut Session) {
    let Body::Hello(hello) = said(session).await else {
        panic!("Hello comes first")
    };
    assert_eq!(
        (hello.instance.as_str(), hello.epoch, hello.admin.as_str()),
        ("p1", 9, "127.0.0.1:7")
    );
    // It has no identity, so nobody is told of mutual TLS.
    let spoken = outrigger_proto::features::spoken(false);
    assert!(!spoken.iter().any(|f| f == outrigger_proto::features::MTLS));
    assert_eq!(hello.features, spoken);
    let Body::Register(register) = said(session).await else {
        panic!("then the registration")
    };
    let endpoint = register.endpoint.expect("an endpoint");
    assert_eq!(
        (endpoint.name.as_str(), &endpoint.capabilities),
        ("default/post/p1", &spoken)
    );
    assert_eq!(
        (endpoint.ports[0].name.as_str(), endpoint.ports[0].port),
        ("http", 8081)
    );
    assert!(endpoint.meshed && endpoint.epoch == 9 && endpoint.labels["zone"] == "a");
    grant(session, 900).await;
}

#[tokio::test]
async fn a_well_app_is_registered_renewed_withdrawn_and_registered_again() {
    let (shared, mut peer, _app) = start().await;
    let mut session = peer.session().await;
    registered(&mut session).await;
    assert!(matches!(session.next().await.body, Some(Body::Renew(_))));
    assert_eq!(shared.lease.now().0, LeaseState::Held);
    shared.app.exited(None, Some(9));
    let Body::Leaving(leaving) = said(&mut session).await else {
        panic!("leaves")
    };
    assert!(leaving.reason.contains("signal 9"), "{}", leaving.reason);
    assert_eq!(shared.lease.now().0, LeaseState::Withdrawn);
    shared.app.started(Some(8));
    assert!(matches!(said(&mut session).await, Body::Register(_)));
}

#[tokio::test]
async fn requests_from_the_control_plane_are_answered() {
    let (shared, mut peer, _app) = start().await;
    let mut session = peer.session().await;
    registered(&mut session).await;
    session
        .send(Down {
            id: 5,
            body: Some(DownBody::DrainNow(DrainNow {})),
        })
        .await;
    assert_eq!(
        said(&mut session).await,
        Body::Answer(Answer {
            of: 5,
            result: Some(answer::Result::Done(true))
        })
    );
    shared.drain_requested.notified().await;
    // A message of a later version is one without a body that we know.
    session.send(Down { id: 6, body: None }).await;
    let Body::Answer(Answer {
        of: 6,
        result: Some(answer::Result::Unsupported(_)),
    }) = said(&mut session).await
    else {
        panic!("unsupported")
    };
    shared.drain.advance(Phase::Leaving);
    assert!(matches!(said(&mut session).await, Body::Leaving(_)));
}

#[tokio::test]
async fn a_lost_session_and_a_forgotten_lease_are_registered_again() {
    let (shared, mut peer, _app) = start().await;
    let mut session = peer.session().await;
    registered(&mut session).await;
    session
        .send(Down {
            id: 2,
            body: Some(DownBody::Refused(Refused {
                reason: "unknown".into(),
            })),
        })
        .await;
    assert!(matches!(said(&mut session).await, Body::Register(_)));
    drop(session);
    let mut session = peer.session().await;
    registered(&mut session).await;
    assert!(matches!(session.next().await.body, Some(Body::Renew(_))));
    assert_eq!(shared.lease.now().0, LeaseState::Held);
}

#[tokio::test]
async fn versions_that_run_here_are_said_once() {
    use crate::discover::status::Applied;
    use outrigger_proto::model::{FieldError, ResourceType};
    let (shared, mut peer, _app) = start().await;
    let mut session = peer.session().await;
    registered(&mut session).await;
    let one = |version: &str, rejection: Option<FieldError>, removed| {
        let (kind, name, version) = (ResourceType::Service, "default/user".into(), version.into());
        shared.discovery.record(vec![Applied {
            kind,
            name,
            version,
            rejection,
            removed,
        }]);
    };
    let mut expect = async |version: &str, rejection: &str| {
        let Body::Applied(applied) = said(&mut session).await else {
            panic!("a version")
        };
        assert_eq!(
            (applied.resource.as_str(), applied.version.as_str()),
            ("default/user", version)
        );
        assert_eq!(applied.rejection, rejection);
    };
    one("1", None, false);
    expect("1", "").await;
    one(
        "2",
        Some(FieldError {
            path: "ports".into(),
            reason: "none".into(),
        }),
        false,
    );
    expect("2", "ports: none").await;
    one("", None, true);
    expect("", "").await;
}

/// Changes are told on the session, also those from before it, with how many were lost.
#[tokio::test]
async fn changes_of_breakers_and_endpoints_are_said_once() {
    use crate::guard::events::{Event, KEPT, What};
    let (shared, mut peer, _app) = start().await;
    let event = |what, endpoint: Option<&str>| Event {
        at: std::time::SystemTime::now(),
        service: "default/user".parse().expect("a name"),
        endpoint: endpoint.map(Into::into),
        what,
        cause: "5 failures".into(),
        next: endpoint.map(|_| Duration::from_secs(30)),
    };
    for _ in 0..KEPT + 3 {
        shared.events.push(event(What::BreakerOpened, None));
    }
    let mut session = peer.session().await;
    // Registration and changes come in any order.
    let changes = async |session: &mut Session| loop {
        if let Body::Changes(changes) = said(session).await {
            return changes;
        }
    };
    let first = changes(&mut session).await;
    assert_eq!((first.changes.len(), first.dropped), (KEPT, 3));
    assert_eq!(
        (first.changes[0].what.as_str(), first.changes[0].next_ms),
        ("breaker_opened", 0)
    );
    shared.events.push(event(What::Ejected, Some("default/user/u1")));
    let second = changes(&mut session).await;
    let [one] = second.changes.as_slice() else {
        panic!("one change: {second:?}")
    };
    assert_eq!(
        (one.service.as_str(), one.endpoint.as_str()),
        ("default/user", "default/user/u1")
    );
    assert_eq!(
        (one.what.as_str(), one.cause.as_str()),
        ("endpoint_ejected", "5 failures")
    );
    assert_eq!((one.next_ms, second.dropped), (30_000, 0));
    assert!(one.age_ms < 60_000, "{one:?}");
}
