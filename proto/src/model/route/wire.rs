//! Routes from and to the wire.

use std::time::{Duration, SystemTime};

use super::{
    Action, Destination, DirectResponse, Fault, FieldMatch, Forward, Harm, HashOn, HeaderEdits, Match, Mirror, NewPath,
    PathMatch, Redirect, Route, Subset, ValueMatch,
};
use crate::model::name::label;
use crate::model::policy::millis;
use crate::model::{FieldError, Policy, duration};
use crate::wire::mesh as wire;

/// Longest regular expression, bytes.
const MAX_REGEX: usize = 1024;
/// Longest body of a direct answer, bytes.
const MAX_BODY: usize = 64 << 10;
/// 100 %.
const MILLION: u32 = 1_000_000;

impl Match {
    pub(in super::super) fn list(wire: Vec<wire::Match>) -> Result<Vec<Self>, FieldError> {
        wire.into_iter()
            .enumerate()
            .map(|(i, m)| Self::try_from(m).map_err(|e| e.under(format!("matches[{i}]"))))
            .collect()
    }
}

impl TryFrom<wire::Match> for Match {
    type Error = FieldError;

    fn try_from(wire: wire::Match) -> Result<Self, FieldError> {
        use wire::r#match::Path;
        let rooted = |text: String, path: &str| match text.starts_with('/') {
            true => Ok(text),
            false => Err(FieldError::new(path, format!("`{text}` does not begin with /"))),
        };
        let path = wire.path.map(|p| {
            Ok(match p {
                Path::Exact(text) => PathMatch::Exact(rooted(text, "exact")?),
                Path::Prefix(text) => PathMatch::Prefix(rooted(text, "prefix")?),
                Path::Template(text) => PathMatch::Template(rooted(text, "template")?),
                Path::Regex(text) => PathMatch::Regex(regex(text)?),
            })
        });
        let fields = |list: Vec<wire::FieldMatch>, what: &str, lower: bool| {
            let field = |(i, mut f): (usize, wire::FieldMatch)| {
                if lower {
                    f.name.make_ascii_lowercase();
                }
                FieldMatch::try_from(f).map_err(|e| e.under(format!("{what}[{i}]")))
            };
            list.into_iter().enumerate().map(field).collect::<Result<_, _>>()
        };
        Ok(Self {
            hosts: wire.hosts.into_iter().map(|h| h.to_ascii_lowercase()).collect(),
            path: path.transpose()?,
            methods: wire.methods,
            headers: fields(wire.headers, "headers", true)?,
            query: fields(wire.query, "query", false)?,
            grpc: wire.grpc,
        })
    }
}

impl From<&Match> for wire::Match {
    fn from(m: &Match) -> Self {
        use wire::r#match::Path;
        Self {
            hosts: m.hosts.clone(),
            path: m.path.clone().map(|p| match p {
                PathMatch::Exact(text) => Path::Exact(text),
                PathMatch::Prefix(text) => Path::Prefix(text),
                PathMatch::Template(text) => Path::Template(text),
                PathMatch::Regex(text) => Path::Regex(text),
            }),
            methods: m.methods.clone(),
            headers: m.headers.iter().map(Into::into).collect(),
            query: m.query.iter().map(Into::into).collect(),
            grpc: m.grpc.clone(),
        }
    }
}

fn regex(text: String) -> Result<String, FieldError> {
    match text.len() {
        0..=MAX_REGEX => Ok(text),
        n => Err(FieldError::new("regex", format!("{n} bytes are more than {MAX_REGEX}"))),
    }
}

impl TryFrom<wire::FieldMatch> for FieldMatch {
    type Error = FieldError;

    fn try_from(wire: wire::FieldMatch) -> Result<Self, FieldError> {
        use wire::field_match::Value;
        if wire.name.is_empty() {
            return Err(FieldError::new("name", "it is empty"));
        }
        Ok(Self {
            name: wire.name,
            value: match wire.value {
                None | Some(Value::Present(true)) => ValueMatch::Present,
                Some(Value::Present(false)) => ValueMatch::Absent,
                Some(Value::Exact(text)) => ValueMatch::Exact(text),
                Some(Value::Prefix(text)) => ValueMatch::Prefix(text),
                Some(Value::Suffix(text)) => ValueMatch::Suffix(text),
                Some(Value::Regex(text)) => ValueMatch::Regex(regex(text)?),
            },
        })
    }
}

