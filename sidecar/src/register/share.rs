//! Shares of rate limits that all instances keep together: what is asked here goes up, what may be let through comes down.
//!
//! Says nothing to a control plane that does not divide. When the stream ends the shares stay as they are.

use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::wire::agent::{Asked, Demand, Shares, up::Body};
use tokio::time::Instant;

use crate::protect::{Quotas, Standing};

/// Between two looks at what is asked.
const EVERY: Duration = Duration::from_secs(1);

/// One workload's side of it.
#[derive(Debug)]
pub(super) struct Sharing {
    quotas: Arc<Quotas>,
    /// When to look next; none while the control plane does not divide or there is nothing to divide.
    due: Option<Instant>,
    /// True while there is a stream to a control plane that divides.
    open: bool,
    /// Number of the last message taken on this stream.
    seen: u64,
    /// As it was said last on this stream.
    said: Vec<Standing>,
}

impl Sharing {
    pub(super) fn new(quotas: Arc<Quotas>) -> Self {
        Self {
            quotas,
            due: None,
            open: false,
            seen: 0,
            said: Vec::new(),
        }
    }

    /// A stream to a control plane that divides. Says what holds here.
    pub(super) fn begin(&mut self) -> Option<Body> {
        self.open = true;
        self.changed()
    }

    /// There is no stream.
    pub(super) fn end(&mut self) {
        (self.open, self.due, self.seen) = (false, None, 0);
        self.said.clear();
    }

    /// When [`measured`](Self::measured) is to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// There may be other limits than before.
    pub(super) fn changed(&mut self) -> Option<Body> {
        if !self.open {
            return None;
        }
        let standing = self.quotas.standing();
        self.due = match (standing.is_empty(), self.due) {
            (true, _) => None,
            (false, None) => Some(Instant::now() + EVERY),
            (false, due) => due,
        };
        (standing != self.said).then(|| self.say(standing))
    }

    /// A second is over. Says what is asked while there is something, and once when there is nothing any more.
    pub(super) fn measured(&mut self) -> Option<Body> {
        let now = Instant::now();
        self.quotas.measure(now.into_std());
        self.due = Some(now + EVERY);
        let standing = self.quotas.standing();
        let news = standing != self.said || standing.iter().any(|s| s.asked > 0);
        news.then(|| self.say(standing))
    }

    /// Lets through what the control plane says, and says so.
    pub(super) fn take(&mut self, shares: &Shares) -> Option<Body> {
        let now = Instant::now().into_std();
        for share in &shares.limits {
            self.quotas.set(&share.limit, share.share, now);
        }
        self.seen = shares.serial;
        let standing = self.quotas.standing();
        self.open.then(|| self.say(standing))
    }

    fn say(&mut self, standing: Vec<Standing>) -> Body {
        let demand = |s: &Standing| Demand {
            limit: s.limit.to_string(),
            asked: s.asked,
            share: s.share,
        };
        let limits = standing.iter().map(demand).collect();
        self.said = standing;
        Body::Asked(Asked {
            limits,
            seen: self.seen,
        })
    }
}
