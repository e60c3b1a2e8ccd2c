//! Each rule of matching, the corpus of paths, and the index against the plainest possible matcher.

mod properties;

use super::*;
use crate::model::{Principal, Rule};

const OWN: &str = "mesh.local";

fn rule(from: &[Principal]) -> Rule {
    Rule {
        name: "allow[0]".into(),
        from: from.to_vec(),
        ports: Vec::new(),
        methods: Vec::new(),
        paths: Vec::new(),
        grpc: Vec::new(),
    }
}

fn access(rules: Vec<Rule>) -> Access {
    Access {
        default_allow: false,
        default_source: "the service has rules".into(),
        rules,
        audit: false,
    }
}

#[track_caller]
fn compiled(rules: Vec<Rule>) -> Rules {
    Rules::compile(&access(rules), OWN).expect("valid rules")
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("an id")
}

fn web() -> SpiffeId {
    id("spiffe://mesh.local/ns/default/svc/web")
}

fn http<'c>(caller: Option<&'c SpiffeId>, method: &'c str, path: &'c str) -> Call<'c> {
    Call {
        caller,
        port: "http",
        asked: Some(Asked { method, path }),
    }
}

const DENIED: Verdict<'_> = Verdict::Denied {
    rule: "the service has rules",
};
const ALLOWED: Verdict<'_> = Verdict::Allowed { rule: "allow[0]" };

/// Both ways of deciding have to agree.
#[track_caller]
fn check(rules: &Rules, call: &Call<'_>, expected: Verdict<'_>) {
    assert_eq!(rules.decide(call), expected, "{call:?}");
    assert_eq!(rules.explain(call).verdict, expected, "{call:?} explained");
}

#[test]
fn the_corpus_of_paths_holds() {
    let caller = web();
    let mut lines = 0;
    for line in include_str!("../../../tests/corpus/paths.tsv").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let [raw, pattern, expected, normal] = *line.split('\t').collect::<Vec<_>>() else {
            panic!("not four columns: {line}");
        };
        lines += 1;
        let list = vec![pattern.to_owned()];
        let (paths, grpc) = if pattern.starts_with('/') {
            (list, vec![])
        } else {
            (vec![], list)
        };
        let rules = compiled(vec![Rule {
            paths,
            grpc,
            ..rule(&[])
        }]);
        let expected = match expected {
            "allowed" => ALLOWED,
            "denied" => DENIED,
            "bad_path" => Verdict::BadPath,
            other => panic!("{other}: {line}"),
        };
        assert_eq!(rules.decide(&http(Some(&caller), "POST", raw)), expected, "{line}");
        check(&rules, &http(Some(&caller), "POST", raw), expected);
        match (normal, normalise(raw)) {
            ("-", Err(_)) => {}
            ("=", Ok(found)) => {
                assert_eq!(found, raw);
                assert!(matches!(found, std::borrow::Cow::Borrowed(_)), "copied: {line}");
            }
            (wanted, Ok(found)) => assert_eq!(found, wanted, "{line}"),
            (_, Err(why)) => panic!("{why}: {line}"),
        }
    }
    assert!(lines > 100, "the corpus shrank to {lines} lines");
}

#[test]
fn callers_are_told_apart() {
    let ours = web();
    let elsewhere = id("spiffe://other.example/ns/default/svc/web");
    let shop = id("spiffe://mesh.local/ns/shop/svc/web");
    let cases: [(Principal, [bool; 4]); 7] = [
        (Principal::Unauthenticated, [false, false, false, true]),
        (Principal::Authenticated, [true, true, true, false]),
        (Principal::TrustDomain(OWN.into()), [true, true, false, false]),
        (
            Principal::TrustDomain("other.example".into()),
            [false, false, true, false],
        ),
        (Principal::Namespace("default".into()), [true, false, false, false]),
        (Principal::Service(ours.service().clone()), [true, false, false, false]),
        (Principal::Id(elsewhere.clone()), [false, false, true, false]),
    ];
    for (principal, expected) in cases {
        let rules = compiled(vec![rule(std::slice::from_ref(&principal))]);
        let callers = [Some(&ours), Some(&shop), Some(&elsewhere), None];
        for (caller, passes) in callers.into_iter().zip(expected) {
            let verdict = if passes { ALLOWED } else { DENIED };
            check(&rules, &http(caller, "GET", "//any/../path"), verdict);
        }
    }
    let anybody = compiled(vec![rule(&[])]);
    check(&anybody, &http(Some(&elsewhere), "GET", "/"), ALLOWED);
    check(&anybody, &http(None, "GET", "/"), DENIED);
}

#[test]
fn the_first_rule_that_matches_is_named() {
    let named = |name: &str, methods: &[&str]| Rule {
        name: name.into(),
        methods: methods.iter().map(|m| (*m).into()).collect(),
        ..rule(&[])
    };
    let rules = compiled(vec![named("a", &["PUT"]), named("b", &["GET", "PUT"]), named("c", &[])]);
    let caller = web();
    for (method, rule) in [("PUT", "a"), ("GET", "b"), ("HEAD", "c"), ("get", "c")] {
        check(&rules, &http(Some(&caller), method, "/"), Verdict::Allowed { rule });
    }
    let explained = rules.explain(&http(Some(&caller), "GET", "/"));
    assert_eq!(explained.rule, "b");
    assert_eq!(
        explained.considered,
        [("a", "it is for other methods than GET".to_owned())]
    );
}

