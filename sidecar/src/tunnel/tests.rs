//! The tunnel over real sockets and real TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::tunnel::{Limits, Open, Refusal};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::detect::Prefixed;
use crate::drain::{Drain, Phase};
use crate::identify::testing::{Ca, id};
use crate::identify::{Alpn, Identity, TlsStream};

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

    /// A client connected through the tunnel; the task ends with the stream.
    async fn client(self: &Arc<Self>) -> (TcpStream, JoinHandle<Result<(), String>>) {
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
                    .carry(&mut app, open(), &mut kept, std::future::pending(), || {
                        ending = Some(world.pool.ending());
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

#[tokio::test]
async fn half_close_passes_both_ways_and_the_next_stream_costs_no_handshake() {
    let (world, app) = World::new().await;
    for round in 0..5u8 {
        let (mut client, carrying) = world.client().await;
        let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
        let question = vec![round; 300_000];
        let asking = question.clone();
        let asked = tokio::spawn(async move {
            client.write_all(&asking).await.expect("writes");
            client.shutdown().await.expect("ends its side");
            rest(&mut client).await.expect("a clean end")
        });
        assert!(
            rest(&mut served).await.expect("a clean end") == question,
            "round {round}"
        );
        served.write_all(&vec![round ^ 0xff; 500_000]).await.expect("writes");
        drop(served);
        assert!(asked.await.expect("no panic") == vec![round ^ 0xff; 500_000]);
        soon("the stream's end", carrying)
            .await
            .expect("no panic")
            .expect("clean");
        assert_eq!(world.pool.len(), 1);
    }
    assert_eq!(*world.handshakes.lock(), 1);
    let left = world.door.left.lock();
    let moved = Moved {
        sent: 500_000,
        received: 300_000,
    };
    assert_eq!(*left, vec![(moved, Ok(())); 5]);
}

#[tokio::test]
async fn a_server_that_speaks_and_ends_first_settles_before_reuse() {
    let (world, app) = World::new().await;
    for _ in 0..2 {
        let (mut client, carrying) = world.client().await;
        let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
        served.write_all(b"220 ready").await.expect("writes");
        served.shutdown().await.expect("ends its side");
        assert_eq!(rest(&mut client).await.expect("a clean end"), b"220 ready");
        client.write_all(b"bye").await.expect("writes");
        drop(client);
        soon("the stream's end", carrying)
            .await
            .expect("no panic")
            .expect("clean");
        assert_eq!(rest(&mut served).await.expect("a clean end"), b"bye");
        world.settled().await;
    }
    assert_eq!(*world.handshakes.lock(), 1);
}

#[tokio::test]
async fn a_second_stream_does_not_wait_behind_bytes_that_a_slow_app_has_not_taken() {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (mut slow, _) = soon("the app", app.accept()).await.expect("accepts");
    slow.write_all(b"done").await.expect("writes");
    slow.shutdown().await.expect("ends its side");
    let written = fill(&mut client).await;
    let reading = tokio::spawn(async move {
        client.shutdown().await.expect("ends its side");
        rest(&mut client).await.expect("a clean end")
    });
    assert_eq!(reading.await.expect("no panic"), b"done");
    // The stream is not over while its bytes are on the way: another one takes another connection.
    let (_second, _carrying) = world.client().await;
    let (_served, _) = soon("the app again", app.accept()).await.expect("accepts");
    assert_eq!(*world.handshakes.lock(), 2);
    assert_eq!(rest(&mut slow).await.expect("a clean end").len(), written);
    soon("the stream's end", carrying)
        .await
        .expect("no panic")
        .expect("clean");
}

#[tokio::test]
async fn an_app_killed_with_unread_data_is_a_reset_at_the_other_side() {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (served, _) = soon("the app", app.accept()).await.expect("accepts");
    client.write_all(&[1; 100_000]).await.expect("writes");
    // What a killed process leaves: a closed socket with unread bytes, so the system resets it.
    served.readable().await.expect("bytes");
    drop(served);
    is_reset(rest(&mut client).await);
    assert!(soon("the stream's end", carrying).await.expect("no panic").is_err());
    assert!(world.pool.is_empty(), "a broken connection was kept");
}

#[tokio::test]
async fn a_client_that_resets_is_a_reset_at_the_app() {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
    client.write_all(b"half a").await.expect("writes");
    let mut got = [0; 6];
    soon("bytes", served.read_exact(&mut got)).await.expect("reads");
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("sets");
    drop(client);
    is_reset(rest(&mut served).await);
    assert!(soon("the stream's end", carrying).await.expect("no panic").is_err());
}

/// Every direction is full, nobody reads, and one of the apps is reset: the other one is within a second.
async fn a_blocked_stream_notices(client_breaks: bool) {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
    small_buffers(&client);
    small_buffers(&served);
    let (a, b) = tokio::join!(fill(&mut client), fill(&mut served));
    assert!(a > 0 && b > 0);
    let (breaks, other) = if client_breaks {
        (client, served)
    } else {
        (served, client)
    };
    let start = Instant::now();
    SockRef::from(&breaks).set_linger(Some(Duration::ZERO)).expect("sets");
    drop(breaks);
    soon("the error", other.ready(tokio::io::Interest::ERROR))
        .await
        .expect("ready");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(soon("the stream's end", carrying).await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_blocked_stream_notices_within_a_second_that_its_client_is_gone() {
    a_blocked_stream_notices(true).await;
}

#[tokio::test]
async fn a_blocked_stream_notices_within_a_second_that_its_app_is_gone() {
    a_blocked_stream_notices(false).await;
}

#[tokio::test]
async fn only_one_direction_blocked_notices_too() {
    for client_breaks in [true, false] {
        for client_fills in [true, false] {
            let (world, app) = World::new().await;
            let (mut client, _carrying) = world.client().await;
            let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
            small_buffers(&client);
            small_buffers(&served);
            fill(if client_fills { &mut client } else { &mut served }).await;
            let (breaks, other) = if client_breaks {
                (client, served)
            } else {
                (served, client)
            };
            let start = Instant::now();
            SockRef::from(&breaks).set_linger(Some(Duration::ZERO)).expect("sets");
            drop(breaks);
            soon("the error", other.ready(tokio::io::Interest::ERROR))
                .await
                .expect("ready");
            let took = start.elapsed();
            assert!(took < Duration::from_secs(1), "{client_breaks} {client_fills} {took:?}");
        }
    }
}

#[tokio::test]
async fn what_is_lost_with_a_sidecar_is_a_reset_for_both_apps() {
    for dialler_dies in [true, false] {
        let (world, app) = World::new().await;
        let (mut client, carrying) = world.client().await;
        let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
        client.write_all(b"x").await.expect("writes");
        let mut got = [0; 1];
        soon("bytes", served.read_exact(&mut got)).await.expect("reads");
        // A task that is cut closes its sockets as a killed process does.
        match dialler_dies {
            true => carrying.abort(),
            false => world.serving.lock().iter().for_each(JoinHandle::abort),
        }
        is_reset(rest(&mut client).await);
        is_reset(rest(&mut served).await);
    }
}

#[tokio::test]
async fn early_data_and_its_end_reach_another_endpoint_whole() {
    let (world, app) = World::new().await;
    *world.door.refuse.lock() = Some(Refusal::AppUnreachable);
    let (mut client, carrying) = world.client().await;
    let bytes: Vec<u8> = (0..64 * 1024u32).map(|i| (i / 7) as u8).collect();
    client.write_all(&bytes).await.expect("writes");
    client.shutdown().await.expect("ends its side");
    let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
    assert!(rest(&mut served).await.expect("a clean end") == bytes);
    drop(served);
    assert!(rest(&mut client).await.expect("a clean end").is_empty());
    soon("the stream's end", carrying)
        .await
        .expect("no panic")
        .expect("clean");
    assert_eq!(*world.handshakes.lock(), 2);
}

#[tokio::test]
async fn a_refused_stream_resets_its_client() {
    let (world, _app) = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let (client, app) = tokio::join!(
        TcpStream::connect(listener.local_addr().expect("bound")),
        listener.accept()
    );
    let (mut client, (app, _)) = (client.expect("connects"), app.expect("accepts"));
    let (mut app, mut kept) = (Socket::of_app(app), Kept::default());
    let mut connection = world.connection().await;
    let wrong = Open {
        port: "ssh".into(),
        ..open()
    };
    let (_, result) = connection
        .carry(&mut app, wrong, &mut kept, std::future::pending(), || {})
        .await;
    assert!(
        matches!(result, Err(Broken::Refused(Refusal::UnknownPort))),
        "{result:?}"
    );
    drop(app);
    is_reset(rest(&mut client).await);
}

#[tokio::test]
async fn a_stream_that_is_no_longer_allowed_ends_for_both() {
    let (world, app) = World::new().await;
    let (mut client, _carrying) = world.client().await;
    let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
    client.write_all(b"x").await.expect("writes");
    let mut got = [0; 1];
    soon("bytes", served.read_exact(&mut got)).await.expect("reads");
    world.door.barred.send_replace(true);
    is_reset(rest(&mut served).await);
    is_reset(rest(&mut client).await);
}

#[tokio::test]
async fn draining_lets_the_stream_end_and_closes_the_connection() {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (mut served, _) = soon("the app", app.accept()).await.expect("accepts");
    world.drain.advance(Phase::Closing);
    client.write_all(b"question").await.expect("writes");
    client.shutdown().await.expect("ends its side");
    assert_eq!(rest(&mut served).await.expect("a clean end"), b"question");
    served.write_all(b"answer").await.expect("writes");
    drop(served);
    assert_eq!(rest(&mut client).await.expect("a clean end"), b"answer");
    soon("the stream's end", carrying)
        .await
        .expect("no panic")
        .expect("clean");
    assert!(world.pool.is_empty(), "a connection that drains was kept");
    let serving = world.serving.lock().pop().expect("one");
    soon("the connection's end", serving)
        .await
        .expect("no panic")
        .expect("in order");
}

#[tokio::test]
async fn a_connection_that_drained_while_idle_is_replaced_unseen() {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (served, _) = soon("the app", app.accept()).await.expect("accepts");
    client.shutdown().await.expect("ends its side");
    drop(served);
    soon("the stream's end", carrying)
        .await
        .expect("no panic")
        .expect("clean");
    world.settled().await;
    world.drain.advance(Phase::Closing);
    soon("the connection's last words", async {
        while let Some(kept) = world.pool.take(world.caller.generation()).await {
            world.pool.put_back(kept, None);
            tokio::task::yield_now().await;
        }
    })
    .await;
    let serving = world.serving.lock().pop().expect("one");
    soon("the connection's end", serving)
        .await
        .expect("no panic")
        .expect("in order");
}

#[tokio::test]
async fn another_identity_and_age_empty_the_pool() {
    let (world, app) = World::new().await;
    let (mut client, carrying) = world.client().await;
    let (served, _) = soon("the app", app.accept()).await.expect("accepts");
    client.shutdown().await.expect("ends its side");
    drop(served);
    soon("the stream's end", carrying)
        .await
        .expect("no panic")
        .expect("clean");
    world.settled().await;
    let generation = world.caller.generation();
    world.pool.prune(generation);
    assert_eq!(world.pool.len(), 1);
    world.pool.prune(generation + 1);
    assert_eq!(world.pool.len(), 0);
}

/// A connection in memory, where a paused clock runs as soon as nothing else does.
impl Wire for BufReader<DuplexStream> {
    fn socket(&self) -> Option<&Socket> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_asked_and_then_closed() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (door, drain) = (Arc::new(TestDoor::nowhere()), Drain::default());
    let serving = tokio::spawn(async move { serve(BufReader::new(theirs), &*door, &drain).await });
    let start = Instant::now();
    let connection = Connection::new(BufReader::new(ours), None, 1, start + Duration::from_secs(3600));
    let pool = Arc::new(Pool::new(Arc::default()));
    pool.put_back(connection, None);
    assert_eq!(pool.len(), 1);
    while !pool.is_empty() {
        tokio::time::sleep(Duration::from_secs(2)).await;
        pool.prune(1);
        assert!(start.elapsed() <= Limits::DIALLER.idle + Duration::from_secs(2));
    }
    // It answered whenever it was asked, or it would be gone earlier.
    assert!(start.elapsed() >= Limits::DIALLER.idle, "{:?}", start.elapsed());
    serving.await.expect("no panic").expect("in order");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_given_up() {
    let (ours, _theirs) = tokio::io::duplex(4096);
    let start = Instant::now();
    let connection = Connection::new(BufReader::new(ours), None, 1, start + Duration::from_secs(3600));
    let pool = Arc::new(Pool::new(Arc::default()));
    pool.put_back(connection, None);
    while !pool.is_empty() {
        tokio::time::sleep(Duration::from_secs(2)).await;
        pool.prune(1);
    }
    assert!(start.elapsed() < Limits::DIALLER.idle, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_acceptor_waits_a_minute_for_a_stream() {
    let (mut ours, theirs) = tokio::io::duplex(4096);
    let (door, drain) = (TestDoor::nowhere(), Drain::default());
    let start = Instant::now();
    let serving = tokio::spawn(async move { serve(BufReader::new(theirs), &door, &drain).await });
    let mut said = Vec::new();
    ours.read_to_end(&mut said).await.expect("a clean end");
    assert_eq!(said, [7, 0, 0, 4, 0, 0, 0, 0], "DRAIN of no stream");
    assert_eq!(start.elapsed().as_secs(), 60);
    drop(ours);
    serving.await.expect("no panic").expect("in order");
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_ends_after_an_hour_of_silence_and_no_sooner() {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let (client, app) = tokio::io::duplex(4096);
    let start = Instant::now();
    let mut connection = Connection::new(BufReader::new(ours), None, 1, start + Duration::from_secs(60));
    let (mut app, mut client) = (Plain(app), client);
    client.shutdown().await.expect("ends its side");
    let carrying = tokio::spawn(async move {
        let (_, result) = connection
            .carry(&mut app, open(), &mut Kept::default(), std::future::pending(), || {})
            .await;
        result
    });
    // ACCEPT, and a byte after 50 minutes.
    theirs.write_all(&[2, 0, 0, 4, 0, 0, 0, 1]).await.expect("writes");
    tokio::time::sleep(Duration::from_secs(3000)).await;
    theirs.write_all(&[4, 0, 0, 1, 42]).await.expect("writes");
    let result = carrying.await.expect("no panic");
    assert!(matches!(result, Err(Broken::Late(_))), "{result:?}");
    assert_eq!(start.elapsed().as_secs(), 7200);
    assert_eq!(client.read_u8().await.expect("a byte"), 42);
}

#[tokio::test(start_paused = true)]
async fn an_open_without_an_answer_is_not_tried_again() {
    let (ours, _theirs) = tokio::io::duplex(4096);
    let (_client, app) = tokio::io::duplex(4096);
    let start = Instant::now();
    let mut connection = Connection::new(BufReader::new(ours), None, 1, start + Duration::from_secs(60));
    let (_, result) = connection
        .carry(
            &mut Plain(app),
            open(),
            &mut Kept::default(),
            std::future::pending(),
            || {},
        )
        .await;
    assert!(matches!(result, Err(Broken::Late(_))), "{result:?}");
    assert_eq!(start.elapsed(), Limits::DIALLER.answer);
}

#[tokio::test]
async fn idle_connections_have_a_limit_in_all() {
    let idle: Arc<Idle> = Arc::default();
    let ca = Ca::new();
    let caller = ca.identity("default/shop");
    let called = ca.identity("default/post");
    let expected = id("default/post").parse().expect("an id");
    let mut pools = Vec::new();
    let mut theirs = Vec::new();
    for i in 0..70 {
        if i % 2 == 0 {
            pools.push(Arc::new(Pool::new(idle.clone())));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (ours, accepted) = tokio::join!(
            TcpStream::connect(listener.local_addr().expect("bound")),
            listener.accept()
        );
        let (tls, accepted): (_, Result<(TlsStream<Prefixed<Socket>>, _, _), _>) = tokio::join!(
            caller.connect(
                Prefixed::untouched(Socket::new(ours.expect("connects"))),
                &expected,
                Alpn::Tcp
            ),
            called.accept(Prefixed::untouched(Socket::new(accepted.expect("accepts").0)))
        );
        theirs.push(accepted.expect("lets in"));
        let connection = Connection::new(
            tls.expect("is let in"),
            None,
            caller.generation(),
            Instant::now() + Duration::from_secs(60),
        );
        pools.last().expect("one").put_back(connection, None);
    }
    assert_eq!(idle.count(), 64);
    drop(pools);
    assert_eq!(idle.count(), 0);
}
