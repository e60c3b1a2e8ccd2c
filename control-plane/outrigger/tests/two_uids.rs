//! Another user of the same machine: reads nothing, asks nothing, and is nobody but whom a token names.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The other user, who is nobody.
const OTHER: &str = "65534";

/// Tells who calls.
const BACK: &str = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        text = (self.headers.get("outrigger-caller") or "nobody").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, form, *args):
        pass
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Calls `back` until it answers or the time is over, and prints its answer or the mesh's last reason.
const CALLER: &str = r#"
import os, sys, time, urllib.error, urllib.request
end, said = time.monotonic() + float(sys.argv[1]), "no answer"
while time.monotonic() < end:
    try:
        print("answered:", urllib.request.urlopen(os.environ["BACK_URL"], timeout=5).read().decode())
        sys.exit(0)
    except urllib.error.HTTPError as error:
        said = "%d %s" % (error.code, error.headers.get("outrigger-reason"))
    except OSError as error:
        said = str(error)
    time.sleep(0.05)
print("refused:", said)
sys.exit(42)
"#;

/// A mesh of root's, in a folder that everybody may enter, so that what protects it is its own.
struct World {
    folder: TempDir,
    program: PathBuf,
    port: u16,
}

impl World {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test acts as two users, which only root can: run it as root"
        );
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Where the tests are built the other user may not be able to go. Copied by another process: a file that is open
        // for writing here would be so in what the other tests start meanwhile, and could not be run.
        let program = folder.path().join("outrigger");
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_outrigger"))
            .arg(&program)
            .status();
        assert!(copied.unwrap().success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let world = Self { folder, program, port };
        world.write("back.py", BACK);
        world.write("caller.py", CALLER);
        world.write(
            "mesh.yaml",
            "service: back\nrun: python3 back.py\nprotocol: http\nallow: [guest]\n---\nservice: guest\nprotocol: http\n---\n\
             service: other\nprotocol: http\n",
        );
        world.ok(&["up", "-d", "--control-plane-port", &port.to_string()]);
        world
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.path().join(".outrigger/run/control-plane.sock")
    }

    /// As root, whose mesh it is.
    fn ok(&self, args: &[&str]) -> String {
        let output = command(&self.program, self.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// As the other user.
    fn other(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = command(Path::new("setpriv"), self.path());
        command.args([
            "--reuid",
            OTHER,
            "--regid",
            OTHER,
            "--clear-groups",
            "--no-new-privs",
            "--",
        ]);
        command.arg(program).args(args);
        command
    }

    fn other_asks(&self, args: &[&str]) -> Output {
        let mut args = args.to_vec();
        let socket = format!("unix:{}", self.socket().display());
        args.extend(["--control-plane", &socket]);
        self.other(&self.program, &args).output().unwrap()
    }

    /// The other user runs `service` with `token` and calls `back` for `seconds`.
    fn other_runs(&self, service: &str, token: &str, seconds: &str) -> Output {
        let url = format!("https://127.0.0.1:{}", self.port);
        let args = [
            "run",
            "--service",
            service,
            "--control-plane",
            &url,
            "--token",
            token,
            "--calls",
            "back",
            "--",
            "python3",
            "caller.py",
            seconds,
        ];
        self.other(&self.program, &args).output().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        command(&self.program, self.path()).arg("down").output().ok();
    }
}

fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null());
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "OUTRIGGER_TOKEN",
        "OUTRIGGER_CONTROL_PLANE",
        "XDG_RUNTIME_DIR",
        "HOME",
    ] {
        command.env_remove(name);
    }
    command
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn another_user_reads_nothing_and_asks_nothing() {
    let world = World::new();
    // All there is, so that what follows looks at something.
    let home = world.path().join(".outrigger");
    for file in [
        "run/back-1.sidecar.json",
        "run/tokens/default.back",
        "run/up.json",
        "state/logs/back-1.log",
    ] {
        assert!(home.join(file).exists(), "{file}");
    }
    let find = ["find", ".outrigger", "-mindepth", "2", "-readable"];
    let found = world.other(Path::new(find[0]), &find[1..]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "readable by another user");
    let ours = command(Path::new(find[0]), world.path())
        .args(&find[1..])
        .output()
        .unwrap();
    assert!(!ours.stdout.is_empty());

    let refused = |args: &[&str]| {
        let output = world.other_asks(args);
        assert_eq!(output.status.code(), Some(7), "{args:?}: {}", text(&output));
        text(&output)
    };
    let said = refused(&["get", "services"]);
    assert!(said.contains("root's") && said.contains("permission denied"), "{said}");
    refused(&["token", "create", "--service", "back"]);
    refused(&["certs"]);
    refused(&["call", "back", "--as", "guest"]);

    // Permissions that somebody widened do not make a stranger an operator.
    for (path, mode) in [(home.join("run"), 0o755), (world.socket(), 0o777)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let said = world.other_asks(&["get", "services"]);
    assert!(!said.status.success(), "{}", text(&said));
    assert!(!text(&said).contains("back"), "{}", text(&said));
    world.ok(&["get", "services"]);
}

#[test]
fn another_user_is_nobody_but_whom_its_token_names() {
    let world = World::new();
    let token = |service: &str| world.ok(&["token", "create", "--service", service]).trim().to_owned();
    let as_guest = world.other_runs("guest", &token("guest"), "20");
    assert_eq!(as_guest.status.code(), Some(0), "{}", text(&as_guest));
    assert!(
        text(&as_guest).contains("answered: spiffe://outrigger.local/ns/default/svc/guest"),
        "{}",
        text(&as_guest)
    );

    // `other` is not in `back`'s list, and its token makes nobody `guest` or `back`.
    let as_other = world.other_runs("other", &token("other"), "2");
    assert_eq!(as_other.status.code(), Some(42), "{}", text(&as_other));
    assert!(text(&as_other).contains("refused: 403 denied"), "{}", text(&as_other));
    for service in ["guest", "back"] {
        let output = world.other_runs(service, &token("other"), "2");
        assert_eq!(output.status.code(), Some(42), "{service}: {}", text(&output));
        assert!(!text(&output).contains("answered"), "{service}: {}", text(&output));
        let certs: Value = serde_json::from_str(&world.ok(&["certs", "-o", "json"])).unwrap();
        let leaves = certs["certs"].as_array().unwrap();
        let of = leaves
            .iter()
            .filter(|leaf| leaf["service"] == format!("default/{service}"));
        // The one that joined as it should.
        assert_eq!(of.count(), 1, "{certs}");
    }
}
