//! Rules and calls made of the input: the index decides as the loop of `explain` does.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use outrigger_proto::access::{Asked, Call, Rules};
use outrigger_proto::model::{Access, Principal, Rule, SpiffeId};

const OWN: &str = "mesh.local";

fn pick<'a>(u: &mut Unstructured<'_>, words: &[&'a str]) -> Result<&'a str> {
    u.choose(words).copied()
}

fn several<T>(
    u: &mut Unstructured<'_>,
    most: usize,
    one: impl Fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=most)?).map(|_| one(u)).collect()
}

fn id(u: &mut Unstructured<'_>) -> Result<SpiffeId> {
    let domain = pick(u, &[OWN, OWN, "other.example"])?;
    let (namespace, service) = (pick(u, &["a", "b"])?, pick(u, &["a", "b"])?);
    Ok(format!("spiffe://{domain}/ns/{namespace}/svc/{service}")
        .parse()
        .expect("an id"))
}

fn principal(u: &mut Unstructured<'_>) -> Result<Principal> {
    let id = id(u)?;
    Ok(match u.int_in_range(0..=5)? {
        0 => Principal::Unauthenticated,
        1 => Principal::Authenticated,
        2 => Principal::TrustDomain(id.trust_domain().into()),
        3 => Principal::Namespace(id.service().namespace().into()),
        4 => Principal::Service(id.service().clone()),
        _ => Principal::Id(id),
    })
}

/// Mostly of few words, so that patterns and paths meet; sometimes anything.
fn path(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 8)? {
        return Ok(u.arbitrary::<&str>()?.into());
    }
    let words = [
        "/", "/a", "/b", "/{x}", "/*", "/%61", "/%2e", "/..", ";", "x", "%c3%a9", "é",
    ];
    Ok(several(u, 6, |u| pick(u, &words))?.concat())
}

fn rule(u: &mut Unstructured<'_>) -> Result<Rule> {
    let (from, port) = (several(u, 2, principal)?, |u: &mut Unstructured<'_>| {
        Ok(pick(u, &["http", "db"])?.into())
    });
    let mut rule = Rule {
        name: String::new(),
        from,
        ports: several(u, 1, port)?,
        methods: several(u, 1, |u| Ok(pick(u, &["GET", "POST"])?.into()))?,
        paths: Vec::new(),
        grpc: Vec::new(),
    };
    if u.ratio(1, 4)? {
        rule.grpc = several(u, 2, |u| Ok(pick(u, &["a/b", "a/*", "b.c/a"])?.into()))?;
    } else {
        rule.paths = several(u, 2, path)?;
    }
    Ok(rule)
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let mut access = Access {
        default_allow: u.ratio(1, 8)?,
        default_source: "default".into(),
        rules: Vec::new(),
        audit: u.ratio(1, 8)?,
    };
    for i in 0..u.int_in_range(0..=16)? {
        let mut rule = rule(u)?;
        rule.name = format!("allow[{i}]");
        let alone = Access {
            rules: vec![rule],
            ..Access::default()
        };
        if Rules::compile(&alone, OWN).is_ok() {
            access.rules.extend(alone.rules);
        }
    }
    let rules = Rules::compile(&access, OWN).expect("each rule is valid");
    for _ in 0..8 {
        if u.is_empty() {
            break;
        }
        let caller = if u.ratio(1, 4)? { None } else { Some(id(u)?) };
        let (method, path) = (pick(u, &["GET", "POST", "OPTIONS"])?, path(u)?);
        let call = Call {
            caller: caller.as_ref(),
            port: pick(u, &["http", "db", "x"])?,
            asked: (!u.ratio(1, 8)?).then_some(Asked { method, path: &path }),
        };
        assert_eq!(rules.decide(&call), rules.explain(&call).verdict, "{call:?} {access:?}");
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // An input that is too short describes nothing.
    run(&mut Unstructured::new(bytes)).unwrap_or_default();
});
