//! What an operator does: tokens, revocation, rotation, certificates of one's own.

use std::collections::BTreeSet;

use outrigger_proto::model::{EndpointName, JoinToken, Revocation, ServiceName, SpiffeId};
use serde::Serialize;
use utoipa::ToSchema;

use super::csr::{Csr, sha256};
use super::issue::{Granted, issued, knows};
use super::rotation::Phase;
use super::state::{Registration, Revoked, State, Token, Write};
use super::x509::{Unix, X509Error, hex, random, shown, validity};
use super::{Authority, CONTROL_PLANE, Fleet, OPERATOR, RESERVED, Refusal};
use crate::events::Event;

/// Tokens that may be good at a time.
const MAX_TOKENS: usize = 10_000;
/// Ten years: a token that lives longer is a mistake.
const LONGEST: u64 = 3650 * 86_400;
/// How long an operator's certificate lives, at most.
const OPERATOR_LIFE: u64 = 3600;

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A workload of this service joins.
    Join(ServiceName),
    /// Its bearer is an operator.
    Operator,
}

/// A token as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TokenView {
    /// 12 hexadecimal digits.
    pub id: String,
    /// `namespace/service`; `outrigger/operator` for an operator's.
    pub service: String,
    /// Opens the API instead of joining.
    pub operator: bool,
    /// How often it may still be used; null = always.
    pub uses_left: Option<u32>,
    /// How often it was used.
    pub used: u64,
    /// RFC 3339.
    pub expires: String,
}

/// One workload's certificates as people see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CertView {
    /// The SPIFFE id.
    pub id: String,
    /// `namespace/service`.
    pub service: String,
    /// The instance.
    pub instance: String,
    /// The newest leaf's serial.
    pub serial: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Seconds until then; negative afterwards.
    pub expires_in_s: i64,
    /// Number of the root that it is of.
    pub root: u32,
    /// Whether that is the root that signs.
    pub current_root: bool,
    /// Leaves after the first.
    pub renewals: u64,
    /// When it joined, RFC 3339.
    pub joined: String,
    /// The token that it joined by; null for an operator's certificate.
    pub token: Option<String>,
    /// No longer let in.
    pub revoked: bool,
}

/// One root as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RootView {
    /// Its number; grows with each rotation.
    pub number: u32,
    /// SHA-256 of its DER, hexadecimal.
    pub sha256: String,
    /// RFC 3339.
    pub not_after: String,
    /// Seconds until then.
    pub expires_in_s: i64,
    /// Whether it signs.
    pub signs: bool,
    /// When the certificate that signs leaves under it ends, RFC 3339.
    pub issuer_not_after: String,
    /// When its last leaf ends, RFC 3339.
    pub last_leaf: String,
}

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RotationView {
    /// The phase.
    #[serde(flatten)]
    pub phase: Phase,
    /// The trust bundle's generation.
    pub generation: u64,
    /// Who is waited for: those without the new root, or without a leaf of it.
    pub waiting_for: BTreeSet<String>,
    /// When the old root is dropped at the latest, RFC 3339; null before the new one signs.
    pub ends_by: Option<String>,
}

/// Everything about certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CertsView {
    /// The trust domain.
    pub trust_domain: String,
    /// Whether the CA was brought along.
    pub brought: bool,
    /// The roots; the last one signs.
    pub roots: Vec<RootView>,
    /// The rotation.
    pub rotation: RotationView,
    /// Each workload's.
    pub certs: Vec<CertView>,
    /// Serials and `namespace/service` that are not let in.
    pub revoked: Vec<String>,
}

