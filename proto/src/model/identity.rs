//! Who a workload is (SPIFFE, "The SPIFFE Identity and Verifiable Identity Document"), and what all trust.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{FieldError, ServiceName};
use crate::wire::mesh as wire;

/// A workload's id, shown as `spiffe://<trust domain>/ns/<namespace>/svc/<service>`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    full: Arc<str>,
    trust_domain: usize,
    service: ServiceName,
}

const SCHEME: &str = "spiffe://";
/// Longest trust domain (SPIFFE ID §2.1).
const LONGEST: usize = 255;

impl SpiffeId {
    /// The id of `service` in `trust_domain`.
    ///
    /// # Errors
    /// When `trust_domain` is not one (SPIFFE ID §2.1: 1 to 255 of `a-z0-9.-_`).
    pub fn new(trust_domain: &str, service: &ServiceName) -> Result<Self, FieldError> {
        check_trust_domain(trust_domain)?;
        Ok(Self {
            full: format!(
                "{SCHEME}{trust_domain}/ns/{}/svc/{}",
                service.namespace(),
                service.service()
            )
            .into(),
            trust_domain: trust_domain.len(),
            service: service.clone(),
        })
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The part after `spiffe://`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.full
            .get(SCHEME.len()..SCHEME.len() + self.trust_domain)
            .unwrap_or_default()
    }

    /// Which service it is.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl FromStr for SpiffeId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let wrong = || {
            FieldError::new(
                "id",
                format!("`{text}` is not spiffe://<trust domain>/ns/<namespace>/svc/<service>"),
            )
        };
        let mut parts = text.strip_prefix(SCHEME).ok_or_else(wrong)?.split('/');
        let id = match std::array::from_fn::<_, 6, _>(|_| parts.next()) {
            [
                Some(domain),
                Some("ns"),
                Some(namespace),
                Some("svc"),
                Some(service),
                None,
            ] => Self::new(domain, &ServiceName::new(namespace, service)?)?,
            _ => return Err(wrong()),
        };
        Ok(id)
    }
}

/// Refuses what is not a trust domain (SPIFFE ID §2.1: 1 to 255 of `a-z0-9.-_`).
///
/// # Errors
/// With the value.
pub fn check_trust_domain(text: &str) -> Result<(), FieldError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > LONGEST || !text.bytes().all(legal) {
        return Err(FieldError::new(
            "trust_domain",
            format!("`{text}` is not a trust domain: 1 to {LONGEST} of a-z, 0-9, `.`, `-`, `_`"),
        ));
    }
    Ok(())
}

/// What every workload trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose roots these are.
    pub trust_domain: String,
    /// Certificates, DER; at least one.
    pub roots: Vec<Vec<u8>>,
    /// Grows with every change of the roots.
    pub generation: u64,
    /// Who is no longer let in.
    pub revoked: Vec<Revocation>,
}

impl TrustBundle {
    /// The name of the one resource.
    pub const NAME: &'static str = "trust";
}

/// An identity that is no longer let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Revocation {
    /// One leaf: its serial, lower-case hexadecimal without separators.
    Serial(String),
    /// Every leaf of a service, until allowed again.
    Service(ServiceName),
}

impl TryFrom<wire::TrustBundle> for TrustBundle {
    type Error = FieldError;

    fn try_from(wire: wire::TrustBundle) -> Result<Self, FieldError> {
        if wire.name != Self::NAME {
            return Err(FieldError::new(
                "name",
                format!("`{}` is not `{}`", wire.name, Self::NAME),
            ));
        }
        check_trust_domain(&wire.trust_domain)?;
        if wire.roots.is_empty() {
            return Err(FieldError::new("roots", "nobody could be trusted without a root"));
        }
        let revoked = wire
            .revoked
            .into_iter()
            .enumerate()
            .map(|(i, r)| Revocation::try_from(r).map_err(|e| e.under(format!("revoked[{i}]"))));
        Ok(Self {
            revoked: revoked.collect::<Result<_, _>>()?,
            trust_domain: wire.trust_domain,
            roots: wire.roots,
            generation: wire.generation,
        })
    }
}

impl TryFrom<wire::Revocation> for Revocation {
    type Error = FieldError;

    fn try_from(wire: wire::Revocation) -> Result<Self, FieldError> {
        match (wire.serial.is_empty(), wire.service.is_empty()) {
            (true, false) => Ok(Self::Service(wire.service.parse()?)),
            (false, true) => {
                let legal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if wire.serial.bytes().all(legal) && wire.serial.len() <= 40 {
                    return Ok(Self::Serial(wire.serial));
                }
                Err(FieldError::new(
                    "serial",
                    format!("`{}` is not 1 to 40 lower-case hexadecimal digits", wire.serial),
                ))
            }
            _ => Err(FieldError::new("", "exactly one of serial and service is needed")),
        }
    }
}

impl From<TrustBundle> for wire::TrustBundle {
    fn from(bundle: TrustBundle) -> Self {
        Self {
            name: TrustBundle::NAME.into(),
            trust_domain: bundle.trust_domain,
            roots: bundle.roots,
            generation: bundle.generation,
            revoked: bundle
                .revoked
                .into_iter()
                .map(|r| match r {
                    Revocation::Serial(serial) => wire::Revocation {
                        serial,
                        service: String::new(),
                    },
                    Revocation::Service(service) => wire::Revocation {
                        serial: String::new(),
                        service: service.to_string(),
                    },
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_spelling_and_no_other() {
        let id: SpiffeId = "spiffe://mesh.local/ns/default/svc/post".parse().expect("an id");
        assert_eq!(
            (id.trust_domain(), id.service().as_str()),
            ("mesh.local", "default/post")
        );
        assert_eq!(SpiffeId::new("mesh.local", id.service()).expect("the same"), id);
        for wrong in [
            "",
            "spiffe://",
            "spiffe://mesh.local",
            "spiffe://mesh.local/",
            "spiffe://mesh.local/ns/default/svc/post/",
            "spiffe://mesh.local/ns/default/svc/post/x",
            "spiffe://mesh.local/ns//svc/post",
            "spiffe://mesh.local/ns/default/sa/post",
            "spiffe://Mesh.local/ns/default/svc/post",
            "spiffe://mesh.local:80/ns/default/svc/post",
            "SPIFFE://mesh.local/ns/default/svc/post",
            "https://mesh.local/ns/default/svc/post",
            "spiffe:///ns/default/svc/post",
            "spiffe://mesh.local/ns/default/svc/post?x",
        ] {
            assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong}");
        }
    }
}
