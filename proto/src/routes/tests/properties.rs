//! Random matches and requests: the index decides as a loop over the matches would, and nothing panics.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Of few words, so that patterns and paths meet.
fn path(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    vec(select(words), 0..4).prop_map(|words| words.concat())
}

fn wanted_path() -> impl Strategy<Value = PathMatch> {
    const LITERAL: &[&str] = &["/a", "/b", "/%61", "/", "/{x}"];
    const PATTERN: &[&str] = &["/a", "/b", "/{x}", "/{y}", "/*"];
    prop_oneof![
        path(LITERAL).prop_map(PathMatch::Exact),
        path(LITERAL).prop_map(PathMatch::Prefix),
        path(PATTERN).prop_map(PathMatch::Template),
        select(&["/a.*", "/[ab]", "(?i)/A/.+", ".*", "/a|/b/.*"][..]).prop_map(|text| PathMatch::Regex(text.into())),
    ]
}

fn value() -> impl Strategy<Value = ValueMatch> {
    let text = || select(&["", "1", "12", "2"][..]).prop_map(String::from);
    prop_oneof![
        Just(ValueMatch::Present),
        Just(ValueMatch::Absent),
        text().prop_map(ValueMatch::Exact),
        text().prop_map(ValueMatch::Prefix),
        text().prop_map(ValueMatch::Suffix),
        select(&["1.*", "[12]+"][..]).prop_map(|text| ValueMatch::Regex(text.into())),
    ]
}

fn fields() -> impl Strategy<Value = Vec<FieldMatch>> {
    vec(
        (select(&["x", "y"][..]), value()).prop_map(|(name, value)| field(name, value)),
        0..2,
    )
}

fn wanted() -> impl Strategy<Value = Match> {
    let hosts = vec(
        select(&["a", "a:80", "*.a", "*.a:80", "b.a"][..]).prop_map(String::from),
        0..2,
    );
    let methods = vec(select(&["GET", "POST"][..]).prop_map(String::from), 0..2);
    let grpc = vec(select(&["a/b", "a/*", "b/a"][..]).prop_map(String::from), 1..3);
    let target = prop_oneof![
        2 => option::of(wanted_path()).prop_map(|path| (path, vec![])),
        1 => grpc.prop_map(|grpc| (None, grpc)),
    ];
    (hosts, methods, fields(), fields(), target).prop_map(|(hosts, methods, headers, query, (path, grpc))| Match {
        hosts,
        path,
        methods,
        headers,
        query,
        grpc,
    })
}

fn ask() -> impl Strategy<Value = String> {
    let host = select(&["", "a", "A:80", "b.a", "c.b.a:80", "a.", "x"][..]);
    const PATHS: &[&str] = &["/a", "/b", "/c", "/%61", "/", "/%2e", "/A"];
    let query = select(&["", "?x=1", "?x=12&y", "?y=%31&x=2", "?"][..]);
    let fields = select(&["", " x=1", " x=12 y=", " y=2 x=1 y=1"][..]);
    (select(&["GET", "POST"][..]), host, path(PATHS), query, fields).prop_map(|(method, host, path, query, fields)| {
        let path = if path.is_empty() { "/".into() } else { path };
        format!("{method} {host}{path}{query}{fields}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_index_decides_as_a_loop_does(lists in vec(vec(wanted(), 0..3), 0..12), asks in vec(ask(), 1..8)) {
        // Valid ones only; which are not is another test's.
        let lists: Vec<Vec<Match>> = lists
            .into_iter()
            .filter(|list| Routes::of([&**list]).is_ok())
            .collect();
        let lists: Vec<_> = lists.iter().map(|list| &**list).collect();
        let routes = Routes::of(lists.iter().copied()).expect("each list is valid");
        for ask in asks {
            Ask(ask.clone()).with(|asked| {
                prop_assert_eq!(routes.find(asked), naive::find(&lists, asked), "{}", ask);
                Ok(())
            })?;
        }
    }

    #[test]
    fn anything_compiles_or_is_refused(text in ".{0,40}", ask in ".{0,40}") {
        for path in [
            PathMatch::Exact(text.clone()),
            PathMatch::Prefix(text.clone()),
            PathMatch::Template(text.clone()),
            PathMatch::Regex(text.clone()),
        ] {
            if let Ok(routes) = Routes::of([&[on(path)][..]]) {
                let none = |_: &str| None;
                let asked = Asked { host: Some(&ask), path: &ask, query: Some(&ask), method: &ask, field: &none };
                prop_assert!(routes.find(&asked).is_ok() || !ask.starts_with('/') || ask.len() > 1);
            }
        }
    }
}
