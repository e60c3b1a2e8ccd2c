//! The program as scripts see it: what goes to which stream, and which exit code comes back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_control_plane::server::{self, Options};

/// Runs the program in `dir`; `plane` is where it looks for the control plane.
fn outrigger(dir: &Path, plane: &str, args: &[&str]) -> Output {
    outrigger_with(dir, plane, "", args)
}

/// As [`outrigger`], with a token.
fn outrigger_with(dir: &Path, plane: &str, token: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(args).current_dir(dir).env_clear();
    command.env("OUTRIGGER_CONTROL_PLANE", plane);
    if !token.is_empty() {
        command.env("OUTRIGGER_TOKEN", token);
    }
    command.output().unwrap()
}

#[track_caller]
fn check(output: &Output, code: i32, stdout: &str, stderr: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    assert!(out.contains(stdout), "no `{stdout}` in stdout: {out}\nstderr: {err}");
    assert!(err.contains(stderr), "no `{stderr}` in stderr: {err}\nstdout: {out}");
    out
}

/// Where nobody is.
const NOBODY: &str = "unix:/nowhere/control-plane.sock";

/// A control plane in this process, which ends with the value.
struct Plane {
    /// Its socket.
    socket: String,
    /// Where it speaks TLS.
    tls: String,
    _state: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

fn plane() -> Plane {
    let state = tempfile::tempdir().unwrap();
    let socket = state.path().join("run/control-plane.sock");
    // Bound here and never let go: a port that is only known to be free somebody else may take.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let options = Options {
        state_dir: Some(state.path().join("state")),
        socket: Some(socket.clone()),
        ..Options::default()
    };
    drop(runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        server::serve(listener, options, std::future::pending()).await
    }));
    let deadline = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the control plane did not start");
        std::thread::yield_now();
    }
    Plane {
        socket: format!("unix:{}", socket.display()),
        tls: format!("https://{address}"),
        _state: state,
        _runtime: runtime,
    }
}

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

const GOOD: &str = "service: user\nlanguage: rust\nprotocol: grpc\n---\nservice: post\nprotocol: http\ncalls: [user]\n";

#[test]
fn a_mesh_is_applied_looked_at_and_kept() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    std::fs::write(dir.path().join("mesh.yaml"), GOOD).unwrap();
    check(&at(&["apply", "-f", "."]), 0, "changed default/post, default/user", "");
    check(&at(&["apply", "-f", "mesh.yaml"]), 0, "nothing changed", "");
    check(&at(&["get", "services"]), 0, "default/user  rust      grpc   0/0", "");
    let json = check(&at(&["get", "services", "user", "-o", "json"]), 0, "", "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["name"], "default/user");
    check(&at(&["get", "services", "-o", "yaml"]), 0, "name: default/user", "");
    check(&at(&["describe", "post"]), 0, "default/user", "");
    check(&at(&["get", "endpoints"]), 0, "none", "");
    check(&at(&["get", "config"]), 0, "applied", "");
    check(&at(&["health"]), 0, "none", "");
    check(&at(&["call", "user"]), 1, "", "no endpoint of default/user serves");

    std::fs::write(dir.path().join("mesh.yaml"), GOOD.replace("[user]", "[usr]")).unwrap();
    check(&at(&["apply", "-f", "."]), 5, "", "did you mean `user`?");
    check(&at(&["get", "config"]), 0, "applied", "");
}

