//! Each rule of the registry, then all of them against any order of events.

use std::collections::BTreeSet;

use outrigger_proto::model::EndpointPort;
use proptest::prelude::*;

use super::*;

const LEASE: Millis = 1000;
const GRACE: Millis = 300;
/// The first moment at which anything may expire.
const OPEN: Millis = LEASE + GRACE;

fn name(instance: usize) -> EndpointName {
    format!("default/user/u{instance}").parse().expect("valid")
}

fn endpoint(instance: usize, epoch: u64) -> Endpoint {
    Endpoint {
        name: name(instance),
        address: [127, 0, 0, 1].into(),
        ports: vec![EndpointPort {
            name: "http".into(),
            port: 3000,
            mesh_port: None,
        }],
        epoch,
        labels: BTreeMap::new(),
        weight: 1,
        capabilities: Vec::new(),
        meshed: true,
    }
}

fn sender(instance: usize, epoch: u64, session: SessionId) -> Sender {
    let name = name(instance);
    Sender { name, epoch, session }
}

/// A registry as others see it: the set is what the changes say.
struct Seen {
    registry: Registry,
    served: BTreeSet<EndpointName>,
    now: Millis,
}

impl Seen {
    fn new() -> Self {
        let terms = Terms {
            lease: LEASE,
            grace: GRACE,
        };
        let (registry, served, now) = (Registry::new(terms, 0), BTreeSet::new(), 0);
        Self { registry, served, now }
    }

    /// A registry past its start, with leases of `count` instances taken at `OPEN`.
    fn with(count: usize) -> Self {
        let mut seen = Self::new();
        seen.now = OPEN;
        (0..count).for_each(|i| seen.register(i));
        seen
    }

    fn take(&mut self, changes: Vec<Change>) -> Vec<Change> {
        for change in &changes {
            match change {
                Change::Serve(endpoint) => drop(self.served.insert(endpoint.name.clone())),
                Change::Remove(name, _) => drop(self.served.remove(name)),
                Change::Stale(..) | Change::Fresh(_) => {}
            }
        }
        changes
    }

    fn register(&mut self, instance: usize) {
        let changes = self.registry.register(self.now, endpoint(instance, 1), 1);
        self.take(changes.expect("accepted"));
    }

    fn renew(&mut self, instance: usize) {
        let changes = self.registry.renew(self.now, &sender(instance, 1, 1));
        self.take(changes.expect("registered"));
    }

    fn pass(&mut self, time: Millis) -> Vec<Change> {
        self.now += time;
        let changes = self.registry.tick(self.now);
        self.take(changes)
    }

    fn stale(&self) -> Option<Stale> {
        self.registry.stale(&name(0).service)
    }

    #[track_caller]
    fn check(&self, instances: &[usize]) {
        let expected: BTreeSet<_> = instances.iter().map(|i| name(*i)).collect();
        assert_eq!(self.served, expected, "at {}", self.now);
        let kept: BTreeSet<_> = self
            .registry
            .leases()
            .filter(|l| l.served())
            .map(|l| l.endpoint.name.clone())
            .collect();
        assert_eq!(kept, expected, "what was told is what is kept, at {}", self.now);
    }
}

#[test]
fn a_lapsed_minority_is_removed_and_the_rest_stays() {
    let mut seen = Seen::with(4);
    seen.now += 500;
    [1, 2, 3].into_iter().for_each(|i| seen.renew(i));
    assert_eq!(seen.pass(500), [Change::Remove(name(0), Removal::Lapsed)]);
    seen.check(&[1, 2, 3]);
    assert_eq!(seen.stale(), None);
}

#[test]
fn half_is_not_more_than_half() {
    let mut seen = Seen::with(4);
    seen.now += 500;
    [2, 3].into_iter().for_each(|i| seen.renew(i));
    seen.pass(500);
    seen.check(&[2, 3]);
}

