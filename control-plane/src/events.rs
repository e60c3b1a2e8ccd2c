//! What happened lately, for people: a ring of bounded size that is also logged.
//!
//! Decides nothing and is read by nothing but the API.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

/// Events kept; older ones are forgotten.
const KEPT: usize = 1000;
/// A refusal that stands among the last so many is not told again.
const REMEMBERED: usize = 50;

/// Something that a person may ask about later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A configuration is in force.
    ConfigApplied {
        /// Its version.
        version: String,
        /// Where it came from.
        origin: String,
        /// Services whose documents changed.
        changed: Vec<String>,
    },
    /// A configuration was refused whole; the last good one stays.
    ConfigRefused {
        /// Where it came from.
        origin: String,
        /// One line for each mistake.
        reasons: Vec<String>,
    },
    /// An endpoint is served, or changed.
    Registered {
        /// `namespace/service/instance`.
        endpoint: String,
        /// Its boot epoch.
        epoch: u64,
    },
    /// An endpoint left or its app is not well.
    Withdrawn {
        /// `namespace/service/instance`.
        endpoint: String,
        /// What its sidecar said.
        reason: String,
    },
    /// An endpoint was not renewed in time.
    Lapsed {
        /// `namespace/service/instance`.
        endpoint: String,
    },
    /// More than half of a service's leases lapsed at once, so its last set is kept.
    StaleAlarm {
        /// `namespace/service`.
        service: String,
        /// Leases that lapsed.
        lapsed: usize,
        /// Of so many.
        of: usize,
    },
    /// A service is no longer stale.
    StaleOver {
        /// `namespace/service`.
        service: String,
    },
    /// A sidecar refused a resource and keeps what it had.
    Nack {
        /// Who refused.
        node: String,
        /// The message's full name.
        kind: String,
        /// The resource.
        resource: String,
        /// The refused version.
        version: String,
        /// Field path and reason.
        reason: String,
    },
    /// Somebody whose identity is proven asked for what is not theirs.
    Refused {
        /// Its id.
        who: String,
        /// What it tried.
        what: String,
    },
    /// The state file cannot be used; the control plane goes on from memory.
    StoreFailed {
        /// Why.
        reason: String,
    },
    /// A workload got its first certificate.
    Joined {
        /// `namespace/service/instance`.
        instance: String,
        /// Its certificate's serial.
        serial: String,
        /// The token's id.
        token: String,
    },
    /// A certificate was not granted.
    CertificateRefused {
        /// Who asked, as far as it was said.
        who: String,
        /// Why.
        reason: String,
    },
    /// A token was made.
    TokenCreated {
        /// Its id.
        id: String,
        /// `namespace/service`.
        service: String,
        /// How often it may be used; none = always.
        uses: Option<u32>,
        /// RFC 3339.
        expires: String,
    },
    /// A token is no longer good.
    TokenRevoked {
        /// Its id.
        id: String,
    },
    /// A person got a certificate.
    OperatorCertificate {
        /// The id in it.
        identity: String,
        /// Its serial.
        serial: String,
    },
    /// The rotation of the root went on: `spreading`, `renewing`, `done`.
    RootRotation {
        /// The phase that began.
        phase: String,
        /// The trust bundle's generation.
        generation: u64,
    },
    /// The intermediate that signs was made anew.
    IssuerRenewed {
        /// When the new one ends, RFC 3339.
        expires: String,
    },
    /// A certificate or a service is no longer let in.
    Revoked {
        /// Serial or `namespace/service`.
        what: String,
    },
    /// A certificate or a service is let in again.
    Allowed {
        /// Serial or `namespace/service`.
        what: String,
    },
    /// What everything hangs on ends soon.
    ExpiryNear {
        /// What.
        what: String,
        /// RFC 3339.
        expires: String,
    },
    /// What became of a breaker or of an endpoint that a sidecar calls, or what it found of its app.
    TrafficChanged {
        /// `namespace/service`.
        service: String,
        /// `namespace/service/instance`; none for the service as a whole.
        endpoint: Option<String>,
        /// Whose sidecar it is: `namespace/service/instance`. No other caller is touched.
        caller: String,
        /// `breaker_opened`, `breaker_probing`, `breaker_closed`, `endpoint_ejected`, `endpoint_returned`; of the sidecar's own
        /// app `deadline_dropped`, `deadline_passed_on`.
        what: String,
        /// Why; none when time alone is the cause.
        cause: Option<String>,
        /// When it is tried again, RFC 3339.
        next_probe: Option<String>,
    },
    /// A sidecar had more changes than it could keep until it could tell them.
    ChangesLost {
        /// Whose sidecar it is: `namespace/service/instance`.
        caller: String,
        /// So many.
        count: u64,
    },
    /// The identity state cannot be stored; nothing is granted until it can.
    IdentityStoreFailed {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigApplied {
                version,
                origin,
                changed,
            } if changed.is_empty() => {
                write!(f, "configuration {version} from {origin} is in force; nothing differs")
            }
            Self::ConfigApplied {
                version,
                origin,
                changed,
            } => {
                write!(
                    f,
                    "configuration {version} from {origin} is in force; changed: {}",
                    changed.join(", ")
                )
            }
            Self::ConfigRefused { origin, reasons } => {
                write!(
                    f,
                    "configuration from {origin} is refused; the last good one stays: {}",
                    reasons.join("; ")
                )
            }
            Self::Registered { endpoint, epoch } => write!(f, "{endpoint} registered, epoch {epoch}"),
            Self::Withdrawn { endpoint, reason } => write!(f, "{endpoint} withdrew: {reason}"),
            Self::Lapsed { endpoint } => write!(f, "{endpoint} was not renewed in time and is removed"),
            Self::StaleAlarm { service, lapsed, of } => {
                write!(
                    f,
                    "{service} is stale: {lapsed} of {of} leases lapsed at once, so its last endpoints are kept"
                )
            }
            Self::StaleOver { service } => write!(f, "{service} is no longer stale"),
            Self::Nack {
                node,
                kind,
                resource,
                version,
                reason,
            } => {
                write!(f, "{node} refused {kind} {resource} version {version}: {reason}")
            }
            Self::Refused { who, what } => write!(f, "{who} {what} and was refused"),
            Self::StoreFailed { reason } => write!(f, "the state file cannot be used: {reason}"),
            Self::Joined {
                instance,
                serial,
                token,
            } => write!(f, "{instance} joined by token {token} and got the certificate {serial}"),
            Self::CertificateRefused { who, reason } => write!(f, "no certificate for {who}: {reason}"),
            Self::TokenCreated {
                id,
                service,
                uses: Some(uses),
                expires,
            } => write!(
                f,
                "token {id} for {service} was made: good {uses} times, until {expires}"
            ),
            Self::TokenCreated {
                id, service, expires, ..
            } => write!(f, "token {id} for {service} was made: good until {expires}"),
            Self::TokenRevoked { id } => write!(f, "token {id} is revoked"),
            Self::OperatorCertificate { identity, serial } => {
                write!(f, "the operator got the certificate {serial} as {identity}")
            }
            Self::RootRotation { phase, generation } => {
                write!(f, "rotation of the root: {phase}, generation {generation}")
            }
            Self::IssuerRenewed { expires } => write!(f, "the certificate that signs was made anew, until {expires}"),
            Self::Revoked { what } => write!(f, "{what} is revoked"),
            Self::Allowed { what } => write!(f, "{what} is allowed again"),
            Self::ExpiryNear { what, expires } => write!(f, "{what} ends on {expires}"),
            Self::TrafficChanged {
                service,
                endpoint,
                caller,
                what,
                cause,
                next_probe,
            } => {
                write!(
                    f,
                    "{caller}: {} {}",
                    endpoint.as_ref().unwrap_or(service),
                    what.replace('_', " ")
                )?;
                if let Some(cause) = cause {
                    write!(f, ", {cause}")?;
                }
                match next_probe {
                    Some(next) => write!(f, "; tried again at {next}"),
                    None => Ok(()),
                }
            }
            Self::ChangesLost { caller, count } => {
                write!(
                    f,
                    "{caller} could not tell of {count} changes of breakers and endpoints"
                )
            }
            Self::IdentityStoreFailed { reason } => {
                write!(
                    f,
                    "the identity state cannot be stored, so nothing is granted: {reason}"
                )
            }
        }
    }
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Entry {
    /// Grows by one with each event.
    pub id: u64,
    /// RFC 3339, UTC.
    pub at: String,
    /// The same in words.
    pub says: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What was refused, for those who count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusals {
    /// A configuration.
    Config,
    /// A resource, by the sidecar that it was pushed to.
    Resource,
    /// What somebody with a proven identity asked for.
    Workload,
    /// A request of nobody, or with a token that is not an operator's.
    Unproven,
    /// A certificate.
    Certificate,
}

impl Refusals {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Config,
        Self::Resource,
        Self::Workload,
        Self::Unproven,
        Self::Certificate,
    ];

    /// As people see it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Resource => "resource",
            Self::Workload => "workload",
            Self::Unproven => "unproven",
            Self::Certificate => "certificate",
        }
    }
}

