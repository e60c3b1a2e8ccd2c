//! Which endpoint gets the next request. Pure: time and chance are arguments.

pub mod ewma;
pub mod p2c;
