//! What is right value by value and impossible together: policies in force, routes in their order, names that lead
//! nowhere.

use std::collections::BTreeMap;

use outrigger_proto::model::{
    Action, Admission, Destination, FieldError, Match, PathMatch, Policy, Protocol, RateLimit, Route, Service,
    ServiceName,
};
use outrigger_proto::routes::Routes;
use outrigger_proto::wire::mesh as wire;

use super::ServiceDoc;
use super::check::short;
use super::codes::{self, Code};
use super::origin::Origins;
use super::suggest::did_you_mean;
use super::tree::{Node, Span};
use super::whole::{Report, shown};

/// Looks at one service by itself.
pub(super) fn service(service: &ServiceDoc, origins: Origins<'_>, report: &mut Report) {
    let traffic = &service.traffic;
    let all_grpc = service.ports.iter().all(|port| port.protocol == Protocol::Grpc);
    policy(&traffic.policy, &[], all_grpc, origins, report);
    for (i, route) in traffic.routes.iter().enumerate() {
        if matches!(route.action, Action::Forward(_)) {
            policy(&route.policy, &route.matches, all_grpc, origins.of_route(i), report);
        }
    }
    order(&traffic.routes, origins.service, report);
    let outlier = &traffic.outlier;
    if outlier.trip.is_some() && outlier.max_ejected_percent == 100 && outlier.panic_percent == 0 {
        let at = origins.place(&["outlier", "panic"]);
        warn(
            report,
            codes::NO_PANIC,
            at,
            "every endpoint may be ejected at a time".to_owned(),
        );
    }
    if service.run.is_some() {
        let labels: Vec<&BTreeMap<String, String>> = service.versions.iter().map(|version| &version.labels).collect();
        if traffic.zone.is_some() && !labels.iter().any(|labels| labels.contains_key("zone")) {
            let message = format!("`{}` has no label `zone`", service.name.service());
            warn(report, codes::ZONE_WITHOUT_LABELS, origins.place(&["zone"]), message);
        }
        for subset in &traffic.subsets {
            let has = |labels: &BTreeMap<String, String>| {
                subset.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            };
            if !labels.iter().any(|labels| has(labels)) {
                let at = origins.service.at(&["subsets", &subset.name]);
                let message = format!("no instance that `run` starts is in the subset `{}`", subset.name);
                warn(report, codes::SUBSET_EMPTY, at, message);
            }
        }
    }
}

/// A policy in force, for requests that `matches` are about.
fn policy(policy: &Policy, matches: &[Match], all_grpc: bool, origins: Origins<'_>, report: &mut Report) {
    let retry = &policy.retry;
    if retry.attempts > 1 && policy.timeout.is_none() && policy.per_try.is_none() {
        let message = format!("{} tries, and no bound on their time", retry.attempts);
        refuse(
            report,
            codes::RETRY_WITHOUT_TIME,
            origins.place(&["retry", "attempts"]),
            message,
        );
    }
    if let (Some(per_try), Some(timeout)) = (policy.per_try, policy.timeout)
        && per_try > timeout
    {
        let message = format!(
            "one try may take {}, and the whole request {}",
            humantime::format_duration(per_try),
            humantime::format_duration(timeout)
        );
        // At what is said nearest to the request: the other one may be right for all the others.
        let narrow = |path: &[&str]| origins.find(path).map(|(level, span)| (level as u8, span));
        let both = [narrow(&["retry", "per_try"]), narrow(&["timeout"])];
        let at = both
            .into_iter()
            .flatten()
            .max_by_key(|(level, _)| *level)
            .map(|(_, span)| span);
        let at = at.unwrap_or(&origins.service.span);
        refuse(report, codes::TRY_LONGER_THAN_ALL, at, message);
    }
    let twice = policy.idempotent || (!matches.is_empty() && matches.iter().all(is_idempotent));
    if let Some(hedge) = policy.hedge {
        let at = origins.place(&["hedge"]);
        if !twice {
            let message = "a second request may be sent where one must not be done twice".to_owned();
            refuse(report, codes::HEDGE_NOT_IDEMPOTENT, at, message);
        }
        if let (Some(after), Some(timeout)) = (hedge.after, policy.timeout)
            && after >= timeout
        {
            refuse(
                report,
                codes::HEDGE_TOO_LATE,
                at,
                "the second request would come after the end".to_owned(),
            );
        }
    }
    let never = all_grpc || (!matches.is_empty() && matches.iter().all(never_idempotent));
    if retry.attempts > 1 && !policy.idempotent && never {
        let message = format!("{} tries, and nothing here may be done twice", retry.attempts);
        warn(
            report,
            codes::RETRY_NEVER,
            origins.place(&["retry", "attempts"]),
            message,
        );
    }
}

