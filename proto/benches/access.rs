//! What a decision costs. Prints nanoseconds; ends with 1 when the case with a bound exceeds it.
//!
//! `cargo bench -p outrigger-proto --bench access`
#![expect(clippy::print_stdout, reason = "its output is the result")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use outrigger_proto::access::{Asked, Call, Rules};
use outrigger_proto::model::{Access, FieldError, Principal, Rule, ServiceName, SpiffeId};

const RULES: usize = 10_000;
/// With distinct identities and overlapping templates, the match being the last.
const BOUND: Duration = Duration::from_micros(2);
const OWN: &str = "mesh.local";

/// Templates that overlap with each other and all match `PATH`, as the last of each rule.
const TEMPLATES: [&[&str]; 4] = [
    &["/api/{v}/users/me", "/api/v1/{kind}/{id}"],
    &["/api/{v}/orders/{id}", "/api/{v}/users/{id}"],
    &["/{a}/{b}/{c}", "/{a}/{b}/{c}/{d}"],
    &["/static/*", "/api/v1/*"],
];
const PATH: &str = "/api/v1/users/4711";

fn rule(i: usize, from: Vec<Principal>) -> Rule {
    Rule {
        name: format!("allow[{i}]"),
        from,
        ports: if i.is_multiple_of(2) {
            vec![]
        } else {
            vec!["http".into()]
        },
        methods: if i.is_multiple_of(3) {
            vec![]
        } else {
            vec!["GET".into(), "POST".into()]
        },
        paths: TEMPLATES[i % TEMPLATES.len()].iter().map(|p| (*p).into()).collect(),
        grpc: vec![],
    }
}

fn measure(name: &str, rules: Vec<Rule>, caller: &SpiffeId, path: &str) -> Result<Duration, FieldError> {
    const ROUNDS: u32 = 20_000;
    let last = rules.last().map(|r| r.name.clone()).unwrap_or_default();
    let access = Access {
        default_allow: false,
        rules,
        ..Access::default()
    };
    let rules = Rules::compile(&access, OWN)?;
    let call = Call {
        caller: Some(caller),
        port: "http",
        asked: Some(Asked { method: "GET", path }),
    };
    if rules.decide(&call).rule() != last {
        return Err(FieldError {
            path: name.into(),
            reason: format!("{:?} is not the last rule", rules.decide(&call)),
        });
    }
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                black_box(rules.decide(black_box(&call)));
            }
            start.elapsed() / ROUNDS
        })
        .min()
        .unwrap_or_default();
    println!("{name}: {} ns", best.as_nanos());
    Ok(best)
}

fn run() -> Result<bool, FieldError> {
    let caller = |i: usize| SpiffeId::new(OWN, &ServiceName::new("default", &format!("svc-{i}"))?);
    let mut distinct = Vec::with_capacity(RULES);
    for i in 0..RULES {
        distinct.push(rule(i, vec![Principal::Id(caller(i)?)]));
    }
    let last = caller(RULES - 1)?;
    let bounded = measure(
        "10,000 callers, overlapping templates, last matches",
        distinct.clone(),
        &last,
        PATH,
    )?;
    measure(
        "the same, path not in normal form",
        distinct,
        &last,
        "/api/v1/users/%34711",
    )?;
    // One caller, so only the paths tell the rules apart.
    let one = (0..RULES).map(|i| Rule {
        ports: vec![],
        methods: vec![],
        paths: vec![match i {
            9_999 => "/api/{v}/users/{id}".into(),
            _ => format!("/api/{{v}}/r{i}/{{id}}"),
        }],
        ..rule(i, vec![Principal::Authenticated])
    });
    measure(
        "10,000 templates of one caller, last matches",
        one.collect(),
        &last,
        PATH,
    )?;
    measure(
        "one rule without paths",
        vec![Rule {
            paths: vec![],
            ..rule(0, vec![])
        }],
        &last,
        PATH,
    )?;
    Ok(bounded <= BOUND)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("more than {} ns", BOUND.as_nanos());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
