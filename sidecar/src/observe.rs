//! Counters and latencies: per-worker cells, merged when somebody looks.
//!
//! A handle ([`Cell`]) is made when configuration is applied; a request only adds to it. No label is
//! formatted or looked up per request. Knows no room that serves requests.

pub mod access_log;
mod cell;
pub mod count;
pub mod held;
mod histogram;
pub mod prometheus;
mod registry;

pub use cell::{Cell, CellSnapshot, OpenConnection, StatusClass};
pub use histogram::{Histogram, HistogramSnapshot};
pub use registry::{Direction, Gauge, GuardSnapshot, Guarding, Key, Stats};
