//! One stream between an app and a TLS connection, at either side.
//!
//! Towards the connection: the app's bytes are read behind the room for frame headers, into a buffer
//! that all streams of the thread share, and go from there into TLS records. A stream that is idle has
//! no buffer, and one whose connection is blocked keeps what the connection did not take and reads no more.
//! Towards the app: payload goes from where TLS has decrypted it into the app's socket.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use outrigger_proto::tunnel::{Clock, HEADER, Late, Limits, MAX_DATA, Refusal, Side, Violation};
use tokio::time::{Instant, Sleep};

use super::link::{Got, Link, Wire};
use super::socket::App;
use crate::contain::{self, Place};
use crate::identify::TlsError;

/// Control frames up to this size travel in one record with data that is there.
const RIDE: usize = 2048;
/// Frames read from the app by one system call, once a stream has moved [`BULK`] bytes.
const FRAMES: usize = 4;
const BULK: u64 = 256 * 1024;
/// Reads or writes of one direction before the other one, and other streams, have their turn.
const ROUNDS: usize = 8;
/// After an error of a socket, what can still be read and written is, as long as nothing is blocked.
const GRACE: Duration = Duration::from_millis(100);

thread_local! {
    /// Room for what one poll reads: nothing stays in it from one poll to the next.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; RIDE + FRAMES * (HEADER + MAX_DATA)]);
}

/// Why a stream did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The own app's socket.
    #[error("the app broke off")]
    App(#[source] io::Error),
    /// The connection to the other sidecar.
    #[error("the connection broke")]
    Wire(#[source] io::Error),
    /// The other sidecar ended the connection inside a stream.
    #[error("the connection ended without the app's end")]
    Lost,
    /// The other sidecar broke the protocol.
    #[error("the peer broke the protocol")]
    Protocol(#[from] Violation),
    /// A wait took too long.
    #[error(transparent)]
    Late(#[from] Late),
    /// The stream is no longer allowed.
    #[error("no longer allowed")]
    Barred,
    /// The other sidecar refused the stream; no app has a byte of it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The other sidecar did not accept our certificate, which under TLS 1.3 is heard after OPEN was written.
    #[error("not let in: {0}")]
    Unwelcome(TlsError),
    /// The other sidecar never looked at the stream, or not one byte of its OPEN was written.
    #[error("never looked at")]
    Unprocessed,
}

/// What has been read from the app before ACCEPT, to be sent again if it does not come.
#[derive(Debug, Default)]
pub struct Kept {
    pub(super) bytes: Vec<u8>,
    pub(super) ended: bool,
}

impl Kept {
    /// What has been read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What happens once in a stream's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// At the dialler: the other sidecar accepted. From here on what goes wrong is between the apps.
    Accepted,
    /// The first of the two apps has ended its direction.
    Ending,
}

/// One stream.
pub(super) struct Pump<'a, S, A, W> {
    side: &'a mut S,
    app: &'a mut A,
    link: &'a mut Link<W>,
    /// At the dialler, until ACCEPT.
    kept: Option<&'a mut Kept>,
    /// Bytes of DATA that stand first in the link.
    payload: usize,
    /// The other side accepted, and nobody was told yet.
    accepted: bool,
    /// The app has ended its direction.
    app_ended: bool,
    end: End,
    sent: u64,
    received: u64,
    clock: Clock,
    timer: Option<Pin<Box<Sleep>>>,
    grace: Option<Pin<Box<Sleep>>>,
}

/// How far the other app's end has come towards the own app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Received,
    Delivered,
}

/// Bytes of the apps that were moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// From the own app to the other sidecar.
    pub sent: u64,
    /// From the other sidecar to the own app.
    pub received: u64,
}

impl<'a, S: Side, A: App, W: Wire> Pump<'a, S, A, W> {
    /// A stream that is open, or (at the dialler, with `kept`) asked for. What is kept is sent first.
    ///
    /// # Errors
    /// When `side` is not in such a state.
    pub(super) fn new(
        side: &'a mut S,
        app: &'a mut A,
        link: &'a mut Link<W>,
        kept: Option<&'a mut Kept>,
        limits: Limits,
    ) -> Result<Self, Broken> {
        let mut app_ended = false;
        if let Some(kept) = &kept {
            for chunk in kept.bytes.chunks(MAX_DATA) {
                link.out.extend_from_slice(&side.data(chunk.len())?);
                link.out.extend_from_slice(chunk);
            }
            if kept.ended {
                side.fin(&mut link.out)?;
                app_ended = true;
            }
        }
        let sent = kept.as_ref().map_or(0, |kept| kept.bytes.len() as u64);
        Ok(Self {
            side,
            app,
            link,
            kept,
            payload: 0,
            accepted: false,
            app_ended,
            end: End::NotYet,
            sent,
            received: 0,
            clock: Clock::new(limits),
            timer: None,
            grace: None,
        })
    }