/// Policy in force, with who says it; what an apply would change; numbers and warnings.
#[test]
fn policy_is_shown_compared_and_explained() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    let write = |text: &str| std::fs::write(dir.path().join("mesh.yaml"), text).unwrap();
    let mesh = "\
defaults: { timeout: 3s }
---
service: user
protocol: http
retry: { attempts: 3 }
breaker: { failures: 5 }
subsets: { v1: { version: v1 }, v2: { version: v2 } }
routes:
- name: canary
  match: { headers: { x-canary: \"1\" } }
  to: { subset: v2 }
  timeout: 1s
- { name: rest, to: [{ subset: v1, weight: 95% }, { subset: v2, weight: 5% }] }
---
service: post
protocol: http
";
    write(mesh);
    check(&at(&["config", "diff"]), 1, "+ default/user", "");
    check(&at(&["apply", "-f", "."]), 0, "changed", "");
    check(&at(&["config", "diff"]), 0, "nothing would change", "");
    write(&format!("# only moved\n{mesh}"));
    check(&at(&["config", "diff", "."]), 0, "nothing would change", "");

    let routes = check(&at(&["routes", "user"]), 0, "user[v1] 95%, user[v2] 5%", "");
    assert!(routes.contains("x-canary=1"), "{routes}");
    assert!(
        routes.contains("timeout 1s") && !routes.contains("everything else"),
        "{routes}"
    );
    check(&at(&["routes", "post"]), 0, "everything else", "");
    check(&at(&["routes"]), 0, "default/user", "");
    check(&at(&["routes", "usre"]), 4, "", "did you mean default/user?");

    let described = check(&at(&["describe", "user"]), 0, "", "");
    let line = |key: &str| {
        let mut lines = described
            .lines()
            .filter(|line| line.split_whitespace().next() == Some(key));
        lines
            .next()
            .unwrap_or_else(|| panic!("no {key} in {described}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(line("timeout"), "timeout 3s mesh mesh.yaml:1");
    assert_eq!(line("retry.attempts"), "retry.attempts 3 service mesh.yaml:5");
    assert_eq!(line("breaker.cooldown"), "breaker.cooldown 10s default -");
    assert!(described.contains("x-canary=1"), "{described}");
    let json = check(&at(&["describe", "user", "-o", "json"]), 0, "", "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["routes"][0]["policy"][0]["from"], "route");

    write(
        &mesh
            .replace("timeout: 3s", "timeout: 4s")
            .replace("failures: 5", "rate: 50%")
            .replace("service: post", "service: late"),
    );
    let diff = check(
        &at(&["config", "diff"]),
        1,
        "~ timeout: 3s (mesh, mesh.yaml:1) -> 4s (mesh, mesh.yaml:1)",
        "",
    );
    for part in [
        "~ breaker.rate: 0% (default) -> 50% (service, mesh.yaml:6)",
        "- default/post",
        "+ default/late",
    ] {
        assert!(diff.contains(part), "no `{part}` in {diff}");
    }
    let json = check(&at(&["config", "diff", "-o", "json"]), 1, "", "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["services"].as_array().map(Vec::len), Some(3), "{json}");
    check(&at(&["get", "services"]), 0, "default/post", "");

    write("service: user\nretry: { attempts: 3 }\n");
    for args in [&["apply", "-f", "."][..], &["config", "diff"], &["config", "validate"]] {
        check(&at(args), 5, "", "OR1101");
    }
    check(
        &at(&["config", "explain", "or1101"]),
        0,
        "tries without a bound on time",
        "",
    );
    check(
        &at(&["config", "explain", "retry.attempts"]),
        0,
        "More than 1 needs",
        "",
    );
    write("service: user\nfaults: [{ name: f, abort: 503, until: \"2020-01-01T00:00:00Z\" }]\n");
    check(&at(&["config", "validate"]), 0, "valid", "OR2001");
    check(&at(&["apply", "-f", "."]), 0, "changed", "OR2001");
}

#[test]
fn unknown_names_are_code_4_with_the_nearest() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    std::fs::write(dir.path().join("mesh.yaml"), GOOD).unwrap();
    check(&at(&["apply", "-f", "."]), 0, "", "");
    for command in ["describe", "routes", "call", "health", "stats"] {
        check(&at(&[command, "usre"]), 4, "", "did you mean default/user?");
    }
    check(&at(&["config", "explain", "timeot"]), 4, "", "did you mean `timeout`?");
}

#[test]
fn nobody_at_the_address_is_code_3() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["get", "services"][..],
        &["describe", "user"],
        &["routes"],
        &["health"],
        &["stats"],
        &["call", "user", "/"],
        &["token", "list"],
        &["certs"],
        &["explain-access", "a", "b"],
    ] {
        let expected = format!("cannot reach the control plane at {NOBODY}");
        check(&outrigger(dir.path(), NOBODY, args), 3, "", &expected);
    }
}

#[test]
fn mistakes_on_the_command_line_are_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["get"][..],
        &["gte", "services"],
        &["call", "Bad_Name", "/"],
        &["call", "user", "/", "-H", "x"],
        &["token", "create"],
        &["token", "create", "--operator", "--service", "user"],
        &["token", "create", "--service", "user", "--ttl", "soon"],
        &["certs", "revoke"],
        &["explain-access", "user"],
        &["explain-access", "user", "post", "GET"],
        &["explain-access", "spiffe://x", "post"],
        &["get", "services", "--control-plane", "http://127.0.0.1:7070"],
        &["get", "services", "--control-plane", "https://127.0.0.1:7070"],
    ] {
        check(&outrigger(dir.path(), NOBODY, args), 2, "", "error");
    }
}

#[test]
fn bad_files_are_code_5_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), "service: a\nrunn: x\n").unwrap();
    let at = |args: &[&str]| outrigger(dir.path(), NOBODY, args);
    check(&at(&["config", "validate"]), 5, "", "mesh.yaml:2:1");
    let json = check(&at(&["config", "validate", "-o", "json"]), 5, "\"valid\": false", "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["errors"][0]["line"], &json["errors"][0]["help"]),
        (&2.into(), &"did you mean `run`?".into())
    );
    check(&at(&["config", "validate", "nowhere"]), 5, "", "cannot read nowhere");
}

#[test]
fn output_has_no_colours_when_it_is_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), "service: a\nrunn: x\n").unwrap();
    let output = outrigger(dir.path(), NOBODY, &["config", "validate"]);
    assert!(!output.stderr.contains(&0x1b));
    let output = outrigger(dir.path(), NOBODY, &["config", "explain"]);
    assert!(!output.stdout.contains(&0x1b));
}

