//! The door to the app: a place at once while one is free, else a wait in a bounded queue, the more important first.
//!
//! Taking and giving back a free place costs a few atomic operations and no lock. The queue has a lock, because it is
//! there only while the app has as many requests as it may get, and whoever stands in it waits anyway.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Instant;

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use outrigger_proto::model::{Admission, Priority};
use parking_lot::Mutex;

use super::Sheds;
use crate::policy::admission::Limiter;

/// The door.
#[derive(Debug)]
pub struct Gate {
    limiter: Limiter,
    settings: ArcSwap<Admission>,
    /// Requests in the queue: whoever leaves looks at it before the lock.
    waiting: AtomicU32,
    queue: Mutex<Queue>,
    sheds: Sheds,
}

#[derive(Debug, Default)]
struct Queue {
    /// By priority, the lowest first; each in the order of arrival.
    classes: [VecDeque<Arc<Waiter>>; 3],
    /// Numbers of arrivals.
    next: u64,
    /// Nobody has to wait any more.
    open: bool,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    class: usize,
    since: Instant,
    /// Leaves [`WAITS`] under the queue's lock only.
    state: AtomicU8,
    task: AtomicWaker,
}

const WAITS: u8 = 0;
/// A place was taken for it.
const ADMITTED: u8 = 1;
/// A more important one has its place in the queue.
const DISPLACED: u8 = 2;
/// It came for its place.
const TAKEN: u8 = 3;

/// A place at the app; given back when dropped.
#[derive(Debug)]
pub struct Place {
    held: Held,
    since: Instant,
}

/// A place whose answer has begun; given back when dropped.
#[derive(Debug)]
pub struct Held(Arc<Gate>);

/// A place in the queue; given up when dropped.
#[derive(Debug)]
pub struct Queued {
    gate: Arc<Gate>,
    waiter: Arc<Waiter>,
}

/// Why a request is not handed to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// The queue was full.
    Full,
    /// The queue was full and a more important one came.
    Displaced,
    /// It waited for too long.
    Late,
}

/// What a request meets.
#[derive(Debug)]
pub enum Met {
    /// A free place.
    Place(Place),
    /// A place in the queue.
    Queue(Queued),
}

impl Gate {
    /// With nobody behind it.
    #[must_use]
    pub fn new(settings: Admission, sheds: Sheds, now: Instant) -> Self {
        Self {
            limiter: Limiter::new(&settings, now),
            settings: ArcSwap::from_pointee(settings),
            waiting: AtomicU32::new(0),
            queue: Mutex::default(),
            sheds,
        }
    }

    /// Goes on under other settings.
    pub fn set(&self, settings: Admission) {
        if **self.settings.load() != settings {
            self.limiter.set(&settings);
            self.settings.store(Arc::new(settings));
            self.admit();
        }
    }

    /// Lets everybody in from now on: there is no bound any more.
    pub fn open(&self) {
        let mut queue = self.queue.lock();
        queue.open = true;
        while let Some(waiter) = queue.first() {
            self.limiter.take_more();
            self.waiting.fetch_sub(1, SeqCst);
            waiter.tell(ADMITTED);
        }
    }

    /// A place now, or one in the queue.
    ///
    /// # Errors
    /// When the queue is full of what matters as much.
    pub fn enter(self: &Arc<Self>, priority: Priority, now: Instant) -> Result<Met, Shed> {
        // Nobody goes past those who wait.
        if self.waiting.load(SeqCst) == 0 && self.limiter.take() {
            return Ok(Met::Place(self.place(now)));
        }
        let length = self.settings.load().queue_length as usize;
        let class = class(priority);
        let mut queue = self.queue.lock();
        if queue.open {
            self.limiter.take_more();
            return Ok(Met::Place(self.place(now)));
        }
        // Before a last look: whoever leaves after it sees that somebody waits.
        self.waiting.fetch_add(1, SeqCst);
        if queue.length() == 0 && self.limiter.take() {
            self.waiting.fetch_sub(1, SeqCst);
            return Ok(Met::Place(self.place(now)));
        }
        if queue.length() >= length {
            self.waiting.fetch_sub(1, SeqCst);
            // The youngest of the least important.
            let less = queue.classes.iter_mut().take(class);
            let Some(victim) = less.into_iter().find_map(VecDeque::pop_back) else {
                drop(queue);
                self.sheds.count(priority, Shed::Full);
                return Err(Shed::Full);
            };
            victim.tell(DISPLACED);
        }
        queue.next += 1;
        let waiter = Arc::new(Waiter {
            number: queue.next,
            class,
            since: now,
            state: AtomicU8::new(WAITS),
            task: AtomicWaker::new(),
        });
        if let Some(line) = queue.classes.get_mut(class) {
            line.push_back(waiter.clone());
        }
        drop(queue);
        Ok(Met::Queue(Queued {
            gate: self.clone(),
            waiter,
        }))
    }

