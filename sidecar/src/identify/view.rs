//! One leaf and one trust, with the TLS settings made of both. Immutable but for a bounded cache.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_proto::model::SpiffeId;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};

use super::leaf::Leaf;
use super::trust::Trust;
use super::verify::{self, Refusal, Side, Verifier};
use super::{Alpn, Own, Peer, crypto};

/// Settings kept ready; more peers than that are rare, and settings are cheap to make.
const CLIENTS: usize = 64;

#[derive(Debug)]
pub(super) struct View {
    provider: Arc<CryptoProvider>,
    leaf: Arc<Leaf>,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<(SpiffeId, Alpn), Arc<ClientConfig>>>,
}

impl View {
    /// Makes the settings.
    ///
    /// # Errors
    /// When the provider cannot do TLS 1.3.
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        leaf: Arc<Leaf>,
        trust: Arc<Trust>,
    ) -> Result<Self, rustls::Error> {
        let verifier = Verifier::of_clients(trust.clone(), provider.signature_verification_algorithms);
        let alpn = Alpn::NAMED.iter().filter_map(|a| a.name());
        let server = crypto::server(
            provider.clone(),
            Arc::new(verifier),
            resolver(&leaf),
            alpn.map(|name| name.as_bytes().to_vec()).collect(),
        )?;
        Ok(Self {
            provider,
            leaf,
            trust,
            server: Arc::new(server),
            clients: Mutex::default(),
        })
    }

    pub(super) fn own(&self) -> &Arc<Own> {
        &self.leaf.own
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// The settings for calling `expected`.
    ///
    /// # Errors
    /// When the provider cannot do TLS 1.3.
    pub(super) fn client(&self, expected: &SpiffeId, alpn: Alpn) -> Result<Arc<ClientConfig>, rustls::Error> {
        let key = (expected.clone(), alpn);
        if let Some(config) = self.clients.lock().get(&key) {
            return Ok(config.clone());
        }
        let algorithms = self.provider.signature_verification_algorithms;
        let verifier = Verifier::of_server(self.trust.clone(), algorithms, expected.clone());
        let config = Arc::new(crypto::client(
            self.provider.clone(),
            Arc::new(verifier),
            Some(resolver(&self.leaf)),
            alpn.name().map(|name| name.as_bytes().to_vec()).into_iter().collect(),
        )?);
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(key, config.clone());
        Ok(config)
    }

    /// Who showed `certificates`, which the handshake has verified under this view.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn peer(&self, certificates: &[CertificateDer<'_>]) -> Result<Peer, Refusal> {
        let (leaf, intermediates) = certificates.split_first().ok_or(Refusal::NoId)?;
        match &self.trust.roots[..] {
            [only] => verify::read(leaf, only.fingerprint),
            // During a rotation: which of the roots it leads to is known only by walking there again.
            _ => verify::verify(
                &self.trust,
                &self.provider.signature_verification_algorithms,
                (leaf, intermediates),
                Side::Client,
                SystemTime::now(),
            ),
        }
    }
}

/// Shows `leaf` to whoever asks.
pub(super) fn resolver(leaf: &Leaf) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(leaf.key.clone()))
}

/// A name that rustls wants, and that says nothing: neither is it sent nor compared.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::from(Ipv4Addr::UNSPECIFIED)
}
