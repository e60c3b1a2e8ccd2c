//! Where people and scrapers reach a sidecar.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The admin listener: `127.0.0.1:0`, or `unix:/path` for a socket that only its owner may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Admin {
    /// A loopback address; every process of the machine reaches it.
    Tcp(SocketAddr),
    /// A socket of mode 0600.
    Unix(PathBuf),
}

impl std::fmt::Display for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<Admin> for String {
    fn from(admin: Admin) -> Self {
        admin.to_string()
    }
}

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(path) => Err(format!("`unix:{path}`: the path does not begin with /")),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("`{text}` is neither address:port nor unix:/path")),
        }
    }
}

impl TryFrom<String> for Admin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A listener that only shows: metrics and health. The one listener besides those of the app's ports that may
/// leave the machine, because somebody wrote so here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Any address.
    pub listen: SocketAddr,
    /// Takes only clients with a certificate of the mesh. Needs `identity`.
    #[serde(default)]
    pub tls: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_listener_is_an_address_or_a_socket() {
        for text in ["127.0.0.1:0", "[::1]:9", "unix:/run/x/admin"] {
            assert_eq!(text.parse::<Admin>().expect("valid").to_string(), text);
        }
        for text in ["", "localhost:1", "unix:x", "/run/x"] {
            assert!(text.parse::<Admin>().is_err(), "{text}");
        }
    }
}
