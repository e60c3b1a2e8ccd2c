//! No order of events leaves anybody without trust, or trusts anything forgotten.

use proptest::prelude::*;

use super::*;

fn root(number: u32, last_leaf: Unix) -> Root {
    Root {
        number,
        issuer: 1,
        hash: String::new(),
        not_after: Unix::MAX,
        last_leaf,
    }
}

fn numbers(trust: &Trust) -> Vec<u32> {
    trust.roots.iter().map(|r| r.number).collect()
}

const YES: Seen = Seen {
    all_have_it: true,
    all_renewed: true,
};
const NO: Seen = Seen {
    all_have_it: false,
    all_renewed: false,
};

#[test]
fn the_phases_follow_each_other() {
    let steady = Trust::new("mesh.local".into(), root(1, 500), false);
    assert_eq!(steady.step(100, &YES, 10), None);
    let spreading = steady.begin(100, root(2, 0), None).expect("begins");
    assert_eq!((numbers(&spreading), spreading.generation), (vec![2, 1], 2));
    assert_eq!(spreading.begin(100, root(3, 0), None), None, "one at a time");
    assert_eq!(
        spreading.step(1_000_000, &NO, 10),
        None,
        "waits for those that are missing"
    );
    let renewing = spreading
        .step(
            110,
            &Seen {
                all_have_it: true,
                ..NO
            },
            10,
        )
        .expect("goes on");
    assert_eq!((numbers(&renewing), renewing.generation), (vec![1, 2], 3));
    assert_eq!(renewing.step(120, &NO, 10), None);
    assert_eq!(
        renewing.step(500, &NO, 10),
        None,
        "the last leaf is valid in its last second"
    );
    assert_eq!(numbers(&renewing.step(501, &NO, 10).expect("expired")), [2]);
    let renewed = renewing.step(130, &YES, 10).expect("renewed");
    assert_eq!((numbers(&renewed), renewed.generation), (vec![1, 2], 3));
    assert_eq!(renewed.step(139, &YES, 10), None, "settles");
    let unsettled = renewed.step(139, &NO, 10).expect("somebody came back with an old leaf");
    assert_eq!(unsettled.phase, renewing.phase);
    let done = renewed.step(140, &YES, 10).expect("ends");
    assert_eq!(
        (numbers(&done), done.generation, done.phase),
        (vec![2], 4, Phase::Steady)
    );
    assert_eq!(done.next_number(), 3);
}

#[test]
fn forcing_counts_from_the_beginning() {
    let steady = Trust::new("mesh.local".into(), root(1, 500), false);
    assert_eq!(steady.force(10), None);
    let spreading = steady.begin(100, root(2, 0), Some(60)).expect("begins");
    assert_eq!(spreading.step(159, &NO, 10), None);
    assert!(spreading.step(160, &NO, 10).is_some());
    let sooner = spreading.force(0).expect("spreading");
    assert!(sooner.step(100, &NO, 10).is_some());
    assert_eq!(sooner.step(100, &NO, 10).expect("forced").force(0), None);
}

#[derive(Debug, Clone)]
enum Input {
    Begin(Option<u64>),
    Force(u64),
    Step { have: bool, renewed: bool, later: u64 },
    Issue(u64),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        proptest::option::of(0..100_u64).prop_map(Input::Begin),
        (0..100_u64).prop_map(Input::Force),
        (any::<bool>(), any::<bool>(), 0..60_u64).prop_map(|(have, renewed, later)| Input::Step {
            have,
            renewed,
            later
        }),
        (1..100_u64).prop_map(Input::Issue),
    ]
}

proptest! {
    #[test]
    fn trust_is_never_lost_and_never_kept_for_nothing(inputs in proptest::collection::vec(input(), 1..200)) {
        const SETTLE: u64 = 20;
        let mut trust = Trust::new("mesh.local".into(), root(1, 0), false);
        let mut now = 1000;
        for input in inputs {
            let before = trust.clone();
            let next = match input {
                Input::Begin(force) => trust.begin(now, root(trust.next_number(), 0), force),
                Input::Force(after) => trust.force(after),
                Input::Step { have, renewed, later } => {
                    now += later;
                    let next = trust.step(now, &Seen { all_have_it: have, all_renewed: renewed }, SETTLE);
                    if let Some(next) = &next {
                        // A root signs only when all have it, or somebody forced it.
                        if next.signing().map(|r| r.number) != before.signing().map(|r| r.number) {
                            let forced = matches!(before.phase, Phase::Spreading { force_at: Some(at), .. } if at <= now);
                            prop_assert!(have || forced);
                            prop_assert!(before.roots.iter().any(|r| Some(r.number) == next.signing().map(|r| r.number)));
                        }
                        // A root ends only when nothing of it is valid, or all were renewed a while ago.
                        for gone in before.roots.iter().filter(|r| !next.roots.contains(r)) {
                            let since = match before.phase {
                                Phase::Renewing { renewed_at, .. } => renewed_at,
                                _ => None,
                            };
                            let settled = renewed && since.is_some_and(|at| at + SETTLE <= now);
                            prop_assert!(gone.last_leaf < now || settled);
                            prop_assert_ne!(Some(gone.number), before.signing().map(|r| r.number));
                        }
                    }
                    next
                }
                Input::Issue(life) => {
                    let mut next = trust.clone();
                    if let Some(root) = next.roots.last_mut() {
                        root.last_leaf = root.last_leaf.max(now + life);
                    }
                    Some(next)
                }
            };
            // As a crash between any two steps does: only what was stored goes on.
            trust = serde_json::from_str(&serde_json::to_string(&next.unwrap_or(trust)).expect("writes")).expect("reads");
            let order = |t: &Trust| numbers(t);
            prop_assert_eq!(trust.generation > before.generation, order(&trust) != order(&before));
            prop_assert!(trust.generation >= before.generation && trust.generation <= before.generation + 1);
            prop_assert_eq!(trust.roots.len(), if trust.phase == Phase::Steady { 1 } else { 2 });
        }
        // Nothing waits for ever once all is well.
        for _ in 0..4 {
            now += 200;
            trust = trust.step(now, &YES, SETTLE).unwrap_or(trust);
        }
        prop_assert_eq!(trust.phase, Phase::Steady);
    }
}
