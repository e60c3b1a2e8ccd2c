//! Which route a request takes: the first in document order that matches. Pure: the sidecar decides with it, the
//! control plane checks and explains with it. The same matching serves faults, rate limits and priorities.
//!
//! A route matches when any of its matches does (none = everything). A match matches when each of its parts is empty
//! or matches (AND between parts, OR within one; of `headers` and `query` all have to match):
//! - `hosts`: the authority that the client named, without regard to case and to a dot at its end. `name` is any port,
//!   `name:port` is that one as written; `*.suffix` is one label or more before it, with or without port too.
//! - the path, compared in the form of [`normalise`](crate::access::normalise): exact; a prefix of whole segments
//!   (`/a` is `/a`, `/a/` and `/a/b`; a slash at the prefix's end changes nothing); a template (`/users/{id}`: one
//!   segment that is not empty; `/static/*`: one segment or more); a regular expression for the whole of it.
//! - `methods`: compared as they are; `GET` does not include `HEAD`.
//! - `headers`: the first field of the name; absent is not the same as empty.
//! - `query`: the first parameter of the name, decoded (`%20` and `+` are a space).
//! - `grpc`: `package.Service/Method` or `package.Service/*`, which is a POST to that path. A match has either a
//!   path or `grpc`.
//!
//! The path that is forwarded stays as it was. A path that app and matcher could read differently matches no part
//! about paths, and is refused when a match with such a part stands before the first that matches without one, for
//! the request's host. `OPTIONS *` has no path.
//!
//! Regular expressions take linear time: a match costs at most their length times the text's, both bounded. They are
//! of bytes: `.` is any byte but a line feed, `\w` and `(?i)` know ASCII only.

mod check;
mod compile;
mod host;
mod index;
#[cfg(any(test, fuzzing))]
pub mod naive;
mod query;
#[cfg(test)]
mod tests;
mod value;

use crate::model::{Action, FieldError, Match, Route, Service};
pub use crate::paths::Ambiguous;
use index::Index;

/// Checks the routes and faults of a service, as every caller will have to follow them.
///
/// # Errors
/// As [`Routes::compile`] and [`Matches::compile`], and when a route names a subset of its own service that there is
/// not.
pub fn check(service: &Service) -> Result<(), FieldError> {
    Routes::compile(&service.routes)?;
    for (i, fault) in service.faults.iter().enumerate() {
        Matches::compile(&fault.matches).map_err(|e| e.under(format!("faults[{i}]")))?;
    }
    for (i, route) in service.routes.iter().enumerate() {
        let Action::Forward(forward) = &route.action else {
            continue;
        };
        let mirror = forward.mirror.iter().map(|mirror| &mirror.to);
        for to in forward.to.iter().map(|(to, _)| to).chain(mirror) {
            let own = to.service.as_ref().is_none_or(|name| *name == service.name);
            let subset = to.subset.as_ref().filter(|_| own);
            if let Some(subset) = subset.filter(|subset| !service.subsets.iter().any(|s| s.name == **subset)) {
                let why = format!("the service has no subset `{subset}`");
                return Err(FieldError::new(format!("routes[{i}].forward.to"), why));
            }
        }
    }
    Ok(())
}

/// A request as matches see it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The authority: `:authority`, `Host`, or that of an absolute form. `None` matches no host.
    pub host: Option<&'a str>,
    /// As sent, without the query.
    pub path: &'a str,
    /// As sent, without the `?`.
    pub query: Option<&'a str>,
    /// As sent.
    pub method: &'a str,
    /// The value of the first field of a name, which is given in lower case.
    pub field: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

impl std::fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked")
            .field("host", &self.host)
            .field("path", &self.path)
            .field("query", &self.query)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// What a request met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Number of the route, in document order.
    pub route: usize,
    /// Segments that the prefix of the path had that matched; 0 for `/` and for what is no prefix.
    pub segments: usize,
}

/// A service's routes, ready to decide. A decision takes no lock of its own, and no allocation unless the path is not
/// in normal form or a query value that a match compares is encoded. Exact paths, prefixes and templates cost the same
/// however many there are; regular expressions, and matches that differ in nothing but headers, cost one by one.
#[derive(Debug, Default)]
pub struct Routes {
    index: Index,
}

impl Routes {
    /// Makes `routes` ready, and checks all that one route's fields say among themselves. What they name (subsets,
    /// services) is not looked up.
    ///
    /// # Errors
    /// With the field's path (`routes[1].matches[0].path`) when a pattern is not one or can match nothing, a regular
    /// expression is too large, a prefix is put in the place of what is no prefix, a header may not be edited, a name
    /// stands twice.
    pub fn compile(routes: &[Route]) -> Result<Self, FieldError> {
        check::names(routes)?;
        for (i, route) in routes.iter().enumerate() {
            check::route(route).map_err(|e| e.under(format!("routes[{i}]")))?;
        }
        let index = Index::new(routes.iter().map(|r| &*r.matches));
        let index = index.map_err(|(i, e)| e.under(format!("routes[{i}]")))?;
        Ok(Self { index })
    }

    /// Of anything that has lists of matches: the number is that in `lists`.
    ///
    /// # Errors
    /// With the number and the field's path below it (`matches[0].path`).
    pub fn of<'m>(lists: impl IntoIterator<Item = &'m [Match]>) -> Result<Self, (usize, FieldError)> {
        Ok(Self {
            index: Index::new(lists.into_iter())?,
        })
    }

    /// Whether there is none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The first that matches.
    ///
    /// # Errors
    /// When the path could be read in two ways and a match with a path could decide.
    pub fn find(&self, asked: &Asked<'_>) -> Result<Option<Found>, Ambiguous> {
        self.index.find(asked)
    }
}

/// One list of matches, ready to decide: of a fault, a rate limit, a priority.
#[derive(Debug)]
pub struct Matches {
    /// `None`: everything matches.
    index: Option<Index>,
}

impl Matches {
    /// Makes `matches` ready; none of them matches everything.
    ///
    /// # Errors
    /// With the field's path: `matches[0].path`.
    pub fn compile(matches: &[Match]) -> Result<Self, FieldError> {
        let index = (!matches.is_empty()).then(|| Index::new(std::iter::once(matches)));
        Ok(Self {
            index: index.transpose().map_err(|(_, e)| e)?,
        })
    }

    /// Whether any of them matches.
    ///
    /// # Errors
    /// As [`Routes::find`].
    pub fn meets(&self, asked: &Asked<'_>) -> Result<bool, Ambiguous> {
        match &self.index {
            None => Ok(true),
            Some(index) => index.find(asked).map(|found| found.is_some()),
        }
    }
}
