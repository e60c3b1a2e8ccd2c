//! The port's TLS as the authority changes: another leaf of its own, other roots, somebody revoked.

use std::sync::Arc;

use tokio::sync::watch;

use super::tls::{Tls, TlsError};
use crate::identity::{Authority, ServerLeaf};
use crate::stop::Stop;

/// Makes the port's TLS anew after each change.
#[derive(Debug)]
pub struct Follower {
    authority: Arc<Authority>,
    chain: watch::Receiver<Arc<ServerLeaf>>,
    changes: watch::Receiver<u64>,
    tls: watch::Sender<Arc<Tls>>,
}

impl Follower {
    /// The TLS of now, and what keeps it up to date.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn new(authority: Arc<Authority>) -> Result<(Self, watch::Receiver<Arc<Tls>>), TlsError> {
        // Asked for before anything is read, so that no change is lost.
        let mut chain = authority.server_chain();
        let changes = authority.changes();
        let leaf = Arc::clone(&chain.borrow_and_update());
        let (tls, receiver) = watch::channel(Arc::new(make(&authority, &leaf)?));
        let follower = Self {
            authority,
            chain,
            changes,
            tls,
        };
        Ok((follower, receiver))
    }

    /// Until `stop`. A change that cannot be used leaves what was there before.
    pub async fn follow(mut self, stop: Stop) {
        loop {
            // Both arms are cancel safe.
            let changed = tokio::select! {
                () = stop.stopped() => return,
                changed = self.chain.changed() => changed,
                changed = self.changes.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let leaf = Arc::clone(&self.chain.borrow_and_update());
            match make(&self.authority, &leaf) {
                Ok(tls) => {
                    self.tls.send_replace(Arc::new(tls));
                }
                Err(error) => tracing::error!(%error, "the port goes on with the TLS of before"),
            }
        }
    }
}

fn make(authority: &Authority, leaf: &ServerLeaf) -> Result<Tls, TlsError> {
    Tls::new(leaf.chain.clone(), leaf.key(), authority.bundle())
}