impl Authority {
    /// Makes a token; its text is given once. `uses`: 0 is without limit.
    ///
    /// # Errors
    /// When it makes no sense, or cannot be stored.
    pub fn create_token(&self, now: Unix, purpose: &Purpose, uses: u32, life: u64) -> Result<JoinToken, Refusal> {
        if life == 0 || life > LONGEST {
            return Err(Refusal::Malformed(format!(
                "a token lives 1 second to 10 years, not {life} s"
            )));
        }
        let (service, operator) = match purpose {
            Purpose::Operator => (format!("{RESERVED}/{OPERATOR}"), true),
            Purpose::Join(service) if service.namespace() == RESERVED => {
                return Err(Refusal::Forbidden(format!(
                    "the namespace {RESERVED} is the mesh's own"
                )));
            }
            Purpose::Join(service) => (service.to_string(), false),
        };
        let failed = |e: X509Error| Refusal::Signing(e.to_string());
        let (id, secret) = (hex(&random::<6>().map_err(failed)?), random::<32>().map_err(failed)?);
        // An operator shows its token with every request.
        let uses = (uses > 0 && !operator).then_some(uses);
        let expires = now.saturating_add(life);
        let root = self.change(|state| {
            if state.tokens.len() >= MAX_TOKENS || state.tokens.contains_key(&id) {
                return Err(Refusal::Conflict(format!(
                    "there are {MAX_TOKENS} tokens already; revoke some"
                )));
            }
            let token = Token {
                hash: sha256(&secret),
                service: service.clone(),
                operator,
                uses,
                used: 0,
                expires,
                last_key: None,
            };
            let vault = self.vault.lock();
            let held = state.trust.signing().and_then(|r| vault.held.get(&r.number));
            let root = held.map(|h| sha256(&h.signer.root)).unwrap_or_default();
            Ok((vec![Write::Token(id.clone(), Some(token))], root))
        })?;
        let (id_shown, expires_shown) = (id.clone(), shown(expires));
        self.events.record(Event::TokenCreated {
            id: id_shown,
            service,
            uses,
            expires: expires_shown,
        });
        Ok(JoinToken { id, secret, root })
    }

    /// Every token that is good, also those that are used up and have not expired.
    #[must_use]
    pub fn tokens(&self, now: Unix) -> Vec<TokenView> {
        let state = self.state.lock();
        let good = state.tokens.iter().filter(|(_, t)| t.expires > now);
        good.map(|(id, t)| TokenView {
            id: id.clone(),
            service: t.service.clone(),
            operator: t.operator,
            uses_left: t.uses,
            used: t.used,
            expires: shown(t.expires),
        })
        .collect()
    }

    /// Ends a token.
    ///
    /// # Errors
    /// When there is none of that id, or it cannot be stored.
    pub fn revoke_token(&self, id: &str) -> Result<(), Refusal> {
        self.change(|state| match state.tokens.contains_key(id) {
            true => Ok((vec![Write::Token(id.to_owned(), None)], ())),
            false => Err(Refusal::Unknown(format!("no token has the id `{id}`"))),
        })?;
        self.events.record(Event::TokenRevoked { id: id.to_owned() });
        Ok(())
    }

    /// Whether `text` is an operator's token. In constant time for the secret.
    #[must_use]
    pub fn is_operator(&self, now: Unix, text: &str) -> bool {
        let Ok(token) = text.parse::<JoinToken>() else {
            return false;
        };
        knows(&self.state.lock(), &token).is_ok_and(|t| t.operator && t.expires > now)
    }

    /// A short-lived certificate for a person: as the operator, or as a service to call others with.
    ///
    /// # Errors
    /// When the request is not good, or it cannot be signed or stored.
    pub fn operator_cert(&self, now: Unix, csr: &[u8], as_service: Option<&ServiceName>) -> Result<Granted, Refusal> {
        let csr = Csr::parse(csr).map_err(Refusal::Malformed)?;
        let own = || ServiceName::new(RESERVED, OPERATOR).map_err(|e| Refusal::Malformed(e.to_string()));
        let service = as_service.cloned().map_or_else(own, Ok)?;
        if service.namespace() == RESERVED && service.service() != OPERATOR {
            return Err(Refusal::Forbidden(format!("{service} is the mesh's own")));
        }
        let id = SpiffeId::new(self.trust_domain(), &service).map_err(|e| Refusal::Malformed(e.to_string()))?;
        csr.asks_only_for(&id).map_err(Refusal::Forbidden)?;
        let instance = random::<4>().map_err(|e| Refusal::Signing(e.to_string()))?;
        let instance = format!("{OPERATOR}-{}", hex(&instance)).into();
        let (leaf, chain) = self.change(|state| {
            if state.is_revoked(service.as_str()) {
                return Err(Refusal::Forbidden(format!("{service} is revoked")));
            }
            let life = self.leaf_ttl.min(OPERATOR_LIFE);
            let signed = self.sign(now, state, &csr.key, id.as_str(), life)?;
            let registration = Registration {
                joined: now,
                ..Registration::default()
            };
            let name = EndpointName {
                service: service.clone(),
                instance,
            };
            Ok((issued(state, now, &name, registration, &signed.0), signed))
        })?;
        let (identity, serial) = (id.to_string(), leaf.serial.clone());
        self.events.record(Event::OperatorCertificate { identity, serial });
        Ok(self.granted(leaf, chain))
    }

