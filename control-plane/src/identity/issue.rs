//! Grants a certificate: by token, by the current leaf, or late by the newest one.
//!
//! Checked twice: at once from memory, so that nobody unproven gets into the queue, and again when it
//! is carried out, because something may have changed while it waited.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use outrigger_proto::model::{EndpointName, JoinToken, SpiffeId, TrustBundle};
use outrigger_proto::wire::agent::{IssueRequest, LateRenewal, issue_request};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::csr::{Csr, p256, sha256};
use super::limit;
use super::state::{Issued, LATE, Registration, State, Token, Write};
use super::x509::{Leaf, Unix, hex, shown};
use super::{Asker, Authority, RESERVED, Refusal};
use crate::events::Event;

/// What a late renewal signs before the request itself.
const LATE_PREFIX: &[u8] = b"outrigger-late-renewal/1\0";
/// Workloads that are remembered.
const MAX_REGISTRATIONS: usize = 100_000;

/// A certificate that was granted.
#[derive(Debug, Clone)]
pub struct Granted {
    /// Leaf first, then intermediates; DER.
    pub chain: Vec<Vec<u8>>,
    /// What to trust.
    pub trust: TrustBundle,
    /// The leaf's serial.
    pub serial: String,
    /// When the leaf ends, Unix seconds.
    pub not_after: Unix,
}

/// How somebody proves who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Join { token: String },
    Renew { serial: String },
    Late { serial: String },
}

/// A request that may be granted.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    name: EndpointName,
    id: SpiffeId,
    csr: Csr,
    way: Way,
}

impl Checked {
    /// Whether somebody who has a valid leaf asks: these go first.
    pub(super) fn is_renewal(&self) -> bool {
        matches!(self.way, Way::Renew { .. })
    }
}

impl Authority {
    /// Grants or refuses. Waits for the disk.
    ///
    /// # Errors
    /// Why not.
    pub fn issue(&self, now: Unix, asker: &Asker, request: &IssueRequest) -> Result<Granted, Refusal> {
        let checked = self.check(now, asker, request)?;
        self.grant(now, &checked)
    }

    /// Whether the request may be granted. From memory; does not wait.
    pub(super) fn check(&self, now: Unix, asker: &Asker, request: &IssueRequest) -> Result<Checked, Refusal> {
        self.checked(now, asker, request).inspect_err(|refusal| {
            let who = format!("{}/{}", request.service, request.instance);
            self.tell_refused(now, &who, refusal);
        })
    }

    fn checked(&self, now: Unix, asker: &Asker, request: &IssueRequest) -> Result<Checked, Refusal> {
        let name: EndpointName = format!("{}/{}", request.service, request.instance)
            .parse()
            .map_err(|e| Refusal::Malformed(format!("{e}")))?;
        let id = SpiffeId::new(self.trust_domain(), &name.service).map_err(|e| Refusal::Malformed(e.to_string()))?;
        let way = authenticate(&self.state.lock(), asker, request, &name)?;
        self.take(now, &name)?;
        let csr = Csr::parse(&request.csr).map_err(Refusal::Malformed)?;
        if let (Way::Late { .. }, Some(issue_request::Proof::Late(late))) = (&way, &request.proof) {
            proves_key(late, &request.csr)?;
        }
        csr.asks_only_for(&id).map_err(Refusal::Forbidden)?;
        let checked = Checked { name, id, csr, way };
        permit(&self.state.lock(), now, &checked)?;
        Ok(checked)
    }

    /// Signs what was checked, once it is durable that it is granted.
    pub(super) fn grant(&self, now: Unix, checked: &Checked) -> Result<Granted, Refusal> {
        let granted = self.change(|state| {
            let permitted = permit(state, now, checked)?;
            let (leaf, chain) = self.sign(now, state, &checked.csr.key, checked.id.as_str(), self.leaf_ttl)?;
            let mut writes = issued(state, now, &checked.name, permitted.registration, &leaf);
            writes.extend(permitted.token.map(|(id, token)| Write::Token(id, Some(token))));
            Ok((writes, (leaf, chain)))
        });
        let (leaf, chain) =
            granted.inspect_err(|refusal| self.tell_refused(now, &checked.name.to_string(), refusal))?;
        if let Way::Join { token } = &checked.way {
            self.events.record(Event::Joined {
                instance: checked.name.to_string(),
                serial: leaf.serial.clone(),
                token: token.clone(),
            });
        }
        Ok(self.granted(leaf, chain))
    }

    pub(super) fn granted(&self, leaf: Leaf, chain: Vec<Vec<u8>>) -> Granted {
        Granted {
            chain,
            trust: self.bundle(),
            serial: leaf.serial,
            not_after: leaf.not_after,
        }
    }

