//! What the rules say of requests and of opaque connections, also while they last.

use super::*;

#[tokio::test]
async fn rules_decide_before_the_body_and_by_the_path_as_it_was_sent() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
    post.set(Mode::Strict, only(vec![rule("allow[0]", user(), &["/public/*"])]));
    for (path, status, reason) in [
        ("/public/a", "200", None),
        ("/private", "403", Some("denied")),
        ("/public/../private", "400", Some("bad_path")),
        ("/public//a", "400", Some("bad_path")),
        ("/public/%2e%2e/private", "400", Some("bad_path")),
        ("/public/a%2fb", "400", Some("bad_path")),
    ] {
        let (head, body) = calls.get(path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}{body}");
        assert_eq!(
            head.lines().find_map(|l| l.strip_prefix("outrigger-reason: ")),
            reason,
            "{path}: {head}{body}"
        );
    }
    let audit = Access {
        audit: true,
        ..only(Vec::new())
    };
    post.set(Mode::Strict, audit);
    let (head, _) = calls.get("/private").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(post.shared.stats.get(Gauge::Audited), 1);
}

#[tokio::test]
async fn a_live_answer_ends_when_no_rule_allows_it_any_more_and_others_go_on() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Http, Mode::Strict).await;
    let calls = Calls::new(ca.identity("default/user"), post.address, Mode::Strict);
    let app = streaming(&calls).await;
    post.set(
        Mode::Strict,
        only(vec![rule("allow[0]", user(), &["/public/*", "/stream"])]),
    );
    let (head, _) = calls.get("/public/a").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(post.reason(Reason::Denied), 0);
    post.set(Mode::Strict, only(vec![rule("allow[0]", user(), &["/public/*"])]));
    breaks_off(app).await;
    assert_eq!(post.reason(Reason::Denied), 1);
    let (head, _) = calls.get("/public/a").await;
    assert!(head.starts_with("HTTP/1.1 200"), "the connection goes on: {head}");
    let connections: u64 = post.shared.stats.snapshot().iter().map(|(_, c)| c.connections).sum();
    assert_eq!(connections, 1);
}

#[tokio::test]
async fn an_opaque_connection_ends_with_the_rule_that_allowed_it() {
    let ca = Ca::new();
    let post = Callee::new(ca.identity("default/post"), Protocol::Tcp, Mode::Permissive).await;
    let mut client = TcpStream::connect(post.address).await.expect("connects");
    client.write_all(b"hello").await.expect("writes");
    let mut echoed = [0; 5];
    client.read_exact(&mut echoed).await.expect("echoed");
    post.set(Mode::Permissive, only(Vec::new()));
    let end = tokio::time::timeout(SOON, client.read(&mut [0; 1]))
        .await
        .expect("ends");
    assert!(end.is_err(), "a reset, never a clean end: {end:?}");
    assert_eq!(post.reason(Reason::Denied), 1);
}
