//! A leaf with its key, and what is wrong with a pair that is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_proto::model::SpiffeId;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Own;
use super::schedule::Times;
use super::trust::{Fingerprint, Trust, time};
use super::verify::{self, Refusal, Side};

/// A certificate of this workload, with its key and its chain.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) own: Arc<Own>,
    /// With the chain as it is shown: the leaf first.
    pub(super) key: Arc<CertifiedKey>,
    /// When it was issued; it counts from 10 min earlier.
    pub(super) since: SystemTime,
    /// The root that it leads to, once that is known.
    pub(super) root: Option<Fingerprint>,
    /// Who signed it.
    pub(super) issuer: String,
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
    /// Puts key and chain together. The generation grows with every call.
    ///
    /// # Errors
    /// When they are no pair, or the certificate has no id.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        since: SystemTime,
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
        let issuer = parsed.issuer().to_string();
        let key = CertifiedKey::new(chain, any_supported_type(key).map_err(LeafError::Key)?);
        match key.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(LeafError::OtherKey),
            Err(other) => return Err(LeafError::Key(other)),
        }
        Ok(Self {
            // A clock that was wrong then says nothing now.
            since: since.clamp(own.not_before, own.not_after.max(own.not_before)),
            own: Arc::new(own),
            key: Arc::new(key),
            root: None,
            issuer,
        })
    }

    /// Shows `chain` whatever it says.
    #[cfg(test)]
    pub(super) fn bare(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Self {
        let hour = Duration::from_secs(3600);
        let own = Own {
            id: super::testing::id("default/bare").parse().expect("an id"),
            serial: "1".into(),
            not_before: SystemTime::now() - hour,
            not_after: SystemTime::now() + hour,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed) + 1,
        };
        Self {
            since: own.not_before,
            own: Arc::new(own),
            key: Arc::new(CertifiedKey::new(chain, any_supported_type(key).expect("a key"))),
            root: None,
            issuer: String::new(),
        }
    }

    /// Finds the root that it leads to, and checks that both sides of a connection would let it in.
    ///
    /// # Errors
    /// Why they would not.
    pub(super) fn settle(&mut self, trust: &Trust, provider: &CryptoProvider, now: SystemTime) -> Result<(), Refusal> {
        let (leaf, intermediates) = self.key.cert.split_first().ok_or(Refusal::NoId)?;
        let algorithms = &provider.signature_verification_algorithms;
        let verify = |side| verify::verify(trust, algorithms, (leaf, intermediates), side, now);
        verify(Side::Client)?;
        self.root = Some(verify(Side::Server)?.root);
        Ok(())
    }

    /// How long it counts, from when it was issued.
    pub(super) fn lifetime(&self) -> Duration {
        self.own.not_after.duration_since(self.since).unwrap_or_default()
    }

    /// When it was issued and when it expires.
    pub(super) fn times(&self) -> Times {
        Times {
            since: self.since,
            not_after: self.own.not_after,
        }
    }
}

/// Leaves of this process so far.
static GENERATION: AtomicU64 = AtomicU64::new(0);
