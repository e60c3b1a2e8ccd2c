//! How a connection comes in: the handshake or none, by the workload's mode and by what the client speaks.
//!
//! | mode | mesh TLS | other TLS | plain |
//! |---|---|---|---|
//! | strict | taken | taken with a certificate of the mesh, as HTTP of a foreign client | closed |
//! | permissive | taken | the app's own: passed on as opaque bytes | as under off, `unauthenticated` |
//! | off | taken on HTTP ports | the app's own, as bytes | taken |
//!
//! Under off a sidecar with an identity still takes the mesh's TLS where the client speaks first: callers
//! hear of another mode a moment before or after the callee does, and no request should fail for that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::model::{Mode, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::caller::Caller;
use super::{Inbound, Speaks};
use crate::detect::hello::{self, Whose};
use crate::detect::{self, Detected, Prefixed};
use crate::forward::copy;
use crate::identify::{Alpn, Foreign, TlsError};
use crate::observe::Gauge;
use crate::reason::Reason;
use crate::respond::ConnectionError;
use crate::tunnel::Socket;

/// How long a client may take from its first byte to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes that one worker accepts at a time; further ones wait, within their time.
const HANDSHAKES: usize = 256;

thread_local! {
    /// A worker is one thread with one single-threaded runtime.
    static ACCEPTING: Arc<Semaphore> = Arc::new(Semaphore::new(HANDSHAKES));
}

/// Says in HTTP that the port is not HTTP, as web servers say it on their TLS ports. Always the same
/// bytes: nothing of what the client sent was looked at but its first three bytes.
const PLAIN_HTTP: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\n",
    "outrigger-reason: plaintext\r\n",
    "content-type: text/plain; charset=utf-8\r\n",
    "connection: close\r\n",
    "content-length: 99\r\n\r\n",
    "plaintext: this port takes nothing but mutual TLS of the mesh; call through a sidecar, or see mode\n",
);

impl Inbound {
    /// Takes in a connection by the mode that holds now. `meshed` for the second port of services that
    /// speak first, where nothing but TLS is spoken.
    pub(super) async fn enter(
        self: &Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        meshed: bool,
    ) -> Result<(), ConnectionError> {
        let mode = self.shared.directory.admission().mode;
        match mode {
            Mode::Off if meshed => Err(ConnectionError::Refused(Reason::NoIdentity)),
            Mode::Off if self.protocol.is_http() && self.shared.identity.current().is_some() => {
                self.permissive(stream, client).await
            }
            Mode::Off => self.plain(stream, client).await,
            Mode::Permissive if meshed => self.strict(stream, client).await,
            // The app speaks first on this port: there is nothing to look at, and TLS has its own port.
            Mode::Permissive if self.mesh_port => self.plain(stream, client).await,
            Mode::Permissive => self.permissive(stream, client).await,
            Mode::Strict => self.strict(stream, client).await,
        }
    }

    async fn strict(self: &Arc<Self>, stream: TcpStream, client: SocketAddr) -> Result<(), ConnectionError> {
        match detect::first_byte(&stream, HANDSHAKE).await? {
            None => Ok(()),
            Some(hello::HANDSHAKE) => self.secure(Prefixed::untouched(stream), client).await,
            Some(first) => {
                self.cell.reason(Reason::Plaintext);
                self.warn(client, "plain bytes where only mutual TLS is spoken");
                Box::pin(self.turn_away(stream, first)).await;
                Err(ConnectionError::Refused(Reason::Plaintext))
            }
        }
    }

    async fn permissive(self: &Arc<Self>, stream: TcpStream, client: SocketAddr) -> Result<(), ConnectionError> {
        let patience = match self.protocol {
            // Somebody who waits for the server to speak is no sidecar: those send their ClientHello at once.
            Protocol::Tcp | Protocol::Auto => detect::PATIENCE,
            _ => self.shared.directory.proxy().limits.idle_timeout,
        };
        let first = match detect::first_byte(&stream, patience).await {
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut && !self.protocol.is_http() => {
                return self.opaque(Prefixed::untouched(stream), &Caller::plain(client)).await;
            }
            first => first?,
        };
        match first {
            None => Ok(()),
            Some(hello::HANDSHAKE) => match hello::read(stream, HANDSHAKE).await? {
                (Whose::Mesh, stream) => self.secure(stream, client).await,
                (Whose::App, stream) => self.opaque(stream, &Caller::plain(client)).await,
            },
            Some(_) => self.plain(stream, client).await,
        }
    }

