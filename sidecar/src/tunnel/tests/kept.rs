//! Connections between streams: kept, drained, replaced, bounded.

use super::*;

#[tokio::test]
async fn draining_lets_the_stream_end_and_closes_the_connection() {
    let (world, app) = World::new().await;
    let (mut client, mut served, carrying) = world.stream(&app).await;
    world.drain.advance(Phase::Closing);
    client.write_all(b"question").await.expect("writes");
    client.shutdown().await.expect("ends its side");
    assert_eq!(rest(&mut served).await.expect("a clean end"), b"question");
    served.write_all(b"answer").await.expect("writes");
    drop(served);
    assert_eq!(rest(&mut client).await.expect("a clean end"), b"answer");
    ends(carrying).await;
    assert!(world.pool.is_empty(), "a connection that drains was kept");
    world.connection_ends().await;
}

#[tokio::test]
async fn a_connection_that_drained_while_idle_is_replaced_unseen() {
    let (world, app) = World::new().await;
    world.used(&app).await;
    world.drain.advance(Phase::Closing);
    soon("the connection's last words", async {
        while let Some(kept) = world.pool.take(world.caller.generation()).await {
            world.pool.put_back(kept, None);
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.connection_ends().await;
}

#[tokio::test]
async fn another_identity_and_age_empty_the_pool() {
    let (world, app) = World::new().await;
    world.used(&app).await;
    let generation = world.caller.generation();
    world.pool.prune(generation);
    assert_eq!(world.pool.len(), 1);
    world.pool.prune(generation + 1);
    assert_eq!(world.pool.len(), 0);
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