impl From<&FieldMatch> for wire::FieldMatch {
    fn from(field: &FieldMatch) -> Self {
        use wire::field_match::Value;
        Self {
            name: field.name.clone(),
            value: Some(match field.value.clone() {
                ValueMatch::Present => Value::Present(true),
                ValueMatch::Absent => Value::Present(false),
                ValueMatch::Exact(text) => Value::Exact(text),
                ValueMatch::Prefix(text) => Value::Prefix(text),
                ValueMatch::Suffix(text) => Value::Suffix(text),
                ValueMatch::Regex(text) => Value::Regex(text),
            }),
        }
    }
}

impl TryFrom<wire::Subset> for Subset {
    type Error = FieldError;

    fn try_from(wire: wire::Subset) -> Result<Self, FieldError> {
        label(&wire.name, "name")?;
        if wire.labels.is_empty() {
            return Err(FieldError::new("labels", "a subset needs at least one label"));
        }
        let mut labels: Vec<_> = wire.labels.into_iter().collect();
        labels.sort();
        Ok(Self {
            name: wire.name.into(),
            labels,
        })
    }
}

impl From<&Subset> for wire::Subset {
    fn from(subset: &Subset) -> Self {
        Self {
            name: subset.name.to_string(),
            labels: subset.labels.iter().cloned().collect(),
        }
    }
}

impl TryFrom<wire::Destination> for Destination {
    type Error = FieldError;

    fn try_from(wire: wire::Destination) -> Result<Self, FieldError> {
        Ok(Self {
            service: match wire.service.is_empty() {
                true => None,
                false => Some(wire.service.parse()?),
            },
            subset: (!wire.subset.is_empty()).then(|| wire.subset.into()),
        })
    }
}

