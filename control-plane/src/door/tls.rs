//! TLS 1.3 as the control plane speaks it, and what a client's certificate proves.
//!
//! A client may show none: it is nobody then. One that is shown must lead to a root that is trusted now, be valid now,
//! be meant for clients, carry exactly one SPIFFE id of our trust domain, and not be revoked; otherwise there is no
//! connection. No resumption and no tickets, so each connection proves it anew.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_proto::model::{Revocation, SpiffeId, TrustBundle};
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, InvalidMessage,
    OtherError, RootCertStore, ServerConfig, SignatureScheme, WantsVerifier, version,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What the port shows, and whom it trusts, as of one moment.
#[derive(Debug)]
pub struct Tls {
    builder: ConfigBuilder<ServerConfig, WantsVerifier>,
    shown: Arc<SingleCertAndKey>,
    chains: Arc<dyn ClientCertVerifier>,
    trust: Arc<TrustBundle>,
    /// Of the own leaf.
    valid: (SystemTime, SystemTime),
}

/// A client's certificate that is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Who it is.
    pub id: SpiffeId,
    /// Lower-case hexadecimal, without leading zero bytes.
    pub serial: String,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Why the port cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Key, chain or roots do not fit.
    #[error("the control plane's own certificate cannot be used: {0}")]
    Own(#[from] Error),
    /// The roots cannot be used.
    #[error("the roots cannot be used: {0}")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    /// The own leaf cannot be read.
    #[error("the control plane's own certificate cannot be read: {0}")]
    Leaf(#[from] Refusal),
}

/// Why a client's certificate is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not a certificate.
    #[error("its certificate cannot be read")]
    Malformed,
    /// The rule is one and only one URI among its names (X.509-SVID §5.2).
    #[error("its certificate carries {0} ids instead of one")]
    Ids(usize),
    /// The one URI is no id of a workload.
    #[error("its certificate carries `{0}`, which is no id of a workload")]
    NotAnId(String),
    /// Somebody else's workload.
    #[error("it is {0}, of another trust domain")]
    OtherDomain(SpiffeId),
    /// It was revoked.
    #[error("{0} is revoked; `outrigger certs allow` lets it in again")]
    Revoked(SpiffeId),
    /// It has ended.
    #[error("the certificate of {0} has expired")]
    Expired(SpiffeId),
}

/// What one handshake found out, for the log.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Option<String>>);

/// Speaks TLS as everything in the mesh does.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

impl Tls {
    /// Shows `chain` and lets in whom `trust` says.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        trust: TrustBundle,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let valid = match chain.first() {
            Some(leaf) => validity(leaf)?,
            None => return Err(Error::NoCertificatesPresented.into()),
        };
        let mut roots = RootCertStore::empty();
        for root in &trust.roots {
            roots.add(CertificateDer::from_slice(root).into_owned())?;
        }
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            // Which roots are trusted is not said to whoever asks.
            .clear_root_hint_subjects()
            .allow_unauthenticated()
            .build()?;
        let shown = CertifiedKey::from_der(chain, key, &provider)?;
        Ok(Self {
            builder: ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&version::TLS13])?,
            shown: Arc::new(SingleCertAndKey::from(shown)),
            chains,
            trust: Arc::new(trust),
            valid,
        })
    }

    /// The settings of one handshake, and what it will find out.
    #[must_use]
    pub fn accept(&self) -> (Arc<ServerConfig>, Arc<Notes>) {
        let notes = Arc::new(Notes::default());
        let verifier = Verifier {
            chains: Arc::clone(&self.chains),
            trust: Arc::clone(&self.trust),
            notes: Arc::clone(&notes),
        };
        let mut config = self
            .builder
            .clone()
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&self.shown) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        (Arc::new(config), notes)
    }

    /// Whether a certificate that was let in still is.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, leaf: &Leaf, now: SystemTime) -> Result<(), Refusal> {
        if now > leaf.not_after {
            return Err(Refusal::Expired(leaf.id.clone()));
        }
        admits(&self.trust, leaf)
    }

    /// Why a handshake failed, for whoever looks after this control plane.
    #[must_use]
    pub fn explain(&self, error: &std::io::Error, notes: &Notes) -> String {
        if let Some(note) = notes.0.lock().take() {
            return note;
        }
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
                let (from, until) = self.valid;
                let now = SystemTime::now();
                let ahead = until.duration_since(now).unwrap_or_default();
                let behind = now.duration_since(from).unwrap_or_default();
                format!(
                    "it says that our certificate is not valid now: its clock or ours is off, either its clock is ahead \
                     by {} or more, or behind by {} or more",
                    about(ahead),
                    about(behind)
                )
            }
            Some(Error::AlertReceived(AlertDescription::UnknownCA)) => {
                "it does not trust our root; was it joined to another control plane?".to_owned()
            }
            Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                "it does not speak TLS, and this port speaks nothing else".to_owned()
            }
            Some(Error::PeerIncompatible(why)) => format!("it cannot speak TLS 1.3 as the mesh does: {why:?}"),
            Some(other) => other.to_string(),
            None => error.to_string(),
        }
    }
}

