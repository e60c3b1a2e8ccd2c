//! Takes answers in: validates each resource by itself, so that a bad one blocks no other.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrigger_proto::model::{Endpoint, EndpointName, FieldError, Resource, ResourceType, ServiceName};
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};
use outrigger_proto::wire::google::rpc;
use outrigger_proto::wire::mesh;
use prost::Message as _;

use super::{Applied, Change, Collection, Held, Output, State, field_error, removed};
use crate::config::Resources;

/// Instances remembered after they left, per service.
const GONE: usize = 256;
/// Bound on the text of a NACK; the details are complete.
const NACK_TEXT: usize = 4096;
/// `INVALID_ARGUMENT` of google.rpc.Code.
const INVALID_ARGUMENT: i32 = 3;

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    File,
    Snapshot,
    Stream,
}

impl State {
    /// Takes in an answer of the stream; the first request of the output is its ACK or NACK.
    pub fn answer(&mut self, answer: DeltaDiscoveryResponse) -> Output {
        let type_url = answer.type_url.clone();
        let nonce = answer.nonce.clone();
        let (mut output, problem) = self.take(answer, Source::Stream);
        let rejections: Vec<_> = output
            .applied
            .iter()
            .filter_map(|a| Some((a, a.rejection.as_ref()?)))
            .collect();
        let error_detail = match (problem, rejections.as_slice()) {
            (Some(message), _) => Some(rpc::Status {
                code: INVALID_ARGUMENT,
                message,
                details: Vec::new(),
            }),
            (None, []) => None,
            (None, refused) => Some(nack(refused)),
        };
        output.requests.insert(
            0,
            DeltaDiscoveryRequest {
                type_url,
                response_nonce: nonce,
                error_detail,
                ..Default::default()
            },
        );
        output
    }

    /// Takes back a part of a [`snapshot`](State::snapshot), before the stream begins.
    pub fn restore(&mut self, part: DeltaDiscoveryResponse) -> Output {
        self.take(part, Source::Snapshot).0
    }