/// RFC 9110 §9.2.2.
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

fn is_idempotent(one: &Match) -> bool {
    !one.methods.is_empty() && one.methods.iter().all(|method| IDEMPOTENT.contains(&method.as_str()))
}

fn never_idempotent(one: &Match) -> bool {
    !one.grpc.is_empty()
        || (!one.methods.is_empty() && one.methods.iter().all(|method| !IDEMPOTENT.contains(&method.as_str())))
}

/// Finds routes that an earlier one leaves nothing for. Only what is certain: two patterns that merely overlap are fine.
fn order(routes: &[Route], node: &Node, report: &mut Report) {
    for (i, later) in routes.iter().enumerate() {
        let covers = |earlier: &&Route| {
            earlier.matches.is_empty()
                || earlier.matches.contains(&Match::default())
                || (!later.matches.is_empty()
                    && later
                        .matches
                        .iter()
                        .all(|own| earlier.matches.iter().any(|one| covers(one, own))))
        };
        let Some((j, earlier)) = routes.iter().enumerate().take(i).find(|(_, route)| covers(route)) else {
            continue;
        };
        let message = format!(
            "the route `{}` can never match: `{}` is before it",
            later.name, earlier.name
        );
        let error = report.error(node.at(&["routes", &i.to_string(), "name"]), message);
        let first = node.at(&["routes", &j.to_string(), "name"]);
        let error = error
            .label("never reached")
            .also(first, "takes everything that it would match");
        report.push(
            error
                .code(codes::NEVER_MATCHES)
                .help(codes::NEVER_MATCHES.fix.to_owned()),
        );
    }
}

/// True when `wide` certainly matches whatever `narrow` does.
fn covers(wide: &Match, narrow: &Match) -> bool {
    let subset = |wide: &[String], narrow: &[String]| {
        wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|one| wide.contains(one)))
    };
    let path = match (&wide.path, &narrow.path) {
        (None, _) => true,
        (Some(wide), Some(narrow)) if wide == narrow => true,
        (Some(PathMatch::Prefix(wide)), Some(PathMatch::Prefix(path) | PathMatch::Exact(path))) => {
            let wide = wide.strip_suffix('/').unwrap_or(wide);
            path.strip_prefix(wide)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        (Some(PathMatch::Prefix(wide)), _) => wide == "/",
        _ => false,
    };
    path && subset(&wide.hosts, &narrow.hosts)
        && subset(&wide.methods, &narrow.methods)
        && subset(&wide.grpc, &narrow.grpc)
        && wide.headers.iter().all(|field| narrow.headers.contains(field))
        && wide.query.iter().all(|field| narrow.query.contains(field))
}

