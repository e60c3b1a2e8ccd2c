//! `routes`, `subsets` and `failover`: which requests go where.

use std::collections::{BTreeMap, HashMap};

use outrigger_proto::model::{
    Action, Destination, DirectResponse, Forward, HeaderEdits, Match, Mirror, NewPath, PathMatch, Policy, Redirect,
    Route, ServiceName, Subset,
};
use outrigger_proto::routes::Routes;

use super::VersionDoc;
use super::check::short;
use super::codes::{self, Code};
use super::raw;
use super::reader::Reader;
use super::tree::Kind;

impl Reader<'_> {
    /// The routes of `own`; `policy` is what holds where they say nothing.
    pub(super) fn routes(&mut self, raw: &[raw::Route], own: &ServiceName, policy: &Policy) -> Vec<Route> {
        // An entry that was refused leaves a gap, and positions behind it would lie.
        if !self.is_whole("routes", raw.len()) {
            return Vec::new();
        }
        self.unique("routes", raw.iter().map(|route| route.name.as_str()));
        let one = |(i, route): (usize, &raw::Route)| {
            let mut reader = self.inside(&["routes", &i.to_string()]);
            reader.route(route, own, policy)
        };
        raw.iter().enumerate().map(one).collect()
    }

    fn route(&mut self, raw: &raw::Route, own: &ServiceName, policy: &Policy) -> Route {
        self.named(&raw.name);
        let matches = self.matches(raw.matches.as_ref());
        let prefixed = !matches.is_empty() && matches.iter().all(|one| is_prefix(one.path.as_ref()));
        if raw.request.retry.as_ref().is_some_and(|retry| retry.budget.is_some()) {
            let message = "a route has no retry budget of its own";
            self.refuse_as(codes::BUDGET_IN_ROUTE, &["retry", "budget"], message);
        }
        let sends = [
            ("to", raw.to.is_some()),
            ("sticky", raw.sticky.is_some()),
            ("mirror", raw.mirror.is_some()),
            ("rewrite", raw.rewrite.is_some()),
        ];
        let answers = [("redirect", raw.redirect.is_some()), ("respond", raw.respond.is_some())];
        let given = |all: &[(&'static str, bool)]| {
            let given = all.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
            given.collect::<Vec<_>>()
        };
        match (given(&sends).as_slice(), given(&answers).as_slice()) {
            (_, [one, other]) | ([one, ..], [other, ..]) => {
                let message = format!("`{other}` stands beside `{one}`");
                self.refuse_as(codes::ACTIONS, &[other], message);
            }
            _ => {}
        }
        let action = match (&raw.redirect, &raw.respond) {
            (Some(redirect), _) => Action::Redirect(self.redirect(redirect, prefixed)),
            (None, Some(respond)) => Action::Respond(self.respond(respond)),
            (None, None) => Action::Forward(self.forward(raw, own, prefixed)),
        };
        Route {
            name: raw.name.as_str().into(),
            matches,
            action,
            policy: self.request(&raw.request, policy),
            request_headers: self.header_edits(raw.request_headers.as_ref(), "request_headers"),
            response_headers: self.header_edits(raw.response_headers.as_ref(), "response_headers"),
        }
    }

    fn forward(&mut self, raw: &raw::Route, own: &ServiceName, prefixed: bool) -> Forward {
        let listed: Vec<(&raw::Destination, Vec<String>)> = match &raw.to {
            None => Vec::new(),
            Some(raw::Destinations::One(one)) => vec![(one, vec!["to".to_owned()])],
            Some(raw::Destinations::Many(many)) if self.is_whole("to", many.len()) => {
                let at = |i: usize| vec!["to".to_owned(), i.to_string()];
                many.iter().enumerate().map(|(i, one)| (one, at(i))).collect()
            }
            Some(raw::Destinations::Many(_)) => Vec::new(),
        };
        let mut to = Vec::with_capacity(listed.len());
        for (one, at) in &listed {
            let at: Vec<&str> = at.iter().map(String::as_str).collect();
            let destination = self.destination(one.service.as_deref(), one.subset.as_deref(), own, &at);
            let weight = match one.weight.as_deref() {
                None => 1,
                Some(text) => match text.strip_suffix('%').unwrap_or(text).trim_end().parse::<u32>() {
                    Ok(weight @ 0..=1_000_000) => weight,
                    _ => {
                        let message = format!("`{}` is not a weight from 0 to 1000000", short(text));
                        self.refuse_as(codes::NOT_A_VALUE, &[at.as_slice(), &["weight"]].concat(), message);
                        1
                    }
                },
            };
            to.push((destination, weight));
        }
        if !to.is_empty() && to.iter().all(|(_, weight)| *weight == 0) {
            self.refuse_as(codes::WEIGHTS_ZERO, &["to"], "the weights sum to 0");
        }
        let sticky = raw.sticky.as_ref().and_then(|on| self.hash_on(on, &["sticky"]));
        if raw.sticky.is_some() && to.len() < 2 {
            let message = format!("`sticky` chooses among {} destinations", to.len().max(1));
            self.refuse_as(codes::STICKY_ALONE, &["sticky"], message);
        }
        let mirror = raw.mirror.as_ref().map(|mirror| {
            let (service, subset) = (mirror.to.service.as_deref(), mirror.to.subset.as_deref());
            Mirror {
                to: self.destination(service, subset, own, &["mirror", "to"]),
                per_million: self.share(mirror.percent.as_deref(), &["mirror", "percent"]),
            }
        });
        let empty = raw::Rewrite::default();
        let rewrite = raw.rewrite.as_ref().unwrap_or(&empty);
        if raw.rewrite.is_some() && rewrite.path.is_none() && rewrite.prefix.is_none() && rewrite.host.is_none() {
            self.refuse_as(
                codes::ONE_OF,
                &["rewrite"],
                "`rewrite` changes nothing: path, prefix or host is needed",
            );
        }
        let path = self.new_path("rewrite", rewrite.path.as_deref(), rewrite.prefix.as_deref(), prefixed);
        let (authority, any) = (rewrite.host.clone(), any_prefix());
        self.can_route(codes::BAD_ACTION, &["rewrite"], any, |route| {
            let path = path.clone();
            route.action = Action::Forward(Forward {
                authority,
                path,
                ..Forward::default()
            });
        });
        Forward {
            to,
            sticky,
            mirror,
            authority: rewrite.host.clone(),
            path,
        }
    }

    /// A destination as a document of `own` writes it; whether it exists is looked at when all documents are read.
    fn destination(
        &mut self,
        service: Option<&str>,
        subset: Option<&str>,
        own: &ServiceName,
        path: &[&str],
    ) -> Destination {
        if service.is_none() && subset.is_none() {
            self.refuse_as(codes::NOWHERE, path, "a destination needs a service, a subset or both");
        }
        let name = service.and_then(|service| {
            let name = match service.contains('/') {
                true => service.parse(),
                false => ServiceName::new(own.namespace(), service),
            };
            match name {
                Ok(name) => Some(name),
                Err(error) => {
                    let at = [path, &["service"]].concat();
                    self.refuse_as(codes::UNKNOWN_SERVICE, &at, error.reason);
                    None
                }
            }
        });
        Destination {
            // The service itself is said by saying nothing: one way to say one thing.
            service: name.filter(|name| name != own),
            subset: subset.map(Into::into),
        }
    }

    /// `failover` of `own`.
    pub(super) fn failover(&mut self, raw: &[raw::Elsewhere], own: &ServiceName) -> Vec<Destination> {
        if !self.is_whole("failover", raw.len()) {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(raw.len());
        for (i, one) in raw.iter().enumerate() {
            let at = ["failover", &i.to_string()];
            let to = self.destination(one.service.as_deref(), one.subset.as_deref(), own, &at);
            if one.service.is_some() && to == Destination::default() {
                self.refuse_as(codes::NOWHERE, &at, "a service cannot stand in for itself");
            }
            out.push(to);
        }
        out
    }

    /// `subsets`, and one for each of the versions that are written.
    pub(super) fn subsets(
        &mut self,
        raw: &BTreeMap<String, BTreeMap<String, String>>,
        versions: &[VersionDoc],
    ) -> Vec<Subset> {
        let implied = versions.iter().filter_map(|version| {
            let name = version.name.as_deref().filter(|name| !raw.contains_key(*name))?;
            let label = version.labels.get("version")?;
            Some(Subset {
                name: name.into(),
                labels: vec![("version".to_owned(), label.clone())],
            })
        });
        let mut out: Vec<Subset> = implied.collect();
        for (name, labels) in raw {
            if labels.is_empty() {
                self.refuse_as(
                    codes::EMPTY_SUBSET,
                    &["subsets", name],
                    format!("the subset `{}` has no labels", short(name)),
                );
            }
            if let Err(error) = ServiceName::new("x", name) {
                let key = self.node.get("subsets").and_then(|subsets| subsets.entry(name));
                let at = key.map_or(&self.node.span, |(key, _)| &key.span).clone();
                let error = self.report.error(&at, error.reason);
                self.report.push(error.code(codes::NOT_A_VALUE));
            }
            out.push(Subset {
                name: name.as_str().into(),
                labels: labels.clone().into_iter().collect(),
            });
        }
        out
    }

    fn redirect(&mut self, raw: &raw::Redirect, prefixed: bool) -> Redirect {
        let status = raw.status.unwrap_or(302);
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            self.refuse_as(
                codes::BAD_ACTION,
                &["redirect", "status"],
                format!("{status} does not redirect"),
            );
        }
        let redirect = Redirect {
            status,
            scheme: raw.scheme.map(|scheme| match scheme {
                raw::Scheme::Http => "http".to_owned(),
                raw::Scheme::Https => "https".to_owned(),
            }),
            authority: raw.host.clone(),
            path: self.new_path("redirect", raw.path.as_deref(), raw.prefix.as_deref(), prefixed),
        };
        self.can_route(codes::BAD_ACTION, &["redirect"], any_prefix(), |route| {
            route.action = Action::Redirect(redirect.clone());
        });
        redirect
    }

    fn respond(&mut self, raw: &raw::Respond) -> DirectResponse {
        let body = raw.body.clone().unwrap_or_default();
        if body.len() > 64 << 10 {
            let message = format!("the body of {} bytes is more than 64 KiB", body.len());
            self.refuse_as(codes::BAD_ACTION, &["respond", "body"], message);
        }
        let content_type = raw
            .content_type
            .clone()
            .unwrap_or_else(|| "text/plain; charset=utf-8".to_owned());
        let answer = DirectResponse {
            status: raw.status,
            body,
            content_type,
        };
        self.can_route(codes::BAD_ACTION, &["respond"], Vec::new(), |route| {
            route.action = Action::Respond(answer.clone());
        });
        answer
    }

    fn new_path(&mut self, key: &str, path: Option<&str>, prefix: Option<&str>, prefixed: bool) -> Option<NewPath> {
        if path.is_some() && prefix.is_some() {
            self.refuse_as(
                codes::ONE_OF,
                &[key, "prefix"],
                "at most one of path, prefix is possible",
            );
        }
        if prefix.is_some() && !prefixed {
            let message = format!("`{key}.prefix` stands for a prefix, and not every match of this route has one");
            self.refuse_as(codes::PREFIX_WITHOUT_PREFIX, &[key, "prefix"], message);
        }
        path.map(|path| NewPath::Full(path.to_owned()))
            .or_else(|| prefix.map(|prefix| NewPath::Prefix(prefix.to_owned())))
    }

    fn header_edits(&mut self, raw: Option<&raw::HeaderEdits>, key: &str) -> HeaderEdits {
        let Some(raw) = raw else { return HeaderEdits::default() };
        let edits = |part: &str, name: &str, value: &str| {
            let pair = || vec![(name.to_ascii_lowercase(), value.to_owned())];
            match part {
                "set" => HeaderEdits {
                    set: pair(),
                    ..HeaderEdits::default()
                },
                "add" => HeaderEdits {
                    add: pair(),
                    ..HeaderEdits::default()
                },
                _ => HeaderEdits {
                    remove: vec![name.to_ascii_lowercase()],
                    ..HeaderEdits::default()
                },
            }
        };
        let mut whole = HeaderEdits::default();
        for (part, fields) in [("set", &raw.set), ("add", &raw.add)] {
            for (name, value) in fields.iter().flatten() {
                let one = edits(part, name, value);
                self.can_route(codes::HEADER_EDIT, &[key, part, name], Vec::new(), |route| {
                    route.request_headers.clone_from(&one);
                });
                whole.set.extend(one.set);
                whole.add.extend(one.add);
            }
        }
        for (i, name) in raw.remove.iter().flatten().enumerate() {
            let one = edits("remove", name, "");
            self.can_route(
                codes::HEADER_EDIT,
                &[key, "remove", &i.to_string()],
                Vec::new(),
                |route| {
                    route.request_headers.clone_from(&one);
                },
            );
            whole.remove.extend(one.remove);
        }
        whole
    }

    /// Gives a route that has nothing but one part to the sidecars' own check.
    fn can_route(&mut self, code: &'static Code, path: &[&str], matches: Vec<Match>, part: impl FnOnce(&mut Route)) {
        let mut route = Route {
            name: "x".into(),
            matches,
            action: Action::Forward(Forward::default()),
            policy: Policy::default(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        };
        part(&mut route);
        if let Err(error) = Routes::compile(&[route]) {
            self.refuse_as(code, path, error.reason);
        }
    }

    /// The name of a route, fault or rate limit.
    pub(super) fn named(&mut self, name: &str) {
        if let Err(error) = ServiceName::new("x", name) {
            self.refuse_as(codes::NOT_A_VALUE, &["name"], error.reason);
        }
    }

    /// Refuses names that stand twice in the list under `key`.
    pub(super) fn unique<'n>(&mut self, key: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (i, name) in names.enumerate() {
            let j = *seen.entry(name).or_insert(i);
            if j == i {
                continue;
            }
            let (again, first) = ([key, &i.to_string(), "name"], [key, &j.to_string(), "name"]);
            let message = format!("`{}` stands twice in `{key}`", short(name));
            let error = self.report.error(self.node.at(&again), message);
            let error = error.label("again here").also(self.node.at(&first), "first here");
            self.report.push(error.code(codes::TWO_OF_ONE_NAME));
        }
    }

    /// Whether all entries of the list under `key` were read.
    pub(super) fn is_whole(&self, key: &str, read: usize) -> bool {
        match self.node.get(key).map(|node| &node.kind) {
            Some(Kind::List(all)) => all.len() == read,
            _ => true,
        }
    }
}

fn is_prefix(path: Option<&PathMatch>) -> bool {
    matches!(path, Some(PathMatch::Prefix(_)))
}

/// A match under which a new prefix is possible: that it is there is looked at elsewhere.
fn any_prefix() -> Vec<Match> {
    vec![Match {
        path: Some(PathMatch::Prefix("/".to_owned())),
        ..Match::default()
    }]
}
