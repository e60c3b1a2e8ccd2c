//! Idle connections are put down and taken up again without losing a byte; limits hold meanwhile.

use tokio::io::{AsyncReadExt as _, DuplexStream};

use super::*;

#[derive(Clone)]
struct Echo;

impl Serve for Echo {
    fn serve(
        &self,
        request: Request<Incoming>,
        watch: Option<Arc<Watch>>,
    ) -> impl Future<Output = Result<Response<Body>, h2::Error>> + Send + 'static {
        let doubtful = watch.is_some_and(|w| w.doubtful());
        let path = request.uri().path().to_owned();
        async move {
            if path == "/slow" {
                tokio::time::sleep(PUT_DOWN * 3 / 4).await;
            }
            Ok(Response::new(Body::full(format!("{path} {doubtful}").into())))
        }
    }
}

fn served() -> (
    DuplexStream,
    tokio::task::JoinHandle<Result<(), hyper::Error>>,
    Arc<Drain>,
) {
    let (client, server) = tokio::io::duplex(4096);
    let drain = Arc::new(Drain::default());
    let bounds = Bounds {
        limits: Limits::default(),
        meshed: false,
        stats: Arc::default(),
        until: Phase::Closing,
    };
    let kept = drain.clone();
    let task = tokio::spawn(async move { http1(server, Echo, &bounds, &kept, std::future::pending()).await });
    (client, task, drain)
}

async fn answer(client: &mut DuplexStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"false") && !seen.ends_with(b"true") {
        let mut some = [0u8; 512];
        let n = client.read(&mut some).await.expect("reads");
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&some[..n]);
    }
    String::from_utf8(seen).expect("text")
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_answers_again_whatever_the_pieces() {
    let (mut client, task, _drain) = served();
    for (round, pieces) in [
        &["GET /a HTTP/1.1\r\nHost: h\r\n\r\n"][..],
        &["GE", "T /b HTTP/1.1\r\nHo", "st: h\r\n", "\r\n"],
    ]
    .into_iter()
    .cycle()
    .take(6)
    .enumerate()
    {
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.expect("writes");
            tokio::time::advance(Duration::from_millis(300)).await;
        }
        let expected = if round % 2 == 0 { "/a false" } else { "/b false" };
        assert!(answer(&mut client).await.ends_with(expected));
        tokio::time::advance(PUT_DOWN * 4).await;
    }
    drop(client);
    task.await.expect("no panic").expect("clean end");
}

#[tokio::test(start_paused = true)]
async fn doubtful_framing_is_seen_after_a_rest_too() {
    let (mut client, _task, _drain) = served();
    tokio::time::advance(PUT_DOWN * 3).await;
    let head = "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("writes");
    assert!(answer(&mut client).await.ends_with("/x true"));
}

#[tokio::test(start_paused = true)]
async fn half_a_head_meets_the_header_timeout_after_a_rest() {
    let (mut client, task, _drain) = served();
    tokio::time::advance(PUT_DOWN * 3).await;
    client.write_all(b"GET /slow HT").await.expect("writes");
    let mut rest = Vec::new();
    // Paused time runs on while everything waits.
    client.read_to_end(&mut rest).await.expect("closed, not reset");
    assert!(rest.is_empty());
    task.await.expect("no panic").expect("clean end");
}

#[tokio::test(start_paused = true)]
async fn a_resting_connection_ends_with_the_drain() {
    let (mut client, task, drain) = served();
    tokio::time::advance(PUT_DOWN * 3).await;
    drain.advance(Phase::Closing);
    assert_eq!(client.read(&mut [0u8; 8]).await.expect("reads"), 0);
    drop(client);
    task.await.expect("no panic").expect("clean end");
}

#[tokio::test(start_paused = true)]
async fn a_request_on_its_way_when_the_drain_closes_is_answered() {
    let request = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
    for rest in [Duration::ZERO, PUT_DOWN / 2] {
        let (mut client, task, drain) = served();
        // The connection is there and its request is not, or both are.
        tokio::time::sleep(rest).await;
        drain.advance(Phase::Closing);
        tokio::time::sleep(rest / 2).await;
        client.write_all(request).await.expect("writes");
        assert!(answer(&mut client).await.ends_with("/x false"));
        assert_eq!(client.read(&mut [0u8; 8]).await.expect("reads"), 0, "then it ends");
        drop(client);
        task.await.expect("no panic").expect("clean end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_holds_up_no_drain() {
    let (mut client, task, drain) = served();
    drain.advance(Phase::Closing);
    let ended = tokio::time::timeout(PUT_DOWN * 3, client.read(&mut [0u8; 8])).await;
    assert_eq!(ended.expect("soon").expect("reads"), 0);
    drop(client);
    task.await.expect("no panic").expect("clean end");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_closed_is_not_put_down_for_a_client_that_stays() {
    let (mut client, task, _drain) = served();
    tokio::time::sleep(PUT_DOWN / 2).await;
    // Its answer takes long: the connection has been quiet for a while when it is closed.
    let request = b"GET /slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    client.write_all(request).await.expect("writes");
    let mut answered = Vec::new();
    client
        .read_to_end(&mut answered)
        .await
        .expect("the server closes its half");
    let ended = tokio::time::timeout(PUT_DOWN * 5, task).await;
    ended
        .expect("soon, though the client keeps its half open")
        .expect("no panic")
        .expect("clean end");
}
