//! The app's state, shared: written by probes and by the supervisor's reports, watched by others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::tracker::Verdict;

/// Where the app is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Not seen well since its start.
    Starting,
    /// Its probe passes.
    Well,
    /// Its probe fails.
    Failing,
    /// Its process ended.
    Exited,
}

impl Life {
    /// The word people see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Well => "well",
            Self::Failing => "failing",
            Self::Exited => "exited",
        }
    }
}

/// What is known of the app at one moment.
#[derive(Debug, Clone)]
pub struct AppState {
    /// Where it is in its life.
    pub life: Life,
    /// Why it is not well; empty when it is.
    pub reason: String,
    /// Since when `life` is what it is.
    pub since: Instant,
    /// When a probe last ended.
    pub checked: Option<Instant>,
    /// What it needs, in the order of the Proxy resource.
    pub dependencies: Vec<Check>,
    /// Counts starts: a report that the app started begins another.
    pub start: u64,
    /// Its process, when the supervisor said so.
    pub pid: Option<u32>,
    /// What is well enough and could be better.
    pub findings: Vec<Finding>,
}

impl AppState {
    /// True when requests may be sent to the app.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.life == Life::Well
    }
}

/// One thing that the app needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// As people call it.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// Why not; empty when it is.
    pub reason: String,
    /// When it was looked at.
    pub at: Instant,
}

/// Something that a person should look into; the app gets its requests all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name, for programs.
    pub name: &'static str,
    /// What was found and what helps.
    pub says: String,
    /// Since when.
    pub at: Instant,
}

/// The app's state; safe to use from any thread.
#[derive(Debug)]
pub struct App {
    state: watch::Sender<AppState>,
    nudge: Notify,
    hint: AtomicBool,
}

impl Default for App {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(AppState {
                life: Life::Starting,
                reason: "not probed yet".into(),
                since: Instant::now(),
                checked: None,
                dependencies: Vec::new(),
                start: 0,
                pid: None,
                findings: Vec::new(),
            }),
            nudge: Notify::new(),
            hint: AtomicBool::new(false),
        }
    }
}

impl App {
    /// The state now.
    #[must_use]
    pub fn now(&self) -> AppState {
        self.state.borrow().clone()
    }

    /// A receiver of changes; ages alone are no change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<AppState> {
        self.state.subscribe()
    }

    /// The data path says whether the app just took a connection. Never blocks; a refusal makes the
    /// next probe come at once.
    pub fn reachable_hint(&self, reachable: bool) {
        // Under load every request may say so: one is enough.
        if !reachable && !self.hint.swap(true, Ordering::Relaxed) {
            self.nudge.notify_one();
        }
    }

    /// The supervisor says that the app runs: it is probed at once, and afresh when it is a new
    /// process. The same process may be reported again, or for the first time after it was found well.
    pub fn started(&self, pid: Option<u32>) {
        self.state.send_if_modified(|s| {
            let first = s.pid.is_none() || pid.is_none() || s.pid == pid;
            if first && s.life != Life::Exited {
                s.pid = pid.or(s.pid);
                return false;
            }
            s.start += 1;
            s.pid = pid;
            s.life = Life::Starting;
            s.reason = "started, not probed yet".into();
            s.since = Instant::now();
            true
        });
        self.nudge.notify_one();
    }

    /// The supervisor says that the app ended: it is not well from now on, without a probe.
    pub fn exited(&self, code: Option<i32>, signal: Option<i32>) {
        let reason = match (code, signal) {
            (_, Some(signal)) => format!("the app was ended by signal {signal}"),
            (Some(code), None) => format!("the app exited with code {code}"),
            (None, None) => "the app exited".into(),
        };
        self.state.send_modify(|s| {
            s.pid = None;
            s.life = Life::Exited;
            s.reason = reason;
            s.since = Instant::now();
        });
        self.nudge.notify_one();
    }

    pub(super) fn start(&self) -> u64 {
        self.state.borrow().start
    }

    /// Takes over a probe's verdict, unless the supervisor knows better.
    pub(super) fn set(&self, verdict: Verdict) {
        self.state.send_if_modified(|s| {
            s.checked = Some(Instant::now());
            if s.life == Life::Exited {
                return false;
            }
            let reason = match &verdict {
                Verdict::Well => String::new(),
                Verdict::Failing(reason) => reason.clone(),
            };
            // An app that starts is not failing yet; the reason says what it lacks.
            let life = match (s.life, Life::from(verdict)) {
                (Life::Starting, Life::Failing) => Life::Starting,
                (_, life) => life,
            };
            let changed = s.life != life || s.reason != reason;
            if s.life != life {
                s.since = Instant::now();
            }
            s.life = life;
            s.reason = reason;
            changed
        });
    }

    pub(super) fn checked(&self) {
        self.state.send_if_modified(|s| {
            s.checked = Some(Instant::now());
            false
        });
    }

    pub(super) fn set_dependencies(&self, checks: Vec<Check>) {
        self.state.send_if_modified(|s| {
            let same = s.dependencies.len() == checks.len()
                && s.dependencies
                    .iter()
                    .zip(&checks)
                    .all(|(a, b)| (&a.name, a.ok, &a.reason) == (&b.name, b.ok, &b.reason));
            s.dependencies = checks;
            !same
        });
    }

    /// Adds or replaces the finding `name`; none takes it away. Nobody is woken: it changes nothing for callers.
    pub(super) fn find(&self, name: &'static str, says: Option<String>) {
        self.state.send_if_modified(|s| {
            s.findings.retain(|finding| finding.name != name);
            let at = Instant::now();
            s.findings.extend(says.map(|says| Finding { name, says, at }));
            false
        });
    }

    pub(super) fn take_hint(&self) -> bool {
        self.hint.swap(false, Ordering::Relaxed)
    }

    pub(super) fn hint(&self) {
        self.hint.store(true, Ordering::Relaxed);
    }

    pub(super) fn hinted(&self) -> bool {
        self.hint.load(Ordering::Relaxed)
    }

    /// Waits until somebody wants a probe now.
    pub(super) async fn nudged(&self) {
        self.nudge.notified().await;
    }
}
