//! Registration to push, restart, refusal and resume.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_proto::wire::agent::{self, down, up};

use super::client::{Ads, Session, World, eventually};
use crate::server::Options;

const NOTHING: BTreeMap<String, (String, u32)> = BTreeMap::new();

fn leaving(reason: &str) -> Option<up::Body> {
    Some(up::Body::Leaving(agent::Leaving { reason: reason.into() }))
}

fn health(healthy: bool) -> up::Body {
    let reason = if healthy { "" } else { "probe: 503" }.into();
    let checks = Vec::new();
    up::Body::Health(agent::HealthChange {
        healthy,
        reason,
        checks,
    })
}

#[tokio::test]
async fn a_registration_reaches_those_who_subscribed() {
    let world = World::start(Options::default()).await;
    let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &NOTHING).await;
    assert_eq!(
        caller.step().await,
        (vec![], vec!["default/user/*".into()]),
        "complete and empty"
    );

    let mut one = Session::open(&world, "user", "u1", 1).await;
    one.register(3001).await;
    caller.until(&[3001]).await;
    let mut two = Session::open(&world, "user", "u2", 1).await;
    two.register(3002).await;
    caller.until(&[3001, 3002]).await;

    let answer = two.ask(health(false)).await;
    assert!(matches!(answer, down::Body::Registered(_)), "{answer:?}");
    caller.until(&[3001]).await;
    two.ask(health(true)).await;
    caller.until(&[3001, 3002]).await;

    one.send(leaving("drain")).await;
    caller.until(&[3002]).await;
    drop(two);
    let mut late = Ads::open(&world, "default/gateway/g1", &["default/user/*"], &NOTHING).await;
    late.until(&[3002]).await;
    assert_eq!(late.log.len(), 1, "the first answer is the whole collection");
    world.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_state_and_not_every_state() {
    let world = World::start(Options::default()).await;
    let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &NOTHING).await;
    caller.step().await;
    let mut one = Session::open(&world, "user", "u1", 1).await;
    for port in 3000..3500 {
        one.register(port).await;
    }
    caller.until(&[3499]).await;
    assert!(caller.log.len() <= 3, "{} responses", caller.log.len());
    world.stop().await;
}

#[tokio::test]
async fn a_change_reaches_only_those_who_use_the_service() {
    let world = World::start(Options::default()).await;
    let mut other = Ads::open(&world, "default/blog/b1", &["default/auth/*"], &NOTHING).await;
    other.step().await;
    let mut user = Session::open(&world, "user", "u1", 1).await;
    user.register(3001).await;
    let mut auth = Session::open(&world, "auth", "a1", 1).await;
    auth.register(3002).await;
    assert_eq!(other.step().await, (vec!["default/auth/a1".into()], vec![]));
    world.stop().await;
}

