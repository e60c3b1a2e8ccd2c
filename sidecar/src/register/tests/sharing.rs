//! Shares of rate limits: what is said of them, and what becomes of what is told.

use std::time::{Duration, Instant};

use outrigger_proto::features;
use outrigger_proto::model::{Proxy, RateLimit, RateLimitBy};
use outrigger_proto::routes::Asked as Request;
use outrigger_proto::wire::agent::{Asked, Down, Share, Shares, Welcome, down, up::Body};

use super::{said, start};
use crate::discover::peer::Session;
use crate::protect::Standing;
use crate::shared::Shared;

fn limit(name: &str) -> RateLimit {
    RateLimit {
        name: name.into(),
        matches: Vec::new(),
        requests: 100,
        period: Duration::from_secs(3600),
        burst: 100,
        by: RateLimitBy::All,
        mesh: true,
    }
}

fn settings(shared: &Shared, limits: Vec<RateLimit>) {
    let mut proxy = Proxy::new("default/post".parse().expect("a name"));
    proxy.rate_limits = limits;
    shared.directory.set_proxy(proxy);
}

/// How many requests pass now.
fn pass(shared: &Shared) -> usize {
    let field = |_: &str| None;
    let asked = Request {
        host: None,
        path: "/",
        query: None,
        method: "GET",
        field: &field,
    };
    let admission = shared.directory.admission();
    let protection = admission.protection.as_ref().expect("limits");
    let now = Instant::now();
    (0..200).filter(|_| protection.count(&asked, None, now).is_ok()).count()
}

async fn tell(session: &Session, body: down::Body) {
    let body = Some(body);
    session.send(Down { id: 7, body }).await;
}

fn welcome(features: &[&str]) -> down::Body {
    down::Body::Welcome(Welcome {
        control_plane_version: "9".into(),
        features: features.iter().map(ToString::to_string).collect(),
    })
}

fn shares(serial: u64, limits: &[(&str, u32)]) -> down::Body {
    let share = |(limit, share): &(&str, u32)| Share {
        limit: (*limit).into(),
        share: *share,
    };
    down::Body::Shares(Shares {
        serial,
        limits: limits.iter().map(share).collect(),
    })
}

/// The next figures that `such` is true of.
async fn asked(session: &mut Session, such: impl Fn(&Asked) -> bool) -> Asked {
    loop {
        match said(session).await {
            Body::Asked(asked) if such(&asked) => return asked,
            _ => {}
        }
    }
}

#[tokio::test]
async fn shares_are_taken_said_and_kept_when_the_stream_ends() {
    let (shared, mut peer, _app) = start().await;
    settings(&shared, vec![limit("all")]);
    // A tenth until it is told more, and no burst of its own.
    assert_eq!(pass(&shared), 1);
    let mut session = peer.session().await;
    tell(&session, welcome(&[features::QUOTA])).await;
    let first = asked(&mut session, |_| true).await;
    assert_eq!((first.seen, first.limits[0].share), (0, RateLimit::START));
    // A second later it says how much was asked: 200 in a second of 100 in an hour is more than it can say.
    let busy = asked(&mut session, |a| a.limits[0].asked > 0).await;
    assert!(busy.limits[0].asked > RateLimit::WHOLE, "{busy:?}");
    // A name that is not there, and more than there is.
    tell(&session, shares(5, &[("other", 1), ("all", u32::MAX)])).await;
    let taken = asked(&mut session, |a| a.seen == 5).await;
    assert_eq!(taken.limits[0].share, RateLimit::WHOLE);
    assert_eq!(pass(&shared), 0, "a larger share is no burst");
    // Another limit begins with a tenth, and the one that stays goes on.
    settings(&shared, vec![limit("all"), limit("second")]);
    let both = asked(&mut session, |a| a.limits.len() == 2).await;
    assert_eq!(both.limits[1].share, RateLimit::START);
    // Other figures of the same limit do not change the share.
    let mut larger = limit("all");
    larger.requests = 200;
    settings(&shared, vec![larger]);
    asked(&mut session, |a| a.limits.len() == 1).await;
    drop(session);
    let mut session = peer.session().await;
    tell(&session, welcome(&[features::QUOTA])).await;
    let again = asked(&mut session, |_| true).await;
    assert_eq!((again.seen, again.limits[0].share), (0, RateLimit::WHOLE));
    settings(&shared, Vec::new());
    assert_eq!(asked(&mut session, |a| a.limits.is_empty()).await.limits, []);
}

#[tokio::test]
async fn a_control_plane_that_does_not_divide_hears_nothing_of_it() {
    let (shared, mut peer, _app) = start().await;
    settings(&shared, vec![limit("all")]);
    let mut session = peer.session().await;
    tell(&session, welcome(&[features::ACCESS])).await;
    tell(&session, shares(1, &[("all", 500_000)])).await;
    session.send(Down { id: 8, body: None }).await;
    loop {
        match said(&mut session).await {
            Body::Answer(_) => break,
            Body::Asked(asked) => panic!("{asked:?}"),
            _ => {}
        }
    }
    let standing = |share| {
        vec![Standing {
            limit: "all".into(),
            asked: 0,
            share,
        }]
    };
    assert_eq!(shared.quotas.standing(), standing(500_000));
}
