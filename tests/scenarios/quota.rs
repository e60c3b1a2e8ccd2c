//! A rate limit of all instances together: three sidecars, the control plane that divides it, and load that moves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::{Client, get};
use outrigger_tests::control::Control;
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::{scenarios, wait};
use tokio::task::JoinSet;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![a_rate_of_all_instances_follows_the_load_and_is_kept]
}

const RATE: f64 = 100.0;
const BURST: f64 = 10.0;
/// Clients in plain come straight to one instance.
const MESH: &str = "
service: app
protocol: http
mode: permissive
health: { tcp: true, every: 200ms }
rate_limits: [{ name: all, rate: 100/s, burst: 10, mesh: true }]
";

/// Clients that ask one instance for more than the whole rate.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Every answer that passed the limit adds to `passed`.
    fn on(addr: SocketAddr, passed: &Arc<AtomicUsize>) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (stop, answered, passed) = (stop.clone(), answered.clone(), passed.clone());
            tasks.spawn(async move {
                let mut client = Client::connect(addr).await?;
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
                    match answer.status() {
                        200 => passed.fetch_add(1, Ordering::SeqCst),
                        429 => 0,
                        _ => anyhow::bail!("{answer:?}"),
                    };
                    answered.fetch_add(1, Ordering::SeqCst);
                    // More would only heat the machine.
                    tokio::time::sleep(Duration::from_millis(4)).await;
                }
                Ok(())
            });
        }
        Self { stop, answered, tasks }
    }

    /// Waits for `more` answers of either kind.
    async fn wait(&self, more: usize) -> Result<()> {
        let goal = self.answered.load(Ordering::SeqCst) + more;
        wait::until("the load goes on", || async {
            self.answered.load(Ordering::SeqCst) >= goal || self.tasks.is_empty()
        })
        .await
    }

    async fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(done) = self.tasks.join_next().await {
            done??;
        }
        Ok(())
    }
}

/// What a sidecar says that it lets through of the limit.
async fn share(sidecar: &Sidecar) -> Result<f64> {
    let stats = sidecar.stats().await?;
    let limit = &stats["shared_limits"][0];
    ensure!(limit["limit"] == "all", "{stats}");
    limit["share"].as_f64().with_context(|| stats.to_string())
}

/// Waits until the shares are such.
async fn until(what: &str, sidecars: &[&Sidecar], such: impl Fn(&[f64]) -> bool) -> Result<()> {
    let read = async || {
        let mut shares = Vec::new();
        for sidecar in sidecars {
            shares.push(share(sidecar).await.unwrap_or_default());
        }
        shares
    };
    let done = wait::until(what, || async { such(&read().await) }).await;
    done.with_context(|| format!("on {}", std::process::id()))?;
    Ok(())
}

async fn connected(sidecar: &Sidecar) -> bool {
    let health = get(sidecar.admin, "/health").await.and_then(|page| page.json());
    health.is_ok_and(|health| health["control_plane"]["connected"] == true)
}

async fn a_rate_of_all_instances_follows_the_load_and_is_kept(world: Arc<World>) -> Result<()> {
    let mut control = Control::start(&world, MESH).await?;
    let (mut apps, mut instances) = (Vec::new(), Vec::new());
    for i in 0..3 {
        let app = H1App::echo().await?;
        instances.push(control.workload(&world, "app", i, app.addr).await?);
        apps.push(app);
    }
    control.wait_endpoints("app", 3).await?;
    let mut first = instances.remove(0);
    let (second, third) = (&instances[0], &instances[1]);
    until("all have a third", &[&first, second, third], |shares| {
        shares.iter().all(|s| (0.3..0.4).contains(s))
    })
    .await?;
    // From here on nobody joins: in any time the rate, one burst, and one request for each instance. A part of a
    // request that passed just before the beginning is counted as well.
    let (begin, passed) = (Instant::now(), Arc::<AtomicUsize>::default());
    let kept = |when: &str| {
        let passed = passed.load(Ordering::SeqCst) as f64;
        let most = begin.elapsed().as_secs_f64() * RATE + BURST + 3.0;
        ensure!(passed <= most, "{passed} passed {when}, at most {most}");
        Ok(())
    };
    let load = Load::on(first.listen, &passed);
    until("the busy one has nearly all of it", &[&first, second, third], |s| {
        s[0] > 0.8 && s[1].min(s[2]) > 0.01
    })
    .await?;
    load.wait(200).await?;
    kept("while one is busy")?;
    load.end().await?;

    // It is killed; its registration lapses, and the others have its share.
    first.process.kill()?;
    let load = Load::on(second.listen, &passed);
    until("the others have the dead one's share", &[second, third], |s| {
        s[0] > 0.8 && s[0] + s[1] > 0.95
    })
    .await?;
    load.wait(200).await?;
    kept("after one was killed")?;
    load.end().await?;

    // Without the control plane the last shares hold, whoever is asked.
    control.kill()?;
    wait::until("both know that they are alone", || async {
        !connected(second).await && !connected(third).await
    })
    .await?;
    let before = (share(second).await?, share(third).await?);
    let load = Load::on(third.listen, &passed);
    load.wait(400).await?;
    ensure!(before == (share(second).await?, share(third).await?), "{before:?}");
    kept("while the control plane is away")?;

    control.restart(&world).await?;
    until("the rate goes where it is asked again", &[second, third], |s| {
        s[1] > 0.8
    })
    .await?;
    load.wait(200).await?;
    kept("at the end")?;
    load.end().await?;
    let page = third.metrics().await?;
    for name in [
        "outrigger_rate_limit_share_millionths",
        "outrigger_rate_limit_asked_total",
    ] {
        ensure!(
            page.contains(&format!("{name}{{limit=\"all\"}}")),
            "no {name} in\n{page}"
        );
    }
    ensure!(apps.len() == 3);
    instances.iter_mut().try_for_each(Sidecar::check_well)
}
