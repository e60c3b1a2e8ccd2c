//! The same decision in words: which rules were looked at, and why they did not match.

use super::compile::Compiled;
use super::{Call, Rules, Verdict, normalise};
use crate::model::Principal;

/// A decision and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation<'r> {
    /// The decision; the same as [`Rules::decide`]'s.
    pub verdict: Verdict<'r>,
    /// What decided: a rule's name, or where the default comes from.
    pub rule: &'r str,
    /// The rules before it, in order, each with the reason why it did not match.
    pub considered: Vec<(&'r str, String)>,
}

impl Rules {
    /// Decides `call` by comparing rule after rule. For people: its cost grows with the number of rules.
    #[must_use]
    pub fn explain(&self, call: &Call<'_>) -> Explanation<'_> {
        let Ok(path) = self.path(call) else {
            let verdict = self.bad_path();
            return Explanation {
                verdict,
                rule: verdict.rule(),
                considered: Vec::new(),
            };
        };
        let mut considered = Vec::new();
        let mut decided = None;
        for rule in &self.rules {
            match self.why_not(rule, call, path.as_deref()) {
                Some(why) => considered.push((&*rule.name, why)),
                None => {
                    decided = Some(rule);
                    break;
                }
            }
        }
        let verdict = self.verdict(decided);
        Explanation {
            verdict,
            rule: verdict.rule(),
            considered,
        }
    }

    fn why_not(&self, rule: &Compiled, call: &Call<'_>, path: Option<&str>) -> Option<String> {
        if !rule.from.iter().any(|principal| self.is(principal, call)) {
            return Some(match call.caller {
                Some(id) => format!("it is for other callers than {id}"),
                None => "it does not name `unauthenticated`".into(),
            });
        }
        if !rule.ports.is_empty() && !rule.ports.iter().any(|port| **port == *call.port) {
            return Some(format!("it is for other ports than {}", call.port));
        }
        let Some(asked) = call.asked else {
            return (!rule.takes_opaque()).then(|| "it is for requests, and these are opaque bytes".into());
        };
        if !rule.takes_method(asked.method) {
            return Some(format!("it is for other methods than {}", asked.method));
        }
        if !rule.takes_path(path) {
            let shown = path.map_or_else(|| normalise(asked.path).unwrap_or_default(), Into::into);
            return Some(format!("it is for other paths than {shown}"));
        }
        None
    }

    fn is(&self, principal: &Principal, call: &Call<'_>) -> bool {
        let Some(id) = call.caller else {
            return *principal == Principal::Unauthenticated;
        };
        let home = id.trust_domain() == &*self.own_trust_domain;
        match principal {
            Principal::Unauthenticated => false,
            Principal::Authenticated => true,
            Principal::TrustDomain(domain) => id.trust_domain() == domain,
            Principal::Namespace(namespace) => home && id.service().namespace() == namespace,
            Principal::Service(service) => home && id.service() == service,
            Principal::Id(exact) => id == exact,
        }
    }
}
