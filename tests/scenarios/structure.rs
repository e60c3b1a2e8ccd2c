//! The house keeps its shape: rooms are described, keep to what they may know, and no file is forgotten.
//!
//! `ARCHITECTURE.md` is the source. A table with the head `| room | does | must not know |` stands
//! under a heading that names the crate's folder (`sidecar/src`, `control-plane/src`); its last column
//! lists rooms or crates in back-ticks, and a room that uses one of them fails here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::world::root;

pub(crate) fn tests() -> Vec<Trial> {
    type Test = (&'static str, fn() -> Result<()>);
    let all: [Test; 7] = [
        ("no_forgotten_file", no_forgotten_file),
        ("every_scenario_file_is_run", every_scenario_file_is_run),
        ("every_room_is_described", every_room_is_described),
        ("no_room_knows_what_it_must_not", no_room_knows_what_it_must_not),
        ("every_file_says_what_it_does", every_file_says_what_it_does),
        ("examples_contain_no_mesh", examples_contain_no_mesh),
        ("imports_are_found_in_every_form", imports_are_found_in_every_form),
    ];
    all.into_iter()
        .map(|(name, test)| {
            Trial::test(format!("structure::{name}"), move || {
                test().map_err(|e| format!("{e:#}").into())
            })
        })
        .collect()
}

const CRATES: &[&str] = &["sidecar/src", "control-plane/src"];

fn no_forgotten_file() -> Result<()> {
    let main = read("tests/scenarios/main.rs")?;
    for name in modules("tests/scenarios")? {
        ensure!(
            main.contains(&format!("mod {name};")),
            "tests/scenarios/{name}.rs is not declared in main.rs"
        );
    }
    let lib = read("tests/src/lib.rs")?;
    for name in modules("tests/src")? {
        ensure!(
            lib.contains(&format!("pub mod {name};")),
            "tests/src/{name}.rs is not declared in lib.rs"
        );
    }
    Ok(())
}

fn every_scenario_file_is_run() -> Result<()> {
    let main = read("tests/scenarios/main.rs")?;
    for name in modules("tests/scenarios")? {
        ensure!(
            main.contains(&format!("{name}::tests()")),
            "the tests of tests/scenarios/{name}.rs are never run"
        );
    }
    Ok(())
}

fn every_room_is_described() -> Result<()> {
    let text = read("ARCHITECTURE.md")?;
    let mut missing = Vec::new();
    for folder in CRATES {
        for room in modules(folder)? {
            let described = text.contains(&format!("`{room}.rs`"))
                || text.contains(&format!("`{room}/`"))
                || text.contains(&format!("`{room}`"));
            if !described {
                missing.push(format!("{folder}/{room}"));
            }
        }
    }
    ensure!(
        missing.is_empty(),
        "ARCHITECTURE.md says nothing about {}",
        missing.join(", ")
    );
    Ok(())
}

fn no_room_knows_what_it_must_not() -> Result<()> {
    let rules = rules(&read("ARCHITECTURE.md")?);
    for folder in CRATES {
        let rooms = modules(folder)?;
        let ruled: BTreeSet<&str> = rules
            .iter()
            .filter(|r| r.folder == *folder)
            .map(|r| r.room.as_str())
            .collect();
        for room in &rooms {
            ensure!(
                ruled.contains(room.as_str()),
                "no line `| {room} | does | must not know |` for {folder}"
            );
        }
        for room in ruled {
            let there = rooms.contains(room) || room == "tests";
            ensure!(there, "ARCHITECTURE.md describes {folder}/{room}, which is not there");
        }
    }
    let mut broken = Vec::new();
    for rule in rules.iter().filter(|r| r.room != "tests") {
        for file in files_of(&rule.folder, &rule.room)? {
            let source = std::fs::read_to_string(&file)?;
            let top = file.parent() == Some(root().join(&rule.folder).as_path());
            for line in knows(&source, &rule.forbidden, top) {
                broken.push(format!(
                    "{}: `{line}`, which `{}` must not know",
                    file.display(),
                    rule.room
                ));
            }
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

struct Rule {
    folder: String,
    room: String,
    forbidden: Vec<String>,
}

/// Reads the tables.
fn rules(text: &str) -> Vec<Rule> {
    let (mut rules, mut folder, mut table) = (Vec::new(), None, false);
    for line in text.lines() {
        if let Some(found) = CRATES.iter().find(|c| line.starts_with('#') && line.contains(**c)) {
            folder = Some(*found);
        }
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        if !line.trim_start().starts_with('|') {
            table = false;
        } else if cells == ["room", "does", "must not know"] {
            table = true;
        } else if let (true, [room, _, forbidden], Some(folder)) = (table, cells.as_slice(), folder) {
            for room in quoted(room) {
                rules.push(Rule {
                    folder: folder.to_owned(),
                    room: room.trim_end_matches('/').trim_end_matches(".rs").to_owned(),
                    forbidden: quoted(forbidden)
                        .map(|f| {
                            f.trim_end_matches('/')
                                .trim_end_matches(".rs")
                                .trim_start_matches("crate::")
                                .to_owned()
                        })
                        .collect(),
                });
            }
        }
    }
    rules
}

fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Uses of a forbidden room (`crate::room`) or crate (`tokio::`) in code, comments apart.
fn knows(source: &str, forbidden: &[String], top: bool) -> Vec<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let uses = paths(&code, top);
    let mut found = Vec::new();
    for name in forbidden {
        let room = format!("crate::{name}");
        if uses
            .iter()
            .any(|path| path == &room || path.starts_with(&format!("{room}::")))
        {
            found.push(room);
        }
        let external = code.match_indices(&format!("{name}::")).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
            // A bare `room::` without `crate::` is a crate's name only when no room is called so.
            starts && code[..at].ends_with("use ")
        });
        if external {
            found.push(format!("use {name}::"));
        }
    }
    found
}

/// Every path that begins at the crate's root, groups spread out: `crate::{a, b::C}` is two.
fn paths(code: &str, top: bool) -> Vec<String> {
    let mut all = Vec::new();
    let starts: &[&str] = if top { &["crate::", "super::"] } else { &["crate::"] };
    for start in starts {
        for (at, _) in code.match_indices(start) {
            spread("crate", &code[at + start.len()..], &mut all);
        }
    }
    all
}

/// Adds the path or the group that `rest` begins with.
fn spread(prefix: &str, rest: &str, all: &mut Vec<String>) {
    if let Some(inner) = rest.strip_prefix('{') {
        let (mut depth, mut part) = (1, String::new());
        for c in inner.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                spread(prefix, part.trim(), all);
                part.clear();
            } else {
                part.push(c);
            }
            if depth == 0 {
                return;
            }
        }
        return;
    }
    let end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
        .unwrap_or(rest.len());
    let path = rest[..end].trim_end_matches(':');
    if !path.is_empty() {
        all.push(format!("{prefix}::{path}"));
    }
    if rest[..end].ends_with("::") && rest[end..].starts_with('{') {
        spread(&format!("{prefix}::{path}"), &rest[end..], all);
    }
}

