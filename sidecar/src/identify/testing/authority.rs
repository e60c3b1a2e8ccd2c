//! A control plane for tests that issues certificates over real TLS, and does as it is told.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use outrigger_proto::model::JoinToken;
use outrigger_proto::wire::agent::identity_server::{Identity as Issues, IdentityServer};
use outrigger_proto::wire::agent::{IssueRequest, IssueResponse, issue_request::Proof};
use parking_lot::Mutex;
use rcgen::CertificateSigningRequestParams;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateSigningRequestDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::{Ca, Spec, id};
use crate::identify::crypto;
use crate::identify::trust::fingerprint;

/// What it does; a test changes it at any time.
#[derive(Clone)]
pub(crate) struct Script {
    /// Lifetime of leaves.
    pub(crate) ttl: Duration,
    /// Before now, from which on they count.
    pub(crate) backdate: Duration,
    /// How far its clock is ahead of this machine's.
    pub(crate) ahead: i64,
    /// Refuses everything with this text.
    pub(crate) refuse: Option<String>,
    /// Answers nothing and says so.
    pub(crate) away: bool,
    /// Grants this instead of what is asked for.
    pub(crate) other: Option<String>,
}

/// One request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Came {
    Token(String),
    /// With the serial's certificate of the connection.
    Leaf,
    Late,
    Nothing,
}

/// The running server. Dropping it ends it.
pub(crate) struct Authority {
    pub(crate) ca: Arc<Mutex<Arc<Ca>>>,
    pub(crate) url: String,
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) came: mpsc::Receiver<Came>,
    /// Requests as they came, answered or not.
    pub(crate) requests: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

struct Door {
    ca: Arc<Mutex<Arc<Ca>>>,
    script: Arc<Mutex<Script>>,
    came: mpsc::Sender<Came>,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Whether the client showed a certificate.
#[derive(Clone)]
struct Shown(bool);

#[tonic::async_trait]
impl Issues for Door {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let shown = request.extensions().get::<Shown>().is_some_and(|s| s.0);
        let request = request.into_inner();
        let came = match (&request.proof, shown) {
            (Some(Proof::Token(token)), _) => Came::Token(token.clone()),
            (Some(Proof::Late(late)), false) => {
                let message = [b"outrigger-late-renewal/1\0".as_slice(), &request.csr].concat();
                verify_late(&late.leaf, &message, &late.signature).map_err(Status::permission_denied)?;
                Came::Late
            }
            (None, true) => Came::Leaf,
            _ => Came::Nothing,
        };
        drop(self.came.try_send(came));
        self.requests.lock().push(request.csr.clone());
        let script = self.script.lock().clone();
        if script.away {
            return Err(Status::unavailable("it is away"));
        }
        if let Some(why) = script.refuse {
            return Err(Status::permission_denied(why));
        }
        let ca = self.ca.lock().clone();
        let mut csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request.csr))
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let now = shifted(SystemTime::now(), script.ahead);
        let mut spec = Spec::of(script.other.as_deref().unwrap_or(&request.service));
        (spec.not_before, spec.not_after) = (now - script.backdate, now + script.ttl);
        csr.params = spec.params();
        let leaf = csr
            .signed_by(&ca.issuing)
            .map_err(|e| Status::internal(e.to_string()))?;
        let bundle = ca.bundle();
        Ok(Response::new(IssueResponse {
            chain: vec![leaf.der().to_vec(), ca.issuing.der().to_vec()],
            trust: Some(bundle.into()),
            now_ms: now
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("after 1970")
                .as_millis() as i64,
        }))
    }
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - by } else { time + by }
}

fn verify_late(leaf: &[u8], message: &[u8], signature: &[u8]) -> Result<(), String> {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    let key = leaf.public_key().subject_public_key.data.to_vec();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(message, signature)
        .map_err(|_| "the signature is wrong".to_owned())
}

impl Authority {
    /// Starts one on a free port.
    pub(crate) async fn start() -> Self {
        let ca = Arc::new(Mutex::new(Arc::new(Ca::new())));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let script = Arc::new(Mutex::new(Script {
            ttl: Duration::from_secs(3600),
            backdate: Duration::from_secs(600),
            ahead: 0,
            refuse: None,
            away: false,
            other: None,
        }));
        let (came_tx, came) = mpsc::channel(64);
        let requests = Arc::default();
        let door = Door {
            requests: Arc::clone(&requests),
            ca: ca.clone(),
            script: script.clone(),
            came: came_tx,
        };
        let (accepted, incoming) = mpsc::channel::<Result<Io, std::io::Error>>(16);
        let mut tasks = JoinSet::new();
        let authority = ca.clone();
        tasks.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("accepts");
                let config = server(&authority.lock().clone());
                let accepted = accepted.clone();
                tokio::spawn(async move {
                    if let Ok(tls) = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await {
                        drop(accepted.send(Ok(Io(tls))).await);
                    }
                });
            }
        });
        tasks.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(IdentityServer::new(door))
                .serve_with_incoming(ReceiverStream::new(incoming))
                .await
                .expect("it serves");
        });
        Self {
            ca,
            url,
            script,
            came,
            requests,
            _tasks: tasks,
        }
    }

    /// A token for this control plane.
    pub(crate) fn token(&self) -> String {
        token(&self.ca.lock())
    }
}

/// A token that leads to `ca`.
pub(crate) fn token(ca: &Ca) -> String {
    JoinToken {
        id: "0123456789ab".into(),
        secret: [7; 32],
        root: fingerprint(ca.root.der()),
    }
    .to_string()
}

/// Its own certificate, with the root at the end of the chain; clients may show one.
fn server(ca: &Ca) -> Arc<ServerConfig> {
    let provider = crypto::provider(true);
    let mut spec = Spec::of("default/any");
    spec.uris = vec![id("outrigger/control-plane")];
    let (mut chain, key) = ca.leaf(&spec);
    chain.push(ca.root.der().clone());
    let mut roots = RootCertStore::empty();
    for root in ca.roots() {
        roots.add(root).expect("a root");
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .expect("a verifier");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        Shown(self.0.get_ref().1.peer_certificates().is_some())
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
