//! The sockets that people and scrapers come by.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config::Admin;

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// An address.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

impl Listener {
    /// Binds a socket that only its owner may open. One that a dead process left behind is replaced.
    ///
    /// # Errors
    /// When somebody listens there, or the path cannot be used.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let said = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot listen on unix:{}: {error}", path.display()),
            )
        };
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(said(io::Error::other("another process listens there")));
            }
            std::fs::remove_file(path).map_err(said)?;
        }
        // Bound under another name first: at no moment may others open the one that is known.
        let private = path.with_extension(format!("{}.tmp", std::process::id()));
        let bound = UnixListener::bind(&private)
            .and_then(|listener| {
                std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600))?;
                std::fs::rename(&private, path)?;
                Ok(Self::Unix(listener))
            })
            .map_err(said);
        if bound.is_err() {
            drop(std::fs::remove_file(&private));
        }
        bound
    }

    /// Where it is bound; none for a socket in the file system.
    #[must_use]
    pub fn address(&self) -> Option<Admin> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Admin::Tcp),
            // It was renamed since it was bound.
            Self::Unix(_) => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
            Self::Unix(listener) => Stream::Unix(listener.accept().await?.0),
        })
    }
}

/// A client's stream.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
