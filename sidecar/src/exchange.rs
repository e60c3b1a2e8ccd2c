//! One request's bookkeeping, from its head to the end of its answer.
//!
//! Owned by the answer's body: whatever happens to the body, the counters, the endpoint's load and
//! the access log hear of it exactly once.

pub(crate) mod live;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, StatusCode};

use self::live::Ticket;
use crate::connect::Lease;
use crate::contain::{self, Place};
use crate::forward::idle::Stall;
use crate::guard::{Account, Outcome};
use crate::observe::access_log::{AccessLog, Record};
use crate::observe::count::Tally;
use crate::observe::{Cell, Direction, StatusClass};
use crate::protect::Held;
use crate::reason::Reason;

/// One request's bookkeeping.
#[derive(Debug)]
pub struct Exchange {
    cell: Arc<Cell>,
    started: Instant,
    lease: Option<Lease>,
    status: u16,
    grpc_status: Option<i32>,
    reason: Option<Reason>,
    grpc: bool,
    tries: u32,
    done: bool,
    /// Inbound: its place among what the caller's connection carries.
    ticket: Option<Ticket>,
    /// Inbound: its place at the app.
    held: Option<Held>,
    /// Outbound: how the requests of its route end.
    tally: Option<Arc<Tally>>,
    /// Outbound: what its end tells of the endpoint.
    account: Option<Account>,
    /// Outbound: whether the answer was ended because its client has stopped reading.
    stall: Option<Arc<Stall>>,
    log: Option<Box<Line>>,
}

/// What only the access log needs; absent when it is off.
#[derive(Debug)]
pub struct Line {
    /// Where the record goes.
    pub log: AccessLog,
    /// Direction as the app sees it.
    pub direction: Direction,
    /// The service called.
    pub service: Arc<str>,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// Request method.
    pub method: String,
    /// Request path.
    pub path: String,
    /// The endpoint that answered.
    pub upstream: Option<SocketAddr>,
    /// Inbound: who called, when it proved it.
    pub caller: Option<String>,
    /// Inbound: the rule that decided.
    pub rule: Option<String>,
    /// Outbound: the route, and where it led.
    pub route: Option<(Arc<str>, Arc<str>)>,
}

impl Exchange {
    /// Begins with a request's head. Allocated once: it goes with every copy of a body otherwise, and each request
    /// has dozens of those.
    #[must_use]
    pub fn start(cell: Arc<Cell>, grpc: bool, log: Option<Box<Line>>) -> Box<Self> {
        cell.request();
        Box::new(Self {
            cell,
            started: Instant::now(),
            lease: None,
            status: 0,
            grpc_status: None,
            reason: None,
            grpc,
            tries: 0,
            done: false,
            ticket: None,
            held: None,
            tally: None,
            account: None,
            stall: None,
            log,
        })
    }

    /// When the request's head was read.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// True when the client speaks gRPC.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Tries sent upstream.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The account of the try from which the answer is to come; an earlier one is closed.
    pub fn accounted(&mut self, account: Account) {
        self.account = Some(account);
    }

    /// The account of the try that is on its way.
    pub fn account(&mut self) -> Option<&mut Account> {
        self.account.as_mut()
    }

    /// Closes the account: no answer will come of that try.
    pub fn unaccounted(&mut self) {
        self.account = None;
    }

    /// A try was sent upstream.
    pub fn tried(&mut self) {
        contain::here(Place::Request);
        self.tries += 1;
        self.cell.try_sent();
    }

