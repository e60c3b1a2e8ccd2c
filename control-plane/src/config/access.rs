//! `allow`, `access` and `audit`: who may call, from what a person wrote to rules.
//!
//! Nothing here opens a service by accident: a key without a value, an empty list inside an entry, a name that nobody
//! has and a namespace without a service are mistakes, not "everybody".

use std::collections::BTreeMap;

use outrigger_proto::access::Rules;
use outrigger_proto::model::{Access, FieldError, Principal, Rule, ServiceName, SpiffeId, check_trust_domain};

use super::check::short;
use super::reader::Reader;
use super::suggest::did_you_mean;
use super::tree::{Kind, Node};
use super::whole::{Report, shown};
use super::{PortDoc, RESERVED_NAMESPACE, ServiceDoc, raw, service};

/// What the mesh document says about services without `allow`.
#[derive(Default)]
pub(super) struct Inherited {
    mesh: Said,
    namespaces: BTreeMap<String, Said>,
}

#[derive(Clone, Copy, Default)]
struct Said {
    allow: Option<bool>,
    audit: Option<bool>,
}

impl Inherited {
    pub(super) fn read(mesh: &raw::Mesh, head: &Node, report: &mut Report) -> Self {
        valued(head, &["access"], report);
        valued(head, &["namespaces"], report);
        for name in mesh.namespaces.iter().flat_map(BTreeMap::keys) {
            valued(head, &["namespaces", name, "access"], report);
            if let Err(reason) = service::check_namespace(name) {
                report.at(head.at(&["namespaces", name]), reason);
            }
        }
        let said = |access: Option<&raw::Access>| Said {
            allow: access
                .and_then(|access| access.default)
                .map(|default| matches!(default, raw::AccessDefault::Allow)),
            audit: access.and_then(|access| access.audit),
        };
        let namespaces = mesh.namespaces.iter().flatten();
        Self {
            mesh: said(mesh.access.as_ref()),
            namespaces: namespaces
                .map(|(name, inner)| (name.clone(), said(inner.access.as_ref())))
                .collect(),
        }
    }

    /// What holds for a service of `namespace` that says nothing.
    fn of(&self, namespace: &str) -> Access {
        let own = self.namespaces.get(namespace).copied().unwrap_or_default();
        let word = |allow: bool| if allow { "allow" } else { "deny" };
        let built_in = Access::default();
        let (default_allow, default_source) = match (own.allow, self.mesh.allow) {
            (Some(allow), _) => (allow, format!("default: {} of the namespace {namespace}", word(allow))),
            (None, Some(allow)) => (allow, format!("default: {} of the mesh", word(allow))),
            (None, None) => (built_in.default_allow, built_in.default_source),
        };
        Access {
            default_allow,
            default_source,
            rules: Vec::new(),
            audit: own.audit.or(self.mesh.audit).unwrap_or(false),
        }
    }
}

/// Refuses a key, or one below it, that has no value: it would read as if nothing were said, which may mean "open".
fn valued(node: &Node, path: &[&str], report: &mut Report) {
    let mut at = node;
    for (i, key) in path.iter().enumerate() {
        match at.entry(key) {
            Some((name, value)) if value.is_null() => {
                let shown = path.get(..=i).unwrap_or_default().join(".");
                report.at(&name.span, format!("`{shown}` has no value"));
                return;
            }
            Some((_, value)) => at = value,
            None => return,
        }
    }
    if path.last() == Some(&"access") {
        for key in ["default", "audit"] {
            if let Some((name, value)) = at.entry(key)
                && value.is_null()
            {
                report.at(&name.span, format!("`{}.{key}` has no value", path.join(".")));
            }
        }
    }
}

