//! A leaf with its key, and what is wrong with a pair that is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_proto::model::SpiffeId;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Own;
use super::trust::{Fingerprint, fingerprint, time};
use super::verify::{self, Refusal};

/// A certificate of this workload, with its key and its chain.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) own: Arc<Own>,
    pub(super) key: Arc<CertifiedKey>,
    /// Of the leaf itself.
    pub(super) fingerprint: Fingerprint,
}

/// Why key and chain are no identity.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeafError {
    #[error("there is no certificate in the chain")]
    Empty,
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("{0}")]
    Id(Refusal),
    #[error("the key does not belong to the certificate")]
    OtherKey,
    #[error("the key cannot be used")]
    Key(#[source] rustls::Error),
    #[error("the certificate is of {got}, and this workload is {expected}")]
    OtherId { got: SpiffeId, expected: String },
}

impl Leaf {
    /// Puts key and chain together. `generation` of the result grows with every call.
    ///
    /// # Errors
    /// When they are no pair, or the certificate has no id.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Self, LeafError> {
        let first = chain.first().ok_or(LeafError::Empty)?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|_| LeafError::Malformed)?;
        let own = Own {
            id: verify::id(&parsed).map_err(LeafError::Id)?,
            serial: verify::serial(&parsed),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let fingerprint = fingerprint(first);
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => LeafError::OtherKey,
            other => LeafError::Key(other),
        })?;
        Ok(Self {
            own: Arc::new(own),
            key: Arc::new(key),
            fingerprint,
        })
    }
}

/// Leaves of this process so far.
static GENERATION: AtomicU64 = AtomicU64::new(0);