    /// Runs the stream until it is over at this side: both apps have ended, and each has everything.
    /// `barred` ends it; `leaving` says that no stream may follow; `told` hears of each [`Step`] once. Afterwards nothing of the stream is buffered here but control frames of the connection.
    ///
    /// # Cancel safety
    /// Not safe: app and connection are to be reset, which their sockets do when they are dropped.
    pub(super) async fn run(
        mut self,
        mut barred: impl Future<Output = ()> + Unpin,
        mut leaving: impl Future<Output = ()> + Unpin,
        mut told: impl FnMut(Step),
    ) -> (Moved, Result<(), Broken>) {
        let app_broken = self.app.socket().map(|socket| socket.watcher());
        let wire_broken = self.link.wire.socket().map(|socket| socket.watcher());
        let mut app_broken = pin!(async { Broken::App(watch(app_broken).await) });
        let mut wire_broken = pin!(async { Broken::Wire(watch(wire_broken).await) });
        let (mut left, mut broken, mut ending) = (false, None, false);
        let result = std::future::poll_fn(|cx| {
            if Pin::new(&mut barred).poll(cx).is_ready() {
                return Poll::Ready(Err(Broken::Barred));
            }
            if !left && Pin::new(&mut leaving).poll(cx).is_ready() {
                left = true;
                self.side.leave(&mut self.link.out);
            }
            let polled = self.poll(cx);
            // Before anything that may have followed in the same breath.
            if std::mem::take(&mut self.accepted) {
                told(Step::Accepted);
            }
            if polled?.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if !ending && (self.app_ended || self.end != End::NotYet) {
                ending = true;
                told(Step::Ending);
            }
            // An error is looked for after what could be read was read. What is blocked cannot be.
            if broken.is_none() {
                broken = match app_broken.as_mut().poll(cx) {
                    Poll::Ready(error) => Some(error),
                    Poll::Pending => match wire_broken.as_mut().poll(cx) {
                        Poll::Ready(error) => Some(error),
                        Poll::Pending => None,
                    },
                };
                if broken.is_some() {
                    self.grace = Some(Box::pin(tokio::time::sleep(GRACE)));
                }
            }
            if let Some(grace) = &mut self.grace
                && grace.as_mut().poll(cx).is_ready()
                && let Some(error) = broken.take()
            {
                return Poll::Ready(Err(error));
            }
            self.poll_clock(cx)
        })
        .await;
        let moved = Moved {
            sent: self.sent,
            received: self.received,
        };
        (moved, result)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        contain::here(Place::Tunnel);
        loop {
            let up = self.poll_up(cx)?;
            let said = self.link.out.len();
            let could_send = self.side.may_send() > 0;
            self.poll_down(cx)?;
            let over = self.app_ended && self.end == End::Delivered;
            if over && up.is_ready() && !self.link.blocked() {
                return Poll::Ready(Ok(()));
            }
            // Something was said, or may be said now: it is not woken for by anybody.
            if self.link.out.len() == said && (self.side.may_send() > 0) == could_send {
                return Poll::Pending;
            }
        }
    }

