//! A mesh comes up, loses what is killed and gets it back, and goes down without a trace.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{World, ended, eventually, get, marked, pid, text};

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
