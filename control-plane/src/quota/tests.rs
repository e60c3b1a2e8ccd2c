//! The division, and each rule of the book.

use proptest::prelude::*;

use super::*;

const WHOLE: u32 = RateLimit::WHOLE;
const PATIENCE: Millis = 1000;

#[test]
fn who_asks_gets_and_the_rest_is_spread() {
    let cases: [(&[u32], &[u32]); 6] = [
        (&[], &[]),
        (&[0], &[1_000_000]),
        (&[0, 0, 0], &[333_334, 333_333, 333_333]),
        // One busy, two idle: a thirtieth each is left to those.
        (&[2_000_000, 0, 0], &[933_334, 33_333, 33_333]),
        (&[u32::MAX, u32::MAX, 80_000], &[450_000, 450_000, 100_000]),
        (&[400_000, 0], &[725_000, 275_000]),
    ];
    for (asked, shares) in cases {
        assert_eq!(divide(WHOLE, asked), shares, "{asked:?}");
    }
}

proptest! {
    #[test]
    fn a_division_gives_all_of_it_and_nobody_takes_what_others_want(
        total in 1..=WHOLE,
        asked in prop::collection::vec(prop_oneof![Just(0), 0..WHOLE, any::<u32>()], 1..200),
    ) {
        let shares = divide(total, &asked);
        prop_assert_eq!(shares.iter().map(|s| u64::from(*s)).sum::<u64>(), u64::from(total));
        let n = u32::try_from(asked.len()).expect("few");
        for (asked, share) in asked.iter().zip(&shares) {
            prop_assert!(*share >= total / 10 / n);
            let wanted = u64::from(*asked) * 5 / 4;
            prop_assert!(u64::from(*share) >= wanted.min(u64::from(total / n)));
        }
        // Who asks for more never gets less, but for rounding.
        for (a, x) in asked.iter().zip(&shares) {
            for (b, y) in asked.iter().zip(&shares) {
                prop_assert!(a <= b || x + 1 >= *y, "{} for {}, {} for {}", x, a, y, b);
            }
        }
    }
}

fn service() -> ServiceName {
    "default/user".parse().expect("valid")
}

fn sender(instance: usize, session: SessionId) -> Sender {
    Sender {
        name: format!("default/user/u{instance}").parse().expect("valid"),
        epoch: 1,
        session,
    }
}

fn members(instances: impl IntoIterator<Item = usize>) -> BTreeMap<ServiceName, BTreeSet<EndpointName>> {
    let names = instances.into_iter().map(|i| sender(i, 0).name).collect();
    BTreeMap::from([(service(), names)])
}

fn says(limit: &str, asked: u32, share: u32, seen: u64) -> agent::Asked {
    agent::Asked {
        limits: vec![agent::Demand {
            limit: limit.into(),
            asked,
            share,
        }],
        seen,
    }
}

fn book(by_key: bool) -> Book {
    let mut book = Book::new(PATIENCE);
    book.set([(service(), "all".to_owned(), by_key)]);
    book
}

/// Whom a turn tells what, by number of the instance.
fn told(tells: &[Tell]) -> BTreeMap<usize, u32> {
    let one = |tell: &Tell| {
        let number = tell.to.to_string().rsplit_once('u').and_then(|(_, n)| n.parse().ok());
        (number.expect("a number"), tell.shares.limits[0].share)
    };
    tells.iter().map(one).collect()
}

/// What a turn tells is taken and said by everybody at once, with what each is asked.
fn settle(book: &mut Book, now: Millis, registered: &[usize], asked: &BTreeMap<usize, u32>) -> BTreeMap<usize, u32> {
    let mut told_last = BTreeMap::new();
    for _ in 0..4 {
        let tells = book.turn(now, &members(registered.iter().copied()), false);
        for tell in &tells {
            let (number, share) = told(std::slice::from_ref(tell)).pop_first().expect("one");
            let seen = tell.shares.serial;
            let of = asked.get(&number).copied().unwrap_or_default();
            book.hear(now, &sender(number, tell.session), &says("all", of, share, seen));
            told_last.insert(number, share);
        }
    }
    told_last
}

#[test]
fn a_busy_instance_gets_what_idle_ones_give_up_and_only_then() {
    let mut book = book(false);
    let everyone = members(0..3);
    for i in 0..3 {
        book.hear(0, &sender(i, 9), &says("all", 0, RateLimit::START, 0));
    }
    assert_eq!(
        told(&book.turn(0, &everyone, false)),
        [(0, 333_334), (1, 333_333), (2, 333_333)].into()
    );
    let seen = 1;
    book.hear(0, &sender(0, 9), &says("all", 3_000_000, 333_334, seen));
    // Two have not said that they took it, so nothing is known to be free and nothing more is on its way to them.
    assert_eq!(told(&book.turn(0, &everyone, false)), BTreeMap::new());
    for i in 1..3 {
        book.hear(0, &sender(i, 9), &says("all", 0, 333_333, seen));
    }
    assert_eq!(told(&book.turn(0, &everyone, false)), [(1, 33_333), (2, 33_333)].into());
    assert_eq!(told(&book.turn(0, &everyone, false)), BTreeMap::new());
    book.hear(0, &sender(1, 9), &says("all", 0, 33_333, 4));
    // What one gave up, and a millionth that rounding left over before.
    let first = told(&book.turn(0, &everyone, false));
    assert_eq!(first.keys().copied().collect::<Vec<_>>(), [0]);
    assert!((633_332..=633_336).contains(&first[&0]), "{first:?}");
}

