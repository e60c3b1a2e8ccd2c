//! Decisions about a request, pure: `now` is an argument, nothing waits, nothing is sent.

pub mod deadline;
pub mod external;
pub mod retry;
