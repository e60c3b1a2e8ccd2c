//! Random rules and calls: the index decides as a loop over the rules would, and nothing panics.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Compares as the documentation says it, in the most direct way.
fn reference(access: &Access, call: &Call<'_>) -> String {
    let applies = |r: &Rule| {
        (!r.paths.is_empty() || !r.grpc.is_empty()) && (r.ports.is_empty() || r.ports.iter().any(|p| p == call.port))
    };
    let star = |asked: Asked<'_>| asked.method == "OPTIONS" && asked.path == "*";
    let path = match call.asked.map(|asked| (star(asked), normalise(asked.path))) {
        Some((false, Ok(path))) => Some(path.into_owned()),
        Some((false, Err(_))) if !access.default_allow && access.rules.iter().any(applies) => {
            return if access.audit { "audited bad_path" } else { "bad path" }.into();
        }
        _ => None,
    };
    let decided = access.rules.iter().find(|r| {
        let from = match (call.caller, r.from.is_empty()) {
            (None, _) => r.from.contains(&Principal::Unauthenticated),
            (Some(_), true) => true,
            (Some(id), false) => {
                let ours = id.trust_domain() == OWN;
                r.from.contains(&Principal::Authenticated)
                    || r.from.contains(&Principal::Id(id.clone()))
                    || r.from.contains(&Principal::TrustDomain(id.trust_domain().into()))
                    || ours && r.from.contains(&Principal::Namespace(id.service().namespace().into()))
                    || ours && r.from.contains(&Principal::Service(id.service().clone()))
            }
        };
        let port = r.ports.is_empty() || r.ports.iter().any(|p| p == call.port);
        let asked = match call.asked {
            None => r.methods.is_empty() && r.paths.is_empty() && r.grpc.is_empty(),
            Some(asked) => {
                let fits = |pattern: &String| path.as_ref().is_some_and(|path| fits(pattern, path));
                let calls = |name: &String| {
                    let pattern = format!("/{}", name.replace('*', "{method}"));
                    asked.method == "POST" && fits(&pattern)
                };
                (r.methods.is_empty() || r.methods.iter().any(|m| m == asked.method))
                    && (r.paths.is_empty() || r.paths.iter().any(fits))
                    && (r.grpc.is_empty() || r.grpc.iter().any(calls))
            }
        };
        from && port && asked
    });
    match decided {
        Some(rule) => format!("allowed {}", rule.name),
        None if access.default_allow => format!("allowed {}", access.default_source),
        None if access.audit => format!("audited {}", access.default_source),
        None => format!("denied {}", access.default_source),
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let pattern: Vec<_> = pattern.split('/').collect();
    let path: Vec<_> = path.split('/').collect();
    let segment = |(wanted, given): (&&str, &&str)| match wanted.starts_with('{') {
        true => !given.is_empty(),
        false => wanted == given,
    };
    match pattern.split_last() {
        Some((&"*", before)) => {
            path.len() > before.len()
                && before.iter().zip(&path).all(segment)
                && (path.len() > before.len() + 1 || !path[before.len()].is_empty())
        }
        _ => path.len() == pattern.len() && pattern.iter().zip(&path).all(segment),
    }
}

fn shown(verdict: Verdict<'_>) -> String {
    match verdict {
        Verdict::Allowed { rule } => format!("allowed {rule}"),
        Verdict::Denied { rule } => format!("denied {rule}"),
        Verdict::Audited { rule } => format!("audited {rule}"),
        Verdict::BadPath => "bad path".into(),
    }
}

fn any_id() -> impl Strategy<Value = SpiffeId> {
    let domain = prop_oneof![3 => Just(OWN), 1 => Just("other.example")];
    ("[ab]", "[ab]", domain)
        .prop_map(|(namespace, service, domain)| id(&format!("spiffe://{domain}/ns/{namespace}/svc/{service}")))
}

fn any_principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        Just(Principal::Unauthenticated),
        Just(Principal::Authenticated),
        any_id().prop_map(|id| Principal::TrustDomain(id.trust_domain().into())),
        any_id().prop_map(|id| Principal::Namespace(id.service().namespace().into())),
        any_id().prop_map(|id| Principal::Service(id.service().clone())),
        any_id().prop_map(Principal::Id),
    ]
}

