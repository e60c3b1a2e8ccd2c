//! What TLS looks like here: one provider, TLS 1.3 only, nothing resumed.
//!
//! A resumed session would skip the look at the peer's certificate (rustls keeps the old one for a
//! day), so neither side offers or stores anything to resume from.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ClientConfig, ServerConfig};

/// The provider of every TLS connection: AWS-LC, with the cheapest cipher first. X25519MLKEM768 comes
/// first unless `post_quantum` is off.
pub(super) fn provider(post_quantum: bool) -> Arc<CryptoProvider> {
    let mut kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
    if post_quantum {
        kx_groups.insert(0, kx_group::X25519MLKEM768);
    }
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups,
        ..default_provider()
    })
}

/// The accepting side: a client certificate is demanded.
pub(super) fn server(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    own: Arc<dyn ResolvesServerCert>,
    alpn: Vec<Vec<u8>>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn;
    Ok(config)
}

/// The dialling side. `own` is shown when the other side asks.
pub(super) fn client(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<Arc<dyn ResolvesClientCert>>,
    alpn: Vec<Vec<u8>>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Whom we expect is in the certificate, not in a host name.
    config.enable_sni = false;
    config.alpn_protocols = alpn;
    Ok(config)
}
