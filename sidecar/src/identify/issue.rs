//! Asks the control plane for a certificate: by token, by the leaf in use, or by one that expired.
//!
//! Each call is a connection of its own, so that its proof and whom it trusts are known when it begins.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use outrigger_proto::model::{FieldError, JoinToken, ServiceName, SpiffeId, TrustBundle};
use outrigger_proto::wire::agent::identity_client::IdentityClient;
use outrigger_proto::wire::agent::{IssueRequest, LateRenewal, issue_request};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::transport::{Endpoint, Uri};
use zeroize::Zeroize as _;

use super::leaf::{Leaf, LeafError};
use super::pem::Key;
use super::trust::{NoRoot, Trust};
use super::verify::{ByHash, Refusal, Verifier, control_plane, rough};
use super::{Alpn, Foreign, TlsError, crypto, view};

/// Connecting and the handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// The whole call: the control plane may queue it behind others.
const CALL: Duration = Duration::from_secs(30);
/// What is signed for a late renewal begins with this.
const LATE: &[u8] = b"outrigger-late-renewal/1\0";
/// A larger answer is none of ours.
const LARGEST: usize = 1 << 20;

/// How we prove who we are.
pub(super) enum Proof {
    /// The token's text and what it says.
    Token(zeroize::Zeroizing<String>, JoinToken),
    /// The leaf in use, as the certificate of the connection.
    Leaf(Arc<Leaf>, Arc<Trust>),
    /// A leaf that has expired: its key signs the request.
    Late(Arc<Leaf>, Arc<Trust>),
}

/// Who asks whom.
pub(super) struct Question<'a> {
    pub(super) url: &'a str,
    pub(super) service: &'a ServiceName,
    pub(super) instance: &'a str,
    /// The mesh that it must be; none: the one that the token leads to.
    pub(super) trust_domain: Option<&'a str>,
    pub(super) provider: &'a Arc<CryptoProvider>,
}

/// A new key, and the request for its certificate. The same one is sent until it is answered: a token
/// that was spent on an answer that got lost is spent on this key only.
#[derive(Clone)]
pub(super) struct Wanted {
    key: Arc<Key>,
    csr: Arc<[u8]>,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").finish_non_exhaustive()
    }
}

impl Wanted {
    /// Makes a key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(super) fn new() -> Result<Self, rcgen::Error> {
        let mut pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Who we are is the control plane's to say.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&pair).map(|csr| csr.der().to_vec());
        let key = Key(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der())));
        pair.zeroize();
        Ok(Self {
            key: Arc::new(key),
            csr: csr?.into(),
        })
    }
}

