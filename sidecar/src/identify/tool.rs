//! TLS for a person's program: to the control plane that a token leads to, and to one workload with a certificate made
//! for a call.

use std::sync::Arc;

use outrigger_proto::model::{SpiffeId, TrustBundle};
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::trust::Trust;
use super::verify::{ByHash, Verifier};
use super::{Alpn, HANDSHAKE, TlsError, TlsStream, crypto, view};

/// Opens TLS to whichever control plane shows the root with this hash (SHA-256 of its DER), and HTTP/1.1 inside. Ends
/// after 10 s.
///
/// # Errors
/// When it shows another root or is no control plane, or the handshake breaks.
///
/// # Cancel safety
/// Not safe: `io` is lost.
pub async fn control_plane<S>(io: S, root: [u8; 32]) -> Result<TlsStream<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = crypto::provider(true);
    let verifier = ByHash::new(root, None, provider.signature_verification_algorithms);
    let config = config(provider, Arc::new(verifier), None, "http/1.1")?;
    open(io, config).await
}

/// A certificate made for calling one workload, with its key.
#[derive(Clone)]
pub struct Caller {
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caller")
    }
}

impl Caller {
    /// Shows `chain` (leaf first, DER), whose key is `key` (PKCS#8, DER), to `expected` and to nobody else; speaks HTTP/2
    /// as sidecars do.
    ///
    /// # Errors
    /// When certificate and key are none, do not belong together, or nobody is trusted.
    pub fn new(chain: Vec<Vec<u8>>, key: Vec<u8>, trust: TrustBundle, expected: SpiffeId) -> Result<Self, TlsError> {
        let unusable = |why: String| TlsError::NoIdentity(why);
        let provider = crypto::provider(true);
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivatePkcs8KeyDer::from(key).into();
        let own = CertifiedKey::from_der(chain, key, &provider).map_err(|e| unusable(e.to_string()))?;
        let trust = Trust::new(trust).map_err(|e| unusable(e.to_string()))?;
        let verifier = Verifier::of_server(Arc::new(trust), provider.signature_verification_algorithms, expected);
        let alpn = Alpn::H2.name().unwrap_or_default();
        Ok(Self {
            config: config(provider, Arc::new(verifier), Some(Arc::new(own.into())), alpn)?,
        })
    }

    /// Opens TLS. Ends after 10 s.
    ///
    /// # Errors
    /// When the other side is not who is expected, or the handshake breaks.
    ///
    /// # Cancel safety
    /// Not safe: `io` is lost.
    pub async fn connect<S>(&self, io: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        open(io, self.config.clone()).await
    }
}

fn config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<Arc<SingleCertAndKey>>,
    alpn: &str,
) -> Result<Arc<ClientConfig>, TlsError> {
    let own = own.map(|own| own as _);
    crypto::client(provider, verifier, own, vec![alpn.as_bytes().to_vec()])
        .map(Arc::new)
        .map_err(|e| TlsError::NoIdentity(e.to_string()))
}

async fn open<S>(io: S, config: Arc<ClientConfig>) -> Result<TlsStream<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let opening = tokio_rustls::TlsConnector::from(config).connect(view::server_name(), io);
    match tokio::time::timeout(HANDSHAKE, opening).await {
        Ok(opened) => opened.map(|s| Box::new(s.into())).map_err(TlsError::from_handshake),
        Err(_) => Err(TlsError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ca, Spec, id};
    use super::*;

    /// What a program that wants `expected` hears from a sidecar of `default/post`, when it trusts `trusted`.
    async fn call(ca: &Ca, expected: &str, trusted: &Ca) -> Result<(), String> {
        let server = ca.identity("default/post");
        let (chain, key) = ca.leaf(&Spec::of("outrigger/operator"));
        let chain = chain.into_iter().map(|der| der.to_vec()).collect();
        let expected = id(expected).parse().expect("an id");
        let caller = Caller::new(chain, key.secret_der().to_vec(), trusted.bundle(), expected).expect("a caller");
        let (here, there) = tokio::io::duplex(64 << 10);
        let (opened, accepted) = tokio::join!(caller.connect(here), server.accept(there));
        if let Ok((_, alpn, peer)) = accepted {
            assert_eq!((alpn, peer.id.to_string()), (Alpn::H2, id("outrigger/operator")));
        }
        opened.map(|_| ()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_program_reaches_who_it_wants_and_nobody_else() {
        let (ca, other) = (Ca::new(), Ca::new());
        assert_eq!(call(&ca, "default/post", &ca).await, Ok(()));
        let wrong = call(&ca, "default/user", &ca).await.expect_err("somebody else");
        assert!(
            wrong.contains("/svc/post, and") && wrong.contains("/svc/user was expected"),
            "{wrong}"
        );
        assert!(
            call(&ca, "default/post", &other).await.is_err(),
            "of a root that is not trusted"
        );
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let ca = Ca::new();
        let spec = Spec::of("outrigger/operator");
        let ((chain, _), (_, key)) = (ca.leaf(&spec), ca.leaf(&spec));
        let chain = chain.into_iter().map(|der| der.to_vec()).collect();
        let expected = id("default/post").parse().expect("an id");
        assert!(Caller::new(chain, key.secret_der().to_vec(), ca.bundle(), expected).is_err());
    }
}
