//! Whether a failed try may be repeated on another endpoint.
//!
//! Only what was provably never processed is repeated: a failed connection, a request of which not
//! one byte was accepted by the socket, `REFUSED_STREAM` (RFC 9113 §8.7), and a stream above the last
//! id of a GOAWAY (RFC 9113 §6.8). A reset after the first byte is *maybe processed* and is not
//! repeated, also when the connection had been used before.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_processed_is_repeated() {
        use Failure::{MaybeProcessed, NeverSent, Refused};
        for (failure, tries, endpoints, replayable, expected) in [
            (NeverSent, 1, 1, false, Verdict::Again),
            (NeverSent, 2, 1, false, Verdict::GiveUp),
            (NeverSent, 3, 3, false, Verdict::Again),
            (Refused, 1, 2, true, Verdict::Again),
            (Refused, 1, 2, false, Verdict::GiveUp),
            (MaybeProcessed, 1, 5, true, Verdict::GiveUp),
        ] {
            assert_eq!(
                verdict(failure, tries, endpoints, replayable),
                expected,
                "{failure:?} {tries} {endpoints}"
            );
        }
    }
}