/// What the control plane gave.
pub(super) struct Issued {
    pub(super) leaf: Leaf,
    pub(super) key: Arc<Key>,
    pub(super) trust: Trust,
    /// How far this machine's clock is ahead, milliseconds.
    pub(super) clock_ahead_ms: i64,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssueError {
    #[error("`{0}` is no URL of a control plane")]
    Url(String),
    #[error("cannot reach the control plane at {url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("the control plane at {url} is not the one that is trusted here: {why}")]
    Untrusted { url: String, why: String },
    #[error("the control plane refuses: {}", .0.message())]
    Refused(tonic::Status),
    #[error("the control plane does not answer: {}", .0.message())]
    Failed(tonic::Status),
    #[error("the control plane did not answer in {} s", CALL.as_secs())]
    TimedOut,
    #[error("a late renewal cannot be signed")]
    Sign,
    #[error("the control plane's answer cannot be used: {0}")]
    Trust(#[from] FieldError),
    #[error("the control plane's answer cannot be used: {0}")]
    NoRoot(#[from] NoRoot),
    #[error("the control plane's answer cannot be used: {0}")]
    Leaf(#[from] LeafError),
    #[error("the certificate that was issued is of no use here: {0}")]
    Useless(Refusal),
    #[error("{clock}, so the certificate that was issued is of no use here: set the clock")]
    Clock { clock: String },
    #[error("the control plane has another root than the token says: is the token of another mesh?")]
    OtherRoot,
}

impl IssueError {
    /// True when asking again in the same way leads nowhere, and another proof might.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Untrusted { .. })
    }
}

impl Question<'_> {
    /// Asks once.
    ///
    /// # Errors
    /// Why there is no certificate that can be used.
    ///
    /// # Cancel safety
    /// Safe: asking again for the same key gives another certificate.
    pub(super) async fn ask(&self, proof: Proof, wanted: &Wanted) -> Result<Issued, IssueError> {
        match tokio::time::timeout(CALL, self.exchange(proof, wanted)).await {
            Ok(issued) => issued,
            Err(_) => Err(IssueError::TimedOut),
        }
    }

    async fn exchange(&self, proof: Proof, wanted: &Wanted) -> Result<Issued, IssueError> {
        let service = IdentityClient::new(self.connect(&proof).await?).max_decoding_message_size(LARGEST);
        let root = match &proof {
            Proof::Token(_, token) => Some(token.root),
            _ => None,
        };
        let proof = match proof {
            Proof::Token(text, _) => Some(issue_request::Proof::Token(text.as_str().to_owned())),
            Proof::Leaf(..) => None,
            Proof::Late(leaf, _) => Some(issue_request::Proof::Late(late(&leaf, &wanted.csr)?)),
        };
        let request = IssueRequest {
            csr: wanted.csr.to_vec(),
            service: self.service.to_string(),
            instance: self.instance.to_owned(),
            proof,
        };
        let answer = { service }
            .issue(request)
            .await
            .map_err(|status| self.failed(status))?
            .into_inner();
        let now = SystemTime::now();
        let local = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let clock_ahead_ms = i64::try_from(local).unwrap_or(i64::MAX).saturating_sub(answer.now_ms);
        let trust = Trust::new(TrustBundle::try_from(answer.trust.unwrap_or_default())?)?;
        if root.is_some_and(|hash| trust.roots.iter().all(|root| root.fingerprint != hash)) {
            return Err(IssueError::OtherRoot);
        }
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let leaf = self.check(chain, &wanted.key, &trust, clock_ahead_ms)?;
        Ok(Issued {
            leaf,
            key: wanted.key.clone(),
            trust,
            clock_ahead_ms,
        })
    }

    /// A leaf that peers would refuse is refused here, with a reason.
    fn check(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &Key,
        trust: &Trust,
        clock_ahead_ms: i64,
    ) -> Result<Leaf, IssueError> {
        let mut leaf = Leaf::new(chain, &key.0, SystemTime::now())?;
        let expected = SpiffeId::new(self.trust_domain.unwrap_or(trust.trust_domain()), self.service)?;
        if leaf.own.id != expected {
            return Err(LeafError::OtherId {
                got: leaf.own.id.clone(),
                expected: expected.to_string(),
            }
            .into());
        }
        match leaf.settle(trust, self.provider, SystemTime::now()) {
            Ok(()) => Ok(leaf),
            Err(Refusal::Chain(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })) => {
                Err(IssueError::Clock {
                    clock: clock(clock_ahead_ms)
                        .unwrap_or_else(|| "this machine's clock and the control plane's differ".into()),
                })
            }
            Err(refusal) => Err(IssueError::Useless(refusal)),
        }
    }

    async fn connect(&self, proof: &Proof) -> Result<tonic::transport::Channel, IssueError> {
        let uri: Uri = self.url.parse().map_err(|_| IssueError::Url(self.url.into()))?;
        let dial = Dial {
            tls: Arc::new(self.tls(proof).map_err(|e| self.unreachable(&e))?),
        };
        let endpoint = Endpoint::from(uri).connect_timeout(CONNECT).tcp_nodelay(true);
        endpoint
            .connect_with_connector(dial)
            .await
            .map_err(|error| self.broken(&error))
    }

    /// Whom this connection trusts, and what it shows.
    fn tls(&self, proof: &Proof) -> Result<ClientConfig, TlsSetup> {
        let algorithms = self.provider.signature_verification_algorithms;
        let (verifier, own): (Arc<dyn ServerCertVerifier>, _) = match proof {
            Proof::Token(_, token) => {
                let domain = self.trust_domain.map(ToOwned::to_owned);
                (Arc::new(ByHash::new(token.root, domain, algorithms)), None)
            }
            Proof::Leaf(leaf, trust) => {
                let expected = control_plane(trust.trust_domain())?;
                let verifier = Verifier::of_server(trust.clone(), algorithms, expected);
                (Arc::new(verifier), Some(view::resolver(leaf)))
            }
            // The expired certificate would be refused before anybody looked at the signature.
            Proof::Late(_, trust) => {
                let expected = control_plane(trust.trust_domain())?;
                (Arc::new(Verifier::of_server(trust.clone(), algorithms, expected)), None)
            }
        };
        let alpn = Alpn::Foreign(Foreign::H2).name().map(|n| n.as_bytes().to_vec());
        Ok(crypto::client(
            self.provider.clone(),
            verifier,
            own.map(|own| own as _),
            alpn.into_iter().collect(),
        )?)
    }

    fn unreachable(&self, why: &dyn std::error::Error) -> IssueError {
        IssueError::Unreachable {
            url: self.url.into(),
            why: causes(why),
        }
    }

    /// Tells a control plane that is somebody else's from one that is away.
    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> IssueError {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let said = error.downcast_ref::<TlsError>();
            if let Some(TlsError::Unverified(why)) = said {
                return IssueError::Untrusted {
                    url: self.url.into(),
                    why: why.clone(),
                };
            }
            cause = error.source();
        }
        self.unreachable(error)
    }

