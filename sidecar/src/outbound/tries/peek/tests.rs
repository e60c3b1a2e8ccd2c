//! Answers whose frames come as a script says, under a clock that runs as soon as nothing else does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use tokio::time::{Instant, Sleep};

use super::*;

/// A frame after so many milliseconds, or the end of the connection.
type Step = (u64, Result<Frame<Bytes>, &'static str>);

struct Script {
    steps: VecDeque<Step>,
    waits: Option<Pin<Box<Sleep>>>,
}

fn script(steps: impl IntoIterator<Item = Step>) -> Script {
    Script {
        steps: steps.into_iter().collect(),
        waits: None,
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        let Some((after, _)) = self.steps.front() else {
            return Poll::Ready(None);
        };
        let after = Duration::from_millis(*after);
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        ready!(waits.as_mut().poll(cx));
        self.waits = None;
        Poll::Ready(self.steps.pop_front().map(|(_, frame)| frame))
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

fn status(code: &'static str) -> Frame<Bytes> {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", code.parse().expect("digits"));
    Frame::trailers(fields)
}

#[tokio::test(start_paused = true)]
async fn a_status_is_told_by_trailers_that_come_first_and_by_nothing_else() {
    for (what, steps, told) in [
        ("trailers alone", vec![(5, Ok(status("14")))], Some(Outcome::Grpc(14))),
        ("well", vec![(0, Ok(status("0")))], Some(Outcome::Grpc(0))),
        (
            "a message before",
            vec![(0, Ok(data("message"))), (0, Ok(status("14")))],
            None,
        ),
        (
            "an empty message before",
            vec![(0, Ok(data(""))), (0, Ok(status("14")))],
            None,
        ),
        (
            "trailers without a status",
            vec![(0, Ok(Frame::trailers(HeaderMap::new())))],
            None,
        ),
        ("trailers that make no sense", vec![(0, Ok(status("fourteen")))], None),
        ("no frame at all", vec![], None),
    ] {
        let mut body = script(steps);
        let first = first(&mut body, None).await.expect(what);
        assert_eq!(outcome(&first), told, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_is_waited_for_as_long_as_both_times_allow_and_is_not_lost() {
    for (comes, left, waited, found) in [
        (99, None, 99, true),
        (101, None, 100, false),
        (99, Some(5_000), 99, true),
        (101, Some(5_000), 100, false),
        (19, Some(20), 19, true),
        (21, Some(20), 20, false),
        (0, Some(0), 0, true),
        (1, Some(0), 0, false),
    ] {
        let mut body = script([(comes, Ok(data("first"))), (0, Ok(data("second")))]);
        let start = Instant::now();
        let taken = first(&mut body, left.map(Duration::from_millis)).await.expect("a body");
        // The timer's wheel has milliseconds.
        let took = start.elapsed().as_millis();
        assert!((waited..=waited + 1).contains(&took), "{comes} of {left:?}: {took}");
        let mut got: Vec<Bytes> = taken.into_iter().filter_map(|frame| frame.into_data().ok()).collect();
        assert_eq!(!got.is_empty(), found, "{comes} of {left:?}");
        while let Some(frame) = body.frame().await {
            got.extend(frame.expect("a frame").into_data());
        }
        assert_eq!(got, ["first", "second"], "{comes} of {left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_breaks_off_first_has_no_answer() {
    let broken = first(&mut script([(1, Err("reset"))]), None).await;
    assert_eq!(broken.expect_err("broken off"), "reset");
    // Later it is too late to tell: the head has been passed on.
    let mut late = script([(200, Err("reset"))]);
    assert!(first(&mut late, None).await.expect("not yet").is_none());
}

#[test]
fn only_a_head_that_leaves_the_status_open_is_held() {
    let some = || script([(0, Ok(status("0")))]);
    let head = |code: u16, told: bool, body: Script| {
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code).expect("a status");
        if told {
            response
                .headers_mut()
                .insert("grpc-status", "14".parse().expect("digits"));
        }
        open(&response)
    };
    assert!(head(200, false, some()));
    assert!(!head(200, true, some()), "the head tells it");
    assert!(!head(503, false, some()), "no gRPC answer");
    assert!(!head(200, false, script([])), "nothing follows");
}
