//! The program as a person uses it: real processes, real sidecars, a real control plane.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Answers every GET with its name, its process and what `front` was told; `/call` asks the service behind.
const SERVER: &str = r#"
import http.server, os, sys, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/call":
            text = urllib.request.urlopen(os.environ["BACK_URL"] + "/from-front").read()
        else:
            text = ("%s %d %s" % (os.environ["OUTRIGGER_SERVICE"], os.getpid(), os.environ.get("SECRET"))).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, form, *args):
        print("served", self.path, flush=True)
server = http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler)
print("listening", flush=True)
server.serve_forever()
"#;

struct World {
    folder: TempDir,
    port: u16,
    spare: u16,
}

impl World {
    /// Two services, `front` on a fixed port and `back` behind it.
    fn new() -> Self {
        let (port, spare) = (free(), free());
        let mesh = format!(
            "mesh: test\n---\nservice: front\nlanguage: python\nrun: python3 server.py\nport: {port}\nprotocol: http\n\
             mode: permissive\nhealth: {{ http: / }}\ncalls: [back]\nenv: {{ SECRET: {{ from_file: secret }} }}\n---\n\
             service: back\nlanguage: python\nrun: python3 server.py\nprotocol: http\nhealth: {{ http: /, every: 500ms }}\n"
        );
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            port,
            spare,
        };
        world.write("server.py", SERVER);
        world.write("secret", "hush\n");
        world.write("mesh.yaml", &mesh);
        world
    }

    fn with_mesh(mesh: &str) -> Self {
        let world = Self::new();
        world.write("mesh.yaml", mesh);
        world
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
            command.env_remove(name);
        }
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what has to succeed; its standard output.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn up_detached(&self) -> String {
        self.ok(&["up", "-d", "--control-plane-port", &self.spare.to_string()])
    }

    fn ps(&self) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["ps", "-o", "json"])).unwrap()
    }

    fn row(&self, instance: &str) -> Value {
        self.ps().into_iter().find(|row| row["instance"] == instance).unwrap()
    }

    fn up_json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder.path().join(".outrigger/run/up.json")).unwrap()).unwrap()
    }

    #[track_caller]
    fn nothing_remains(&self, run: &str) {
        let mark = format!("OUTRIGGER_RUN={run}");
        eventually("no process remains", || marked(&mark).is_empty().then_some(()));
        let folder: PathBuf = self.folder.path().join(".outrigger/run");
        eventually("the run folder is gone", || (!folder.exists()).then_some(()));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.command(&["down"]).output().ok();
    }
}

