//! The event loop: callers send, endpoints serve, answers come back, time jumps from event to event.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use outrigger_sidecar::policy::breaker::Pass;

use crate::rules::{Outcome, Rules};
use crate::server::{Server, State, exponential, ms};

/// Time since the beginning.
pub type Nanos = u64;
/// A try, for as long as the world lasts.
pub type TryId = u32;

/// One way over the network.
const NETWORK: Nanos = 100_000;

/// Callers, endpoints, and what is going to happen.
pub struct World {
    now: Nanos,
    order: u64,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    /// The one source of chance.
    pub rng: fastrand::Rng,
    /// Endpoints of all services.
    pub servers: Vec<Server>,
    /// Who calls.
    pub callers: Vec<Caller>,
    calls: Vec<Call>,
    tries: Vec<Try>,
    script: Vec<Option<Change>>,
    /// Ended requests of callers that nobody called.
    pub ended: Vec<Ended>,
}

type Change = Box<dyn FnOnce(&mut World)>;

/// Somebody who calls one service.
pub struct Caller {
    /// What it does about failures.
    pub rules: Box<dyn Rules>,
    /// The service's endpoints: the number of each in [`World::servers`].
    pub endpoints: Vec<usize>,
    /// Requests a second by itself; 0 when it calls only because it is called.
    pub rate: f64,
    /// Its requests fail wherever they go.
    pub poisoned: bool,
}

impl Caller {
    /// A server's place in the list, as long as it is in it.
    fn place(&self, server: usize) -> Option<usize> {
        self.endpoints.iter().position(|s| *s == server)
    }

    fn ended(&mut self, now: Nanos, server: usize, outcome: Outcome, took: Nanos) {
        if let Some(place) = self.place(server) {
            self.rules.ended(now, place, outcome, took);
        }
    }
}

/// One request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Who sent it.
    pub caller: usize,
    /// When it began.
    pub began: Nanos,
    /// How long it took.
    pub took: Nanos,
    /// Whether it has a good answer.
    pub good: bool,
    /// Tries that left the caller.
    pub tries: u32,
}

struct Call {
    caller: usize,
    began: Nanos,
    /// The try of another call that waits for this one.
    parent: Option<TryId>,
    /// Numbers of servers: lists change while a request is under way.
    tried: Vec<usize>,
    open: Vec<TryId>,
    pass: Option<Pass>,
    over: bool,
}

struct Try {
    call: usize,
    server: usize,
    sent: Nanos,
    /// When it was handed to the app.
    entered: Nanos,
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives { caller: usize },
    Sends { call: usize },
    Reaches { attempt: TryId },
    Served { attempt: TryId },
    Sheds { attempt: TryId },
    Answered { attempt: TryId, outcome: Outcome },
    TryEnds { attempt: TryId },
    CallEnds { call: usize },
    Hedges { call: usize, attempt: TryId },
    Changes { step: usize },
}

impl World {
    /// Nothing yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            rng: fastrand::Rng::with_seed(seed),
            servers: Vec::new(),
            callers: Vec::new(),
            calls: Vec::new(),
            tries: Vec::new(),
            script: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Adds an endpoint and says its number.
    pub fn server(&mut self, server: Server) -> usize {
        self.servers.push(server);
        self.servers.len() - 1
    }

    /// Adds somebody who calls `endpoints` that often a second.
    pub fn caller(&mut self, rules: Box<dyn Rules>, endpoints: &[usize], rate: f64) -> usize {
        self.callers.push(Caller {
            rules,
            endpoints: endpoints.to_vec(),
            rate,
            poisoned: false,
        });
        let caller = self.callers.len() - 1;
        if let Some(it) = self.callers.get_mut(caller) {
            it.rules.endpoints(0, endpoints);
        }
        if rate > 0.0 {
            self.next_arrival(caller);
        }
        caller
    }

