//! The acceptor's side: streams from another sidecar to the own app.

use std::pin::pin;
use std::task::Poll;

use outrigger_proto::tunnel::{Acceptor, Clock, Limits, Open, Refusal, Side as _};
use tokio::time::Instant;

use super::link::{Got, Link, Wire};
use super::pump::{Broken, Moved, Pump};
use super::socket::App;
use crate::drain::{Drain, Phase};

/// Who decides about streams, and brings them to the app.
pub trait Door: Sync {
    /// What is held for a stream from its beginning to its end.
    type Stay: Send;
    /// The app's end of a stream.
    type App: App;

    /// Looks at everything anew for each stream: the peer's certificate, its revocation, the rules, the
    /// names among the own workload's ports; and connects to the app.
    ///
    /// # Errors
    /// Why the stream is refused.
    fn enter(&self, open: &Open) -> impl Future<Output = Result<(Self::App, Self::Stay), Refusal>> + Send;

    /// Waits until the peer may stay no longer: with a stream, also until no rule allows that one any more.
    ///
    /// # Cancel safety
    /// Safe.
    fn barred(&self, open: Option<&Open>) -> impl Future<Output = ()> + Send;

    /// A stream is over.
    fn left(&self, stay: Self::Stay, moved: Moved, result: Result<(), Broken>);
}

/// Serves the streams of one connection, one after the other, until it ends, is idle for too long, the
/// sidecar leaves, or the peer is let in no longer.
///
/// What is short is boxed, so that a stream which is idle is no larger than its waiting.
///
/// # Errors
/// When the peer breaks the protocol, or a stream breaks.
///
/// # Cancel safety
/// Dropping it resets the app and the connection if a stream is open.
pub async fn serve<W: Wire, D: Door>(wire: W, door: &D, drain: &Drain) -> Result<(), Broken> {
    let mut link = Link::new(wire);
    let mut side = Acceptor::default();
    while let Some(open) = next(&mut link, &mut side, door, drain).await? {
        let (mut app, stay) = match Box::pin(door.enter(&open)).await {
            Ok(entered) => entered,
            Err(refusal) => {
                side.reject(refusal, &mut link.out)?;
                break;
            }
        };
        for socket in [link.wire.socket(), app.socket()].into_iter().flatten() {
            socket.guard();
        }
        side.accept(&mut link.out)?;
        let pump = Pump::new(&mut side, &mut app, &mut link, None, Limits::ACCEPTOR)?;
        let barred = pin!(door.barred(Some(&open)));
        let leaving = pin!(drain.reached(Phase::Closing));
        let (moved, result) = pump.run(barred, leaving, |_| {}).await;
        if let Err(broken) = result {
            // First of all: this resets the app.
            drop(app);
            let told = broken.to_string();
            door.left(stay, moved, Err(broken));
            tracing::debug!(service = %open.service, port = %open.port, why = told, "a stream broke off");
            Box::pin(link.abort()).await;
            return Ok(());
        }
        for socket in [link.wire.socket(), app.socket()].into_iter().flatten() {
            socket.release();
        }
        drop(app);
        door.left(stay, moved, Ok(()));
        if side.closed() {
            break;
        }
    }
    Box::pin(link.close()).await;
    Ok(())
}

/// Waits for the next stream; none when the connection is to be closed in order.
async fn next<W: Wire, D: Door>(
    link: &mut Link<W>,
    side: &mut Acceptor,
    door: &D,
    drain: &Drain,
) -> Result<Option<Open>, Broken> {
    let mut clock = Clock::new(Limits::ACCEPTOR);
    let until = clock.look(side.waits(), 0, Instant::now().into_std())?;
    let mut idle = pin!(async {
        match until {
            Some(until) => tokio::time::sleep_until(Instant::from_std(until)).await,
            None => std::future::pending().await,
        }
    });
    let mut leaving = pin!(drain.reached(Phase::Closing));
    let mut barred = pin!(door.barred(None));
    std::future::poll_fn(|cx| {
        if barred.as_mut().poll(cx).is_ready()
            || leaving.as_mut().poll(cx).is_ready()
            || idle.as_mut().poll(cx).is_ready()
        {
            side.leave(&mut link.out);
            return Poll::Ready(Ok(None));
        }
        loop {
            // Answers first: a peer that does not take them gets no more.
            if link.poll_send(cx)?.is_pending() {
                return Poll::Pending;
            }
            match link.poll_got(cx, side)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Got::Open(open)) => return Poll::Ready(Ok(Some(*open))),
                Poll::Ready(Got::Asked) => {}
                Poll::Ready(Got::Rejected(_) | Got::Ended) => return Poll::Ready(Ok(None)),
                Poll::Ready(_) => return Poll::Ready(Err(Broken::Lost)),
            }
        }
    })
    .await
}