#[test]
fn a_lapsed_majority_stays_with_an_alarm_until_it_is_a_minority() {
    let mut seen = Seen::with(4);
    seen.now += 500;
    seen.renew(3);
    let changes = seen.pass(500);
    let stale = Stale {
        since: seen.now,
        lapsed: 3,
        of: 4,
    };
    assert_eq!(changes, [Change::Stale(name(0).service, stale)]);
    seen.check(&[0, 1, 2, 3]);
    seen.renew(3);
    assert_eq!(seen.stale(), Some(stale));
    // One comes back: two of four are no longer more than half, and those two get a lease time.
    let changes = seen.registry.renew(seen.now, &sender(0, 1, 1)).expect("kept");
    assert_eq!(changes, [Change::Fresh(name(0).service)]);
    seen.now += 600;
    [0, 3].into_iter().for_each(|i| seen.renew(i));
    seen.check(&[0, 1, 2, 3]);
    seen.pass(400);
    seen.check(&[0, 3]);
}

#[test]
fn lapses_one_after_the_other_within_a_lease_time_count_together() {
    let mut seen = Seen::with(3);
    seen.now += 300;
    [1, 2].into_iter().for_each(|i| seen.renew(i));
    seen.now += 300;
    seen.renew(2);
    seen.pass(400);
    seen.check(&[1, 2]);
    let changes = seen.pass(300);
    assert!(
        matches!(
            changes[..],
            [Change::Serve(_), Change::Stale(_, Stale { lapsed: 2, of: 3, .. })]
        ),
        "{changes:?}"
    );
    seen.check(&[0, 1, 2]);
}

#[test]
fn lapses_further_apart_than_a_lease_time_do_not_count_together() {
    let mut seen = Seen::with(3);
    seen.now += 900;
    [1, 2].into_iter().for_each(|i| seen.renew(i));
    seen.pass(100);
    seen.check(&[1, 2]);
    for _ in 0..3 {
        seen.now += 450;
        [1, 2].into_iter().for_each(|i| seen.renew(i));
        seen.pass(0);
    }
    seen.now += 900;
    seen.renew(2);
    seen.pass(100);
    seen.check(&[2]);
}

#[test]
fn the_only_endpoint_stays_when_its_lease_lapses() {
    let mut seen = Seen::with(1);
    seen.pass(10 * LEASE);
    seen.check(&[0]);
    assert!(seen.stale().is_some());
    // A new instance takes over: the old one is half, gets one lease time, and goes.
    seen.register(1);
    assert_eq!(seen.stale(), None);
    seen.now += 900;
    seen.renew(1);
    seen.pass(100);
    seen.check(&[1]);
}

#[test]
fn leaving_and_failing_checks_count_at_once_even_for_the_last() {
    let mut seen = Seen::with(2);
    let left = seen
        .registry
        .withdraw(seen.now, &sender(0, 1, 1), "drain")
        .expect("taken");
    assert_eq!(left, [Change::Remove(name(0), Removal::Left("drain".into()))]);
    seen.take(left);
    let unwell = seen
        .registry
        .health(seen.now, &sender(1, 1, 1), Some("503".into()))
        .expect("taken");
    assert_eq!(unwell, [Change::Remove(name(1), Removal::Unhealthy("503".into()))]);
    seen.take(unwell);
    seen.check(&[]);
    let well = seen.registry.health(seen.now, &sender(1, 1, 1), None).expect("taken");
    assert!(matches!(well[..], [Change::Serve(_)]));
    seen.take(well);
    seen.check(&[1]);
}

#[test]
fn an_unwell_app_that_is_not_renewed_is_forgotten_and_raises_no_alarm() {
    let mut seen = Seen::with(1);
    let unwell = seen
        .registry
        .health(seen.now, &sender(0, 1, 1), Some("503".into()))
        .expect("taken");
    seen.take(unwell);
    seen.pass(LEASE);
    seen.check(&[]);
    assert_eq!((seen.stale(), seen.registry.leases().count()), (None, 0));
    let renewed = seen.registry.renew(seen.now, &sender(0, 1, 1));
    assert_eq!(renewed, Err(Refusal::Unknown(name(0))));
}

