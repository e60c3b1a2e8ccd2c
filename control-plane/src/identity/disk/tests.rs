//! What was stored is there again; what could not be stored was never said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::*;
use crate::identity::rotation::Root;
use crate::identity::state::Revoked;

/// A disk in memory that fails on demand and outlives its database.
#[derive(Debug, Default)]
pub(in crate::identity) struct Flaky {
    bytes: Mutex<Vec<u8>>,
    pub(in crate::identity) broken: AtomicBool,
}

#[derive(Debug)]
pub(in crate::identity) struct Handle(pub(in crate::identity) Arc<Flaky>);

impl Handle {
    fn check(&self) -> Result<(), std::io::Error> {
        match self.0.broken.load(Ordering::SeqCst) {
            true => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let at = offset as usize;
        out.copy_from_slice(&self.0.bytes.lock()[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.0.bytes.lock().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        let at = offset as usize;
        self.0.bytes.lock()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn state() -> State {
    let root = Root {
        number: 1,
        issuer: 1,
        hash: "ab".into(),
        not_after: 9,
        last_leaf: 3,
    };
    State::new(Trust::new("mesh.local".into(), root, false))
}

fn revoke(what: &str) -> Write {
    Write::Revoked(what.into(), Some(Revoked { since: 1, until: None }))
}

#[test]
fn a_failed_write_is_an_error_and_the_next_one_begins_from_memory() {
    let flaky = Arc::new(Flaky::default());
    let mut state = state();
    let mut disk = Disk::create(Place::Test(Arc::clone(&flaky)), &state).expect("creates");
    disk.commit(|| state.clone(), &[revoke("default/one")]).expect("stores");
    state.apply(revoke("default/one"));
    flaky.broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(disk.commit(|| state.clone(), &[revoke("default/two")]).is_err());
    }
    flaky.broken.store(false, Ordering::SeqCst);
    disk.commit(|| state.clone(), &[revoke("default/three")])
        .expect("stores again");
    state.apply(revoke("default/three"));
    drop(disk);
    let (_, again) = Disk::open(Place::Test(flaky)).expect("opens");
    assert_eq!(again, state);
    assert!(!again.is_revoked("default/two"));
}

#[test]
fn a_row_that_cannot_be_read_is_not_left_out() {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = file(scratch.path());
    let disk = Disk::create(Place::File(path.clone()), &state()).expect("creates");
    let transaction = disk.database.as_ref().expect("open").begin_write().expect("begins");
    transaction
        .open_table(REVOKED)
        .expect("opens")
        .insert("default/one", &b"{}"[..])
        .expect("inserts");
    transaction.commit().expect("commits");
    drop(disk);
    let error = Disk::open(Place::File(path.clone())).expect_err("refused").to_string();
    assert!(error.contains("revoked `default/one`"), "{error}");
    std::fs::remove_file(&path).expect("removes");
    assert!(matches!(Disk::open(Place::File(path)), Err(DiskError::Missing)));
}
