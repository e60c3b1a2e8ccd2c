//! Where the state is durable: one redb file, written before anything is answered.
//!
//! What could not be written was not answered either, so after a failure memory is the truth: the
//! file is opened again and written whole.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rotation::Trust;
use super::state::{State, Write};

const TRUST: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("trust");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
const REGISTRATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("registrations");
const REVOKED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("revoked");
/// The one row of its table.
const ONLY: &str = "trust";

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file is gone.
    #[error("the file does not exist")]
    Missing,
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] redb::Error),
    /// A row is not what this version writes.
    #[error("{table} `{key}` cannot be read: {reason}")]
    Row {
        /// Which table.
        table: String,
        /// Which row.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where the rows are.
#[derive(Debug)]
pub(super) enum Place {
    File(PathBuf),
    Memory,
    #[cfg(test)]
    Test(std::sync::Arc<tests::Flaky>),
}

/// The open file.
#[derive(Debug)]
pub(super) struct Disk {
    place: Place,
    /// None after a failure.
    database: Option<Database>,
}

impl Disk {
    /// Begins a new one.
    pub(super) fn create(place: Place, state: &State) -> Result<Self, DiskError> {
        let database = open(&place, true)?;
        let disk = Self {
            place,
            database: Some(database),
        };
        disk.database.as_ref().map_or(Ok(()), |d| rewrite(d, state))?;
        Ok(disk)
    }

    /// Opens one that was begun.
    pub(super) fn open(place: Place) -> Result<(Self, State), DiskError> {
        let database = open(&place, false)?;
        let state = load(&database)?;
        let database = Some(database);
        Ok((Self { place, database }, state))
    }

    /// Stores `writes`, all or none. `before`: the state without them.
    pub(super) fn commit(&mut self, before: impl FnOnce() -> State, writes: &[Write]) -> Result<(), DiskError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = open(&self.place, false)?;
                rewrite(&database, &before())?;
                database
            }
        };
        store(&database, writes)?;
        self.database = Some(database);
        Ok(())
    }
}

fn open(place: &Place, create: bool) -> Result<Database, DiskError> {
    let builder = Builder::new();
    let opened = match place {
        Place::Memory => builder.create_with_backend(InMemoryBackend::new()),
        #[cfg(test)]
        Place::Test(flaky) => builder.create_with_backend(tests::Handle(std::sync::Arc::clone(flaky))),
        Place::File(path) => {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(create)
                .mode(0o600)
                .open(path);
            match file {
                Ok(file) => FileBackend::new(file).and_then(|file| builder.create_with_backend(file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(DiskError::Missing),
                Err(error) => return Err(DiskError::File(redb::Error::Io(error))),
            }
        }
    };
    Ok(opened.map_err(redb::Error::from)?)
}

fn load(database: &Database) -> Result<State, DiskError> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let read = |table: TableDefinition<'_, &str, &[u8]>| -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
        let table = transaction.open_table(table)?;
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            rows.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(rows)
    };
    let mut trust = None;
    for (key, row) in read(TRUST)? {
        trust = Some(parse::<Trust>("trust", &key, &row)?);
    }
    let trust = trust.filter(|t| !t.roots.is_empty()).ok_or_else(|| DiskError::Row {
        table: "trust".into(),
        key: ONLY.into(),
        reason: "missing".into(),
    })?;
    let mut state = State::new(trust);
    // A row that cannot be read is an error: what it said (a revocation, a spent token) would be lost.
    for (key, row) in read(TOKENS)? {
        let token = parse("tokens", &key, &row)?;
        state.apply(Write::Token(key, Some(token)));
    }
    for (key, row) in read(REGISTRATIONS)? {
        let registration = parse("registrations", &key, &row)?;
        state.apply(Write::Registration(key, Some(registration)));
    }
    for (key, row) in read(REVOKED)? {
        let revoked = parse("revoked", &key, &row)?;
        state.apply(Write::Revoked(key, Some(revoked)));
    }
    Ok(state)
}

fn parse<T: DeserializeOwned>(table: &str, key: &str, row: &[u8]) -> Result<T, DiskError> {
    serde_json::from_slice(row).map_err(|error| DiskError::Row {
        table: table.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

fn store(database: &Database, writes: &[Write]) -> Result<(), DiskError> {
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    for write in writes {
        write_one(&transaction, write)?;
    }
    Ok(transaction.commit().map_err(redb::Error::from)?)
}

fn rewrite(database: &Database, state: &State) -> Result<(), DiskError> {
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    for table in [TRUST, TOKENS, REGISTRATIONS, REVOKED] {
        transaction.delete_table(table).map_err(redb::Error::from)?;
        transaction.open_table(table).map_err(redb::Error::from)?;
    }
    write_one(&transaction, &Write::Trust(state.trust.clone()))?;
    for (id, token) in &state.tokens {
        write_one(&transaction, &Write::Token(id.clone(), Some(token.clone())))?;
    }
    for (name, registration) in &state.registrations {
        write_one(
            &transaction,
            &Write::Registration(name.clone(), Some(registration.clone())),
        )?;
    }
    for (what, revoked) in &state.revoked {
        write_one(&transaction, &Write::Revoked(what.clone(), Some(revoked.clone())))?;
    }
    Ok(transaction.commit().map_err(redb::Error::from)?)
}

fn write_one(transaction: &WriteTransaction, write: &Write) -> Result<(), DiskError> {
    match write {
        Write::Trust(trust) => put(transaction, TRUST, ONLY, Some(trust)),
        Write::Token(id, token) => put(transaction, TOKENS, id, token.as_ref()),
        Write::Registration(name, registration) => put(transaction, REGISTRATIONS, name, registration.as_ref()),
        Write::Revoked(what, revoked) => put(transaction, REVOKED, what, revoked.as_ref()),
    }
}

fn put<T: Serialize>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &str, &[u8]>,
    key: &str,
    value: Option<&T>,
) -> Result<(), DiskError> {
    let mut table = transaction.open_table(table).map_err(redb::Error::from)?;
    let Some(value) = value else {
        table.remove(key).map_err(redb::Error::from)?;
        return Ok(());
    };
    let bytes = serde_json::to_vec(value).map_err(|error| DiskError::Row {
        table: "row".to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })?;
    table.insert(key, bytes.as_slice()).map_err(redb::Error::from)?;
    Ok(())
}

/// The file's name in the authority's directory.
pub(super) fn file(directory: &Path) -> PathBuf {
    directory.join("identity.redb")
}

#[cfg(test)]
pub(super) mod tests;
