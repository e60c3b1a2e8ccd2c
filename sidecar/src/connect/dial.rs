//! One TCP connection, with the options that every connection of the mesh has.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Silence after which a dead peer is looked for.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Unacknowledged data after which the connection is dead (RFC 5482). Counts for probes too, from the
/// last byte heard: with less than a few probes beyond [`KEEPALIVE`] one lost probe would end a healthy
/// connection, and thousands of idle ones probe at the same moment.
const USER_TIMEOUT: Duration = Duration::from_secs(65);

/// File descriptors that connections to apps and peers cannot use up, an eighth of them at most: few streams of
/// one client may need many. What is left is for admin, probes, discovery and the session; a sidecar that nobody can
/// ask any more would look dead. Clients stop earlier, at `file_reserve`.
const KEPT_BACK: u64 = 16;

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
    let socket = socket(to).map_err(|e| DialError::Refused(to, e))?;
    let stream = match tokio::time::timeout(limit, socket.connect(to)).await {
        Err(_) => return Err(DialError::TimedOut(to, limit)),
        Ok(Err(e)) => return Err(DialError::Refused(to, e)),
        Ok(Ok(stream)) => stream,
    };
    prepare(&stream);
    Ok(stream)
}

/// A socket, unless its descriptor is one of those kept back: a new one is the lowest that is free, so its number
/// tells how many are in use.
fn socket(to: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    let all = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let below = RawFd::try_from(all - KEPT_BACK.min(all / 8)).unwrap_or(RawFd::MAX);
    match socket.as_raw_fd() < below {
        true => Ok(socket),
        false => Err(Errno::EMFILE.into()),
    }
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
