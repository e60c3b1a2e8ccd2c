//! The last good snapshot: one file, replaced whole, so that a sidecar starts without a control plane.
//!
//! Layout: magic and version (8 bytes), length and FNV-1a checksum of the rest (8 bytes each, little
//! endian), then delta answers, each with its length before it. A damaged or foreign file is ignored
//! with a warning; a disk that cannot be written is said once, and work goes on from memory.

#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use outrigger_proto::wire::discovery::DeltaDiscoveryResponse;
use prost::Message as _;
use tokio::sync::watch;

use crate::shared::Shared;

/// The last byte is the layout's version.
const MAGIC: [u8; 8] = *b"ORSNAP\0\x01";
const HEADER: usize = 24;
/// Larger files are not ours.
const LARGEST: u64 = 256 << 20;

/// Where snapshots are kept. One state is pending at most; a newer one replaces it.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    pending: watch::Sender<Option<Bytes>>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Damage {
    /// It does not begin as ours do.
    #[error("it is no snapshot of this version")]
    Foreign,
    /// Bytes are missing or changed.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

impl Store {
    /// The store of this workload's service; none without a state directory.
    pub(super) fn open(shared: &Shared) -> Option<Self> {
        let dir = shared.bootstrap.state_dir.as_ref()?;
        // By service, not by instance: a new instance starts from what an older one learnt.
        let file = format!("{}.{}.snapshot", shared.name.namespace(), shared.name.service());
        Some(Self {
            path: dir.join(file),
            pending: watch::Sender::new(None),
        })
    }

    /// Reads the snapshot; empty when there is none to use.
    pub(super) async fn load(&self) -> Vec<DeltaDiscoveryResponse> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), %error, "the last snapshot cannot be read");
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        decode(&bytes).unwrap_or_else(|damage| {
            tracing::warn!(path = %self.path.display(), %damage, "the last snapshot is ignored");
            Vec::new()
        })
    }

    /// Hands a snapshot to [`write`](Self::write).
    pub(super) fn save(&self, snapshot: &[DeltaDiscoveryResponse]) {
        self.pending.send_replace(Some(encode(snapshot)));
    }

    /// Writes what [`save`](Self::save) hands over, for ever.
    pub(super) async fn write(&self) {
        let mut pending = self.pending.subscribe();
        let mut said = false;
        while pending.changed().await.is_ok() {
            let Some(bytes) = pending.borrow_and_update().clone() else {
                continue;
            };
            let path = self.path.clone();
            let written = tokio::task::spawn_blocking(move || replace(&path, &bytes)).await;
            match written {
                Ok(Ok(())) => said = false,
                Ok(Err(error)) if !said => {
                    said = true;
                    tracing::warn!(path = %self.path.display(), %error, "cannot save the snapshot; going on from memory");
                }
                _ => {}
            }
        }
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > LARGEST {
        return Err(std::io::Error::other("the file is larger than any snapshot"));
    }
    std::fs::read(path)
}

/// Replaces the file whole. Replicas on one machine share it, so the temporary name is our own.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    // Addresses of the mesh are nobody else's business on a shared machine.
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    written
}

/// The file's bytes.
pub(super) fn encode(snapshot: &[DeltaDiscoveryResponse]) -> Bytes {
    let body: Vec<u8> = snapshot
        .iter()
        .flat_map(|part| part.encode_length_delimited_to_vec())
        .collect();
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend(MAGIC);
    out.extend((body.len() as u64).to_le_bytes());
    out.extend(checksum(&body).to_le_bytes());
    out.extend(body);
    out.into()
}

/// Reads the file's bytes back.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<DeltaDiscoveryResponse>, Damage> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(Damage::Foreign)?;
    let (length, rest) = rest
        .split_first_chunk::<8>()
        .ok_or(Damage::Damaged("its head is cut"))?;
    let (sum, mut body) = rest
        .split_first_chunk::<8>()
        .ok_or(Damage::Damaged("its head is cut"))?;
    if body.len() as u64 != u64::from_le_bytes(*length) {
        return Err(Damage::Damaged("its length is wrong"));
    }
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(Damage::Damaged("its checksum is wrong"));
    }
    let mut parts = Vec::new();
    while !body.is_empty() {
        let part = DeltaDiscoveryResponse::decode_length_delimited(&mut body);
        parts.push(part.map_err(|_| Damage::Damaged("a part is malformed"))?);
    }
    Ok(parts)
}

/// FNV-1a: against torn writes and bad disks, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
