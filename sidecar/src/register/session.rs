//! The session's loop: what changed here goes up, what is asked there is done.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use outrigger_proto::features;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::agent::agent_client::AgentClient;
use outrigger_proto::wire::agent::{
    Answer, Applied, Change, Changes, Check, Down, Hello, Up, answer, down::Body as DownBody, up::Body,
};
use outrigger_proto::wire::mesh::{Endpoint, EndpointPort};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::LeaseState;
use super::share::Sharing;
use super::talk::{Fact, Retry, Talk};
use crate::config::Admin;
use crate::contain::{Place, Task};
use crate::discover::link::{Event, Link, bounded};
use crate::discover::status::Outcome;
use crate::drain::Phase;
use crate::guard;
use crate::health::{AppState, Life};
use crate::shared::Shared;

/// Before a refused registration is tried again.
const RETRY: Duration = Duration::from_secs(3);
/// How long `Hello` waits for the admin listener.
const ADMIN: Duration = Duration::from_secs(1);

struct Session<'a> {
    shared: &'a Shared,
    talk: Talk,
    last_id: u64,
    /// True once this stream said Hello.
    greeted: bool,
    /// True while the control plane takes what is said: what is told once is not said to nobody.
    heard: bool,
    renew_at: Option<Instant>,
    retry_at: Option<Instant>,
    applied: BTreeMap<(ResourceType, String), Outcome>,
    /// Changes that were dropped, as far as the control plane was told.
    dropped: u64,
    /// Rate limits that all instances keep together.
    sharing: Sharing,
}

pub(super) async fn run(shared: &Shared, url: &str) {
    // `discover` says what is wrong with the address.
    let Ok(channel) = shared.control_plane.channel(url, &shared.identity) else {
        return;
    };
    let admin = admin_address(shared).await;
    let mut task = Task::new(Place::Session, shared.stats.clone());
    let mut session = Session {
        shared,
        talk: Talk::new(endpoint(shared)),
        last_id: 0,
        greeted: false,
        heard: false,
        renew_at: None,
        retry_at: None,
        applied: BTreeMap::new(),
        dropped: 0,
        sharing: Sharing::new(shared.quotas.clone()),
    };
    // What was registered is remembered over a panic; the stream begins afresh.
    while task.again(converse(&mut session, &channel, &admin)).await {
        drop(session.end("the session panicked".into()));
    }
}

async fn converse(session: &mut Session<'_>, channel: &Channel, admin: &str) {
    let shared = session.shared;
    let channel = channel.clone();
    let mut link = Link::new(move |ups| {
        let mut client = AgentClient::new(channel.clone());
        Box::pin(bounded(async move { client.session(ups).await }))
    });
    let mut app = shared.app.watch();
    let mut drain = shared.drain.watch();
    let mut resources = shared.discovery.changes();
    let mut quotas = shared.quotas.changes();
    loop {
        // Every sender lives in `shared`, so the watches cannot end. All arms are cancel safe.
        let said = tokio::select! {
            _ = app.changed() => session.facts(),
            _ = drain.changed() => session.facts(),
            _ = resources.changed() => session.versions(),
            () = shared.events.some(), if session.heard => session.changes(),
            _ = quotas.changed() => session.number_one(|s| s.sharing.changed()),
            () = at(session.sharing.due()) => session.number_one(|s| s.sharing.measured()),
            () = at(session.renew_at) => session.renew(),
            () = at(session.retry_at) => {
                session.retry_at = None;
                session.facts()
            }
            event = link.next() => match event {
                Event::Start => session.start(admin),
                Event::Open => {
                    session.heard = true;
                    Vec::new()
                }
                Event::Message(down) => session.take(down),
                Event::End(why) => session.end(why),
            },
        };
        link.send(said);
    }
}

