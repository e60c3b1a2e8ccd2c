//! Certificates over the wire and tokens over the API: given, renewed, refused, revoked, kept.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_proto::wire::agent::identity_client::IdentityClient;
use outrigger_proto::wire::agent::{IssueRequest, IssueResponse};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::api::{ask, get};
use super::client::{World, eventually};
use super::member::{Member, token};
use crate::server::Options;

fn secure(state_dir: Option<&Path>) -> Options {
    Options {
        state_dir: state_dir.map(Path::to_owned),
        ..Options::default()
    }
}

async fn post(world: &World, path: &str, body: Value) -> (u16, Value) {
    let kind = "Content-Type: application/json\r\n";
    ask(world, "POST", path, kind, &body.to_string()).await
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key);
    csr.expect("a request").der().to_vec()
}

/// Renews as `default/service` by the certificate of the connection.
async fn renew(world: &World, member: &Member, service: &str, instance: &str) -> Result<IssueResponse, Status> {
    let channel = member.client(world).channel().await;
    let mut client = IdentityClient::new(channel.map_err(|e| Status::unavailable(e.to_string()))?);
    let request = IssueRequest {
        csr: csr(),
        service: format!("default/{service}"),
        instance: instance.into(),
        proof: None,
    };
    client.issue(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_certificate_renews_itself_and_no_other() {
    let world = World::start(secure(None)).await;
    let user = Member::join(&world, "user", "u1").await;
    let renewed = renew(&world, &user, "user", "u1").await.expect("renews");
    assert_eq!((renewed.chain.len(), renewed.trust.expect("trust").roots.len()), (2, 1));
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let clock = i64::try_from(clock.expect("after 1970").as_millis()).expect("fits");
    assert!((clock - renewed.now_ms).abs() < 60_000, "its clock is told");
    Member::join(&world, "post", "p1").await;
    for (service, instance) in [("post", "p1"), ("user", "u2")] {
        let refused = renew(&world, &user, service, instance).await.expect_err("another's");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    let certs = get(&world, "/v1/certs").await;
    let of = |instance: &str| {
        let all = certs["certs"].as_array().expect("a list");
        all.iter().find(|c| c["instance"] == instance).expect("listed").clone()
    };
    assert_eq!((&of("u1")["renewals"], &of("p1")["renewals"]), (&json!(1), &json!(0)));
    assert_eq!(of("u1")["id"], "spiffe://outrigger.local/ns/default/svc/user");
}

#[tokio::test]
async fn tokens_are_made_listed_and_ended() {
    let world = World::start(secure(None)).await;
    for (wrong, status) in [
        (json!({}), 400),
        (json!({"service": "user", "operator": true}), 400),
        (json!({"service": "User"}), 400),
        (json!({"service": "user", "ttl_s": 0}), 400),
        (json!({"service": "user", "namespace": "outrigger"}), 403),
        (json!({"service": "user", "used": 1}), 422),
    ] {
        let (got, answer) = post(&world, "/v1/tokens", wrong.clone()).await;
        assert_eq!(got, status, "{wrong}: {answer}");
    }
    let (status, made) = post(&world, "/v1/tokens", json!({"service": "user", "uses": 2, "ttl_s": 60})).await;
    assert_eq!(status, 201);
    let list = get(&world, "/v1/tokens").await;
    assert_eq!(
        (&list[0]["id"], &list[0]["uses_left"], &list[0]["service"]),
        (&made["id"], &json!(2), &json!("default/user"))
    );
    assert!(!list.to_string().contains(made["token"].as_str().expect("a token")));
    let text = made["token"].as_str().expect("a token");
    Member::join_by(&world, text, "user", "u1").await.expect("joins");
    let path = format!("/v1/tokens/{}", made["id"].as_str().expect("an id"));
    assert_eq!(ask(&world, "DELETE", &path, "", "").await.0, 204);
    assert_eq!(ask(&world, "DELETE", &path, "", "").await.0, 404);
    let refused = Member::join_by(&world, text, "user", "u2")
        .await
        .expect_err("it is ended");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let events = get(&world, "/v1/events").await.to_string();
    for told in ["token_created", "joined", "token_revoked", "certificate_refused"] {
        assert!(events.contains(told), "{told}: {events}");
    }
}

#[tokio::test]
async fn a_revoked_certificate_gets_nothing_until_it_is_allowed() {
    let world = World::start(secure(None)).await;
    let user = Member::join(&world, "user", "u1").await;
    let serial = json!({ "serial": user.serial });
    let (status, revoked) = post(&world, "/v1/certs/revoke", serial.clone()).await;
    assert_eq!((status, &revoked["known"]), (200, &json!(true)));
    eventually("it is kept out", async || {
        renew(&world, &user, "user", "u1").await.is_err()
    })
    .await;
    assert_eq!(get(&world, "/v1/trust").await["revoked"], json!([user.serial]));
    assert_eq!(post(&world, "/v1/certs/allow", serial.clone()).await.0, 204);
    eventually("it is let in", async || {
        renew(&world, &user, "user", "u1").await.is_ok()
    })
    .await;
    assert_eq!(post(&world, "/v1/certs/allow", serial).await.0, 404);
    for wrong in [
        json!({}),
        json!({"serial": "XY"}),
        json!({"serial": "00", "service": "user"}),
    ] {
        assert_eq!(post(&world, "/v1/certs/revoke", wrong).await.0, 400);
    }
}

#[tokio::test]
async fn an_operator_calls_as_whom_it_says() {
    let world = World::start(secure(None)).await;
    let request = json!({ "csr": STANDARD.encode(csr()), "as": "post" });
    let (status, cert) = post(&world, "/v1/certs/operator", request).await;
    assert_eq!(status, 200, "{cert}");
    let der = STANDARD
        .decode(cert["chain"][0].as_str().expect("a leaf"))
        .expect("base64");
    let leaf = crate::door::tls::read(&der).expect("an id");
    assert_eq!(
        (leaf.id.service().as_str(), leaf.serial.as_str()),
        ("default/post", cert["serial"].as_str().expect("a serial"))
    );
    assert_eq!(cert["trust"], get(&world, "/v1/trust").await);
    for wrong in [
        json!({"csr": "!"}),
        json!({"csr": ""}),
        json!({"csr": STANDARD.encode("x")}),
    ] {
        assert_eq!(post(&world, "/v1/certs/operator", wrong).await.0, 400);
    }
}

#[tokio::test]
async fn everything_outlives_a_restart_and_a_rotation() {
    let scratch = tempfile::tempdir().expect("scratch");
    let state_dir = scratch.path().join("state");
    let world = World::start(secure(Some(&state_dir))).await;
    let user = Member::join(&world, "user", "u1").await;
    let spare = token(&world, json!({ "service": "user" })).await;
    let before = get(&world, "/v1/trust").await;
    world.stop().await;
    let world = World::start(secure(Some(&state_dir))).await;
    assert_eq!(get(&world, "/v1/trust").await, before);
    renew(&world, &user, "user", "u1").await.expect("renews");
    Member::join_by(&world, &spare, "user", "u2").await.expect("joins");
    // Nobody is there to be waited for, so the new root signs at once.
    let (status, begun) = post(&world, "/v1/certs/rotate", json!({})).await;
    assert_eq!((status, &begun["generation"]), (202, &json!(2)));
    eventually("the new root signs", async || {
        get(&world, "/v1/certs/rotation").await["phase"] == "renewing"
    })
    .await;
    world.stop().await;
    let world = World::start(secure(Some(&state_dir))).await;
    let rotation = get(&world, "/v1/certs/rotation").await;
    assert_eq!(rotation["waiting_for"], json!(["default/user/u1", "default/user/u2"]));
    // Its certificate is of the old root, and that is still trusted.
    let renewed = renew(&world, &user, "user", "u1").await.expect("renews");
    let roots = get(&world, "/v1/trust").await["roots"].clone();
    assert_eq!(roots.as_array().expect("a list").len(), 2);
    assert_eq!(
        (&roots[0], renewed.trust.expect("trust").roots.len()),
        (&before["roots"][0], 2)
    );
    assert_eq!(
        get(&world, "/v1/certs/rotation").await["waiting_for"],
        json!(["default/user/u2"])
    );
    assert_eq!(
        post(&world, "/v1/certs/rotate", json!({"force_after_s": 0})).await.0,
        409
    );
    let certs = get(&world, "/v1/certs").await;
    let signs: BTreeSet<_> = certs["roots"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|r| r["signs"].to_string())
        .collect();
    assert_eq!(signs.len(), 2, "one signs and one does not");
    world.stop().await;
}
