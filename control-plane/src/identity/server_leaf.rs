//! The certificate that the control plane itself shows: in memory only, new at each start and long
//! before it ends.

use std::fmt;
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::x509::{Signer, Unix, X509Error};
use super::{Authority, Refusal};

/// A certificate chain and its key.
pub struct ServerLeaf {
    /// Leaf, issuers, and the root too, so that a joiner can compare its hash.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the leaf ends, Unix seconds.
    pub not_after: Unix,
    made: Unix,
    root: u32,
    key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for ServerLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLeaf")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl ServerLeaf {
    pub(super) fn make(now: Unix, signer: &Signer, root: u32, id: &str, life: u64) -> Result<Self, X509Error> {
        let key = KeyPair::generate()?;
        let leaf = signer.leaf(now, &key.subject_public_key_info(), id, life)?;
        let mut chain = signer.chain_of(leaf.der);
        chain.push(signer.root.clone());
        Ok(Self {
            chain,
            not_after: leaf.not_after,
            made: now,
            root,
            key: Zeroizing::new(key.serialize_der()),
        })
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_vec()))
    }

    /// At half its life, when another root signs, or when the clock was set back to before it.
    fn is_due(&self, now: Unix, root: u32) -> bool {
        let half = self.made.saturating_add(self.not_after.saturating_sub(self.made) / 2);
        root != self.root || now >= half || now.saturating_add(super::x509::BACKDATED) < self.made
    }
}

impl Authority {
    /// Makes the control plane's own leaf anew when it is time.
    ///
    /// # Errors
    /// When it cannot be signed; the old one stays.
    pub(super) fn renew_own(&self, now: Unix) -> Result<(), Refusal> {
        let Some(root) = self.state.lock().trust.signing().map(|r| r.number) else {
            return Ok(());
        };
        if !self.server.borrow().is_due(now, root) {
            return Ok(());
        }
        let vault = self.vault.lock();
        let Some(held) = vault.held.get(&root) else {
            return Ok(());
        };
        let made = ServerLeaf::make(now, &held.signer, root, self.id.as_str(), self.leaf_ttl);
        drop(
            made.map(|leaf| self.server.send_replace(Arc::new(leaf)))
                .map_err(|e| Refusal::Signing(e.to_string()))?,
        );
        Ok(())
    }
}

impl ServerLeaf {
    /// Stands in until the first is made.
    pub(super) fn none() -> Self {
        Self {
            chain: Vec::new(),
            not_after: 0,
            made: 0,
            root: 0,
            key: Zeroizing::default(),
        }
    }
}
