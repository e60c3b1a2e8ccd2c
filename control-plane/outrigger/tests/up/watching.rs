//! What happens in a mesh, for people: `events`, `stats`, `top`.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{World, eventually, get, text};

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

/// Runs `outrigger top` on a terminal, does what `steps` say, and looks at what is left of it.
#[track_caller]
fn leaves_the_terminal_as_it_was(world: &World, steps: &[&str]) {
    let mut command = Command::new("python3");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/terminal.py"))
        .args(steps)
        .args(["--", env!("CARGO_BIN_EXE_outrigger"), "top"])
        .current_dir(world.folder.path());
    let output = command.output().unwrap();
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    let well = "code 0 steps left 0 was raw screen left cursor shown modes restored";
    assert_eq!(said.trim(), well, "{steps:?}: {error}");
}

#[test]
fn top_draws_on_a_terminal_and_leaves_it_as_it_was() {
    let world = World::new();
    world.up_detached();
    get(world.port, "/call").unwrap();
    for end in ["key:q", "key:\u{3}", "signal:INT", "signal:TERM", "signal:HUP"] {
        leaves_the_terminal_as_it_was(&world, &["default/back", end]);
    }
    // Without a control plane it goes on, and says so.
    let down = concat!("run:", env!("CARGO_BIN_EXE_outrigger"), " down");
    leaves_the_terminal_as_it_was(&world, &["default/back", down, "old:", "key:q"]);
    let nowhere = world.run(&["top"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("stats --watch"), "{nowhere:?}");
}
