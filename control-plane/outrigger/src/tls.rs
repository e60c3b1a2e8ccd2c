//! TLS as the command line speaks it: to the control plane, known by the root in a token, and to a workload, as operator.
//!
//! TLS 1.3 only, no resumption. Whoever answers must hold the one identity that is asked for; names and addresses in a
//! certificate count for nothing.

use std::fmt;
use std::io;
use std::sync::Arc;

use aws_lc_rs::digest;
use outrigger_proto::model::{ServiceName, SpiffeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Whom to believe.
#[derive(Debug)]
pub(crate) enum Trust {
    /// The root of which this is the SHA-256; whoever answers shows it.
    Pin([u8; 32]),
    /// These roots.
    Roots(Vec<CertificateDer<'static>>),
}

/// Who has to answer.
#[derive(Debug)]
pub(crate) enum Expected {
    /// The control plane of whichever trust domain the trusted root is of.
    ControlPlane,
    /// A workload.
    Workload(SpiffeId),
}

/// With what we show who we are.
#[derive(Debug)]
pub(crate) struct Own {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Why somebody is not who has to answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Stranger {
    #[error(
        "its certificates come from another root than the token's: it is not the control plane that made the token"
    )]
    OtherRoot,
    #[error("its certificate has no identity of a mesh")]
    NoId,
    #[error("it is {is}, not {expected}")]
    OtherId {
        /// As its certificate says.
        is: SpiffeId,
        /// As asked for.
        expected: String,
    },
}

/// Makes the TCP connection `stream` a TLS one with whoever is `expected`. The caller sets the deadline.
///
/// # Errors
/// With what a person can do something about, where that is known.
///
/// # Cancel safety
/// Dropped, the connection goes with it.
pub(crate) async fn connect(
    stream: TcpStream,
    trust: Trust,
    expected: Expected,
    own: Option<Own>,
    alpn: &[&[u8]],
) -> io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier {
        trust,
        expected,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => builder
            .with_client_auth_cert(own.chain, own.key)
            .map_err(io::Error::other)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    // Not sent, and not looked at: the verifier asks for an identity.
    let name = ServerName::try_from("outrigger").map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(plain)
}

/// Takes the wrapping off our own reasons.
fn plain(error: io::Error) -> io::Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .cloned();
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            io::Error::new(io::ErrorKind::PermissionDenied, reason.to_string())
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYetContext { .. } | CertificateError::ExpiredContext { .. },
        )) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{error}; are the clocks of both machines right?"),
        ),
        Some(rustls::Error::AlertReceived(alert)) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it does not take us: {alert:?}"),
        ),
        _ => error,
    }
}

struct Verifier {
    trust: Trust,
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<RootCertStore, rustls::Error> {
        let mut store = RootCertStore::empty();
        match &self.trust {
            Trust::Roots(roots) => {
                for root in roots {
                    store.add(root.clone())?;
                }
            }
            Trust::Pin(pin) => {
                let root = shown.iter().find(|certificate| sha256(certificate) == *pin);
                store.add(root.ok_or_else(|| stranger(Stranger::OtherRoot))?.clone().into_owned())?;
            }
        }
        Ok(store)
    }

    fn check_id(&self, leaf: &CertificateDer<'_>) -> Result<(), Stranger> {
        let is = id(leaf).ok_or(Stranger::NoId)?;
        let (same, expected) = match &self.expected {
            Expected::ControlPlane => (is_control_plane(is.service()), "a control plane".to_owned()),
            Expected::Workload(id) => (is == *id, id.to_string()),
        };
        if same {
            Ok(())
        } else {
            Err(Stranger::OtherId { is, expected })
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.roots(intermediates)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &roots,
            intermediates,
            now,
            algorithms,
        )?;
        self.check_id(leaf).map_err(stranger)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn stranger(why: Stranger) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

fn is_control_plane(service: &ServiceName) -> bool {
    (service.namespace(), service.service()) == ("outrigger", "control-plane")
}

/// The one identity in a certificate; none when it has several names (X.509-SVID §2: exactly one URI).
fn id(leaf: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let mut names = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    match (names.next(), names.next()) {
        (Some(GeneralName::URI(uri)), None) => uri.parse().ok(),
        _ => None,
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
