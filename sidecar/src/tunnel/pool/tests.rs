//! Who gets a connection, and how many stay.

use tokio::io::{BufReader, DuplexStream};

use super::*;

/// A connection in memory, and the peer's end of it.
fn in_memory() -> (Connection<BufReader<DuplexStream>>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(4096);
    let expires = Instant::now() + Duration::from_secs(3600);
    (Connection::new(BufReader::new(ours), None, 1, expires), theirs)
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_waits_for_a_connection_that_is_about_to_be_free() {
    let pool = Arc::new(Pool::new(Arc::default()));
    let taking = |pool: &Arc<Pool<_>>| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.take(1).await })
    };
    let start = Instant::now();
    assert!(pool.take(1).await.is_none(), "nothing is ending");
    assert_eq!(start.elapsed(), Duration::ZERO, "and nothing is waited for");

    // One is ending: the first waits for it, the second does not.
    let (connection, _peer) = in_memory();
    let ending = pool.ending();
    let (first, second) = (taking(&pool), taking(&pool));
    assert!(second.await.expect("no panic").is_none());
    assert_eq!(start.elapsed(), Duration::ZERO);
    pool.put_back(connection, Some(ending));
    assert!(first.await.expect("no panic").is_some(), "it was handed over");
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(pool.is_empty());

    // It breaks instead of ending: nobody waits for it any longer.
    let ending = pool.ending();
    let waiting = taking(&pool);
    tokio::task::yield_now().await;
    drop(ending);
    assert!(waiting.await.expect("no panic").is_none());
    assert_eq!(start.elapsed(), Duration::ZERO);

    // It stays half-closed: one stream waits for a moment, and the next ones not at all.
    let ending = pool.ending();
    assert!(taking(&pool).await.expect("no panic").is_none());
    let waited = start.elapsed();
    assert!((1..=25).contains(&waited.as_millis()), "{waited:?}");
    tokio::time::sleep(Duration::from_millis(5)).await;
    let before = Instant::now();
    assert!(taking(&pool).await.expect("no panic").is_none());
    assert_eq!(before.elapsed(), Duration::ZERO);
    drop(ending);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_another_identity_is_not_handed_an_older_connection() {
    let pool = Arc::new(Pool::new(Arc::default()));
    let (connection, _peer) = in_memory();
    let ending = pool.ending();
    let taking = tokio::spawn({
        let pool = pool.clone();
        async move { pool.take(2).await }
    });
    tokio::task::yield_now().await;
    pool.put_back(connection, Some(ending));
    assert!(taking.await.expect("no panic").is_none());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_two_stay_idle() {
    let idle: Arc<Idle> = Arc::default();
    let pool = Arc::new(Pool::new(idle.clone()));
    let mut peers = Vec::new();
    for _ in 0..10 {
        let (connection, peer) = in_memory();
        peers.push(peer);
        pool.put_back(connection, None);
    }
    // For a moment a next stream may have them.
    assert!(pool.take(1).await.is_some());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((pool.len(), idle.count()), (2, 2));
    // And so it is a second time.
    for _ in 0..3 {
        let (connection, peer) = in_memory();
        peers.push(peer);
        pool.put_back(connection, None);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((pool.len(), idle.count()), (2, 2));
}
