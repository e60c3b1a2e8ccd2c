//! Opaque TCP between two sidecars: sockets and TLS connections for the protocol `outrigger-tcp/1`.
//!
//! The protocol and both its state machines are in `outrigger_proto::tunnel` and know no socket; this
//! room moves their bytes. [`serve`] is the acceptor's side, [`Pool`] and [`Connection`] are the dialler's,
//! and one pump carries a stream on either.
//!
//! Every socket of a stream is set so that closing it resets it (`SO_LINGER` 0), and set back when the
//! stream has ended well. A broken peer, a time-out, a panic, a cancelled task and a killed process
//! therefore all look the same to both apps: a reset, never a clean end.
//!
//! Knows nothing of endpoints, balancing, rules or why a peer is let in: a [`Door`] answers for that.

mod acceptor;
mod dialler;
mod link;
mod pool;
mod pump;
mod socket;
#[cfg(test)]
mod tests;

pub use acceptor::{Door, serve};
pub use dialler::Connection;
pub use link::Wire;
pub use pool::{Ending, Idle, Pool};
pub use pump::{Broken, Kept, Moved, Step};
pub use socket::{App, Plain, Socket};
