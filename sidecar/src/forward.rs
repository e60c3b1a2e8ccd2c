//! What travels: bodies, fields, upgrades, opaque bytes.
//!
//! Moves and never decides; knows no policy state.

pub mod body;
pub mod chunk;
pub mod copy;
pub mod fields;
pub mod idle;
pub mod origin;
pub mod replay;
pub mod tap;
pub mod translate;
pub mod tunnel;
