//! Keys and certificates as text (RFC 7468), and which key files are refused.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize as _, Zeroizing};

/// Larger files are no keys and no chains.
const LARGEST: u64 = 1 << 20;
/// Characters of base64 on a line (RFC 7468 §2).
const LINE: usize = 64;

/// What is wrong with a file of keys or certificates.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Neither its owner nor we can read it.
    #[error("cannot read {path}: run `chmod {mode} {path}` as its owner, or give it to the user of this process")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should have.
        mode: &'static str,
    },
    /// Others can read a key.
    #[error("{path} holds a private key and can be read by others (mode {mode:o}): run `chmod 600 {path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// What it has.
        mode: u32,
    },
    /// It cannot be read for another reason.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not hold what it should.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl FileError {
    /// True when there is no such file.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    pub(super) fn content(path: &Path, reason: impl ToString) -> Self {
        Self::Content {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}

/// A private key that is wiped when dropped.
pub(super) struct Key(pub(super) PrivateKeyDer<'static>);

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Reads a key that only its owner can read.
///
/// # Errors
/// When it can be read by others, not at all, or is no key.
pub(super) fn read_key(path: &Path) -> Result<Key, FileError> {
    let (file, mode) = open(path, "600")?;
    if mode & 0o077 != 0 {
        return Err(FileError::Open {
            path: path.into(),
            mode,
        });
    }
    let text = text(path, file)?;
    PrivateKeyDer::from_pem_slice(&text)
        .map(Key)
        .map_err(|_| FileError::content(path, "it holds no private key in PEM"))
}

/// Reads certificates, with the text before them.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub(super) fn read_certificates(path: &Path) -> Result<(Vec<CertificateDer<'static>>, String), FileError> {
    let (file, _) = open(path, "644")?;
    let text = text(path, file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|e| FileError::content(path, format!("it is no PEM: {e}")))?;
    if all.is_empty() {
        return Err(FileError::content(path, "it holds no certificate in PEM"));
    }
    let head = String::from_utf8_lossy(&text);
    let head = head.split("-----BEGIN").next().unwrap_or_default().to_owned();
    Ok((all, head))
}

fn open(path: &Path, mode: &'static str) -> Result<(File, u32), FileError> {
    let read = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::PermissionDenied => FileError::Unreadable {
            path: path.into(),
            mode,
        },
        _ => FileError::Read {
            path: path.into(),
            source,
        },
    };
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if metadata.size() > LARGEST {
        return Err(FileError::content(path, "it is larger than 1 MiB"));
    }
    Ok((file, metadata.permissions().mode() & 0o777))
}

fn text(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // At once as large as it gets: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(16 * 1024));
    file.take(LARGEST)
        .read_to_end(&mut text)
        .map_err(|source| FileError::Read {
            path: path.into(),
            source,
        })?;
    Ok(text)
}

/// One block.
pub(super) fn block(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 65 / LINE + 2 * label.len() + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in body.as_bytes().chunks(LINE) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Certificates, one after the other.
pub(super) fn certificates<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> String {
    all.into_iter()
        .map(|der| block("CERTIFICATE", der).to_string())
        .collect()
}
