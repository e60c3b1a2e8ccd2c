//! `identity.files`: a key and certificates that somebody else renews, read again when they change.

use std::path::Path;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::TrustBundle;

use super::leaf::Leaf;
use super::pem;
use super::state::OpenError;
use super::trust::Trust;
use super::{FileError, Identity};
use crate::config::{self, Files};
use crate::shared::Shared;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// After a change that could not be used: key and chain are two files, and change one after the other.
const AGAIN: Duration = Duration::from_secs(1);

/// What tells one version of the files from another.
pub(super) type Seen = [Option<(u64, SystemTime, u64)>; 3];

/// Reads the files.
///
/// # Errors
/// When they cannot be used; what was used before still is.
pub(super) fn load(identity: &Identity, files: &Files, service: &str) -> Result<(), OpenError> {
    let wrong = |why: String| OpenError::Pair {
        key: files.key.clone(),
        chain: files.chain.clone(),
        why,
    };
    // Before reading: what changes meanwhile is another version.
    let version = seen(files);
    let key = pem::read_key(&files.key)?;
    let (chain, _) = pem::read_certificates(&files.chain)?;
    let (roots, _) = pem::read_certificates(&files.roots)?;
    let now = SystemTime::now();
    let mut leaf = Leaf::new(chain, &key.0, now).map_err(|e| wrong(e.to_string()))?;
    if leaf.own.id.service().as_str() != service {
        return Err(wrong(format!("they belong to {}, and this is {service}", leaf.own.id)));
    }
    let before = identity.parts().1;
    let trust = Trust::new(TrustBundle {
        trust_domain: leaf.own.id.trust_domain().to_owned(),
        roots: roots.iter().map(|der| der.to_vec()).collect(),
        generation: before.as_ref().map_or(0, |trust| trust.bundle.generation) + 1,
        revoked: before.map(|trust| trust.bundle.revoked.clone()).unwrap_or_default(),
    })
    .map_err(|e| FileError::content(&files.roots, e))?;
    leaf.settle(&trust, &identity.provider, now)
        .map_err(|refusal| wrong(format!("no peer would let this workload in: {refusal}")))?;
    identity.replace(leaf, trust);
    *identity.seen.lock() = Some(version);
    Ok(())
}

/// Watches the files for ever.
pub(super) async fn run(shared: &Shared, settings: &config::Identity) {
    let Some(files) = &settings.files else {
        return;
    };
    let identity = &shared.identity;
    let mut failures = 0;
    loop {
        identity.tell(&shared.stats);
        tokio::time::sleep(if failures == 0 { LOOK } else { AGAIN }).await;
        if *identity.seen.lock() == Some(seen(files)) {
            failures = 0;
            continue;
        }
        match load(identity, files, shared.name.as_str()) {
            Ok(()) => {
                tracing::info!("the files of the identity changed and are used");
                failures = 0;
                identity.progress.lock().renewals += 1;
                identity.progress.lock().last_error = None;
            }
            Err(error) => {
                failures += 1;
                identity.failed(error.to_string(), failures);
            }
        }
    }
}

fn seen(files: &Files) -> Seen {
    use std::os::unix::fs::MetadataExt as _;
    let one = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.modified().ok()?, metadata.len()))
    };
    [one(&files.key), one(&files.chain), one(&files.roots)]
}
