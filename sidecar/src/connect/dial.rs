//! One TCP connection, with the options that every connection of the mesh has.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which a dead peer is looked for.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Unacknowledged data after which the connection is dead (RFC 5482). Counts for probes too, from the
/// last byte heard: with less than a few probes beyond [`KEEPALIVE`] one lost probe would end a healthy
/// connection, and thousands of idle ones probe at the same moment.
const USER_TIMEOUT: Duration = Duration::from_secs(65);

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody accepted in time.
    #[error("no connection to {0} within {1:?}; is the host up, is a firewall dropping packets?")]
    TimedOut(SocketAddr, Duration),
    /// The system refused.
    #[error("cannot connect to {0}")]
    Refused(SocketAddr, #[source] io::Error),
}

/// Connects to `to` within `limit`.
///
/// # Errors
/// When nobody accepts in time, or the system refuses.
///
/// # Cancel safety
/// Safe: a half-made connection is closed.
pub async fn dial(to: SocketAddr, limit: Duration) -> Result<TcpStream, DialError> {
    let stream = match tokio::time::timeout(limit, TcpStream::connect(to)).await {
        Err(_) => return Err(DialError::TimedOut(to, limit)),
        Ok(Err(e)) => return Err(DialError::Refused(to, e)),
        Ok(Ok(stream)) => stream,
    };
    prepare(&stream);
    Ok(stream)
}

/// Sets the options; a socket that refuses one still works.
pub(crate) fn prepare(stream: &TcpStream) {
    drop(stream.set_nodelay(true));
    let socket = SockRef::from(stream);
    drop(socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3)));
    drop(socket.set_tcp_user_timeout(Some(USER_TIMEOUT)));
}

/// Resolves `host:port` by the system's resolver, within `limit`.
///
/// # Errors
/// When there is no address, or no answer in time.
pub async fn resolve(authority: &str, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    match tokio::time::timeout(limit, tokio::net::lookup_host(authority)).await {
        Ok(found) => Ok(found?.collect()),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no address for {authority} within {limit:?}"),
        )),
    }
}
