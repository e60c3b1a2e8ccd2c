//! Who is who: the certificate authority, the tokens by which workloads join, and what was revoked.
//!
//! - [`Authority`]: opened once (`open`), keeps keys (`vault`) and state (`state`, `disk`).
//! - `issue`: who gets a certificate; `queue` and `service`: in which order, and over gRPC.
//! - `manage`: what an operator does; `figures`: what a scraper reads; `upkeep` and `rotation`: what time does.
//! - `x509`, `csr`, `brought`, `files`: certificates, requests, a CA that was brought along, files.
//!
//! What is answered is durable first; what cannot be stored is refused. Nothing here trusts what a
//! request says of itself: [`Asker`] is what the connection proved.
//!
//! Lock order: rotating, disk, state, vault; the others are taken alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_proto::model::{EndpointName, SpiffeId, TrustBundle, check_trust_domain};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::events::{Event, Events};

mod asker;
mod brought;
mod csr;
mod disk;
mod figures;
mod files;
#[cfg(fuzzing)]
pub mod fuzz;
mod issue;
mod limit;
mod manage;
mod open;
mod queue;
mod refusal;
mod rotation;
mod server_leaf;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod upkeep;
mod vault;
mod x509;

pub use asker::Asker;
pub use brought::{BroughtError, CaFiles};
pub use disk::DiskError;
pub use figures::{Figures, RootFigures};
pub use files::FileError;
pub use issue::Granted;
pub use manage::{CertView, CertsView, Purpose, RootView, RotationView, TokenView};
pub use refusal::Refusal;
pub use rotation::Phase;
pub use server_leaf::ServerLeaf;
pub use service::Service;
pub use upkeep::{Alone, Fleet};
pub use vault::VaultError;
pub use x509::{Unix, X509Error};

use disk::Disk;
use limit::Limits;
use state::{State, Write};
use vault::Vault;

/// The namespace of the mesh's own programs; no service of a user is in it.
pub const RESERVED: &str = "outrigger";
/// The trust domain when none is said.
pub const TRUST_DOMAIN: &str = "outrigger.local";
/// The service under which the control plane itself is known.
pub const CONTROL_PLANE: &str = "control-plane";
/// The service under which a person is known.
pub const OPERATOR: &str = "operator";

/// How the authority works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Fixed when the CA is made; none: what it was, or [`TRUST_DOMAIN`].
    pub trust_domain: Option<String>,
    /// A CA that the operator brings along; none: one of our own.
    pub ca: Option<CaFiles>,
    /// How long a leaf lives.
    pub leaf_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: None,
            ca: None,
            leaf_ttl: Duration::from_secs(12 * 3600),
        }
    }
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the state directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The keys.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A certificate cannot be made.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// The CA that was brought along.
    #[error("the CA that was brought along cannot be used: {0}")]
    Brought(#[from] BroughtError),
    /// The stored state.
    #[error("{path}: {source}")]
    Disk {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DiskError,
    },
    /// The keys are there, and what was revoked is not known.
    #[error(
        "{directory} holds a CA, and {file} is gone, which knows what was revoked; restore it, or move the \
         directory away to begin a new mesh that every workload has to join again"
    )]
    Lost {
        /// The CA's directory.
        directory: PathBuf,
        /// What is missing.
        file: String,
    },
    /// A trust domain that is not one.
    #[error("`{0}` is not a trust domain: 1 to 255 of a-z, 0-9, `.`, `-`, `_`")]
    NoTrustDomain(String),
    /// The CA was made for another trust domain.
    #[error("the CA in {place} was made for the trust domain {stored}, which cannot be changed to {given}")]
    TrustDomain {
        /// Where the CA is.
        place: PathBuf,
        /// Its trust domain.
        stored: String,
        /// The one that was asked for.
        given: String,
    },
    /// The CA in the state directory is another one than what the options say.
    #[error("{place}: {reason}")]
    OtherCa {
        /// Where the CA is.
        place: PathBuf,
        /// How it differs.
        reason: String,
    },
}

