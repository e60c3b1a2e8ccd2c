//! Matches and requests made of the input: anything compiles or is refused, and the index finds what a loop finds.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use outrigger_proto::model::{FieldMatch, Match, PathMatch, ValueMatch};
use outrigger_proto::routes::{Asked, Routes, naive};

/// Mostly of few words, so that patterns and requests meet; sometimes anything.
fn text(u: &mut Unstructured<'_>, words: &[&str]) -> Result<String> {
    if u.ratio(1, 8)? {
        return Ok(u.arbitrary::<&str>()?.into());
    }
    let several = u.int_in_range(0..=4)?;
    let words = (0..several).map(|_| u.choose(words).copied());
    Ok(words.collect::<Result<Vec<_>>>()?.concat())
}

fn several<T>(u: &mut Unstructured<'_>, one: impl Fn(&mut Unstructured<'_>) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=2)?).map(|_| one(u)).collect()
}

const PATHS: &[&str] = &["/a", "/b", "/", "/%61", "/%2e", "/..", "/{x}", "/*", ";x", "é"];
const REGEXES: &[&str] = &["/a", ".*", "[ab]", "(?i)", "(a|b)", "+", "/", "{2}", "^", "$"];
const HOSTS: &[&str] = &["a", "b.a", "*.", "a.", ":80", "A", "[::1]"];
const QUERIES: &[&str] = &["x", "=", "1", "&", "%31", "+", "y=2"];
const NAMES: &[&str] = &["x", "y", "x-"];
const VALUES: &[&str] = &["1", "2", " ", "x"];
const METHODS: &[&str] = &["GET", "POST", "OPTIONS"];

fn value(u: &mut Unstructured<'_>) -> Result<ValueMatch> {
    Ok(match u.int_in_range(0..=5)? {
        0 => ValueMatch::Present,
        1 => ValueMatch::Absent,
        2 => ValueMatch::Exact(text(u, VALUES)?),
        3 => ValueMatch::Prefix(text(u, VALUES)?),
        4 => ValueMatch::Suffix(text(u, VALUES)?),
        _ => ValueMatch::Regex(text(u, REGEXES)?),
    })
}

fn field(u: &mut Unstructured<'_>) -> Result<FieldMatch> {
    Ok(FieldMatch {
        name: text(u, NAMES)?,
        value: value(u)?,
    })
}

fn wanted(u: &mut Unstructured<'_>) -> Result<Match> {
    let path = match u.int_in_range(0..=5)? {
        0 => Some(PathMatch::Exact(text(u, PATHS)?)),
        1 => Some(PathMatch::Prefix(text(u, PATHS)?)),
        2 => Some(PathMatch::Template(text(u, PATHS)?)),
        3 => Some(PathMatch::Regex(text(u, REGEXES)?)),
        _ => None,
    };
    let grpc = match path.is_none() && u.ratio(1, 3)? {
        true => vec![(*u.choose(&["a/b", "a/*", "b.c/a"])?).into()],
        false => vec![],
    };
    Ok(Match {
        hosts: several(u, |u| text(u, HOSTS))?,
        path,
        methods: several(u, |u| Ok((*u.choose(METHODS)?).into()))?,
        headers: several(u, field)?,
        query: several(u, field)?,
        grpc,
    })
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let mut lists = Vec::new();
    for _ in 0..u.int_in_range(0..=8)? {
        let list = several(u, wanted)?;
        if Routes::of([&*list]).is_ok() {
            lists.push(list);
        }
    }
    let lists: Vec<_> = lists.iter().map(|list| &**list).collect();
    let routes = Routes::of(lists.iter().copied()).expect("each list is valid");
    for _ in 0..8 {
        if u.is_empty() {
            break;
        }
        let (host, path, query) = (text(u, HOSTS)?, text(u, PATHS)?, text(u, QUERIES)?);
        let fields = several(u, |u| Ok((text(u, NAMES)?, text(u, VALUES)?)))?;
        let find = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_bytes());
        let asked = Asked {
            host: u.ratio(7, 8)?.then_some(&*host),
            path: &path,
            query: u.ratio(7, 8)?.then_some(&*query),
            method: u.choose(METHODS)?,
            field: &find,
        };
        assert_eq!(
            routes.find(&asked),
            naive::find(&lists, &asked),
            "{asked:?} {fields:?} {lists:?}"
        );
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // An input that is too short describes nothing.
    run(&mut Unstructured::new(bytes)).unwrap_or_default();
});