#[test]
fn tools_need_no_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let at = |args: &[&str]| outrigger(dir.path(), NOBODY, args);
    check(&at(&["version"]), 0, env!("CARGO_PKG_VERSION"), "");
    check(&at(&["completions", "bash"]), 0, "_outrigger", "");
    check(&at(&["new", "http", "shop"]), 0, "service: shop", "");
    let schema = check(&at(&["config", "schema"]), 0, "", "");
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert!(schema["$defs"]["ServiceDocument"]["properties"]["calls"]["description"].is_string());
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

const SPLIT: &str = "\
# the mesh
service: user
protocol: http # spoken
subsets: { v1: { version: v1 }, v2: { version: v2 } }
# of post
---
service: post
protocol: http
";

/// Short cuts edit the file and nothing else in it, and put it in force; what would be refused is not written.
#[test]
fn shares_and_faults_are_edited_into_the_file_and_put_in_force() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), plane());
    let at = |args: &[&str]| outrigger(dir.path(), &plane.socket, args);
    let file = dir.path().join("mesh.yaml");
    let read = || std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, SPLIT).unwrap();

    let route = "routes:\n- { name: split, to: [{ subset: v1, weight: 95% }, { subset: v2, weight: 5% }] }\n";
    let shown = "+- { name: split, to: [{ subset: v1, weight: 95% }, { subset: v2, weight: 5% }] }";
    // A dry run needs nobody.
    let dry = outrigger(dir.path(), NOBODY, &["split", "user", "v2=5%", "--dry-run"]);
    check(&dry, 0, shown, "");
    check(
        &outrigger(dir.path(), NOBODY, &["split", "user", "v2=5%"]),
        3,
        shown,
        "cannot reach",
    );
    assert_eq!(read(), SPLIT, "nothing is written without a control plane");
    check(&at(&["split", "user", "v2=5%"]), 0, "is in force", "other changes");
    let split = SPLIT.replace("# of post", &format!("{route}# of post"));
    assert_eq!(read(), split);
    check(&at(&["routes", "user"]), 0, "user[v1] 95%, user[v2] 5%", "");
    check(&at(&["config", "diff"]), 0, "nothing would change", "");
    check(
        &at(&["split", "user", "v2=20%"]),
        0,
        "-- { name: split, to: [{ subset: v1, weight: 95%",
        "",
    );
    check(&at(&["routes", "user"]), 0, "user[v1] 80%, user[v2] 20%", "");

    check(
        &at(&[
            "fault",
            "user",
            "--delay",
            "200ms",
            "--percent",
            "10",
            "--from",
            "post",
            "--path",
            "/users/{id}",
        ]),
        0,
        "is in force",
        "",
    );
    let with = read();
    let line = "\n- { name: cli-delay, delay: 200ms, percent: 10%, from: [post], match: { path: \"/users/{id}\" }, until: \"20";
    assert!(with.contains(line), "{with}");
    check(&at(&["describe", "user", "-o", "json"]), 0, "cli-delay", "");
    check(
        &at(&[
            "fault",
            "user",
            "--abort",
            "503",
            "--grpc",
            "UNAVAILABLE",
            "--for",
            "24h",
        ]),
        0,
        "is in force",
        "",
    );
    check(
        &at(&["fault", "user", "--reset-after", "1kb", "--name", "cut"]),
        0,
        "is in force",
        "",
    );
    check(
        &at(&["fault", "user", "--delay", "1s"]),
        0,
        "-- { name: cli-delay, delay: 200ms",
        "",
    );
    check(&at(&["fault", "user", "--clear", "cut"]), 0, "-- { name: cut", "");
    check(
        &at(&["fault", "user", "--clear", "cut"]),
        4,
        "",
        "it has cli-delay, cli-abort",
    );
    check(&at(&["fault", "user", "--clear"]), 0, "is in force", "");
    check(&at(&["fault", "user", "--clear"]), 0, "says so already", "");
    check(&at(&["split", "user", "--clear"]), 0, "is in force", "");
    assert_eq!(read(), SPLIT, "everything else stands as it stood");
    check(&at(&["split", "user", "--clear"]), 4, "", "no route `split`");

    for (code, args, said) in [
        (2, &["split", "user", "v3=5%"][..], "did you mean v"),
        (2, &["split", "post", "v2=5%"], "no `subsets`"),
        (2, &["fault", "user", "--delay", "1s", "--refuse"], "exactly one of"),
        (2, &["fault", "user"], "exactly one of"),
        (2, &["fault", "user", "--delay", "1s", "--for", "25h"], "at most 24h"),
        (2, &["fault", "user", "--clear", "--delay", "1s"], "cannot be used with"),
        (4, &["fault", "usre", "--refuse"], "did you mean default/user?"),
        (5, &["fault", "user", "--delay", "soon"], "is not a duration"),
        (5, &["fault", "user", "--abort", "503", "--from", "psot"], "psot"),
    ] {
        check(&at(args), code, "", said);
    }
    assert_eq!(read(), SPLIT, "what is refused is not written");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
}