impl Reader<'_> {
    /// Who may call `own`.
    pub(super) fn access(
        &mut self,
        allow: Option<&[raw::Allow]>,
        audit: Option<bool>,
        own: &ServiceName,
        ports: &[PortDoc],
        inherited: &Inherited,
    ) -> Access {
        let mut access = inherited.of(own.namespace());
        access.audit = audit.unwrap_or(access.audit);
        let Some(allow) = allow else {
            if let Some((key, _)) = self.node.entry("allow").filter(|(_, value)| value.is_null()) {
                let help = "`[]` lets nobody in; leave the key out to be as open as the namespace or the mesh";
                let error = self.report.error(&key.span, "`allow` has no value");
                self.report.push(error.help(help.to_owned()));
            }
            return access;
        };
        access.default_allow = false;
        "no entry of `allow` matches".clone_into(&mut access.default_source);
        // An entry that was refused leaves a gap, and positions behind it would lie.
        let gap =
            matches!(self.node.get("allow").map(|node| &node.kind), Some(Kind::List(all)) if all.len() != allow.len());
        for (i, entry) in allow.iter().enumerate().filter(|_| !gap) {
            let rule = self.rule(i, entry, own, ports);
            access.rules.push(rule);
        }
        access
    }

    fn rule(&mut self, i: usize, entry: &raw::Allow, own: &ServiceName, ports: &[PortDoc]) -> Rule {
        let index = i.to_string();
        let mut rule = Rule {
            name: format!("allow[{i}]"),
            from: Vec::new(),
            ports: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            grpc: Vec::new(),
        };
        let raw = match entry {
            raw::Allow::Caller(text) => {
                rule.from.extend(self.caller(text, own, &["allow", &index]));
                return rule;
            }
            raw::Allow::Rule(raw) => raw,
        };
        let lists = [&raw.ports, &raw.methods, &raw.paths, &raw.grpc];
        for (key, list) in ["ports", "methods", "paths", "grpc"].into_iter().zip(lists) {
            self.filled(&["allow", &index, key], list.as_deref().map(<[String]>::len));
        }
        match &raw.from {
            None => {
                self.filled(&["allow", &index, "from"], None);
                rule.from.push(Principal::Authenticated);
            }
            Some(raw::OneOrMany::One(text)) => {
                rule.from.extend(self.caller(text, own, &["allow", &index, "from"]));
            }
            Some(raw::OneOrMany::Many(texts)) => {
                self.filled(&["allow", &index, "from"], Some(texts.len()));
                for (j, text) in texts.iter().enumerate() {
                    let at = ["allow", &index, "from", &j.to_string()];
                    rule.from.extend(self.caller(text, own, &at));
                }
            }
        }
        rule.ports = raw.ports.clone().unwrap_or_default();
        rule.methods = raw.methods.clone().unwrap_or_default();
        rule.paths = raw.paths.clone().unwrap_or_default();
        rule.grpc = raw.grpc.clone().unwrap_or_default();
        for (j, port) in rule.ports.iter().enumerate() {
            if !ports.iter().any(|known| known.name == *port) {
                let names = || ports.iter().map(|known| known.name.as_str());
                let help = did_you_mean(port, names())
                    .unwrap_or_else(|| format!("ports here: {}", names().collect::<Vec<_>>().join(", ")));
                let message = format!("the service has no port `{}`", short(port));
                self.refuse(&["allow", &index, "ports", &j.to_string()], message, Some(help));
            }
        }
        self.patterns(&index, &rule);
        rule
    }

    /// Refuses values that are not methods, paths or gRPC methods, each at its place, and lists that contradict.
    fn patterns(&mut self, index: &str, rule: &Rule) {
        let alone = Rule {
            ports: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            grpc: Vec::new(),
            ..rule.clone()
        };
        let mut fine = true;
        for (key, values) in [("methods", &rule.methods), ("paths", &rule.paths), ("grpc", &rule.grpc)] {
            for (j, value) in values.iter().enumerate() {
                let mut one = alone.clone();
                let list = match key {
                    "methods" => &mut one.methods,
                    "paths" => &mut one.paths,
                    _ => &mut one.grpc,
                };
                list.push(value.clone());
                if let Err(error) = compile(one) {
                    fine = false;
                    self.refuse(&["allow", index, key, &j.to_string()], error.reason, None);
                }
            }
        }
        let whole = Rule {
            ports: Vec::new(),
            ..rule.clone()
        };
        if let Some(error) = fine.then(|| compile(whole).err()).flatten() {
            let key = error.path.rsplit('.').next().unwrap_or_default();
            self.refuse(&["allow", index, key], error.reason, None);
        }
    }

    /// `length` is none for a key that is not there, or has no value.
    fn filled(&mut self, path: &[&str], length: Option<usize>) {
        let name = path.last().copied().unwrap_or_default();
        let written = path.iter().try_fold(self.node, |node, key| match &node.kind {
            Kind::List(items) => key.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => node.get(key),
        });
        let nothing = match length {
            Some(length) => length == 0,
            None => written.is_some_and(Node::is_null),
        };
        if nothing {
            let help = Some("name at least one, or leave the key out to match any".to_owned());
            self.refuse(path, format!("`{name}` names nothing"), help);
        }
    }

    fn caller(&mut self, text: &str, own: &ServiceName, at: &[&str]) -> Option<Principal> {
        match caller(text, own.namespace()) {
            Ok(principal) => Some(principal),
            Err(reason) => {
                let help = "a caller is `service`, `namespace/service`, `namespace/*`, `\"*\"`, `unauthenticated`, \
                            `spiffe://domain/ns/namespace/svc/service` or `spiffe://domain/*`";
                self.refuse(
                    at,
                    format!("`{}` is no caller: {reason}", short(text)),
                    Some(help.to_owned()),
                );
                None
            }
        }
    }

    /// Under `mode: off` nobody is known, so an entry that asks who it is would never match.
    pub(super) fn known_callers(&mut self, access: &Access) {
        for (i, rule) in access.rules.iter().enumerate() {
            let index = i.to_string();
            if !rule.from.is_empty() && !rule.from.contains(&Principal::Unauthenticated) {
                let help = "let `unauthenticated` in, or use `mode: strict` or `permissive`".to_owned();
                let message = format!("`allow[{i}]` can never match: under `mode: off` nobody has an identity");
                self.refuse(&["allow", &index], message, Some(help));
            }
        }
    }
}

