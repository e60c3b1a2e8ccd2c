//! What a route changes: path, authority, fields, and where the client goes.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::World;
use outrigger_tests::apps::h1::H1App;
use outrigger_tests::mesh::{Plan, saw};
use outrigger_tests::over_both;
use serde_json::{Value, json};

use super::{forward, h1, h2, routed};

pub(super) fn tests() -> Vec<Trial> {
    over_both![
        a_rewrite_changes_path_and_authority_and_nothing_else,
        fields_are_edited_both_ways,
        a_redirect_tells_where,
    ]
}

async fn a_rewrite_changes_path_and_authority_and_nothing_else(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let routes = json!([
        forward(
            "moved",
            json!({"path": {"prefix": "/old"}}),
            json!({"rewrite": {"authority": "new.example:81", "path": {"prefix": "/new"}}})
        ),
        forward(
            "full",
            json!({"path": {"exact": "/a"}}),
            json!({"rewrite": {"path": {"full": "/b"}}})
        ),
    ]);
    let plan = Plan::default().service("app", "http", &[app.addr]);
    let mut mesh = routed(plan, routes).start(&world).await?;
    let addr = mesh.to("app")?;
    let line = "GET /old/%41~%2d/?q=%20&q=+ HTTP/1.1\r\nHost: h\r\nX-Mine: 1";
    let report = h1(addr, line).await?.json()?;
    ensure!(report["line"] == "GET /new/%41~%2d/?q=%20&q=+ HTTP/1.1", "{report}");
    let heads = app.seen.heads();
    saw(&heads[0], "host", "new.example:81")?;
    saw(&heads[0], "x-mine", "1")?;
    h2(addr, "GET", "/old?z", &[]).await?;
    h1(addr, "GET /a?x HTTP/1.1\r\nHost: h").await?;
    let heads = app.seen.heads();
    ensure!(heads[1].line.starts_with("GET /new?z "), "{heads:?}");
    saw(&heads[1], "host", "new.example:81")?;
    ensure!(heads[2].line.starts_with("GET /b?x "), "{heads:?}");
    saw(&heads[2], "host", "h")?;
    mesh.check_well()
}

async fn fields_are_edited_both_ways(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let mut route = forward("edited", json!({}), json!({}));
    route["request_headers"] = json!({
        "set": [{"name": "X-Set", "value": "new"}], "add": [{"name": "x-add", "value": "2"}], "remove": ["x-gone"],
    });
    route["response_headers"] = json!({
        "set": [{"name": "x-app", "value": "edited"}], "add": [{"name": "x-more", "value": "m"}],
        "remove": ["content-type"],
    });
    let plan = Plan::default().service("app", "http", &[app.addr]);
    let mut mesh = routed(plan, json!([route])).start(&world).await?;
    let fields = "X-Set: old\r\nX-Set: older\r\nX-Add: 1\r\nX-Gone: 1";
    let answer = h1(mesh.to("app")?, &format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}")).await?;
    ensure!(answer.head.field("x-app") == Some("edited"), "{answer:?}");
    ensure!(answer.head.field("x-more") == Some("m"), "{answer:?}");
    ensure!(answer.head.field("content-type").is_none(), "{answer:?}");
    let head = app.seen.heads().pop().context("no request")?;
    let all = |name| head.all(name).map(str::to_owned).collect::<Vec<_>>();
    ensure!(
        all("x-set") == ["new"] && all("x-add") == ["1", "2"] && all("x-gone").is_empty(),
        "{head:?}"
    );
    mesh.check_well()
}

async fn a_redirect_tells_where(world: Arc<World>) -> Result<()> {
    let app = H1App::echo().await?;
    let redirect = |name: &str, prefix: &str, redirect: Value| json!({"name": name, "matches": [{"path": {"prefix": prefix}}], "action": {"redirect": redirect}});
    let routes = json!([
        redirect(
            "whole",
            "/a",
            json!({"status": 308, "scheme": "https", "authority": "x.example"})
        ),
        redirect("path", "/b", json!({"path": {"prefix": "/c"}})),
    ]);
    let plan = Plan::default().service("app", "http", &[app.addr]);
    let mut mesh = routed(plan, routes).start(&world).await?;
    let addr = mesh.to("app")?;
    let whole = h1(addr, "POST /a/b?c HTTP/1.1\r\nHost: h\r\nContent-Length: 0").await?;
    ensure!(whole.status() == 308, "{whole:?}");
    ensure!(
        whole.head.field("location") == Some("https://x.example/a/b?c"),
        "{whole:?}"
    );
    let path = h2(addr, "GET", "/b/x?y", &[]).await?;
    ensure!(
        path.head.status() == 302 && path.field("location") == Some("/c/x?y"),
        "{path:?}"
    );
    ensure!(app.seen.requests() == 0);
    mesh.check_well()
}