    async fn plain(self: &Arc<Self>, stream: TcpStream, client: SocketAddr) -> Result<(), ConnectionError> {
        let caller = Caller::plain(client);
        match self.speaks(&stream).await? {
            Speaks::Opaque => self.opaque(Prefixed::untouched(stream), &caller).await,
            Speaks::Http1 => self.http(stream, false, caller).await,
            Speaks::Http2 => self.http(stream, true, caller).await,
        }
    }

    /// The handshake, and then what was agreed on in it.
    async fn secure(self: &Arc<Self>, stream: Prefixed<TcpStream>, client: SocketAddr) -> Result<(), ConnectionError> {
        let accepting = ACCEPTING.with(Arc::clone);
        let accept = Box::pin(async move {
            // Nobody closes it, and then a connection without a permit is the lesser harm.
            let _permit = accepting.acquire().await.ok();
            self.shared.identity.accept(stream.map(Socket::new)).await
        });
        let accepted = tokio::time::timeout(HANDSHAKE, accept)
            .await
            .unwrap_or(Err(TlsError::TimedOut));
        let (stream, alpn, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.shared.stats.add(Gauge::HandshakesFailed, 1);
                self.cell.reason(match &error {
                    TlsError::NoIdentity(_) => Reason::NoIdentity,
                    _ => Reason::PeerUnverified,
                });
                self.warn(client, &error.to_string());
                return Err(ConnectionError::Tls(error));
            }
        };
        if let Some(own) = self.shared.identity.current() {
            self.shared.directory.belongs_to(own.id.trust_domain());
        }
        self.shared.stats.add(Gauge::Handshakes, 1);
        self.cell.secured();
        match alpn {
            Alpn::H2 => self.http(stream, true, Caller::proven(client, peer, true)).await,
            Alpn::Tcp => self.tunnelled(stream, Caller::proven(client, peer, true)).await,
            Alpn::Foreign(Foreign::H2) => self.http(stream, true, Caller::proven(client, peer, false)).await,
            Alpn::Foreign(Foreign::Http1) => self.http(stream, false, Caller::proven(client, peer, false)).await,
            Alpn::Foreign(Foreign::None) => {
                let caller = Caller::proven(client, peer, false);
                if matches!(self.protocol, Protocol::Tcp | Protocol::Tls) {
                    return self.opaque(stream, &caller).await;
                }
                let (found, stream) = detect::detect_read(stream).await?;
                match found {
                    Detected::Opaque if !self.protocol.is_http() => self.opaque(stream, &caller).await,
                    _ => self.http(stream, found == Detected::Http2, caller).await,
                }
            }
        }
    }

    /// Tells an HTTP client in its own words, and ends the connection in order: a reset would take the
    /// words with it. Anything else is reset.
    async fn turn_away(&self, mut stream: TcpStream, first: u8) {
        // HTTP/2 has no words before its frames; its preface is the only method that begins with these.
        let mut beginning = [0u8; 3];
        let seen = stream.peek(&mut beginning).await.unwrap_or(0);
        if !first.is_ascii_uppercase() || seen < beginning.len() || &beginning == b"PRI" {
            copy::reset(&stream);
            return;
        }
        let words = async {
            stream.write_all(PLAIN_HTTP.as_bytes()).await?;
            stream.shutdown().await?;
            let mut waste = [0u8; 1024];
            for _ in 0..64 {
                if stream.read(&mut waste).await? == 0 {
                    break;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        // The client was faster, or is slow: it has been told.
        drop(tokio::time::timeout(Duration::from_secs(1), words).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_for_plain_http_are_as_long_as_they_say() {
        let (head, body) = PLAIN_HTTP.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.ends_with(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        assert!(head.contains(Reason::Plaintext.as_str()));
    }
}
