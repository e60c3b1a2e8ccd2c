//! The configuration in force, and the last one that was refused.
//!
//! A configuration is taken whole or refused whole; a refused one changes nothing but the status.
//! Knows neither where a text came from nor who is told.

use crate::catalog::{Catalog, Changes};
use crate::config::{ConfigErrors, Mesh};

/// A configuration that was taken or refused, and where it came from.
#[derive(Debug, Clone)]
pub struct Mark<T> {
    /// A path, or who posted it.
    pub origin: String,
    /// RFC 3339, UTC.
    pub at: String,
    /// What there is to say.
    pub what: T,
}

/// What is in force.
#[derive(Debug, Default)]
pub struct Rollout {
    /// What sidecars are given.
    pub catalog: Catalog,
    /// Version and the mesh's name of the last good configuration; none before the first.
    pub good: Option<Mark<(String, String)>>,
    /// The last refused configuration, until another is taken.
    pub refused: Option<Mark<ConfigErrors>>,
}

/// What taking a configuration changed.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The version now in force.
    pub version: String,
    /// Which services differ.
    pub changes: Changes,
}

impl Rollout {
    /// Puts `mesh` into force.
    pub fn take(&mut self, origin: &str, mesh: &Mesh) -> Applied {
        let next = Catalog::new(mesh);
        let version = next.version();
        let changes = self.catalog.changes(&next);
        self.catalog = next;
        self.good = Some(mark(origin, (version.clone(), mesh.name.clone())));
        self.refused = None;
        Applied { version, changes }
    }

    /// Keeps what is in force and says why.
    pub fn refuse(&mut self, origin: &str, errors: ConfigErrors) {
        self.refused = Some(mark(origin, errors));
    }
}

fn mark<T>(origin: &str, what: T) -> Mark<T> {
    Mark {
        origin: origin.to_owned(),
        at: jiff::Timestamp::now().to_string(),
        what,
    }
}
