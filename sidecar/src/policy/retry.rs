//! Whether a failed try may be repeated on another endpoint.
//!
//! What was provably never processed is repeated always: a failed connection, a request of which not one byte was accepted
//! by the socket, `REFUSED_STREAM` (RFC 9113 §8.7), and a stream above the last id of a GOAWAY (RFC 9113 §6.8). Anything
//! after the first byte, a reset of a connection that had been used before among it, is *maybe processed*: it is repeated
//! only when the request is idempotent and the policy says so.

use http::header::HeaderMap;
use http::{Method, StatusCode};
use outrigger_proto::model::{Outcomes, Policy};

use super::backoff::Asked;

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or not one byte was accepted: the whole request is still here.
    NeverSent,
    /// The peer said that it processed nothing; the body may be partly sent.
    Refused,
    /// The peer may have processed it.
    MaybeProcessed,
}

/// Whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another try is safe.
    Again,
    /// The failure is the answer.
    GiveUp,
}

/// How a try ended, as policies name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An HTTP status.
    Status(u16),
    /// A `grpc-status`.
    Grpc(u32),
    /// No head of an answer in time.
    Timeout,
    /// The connection or stream broke after something was sent.
    Reset,
    /// No connection.
    Connect,
}

impl Outcome {
    /// What the head of an answer tells. A gRPC answer whose status comes in trailers is well so far.
    #[must_use]
    pub fn of_head(status: StatusCode, headers: &HeaderMap, grpc: bool) -> Self {
        match grpc && status == StatusCode::OK {
            true => Self::of_trailers(headers).unwrap_or(Self::Grpc(0)),
            false => Self::Status(status.as_u16()),
        }
    }

    /// What a `grpc-status` tells.
    #[must_use]
    pub fn of_trailers(trailers: &HeaderMap) -> Option<Self> {
        let code = trailers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        Some(Self::Grpc(code))
    }

    /// Whether it is one of `set`.
    #[must_use]
    pub fn is_in(self, set: &Outcomes) -> bool {
        match self {
            Self::Status(status) => set.has_status(status),
            Self::Grpc(code) => set.has_grpc(code),
            Self::Timeout => set.timeout,
            Self::Reset => set.reset,
            Self::Connect => set.connect,
        }
    }
}

/// Decides after a failure: `tries` is how many endpoints were tried, `endpoints` how many there are,
/// `replayable` whether the body can be sent from its first byte. One try an endpoint and one more,
/// because a connection that goes away does not mean that its endpoint does.
#[must_use]
pub fn verdict(failure: Failure, tries: usize, endpoints: usize, replayable: bool) -> Verdict {
    match failure {
        Failure::MaybeProcessed => Verdict::GiveUp,
        Failure::NeverSent | Failure::Refused if tries > endpoints => Verdict::GiveUp,
        Failure::Refused if !replayable => Verdict::GiveUp,
        Failure::NeverSent | Failure::Refused => Verdict::Again,
    }
}

/// Whether a request may be done twice: its method is idempotent (RFC 9110 §9.2.2), or the app says so. A gRPC request is a
/// POST, and an upgrade is a conversation.
#[must_use]
pub fn idempotent(policy: &Policy, method: &Method, grpc: bool, upgrade: bool) -> bool {
    let by_method = matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    !upgrade && (policy.idempotent || (by_method && !grpc))
}

/// Decides after a try that may have been processed and ended with `outcome`, of a request that may be done twice and whose
/// body is here. `sent` is how many such tries there were; `last_word` whether the answer says that nobody is to try again.
#[must_use]
pub fn repeat(policy: &Policy, sent: u32, outcome: Outcome, asked: Asked, last_word: bool) -> Verdict {
    let allowed = sent < policy.retry.attempts && outcome.is_in(&policy.retry.on);
    match allowed && asked != Asked::Never && !last_word {
        true => Verdict::Again,
        false => Verdict::GiveUp,
    }
}
