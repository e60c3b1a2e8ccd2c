//! A service's routes and faults, ready to be followed: what every worker would otherwise work out for itself.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use outrigger_proto::model::{
    Action, Destination, Fault, FieldError, Forward, Harm, HashOn, HeaderEdits, NewPath, Policy, Route, Service,
    ServiceName,
};
use outrigger_proto::routes::{Asked, Found, Matches, Routes};

use crate::observe::count::{Count, Counts, Family, Tally};

/// A service's routes and faults.
#[derive(Debug)]
pub struct Traffic {
    service: Arc<Service>,
    routes: Routes,
    ways: Vec<Way>,
    faults: Vec<Breakage>,
    /// Other services that routes lead to.
    pub others: Vec<ServiceName>,
}

/// One route.
#[derive(Debug)]
pub struct Way {
    /// The route's name.
    pub name: Arc<str>,
    /// What happens.
    pub act: Act,
    /// On the way to the app.
    pub request: Edits,
    /// On the way back.
    pub response: Edits,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Act {
    /// It is sent on.
    Forward(Box<Onward>),
    /// The mesh answers: another place, or the answer itself. The route says what.
    Answer(Arc<Tally>),
}

/// How a request is sent on.
#[derive(Debug)]
pub struct Onward {
    /// With the sum of the weights up to and with this one.
    to: Vec<(Goal, u64)>,
    /// What the choice sticks to.
    pub sticky: Option<HashOn>,
    /// Requests without it.
    pub unsticky: Count,
    /// A copy.
    pub mirror: Option<Mirror>,
    /// In place of the request's, and as a `Host`.
    pub authority: Option<(Authority, HeaderValue)>,
    /// In place of the request's.
    pub path: Option<NewPath>,
}

/// A destination.
#[derive(Debug)]
pub struct Goal {
    /// Its place in [`Traffic::others`]; none: the service itself.
    pub other: Option<usize>,
    /// None: all endpoints.
    pub subset: Option<Arc<str>>,
    /// How the access log calls it.
    pub name: Arc<str>,
    /// How its requests ended.
    pub tally: Arc<Tally>,
}

/// A copy of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Where it goes.
    pub to: Goal,
    /// Share of the requests, of a million.
    pub per_million: u32,
    /// What became of the copies.
    pub counts: Arc<Copies>,
}

/// What became of copies.
#[derive(Debug)]
pub struct Copies {
    /// It was answered; how does not matter.
    pub answered: Count,
    /// It could not be sent, or had no answer.
    pub failed: Count,
    /// No whole answer in time.
    pub late: Count,
    /// Too many were on their way.
    pub full: Count,
    /// The body was longer than is kept.
    pub too_large: Count,
    /// The original was not sent whole.
    pub incomplete: Count,
}

/// Changes to a header section: removed, then set, then added.
#[derive(Debug, Default)]
pub struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

/// A failure on purpose that may meet this sidecar's requests.
#[derive(Debug)]
struct Breakage {
    matches: Matches,
    everything: bool,
    per_million: u32,
    harm: Harm,
    until: SystemTime,
    count: Count,
}

/// Failures on purpose that meet one request.
#[derive(Debug, Default)]
pub struct Harms {
    /// It waits.
    pub delay: Option<Duration>,
    /// It is answered so: HTTP status and gRPC code.
    pub abort: Option<(u16, u32)>,
    /// Its answer breaks after so many bytes of the body; counted when it does.
    pub breaks: Option<(u64, Count)>,
}

/// 100 %.
const MILLION: u32 = 1_000_000;

impl Traffic {
    /// Of `service`, as the workload `own` has to follow it; none when there is nothing to follow.
    ///
    /// # Errors
    /// When a route or fault is not one; the resource should have been refused.
    pub fn new(service: &Arc<Service>, own: &ServiceName, counts: &Counts) -> Result<Option<Self>, FieldError> {
        let mine = |fault: &&Fault| fault.callers.is_empty() || fault.callers.contains(own);
        let faults = service.faults.iter().filter(mine);
        let faults = faults
            .map(|fault| Breakage::new(fault, service, counts))
            .collect::<Result<Vec<_>, _>>()?;
        if service.routes.is_empty() && faults.is_empty() {
            return Ok(None);
        }
        let mut others = Vec::new();
        let routes = Routes::compile(&service.routes)?;
        let ways = service
            .routes
            .iter()
            .map(|route| Way::new(route, service, &mut others, counts));
        Ok(Some(Self {
            ways: ways.collect(),
            service: service.clone(),
            routes,
            faults,
            others,
        }))
    }

