//! The unix socket: whoever may open it and runs as the same user, or as root, is an operator.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A socket that is listened on; its file is taken away at the end.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another control plane answers there.
    #[error("another control plane listens on {}", .0.display())]
    Live(PathBuf),
    /// Something else has the name.
    #[error("{} is there and is no socket; move it away", .0.display())]
    NotASocket(PathBuf),
    /// Others could put their own socket in its place.
    #[error("{folder} can be written by others, so they could stand in for the control plane; run `chmod 700 {folder}`", folder = .0.display())]
    Open(PathBuf),
    /// The name cannot be one.
    #[error("{} names no file in a folder", .0.display())]
    Name(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Bytes in `sun_path`, less the zero at the end (unix(7)).
const LONGEST: usize = 107;

impl Socket {
    /// Listens on `path`, which nobody but this user can open. A socket that a dead process left there is replaced.
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// When a live process has it, its folder is open to others, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else {
            return Err(SocketError::Name(path.to_owned()));
        };
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
        // A path that is too long for the system is reached by its folder's descriptor (proc(5)).
        let opened = File::open(folder).map_err(failed)?;
        let about = opened.metadata().map_err(failed)?;
        // Who may write there may replace the socket; in a sticky folder (/tmp) only its owner may.
        if about.mode() & 0o022 != 0 && about.mode() & 0o1000 == 0 {
            return Err(SocketError::Open(folder.to_owned()));
        }
        let short = if path.as_os_str().len() <= LONGEST {
            path.to_owned()
        } else {
            Path::new("/proc/self/fd")
                .join(opened.as_raw_fd().to_string())
                .join(name)
        };
        let listener = match UnixListener::bind(&short) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                clear(path, &short)?;
                UnixListener::bind(&short)
            }
            bound => bound,
        };
        let listener = listener.map_err(failed)?;
        // Until here others of a sticky folder could connect; their user is checked all the same.
        std::fs::set_permissions(&short, Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = std::fs::symlink_metadata(&short).map_err(failed)?.ino();
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
        })
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// What the system says.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A successor may have replaced it.
        let same = std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if same && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "cannot take the socket away");
        }
    }
}

/// Takes a dead process's socket away.
fn clear(path: &Path, short: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::symlink_metadata(short).map_err(failed)?;
    if !file.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(short) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(short).map_err(failed),
        // Also when it answers slowly or its queue is full: somebody is there.
        _ => Err(SocketError::Live(path.to_owned())),
    }
}

/// Whether the other end runs as this user or as root.
///
/// # Errors
/// Who it is instead.
pub fn peer(stream: &UnixStream) -> Result<(), String> {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => Ok(()),
        Ok(peer) => Err(format!(
            "the user {} is neither the control plane's own nor root",
            peer.uid()
        )),
        Err(error) => Err(format!("who it is cannot be told: {error}")),
    }
}
