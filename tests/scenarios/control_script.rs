//! What a sidecar does with a control plane that sends nonsense: refuses it by name and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use outrigger_proto::wire::mesh;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::client::get;
use outrigger_tests::control_script::{Script, raw_resource, resource, response};
use outrigger_tests::mesh::{PORT, Sidecar, start};
use outrigger_tests::{ports, scenarios, wait};
use prost::Message as _;
use serde_json::json;
use std::net::SocketAddr;

pub(crate) fn tests() -> Vec<Trial> {
    scenarios![
        a_truncated_resource_is_refused_by_name_and_the_last_good_stays,
        a_bad_resource_blocks_no_other,
        an_unknown_field_that_must_be_understood_is_refused_by_number,
        a_late_message_of_an_older_epoch_changes_nothing,
        an_empty_collection_is_complete,
        a_removed_service_is_unknown,
        a_type_nobody_knows_does_no_harm,
        bytes_that_are_no_message_do_no_harm,
    ]
}

fn service(name: &str) -> Resource {
    let message = mesh::Service {
        name: name.to_owned(),
        ports: vec![mesh::Port {
            name: PORT.to_owned(),
            protocol: mesh::Protocol::Http as i32,
        }],
        ..Default::default()
    };
    resource(ResourceType::Service.url(), name, "1", &message)
}

fn endpoint_message(name: &str, at: SocketAddr, epoch: u64) -> mesh::Endpoint {
    mesh::Endpoint {
        name: name.to_owned(),
        address: at.ip().to_string(),
        ports: vec![mesh::EndpointPort {
            name: PORT.to_owned(),
            port: u32::from(at.port()),
            mesh_port: 0,
        }],
        epoch,
        ..Default::default()
    }
}

fn endpoint(name: &str, at: SocketAddr, epoch: u64) -> Resource {
    resource(
        ResourceType::Endpoint.url(),
        name,
        &epoch.to_string(),
        &endpoint_message(name, at, epoch),
    )
}

const SERVICE: &str = "default/app";
const INSTANCE: &str = "default/app/app-0";