    /// No longer lets in a workload (by the serial of any of its leaves) or a service, and issues
    /// nothing more to it until [`Authority::allow`]. False when no such leaf is known; then that
    /// serial alone is revoked.
    ///
    /// # Errors
    /// When it may not be, or cannot be stored.
    pub fn revoke(&self, now: Unix, what: &Revocation) -> Result<bool, Refusal> {
        let text = spelled(what)?;
        let known = self.change(|state| {
            let since = |until| Some(Revoked { since: now, until });
            let mut writes = Vec::new();
            let mut known = true;
            match (what, state.of_serial(&text)) {
                (Revocation::Service(_), _) => writes.push(Write::Revoked(text.clone(), since(None))),
                (Revocation::Serial(_), Some((name, registration))) => {
                    // An older leaf of the same workload would be let in all the same.
                    for leaf in registration
                        .leaves
                        .iter()
                        .filter(|l| l.not_after >= now || l.serial == text)
                    {
                        writes.push(Write::Revoked(leaf.serial.clone(), since(Some(leaf.not_after))));
                    }
                    let registration = Registration {
                        revoked: true,
                        ..registration.clone()
                    };
                    writes.push(Write::Registration(name.clone(), Some(registration)));
                }
                (Revocation::Serial(_), None) => {
                    known = false;
                    let last = state.trust.roots.iter().map(|r| r.last_leaf).max();
                    writes.push(Write::Revoked(text.clone(), since(last)));
                }
            }
            Ok((writes, known))
        })?;
        self.events.record(Event::Revoked { what: text });
        Ok(known)
    }

    /// Ends a revocation.
    ///
    /// # Errors
    /// When there is none, or it cannot be stored.
    pub fn allow(&self, what: &Revocation) -> Result<(), Refusal> {
        let text = spelled(what)?;
        self.change(|state| {
            let mut writes = Vec::new();
            if let Some((name, registration)) = state.of_serial(&text).filter(|(_, r)| r.revoked) {
                let leaves = registration.leaves.iter().filter(|l| state.is_revoked(&l.serial));
                writes.extend(leaves.map(|l| Write::Revoked(l.serial.clone(), None)));
                let registration = Registration {
                    revoked: false,
                    ..registration.clone()
                };
                writes.push(Write::Registration(name.clone(), Some(registration)));
            }
            if state.is_revoked(&text) {
                writes.push(Write::Revoked(text.clone(), None));
            }
            match writes.is_empty() {
                true => Err(Refusal::Unknown(format!("{text} is not revoked"))),
                false => Ok((writes, ())),
            }
        })?;
        self.events.record(Event::Allowed { what: text });
        Ok(())
    }

    /// Begins to replace the root; while the new root is being spread, changes how long that is
    /// waited for. `force_after`: seconds from the beginning.
    ///
    /// # Errors
    /// When the CA was brought along, when one is under way, or when it cannot be stored.
    pub fn rotate(&self, now: Unix, force_after: Option<u64>) -> Result<(), Refusal> {
        let _one = self.rotating.lock();
        let (trust, underway) = {
            let state = self.state.lock();
            (state.trust.clone(), state.trust.phase != Phase::Steady)
        };
        if trust.brought {
            let why = "the CA was brought along, so its root is not replaced from here";
            return Err(Refusal::Conflict(why.into()));
        }
        let conflict = || Refusal::Conflict("a rotation is under way, and the new root signs already".into());
        if underway {
            return self.change(|state| {
                let next = match (state.trust.phase, force_after) {
                    (Phase::Spreading { .. }, Some(after)) => state.trust.force(after),
                    (Phase::Spreading { .. }, None) => return Ok((Vec::new(), ())),
                    _ => None,
                };
                Ok((vec![Write::Trust(next.ok_or_else(conflict)?)], ()))
            });
        }
        let made = self
            .vault
            .lock()
            .make_root(now, &trust.trust_domain, trust.next_number());
        let root = made.map_err(|e| Refusal::Signing(e.to_string()))?;
        let generation = self.change(|state| {
            let next = state.trust.begin(now, root, force_after).ok_or_else(conflict)?;
            let generation = next.generation;
            Ok((vec![Write::Trust(next)], generation))
        })?;
        let phase = "spreading".to_owned();
        self.events.record(Event::RootRotation { phase, generation });
        Ok(())
    }