impl From<&Destination> for wire::Destination {
    fn from(to: &Destination) -> Self {
        Self {
            service: to.service.as_ref().map(ToString::to_string).unwrap_or_default(),
            subset: to.subset.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

impl TryFrom<wire::HashOn> for HashOn {
    type Error = FieldError;

    fn try_from(wire: wire::HashOn) -> Result<Self, FieldError> {
        use wire::hash_on::On;
        Ok(match wire.on {
            Some(On::Header(name)) => Self::Header(name.to_ascii_lowercase()),
            Some(On::Cookie(name)) => Self::Cookie(name),
            Some(On::PathSegment(n @ 1..)) => Self::PathSegment(n),
            Some(On::Caller(_)) => Self::Caller,
            Some(On::Query(name)) => Self::Query(name),
            Some(On::PathSegment(0)) | None => {
                return Err(FieldError::new("on", "it does not say what the hash is taken of"));
            }
        })
    }
}

impl From<&HashOn> for wire::HashOn {
    fn from(on: &HashOn) -> Self {
        use wire::hash_on::On;
        Self {
            on: Some(match on.clone() {
                HashOn::Header(name) => On::Header(name),
                HashOn::Cookie(name) => On::Cookie(name),
                HashOn::PathSegment(n) => On::PathSegment(n),
                HashOn::Caller => On::Caller(true),
                HashOn::Query(name) => On::Query(name),
            }),
        }
    }
}

impl TryFrom<wire::Route> for Route {
    type Error = FieldError;

    fn try_from(wire: wire::Route) -> Result<Self, FieldError> {
        use wire::route::Action as Wire;
        let action = match wire.action {
            None => Action::Forward(Forward::default()),
            Some(Wire::Forward(f)) => Action::Forward(f.try_into().map_err(|e: FieldError| e.under("forward"))?),
            Some(Wire::Redirect(r)) => Action::Redirect(r.try_into().map_err(|e: FieldError| e.under("redirect"))?),
            Some(Wire::Respond(r)) => Action::Respond(r.try_into().map_err(|e: FieldError| e.under("respond"))?),
        };
        let policy = wire.policy.map(|p| Policy::try_from(p).map_err(|e| e.under("policy")));
        Ok(Self {
            name: wire.name.into(),
            matches: Match::list(wire.matches)?,
            action,
            policy: policy.transpose()?.unwrap_or_default(),
            request_headers: wire.request_headers.unwrap_or_default().into(),
            response_headers: wire.response_headers.unwrap_or_default().into(),
        })
    }
}

impl From<&Route> for wire::Route {
    fn from(route: &Route) -> Self {
        use wire::route::Action as Wire;
        Self {
            name: route.name.to_string(),
            matches: route.matches.iter().map(Into::into).collect(),
            action: Some(match &route.action {
                Action::Forward(forward) => Wire::Forward(forward.into()),
                Action::Redirect(redirect) => Wire::Redirect(redirect.into()),
                Action::Respond(answer) => Wire::Respond(wire::DirectResponse {
                    status: answer.status.into(),
                    body: answer.body.clone(),
                    content_type: answer.content_type.clone(),
                }),
            }),
            policy: Some((&route.policy).into()),
            request_headers: Some((&route.request_headers).into()),
            response_headers: Some((&route.response_headers).into()),
        }
    }
}

impl TryFrom<wire::Forward> for Forward {
    type Error = FieldError;

    fn try_from(wire: wire::Forward) -> Result<Self, FieldError> {
        use wire::rewrite::Path;
        let to = wire.to.into_iter().enumerate().map(|(i, w)| {
            let to = Destination::try_from(w.to.unwrap_or_default()).map_err(|e| e.under(format!("to[{i}]")))?;
            Ok((to, w.weight))
        });
        let to = to.collect::<Result<Vec<_>, FieldError>>()?;
        let sum: u64 = to.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if !to.is_empty() && (sum == 0 || sum > u64::from(u32::MAX)) {
            return Err(FieldError::new("to", format!("the weights' sum is {sum}")));
        }
        let sticky = wire.sticky.map(|s| HashOn::try_from(s).map_err(|e| e.under("sticky")));
        let mirror = wire.mirror.map(|m| {
            Ok(Mirror {
                to: Destination::try_from(m.to.unwrap_or_default()).map_err(|e| e.under("mirror"))?,
                per_million: m.per_million.min(MILLION),
            })
        });
        let rewrite = wire.rewrite.unwrap_or_default();
        Ok(Self {
            to,
            sticky: sticky.transpose()?,
            mirror: mirror.transpose()?,
            authority: (!rewrite.authority.is_empty()).then_some(rewrite.authority),
            path: rewrite.path.map(|p| match p {
                Path::Full(text) => NewPath::Full(text),
                Path::Prefix(text) => NewPath::Prefix(text),
            }),
        })
    }
}

impl From<&Forward> for wire::Forward {
    fn from(forward: &Forward) -> Self {
        use wire::rewrite::Path;
        let weighted = |(to, weight): &(Destination, u32)| wire::WeightedDestination {
            to: Some(to.into()),
            weight: *weight,
        };
        Self {
            to: forward.to.iter().map(weighted).collect(),
            sticky: forward.sticky.as_ref().map(Into::into),
            mirror: forward.mirror.as_ref().map(|m| wire::Mirror {
                to: Some((&m.to).into()),
                per_million: m.per_million,
            }),
            rewrite: Some(wire::Rewrite {
                authority: forward.authority.clone().unwrap_or_default(),
                path: forward.path.clone().map(|p| match p {
                    NewPath::Full(text) => Path::Full(text),
                    NewPath::Prefix(text) => Path::Prefix(text),
                }),
            }),
        }
    }
}

impl TryFrom<wire::Redirect> for Redirect {
    type Error = FieldError;

    fn try_from(wire: wire::Redirect) -> Result<Self, FieldError> {
        use wire::redirect::Path;
        let text = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            status: match wire.status {
                0 => 302,
                status @ (301 | 302 | 303 | 307 | 308) => u16::try_from(status).unwrap_or(302),
                status => return Err(FieldError::new("status", format!("{status} does not redirect"))),
            },
            scheme: text(wire.scheme),
            authority: text(wire.authority),
            path: wire.path.map(|p| match p {
                Path::Full(text) => NewPath::Full(text),
                Path::Prefix(text) => NewPath::Prefix(text),
            }),
        })
    }
}

impl From<&Redirect> for wire::Redirect {
    fn from(redirect: &Redirect) -> Self {
        use wire::redirect::Path;
        Self {
            status: redirect.status.into(),
            scheme: redirect.scheme.clone().unwrap_or_default(),
            authority: redirect.authority.clone().unwrap_or_default(),
            path: redirect.path.clone().map(|p| match p {
                NewPath::Full(text) => Path::Full(text),
                NewPath::Prefix(text) => Path::Prefix(text),
            }),
        }
    }
}

impl TryFrom<wire::DirectResponse> for DirectResponse {
    type Error = FieldError;