    /// The first route that matches.
    ///
    /// # Errors
    /// When the path could be read in two ways and a route looks at paths.
    pub fn find(&self, asked: &Asked<'_>) -> Result<Option<Found>, outrigger_proto::access::Ambiguous> {
        self.routes.find(asked)
    }

    /// The way of the route with this number.
    #[must_use]
    pub fn way(&self, route: usize) -> Option<&Way> {
        self.ways.get(route)
    }

    /// The route with this number, as it was written.
    #[must_use]
    pub fn route(&self, route: usize) -> Option<&Route> {
        self.service.routes.get(route)
    }

    /// What holds for requests of the route with this number, or of none.
    #[must_use]
    pub fn policy(&self, route: Option<usize>) -> &Policy {
        route
            .and_then(|i| self.service.routes.get(i))
            .map_or(&self.service.policy, |r| &r.policy)
    }

    /// The failures on purpose that meet a request: the first that delays and the first that ends it.
    #[must_use]
    pub fn harms(&self, asked: &Asked<'_>, now: SystemTime, chance: impl Fn(u32) -> u32) -> Harms {
        let mut harms = Harms::default();
        for fault in &self.faults {
            let ended = harms.abort.is_some() || harms.breaks.is_some();
            let wanted = match fault.harm {
                Harm::Delay(_) => harms.delay.is_none(),
                Harm::Abort { .. } | Harm::ResetAfter(_) => !ended,
                Harm::RefuseConnection => false,
            };
            // A path that can be read in two ways meets no fault; nothing hangs on it.
            if !wanted || !fault.strikes(now, &chance) || !fault.matches.meets(asked).unwrap_or(false) {
                continue;
            }
            match fault.harm {
                Harm::Delay(delay) => {
                    fault.count.add();
                    harms.delay = Some(delay);
                }
                Harm::Abort { status, grpc } => {
                    fault.count.add();
                    harms.abort = Some((status, grpc));
                }
                Harm::ResetAfter(bytes) => harms.breaks = Some((bytes, fault.count.clone())),
                Harm::RefuseConnection => {}
            }
        }
        harms
    }

    /// How long a connection for opaque bytes is kept waiting, and whether it is refused. Faults that look at requests
    /// do not meet it.
    #[must_use]
    pub fn harms_opaque(&self, now: SystemTime, chance: impl Fn(u32) -> u32) -> (Option<Duration>, bool) {
        let (mut delay, mut refused) = (None, false);
        for fault in self.faults.iter().filter(|f| f.everything) {
            let wanted = match fault.harm {
                Harm::Delay(_) => delay.is_none(),
                Harm::RefuseConnection => !refused,
                Harm::Abort { .. } | Harm::ResetAfter(_) => false,
            };
            if !wanted || !fault.strikes(now, &chance) {
                continue;
            }
            fault.count.add();
            match fault.harm {
                Harm::Delay(time) => delay = Some(time),
                _ => refused = true,
            }
        }
        (delay, refused)
    }
}

impl Way {
    fn new(route: &Route, service: &Service, others: &mut Vec<ServiceName>, counts: &Counts) -> Self {
        let labels = |to| [("service", service.name.as_str()), ("route", &*route.name), ("to", to)];
        let act = match &route.action {
            Action::Forward(forward) => Act::Forward(Box::new(Onward::new(route, forward, service, others, counts))),
            Action::Redirect(_) => Act::Answer(Arc::new(counts.tally(Family::Routed, &labels("redirect")))),
            Action::Respond(_) => Act::Answer(Arc::new(counts.tally(Family::Routed, &labels("respond")))),
        };
        Self {
            name: route.name.clone(),
            act,
            request: Edits::new(&route.request_headers),
            response: Edits::new(&route.response_headers),
        }
    }
}

