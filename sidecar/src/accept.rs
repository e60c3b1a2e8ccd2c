//! Client connections: listeners, the acceptor, the data workers, serving HTTP on one connection.
//!
//! One acceptor thread hands each connection to the worker with the fewest; a worker is one thread
//! with one single-threaded runtime, its own pools and counters. Knows no routes.

mod client;
mod gate;
mod handed;
pub mod head;
mod listen;
pub mod serve;
mod stream;
mod worker;

pub use handed::handed;
pub use listen::{Listener, bind, run_acceptor};
pub use worker::{Counted, Handler, Job, Worker, spawn};
