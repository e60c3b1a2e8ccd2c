//! Routes and faults as settings, and routes as rows of a table.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use outrigger_proto::model::{
    Action, Destination, Fault, Forward, Harm, HeaderEdits, Match, NewPath, PathMatch, Route, ValueMatch,
};
use serde::Serialize;

use super::{List, Setting, hash_on, policy, time};
use crate::config::ServiceDoc;
use crate::config::origin::Level;
use crate::config::words::{grpc_name, shown_per_million};

/// A route as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// Its name.
    pub name: String,
    /// Which requests.
    #[serde(rename = "match")]
    pub matches: String,
    /// What happens to them.
    pub action: String,
    /// What it says in place of the service: the keys of a request's policy.
    pub policy: Vec<Setting>,
    /// `file:line`.
    pub at: Option<String>,
}

/// The routes of a service in their order.
#[must_use]
pub fn routes(service: &ServiceDoc) -> Vec<RouteRow> {
    let mut by_route: HashMap<&str, Vec<(&str, &Setting)>> = HashMap::new();
    for setting in &service.settings {
        // Names have no dots.
        if let Some((name, key)) = setting
            .key
            .strip_prefix("routes.")
            .and_then(|rest| rest.split_once('.'))
        {
            by_route.entry(name).or_default().push((key, setting));
        }
    }
    let row = |route: &Route| {
        let own = by_route.get(&*route.name).map_or(&[][..], Vec::as_slice);
        let keys = policy(&route.policy).map(|(key, _)| key);
        let said = own.iter().filter(|(key, _)| keys.contains(key));
        RouteRow {
            name: route.name.to_string(),
            matches: matches(&route.matches),
            action: whole_action(route, service),
            policy: said
                .map(|(key, setting)| Setting {
                    key: (*key).to_owned(),
                    ..(*setting).clone()
                })
                .collect(),
            at: own.first().and_then(|(_, setting)| setting.source.at.clone()),
        }
    };
    service.traffic.routes.iter().map(row).collect()
}

/// Puts routes and faults.
pub(super) fn all(list: &mut List<'_>, service: &ServiceDoc) {
    let traffic = &service.traffic;
    if !traffic.routes.is_empty() {
        let names: Vec<&str> = traffic.routes.iter().map(|route| &*route.name).collect();
        list.put("routes", names.join(", "));
    }
    let whole = list.origins;
    for (i, route) in traffic.routes.iter().enumerate() {
        let origins = whole.of_route(i);
        let node = origins.route.unwrap_or(origins.service);
        let mut put = |key: &str, path: &[&str], value: String| {
            let span = node.at(path);
            let source = origins.at(Level::Route, span);
            list.push(format!("routes.{}.{key}", route.name), value, source);
        };
        put("match", &["match"], matches(&route.matches));
        for (key, value) in actions(route, service) {
            put(key, &[key], value);
        }
        for (key, value) in policy(&route.policy) {
            let path: Vec<&str> = key.split('.').collect();
            if let Some((Level::Route, _)) = origins.find(&path) {
                put(key, &path, value);
            }
        }
    }
    for (i, fault) in traffic.faults.iter().enumerate() {
        let source = whole.source(&["faults", &i.to_string()]);
        list.push(format!("faults.{}", fault.name), shown_fault(fault), source);
    }
}

fn whole_action(route: &Route, service: &ServiceDoc) -> String {
    let parts = actions(route, service).into_iter().map(|(key, value)| match key {
        "to" => value,
        _ => format!("{} {value}", key.replace('_', " ")),
    });
    parts.collect::<Vec<_>>().join("; ")
}

/// What a route does, by the keys that say it.
fn actions(route: &Route, service: &ServiceDoc) -> Vec<(&'static str, String)> {
    let path = |path: &NewPath| match path {
        NewPath::Full(text) => text.clone(),
        NewPath::Prefix(text) => format!("prefix {text}"),
    };
    let mut out = match &route.action {
        Action::Forward(forward) => sent_on(forward, service),
        Action::Redirect(redirect) => {
            let place = [
                redirect.scheme.as_ref().map(|scheme| format!("{scheme}://")),
                redirect.authority.clone(),
                redirect.path.as_ref().map(path),
            ];
            let place: Vec<String> = place.into_iter().flatten().collect();
            vec![("redirect", format!("{} {}", redirect.status, place.concat()))]
        }
        Action::Respond(answer) => {
            let body = match answer.body.len() {
                0 => String::new(),
                1..=60 => format!(" `{}` as {}", answer.body.escape_debug(), answer.content_type),
                // Two long texts differ by their hash; both are hashed by this very program.
                n => {
                    let mut hasher = DefaultHasher::new();
                    answer.body.hash(&mut hasher);
                    format!(" {n} bytes ({:08x}) as {}", hasher.finish() as u32, answer.content_type)
                }
            };
            vec![("respond", format!("{}{body}", answer.status))]
        }
    };
    for (key, edits) in [
        ("request_headers", &route.request_headers),
        ("response_headers", &route.response_headers),
    ] {
        if !edits.is_empty() {
            out.push((key, shown_edits(edits)));
        }
    }
    out
}

