//! `faults`, `rate_limits` and `priorities`.

use std::time::{Duration, SystemTime};

use outrigger_proto::model::{Fault, Harm, PriorityRule, RateLimit, RateLimitBy, ServiceName};

use super::check::short;
use super::codes;
use super::raw;
use super::reader::Reader;
use super::suggest::did_you_mean;
use super::traffic::priority;
use super::words;

/// A fault ends within this time.
const LONGEST_FAULT: Duration = Duration::from_secs(24 * 3600);

impl Reader<'_> {
    /// The faults of `own`, whose ends are compared with `now`.
    pub(super) fn faults(&mut self, raw: &[raw::Fault], own: &ServiceName, now: SystemTime) -> Vec<Fault> {
        if !self.is_whole("faults", raw.len()) {
            return Vec::new();
        }
        self.unique("faults", raw.iter().map(|fault| fault.name.as_str()));
        let one = |(i, fault): (usize, &raw::Fault)| {
            let mut reader = self.inside(&["faults", &i.to_string()]);
            reader.fault(fault, own, now)
        };
        raw.iter().enumerate().filter_map(one).collect()
    }

    fn fault(&mut self, raw: &raw::Fault, own: &ServiceName, now: SystemTime) -> Option<Fault> {
        self.named(&raw.name);
        let matches = self.matches(raw.matches.as_ref());
        let mut callers = Vec::new();
        for (i, text) in raw.from.iter().flatten().enumerate() {
            let name = match text.contains('/') {
                true => text.parse(),
                false => ServiceName::new(own.namespace(), text),
            };
            match name {
                Ok(name) => callers.push(name),
                Err(error) => self.refuse_as(codes::UNKNOWN_SERVICE, &["from", &i.to_string()], error.reason),
            }
        }
        if raw.from.as_ref().is_some_and(Vec::is_empty) {
            self.refuse_as(codes::NOT_A_MATCH, &["from"], "`from` names nobody");
        }
        let per_million = self.share(raw.percent.as_deref(), &["percent"]);
        let harm = self.harm(raw);
        let until = self.until(raw.until.as_deref(), now);
        Some(Fault {
            name: raw.name.clone(),
            matches,
            callers,
            per_million,
            harm: harm?,
            until: until?,
        })
    }

    fn harm(&mut self, raw: &raw::Fault) -> Option<Harm> {
        let answer = raw.abort.is_some() || raw.grpc.is_some();
        let given = [
            raw.delay.is_some(),
            answer,
            raw.reset_after.is_some(),
            raw.refuse.is_some(),
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            let message = "exactly one of delay, abort or grpc, reset_after, refuse is needed";
            self.refuse_as(codes::FAULT_NOTHING, &[], message);
            return None;
        }
        if raw.delay.is_some() {
            let delay = self.duration(raw.delay.as_deref(), &["delay"], Duration::from_secs(1));
            return Some(Harm::Delay(delay));
        }
        if let Some(text) = &raw.reset_after {
            return match words::bytes(text) {
                Ok(bytes) => Some(Harm::ResetAfter(bytes)),
                Err(problem) => {
                    self.refuse_as(codes::NOT_A_VALUE, &["reset_after"], problem);
                    None
                }
            };
        }
        if raw.refuse == Some(false) {
            self.refuse_as(codes::FAULT_NOTHING, &["refuse"], "`refuse` can only be true");
            return None;
        }
        if raw.refuse.is_some() {
            return Some(Harm::RefuseConnection);
        }
        let grpc = match raw.grpc.as_deref().map(|name| (name, words::grpc_code(name))) {
            None => None,
            Some((_, Some(code @ 1..))) => Some(code),
            Some((name, _)) => {
                let message = format!("`{}` is not a gRPC code that fails", short(name));
                let help = did_you_mean(&name.to_ascii_uppercase(), words::outcome_words());
                self.refuse_with(codes::NOT_A_VALUE, &["grpc"], message, help);
                None
            }
        };
        let status = raw.abort.unwrap_or_else(|| words::status_of(grpc.unwrap_or(14)));
        let grpc = grpc.unwrap_or_else(|| words::grpc_of(status));
        Some(Harm::Abort { status, grpc })
    }

    fn until(&mut self, text: Option<&str>, now: SystemTime) -> Option<SystemTime> {
        let Some(text) = text else {
            self.refuse_as(codes::FAULT_WITHOUT_END, &[], "the fault has no `until`");
            return None;
        };
        let until = match words::moment(text) {
            Ok(until) if until > SystemTime::UNIX_EPOCH + Duration::from_millis(1) => until,
            Ok(_) => {
                self.refuse_as(
                    codes::NOT_A_VALUE,
                    &["until"],
                    format!("`{}` is too long ago", short(text)),
                );
                return None;
            }
            Err(problem) => {
                self.refuse_as(codes::NOT_A_VALUE, &["until"], problem);
                return None;
            }
        };
        if until <= now {
            self.warn(
                codes::FAULT_OVER,
                &["until"],
                format!("the fault was over at {}", short(text)),
            );
        } else if until.duration_since(now).is_ok_and(|left| left > LONGEST_FAULT) {
            let message = format!("`{}` is more than 24 hours ahead", short(text));
            self.refuse_as(codes::FAULT_TOO_LONG, &["until"], message);
        }
        Some(until)
    }

    /// The rate limits.
    pub(super) fn rate_limits(&mut self, raw: &[raw::RateLimit]) -> Vec<RateLimit> {
        if !self.is_whole("rate_limits", raw.len()) {
            return Vec::new();
        }
        self.unique("rate_limits", raw.iter().map(|limit| limit.name.as_str()));
        let one = |(i, limit): (usize, &raw::RateLimit)| {
            let mut reader = self.inside(&["rate_limits", &i.to_string()]);
            reader.rate_limit(limit)
        };
        raw.iter().enumerate().filter_map(one).collect()
    }

    fn rate_limit(&mut self, raw: &raw::RateLimit) -> Option<RateLimit> {
        self.named(&raw.name);
        let matches = self.matches(raw.matches.as_ref());
        let by = match raw.by.as_deref() {
            None | Some("all") => RateLimitBy::All,
            Some("caller") => RateLimitBy::Caller,
            Some(text) => match text.strip_prefix("header:").map(str::to_ascii_lowercase) {
                Some(name) if http::HeaderName::from_bytes(name.as_bytes()).is_ok() => RateLimitBy::Header(name),
                _ => {
                    let message = format!("`{}` is not all, caller or header:NAME", short(text));
                    self.refuse_as(codes::NOT_A_VALUE, &["by"], message);
                    RateLimitBy::All
                }
            },
        };
        let (requests, period) = match words::rate(&raw.rate) {
            Ok((0, _)) => {
                self.refuse_as(codes::RATE_ZERO, &["rate"], "a rate of 0 refuses everything");
                return None;
            }
            Ok(rate) => rate,
            Err(problem) => {
                let help = Some("write for example 100/s, 600/m or 5/10s".to_owned());
                self.refuse_with(codes::NOT_A_VALUE, &["rate"], problem, help);
                return None;
            }
        };
        Some(RateLimit {
            name: raw.name.clone(),
            matches,
            requests,
            period,
            burst: raw.burst.unwrap_or_else(|| u32::try_from(requests).unwrap_or(u32::MAX)),
            by,
            mesh: raw.mesh.unwrap_or(false),
        })
    }

    /// Which requests matter more.
    pub(super) fn priorities(&mut self, raw: &[raw::PriorityRule]) -> Vec<PriorityRule> {
        if !self.is_whole("priorities", raw.len()) {
            return Vec::new();
        }
        let one = |(i, rule): (usize, &raw::PriorityRule)| PriorityRule {
            matches: self
                .inside(&["priorities", &i.to_string()])
                .matches(rule.matches.as_ref()),
            priority: priority(rule.priority),
        };
        raw.iter().enumerate().map(one).collect()
    }
}
