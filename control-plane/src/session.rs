//! The facts that sidecars send up: registrations, health, leaving, applied versions.
//!
//! One message up gets at most one message down, and the next one is read only when that was taken,
//! so nothing queues. A message that this version does not know is answered `unsupported`. The end
//! of a stream is not a withdrawal: the lease runs on. A workload speaks for its own service only.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream as Messages;
use futures_util::stream::try_unfold;
use outrigger_proto::features;
use outrigger_proto::model::{Endpoint, EndpointName, ServiceName};
use outrigger_proto::wire::agent::{self, Down, Up, answer, down, up};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use crate::events::Event;
use crate::identity::Asker;
use crate::plane::Plane;
use crate::registry::{Sender, SessionId};
use crate::sidecars::Command;
use crate::stop::Stop;

/// Requests down that may be unanswered at once.
const MAX_COMMANDS: usize = 16;
/// Changes that one message may tell.
const MAX_CHANGES: usize = 256;
/// Bytes of each text in a change.
const MAX_TEXT: usize = 512;
/// A day: no change is older, and no probe further ahead.
const MAX_SPAN_MS: u64 = 24 * 60 * 60 * 1000;
/// What a change can be.
const WHATS: [&str; 7] = [
    "breaker_opened",
    "breaker_probing",
    "breaker_closed",
    "endpoint_ejected",
    "endpoint_returned",
    "deadline_dropped",
    "deadline_passed_on",
];

/// The service.
#[derive(Debug, Clone)]
pub struct Agent {
    /// What the sidecars change.
    pub plane: Arc<Plane>,
    /// When every stream ends.
    pub stop: Stop,
}

#[tonic::async_trait]
impl agent::agent_server::Agent for Agent {
    type SessionStream = Pin<Box<dyn Messages<Item = Result<Down, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<Up>>) -> Result<Response<Self::SessionStream>, Status> {
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let asker = request.extensions().get::<Asker>().cloned().unwrap_or_default();
        if let Asker::Workload { serial, .. } = &asker {
            let (authority, serial) = (Arc::clone(&self.plane.authority), serial.clone());
            // Waits for the disk the first time that a leaf is shown. A failure is told as an event.
            let shown = tokio::task::spawn_blocking(move || authority.shown(&serial).is_ok());
            let _told = shown.await.is_err();
        }
        let open = Open {
            session: Session::new(Arc::clone(&self.plane), asker, commands),
            ups: request.into_inner(),
            commands: receiver,
            stop: self.stop.clone(),
        };
        let downs = try_unfold(open, |mut open| async move {
            let next = open.next().await?;
            Ok(next.map(|down| (down, open)))
        });
        Ok(Response::new(Box::pin(downs)))
    }
}

struct Open {
    session: Session,
    ups: Streaming<Up>,
    commands: mpsc::Receiver<Command>,
    stop: Stop,
}

impl Open {
    async fn next(&mut self) -> Result<Option<Down>, Status> {
        loop {
            let room = self.session.waiting.len() < MAX_COMMANDS;
            // Every arm is cancel safe: nothing is taken before an arm is ready.
            tokio::select! {
                () = self.stop.stopped() => return Ok(None),
                Some(command) = self.commands.recv(), if room => return Ok(Some(self.session.command(command))),
                up = self.ups.message() => match up? {
                    Some(up) => if let Some(down) = self.session.take(up)? {
                        return Ok(Some(down));
                    },
                    None => return Ok(None),
                },
            }
        }
    }
}

/// One session; dropping it is the end of the connection.
struct Session {
    plane: Arc<Plane>,
    asker: Asker,
    id: SessionId,
    sender: Option<Sender>,
    commands: mpsc::Sender<Command>,
    waiting: BTreeMap<u64, oneshot::Sender<answer::Result>>,
    last_down: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(sender) = &self.sender {
            let now = self.plane.now();
            self.plane.sidecars.lock().close(now, &sender.name, self.id);
            self.plane.quotas.lock().close(sender);
        }
    }
}

impl Session {
    fn new(plane: Arc<Plane>, asker: Asker, commands: mpsc::Sender<Command>) -> Self {
        Self {
            id: plane.next_session(),
            plane,
            asker,
            sender: None,
            commands,
            waiting: BTreeMap::new(),
            last_down: 0,
        }
    }

    /// Takes one message up; answers with the message down that it asks for.
    fn take(&mut self, up: Up) -> Result<Option<Down>, Status> {
        let Some(body) = up.body else {
            let text = "this control plane does not know that message".to_owned();
            return Ok(Some(self.answer(up.id, answer::Result::Unsupported(text))));
        };
        let Some(sender) = self.sender.clone() else {
            return match body {
                up::Body::Hello(hello) => self.hello(hello).map(Some),
                _ => Err(Status::failed_precondition("the first message must be Hello")),
            };
        };
        let now = self.plane.now();
        if let Some(sidecar) = self.plane.sidecars.lock().current(&sender.name, self.id) {
            sidecar.heard = now;
        }
        Ok(match body {
            up::Body::Hello(_) => {
                let text = "Hello is said once a session".to_owned();
                Some(self.answer(up.id, answer::Result::Failed(text)))
            }
            up::Body::Register(register) => Some(self.register(&sender, register)),
            up::Body::Renew(_) => {
                let renewed = self.plane.renew(&sender);
                Some(self.lease(renewed))
            }
            up::Body::Health(health) => Some(self.health(&sender, health)),
            up::Body::Leaving(leaving) => {
                let left = self.plane.withdraw(&sender, &leaving.reason);
                left.err().map(|refusal| self.refuse(refusal.to_string()))
            }
            up::Body::Applied(applied) => {
                if let Some(sidecar) = self.plane.sidecars.lock().current(&sender.name, self.id) {
                    sidecar.note(applied);
                }
                None
            }
            up::Body::Changes(changes) => {
                self.changes(&sender, changes);
                None
            }
            up::Body::Asked(asked) => {
                self.plane.quotas.lock().hear(now, &sender, &asked);
                None
            }
            up::Body::Answer(answer) => {
                if let (Some(reply), Some(result)) = (self.waiting.remove(&answer.of), answer.result) {
                    // Whoever asked may have given up waiting.
                    let _gone = reply.send(result).is_err();
                }
                None
            }
        })
    }

