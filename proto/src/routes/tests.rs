//! Each part of a match, the order, what is refused, and the index against the plainest possible matcher.

mod properties;

use super::check as check_service;
use super::*;
use crate::model::{
    Action, DirectResponse, FieldMatch, Forward, HeaderEdits, NewPath, PathMatch, Policy, Redirect, ValueMatch,
};

fn route(name: &str, matches: Vec<Match>) -> Route {
    Route {
        name: name.into(),
        matches,
        action: Action::Forward(Forward::default()),
        policy: Policy::default(),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    }
}

fn exact(path: &str) -> Match {
    on(PathMatch::Exact(path.into()))
}

fn prefix(path: &str) -> Match {
    on(PathMatch::Prefix(path.into()))
}

fn template(path: &str) -> Match {
    on(PathMatch::Template(path.into()))
}

fn expression(path: &str) -> Match {
    on(PathMatch::Regex(path.into()))
}

fn on(path: PathMatch) -> Match {
    Match {
        path: Some(path),
        ..Match::default()
    }
}

fn hosts(list: &[&str]) -> Match {
    Match {
        hosts: list.iter().map(|h| (*h).into()).collect(),
        ..Match::default()
    }
}

fn field(name: &str, value: ValueMatch) -> FieldMatch {
    FieldMatch {
        name: name.into(),
        value,
    }
}

fn header(name: &str, value: ValueMatch) -> Match {
    Match {
        headers: vec![field(name, value)],
        ..Match::default()
    }
}

fn query(name: &str, value: ValueMatch) -> Match {
    Match {
        query: vec![field(name, value)],
        ..Match::default()
    }
}

/// A request written as in a log: `GET shop:80/a?b=c x=1 y=2`.
#[derive(Clone)]
struct Ask(String);

