//! `/identity`: which certificate this workload has, and how getting the next one goes.

use std::time::SystemTime;

use serde::Serialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Identity;
use super::leaf::Leaf;
use super::progress::Progress;
use super::trust::{Root, Trust};

/// The page. Times are Unix seconds.
#[derive(Debug, Serialize)]
pub struct Page {
    /// `off`, `joining`, `valid`, `expiring` (less than a third of the lifetime is left) or `expired`.
    pub state: &'static str,
    /// What a person should do something about.
    pub warning: Option<String>,
    /// The workload's id.
    pub id: Option<String>,
    /// Lower-case hexadecimal.
    pub serial: Option<String>,
    /// From when on the certificate counts.
    pub not_before: Option<u64>,
    /// Until when it counts.
    pub not_after: Option<u64>,
    /// When it was issued.
    pub issued: Option<u64>,
    /// Who signed it.
    pub issuer: Option<String>,
    /// Subjects of the chain that is shown; a leaf has an id instead.
    pub chain: Vec<String>,
    /// Grows with every certificate of this process.
    pub generation: Option<u64>,
    /// Certificates after the first.
    pub renewals: u64,
    /// Tries that failed.
    pub failures: u64,
    /// The last failure since the last success.
    pub last_error: Option<String>,
    /// How far this machine's clock is ahead of the control plane's, milliseconds; negative is behind.
    pub clock_ahead_ms: Option<i64>,
    /// What is trusted.
    pub trust: Option<Trusted>,
}

/// What is trusted.
#[derive(Debug, Serialize)]
pub struct Trusted {
    /// Whose roots these are.
    pub trust_domain: String,
    /// Of the bundle.
    pub generation: u64,
    /// The last one signs new certificates.
    pub roots: Vec<TrustedRoot>,
    /// Identities that are not let in.
    pub revoked: usize,
}

/// One root.
#[derive(Debug, Serialize)]
pub struct TrustedRoot {
    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub sha256: String,
    /// Its subject.
    pub subject: String,
    /// Until when it counts.
    pub not_after: u64,
    /// True for the one that this workload's certificate leads to.
    pub ours: bool,
}

impl Identity {
    /// What there is to know.
    #[must_use]
    pub fn page(&self) -> Page {
        let (leaf, trust) = self.parts();
        let warning = self.warning();
        let state = match &leaf {
            _ if !self.is_on() => "off",
            None => "joining",
            Some(leaf) if SystemTime::now() >= leaf.own.not_after => "expired",
            Some(_) if warning.is_some() => "expiring",
            Some(_) => "valid",
        };
        let Progress {
            renewals,
            failures,
            ref last_error,
            clock_ahead_ms,
            ..
        } = *self.progress.lock();
        let leaf = leaf.as_deref();
        Page {
            state,
            warning,
            id: leaf.map(|l| l.own.id.to_string()),
            serial: leaf.map(|l| l.own.serial.clone()),
            not_before: leaf.map(|l| unix(l.own.not_before)),
            not_after: leaf.map(|l| unix(l.own.not_after)),
            issued: leaf.map(|l| unix(l.since)),
            issuer: leaf.map(|l| l.issuer.clone()),
            chain: leaf.map(subjects).unwrap_or_default(),
            generation: leaf.map(|l| l.own.generation),
            renewals,
            failures,
            last_error: last_error.as_ref().map(|(_, why)| why.clone()),
            clock_ahead_ms,
            trust: trust.as_deref().map(|trust| trusted(trust, leaf)),
        }
    }

    /// Why nothing may pass although an identity is configured; none when all is well or it is off.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        match self.usable() {
            Err(super::TlsError::NoIdentity(why)) if self.is_on() => Some(format!("identity: {why}")),
            _ => None,
        }
    }
}

fn subjects(leaf: &Leaf) -> Vec<String> {
    let subject = |der: &[u8]| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        Some(parsed.subject().to_string()).filter(|s| !s.is_empty())
    };
    let id = || leaf.own.id.to_string();
    leaf.key
        .cert
        .iter()
        .map(|der| subject(der).unwrap_or_else(id))
        .collect()
}

fn trusted(trust: &Trust, leaf: Option<&Leaf>) -> Trusted {
    let ours = leaf.and_then(|leaf| leaf.root);
    let root = |root: &Root| TrustedRoot {
        sha256: root.fingerprint.iter().map(|b| format!("{b:02x}")).collect(),
        subject: root.subject.clone(),
        not_after: unix(root.not_after),
        ours: ours == Some(root.fingerprint),
    };
    Trusted {
        trust_domain: trust.trust_domain().to_owned(),
        generation: trust.bundle.generation,
        roots: trust.roots.iter().map(root).collect(),
        revoked: trust.bundle.revoked.len(),
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
