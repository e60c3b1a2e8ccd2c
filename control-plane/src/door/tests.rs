//! Real handshakes over loopback, each with one thing wrong, and the unix socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::routing::get;
use axum::{Extension, Router};
use outrigger_proto::model::{Revocation, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::socket::{Socket, SocketError};
use super::tls::Tls;
use super::{Arrival, Doors, Secure, serve};
use crate::stop;

const DEADLINE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);
const USER: &str = "spiffe://mesh.test/ns/default/svc/user";

/// A certificate authority of one level.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

/// A leaf and its key.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Own {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// What a leaf says; each test changes one thing.
struct Says {
    uris: Vec<String>,
    usage: Vec<ExtendedKeyUsagePurpose>,
    from: SystemTime,
    until: SystemTime,
    serial: u64,
}

impl Default for Says {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![USER.into()],
            usage: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            from: now - HOUR,
            until: now + HOUR,
            serial: 7,
        }
    }
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // By its name alone no root could be told from another.
        let name = uuid::Uuid::new_v4().to_string();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).expect("a root").der().clone();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    fn issue(&self, says: Says) -> Own {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let uri = |uri: String| SanType::URI(uri.try_into().expect("ASCII"));
        params.subject_alt_names = says.uris.into_iter().map(uri).collect();
        params.extended_key_usages = says.usage;
        params.not_before = says.from.into();
        params.not_after = says.until.into();
        params.serial_number = Some(SerialNumber::from(says.serial));
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf");
        Own {
            chain: vec![leaf.der().clone(), self.der.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    fn bundle(&self, revoked: Vec<Revocation>) -> TrustBundle {
        TrustBundle {
            trust_domain: "mesh.test".into(),
            roots: vec![self.der.to_vec()],
            generation: 1,
            revoked,
        }
    }

    fn tls(&self, revoked: Vec<Revocation>) -> Tls {
        let own = self.issue(Says {
            uris: vec!["spiffe://mesh.test/ns/outrigger/svc/control-plane".into()],
            ..Says::default()
        });
        Tls::new(own.chain, own.key, self.bundle(revoked)).expect("usable")
    }
}

/// A door that answers `/` with who asks.
struct House {
    address: SocketAddr,
    tls: watch::Sender<Arc<Tls>>,
    ca: Ca,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl House {
    async fn open() -> Self {
        let ca = Ca::new();
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = tcp.local_addr().expect("bound");
        let (tls, watched) = watch::channel(Arc::new(ca.tls(Vec::new())));
        let doors = Doors {
            tcp,
            secure: Secure {
                tls: watched,
                shown: Arc::new(|serial| assert!(["7", "07", "08"].contains(&serial))),
            },
            socket: None,
        };
        let who = async |Extension(arrival): Extension<Arrival>| format!("{:?}", arrival.asker);
        let app = Router::new().route("/", get(who));
        let (stop, stopped) = oneshot::channel::<()>();
        let (stopper, _) = stop::signal();
        let shutdown = async {
            let _gone = stopped.await.is_err();
        };
        let task = tokio::spawn(serve(doors, app, shutdown, stopper));
        Self {
            address,
            tls,
            ca,
            stop: Some(stop),
            task,
        }
    }

    async fn close(mut self) {
        drop(self.stop.take());
        timeout(DEADLINE, self.task).await.expect("ends").expect("no panic");
    }

    /// Asks who it is; the error is the handshake's, or that the connection ended.
    async fn ask(&self, own: Option<Own>) -> Result<String, String> {
        let mut stream = self.connect(own).await?;
        who(&mut stream).await
    }

    async fn connect(&self, own: Option<Own>) -> Result<TlsStream<TcpStream>, String> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let config = match own {
            Some(own) => config.with_client_auth_cert(own.chain, own.key).expect("fits"),
            None => config.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(self.address).await.expect("listens");
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("ignored.test").expect("a name");
        let connected = timeout(DEADLINE, connector.connect(name, tcp)).await.expect("in time");
        connected.map_err(|error| error.to_string())
    }
}

async fn who(stream: &mut TlsStream<TcpStream>) -> Result<String, String> {
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let mut answer = vec![0; 4096];
    let read = timeout(DEADLINE, stream.read(&mut answer)).await.expect("in time");
    match read.map_err(|error| error.to_string())? {
        0 => Err("ended".into()),
        n => Ok(String::from_utf8_lossy(&answer[..n]).into_owned()),
    }
}

/// The server's certificate is not what is looked at here.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn a_certificate_says_who_asks_and_none_is_nobody() {
    let house = House::open().await;
    let own = house.ca.issue(Says::default());
    let answer = house.ask(Some(own)).await.expect("let in");
    assert!(
        answer.contains("Workload") && answer.contains(USER) && answer.contains("\"07\""),
        "{answer}"
    );
    let answer = house.ask(None).await.expect("let in");
    assert!(answer.ends_with("Nobody"), "{answer}");
    house.close().await;
}

#[tokio::test]
async fn a_certificate_with_one_thing_wrong_is_no_connection() {
    let house = House::open().await;
    let now = SystemTime::now();
    let ca = &house.ca;
    let uris = |uris: &[&str]| Says {
        uris: uris.iter().map(ToString::to_string).collect(),
        ..Says::default()
    };
    let cases = [
        ("another root", Ca::new().issue(Says::default()), "UnknownCA"),
        (
            "expired",
            ca.issue(Says {
                from: now - 2 * HOUR,
                until: now - HOUR,
                ..Says::default()
            }),
            "CertificateExpired",
        ),
        (
            "not yet valid",
            ca.issue(Says {
                from: now + HOUR,
                until: now + 2 * HOUR,
                ..Says::default()
            }),
            "CertificateExpired",
        ),
        (
            "for servers only",
            ca.issue(Says {
                usage: vec![ExtendedKeyUsagePurpose::ServerAuth],
                ..Says::default()
            }),
            "UnsupportedCertificate",
        ),
        ("no id", ca.issue(uris(&[])), "CertificateUnknown"),
        ("two ids", ca.issue(uris(&[USER, USER])), "CertificateUnknown"),
        (
            "no id of ours",
            ca.issue(uris(&["https://example.com"])),
            "CertificateUnknown",
        ),
        (
            "another trust domain",
            ca.issue(uris(&["spiffe://other.test/ns/default/svc/user"])),
            "CertificateUnknown",
        ),
    ];
    for (title, own, alert) in cases {
        let refused = house.ask(Some(own)).await.expect_err(title);
        assert!(refused.contains(alert), "{title}: {refused}");
    }
    house.close().await;
}

#[tokio::test]
async fn plain_text_and_old_tls_get_nothing() {
    let house = House::open().await;
    let mut plain = TcpStream::connect(house.address).await.expect("listens");
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("writes");
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ended = timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("ends");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    // A hello of TLS 1.2 (RFC 5246 §7.4.1.2): one cipher suite, one group, one signature scheme.
    let mut hello = vec![22, 3, 1, 0, 63, 1, 0, 0, 59, 3, 3];
    hello.extend([9; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    hello.extend([0, 16, 0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut old = TcpStream::connect(house.address).await.expect("listens");
    old.write_all(&hello).await.expect("writes");
    let mut answer = Vec::new();
    let _ended = timeout(DEADLINE, old.read_to_end(&mut answer)).await.expect("ends");
    // A fatal alert, protocol_version (RFC 8446 §6.2).
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
    house.close().await;
}

#[tokio::test]
async fn a_revoked_identity_is_cut_off_at_once_and_stays_out() {
    let house = House::open().await;
    for revocation in [
        Revocation::Serial("7".into()),
        Revocation::Service("default/user".parse().expect("a name")),
    ] {
        let own = house.ca.issue(Says::default());
        let mut stream = house.connect(Some(own.clone())).await.expect("let in");
        who(&mut stream).await.expect("answers");
        let other = house.ca.issue(Says {
            uris: vec!["spiffe://mesh.test/ns/default/svc/post".into()],
            serial: 8,
            ..Says::default()
        });
        let mut kept = house.connect(Some(other)).await.expect("let in");
        who(&mut kept).await.expect("answers");

        house.tls.send_replace(Arc::new(house.ca.tls(vec![revocation])));
        let ended = timeout(DEADLINE, stream.read(&mut [0; 16])).await.expect("in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let refused = house.ask(Some(own)).await.expect_err("stays out");
        assert!(refused.contains("CertificateRevoked"), "{refused}");
        who(&mut kept).await.expect("others stay");
        house.tls.send_replace(Arc::new(house.ca.tls(Vec::new())));
    }
    house.close().await;
}

#[tokio::test]
async fn a_connection_ends_when_its_certificate_does() {
    let house = House::open().await;
    let own = house.ca.issue(Says {
        until: SystemTime::now() + Duration::from_secs(2),
        ..Says::default()
    });
    let mut stream = house.connect(Some(own)).await.expect("let in");
    who(&mut stream).await.expect("answers");
    let ended = timeout(DEADLINE, stream.read(&mut [0; 16])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    house.close().await;
}

/// Each side learns which clock is off, and by how much.
#[tokio::test]
async fn a_clock_that_is_off_is_named() {
    let ca = Ca::new();
    let now = SystemTime::now();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der.clone()).expect("a root");
    for (from, until, said) in [
        (now - 3 * HOUR, now - HOUR, "expired 1h ago"),
        (now + HOUR + HOUR / 60, now + 3 * HOUR, "begins in 1h"),
    ] {
        let own = ca.issue(Says {
            from,
            until,
            ..Says::default()
        });
        let tls = ca.tls(Vec::new());
        let (config, notes) = tls.accept();
        let (client, server) = tokio::io::duplex(16 << 10);
        let config_of_client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_client_auth_cert(own.chain, own.key)
            .expect("fits");
        let name = ServerName::try_from("ignored.test").expect("a name");
        let connector = TlsConnector::from(Arc::new(config_of_client));
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let (_client, accepted) = tokio::join!(connector.connect(name, client), acceptor.accept(server));
        let error = accepted.expect_err("refused");
        let text = tls.explain(&error, &notes);
        assert!(
            text.contains(said) && text.contains("clock") && text.contains(USER),
            "{text}"
        );
    }
    // The client's clock: it calls our good certificate expired.
    let tls = ca.tls(Vec::new());
    let alert = Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
    let text = tls.explain(&std::io::Error::other(alert), &super::tls::Notes::default());
    assert!(text.contains("its clock is ahead by 59m"), "{text}");
}

#[tokio::test]
async fn the_socket_is_private_and_only_a_dead_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = tempfile::tempdir().expect("scratch");
    let path = scratch.path().join("new").join("socket");
    let socket = Socket::bind(&path).expect("binds");
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));
    let (client, accepted) = tokio::join!(UnixStream::connect(&path), socket.accept());
    client.expect("connects");
    super::socket::peer(&accepted.expect("accepts")).expect("the same user");
    assert!(
        matches!(Socket::bind(&path), Err(SocketError::Live(_))),
        "the owner is alive"
    );
    drop(socket);
    assert!(!path.exists(), "it is taken away at the end");

    // What a killed process leaves: a socket that nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    drop(Socket::bind(&path).expect("replaces the dead one"));
    std::fs::write(&path, "notes").expect("writes");
    assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "notes");

    let shared = scratch.path().join("shared");
    std::fs::create_dir(&shared).expect("creates");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).expect("changes");
    let refused = Socket::bind(&shared.join("socket")).expect_err("others could replace it");
    assert!(refused.to_string().contains("chmod 700"), "{refused}");
}

#[tokio::test]
async fn a_path_that_is_too_long_for_the_system_works() {
    let scratch = tempfile::tempdir().expect("scratch");
    let folder = scratch.path().join("x".repeat(120));
    let path = folder.join("socket");
    let socket = Socket::bind(&path).expect("binds");
    assert!(path.exists());
    let opened = std::fs::File::open(&folder).expect("is there");
    let short = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let (client, accepted) = tokio::join!(UnixStream::connect(short), socket.accept());
    client.expect("connects");
    accepted.expect("accepts");
    assert!(matches!(Socket::bind(&path), Err(SocketError::Live(_))));
    drop(socket);
    assert!(!path.exists());
}
