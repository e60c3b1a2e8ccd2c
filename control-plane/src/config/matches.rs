//! `match`: which requests a route, fault, rate limit or priority is about. What can match is decided by the matcher
//! that sidecars use; each part is given to it alone, so that one mistake hides no other.

use std::collections::BTreeMap;

use outrigger_proto::model::{FieldMatch, Match, PathMatch, ValueMatch};
use outrigger_proto::routes;

use super::codes;
use super::raw;
use super::reader::Reader;
use super::tree::Node;

/// A match of one value and nothing else.
type Alone = fn(String) -> Match;

impl Reader<'_> {
    /// The matches under `match`; none for everything.
    pub(super) fn matches(&mut self, raw: Option<&raw::Matches>) -> Vec<Match> {
        match raw {
            None => Vec::new(),
            Some(raw::Matches::One(one)) => vec![self.inside(&["match"]).one_match(one)],
            Some(raw::Matches::Many(many)) => {
                if !self.is_whole("match", many.len()) {
                    return Vec::new();
                }
                if many.is_empty() {
                    let help = Some("leave the key out to match everything".to_owned());
                    self.refuse_with(codes::NOT_A_MATCH, &["match"], "`match` is an empty list", help);
                }
                let one = |(i, one)| self.inside(&["match", &usize::to_string(&i)]).one_match(one);
                many.iter().enumerate().map(one).collect()
            }
        }
    }

    fn one_match(&mut self, raw: &raw::Match) -> Match {
        let hosts = self.listed("host", raw.host.as_ref());
        let grpc = self.listed("grpc", raw.grpc.as_ref());
        let methods = raw.methods.clone().unwrap_or_default();
        if raw.methods.as_ref().is_some_and(Vec::is_empty) {
            self.refuse_as(codes::NOT_A_MATCH, &["methods"], "`methods` names nothing");
        }
        let whole = Match {
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            path: self.path(raw),
            methods,
            headers: self.fields("headers", raw.headers.as_ref()),
            query: self.fields("query", raw.query.as_ref()),
            grpc,
        };
        if self.parts_can_match(raw, &whole) {
            self.can_match("grpc", None, &whole);
        }
        whole
    }

    /// Gives every part to the matcher alone.
    fn parts_can_match(&mut self, raw: &raw::Match, whole: &Match) -> bool {
        let mut fine = true;
        let lists: [(&str, &[String], Alone); 3] = [
            ("host", &whole.hosts, |host| Match {
                hosts: vec![host],
                ..Match::default()
            }),
            ("methods", &whole.methods, |method| Match {
                methods: vec![method],
                ..Match::default()
            }),
            ("grpc", &whole.grpc, |method| Match {
                grpc: vec![method],
                ..Match::default()
            }),
        ];
        for (key, values, alone) in lists {
            for (i, value) in values.iter().enumerate() {
                fine &= self.can_match(key, Some(&i.to_string()), &alone(value.clone()));
            }
        }
        if whole.path.is_some() {
            let key = match (&raw.path, &raw.prefix) {
                (Some(_), _) => "path",
                (None, Some(_)) => "prefix",
                (None, None) => "regex",
            };
            let alone = Match {
                path: whole.path.clone(),
                ..Match::default()
            };
            fine &= self.can_match(key, None, &alone);
        }
        for field in &whole.headers {
            let alone = Match {
                headers: vec![field.clone()],
                ..Match::default()
            };
            fine &= self.can_match("headers", Some(&field.name), &alone);
        }
        for field in &whole.query {
            let alone = Match {
                query: vec![field.clone()],
                ..Match::default()
            };
            fine &= self.can_match("query", Some(&field.name), &alone);
        }
        fine
    }

    fn can_match(&mut self, key: &str, inner: Option<&str>, one: &Match) -> bool {
        let Err(error) = routes::Matches::compile(std::slice::from_ref(one)) else {
            return true;
        };
        let expression = matches!(one.path, Some(PathMatch::Regex(_)))
            || [&one.headers, &one.query]
                .iter()
                .any(|fields| fields.iter().any(|f| matches!(f.value, ValueMatch::Regex(_))));
        let code = if expression { codes::REGEX } else { codes::NOT_A_MATCH };
        let at: Vec<&str> = std::iter::once(key).chain(inner).collect();
        // A header is found by the name as it is written.
        let name = self
            .node
            .get(key)
            .and_then(|fields| inner.and_then(|inner| spelled(fields, inner)));
        let at = match &name {
            Some(name) => vec![key, name.as_str()],
            None => at,
        };
        self.refuse_as(code, &at, error.reason.trim_start_matches("error: "));
        false
    }

    fn path(&mut self, raw: &raw::Match) -> Option<PathMatch> {
        let given = [raw.path.is_some(), raw.prefix.is_some(), raw.regex.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            let key = if raw.regex.is_some() { "regex" } else { "prefix" };
            self.refuse_as(codes::ONE_OF, &[key], "at most one of path, prefix, regex is possible");
        }
        let path = raw.path.clone().map(|text| match text.contains(['{', '}', '*']) {
            true => PathMatch::Template(text),
            false => PathMatch::Exact(text),
        });
        path.or_else(|| raw.prefix.clone().map(PathMatch::Prefix))
            .or_else(|| raw.regex.clone().map(PathMatch::Regex))
    }

    fn fields(&mut self, key: &str, raw: Option<&BTreeMap<String, raw::Value>>) -> Vec<FieldMatch> {
        let mut out = Vec::new();
        for (name, value) in raw.into_iter().flatten() {
            let value = match value {
                raw::Value::Exact(text) => ValueMatch::Exact(text.clone()),
                raw::Value::Like(like) => {
                    let present = like.present.map(|present| match present {
                        true => ValueMatch::Present,
                        false => ValueMatch::Absent,
                    });
                    let given: Vec<ValueMatch> = [
                        like.prefix.clone().map(ValueMatch::Prefix),
                        like.suffix.clone().map(ValueMatch::Suffix),
                        like.regex.clone().map(ValueMatch::Regex),
                        present,
                    ]
                    .into_iter()
                    .flatten()
                    .collect();
                    match <[ValueMatch; 1]>::try_from(given) {
                        Ok([one]) => one,
                        Err(_) => {
                            let message = "exactly one of prefix, suffix, regex, present is needed";
                            self.refuse_as(codes::ONE_OF, &[key, name], message);
                            continue;
                        }
                    }
                }
            };
            let name = match key {
                "headers" => name.to_ascii_lowercase(),
                _ => name.clone(),
            };
            out.push(FieldMatch { name, value });
        }
        out
    }

    fn listed(&mut self, key: &str, raw: Option<&raw::OneOrMany>) -> Vec<String> {
        match raw {
            None => Vec::new(),
            Some(raw::OneOrMany::One(one)) => vec![one.clone()],
            Some(raw::OneOrMany::Many(many)) => {
                if many.is_empty() {
                    self.refuse_as(codes::NOT_A_MATCH, &[key], format!("`{key}` names nothing"));
                }
                many.clone()
            }
        }
    }
}

/// The key of `fields` that is `name` but for case.
fn spelled(fields: &Node, name: &str) -> Option<String> {
    fields
        .keys()
        .find(|key| key.text.eq_ignore_ascii_case(name))
        .map(|key| key.text.clone())
}
