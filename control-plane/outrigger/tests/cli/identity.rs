//! Tokens, certificates, access, and the first start of a control plane.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Plane, check, outrigger, outrigger_with, plane};

/// What a first start prints leads to a token, word for word; a later start prints nothing.
#[test]
fn a_fresh_control_plane_says_how_services_join() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("my state/control-plane.sock");
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(["control-plane", "--listen", "127.0.0.1:0", "--state-dir", "my state"]);
        command.current_dir(dir.path()).env_clear();
        Started(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    };
    let end = |mut plane: Started| {
        let pid = Pid::from_raw(i32::try_from(plane.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let mut rest = String::new();
        plane.0.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        assert!(plane.0.wait().unwrap().success());
        rest
    };

    let mut plane = start();
    // Byte by byte: what comes after is for `end`.
    let mut said = String::new();
    while !said.contains("--service") || !said.ends_with('\n') {
        let mut byte = [0];
        plane.0.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
    assert!(said.contains(&format!("socket: {}\n", socket.display())), "{said}");
    let command = said.lines().last().unwrap().trim();
    let command = command
        .replacen("outrigger", env!("CARGO_BIN_EXE_outrigger"), 1)
        .replace("NAME", "user");
    let token = Command::new("/bin/sh")
        .args(["-c", &command])
        .env_clear()
        .output()
        .unwrap();
    check(&token, 0, "ogt1.", "user");
    assert_eq!(end(plane), "");

    let plane = start();
    let deadline = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the control plane did not start");
        std::thread::yield_now();
    }
    assert_eq!(end(plane), "", "the mesh has begun");
}

/// A process that does not outlive its test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _over = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[test]
fn access_is_explained_with_its_rule_and_a_code() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    let mesh = "defaults: { mode: strict }\n---\nservice: web\nprotocol: http\ncalls: [user]\n---\nservice: user\nprotocol: http\n\
                allow:\n- { from: web, methods: [GET], paths: [/users/*] }\n---\nservice: open\nprotocol: http\n";
    std::fs::write(dir.path().join("mesh.yaml"), mesh).unwrap();
    check(&at(&["apply", "-f", "."]), 0, "changed", "");
    let ask = |code, words: &str, shows: &str| {
        let args: Vec<&str> = ["explain-access"].into_iter().chain(words.split(' ')).collect();
        check(&at(&args), code, shows, "")
    };
    ask(0, "web user GET /users/ada", "allow[0]");
    ask(0, "web open", "open by default");
    ask(6, "web user POST /users/ada", "denied");
    ask(6, "web user GET /users/%2e%2e/x", "denied");
    ask(6, "open user GET /users/ada", "denied");
    ask(6, "unauthenticated user GET /users/ada", "denied");
    let json = ask(6, "open user GET /users/ada -o json", "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["allowed"], false);
    check(&at(&["explain-access", "web", "usr"]), 4, "", "usr");
}

#[test]
fn tokens_are_made_once_shown_never_again_and_revoked() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    let made = at(&[
        "token",
        "create",
        "--service",
        "shop/post",
        "--uses",
        "3",
        "--ttl",
        "1h",
    ]);
    let token = check(&made, 0, "ogt1.", "it is not shown again").trim().to_owned();
    let id = token.split('.').nth(1).unwrap();
    let listed = check(&at(&["token", "list"]), 0, id, "");
    assert!(listed.contains("shop/post") && listed.contains('3'), "{listed}");
    assert!(!listed.contains(token.split('.').nth(2).unwrap()), "{listed}");
    // The whole token is as good as its id, for whoever has only that.
    check(&at(&["token", "revoke", &token]), 0, &format!("revoked {id}"), "");
    assert!(!check(&at(&["token", "list"]), 0, "", "").contains(id));
    check(&at(&["token", "revoke", id]), 4, "", "error");
    check(&at(&["token", "revoke", "../certs"]), 2, "", "no token's id");
    check(
        &at(&["token", "create", "--service", "outrigger/operator"]),
        2,
        "",
        "error",
    );
}

#[test]
fn an_operator_elsewhere_needs_a_token_and_the_right_one() {
    let (dir, plane, other) = (tempfile::tempdir().unwrap(), plane(), plane());
    let token = |plane: &Plane, args: &[&str]| {
        let made = outrigger(dir.path(), &plane.socket, &[&["token", "create"], args].concat());
        check(&made, 0, "ogt1.", "").trim().to_owned()
    };
    let ask = |token: &str| outrigger_with(dir.path(), &plane.tls, token, &["get", "services"]);
    let good = token(&plane, &["--operator"]);
    check(&ask(&good), 0, "none", "");
    check(&ask(""), 2, "", "needs an operator's token");
    check(&ask("rubbish"), 2, "", "not a token");
    check(
        &ask(&token(&other, &["--operator"])),
        7,
        "",
        "the token is of another mesh",
    );
    check(
        &ask(&token(&plane, &["--service", "post"])),
        7,
        "",
        "does not let us in",
    );
    let id = good.split('.').nth(1).unwrap();
    check(
        &outrigger(dir.path(), &plane.socket, &["token", "revoke", id]),
        0,
        "",
        "",
    );
    check(&ask(&good), 7, "", "does not let us in");

    let file = dir.path().join("token");
    std::fs::write(&file, token(&plane, &["--operator"])).unwrap();
    let by_file = ["get", "services", "--token-file", "token"];
    check(&outrigger(dir.path(), &plane.tls, &by_file), 0, "none", "");
}

#[test]
fn certificates_and_their_rotation_are_shown() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    check(&at(&["certs"]), 0, "trust domain  outrigger.local", "");
    let json = check(&at(&["certs", "-o", "json"]), 0, "", "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["roots"].as_array().unwrap().len(), 1, "{json}");
    check(&at(&["certs", "rotate", "--status"]), 0, "steady", "");
    check(&at(&["certs", "revoke", "user"]), 0, "revoked user", "");
    check(&at(&["certs", "allow", "user"]), 0, "allowed user", "");
}