    fn failed(&self, status: tonic::Status) -> IssueError {
        use tonic::Code;
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::AlreadyExists => IssueError::Refused(status),
            // The transport's own failures carry their cause.
            Code::Unavailable | Code::Unknown if std::error::Error::source(&status).is_some() => self.broken(&status),
            _ => IssueError::Failed(status),
        }
    }
}

/// How the clocks differ, in words; none while they agree well enough.
pub(super) fn clock(ahead_ms: i64) -> Option<String> {
    let seconds = ahead_ms.unsigned_abs() / 1000;
    if seconds < 60 {
        return None;
    }
    let far = rough(seconds);
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    Some(format!("this machine's clock is {far} {side} the control plane's"))
}

fn late(leaf: &Leaf, csr: &[u8]) -> Result<LateRenewal, IssueError> {
    let signer = leaf.key.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
    let message = [LATE, csr].concat();
    let signature = signer
        .ok_or(IssueError::Sign)?
        .sign(&message)
        .map_err(|_| IssueError::Sign)?;
    let der = leaf.key.end_entity_cert().map_err(|_| IssueError::Sign)?;
    Ok(LateRenewal {
        leaf: der.to_vec(),
        signature,
    })
}

#[derive(Debug, thiserror::Error)]
enum TlsSetup {
    #[error(transparent)]
    Domain(#[from] FieldError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Dials one address and speaks TLS on it.
#[derive(Clone)]
struct Dial {
    tls: Arc<ClientConfig>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = TlsError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TlsError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone());
        Box::pin(async move {
            let tcp = dial(&uri).await.map_err(TlsError::Handshake)?;
            let opened = tls.connect(view::server_name(), tcp).await;
            opened.map(TokioIo::new).map_err(TlsError::from_handshake)
        })
    }
}

/// Connects to a control plane's address.
///
/// # Errors
/// When it has no host, or nobody answers there.
pub(crate) async fn dial(uri: &Uri) -> io::Result<TcpStream> {
    let host = uri.host().ok_or_else(|| io::Error::other("the URL names no host"))?;
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Joins the causes, of which the transport shows only the outermost and some twice.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
