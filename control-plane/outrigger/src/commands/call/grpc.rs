//! gRPC with JSON: types by reflection or from a file, messages translated on both ways.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _, Bytes};
use http::{HeaderName, HeaderValue};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::Outcome;
use super::line::{Connector, Line};
use crate::exit::Failure;
use crate::output;

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) line: &'a Line,
    pub(super) host: &'a str,
    pub(super) method: Option<&'a str>,
    pub(super) json: Option<&'a str>,
    pub(super) headers: &'a [(HeaderName, HeaderValue)],
    pub(super) descriptor: Option<&'a Path>,
}

/// Calls the method and prints each answer, or lists the methods.
pub(super) async fn call(ask: Ask<'_>) -> anyhow::Result<Outcome> {
    let channel = Endpoint::from_shared(format!("http://{}", ask.host))?
        .connect_with_connector(Connector(ask.line.clone()))
        .await
        .with_context(|| format!("cannot reach {}", ask.line.address))?;
    let pool = match ask.descriptor {
        Some(file) => {
            let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
            DescriptorPool::decode(Bytes::from(bytes))
                .with_context(|| format!("{} is not a set of descriptors", file.display()))?
        }
        None => match reflect(channel.clone()).await {
            Ok(pool) => pool,
            Err(Broken::Status(status)) if is_denied(&status) => {
                writeln!(
                    anstream::stderr(),
                    "reflection: {:?}: {}",
                    status.code(),
                    status.message()
                )?;
                return Ok(Outcome::Denied("POST".to_owned(), REFLECTION.to_owned()));
            }
            Err(Broken::Status(status)) if status.code() == Code::Unimplemented => {
                anyhow::bail!("the service has no reflection (grpc.reflection.v1); give --descriptor FILE")
            }
            Err(Broken::Status(status)) => anyhow::bail!("reflection: {:?}: {}", status.code(), status.message()),
            Err(Broken::Other(error)) => return Err(error),
        },
    };
    let Some(name) = ask.method else {
        return list(&pool);
    };
    let method = find(&pool, name)?;
    let messages = messages(&method, ask.json.unwrap_or("{}"))?;
    if messages.len() != 1 && !method.is_client_streaming() {
        let text = format!(
            "{} takes one message, and {} are given",
            method.full_name(),
            messages.len()
        );
        return Err(Failure::Usage(text).into());
    }

    let mut request = Request::new(tokio_stream::iter(messages));
    let mut headers = std::mem::take(request.metadata_mut()).into_headers();
    for (name, value) in ask.headers {
        headers.append(name, value.clone());
    }
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let answered = match client.streaming(request, path.parse()?, Raw).await {
        Ok(answer) => print(&method, answer.into_inner()).await,
        Err(status) => Err(status.into()),
    };
    match answered {
        Ok(()) => Ok(Outcome::Well),
        Err(Broken::Status(status)) => {
            let reason = status
                .metadata()
                .get("outrigger-reason")
                .and_then(|value| value.to_str().ok());
            let denied = is_denied(&status);
            let reason = reason.map(|reason| format!(" (mesh: {reason})")).unwrap_or_default();
            let mut err = anstream::stderr();
            writeln!(
                err,
                "{:?} ({}): {}{reason}",
                status.code(),
                status.code() as i32,
                status.message()
            )?;
            Ok(if denied {
                Outcome::Denied("POST".to_owned(), path)
            } else {
                Outcome::Failed
            })
        }
        Err(Broken::Other(error)) => Err(error),
    }
}

fn is_denied(status: &Status) -> bool {
    status
        .metadata()
        .get("outrigger-reason")
        .is_some_and(|reason| reason == super::DENIED)
}

/// What is asked for types.
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// How a stream of answers ends early.
enum Broken {
    Status(Box<Status>),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Broken {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

async fn print(method: &MethodDescriptor, mut answers: tonic::Streaming<Bytes>) -> Result<(), Broken> {
    let options = SerializeOptions::new().skip_default_fields(false);
    while let Some(bytes) = answers.message().await? {
        let text = DynamicMessage::decode(method.output(), bytes).context("the answer is not of the described type");
        let text = text.and_then(|message| {
            let mut text = Vec::new();
            message.serialize_with_options(&mut serde_json::Serializer::pretty(&mut text), &options)?;
            Ok(String::from_utf8(text)?)
        });
        let text = text.map_err(Broken::Other)?;
        output::print(&format!("{text}\n")).map_err(|error| Broken::Other(error.into()))?;
    }
    Ok(())
}

/// Each JSON value of `json` as one encoded message.
fn messages(method: &MethodDescriptor, json: &str) -> anyhow::Result<Vec<Bytes>> {
    let mut out = Vec::new();
    // Values are separated first, so that a mistake is told with its message's number.
    for value in serde_json::Deserializer::from_str(json).into_iter::<serde_json::Value>() {
        let value = value.map_err(|error| Failure::Usage(format!("not JSON: {error}")))?;
        let input = method.input();
        let message = DynamicMessage::deserialize(input.clone(), value).map_err(|error| {
            let fields: Vec<String> = input.fields().map(|field| field.json_name().to_owned()).collect();
            let (number, name, fields) = (out.len() + 1, input.full_name(), fields.join(", "));
            Failure::Usage(format!("message {number} is no {name}: {error}; its fields: {fields}"))
        })?;
        out.push(Bytes::from(message.encode_to_vec()));
    }
    Ok(out)
}

/// `Method`, `Service/Method`, `package.Service/Method` or `package.Service.Method`.
fn find(pool: &DescriptorPool, name: &str) -> anyhow::Result<MethodDescriptor> {
    let wanted = name.replace('/', ".");
    let all: Vec<MethodDescriptor> = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    let suffix = format!(".{wanted}");
    let found: Vec<&MethodDescriptor> = all
        .iter()
        .filter(|m| m.full_name() == wanted || m.full_name().ends_with(&suffix))
        .collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let names = all.iter().map(MethodDescriptor::full_name);
            let short = wanted.rsplit('.').next().unwrap_or_default();
            let near = outrigger_control_plane::config::closest(short, all.iter().map(MethodDescriptor::name));
            let help = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are: {}", names.collect::<Vec<_>>().join(", ")),
            };
            Err(Failure::NotFound(format!("no method `{name}`; {help}")).into())
        }
        many => {
            let names: Vec<&str> = many.iter().map(|method| method.full_name()).collect();
            Err(Failure::Usage(format!("`{name}` is one of {}; say which", names.join(", "))).into())
        }
    }
}

