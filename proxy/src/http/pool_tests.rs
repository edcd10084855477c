//! Connections to peers that are gone without a word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

/// An HTTP/2 connection to a peer that takes everything and, unless it `answers` pings, never says a word.
async fn connect(answers: bool) -> http2::SendRequest<Upload> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        peer.read_exact(&mut preface).await.unwrap();
        loop {
            let mut head = [0; 9];
            if peer.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            peer.read_exact(&mut payload).await.unwrap();
            // PING and SETTINGS, without ACK.
            if answers && matches!(head[3], 4 | 6) && head[4] & 1 == 0 {
                let body = if head[3] == 6 { payload } else { Vec::new() };
                let length = u8::try_from(body.len()).unwrap();
                let answer = [&[0, 0, length, head[3], 1, 0, 0, 0, 0][..], &body].concat();
                peer.write_all(&answer).await.unwrap();
            }
        }
    });
    let stream = Stream::Plain(Prefixed::new(TcpStream::connect(address).await.unwrap()));
    handshake_http2(stream, address, Watch::default()).await.unwrap().0
}

fn request() -> Request<Upload> {
    let request = Request::post("http://api/").version(http::Version::HTTP_2);
    request.body(Upload::empty()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_without_a_word_is_found_within_30_seconds() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut sender = connect(false).await;
            let before = Instant::now();
            assert!(sender.send_request(request()).await.is_err());
            assert!(before.elapsed() <= Duration::from_secs(30), "under way: {:?}", before.elapsed());

            let sender = connect(false).await;
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert!(sender.is_closed(), "idle");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_only_slow_is_waited_for() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut sender = connect(true).await;
            let answer = tokio::time::timeout(Duration::from_secs(600), sender.send_request(request())).await;
            assert!(answer.is_err(), "it neither answers nor fails: {answer:?}");
            assert!(!sender.is_closed());
        })
        .await;
}