    /// Limit, places in use, and requests in the queue.
    #[must_use]
    pub fn figures(&self) -> [u32; 3] {
        [self.limiter.limit(), self.limiter.used(), self.waiting.load(SeqCst)]
    }

    fn place(self: &Arc<Self>, now: Instant) -> Place {
        Place {
            held: Held(self.clone()),
            since: now,
        }
    }

    /// Gives free places to those who wait.
    fn admit(&self) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        while queue.length() > 0 && self.limiter.take() {
            if let Some(waiter) = queue.first() {
                self.waiting.fetch_sub(1, SeqCst);
                waiter.tell(ADMITTED);
            }
        }
    }
}

impl Queue {
    fn length(&self) -> usize {
        self.classes.iter().map(VecDeque::len).sum()
    }

    /// The oldest of the most important.
    fn first(&mut self) -> Option<Arc<Waiter>> {
        self.classes.iter_mut().rev().find_map(VecDeque::pop_front)
    }
}

impl Waiter {
    fn tell(&self, state: u8) {
        self.state.store(state, SeqCst);
        self.task.wake();
    }
}

impl Queued {
    /// Waits for a place, as long as the settings say; what it does not get is counted for `priority`.
    ///
    /// # Errors
    /// When it is shed.
    ///
    /// # Cancel safety
    /// Whoever stops waiting leaves the queue.
    pub async fn place(mut self, priority: Priority) -> Result<Place, Shed> {
        let end = self.waiter.since + self.gate.settings.load().queue;
        let waited = tokio::time::timeout_at(end.into(), std::future::poll_fn(|cx| self.poll(cx))).await;
        let shed = match waited {
            Ok(Ok(place)) => return Ok(place),
            Ok(Err(shed)) => shed,
            Err(_) => Shed::Late,
        };
        self.gate.sheds.count(priority, shed);
        Err(shed)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Place, Shed>> {
        self.waiter.task.register(cx.waker());
        match self.waiter.state.compare_exchange(ADMITTED, TAKEN, SeqCst, SeqCst) {
            Ok(_) => Poll::Ready(Ok(self.gate.place(Instant::now()))),
            Err(DISPLACED) => Poll::Ready(Err(Shed::Displaced)),
            Err(_) => Poll::Pending,
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.waiter.state.load(SeqCst) == TAKEN {
            return;
        }
        let mut queue = self.gate.queue.lock();
        match self.waiter.state.load(SeqCst) {
            // It has a place and did not come for it.
            ADMITTED => {
                drop(queue);
                drop(Held(self.gate.clone()));
            }
            WAITS => {
                let Some(line) = queue.classes.get_mut(self.waiter.class) else {
                    return;
                };
                if let Ok(at) = line.binary_search_by_key(&self.waiter.number, |w| w.number) {
                    line.remove(at);
                    self.gate.waiting.fetch_sub(1, SeqCst);
                }
            }
            _ => {}
        }
    }
}

impl Place {
    /// The answer has begun; the place is kept until it ends.
    #[must_use]
    pub fn answered(self, now: Instant, failed: bool) -> Held {
        let gate = &self.held.0;
        if gate.limiter.answered(&gate.settings.load(), self.since, now, failed) {
            gate.admit();
        }
        self.held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.limiter.give_back();
        self.0.admit();
    }
}

fn class(priority: Priority) -> usize {
    match priority {
        Priority::Low => 0,
        Priority::Normal => 1,
        Priority::High => 2,
    }
}