fn sent_on(forward: &Forward, service: &ServiceDoc) -> Vec<(&'static str, String)> {
    let sum: u64 = forward.to.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let share = |weight: u32| {
        let million = u64::from(weight) * 1_000_000 / sum.max(1);
        shown_per_million(u32::try_from(million).unwrap_or(u32::MAX))
    };
    let to = match forward.to.as_slice() {
        [] => service.name.service().to_owned(),
        [(one, _)] => destination(one, service),
        many => {
            let one = |(to, weight): &(Destination, u32)| format!("{} {}", destination(to, service), share(*weight));
            many.iter().map(one).collect::<Vec<_>>().join(", ")
        }
    };
    let mut out = vec![("to", to)];
    if let Some(on) = &forward.sticky {
        out.push(("sticky", format!("by {}", hash_on(on))));
    }
    if let Some(mirror) = &forward.mirror {
        let share = shown_per_million(mirror.per_million);
        out.push(("mirror", format!("{share} to {}", destination(&mirror.to, service))));
    }
    let host = forward.authority.as_ref().map(|host| format!("host {host}"));
    let path = forward.path.as_ref().map(|path| match path {
        NewPath::Full(text) => format!("path {text}"),
        NewPath::Prefix(text) => format!("prefix {text}"),
    });
    let rewrite: Vec<String> = host.into_iter().chain(path).collect();
    if !rewrite.is_empty() {
        out.push(("rewrite", rewrite.join(", ")));
    }
    out
}

/// `service/subset` as a document of `from` writes it.
pub(super) fn destination(to: &Destination, from: &ServiceDoc) -> String {
    let name = to.service.as_ref().map_or_else(
        || from.name.service().to_owned(),
        |name| match name.namespace() == from.name.namespace() {
            true => name.service().to_owned(),
            false => name.to_string(),
        },
    );
    match &to.subset {
        None => name,
        Some(subset) => format!("{name}[{subset}]"),
    }
}

/// Which requests, in words.
pub(super) fn matches(all: &[Match]) -> String {
    if all.is_empty() {
        return "everything".to_owned();
    }
    all.iter().map(one_match).collect::<Vec<_>>().join(" or ")
}

fn one_match(one: &Match) -> String {
    let mut parts: Vec<String> = Vec::new();
    if !one.methods.is_empty() {
        parts.push(one.methods.join("|"));
    }
    if !one.hosts.is_empty() {
        parts.push(format!("host {}", one.hosts.join("|")));
    }
    match &one.path {
        None => {}
        Some(PathMatch::Exact(text) | PathMatch::Template(text)) => parts.push(text.clone()),
        Some(PathMatch::Prefix(text)) => parts.push(format!("{}/…", text.strip_suffix('/').unwrap_or(text))),
        Some(PathMatch::Regex(text)) => parts.push(format!("~{text}")),
    }
    if !one.grpc.is_empty() {
        parts.push(format!("grpc {}", one.grpc.join("|")));
    }
    for (mark, fields) in [("", &one.headers), ("?", &one.query)] {
        parts.extend(fields.iter().map(|field| {
            let name = &field.name;
            match &field.value {
                ValueMatch::Present => format!("{mark}{name}"),
                ValueMatch::Absent => format!("no {mark}{name}"),
                ValueMatch::Exact(text) => format!("{mark}{name}={text}"),
                ValueMatch::Prefix(text) => format!("{mark}{name}={text}…"),
                ValueMatch::Suffix(text) => format!("{mark}{name}=…{text}"),
                ValueMatch::Regex(text) => format!("{mark}{name}~{text}"),
            }
        }));
    }
    if parts.is_empty() {
        "everything".to_owned()
    } else {
        parts.join(" ")
    }
}

fn shown_edits(edits: &HeaderEdits) -> String {
    let removed = edits.remove.iter().map(|name| format!("-{name}"));
    let set = edits.set.iter().map(|(name, value)| format!("{name}={value}"));
    let added = edits.add.iter().map(|(name, value)| format!("+{name}={value}"));
    removed.chain(set).chain(added).collect::<Vec<_>>().join(", ")
}

fn shown_fault(fault: &Fault) -> String {
    let harm = match fault.harm {
        Harm::Delay(delay) => format!("delay {}", time(delay)),
        Harm::Abort { status, grpc } => format!("abort {status}, grpc {}", grpc_name(grpc)),
        Harm::ResetAfter(bytes) => format!("reset_after {bytes}b"),
        Harm::RefuseConnection => "refuse".to_owned(),
    };
    let from: Vec<String> = fault.callers.iter().map(ToString::to_string).collect();
    let from = if from.is_empty() {
        String::new()
    } else {
        format!(" from {}", from.join(", "))
    };
    format!(
        "{harm}, {} of {}{from}, until {}",
        shown_per_million(fault.per_million),
        matches(&fault.matches),
        humantime::format_rfc3339_seconds(fault.until)
    )
}