#[test]
fn opaque_bytes_match_only_rules_without_requests() {
    let caller = web();
    let opaque = |port| Call {
        caller: Some(&caller),
        port,
        asked: None,
    };
    let with = |change: fn(&mut Rule)| {
        let mut rule = rule(&[]);
        change(&mut rule);
        compiled(vec![rule])
    };
    check(&with(|r| r.ports = vec!["db".into()]), &opaque("db"), ALLOWED);
    check(&with(|r| r.ports = vec!["db".into()]), &opaque("http"), DENIED);
    check(&with(|r| r.methods = vec!["GET".into()]), &opaque("db"), DENIED);
    check(&with(|r| r.paths = vec!["/*".into()]), &opaque("db"), DENIED);
    check(&with(|r| r.grpc = vec!["a.B/*".into()]), &opaque("db"), DENIED);
}

#[test]
fn ambiguous_paths_are_refused_only_where_paths_decide() {
    let caller = web();
    let guarded = Rule {
        ports: vec!["http".into()],
        paths: vec!["/a".into()],
        ..rule(&[])
    };
    let rules = compiled(vec![guarded.clone(), rule(&[Principal::Unauthenticated])]);
    let ambiguous = http(Some(&caller), "GET", "/a/../a");
    assert!(rules.path_rules());
    check(&rules, &ambiguous, Verdict::BadPath);
    // Whoever calls, so that nobody learns from the answer which rules there are.
    check(&rules, &http(None, "GET", "/a/../a"), Verdict::BadPath);
    check(
        &rules,
        &Call {
            port: "other",
            ..ambiguous
        },
        DENIED,
    );
    let pathless = compiled(vec![rule(&[])]);
    assert!(!pathless.path_rules());
    check(&pathless, &ambiguous, ALLOWED);
    for (path, method, expected) in [
        ("*", "OPTIONS", DENIED),
        ("*", "GET", Verdict::BadPath),
        ("", "CONNECT", Verdict::BadPath),
        ("http://h/a", "GET", Verdict::BadPath),
        ("/a b", "GET", Verdict::BadPath),
        ("/a\0", "GET", Verdict::BadPath),
        ("/a?q", "GET", Verdict::BadPath),
    ] {
        check(&rules, &http(Some(&caller), method, path), expected);
    }
    let with = |default_allow, audit| {
        let access = Access {
            default_allow,
            audit,
            ..access(vec![guarded.clone()])
        };
        Rules::compile(&access, OWN).expect("valid")
    };
    let rule = "the service has rules";
    check(&with(true, false), &ambiguous, Verdict::Allowed { rule });
    check(&with(false, true), &ambiguous, Verdict::Audited { rule: BAD_PATH });
    check(&with(false, true), &http(None, "GET", "/a"), Verdict::Audited { rule });
    check(&with(false, true), &http(Some(&caller), "GET", "/a"), ALLOWED);
}

#[test]
fn grpc_is_a_post() {
    let caller = web();
    let rules = compiled(vec![Rule {
        grpc: vec!["pkg.Users/Get".into()],
        ..rule(&[])
    }]);
    check(&rules, &http(Some(&caller), "POST", "/pkg.Users/Get"), ALLOWED);
    check(&rules, &http(Some(&caller), "GET", "/pkg.Users/Get"), DENIED);
}

#[test]
fn what_is_wrong_with_a_rule_is_said() {
    #[track_caller]
    fn wrong(change: impl FnOnce(&mut Rule), expected: &str) {
        let mut rule = rule(&[]);
        change(&mut rule);
        let error = Rules::compile(&access(vec![rule]), OWN).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    wrong(|r| r.ports = vec!["http".into(), String::new()], "rules[0].ports[1]");
    wrong(|r| r.methods = vec!["get".into()], "did you mean `GET`");
    wrong(|r| r.methods = vec!["G T".into()], "rules[0].methods[0]");
    wrong(|r| r.methods = vec!["*".into()], "not needed");
    wrong(
        |r| {
            r.grpc = vec!["a.B/C".into()];
            r.methods = vec!["GET".into()];
        },
        "matches nothing",
    );
    wrong(
        |r| {
            r.grpc = vec!["a.B/C".into()];
            r.paths = vec!["/a".into()];
        },
        "two rules",
    );
    for grpc in [
        "", "a", "a.B", "a.B/", "/a.B/C", "a..B/C", "a.B/C/D", "a.B/C*", "a.*/C", "a.1/C",
    ] {
        wrong(|r| r.grpc = vec![grpc.into()], "rules[0].grpc[0]");
    }
    for path in [
        "", "a", "*", "//", "//*", "/a//b", "/a/./b", "/a/../b", "/a/..", "/a%2fb", "/a%2Eb", "/a%5Cb", "/a\\b",
        "/a%00", "/a%", "/a%zz", "/a?b", "/a#b", "/a b", "/a*", "/*/a", "/a/*/b", "/a/**", "/{}", "/{a", "/a}",
        "/{a}b", "/{a b}", "/{a}{b}", "/..;/a", "/;",
    ] {
        wrong(|r| r.paths = vec![path.into()], "rules[0].paths[0]");
    }
    wrong(|r| r.paths = vec![format!("/{}", "a".repeat(3000))], "longer than");
    wrong(|r| r.paths = vec!["/a".repeat(200)], "more than");
}

#[test]
fn rules_that_nobody_wrote_are_open() {
    let rule = "open by default";
    check(&Rules::default(), &http(None, "GET", "//"), Verdict::Allowed { rule });
}
