//! The first frame of a gRPC answer, looked at before its head is passed on: a server that has sent its head tells a failure in
//! trailers, and when nothing came before them the request may still be tried again.
//!
//! Only for requests that may be done twice and have been sent whole: nothing that the client has yet to send can depend on
//! the head, which alone means nothing to a gRPC client (gRPC over HTTP/2, "Responses": the status comes last). Held for
//! [`HOLD`] at most: a stream whose first message is long in coming gets its head then, and is not tried again.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::Ended;
use crate::connect::{Lease, SendError};
use crate::policy::retry::{Failure, Outcome};

/// How long a head is held. Servers that send head and trailers apart do so within a few milliseconds.
const HOLD: Duration = Duration::from_millis(100);

/// A frame that was taken from an answer and belongs before the rest of it.
pub(in crate::outbound) type First = Option<Box<Frame<Bytes>>>;

/// Whether the status of `response` may come in trailers.
pub(super) fn open<B: Body>(response: &Response<B>) -> bool {
    response.status() == StatusCode::OK
        && !response.headers().contains_key("grpc-status")
        && !response.body().is_end_stream()
}

/// Takes the first frame of `response` when it comes within `left` and [`HOLD`]. What breaks off before it has no answer.
pub(super) async fn peek(mut response: Response<Incoming>, lease: Lease, left: Option<Duration>) -> (Ended, First) {
    match first(response.body_mut(), left).await {
        Ok(first) => (Ended::Answered(response, lease), first),
        Err(error) => {
            let broken = SendError {
                failure: Failure::MaybeProcessed,
                unconnected: None,
                source: error.into(),
            };
            (Ended::Failed(Box::new(broken)), None)
        }
    }
}

/// The first frame of `body`; none when there is none at all, or not yet.
async fn first<B>(body: &mut B, left: Option<Duration>) -> Result<First, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let hold = left.map_or(HOLD, |left| left.min(HOLD));
    // A frame that has not come is not lost: it is the body's until it is given.
    let frame = tokio::time::timeout(hold, body.frame())
        .await
        .ok()
        .flatten()
        .transpose()?;
    Ok(frame.map(Box::new))
}

/// What trailers that came first tell.
pub(super) fn outcome(first: &First) -> Option<Outcome> {
    first.as_ref()?.trailers_ref().and_then(Outcome::of_trailers)
}

#[cfg(test)]
mod tests;