#[tokio::test]
async fn after_a_restart_stored_endpoints_are_served_and_a_client_resumes() {
    let scratch = tempfile::tempdir().expect("scratch");
    let options = Options {
        state_dir: Some(scratch.path().to_owned()),
        lease: Duration::from_millis(1500),
        grace: Duration::from_millis(300),
        ..Options::default()
    };
    let world = World::start(options.clone()).await;
    let mut sessions = Vec::new();
    for (instance, port) in [("u1", 3001), ("u2", 3002), ("u3", 3003)] {
        let mut session = Session::open(&world, "user", instance, 1).await;
        session.register(port).await;
        sessions.push(session);
    }
    let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &NOTHING).await;
    caller.until(&[3001, 3002, 3003]).await;
    let have = caller.endpoints.clone();
    drop(sessions);
    world.stop().await;

    let world = World::start(options).await;
    let mut fresh = Ads::open(&world, "default/gateway/g1", &["default/user/*"], &NOTHING).await;
    fresh.until(&[3001, 3002, 3003]).await;
    let mut resumed = Ads::open(&world, "default/post/p1", &["default/user/*"], &have).await;
    // Two come back, one does not: only that one is removed, and only after its time.
    let mut back = Vec::new();
    for (instance, port) in [("u1", 3001), ("u2", 3002)] {
        let mut session = Session::open(&world, "user", instance, 1).await;
        session.register(port).await;
        back.push(session);
    }
    let renewing = tokio::spawn(async move {
        loop {
            for session in &mut back {
                session.ask(up::Body::Renew(agent::Renew {})).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(resumed.step().await, (vec![], vec!["default/user/u3".into()]));
    renewing.abort();
    world.stop().await;
}

#[tokio::test]
async fn a_control_plane_without_memory_does_not_remove_what_clients_have() {
    let options = Options {
        lease: Duration::from_millis(400),
        grace: Duration::from_millis(200),
        ..Options::default()
    };
    let world = World::start(options.clone()).await;
    let mut session = Session::open(&world, "user", "u1", 1).await;
    session.register(3001).await;
    let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &NOTHING).await;
    caller.until(&[3001]).await;
    let have = caller.endpoints.clone();
    world.stop().await;

    let started = tokio::time::Instant::now();
    let world = World::start(options).await;
    let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &have).await;
    assert_eq!(caller.step().await.1, vec!["default/user/u1".to_owned()]);
    assert!(
        started.elapsed() >= Duration::from_millis(600),
        "removed before the hold ended"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_refused_resource_blocks_no_other_and_is_not_sent_again() {
    let world = World::start(Options::default()).await;
    let mut good = Session::open(&world, "user", "u1", 1).await;
    let mut bad = Session::open(&world, "user", "u2", 1).await;
    let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &NOTHING).await;
    caller.refuse = Some("default/user/u2".into());
    caller.step().await;
    bad.register(3002).await;
    assert_eq!(caller.step().await.0, vec!["default/user/u2".to_owned()]);
    good.register(3001).await;
    assert_eq!(
        caller.step().await.0,
        vec!["default/user/u1".to_owned()],
        "and not u2 again"
    );
    bad.register(4002).await;
    caller.refuse = None;
    caller.until(&[3001, 4002]).await;
    world.stop().await;
}

#[tokio::test]
async fn junk_is_answered_and_an_older_boot_changes_nothing() {
    let world = World::start(Options::default()).await;
    let mut new = Session::open(&world, "user", "u1", 7).await;
    new.send(None).await;
    let answer = new.down().await;
    let down::Body::Answer(answer) = answer else {
        panic!("{answer:?}")
    };
    assert!(
        matches!(answer.result, Some(agent::answer::Result::Unsupported(_))),
        "{answer:?}"
    );
    let refused = new.ask(up::Body::Renew(agent::Renew {})).await;
    assert!(matches!(refused, down::Body::Refused(_)), "{refused:?}");
    new.register(3007).await;

    let mut old = Session::open(&world, "user", "u1", 6).await;
    let endpoint = Some(old.endpoint(3006));
    let refused = old.ask(up::Body::Register(agent::Register { endpoint })).await;
    assert!(matches!(refused, down::Body::Refused(_)), "{refused:?}");
    old.send(leaving("late")).await;
    assert!(matches!(old.down().await, down::Body::Refused(_)));
    eventually("still served", async || {
        let mut caller = Ads::open(&world, "default/post/p1", &["default/user/*"], &NOTHING).await;
        caller.step().await;
        caller.endpoints.values().map(|(_, p)| *p).collect::<Vec<_>>() == [3007]
    })
    .await;
    let mut nonsense = new.endpoint(0);
    nonsense.address = "nowhere".into();
    let endpoint = Some(nonsense);
    let refused = new.ask(up::Body::Register(agent::Register { endpoint })).await;
    let down::Body::Refused(refused) = refused else {
        panic!("{refused:?}")
    };
    assert!(refused.reason.contains("endpoint.address"), "{refused:?}");
    world.stop().await;
}
