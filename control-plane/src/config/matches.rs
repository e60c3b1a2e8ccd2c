//! `match`: which requests a route, fault, rate limit or priority is about.

use std::collections::BTreeMap;

use outrigger_proto::access::normalise;
use outrigger_proto::model::{FieldMatch, Match, PathMatch, ValueMatch};

use super::check::short;
use super::codes;
use super::raw;
use super::reader::Reader;

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
                    let message = "`match` is an empty list";
                    self.refuse_with(
                        codes::NOT_A_MATCH,
                        &["match"],
                        message,
                        Some("leave the key out to match everything".to_owned()),
                    );
                }
                let one = |(i, one)| self.inside(&["match", &usize::to_string(&i)]).one_match(one);
                many.iter().enumerate().map(one).collect()
            }
        }
    }

    fn one_match(&mut self, raw: &raw::Match) -> Match {
        let hosts = self.listed("host", raw.host.as_ref());
        for host in &hosts {
            let name = host.strip_prefix("*.").unwrap_or(host);
            if name.parse::<http::uri::Authority>().is_err() || name.contains(['@', '*']) {
                self.never(&["host"], format!("`{}` is not a host", short(host)));
            }
        }
        let grpc = self.listed("grpc", raw.grpc.as_ref());
        for method in &grpc {
            let word = |text: &str, dots: bool| {
                !text.is_empty()
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || (dots && b == b'.'))
            };
            let fine = method
                .split_once('/')
                .is_some_and(|(service, method)| word(service, true) && (method == "*" || word(method, false)));
            if !fine {
                let message = format!("`{}` is not package.Service/Method", short(method));
                self.never(&["grpc"], message);
            }
        }
        let methods = raw.methods.clone().unwrap_or_default();
        if raw.methods.as_ref().is_some_and(Vec::is_empty) {
            self.never(&["methods"], "`methods` names nothing");
        }
        for (i, method) in methods.iter().enumerate() {
            let index = i.to_string();
            if http::Method::from_bytes(method.as_bytes()).is_err() {
                self.never(&["methods", &index], format!("`{}` is not a method", short(method)));
            } else if method.bytes().any(|b| b.is_ascii_lowercase()) {
                let upper = method.to_ascii_uppercase();
                let message = format!("methods are upper case, and `{}` is not", short(method));
                self.refuse_with(
                    codes::NOT_A_MATCH,
                    &["methods", &index],
                    message,
                    Some(format!("did you mean `{upper}`?")),
                );
            }
        }
        let path = self.path(raw);
        if !grpc.is_empty() && (path.is_some() || !methods.is_empty()) {
            let message = "`grpc` says path and method already";
            let key = if path.is_some() { self.path_key(raw) } else { "methods" };
            self.never(&[key], message);
        }
        Match {
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            path,
            methods,
            headers: self.fields("headers", raw.headers.as_ref()),
            query: self.fields("query", raw.query.as_ref()),
            grpc,
        }
    }

    fn path_key(&self, raw: &raw::Match) -> &'static str {
        match (&raw.path, &raw.prefix) {
            (Some(_), _) => "path",
            (None, Some(_)) => "prefix",
            (None, None) => "regex",
        }
    }

    fn path(&mut self, raw: &raw::Match) -> Option<PathMatch> {
        let given = [raw.path.is_some(), raw.prefix.is_some(), raw.regex.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            let key = if raw.regex.is_some() { "regex" } else { "prefix" };
            self.refuse_as(codes::ONE_OF, &[key], "at most one of path, prefix, regex is possible");
        }
        if let Some(text) = &raw.path {
            return Some(match text.contains(['{', '*']) {
                false => {
                    self.normal(text, "path");
                    PathMatch::Exact(text.clone())
                }
                true => {
                    self.template(text);
                    PathMatch::Template(text.clone())
                }
            });
        }
        if let Some(text) = &raw.prefix {
            // `/a/` and `/a` are the same set of segments.
            let trimmed = match text.len() {
                0 | 1 => text.as_str(),
                _ => text.strip_suffix('/').unwrap_or(text),
            };
            self.normal(trimmed, "prefix");
            return Some(PathMatch::Prefix(trimmed.to_owned()));
        }
        let text = raw.regex.as_ref()?;
        self.regex(text, &["regex"]);
        Some(PathMatch::Regex(text.clone()))
    }

    /// Refuses a path that no request has after it was normalised.
    fn normal(&mut self, text: &str, key: &str) {
        match normalise(text) {
            Ok(normal) if normal == text => {}
            Ok(normal) => {
                let message = format!("`{}` is never a request's path once it is normalised", short(text));
                let help = format!("write `{}`", short(&normal));
                self.refuse_with(codes::NOT_A_MATCH, &[key], message, Some(help));
            }
            Err(error) => self.never(&[key], format!("`{}` never matches: {error}", short(text))),
        }
    }

    /// Refuses placeholders that are not whole segments, and `*` anywhere but at the end.
    fn template(&mut self, text: &str) {
        let Some(rest) = text.strip_prefix('/') else {
            self.never(&["path"], format!("`{}` does not begin with /", short(text)));
            return;
        };
        let segments: Vec<&str> = rest.split('/').collect();
        let last = segments.len().saturating_sub(1);
        for (i, segment) in segments.iter().enumerate() {
            let placeholder = segment.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
            let problem = match placeholder {
                Some(name) if !name.is_empty() && !name.contains(['{', '}', '*']) => continue,
                Some(_) => "a placeholder is {name}",
                None if *segment == "*" && i == last => continue,
                None if segment.contains('*') => "`*` stands alone at the end",
                None if segment.contains(['{', '}']) => "a placeholder is a whole segment",
                None => {
                    let alone = format!("/{segment}");
                    if normalise(&alone).is_ok_and(|normal| normal == alone) {
                        continue;
                    }
                    "no request has such a segment once it is normalised"
                }
            };
            self.never(&["path"], format!("`{}` cannot be used: {problem}", short(text)));
            return;
        }
    }

    /// Refuses an expression that the matcher would refuse.
    fn regex(&mut self, text: &str, path: &[&str]) {
        if text.len() > 1024 {
            let message = format!("the expression has {} bytes, more than 1024", text.len());
            self.refuse_as(codes::REGEX, path, message);
        }
    }

    fn fields(&mut self, key: &str, raw: Option<&BTreeMap<String, raw::Value>>) -> Vec<FieldMatch> {
        let mut out = Vec::new();
        for (name, value) in raw.into_iter().flatten() {
            let mut shown = name.clone();
            if key == "headers" {
                shown.make_ascii_lowercase();
                if http::HeaderName::from_bytes(shown.as_bytes()).is_err() {
                    self.never(&[key, name], format!("`{}` is not a header's name", short(name)));
                }
            } else if name.is_empty() {
                self.never(&[key, name], "a query parameter without a name");
            }
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
                    if let Some(text) = &like.regex {
                        self.regex(text, &[key, name, "regex"]);
                    }
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
            out.push(FieldMatch { name: shown, value });
        }
        out
    }

    fn listed(&mut self, key: &str, raw: Option<&raw::OneOrMany>) -> Vec<String> {
        match raw {
            None => Vec::new(),
            Some(raw::OneOrMany::One(one)) => vec![one.clone()],
            Some(raw::OneOrMany::Many(many)) => {
                if many.is_empty() {
                    self.never(&[key], format!("`{key}` names nothing"));
                }
                many.clone()
            }
        }
    }

    fn never(&mut self, path: &[&str], message: impl Into<String>) {
        self.refuse_as(codes::NOT_A_MATCH, path, message);
    }
}
