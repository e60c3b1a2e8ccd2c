//! The pure parts at their edges.

mod breaking;
mod counting;
mod repeating;
