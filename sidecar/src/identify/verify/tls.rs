//! The verifier as rustls calls it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::{SpiffeId, TrustBundle};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{LONGEST_CHAIN, Refusal, Side, control_plane, id, verify};
use crate::identify::NotAdmitted;
use crate::identify::trust::{Fingerprint, Trust, fingerprint};

/// Looks at the certificates of clients, and at those of servers of one id.
#[derive(Debug)]
pub(in crate::identify) struct Verifier {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Who a server must be.
    expected: Option<SpiffeId>,
}

impl Verifier {
    /// For the clients of this workload.
    pub(in crate::identify) fn of_clients(trust: Arc<Trust>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            trust,
            algorithms,
            expected: None,
        }
    }

    /// For the server `expected`.
    pub(in crate::identify) fn of_server(
        trust: Arc<Trust>,
        algorithms: WebPkiSupportedAlgorithms,
        expected: SpiffeId,
    ) -> Self {
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
pub(in crate::identify) struct ByHash {
    root: Fingerprint,
    trust_domain: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ByHash {
    /// For the control plane of `trust_domain`; none: of whichever the root is.
    pub(in crate::identify) fn new(
        root: Fingerprint,
        trust_domain: Option<String>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
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

fn clock(now: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs())
}
