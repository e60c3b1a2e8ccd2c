//! Key, chain and roots on disk, so that a sidecar starts with the control plane down.
//!
//! ```text
//! <state_dir>/identity/        0700
//!   lock                       held while the process lives
//!   17/key.pem, 17/chain.pem   0600; one pair, written whole before it is named
//!   current -> 17              replaced by rename: a crash leaves the old pair or the new one
//!   key.pem, chain.pem         links through `current`, for people and tools
//!   roots.pem                  what is trusted; the lines before the certificates say which mesh it is
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use outrigger_proto::model::{Revocation, TrustBundle};
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::pem::{self, FileError, Key};

const CURRENT: &str = "current";
const KEY: &str = "key.pem";
const CHAIN: &str = "chain.pem";
const ROOTS: &str = "roots.pem";

/// The directory.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    /// Held by the process that writes; two that write would throw away each other's keys.
    lock: Mutex<Option<Flock<File>>>,
}

/// What was kept.
pub(super) struct Kept {
    pub(super) key: Key,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) trust: TrustBundle,
    /// When it was written.
    pub(super) since: SystemTime,
    /// The instance that it was issued to.
    pub(super) instance: String,
    /// The files, for messages.
    pub(super) key_path: PathBuf,
    pub(super) chain_path: PathBuf,
}

impl Files {
    /// Opens `<state_dir>/identity`, and makes it if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("identity");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // A directory that was there may be open to others; it is ours to close.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let files = Self {
            dir,
            lock: Mutex::default(),
        };
        if !files.may_write()? {
            tracing::warn!(dir = %files.dir.display(), "another sidecar uses this directory: while it does, this one keeps its new keys in memory");
        }
        Ok(files)
    }

    /// True when no other process writes here; it may have ended since the last look.
    fn may_write(&self) -> io::Result<bool> {
        let mut lock = self.lock.lock();
        if lock.is_none() {
            let file = new_file(&self.dir.join("lock"))?;
            *lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok();
        }
        Ok(lock.is_some())
    }

    /// Reads what was kept; none before the first join.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub(super) fn load(&self) -> Result<Option<Kept>, FileError> {
        let pair = self.dir.join(CURRENT);
        let (key_path, chain_path) = (pair.join(KEY), pair.join(CHAIN));
        let key = match pem::read_key(&key_path) {
            Ok(key) => key,
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error),
        };
        let (chain, head) = pem::read_certificates(&chain_path)?;
        let (roots, said) = pem::read_certificates(&self.dir.join(ROOTS))?;
        let since = fs::metadata(&chain_path).and_then(|m| m.modified());
        Ok(Some(Kept {
            key,
            chain,
            trust: bundle(&self.dir.join(ROOTS), roots, &said)?,
            since: since.unwrap_or_else(|_| SystemTime::now()),
            instance: value(&head, "instance").unwrap_or_default().to_owned(),
            key_path,
            chain_path,
        }))
    }

    /// Keeps a pair. A crash at any moment leaves this one or the one before.
    ///
    /// # Errors
    /// When the disk does not take it; the pair before is still there.
    pub(super) fn keep(&self, key: &PrivateKeyDer<'_>, chain: &[CertificateDer<'_>], instance: &str) -> io::Result<()> {
        if !self.may_write()? {
            return Ok(());
        }
        let before = fs::read_link(self.dir.join(CURRENT)).ok();
        let number = before
            .as_deref()
            .and_then(Path::to_str)
            .and_then(|n| n.parse::<u64>().ok());
        let number = number.map_or(1, |n| n.wrapping_add(1)).to_string();
        let pair = self.dir.join(&number);
        if pair.exists() {
            // A crash came between this directory and its name.
            fs::remove_dir_all(&pair)?;
        }
        DirBuilder::new().mode(0o700).create(&pair)?;
        let label = match key {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        write(&pair.join(KEY), pem::block(label, key.secret_der()).as_bytes())?;
        let chain = pem::certificates(chain.iter().map(AsRef::as_ref));
        write(&pair.join(CHAIN), format!("instance: {instance}\n{chain}").as_bytes())?;
        sync(&pair)?;
        self.link(CURRENT, Path::new(&number))?;
        for name in [KEY, CHAIN] {
            if fs::symlink_metadata(self.dir.join(name)).is_err() {
                self.link(name, &Path::new(CURRENT).join(name))?;
            }
        }
        sync(&self.dir)?;
        self.forget_all_but(&number);
        Ok(())
    }

    /// Keeps what is trusted.
    ///
    /// # Errors
    /// When the disk does not take it; what was trusted before is still there.
    pub(super) fn keep_trust(&self, trust: &TrustBundle) -> io::Result<()> {
        if !self.may_write()? {
            return Ok(());
        }
        let mut text = format!(
            "trust-domain: {}\ngeneration: {}\n",
            trust.trust_domain, trust.generation
        );
        for revoked in &trust.revoked {
            text.push_str(&match revoked {
                Revocation::Serial(serial) => format!("revoked-serial: {serial}\n"),
                Revocation::Service(service) => format!("revoked-service: {service}\n"),
            });
        }
        text.push_str(&pem::certificates(trust.roots.iter().map(Vec::as_slice)));
        let temporary = self.dir.join("roots.tmp");
        write(&temporary, text.as_bytes())?;
        fs::rename(&temporary, self.dir.join(ROOTS))?;
        sync(&self.dir)
    }

    /// Names `target` by `name` in one step.
    fn link(&self, name: &str, target: &Path) -> io::Result<()> {
        let temporary = self.dir.join(format!("{name}.tmp"));
        drop(fs::remove_file(&temporary));
        symlink(target, &temporary)?;
        fs::rename(&temporary, self.dir.join(name))
    }

    /// Old keys are of no use to anybody but a thief.
    fn forget_all_but(&self, number: &str) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let numbered = name.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
            if numbered && name != *number {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }
}

/// What the lines before the certificates say.
fn bundle(path: &Path, roots: Vec<CertificateDer<'static>>, said: &str) -> Result<TrustBundle, FileError> {
    let trust_domain = value(said, "trust-domain")
        .ok_or_else(|| FileError::content(path, "it does not say which trust domain it is"))?
        .to_owned();
    let mut revoked = Vec::new();
    for line in said.lines() {
        if let Some(serial) = line.strip_prefix("revoked-serial: ") {
            revoked.push(Revocation::Serial(serial.into()));
        } else if let Some(service) = line.strip_prefix("revoked-service: ") {
            let service = service.parse().map_err(|e| FileError::content(path, e))?;
            revoked.push(Revocation::Service(service));
        }
    }
    Ok(TrustBundle {
        trust_domain,
        roots: roots.iter().map(|der| der.to_vec()).collect(),
        generation: value(said, "generation").and_then(|g| g.parse().ok()).unwrap_or(0),
        revoked,
    })
}

fn value<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(": ");
    said.lines().find_map(value).map(str::trim)
}

/// Opens a file that only we can read, and makes it if need be.
fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = new_file(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Names in a directory last only once it is synced.
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
