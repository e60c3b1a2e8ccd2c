//! Finding the control plane and asking its HTTP/JSON interface: by its socket, or by TLS with a token.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use outrigger_proto::model::{FieldError, JoinToken};
use outrigger_sidecar::identify::{TlsError, tool};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use crate::exit::Failure;
use crate::http::{self as client, Ask, Reply};

pub(crate) mod address;

use address::Address;

/// How the control plane is found.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Target {
    /// The control plane: unix:PATH, or https://HOST:PORT with a token; else that of the running `outrigger up`, else
    /// the socket of `outrigger control-plane`
    #[arg(
        long,
        env = "OUTRIGGER_CONTROL_PLANE",
        hide_env_values = true,
        value_name = "ADDRESS"
    )]
    pub(crate) control_plane: Option<String>,
    /// A file that holds the operator's token for https://; else OUTRIGGER_TOKEN
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Folder or mesh file of the running `outrigger up`; else this folder and those above it
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// A control plane to ask.
#[derive(Debug, Clone)]
pub(crate) struct Plane {
    address: Address,
    token: Option<Arc<Token>>,
}

/// An operator's token.
struct Token {
    header: HeaderValue,
    root: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, Failure> {
        let wrong =
            |reason: String| Failure::Usage(format!("{reason}; `outrigger token create --operator` prints one"));
        let token: JoinToken = text.parse().map_err(|error: FieldError| wrong(error.reason))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| wrong(error.to_string()))?;
        let root = token.root;
        header.set_sensitive(true);
        Ok(Self { header, root })
    }
}

impl Target {
    /// The control plane that this leads to.
    pub(crate) fn plane(&self) -> anyhow::Result<Plane> {
        let address = match &self.control_plane {
            Some(text) => Some(Address::parse(text).map_err(Failure::Usage)?),
            None => self.running(),
        };
        let address = match address {
            Some(address) => address,
            None => default_socket()?,
        };
        let token = match &address {
            Address::Socket(_) => None,
            Address::Tls(_) => Some(Arc::new(self.token(&address)?)),
        };
        Ok(Plane { address, token })
    }

    fn token(&self, address: &Address) -> anyhow::Result<Token> {
        let text = match &self.token_file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| Failure::Usage(format!("--token-file {}: {error}", file.display())))?,
            None => std::env::var(TOKEN).map_err(|_| {
                Failure::Usage(format!(
                    "{address} needs an operator's token, in {TOKEN} or --token-file; make one where the control plane \
                     runs: outrigger token create --operator"
                ))
            })?,
        };
        Ok(Token::parse(&text)?)
    }

    fn running(&self) -> Option<Address> {
        let up = self.up()?;
        let socket = up.get("socket")?.as_str().filter(|socket| !socket.is_empty())?;
        Some(Address::Socket(PathBuf::from(socket)))
    }

    /// The description of the `up` that runs here, when one does.
    pub(crate) fn up(&self) -> Option<Value> {
        if let Some(dir) = &self.dir {
            return address::up_of(dir);
        }
        let here = std::env::current_dir().ok()?;
        here.ancestors().find_map(address::up_of)
    }
}

fn default_socket() -> Result<Address, Failure> {
    let folder = address::runtime_folder().ok_or_else(|| {
        Failure::Usage(
            "where is the control plane? say --control-plane; neither XDG_RUNTIME_DIR nor HOME leads to a default"
                .to_owned(),
        )
    })?;
    Ok(Address::Socket(folder.join(address::SOCKET)))
}

impl Plane {
    /// The control plane behind `socket`.
    pub(crate) fn at_socket(socket: &Path) -> Self {
        Self {
            address: Address::Socket(socket.to_owned()),
            token: None,
        }
    }

