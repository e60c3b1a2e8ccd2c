//! What is promised of rates that instances keep together: the control plane's book and the sidecars' buckets, in virtual
//! time, while instances come, go, are killed and lose sight of the control plane, which itself ends and begins again.
//!
//! Only messages and registrations are modelled: a delay, in order, lost with the stream.

#![expect(clippy::expect_used, reason = "a test and its helpers")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use outrigger_control_plane::quota::Book;
use outrigger_control_plane::registry::Sender;
use outrigger_proto::model::{EndpointName, Proxy, RateLimit, RateLimitBy, ServiceName};
use outrigger_proto::routes::Asked;
use outrigger_proto::wire::agent;
use outrigger_sidecar::observe::Stats;
use outrigger_sidecar::protect::{Protection, Quotas};

/// Milliseconds.
type Millis = u64;

const STEP: Millis = 10;
const TURN: Millis = 1000;
const LEASE: Millis = 5000;
/// After a start nothing lapses for so long.
const HOLD: Millis = LEASE + 2000;
/// A message takes at most this long.
const SLOW: Millis = 300;
/// So long after it is connected an instance is in the book, and whoever has to give up something has done so.
const SETTLED: Millis = 3 * TURN + 4 * SLOW;
const RATE: u64 = 100;

fn service() -> ServiceName {
    "default/user".parse().expect("valid")
}

/// A sidecar.
struct Instance {
    name: EndpointName,
    quotas: Quotas,
    protection: Protection,
    /// None while it does not see the control plane.
    session: Option<Session>,
    /// Requests a second that come to it.
    demand: f64,
    owed: f64,
    /// What of its share the control plane may not know: all at first, and again when it lapsed.
    loan: u32,
    last_share: u32,
    look_at: Millis,
}

struct Session {
    id: u64,
    since: Millis,
    seen: u64,
    up: VecDeque<(Millis, agent::Asked)>,
    down: VecDeque<(Millis, agent::Shares)>,
}

impl Instance {
    fn new(name: EndpointName, burst: u32, by: RateLimitBy, now: Instant) -> Self {
        let mut proxy = Proxy::new(service());
        proxy.rate_limits = vec![RateLimit {
            name: "all".into(),
            matches: Vec::new(),
            requests: RATE,
            period: Duration::from_secs(1),
            burst,
            by,
            mesh: true,
        }];
        let quotas = Quotas::new(true);
        let protection = Protection::new(&proxy, None, &quotas, &Stats::default(), now);
        let protection = protection.expect("valid").expect("a limit");
        quotas.replace(protection.quotas());
        Self {
            name,
            quotas,
            protection,
            session: None,
            demand: 0.0,
            owed: 0.0,
            loan: RateLimit::START,
            last_share: 0,
            look_at: 0,
        }
    }

    fn share(&self) -> u32 {
        self.quotas.standing()[0].share
    }

    fn say(&mut self, now: Millis, rng: &mut Rng) {
        let standing = self.quotas.standing();
        let Some(session) = &mut self.session else { return };
        let limits = standing.iter().map(|s| agent::Demand {
            limit: s.limit.to_string(),
            asked: s.asked,
            share: s.share,
        });
        let asked = agent::Asked {
            limits: limits.collect(),
            seen: session.seen,
        };
        let after = session.up.back().map_or(0, |(at, _)| *at);
        session.up.push_back((after.max(now + rng.u64(0..SLOW)), asked));
    }

    /// Takes what has come down, and looks what is asked once a second.
    fn live(&mut self, now: Millis, at: Instant, rng: &mut Rng) {
        while let Some((_, shares)) = self
            .session
            .as_mut()
            .and_then(|s| s.down.pop_front_if(|(when, _)| *when <= now))
        {
            for share in &shares.limits {
                self.quotas.set(&share.limit, share.share, at);
            }
            if let Some(session) = &mut self.session {
                session.seen = shares.serial;
            }
            self.say(now, rng);
        }
        if self.look_at <= now {
            self.look_at = now + 1000;
            self.quotas.measure(at);
            self.say(now, rng);
        }
    }

    /// How many of those that come now pass.
    fn pass(&mut self, at: Instant) -> f64 {
        self.owed += self.demand * STEP as f64 / 1000.0;
        let field = |name: &str| (name == "x-user").then_some(&b"ann"[..]);
        let asked = Asked {
            host: None,
            path: "/",
            query: None,
            method: "GET",
            field: &field,
        };
        let mut passed = 0.0;
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            passed += f64::from(u8::from(self.protection.count(&asked, None, at).is_ok()));
        }
        passed
    }
}

/// A mesh.
struct Mesh {
    rng: Rng,
    began: Instant,
    now: Millis,
    by: RateLimitBy,
    burst: u32,
    /// Nothing happens by chance.
    calm: bool,
    instances: Vec<Instance>,
    names: u64,
    sessions: u64,
    /// None while there is no control plane.
    book: Option<Book>,
    /// Since when the control plane is sure who is there.
    sure: Millis,
    /// Until when each is registered, as the store has it.
    registered: BTreeMap<EndpointName, Millis>,
}

