//! Bounds on what clients may ask of a sidecar. SECURITY.md has the table with the reason for each.

use std::time::Duration;

use super::{FieldError, duration};
use crate::wire::mesh as wire;

/// Bounds on what clients may ask of the sidecar. On by default; where Envoy has a number for the edge
/// (`best_practices/edge`) ours is that or less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections of the whole sidecar. Default 20,000.
    pub max_connections: usize,
    /// Client connections of one listener. Default 10,000.
    pub max_connections_per_listener: usize,
    /// One header section, bytes. Default 60 KiB.
    pub max_header_bytes: usize,
    /// Fields in one header section. Default 100.
    pub max_headers: usize,
    /// To read one request's header section. Default 10 s.
    pub header_timeout: Duration,
    /// An idle client connection. Default 1 h.
    pub idle_timeout: Duration,
    /// Age at which a connection is closed gracefully, give or take a tenth. Default 1 h.
    pub max_connection_age: Duration,
    /// Streams of one HTTP/2 connection at a time. Default 128, which is also the most: that many
    /// windows fit into the connection's.
    pub max_streams: u32,
    /// Bytes of messages held by the whole sidecar; above it requests are shed. Default 256 MiB.
    pub max_buffered_bytes: usize,
    /// File descriptors that client connections cannot use up. Default 64.
    pub file_reserve: usize,
    /// Streams that one HTTP/2 client may reset, a second. Default 1,000.
    pub max_resets: u32,
    /// Other frames of one HTTP/2 client that carry nothing, a second. Default 1,000.
    pub max_control_frames: u32,
    /// Header names with an underscore.
    pub underscores: Underscores,
    /// Trailers of messages that are not gRPC's.
    pub trailers: Trailers,
}

/// What is done with a request that has a header name with an underscore. CGI and its heirs take
/// `X_User` and `X-User` for the same variable, so that one passes by a rule for the other. gRPC's
/// metadata may have underscores by its own grammar, and is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// The request is refused: nothing disappears in silence.
    #[default]
    Reject,
    /// The field is removed.
    Drop,
    /// Passed on.
    Allow,
}

/// What is done with trailers of messages that are not gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trailers {
    /// Passed on where the next hop can carry them.
    #[default]
    Pass,
    /// Removed.
    Drop,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_connections_per_listener: 10_000,
            max_header_bytes: 60 * 1024,
            max_headers: 100,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            max_connection_age: Duration::from_secs(3600),
            max_streams: 128,
            max_buffered_bytes: 256 << 20,
            file_reserve: 64,
            max_resets: 1000,
            max_control_frames: 1000,
            underscores: Underscores::default(),
            trailers: Trailers::default(),
        }
    }
}

/// The largest value of a count; the smallest is 1 where nothing else is said.
const MOST: usize = 1_000_000;

impl TryFrom<wire::Limits> for Limits {
    type Error = FieldError;

    fn try_from(wire: wire::Limits) -> Result<Self, FieldError> {
        let default = Self::default();
        let or = |n: u32, default: usize| if n == 0 { default } else { n as usize };
        let rate = |n: u32, default: u32| if n == 0 { default } else { n.clamp(10, 1_000_000) };
        Ok(Self {
            max_connections: or(wire.max_connections, default.max_connections).min(MOST),
            max_connections_per_listener: or(wire.max_connections_per_listener, default.max_connections_per_listener)
                .min(MOST),
            max_header_bytes: or(wire.max_header_bytes, default.max_header_bytes).clamp(8192, 1 << 20),
            max_headers: or(wire.max_headers, default.max_headers).clamp(8, 4096),
            header_timeout: duration(wire.header_timeout_ms, "header_timeout_ms", default.header_timeout)?,
            idle_timeout: duration(wire.idle_timeout_ms, "idle_timeout_ms", default.idle_timeout)?,
            max_connection_age: duration(
                wire.max_connection_age_ms,
                "max_connection_age_ms",
                default.max_connection_age,
            )?,
            max_streams: match wire.max_streams {
                0 => default.max_streams,
                n => n.min(128),
            },
            max_buffered_bytes: match usize::try_from(wire.max_buffered_bytes).unwrap_or(usize::MAX) {
                0 => default.max_buffered_bytes,
                n => n.clamp(1 << 20, 1 << 40),
            },
            file_reserve: or(wire.file_reserve, default.file_reserve).clamp(8, 65_536),
            max_resets: rate(wire.max_resets_per_second, default.max_resets),
            max_control_frames: rate(wire.max_control_frames_per_second, default.max_control_frames),
            underscores: match wire::Underscores::try_from(wire.underscores) {
                Ok(wire::Underscores::Unspecified | wire::Underscores::Reject) => Underscores::Reject,
                Ok(wire::Underscores::Drop) => Underscores::Drop,
                Ok(wire::Underscores::Allow) => Underscores::Allow,
                Err(_) => return Err(unknown("underscores", wire.underscores)),
            },
            trailers: match wire::Trailers::try_from(wire.trailers) {
                Ok(wire::Trailers::Unspecified | wire::Trailers::Pass) => Trailers::Pass,
                Ok(wire::Trailers::Drop) => Trailers::Drop,
                Err(_) => return Err(unknown("trailers", wire.trailers)),
            },
        })
    }
}

fn unknown(field: &str, value: i32) -> FieldError {
    FieldError::new(field, format!("{value} is unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_default_and_what_is_said_stays_in_its_bounds() {
        let limits = Limits::try_from(wire::Limits::default()).expect("valid");
        assert_eq!(limits, Limits::default());
        let wire = wire::Limits {
            max_streams: 10_000,
            max_buffered_bytes: 1,
            file_reserve: 1,
            max_resets_per_second: 1,
            underscores: wire::Underscores::Allow as i32,
            ..Default::default()
        };
        let limits = Limits::try_from(wire).expect("valid");
        assert_eq!((limits.max_streams, limits.max_buffered_bytes), (128, 1 << 20));
        assert_eq!((limits.file_reserve, limits.max_resets), (8, 10));
        assert_eq!(limits.underscores, Underscores::Allow);
        let wire = wire::Limits {
            trailers: 9,
            ..Default::default()
        };
        assert_eq!(Limits::try_from(wire).expect_err("unknown").path, "trailers");
    }
}