    /// Takes in the resources of the bootstrap file; their collections are complete.
    pub fn seed(&mut self, resources: &Resources) -> Output {
        let part = |kind: ResourceType, named: Vec<(String, Vec<u8>)>| DeltaDiscoveryResponse {
            type_url: kind.url().into(),
            resources: named
                .into_iter()
                .map(|(name, value)| WireResource {
                    name,
                    resource: Some(prost_types::Any {
                        type_url: kind.url().into(),
                        value,
                    }),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let mut output = Output::default();
        for part in [
            part(
                ResourceType::Proxy,
                resources
                    .proxy
                    .iter()
                    .map(|p| (p.name.clone(), p.encode_to_vec()))
                    .collect(),
            ),
            part(
                ResourceType::Service,
                resources
                    .services
                    .iter()
                    .map(|s| (s.name.clone(), s.encode_to_vec()))
                    .collect(),
            ),
            part(
                ResourceType::Endpoint,
                resources
                    .endpoints
                    .iter()
                    .map(|e| (e.name.clone(), e.encode_to_vec()))
                    .collect(),
            ),
        ] {
            let (taken, _) = self.take(part, Source::File);
            output.changes.extend(taken.changes);
            output.applied.extend(taken.applied);
            output.ignored += taken.ignored;
        }
        for name in self.services.keys() {
            self.collections.entry(name.clone()).or_default().complete = true;
        }
        output
    }

    /// Applies every valid part; the text is a problem of the answer as a whole.
    fn take(&mut self, answer: DeltaDiscoveryResponse, source: Source) -> (Output, Option<String>) {
        let mut output = Output::default();
        let Some(kind) = ResourceType::from_url(&answer.type_url) else {
            let url: String = answer.type_url.chars().take(200).collect();
            return (output, Some(format!("`{url}` was not asked for")));
        };
        let mut touched = BTreeSet::new();
        let mut named = BTreeSet::new();
        for resource in answer.resources {
            if source == Source::Stream && !self.subscribed(kind, &resource.name) {
                // Sent before an unsubscription arrived there.
                continue;
            }
            if kind == ResourceType::Endpoint {
                self.open(&resource.name, &mut touched, &mut named);
            }
            let (name, version) = (resource.name.clone(), resource.version.clone());
            match self.accept(kind, resource, source, &mut output) {
                Ok(Some(service)) => touched.extend(service),
                Ok(None) => continue,
                Err(why) => {
                    output.applied.push(Applied {
                        kind,
                        name,
                        version,
                        rejection: Some(why),
                        removed: false,
                    });
                    continue;
                }
            }
            output.applied.push(Applied {
                kind,
                name,
                version,
                rejection: None,
                removed: false,
            });
        }
        for name in answer.removed_resources {
            self.remove(kind, name, source, &mut touched, &mut output);
        }
        if kind == ResourceType::Endpoint && source == Source::Stream {
            self.replace_file_endpoints(&touched, &named);
        }
        output
            .changes
            .extend(touched.iter().filter_map(|name| self.publication(name)));
        (output, None)
    }

    /// Whether this sidecar asks for `name`; a name that is none is let through to be refused.
    fn subscribed(&self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::TrustBundle | ResourceType::Proxy => true,
            ResourceType::Service => name.parse().map_or(true, |name: ServiceName| {
                name == self.own || self.wanted.contains(&name)
            }),
            ResourceType::Endpoint => name
                .parse()
                .map_or(true, |name: EndpointName| self.wanted.contains(&name.service)),
        }
    }

    /// The first answer of a collection is complete, whatever its parts are worth.
    fn open(&mut self, name: &str, touched: &mut BTreeSet<ServiceName>, named: &mut BTreeSet<EndpointName>) {
        if let Ok(name) = name.parse::<EndpointName>() {
            let collection = self.collections.entry(name.service.clone()).or_default();
            if !collection.complete {
                collection.complete = true;
                touched.insert(name.service.clone());
            }
            named.insert(name);
        }
    }

    /// Applies one resource. Answers the service that it touches, if any; none when it changes nothing.
    fn accept(
        &mut self,
        kind: ResourceType,
        resource: WireResource,
        source: Source,
        output: &mut Output,
    ) -> Result<Option<Option<ServiceName>>, FieldError> {
        let Some(any) = resource.resource else {
            return Err(field_error("resource", "the resource has no body"));
        };
        if any.type_url != kind.url() {
            let url: String = any.type_url.chars().take(200).collect();
            return Err(field_error(
                "resource.type_url",
                format!("`{url}` is not {}", kind.url()),
            ));
        }
        let (decoded, ignored) = Resource::decode(kind, &any.value)?;
        if decoded.name() != resource.name {
            return Err(field_error(
                "name",
                format!("`{}` came under another name", decoded.name()),
            ));
        }
        let (version, bytes, from_file) = (resource.version, any.value, source == Source::File);
        let touched = match decoded {
            Resource::Proxy(proxy) if proxy.name != self.own => {
                return Err(field_error("name", format!("`{}` is not this workload's", proxy.name)));
            }
            Resource::Proxy(proxy) => {
                output.changes.push(Change::Proxy(proxy.clone()));
                self.proxy = Some(Held {
                    version,
                    value: (*proxy).into(),
                    bytes,
                    from_file,
                });
                None
            }
            Resource::TrustBundle(bundle) => {
                output.changes.push(Change::Trust(bundle.clone()));
                self.trust = Some(Held {
                    version,
                    value: (*bundle).into(),
                    bytes,
                    from_file,
                });
                None
            }
            Resource::Service(service) => {
                let name = service.name.clone();
                self.absent.remove(&name);
                self.services.insert(
                    name.clone(),
                    Held {
                        version,
                        value: (*service).into(),
                        bytes,
                        from_file,
                    },
                );
                Some(name)
            }
            Resource::Endpoint(endpoint) => {
                let held = Held {
                    version,
                    value: Arc::new(*endpoint),
                    bytes,
                    from_file,
                };
                let name = held.value.name.service.clone();
                if !self.collections.entry(name.clone()).or_default().insert(held) {
                    return Ok(None);
                }
                Some(name)
            }
        };
        output.ignored += ignored;
        Ok(Some(touched))
    }

    fn remove(
        &mut self,
        kind: ResourceType,
        name: String,
        source: Source,
        touched: &mut BTreeSet<ServiceName>,
        output: &mut Output,
    ) {
        match kind {
            // An app that runs keeps its settings and its trust, whoever forgets them.
            ResourceType::TrustBundle | ResourceType::Proxy => return,
            ResourceType::Service => {
                let Ok(service) = name.parse::<ServiceName>() else {
                    return;
                };
                self.services.remove(&service);
                if self.wanted.contains(&service) {
                    self.absent.insert(service.clone());
                    touched.insert(service);
                }
            }
            ResourceType::Endpoint => {
                if let Some(service) = name.strip_suffix("/*").and_then(|s| s.parse::<ServiceName>().ok()) {
                    // A snapshot is read before anything is wanted.
                    if source == Source::Snapshot || self.wanted.contains(&service) {
                        self.clear(&service, touched, output);
                    }
                    return;
                }
                let Ok(endpoint) = name.parse::<EndpointName>() else {
                    return;
                };
                if !self.wanted.contains(&endpoint.service) {
                    return;
                }
                let collection = self.collections.entry(endpoint.service.clone()).or_default();
                collection.complete = true;
                collection.leave(&endpoint.instance);
                touched.insert(endpoint.service);
            }
        }
        output.applied.push(removed(kind, name));
    }

    /// `ns/service/*` in the removals: the collection is complete and empty.
    fn clear(&mut self, service: &ServiceName, touched: &mut BTreeSet<ServiceName>, output: &mut Output) {
        let collection = self.collections.entry(service.clone()).or_default();
        collection.complete = true;
        for instance in collection.members.keys().cloned().collect::<Vec<_>>() {
            if let Some(name) = collection.leave(&instance) {
                output.applied.push(removed(ResourceType::Endpoint, name));
            }
        }
        touched.insert(service.clone());
    }

    /// Endpoints of the file give way to the first answer about their service.
    fn replace_file_endpoints(&mut self, touched: &BTreeSet<ServiceName>, named: &BTreeSet<EndpointName>) {
        for service in touched {
            if let Some(collection) = self.collections.get_mut(service) {
                collection
                    .members
                    .retain(|_, m| !m.from_file || named.contains(&m.value.name));
            }
        }
    }
}

impl Collection {
    /// Adds or replaces one instance; false when it is a late message of an older epoch.
    fn insert(&mut self, held: Held<Endpoint>) -> bool {
        let instance = held.value.name.instance.clone();
        let known = self
            .members
            .get(&instance)
            .map(|m| m.value.epoch)
            .max(self.gone.get(&instance).copied());
        if known.is_some_and(|epoch| held.value.epoch < epoch) {
            return false;
        }
        self.gone.remove(&instance);
        self.members.insert(instance, held);
        true
    }

    /// Takes one instance out and remembers its epoch; answers its full name.
    fn leave(&mut self, instance: &Arc<str>) -> Option<String> {
        let left: Held<Endpoint> = self.members.remove(instance)?;
        self.gone.insert(instance.clone(), left.value.epoch);
        if self.gone.len() > GONE {
            let oldest = self
                .gone
                .iter()
                .min_by_key(|(_, epoch)| **epoch)
                .map(|(i, _)| i.clone());
            oldest.map(|i| self.gone.remove(&i));
        }
        Some(left.value.name.to_string())
    }
}

/// The refusal of some resources, by name and field path.
fn nack(refused: &[(&Applied, &FieldError)]) -> rpc::Status {
    let mut message = String::new();
    let mut details = Vec::with_capacity(refused.len());
    for (applied, why) in refused {
        if message.len() < NACK_TEXT {
            let comma = if message.is_empty() { "" } else { "; " };
            message.push_str(&format!("{comma}{} {why}", applied.name));
        }
        let rejection = mesh::Rejection {
            resource: applied.name.clone(),
            version: applied.version.clone(),
            field: why.path.clone(),
            reason: why.reason.clone(),
        };
        details.push(prost_types::Any {
            type_url: "type.googleapis.com/outrigger.mesh.v1.Rejection".into(),
            value: rejection.encode_to_vec(),
        });
    }
    rpc::Status {
        code: INVALID_ARGUMENT,
        message,
        details,
    }
}
