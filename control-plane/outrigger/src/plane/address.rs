//! Where the control plane may be: what was said, the `up` that runs here, the socket of `outrigger control-plane`.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A way to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Its socket on this machine.
    Socket(PathBuf),
    /// `host:port`, by TLS with a token.
    Tls(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(authority) => write!(f, "https://{authority}"),
        }
    }
}

impl Address {
    /// Reads `unix:/path`, `https://host:port` or `host:port`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("`unix:` needs the path of a socket".to_owned());
            }
            return Ok(Self::Socket(PathBuf::from(path)));
        }
        if text.starts_with('/') {
            return Ok(Self::Socket(PathBuf::from(text)));
        }
        let authority = match text.split_once("://") {
            None => text,
            Some(("https", authority)) => authority,
            Some(_) => {
                return Err(format!(
                    "`{text}` is neither unix:/PATH nor https://HOST:PORT; the control plane speaks nothing else"
                ));
            }
        };
        let authority = authority.trim_end_matches('/');
        match authority.parse::<http::uri::Authority>() {
            Ok(parsed) if parsed.port_u16().is_some() => Ok(Self::Tls(authority.to_owned())),
            _ => Err(format!("`{text}` is not HOST:PORT")),
        }
    }
}

/// The description of the `up` that runs for `target`: for a mesh file that one, for a folder that of its mesh.yaml or
/// of another mesh file there.
pub(crate) fn up_of(target: &Path) -> Option<Value> {
    let folder = if target.is_file() { target.parent()? } else { target };
    let home = folder.join(".outrigger");
    let others = fs::read_dir(&home)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let homes: Vec<PathBuf> = match target.file_stem().and_then(|stem| stem.to_str()) {
        Some(stem) if target.is_file() && stem != "mesh" => vec![home.join(stem)],
        _ => std::iter::once(home.clone()).chain(others).collect(),
    };
    homes.into_iter().find_map(|home| {
        let text = fs::read(home.join("run/up.json")).ok()?;
        let up: Value = serde_json::from_slice(&text).ok()?;
        let pid = i32::try_from(up.get("pid")?.as_i64()?).ok()?;
        // A description outlives a killed `up`; it must not send anybody to a stranger.
        let alive = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok();
        alive.then_some(up)
    })
}

/// The folder in which `outrigger control-plane` puts its socket when nothing else is said: one that nobody else can
/// write to, so that no stranger can pass for it. None when the user has no such folder.
pub(crate) fn runtime_folder() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(folder) = absolute("XDG_RUNTIME_DIR") {
        return Some(folder.join("outrigger"));
    }
    if nix::unistd::geteuid().is_root() {
        return Some(PathBuf::from("/run/outrigger"));
    }
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("outrigger"))
}

/// The socket's name in its folder.
pub(crate) const SOCKET: &str = "control-plane.sock";

/// A name for `socket` that is short enough for the system (107 bytes), and what has to stay open while it is used.
///
/// # Errors
/// When its folder cannot be opened.
pub(crate) fn short(socket: &Path) -> io::Result<(File, PathBuf)> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let folder = File::open(socket.parent().ok_or_else(missing)?)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    Ok((folder, path.join(socket.file_name().ok_or_else(missing)?)))
}

/// Whose `path` is, as far as we are allowed to see: the owner of it or of the nearest folder above that shows itself.
pub(crate) fn owner(path: &Path) -> Option<String> {
    let uid = path.ancestors().find_map(|path| fs::metadata(path).ok())?.uid();
    let name = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    Some(name.map_or_else(|| format!("uid {uid}"), |user| user.name))
}

#[cfg(test)]
mod tests {
    use super::{Address, owner};

    #[test]
    fn an_address_is_a_socket_or_tls() {
        let socket = |path: &str| Ok(Address::Socket(path.into()));
        let tls = |authority: &str| Ok(Address::Tls(authority.to_owned()));
        for (text, expected) in [
            ("unix:/run/x.sock", socket("/run/x.sock")),
            ("unix:///run/x.sock", socket("/run/x.sock")),
            ("/run/x.sock", socket("/run/x.sock")),
            ("https://10.0.0.1:7070/", tls("10.0.0.1:7070")),
            ("[::1]:7070", tls("[::1]:7070")),
            ("mesh.example:7070", tls("mesh.example:7070")),
        ] {
            assert_eq!(Address::parse(text), expected, "{text}");
        }
        for text in [
            "http://127.0.0.1:7070",
            "unix:",
            "127.0.0.1",
            "https://",
            "ftp://x:1",
            "",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_missing_belongs_to_the_owner_of_the_nearest_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(owner(&folder.path().join("a/b.sock")), owner(folder.path()));
        assert!(owner(folder.path()).is_some());
    }
}
