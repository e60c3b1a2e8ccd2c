//! One thread signs, and those who renew go first. The queue has a bound; a full one refuses.
//!
//! Signing waits for the disk, so it has a thread of its own, and a crowd that joins does not keep
//! those whose certificates end from renewing them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::issue::{Checked, Granted};
use super::{Authority, Refusal, Unix, clock};

/// Requests that may wait, of each kind.
const ROOM: usize = 512;

struct Job {
    now: Unix,
    checked: Checked,
    reply: oneshot::Sender<Result<Granted, Refusal>>,
}

#[derive(Default)]
struct Waiting {
    renewals: VecDeque<Job>,
    others: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

/// The way to the thread. Dropping it ends the thread; what waits is refused.
pub(super) struct Queue {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    pub(super) fn start(authority: Arc<Authority>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let sign = move || while sign_one(&theirs, &authority) {};
        let thread = std::thread::Builder::new().name("identity".into()).spawn(sign)?;
        let thread = Some(thread);
        Ok(Self { shared, thread })
    }

    /// Has `checked` granted. Cancel safe: what was not begun when the caller is gone is left.
    ///
    /// # Errors
    /// When the queue is full, or it is refused.
    pub(super) async fn grant(&self, now: Unix, checked: Checked) -> Result<Granted, Refusal> {
        let (reply, granted) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting.lock();
            let queue = match checked.is_renewal() {
                true => &mut waiting.renewals,
                false => &mut waiting.others,
            };
            if queue.len() >= ROOM {
                queue.retain(|job| !job.reply.is_closed());
            }
            if queue.len() >= ROOM {
                return Err(Refusal::Busy);
            }
            queue.push_back(Job { now, checked, reply });
        }
        self.shared.arrived.notify_one();
        granted.await.unwrap_or(Err(Refusal::Busy))
    }
}

/// False when the queue is closed.
fn sign_one(shared: &Shared, authority: &Authority) -> bool {
    let job = {
        let mut waiting = shared.waiting.lock();
        loop {
            if waiting.closed {
                return false;
            }
            let next = waiting.renewals.pop_front();
            match next.or_else(|| waiting.others.pop_front()) {
                Some(job) => break job,
                None => shared.arrived.wait(&mut waiting),
            }
        }
    };
    if job.reply.is_closed() {
        return true;
    }
    // It may have waited; a clock that was set back meanwhile says nothing.
    let now = clock().max(job.now);
    let grant = || authority.grant(now, &job.checked);
    // A panic costs this request and not the thread.
    let granted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(grant));
    let granted = granted.unwrap_or_else(|_| Err(Refusal::Signing("a fault in the control plane".into())));
    // Whoever asked may be gone; the certificate then is as good as lost.
    let _gone = job.reply.send(granted).is_err();
    true
}

impl Drop for Queue {
    fn drop(&mut self) {
        {
            let mut waiting = self.shared.waiting.lock();
            waiting.closed = true;
            waiting.renewals.clear();
            waiting.others.clear();
        }
        self.shared.arrived.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to say here.
            let _panicked = thread.join().is_err();
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}
