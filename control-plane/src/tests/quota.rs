//! A rate that instances keep together: from the configuration and what sidecars say to what each is told.

use std::time::Duration;

use outrigger_proto::features;
use outrigger_proto::model::RateLimit;
use outrigger_proto::wire::agent::{self, down, up};

use super::client::{Session, World};
use crate::server::Options;

const MESH: &str = "service: user\nmode: off\nrate_limits: [{ name: all, rate: 100/s, mesh: true }]\n";

async fn register(session: &mut Session, port: u32) {
    let mut endpoint = session.endpoint(port);
    endpoint.capabilities = vec![features::QUOTA.to_owned()];
    let endpoint = Some(endpoint);
    // Shares may be told in between.
    session
        .send(Some(up::Body::Register(agent::Register { endpoint })))
        .await;
    while !matches!(session.down().await, down::Body::Registered(_)) {}
}

/// Instances that let through what they are told to, and what is asked of them.
struct Members(Vec<(Session, u32, u32)>);

impl Members {
    async fn say(&mut self, i: usize, seen: u64) {
        let (session, asked, share) = &mut self.0[i];
        let demand = |limit: &str| agent::Demand {
            limit: limit.into(),
            asked: *asked,
            share: *share,
        };
        let limits = vec![demand("all")];
        session.send(Some(up::Body::Asked(agent::Asked { limits, seen }))).await;
    }

    /// Until the shares are such.
    async fn until(&mut self, such: impl Fn(&[u32]) -> bool) {
        loop {
            let shares: Vec<u32> = self.0.iter().map(|(_, _, share)| *share).collect();
            let all: u32 = shares.iter().sum();
            assert!(all <= RateLimit::WHOLE, "{shares:?}");
            if such(&shares) {
                return;
            }
            let waiting = self.0.iter_mut().enumerate();
            let waiting = waiting.map(|(i, (session, _, _))| Box::pin(async move { (i, session.down().await) }));
            let ((i, down), _, _) = futures_util::future::select_all(waiting).await;
            if let down::Body::Shares(shares) = down {
                let limit = &shares.limits[0];
                assert_eq!((limit.limit.as_str(), shares.limits.len()), ("all", 1));
                self.0[i].2 = limit.share;
                self.say(i, shares.serial).await;
            }
        }
    }
}

#[tokio::test]
async fn a_rate_of_all_instances_follows_what_is_asked() {
    let folder = tempfile::tempdir().expect("scratch");
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, MESH).expect("writes");
    let world = World::start(Options {
        config: Some(file),
        lease: Duration::from_secs(5),
        ..Options::default()
    })
    .await;
    let mut members = Members(Vec::new());
    for (i, port) in [3001, 3002, 3003].into_iter().enumerate() {
        let session = Session::open(&world, "user", &format!("u{port}"), 1).await;
        members.0.push((session, 0, RateLimit::START));
        members.say(i, 0).await;
        register(&mut members.0[i].0, port).await;
    }
    // One is busy: it gets what the others do not need.
    members.0[1].1 = 3 * RateLimit::WHOLE;
    members.say(1, 0).await;
    members.until(|shares| shares[1] > 800_000).await;
    // Now another one, which leaves later.
    members.0[1].1 = 0;
    members.0[2].1 = u32::MAX;
    members.say(1, u64::MAX).await;
    members.say(2, u64::MAX).await;
    members
        .until(|shares| shares[2] > 800_000 && shares[0].min(shares[1]) > 20_000)
        .await;
    let (mut gone, _, _) = members.0.remove(2);
    let reason = "ends".to_owned();
    gone.send(Some(up::Body::Leaving(agent::Leaving { reason }))).await;
    // It was heard.
    gone.send(Some(up::Body::Renew(agent::Renew {}))).await;
    while !matches!(gone.down().await, down::Body::Refused(_)) {}
    drop(gone);
    members.until(|shares| shares.iter().sum::<u32>() > 900_000).await;
    // Another service's limits are not this one's, and a limit of no service is nobody's.
    let mut other = Session::open(&world, "other", "o1", 1).await;
    let limits = vec![agent::Demand {
        limit: "all".into(),
        asked: u32::MAX,
        share: RateLimit::WHOLE,
    }];
    other
        .send(Some(up::Body::Asked(agent::Asked { limits, seen: 0 })))
        .await;
    let renewed = other.ask(up::Body::Renew(agent::Renew {})).await;
    assert!(matches!(renewed, down::Body::Refused(_)), "{renewed:?}");
    drop((members, other));
    world.stop().await;
}
