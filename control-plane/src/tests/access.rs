//! Who may call whom, as the API tells it.

use serde_json::{Value, json};

use super::api::{ask, get};
use super::client::World;
use crate::server::Options;

const MESH: &str = "
access: { default: deny }
---
service: user
protocol: http
mode: strict
allow:
- { from: post, methods: [GET], paths: ['/users/{id}'] }
- shop/*
---
service: post
protocol: grpc
mode: permissive
allow: [{ from: [user, unauthenticated], grpc: [blog.Post/Read] }]
audit: true
---
service: db
protocol: tcp
mode: strict
---
service: old
protocol: http
mode: off
allow: [unauthenticated]
";

async fn explain(world: &World, question: Value) -> (u16, Value) {
    let kind = "Content-Type: application/json\r\n";
    ask(world, "POST", "/v1/access/explain", kind, &question.to_string()).await
}

#[tokio::test]
async fn a_call_is_explained_by_what_decides_it() {
    let world = World::start(Options::default()).await;
    let (status, applied) = ask(&world, "POST", "/v1/config", "", MESH).await;
    assert_eq!(status, 200, "{applied}");
    let cases = [
        (
            json!({"from": "post", "to": "user", "path": "/users/7?x"}),
            true,
            "allow[0]",
        ),
        (
            json!({"from": "shop/cart", "to": "user", "method": "DELETE"}),
            true,
            "allow[1]",
        ),
        (
            json!({"from": "post", "to": "user", "method": "PUT", "path": "/users/7"}),
            false,
            "no entry of `allow` matches",
        ),
        (
            json!({"from": "post", "to": "user", "path": "/users//7"}),
            false,
            "bad_path",
        ),
        (
            json!({"from": "unauthenticated", "to": "user"}),
            false,
            "mode: strict lets nobody in without an identity",
        ),
        (
            json!({"from": "user", "to": "post", "path": "blog.Post/Read"}),
            true,
            "allow[0]",
        ),
        (
            json!({"from": "unauthenticated", "to": "post", "path": "/blog.Post/Read"}),
            true,
            "allow[0]",
        ),
        (json!({"from": "user", "to": "db"}), false, "default: deny of the mesh"),
        (json!({"from": "user", "to": "old"}), true, "allow[0]"),
        (
            json!({"from": "spiffe://elsewhere.test/ns/default/svc/post", "to": "user", "path": "/users/7"}),
            false,
            "no entry of `allow` matches",
        ),
    ];
    for (question, allowed, rule) in cases {
        let (status, answer) = explain(&world, question.clone()).await;
        assert_eq!(status, 200, "{question}: {answer}");
        assert_eq!(
            (&answer["allowed"], &answer["rule"]),
            (&allowed.into(), &rule.into()),
            "{question}: {answer}"
        );
        assert!(
            answer["source"].as_str().is_some_and(|s| s.starts_with("mesh.yaml:")),
            "{answer}"
        );
    }

    let (_, audited) = explain(&world, json!({"from": "db", "to": "post"})).await;
    assert_eq!(
        (&audited["allowed"], &audited["audit"]),
        (&true.into(), &true.into()),
        "{audited}"
    );
    let (_, path) = explain(&world, json!({"from": "post", "to": "user", "path": "/%75sers/7"})).await;
    assert_eq!(path["normalised_path"], "/users/7", "{path}");
    let (_, bad) = explain(&world, json!({"from": "post", "to": "user", "path": "/users/%2e"})).await;
    assert_eq!(bad["bad_path"], "the path has an encoded dot", "{bad}");
    let (_, why) = explain(&world, json!({"from": "psot", "to": "user", "path": "/users/7"})).await;
    assert_eq!(why["considered"].as_array().map(Vec::len), Some(2), "{why}");
    assert!(
        why["note"]
            .as_str()
            .is_some_and(|n| n.contains("did you mean default/post")),
        "{why}"
    );

    for (question, status, part) in [
        (json!({"from": "post", "to": "usr"}), 404, "did you mean default/user"),
        (
            json!({"from": "post", "to": "user", "port": "grpc"}),
            400,
            "its ports: http",
        ),
        (json!({"from": "user", "to": "db", "path": "/"}), 400, "opaque bytes"),
        (json!({"from": "spiffe://x", "to": "db"}), 400, "is not spiffe://"),
    ] {
        let (got, answer) = explain(&world, question.clone()).await;
        assert_eq!(got, status, "{question}: {answer}");
        assert!(answer["error"].as_str().is_some_and(|e| e.contains(part)), "{answer}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_rules_in_force_are_shown_as_they_were_written() {
    let world = World::start(Options::default()).await;
    ask(&world, "POST", "/v1/config", "", MESH).await;
    let all = get(&world, "/v1/access").await;
    let modes: Vec<_> = all
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s["mode"].clone())
        .collect();
    assert_eq!(modes, ["strict", "off", "permissive", "strict"]);
    let post = get(&world, "/v1/access/default/post").await;
    assert_eq!(
        post["rules"][0]["from"],
        json!(["default/user", "unauthenticated"]),
        "{post}"
    );
    assert_eq!((&post["audit"], &post["default"]), (&true.into(), &"deny".into()));
    let db = get(&world, "/v1/access/default/db").await;
    assert_eq!(db["default_source"], "default: deny of the mesh");
    world.stop().await;
}