/// Few words, so that patterns overlap and paths meet them.
fn any_pattern() -> impl Strategy<Value = String> {
    ("(/(a|b|\\{x\\})){0,4}", "|/|/\\*|/a").prop_map(|(head, tail)| match format!("{head}{tail}") {
        empty if empty.is_empty() => "/".into(),
        pattern => pattern,
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let port = prop_oneof![Just("http"), Just("db")].prop_map(String::from);
    let method = prop_oneof![Just("GET"), Just("POST")].prop_map(String::from);
    let grpc = prop_oneof![Just("a/b"), Just("a/*"), Just("b/a")].prop_map(String::from);
    let paths = prop_oneof![
        2 => vec(any_pattern(), 0..3).prop_map(|paths| (paths, Vec::new())),
        1 => vec(grpc, 1..3).prop_map(|grpc| (Vec::new(), grpc)),
    ];
    (vec(any_principal(), 0..3), vec(port, 0..2), vec(method, 0..2), paths).prop_map(
        |(from, ports, methods, (paths, grpc))| Rule {
            name: String::new(),
            from,
            ports,
            methods: if grpc.is_empty() { methods } else { Vec::new() },
            paths,
            grpc,
        },
    )
}

fn any_access() -> impl Strategy<Value = Access> {
    // Often many rules of one caller, so that the trie is reached.
    let rules = prop_oneof![
        vec(any_rule(), 0..12),
        vec(any_rule(), 20..60),
        vec(any_rule(), 20..60).prop_map(|mut rules| {
            for rule in &mut rules {
                rule.from.clear();
                rule.ports.clear();
            }
            rules
        }),
    ];
    (rules, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(|(mut rules, default_allow, audit)| {
        for (i, rule) in rules.iter_mut().enumerate() {
            rule.name = format!("allow[{i}]");
        }
        Access {
            default_allow,
            audit,
            ..access(rules)
        }
    })
}

fn any_path() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "(/(a|b|c|%61)){1,5}/?",
        1 => "[/a.%25eEfF;\\\\]{0,12}",
        1 => Just("*".to_owned()),
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_index_decides_as_a_loop_would(
        access in any_access(),
        calls in vec((prop::option::weighted(0.8, any_id()), "http|db|x", prop::option::weighted(0.9, ("GET|POST|OPTIONS", any_path()))), 1..20),
    ) {
        let rules = Rules::compile(&access, OWN).expect("valid rules");
        for (caller, port, asked) in &calls {
            let call = Call {
                caller: caller.as_ref(),
                port,
                asked: asked.as_ref().map(|(method, path)| Asked { method, path }),
            };
            let expected = reference(&access, &call);
            prop_assert_eq!(shown(rules.decide(&call)), expected.clone(), "{:?}", call);
            let explained = rules.explain(&call);
            prop_assert_eq!(shown(explained.verdict), expected, "explained {:?}", call);
        }
    }

    #[test]
    fn a_normal_form_is_normal(path in prop_oneof![any_path(), "/[ -~é]{0,20}"]) {
        if let Ok(normal) = normalise(&path) {
            prop_assert!(normal.is_ascii());
            prop_assert_eq!(normalise(&normal), Ok(normal.clone()));
            // Decoding once, as apps do, gives the same whichever of the two they get.
            prop_assert_eq!(decoded(&path), decoded(&normal));
        }
    }

    #[test]
    fn nothing_that_is_written_in_a_rule_panics(text in any::<String>(), path in "/[ -~]{0,30}") {
        for text in [text, path] {
            for list in [true, false] {
                let mut rule = rule(&[]);
                *(if list { &mut rule.paths } else { &mut rule.grpc }) = vec![text.clone()];
                // Whatever compiles decides, and what it says does not depend on how it is asked.
                if let Ok(rules) = Rules::compile(&access(vec![rule.clone()]), OWN) {
                    let call = http(None, "GET", &text);
                    prop_assert_eq!(rules.decide(&call), rules.explain(&call).verdict);
                }
                rule.paths.clear();
                rule.grpc.clear();
                *(if list { &mut rule.ports } else { &mut rule.methods }) = vec![text.clone()];
                if Rules::compile(&access(vec![rule]), OWN).is_ok() {
                    prop_assert!(!text.is_empty() && text.is_ascii() && !text.contains([' ', '/', '"']));
                }
            }
        }
    }
}

fn decoded(path: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, more @ ..] = rest {
        let escaped = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &more[2..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}
