//! All that one mesh runs: the control plane and every workload, started, watched and stopped in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::console::Console;
use super::keep::{self, Kept, Launch, Life, Want};
use super::logs::Sink;
use super::reap::Reaper;
use super::state::{Layout, Up};
use super::tokens::Tokens;
use super::workload::{Instance, Row, Workload};

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The mesh's name.
    pub(crate) mesh: String,
    /// What a person may try first.
    pub(crate) hint: Option<String>,
    /// The control plane, where we are to run one.
    pub(crate) control: Option<Launch>,
    /// Where it listens for sidecars.
    pub(crate) control_plane: SocketAddr,
    /// With what the sidecars join, where we are to run a control plane.
    pub(crate) tokens: Option<Tokens>,
    /// The instances.
    pub(crate) instances: Vec<Instance>,
}

/// The control plane's name as a process.
pub(crate) const CONTROL_PLANE: &str = "control-plane";
/// How long the control plane, and a sidecar without its app, may take to end.
const SHORT_GRACE: Duration = Duration::from_secs(3);
/// How long the control plane may take to answer when it starts and stops.
const ANSWERS: Duration = Duration::from_secs(5);
/// How long start-up hopes that a degraded service becomes well.
const DEGRADED: Duration = Duration::from_secs(4);
/// How long the next replica waits for the one before it.
const BACK: Duration = Duration::from_secs(15);
/// How often start-up looks whether all are healthy.
const LOOK: Duration = Duration::from_millis(40);

/// The running mesh.
#[derive(Debug)]
pub(crate) struct Fleet {
    control: Option<Kept>,
    tokens: Option<Tokens>,
    /// The workloads in the order of mesh.yaml.
    pub(crate) workloads: Vec<Arc<Workload>>,
}

impl Fleet {
    /// Sets everything up without starting it.
    pub(crate) fn new(plan: &Plan, layout: &Layout, reaper: &Reaper, console: &Console) -> Self {
        console.introduce(plan.instances.iter().map(|instance| instance.name.as_str()));
        let control = plan.control.clone().map(|launch| {
            let sink = Sink::new(CONTROL_PLANE, &layout.log(CONTROL_PLANE), None, console);
            keep::keep(CONTROL_PLANE, launch, sink, SHORT_GRACE, reaper, console)
        });
        let workloads = plan
            .instances
            .iter()
            .map(|instance| Arc::new(Workload::new(instance.clone(), layout, reaper, console)))
            .collect();
        Self {
            control,
            tokens: plan.tokens.clone(),
            workloads,
        }
    }