/// The ring, and what was refused since the start.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<Ring>,
    refusals: [AtomicU64; Refusals::ALL.len()],
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    entries: VecDeque<Entry>,
    /// What sidecars told; apart, so that many that flap push nothing else out.
    traffic: VecDeque<Entry>,
}

impl Events {
    /// Adds and logs an event.
    pub fn record(&self, event: Event) {
        self.record_at(event, jiff::Timestamp::now());
    }

    /// As [`Self::record`], of something that happened at `at`.
    pub fn record_at(&self, event: Event, at: jiff::Timestamp) {
        match &event {
            Event::ConfigRefused { .. } => self.refused(Refusals::Config),
            Event::Nack { .. } => self.refused(Refusals::Resource),
            Event::Refused { .. } => self.refused(Refusals::Workload),
            Event::CertificateRefused { .. } => self.refused(Refusals::Certificate),
            _ => {}
        }
        if matches!(event, Event::Refused { .. }) && self.is_repeated(&event) {
            return tracing::debug!("{event}");
        }
        match &event {
            Event::StaleAlarm { .. }
            | Event::StoreFailed { .. }
            | Event::IdentityStoreFailed { .. }
            | Event::ExpiryNear { .. } => tracing::error!("{event}"),
            Event::ConfigRefused { .. }
            | Event::Nack { .. }
            | Event::Lapsed { .. }
            | Event::Refused { .. }
            | Event::ChangesLost { .. }
            | Event::CertificateRefused { .. } => tracing::warn!("{event}"),
            _ => tracing::info!("{event}"),
        }
        let says = event.to_string();
        let mut ring = self.ring.lock();
        ring.next += 1;
        let (id, at) = (ring.next, at.to_string());
        let entries = match event {
            Event::TrafficChanged { .. } | Event::ChangesLost { .. } => &mut ring.traffic,
            _ => &mut ring.entries,
        };
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(Entry { id, at, says, event });
    }