impl Mesh {
    fn new(seed: u64, burst: u32, by: RateLimitBy) -> Self {
        let mut mesh = Self {
            rng: Rng::with_seed(seed),
            began: Instant::now(),
            now: 0,
            by,
            burst,
            calm: false,
            instances: Vec::new(),
            names: 0,
            sessions: 0,
            book: None,
            sure: 0,
            registered: BTreeMap::new(),
        };
        mesh.begin();
        mesh
    }

    fn at(&self) -> Instant {
        self.began + Duration::from_millis(self.now)
    }

    /// A control plane that knows what is stored.
    fn begin(&mut self) {
        let mut book = Book::new(LEASE);
        let by_key = self.by != RateLimitBy::All;
        book.set([(service(), "all".to_owned(), by_key)]);
        self.book = Some(book);
        self.sure = self.now + HOLD;
        for until in self.registered.values_mut() {
            *until = self.now + HOLD;
        }
    }

    fn join(&mut self) {
        self.names += 1;
        let name = format!("default/user/u{}", self.names).parse().expect("valid");
        let instance = Instance::new(name, self.burst, self.by.clone(), self.at());
        self.instances.push(instance);
    }

    fn connect(&mut self, i: usize) {
        if self.book.is_none() || self.instances[i].session.is_some() {
            return;
        }
        self.sessions += 1;
        let (id, since) = (self.sessions, self.now);
        let (up, down) = (VecDeque::new(), VecDeque::new());
        let instance = &mut self.instances[i];
        instance.session = Some(Session {
            id,
            since,
            seen: 0,
            up,
            down,
        });
        instance.say(self.now, &mut self.rng);
        self.registered.insert(instance.name.clone(), self.now + LEASE);
    }

    fn cut(&mut self, i: usize) {
        let instance = &mut self.instances[i];
        if let (Some(session), Some(book)) = (instance.session.take(), &mut self.book) {
            book.close(&sender(&instance.name, session.id));
        }
    }

    /// Chance does something.
    fn happen(&mut self) {
        let n = self.instances.len();
        let i = self.rng.usize(0..n.max(1));
        match self.rng.u8(0..100) {
            0..15 if n < 8 => self.join(),
            // Killed.
            15..22 if n > 1 => {
                self.cut(i);
                self.instances.remove(i);
            }
            // It leaves.
            22..30 if n > 1 => {
                self.cut(i);
                let gone = self.instances.remove(i);
                self.registered.remove(&gone.name);
            }
            30..40 if n > 0 => self.cut(i),
            40..42 => {
                (0..n).for_each(|i| self.cut(i));
                self.book = None;
            }
            42..55 if self.book.is_none() => self.begin(),
            55..90 if n > 0 => {
                let most = *self.rng.choice(&[0.0, 10.0, 80.0, 1000.0]).expect("some");
                self.instances[i].demand = most * self.rng.f64();
            }
            _ => {}
        }
    }

    /// One step; how many requests pass.
    fn step(&mut self) -> f64 {
        self.now += STEP;
        let (now, at) = (self.now, self.at());
        if !self.calm && self.rng.u64(0..300) == 0 {
            self.happen();
        }
        for i in 0..self.instances.len() {
            if !self.calm && self.rng.u64(0..100) == 0 {
                self.connect(i);
            }
        }
        if let Some(book) = &mut self.book {
            for instance in &mut self.instances {
                let Some(session) = &mut instance.session else { continue };
                self.registered.insert(instance.name.clone(), now + LEASE);
                while let Some((_, asked)) = session.up.pop_front_if(|(when, _)| *when <= now) {
                    book.hear(now, &sender(&instance.name, session.id), &asked);
                }
            }
            self.registered.retain(|_, until| *until > now);
            if now % TURN == 0 {
                let names: BTreeSet<_> = self.registered.keys().cloned().collect();
                for tell in book.turn(now, &[(service(), names)].into(), now < self.sure) {
                    let to = self.instances.iter_mut().find(|i| i.name == tell.to);
                    let session = to.and_then(|i| i.session.as_mut()).filter(|s| s.id == tell.session);
                    if let Some(session) = session {
                        let after = session.down.back().map_or(0, |(at, _)| *at);
                        let when = after.max(now + self.rng.u64(0..SLOW));
                        session.down.push_back((when, tell.shares));
                    } else {
                        book.untold(&tell);
                    }
                }
            }
        }
        let sure = self.sure;
        let mut passed = 0.0;
        for instance in &mut self.instances {
            instance.live(now, at, &mut self.rng);
            passed += instance.pass(at);
            let settled = instance
                .session
                .as_ref()
                .is_some_and(|s| s.since.max(sure) + SETTLED < now);
            if settled {
                instance.loan = 0;
            } else if !self.registered.contains_key(&instance.name) {
                instance.loan = instance.share();
            }
        }
        passed
    }
}

fn sender(name: &EndpointName, session: u64) -> Sender {
    Sender {
        name: name.clone(),
        epoch: 1,
        session,
    }
}

