//! Leaving in order: out of the registry, then no new work, then the end.
//!
//! Holds the phase and nothing else; rooms watch it. Knows no room.

use std::time::Duration;

use tokio::sync::watch;

/// How far the sidecar has left. Grows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Out of the registry; requests of callers that do not know yet are served.
    Leaving,
    /// Callers' connections are told to go: GOAWAY, `Connection: close`.
    Closing,
    /// No caller is connected any more. What the app calls goes on, as it may be at work for a caller until here.
    Quiet,
    /// The app's own connections are told to go.
    Parting,
    /// The deadline passed; what is open is cut.
    Ended,
}

/// The phase, shared by every thread.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
        }
    }
}

impl Phase {
    /// The word people see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Closing => "closing",
            Self::Quiet => "quiet",
            Self::Parting => "parting",
            Self::Ended => "ended",
        }
    }
}

impl Drain {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }

    /// A receiver of changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Waits until at least `phase`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn reached(&self, phase: Phase) {
        let mut watch = self.phase.subscribe();
        // The sender lives in self, so this cannot fail while we wait.
        drop(watch.wait_for(|now| *now >= phase).await);
    }

    /// Walks through all phases: leave, keep serving for `delay`, close, wait until somebody says that it is quiet and
    /// then for `idle`, both within `deadline`, end. Who was told to leave before knows when callers knew: no delay.
    pub async fn run(&self, delay: Duration, deadline: Duration, idle: impl Future<Output = ()>) {
        if self.phase() == Phase::Serving {
            self.advance(Phase::Leaving);
            tokio::time::sleep(delay).await;
        }
        self.advance(Phase::Closing);
        let empty = async {
            self.reached(Phase::Quiet).await;
            self.advance(Phase::Parting);
            idle.await;
        };
        drop(tokio::time::timeout(deadline, empty).await);
        self.advance(Phase::Ended);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test(start_paused = true)]
    async fn who_was_told_to_leave_before_does_not_wait_again() {
        let (drain, begun) = (Drain::default(), Instant::now());
        drain.advance(Phase::Leaving);
        let quiet = async {
            drain.reached(Phase::Closing).await;
            drain.advance(Phase::Quiet);
        };
        tokio::join!(drain.run(DAY, DAY, std::future::ready(())), quiet);
        assert_eq!((drain.phase(), begun.elapsed().as_secs()), (Phase::Ended, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_app_calls_goes_on_until_callers_are_gone() {
        let (drain, begun) = (Drain::default(), Instant::now());
        let run = drain.run(Duration::ZERO, DAY, std::future::pending());
        let callers = async {
            drain.reached(Phase::Closing).await;
            tokio::time::sleep(DAY / 2).await;
            assert_eq!(drain.phase(), Phase::Closing);
            drain.advance(Phase::Quiet);
            drain.reached(Phase::Parting).await;
            assert_eq!(begun.elapsed().as_secs(), DAY.as_secs() / 2);
        };
        tokio::join!(run, callers);
        assert_eq!(begun.elapsed().as_secs(), DAY.as_secs(), "one deadline for both");
    }
}
