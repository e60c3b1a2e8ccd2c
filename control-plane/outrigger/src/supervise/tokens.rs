//! The tokens with which the sidecars of an `up` join: one a service, made unseen, replaced twice a day, ended with it.
//!
//! They may be used any number of times, as a sidecar may lose its state at any time, and lie in files of the folder
//! `run/`, which only this user may enter. Their ids, which are no secret, are noted where they outlive us, so that the
//! next `up` ends what a killed one could not.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use outrigger_proto::model::{JoinToken, ServiceName};
use serde_json::json;

use super::state::Layout;
use crate::plane::Plane;

/// How long a token is good, and when the next replaces it.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const RENEW: Duration = Duration::from_secs(12 * 3600);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(10);
const LATER: Duration = Duration::from_secs(60);
const PATH: &str = "/v1/tokens";

/// The tokens of one `up`.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    plane: Plane,
    folder: PathBuf,
    notes: PathBuf,
    services: Vec<ServiceName>,
}

impl Tokens {
    /// Those of `services`, made by the control plane behind the socket of `layout`.
    pub(crate) fn new(layout: &Layout, services: Vec<ServiceName>) -> Self {
        Self {
            plane: Plane::at_socket(&layout.plane_socket()),
            folder: layout.run.join("tokens"),
            notes: layout.state.join("tokens.json"),
            services,
        }
    }

    /// Where the token of `service` is read.
    pub(crate) fn file(layout: &Layout, service: &ServiceName) -> PathBuf {
        file(&layout.run.join("tokens"), service)
    }

    /// Makes the first, as soon as the control plane answers; gives up after `patience`.
    ///
    /// # Errors
    /// The last one.
    pub(crate) async fn begin(&self, patience: Duration) -> anyhow::Result<()> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            match self.replace().await {
                Ok(()) => return Ok(()),
                Err(error) if tokio::time::Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Replaces them in time. Never returns.
    pub(crate) async fn keep(&self) {
        let mut pause = RENEW;
        loop {
            tokio::time::sleep(pause).await;
            // The old ones are good for as long again.
            pause = if self.replace().await.is_ok() { RENEW } else { LATER };
        }
    }

    /// Ends all.
    pub(crate) async fn end(&self) {
        let ended = self.revoke(self.noted()).await;
        fs::remove_dir_all(&self.folder).ok();
        // What could not be ended is what the next `up` ends.
        if ended.is_ok() {
            fs::remove_file(&self.notes).ok();
        }
    }

    async fn replace(&self) -> anyhow::Result<()> {
        let old = self.noted();
        let made = self.services.iter().map(async |service| {
            let question = json!({
                "namespace": service.namespace(), "service": service.service(), "uses": 0, "ttl_s": LIFE.as_secs(),
            });
            let answer = self.plane.send(PATH, &question).await?;
            let text = answer.get("token").and_then(|token| token.as_str()).unwrap_or_default();
            let token: JoinToken = text.parse().context("the control plane gave no token")?;
            anyhow::Ok((service, token))
        });
        let made = futures_util::future::try_join_all(made).await?;
        let ids: Vec<&str> = old
            .iter()
            .map(String::as_str)
            .chain(made.iter().map(|(_, token)| token.id.as_str()))
            .collect();
        // First noted, then used.
        write(&self.notes, &serde_json::to_vec(&ids)?)?;
        for (service, token) in &made {
            write(&file(&self.folder, service), token.to_string().as_bytes())?;
        }
        if self.revoke(old).await.is_ok() {
            let ids: Vec<&str> = made.iter().map(|(_, token)| token.id.as_str()).collect();
            write(&self.notes, &serde_json::to_vec(&ids)?)?;
        }
        Ok(())
    }

    fn noted(&self) -> Vec<String> {
        let text = fs::read(&self.notes).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    async fn revoke(&self, ids: Vec<String>) -> anyhow::Result<()> {
        let ended = ids
            .iter()
            .map(async |id| match self.plane.delete(&format!("{PATH}/{id}")).await {
                Err(error) if !gone(&error) => Err(error),
                _ => Ok(()),
            });
        futures_util::future::try_join_all(ended).await.map(|_| ())
    }
}

/// Whether the control plane says that there is no such token: it ran out, or the state was removed.
fn gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(crate::exit::Failure::NotFound(_)))
}

fn file(folder: &Path, service: &ServiceName) -> PathBuf {
    // No name has a dot.
    folder.join(format!("{}.{}", service.namespace(), service.service()))
}

/// Writes `path` for this user alone, whole or not at all.
pub(crate) fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut next = path.to_owned();
    next.as_mut_os_string().push(".next");
    fs::remove_file(&next).ok();
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)?;
    file.write_all(text)?;
    fs::rename(next, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_this_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        super::write(&path, b"one").unwrap();
        super::write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
