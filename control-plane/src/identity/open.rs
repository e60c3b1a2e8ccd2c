//! Begins an authority, or goes on with one.
//!
//! The first start makes everything in `ca.new` and renames it to `ca`, so that directory is complete
//! whenever it exists.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::disk::{self, Disk, DiskError, Place};
use super::limit::Limits;
use super::rotation::Trust;
use super::state::State;
use super::vault::Vault;
use super::x509::{Signer, Unix};
use super::{Authority, CONTROL_PLANE, Error, Options, ServerLeaf, TRUST_DOMAIN, brought, check_domain, files, place};
use crate::events::Events;

impl Authority {
    /// Goes on with the CA in `state_dir`, or makes one; in memory when there is no directory.
    ///
    /// # Errors
    /// When anything about it is not as it should be: nothing is changed then, and nothing is issued.
    pub fn open(
        now: Unix,
        state_dir: Option<&Path>,
        options: &Options,
        events: &Arc<Events>,
    ) -> Result<Arc<Self>, Error> {
        let given = options.trust_domain.as_deref();
        given.map_or(Ok(()), check_domain)?;
        let (disk, state, vault) = match state_dir {
            None => begin(now, None, options, None)?,
            Some(state_dir) => {
                files::check_format(state_dir)?;
                match is_begun(&place(state_dir))? {
                    true => go_on(now, &place(state_dir), options)?,
                    false => begin_directory(now, state_dir, options)?,
                }
            }
        };
        Self::start(now, (disk, state, vault), options, events)
    }

    pub(super) fn start(
        now: Unix,
        (disk, state, mut vault): (Disk, State, Vault),
        options: &Options,
        events: &Arc<Events>,
    ) -> Result<Arc<Self>, Error> {
        // What a crash between two steps of a rotation left behind.
        vault.clean(&state.trust)?;
        let trust = &state.trust;
        let id = trust
            .own_id(CONTROL_PLANE)
            .ok_or_else(|| Error::NoTrustDomain(trust.trust_domain.clone()))?;
        let leaf_ttl = options.leaf_ttl.as_secs().max(1);
        let number = trust.signing().map_or(0, |r| r.number);
        let first = Arc::new(ServerLeaf::none());
        let authority = Arc::new(Self {
            leaf_ttl,
            id,
            events: Arc::clone(events),
            disk: Mutex::new(disk),
            state: Mutex::new(state),
            vault: Mutex::new(vault),
            limits: Mutex::new(Limits::default()),
            server: watch::Sender::new(first),
            changes: watch::Sender::new(0),
            rounds: Mutex::default(),
            rotating: Mutex::default(),
            failing: AtomicBool::new(false),
        });
        // A refusal is told as an event; the leaf below says whether signing is possible all the same.
        let _told = authority.renew_issuer(now).is_err();
        let vault = authority.vault.lock();
        if let Some(held) = vault.held.get(&number) {
            let leaf = ServerLeaf::make(now, &held.signer, number, authority.id.as_str(), leaf_ttl)?;
            drop(authority.server.send_replace(Arc::new(leaf)));
        }
        drop(vault);
        Ok(authority)
    }
}

fn is_begun(place: &Path) -> Result<bool, Error> {
    match fs::read_dir(place) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(files::io_error(place)(error).into()),
    }
}

type Parts = (Disk, State, Vault);

fn begin_directory(now: Unix, state_dir: &Path, options: &Options) -> Result<Parts, Error> {
    let new = state_dir.join("ca.new");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(files::io_error(&new)(error).into()),
        _ => {}
    }
    files::make_private(&new)?;
    drop(begin(now, Some(&new), options, None)?);
    files::sync_directory(&new)?;
    let place = place(state_dir);
    fs::rename(&new, &place).map_err(files::io_error(&place))?;
    files::sync_directory(state_dir)?;
    go_on(now, &place, options)
}

/// Makes a CA. `kept`: where the state goes instead of `directory`.
pub(super) fn begin(
    now: Unix,
    directory: Option<&Path>,
    options: &Options,
    kept: Option<Place>,
) -> Result<Parts, Error> {
    let trust_domain = options.trust_domain.as_deref().unwrap_or(TRUST_DOMAIN);
    let mut vault = Vault::new(directory.map(Path::to_owned));
    let root = match &options.ca {
        Some(ca) => vault.hold_brought(brought::load(now, ca, trust_domain)?),
        None => vault.make_root(now, trust_domain, 1)?,
    };
    let state = State::new(Trust::new(trust_domain.to_owned(), root, options.ca.is_some()));
    let file = directory.map(disk::file);
    let kept = kept.unwrap_or_else(|| file.clone().map_or(Place::Memory, Place::File));
    let disk = Disk::create(kept, &state).map_err(|source| Error::Disk {
        path: file.unwrap_or_else(|| "memory".into()),
        source,
    })?;
    Ok((disk, state, vault))
}

fn go_on(now: Unix, place: &Path, options: &Options) -> Result<Parts, Error> {
    let path = disk::file(place);
    let (disk, state) = match Disk::open(Place::File(path.clone())) {
        Ok(opened) => opened,
        Err(DiskError::Missing) => {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let directory = place.to_owned();
            return Err(Error::Lost { directory, file });
        }
        Err(source) => return Err(Error::Disk { path, source }),
    };
    let stored = &state.trust.trust_domain;
    if let Some(given) = options.trust_domain.as_ref().filter(|given| *given != stored) {
        return Err(Error::TrustDomain {
            place: place.to_owned(),
            stored: stored.clone(),
            given: given.clone(),
        });
    }
    let other = |reason: &str| Error::OtherCa {
        place: place.to_owned(),
        reason: reason.to_owned(),
    };
    let vault = match (&options.ca, state.trust.brought) {
        (None, false) => Vault::load(place, &state.trust)?,
        (Some(ca), true) => {
            let signer: Signer = brought::load(now, ca, stored)?;
            let mut vault = Vault::new(Some(place.to_owned()));
            let root = vault.hold_brought(signer);
            if Some(&root.hash) != state.trust.signing().map(|r| &r.hash) {
                return Err(other(
                    "the root of the CA that was brought along is not the one that this mesh was begun with; bring \
                     that one, or begin with another state directory, where every workload joins again",
                ));
            }
            vault
        }
        (Some(_), false) => {
            return Err(other(
                "this mesh was begun with a CA of its own; to bring another along, begin with another state \
                 directory, where every workload joins again",
            ));
        }
        (None, true) => {
            return Err(other(
                "this mesh was begun with a CA that was brought along: bring it again",
            ));
        }
    };
    Ok((disk, state, vault))
}
