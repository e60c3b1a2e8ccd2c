//! The tasks of a client's HTTP/2 streams.
//!
//! hyper asks an answer's body for more only while the client takes what there is. One that has stopped reading would
//! keep its stream, and the app's, for ever: its task ends it (`forward/idle.rs`).

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::Executor;
use tokio::time::Sleep;

use crate::forward::idle::Stall;

thread_local! {
    /// From the answer's head, which is made while its stream's task is polled, to that task. A cell of the thread
    /// instead of one for each stream: only answers with an idle time-out have something to say.
    static ANSWERED: Cell<Option<Arc<Stall>>> = const { Cell::new(None) };
}

/// Tells the present stream's task of its answer's movements.
pub(super) fn tell(stall: Arc<Stall>) {
    ANSWERED.set(Some(stall));
}

/// Spawns streams. One whose client takes nothing for too long is dropped, which resets it (RFC 9113 §8.1) and no other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        // Boxed as in `connect/boxed.rs`. Owned by its connection: it ends with it.
        tokio::spawn(Stream {
            work: Box::pin(future),
            look: None,
        });
    }
}

struct Stream<F> {
    work: Pin<Box<F>>,
    /// Boxed: only where the policy has an idle time-out.
    look: Option<Box<Look>>,
}

struct Look {
    stall: Arc<Stall>,
    sleep: Pin<Box<Sleep>>,
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ended = self.work.as_mut().poll(cx);
        let answered = ANSWERED.take();
        if ended.is_ready() {
            return Poll::Ready(());
        }
        if let Some(stall) = answered {
            let sleep = Box::pin(tokio::time::sleep_until(stall.until().into()));
            self.look = Some(Box::new(Look { stall, sleep }));
        }
        match &mut self.look {
            Some(look) => look.poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Look {
    /// Ready when the client has taken nothing for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            if self.stall.is_over() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.stall.again().into());
        }
        Poll::Pending
    }
}
