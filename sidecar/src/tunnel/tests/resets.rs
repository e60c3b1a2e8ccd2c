//! What breaks on one side is a reset on the other, and soon.

use super::*;

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
