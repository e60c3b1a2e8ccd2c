//! What the blog's Rust services share: start-up ([`server`]), a database file ([`store`]), the rules of text and pages
//! ([`check`]) and the generated messages ([`pb`]).
//!
//! A service knows its neighbours by `<NAME>_ADDR` and nothing else about them: where they run, how many there are, how
//! long a call may take and whether it is tried again is decided outside of this code.

pub mod check;
pub mod pb;
pub mod server;
pub mod store;