/// The authority of one mesh.
#[derive(Debug)]
pub struct Authority {
    /// Seconds that a leaf lives.
    leaf_ttl: u64,
    id: SpiffeId,
    events: Arc<Events>,
    disk: Mutex<Disk>,
    state: Mutex<State>,
    vault: Mutex<Vault>,
    limits: Mutex<Limits>,
    server: watch::Sender<Arc<ServerLeaf>>,
    /// Grows with each change of the bundle.
    changes: watch::Sender<u64>,
    rounds: Mutex<upkeep::Rounds>,
    /// One rotation is begun at a time. Taken before all others.
    rotating: Mutex<()>,
    failing: AtomicBool,
}

/// Seconds since 1970 by this machine's clock.
#[must_use]
pub fn clock() -> Unix {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Authority {
    /// The trust domain of this mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.id.trust_domain()
    }

    /// The control plane's own id.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What every workload trusts now.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        let state = self.state.lock();
        let vault = self.vault.lock();
        let root = |r: &rotation::Root| vault.held.get(&r.number).map(|h| h.signer.root.to_vec());
        TrustBundle {
            trust_domain: state.trust.trust_domain.clone(),
            roots: state.trust.roots.iter().filter_map(root).collect(),
            generation: state.trust.generation,
            revoked: state.revocations(),
        }
    }

    /// The roots that are trusted now; the last one signs.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.bundle().roots.into_iter().map(CertificateDer::from).collect()
    }

    /// Grows with each change of the bundle: roots and revocations.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The certificate that the control plane shows; another one long before it ends.
    #[must_use]
    pub fn server_chain(&self) -> watch::Receiver<Arc<ServerLeaf>> {
        self.server.subscribe()
    }

    /// Whether a workload whose certificate was verified is still let in.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, id: &SpiffeId, serial: &str) -> Result<(), Refusal> {
        let state = self.state.lock();
        if id.trust_domain() != state.trust.trust_domain {
            return Err(Refusal::Forbidden(format!("{id} is of another trust domain")));
        }
        if state.is_revoked(id.service().as_str()) {
            return Err(Refusal::Forbidden(format!("{} is revoked", id.service())));
        }
        if state.is_revoked(serial) {
            return Err(Refusal::Forbidden(format!("the certificate {serial} is revoked")));
        }
        Ok(())
    }

    /// Whether an instance may no longer serve: its service was revoked, or a certificate of its own.
    #[must_use]
    pub fn bars(&self, name: &EndpointName) -> bool {
        let state = self.state.lock();
        let registration = state.registrations.get(&name.to_string());
        state.is_revoked(name.service.as_str()) || registration.is_some_and(|r| r.revoked)
    }

    /// Whether the state can be stored; while it cannot, nothing is granted.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Decides, stores, and only then lets it be so.
    fn change<T>(&self, decide: impl FnOnce(&State) -> Result<(Vec<Write>, T), Refusal>) -> Result<T, Refusal> {
        let mut disk = self.disk.lock();
        let (writes, done) = decide(&self.state.lock())?;
        if writes.is_empty() {
            return Ok(done);
        }
        if let Err(error) = disk.commit(|| self.state.lock().clone(), &writes) {
            let reason = error.to_string();
            if !self.failing.swap(true, Ordering::Relaxed) {
                self.events
                    .record(Event::IdentityStoreFailed { reason: reason.clone() });
            }
            return Err(Refusal::Store(reason));
        }
        self.failing.store(false, Ordering::Relaxed);
        let mut state = self.state.lock();
        let told = writes.iter().any(|w| match w {
            Write::Revoked(..) => true,
            Write::Trust(trust) => trust.generation != state.trust.generation,
            Write::Token(..) | Write::Registration(..) => false,
        });
        for write in writes {
            state.apply(write);
        }
        drop(state);
        if told {
            self.changes.send_modify(|n| *n += 1);
        }
        Ok(done)
    }
}

/// Whether a mesh was begun in `state_dir`: its CA is there.
#[must_use]
pub fn has_begun(state_dir: &Path) -> bool {
    place(state_dir).exists()
}

/// Where the CA is kept below a state directory.
fn place(state_dir: &Path) -> PathBuf {
    state_dir.join("ca")
}

fn check_domain(trust_domain: &str) -> Result<(), Error> {
    check_trust_domain(trust_domain).map_err(|_| Error::NoTrustDomain(trust_domain.to_owned()))
}
