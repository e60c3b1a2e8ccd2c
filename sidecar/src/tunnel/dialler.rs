//! The dialler's side: one connection to another sidecar, and the stream it carries.

use std::io;
use std::task::{Context, Poll, Waker};

use outrigger_proto::tunnel::{Dialler, Limits, Open, Side as _, Wait};
use tokio::time::Instant;

use super::link::{Got, Link, Wire};
use super::pump::{Broken, Kept, Moved, Pump, Step};
use super::socket::{App, Socket};
use crate::detect::Prefixed;
use crate::identify::{Peer, TlsError, TlsStream};

/// A connection to another sidecar that carries one stream at a time.
#[derive(Debug)]
pub struct Connection<W = TlsStream<Prefixed<Socket>>> {
    link: Link<W>,
    side: Dialler,
    /// The generation of the own identity that it was made with.
    pub(super) generation: u64,
    /// When it takes no further stream.
    pub(super) expires: Instant,
    peer: Option<Peer>,
}

impl<W: Wire> Connection<W> {
    /// A connection on which nothing was said yet. `expires` bounds its age between streams.
    #[must_use]
    pub fn new(wire: W, peer: Option<Peer>, generation: u64, expires: Instant) -> Self {
        Self {
            link: Link::new(wire),
            side: Dialler::default(),
            generation,
            expires,
            peer,
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Carries `app` as the stream that `open` asks for, until both apps have ended or something broke.
    /// What is `kept` of earlier tries is sent first; what is read before the other side accepts is kept.
    /// `told` hears of each [`Step`] once.
    ///
    /// # Errors
    /// [`Broken::Refused`], [`Broken::Unwelcome`] and [`Broken::Unprocessed`] leave the app as it was, with what was read in
    /// `kept`: another connection may carry it. After any other error the app is to be dropped, which
    /// resets it, and the connection to be [`part`](Self::part)ed with.
    ///
    /// # Cancel safety
    /// Not safe: app and connection are to be dropped.
    pub async fn carry(
        &mut self,
        app: &mut impl App,
        open: Open,
        kept: &mut Kept,
        barred: impl Future<Output = ()> + Unpin,
        told: impl FnMut(Step),
    ) -> (Moved, Result<(), Broken>) {
        let written = self.written();
        let first = !self.side.used();
        if let Some(socket) = self.link.wire.socket() {
            socket.guard();
        }
        if let Some(socket) = app.socket() {
            socket.guard();
        }
        let (moved, result) = match self.begin(app, open, kept) {
            Ok(pump) => pump.run(barred, std::future::pending::<()>(), told).await,
            Err(error) => (Moved::default(), Err(error)),
        };
        let result = match result {
            Err(Broken::Wire(_) | Broken::Lost) if self.written() == written => Err(Broken::Unprocessed),
            // The handshake is over here and not there: it has read nothing that came after.
            Err(Broken::Wire(error)) if first => match TlsError::of(&error) {
                Some(refused @ TlsError::Rejected(_)) => Err(Broken::Unwelcome(refused)),
                _ => Err(Broken::Wire(error)),
            },
            result => result,
        };
        if result.is_ok() {
            for socket in [self.link.wire.socket(), app.socket()].into_iter().flatten() {
                socket.release();
            }
        }
        (moved, result)
    }

    fn begin<'a, A: App>(
        &'a mut self,
        app: &'a mut A,
        open: Open,
        kept: &'a mut Kept,
    ) -> Result<Pump<'a, Dialler, A, W>, Broken> {
        self.side.open(open, &mut self.link.out)?;
        Pump::new(&mut self.side, app, &mut self.link, Some(kept), Limits::DIALLER)
    }

    /// Parts with a connection after `why`, so that the peer sees no clean end where there was none.
    /// Ends within a second.
    pub async fn part(self, why: &Broken) {
        match why {
            // The peer has said its last word.
            Broken::Refused(_) | Broken::Unprocessed | Broken::Unwelcome(_) => {
                if let Some(socket) = self.link.wire.socket() {
                    socket.release();
                }
            }
            _ => self.abort().await,
        }
    }

    /// Breaks it off: the peer sees an end without FIN. Ends within a second.
    pub async fn abort(self) {
        self.link.abort().await;
    }

    /// True when a stream may be opened now: nothing of the last one is left on either side, and what
    /// can be read at this moment is nothing at all.
    pub(super) fn ready(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.link.poll_got(&mut cx, &mut self.side) {
                Poll::Pending => break,
                // The answer to a question.
                Poll::Ready(Ok(Got::Settled)) => {}
                Poll::Ready(_) => return false,
            }
        }
        self.side.ready() && !self.link.in_frame() && !self.link.blocked()
    }

    /// Asks the peer whether it is there, unless it was asked already: then [`ready`](Self::ready) tells.
    pub(super) fn ask(&mut self) -> bool {
        if self.side.waits() == Wait::Answer {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let asked = self.side.ask(&mut self.link.out).is_ok();
        asked && matches!(self.link.poll_send(&mut cx), Poll::Ready(Ok(())))
    }

    /// True when the peer was asked and has not answered.
    pub(super) fn asked(&self) -> bool {
        self.side.waits() == Wait::Answer
    }

    /// True when the stream is over and the peer has not said that nothing of it is left there.
    pub(super) fn settling(&self) -> bool {
        self.side.waits() == Wait::Settled
    }

    /// Waits until the peer says so.
    pub(super) async fn settle(&mut self) -> Result<(), Broken> {
        while self.settling() {
            let got = std::future::poll_fn(|cx| self.link.poll_got(cx, &mut self.side)).await?;
            if matches!(got, Got::Ended) {
                return Err(Broken::Lost);
            }
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.link.wire.socket().map_or(0, Socket::written)
    }
}

/// The error of an app that is given up: its socket is dropped, and resets it.
impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::App(error) | Broken::Wire(error) => error,
            other => Self::new(io::ErrorKind::ConnectionReset, other),
        }
    }
}
