//! The program as a person uses it: real processes, real sidecars, a real control plane.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod joining;
mod lifetime;
mod mistakes;
mod watching;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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
