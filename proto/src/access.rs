//! Which calls a workload's rules allow. Pure: the sidecar decides with it, the control plane explains with it.
//!
//! The first rule in the order of the document that matches allows the call; if none does, the default decides.
//! A rule matches when each of its lists is empty or matches (AND between lists, OR within one):
//! - `from`: the caller. An empty list is any caller *with* an identity; a plain client matches only a rule that
//!   names `unauthenticated`. Namespaces and services are those of the own trust domain.
//! - `ports`: the port's name.
//! - `methods`: compared as they are; `GET` does not include `HEAD`.
//! - `paths`: `/exact`, `/users/{id}` (one segment that is not empty), `/static/*` (one segment or more; not
//!   `/static` and not `/static/`).
//! - `grpc`: `package.Service/Method` or `package.Service/*`, which is a POST to that path. A rule has either
//!   `paths` or `grpc`.
//!
//! Opaque bytes have neither method nor path: rules that name any do not match them.
//!
//! Paths are compared in the form of [`normalise`]; the path that is forwarded stays as it was. Where a rule with
//! paths could decide for a port, a path that app and matcher could read differently is [`Verdict::BadPath`],
//! whoever calls; elsewhere nobody looks at paths.

mod compile;
mod explain;
mod index;
#[cfg(test)]
mod tests;
mod trie;

use crate::model::{Access, FieldError, SpiffeId};
pub use crate::paths::{Ambiguous, normalise};
use compile::Compiled;
pub use explain::Explanation;
use index::{Ask, Index};

/// The rule's name of an ambiguous path under audit.
pub const BAD_PATH: &str = "bad_path";

/// A workload's rules, ready to decide. A decision takes no lock and, when the path is in normal form already,
/// no allocation; its cost does not grow with the number of callers that the rules name.
#[derive(Debug)]
pub struct Rules {
    default_allow: bool,
    default_source: Box<str>,
    audit: bool,
    own_trust_domain: Box<str>,
    rules: Vec<Compiled>,
    index: Index,
}

/// What somebody asks of the workload.
#[derive(Debug, Clone, Copy)]
pub struct Call<'c> {
    /// The proven caller; `None` for a plain client.
    pub caller: Option<&'c SpiffeId>,
    /// The port's name.
    pub port: &'c str,
    /// The request; `None` for opaque bytes.
    pub asked: Option<Asked<'c>>,
}

/// The part of a request that rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'c> {
    /// The method as sent.
    pub method: &'c str,
    /// The path as sent, without the query.
    pub path: &'c str,
}

/// What the rules say of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'r> {
    /// It goes on.
    Allowed {
        /// The rule's name, or where the default comes from.
        rule: &'r str,
    },
    /// It is refused.
    Denied {
        /// Where the default comes from.
        rule: &'r str,
    },
    /// It goes on, and would be refused without `audit`.
    Audited {
        /// Where the default comes from, or [`BAD_PATH`].
        rule: &'r str,
    },
    /// It is refused because its path is ambiguous; [`normalise`] says why.
    BadPath,
}

impl<'r> Verdict<'r> {
    /// Whether the call goes on.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Allowed { .. } | Self::Audited { .. })
    }

    /// What decided, for people and logs.
    #[must_use]
    pub const fn rule(self) -> &'r str {
        match self {
            Self::Allowed { rule } | Self::Denied { rule } | Self::Audited { rule } => rule,
            Self::BadPath => BAD_PATH,
        }
    }
}

impl Rules {
    /// Makes `access` ready for a workload of `own_trust_domain`.
    ///
    /// # Errors
    /// With the field's path when a port, method, path or gRPC name is not one, or a rule names paths and gRPC.
    pub fn compile(access: &Access, own_trust_domain: &str) -> Result<Self, FieldError> {
        let rules = access
            .rules
            .iter()
            .enumerate()
            .map(|(i, rule)| Compiled::new(rule).map_err(|e| e.under(format!("rules[{i}]"))))
            .collect::<Result<Vec<_>, _>>()?;
        let index = Index::new(&rules, own_trust_domain)?;
        Ok(Self {
            default_allow: access.default_allow,
            default_source: access.default_source.as_str().into(),
            audit: access.audit,
            own_trust_domain: own_trust_domain.into(),
            rules,
            index,
        })
    }

    /// Decides `call`.
    #[must_use]
    pub fn decide(&self, call: &Call<'_>) -> Verdict<'_> {
        let Ok(path) = self.path(call) else {
            return self.bad_path();
        };
        let ask = call.asked.map(|asked| Ask {
            method: asked.method,
            path: path.as_deref(),
        });
        let first = self
            .index
            .first(&self.rules, &self.own_trust_domain, call, ask.as_ref());
        self.verdict(first.and_then(|i| self.rules.get(i)))
    }

    /// Whether any rule looks at paths.
    #[must_use]
    pub fn path_rules(&self) -> bool {
        self.index.any_paths()
    }

    /// The call's path in normal form, when a rule could ask for it.
    fn path<'c>(&self, call: &Call<'c>) -> Result<Option<std::borrow::Cow<'c, str>>, Ambiguous> {
        let Some(asked) = call.asked.filter(|_| self.index.paths_on(call.port)) else {
            return Ok(None);
        };
        // RFC 9110 §9.3.7: `OPTIONS *` asks about the server as a whole; no path rule means it.
        if asked.path == "*" && asked.method == "OPTIONS" {
            return Ok(None);
        }
        match normalise(asked.path) {
            Ok(path) => Ok(Some(path)),
            // Nothing that a rule says of paths could deny.
            Err(_) if self.default_allow => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn verdict<'r>(&'r self, rule: Option<&'r Compiled>) -> Verdict<'r> {
        let default = &self.default_source;
        match rule {
            Some(rule) => Verdict::Allowed { rule: &rule.name },
            None if self.default_allow => Verdict::Allowed { rule: default },
            None if self.audit => Verdict::Audited { rule: default },
            None => Verdict::Denied { rule: default },
        }
    }

    const fn bad_path(&self) -> Verdict<'_> {
        if self.audit {
            Verdict::Audited { rule: BAD_PATH }
        } else {
            Verdict::BadPath
        }
    }
}

impl Default for Rules {
    /// Open, as [`Access::default`].
    fn default() -> Self {
        let Access {
            default_allow,
            default_source,
            audit,
            ..
        } = Access::default();
        Self {
            default_allow,
            default_source: default_source.into(),
            audit,
            own_trust_domain: Box::default(),
            rules: Vec::new(),
            index: Index::default(),
        }
    }
}
