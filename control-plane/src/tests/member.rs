//! Somebody with an identity that this control plane gave, speaking mutual TLS to it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_lc_rs::digest;
use hyper_util::rt::TokioIo;
use outrigger_proto::model::JoinToken;
use outrigger_proto::wire::agent::identity_client::IdentityClient;
use outrigger_proto::wire::agent::{IssueRequest, issue_request::Proof};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::api::ask;
use super::client::World;
use crate::door::tls::read;

/// What a workload holds.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    pub(super) serial: String,
}

/// A token by which `service` joins.
pub(super) async fn token(world: &World, request: serde_json::Value) -> String {
    let kind = "Content-Type: application/json\r\n";
    let (status, made) = ask(world, "POST", "/v1/tokens", kind, &request.to_string()).await;
    assert!((200..300).contains(&status), "{made}");
    made["token"].as_str().expect("a token").to_owned()
}

impl Member {
    /// Joins as `default/service`.
    pub(super) async fn join(world: &World, service: &str, instance: &str) -> Self {
        let token = token(world, json!({ "service": service })).await;
        Self::join_by(world, &token, service, instance).await.expect("joins")
    }

    /// Joins by `token`; an error is the control plane's.
    pub(super) async fn join_by(world: &World, token: &str, service: &str, instance: &str) -> Result<Self, Status> {
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        let joiner = Client::new(world.address, None, Some(token));
        let mut client = IdentityClient::new(joiner.channel().await.expect("connects"));
        let request = IssueRequest {
            csr: csr.der().to_vec(),
            service: format!("default/{service}"),
            instance: instance.to_owned(),
            proof: Some(Proof::Token(token.to_owned())),
        };
        let issued = client.issue(request).await?.into_inner();
        let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
        let leaf = read(chain.first().expect("a leaf")).expect("an id");
        assert_eq!(leaf.id.service().as_str(), format!("default/{service}"));
        Ok(Self {
            chain,
            key,
            serial: leaf.serial,
        })
    }

    pub(super) fn client(&self, world: &World) -> Client {
        Client::new(world.address, Some(self), None)
    }
}

/// Connects to the TCP port by TLS.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    config: ClientConfig,
}

impl Client {
    /// Nobody, when no member is given. The control plane must be who it is; with a token, of that root.
    pub(super) fn new(address: SocketAddr, member: Option<&Member>, token: Option<&str>) -> Self {
        let root = token
            .and_then(|token| token.parse::<JoinToken>().ok())
            .map(|token| token.root);
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ControlPlane { root }));
        let config = match member {
            Some(member) => {
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(member.key.serialize_der()));
                config.with_client_auth_cert(member.chain.clone(), key).expect("fits")
            }
            None => config.with_no_client_auth(),
        };
        Self { address, config }
    }

    /// A connection for HTTP/1.1.
    pub(super) async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.dial(b"http/1.1").await
    }

    async fn dial(&self, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = self.config.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("control-plane.test").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// A connection for gRPC.
    pub(super) async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_static("http://control-plane.test");
        endpoint.connect_with_connector(self.clone()).await
    }
}

impl Service<Uri> for Client {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.dial(b"h2").await.map(TokioIo::new) })
    }
}

/// Verifies the control plane as a joiner does: the root at the end of what it shows is the token's, the chain leads to
/// it, and the id is the control plane's.
#[derive(Debug)]
struct ControlPlane {
    root: Option<[u8; 32]>,
}

impl ServerCertVerifier for ControlPlane {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = above.last().expect("the root is shown too");
        if let Some(expected) = self.root {
            assert_eq!(
                digest::digest(&digest::SHA256, root).as_ref(),
                expected,
                "the token's root"
            );
        }
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
            .build()
            .expect("a root");
        let id = read(leaf).expect("an id").id;
        assert_eq!(id.service().as_str(), "outrigger/control-plane");
        match verifier.verify_server_cert(leaf, above, name, ocsp, now) {
            // Host names mean nothing in the mesh; everything else was looked at before.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