    /// Somebody who is refused again and again must not push everything else out of the ring.
    fn is_repeated(&self, event: &Event) -> bool {
        let ring = self.ring.lock();
        ring.entries
            .iter()
            .rev()
            .take(REMEMBERED)
            .any(|entry| entry.event == *event)
    }

    /// Counts a refusal that is no event.
    pub fn refused(&self, what: Refusals) {
        if let Some(count) = self.refusals.get(what as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How much was refused since the start.
    #[must_use]
    pub fn refusals(&self) -> [(Refusals, u64); Refusals::ALL.len()] {
        let count = |what: Refusals| {
            self.refusals
                .get(what as usize)
                .map_or(0, |n| n.load(Ordering::Relaxed))
        };
        Refusals::ALL.map(|what| (what, count(what)))
    }

    /// The events after the one with id `after`, oldest first.
    #[must_use]
    pub fn since(&self, after: u64) -> Vec<Entry> {
        let ring = self.ring.lock();
        let all = ring.entries.iter().chain(&ring.traffic);
        let mut entries: Vec<Entry> = all.filter(|e| e.id > after).cloned().collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Events, KEPT};

    /// A sidecar that flaps must not push everything else out.
    #[test]
    fn changes_of_traffic_are_kept_apart_and_told_in_order() {
        let events = Events::default();
        let token = |id: &str| Event::TokenRevoked { id: id.into() };
        let lost = |count| Event::ChangesLost {
            caller: "default/web/w1".into(),
            count,
        };
        events.record(token("a"));
        for count in 0..KEPT as u64 + 5 {
            events.record(lost(count));
        }
        events.record(token("b"));
        let all = events.since(0);
        assert_eq!(all.len(), KEPT + 2);
        assert_eq!((&all[0].event, &all[1].event), (&token("a"), &lost(5)));
        assert_eq!(all.last().map(|entry| &entry.event), Some(&token("b")));
        assert!(all.is_sorted_by_key(|entry| entry.id));
    }
}
