//! Damage is found.