    /// Lets `change` happen at that time.
    pub fn at(&mut self, when: Nanos, change: impl FnOnce(&mut Self) + 'static) {
        self.script.push(Some(Box::new(change)));
        self.push(
            when,
            Event::Changes {
                step: self.script.len() - 1,
            },
        );
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Tells all callers of a service which endpoints it has from now on.
    pub fn tell_endpoints(&mut self, callers: std::ops::Range<usize>, endpoints: &[usize]) {
        let now = self.now;
        for caller in self.callers.get_mut(callers).into_iter().flatten() {
            caller.endpoints = endpoints.to_vec();
            caller.rules.endpoints(now, endpoints);
        }
    }

    /// Goes on until `end`.
    pub fn run(&mut self, end: Nanos) {
        while let Some(Reverse((at, _, event))) = self.events.peek().copied() {
            if at > end {
                break;
            }
            self.events.pop();
            self.now = at;
            self.happens(event);
        }
        self.now = end;
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrives { caller } => {
                self.next_arrival(caller);
                self.begin(caller, None);
            }
            Event::Sends { call } => self.send(call, false),
            Event::Reaches { attempt } => self.reaches(attempt),
            Event::Served { attempt } => self.served(attempt),
            Event::Sheds { attempt } => self.sheds(attempt),
            Event::Answered { attempt, outcome } => self.try_ends(attempt, outcome),
            Event::TryEnds { attempt } => self.try_ends(attempt, Outcome::Timeout),
            Event::CallEnds { call } => self.call_ends(call, false),
            Event::Hedges { call, attempt } => {
                let waiting = self.tries.get(attempt as usize).is_some_and(|t| !t.over);
                let open = self.calls.get(call).is_some_and(|c| !c.over && c.open.len() == 1);
                if waiting && open {
                    self.send(call, true);
                }
            }
            Event::Changes { step } => {
                if let Some(change) = self.script.get_mut(step).and_then(Option::take) {
                    change(self);
                }
            }
        }
    }