    /// `GET path`, as JSON.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let reply = self.ask(path, Ask::get()).await?;
        self.read(reply, path)
    }

    /// `POST path` with `body`; the answer as it is.
    pub(crate) async fn post(&self, path: &str, body: Bytes) -> anyhow::Result<Reply> {
        let method = Method::POST;
        self.ask(
            path,
            Ask {
                method,
                body,
                ..Ask::default()
            },
        )
        .await
    }

    /// `POST path` with `document`; the answer as JSON, null when there is none.
    pub(crate) async fn send(&self, path: &str, document: &Value) -> anyhow::Result<Value> {
        self.act(Method::POST, path, document.to_string().into()).await
    }

    /// `DELETE path`; the answer as JSON, null when there is none.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.act(Method::DELETE, path, Bytes::new()).await
    }

    async fn act(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        let mut ask = Ask {
            method,
            body,
            ..Ask::default()
        };
        ask.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let reply = self.ask(path, ask).await?;
        if reply.status.is_success() && reply.body.is_empty() {
            return Ok(Value::Null);
        }
        self.read(reply, path)
    }

    /// A sidecar's admin page as JSON, whatever its status says.
    pub(crate) async fn admin(&self, address: &str, page: &str) -> anyhow::Result<Value> {
        let reply = match address.strip_prefix("unix:") {
            Some(socket) => {
                let answer =
                    async { client::over(dial(Path::new(socket)).await?, "localhost", page, Ask::get()).await };
                tokio::time::timeout(PATIENCE, answer)
                    .await
                    .map_err(|_| client::Error::Timeout(PATIENCE))??
            }
            None => client::send(&format!("http://{address}{page}"), Ask::get(), PATIENCE).await?,
        };
        Ok(serde_json::from_slice(&reply.body)?)
    }

    async fn ask(&self, path: &str, mut ask: Ask) -> anyhow::Result<Reply> {
        let exchange = async {
            match (&self.address, &self.token) {
                (Address::Socket(socket), _) => client::over(dial(socket).await?, "localhost", path, ask).await,
                (Address::Tls(authority), token) => {
                    let Some(token) = token else {
                        return Err(client::Error::Connect(io::ErrorKind::PermissionDenied.into()));
                    };
                    ask.headers.insert(AUTHORIZATION, token.header.clone());
                    let stream = TcpStream::connect(authority).await.map_err(client::Error::Connect)?;
                    let stream = tool::control_plane(stream, token.root).await.map_err(refused)?;
                    client::over(stream, authority, path, ask).await
                }
            }
        };
        let reply = match tokio::time::timeout(PATIENCE, exchange).await {
            Err(_) => Err(client::Error::Timeout(PATIENCE)),
            Ok(reply) => reply,
        };
        let reply = reply.map_err(|error| self.unreachable(&error))?;
        if matches!(reply.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let (address, said) = (self.address.to_string(), said(&reply.body));
            return Err(Failure::NotLetIn { address, said }.into());
        }
        Ok(reply)
    }

    fn unreachable(&self, error: &client::Error) -> Failure {
        let denied = matches!(error, client::Error::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied);
        match (&self.address, denied) {
            (Address::Socket(socket), true) => Failure::NotLetIn {
                address: self.address.to_string(),
                said: match address::owner(socket) {
                    Some(owner) => format!(
                        "permission denied: the control plane is {owner}'s; run this as {owner} or root, or use \
                         https:// with a token"
                    ),
                    None => "permission denied".to_owned(),
                },
            },
            (Address::Tls(_), true) => Failure::Stranger {
                address: self.address.to_string(),
                reason: error.to_string(),
            },
            (_, false) => Failure::Unreachable {
                address: self.address.to_string(),
                reason: error.to_string(),
            },
        }
    }

    fn read(&self, reply: Reply, path: &str) -> anyhow::Result<Value> {
        if reply.status.is_success() {
            return serde_json::from_slice(&reply.body)
                .map_err(|error| anyhow::anyhow!("{}{path} answered something else than JSON: {error}", self.address));
        }
        let said = said(&reply.body);
        if reply.status == StatusCode::NOT_FOUND {
            let said = if said.is_empty() {
                format!("{path} does not exist")
            } else {
                said
            };
            return Err(Failure::NotFound(said).into());
        }
        // It is the caller's words that it did not like.
        if matches!(reply.status, StatusCode::BAD_REQUEST) && !said.is_empty() {
            return Err(Failure::Usage(said).into());
        }
        anyhow::bail!("{}{path} answered {}: {said}", self.address, reply.status)
    }
}

/// Tells a stranger from nobody who speaks TLS.
fn refused(error: TlsError) -> client::Error {
    let kind = match error {
        TlsError::Unverified(_) => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    client::Error::Connect(io::Error::new(kind, error))
}

async fn dial(socket: &Path) -> Result<UnixStream, client::Error> {
    let connect = async {
        let (_folder, path) = address::short(socket)?;
        let stream = UnixStream::connect(path).await?;
        // Whoever could put a socket into that folder could otherwise pass for the control plane.
        let (peer, owner) = (stream.peer_cred()?.uid(), std::fs::metadata(socket)?.uid());
        let own = nix::unistd::geteuid();
        if peer != 0 && peer != own.as_raw() && !(own.is_root() && peer == owner) {
            let text = format!("a process of uid {peer} listens there, which is neither root nor this user");
            return Err(io::Error::other(text));
        }
        Ok(stream)
    };
    connect.await.map_err(client::Error::Connect)
}

/// The message in an error's body, else the body's beginning.
pub(crate) fn said(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|json| {
        ["message", "error", "reason"]
            .iter()
            .find_map(|key| json.get(key)?.as_str())
    });
    match message {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).trim().chars().take(300).collect(),
    }
}

/// `user` and `other/user` as the two parts of a name.
pub(crate) fn service_name(text: &str) -> Result<(String, String), Failure> {
    let (namespace, service) = text.split_once('/').unwrap_or(("default", text));
    match outrigger_proto::model::ServiceName::new(namespace, service) {
        Ok(_) => Ok((namespace.to_owned(), service.to_owned())),
        Err(error) => Err(Failure::Usage(error.reason)),
    }
}

/// Where a token is read from when no file is named.
pub(crate) const TOKEN: &str = "OUTRIGGER_TOKEN";
/// For one question to something on this machine or the next.
const PATIENCE: Duration = Duration::from_secs(10);
