//! The tunnel over real sockets and real TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::tunnel::{Limits, Open, Refusal};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::detect::Prefixed;
use crate::drain::{Drain, Phase};
use crate::identify::testing::{Ca, id};
use crate::identify::{Alpn, Identity, TlsStream};

mod kept;
mod resets;
mod streams;
mod waits;

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two identities and their sidecars' halves: everything is real but endpoints and rules.
struct World {
    caller: Identity,
    called: Arc<Identity>,
    door: Arc<TestDoor>,
    drain: Arc<Drain>,
    pool: Arc<Pool>,
    handshakes: Mutex<usize>,
    serving: Mutex<Vec<JoinHandle<Result<(), Broken>>>>,
}

/// Where the app is, and whom the door lets in.
struct TestDoor {
    app: SocketAddr,
    refuse: Mutex<Option<Refusal>>,
    barred: watch::Sender<bool>,
    left: Mutex<Vec<(Moved, Result<(), String>)>>,
}

impl TestDoor {
    fn nowhere() -> Self {
        Self {
            app: SocketAddr::from(([127, 0, 0, 1], 1)),
            refuse: Mutex::new(None),
            barred: watch::Sender::new(false),
            left: Mutex::default(),
        }
    }
}

impl Door for TestDoor {
    type Stay = ();
    type App = Socket;

    async fn enter(&self, open: &Open) -> Result<(Socket, ()), Refusal> {
        if let Some(refusal) = *self.refuse.lock() {
            return Err(refusal);
        }
        if &*open.port != "main" {
            return Err(Refusal::UnknownPort);
        }
        let app = TcpStream::connect(self.app)
            .await
            .map_err(|_| Refusal::AppUnreachable)?;
        Ok((Socket::of_app(app), ()))
    }

    async fn barred(&self, _open: Option<&Open>) {
        drop(self.barred.subscribe().wait_for(|barred| *barred).await);
    }

    fn left(&self, (): (), moved: Moved, result: Result<(), Broken>) {
        self.left.lock().push((moved, result.map_err(|e| e.to_string())));
    }
}

impl World {
    /// A world whose app listens here.
    async fn new() -> (Arc<Self>, TcpListener) {
        let app = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let ca = Ca::new();
        let world = Self {
            caller: ca.identity("default/shop"),
            called: Arc::new(ca.identity("default/post")),
            door: Arc::new(TestDoor {
                app: app.local_addr().expect("bound"),
                refuse: Mutex::new(None),
                barred: watch::Sender::new(false),
                left: Mutex::default(),
            }),
            drain: Arc::default(),
            pool: Arc::new(Pool::new(Arc::default())),
            handshakes: Mutex::new(0),
            serving: Mutex::default(),
        };
        (Arc::new(world), app)
    }

    /// A connection of the pool, or a new one with an acceptor behind it.
    async fn connection(&self) -> Connection {
        let generation = self.caller.generation();
        if let Some(connection) = self.pool.take(generation).await {
            return connection;
        }
        *self.handshakes.lock() += 1;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (ours, theirs) = tokio::join!(
            TcpStream::connect(listener.local_addr().expect("bound")),
            listener.accept()
        );
        let (ours, (theirs, _)) = (ours.expect("connects"), theirs.expect("accepts"));
        let expected = id("default/post").parse().expect("an id");
        let (tls, accepted) = tokio::join!(
            self.caller
                .connect(Prefixed::untouched(Socket::new(ours)), &expected, Alpn::Tcp),
            self.called.accept(Prefixed::untouched(Socket::new(theirs)))
        );
        let (theirs, _, _) = accepted.expect("lets in");
        let (door, drain) = (self.door.clone(), self.drain.clone());
        let serving = tokio::spawn(async move { serve(theirs, &*door, &drain).await });
        self.serving.lock().push(serving);
        Connection::new(
            tls.expect("is let in"),
            None,
            generation,
            Instant::now() + Duration::from_secs(3600),
        )
    }

