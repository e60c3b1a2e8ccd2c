//! What breaks on one side is a reset on the other, and soon.

use super::*;

#[tokio::test]
async fn an_app_killed_with_unread_data_is_a_reset_at_the_other_side() {
    let (world, app) = World::new().await;
    let (mut client, served, carrying) = world.stream(&app).await;
    client.write_all(&[1; 100_000]).await.expect("writes");
    // What a killed process leaves: a closed socket with unread bytes, so the system resets it.
    served.readable().await.expect("bytes");
    drop(served);
    is_reset(rest(&mut client).await);
    breaks(carrying).await;
    assert!(world.pool.is_empty(), "a broken connection was kept");
}

#[tokio::test]
async fn a_client_that_resets_is_a_reset_at_the_app() {
    let (world, app) = World::new().await;
    let (mut client, mut served, carrying) = world.stream(&app).await;
    client.write_all(b"half a").await.expect("writes");
    soon("bytes", served.read_exact(&mut [0; 6])).await.expect("reads");
    reset(client);
    is_reset(rest(&mut served).await);
    breaks(carrying).await;
}

/// Full buffers that nobody reads, towards the app, the client, or both, and one of the two is reset: the other one is, too,
/// within a second.
async fn a_blocked_stream_notices(client_breaks: bool, client_fills: bool, app_fills: bool) {
    let (world, app) = World::new().await;
    let (mut client, mut served, carrying) = world.stream(&app).await;
    small_buffers(&client);
    small_buffers(&served);
    let (a, b) = tokio::join!(
        async { if client_fills { fill(&mut client).await } else { 0 } },
        async { if app_fills { fill(&mut served).await } else { 0 } }
    );
    assert_eq!((a > 0, b > 0), (client_fills, app_fills));
    let (first, other) = if client_breaks {
        (client, served)
    } else {
        (served, client)
    };
    let start = Instant::now();
    reset(first);
    soon("the error", other.ready(tokio::io::Interest::ERROR))
        .await
        .expect("ready");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    breaks(carrying).await;
}

#[tokio::test]
async fn a_blocked_stream_notices_within_a_second_that_its_client_is_gone() {
    a_blocked_stream_notices(true, true, true).await;
}

#[tokio::test]
async fn a_blocked_stream_notices_within_a_second_that_its_app_is_gone() {
    a_blocked_stream_notices(false, true, true).await;
}

#[tokio::test]
async fn only_one_direction_blocked_notices_too() {
    for client_breaks in [true, false] {
        for client_fills in [true, false] {
            a_blocked_stream_notices(client_breaks, client_fills, !client_fills).await;
        }
    }
}

#[tokio::test]
async fn what_is_lost_with_a_sidecar_is_a_reset_for_both_apps() {
    for dialler_dies in [true, false] {
        let (world, app) = World::new().await;
        let (mut client, mut served, carrying) = world.stream(&app).await;
        client.write_all(b"x").await.expect("writes");
        soon("bytes", served.read_exact(&mut [0; 1])).await.expect("reads");
        // A task that is cut closes its sockets as a killed process does.
        match dialler_dies {
            true => carrying.abort(),
            false => world.serving.lock().iter().for_each(JoinHandle::abort),
        }
        is_reset(rest(&mut client).await);
        is_reset(rest(&mut served).await);
    }
}