#[test]
fn one_lost_sight_of_keeps_its_share_while_it_is_registered() {
    let mut book = book(false);
    for i in 0..2 {
        book.hear(0, &sender(i, 9), &says("all", 500_000, 500_000, 0));
    }
    book.close(&sender(1, 9));
    book.hear(0, &sender(0, 9), &says("all", 5_000_000, 500_000, 0));
    let busy = BTreeMap::from([(0, 5_000_000)]);
    assert_eq!(settle(&mut book, 0, &[0, 1], &busy), BTreeMap::new());
    assert_eq!(settle(&mut book, 0, &[0], &busy), [(0, WHOLE)].into());
    // It comes back with what it had; the other one's share is free only when it is given up.
    book.hear(0, &sender(1, 10), &says("all", 500_000, 500_000, 0));
    assert_eq!(told(&book.turn(0, &members(0..2), false)).get(&0), Some(&500_000));
}

#[test]
fn one_that_leaves_is_counted_as_long_as_it_is_heard_of() {
    let mut book = book(false);
    for i in 0..2 {
        book.hear(0, &sender(i, 9), &says("all", 900_000, 500_000, 0));
    }
    book.hear(500, &sender(1, 9), &says("all", 900_000, 500_000, 0));
    assert_eq!(told(&book.turn(PATIENCE, &members([0]), false)), BTreeMap::new());
    assert_eq!(
        told(&book.turn(500 + PATIENCE, &members([0]), false)),
        [(0, WHOLE)].into()
    );
}

#[test]
fn just_after_a_start_nothing_is_given_out_that_somebody_may_hold() {
    let mut book = book(false);
    let everyone = members(0..3);
    assert_eq!(book.turn(0, &everyone, true), []);
    book.hear(0, &sender(0, 1), &says("all", 5_000_000, 300_000, 0));
    book.hear(0, &sender(1, 2), &says("all", 0, 100_000, 0));
    assert_eq!(book.turn(0, &everyone, true), []);
    // Whoever is silent for longer than that does not know the limit, and will begin with a tenth.
    assert_eq!(
        told(&book.turn(0, &everyone, false)),
        [(0, 800_000), (1, 45_000)].into()
    );
    book.hear(0, &sender(2, 3), &says("all", 0, 100_000, 0));
    assert_eq!(told(&book.turn(0, &everyone, true)), [(2, 33_333)].into());
}

#[test]
fn a_hostile_sidecar_gets_an_equal_part_and_takes_nothing() {
    let mut book = book(false);
    for i in 0..2 {
        book.hear(0, &sender(i, 9), &says("all", 600_000, 500_000, 0));
    }
    // Numbers as large as there are, a share that nobody gave it, names that are not there, another service.
    let mut lie = says("all", u32::MAX, u32::MAX, u64::MAX);
    lie.limits.push(lie.limits[0].clone());
    lie.limits[1].limit = "other".into();
    book.hear(0, &sender(1, 9), &lie);
    let mut other = sender(1, 9);
    other.name = "default/other/u1".parse().expect("valid");
    book.hear(0, &other, &lie);
    // It is told again what it has, and the other keeps its own.
    assert_eq!(told(&book.turn(0, &members(0..2), false)), [(1, 500_000)].into());
    book.close(&sender(1, 8));
    book.hear(0, &sender(1, 8), &says("all", 0, 1, 9));
    assert_eq!(told(&book.turn(0, &members(0..2), false)), BTreeMap::new());
}

#[test]
fn limits_by_key_are_divided_equally_and_a_limit_that_goes_is_forgotten() {
    let mut keyed = book(true);
    for i in 0..4 {
        keyed.hear(0, &sender(i, 9), &says("all", u32::MAX / (1 + i as u32), 100_000, 0));
    }
    let tells = keyed.turn(0, &members(0..4), false);
    assert_eq!(told(&tells).into_values().collect::<Vec<_>>(), [250_000; 4]);
    // What could not be told is told again.
    tells.iter().for_each(|tell| keyed.untold(tell));
    assert_eq!(told(&keyed.turn(0, &members(0..4), false)).len(), 4);
    keyed.set([(service(), "another".to_owned(), true)]);
    keyed.hear(0, &sender(0, 9), &says("all", 1, 1, 9));
    assert_eq!(keyed.turn(0, &members(0..4), false), []);
    keyed.set([]);
    assert_eq!(keyed.services(), []);
}
