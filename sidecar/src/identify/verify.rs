//! Whether a peer's certificate is let in: the only verifier of ours.
//!
//! A path to a root, with the usage of that side, then exactly one URI among the subject alternative
//! names, which is the id. Host names mean nothing here. What cannot be read is refused.

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_proto::model::{FieldError, ServiceName, SpiffeId, TrustBundle};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::trust::{Fingerprint, Trust, fingerprint, time, unix};
use super::{NotAdmitted, Peer};

/// Certificates that a peer may show: the leaf, intermediates, perhaps the root.
const LONGEST_CHAIN: usize = 5;

/// Why a certificate is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More certificates than any chain of ours has.
    #[error("it shows a chain of {0} certificates; at most {LONGEST_CHAIN} are looked at")]
    TooLong(usize),
    /// It does not lead to a root that is trusted, or may not be used so.
    #[error("{}", chain(.0))]
    Chain(webpki::Error),
    /// It may not be used for this side of a connection.
    #[error("its certificate may not be used for this side of a connection")]
    Usage,
    /// It cannot be read.
    #[error("its certificate cannot be read")]
    Malformed,
    /// No URI among its names.
    #[error("its certificate carries no id")]
    NoId,
    /// More than one URI: which one it is nobody knows.
    #[error("its certificate carries {0} ids")]
    ManyIds(usize),
    /// A URI that is no id.
    #[error("its certificate carries `{0}`, which is no id of a workload")]
    NotAnId(String),
    /// Somebody else's workload.
    #[error("it is {0}, of another trust domain")]
    OtherDomain(SpiffeId),
    /// Not the one that was called.
    #[error("it is {got}, and {expected} was expected")]
    Other {
        /// Who it is.
        got: SpiffeId,
        /// Who was called.
        expected: SpiffeId,
    },
    /// It does not show the root whose hash the token carries.
    #[error(
        "it does not show the root that the token names: the token is of another mesh, or somebody answers in the control plane's place"
    )]
    OtherRoot,
    /// It has an id that is not let in any more.
    #[error("it is {id}: {why}")]
    NotAdmitted {
        /// Who it is.
        id: SpiffeId,
        /// Why not.
        why: NotAdmitted,
    },
}

/// Which side shows the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// Verifies a chain, and says who it is.
///
/// # Errors
/// Why it is not let in.
pub(super) fn verify(
    trust: &Trust,
    algorithms: &WebPkiSupportedAlgorithms,
    chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
    side: Side,
    now: SystemTime,
) -> Result<Peer, Refusal> {
    let (leaf, intermediates) = chain;
    if intermediates.len() >= LONGEST_CHAIN {
        return Err(Refusal::TooLong(intermediates.len() + 1));
    }
    let end_entity = EndEntityCert::try_from(leaf).map_err(Refusal::Chain)?;
    let usage = match side {
        Side::Client => KeyUsage::client_auth(),
        Side::Server => KeyUsage::server_auth(),
    };
    let path = end_entity
        .verify_for_usage(
            algorithms.all,
            trust.anchors(),
            intermediates,
            unix(now),
            usage,
            None,
            None,
        )
        .map_err(Refusal::Chain)?;
    let root = trust
        .root_of(path.anchor())
        .ok_or(Refusal::Chain(webpki::Error::UnknownIssuer))?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed)?;
    if !serves_as(&parsed, side) {
        return Err(Refusal::Usage);
    }
    let peer = peer(&parsed, root.fingerprint)?;
    if peer.id.trust_domain() != trust.trust_domain() {
        return Err(Refusal::OtherDomain(peer.id));
    }
    match trust.admits(&peer, now) {
        Ok(()) => Ok(peer),
        Err(why) => Err(Refusal::NotAdmitted { id: peer.id, why }),
    }
}

/// Who a leaf that was verified is. `root` is the one it leads to.
///
/// # Errors
/// When it does not carry exactly one id.
pub(super) fn read(leaf: &[u8], root: Fingerprint) -> Result<Peer, Refusal> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed)?;
    peer(&parsed, root)
}

fn peer(leaf: &X509Certificate<'_>, root: Fingerprint) -> Result<Peer, Refusal> {
    Ok(Peer {
        id: id(leaf)?,
        serial: serial(leaf),
        not_after: time(leaf.validity().not_after.timestamp()),
        root,
    })
}

/// The path builder lets a leaf without the extension through; ours always have it.
fn serves_as(leaf: &X509Certificate<'_>, side: Side) -> bool {
    let usage = leaf.extended_key_usage().ok().flatten();
    usage.is_some_and(|usage| match side {
        Side::Client => usage.value.client_auth,
        Side::Server => usage.value.server_auth,
    })
}

/// The one URI among the subject alternative names.
pub(super) fn id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, Refusal> {
    let names = leaf.subject_alternative_name().map_err(|_| Refusal::Malformed)?;
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [] => Err(Refusal::NoId),
        [uri] => uri
            .parse()
            .map_err(|_| Refusal::NotAnId(uri.chars().take(256).collect())),
        _ => Err(Refusal::ManyIds(uris.len())),
    }
}

/// Lower-case hexadecimal, without leading zero bytes.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    let raw = certificate.raw_serial();
    let start = raw.iter().position(|b| *b != 0).unwrap_or(raw.len().saturating_sub(1));
    raw.iter().skip(start).map(|b| format!("{b:02x}")).collect()
}

/// Looks at the certificates of clients, and at those of servers of one id.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Who a server must be.
    expected: Option<SpiffeId>,
}