    /// From the app to the connection; ready when the app has ended and all of it is out.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        for _ in 0..ROUNDS {
            if self.link.pending().len() > RIDE {
                ready!(self.link.poll_send(cx))?;
            }
            let read = match self.app_ended || self.side.may_send() == 0 {
                true => Poll::Pending,
                false => SCRATCH.with(|scratch| self.poll_read_app(cx, &mut scratch.borrow_mut()))?,
            };
            ready!(self.link.poll_send(cx))?;
            if read.is_pending() {
                return match self.app_ended {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads from the app once and offers the frames to the connection.
    fn poll_read_app(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        let ride = self.link.pending().len();
        let frames = match self.sent < BULK {
            true => 1,
            false => FRAMES,
        };
        let most = usize::try_from(self.side.may_send())
            .unwrap_or(usize::MAX)
            .min(MAX_DATA);
        let Some((front, behind)) = scratch.split_at_mut_checked(ride) else {
            return Poll::Pending;
        };
        let n = {
            let mut gaps: [IoSliceMut<'_>; FRAMES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            for (gap, frame) in gaps.iter_mut().zip(behind.chunks_mut(HEADER + MAX_DATA)).take(frames) {
                *gap = IoSliceMut::new(frame.get_mut(HEADER..HEADER + most).unwrap_or_default());
            }
            let gaps = gaps.get_mut(..frames).unwrap_or_default();
            match self.app.poll_read_gaps(cx, gaps).map_err(Broken::App)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(n) => n,
            }
        };
        if n == 0 {
            self.app_ended = true;
            self.side.fin(&mut self.link.out)?;
            if let Some(kept) = &mut self.kept {
                kept.ended = true;
            }
            return Poll::Ready(Ok(()));
        }
        let mut left = n;
        let mut length = ride;
        for frame in behind.chunks_mut(HEADER + MAX_DATA) {
            let here = left.min(most);
            if here == 0 {
                break;
            }
            let header = self.side.data(here)?;
            if let Some(place) = frame.get_mut(..HEADER) {
                place.copy_from_slice(&header);
            }
            if let (Some(kept), Some(data)) = (&mut self.kept, frame.get(HEADER..HEADER + here)) {
                kept.bytes.extend_from_slice(data);
            }
            length += HEADER + here;
            left -= here;
        }
        self.sent += n as u64;
        front.copy_from_slice(self.link.pending());
        self.link.taken();
        self.link.poll_offer(cx, scratch.get(..length).unwrap_or_default())?;
        Poll::Ready(Ok(()))
    }

    /// From the connection to the app.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        match self.try_down(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Pending if self.end != End::Delivered => {
                // An end that is no socket may hold bytes back.
                match Pin::new(&mut *self.app).poll_flush(cx) {
                    Poll::Ready(Err(error)) => Err(Broken::App(error)),
                    _ => Ok(()),
                }
            }
            Poll::Pending => Ok(()),
        }
    }

    fn try_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        for _ in 0..ROUNDS {
            if self.payload > 0 {
                let data = ready!(self.link.payload(cx))?;
                if data.is_empty() {
                    return Poll::Ready(Err(Broken::Lost));
                }
                let data = data.get(..self.payload).unwrap_or(data);
                let n = ready!(Pin::new(&mut *self.app).poll_write(cx, data)).map_err(Broken::App)?;
                if n == 0 {
                    return Poll::Ready(Err(Broken::App(io::ErrorKind::WriteZero.into())));
                }
                self.link.eaten(n);
                self.payload -= n;
                self.received += n as u64;
                continue;
            }
            if self.end == End::Received {
                ready!(Pin::new(&mut *self.app).poll_shutdown(cx)).map_err(Broken::App)?;
                self.end = End::Delivered;
                self.side.delivered(&mut self.link.out)?;
            }
            if self.end == End::Delivered && (self.app_ended || !self.side.streaming()) {
                // What comes now is between streams.
                return Poll::Ready(Ok(()));
            }
            match ready!(self.link.poll_got(cx, self.side))? {
                Got::Data(length) => self.payload = length,
                Got::Fin => self.end = End::Received,
                Got::Accepted => {
                    self.accepted = true;
                    if let Some(kept) = self.kept.take() {
                        *kept = Kept::default();
                    }
                }
                Got::Rejected(refusal) => return Poll::Ready(Err(Broken::Refused(refusal))),
                Got::Unprocessed => return Poll::Ready(Err(Broken::Unprocessed)),
                Got::Draining | Got::Settled | Got::Asked => {}
                Got::Open(_) => return Poll::Ready(Err(Violation::Unexpected("OPEN").into())),
                Got::Ended if self.side.may_end() => return Poll::Ready(Ok(())),
                Got::Ended => return Poll::Ready(Err(Broken::Lost)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks whether a wait took too long; reads the clock only when something is waited for anew.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            let wait = self.side.waits();
            let rung = match &mut self.timer {
                Some(timer) => timer.as_mut().poll(cx).is_ready(),
                None => false,
            };
            if !rung && self.clock.knows(wait) {
                return Poll::Pending;
            }
            let now = Instant::now();
            let until = self.clock.look(wait, self.side.moved(), now.into_std())?;
            let Some(until) = until.map(Instant::from_std) else {
                self.timer = None;
                return Poll::Pending;
            };
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(until),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(until))),
            }
        }
    }
}

async fn watch(watcher: Option<super::socket::Watcher>) -> io::Error {
    match watcher {
        Some(watcher) => watcher.broken().await,
        None => std::future::pending().await,
    }
}
