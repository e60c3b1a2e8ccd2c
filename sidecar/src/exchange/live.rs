//! What one connection carries at this moment, so that it can be judged again when the rules change.
//!
//! A place in a short list under a lock that only the connection's own worker takes: a request costs
//! two short locks and no allocation. Bounded by the streams that a connection may have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use http::Method;
use http::uri::PathAndQuery;
use parking_lot::Mutex;

/// The requests of one connection that have no end yet.
#[derive(Debug, Default)]
pub struct Live {
    places: Mutex<Places>,
    /// Grows with every review that cut something: a look at it costs no lock.
    cuts: AtomicU32,
}

#[derive(Debug, Default)]
struct Places {
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Somebody waits for the last of them to end.
    emptied: Option<Waker>,
}

#[derive(Debug)]
struct Place {
    method: Method,
    path: PathAndQuery,
    /// Set while somebody waits for the end.
    waker: Option<Waker>,
    cut: bool,
}

/// One request's place; free again when dropped.
#[derive(Debug)]
pub struct Ticket {
    live: Arc<Live>,
    place: usize,
    /// The cuts when it was entered.
    cuts: u32,
}

impl Live {
    /// Enters a request.
    #[must_use]
    pub fn enter(self: &Arc<Self>, method: Method, path: PathAndQuery) -> Ticket {
        let place = Place {
            method,
            path,
            waker: None,
            cut: false,
        };
        let mut all = self.places.lock();
        let index = match all.free.pop() {
            Some(free) => free,
            None => {
                all.places.push(None);
                all.places.len() - 1
            }
        };
        if let Some(slot) = all.places.get_mut(index) {
            *slot = Some(place);
        }
        drop(all);
        Ticket {
            cuts: self.cuts.load(Relaxed),
            live: self.clone(),
            place: index,
        }
    }

    /// Cuts what is `allowed` no longer; how many.
    pub fn review(&self, mut allowed: impl FnMut(&Method, &PathAndQuery) -> bool) -> usize {
        let mut woken = Vec::new();
        let mut cut = 0;
        for place in self.places.lock().places.iter_mut().flatten().filter(|p| !p.cut) {
            if !allowed(&place.method, &place.path) {
                place.cut = true;
                cut += 1;
                woken.extend(place.waker.take());
            }
        }
        if cut > 0 {
            self.cuts.fetch_add(1, Relaxed);
        }
        // Without the lock: whoever wakes looks at its place.
        woken.into_iter().for_each(Waker::wake);
        cut
    }
}

impl Live {
    /// Waits until nothing is live.
    ///
    /// # Cancel safety
    /// Safe; one waits at a time.
    pub async fn emptied(&self) {
        std::future::poll_fn(|cx| {
            let mut all = self.places.lock();
            if all.free.len() == all.places.len() {
                return Poll::Ready(());
            }
            all.emptied = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Ticket {
    /// True when the request is allowed no longer. One load while nothing was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        if self.live.cuts.load(Relaxed) == self.cuts {
            return false;
        }
        let all = self.live.places.lock();
        all.places
            .get(self.place)
            .and_then(Option::as_ref)
            .is_none_or(|p| p.cut)
    }

    /// Ready when the request is allowed no longer.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut all = self.live.places.lock();
        match all.places.get_mut(self.place).and_then(Option::as_mut) {
            Some(place) if !place.cut => {
                match &mut place.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.live.places.lock();
        let gone = all.places.get_mut(self.place).and_then(Option::take);
        all.free.push(self.place);
        let waiting = if all.free.len() == all.places.len() {
            all.emptied.take()
        } else {
            None
        };
        drop(all);
        drop(gone);
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn path(text: &'static str) -> PathAndQuery {
        PathAndQuery::from_static(text)
    }

    #[tokio::test]
    async fn only_what_is_allowed_no_longer_is_cut() {
        let live = Arc::new(Live::default());
        let tickets = ["/a", "/b", "/c"].map(|p| live.enter(Method::GET, path(p)));
        let empty = live.clone();
        let empty = tokio::spawn(async move { empty.emptied().await });
        let [a, b, c] = tickets.map(|ticket| {
            tokio::spawn(async move {
                std::future::poll_fn(|cx| ticket.poll_cut(cx)).await;
            })
        });
        tokio::task::yield_now().await;
        assert_eq!(live.review(|_, path| path != "/b"), 1);
        tokio::time::timeout(Duration::from_secs(5), b)
            .await
            .expect("woken")
            .expect("no panic");
        assert!(!a.is_finished() && !c.is_finished());
        assert_eq!(live.review(|_, path| path != "/b"), 0, "its place is free");
        assert!(!empty.is_finished());
        assert_eq!(live.review(|_, _| false), 2);
        a.await.expect("no panic");
        c.await.expect("no panic");
        empty.await.expect("no panic");
    }

    #[test]
    fn places_are_used_again() {
        let live = Arc::new(Live::default());
        for _ in 0..1000 {
            let first = live.enter(Method::GET, path("/"));
            drop(live.enter(Method::GET, path("/")));
            drop(first);
        }
        assert_eq!(live.places.lock().places.len(), 2);
    }
}