impl Verifier {
    /// For the clients of this workload.
    pub(super) fn of_clients(trust: Arc<Trust>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            trust,
            algorithms,
            expected: None,
        }
    }

    /// For the server `expected`.
    pub(super) fn of_server(trust: Arc<Trust>, algorithms: WebPkiSupportedAlgorithms, expected: SpiffeId) -> Self {
        Self {
            trust,
            algorithms,
            expected: Some(expected),
        }
    }
}

impl ClientCertVerifier for Verifier {
    // Which roots are trusted is not said: any client of the mesh has one certificate only.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = (end_entity, intermediates);
        verify(&self.trust, &self.algorithms, chain, Side::Client, clock(now)).map_err(rustls::Error::from)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = (end_entity, intermediates);
        let peer = verify(&self.trust, &self.algorithms, chain, Side::Server, clock(now))?;
        match &self.expected {
            Some(expected) if *expected == peer.id => Ok(ServerCertVerified::assertion()),
            Some(expected) => Err(Refusal::Other {
                got: peer.id,
                expected: expected.clone(),
            }
            .into()),
            None => Err(Refusal::NoId.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Looks at a control plane before the first join: it must show the root whose hash the token carries.
#[derive(Debug)]
pub(super) struct ByHash {
    root: Fingerprint,
    trust_domain: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ByHash {
    /// For the control plane of `trust_domain`; none: of whichever the root is.
    pub(super) fn new(root: Fingerprint, trust_domain: Option<String>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            root,
            trust_domain,
            algorithms,
        }
    }

    fn look(&self, leaf: &CertificateDer<'_>, shown: &[CertificateDer<'_>], now: SystemTime) -> Result<(), Refusal> {
        if shown.len() >= LONGEST_CHAIN {
            return Err(Refusal::TooLong(shown.len() + 1));
        }
        let root = shown.iter().find(|der| fingerprint(der) == self.root);
        let root = root.ok_or(Refusal::OtherRoot)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed)?;
        let said = id(&parsed)?;
        let trust = Trust::new(TrustBundle {
            trust_domain: self
                .trust_domain
                .clone()
                .unwrap_or_else(|| said.trust_domain().to_owned()),
            roots: vec![root.to_vec()],
            generation: 0,
            revoked: Vec::new(),
        })
        .map_err(|_| Refusal::Malformed)?;
        let peer = verify(&trust, &self.algorithms, (leaf, shown), Side::Server, now)?;
        let expected = control_plane(trust.trust_domain()).map_err(|_| Refusal::NoId)?;
        if peer.id == expected {
            Ok(())
        } else {
            Err(Refusal::Other { got: peer.id, expected })
        }
    }
}

impl ServerCertVerifier for ByHash {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.look(end_entity, intermediates, clock(now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Who every control plane of a trust domain is.
///
/// # Errors
/// When it is no trust domain.
pub(super) fn control_plane(trust_domain: &str) -> Result<SpiffeId, FieldError> {
    SpiffeId::new(trust_domain, &ServiceName::new("outrigger", "control-plane")?)
}

/// The refusal as rustls carries it, so that the peer gets the alert that fits.
impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        let error = match &refusal {
            Refusal::Chain(webpki::Error::CertExpired { time, not_after }) => CertificateError::ExpiredContext {
                time: *time,
                not_after: *not_after,
            },
            Refusal::Chain(webpki::Error::CertNotValidYet { time, not_before }) => {
                CertificateError::NotValidYetContext {
                    time: *time,
                    not_before: *not_before,
                }
            }
            Refusal::Chain(webpki::Error::UnknownIssuer) => CertificateError::UnknownIssuer,
            Refusal::NotAdmitted {
                why: NotAdmitted::Revoked,
                ..
            } => CertificateError::Revoked,
            _ => CertificateError::Other(OtherError(Arc::new(refusal))),
        };
        Self::InvalidCertificate(error)
    }
}

/// The refusal that rustls carries, in words.
pub(super) fn describe(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return error.to_string();
    };
    match certificate {
        CertificateError::ExpiredContext { time, not_after } => chain(&webpki::Error::CertExpired {
            time: *time,
            not_after: *not_after,
        }),
        CertificateError::NotValidYetContext { time, not_before } => chain(&webpki::Error::CertNotValidYet {
            time: *time,
            not_before: *not_before,
        }),
        CertificateError::UnknownIssuer => chain(&webpki::Error::UnknownIssuer),
        CertificateError::Revoked => NotAdmitted::Revoked.to_string(),
        CertificateError::Other(OtherError(refusal)) => refusal.to_string(),
        other => other.to_string(),
    }
}

/// What went wrong with a chain, in words.
fn chain(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => {
            let late = rough(time.as_secs().saturating_sub(not_after.as_secs()));
            format!("its certificate expired {late} ago by this machine's clock")
        }
        E::CertNotValidYet { time, not_before } => {
            let early = rough(not_before.as_secs().saturating_sub(time.as_secs()));
            format!(
                "its certificate becomes valid in {early} by this machine's clock, which is at least that far behind \
                 the clock of whoever issued it"
            )
        }
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => {
            "its certificate does not lead to a root that is trusted here".into()
        }
        E::RequiredEkuNotFoundContext(_) => Refusal::Usage.to_string(),
        E::CaUsedAsEndEntity => "it shows a CA's certificate as its own".into(),
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => "its chain is longer than its CA allows".into(),
        other => format!("its certificate is not accepted: {other}"),
    }
}

/// A time that people can read.
pub(super) fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn clock(now: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs())
}