    /// Keeps what became of breakers and endpoints for people. Whatever is too much is counted with what the sidecar lost.
    fn changes(&self, sender: &Sender, told: agent::Changes) {
        let caller = sender.name.to_string();
        let now = jiff::Timestamp::now();
        let span = |ms: u64| jiff::SignedDuration::from_millis(i64::try_from(ms.min(MAX_SPAN_MS)).unwrap_or_default());
        let mut lost = told.dropped;
        for (i, change) in told.changes.into_iter().enumerate() {
            let service = change.service.parse::<ServiceName>();
            let short = [&change.endpoint, &change.cause]
                .iter()
                .all(|text| text.len() <= MAX_TEXT);
            let (Ok(service), true, true) = (service, short && WHATS.contains(&change.what.as_str()), i < MAX_CHANGES)
            else {
                lost = lost.saturating_add(1);
                continue;
            };
            // By this clock: the sidecar's may say something else.
            let at = now - span(change.age_ms);
            let said = |text: String| (!text.is_empty()).then_some(text);
            let event = Event::TrafficChanged {
                service: service.to_string(),
                endpoint: said(change.endpoint),
                caller: caller.clone(),
                what: change.what,
                cause: said(change.cause),
                next_probe: (change.next_ms > 0).then(|| (at + span(change.next_ms)).to_string()),
            };
            self.plane.events.record_at(event, at);
        }
        if lost > 0 {
            self.plane.events.record(Event::ChangesLost { caller, count: lost });
        }
    }

    fn command(&mut self, command: Command) -> Down {
        let down = self.down(command.body);
        if let Some(reply) = command.reply {
            self.waiting.insert(down.id, reply);
        }
        down
    }

    fn hello(&mut self, hello: agent::Hello) -> Result<Down, Status> {
        let name = format!("{}/{}/{}", hello.namespace, hello.service, hello.instance);
        let name: EndpointName = name
            .parse()
            .map_err(|e: outrigger_proto::model::FieldError| Status::invalid_argument(e.to_string()))?;
        self.asker.is_service(name.service.as_str()).map_err(|who| {
            let what = format!("wanted to speak for {name}");
            let status = Status::permission_denied(format!("{who} {what}"));
            self.plane.events.record(Event::Refused { who, what });
            status
        })?;
        let epoch = hello.epoch;
        let now = self.plane.now();
        let commands = self.commands.clone();
        self.plane.sidecars.lock().open(now, &name, hello, self.id, commands);
        let session = self.id;
        self.sender = Some(Sender { name, epoch, session });
        Ok(self.down(down::Body::Welcome(agent::Welcome {
            control_plane_version: env!("CARGO_PKG_VERSION").to_owned(),
            features: features::ALL.iter().map(ToString::to_string).collect(),
        })))
    }

    fn register(&mut self, sender: &Sender, register: agent::Register) -> Down {
        let Some(wire) = register.endpoint else {
            return self.refuse("endpoint: missing".to_owned());
        };
        let endpoint = match Endpoint::try_from(wire) {
            Ok(endpoint) => endpoint,
            Err(error) => return self.refuse(format!("endpoint.{error}")),
        };
        if endpoint.name != sender.name {
            return self.refuse(format!(
                "endpoint.name: `{}` is not {}, who said Hello",
                endpoint.name, sender.name
            ));
        }
        if endpoint.epoch != sender.epoch {
            let (given, said) = (endpoint.epoch, sender.epoch);
            return self.refuse(format!("endpoint.epoch: {given} is not {said}, which Hello said"));
        }
        let registered = self.plane.register(endpoint, self.id);
        self.lease(registered)
    }

    fn health(&mut self, sender: &Sender, health: agent::HealthChange) -> Down {
        let unhealthy = (!health.healthy).then_some(health.reason);
        if let Some(sidecar) = self.plane.sidecars.lock().current(&sender.name, self.id) {
            sidecar.checks = health.checks;
        }
        let changed = self.plane.health(sender, unhealthy);
        self.lease(changed)
    }

    fn lease(&mut self, result: Result<(), crate::registry::Refusal>) -> Down {
        match result {
            Ok(()) => {
                let lease_ms = u32::try_from(self.plane.terms.lease).unwrap_or(u32::MAX);
                self.down(down::Body::Registered(agent::Registered { lease_ms }))
            }
            Err(refusal) => self.refuse(refusal.to_string()),
        }
    }

    fn refuse(&mut self, reason: String) -> Down {
        self.down(down::Body::Refused(agent::Refused { reason }))
    }

    fn answer(&mut self, of: u64, result: answer::Result) -> Down {
        let result = Some(result);
        self.down(down::Body::Answer(agent::Answer { of, result }))
    }

    fn down(&mut self, body: down::Body) -> Down {
        self.last_down += 1;
        let (id, body) = (self.last_down, Some(body));
        Down { id, body }
    }
}