/// The most by which more passed than was promised, in any span of the run.
fn exceeded(mut mesh: Mesh, mut drive: impl FnMut(&mut Mesh)) -> f64 {
    (0..3).for_each(|_| mesh.join());
    let (burst, by) = (mesh.burst, mesh.by.clone());
    let whole = f64::from(RateLimit::WHOLE);
    // What passed less what may have passed at the full rate; the least that was ever allowed before; the most beyond it.
    let (mut level, mut least, mut most, mut surplus) = (0.0_f64, f64::INFINITY, 0.0_f64, 0.0);
    let mut known = BTreeSet::new();
    for _ in 0..20_000 {
        level -= RATE as f64 * (1.0 + surplus) * STEP as f64 / 1000.0;
        drive(&mut mesh);
        let passed = mesh.step();
        let given: f64 = mesh.instances.iter().map(|i| f64::from(i.share())).sum();
        let loans: f64 = mesh.instances.iter().map(|i| f64::from(i.loan)).sum();
        surplus = (given / whole - 1.0).max(0.0);
        assert!(
            given <= whole + loans,
            "{given} given, {loans} of it on loan, at {}",
            mesh.now
        );
        for instance in &mut mesh.instances {
            let share = f64::from(instance.share());
            if known.insert(instance.name.clone()) {
                // One request, or where each key has a bucket, a bucket of it.
                level -= if by == RateLimitBy::All {
                    1.0
                } else {
                    (f64::from(burst) * share / whole).max(1.0)
                };
            } else if by != RateLimitBy::All && instance.last_share != instance.share() {
                // A share that grows brings its part of the burst; and there are no parts of requests.
                let more = (share - f64::from(instance.last_share)).max(0.0);
                level -= f64::from(burst) * more / whole + 1.0;
            }
            instance.last_share = instance.share();
        }
        level += passed;
        most = most.max(level - least);
        let allowed = f64::from(burst) * (1.0 + surplus) + mesh.instances.len() as f64;
        least = least.min(level + allowed);
    }
    most
}

#[test]
fn together_they_let_through_the_rate_and_the_burst() {
    for seed in 0..60 {
        let burst = [1, 20, 100, 1000][seed as usize % 4];
        let more = exceeded(Mesh::new(seed, burst, RateLimitBy::All), |_| ());
        assert!(more <= 0.0, "{more} too many with seed {seed}, burst {burst}");
    }
}

/// Buckets that are full where nobody asks are no second burst when the load moves there.
#[test]
fn load_that_moves_finds_one_burst() {
    for seed in 0..3 {
        let mut mesh = Mesh::new(seed, 10_000, RateLimitBy::All);
        mesh.calm = true;
        let more = exceeded(mesh, |mesh| {
            (0..3).for_each(|i| mesh.connect(i));
            // All buckets fill. Then each instance in turn is asked for so little that its share grows while its bucket
            // stays full, and then for much more than the rate.
            for (i, from) in (0..3).zip([120_000, 140_000, 160_000]) {
                mesh.instances[i].demand = match mesh.now.checked_sub(from) {
                    Some(0..8000) => 80.0,
                    Some(8000..11_000) => 5000.0,
                    _ => 0.0,
                };
            }
        });
        assert!(more <= 0.0, "{more} too many with seed {seed}");
    }
}

#[test]
fn each_key_has_the_rate_and_what_shares_that_grow_bring() {
    for seed in 0..30 {
        let burst = [1, 20, 100][seed as usize % 3];
        let more = exceeded(Mesh::new(seed, burst, RateLimitBy::Header("x-user".into())), |_| ());
        assert!(more <= 0.0, "{more} too many with seed {seed}, burst {burst}");
    }
}

/// With one busy instance of three nearly the whole rate passes there, and goes on to when the control plane is away.
#[test]
fn the_rate_goes_where_it_is_asked() {
    for seed in 0..5 {
        let mut mesh = Mesh::new(seed, 10, RateLimitBy::All);
        mesh.calm = true;
        (0..3).for_each(|_| mesh.join());
        (0..3).for_each(|i| mesh.connect(i));
        mesh.instances[1].demand = 500.0;
        let rate = |mesh: &mut Mesh, seconds: u64| {
            let passed: f64 = (0..seconds * 1000 / STEP).map(|_| mesh.step()).sum();
            passed / seconds as f64
        };
        rate(&mut mesh, 8);
        let busy = rate(&mut mesh, 20);
        assert!(busy > 0.9 * RATE as f64, "{busy} with seed {seed}");
        (0..3).for_each(|i| mesh.cut(i));
        mesh.book = None;
        let alone = rate(&mut mesh, 20);
        assert!(alone > 0.9 * RATE as f64, "{alone} with seed {seed}");
        // Nobody can tell the others that there is something for them now.
        mesh.instances[1].demand = 0.0;
        mesh.instances[0].demand = 500.0;
        let other = rate(&mut mesh, 20);
        assert!((1.0..0.05 * RATE as f64).contains(&other), "{other} with seed {seed}");
        mesh.begin();
        (0..3).for_each(|i| mesh.connect(i));
        rate(&mut mesh, 8);
        let again = rate(&mut mesh, 20);
        assert!(again > 0.9 * RATE as f64, "{again} with seed {seed}");
    }
}
