//! mesh.yaml: applied, compared, explained, edited.

use super::{GOOD, NOBODY, check, outrigger, plane};

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