    fn try_from(wire: wire::DirectResponse) -> Result<Self, FieldError> {
        let Ok(status @ 200..=599) = u16::try_from(wire.status) else {
            return Err(FieldError::new("status", format!("{} is not 200 to 599", wire.status)));
        };
        if wire.body.len() > MAX_BODY {
            return Err(FieldError::new(
                "body",
                format!("{} bytes are more than {MAX_BODY}", wire.body.len()),
            ));
        }
        Ok(Self {
            status,
            body: wire.body,
            content_type: match wire.content_type.is_empty() {
                true => "text/plain; charset=utf-8".into(),
                false => wire.content_type,
            },
        })
    }
}

impl From<wire::HeaderEdits> for HeaderEdits {
    fn from(wire: wire::HeaderEdits) -> Self {
        let pairs = |list: Vec<wire::Header>| list.into_iter().map(|h| (h.name, h.value)).collect();
        Self {
            set: pairs(wire.set),
            add: pairs(wire.add),
            remove: wire.remove,
        }
    }
}

impl From<&HeaderEdits> for wire::HeaderEdits {
    fn from(edits: &HeaderEdits) -> Self {
        let header = |(name, value): &(String, String)| wire::Header {
            name: name.clone(),
            value: value.clone(),
        };
        Self {
            set: edits.set.iter().map(header).collect(),
            add: edits.add.iter().map(header).collect(),
            remove: edits.remove.clone(),
        }
    }
}

impl TryFrom<wire::Fault> for Fault {
    type Error = FieldError;

    fn try_from(wire: wire::Fault) -> Result<Self, FieldError> {
        use wire::fault::Harm as Wire;
        let callers = wire
            .callers
            .iter()
            .map(|c| c.parse().map_err(|e: FieldError| e.under("callers")));
        if wire.until_unix_ms == 0 {
            return Err(FieldError::new("until_unix_ms", "a fault has an end"));
        }
        Ok(Self {
            name: wire.name,
            matches: Match::list(wire.matches)?,
            callers: callers.collect::<Result<_, _>>()?,
            per_million: wire.per_million.min(MILLION),
            harm: match wire.harm {
                Some(Wire::DelayMs(ms)) => Harm::Delay(duration(ms, "delay_ms", Duration::ZERO)?),
                Some(Wire::Abort(abort)) => match (u16::try_from(abort.status), abort.grpc) {
                    (Ok(status @ 200..=599), grpc @ 0..=16) => Harm::Abort { status, grpc },
                    _ => return Err(FieldError::new("abort", format!("{abort:?} is no answer"))),
                },
                Some(Wire::ResetAfterBytes(bytes)) => Harm::ResetAfter(bytes),
                Some(Wire::RefuseConnection(true)) => Harm::RefuseConnection,
                Some(Wire::RefuseConnection(false)) | None => return Err(FieldError::new("harm", "it does nothing")),
            },
            until: SystemTime::UNIX_EPOCH + Duration::from_millis(wire.until_unix_ms),
        })
    }
}

impl From<&Fault> for wire::Fault {
    fn from(fault: &Fault) -> Self {
        use wire::fault::Harm as Wire;
        let until = fault.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            name: fault.name.clone(),
            matches: fault.matches.iter().map(Into::into).collect(),
            callers: fault.callers.iter().map(ToString::to_string).collect(),
            per_million: fault.per_million,
            harm: Some(match fault.harm {
                Harm::Delay(delay) => Wire::DelayMs(millis(delay)),
                Harm::Abort { status, grpc } => Wire::Abort(wire::Abort {
                    status: status.into(),
                    grpc,
                }),
                Harm::ResetAfter(bytes) => Wire::ResetAfterBytes(bytes),
                Harm::RefuseConnection => Wire::RefuseConnection(true),
            }),
            until_unix_ms: u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
