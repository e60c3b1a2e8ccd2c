//! The connection to an endpoint: mutual TLS under a certificate made for this one call, plain where the service's mode
//! is `off`.
//!
//! The key is made here, never written, and gone with the program.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Uri;
use hyper_util::rt::TokioIo;
use outrigger_proto::model::{ServiceName, SpiffeId, TrustBundle};
use outrigger_sidecar::identify::TlsStream;
use outrigger_sidecar::identify::tool::Caller;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::plane::{Plane, service_name};

/// How one endpoint is reached.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// `host:port`.
    pub(super) address: String,
    /// Who we are and whom we expect; none for a plain connection.
    pub(super) mesh: Option<Mesh>,
}

/// An identity for one call.
#[derive(Debug, Clone)]
pub(super) struct Mesh {
    /// Who we say we are.
    pub(super) own: SpiffeId,
    caller: Caller,
}

impl Mesh {
    /// A certificate of the operator, or of `caller`, to call `service` with.
    pub(super) async fn new(plane: &Plane, caller: Option<&str>, service: &ServiceName) -> anyhow::Result<Self> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
        let mut question = json!({"csr": BASE64_STANDARD.encode(csr.der())});
        if let Some(caller) = caller {
            let (namespace, name) = service_name(caller)?;
            question["as"] = json!(format!("{namespace}/{name}"));
        }
        let answer = plane.send("/v1/certs/operator", &question).await?;
        let chain = certificates(answer.get("chain")).context("the control plane gave no certificate")?;
        let trust = answer.get("trust").unwrap_or(&Value::Null);
        let roots = certificates(trust.get("roots")).context("the control plane named no root")?;
        let domain = trust.get("trust_domain").and_then(Value::as_str).unwrap_or_default();
        let caller = match question.get("as").and_then(Value::as_str) {
            Some(caller) => caller.parse()?,
            None => ServiceName::new("outrigger", "operator")?,
        };
        let trust = TrustBundle {
            trust_domain: domain.to_owned(),
            roots,
            generation: 0,
            revoked: Vec::new(),
        };
        let expected = SpiffeId::new(domain, service)?;
        Ok(Self {
            own: SpiffeId::new(domain, &caller)?,
            caller: Caller::new(chain, key.serialize_der(), trust, expected)?,
        })
    }
}

fn certificates(value: Option<&Value>) -> Option<Vec<Vec<u8>>> {
    let texts = value?.as_array()?.iter().map(|text| text.as_str());
    let ders = texts.map(|text| BASE64_STANDARD.decode(text?).ok());
    ders.collect::<Option<Vec<_>>>().filter(|list| !list.is_empty())
}

impl Line {
    /// Connects. The caller sets the deadline.
    ///
    /// # Cancel safety
    /// Dropped, the connection goes with it.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        let stream = TcpStream::connect(&self.address).await?;
        let Some(mesh) = &self.mesh else {
            return Ok(Stream::Plain(stream));
        };
        let stream = mesh.caller.connect(stream).await.map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// Either kind of connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl tokio::io::AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Lets a gRPC channel connect by a [`Line`].
#[derive(Debug, Clone)]
pub(super) struct Connector(pub(super) Line);

impl tonic::codegen::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let line = self.0.clone();
        Box::pin(async move { line.open().await.map(TokioIo::new) })
    }
}
