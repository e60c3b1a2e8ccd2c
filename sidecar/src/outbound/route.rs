//! What a service's routes and faults make of a request: where it goes, under which policy, changed how; or the answer.
//!
//! Only requests to services that have routes or faults come here, and what is allocated here is theirs alone.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use outrigger_proto::model::{Action, NewPath, Policy, Redirect};
use outrigger_proto::routes::Asked;

use super::cluster::Resolved;
use super::{Outbound, Problem, hash};
use crate::directory::traffic::{self, Act, Edits, Goal, Onward, Traffic};
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::translate::Plan;
use crate::observe::count::Count;
use crate::reason::Reason;
use crate::respond::{self, Dress};

/// What becomes of a request.
pub(super) enum Course {
    /// It is answered.
    Answered(Box<Response<Body>>),
    /// It is sent on.
    On(Box<Routed>),
}

/// How a request is sent on.
#[derive(Debug)]
pub(super) struct Routed {
    traffic: Arc<Traffic>,
    route: Option<usize>,
    /// Another service, and as it is known now.
    elsewhere: Option<(Outbound, Arc<Resolved>)>,
    /// None: all endpoints.
    pub(super) subset: Option<Arc<str>>,
    delay: Option<Duration>,
    breaks: Option<(u64, Count)>,
}

impl Outbound {
    /// Finds what the request meets, and changes it accordingly.
    pub(super) async fn route(
        &self,
        traffic: &Arc<Traffic>,
        resolved: &Resolved,
        plan: &mut Plan,
        parts: &mut Parts,
        exchange: &mut Exchange,
    ) -> Result<Course, Problem> {
        let dress = Dress::of(&parts.headers);
        let (found, harms) = {
            let field = |name: &str| parts.headers.get(name).map(HeaderValue::as_bytes);
            let asked = Asked {
                host: traffic::host(plan.authority(), &parts.headers),
                path: plan.path().path(),
                query: plan.path().query(),
                method: plan.method().as_str(),
                field: &field,
            };
            let found = traffic
                .find(&asked)
                .map_err(|why| Problem::new(Reason::BadPath, why.to_string()))?;
            (found, traffic.harms(&asked, SystemTime::now(), |n| fastrand::u32(..n)))
        };
        let mut routed = Box::new(Routed {
            traffic: traffic.clone(),
            route: found.map(|f| f.route),
            elsewhere: None,
            subset: None,
            delay: harms.delay,
            breaks: harms.breaks,
        });
        let way = found.and_then(|f| traffic.way(f.route));
        let goal = match way {
            Some(way) => match &way.act {
                Act::Answer(tally) => {
                    exchange.routed(&way.name, &way.name, tally);
                    None
                }
                Act::Forward(onward) => {
                    let goal = self.goal(onward, parts)?;
                    exchange.routed(&way.name, &goal.name, &goal.tally);
                    Some((onward, goal))
                }
            },
            None => None,
        };
        if let Some((status, grpc)) = harms.abort {
            // What else would delay it delays this too.
            routed.delayed().await;
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            exchange.aborted(status, grpc);
            let text = Bytes::from_static(b"fault: a fault of the service's configuration did that on purpose\n");
            let answer = respond::configured("fault", status, grpc, dress, text);
            return Ok(Course::Answered(Box::new(answer)));
        }
        let Some(way) = way else { return Ok(Course::On(routed)) };
        let Some((onward, goal)) = goal else {
            let mut answer = answer(
                traffic,
                found.map_or(0, |f| f.route),
                found.map_or(0, |f| f.segments),
                plan,
                parts,
            );
            way.response.apply(answer.headers_mut());
            exchange.answered_by_route(answer.status(), answer.headers());
            return Ok(Course::Answered(Box::new(answer)));
        };
        way.request.apply(&mut parts.headers);
        if let Some((authority, host)) = &onward.authority {
            plan.set_authority(&mut parts.headers, authority, host);
        }
        if let Some(path) = &onward.path
            && let Some(path) = new_path(path, plan.path(), found.map_or(0, |f| f.segments))
        {
            plan.set_path(path);
        }
        routed.subset.clone_from(&goal.subset);
        if let Some(other) = goal.other {
            routed.elsewhere = Some(self.elsewhere(resolved, other).await?);
        }
        let there = routed.elsewhere.as_ref().map_or(resolved, |(_, resolved)| resolved);
        if let Some(subset) = routed.subset.as_ref().filter(|s| !there.has_subset(s)) {
            return Err(Problem::new(
                Reason::UnknownSubset,
                format!("{} has no subset `{subset}`", there.service.name),
            ));
        }
        Ok(Course::On(routed))
    }

    /// Which of a route's destinations is next: by chance, or always the same for the same value.
    fn goal<'t>(&self, onward: &'t Onward, parts: &Parts) -> Result<&'t Goal, Problem> {
        let stuck = onward.sticky.as_ref().filter(|_| onward.splits()).and_then(|on| {
            let hash = hash::of(on, &parts.uri, &parts.headers, self.shared.name.as_str());
            if hash.is_none() {
                onward.unsticky.add();
            }
            hash
        });
        let goal = onward.choose(|| stuck.unwrap_or_else(|| fastrand::u64(..)));
        goal.ok_or_else(|| Problem::new(Reason::NoEndpoints, "the route leads nowhere".into()))
    }

    /// Another service that a route leads to, and as it is known now.
    pub(super) async fn elsewhere(&self, resolved: &Resolved, other: usize) -> Result<(Self, Arc<Resolved>), Problem> {
        let Some(cluster) = resolved.routed.get(other).cloned() else {
            return Err(self.unresolved(Reason::NotReady));
        };
        let there = Self::new(cluster, self.shared.clone(), None);
        let resolved = there
            .cluster
            .resolve()
            .await
            .map_err(|reason| there.unresolved(reason))?;
        Ok((there, resolved))
    }
}