fn admits(trust: &TrustBundle, leaf: &Leaf) -> Result<(), Refusal> {
    if leaf.id.trust_domain() != trust.trust_domain {
        return Err(Refusal::OtherDomain(leaf.id.clone()));
    }
    let revoked = trust.revoked.iter().any(|revocation| match revocation {
        Revocation::Serial(serial) => bare(serial) == bare(&leaf.serial),
        Revocation::Service(service) => service == leaf.id.service(),
    });
    match revoked {
        true => Err(Refusal::Revoked(leaf.id.clone())),
        false => Ok(()),
    }
}

/// Two spellings of one number are the same.
fn bare(serial: &str) -> &str {
    serial.trim_start_matches('0')
}

/// What a leaf says; whether it may is the verifier's business.
///
/// # Errors
/// When it does not carry exactly one id.
pub fn read(leaf: &[u8]) -> Result<Leaf, Refusal> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|_| Refusal::Malformed)?;
    let names = names
        .map(|names| names.value.general_names.as_slice())
        .unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(Refusal::Ids(uris.len()));
    };
    let id = uri
        .parse()
        .map_err(|_| Refusal::NotAnId(uri.chars().take(256).collect()))?;
    let raw = parsed.raw_serial();
    let start = raw.iter().position(|b| *b != 0).unwrap_or(raw.len().saturating_sub(1));
    let (not_before, not_after) = times(&parsed);
    Ok(Leaf {
        id,
        serial: raw.iter().skip(start).map(|b| format!("{b:02x}")).collect(),
        not_before,
        not_after,
    })
}

fn validity(leaf: &[u8]) -> Result<(SystemTime, SystemTime), Refusal> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed)?;
    Ok(times(&parsed))
}

fn times(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = certificate.validity();
    (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    )
}

/// A length of time as a person says it: at most two units.
fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    let whole = match seconds {
        0..600 => seconds,
        600..86_400 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// Looks at one client's certificate. Chain, time and usage are rustls' own; the id and revocations are ours.
#[derive(Debug)]
struct Verifier {
    chains: Arc<dyn ClientCertVerifier>,
    trust: Arc<TrustBundle>,
    notes: Arc<Notes>,
}

impl Verifier {
    fn refused(&self, leaf: Option<&Leaf>, error: &Error, now: SystemTime) {
        // Nothing that it says is proven: the chain did not hold.
        let claim = leaf.map_or_else(
            || "a client".to_owned(),
            |leaf| format!("a client that says it is {}", leaf.id),
        );
        let text = match (error, leaf) {
            (
                Error::InvalidCertificate(CertificateError::ExpiredContext { .. } | CertificateError::Expired),
                Some(leaf),
            ) => {
                let ago = about(now.duration_since(leaf.not_after).unwrap_or_default());
                format!(
                    "{claim} shows a certificate that expired {ago} ago: it was not renewed in time, or its clock or \
                     ours is off by about that much"
                )
            }
            (
                Error::InvalidCertificate(CertificateError::NotValidYetContext { .. } | CertificateError::NotValidYet),
                Some(leaf),
            ) => {
                let ahead = about(leaf.not_before.duration_since(now).unwrap_or_default());
                format!(
                    "{claim} shows a certificate that begins in {ahead}: its clock or ours is off, ours probably behind \
                     by about that much"
                )
            }
            _ => format!("{claim} shows a certificate that is not let in: {error}"),
        };
        *self.notes.0.lock() = Some(text);
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.chains.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let time = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let leaf = read(end_entity);
        let verified = self
            .chains
            .verify_client_cert(end_entity, intermediates, now)
            .inspect_err(|error| self.refused(leaf.as_ref().ok(), error, time))?;
        match leaf.and_then(|leaf| admits(&self.trust, &leaf)) {
            Ok(()) => Ok(verified),
            Err(refusal) => {
                *self.notes.0.lock() = Some(refusal.to_string());
                Err(Error::InvalidCertificate(match refusal {
                    Refusal::Revoked(_) => CertificateError::Revoked,
                    refusal => CertificateError::Other(OtherError(Arc::new(refusal))),
                }))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
