//! What passes through a stream, and who gets one.

use super::*;

#[tokio::test]
async fn half_close_passes_both_ways_and_the_next_stream_costs_no_handshake() {
    let (world, app) = World::new().await;
    for round in 0..5u8 {
        let (mut client, mut served, carrying) = world.stream(&app).await;
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
        ends(carrying).await;
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
        let (mut client, mut served, carrying) = world.stream(&app).await;
        served.write_all(b"220 ready").await.expect("writes");
        served.shutdown().await.expect("ends its side");
        assert_eq!(rest(&mut client).await.expect("a clean end"), b"220 ready");
        client.write_all(b"bye").await.expect("writes");
        drop(client);
        ends(carrying).await;
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
    ends(carrying).await;
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
    ends(carrying).await;
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
        .carry(&mut app, wrong, &mut kept, std::future::pending(), |_| {})
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
    let (mut client, mut served, _carrying) = world.stream(&app).await;
    client.write_all(b"x").await.expect("writes");
    soon("bytes", served.read_exact(&mut [0; 1])).await.expect("reads");
    world.door.barred.send_replace(true);
    is_reset(rest(&mut served).await);
    is_reset(rest(&mut client).await);
}
