//! The whole authority: who gets a certificate, who does not, and what a crash leaves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::model::{Revocation, ServiceName};
use outrigger_proto::wire::agent::{IssueRequest, LateRenewal, issue_request::Proof};
use rcgen::{CertificateParams, KeyPair, SanType, SigningKey as _};

use super::*;

mod issuance;
mod judged;
mod kept;
mod random;
mod rotated;

pub(super) const NOW: Unix = 1_800_000_000;
pub(super) const LIFE: u64 = 3600;

pub(super) fn options() -> Options {
    Options {
        leaf_ttl: Duration::from_secs(LIFE),
        ..Options::default()
    }
}

pub(super) fn open(now: Unix, state_dir: Option<&Path>) -> Arc<Authority> {
    Authority::open(now, state_dir, &options(), &Arc::new(Events::default())).expect("opens")
}

pub(super) fn service(name: &str) -> ServiceName {
    name.parse().expect("a name")
}

/// A sidecar as the authority sees it.
pub(super) struct Workload {
    pub(super) service: String,
    pub(super) instance: String,
    pub(super) key: KeyPair,
    pub(super) leaf: Vec<u8>,
    pub(super) serial: String,
}

impl Workload {
    pub(super) fn new(service: &str, instance: &str) -> Self {
        Self {
            service: service.into(),
            instance: instance.into(),
            key: KeyPair::generate().expect("a key"),
            leaf: Vec::new(),
            serial: String::new(),
        }
    }

    pub(super) fn csr(&self, names: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| SanType::URI((*name).try_into().expect("ASCII")))
            .collect();
        params.serialize_request(&self.key).expect("a request").der().to_vec()
    }

    pub(super) fn request(&self, proof: Option<Proof>) -> IssueRequest {
        IssueRequest {
            csr: self.csr(&[]),
            service: self.service.clone(),
            instance: self.instance.clone(),
            proof,
        }
    }

    pub(super) fn asker(&self) -> Asker {
        Asker::Workload {
            id: SpiffeId::new(TRUST_DOMAIN, &service(&self.service)).expect("an id"),
            serial: self.serial.clone(),
        }
    }

    fn take(&mut self, granted: Result<Granted, Refusal>) -> Result<(), Refusal> {
        let granted = granted?;
        self.leaf = granted.chain[0].clone();
        self.serial = granted.serial;
        Ok(())
    }

    pub(super) fn join(&mut self, authority: &Authority, now: Unix, token: &str) -> Result<(), Refusal> {
        let request = self.request(Some(Proof::Token(token.into())));
        self.take(authority.issue(now, &Asker::Nobody, &request))
    }

    pub(super) fn renew(&mut self, authority: &Authority, now: Unix) -> Result<(), Refusal> {
        self.take(authority.issue(now, &self.asker(), &self.request(None)))
    }

    pub(super) fn late(&self) -> IssueRequest {
        let mut request = self.request(None);
        let signed = [&b"outrigger-late-renewal/1\0"[..], &request.csr].concat();
        let late = LateRenewal {
            leaf: self.leaf.clone(),
            signature: self.key.sign(&signed).expect("signs"),
        };
        request.proof = Some(Proof::Late(late));
        request
    }

    pub(super) fn renew_late(&mut self, authority: &Authority, now: Unix) -> Result<(), Refusal> {
        self.take(authority.issue(now, &Asker::Nobody, &self.late()))
    }
}

pub(super) fn token(authority: &Authority, now: Unix, of: &str, uses: u32) -> String {
    let purpose = Purpose::Join(service(of));
    authority
        .create_token(now, &purpose, uses, 600)
        .expect("a token")
        .to_string()
}

/// One that has joined.
pub(super) fn joined(authority: &Authority, now: Unix, of: &str, instance: &str) -> Workload {
    let mut workload = Workload::new(of, instance);
    workload
        .join(authority, now, &token(authority, now, of, 1))
        .expect("joins");
    workload
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, why: &str) -> Refusal {
    let refusal = result.expect_err(why);
    assert!(refusal.to_string().contains(why), "`{why}`: {refusal}");
    refusal
}

pub(super) fn by_serial(workload: &Workload) -> Revocation {
    Revocation::Serial(workload.serial.clone())
}

pub(super) fn by_service(name: &str) -> Revocation {
    Revocation::Service(service(name))
}