    /// The head of an upstream's answer arrived over `lease`.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap, lease: Lease) {
        self.status = status.as_u16();
        if self.grpc {
            self.grpc_status = grpc_status(headers);
        }
        if let Some(line) = &mut self.log {
            line.upstream = Some(lease.address());
        }
        self.lease = Some(lease);
    }

    /// The head of the answer is here and more of it is not.
    pub fn awaits_more(&self) {
        if let Some(lease) = &self.lease {
            lease.acknowledge();
        }
    }

    /// `rule` decided that the request goes on, or that it does not.
    pub fn decided(&mut self, rule: &str) {
        if let Some(line) = &mut self.log {
            line.rule = Some(rule.into());
        }
    }

    /// `route` decided that the request goes `to` somewhere, or is answered; `tally` hears how it ends.
    pub fn routed(&mut self, route: &Arc<str>, to: &Arc<str>, tally: &Arc<Tally>) {
        self.tally = Some(tally.clone());
        if let Some(line) = &mut self.log {
            line.route = Some((route.clone(), to.clone()));
        }
    }

    /// A route answers by itself with `status`.
    pub fn answered_by_route(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        if self.grpc {
            self.grpc_status = grpc_status(headers);
        }
    }

    /// The mesh fails the request on purpose, with these statuses.
    pub fn aborted(&mut self, status: StatusCode, grpc: u32) {
        self.refused(Reason::Fault);
        self.status = status.as_u16();
        if self.grpc {
            self.grpc_status = i32::try_from(grpc).ok();
        }
    }

    /// The answer breaks off on purpose.
    pub fn harmed(&mut self) {
        if !self.done && self.reason.is_none() {
            self.reason = Some(Reason::Fault);
            self.cell.reason(Reason::Fault);
        }
        self.broken();
    }

    /// The connection was secured by mutual TLS.
    pub fn secured(&self) {
        self.cell.secured_request();
    }

    /// The rest of the answer goes on only while `ticket` is valid.
    pub fn under(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// The place at the app is taken until the answer ends.
    pub fn holds(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// Ready when the rules allow the request no longer.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.ticket.as_ref().map_or(Poll::Pending, |ticket| ticket.poll_cut(cx))
    }

    /// True when the rules allow the request no longer. Cheap.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_cut)
    }

    /// The answer ends here because the rules allow it no longer.
    pub fn cut(&mut self) {
        if !self.done && self.reason.is_none() {
            self.reason = Some(Reason::Denied);
            self.cell.reason(Reason::Denied);
        }
        self.account = None;
        self.broken();
    }

    /// The mesh answers by itself.
    pub fn refused(&mut self, reason: Reason) {
        self.reason = Some(reason);
        self.status = reason.status();
        if self.grpc {
            self.grpc_status = Some(i32::from(reason.grpc_status()));
        }
        self.cell.reason(reason);
    }

    /// The answer ended well, with `trailers` if there were any.
    pub fn ended(&mut self, trailers: Option<&HeaderMap>) {
        if self.grpc && self.grpc_status.is_none() {
            self.grpc_status = trailers.and_then(grpc_status);
        }
        let now = Instant::now();
        if let Some(lease) = self.lease.take() {
            lease.finish(now);
        }
        // An answer of the mesh itself tells nothing of an endpoint: what does was told when it happened.
        let outcome = match (self.reason, self.grpc_status) {
            (Some(_), _) => None,
            (None, Some(code)) => Some(Outcome::Grpc(code.unsigned_abs())),
            (None, None) => Some(Outcome::Status(self.status)),
        };
        let class = self.class();
        self.close(now, class, outcome);
    }

    /// Nothing moved for too long.
    pub fn idle(&mut self) {
        if !self.done && self.reason.is_none() {
            self.reason = Some(Reason::IdleTimeout);
            self.cell.reason(Reason::IdleTimeout);
            tracing::info!("a stream ended by idle_timeout: nothing moved in either direction");
        }
        drop(self.lease.take());
        self.close(Instant::now(), StatusClass::Server, Some(Outcome::Timeout));
    }

    /// The answer ends without its end when `stall` says that its client has stopped reading.
    pub fn watched(&mut self, stall: Arc<Stall>) {
        self.stall = Some(stall);
    }

    /// The client has stopped reading: not the app's fault.
    fn stalled(&mut self) {
        self.reason = Some(Reason::IdleTimeout);
        self.cell.reason(Reason::IdleTimeout);
        tracing::info!("a stream ended by idle_timeout: its client has stopped reading");
        self.close(Instant::now(), StatusClass::Client, None);
    }

    /// The answer broke off; its end never came.
    pub fn broken(&mut self) {
        drop(self.lease.take());
        if !self.done && self.reason.is_none() {
            self.reason = Some(Reason::UpstreamReset);
            self.cell.reason(Reason::UpstreamReset);
        }
        self.close(Instant::now(), StatusClass::Server, Some(Outcome::Reset));
    }

    fn class(&self) -> StatusClass {
        match (self.grpc, self.grpc_status, self.status) {
            (true, Some(0), _) => StatusClass::Success,
            // CANCELLED, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED,
            // FAILED_PRECONDITION, OUT_OF_RANGE, UNAUTHENTICATED blame the caller.
            (true, Some(1 | 3 | 5 | 6 | 7 | 9 | 11 | 16), _) => StatusClass::Client,
            (true, _, _) => StatusClass::Server,
            (false, _, 400..=499) => StatusClass::Client,
            (false, _, 100..=399) => StatusClass::Success,
            (false, ..) => StatusClass::Server,
        }
    }

    fn close(&mut self, now: Instant, class: StatusClass, outcome: Option<Outcome>) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.ticket = None;
        self.held = None;
        if let Some(tally) = self.tally.take() {
            tally.add(class);
        }
        let took = now.saturating_duration_since(self.started);
        if let Some(mut account) = self.account.take()
            && let Some(outcome) = outcome
        {
            account.settle(now, outcome);
        }
        self.cell.ended(class, took);
        if let Some(line) = self.log.take() {
            let (route, to) = line.route.unzip();
            line.log.write(Record {
                time: Record::now(),
                direction: line.direction.as_str(),
                service: line.service,
                client: line.client,
                upstream: line.upstream,
                method: line.method,
                path: line.path,
                status: self.status,
                grpc_status: self.grpc_status,
                reason: self.reason.map(Reason::as_str),
                caller: line.caller,
                rule: line.rule,
                route,
                to,
                tries: self.tries,
                duration_ms: took.as_secs_f64() * 1e3,
            });
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.done && self.stall.as_ref().is_some_and(|s| s.was_ended()) {
            return self.stalled();
        }
        if !self.done {
            self.cell.cancelled();
            // The client gave up: neither the app's fault nor the mesh's.
            self.close(Instant::now(), StatusClass::Client, None);
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
