//! Requests in a span of time, exact over all workers, by the generic cell rate algorithm (ITU-T I.371, Annex A): a token
//! bucket whose whole state is one moment, the one at which the bucket will be full again.
//!
//! In any span of length `w` at most `burst + w · rate` requests pass.

use std::time::{Duration, Instant};

use super::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// How fast a bucket fills and how much it holds, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two requests at the full rate; rounded up, so that rounding never lets more through.
    interval: u64,
    /// How far the moment of fullness may lie ahead.
    tolerance: u64,
    burst: u32,
}

impl Rate {
    /// `requests` in `period`, of which `burst` (at least 1) may come at once.
    #[must_use]
    pub fn new(requests: u64, period: Duration, burst: u32) -> Self {
        Self::every(nanos(period).div_ceil(requests.max(1)).max(1), burst)
    }

    fn every(interval: u64, burst: u32) -> Self {
        let burst = burst.max(1);
        Self {
            interval,
            tolerance: interval.saturating_mul(u64::from(burst) - 1),
            burst,
        }
    }

    /// `part` of `whole` of this rate, of the burst too (at least 1).
    #[must_use]
    pub fn part(&self, part: u32, whole: u32) -> Self {
        let (part, whole) = (part.clamp(1, whole.max(1)), whole.max(1));
        // The wide division, which is the slow one, only for rates of less than a few an hour.
        let interval = match self.interval.checked_mul(u64::from(whole)) {
            Some(product) => product.div_ceil(u64::from(part)),
            None => {
                let product = u128::from(self.interval) * u128::from(whole);
                u64::try_from(product.div_ceil(u128::from(part))).unwrap_or(u64::MAX)
            }
        };
        let burst = u64::from(self.burst) * u64::from(part) / u64::from(whole);
        Self::every(interval, u32::try_from(burst).unwrap_or(u32::MAX))
    }

    /// How far ahead the moment of fullness of an empty bucket lies.
    fn empty(&self) -> u64 {
        self.tolerance.saturating_add(self.interval)
    }
}

/// A moment of a set of buckets: nanoseconds since the set began, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(u64);

impl At {
    /// `now`, counted from `began`.
    #[must_use]
    pub fn new(began: Instant, now: Instant) -> Self {
        Self(nanos(now.saturating_duration_since(began)).saturating_add(1))
    }
}

/// One bucket. Full at first.
#[derive(Debug)]
pub struct Bucket {
    /// When it is full again; [`CLOSED`] while it gets another owner.
    full: AtomicU64,
}

/// No moment: half a thousand years after the beginning.
const CLOSED: u64 = u64::MAX;

/// What became of a request at a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Took {
    Yes,
    /// For so many nanoseconds there will be nothing.
    No(u64),
    /// The bucket has no owner at the moment.
    Closed,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            full: AtomicU64::new(0),
        }
    }
}

impl Bucket {
    /// One that holds a single request at `now`, and fills at `rate`.
    #[must_use]
    pub fn scarce(now: At, rate: &Rate) -> Self {
        Self {
            full: AtomicU64::new(now.0.saturating_add(rate.tolerance).min(CLOSED - 1)),
        }
    }

    /// Keeps what it holds, as a number of requests, when another rate begins; at most as many as the new one's burst.
    pub fn change(&self, now: At, old: &Rate, new: &Rate) {
        let mut full = self.full.load(SeqCst);
        while full != CLOSED {
            let held = u128::from(old.empty().saturating_sub(full.saturating_sub(now.0)));
            let held = held * u128::from(new.interval) / u128::from(old.interval);
            let missing = new.empty().saturating_sub(u64::try_from(held).unwrap_or(u64::MAX));
            let next = now.0.saturating_add(missing).min(CLOSED - 1);
            match self.full.compare_exchange_weak(full, next, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(seen) => full = seen,
            }
        }
    }

    /// Takes one.
    ///
    /// # Errors
    /// With how long there will be none.
    pub fn take(&self, now: At, rate: &Rate) -> Result<(), Duration> {
        match self.try_take(now, rate) {
            Took::Yes => Ok(()),
            Took::No(wait) => Err(Duration::from_nanos(wait)),
            Took::Closed => Err(Duration::from_nanos(rate.interval)),
        }
    }

    /// Puts one back that was taken.
    pub fn put_back(&self, rate: &Rate) {
        let mut full = self.full.load(SeqCst);
        while full != CLOSED {
            let less = full.saturating_sub(rate.interval);
            match self.full.compare_exchange_weak(full, less, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(now) => full = now,
            }
        }
    }