/// Answers first subscriptions: no Proxy, one Service, its endpoints.
fn usual(app: Option<SocketAddr>) -> impl Fn(&DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> + Send + Sync {
    let nonces = AtomicUsize::new(0);
    move |request| {
        let nonce = format!("usual-{}", nonces.fetch_add(1, Ordering::SeqCst));
        let mut answers = Vec::new();
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for name in &request.resource_names_subscribe {
            match (ResourceType::from_url(&request.type_url), name.as_str()) {
                (Some(ResourceType::Service), SERVICE) => resources.push(service(SERVICE)),
                (Some(ResourceType::Endpoint), "default/app/*") if app.is_some() => {
                    resources.extend(app.map(|at| endpoint(INSTANCE, at, 5)));
                }
                _ => removed.push(name.as_str()),
            }
        }
        if !resources.is_empty() || !removed.is_empty() {
            answers.push(response(&request.type_url, &nonce, resources, &removed));
        }
        answers
    }
}

/// A sidecar of a caller that calls `app`.
async fn caller(world: &World, control: SocketAddr) -> Result<Sidecar> {
    let listen = ports::free()?;
    let config = json!({
        "service": "caller",
        "instance": "caller-0",
        "admin": ports::free()?,
        "control_plane": format!("http://{control}"),
        "outbound": [{"service": "app", "listen": listen}],
    });
    let mut sidecar = start(world, "caller", config, listen, false)?;
    sidecar.ready().await?;
    Ok(sidecar)
}

async fn serves(sidecar: &Sidecar) -> Result<()> {
    let listen = sidecar.listen;
    wait::until("a request is answered", || async move {
        get(listen, "/").await.is_ok_and(|a| a.status() == 200)
    })
    .await
}

async fn ready(world: &World) -> Result<(H1App, Script, Sidecar)> {
    let app = H1App::echo().await?;
    let script = Script::start(usual(Some(app.addr))).await?;
    let sidecar = caller(world, script.addr).await?;
    serves(&sidecar).await?;
    Ok((app, script, sidecar))
}

fn refused(verdict: &DeltaDiscoveryRequest, names: &[&str]) -> Result<()> {
    let detail = verdict.error_detail.as_ref();
    let text = detail.map(|d| d.message.clone()).unwrap_or_default();
    ensure!(detail.is_some_and(|d| d.code != 0), "not a NACK: {verdict:?}");
    for name in names {
        ensure!(text.contains(name), "the NACK does not name {name}: {text}");
    }
    Ok(())
}

async fn a_truncated_resource_is_refused_by_name_and_the_last_good_stays(world: Arc<World>) -> Result<()> {
    let (_app, script, mut sidecar) = ready(&world).await?;
    let nobody = ports::free()?;
    let whole = endpoint_message(INSTANCE, nobody, 9).encode_to_vec();
    let kind = ResourceType::Endpoint.url();
    for cut in [1, 3, whole.len() / 2, whole.len() - 1] {
        let nonce = format!("cut-{cut}");
        let bad = raw_resource(kind, INSTANCE, &nonce, whole[..cut].to_vec());
        script.push(response(kind, &nonce, vec![bad], &[])).await?;
        refused(&script.verdict(&nonce).await?, &[INSTANCE])?;
        ensure!(
            get(sidecar.listen, "/").await?.status() == 200,
            "the last good endpoint is gone after a cut at {cut}"
        );
    }
    sidecar.check_well()
}

async fn a_bad_resource_blocks_no_other(world: Arc<World>) -> Result<()> {
    let (_app, script, mut sidecar) = ready(&world).await?;
    let kind = ResourceType::Endpoint.url();
    let second = H1App::echo().await?;
    let good = endpoint("default/app/app-1", second.addr, 1);
    let mut wrong = endpoint_message("default/app/app-2", second.addr, 1);
    wrong.address = "not an address".to_owned();
    let bad = resource(kind, "default/app/app-2", "1", &wrong);
    script.push(response(kind, "mixed", vec![bad, good], &[])).await?;
    refused(&script.verdict("mixed").await?, &["app-2", "address"])?;
    wait::until("the good one is used", || async {
        get(sidecar.listen, "/").await.is_ok() && second.seen.requests() > 0
    })
    .await?;
    sidecar.check_well()
}

async fn an_unknown_field_that_must_be_understood_is_refused_by_number(world: Arc<World>) -> Result<()> {
    let (_app, script, mut sidecar) = ready(&world).await?;
    let kind = ResourceType::Endpoint.url();
    let mut bytes = endpoint_message(INSTANCE, ports::free()?, 9).encode_to_vec();
    prost::encoding::uint32::encode(1234, &7, &mut bytes);
    script
        .push(response(
            kind,
            "must",
            vec![raw_resource(kind, INSTANCE, "9", bytes)],
            &[],
        ))
        .await?;
    refused(&script.verdict("must").await?, &[INSTANCE, "1234"])?;
    ensure!(
        get(sidecar.listen, "/").await?.status() == 200,
        "the last good endpoint is gone"
    );
    // Any other unknown field is ignored.
    let other = H1App::echo().await?;
    let mut bytes = endpoint_message(INSTANCE, other.addr, 10).encode_to_vec();
    prost::encoding::uint32::encode(77, &7, &mut bytes);
    script
        .push(response(
            kind,
            "may",
            vec![raw_resource(kind, INSTANCE, "10", bytes)],
            &[],
        ))
        .await?;
    let verdict = script.verdict("may").await?;
    ensure!(verdict.error_detail.is_none(), "{verdict:?}");
    wait::until("the new endpoint is used", || async {
        get(sidecar.listen, "/").await.is_ok() && other.seen.requests() > 0
    })
    .await?;
    sidecar.check_well()
}

async fn a_late_message_of_an_older_epoch_changes_nothing(world: Arc<World>) -> Result<()> {
    let (_app, script, mut sidecar) = ready(&world).await?;
    let nobody = ports::free()?;
    let kind = ResourceType::Endpoint.url();
    script
        .push(response(kind, "late", vec![endpoint(INSTANCE, nobody, 4)], &[]))
        .await?;
    script.verdict("late").await?;
    for _ in 0..10 {
        ensure!(
            get(sidecar.listen, "/").await?.status() == 200,
            "an older epoch replaced a newer one"
        );
    }
    sidecar.check_well()
}

async fn an_empty_collection_is_complete(world: Arc<World>) -> Result<()> {
    let script = Script::start(usual(None)).await?;
    let sidecar = caller(&world, script.addr).await?;
    wait::until("an empty service has its own reason", || async {
        get(sidecar.listen, "/")
            .await
            .is_ok_and(|a| a.reason() == Some("no_endpoints"))
    })
    .await
}

async fn a_removed_service_is_unknown(world: Arc<World>) -> Result<()> {
    let (_app, script, sidecar) = ready(&world).await?;
    script
        .push(response(ResourceType::Service.url(), "gone", vec![], &[SERVICE]))
        .await?;
    script.verdict("gone").await?;
    wait::until("the service is unknown", || async {
        get(sidecar.listen, "/")
            .await
            .is_ok_and(|a| a.status() == 404 && a.reason() == Some("unknown_service"))
    })
    .await
}

async fn a_type_nobody_knows_does_no_harm(world: Arc<World>) -> Result<()> {
    let (_app, script, mut sidecar) = ready(&world).await?;
    let kind = "type.googleapis.com/outrigger.mesh.v9.Wormhole";
    script
        .push(response(
            kind,
            "odd",
            vec![raw_resource(kind, "default/x", "1", vec![1, 2, 3])],
            &[],
        ))
        .await?;
    // It may be refused or passed over; what counts is that the next message arrives.
    script
        .push(response(
            ResourceType::Service.url(),
            "after",
            vec![service(SERVICE)],
            &[],
        ))
        .await?;
    script.verdict("after").await?;
    ensure!(get(sidecar.listen, "/").await?.status() == 200);
    sidecar.check_well()
}

async fn bytes_that_are_no_message_do_no_harm(world: Arc<World>) -> Result<()> {
    use outrigger_tests::apps::h2c::{H2App, full};
    // A gRPC frame (no compression, 4 bytes) of bytes that no protobuf message begins with.
    let nonsense = H2App::start(|_, _| async {
        let mut answer = full(&b"\0\0\0\0\x04\xff\xff\xff\xff"[..]);
        answer
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static("application/grpc"));
        answer
    })
    .await?;
    let mut sidecar = caller(&world, nonsense.addr).await?;
    // It comes back and asks again, and its ports answer meanwhile.
    nonsense.seen.wait_requests(4).await?;
    let answer = get(sidecar.listen, "/").await?;
    ensure!(answer.status() >= 400 && answer.reason().is_some(), "{answer:?}");
    sidecar.check_well()
}