    fn push(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn next_arrival(&mut self, caller: usize) {
        let Some(rate) = self.callers.get(caller).map(|c| c.rate) else {
            return;
        };
        let wait = exponential(&mut self.rng, 1e9 / rate);
        self.push(self.now + wait, Event::Arrives { caller });
    }

    fn begin(&mut self, caller: usize, parent: Option<TryId>) {
        let call = self.calls.len();
        self.calls.push(Call {
            caller,
            began: self.now,
            parent,
            tried: Vec::new(),
            open: Vec::new(),
            pass: None,
            over: false,
        });
        let Some(timeout) = self.callers.get_mut(caller).map(|c| c.rules.timeout()) else {
            return;
        };
        let now = self.now;
        let Some(pass) = self.callers.get_mut(caller).and_then(|c| c.rules.admit(now)) else {
            self.call_ends(call, false);
            return;
        };
        if let Some(call) = self.calls.get_mut(call) {
            call.pass = Some(pass);
        }
        if let Some(timeout) = timeout {
            self.push(now + timeout, Event::CallEnds { call });
        }
        self.send(call, false);
    }

    fn send(&mut self, call: usize, hedge: bool) {
        let now = self.now;
        let Some(it) = self.calls.get_mut(call).filter(|c| !c.over) else {
            return;
        };
        let Some(caller) = self.callers.get_mut(it.caller) else {
            return;
        };
        let tried: Vec<usize> = it.tried.iter().filter_map(|number| caller.place(*number)).collect();
        let picked = caller.rules.pick(now, &mut self.rng, &tried, hedge);
        let Some(server) = picked.and_then(|place| caller.endpoints.get(place).copied()) else {
            if !hedge {
                self.call_ends(call, false);
            }
            return;
        };
        it.tried.push(server);
        let attempt = TryId::try_from(self.tries.len()).unwrap_or(TryId::MAX);
        it.open.push(attempt);
        let (per_try, after) = (caller.rules.per_try(), caller.rules.hedge_after(now));
        self.tries.push(Try {
            call,
            server,
            sent: now,
            entered: now,
            over: false,
        });
        if self.servers.get(server).is_none_or(|s| s.state == State::Refusing) {
            self.push(
                now + 2 * NETWORK,
                Event::Answered {
                    attempt,
                    outcome: Outcome::Refused,
                },
            );
            return;
        }
        self.push(now + NETWORK, Event::Reaches { attempt });
        if let Some(per_try) = per_try {
            self.push(now + per_try, Event::TryEnds { attempt });
        }
        if let (Some(after), false) = (after, hedge) {
            self.push(now + after, Event::Hedges { call, attempt });
        }
    }

    /// The server's number, and whether the caller is one whose requests fail everywhere.
    fn server_of(&self, attempt: TryId) -> Option<(usize, bool)> {
        let it = self.tries.get(attempt as usize)?;
        let caller = self.callers.get(self.calls.get(it.call)?.caller)?;
        Some((it.server, caller.poisoned))
    }

    fn reaches(&mut self, attempt: TryId) {
        let now = self.now;
        let Some((number, _)) = self.server_of(attempt) else {
            return;
        };
        let Some(server) = self.servers.get_mut(number) else {
            return;
        };
        server.reached += 1;
        if let (Some(door), State::Up(_) | State::Failing) = (&mut server.door, server.state)
            && !door.enter()
        {
            let wait = if door.has_room() {
                door.queue.push_back(attempt);
                door.patience()
            } else {
                0
            };
            return self.push(now + wait, Event::Sheds { attempt });
        }
        self.at_the_app(number, attempt);
    }

    /// It waited for too long, or could not wait at all.
    fn sheds(&mut self, attempt: TryId) {
        let Some((number, _)) = self.server_of(attempt) else {
            return;
        };
        let door = self.servers.get_mut(number).and_then(|s| s.door.as_mut());
        let (Some(door), Some(it)) = (door, self.tries.get(attempt as usize)) else {
            return;
        };
        let place = door.queue.iter().position(|t| *t == attempt);
        if let Some(place) = place {
            door.queue.remove(place);
        }
        // Handed to the app meanwhile, or its caller has gone.
        if it.over || (place.is_none() && it.entered > it.sent) {
            return;
        }
        self.push(
            self.now + NETWORK,
            Event::Answered {
                attempt,
                outcome: Outcome::Overloaded,
            },
        );
    }

    fn at_the_app(&mut self, number: usize, attempt: TryId) {
        let now = self.now;
        if let Some(it) = self.tries.get_mut(attempt as usize) {
            it.entered = now;
        }
        let Some(server) = self.servers.get_mut(number) else {
            return;
        };
        match server.state {
            State::Silent => {}
            State::Refusing => self.push(
                now + NETWORK,
                Event::Answered {
                    attempt,
                    outcome: Outcome::Failed,
                },
            ),
            State::Up(_) | State::Failing if server.busy < server.places => self.serve(number, attempt),
            State::Up(_) | State::Failing if server.waiting.len() < server.queue_length => {
                server.waiting.push_back(attempt)
            }
            State::Up(_) | State::Failing => {
                self.push(
                    now + NETWORK,
                    Event::Answered {
                        attempt,
                        outcome: Outcome::Overloaded,
                    },
                );
            }
        }
    }

    fn serve(&mut self, number: usize, attempt: TryId) {
        let Some(server) = self.servers.get_mut(number) else {
            return;
        };
        server.busy += 1;
        let takes = server.service_time(&mut self.rng);
        self.push(self.now + takes, Event::Served { attempt });
    }

    /// A place is free again, whether somebody still waits for the answer or not.
    fn served(&mut self, attempt: TryId) {
        let Some((number, poisoned)) = self.server_of(attempt) else {
            return;
        };
        let Some(server) = self.servers.get_mut(number) else {
            return;
        };
        server.busy -= 1;
        server.served += 1;
        let (next, state, calls) = (server.waiting.pop_front(), server.state, server.calls);
        if let Some(next) = next {
            self.serve(number, next);
        }
        self.leaves(number, attempt, state != State::Failing);
        let gone = self.tries.get(attempt as usize).is_none_or(|t| t.over);
        match (state, calls) {
            _ if gone => {}
            (State::Up(_), Some(caller)) => self.begin(caller, Some(attempt)),
            (State::Up(_), None) if !poisoned => self.push(
                self.now + NETWORK,
                Event::Answered {
                    attempt,
                    outcome: Outcome::Good,
                },
            ),
            _ => self.push(
                self.now + NETWORK,
                Event::Answered {
                    attempt,
                    outcome: Outcome::Failed,
                },
            ),
        }
    }

    /// The door's next ones have their turn.
    fn leaves(&mut self, number: usize, attempt: TryId, well: bool) {
        let entered = self.tries.get(attempt as usize).map_or(self.now, |t| t.entered);
        let Some(door) = self.servers.get_mut(number).and_then(|s| s.door.as_mut()) else {
            return;
        };
        door.leaves(entered, self.now, !well);
        while let Some(door) = self.servers.get_mut(number).and_then(|s| s.door.as_mut()) {
            let tries = &self.tries;
            let gone = |t: TryId| tries.get(t as usize).is_none_or(|t| t.over);
            let Some(next) = door.next(gone) else { return };
            self.at_the_app(number, next);
        }
    }

    fn try_ends(&mut self, attempt: TryId, outcome: Outcome) {
        let now = self.now;
        let Some(it) = self.tries.get_mut(attempt as usize).filter(|t| !t.over) else {
            return;
        };
        it.over = true;
        let (number, server, took) = (it.call, it.server, now - it.sent);
        let Some(call) = self.calls.get_mut(number) else { return };
        call.open.retain(|t| *t != attempt);
        let Some(caller) = self.callers.get_mut(call.caller) else {
            return;
        };
        // The loser of a hedge, or of the deadline: its caller has gone.
        let outcome = if call.over { Outcome::Cancelled } else { outcome };
        caller.ended(now, server, outcome, took);
        if call.over {
            return;
        }
        if outcome == Outcome::Good {
            self.call_ends(number, true);
        } else if call.open.is_empty() {
            let tries = u32::try_from(call.tried.len()).unwrap_or(u32::MAX);
            let spent = now - call.began;
            match caller.rules.again(now, &mut self.rng, outcome, tries, spent) {
                Some(wait) => self.push(now + wait, Event::Sends { call: number }),
                None => self.call_ends(number, false),
            }
        }
    }

    fn call_ends(&mut self, number: usize, good: bool) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(number).filter(|c| !c.over) else {
            return;
        };
        call.over = true;
        let (caller, began, parent) = (call.caller, call.began, call.parent);
        let tries = u32::try_from(call.tried.len()).unwrap_or(u32::MAX);
        // Whoever still works on it is told that nobody waits.
        let outcome = if good { Outcome::Cancelled } else { Outcome::Timeout };
        for attempt in std::mem::take(&mut call.open) {
            if let (Some(it), Some(caller)) = (self.tries.get_mut(attempt as usize), self.callers.get_mut(caller)) {
                it.over = true;
                caller.ended(now, it.server, outcome, now - it.sent);
            }
        }
        if let (Some(pass), Some(caller)) = (call.pass, self.callers.get_mut(caller)) {
            caller.rules.over(now, pass, Some(!good), now - began);
        }
        let final_answer = !good
            && self
                .callers
                .get_mut(caller)
                .is_some_and(|c| c.rules.answers_are_final(tries));
        match parent {
            None => self.ended.push(Ended {
                caller,
                began,
                took: now - began,
                good,
                tries,
            }),
            Some(attempt) => {
                let outcome = match (good, final_answer) {
                    (true, _) => Outcome::Good,
                    (false, true) => Outcome::FailedFinally,
                    (false, false) => Outcome::Failed,
                };
                self.push(now + NETWORK, Event::Answered { attempt, outcome });
            }
        }
    }
}

/// What ended in a span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Requests.
    pub requests: usize,
    /// Share of good answers.
    pub success: f64,
    /// Tries a request.
    pub tries: f64,
    /// Milliseconds.
    pub p50: f64,
    /// Milliseconds.
    pub p99: f64,
}

impl World {
    /// Figures of the requests that began in `span` and for which `which` is true.
    #[must_use]
    pub fn figures(&self, span: std::ops::Range<Nanos>, which: impl Fn(&Ended) -> bool) -> Figures {
        let chosen: Vec<&Ended> = self
            .ended
            .iter()
            .filter(|e| span.contains(&e.began) && which(e))
            .collect();
        let mut took: Vec<Nanos> = chosen.iter().map(|e| e.took).collect();
        took.sort_unstable();
        let at = |share: f64| {
            took.get(((took.len() as f64) * share) as usize)
                .map_or(0.0, |n| *n as f64 / ms(1.0) as f64)
        };
        let n = chosen.len().max(1) as f64;
        Figures {
            requests: chosen.len(),
            success: chosen.iter().filter(|e| e.good).count() as f64 / n,
            tries: chosen.iter().map(|e| f64::from(e.tries)).sum::<f64>() / n,
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}
