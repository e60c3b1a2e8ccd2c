//! Identity under a real control plane: rotation, revocation, rules that change, while requests go on.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::{Client, get};
use outrigger_tests::control::Control;
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::{scenarios, wait, world};
use serde_json::{Value, json};

use super::panics::restarted;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        a_rotation_under_load_fails_nothing,
        a_rotation_goes_on_after_a_kill,
        a_revoked_service_is_cut_off_until_it_is_allowed,
        a_rule_that_changes_ends_what_it_forbids,
        a_caller_that_no_rule_names_is_denied_by_name,
        a_panic_in_the_keeping_of_the_certificate_costs_nothing,
    ]
}

const MESH: &str = "service: app\nprotocol: http\nhealth: { tcp: true, every: 200ms }\nallow: [caller]\n---\nservice: caller\ncalls: [app]\n";
const CLOSED: &str = "service: app\nprotocol: http\nhealth: { tcp: true, every: 200ms }\nallow: []\n---\nservice: caller\ncalls: [app]\n";

struct Small {
    app: H1App,
    control: Control,
    workload: Sidecar,
    caller: Sidecar,
}

impl Small {
    async fn start(world: &World) -> Result<Self> {
        let app = H1App::echo().await?;
        let control = Control::start(world, MESH).await?;
        let workload = control.workload(world, "app", 0, app.addr).await?;
        control.wait_endpoints("app", 1).await?;
        let caller = control.caller(world, "app", world.dir().join("state/caller")).await?;
        let small = Self {
            app,
            control,
            workload,
            caller,
        };
        small.answers(200).await?;
        Ok(small)
    }

