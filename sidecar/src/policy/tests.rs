//! The pure parts at their edges.

mod breaking;
mod counting;
mod protecting;
mod repeating;