impl Session<'_> {
    fn start(&mut self, admin: &str) -> Vec<Up> {
        self.talk.restart();
        self.applied.clear();
        (self.last_id, self.greeted, self.heard) = (0, true, false);
        (self.renew_at, self.retry_at) = (None, None);
        self.sharing.end();
        let bootstrap = &self.shared.bootstrap;
        let hello = Body::Hello(Hello {
            namespace: bootstrap.namespace.clone(),
            service: bootstrap.service.clone(),
            instance: bootstrap.instance.clone(),
            epoch: bootstrap.epoch,
            features: features::spoken(self.shared.identity.is_on()),
            version: env!("CARGO_PKG_VERSION").into(),
            admin: admin.into(),
        });
        let mut said = self.number(vec![hello]);
        said.extend(self.facts());
        said.extend(self.versions());
        said
    }

    fn end(&mut self, why: String) -> Vec<Up> {
        (self.greeted, self.heard) = (false, false);
        (self.renew_at, self.retry_at) = (None, None);
        self.sharing.end();
        if matches!(self.shared.lease.now().0, LeaseState::Held | LeaseState::Asked) {
            self.shared.lease.set(LeaseState::Disconnected, why);
        }
        Vec::new()
    }

    /// Says what changed of the app and of our own leaving.
    fn facts(&mut self) -> Vec<Up> {
        // A workload without ports only calls others: there is nothing to register.
        if !self.greeted || self.shared.bootstrap.inbound.is_empty() {
            return Vec::new();
        }
        let app = self.shared.app.now();
        let fact = fact(&app, self.shared.drain.phase());
        let bodies = self.talk.tell(&fact, &checks(&app));
        for body in &bodies {
            match body {
                Body::Register(_) => self.shared.lease.set(LeaseState::Asked, ""),
                Body::Health(h) if !h.healthy => self.shared.lease.set(LeaseState::Withdrawn, h.reason.clone()),
                Body::Leaving(l) => {
                    tracing::info!(reason = %l.reason, "leaving the registry");
                    self.shared.lease.set(LeaseState::Withdrawn, l.reason.clone());
                }
                _ => {}
            }
        }
        if !bodies.is_empty() {
            self.schedule();
        }
        self.number(bodies)
    }

    /// Says which versions run here, once each.
    fn versions(&mut self) -> Vec<Up> {
        if !self.greeted {
            return Vec::new();
        }
        let now = self.shared.discovery.resources();
        let mut bodies = Vec::new();
        for ((kind, name), outcome) in &now {
            let before = self.applied.get(&(*kind, name.clone()));
            if before == Some(outcome) {
                continue;
            }
            let said = |version: &str, rejection: String| {
                Body::Applied(Applied {
                    type_url: kind.url().into(),
                    resource: name.clone(),
                    version: version.into(),
                    rejection,
                })
            };
            if !outcome.version.is_empty() && before.is_none_or(|b| b.version != outcome.version) {
                bodies.push(said(&outcome.version, String::new()));
            }
            if let Some((version, why)) = &outcome.refused {
                bodies.push(said(version, why.to_string()));
            }
        }
        // A resource without version or refusal is one that is gone.
        let gone = self.applied.keys().filter(|key| !now.contains_key(*key));
        bodies.extend(gone.map(|(kind, name)| {
            Body::Applied(Applied {
                type_url: kind.url().into(),
                resource: name.clone(),
                ..Default::default()
            })
        }));
        self.applied = now;
        self.number(bodies)
    }

    /// Says what became of breakers and endpoints. While there is no stream they wait in their queue, which is bounded.
    fn changes(&mut self) -> Vec<Up> {
        let events = &self.shared.events;
        let now = SystemTime::now();
        let change = |event: guard::events::Event| Change {
            service: event.service.to_string(),
            endpoint: event.endpoint.unwrap_or_default(),
            what: event.what.as_str().into(),
            cause: event.cause,
            age_ms: ms(now.duration_since(event.at).unwrap_or_default()),
            next_ms: event.next.map_or(0, ms),
        };
        let changes = events.take().into_iter().map(change).collect();
        let dropped = events.dropped();
        let since = dropped - std::mem::replace(&mut self.dropped, dropped);
        self.number(vec![Body::Changes(Changes {
            changes,
            dropped: since,
        })])
    }

    fn renew(&mut self) -> Vec<Up> {
        self.schedule();
        self.number(vec![Talk::renew()])
    }

    fn schedule(&mut self) {
        self.renew_at = self.talk.renewal().map(|every| Instant::now() + every);
    }

    /// Does what the control plane says.
    fn take(&mut self, down: Down) -> Vec<Up> {
        let answered = |result| {
            vec![Body::Answer(Answer {
                of: down.id,
                result: Some(result),
            })]
        };
        let bodies = match down.body {
            Some(DownBody::Welcome(welcome)) => {
                tracing::info!(version = %welcome.control_plane_version, "the control plane welcomes this sidecar");
                let divides = welcome.features.iter().any(|f| f == features::QUOTA);
                divides.then(|| self.sharing.begin()).flatten().into_iter().collect()
            }
            Some(DownBody::Shares(shares)) => self.sharing.take(&shares).into_iter().collect(),
            Some(DownBody::Registered(registered)) => {
                let before = self.shared.lease.now().0;
                let state = self
                    .talk
                    .registered(Duration::from_millis(u64::from(registered.lease_ms)));
                if state == LeaseState::Held {
                    if before != LeaseState::Held {
                        tracing::info!(lease_ms = registered.lease_ms, "registered");
                    }
                    self.shared.lease.set(state, "");
                }
                // A renewal answered is the moment from which the next third counts.
                self.schedule();
                Vec::new()
            }
            Some(DownBody::Refused(refused)) => return self.refused(refused.reason),
            // Nothing that we ask is answered this way yet.
            Some(DownBody::Answer(_)) => Vec::new(),
            Some(DownBody::DrainNow(_)) => {
                tracing::info!("the control plane asks this sidecar to drain");
                self.shared.drain_requested.notify_one();
                answered(answer::Result::Done(true))
            }
            None => answered(answer::Result::Unsupported(
                "this sidecar does not know that message".into(),
            )),
        };
        self.number(bodies)
    }

    fn refused(&mut self, reason: String) -> Vec<Up> {
        match self.talk.refused() {
            Retry::Now => self.facts(),
            Retry::Later => {
                if self.shared.lease.now().0 != LeaseState::Refused {
                    tracing::warn!(%reason, "the control plane refused the registration");
                }
                self.shared.lease.set(LeaseState::Refused, reason);
                self.renew_at = None;
                self.retry_at = Some(Instant::now() + RETRY);
                Vec::new()
            }
            Retry::Never => {
                self.renew_at = None;
                Vec::new()
            }
        }
    }

    fn number_one(&mut self, say: impl FnOnce(&mut Self) -> Option<Body>) -> Vec<Up> {
        let said = say(self);
        self.number(said.into_iter().collect())
    }

    fn number(&mut self, bodies: Vec<Body>) -> Vec<Up> {
        bodies
            .into_iter()
            .map(|body| {
                self.last_id += 1;
                Up {
                    id: self.last_id,
                    body: Some(body),
                }
            })
            .collect()
    }
}