    fn try_take(&self, now: At, rate: &Rate) -> Took {
        let mut full = self.full.load(SeqCst);
        loop {
            if full == CLOSED {
                return Took::Closed;
            }
            let from = full.max(now.0);
            if from - now.0 > rate.tolerance {
                return Took::No(from - now.0 - rate.tolerance);
            }
            let next = from.saturating_add(rate.interval).min(CLOSED - 1);
            match self.full.compare_exchange_weak(full, next, SeqCst, SeqCst) {
                Ok(_) => return Took::Yes,
                Err(seen) => full = seen,
            }
        }
    }
}

/// Places for keys that hash alike.
const WAYS: usize = 8;
/// How often another worker is waited for that gives a new key a place: it takes some nanoseconds.
const SPINS: u32 = 100;

/// A bucket for each key, as many keys as there are places.
///
/// A bucket that is full again is worth nothing and its place goes to the next new key. When no place of those that a
/// key may have is worth nothing, new keys share one bucket: whoever invents keys gains nothing by it, and no bucket
/// in use is ever forgotten. A key is its 64-bit hash; two that hash alike share a bucket.
#[derive(Debug)]
pub struct Keyed {
    sets: Box<[Set]>,
    /// Of keys without a place.
    rest: Bucket,
}

#[derive(Debug)]
struct Set {
    /// A worker looks for a place for a new key.
    changing: AtomicBool,
    /// 0: nobody's.
    keys: [AtomicU64; WAYS],
    buckets: [Bucket; WAYS],
}

impl Keyed {
    /// With room for at least `places` keys.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let sets = places.div_ceil(WAYS).next_power_of_two();
        let set = || Set {
            changing: AtomicBool::new(false),
            keys: std::array::from_fn(|_| AtomicU64::new(0)),
            buckets: Default::default(),
        };
        Self {
            sets: std::iter::repeat_with(set).take(sets).collect(),
            rest: Bucket::default(),
        }
    }

    /// Takes one of `key`'s, which is a hash.
    ///
    /// # Errors
    /// With how long there will be none.
    pub fn take(&self, key: u64, now: At, rate: &Rate) -> Result<(), Duration> {
        let key = key.max(1);
        let Some(set) = self.set(key) else {
            return self.rest.take(now, rate);
        };
        for _ in 0..SPINS {
            match set.find(key).or_else(|| set.enter(key, now)) {
                Some(place) => match set.take(place, key, now, rate) {
                    Some(took) => return took,
                    // Another key has the place by now.
                    None => continue,
                },
                None if set.changing.load(SeqCst) => std::hint::spin_loop(),
                None => break,
            }
        }
        self.rest.take(now, rate)
    }

    /// Puts one back that was taken of `key`'s. One taken from the shared bucket is lost.
    pub fn put_back(&self, key: u64, rate: &Rate) {
        let key = key.max(1);
        let place = self.set(key).and_then(|set| set.buckets.get(set.find(key)?));
        if let Some(bucket) = place {
            bucket.put_back(rate);
        }
    }

    fn set(&self, key: u64) -> Option<&Set> {
        // The number of sets is a power of two.
        let index = usize::try_from(key & (self.sets.len() as u64 - 1)).ok()?;
        self.sets.get(index)
    }
}

impl Set {
    fn find(&self, key: u64) -> Option<usize> {
        self.keys.iter().position(|k| k.load(SeqCst) == key)
    }

    /// Gives `key` a place that is worth nothing. None: there is none, or another worker changes the set.
    fn enter(&self, key: u64, now: At) -> Option<usize> {
        if self.changing.swap(true, SeqCst) {
            return None;
        }
        // It may have got one since it was looked for.
        let place = self.find(key).or_else(|| {
            let mut places = self.buckets.iter().enumerate();
            places.find_map(|(i, bucket)| {
                let full = bucket.full.load(SeqCst);
                // Closed first: who has found the old key and takes from the bucket now must see that it is gone.
                let idle = full <= now.0 && bucket.full.compare_exchange(full, CLOSED, SeqCst, SeqCst).is_ok();
                idle.then(|| {
                    if let Some(slot) = self.keys.get(i) {
                        slot.store(key, SeqCst);
                    }
                    bucket.full.store(0, SeqCst);
                    i
                })
            })
        });
        self.changing.store(false, SeqCst);
        place
    }

    /// None when the place has another key.
    fn take(&self, place: usize, key: u64, now: At, rate: &Rate) -> Option<Result<(), Duration>> {
        let took = self.buckets.get(place)?.try_take(now, rate);
        // What was taken from another key's bucket is that key's loss, never somebody's gain.
        if self.keys.get(place)?.load(SeqCst) != key {
            return None;
        }
        match took {
            Took::Yes => Some(Ok(())),
            Took::No(wait) => Some(Err(Duration::from_nanos(wait))),
            Took::Closed => None,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}