fn marked(mark: &str) -> Vec<String> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| pid.parse::<i32>().is_ok())
        .filter(|pid| {
            let environment = fs::read(Path::new("/proc").join(pid).join("environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        })
        .collect()
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

fn pid(value: &Value) -> Option<Pid> {
    value.as_i64().map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()))
}

#[track_caller]
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn ended(child: &mut Child) -> Option<i32> {
    eventually("the program ends", || child.try_wait().unwrap()).code()
}

#[test]
fn a_mesh_comes_up_serves_is_restarted_and_goes_down_without_a_trace() {
    let world = World::new();
    let said = world.up_detached();
    assert!(
        said.contains("2 of 2 healthy") && said.contains(&format!("http://127.0.0.1:{}", world.port)),
        "{said}"
    );
    let run = world.up_json()["run"].as_str().unwrap().to_owned();

    let answer = get(world.port, "/").unwrap();
    assert!(answer.starts_with("front ") && answer.ends_with(" hush"), "{answer}");
    let answer = get(world.port, "/call").unwrap();
    assert!(answer.starts_with("back ") && answer.ends_with(" None"), "{answer}");

    let again = world.run(&["up"]);
    assert_eq!(again.status.code(), Some(1));
    let first = world.up_json()["pid"].to_string();
    assert!(
        text(&again.stderr).contains(&format!("already running (pid {first})")),
        "{}",
        text(&again.stderr)
    );

    let before = world.row("back-1");
    let said = world.ok(&["restart", "back"]);
    assert!(
        said.starts_with("back-2: starts beside back-1\n") && said.ends_with("back-1: stopped\nrestarted: back-2\n"),
        "{said}"
    );
    let after = world.row("back-2");
    assert_eq!(after["health"], "ok");
    assert_ne!(
        (&before["app_pid"], &before["sidecar_pid"]),
        (&after["app_pid"], &after["sidecar_pid"])
    );
    assert_eq!(world.ps().len(), 2);
    // Its fixed port passes to the next instance.
    world.ok(&["restart", "front"]);
    assert!(get(world.port, "/call").is_some());
    assert_eq!(world.run(&["restart", "nobody"]).status.code(), Some(1));

    let logs = world.ok(&["logs", "back"]);
    assert!(
        logs.contains("back-1 | listening") && logs.contains("served /from-front"),
        "{logs}"
    );
    assert!(
        !world.ok(&["logs", "--tail", "1"]).contains("listening\nfront-1"),
        "more than one line each"
    );

    assert_eq!(world.ok(&["down"]), "stopped\n");
    world.nothing_remains(&run);
    assert_eq!(world.ok(&["down"]), "nothing runs here\n");
    assert_eq!(world.ok(&["ps"]), "nothing runs here\n");
    assert!(
        world.ok(&["logs", "front"]).contains("listening"),
        "logs outlive the mesh"
    );
}

/// Two versions of one service side by side, each with its label and its own environment.
#[test]
fn versions_run_side_by_side() {
    let world = World::with_mesh(
        "mesh: test\n---\nservice: back\nrun: python3 server.py\nprotocol: http\nhealth: { http: /, every: 500ms }\n\
         labels: { zone: a }\nversions: { v1: { env: { SECRET: one } }, v2: { env: { SECRET: two }, weight: 3 } }\n\
         routes: [{ name: canary, to: [{ subset: v1, weight: 95% }, { subset: v2, weight: 5% }] }]\n",
    );
    world.up_detached();
    let instances: Vec<Value> = world.ps().into_iter().map(|row| row["instance"].clone()).collect();
    assert_eq!(instances, ["back-v1-1", "back-v2-1"]);
    let endpoints: Value = serde_json::from_str(&world.ok(&["get", "endpoints", "-o", "json"])).unwrap();
    let seen: Vec<_> = endpoints
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (&e["labels"]["version"], &e["labels"]["zone"], &e["weight"]))
        .collect();
    assert_eq!(
        seen,
        [
            (&"v1".into(), &"a".into(), &1.into()),
            (&"v2".into(), &"a".into(), &3.into())
        ],
        "{endpoints}"
    );
    assert!(world.ok(&["routes", "back"]).contains("back[v1] 95%, back[v2] 5%"));
    world.ok(&["down"]);
}

#[test]
fn a_killed_app_and_a_killed_sidecar_come_back() {
    let world = World::new();
    world.up_detached();
    let before = world.row("back-1");
    kill(pid(&before["app_pid"]).unwrap(), Signal::SIGKILL).unwrap();
    let after = eventually("the app is back", || {
        let row = world.row("back-1");
        (row["health"] == "ok" && row["app_pid"] != before["app_pid"]).then_some(row)
    });
    assert_eq!(after["restarts"], 1);
    assert_eq!(after["sidecar_pid"], before["sidecar_pid"]);

    kill(pid(&before["sidecar_pid"]).unwrap(), Signal::SIGKILL).unwrap();
    let again = eventually("the sidecar is back", || {
        let row = world.row("back-1");
        (row["health"] == "ok" && row["sidecar_pid"] != before["sidecar_pid"]).then_some(row)
    });
    assert_eq!(
        (&again["app_pid"], &again["sidecar_restarts"]),
        (&after["app_pid"], &Value::from(1))
    );
    assert_eq!(again["restarts"], 1, "the app was started again for its own sake only");
    let table = world.ok(&["ps"]);
    let counts = |instance: &str| {
        let row = table.lines().find(|line| line.trim_start().starts_with(instance));
        row.and_then(|row| {
            row.split_whitespace()
                .find(|cell| cell.contains('/') && !cell.contains(':'))
        })
    };
    assert_eq!(
        (counts("back-1"), counts("front-1")),
        (Some("1/1"), Some("0/0")),
        "{table}"
    );
    eventually("calls arrive again", || get(world.port, "/call"));
}

#[test]
fn a_killed_control_plane_comes_back_and_traffic_goes_on() {
    let world = World::new();
    world.up_detached();
    let run = world.up_json()["run"].as_str().unwrap().to_owned();
    let control_plane = || {
        let ours = marked(&format!("OUTRIGGER_RUN={run}"));
        ours.into_iter()
            .find(|pid| marked("OUTRIGGER_INSTANCE=control-plane").contains(pid))
    };
    let before = control_plane().unwrap();
    kill(Pid::from_raw(before.parse().unwrap()), Signal::SIGKILL).unwrap();
    assert!(get(world.port, "/call").is_some());
    eventually("another control plane runs", || {
        control_plane().filter(|pid| *pid != before)
    });
    eventually("it answers", || {
        world.run(&["get", "services"]).status.success().then_some(())
    });
    assert!(get(world.port, "/call").is_some());
}

#[test]
fn an_up_that_is_killed_while_it_builds_leaves_nothing() {
    let build = "python3 -c 'import os, time; os.setsid(); open(\"building\", \"w\"); time.sleep(600)' & wait";
    let world = World::with_mesh(&format!(
        "service: a\nbuild: |-\n  {build}\nrun: sleep 600\nprotocol: tcp\n"
    ));
    let mut up = world.command(&["up"]).stdout(Stdio::null()).spawn().unwrap();
    eventually("it builds", || {
        world.folder.path().join("building").exists().then_some(())
    });
    let run = world.up_json()["run"].as_str().unwrap().to_owned();
    up.kill().unwrap();
    ended(&mut up);
    world.nothing_remains(&run);
}

#[test]
fn a_killed_up_leaves_nothing() {
    let world = World::new();
    let port = world.spare.to_string();
    let mut up = world
        .command(&["up", "--control-plane-port", &port])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is up", || get(world.port, "/"));
    let run = world.up_json()["run"].as_str().unwrap().to_owned();
    up.kill().unwrap();
    ended(&mut up);
    world.nothing_remains(&run);
    assert!(
        TcpListener::bind(("127.0.0.1", world.port)).is_ok(),
        "the port is free again"
    );
}

#[test]
fn ctrl_c_ends_with_code_0_and_logs_were_followed() {
    let world = World::new();
    let port = world.spare.to_string();
    let mut up = world
        .command(&["up", "--control-plane-port", &port])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it is up", || get(world.port, "/call"));
    let run = world.up_json()["run"].as_str().unwrap().to_owned();
    eventually("start-up is over", || (world.up_json()["ready"] == true).then_some(()));
    kill(Pid::from_raw(i32::try_from(up.id()).unwrap()), Signal::SIGINT).unwrap();
    let mut said = String::new();
    up.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended(&mut up), Some(0));
    assert!(
        said.contains("SERVICE") && said.contains("front-1 | served /call"),
        "{said}"
    );
    world.nothing_remains(&run);
}

