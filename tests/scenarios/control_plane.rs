//! The real control plane: registration, its death, configuration that changes, a disk that does not work.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::{get, once};
use outrigger_tests::control::Control;
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::{scenarios, wait};

use super::panics::restarted;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        a_healthy_app_is_registered_and_found,
        an_app_that_dies_is_withdrawn,
        an_app_whose_exit_is_reported_is_withdrawn,
        a_sidecar_that_leaves_is_withdrawn_at_once,
        a_killed_sidecar_lapses_with_its_lease,
        a_set_never_becomes_empty_by_expiry_alone,
        traffic_goes_on_without_the_control_plane,
        a_sidecar_starts_from_its_last_good_snapshot,
        a_panic_in_the_writing_of_the_snapshot_loses_none,
        no_endpoint_vanishes_while_the_control_plane_restarts,
        a_service_added_later_is_found,
        wrong_configuration_is_refused_whole,
        a_state_folder_that_cannot_be_written_does_not_stop_a_sidecar,
    ]
}

const MESH: &str =
    "service: app\nprotocol: http\nhealth: { tcp: true, every: 200ms }\n---\nservice: caller\ncalls: [app]\n";

async fn serves(sidecar: &Sidecar) -> Result<()> {
    let listen = sidecar.listen;
    wait::until("a request is answered", || async move {
        get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await
}

struct Small {
    app: H1App,
    control: Control,
    workload: Sidecar,
    caller: Sidecar,
}

/// One app, its sidecar, a caller, a control plane; a request went through.
async fn small(world: &World) -> Result<Small> {
    let app = H1App::echo().await?;
    let control = Control::start(world, MESH).await?;
    let workload = control.workload(world, "app", 0, app.addr).await?;
    control.wait_endpoints("app", 1).await?;
    let caller = control.caller(world, "app", world.dir().join("state/caller")).await?;
    serves(&caller).await?;
    Ok(Small {
        app,
        control,
        workload,
        caller,
    })
}

async fn a_healthy_app_is_registered_and_found(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    let second = H1App::echo().await?;
    let _more = small.control.workload(&world, "app", 1, second.addr).await?;
    small.control.wait_endpoints("app", 2).await?;
    wait::until("the second instance is used", || async {
        get(small.caller.listen, "/").await.is_ok() && second.seen.requests() > 0
    })
    .await?;
    let sidecars = small.control.json("/v1/sidecars").await?.to_string();
    ensure!(
        sidecars.contains("app-0") && sidecars.contains("caller-0"),
        "{sidecars}"
    );
    small.caller.check_well()?;
    small.control.check_well()
}

async fn an_app_that_dies_is_withdrawn(world: Arc<World>) -> Result<()> {
    let small = small(&world).await?;
    small.app.die().await?;
    let gone = small.control.wait_endpoints("app", 0).await;
    if gone.is_err() {
        let health = get(small.workload.admin, "/health").await?.text();
        gone.with_context(|| health)?;
    }
    wait::until("callers are told why", || async {
        let answer = get(small.caller.listen, "/").await;
        answer.is_ok_and(|a| a.status() == 503 && a.reason().is_some())
    })
    .await
}

async fn an_app_whose_exit_is_reported_is_withdrawn(world: Arc<World>) -> Result<()> {
    let small = small(&world).await?;
    // The app answers its probes on, so only the report can end the registration.
    let body = r#"{"state":"exited","code":1}"#;
    let request = format!(
        "POST /workload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = once(small.workload.admin, &request).await?;
    ensure!(answer.status() < 300, "{answer:?}");
    small.control.wait_endpoints("app", 0).await
}

async fn a_sidecar_that_leaves_is_withdrawn_at_once(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    small.workload.process.signal(Signal::SIGTERM)?;
    small.control.wait_endpoints("app", 0).await?;
    let status = small.workload.process.wait(wait::SOON).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn a_killed_sidecar_lapses_with_its_lease(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    let mut others = Vec::new();
    for i in 1..3 {
        others.push(small.control.workload(&world, "app", i, small.app.addr).await?);
    }
    small.control.wait_endpoints("app", 3).await?;
    small.workload.process.kill()?;
    // One of three is no mass death, so its lease ends as every lease does.
    small.control.wait_endpoints("app", 2).await?;
    serves(&small.caller).await
}

async fn a_set_never_becomes_empty_by_expiry_alone(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    let mut second = small.control.workload(&world, "app", 1, small.app.addr).await?;
    small.control.wait_endpoints("app", 2).await?;
    small.workload.process.kill()?;
    second.process.kill()?;
    // All leases lapse at once: the last set stays, and says that it is stale.
    wait::until("the set is marked stale", || async {
        let described = small.control.json("/v1/services/default/app").await;
        described.is_ok_and(|d| d["stale"].is_object())
    })
    .await?;
    ensure!(
        small.control.endpoints("app").await? == 2,
        "the set became empty by expiry"
    );
    small.control.check_well()
}

async fn traffic_goes_on_without_the_control_plane(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    small.control.kill()?;
    let admin = small.caller.admin;
    wait::until("the caller notices", || async move {
        let metrics = get(admin, "/metrics").await.map(|a| a.text()).unwrap_or_default();
        metrics.lines().any(|l| l == "outrigger_control_plane_connected 0")
    })
    .await?;
    for _ in 0..50 {
        ensure!(get(small.caller.listen, "/").await?.status() == 200);
    }
    small.caller.check_well()?;
    small.workload.check_well()
}

async fn a_sidecar_starts_from_its_last_good_snapshot(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    let state = world.dir().join("state/caller");
    wait::until("a snapshot is kept", || async {
        std::fs::read_dir(&state).is_ok_and(|mut files| files.next().is_some())
    })
    .await?;
    small.control.kill()?;
    small.caller.process.signal(Signal::SIGTERM)?;
    small.caller.process.wait(wait::SOON).await?;
    let again = small.control.caller(&world, "app", state).await?;
    serves(&again).await
}

async fn a_panic_in_the_writing_of_the_snapshot_loses_none(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    for n in 1..=2 {
        small.caller.panic("store").await?;
        restarted(&mut small.caller, n).await?;
    }
    let state = world.dir().join("state/caller");
    let second = H1App::echo().await?;
    let _second = small.control.workload(&world, "app", 1, second.addr).await?;
    wait::until("what is new is in the snapshot", || async {
        let kept = std::fs::read_dir(&state).into_iter().flatten().flatten();
        let mut texts = kept.filter_map(|file| std::fs::read(file.path()).ok());
        texts.any(|text| text.windows(5).any(|w| w == b"app-1"))
    })
    .await?;
    serves(&small.caller).await?;
    small.caller.process.check_alive()
}

async fn no_endpoint_vanishes_while_the_control_plane_restarts(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    for _ in 0..3 {
        small.control.restart(&world).await?;
        // From its first answer on it knows the endpoint, and no caller is told otherwise.
        for _ in 0..20 {
            ensure!(small.control.endpoints("app").await? == 1, "the endpoint vanished");
            let answer = get(small.caller.listen, "/").await?;
            ensure!(answer.status() == 200, "{answer:?}");
        }
    }
    let admin = small.caller.admin;
    wait::until("the caller is connected again", || async move {
        let metrics = get(admin, "/metrics").await.map(|a| a.text()).unwrap_or_default();
        metrics.lines().any(|l| l == "outrigger_control_plane_connected 1")
    })
    .await?;
    ensure!(get(small.caller.listen, "/").await?.status() == 200);
    small.control.check_well()
}

async fn a_service_added_later_is_found(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let control = Control::start(&world, "service: caller\n").await?;
    let caller = control.caller(&world, "app", world.dir().join("state/caller")).await?;
    wait::until("the service is unknown", || async {
        get(caller.listen, "/")
            .await
            .is_ok_and(|a| a.status() == 404 && a.reason() == Some("unknown_service"))
    })
    .await?;
    control.write_config(MESH)?;
    let _workload = control.workload(&world, "app", 0, app.addr).await?;
    serves(&caller).await
}

async fn wrong_configuration_is_refused_whole(world: Arc<World>) -> Result<()> {
    let mut small = small(&world).await?;
    let before = small.control.json("/v1/config").await?;
    for (wrong, named) in [
        ("service: app\nprotcol: http\n", "protocol"),
        ("service: app\ntimeout: soon\n", "soon"),
        ("service: app\n---\nservice: app\n", "app"),
        ("service: app\nreplicas: many\n", "many"),
        ("service: [\n", "line"),
    ] {
        let (status, text) = small.control.apply(wrong).await?;
        ensure!(
            status == 422 && text.contains(named) && text.contains("line"),
            "{wrong:?}: {status} {text}"
        );
    }
    ensure!(get(small.caller.listen, "/").await?.status() == 200);
    let after = small.control.json("/v1/config").await?;
    ensure!(before["version"] == after["version"], "{before} became {after}");
    let (status, text) = small.control.apply(&MESH.replace("200ms", "300ms")).await?;
    ensure!(status == 200, "{text}");
    small.control.check_well()
}

async fn a_state_folder_that_cannot_be_written_does_not_stop_a_sidecar(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let control = Control::start(&world, MESH).await?;
    let _workload = control.workload(&world, "app", 0, app.addr).await?;
    // A file where the folder should be: not even root can write below it.
    let file = world.write("occupied", "")?;
    let mut caller = control.forgetful_caller(&world, "app", file.join("state")).await?;
    serves(&caller).await?;
    caller.check_well()?;
    ensure!(
        caller.process.output().to_lowercase().contains("occupied"),
        "it says nothing:\n{}",
        caller.process.output()
    );
    Ok(())
}