impl Onward {
    fn new(
        route: &Route,
        forward: &Forward,
        service: &Service,
        others: &mut Vec<ServiceName>,
        counts: &Counts,
    ) -> Self {
        let mut goal = |to: &Destination| {
            let other = to.service.as_ref().filter(|name| **name != service.name);
            let other = other.map(|name| {
                others.iter().position(|o| o == name).unwrap_or_else(|| {
                    others.push(name.clone());
                    others.len() - 1
                })
            });
            let place = to.service.as_ref().map_or(service.name.as_str(), ServiceName::as_str);
            let name: Arc<str> = match &to.subset {
                Some(subset) => format!("{place}/{subset}").into(),
                None => place.into(),
            };
            let labels = [
                ("service", service.name.as_str()),
                ("route", &*route.name),
                ("to", &*name),
            ];
            Goal {
                other,
                subset: to.subset.clone(),
                tally: Arc::new(counts.tally(Family::Routed, &labels)),
                name,
            }
        };
        let itself = [(Destination::default(), 1)];
        let to = if forward.to.is_empty() {
            &itself[..]
        } else {
            &*forward.to
        };
        let mut sum = 0;
        let to = to.iter().map(|(to, weight)| {
            sum += u64::from(*weight);
            (goal(to), sum)
        });
        let to = to.collect();
        let of = |result| {
            let labels = [
                ("service", service.name.as_str()),
                ("route", &*route.name),
                ("result", result),
            ];
            counts.get(Family::Mirrored, &labels)
        };
        let authority = forward.authority.as_ref().and_then(|text| {
            Some((
                Authority::try_from(text.as_str()).ok()?,
                HeaderValue::try_from(text).ok()?,
            ))
        });
        Self {
            to,
            sticky: forward.sticky.clone(),
            unsticky: counts.get(
                Family::Unsticky,
                &[("service", service.name.as_str()), ("route", &*route.name)],
            ),
            mirror: forward.mirror.as_ref().map(|mirror| Mirror {
                to: goal(&mirror.to),
                per_million: mirror.per_million,
                counts: Arc::new(Copies {
                    answered: of("answered"),
                    failed: of("failed"),
                    late: of("late"),
                    full: of("full"),
                    too_large: of("too_large"),
                    incomplete: of("incomplete"),
                }),
            }),
            authority,
            path: forward.path.clone(),
        }
    }

    /// The destination for a number of 64 bits, drawn or hashed. The same number goes the same way while the weights
    /// stay, and where they change as little as they do.
    #[must_use]
    pub fn choose(&self, number: impl FnOnce() -> u64) -> Option<&Goal> {
        match &*self.to {
            [(only, _)] => Some(only),
            to => {
                let total = to.last().map_or(0, |(_, sum)| *sum);
                // The upper half of the product: the number as a share of the total.
                let at = (u128::from(number()) * u128::from(total)) >> 64;
                to.iter().find(|(_, sum)| at < u128::from(*sum)).map(|(goal, _)| goal)
            }
        }
    }

    /// Whether there is anything to choose.
    #[must_use]
    pub fn splits(&self) -> bool {
        self.to.len() > 1
    }
}

impl Edits {
    fn new(edits: &HeaderEdits) -> Self {
        let name = |text: &String| HeaderName::try_from(text.as_str()).ok();
        let pair =
            |(field, text): &(String, String)| Some((name(field)?, HeaderValue::from_bytes(text.as_bytes()).ok()?));
        Self {
            // What is not a field was refused with its resource.
            remove: edits.remove.iter().filter_map(name).collect(),
            set: edits.set.iter().filter_map(pair).collect(),
            add: edits.add.iter().filter_map(pair).collect(),
        }
    }

    /// Makes the changes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

impl Breakage {
    fn new(fault: &Fault, service: &Service, counts: &Counts) -> Result<Self, FieldError> {
        Ok(Self {
            matches: Matches::compile(&fault.matches)?,
            everything: fault.matches.is_empty(),
            per_million: fault.per_million,
            harm: fault.harm,
            until: fault.until,
            count: counts.get(
                Family::Faults,
                &[("service", service.name.as_str()), ("fault", &fault.name)],
            ),
        })
    }

    fn strikes(&self, now: SystemTime, chance: impl Fn(u32) -> u32) -> bool {
        now < self.until && (self.per_million >= MILLION || chance(MILLION) < self.per_million)
    }
}

/// The request's authority, as matches see it: RFC 9112 §3.2.2 prefers that of an absolute form.
#[must_use]
pub fn host<'r>(authority: Option<&'r Authority>, headers: &'r HeaderMap) -> Option<&'r str> {
    let field = || headers.get(HOST).and_then(|h| h.to_str().ok());
    authority.map(Authority::as_str).or_else(field)
}
