//! The gRPC face of push: moves messages and decides nothing.
//!
//! A response is made when the transport asks for the next message, so a client that does not read
//! holds no response in memory but the one it is being sent. A workload names itself as the node and
//! asks for no `Proxy` but its own, or the stream ends.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream as Messages;
use futures_util::stream::try_unfold;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, Streaming};

use super::hub::{Hub, Mailbox, StreamId};
use super::stream::Stream;
use crate::events::{Event, Events};
use crate::identity::Asker;
use crate::stop::Stop;

/// The service.
#[derive(Debug, Clone)]
pub struct Ads {
    /// What is pushed.
    pub hub: Arc<Mutex<Hub>>,
    /// Where refusals are told.
    pub events: Arc<Events>,
    /// When every stream ends.
    pub stop: Stop,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Messages<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let asker = request.extensions().get::<Asker>().cloned().unwrap_or_default();
        let open = Open {
            ads: self.clone(),
            asker,
            requests: request.into_inner(),
            joined: None,
        };
        let responses = try_unfold(open, |mut open| async move {
            let next = open.next().await?;
            Ok(next.map(|response| (response, open)))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// One open stream; the first request names the node.
struct Open {
    ads: Ads,
    asker: Asker,
    requests: Streaming<DeltaDiscoveryRequest>,
    joined: Option<Joined>,
}

struct Joined {
    hub: Arc<Mutex<Hub>>,
    id: StreamId,
    node: String,
    stream: Stream,
    mailbox: Arc<Mailbox>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.hub.lock().leave(self.id, &self.stream);
    }
}

impl Open {
    async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            if let Some(response) = self.joined.as_mut().and_then(Joined::next) {
                return Ok(Some(response));
            }
            let mailbox = self.joined.as_ref().map(|j| Arc::clone(&j.mailbox));
            let letter = async {
                match &mailbox {
                    Some(mailbox) => mailbox.arrived().await,
                    None => std::future::pending().await,
                }
            };
            // Every arm is cancel safe: nothing is taken before an arm is ready.
            tokio::select! {
                () = self.ads.stop.stopped() => return Ok(None),
                () = letter => {}
                request = self.requests.message() => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(None),
                },
            }
        }
    }

    fn take(&mut self, mut request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if self.joined.is_none() {
            let node = request.node.take().filter(|n| !n.id.is_empty() && n.id.len() <= 191);
            let node = node.ok_or_else(|| Status::invalid_argument("the first request must carry node.id"))?;
            let service = node.id.rsplit_once('/').map_or("", |(service, _)| service);
            self.own(service, &node.id, "be the node")?;
            let (id, mailbox) = self.ads.hub.lock().join(&node.id, &node.client_features);
            self.joined = Some(Joined {
                hub: Arc::clone(&self.ads.hub),
                id,
                node: node.id,
                stream: Stream::new(node.client_features),
                mailbox,
            });
        }
        if ResourceType::from_url(&request.type_url) == Some(ResourceType::Proxy) {
            for name in &request.resource_names_subscribe {
                self.own(name, name, "read the settings of")?;
            }
        }
        let Some(joined) = &mut self.joined else { return Ok(()) };
        let outcome = joined
            .stream
            .request(request)
            .map_err(|overflow| Status::resource_exhausted(overflow.to_string()))?;
        joined.hub.lock().note(joined.id, &outcome);
        for nack in outcome.nacks {
            self.ads.events.record(Event::Nack {
                node: joined.node.clone(),
                kind: nack.kind.message().to_owned(),
                resource: nack.name,
                version: nack.version,
                reason: nack.reason,
            });
        }
        Ok(())
    }
}

impl Open {
    /// Refuses a workload that is not `service`.
    fn own(&self, service: &str, name: &str, what: &str) -> Result<(), Status> {
        self.asker.is_service(service).map_err(|who| {
            let what = format!("wanted to {what} {name}");
            let status = Status::permission_denied(format!("{who} {what}"));
            self.ads.events.record(Event::Refused { who, what });
            status
        })
    }
}

impl Joined {
    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.mailbox.empty_into(&mut self.stream);
        let mut hub = self.hub.lock();
        let response = self.stream.next(hub.table());
        hub.show(self.id, &self.stream);
        if let Some(kind) = response.as_ref().and_then(|r| ResourceType::from_url(&r.type_url)) {
            hub.pushed(kind);
        }
        response
    }
}