#[test]
fn late_messages_change_nothing() {
    let mut seen = Seen::with(1);
    let newer = seen.registry.register(seen.now, endpoint(0, 5), 3).expect("newer");
    seen.take(newer);
    let old_epoch = Err(Refusal::OldEpoch { given: 4, known: 5 });
    assert_eq!(seen.registry.register(seen.now, endpoint(0, 4), 9), old_epoch);
    assert_eq!(seen.registry.withdraw(seen.now, &sender(0, 4, 9), "late"), old_epoch);
    assert_eq!(
        seen.registry.health(seen.now, &sender(0, 4, 9), Some("late".into())),
        old_epoch
    );
    assert_eq!(seen.registry.renew(seen.now, &sender(0, 4, 9)), old_epoch);
    assert_eq!(
        seen.registry.withdraw(seen.now, &sender(0, 5, 2), "late"),
        Err(Refusal::OldSession)
    );
    seen.check(&[0]);
    // It leaves for good, and a late registration of the same boot's older session stays out.
    let left = seen
        .registry
        .withdraw(seen.now, &sender(0, 5, 3), "drain")
        .expect("taken");
    seen.take(left);
    assert_eq!(
        seen.registry.register(seen.now, endpoint(0, 5), 2),
        Err(Refusal::OldSession)
    );
    assert_eq!(seen.registry.register(seen.now, endpoint(0, 4), 9), old_epoch);
    seen.check(&[]);
}

#[test]
fn a_lost_connection_is_no_withdrawal_and_a_new_session_takes_the_lease_over() {
    let mut seen = Seen::with(2);
    seen.now += 900;
    seen.renew(1);
    let taken = seen.registry.renew(seen.now, &sender(0, 1, 2)).expect("taken over");
    seen.take(taken);
    seen.pass(200);
    seen.check(&[0, 1]);
    assert_eq!(
        seen.registry.renew(seen.now, &sender(0, 1, 1)),
        Err(Refusal::OldSession)
    );
}

#[test]
fn after_a_restart_nothing_expires_before_a_lease_time_plus_grace() {
    let mut seen = Seen::new();
    for i in 0..4 {
        let change = seen.registry.restore(0, endpoint(i, 1), None);
        seen.take(change.into_iter().collect());
    }
    assert_eq!(
        seen.registry.restore(0, endpoint(9, 1), Some("503".into())),
        None,
        "unwell before, unwell after"
    );
    seen.check(&[0, 1, 2, 3]);
    // A lease taken after the restart may lapse earlier, yet nothing is removed in the hold.
    seen.register(4);
    seen.now = 800;
    [0, 1, 2].into_iter().for_each(|i| seen.renew(i));
    assert_eq!(seen.pass(OPEN - 1 - 800), []);
    seen.check(&[0, 1, 2, 3, 4]);
    // A clean leave is no expiry.
    let left = seen
        .registry
        .withdraw(seen.now, &sender(2, 1, 1), "drain")
        .expect("taken");
    seen.take(left);
    seen.check(&[0, 1, 3, 4]);
    seen.pass(1);
    seen.check(&[0, 1]);
}

#[test]
fn all_restored_leases_stay_when_nobody_resumes() {
    let mut seen = Seen::new();
    for i in 0..4 {
        let change = seen.registry.restore(0, endpoint(i, 1), None);
        seen.take(change.into_iter().collect());
    }
    seen.pass(OPEN);
    seen.check(&[0, 1, 2, 3]);
    assert_eq!(seen.stale().map(|s| (s.lapsed, s.of)), Some((4, 4)));
}

