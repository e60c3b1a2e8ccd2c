//! The queue: who is next, who is shed, and that no place is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proto::model::{Admission, Limit, Priority};

use super::gate::{Gate, Met, Place, Queued, Shed};
use super::{Protection, Sheds, Stats};

fn settings(places: u32, queue: Duration, queue_length: u32) -> Admission {
    Admission {
        limit: Limit::Fixed(places),
        min: 1,
        max: 1000,
        initial: 20,
        queue,
        queue_length,
    }
}

fn gate(places: u32, queue: Duration, queue_length: u32) -> Arc<Gate> {
    let sheds = Sheds::new(&Stats::default());
    Arc::new(Gate::new(settings(places, queue, queue_length), sheds, Instant::now()))
}

fn place(gate: &Arc<Gate>) -> Place {
    match gate.enter(Priority::Normal, Instant::now()) {
        Ok(Met::Place(place)) => place,
        other => panic!("{other:?}"),
    }
}

fn queued(gate: &Arc<Gate>, priority: Priority) -> Queued {
    match gate.enter(priority, Instant::now()) {
        Ok(Met::Queue(queued)) => queued,
        other => panic!("{other:?}"),
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_more_important_goes_first_and_equals_by_arrival() {
    let gate = gate(1, LONG, 10);
    let first = place(&gate);
    let (told, mut order) = tokio::sync::mpsc::channel(4);
    for (name, priority) in [
        ("low", Priority::Low),
        ("normal 1", Priority::Normal),
        ("normal 2", Priority::Normal),
        ("high", Priority::High),
    ] {
        let (queued, told) = (queued(&gate, priority), told.clone());
        tokio::spawn(async move {
            let place = queued.place(priority).await.expect("a place");
            told.send(name).await.expect("somebody listens");
            drop(place);
        });
    }
    assert_eq!(gate.figures(), [1, 1, 4]);
    drop(first);
    for name in ["high", "normal 1", "normal 2", "low"] {
        assert_eq!(order.recv().await, Some(name));
    }
    assert_eq!(gate.figures()[2], 0);
}

#[tokio::test]
async fn a_full_queue_sheds_the_least_important() {
    let gate = gate(1, LONG, 2);
    let first = place(&gate);
    let old = queued(&gate, Priority::Low);
    let young = queued(&gate, Priority::Low);
    let equal = gate.enter(Priority::Low, Instant::now());
    assert!(matches!(equal, Err(Shed::Full)));
    let high = queued(&gate, Priority::High);
    assert_eq!(young.place(Priority::Low).await.expect_err("shed"), Shed::Displaced);
    let normal = queued(&gate, Priority::Normal);
    assert_eq!(old.place(Priority::Low).await.expect_err("shed"), Shed::Displaced);
    let lower = gate.enter(Priority::Normal, Instant::now());
    assert!(matches!(lower, Err(Shed::Full)));
    drop(first);
    drop(high.place(Priority::High).await.expect("a place"));
    drop(normal.place(Priority::Normal).await.expect("a place"));
    assert_eq!(gate.figures(), [1, 0, 0]);
}

#[tokio::test]
async fn whoever_goes_leaves_nothing_behind() {
    let gate = gate(1, Duration::from_millis(20), 10);
    let first = place(&gate);
    drop(queued(&gate, Priority::Normal));
    assert_eq!(gate.figures(), [1, 1, 0]);
    let late = queued(&gate, Priority::Normal);
    assert_eq!(late.place(Priority::Normal).await.expect_err("shed"), Shed::Late);
    // It has a place, and goes before it hears of it.
    let admitted = queued(&gate, Priority::Normal);
    let next = queued(&gate, Priority::Normal);
    drop(first);
    assert_eq!(gate.figures(), [1, 1, 1]);
    drop(admitted);
    drop(next.place(Priority::Normal).await.expect("a place"));
    assert_eq!(gate.figures(), [1, 0, 0]);
}

#[tokio::test]
async fn other_settings_let_in_those_who_wait() {
    let gate = gate(1, LONG, 10);
    let first = place(&gate);
    let (second, third) = (queued(&gate, Priority::Low), queued(&gate, Priority::Low));
    gate.set(settings(2, LONG, 10));
    let second = second.place(Priority::Low).await.expect("a place");
    gate.open();
    let third = third.place(Priority::Low).await.expect("a place");
    let fourth = place(&gate);
    assert_eq!(gate.figures(), [2, 4, 0]);
    drop((first, second, third, fourth));
    assert_eq!(gate.figures(), [2, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn places_are_never_more_than_the_limit_and_none_is_lost() {
    let gate = gate(3, LONG, 1000);
    let inside = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..400_u32 {
        let (gate, inside) = (gate.clone(), inside.clone());
        tasks.spawn(async move {
            let place = match gate.enter(Priority::Normal, Instant::now()).expect("the queue is long") {
                Met::Place(place) => place,
                // Some go away.
                Met::Queue(queued) if n % 7 == 0 => return drop(queued),
                Met::Queue(queued) => queued.place(Priority::Normal).await.expect("a place"),
            };
            let now = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            assert!(now < 3, "{now}");
            tokio::task::yield_now().await;
            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            drop(place.answered(Instant::now(), n % 5 == 0));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    assert_eq!(gate.figures(), [3, 0, 0]);
}

#[test]
fn what_was_counted_goes_on_while_a_limit_stays_the_same() {
    use outrigger_proto::model::{Proxy, RateLimit, RateLimitBy};
    use outrigger_proto::routes::Asked;

    use crate::protect::Quotas;

    let limit = |name: &str, by| RateLimit {
        name: name.into(),
        matches: Vec::new(),
        requests: 1,
        period: Duration::from_secs(3600),
        burst: 1,
        by,
        mesh: false,
    };
    let mut proxy = Proxy::new("default/post".parse().expect("a name"));
    proxy.rate_limits = vec![limit("all", RateLimitBy::Header("x-user".into()))];
    let (stats, now, quotas) = (Stats::default(), Instant::now(), Quotas::new(true));
    let made = |before: Option<&Protection>, proxy: &Proxy| {
        Protection::new(proxy, before, &quotas, &stats, now)
            .expect("valid")
            .expect("some")
    };
    let count = |protection: &Protection, user: &'static str| {
        let field = move |name: &str| (name == "x-user").then_some(user.as_bytes());
        let asked = Asked {
            host: None,
            path: "/",
            query: None,
            method: "GET",
            field: &field,
        };
        protection.count(&asked, None, now)
    };
    let first = made(None, &proxy);
    assert!(count(&first, "a").is_ok());
    assert!(count(&first, "a").is_err_and(|e| &*e.limit == "all"));
    assert!(count(&first, "b").is_ok());
    proxy.rate_limits.push(limit("second", RateLimitBy::All));
    let second = made(Some(&first), &proxy);
    assert!(count(&second, "a").is_err_and(|e| &*e.limit == "all"));
    assert!(count(&second, "c").is_ok());
    // The second limit refuses, and so the first does not count it.
    assert!(count(&second, "d").is_err_and(|e| &*e.limit == "second"));
    proxy.rate_limits.pop();
    assert!(count(&made(Some(&second), &proxy), "d").is_ok());
    proxy.rate_limits.clear();
    let none = Protection::new(&proxy, Some(&second), &quotas, &stats, now).expect("valid");
    assert!(none.is_none(), "nothing is asked for");
}