    /// Waits for a connection in the pool.
    async fn settled(&self) {
        soon("a settled connection", async {
            while self.pool.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until the acceptor's last connection has ended in order.
    async fn connection_ends(&self) {
        let serving = self.serving.lock().pop().expect("one");
        let ended = soon("the connection's end", serving).await;
        ended.expect("no panic").expect("in order");
    }

    /// A stream that came to its end; its connection is in the pool.
    async fn used(self: &Arc<Self>, app: &TcpListener) {
        let (mut client, served, carrying) = self.stream(app).await;
        client.shutdown().await.expect("ends its side");
        drop(served);
        ends(carrying).await;
        self.settled().await;
    }

    /// A stream, from its client's side and from its app's; the task ends with it.
    async fn stream(self: &Arc<Self>, app: &TcpListener) -> (TcpStream, TcpStream, Carrying) {
        let (client, carrying) = self.client().await;
        let (served, _) = soon("the app", app.accept()).await.expect("accepts");
        (client, served, carrying)
    }

    /// A client connected through the tunnel; the task ends with the stream.
    async fn client(self: &Arc<Self>) -> (TcpStream, Carrying) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (client, app) = tokio::join!(
            TcpStream::connect(listener.local_addr().expect("bound")),
            listener.accept()
        );
        let (client, (app, _)) = (client.expect("connects"), app.expect("accepts"));
        let world = self.clone();
        let carrying = tokio::spawn(async move {
            let mut app = Socket::of_app(app);
            let mut kept = Kept::default();
            loop {
                let mut connection = world.connection().await;
                let mut ending = None;
                let (_, result) = connection
                    .carry(&mut app, open(), &mut kept, std::future::pending(), |step| {
                        if step == Step::Ending {
                            ending = Some(world.pool.ending());
                        }
                    })
                    .await;
                match result {
                    Ok(()) => {
                        world.pool.put_back(connection, ending);
                        return Ok(());
                    }
                    Err(why @ Broken::Unprocessed) => connection.part(&why).await,
                    Err(why @ Broken::Refused(_)) => {
                        connection.part(&why).await;
                        // As if the next endpoint were another one.
                        if world.door.refuse.lock().take().is_none() {
                            return Err(why.to_string());
                        }
                    }
                    Err(why) => {
                        drop(app);
                        connection.part(&why).await;
                        return Err(why.to_string());
                    }
                }
            }
        });
        (client, carrying)
    }
}

fn open() -> Open {
    Open {
        number: 0,
        service: "default/post".parse().expect("a name"),
        port: "main".into(),
        traceparent: None,
        source: None,
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Carries one stream; what broke it off is in words.
type Carrying = JoinHandle<Result<(), String>>;

async fn ends(carrying: Carrying) {
    let ended = soon("the stream's end", carrying).await;
    ended.expect("no panic").expect("clean");
}

async fn breaks(carrying: Carrying) {
    let ended = soon("the stream's end", carrying).await;
    ended.expect("no panic").expect_err("broken off");
}

/// Closes as a killed process does that left bytes unread.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("sets");
    drop(stream);
}

/// Reads until the end; an error is what a reset gives.
async fn rest(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    soon("the end", stream.read_to_end(&mut got)).await.map(|_| got)
}

#[track_caller]
fn is_reset(result: std::io::Result<Vec<u8>>) {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("not a reset: {:?}", other.map(|bytes| bytes.len())),
    }
}

/// Writes until nothing moves any more: every buffer on the way is full.
async fn fill(stream: &mut TcpStream) -> usize {
    let block = vec![1u8; 256 * 1024];
    let mut written = 0;
    while let Ok(n) = timeout(Duration::from_millis(300), stream.write(&block)).await {
        written += n.expect("writes");
    }
    written
}

fn small_buffers(stream: &TcpStream) {
    SockRef::from(stream).set_recv_buffer_size(16 * 1024).expect("sets");
}
