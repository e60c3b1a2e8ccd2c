//! Splits, edits and faults, each by itself.

use outrigger_proto::model::{Match, Mode, PathMatch};

use super::*;

fn name(text: &str) -> ServiceName {
    text.parse().expect("a name")
}

fn service(routes: Vec<Route>, faults: Vec<Fault>) -> Arc<Service> {
    Arc::new(Service {
        routes,
        faults,
        ..Service::new(name("default/app"), vec![], Mode::Off)
    })
}

fn split(weights: &[u32]) -> Traffic {
    let to = weights.iter().enumerate().map(|(i, weight)| {
        let to = Destination {
            service: (i > 0).then(|| name(&format!("default/s{i}"))),
            subset: None,
        };
        (to, *weight)
    });
    let route = Route {
        name: "split".into(),
        matches: vec![],
        action: Action::Forward(Forward {
            to: to.collect(),
            ..Forward::default()
        }),
        policy: Policy::default(),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    };
    let traffic = Traffic::new(&service(vec![route], vec![]), &name("default/me"), &Counts::default());
    traffic.expect("valid").expect("a route")
}

/// The place of the destination for `number`.
fn chosen(traffic: &Traffic, number: u64) -> usize {
    let Some(Act::Forward(onward)) = traffic.way(0).map(|w| &w.act) else {
        panic!("it forwards")
    };
    let goal = onward.choose(|| number).expect("a destination");
    goal.other.map_or(0, |other| other + 1)
}

/// Numbers spread evenly.
fn numbers() -> impl Iterator<Item = u64> {
    (0..1000).map(|i| u64::MAX / 1000 * i)
}

#[test]
fn a_split_has_its_weights_exactly_and_a_weight_of_0_gets_nothing() {
    let traffic = split(&[90, 0, 10]);
    assert_eq!(traffic.others, [name("default/s1"), name("default/s2")]);
    let mut counts = [0_u32; 3];
    numbers().for_each(|n| counts[chosen(&traffic, n)] += 1);
    assert!(
        counts[0].abs_diff(900) <= 1 && counts[1] == 0 && counts[2].abs_diff(100) <= 1,
        "{counts:?}"
    );
    assert_eq!((chosen(&traffic, 0), chosen(&traffic, u64::MAX)), (0, 2));
}

#[test]
fn a_number_moves_only_where_the_weights_do() {
    let (before, after) = (split(&[90, 10]), split(&[80, 20]));
    let moved: Vec<_> = numbers()
        .filter(|n| chosen(&before, *n) != chosen(&after, *n))
        .collect();
    assert!(moved.len().abs_diff(100) <= 1, "{}", moved.len());
    assert!(moved.iter().all(|n| chosen(&after, *n) == 1));
}

fn fault(fault: &str, per_million: u32, harm: Harm) -> Fault {
    Fault {
        name: fault.into(),
        matches: vec![],
        callers: vec![],
        per_million,
        harm,
        until: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
    }
}

/// What of `faults` meets a request for `/x` at a second, when dice show `dice` of a million.
fn met(faults: Vec<Fault>, second: u64, dice: u32) -> Harms {
    let traffic = Traffic::new(&service(vec![], faults), &name("default/me"), &Counts::default()).expect("valid");
    let none = |_: &str| None;
    let asked = Asked {
        host: None,
        path: "/x",
        query: None,
        method: "GET",
        field: &none,
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    traffic.map_or_else(Harms::default, |t| t.harms(&asked, now, |_| dice))
}

const ABORT: Harm = Harm::Abort { status: 503, grpc: 14 };
const DELAY: Harm = Harm::Delay(Duration::from_secs(1));

#[test]
fn a_fault_ends_at_its_moment_and_meets_its_share() {
    for (second, dice, expected) in [(99, 499, true), (100, 499, false), (99, 500, false)] {
        let harms = met(vec![fault("f", 500, ABORT)], second, dice);
        assert_eq!(harms.abort.is_some(), expected, "{second} {dice}");
    }
    assert!(met(vec![fault("f", 1_000_000, ABORT)], 1, 999_999).abort.is_some());
    assert!(met(vec![fault("f", 0, ABORT)], 1, 0).abort.is_none());
}

#[test]
fn the_first_delay_and_the_first_end_meet_a_request() {
    let faults = vec![
        fault("slow", 1_000_000, DELAY),
        fault("cut", 1_000_000, Harm::ResetAfter(7)),
        fault("abort", 1_000_000, ABORT),
        fault("slower", 1_000_000, Harm::Delay(Duration::from_secs(9))),
        fault("refused", 1_000_000, Harm::RefuseConnection),
    ];
    let harms = met(faults, 1, 0);
    assert_eq!(harms.delay, Some(Duration::from_secs(1)));
    assert_eq!(harms.breaks.map(|(bytes, _)| bytes), Some(7));
    assert_eq!(harms.abort, None);
}

#[test]
fn a_fault_meets_its_callers_and_its_matches_only() {
    let of = |callers: &[&str], path: &str| Fault {
        callers: callers.iter().map(|c| name(c)).collect(),
        matches: vec![Match {
            path: Some(PathMatch::Exact(path.into())),
            ..Match::default()
        }],
        ..fault("f", 1_000_000, ABORT)
    };
    assert!(
        met(vec![of(&["default/other", "default/me"], "/x")], 1, 0)
            .abort
            .is_some()
    );
    assert!(met(vec![of(&["default/other"], "/x")], 1, 0).abort.is_none());
    assert!(met(vec![of(&[], "/y")], 1, 0).abort.is_none());
    let opaque = |faults: Vec<Fault>| {
        let traffic = Traffic::new(&service(vec![], faults), &name("default/me"), &Counts::default());
        let traffic = traffic.expect("valid").expect("faults");
        traffic.harms_opaque(SystemTime::UNIX_EPOCH, |_| 0)
    };
    let refuse = fault("f", 1, Harm::RefuseConnection);
    assert_eq!(
        opaque(vec![fault("f", 1, DELAY), refuse.clone()]),
        (Some(Duration::from_secs(1)), true)
    );
    let matched = Fault {
        matches: vec![Match::default()],
        ..refuse
    };
    assert_eq!(opaque(vec![matched]), (None, false), "it looks at requests");
}

#[test]
fn edits_remove_then_set_then_add() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let edits = Edits::new(&HeaderEdits {
        set: vec![pair("a", "2"), pair("b", "3")],
        add: vec![pair("a", "4"), pair("c", "5")],
        remove: vec!["c".into(), "d".into()],
    });
    let mut headers = HeaderMap::new();
    for (name, value) in [("a", "1"), ("a", "1"), ("c", "1"), ("d", "1"), ("e", "1")] {
        headers.append(name, HeaderValue::from_static(value));
    }
    edits.apply(&mut headers);
    let mut left: Vec<_> = headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.to_str().unwrap_or_default()))
        .collect();
    left.sort_unstable();
    assert_eq!(left, [("a", "2"), ("a", "4"), ("b", "3"), ("c", "5"), ("e", "1")]);
}
