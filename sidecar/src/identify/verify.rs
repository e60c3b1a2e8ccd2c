//! Whether a peer's certificate is let in: the only verifier of ours.
//!
//! A path to a root, with the usage of that side, then exactly one URI among the subject alternative
//! names, which is the id. Host names mean nothing here. What cannot be read is refused.

mod tls;
mod words;

use std::time::SystemTime;

use outrigger_proto::model::{FieldError, ServiceName, SpiffeId};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::CertificateDer;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub(super) use tls::{ByHash, Verifier};
pub(super) use words::{alert, describe, rough};

use super::trust::{Fingerprint, Trust, time, unix};
use super::{NotAdmitted, Peer};
use words::chain;

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

/// Who every control plane of a trust domain is.
///
/// # Errors
/// When it is no trust domain.
pub(super) fn control_plane(trust_domain: &str) -> Result<SpiffeId, FieldError> {
    SpiffeId::new(trust_domain, &ServiceName::new("outrigger", "control-plane")?)
}