    async fn answers(&self, status: u16) -> Result<()> {
        let listen = self.caller.listen;
        wait::until(&format!("requests are answered with {status}"), || async move {
            get(listen, "/").await.is_ok_and(|a| a.status() == status)
        })
        .await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<()> {
        let (status, text) = self.control.ask("POST", path, &body.to_string()).await?;
        ensure!((200..300).contains(&status), "{path} answered {status}: {text}");
        Ok(())
    }

    /// Waits until every leaf leads to the root that signs.
    async fn rotated(&self, generation: u64) -> Result<()> {
        let done = async || -> Result<bool> {
            let certs = self.control.json("/v1/certs").await?;
            let issuers: Vec<_> = certs["certs"].as_array().context("no certs")?.iter().collect();
            let rotation = self.control.json("/v1/certs/rotation").await?;
            Ok(rotation["phase"] != "spreading"
                && rotation["generation"].as_u64() >= Some(generation)
                && issuers.iter().all(|c| c["renewals"].as_u64() >= Some(1)))
        };
        wait::until("every leaf is of the new root", || async {
            done().await.unwrap_or(false)
        })
        .await
    }

    fn check_well(&mut self) -> Result<()> {
        self.control.check_well()?;
        self.workload.check_well()?;
        self.caller.check_well()
    }
}

async fn a_rotation_under_load_fails_nothing(world: Arc<World>) -> Result<()> {
    let mut small = Small::start(&world).await?;
    let load = Load::on(small.caller.listen);
    load.wait(200).await?;
    let before = small.control.json("/v1/certs/rotation").await?["generation"]
        .as_u64()
        .unwrap_or(0);
    let began = Instant::now();
    small.post("/v1/certs/rotate", &json!({})).await?;
    small.rotated(before + 1).await?;
    let took = began.elapsed();
    load.wait(200).await?;
    let passed = load.end().await?;
    world::figure(format!(
        "a rotation took {took:?}, {passed} requests passed, none failed"
    ));
    small.check_well()
}

async fn a_rotation_goes_on_after_a_kill(world: Arc<World>) -> Result<()> {
    let mut small = Small::start(&world).await?;
    let load = Load::on(small.caller.listen);
    load.wait(50).await?;
    let before = small.control.json("/v1/certs/rotation").await?["generation"]
        .as_u64()
        .unwrap_or(0);
    small.post("/v1/certs/rotate", &json!({})).await?;
    small.control.kill()?;
    load.wait(200).await?;
    small.control.restart(&world).await?;
    small.rotated(before + 1).await?;
    small.control.kill()?;
    small.control.restart(&world).await?;
    load.wait(200).await?;
    load.end().await?;
    small.check_well()
}

async fn a_revoked_service_is_cut_off_until_it_is_allowed(world: Arc<World>) -> Result<()> {
    let mut small = Small::start(&world).await?;
    for service in ["default/caller", "default/app"] {
        let began = Instant::now();
        small.post("/v1/certs/revoke", &json!({ "service": service })).await?;
        small.answers(503).await?;
        let took = began.elapsed();
        world::figure(format!("revoking {service} took effect after {took:?}"));
        let answer = get(small.caller.listen, "/").await?;
        ensure!(answer.reason().is_some(), "{answer:?}");
        small.post("/v1/certs/allow", &json!({ "service": service })).await?;
        small.answers(200).await?;
    }
    small.check_well()
}

async fn a_rule_that_changes_ends_what_it_forbids(world: Arc<World>) -> Result<()> {
    let mut small = Small::start(&world).await?;
    // A body that is still on its way when the rules change.
    let mut client = Client::connect(small.caller.listen).await?;
    client
        .send("POST /long HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nabc")
        .await?;
    wait::until("the request is with the app", || async {
        small.app.seen.requests() >= 2
    })
    .await?;
    let (status, text) = small.control.apply(CLOSED).await?;
    ensure!(status == 200, "{text}");
    small.answers(403).await?;
    let answer = get(small.caller.listen, "/").await?;
    ensure!(answer.reason() == Some("denied"), "{answer:?}");
    wait::soon("the request under way ends", async {
        let _how = client.end().await;
        Ok(())
    })
    .await?;
    let (status, text) = small.control.apply(MESH).await?;
    ensure!(status == 200, "{text}");
    small.answers(200).await?;
    small.check_well()
}

async fn a_caller_that_no_rule_names_is_denied_by_name(world: Arc<World>) -> Result<()> {
    let mut small = Small::start(&world).await?;
    let (status, text) = small
        .control
        .apply(&MESH.replace(
            "allow: [caller]",
            "allow: [{from: caller, methods: [GET], paths: [\"/open/*\"]}]",
        ))
        .await?;
    ensure!(status == 200, "{text}");
    small.answers(403).await?;
    let open = get(small.caller.listen, "/open/x").await?;
    ensure!(open.status() == 200, "{open:?}");
    for (path, reason) in [
        ("/other", "denied"),
        ("/open/%2e%2e/other", "bad_path"),
        ("/open//x", "bad_path"),
    ] {
        let answer = get(small.caller.listen, path).await?;
        ensure!(answer.reason() == Some(reason), "{path}: {answer:?}");
    }
    let asked = json!({"from": "caller", "to": "app", "method": "GET", "path": "/other"});
    let (status, text) = small
        .control
        .ask("POST", "/v1/access/explain", &asked.to_string())
        .await?;
    ensure!(status == 200 && text.contains("\"allowed\":false"), "{text}");
    small.check_well()
}

async fn a_panic_in_the_keeping_of_the_certificate_costs_nothing(world: Arc<World>) -> Result<()> {
    let mut small = Small::start(&world).await?;
    for n in 1..=2 {
        small.caller.panic("identity").await?;
        restarted(&mut small.caller, n).await?;
        small.answers(200).await?;
    }
    // Whoever keeps the certificate still hears of a new root, and gets a leaf under it.
    let before = small.control.json("/v1/certs/rotation").await?["generation"]
        .as_u64()
        .unwrap_or(0);
    small.post("/v1/certs/rotate", &json!({})).await?;
    small.rotated(before + 1).await?;
    small.answers(200).await?;
    small.caller.process.check_alive()
}
