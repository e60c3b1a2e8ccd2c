//! Connections to endpoints: dialling, proving who answers, pooling, sending one request.
//!
//! One [`Upstream`] an endpoint and worker. HTTP/1 connections are kept in a stack and looked at for
//! an end before reuse; HTTP/2 connections are shared until their streams or windows are used up.
//! Knows nothing of routes, policy or who asks.

mod boxed;
mod dial;
mod frames;
mod http1;
mod http2;
mod lease;
mod secure;
mod upstream;

pub use boxed::Boxed;
pub(crate) use dial::prepare;
pub use dial::{DialError, dial, resolve};
pub use frames::Frames;
pub use http2::{CONNECTION_WINDOW, FRAME, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
pub use lease::Lease;
pub use secure::{Secured, Security, Unconnected, barred, secured};
pub use upstream::{Route, SendError, Upstream, Wire};