fn imports_are_found_in_every_form() -> Result<()> {
    let forbidden = ["connect".to_owned(), "tokio".to_owned()];
    let check = |source: &str, top, expected: usize| {
        let found = knows(source, &forbidden, top);
        ensure!(found.len() == expected, "{source:?}: {found:?}");
        Ok(())
    };
    check("use crate::connect::Pool;", false, 1)?;
    check("use crate::{balance::P2c, connect};", false, 1)?;
    check("use crate::{balance::{P2c, Ewma}, connect::{self, Pool}};", false, 1)?;
    check("fn f() { crate::connect::dial() }", false, 1)?;
    check("use super::connect::Pool;", true, 1)?;
    check("use super::connect::Pool;", false, 0)?;
    check("use crate::connection::Pool;", false, 0)?;
    check("//! [`crate::connect`]\n// use tokio::time;", false, 0)?;
    check("use tokio::time::Instant;", false, 1)?;
    check("use crate::balance::connect;", false, 0)
}

fn every_file_says_what_it_does() -> Result<()> {
    let mut silent = Vec::new();
    for folder in ["proto", "sidecar", "control-plane", "examples", "tests"] {
        for file in sources(&root().join(folder), &["rs"])? {
            if !std::fs::read_to_string(&file)?.starts_with("//!") {
                silent.push(file.display().to_string());
            }
        }
    }
    ensure!(silent.is_empty(), "no `//!` on the first line of {}", silent.join(", "));
    Ok(())
}

/// Names whose presence in a service would mean that it does the mesh's work itself.
const MESH_WORDS: &[&str] = &[
    "outrigger",
    "envoy",
    "istio",
    "linkerd",
    "dapr",
    "consul",
    "eureka",
    "zookeeper",
    "go-micro",
    "opentelemetry",
    "zipkin",
    "jaeger",
    "circuit_breaker",
    "circuitbreaker",
    "hystrix",
    "resilience4j",
    "failsafe",
    "gobreaker",
    "backon",
    "opossum",
    "tenacity",
    "127.0.0.1:2",
    "127.0.0.1:3",
    "localhost:",
];

fn examples_contain_no_mesh() -> Result<()> {
    let mut found = Vec::new();
    let mut read_any = false;
    for file in sources(
        &root().join("examples"),
        &["rs", "py", "go", "js", "ts", "toml", "mod", "json", "txt"],
    )? {
        let path = file.display().to_string();
        // Tests of an example start it the way its user would.
        if path.contains("/tests/") || path.contains("/node_modules/") || path.ends_with("/tests.rs") {
            continue;
        }
        read_any = true;
        let text = std::fs::read_to_string(&file).unwrap_or_default().to_lowercase();
        for (number, line) in text.lines().enumerate() {
            for word in MESH_WORDS.iter().filter(|w| line.contains(**w)) {
                found.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    ensure!(read_any, "no source file under examples/");
    ensure!(
        found.is_empty(),
        "services know of the mesh or of each other's addresses:\n{}",
        found.join("\n")
    );
    Ok(())
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// The modules directly in a folder; `foo.rs` and `foo/` are one.
fn modules(folder: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(root().join(folder)).with_context(|| folder.to_owned())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let module = name.strip_suffix(".rs").map(str::to_owned);
        let module = module
            .or_else(|| entry.path().is_dir().then_some(name))
            .filter(|m| m != "bin");
        names.extend(module.filter(|m| !["lib", "main", "tests"].contains(&m.as_str())));
    }
    Ok(names)
}

/// A room's own files, its tests apart.
fn files_of(folder: &str, room: &str) -> Result<Vec<PathBuf>> {
    let base = root().join(folder);
    let mut files = sources(&base.join(room), &["rs"]).unwrap_or_default();
    files.push(base.join(format!("{room}.rs")));
    files.retain(|f| f.is_file() && !f.ends_with("tests.rs") && !f.components().any(|c| c.as_os_str() == "tests"));
    ensure!(!files.is_empty(), "{folder}/{room} has no file");
    Ok(files)
}

/// All files below `folder` with one of the endings.
fn sources(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let built =
                ["target", "node_modules", ".venv", "vendor", "__pycache__"].contains(&name) || name.starts_with('.');
            if path.is_dir() && !built {
                folders.push(path);
            } else if path.is_file() && path.extension().is_some_and(|e| endings.iter().any(|x| e == *x)) {
                files.push(path);
            }
        }
    }
    Ok(files)
}