    /// Signs a leaf under the root that signs now.
    pub(super) fn sign(
        &self,
        now: Unix,
        state: &State,
        key: &[u8],
        id: &str,
        life: u64,
    ) -> Result<(Leaf, Vec<Vec<u8>>), Refusal> {
        let vault = self.vault.lock();
        let held = state.trust.signing().and_then(|r| vault.held.get(&r.number));
        let held = held.ok_or_else(|| Refusal::Signing("there is no key to sign with".into()))?;
        let leaf = held
            .signer
            .leaf(now, key, id, life)
            .map_err(|e| Refusal::Signing(e.to_string()))?;
        let chain = held.signer.chain_of(leaf.der.clone());
        Ok((leaf, chain.into_iter().map(|der| der.to_vec()).collect()))
    }

    /// Notes that the owner of a leaf showed it, so that the one before is of no more use.
    ///
    /// # Errors
    /// When that cannot be stored.
    pub fn shown(&self, serial: &str) -> Result<(), Refusal> {
        let news = |state: &State| {
            let (name, registration) = state.of_serial(serial)?;
            let newest = registration.newest().is_some_and(|l| l.serial == serial);
            (newest && !registration.confirmed).then(|| (name.clone(), registration.clone()))
        };
        if news(&self.state.lock()).is_none() {
            return Ok(());
        }
        self.change(|state| {
            let Some((name, mut registration)) = news(state) else {
                return Ok((Vec::new(), ()));
            };
            registration.confirmed = true;
            Ok((vec![Write::Registration(name, Some(registration))], ()))
        })
    }

    fn take(&self, now: Unix, name: &EndpointName) -> Result<(), Refusal> {
        let mut limits = self.limits.lock();
        for (who, rate) in [
            (name.to_string(), limit::INSTANCE),
            (name.service.to_string(), limit::SERVICE),
        ] {
            let taken = limits.take(now, &who, rate);
            taken.map_err(|seconds| Refusal::TooOften { who, seconds })?;
        }
        Ok(())
    }

    /// Anybody can cause refusals, so only some of many are told.
    pub(super) fn tell_refused(&self, now: Unix, who: &str, refusal: &Refusal) {
        if self.limits.lock().take(now, "refusals", limit::TOLD).is_ok() {
            let who = who.chars().take(200).collect();
            let reason = refusal.to_string();
            self.events.record(Event::CertificateRefused { who, reason });
        }
    }
}

/// The changes that keep a leaf of `name`.
pub(super) fn issued(
    state: &State,
    now: Unix,
    name: &EndpointName,
    mut registration: Registration,
    leaf: &Leaf,
) -> Vec<Write> {
    let mut trust = state.trust.clone();
    let number = trust.roots.last_mut().map_or(0, |root| {
        root.last_leaf = root.last_leaf.max(leaf.not_after);
        root.number
    });
    registration.add(
        now,
        Issued {
            serial: leaf.serial.clone(),
            hash: leaf.hash.clone(),
            root: number,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        },
    );
    vec![
        Write::Trust(trust),
        Write::Registration(name.to_string(), Some(registration)),
    ]
}

/// What is proven, from the connection and the request.
fn authenticate(state: &State, asker: &Asker, request: &IssueRequest, name: &EndpointName) -> Result<Way, Refusal> {
    match (&request.proof, asker) {
        (Some(issue_request::Proof::Token(text)), _) => {
            let token: JoinToken = text.parse().map_err(|e| Refusal::Unproven(format!("{e}")))?;
            let stored = knows(state, &token)?;
            if stored.operator {
                let why = "this token is an operator's: it opens the API, and no workload joins by it";
                return Err(Refusal::Forbidden(why.into()));
            }
            if stored.service != name.service.as_str() {
                let why = format!("the token is for {}, not for {}", stored.service, name.service);
                return Err(Refusal::Forbidden(why));
            }
            Ok(Way::Join { token: token.id })
        }
        (Some(issue_request::Proof::Late(late)), _) => late_by(state, late),
        (None, Asker::Workload { id, serial }) => {
            if id.trust_domain() != state.trust.trust_domain || id.service() != &name.service {
                let why = format!("the connection's certificate is of {id}, not of {}", name.service);
                return Err(Refusal::Forbidden(why));
            }
            Ok(Way::Renew { serial: serial.clone() })
        }
        (None, Asker::Operator) => Err(Refusal::Forbidden(
            "an operator asks for certificates at POST /v1/certs/operator".into(),
        )),
        (None, Asker::Nobody) => Err(Refusal::Unproven(
            "neither a token nor a client certificate was shown".into(),
        )),
    }
}

/// The token as it is stored, when its secret is right.
pub(super) fn knows<'a>(state: &'a State, token: &JoinToken) -> Result<&'a Token, Refusal> {
    let hash = sha256(&token.secret);
    let stored = state.tokens.get(&token.id);
    let same = verify_slices_are_equal(&hash, stored.map_or(&[0; 32], |t| &t.hash)).is_ok();
    stored.filter(|_| same).ok_or_else(|| {
        let why = "the token is not known: it was revoked, has expired, or is of another mesh";
        Refusal::Unproven(why.into())
    })
}