impl Ask {
    fn with<T>(&self, then: impl FnOnce(&Asked<'_>) -> T) -> T {
        let mut words = self.0.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let start = target.find(['/', '*']).unwrap_or(target.len());
        let (host, path) = target.split_at(start);
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let fields: Vec<_> = words.filter_map(|w| w.split_once('=')).collect();
        let field = |name: &str| fields.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
        then(&Asked {
            host: (!host.is_empty()).then_some(host),
            path,
            query,
            method,
            field: &field,
        })
    }
}

/// Both ways of deciding have to agree.
#[track_caller]
fn decides(matches: &[Match], ask: &str, expected: Option<usize>) {
    let routes: Vec<_> = (0_usize..)
        .zip(matches)
        .map(|(i, m)| route(&i.to_string(), vec![m.clone()]))
        .collect();
    let compiled = Routes::compile(&routes).expect("valid routes");
    Ask(ask.into()).with(|asked| {
        let found = compiled.find(asked);
        assert_eq!(found.map(|f| f.map(|f| f.route)), Ok(expected), "{ask}");
        let lists: Vec<_> = routes.iter().map(|r| &*r.matches).collect();
        assert_eq!(naive::find(&lists, asked), found, "{ask}, one by one");
    });
}

#[track_caller]
fn hit(one: &Match, asks: &[&str]) {
    asks.iter()
        .for_each(|ask| decides(std::slice::from_ref(one), ask, Some(0)));
}

#[track_caller]
fn miss(one: &Match, asks: &[&str]) {
    asks.iter()
        .for_each(|ask| decides(std::slice::from_ref(one), ask, None));
}

#[track_caller]
fn refused(route: &Route, path: &str, reason: &str) {
    let error = Routes::compile(std::slice::from_ref(route)).expect_err(path);
    assert_eq!(error.path, format!("routes[0].{path}"), "{error}");
    assert!(error.reason.contains(reason), "{error}");
}

#[test]
fn exact_paths_are_compared_in_normal_form() {
    hit(&exact("/a/b"), &["GET /a/b", "GET /%61/b", "PUT host/a/b?c=d"]);
    miss(
        &exact("/a/b"),
        &["GET /a", "GET /a/b/", "GET /a/b/c", "GET /A/b", "OPTIONS *"],
    );
    hit(&exact("/caf%c3%a9"), &["GET /caf%C3%A9", "GET /café"]);
    hit(&exact("/"), &["GET /"]);
    // A brace is a character here.
    hit(&exact("/{id}"), &["GET /%7Bid%7d", "GET /{id}"]);
    miss(&exact("/{id}"), &["GET /7"]);
}

#[test]
fn prefixes_are_whole_segments() {
    for text in ["/a/b", "/a/b/"] {
        hit(
            &prefix(text),
            &["GET /a/b", "GET /a/b/", "GET /a/b/c", "GET /a/%62/c/d"],
        );
        miss(&prefix(text), &["GET /a/bc", "GET /a", "GET /a/", "GET /"]);
    }
    hit(&prefix("/"), &["GET /", "GET /a", "GET /a/b"]);
    miss(&prefix("/"), &["OPTIONS *"]);
}

#[test]
fn templates_are_as_in_access() {
    hit(&template("/users/{id}"), &["GET /users/7", "GET /users/x;y"]);
    miss(
        &template("/users/{id}"),
        &["GET /users/", "GET /users", "GET /users/7/posts"],
    );
    hit(&template("/static/*"), &["GET /static/a", "GET /static/a/b"]);
    miss(&template("/static/*"), &["GET /static", "GET /static/"]);
    hit(&template("/{a}/x/*"), &["GET /1/x/2"]);
}

#[test]
fn expressions_match_the_whole_path() {
    hit(&expression("/v[0-9]+/.*"), &["GET /v12/x"]);
    miss(&expression("/v[0-9]+"), &["GET /v12/x", "GET /a/v12"]);
    // Neither alternative escapes the ends.
    miss(&expression("/a|/b"), &["GET /ac", "GET /x/b"]);
    miss(&expression("(?m)^/a$"), &["GET /a/b"]);
    hit(&expression("(?i)/ABC"), &["GET /abc"]);
}

#[test]
fn hosts_are_compared_without_case_port_or_final_dot() {
    hit(
        &hosts(&["Shop.example"]),
        &[
            "GET shop.example/",
            "GET SHOP.example:8080/",
            "GET shop.example./",
            "GET shop.example.:80/",
        ],
    );
    miss(
        &hosts(&["shop.example"]),
        &["GET /", "GET www.shop.example/", "GET shop.example.org/"],
    );
    hit(&hosts(&["shop:8080"]), &["GET shop:8080/"]);
    miss(&hosts(&["shop:8080"]), &["GET shop/", "GET shop:80/"]);
    hit(&hosts(&["*.example"]), &["GET a.example/", "GET a.b.example:1/"]);
    miss(
        &hosts(&["*.example"]),
        &["GET example/", "GET .exampl/", "GET aexample/"],
    );
    hit(&hosts(&["*.example:80"]), &["GET a.example:80/"]);
    miss(&hosts(&["*.example:80"]), &["GET a.example/", "GET a.example:81/"]);
    hit(&hosts(&["[::1]"]), &["GET [::1]/", "GET [::1]:80/"]);
    hit(&hosts(&["a", "b"]), &["GET b/"]);
    let long = format!("GET {}.example/", "a".repeat(300));
    miss(&hosts(&["*.example"]), &[&long]);
}

#[test]
fn methods_fields_and_parameters_all_have_to_fit() {
    let get = Match {
        methods: vec!["GET".into(), "PUT".into()],
        ..Match::default()
    };
    hit(&get, &["GET /", "PUT /"]);
    miss(&get, &["HEAD /", "get /", "POST /"]);
    hit(&header("x", ValueMatch::Present), &["GET / x=", "GET / x=1"]);
    miss(&header("x", ValueMatch::Present), &["GET /", "GET / y=1"]);
    hit(&header("x", ValueMatch::Absent), &["GET /"]);
    miss(&header("x", ValueMatch::Absent), &["GET / x="]);
    hit(
        &header("x", ValueMatch::Exact("v2".into())),
        &["GET / x=v2", "GET / x=v2 x=v1"],
    );
    miss(
        &header("x", ValueMatch::Exact("v2".into())),
        &["GET / x=v20", "GET /", "GET / x=v1 x=v2"],
    );
    hit(&header("x", ValueMatch::Prefix("v".into())), &["GET / x=v2"]);
    hit(&header("x", ValueMatch::Suffix("2".into())), &["GET / x=v2"]);
    hit(&header("x", ValueMatch::Regex("v[12]".into())), &["GET / x=v2"]);
    miss(&header("x", ValueMatch::Regex("v[12]".into())), &["GET / x=v23"]);
    hit(
        &query("a b", ValueMatch::Exact("c d".into())),
        &["GET /?a+b=c%20d", "GET /?x&a%20b=c+d&a+b=e"],
    );
    miss(
        &query("a", ValueMatch::Exact("c".into())),
        &["GET /", "GET /?a", "GET /?b=c", "GET /?a=d&a=c"],
    );
    hit(&query("a", ValueMatch::Exact(String::new())), &["GET /?a", "GET /?a="]);
    hit(&query("a", ValueMatch::Absent), &["GET /", "GET /?", "GET /?b=a"]);
    hit(&query("a", ValueMatch::Exact("%zz%".into())), &["GET /?a=%zz%"]);
    let both = Match {
        query: vec![field("a", ValueMatch::Present), field("b", ValueMatch::Absent)],
        ..get
    };
    hit(&both, &["GET /?a"]);
    miss(&both, &["GET /?a&b", "POST /?a"]);
}

#[test]
fn a_grpc_method_is_a_post_to_its_path() {
    let one = Match {
        grpc: vec!["shop.Cart/Add".into(), "shop.Stock/*".into()],
        ..Match::default()
    };
    hit(&one, &["POST /shop.Cart/Add", "POST /shop.Stock/Any"]);
    miss(
        &one,
        &[
            "GET /shop.Cart/Add",
            "POST /shop.Cart/Remove",
            "POST /shop.Stock/",
            "POST /shop.Stock/a/b",
        ],
    );
}

#[test]
fn the_first_in_the_document_wins_however_it_is_filed() {
    let all = [
        exact("/a/b"),
        prefix("/a"),
        template("/{x}/b"),
        expression("/.*"),
        hosts(&["h"]),
        Match::default(),
    ];
    for (ask, forward, backward) in [
        ("GET h/a/b", 0, 5),
        ("GET h/a/c", 1, 5),
        ("GET h/x/b", 2, 5),
        ("GET h/x", 3, 5),
    ] {
        decides(&all, ask, Some(forward));
        let turned: Vec<_> = all.iter().rev().cloned().collect();
        decides(&turned, ask, Some(5 - backward));
    }
    decides(&all[..5], "OPTIONS h*", Some(4));
    decides(&[template("/{x}/b"), exact("/a/b")], "GET /a/b", Some(0));
    decides(&[prefix("/a/b"), exact("/a/b"), prefix("/a")], "GET /a/b", Some(0));
}

#[test]
fn what_fits_by_path_and_fails_otherwise_is_passed_over() {
    let mut post = exact("/a");
    post.methods = vec!["POST".into()];
    let mut beta = exact("/a");
    beta.headers = vec![field("beta", ValueMatch::Present)];
    decides(&[post.clone(), beta.clone(), exact("/a")], "GET /a", Some(2));
    decides(&[post.clone(), beta.clone(), exact("/a")], "GET /a beta=1", Some(1));
    decides(&[post, beta], "PUT /a", None);
}

#[test]
fn an_ambiguous_path_is_refused_where_a_path_could_decide() {
    let find = |matches: &[Match], ask: &str| {
        let routes: Vec<_> = matches.iter().map(|m| route("r", vec![m.clone()])).collect();
        let routes = Routes::of(routes.iter().map(|r| &*r.matches)).expect("valid");
        Ask(ask.into()).with(|asked| routes.find(asked).map(|f| f.map(|f| f.route)))
    };
    let bad = "GET h/a/%2e%2e/b";
    assert_eq!(find(&[exact("/a"), Match::default()], bad), Err(Ambiguous::EncodedDot));
    assert_eq!(find(&[expression("/a")], bad), Err(Ambiguous::EncodedDot));
    assert_eq!(
        find(&[Match::default(), exact("/a")], bad),
        Ok(Some(0)),
        "nothing about paths is asked"
    );
    assert_eq!(find(&[hosts(&["h"])], bad), Ok(Some(0)));
    let elsewhere = Match {
        hosts: vec!["other".into()],
        ..exact("/a")
    };
    assert_eq!(find(&[elsewhere], bad), Ok(None), "a rule for another host");
}

#[test]
fn the_prefix_that_matched_is_told() {
    let routes = [route("r", vec![prefix("/a/b/"), prefix("/a"), exact("/x")])];
    let routes = Routes::compile(&routes).expect("valid");
    for (ask, segments) in [("GET /a/b/c", 2), ("GET /a/c", 1), ("GET /x", 0)] {
        let found = Ask(ask.into()).with(|asked| routes.find(asked));
        assert_eq!(found, Ok(Some(Found { route: 0, segments })), "{ask}");
    }
}

#[test]
fn a_list_alone_meets_or_not() {
    let some = Matches::compile(&[exact("/a"), header("x", ValueMatch::Present)]).expect("valid");
    let all = Matches::compile(&[]).expect("valid");
    for (ask, met) in [("GET /a", true), ("GET /b", false), ("GET /b x=1", true)] {
        assert_eq!(Ask(ask.into()).with(|asked| some.meets(asked)), Ok(met), "{ask}");
        assert_eq!(Ask(ask.into()).with(|asked| all.meets(asked)), Ok(true), "{ask}");
    }
    let error = Matches::compile(&[exact("/a"), exact("/../b")]).expect_err("a dot segment");
    assert_eq!(error.path, "matches[1].path");
}

#[test]
fn matches_that_are_none_are_refused() {
    let cases: &[(Match, &str, &str)] = &[
        (exact("/a/../b"), "path", "dot segment"),
        (exact("/a?b"), "path", "can match nothing"),
        (prefix("//"), "path", "empty segment"),
        (template("/a*"), "path", "segment of its own"),
        (template("/{a"), "path", "braces"),
        (expression("("), "path", "unclosed group"),
        (expression("a)(b"), "path", "unopened group"),
        (expression("a(?#"), "path", "error"),
        (expression("(?iu)a"), "path", "Unicode"),
        (expression(r"\pL"), "path", "Unicode"),
        (expression("[a-z]{900}{900}"), "path", "repeat less"),
        (expression(&"a".repeat(1025)), "path", "longer than 1024"),
        (expression("/é"), "path", "ASCII"),
        (hosts(&["a", "a*"]), "hosts[1]", "first label"),
        (hosts(&["a:99999"]), "hosts[0]", "port"),
        (hosts(&["http://a"]), "hosts[0]", "port"),
        (hosts(&[""]), "hosts[0]", "not a host"),
        (
            header("x y", ValueMatch::Present),
            "headers[0].name",
            "not the name of a field",
        ),
        (header("host", ValueMatch::Present), "headers[0].name", "use `hosts`"),
        (
            header("x", ValueMatch::Regex("[".into())),
            "headers[0].value",
            "unclosed",
        ),
        (
            query("x", ValueMatch::Regex("*".into())),
            "query[0].value",
            "repetition",
        ),
    ];
    for (wrong, path, reason) in cases {
        refused(&route("r", vec![wrong.clone()]), &format!("matches[0].{path}"), reason);
    }
    let mut both = exact("/a");
    both.grpc = vec!["a.B/*".into()];
    refused(&route("r", vec![Match::default(), both]), "matches[1].grpc", "not both");
    let grpc = |name: &str, methods: &[&str]| Match {
        grpc: vec![name.into()],
        methods: methods.iter().map(|m| (*m).into()).collect(),
        ..Match::default()
    };
    refused(
        &route("r", vec![grpc("/a.B/C", &[])]),
        "matches[0].grpc[0]",
        "package.Service",
    );
    refused(&route("r", vec![grpc("a.B/C", &["GET"])]), "matches[0].methods", "POST");
    refused(
        &route("r", vec![grpc("a.B/C", &["post"])]),
        "matches[0].methods[0]",
        "`POST`",
    );
}

#[test]
fn actions_that_cannot_be_are_refused() {
    let forward = |matches: Vec<Match>, path: NewPath| Route {
        action: Action::Forward(Forward {
            path: Some(path),
            ..Forward::default()
        }),
        ..route("r", matches)
    };
    let put = |text: &str| NewPath::Prefix(text.into());
    assert!(Routes::compile(&[forward(vec![prefix("/a")], put("/b"))]).is_ok());
    refused(
        &forward(vec![prefix("/a"), exact("/a")], put("/b")),
        "forward.path",
        "a match has none",
    );
    refused(&forward(vec![], put("/b")), "forward.path", "a match has none");
    refused(&forward(vec![prefix("/a")], put("b")), "forward.path", "does not start");
    refused(&forward(vec![], NewPath::Full("/a?b".into())), "forward.path", "`?`");
    let authority = Route {
        action: Action::Forward(Forward {
            authority: Some("a b".into()),
            ..Forward::default()
        }),
        ..route("r", vec![])
    };
    refused(&authority, "forward.authority", "name:port");
    let redirect = |scheme: Option<&str>| Route {
        action: Action::Redirect(Redirect {
            status: 302,
            scheme: scheme.map(Into::into),
            authority: None,
            path: None,
        }),
        ..route("r", vec![])
    };
    refused(&redirect(None), "redirect", "same place");
    refused(&redirect(Some("ftp")), "redirect.scheme", "neither");
    let respond = |status, content_type: &str| Route {
        action: Action::Respond(DirectResponse {
            status,
            body: "x".into(),
            content_type: content_type.into(),
        }),
        ..route("r", vec![])
    };
    refused(&respond(204, "text/plain"), "respond.body", "no body");
    refused(&respond(200, "a\nb"), "respond.content_type", "not the value");
    let twice = [route("r", vec![]), route("s", vec![]), route("r", vec![])];
    let error = Routes::compile(&twice).expect_err("twice");
    assert_eq!((&*error.path, error.reason.contains("`r`")), ("routes[2].name", true));
}

#[test]
fn a_service_is_checked_as_a_whole() {
    let mut service = Service::new("default/a".parse().expect("a name"), vec![], crate::model::Mode::Off);
    let to = |service: Option<&str>| crate::model::Destination {
        service: service.map(|s| s.parse().expect("a name")),
        subset: Some("v2".into()),
    };
    let mut leads = |to| {
        let action = Action::Forward(Forward {
            to: vec![(to, 1)],
            ..Forward::default()
        });
        service.routes = vec![Route {
            action,
            ..route("r", vec![])
        }];
        check_service(&service).map_err(|e| e.path)
    };
    assert_eq!(leads(to(None)), Err("routes[0].forward.to".into()));
    assert_eq!(leads(to(Some("default/a"))), Err("routes[0].forward.to".into()));
    assert_eq!(
        leads(to(Some("default/b"))),
        Ok(()),
        "what others have is not known here"
    );
    service.routes.clear();
    service.faults = vec![crate::model::Fault {
        name: "f".into(),
        matches: vec![Match::default(), exact("a")],
        callers: vec![],
        per_million: 1,
        harm: crate::model::Harm::ResetAfter(1),
        until: std::time::SystemTime::UNIX_EPOCH,
    }];
    let error = check_service(&service).expect_err("no path");
    assert_eq!(error.path, "faults[0].matches[1].path");
}

#[test]
fn fields_that_are_not_for_edits_are_refused() {
    let edited = |edits: HeaderEdits| Route {
        request_headers: edits,
        ..route("r", vec![])
    };
    let set = |name: &str, value: &str| HeaderEdits {
        set: vec![(name.into(), value.into())],
        ..HeaderEdits::default()
    };
    for name in [
        "Host",
        "connection",
        "TE",
        "transfer-encoding",
        "content-length",
        "outrigger-caller",
        "Outrigger-Final",
        "grpc-status",
        "a b",
        "",
        ":path",
    ] {
        refused(&edited(set(name, "x")), "request_headers.set[0].name", "`");
        let remove = HeaderEdits {
            remove: vec!["ok".into(), name.into()],
            ..HeaderEdits::default()
        };
        refused(&edited(remove), "request_headers.remove[1]", "`");
    }
    refused(
        &edited(set("x", "a\r\nb: c")),
        "request_headers.set[0].value",
        "value of a field",
    );
    refused(
        &edited(set("x", " a")),
        "request_headers.set[0].value",
        "value of a field",
    );
    assert!(Routes::compile(&[edited(set("X-Team", "shop"))]).is_ok());
}