fn fact(app: &AppState, phase: Phase) -> Fact {
    if phase >= Phase::Leaving {
        return Fact::Leaving("the sidecar drains".into());
    }
    match app.life {
        Life::Starting => Fact::Starting,
        Life::Well => Fact::Well,
        Life::Failing => Fact::Failing(app.reason.clone()),
        Life::Exited => Fact::Leaving(app.reason.clone()),
    }
}

fn checks(app: &AppState) -> Vec<Check> {
    app.dependencies
        .iter()
        .map(|c| Check {
            name: c.name.clone(),
            ok: c.ok,
            reason: c.reason.clone(),
        })
        .collect()
}

/// What is registered: where callers find the sidecar, under the app's port names.
fn endpoint(shared: &Shared) -> Endpoint {
    let bootstrap = &shared.bootstrap;
    Endpoint {
        name: format!("{}/{}", shared.name, bootstrap.instance),
        address: bootstrap.address.to_string(),
        ports: bootstrap
            .inbound
            .iter()
            .map(|i| EndpointPort {
                name: i.name.clone(),
                port: u32::from(i.listen.port()),
                mesh_port: i.mesh_listen.map_or(0, |at| u32::from(at.port())),
            })
            .collect(),
        epoch: bootstrap.epoch,
        labels: bootstrap.labels.clone(),
        weight: bootstrap.weight,
        capabilities: features::spoken(shared.identity.is_on()),
        meshed: true,
    }
}

/// Where the admin listener is, once it is bound.
async fn admin_address(shared: &Shared) -> String {
    let mut admin = shared.admin.subscribe();
    let bound = tokio::time::timeout(ADMIN, admin.wait_for(Option::is_some)).await;
    match (
        bound.ok().and_then(Result::ok).and_then(|a| a.clone()),
        &shared.bootstrap.admin,
    ) {
        (Some(bound), _) => bound.to_string(),
        // Not known before it is bound.
        (None, Admin::Tcp(address)) if address.port() == 0 => String::new(),
        (None, asked) => asked.to_string(),
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