/// Every destination is a service of the file, and every subset one of that service.
pub(super) fn destinations(services: &[(ServiceDoc, &Node)], described: &[ServiceName], report: &mut Report) {
    let looker = Looker { services, described };
    for (service, node) in services {
        for (i, to) in service.traffic.failover.iter().enumerate() {
            looker.look(service, to, node.inside(&["failover", &i.to_string()]), report);
        }
        for (i, route) in service.traffic.routes.iter().enumerate() {
            let Action::Forward(forward) = &route.action else {
                continue;
            };
            let node = node.inside(&["routes", &i.to_string()]);
            for (j, (to, _)) in forward.to.iter().enumerate() {
                looker.look(service, to, node.inside(&["to", &j.to_string()]), report);
            }
            if let Some(mirror) = &forward.mirror {
                looker.look(service, &mirror.to, node.inside(&["mirror", "to"]), report);
            }
        }
        for (i, fault) in service.traffic.faults.iter().enumerate() {
            for (j, caller) in fault.callers.iter().enumerate() {
                let at = node.at(&["faults", &i.to_string(), "from", &j.to_string()]);
                looker.known(service, caller, at, report);
            }
        }
    }
}

struct Looker<'a> {
    services: &'a [(ServiceDoc, &'a Node)],
    described: &'a [ServiceName],
}

impl Looker<'_> {
    fn look(&self, from: &ServiceDoc, to: &Destination, node: &Node, report: &mut Report) {
        if let Some(name) = &to.service
            && !self.known(from, name, node.at(&["service"]), report)
        {
            return;
        }
        let Some(subset) = &to.subset else { return };
        let owner = match &to.service {
            None => Some(from),
            Some(name) => self
                .services
                .iter()
                .map(|(service, _)| service)
                .find(|s| s.name == *name),
        };
        // A document that was refused is complained of already.
        let Some(owner) = owner else { return };
        let names = || owner.traffic.subsets.iter().map(|subset| &*subset.name);
        if names().any(|name| *name == **subset) {
            return;
        }
        let help = did_you_mean(subset, names()).unwrap_or_else(|| match names().next() {
            Some(_) => format!(
                "subsets of {}: {}",
                owner.name.service(),
                names().collect::<Vec<_>>().join(", ")
            ),
            None => format!("add `subsets` to the document of {}", owner.name.service()),
        });
        let message = format!("`{}` has no subset `{}`", owner.name.service(), short(subset));
        let error = report.error(node.at(&["subset"]), message).label("no such subset");
        report.push(error.code(codes::UNKNOWN_SUBSET).help(help));
    }

    fn known(&self, from: &ServiceDoc, name: &ServiceName, at: &Span, report: &mut Report) -> bool {
        if self.described.contains(name) {
            return true;
        }
        let names: Vec<&str> = self.described.iter().map(|known| shown(known, from)).collect();
        let help = did_you_mean(shown(name, from), names.iter().copied())
            .unwrap_or_else(|| format!("services here: {}", names.join(", ")));
        let message = format!("`{}` is not in this mesh", shown(name, from));
        let error = report.error(at, message).label("no such service");
        report.push(error.code(codes::UNKNOWN_SERVICE).help(help));
        false
    }
}

/// What sidecars would refuse must not be put into force: the last look is their own parser's. Only where nothing else is
/// wrong, or it would say the same once more and less well.
pub(super) fn accepted(service: &ServiceDoc, node: &Node, report: &mut Report) {
    let traffic = &service.traffic;
    let check = || {
        Service::try_from(wire::Service::from(&service.resource()))?;
        Routes::compile(&traffic.routes)?;
        for limit in &traffic.rate_limits {
            RateLimit::try_from(wire::RateLimit::from(limit))?;
        }
        traffic.admission.as_ref().map_or(Ok(()), |admission| {
            Admission::try_from(wire::Admission::from(admission)).map(drop)
        })
    };
    if let Err(error) = check() {
        refuse(report, codes::INVALID, &node.span, FieldError::to_string(&error));
    }
}

fn refuse(report: &mut Report, code: &'static Code, at: &Span, message: String) {
    let error = report.error(at, message);
    report.push(error.code(code).help(code.fix.to_owned()));
}

fn warn(report: &mut Report, code: &'static Code, at: &Span, message: String) {
    let error = report.error(at, message);
    report.warn(error.code(code).help(code.fix.to_owned()));
}
