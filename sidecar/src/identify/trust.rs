//! Whom this workload trusts: the roots, and who is no longer let in. Immutable.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_proto::model::{Revocation, ServiceName, TrustBundle};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{NotAdmitted, Peer};

/// SHA-256 of a certificate's DER.
pub(super) type Fingerprint = [u8; 32];

/// The roots of one trust domain, with what was revoked.
#[derive(Debug)]
pub(super) struct Trust {
    /// As it was pushed, without the roots that are none.
    pub(super) bundle: TrustBundle,
    /// In the order of the bundle: the last one signs new leaves.
    pub(super) roots: Vec<Root>,
    /// The same, as the path builder wants them.
    anchors: Vec<TrustAnchor<'static>>,
    serials: HashSet<String>,
    services: HashSet<ServiceName>,
}

/// One root, for people and for comparing.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) fingerprint: Fingerprint,
    pub(super) subject: String,
    pub(super) not_after: SystemTime,
}

impl Trust {
    /// Reads the roots of `bundle`. One that is no certificate is left out, and named in the log.
    ///
    /// # Errors
    /// When none is left.
    pub(super) fn new(mut bundle: TrustBundle) -> Result<Self, NoRoot> {
        let (mut roots, mut anchors) = (Vec::new(), Vec::new());
        bundle.roots.retain(|der| match read_root(der) {
            Ok((root, anchor)) => {
                roots.push(root);
                anchors.push(anchor);
                true
            }
            Err(why) => {
                tracing::warn!(generation = bundle.generation, %why, "a root of the trust bundle is left out");
                false
            }
        });
        if roots.is_empty() {
            return Err(NoRoot);
        }
        let (mut serials, mut services) = (HashSet::new(), HashSet::new());
        for revoked in &bundle.revoked {
            match revoked {
                Revocation::Serial(serial) => {
                    serials.insert(short(serial));
                }
                Revocation::Service(service) => {
                    services.insert(service.clone());
                }
            }
        }
        Ok(Self {
            bundle,
            roots,
            anchors,
            serials,
            services,
        })
    }

    /// The roots, for the path builder.
    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Whose certificates count.
    pub(super) fn trust_domain(&self) -> &str {
        &self.bundle.trust_domain
    }

    /// The root that `anchor` stands for.
    pub(super) fn root_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Root> {
        let at = self.anchors.iter().position(|a| a == anchor)?;
        self.roots.get(at)
    }

    /// The root that signs new leaves.
    pub(super) fn newest(&self) -> Option<&Root> {
        self.roots.last()
    }

    /// Whether a peer that was let in once still is.
    pub(super) fn admits(&self, peer: &Peer, now: SystemTime) -> Result<(), NotAdmitted> {
        if now >= peer.not_after {
            return Err(NotAdmitted::Expired);
        }
        if self.serials.contains(&peer.serial) || self.services.contains(peer.id.service()) {
            return Err(NotAdmitted::Revoked);
        }
        match self.roots.iter().find(|root| root.fingerprint == peer.root) {
            Some(root) if now < root.not_after => Ok(()),
            _ => Err(NotAdmitted::Untrusted),
        }
    }
}

/// A bundle that trusts nobody.
#[derive(Debug, thiserror::Error)]
#[error("none of its roots is a certificate")]
pub(crate) struct NoRoot;

fn read_root(der: &[u8]) -> Result<(Root, TrustAnchor<'static>), String> {
    let certificate = CertificateDer::from(der);
    let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|e| e.to_string())?;
    let (_, parsed) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let root = Root {
        fingerprint: fingerprint(der),
        subject: parsed.subject().to_string(),
        not_after: time(parsed.validity().not_after.timestamp()),
    };
    Ok((root, anchor.to_owned()))
}

/// SHA-256 of a certificate.
pub(super) fn fingerprint(der: &[u8]) -> Fingerprint {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, der).as_ref());
    out
}

/// A serial without leading zero bytes: an INTEGER of DER has none, a serial written by its length may.
fn short(serial: &str) -> String {
    let mut digits = serial;
    while let Some(rest) = digits.strip_prefix("00").filter(|rest| !rest.is_empty()) {
        digits = rest;
    }
    digits.to_owned()
}

/// A certificate's time; before 1970 is 1970.
pub(super) fn time(unix: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}

/// The same for the path builder.
pub(super) fn unix(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