fn compile(rule: Rule) -> Result<(), FieldError> {
    let access = Access {
        rules: vec![rule],
        ..Access::default()
    };
    // The trust domain decides which callers match, not whether a rule is one.
    Rules::compile(&access, "any").map(drop)
}

fn caller(text: &str, namespace: &str) -> Result<Principal, String> {
    if text == "*" {
        return Ok(Principal::Authenticated);
    }
    if text == "unauthenticated" {
        return Ok(Principal::Unauthenticated);
    }
    if let Some(rest) = text.strip_prefix("spiffe://") {
        return match rest.strip_suffix("/*") {
            Some(domain) => check_trust_domain(domain)
                .map(|()| Principal::TrustDomain(domain.to_owned()))
                .map_err(|error| error.reason),
            None => text
                .parse::<SpiffeId>()
                .map(Principal::Id)
                .map_err(|error| error.reason),
        };
    }
    match text.split_once('/') {
        Some((namespace, "*")) => ServiceName::new(namespace, "x")
            .map(|_| Principal::Namespace(namespace.to_owned()))
            .map_err(|error| error.reason),
        Some((namespace, service)) => ServiceName::new(namespace, service)
            .map(Principal::Service)
            .map_err(|error| error.reason),
        None => ServiceName::new(namespace, text)
            .map(Principal::Service)
            .map_err(|error| error.reason),
    }
}

/// Callers of a namespace that this mesh has must be services of it: a slip would lock somebody out. Others may live
/// elsewhere, unless they look like a slip too.
pub(super) fn callers(services: &[(ServiceDoc, &Node)], described: &[ServiceName], report: &mut Report) {
    let known =
        |namespace: &str| namespace == RESERVED_NAMESPACE || described.iter().any(|n| n.namespace() == namespace);
    let namespaces = || described.iter().map(ServiceName::namespace);
    for (service, node) in services {
        for (i, rule) in service.access.rules.iter().enumerate() {
            for (j, principal) in rule.from.iter().enumerate() {
                let (i, j) = (i.to_string(), j.to_string());
                let at = node.at(&["allow", &i, "from", &j]);
                match principal {
                    Principal::Service(caller) if known(caller.namespace()) => {
                        if caller.namespace() == RESERVED_NAMESPACE || described.contains(caller) {
                            continue;
                        }
                        let names: Vec<&str> = described.iter().map(|name| shown(name, service)).collect();
                        let help = did_you_mean(shown(caller, service), names.iter().copied())
                            .unwrap_or_else(|| format!("services here: {}", names.join(", ")));
                        let message = format!("`{}` is not in this mesh", shown(caller, service));
                        let error = report.error(at, message).label("no such service");
                        let help = format!("{help}\nwrite its whole id, spiffe://…, when it has no document");
                        report.push(error.help(help));
                    }
                    Principal::Service(_) | Principal::Namespace(_) => {
                        let namespace = match principal {
                            Principal::Service(caller) => caller.namespace(),
                            Principal::Namespace(namespace) => namespace,
                            _ => continue,
                        };
                        if !known(namespace)
                            && let Some(help) = did_you_mean(namespace, namespaces())
                        {
                            let message = format!("no service of this mesh is in the namespace `{namespace}`");
                            report.push(report.error(at, message).help(help));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A namespace that no service is in is a slip, and would leave the one that was meant open.
pub(super) fn namespaces(inherited: &Inherited, head: Option<&Node>, described: &[ServiceName], report: &mut Report) {
    let Some(node) = head.and_then(|head| head.get("namespaces")) else {
        return;
    };
    for name in inherited.namespaces.keys() {
        if service::check_namespace(name).is_err() || described.iter().any(|service| service.namespace() == name) {
            continue;
        }
        let names = || described.iter().map(ServiceName::namespace);
        let help = did_you_mean(name, names());
        let at = node.entry(name).map_or(&node.span, |(key, _)| &key.span);
        let error = report.error(at, format!("no service is in the namespace `{name}`"));
        report.push(error.label("nobody is here").help(help));
    }
}