/// Which leaf a late renewal shows. Its bytes must be those that were signed here.
fn late_by(state: &State, late: &LateRenewal) -> Result<Way, Refusal> {
    let unknown = || Refusal::Unproven("the certificate is not one that is known here; join again with a token".into());
    let (_, leaf) = X509Certificate::from_der(&late.leaf).map_err(|_| unknown())?;
    let serial = hex(leaf.raw_serial());
    let (_, registration) = state.of_serial(&serial).ok_or_else(unknown)?;
    let known = registration
        .leaves
        .iter()
        .find(|l| l.serial == serial)
        .ok_or_else(unknown)?;
    if known.hash != hex(&sha256(&late.leaf)) {
        return Err(unknown());
    }
    Ok(Way::Late { serial })
}

/// Whoever renews late has the leaf's key.
pub(super) fn proves_key(late: &LateRenewal, csr: &[u8]) -> Result<(), Refusal> {
    let wrong = || Refusal::Unproven("the late renewal is not signed by the certificate's key".into());
    let (_, leaf) = X509Certificate::from_der(&late.leaf).map_err(|_| wrong())?;
    let key = p256(leaf.public_key()).map_err(|_| wrong())?;
    let signed = [LATE_PREFIX, csr].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(&signed, &late.signature)
        .map_err(|_| wrong())
}

/// What a grant changes.
struct Permitted {
    registration: Registration,
    token: Option<(String, Token)>,
}

/// Whether it may be granted as things stand.
fn permit(state: &State, now: Unix, checked: &Checked) -> Result<Permitted, Refusal> {
    let service = &checked.name.service;
    if service.namespace() == RESERVED {
        return Err(Refusal::Forbidden(format!(
            "the namespace {RESERVED} is the mesh's own"
        )));
    }
    if state.is_revoked(service.as_str()) {
        return Err(Refusal::Forbidden(format!("{service} is revoked")));
    }
    let name = checked.name.to_string();
    let revoked = || Refusal::Forbidden(format!("the certificate of {name} is revoked"));
    match &checked.way {
        Way::Join { token: id } => {
            if state.registrations.get(&name).is_some_and(|r| r.revoked) {
                return Err(revoked());
            }
            if state.registrations.len() >= MAX_REGISTRATIONS && !state.registrations.contains_key(&name) {
                return Err(Refusal::Conflict(format!(
                    "{MAX_REGISTRATIONS} workloads are registered already"
                )));
            }
            let token = spend(state, now, id, checked.csr.key_hash)?;
            let registration = Registration {
                joined: now,
                by: id.clone(),
                ..Registration::default()
            };
            let token = Some((id.clone(), token));
            Ok(Permitted { registration, token })
        }
        Way::Renew { serial } | Way::Late { serial } => {
            let again = |what: &str| Refusal::Forbidden(format!("{what}; join again with a token"));
            let found = state.of_serial(serial).filter(|(of, _)| **of == name);
            let (_, registration) =
                found.ok_or_else(|| again(&format!("the certificate is not of {name} any more")))?;
            let leaf = registration.leaves.iter().find(|l| l.serial == *serial);
            let leaf = leaf.ok_or_else(|| again("the certificate is not known"))?;
            if registration.revoked || state.is_revoked(serial) {
                return Err(revoked());
            }
            if registration.by.is_empty() {
                return Err(Refusal::Forbidden(
                    "an operator's certificate is not renewed; ask for another".into(),
                ));
            }
            if matches!(checked.way, Way::Late { .. }) {
                if !registration.may_be_late(serial) {
                    return Err(again("the certificate is not the newest of its workload"));
                }
                if now > leaf.not_after.saturating_add(LATE) {
                    let (ended, now) = (shown(leaf.not_after), shown(now));
                    let why = format!("the certificate ended on {ended}, and it is {now}: more than 7 days");
                    return Err(again(&why));
                }
            } else if now > leaf.not_after {
                let (ended, now) = (shown(leaf.not_after), shown(now));
                return Err(Refusal::Unproven(format!(
                    "the certificate ended on {ended}, and the control plane's clock says {now}"
                )));
            }
            let mut registration = registration.clone();
            registration.renewals += 1;
            Ok(Permitted {
                registration,
                token: None,
            })
        }
    }
}

/// The token after this use.
fn spend(state: &State, now: Unix, id: &str, key: [u8; 32]) -> Result<Token, Refusal> {
    let mut token = state.tokens.get(id).cloned().ok_or_else(|| {
        let why = "the token was revoked meanwhile";
        Refusal::Unproven(why.into())
    })?;
    if token.expires <= now {
        let (expires, now) = (shown(token.expires), shown(now));
        let why = format!("the token ended on {expires}, and the control plane's clock says {now}");
        return Err(Refusal::Unproven(why));
    }
    // The answer may have been lost; nobody else has that key.
    if token.last_key != Some(key) {
        token.uses = match token.uses {
            None => None,
            Some(left) => Some(left.checked_sub(1).ok_or_else(|| {
                let why = "the token has been used as often as it may be; create another";
                Refusal::Unproven(why.into())
            })?),
        };
        token.used += 1;
        token.last_key = Some(key);
    }
    Ok(token)
}