    /// Starts the control plane, makes the tokens, then starts all workloads at once, each with its sidecar first.
    ///
    /// # Errors
    /// When there are no tokens; the workloads have been started all the same, as most have joined long ago.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        if let Some(control) = &self.control {
            control.want(Want::Run);
        }
        let joining = match &self.tokens {
            Some(tokens) => tokens.begin(ANSWERS).await,
            None => Ok(()),
        };
        self.each(|workload| async move { workload.start().await }).await;
        joining
    }

    /// Keeps the tokens good. Never returns.
    pub(crate) async fn renew_tokens(&self) {
        match &self.tokens {
            Some(tokens) => tokens.keep().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until every instance is healthy or hopeless, for at most `patience`; tells `progress` how many are healthy.
    pub(crate) async fn settle(&self, patience: Duration, progress: impl Fn(usize, &[Row])) -> Vec<Row> {
        let (until, lenient) = (Instant::now() + patience, Instant::now() + DEGRADED);
        // What a service depends on often appears with it, such as its database.
        let done = |row: &Row| row.health == "ok" || row.hopeless() || (row.healthy() && Instant::now() > lenient);
        loop {
            let rows = self.rows().await;
            progress(rows.iter().filter(|row| row.healthy()).count(), &rows);
            if rows.iter().all(done) || Instant::now() > until || self.broken_control_plane().is_some() {
                return rows;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is known of each instance, asked all at once.
    pub(crate) async fn rows(&self) -> Vec<Row> {
        self.each(|workload| async move { workload.row().await }).await
    }

    /// Restarts a service, an instance or all: services at the same time, the replicas of one after the other, so that
    /// it stays reachable. Names what it restarted.
    pub(crate) async fn restart(&self, wanted: Option<&str>) -> Vec<String> {
        let chosen = |workload: &&Arc<Workload>| {
            wanted.is_none_or(|wanted| workload.instance.service == wanted || workload.instance.name == wanted)
        };
        let mut services: BTreeMap<&str, Vec<Arc<Workload>>> = BTreeMap::new();
        for workload in self.workloads.iter().filter(chosen) {
            services
                .entry(&workload.instance.service)
                .or_default()
                .push(Arc::clone(workload));
        }
        let mut tasks = JoinSet::new();
        for replicas in services.into_values() {
            tasks.spawn(async move {
                let mut restarted = Vec::new();
                for workload in replicas {
                    workload.restart().await;
                    tokio::time::timeout(BACK, back(&workload)).await.ok();
                    restarted.push(workload.instance.name.clone());
                }
                restarted
            });
        }
        let mut restarted = tasks.join_all().await.concat();
        restarted.sort();
        restarted
    }

    /// Stops apps, then sidecars, then the control plane. When `hurry` becomes true, at once.
    pub(crate) async fn stop(&self, mut hurry: watch::Receiver<bool>) {
        let orderly = async {
            self.each(|workload| async move { workload.stop_app(Want::Stop).await })
                .await;
            // Nothing is behind the sidecars any more: a long drain would serve nobody.
            let sidecars = self.each(|workload| async move { workload.stop_sidecar(Want::Stop).await });
            if tokio::time::timeout(SHORT_GRACE, sidecars).await.is_err() {
                self.each(|workload| async move { workload.stop_sidecar(Want::Kill).await })
                    .await;
            }
            if let Some(tokens) = &self.tokens {
                tokio::time::timeout(ANSWERS, tokens.end()).await.ok();
            }
            if let Some(control) = &self.control {
                control.want(Want::Stop);
                control.stopped().await;
            }
        };
        tokio::select! {
            () = orderly => return,
            Ok(_) = hurry.wait_for(|hurry| *hurry) => {}
        }
        self.each(|workload| async move {
            workload.stop_app(Want::Kill).await;
            workload.stop_sidecar(Want::Kill).await;
        })
        .await;
        if let Some(control) = &self.control {
            control.want(Want::Kill);
            control.stopped().await;
        }
    }

    /// The last lines of an instance.
    pub(crate) fn last_lines(&self, instance: &str) -> Vec<String> {
        let found = self
            .workloads
            .iter()
            .find(|workload| workload.instance.name == instance);
        found.map(|workload| workload.last_lines()).unwrap_or_default()
    }

    /// What the control plane said before it ended again and again, when that is so.
    pub(crate) fn broken_control_plane(&self) -> Option<Vec<String>> {
        let control = self.control.as_ref()?;
        let broken = matches!(
            control.seen.borrow().life,
            Life::Ended { looping: true, .. } | Life::Unstartable { .. }
        );
        broken.then(|| control.sink.last_lines())
    }

    /// Keeps `up.json` true: writes it whenever a process starts or ends. Never returns.
    pub(crate) async fn describe(self: Arc<Self>, layout: Layout, mut up: Up, mut ready: watch::Receiver<bool>) {
        let (changed, mut change) = watch::channel(());
        let mut watchers = JoinSet::new();
        let apps = self.workloads.iter().map(|workload| workload.app.seen.clone());
        let sidecars = self
            .workloads
            .iter()
            .filter_map(|workload| Some(workload.sidecar.as_ref()?.seen.clone()));
        for mut seen in apps.chain(sidecars) {
            let changed = changed.clone();
            watchers.spawn(async move {
                while seen.changed().await.is_ok() {
                    changed.send_replace(());
                }
            });
        }
        loop {
            change.borrow_and_update();
            up.ready = *ready.borrow_and_update();
            up.services = self.workloads.iter().map(|workload| workload.entry(&layout)).collect();
            // A full disk makes `ps` less precise; it must not stop the mesh.
            layout.write_up(&up).ok();
            tokio::select! {
                _ = change.changed() => {}
                Ok(()) = ready.changed() => {}
            }
            // Many starts at once are one writing.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn each<T, F>(&self, work: impl Fn(Arc<Workload>) -> F) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for (index, workload) in self.workloads.iter().enumerate() {
            let work = work(Arc::clone(workload));
            tasks.spawn(async move { (index, work.await) });
        }
        let mut done = tasks.join_all().await;
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

async fn back(workload: &Workload) {
    loop {
        let row = workload.row().await;
        if row.healthy() || row.hopeless() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
