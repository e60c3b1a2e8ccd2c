//! What `up` says of a mesh that cannot run.

use std::fs;
use std::net::TcpListener;

use super::{World, text};

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
