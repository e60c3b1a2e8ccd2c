//! How long each side waits: connections in memory under a clock that runs as soon as nothing else does.

use tokio::io::{BufReader, DuplexStream};

use super::*;

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
            .carry(&mut app, open(), &mut Kept::default(), std::future::pending(), |_| {})
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
            |_| {},
        )
        .await;
    assert!(matches!(result, Err(Broken::Late(_))), "{result:?}");
    assert_eq!(start.elapsed(), Limits::DIALLER.answer);
}
