//! Who gets in: `run` beside a mesh, sidecars that join again, calls by a person.

use std::fs;
use std::io::Read as _;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{World, ended, eventually, free, get, marked, pid, text};

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
