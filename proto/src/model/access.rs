//! Who may call a workload.

use super::{FieldError, ServiceName, SpiffeId, identity::check_trust_domain};
use crate::wire::mesh as wire;

/// Who may call a workload: the first rule that matches allows, else `default` decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// True when what no rule matches is allowed.
    pub default_allow: bool,
    /// Where the default comes from, for people.
    pub default_source: String,
    /// In the order in which they are read.
    pub rules: Vec<Rule>,
    /// Denials are logged and counted, and the request goes on.
    pub audit: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            default_allow: true,
            default_source: "open by default".into(),
            rules: Vec::new(),
            audit: false,
        }
    }
}

/// One entry. An empty list matches anything; the lists are joined by AND.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As people know it, for example `allow[2]`.
    pub name: String,
    /// Callers.
    pub from: Vec<Principal>,
    /// Port names.
    pub ports: Vec<String>,
    /// HTTP methods, upper case.
    pub methods: Vec<String>,
    /// `/exact`, `/users/{id}`, `/static/*`.
    pub paths: Vec<String>,
    /// `package.Service/Method` or `package.Service/*`.
    pub grpc: Vec<String>,
}

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// No identity: a plain client under `permissive`.
    Unauthenticated,
    /// Any identity that the mesh trusts.
    Authenticated,
    /// Any workload of that trust domain.
    TrustDomain(String),
    /// Any service of that namespace of the own trust domain.
    Namespace(String),
    /// A service of the own trust domain.
    Service(ServiceName),
    /// A whole id.
    Id(SpiffeId),
}

impl TryFrom<wire::Access> for Access {
    type Error = FieldError;

    fn try_from(wire: wire::Access) -> Result<Self, FieldError> {
        use wire::access::Default as Decision;
        let rules = wire
            .rules
            .into_iter()
            .enumerate()
            .map(|(i, rule)| Rule::try_from(rule).map_err(|e| e.under(format!("rules[{i}]"))));
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
            default_allow: match Decision::try_from(wire.default) {
                Ok(Decision::Allow) => true,
                Ok(Decision::Deny) => false,
                // Nothing fails open.
                Ok(Decision::Unspecified) | Err(_) => {
                    return Err(FieldError::new(
                        "default",
                        format!("{} is neither allow nor deny", wire.default),
                    ));
                }
            },
            default_source: wire.default_source,
            audit: wire.audit,
        })
    }
}

impl TryFrom<wire::Rule> for Rule {
    type Error = FieldError;

    fn try_from(wire: wire::Rule) -> Result<Self, FieldError> {
        let from = wire
            .from
            .into_iter()
            .enumerate()
            .map(|(i, p)| Principal::try_from(p).map_err(|e| e.under(format!("from[{i}]"))));
        Ok(Self {
            from: from.collect::<Result<_, _>>()?,
            name: wire.name,
            ports: wire.ports,
            methods: wire.methods,
            paths: wire.paths,
            grpc: wire.grpc,
        })
    }
}

impl TryFrom<wire::Principal> for Principal {
    type Error = FieldError;

    fn try_from(wire: wire::Principal) -> Result<Self, FieldError> {
        use wire::principal::Who;
        Ok(match wire.who {
            Some(Who::Unauthenticated(true)) => Self::Unauthenticated,
            Some(Who::Authenticated(true)) => Self::Authenticated,
            Some(Who::TrustDomain(domain)) => {
                check_trust_domain(&domain)?;
                Self::TrustDomain(domain)
            }
            Some(Who::Namespace(namespace)) => {
                super::name::label(&namespace, "namespace")?;
                Self::Namespace(namespace)
            }
            Some(Who::Service(service)) => Self::Service(service.parse()?),
            Some(Who::Id(id)) => Self::Id(id.parse()?),
            Some(Who::Unauthenticated(false) | Who::Authenticated(false)) | None => {
                return Err(FieldError::new("", "names no caller"));
            }
        })
    }
}