/// Those who may no longer serve are gone at once and do not come back with the last set of a service.
#[test]
fn who_is_expelled_stays_out_of_the_last_set_as_well() {
    let mut seen = Seen::with(4);
    seen.pass(LEASE / 2);
    (1..4).for_each(|i| seen.renew(i));
    seen.pass(LEASE / 2 + 1);
    seen.check(&[1, 2, 3]);
    let out = [name(0), name(1)];
    let gone = seen.registry.expel(seen.now, |name| out.contains(name), "revoked");
    assert_eq!(gone, [Change::Remove(out[1].clone(), Removal::Left("revoked".into()))]);
    seen.take(gone);
    seen.pass(LEASE / 2);
    seen.check(&[2, 3]);
    assert!(seen.stale().is_some(), "the rest lapsed together");
}

#[derive(Debug, Clone)]
enum Act {
    Register(usize, u64),
    Renew(usize, u64),
    Unwell(usize, u64),
    Well(usize, u64),
    Leave(usize, u64),
    Pass(Millis),
}

fn act() -> impl Strategy<Value = Act> {
    let who = || (0usize..6, 1u64..4);
    prop_oneof![
        3 => who().prop_map(|(i, e)| Act::Register(i, e)),
        4 => who().prop_map(|(i, e)| Act::Renew(i, e)),
        1 => who().prop_map(|(i, e)| Act::Unwell(i, e)),
        1 => who().prop_map(|(i, e)| Act::Well(i, e)),
        1 => who().prop_map(|(i, e)| Act::Leave(i, e)),
        4 => (1..LEASE).prop_map(Act::Pass),
    ]
}

proptest! {
    #[test]
    fn the_rules_hold_in_any_order(acts in proptest::collection::vec(act(), 1..120)) {
        let mut seen = Seen::new();
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        for act in acts {
            let before = seen.served.clone();
            let now = seen.now;
            let late = |i: &usize, e: &u64| latest.get(i).is_some_and(|known| e < known);
            let (result, was_late) = match &act {
                Act::Register(i, e) => (seen.registry.register(now, endpoint(*i, *e), 1), late(i, e)),
                Act::Renew(i, e) => (seen.registry.renew(now, &sender(*i, *e, 1)), late(i, e)),
                Act::Unwell(i, e) => (seen.registry.health(now, &sender(*i, *e, 1), Some("no".into())), late(i, e)),
                Act::Well(i, e) => (seen.registry.health(now, &sender(*i, *e, 1), None), late(i, e)),
                Act::Leave(i, e) => (seen.registry.withdraw(now, &sender(*i, *e, 1), "bye"), late(i, e)),
                Act::Pass(time) => {
                    seen.now += time;
                    (Ok(seen.registry.tick(seen.now)), false)
                }
            };
            prop_assert!(!was_late || result.is_err(), "late message was taken: {act:?}");
            let changes = result.unwrap_or_default();
            match &act {
                Act::Register(i, e) | Act::Renew(i, e) | Act::Unwell(i, e) | Act::Well(i, e) | Act::Leave(i, e) => {
                    let known = latest.entry(*i).or_default();
                    *known = (*known).max(*e);
                }
                Act::Pass(_) => {
                    prop_assert!(seen.now >= OPEN || changes.is_empty(), "expiry in the hold: {changes:?}");
                }
            }
            seen.take(changes);
            let kept: BTreeSet<_> =
                seen.registry.leases().filter(|l| l.served()).map(|l| l.endpoint.name.clone()).collect();
            prop_assert_eq!(&kept, &seen.served, "what is told is what is kept");
            if let Act::Pass(_) = act {
                prop_assert!(before.is_empty() || !seen.served.is_empty(), "empty by expiry alone");
                let (lost, of) = (before.difference(&seen.served).count(), before.len());
                prop_assert!(lost * 2 <= of, "{lost} of {of} removed at once");
            }
            if let Some(stale) = seen.stale() {
                prop_assert!(stale.lapsed * 2 > stale.of, "{stale:?}");
            }
        }
    }
}
