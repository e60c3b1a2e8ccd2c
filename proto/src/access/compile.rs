//! A rule as written → a rule that can be compared. Everything that is wrong with a rule is found here.

use crate::model::{FieldError, Principal, Rule, name::label};
use crate::paths::{Template, check_method};

/// A valid rule.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) name: Box<str>,
    /// Never empty: nobody named is any identity.
    pub(super) from: Vec<Principal>,
    pub(super) ports: Vec<Box<str>>,
    pub(super) methods: Vec<Box<str>>,
    /// Of `paths` or of `grpc`.
    pub(super) paths: Vec<Template>,
}

impl Compiled {
    pub(super) fn new(rule: &Rule) -> Result<Self, FieldError> {
        if !rule.paths.is_empty() && !rule.grpc.is_empty() {
            return Err(FieldError::new(
                "grpc",
                "a rule names paths or gRPC methods, not both: write two rules",
            ));
        }
        let at = |list: &str, i: usize| format!("{list}[{i}]");
        for (i, port) in rule.ports.iter().enumerate() {
            label(port, &at("ports", i))?;
        }
        for (i, method) in rule.methods.iter().enumerate() {
            check_method(method).map_err(|reason| FieldError::new(at("methods", i), reason))?;
        }
        let paths = rule.paths.iter().enumerate();
        let paths = paths.map(|(i, p)| Template::path(p).map_err(|reason| FieldError::new(at("paths", i), reason)));
        let grpc = rule.grpc.iter().enumerate();
        let grpc = grpc.map(|(i, g)| Template::grpc(g).map_err(|reason| FieldError::new(at("grpc", i), reason)));
        let paths = paths.chain(grpc).collect::<Result<Vec<_>, _>>()?;
        let boxed = |list: &[String]| list.iter().map(|s| s.as_str().into()).collect::<Vec<Box<str>>>();
        let mut methods = boxed(&rule.methods);
        if !rule.grpc.is_empty() {
            if !methods.is_empty() && !methods.iter().any(|m| &**m == "POST") {
                return Err(FieldError::new(
                    "methods",
                    "a gRPC call is a POST, so this rule matches nothing",
                ));
            }
            methods = vec!["POST".into()];
        }
        let mut from = rule.from.clone();
        if from.is_empty() {
            from.push(Principal::Authenticated);
        }
        Ok(Self {
            name: rule.name.as_str().into(),
            from,
            ports: boxed(&rule.ports),
            methods,
            paths,
        })
    }

    /// Whether the rule says nothing that only a request has.
    pub(super) fn takes_opaque(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty()
    }

    pub(super) fn takes_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| **m == *method)
    }

    /// `path` in normal form; `None` matches only a rule without paths.
    pub(super) fn takes_path(&self, path: Option<&str>) -> bool {
        self.paths.is_empty() || path.is_some_and(|path| self.paths.iter().any(|t| t.matches(path)))
    }
}
