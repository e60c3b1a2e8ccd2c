//! The program as scripts see it: what goes to which stream, and which exit code comes back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod codes;
mod configuration;
mod identity;

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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

const GOOD: &str = "service: user\nlanguage: rust\nprotocol: grpc\n---\nservice: post\nprotocol: http\ncalls: [user]\n";