    /// How far a rotation is.
    #[must_use]
    pub fn rotation(&self, now: Unix, fleet: &dyn Fleet) -> RotationView {
        let lagging = || fleet.lagging();
        let phase = self.state.lock().trust.phase;
        let lagging = matches!(phase, Phase::Spreading { .. }).then(lagging);
        rotation(&self.state.lock(), now, lagging)
    }

    /// Everything about certificates.
    #[must_use]
    pub fn certs(&self, now: Unix, fleet: &dyn Fleet) -> CertsView {
        let rotation = self.rotation(now, fleet);
        let state = self.state.lock();
        let vault = self.vault.lock();
        let signing = state.trust.signing().map(|r| r.number);
        let left = |at: Unix| i64::try_from(at).unwrap_or(i64::MAX).saturating_sub_unsigned(now);
        let roots = state.trust.roots.iter().map(|root| {
            let held = vault.held.get(&root.number).map(|h| &h.signer);
            let issuer = held.and_then(|s| validity(s.chain.first().unwrap_or(&s.root)));
            RootView {
                number: root.number,
                sha256: root.hash.clone(),
                not_after: shown(root.not_after),
                expires_in_s: left(root.not_after),
                signs: Some(root.number) == signing,
                issuer_not_after: shown(issuer.map_or(root.not_after, |(_, until)| until)),
                last_leaf: shown(root.last_leaf),
            }
        });
        let cert = |(name, r): (&String, &Registration)| {
            let (leaf, name) = (r.newest()?, name.parse::<EndpointName>().ok()?);
            Some(CertView {
                id: SpiffeId::new(&state.trust.trust_domain, &name.service)
                    .ok()?
                    .to_string(),
                service: name.service.to_string(),
                instance: name.instance.to_string(),
                serial: leaf.serial.clone(),
                not_before: shown(leaf.not_before),
                not_after: shown(leaf.not_after),
                expires_in_s: left(leaf.not_after),
                root: leaf.root,
                current_root: Some(leaf.root) == signing,
                renewals: r.renewals,
                joined: shown(r.joined),
                token: (!r.by.is_empty()).then(|| r.by.clone()),
                revoked: r.revoked || state.is_revoked(name.service.as_str()),
            })
        };
        CertsView {
            trust_domain: state.trust.trust_domain.clone(),
            brought: state.trust.brought,
            roots: roots.collect(),
            rotation,
            certs: state.registrations.iter().filter_map(cert).collect(),
            revoked: state.revoked.keys().cloned().collect(),
        }
    }
}

fn rotation(state: &State, now: Unix, lagging: Option<BTreeSet<String>>) -> RotationView {
    let trust = &state.trust;
    let (waiting_for, ends_by) = match trust.phase {
        Phase::Steady => (BTreeSet::new(), None),
        Phase::Spreading { .. } => (lagging.unwrap_or_default(), None),
        Phase::Renewing { .. } => {
            let ends = trust
                .roots
                .split_last()
                .and_then(|(_, old)| old.iter().map(|r| r.last_leaf).max());
            (state.unrenewed(now), ends.map(shown))
        }
    };
    RotationView {
        phase: trust.phase,
        generation: trust.generation,
        waiting_for,
        ends_by,
    }
}

/// How a revocation is stored.
fn spelled(what: &Revocation) -> Result<String, Refusal> {
    match what {
        Revocation::Service(service) if service.namespace() == RESERVED && service.service() == CONTROL_PLANE => {
            Err(Refusal::Forbidden("the control plane does not revoke itself".into()))
        }
        Revocation::Service(service) => Ok(service.to_string()),
        Revocation::Serial(serial) => {
            let legal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            match (1..=40).contains(&serial.len()) && serial.bytes().all(legal) {
                true => Ok(serial.clone()),
                false => Err(Refusal::Malformed(format!(
                    "`{}` is not 1 to 40 lower-case hexadecimal digits",
                    serial.chars().take(60).collect::<String>()
                ))),
            }
        }
    }
}