#[test]
fn a_port_in_use_names_its_holder_and_a_missing_secret_its_name() {
    let world = World::new();
    fs::remove_file(world.folder.path().join("secret")).unwrap();
    let _holder = TcpListener::bind(("127.0.0.1", world.port)).unwrap();
    let output = world.run(&["up"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains(&format!(
            "port {} is in use by process {}",
            world.port,
            std::process::id()
        )),
        "{said}"
    );
    assert!(said.contains("front: env SECRET: cannot read"), "{said}");
    assert!(!world.folder.path().join(".outrigger/run").exists());
}

#[test]
fn a_failing_build_shows_its_output() {
    let world = World::with_mesh("service: a\nbuild: echo all is lost; exit 3\nrun: sleep 600\nprotocol: tcp\n");
    let output = world.run(&["up"]);
    assert_eq!(output.status.code(), Some(1));
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert!(
        said.contains("all is lost") && error.contains("exited with code 3"),
        "{said}{error}"
    );
}

#[test]
fn a_command_that_is_not_found_shows_its_last_lines_and_code() {
    let world = World::with_mesh("service: a\nrun: no-such-program --now\nprotocol: tcp\n");
    let output = world.run(&["up", "-d", "--control-plane-port", &world.spare.to_string()]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", text(&output.stderr));
    assert!(
        said.contains("crash loop") && said.contains("exited with code 127"),
        "{said}"
    );
    assert!(said.contains("no-such-program: not found"), "{said}");
    assert_eq!(world.row("a-1")["state"], "crash loop");
    world.ok(&["down"]);
}

#[test]
fn an_invalid_mesh_is_refused_before_anything_starts() {
    let world = World::with_mesh("service: a\nrun: sleep 600\nprotcol: tcp\n");
    let output = world.run(&["up", "-d"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains("protcol"), "{}", text(&output.stderr));
    assert!(!world.folder.path().join(".outrigger/run").exists());
}

#[test]
fn run_passes_exit_code_and_signals_and_registers_beside_a_running_mesh() {
    let world = World::new();
    world.up_detached();
    let url = format!("https://127.0.0.1:{}", world.spare);
    let code = world.run(&[
        "run",
        "--service",
        "job",
        "--control-plane",
        &url,
        "--",
        "sh",
        "-c",
        "exit 7",
    ]);
    assert_eq!(code.status.code(), Some(7), "{}", text(&code.stderr));

    let port = free();
    let script = "trap 'echo bye; exit 9' TERM; python3 server.py & echo $OUTRIGGER_INSTANCE; wait";
    let args = [
        "run",
        "--service",
        "extra",
        "--control-plane",
        &url,
        "--protocol",
        "http",
        "--health",
        "http:/",
    ];
    let mut command = world.command(&args);
    command.args(["--port", &port.to_string(), "--calls", "back", "--", "sh", "-c", script]);
    let mut extra = command.stdout(Stdio::piped()).spawn().unwrap();
    let answer = eventually("calls go out", || get(port, "/call"));
    assert!(answer.starts_with("back "), "{answer}");
    kill(Pid::from_raw(i32::try_from(extra.id()).unwrap()), Signal::SIGTERM).unwrap();
    let mut said = String::new();
    extra.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended(&mut extra), Some(9));
    let instance = said.lines().next().unwrap();
    assert!(said.ends_with("bye\n"), "{said}");
    assert!(marked(&format!("OUTRIGGER_INSTANCE={instance}")).is_empty());
    assert!(marked(&format!("OUTRIGGER_INSTANCE={instance}.sidecar")).is_empty());
}

#[test]
fn sidecars_join_again_when_their_state_or_the_control_planes_is_gone() {
    let world = World::new();
    world.up_detached();
    let state = world.folder.path().join(".outrigger/state");
    let roots = || {
        let certs: Value = serde_json::from_str(&world.ok(&["certs", "-o", "json"])).unwrap();
        let leaves = certs["certs"].as_array().unwrap();
        (
            certs["roots"][0]["sha256"].clone(),
            leaves.iter().map(|leaf| leaf["service"].clone()).collect::<Vec<_>>(),
        )
    };
    let (first, joined) = roots();
    assert_eq!(joined, ["default/back", "default/front"]);
    for (gone, same_root) in [("sidecars", true), ("control-plane", false)] {
        world.ok(&["down"]);
        fs::remove_dir_all(state.join(gone)).unwrap();
        world.up_detached();
        eventually("calls arrive", || get(world.port, "/call"));
        assert_eq!(roots().0 == first, same_root, "{gone}");
    }
    // One batch of tokens, however often it was started.
    let tokens: Value = serde_json::from_str(&world.ok(&["token", "list", "-o", "json"])).unwrap();
    assert_eq!(tokens.as_array().unwrap().len(), 2, "{tokens}");
}

#[test]
fn a_killed_up_leaves_tokens_that_the_next_one_ends() {
    let world = World::new();
    world.up_detached();
    let tokens = || -> Vec<String> {
        let tokens: Value = serde_json::from_str(&world.ok(&["token", "list", "-o", "json"])).unwrap();
        let ids = tokens
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token["id"].as_str().unwrap().to_owned());
        ids.collect()
    };
    let (before, run) = (tokens(), world.up_json()["run"].as_str().unwrap().to_owned());
    kill(pid(&world.up_json()["supervisor"]).unwrap(), Signal::SIGKILL).unwrap();
    world.nothing_remains(&run);
    world.up_detached();
    let after = tokens();
    assert_eq!((before.len(), after.len()), (2, 2));
    assert!(before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
}

#[test]
fn a_call_is_made_as_the_operator_or_as_another_and_a_denial_says_what_helps() {
    let world = World::new();
    let mesh = fs::read_to_string(world.folder.path().join("mesh.yaml")).unwrap();
    world.write("mesh.yaml", &(mesh + "allow: [front]\n"));
    world.up_detached();
    let denied = world.run(&["call", "back", "/x"]);
    assert_eq!(denied.status.code(), Some(1));
    let said = text(&denied.stderr);
    for part in [
        "403 Forbidden (mesh: denied)",
        "no entry of `allow` matches",
        "spiffe://outrigger.local/ns/outrigger/svc/operator to `allow` of default/back",
        "--as SERVICE",
    ] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    let body = world.ok(&["call", "back", "/x", "--as", "front"]);
    assert!(body.starts_with("back "), "{body}");
    assert_eq!(
        world.run(&["explain-access", "unauthenticated", "back"]).status.code(),
        Some(6)
    );
    // Open to the mesh, and to plain clients as well.
    assert!(world.ok(&["call", "front", "/x"]).starts_with("front "));

    assert_eq!(
        (&world.row("back-1")["mtls"], &world.row("front-1")["mtls"]),
        (&"strict".into(), &"permissive".into())
    );
    get(world.port, "/call").unwrap();
    let stats: Vec<Value> = serde_json::from_str(&world.ok(&["stats", "-o", "json"])).unwrap();
    let inbound = |service: &str| {
        let one = stats
            .iter()
            .find(|one| one["service"] == format!("default/{service}"))
            .unwrap();
        let rows = one["services"].as_array().unwrap();
        let row = rows.iter().find(|row| row["direction"] == "inbound").unwrap();
        (
            row["requests"].as_u64().unwrap(),
            row["requests_secured"].as_u64().unwrap(),
        )
    };
    let ((front, front_secured), (back, back_secured)) = (inbound("front"), inbound("back"));
    assert!(front_secured == 1 && front > 1, "{front_secured} of {front}");
    assert!(back > 0 && back_secured == back, "{back_secured} of {back}");
}

/// `back` fails every request while there is a file `failing`; `front` passes its status on.
const FAILING: &str = r#"
import http.server, os, urllib.error, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        status = 200
        if self.path == "/call":
            try:
                urllib.request.urlopen(os.environ["BACK_URL"] + "/from-front").read()
            except urllib.error.HTTPError as error:
                status = error.code
        elif self.path == "/from-front" and os.path.exists("failing"):
            status = 503
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, form, *args):
        pass
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// A breaker opens because of a failing app and closes when it is well again: each step is one event, with its cause and
/// when it is tried again.
#[test]
fn a_breaker_is_told_of_in_events_and_stats() {
    let world = World::new();
    let mesh = fs::read_to_string(world.folder.path().join("mesh.yaml")).unwrap();
    world.write(
        "mesh.yaml",
        &(mesh + "breaker: { failures: 3, cooldown: 1s }\noutlier: off\n"),
    );
    world.write("server.py", FAILING);
    world.write("failing", "");
    world.up_detached();
    let events = || -> Vec<Value> {
        let all: Vec<Value> = serde_json::from_str(&world.ok(&["events", "back", "-o", "json"])).unwrap();
        all.into_iter()
            .filter(|event| event["event"] == "traffic_changed")
            .collect()
    };
    let opened = eventually("the breaker opens", || {
        get(world.port, "/call");
        events().into_iter().next()
    });
    assert_eq!(opened["what"], "breaker_opened", "{opened}");
    assert_eq!(opened["service"], "default/back", "{opened}");
    assert_eq!(opened["caller"], "default/front/front-1", "{opened}");
    assert_eq!(opened["endpoint"], Value::Null, "{opened}");
    assert!(
        opened["cause"].as_str().is_some_and(|cause| cause.contains('3')),
        "{opened}"
    );
    let time = |key: &str| opened[key].as_str().unwrap().to_owned();
    assert!(time("next_probe") > time("at"), "{opened}");
    let table = world.ok(&["events"]);
    assert!(
        table.contains("NEXT PROBE") && table.contains("breaker_opened"),
        "{table}"
    );
    assert!(
        table.contains("registered") || table.contains("config_applied"),
        "{table}"
    );

    fs::remove_file(world.folder.path().join("failing")).unwrap();
    let what = eventually("the breaker closes", || {
        get(world.port, "/call");
        let what: Vec<String> = events()
            .iter()
            .map(|event| event["what"].as_str().unwrap().to_owned())
            .collect();
        (what.last().unwrap() == "breaker_closed").then_some(what)
    });
    let [.., probing, _] = what.as_slice() else {
        panic!("{what:?}")
    };
    assert_eq!(probing, "breaker_probing", "{what:?}");
    let stats: Vec<Value> = serde_json::from_str(&world.ok(&["stats", "front", "-o", "json"])).unwrap();
    assert_eq!(stats[0]["guards"][0]["service"], "default/back", "{stats:?}");
    assert_eq!(stats[0]["guards"][0]["breaker"], "closed", "{stats:?}");
}

/// Runs its arguments on a terminal of their own, presses `q` when the terminal shows `back`, and says how it was left.
const TERMINAL: &str = r#"
import os, pty, select, sys, termios, time
child, terminal = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[2], sys.argv[2:])
import fcntl, struct
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
seen, pressed, deadline = b"", False, time.monotonic() + 25
while time.monotonic() < deadline:
    if select.select([terminal], [], [], 0.1)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    if not pressed and b"default/back" in seen:
        os.write(terminal, sys.argv[1].encode())
        pressed = True
else:
    os.kill(child, 9)
_, status = os.waitpid(child, 0)
entered, left = seen.find(b"\x1b[?1049h"), seen.rfind(b"\x1b[?1049l")
print("pressed", pressed, "code", os.waitstatus_to_exitcode(status), "left", 0 <= entered < left)
"#;

#[test]
fn top_draws_on_a_terminal_and_leaves_it_as_it_was() {
    let world = World::new();
    world.up_detached();
    get(world.port, "/call").unwrap();
    world.write("terminal.py", TERMINAL);
    for key in ["q", "\u{3}"] {
        let output = Command::new("python3")
            .args(["terminal.py", key, env!("CARGO_BIN_EXE_outrigger"), "top"])
            .current_dir(world.folder.path())
            .output()
            .unwrap();
        let (said, error) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(said.trim(), "pressed True code 0 left True", "{key:?}: {error}");
    }
    let nowhere = world.run(&["top"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("stats --watch"), "{nowhere:?}");
}
