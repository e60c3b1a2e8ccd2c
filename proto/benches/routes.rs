//! What a look-up costs. Prints nanoseconds; ends with 1 when 10,000 cost more than the bound over one.
//!
//! `cargo bench -p outrigger-proto --bench routes`
#![expect(clippy::print_stdout, reason = "its output is the result")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use outrigger_proto::model::{FieldMatch, Match, PathMatch, ValueMatch};
use outrigger_proto::routes::{Asked, Routes};

const ROUTES: usize = 10_000;
/// Of 10,000 exact paths, prefixes and templates, over one.
const BOUND: Duration = Duration::from_micros(1);
const PATH: &str = "/api/v1/users/4711/posts";

fn on(path: PathMatch) -> Match {
    Match {
        path: Some(path),
        ..Match::default()
    }
}

/// The `i`th of many; the last one matches.
fn mixed(i: usize) -> Match {
    on(match i % 3 {
        0 if i == ROUTES - 1 => PathMatch::Template("/api/v1/users/{id}/posts".into()),
        0 => PathMatch::Template(format!("/api/{{v}}/r{i}/{{id}}")),
        1 => PathMatch::Exact(format!("/api/v1/users/{i}")),
        _ => PathMatch::Prefix(format!("/api/v1/p{i}")),
    })
}

fn measure(name: &str, matches: &[Match], path: &str) -> Result<Duration, String> {
    const ROUNDS: u32 = 20_000;
    let routes = Routes::of(matches.iter().map(std::slice::from_ref)).map_err(|(i, e)| format!("{i}: {e}"))?;
    let field = |name: &str| (name == "x-tenant").then_some(&b"blue"[..]);
    let asked = Asked {
        host: Some("shop.default:8080"),
        path,
        query: Some("page=2"),
        method: "GET",
        field: &field,
    };
    let found = routes.find(&asked).map_err(|e| e.to_string())?.map(|found| found.route);
    if found != Some(matches.len() - 1) {
        return Err(format!("{name}: {found:?} is not the last"));
    }
    // Expressions one by one take as long as they take.
    let rounds = if name.contains("expressions") { 20 } else { ROUNDS };
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..rounds {
                let _found = black_box(routes.find(black_box(&asked)));
            }
            start.elapsed() / rounds
        })
        .min()
        .unwrap_or_default();
    println!("{name}: {} ns", best.as_nanos());
    Ok(best)
}

fn run() -> Result<bool, String> {
    let many: Vec<_> = (0..ROUTES).map(mixed).collect();
    let one = measure("one template", many.get(ROUTES - 1..).unwrap_or_default(), PATH)?;
    let all = measure("10,000 exact paths, prefixes and templates, last matches", &many, PATH)?;
    measure("the same, path not in normal form", &many, "/api/v1/users/%34711/posts")?;
    let overlapping = [
        "/{a}/{b}/{c}/x",
        "/api/{b}/{c}/{d}",
        "/{a}/v1/*",
        "/api/{b}/users/{d}/x",
    ];
    let overlapping: Vec<_> = (0..ROUTES)
        .map(|i| match overlapping.get(i % 4).filter(|_| i != ROUTES - 1) {
            Some(text) => on(PathMatch::Template(text.replace("/x", &format!("/x{i}")))),
            None => on(PathMatch::Template("/api/v1/users/{id}/posts".into())),
        })
        .map(|mut wanted| {
            // Whatever fits by path fails by method, so everything that overlaps is looked at.
            wanted.methods = vec!["POST".into()];
            wanted
        })
        .collect();
    let few: Vec<_> = overlapping
        .iter()
        .take(30)
        .cloned()
        .chain([on(PathMatch::Template("/api/v1/users/{id}/posts".into()))])
        .collect();
    measure("31 templates, of which many fit by path and fail by method", &few, PATH)?;
    let hosts = (0..ROUTES).map(|i| Match {
        hosts: vec![if i == ROUTES - 1 {
            "*.default".into()
        } else {
            format!("shop-{i}")
        }],
        ..Match::default()
    });
    measure("10,000 hosts, last matches", &hosts.collect::<Vec<_>>(), PATH)?;
    let tenants = (0..100).map(|i| Match {
        headers: vec![FieldMatch {
            name: "x-tenant".into(),
            value: ValueMatch::Exact(if i == 99 { "blue".into() } else { format!("t{i}") }),
        }],
        ..Match::default()
    });
    measure(
        "100 values of one header, last matches",
        &tenants.collect::<Vec<_>>(),
        PATH,
    )?;
    let expression = |i: usize| {
        on(PathMatch::Regex(match i {
            99 => "/api/v[0-9]+/users/[^/]+/posts".into(),
            _ => format!("/api/v[0-9]+/r{i}/[^/]+/posts"),
        }))
    };
    measure("one of expressions", &[expression(99)], PATH)?;
    measure(
        "100 expressions, last matches",
        &(0..100).map(expression).collect::<Vec<_>>(),
        PATH,
    )?;
    Ok(all <= one + BOUND)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("more than {} ns over one", BOUND.as_nanos());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
