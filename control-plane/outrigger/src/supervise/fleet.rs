//! All that one mesh runs: the control plane and every workload, started, watched and stopped in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::back::Site;
use super::keep::{self, Kept, Launch, Life, Want};
use super::logs::Sink;
use super::plan::Again;
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
    /// How to plan further instances; none: nothing can be restarted.
    pub(crate) again: Option<Again>,
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
pub(crate) const DEGRADED: Duration = Duration::from_secs(4);
/// How often start-up looks whether all are healthy.
const LOOK: Duration = Duration::from_millis(40);

/// The running mesh.
#[derive(Debug)]
pub(crate) struct Fleet {
    control: Option<Kept>,
    tokens: Option<Tokens>,
    /// In the order of mesh.yaml; who takes another's place stands behind it meanwhile.
    workloads: watch::Sender<Vec<Arc<Workload>>>,
    /// No workload is added any more.
    stopping: watch::Sender<bool>,
    /// How to plan further instances.
    pub(crate) again: Option<Again>,
    /// One restart at a time.
    pub(crate) restarting: tokio::sync::Mutex<()>,
}

impl Fleet {
    /// Sets everything up without starting it.
    pub(crate) fn new(plan: Plan, site: &Site) -> Self {
        let Site {
            layout,
            reaper,
            console,
            ..
        } = site;
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
            tokens: plan.tokens,
            workloads: watch::Sender::new(workloads),
            stopping: watch::Sender::new(false),
            again: plan.again,
            restarting: tokio::sync::Mutex::default(),
        }
    }

    /// All that run now.
    pub(crate) fn workloads(&self) -> Vec<Arc<Workload>> {
        self.workloads.borrow().clone()
    }

    /// Takes a workload in behind `old`, unless everything stops.
    pub(crate) fn add(&self, old: &Arc<Workload>, new: Arc<Workload>) -> bool {
        if *self.stopping.borrow() {
            return false;
        }
        self.workloads.send_modify(|all| {
            let place = all.iter().position(|one| Arc::ptr_eq(one, old));
            all.insert(place.map_or(all.len(), |place| place + 1), new);
        });
        true
    }

    /// Forgets a workload that has stopped.
    pub(crate) fn remove(&self, workload: &Arc<Workload>) {
        self.workloads
            .send_modify(|all| all.retain(|one| !Arc::ptr_eq(one, workload)));
    }

    /// Waits until everything stops.
    pub(crate) async fn stopping(&self) {
        self.stopping.subscribe().wait_for(|stopping| *stopping).await.ok();
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

    /// Stops apps, then sidecars, then the control plane. When `hurry` becomes true, at once.
    pub(crate) async fn stop(&self, mut hurry: watch::Receiver<bool>) {
        self.stopping.send_replace(true);
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
        let all = self.workloads.borrow();
        let found = all.iter().find(|workload| workload.instance.name == instance);
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
        let mut list = self.workloads.subscribe();
        let (mut watchers, mut renewed) = (JoinSet::new(), true);
        loop {
            change.borrow_and_update();
            up.ready = *ready.borrow_and_update();
            // Also while something else was awaited.
            renewed |= list.has_changed().unwrap_or(false);
            let workloads = list.borrow_and_update().clone();
            if std::mem::take(&mut renewed) {
                watchers.abort_all();
                let apps = workloads.iter().map(|workload| workload.app.seen.clone());
                let sidecars = workloads
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
            }
            while watchers.try_join_next().is_some() {}
            up.services = workloads.iter().map(|workload| workload.entry(&layout)).collect();
            // A full disk makes `ps` less precise; it must not stop the mesh.
            layout.write_up(&up).ok();
            tokio::select! {
                _ = change.changed() => {}
                Ok(()) = ready.changed() => {}
                Ok(()) = list.changed() => renewed = true,
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
        for (index, workload) in self.workloads().into_iter().enumerate() {
            let work = work(workload);
            tasks.spawn(async move { (index, work.await) });
        }
        let mut done = tasks.join_all().await;
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}
