//! Connections to peers that are gone without a word, and bursts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::net::Prefixed;
use crate::net::dials::time_left;
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
    handshake::http2(stream, address, Watch::default()).await.unwrap().0
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

/// A server that answers each request with 200; how many connections it has accepted.
async fn server(http2: bool) -> (SocketAddr, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Rc::new(Cell::new(0)));
    let count = accepted.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.set(count.get() + 1);
            tokio::task::spawn_local(async move {
                if http2 {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                    return;
                }
                let mut read = [0; 1024];
                while stream.read(&mut read).await.is_ok_and(|count| count > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    (address, accepted)
}

/// Sends `count` requests at once; connections come of `dial`. How many were answered.
async fn burst<F>(pool: &Rc<Pool>, key: &Key, count: usize, dial: impl Fn(Duration) -> F) -> usize
where
    F: Future<Output = Result<(Stream, Watch), ProxyError>>,
{
    let requests = (0..count).map(|_| async {
        let request = if key.http2 {
            request()
        } else {
            Request::get("/").header("host", "app").body(Upload::empty()).unwrap()
        };
        let sent =
            pool.send(key, Terms::default(), None, Box::new(request), &Exchange::default(), &dial).await;
        let answered = sent.is_ok();
        if let Ok((_, lease)) = sent {
            // As the body does, a moment after the head.
            tokio::task::yield_now().await;
            lease.give_back();
        }
        answered
    });
    futures_util::future::join_all(requests).await.into_iter().filter(|answered| *answered).count()
}

#[tokio::test]
async fn a_burst_makes_only_some_connections_at_a_time_and_all_of_it_is_answered() {
    check_burst(false, dials::MOST, 999).await;
    // As few as can carry it.
    check_burst(true, 1, 1000 / MOST_STREAMS).await;
}

async fn check_burst(http2: bool, at_a_time: usize, connections: usize) {
    let local = LocalSet::new();
    let story = async {
        let (address, accepted) = server(http2).await;
        let key = Key { address, identity: None, sni: None, http2, source: None };
        let pool = Pool::new(Idle { plain: Duration::from_secs(60), mesh: Duration::from_secs(60) });
        let (at_once, most) = (Rc::new(Cell::new(0)), Cell::new(0));
        let dial = |_| {
            let (_one, address) = (InFlight::enter(&at_once), address);
            most.set(most.get().max(at_once.get()));
            async move {
                let _one = _one;
                let stream = TcpStream::connect(address).await.unwrap();
                Ok((Stream::Plain(Prefixed::new(stream)), Watch::default()))
            }
        };
        assert_eq!(burst(&pool, &key, 1000, dial).await, 1000);
        assert_eq!(most.get(), at_a_time);
        assert!(accepted.get() <= connections, "{} connections for 1,000 requests", accepted.get());
    };
    local.run_until(story).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_in_a_burst_waits_longer_for_those_who_cannot_be_reached_than_one_who_is_alone() {
    let local = LocalSet::new();
    let story = async {
        let address = "127.0.0.1:9".parse().unwrap();
        let pool = Pool::new(Idle { plain: Duration::from_secs(60), mesh: Duration::from_secs(60) });
        let patience = Duration::from_secs(5);
        let dial = async |waited| {
            tokio::time::sleep(time_left(patience, waited)).await;
            Err(ProxyError::Connect { address, cause: std::io::ErrorKind::TimedOut.into() })
        };
        for http2 in [false, true] {
            let key = Key { address, identity: None, sni: None, http2, source: None };
            let began = Instant::now();
            assert_eq!(burst(&pool, &key, 1000, dial).await, 0);
            assert!(began.elapsed() <= patience + patience / 10, "{:?}", began.elapsed());
        }
    };
    local.run_until(story).await;
}

#[tokio::test]
async fn a_connection_that_has_carried_its_last_request_is_not_kept() {
    let local = LocalSet::new();
    let story = async {
        for (requests, kept) in [(None, 1), (Some(2), 1), (Some(1), 0)] {
            let (address, _) = server(true).await;
            let key = Key { address, identity: None, sni: None, http2: true, source: None };
            let pool = Pool::new(Idle { plain: Duration::from_secs(60), mesh: Duration::from_secs(60) });
            let dial = async |_| {
                let stream = TcpStream::connect(address).await.unwrap();
                Ok((Stream::Plain(Prefixed::new(stream)), Watch::default()))
            };
            let terms = Terms { requests, ..Terms::default() };
            let sent = pool.send(&key, terms, None, Box::new(request()), &Exchange::default(), dial).await;
            assert!(sent.is_ok());
            pool.sweep(None);
            let slots = pool.slots.borrow();
            assert_eq!(slots.get(&key).map_or(0, |slot| slot.http2.len()), kept, "{requests:?}");
        }
    };
    local.run_until(story).await;
}