impl Routed {
    /// Whose endpoints are tried.
    pub(super) fn destination<'r>(
        &'r self,
        here: &'r Outbound,
        resolved: &'r Arc<Resolved>,
    ) -> (&'r Outbound, &'r Arc<Resolved>) {
        self.elsewhere
            .as_ref()
            .map_or((here, resolved), |(there, resolved)| (there, resolved))
    }

    /// What holds for the request.
    pub(super) fn policy(&self) -> &Policy {
        self.traffic.policy(self.route)
    }

    /// Waits as long as a fault says.
    pub(super) async fn delayed(&self) {
        if let Some(delay) = self.delay {
            tokio::time::sleep(delay).await;
        }
    }

    /// How the route sends a request on, when there is a route.
    pub(super) fn onward(&self) -> Option<&Onward> {
        match &self.traffic.way(self.route?)?.act {
            Act::Forward(onward) => Some(onward),
            Act::Answer(_) => None,
        }
    }

    /// Changes an answer on its way back.
    pub(super) fn returned(&self, response: Response<Body>) -> Response<Body> {
        let mut response = match &self.breaks {
            Some((bytes, count)) => response.map(|body| body.broken_after(*bytes, count.clone())),
            None => response,
        };
        if let Some(edits) = self.edits() {
            edits.apply(response.headers_mut());
        }
        response
    }

    fn edits(&self) -> Option<&Edits> {
        Some(&self.traffic.way(self.route?)?.response)
    }
}

/// The answer of a route that answers by itself.
fn answer(traffic: &Traffic, route: usize, segments: usize, plan: &Plan, parts: &Parts) -> Response<Body> {
    let dress = Dress::of(&parts.headers);
    match traffic.route(route).map(|r| &r.action) {
        Some(Action::Respond(answer)) => {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
            let length = answer.body.len();
            // RFC 9110 §9.3.2: the same fields without the content.
            let body = match *plan.method() == Method::HEAD {
                true => Bytes::new(),
                false => Bytes::copy_from_slice(answer.body.as_bytes()),
            };
            let mut response = respond::configured("respond", status, respond::grpc_of(status), dress, body);
            if dress == Dress::Http && !matches!(answer.status, 204 | 205 | 304) {
                let headers = response.headers_mut();
                if let Ok(kind) = HeaderValue::from_bytes(answer.content_type.as_bytes()) {
                    headers.insert(CONTENT_TYPE, kind);
                }
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            response
        }
        Some(Action::Redirect(redirect)) => {
            let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
            let location = location(redirect, segments, plan, &parts.headers);
            let text = match dress {
                Dress::Http => Bytes::new(),
                Dress::Grpc => Bytes::from(format!("redirect to {location}")),
            };
            let mut response = respond::configured("redirect", status, respond::grpc_of(status), dress, text);
            if let Ok(location) = HeaderValue::try_from(location) {
                response.headers_mut().insert(LOCATION, location);
            }
            response
        }
        _ => respond::answer(Reason::Internal, dress, ""),
    }
}

/// Where a redirect leads; relative when neither scheme nor authority changes (RFC 9110 §10.2.2).
fn location(redirect: &Redirect, segments: usize, plan: &Plan, headers: &HeaderMap) -> String {
    let changed = redirect
        .path
        .as_ref()
        .and_then(|path| new_path(path, plan.path(), segments));
    let path = changed.as_ref().unwrap_or(plan.path()).as_str();
    if redirect.scheme.is_none() && redirect.authority.is_none() {
        return path.to_owned();
    }
    // What the app speaks to its sidecar is plain.
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let authority = redirect
        .authority
        .as_deref()
        .or_else(|| traffic::host(plan.authority(), headers));
    format!("{scheme}://{}{path}", authority.unwrap_or_default())
}

/// The path with another in its place; the query stays. None when that is no path.
fn new_path(new: &NewPath, old: &PathAndQuery, segments: usize) -> Option<PathAndQuery> {
    let rest;
    let path = match new {
        NewPath::Full(path) => path.as_str(),
        NewPath::Prefix(prefix) => {
            // Slashes are never encoded in a path that matched, so segments are where they seem to be.
            let after = old.path().match_indices('/').nth(segments).map(|(at, _)| at);
            let after = after.and_then(|at| old.path().get(at..)).unwrap_or_default();
            rest = format!("{}{after}", prefix.strip_suffix('/').unwrap_or(prefix));
            if rest.is_empty() { "/" } else { &rest }
        }
    };
    match old.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")).ok(),
        None => PathAndQuery::try_from(path).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_path_keeps_what_follows_the_prefix_byte_for_byte() {
        for (new, old, segments, expected) in [
            ("/b", "/a/x%2Dy/?q=%20", 1, "/b/x%2Dy/?q=%20"),
            ("/b/", "/a/x", 1, "/b/x"),
            ("/b", "/a", 1, "/b"),
            ("/b", "/a/", 1, "/b/"),
            ("/", "/a/x", 1, "/x"),
            ("/", "/a?q", 1, "/?q"),
            ("/b/c", "/a/b/x", 2, "/b/c/x"),
            ("/b", "/x/y", 0, "/b/x/y"),
            ("/b", "/", 0, "/b/"),
        ] {
            let new = NewPath::Prefix(new.into());
            let path = new_path(&new, &PathAndQuery::from_static(old), segments).expect("a path");
            assert_eq!(path.as_str(), expected, "{new:?} for {old}");
        }
        let full = NewPath::Full("/new".into());
        let path = new_path(&full, &PathAndQuery::from_static("/old/x?q=1"), 0).expect("a path");
        assert_eq!(path.as_str(), "/new?q=1");
    }
}
