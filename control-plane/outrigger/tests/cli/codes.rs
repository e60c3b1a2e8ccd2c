//! Mistakes, each with its exit code and what helps; output for programs.

use super::{GOOD, NOBODY, check, outrigger, plane};

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