fn list(pool: &DescriptorPool) -> anyhow::Result<Outcome> {
    let mut text = String::new();
    for method in pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
    {
        // How the list came here is not what the service is for.
        if method.full_name().starts_with("grpc.reflection.") {
            continue;
        }
        let stream = |streams: bool| if streams { "stream " } else { "" };
        text.push_str(&format!(
            "{}/{}({}{}) returns ({}{})\n",
            method.parent_service().full_name(),
            method.name(),
            stream(method.is_client_streaming()),
            method.input().full_name(),
            stream(method.is_server_streaming()),
            method.output().full_name(),
        ));
    }
    output::print(&text)?;
    Ok(Outcome::Well)
}

/// Every file that the server shows by grpc.reflection.v1.
async fn reflect(channel: Channel) -> Result<DescriptorPool, Broken> {
    let gone = |_| anyhow::anyhow!("the service ended its reflection");
    let mut client = ServerReflectionClient::new(channel);
    let (ask, asked) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    // The answer's head may wait for the first request.
    ask.send(request(MessageRequest::ListServices(String::new())))
        .await
        .map_err(gone)?;
    let mut answers = client.server_reflection_info(requests).await?.into_inner();
    let mut files: Vec<prost_reflect::prost_types::FileDescriptorProto> = Vec::new();
    let mut waiting: Vec<MessageRequest> = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        let answer = answers.message().await?.context("the service ended its reflection")?;
        match answer {
            ServerReflectionResponse {
                message_response: Some(MessageResponse::ListServicesResponse(list)),
                ..
            } => {
                waiting.extend(
                    list.service
                        .into_iter()
                        .map(|service| MessageRequest::FileContainingSymbol(service.name)),
                );
            }
            ServerReflectionResponse {
                message_response: Some(MessageResponse::FileDescriptorResponse(found)),
                ..
            } => {
                for bytes in found.file_descriptor_proto {
                    let file = prost_reflect::prost_types::FileDescriptorProto::decode(bytes.as_slice())
                        .map_err(anyhow::Error::from)?;
                    if known.insert(file.name().to_owned()) {
                        waiting.extend(file.dependency.iter().cloned().map(MessageRequest::FileByFilename));
                        files.push(file);
                    }
                }
            }
            // One symbol that the server does not describe does not hide the others.
            _ => {}
        }
        let next = loop {
            match waiting.pop() {
                Some(MessageRequest::FileByFilename(name)) if known.contains(&name) => {}
                next => break next,
            }
        };
        match next {
            Some(next) => ask.send(request(next)).await.map_err(gone)?,
            None => break,
        }
    }
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(files)
        .context("the service describes itself incompletely")?;
    Ok(pool)
}

fn request(message: MessageRequest) -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    }
}

/// Messages as bytes; they are translated outside.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(input.copy_to_bytes(input.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_reflect::{DescriptorPool, DynamicMessage};

    use super::{find, messages};

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(outrigger_proto::wire::DESCRIPTORS).unwrap()
    }

    #[test]
    fn a_method_is_found_by_any_part_that_is_enough() {
        for name in [
            "Check",
            "Health/Check",
            "grpc.health.v1.Health/Check",
            "grpc.health.v1.Health.Check",
        ] {
            assert_eq!(find(&pool(), name).unwrap().full_name(), "grpc.health.v1.Health.Check");
        }
        let error = find(&pool(), "Chek").unwrap_err().to_string();
        assert_eq!(error, "no method `Chek`; did you mean `Check`?");
        // The end of a word is no part.
        assert!(find(&pool(), "heck").is_err());
    }

    #[test]
    fn json_becomes_messages() {
        let session = find(&pool(), "Session").unwrap();
        let two = messages(&session, r#"{"id": 1, "renew": {}} {"id": "2"}"#).unwrap();
        let ids = two.into_iter().map(|bytes| {
            let message = DynamicMessage::decode(session.input(), bytes).unwrap();
            message.transcode_to::<outrigger_proto::wire::agent::Up>().unwrap().id
        });
        assert_eq!(ids.collect::<Vec<_>>(), [1, 2]);
        assert_eq!(messages(&session, "").unwrap().len(), 0);
    }

    #[test]
    fn a_mistake_in_json_names_the_message_and_its_fields() {
        let check = find(&pool(), "Check").unwrap();
        let error = messages(&check, r#"{"servise": "x"}"#).unwrap_err().to_string();
        assert!(
            error.starts_with("message 1 is no grpc.health.v1.HealthCheckRequest: "),
            "{error}"
        );
        assert!(error.ends_with("its fields: service"), "{error}");
        assert!(messages(&check, "{").unwrap_err().to_string().starts_with("not JSON: "));
        assert_eq!(
            messages(&check, "{}").unwrap()[0].len(),
            DynamicMessage::new(check.input()).encoded_len()
        );
    }
}
