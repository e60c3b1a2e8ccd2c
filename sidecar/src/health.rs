//! Whether the app and what it needs are well, by asking them.
//!
//! The first probe goes at once and the next ones quickly, so that a start takes no longer than the
//! app does; after that at the interval of the Proxy resource, whose changes apply at once. A report
//! that the app exited counts without a probe. Knows nothing of registration or requests.

mod app;
mod dependency;
mod exposed;
mod passing;
mod probe;
#[cfg(test)]
mod tests;
mod tracker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use outrigger_proto::model::Proxy;

pub use app::{App, AppState, Check, Finding, Life};

use crate::contain::{Place, Task};
use crate::shared::Shared;
use tracker::{Tracker, Verdict};

/// Between probes while the app starts.
const QUICK: Duration = Duration::from_millis(50);
/// A start that takes longer is probed at the ordinary interval.
const START: Duration = Duration::from_secs(15);
/// Between looks at where the app listens.
const LOOK: Duration = Duration::from_secs(30);
/// Between checks of what the app needs.
const DEPENDENCIES: Duration = Duration::from_secs(2);

/// Probes the app and its dependencies. Runs until the process ends.
pub async fn run(shared: Arc<Shared>) {
    let mut task = Task::new(Place::Health, shared.stats.clone());
    let mut watched = Watched {
        tracker: Tracker::default(),
        start: shared.app.start(),
        began: Instant::now(),
        looked: None,
    };
    let mut passing = passing::Watched::default();
    while task.again(all(&shared, &mut watched, &mut passing)).await {}
}

async fn all(shared: &Shared, watched: &mut Watched, passing: &mut passing::Watched) {
    tokio::join!(
        watch_app(shared, watched),
        watch_dependencies(shared),
        passing::watch(shared, passing)
    );
}

/// The app as its probes see it, from one of its starts on.
struct Watched {
    tracker: Tracker,
    start: u64,
    began: Instant,
    /// When its listeners were last found to be its own business.
    looked: Option<Looked>,
}

struct Looked {
    at: Instant,
    /// The settings then.
    with: Arc<Proxy>,
}

impl Watched {
    /// Looks at where the app listens: before it counts as well, and now and then afterwards. The system's
    /// table is long on a busy machine.
    async fn exposed(&mut self, shared: &Shared, proxy: &Arc<Proxy>) -> Result<(), String> {
        let fresh = |looked: &Looked| looked.at.elapsed() < LOOK && Arc::ptr_eq(&looked.with, proxy);
        if self.looked.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        self.looked = None;
        exposed::check(shared, proxy).await?;
        self.looked = Some(Looked {
            at: Instant::now(),
            with: proxy.clone(),
        });
        Ok(())
    }
}

async fn watch_app(shared: &Shared, watched: &mut Watched) {
    let mut changes = shared.directory.proxy_changes();
    loop {
        if shared.app.start() != watched.start {
            *watched = Watched {
                tracker: Tracker::default(),
                start: shared.app.start(),
                began: Instant::now(),
                looked: None,
            };
        }
        changes.mark_unchanged();
        let proxy = shared.directory.proxy();
        let life = shared.app.now().life;
        let asked = Instant::now();
        if life != Life::Exited {
            let hinted = shared.app.take_hint();
            let result = match probe::app(&shared.bootstrap, &proxy.health).await {
                Ok(()) => watched.exposed(shared, &proxy).await,
                failed => failed,
            };
            // What began before a restart says nothing about the app after it.
            if shared.app.start() == watched.start {
                let failed = result.is_err();
                if let Some(verdict) = watched.tracker.observe(result, &proxy.health) {
                    shared.app.set(verdict);
                } else {
                    shared.app.checked();
                }
                if failed && hinted && watched.tracker.is_well() {
                    // A refused request and a failed probe agree: ask again at once, not in an interval.
                    shared.app.hint();
                }
            }
        }
        // A probe that is itself slow, such as a command, takes half of the time at most.
        let quick = QUICK.max(asked.elapsed());
        let pause = match life {
            Life::Starting if watched.began.elapsed() < START && !watched.tracker.is_well() => quick,
            _ if shared.app.hinted() => quick,
            _ => proxy.health.interval,
        };
        drop(proxy);
        tokio::select! {
            () = shared.app.nudged() => {}
            // The sender lives in the directory.
            _ = changes.changed() => {}
            () = tokio::time::sleep(pause.max(QUICK)) => {}
        }
    }
}

async fn watch_dependencies(shared: &Shared) {
    let mut changes = shared.directory.proxy_changes();
    loop {
        changes.mark_unchanged();
        let proxy: Arc<Proxy> = shared.directory.proxy();
        let checks = join_all(proxy.depends.iter().map(|d| dependency::check(d, proxy.health.timeout))).await;
        shared.app.set_dependencies(checks);
        let failing = shared.app.now().dependencies.iter().any(|c| !c.ok);
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(if failing { DEPENDENCIES / 4 } else { DEPENDENCIES }) => {}
        }
    }
}

impl From<Verdict> for Life {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Well => Self::Well,
            Verdict::Failing(_) => Self::Failing,
        }
    }
}
