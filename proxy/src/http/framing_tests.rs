//! The framing table (RFC 9112 sections 2, 3, 6 and 7), whole and split at every position.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

fn upgrades() -> Upgrades {
    Upgrades::parse("spdy/3.1").unwrap()
}

/// How many requests were complete, and where a rule was broken.
fn follow(bytes: &[u8]) -> (u64, Option<usize>) {
    let mut parser = Parser::new(upgrades());
    let broken = parser.feed(bytes).err();
    (parser.requests, broken.map(|broken| broken.at))
}

fn check(bytes: &str, requests: u64, is_fine: bool) {
    let bytes = bytes.as_bytes();
    let whole = follow(bytes);
    assert_eq!((whole.0, whole.1.is_none()), (requests, is_fine), "{}", String::from_utf8_lossy(bytes));
    for at in 1..bytes.len() {
        let mut parser = Parser::new(upgrades());
        let mut broken = |from: usize, to: usize| parser.feed(&bytes[from..to]).err().map(|b| b.at + from);
        let broken = broken(0, at).or_else(|| broken(at, bytes.len()));
        assert_eq!((parser.requests, broken), whole, "split at {at}: {}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn well_framed_requests_pass() {
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, true);
    check("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, true);
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", 2, true);
    check("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 1, true);
    check("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell", 0, true);
    check("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 1, true);
    check(
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\na\nb\r\nA;x=y\r\n0123456789\r\n0\r\nx: y\r\n\r\nGET",
        1,
        true,
    );
}

#[test]
fn badly_framed_requests_break_at_the_offending_octet() {
    for head in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET /admin#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0001\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        check(head, 0, false);
    }
    for chunks in [
        "3 \r\nabc\r\n",
        " 3\r\nabc\r\n",
        "0x3\r\n",
        "+3\r\n",
        "\r\n",
        "3\nabc",
        "3\r\nabcd",
        "3\r\nabc\n",
        "ffffffffffffffff\r\n",
        "3;a\u{1}\r\n",
        "0\r\nx: y\n",
    ] {
        check(&format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), 0, false);
    }
}

#[test]
fn what_follows_an_upgrade_request_is_not_read() {
    for protocol in ["websocket", "SPDY/3.1"] {
        check(
            &format!("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n\n\nwhatever\n"),
            0,
            true,
        );
        check(&format!("POST / HTTP/1.1\r\nUpgrade: {protocol}\r\nContent-Length: 1\r\n\r\nx"), 0, false);
        check(
            &format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nUpgrade: {protocol}\r\n\r\n"),
            0,
            false,
        );
    }
    for protocol in ["tcp", "h2c", "spdy", "spdy/3.1, h2c"] {
        check(
            &format!("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n\n\nwhatever\n"),
            1,
            false,
        );
        check(&format!("POST / HTTP/1.1\r\nUpgrade: {protocol}\r\nContent-Length: 1\r\n\r\nx"), 1, true);
    }
}

fn patience(first: Duration) -> Patience {
    Patience {
        first_head: Instant::now() + first,
        head: Duration::from_secs(10),
        idle: Duration::from_secs(3600),
        body: Duration::from_secs(60),
        stalled: Duration::from_secs(300),
    }
}

/// What hyper gets of these pieces, each a read of its own, and whether that ends with an error.
async fn arriving(pieces: &[&str]) -> (String, bool) {
    let (mut client, server) = duplex(1024);
    let mut strict = Strict::new(server, patience(Duration::from_secs(10)), upgrades());
    let mut got = Vec::with_capacity(1024);
    for piece in pieces {
        client.write_all(piece.as_bytes()).await.unwrap();
        if strict.read_buf(&mut got).await.is_err() {
            return (String::from_utf8(got).unwrap(), true);
        }
    }
    drop(client);
    let is_broken = strict.read_to_end(&mut got).await.is_err();
    (String::from_utf8(got).unwrap(), is_broken)
}

#[tokio::test]
async fn a_request_that_breaks_a_rule_never_arrives_unless_its_head_has_before() {
    let (good, head) = ("GET / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    let poison = "\0\r\n\r\n";
    let twice = "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nGET /admin";
    for (pieces, arrives) in [
        (vec![twice], poison.to_owned()),
        (vec![&*format!("{good}{twice}")], format!("{good}{poison}")),
        (vec![&*format!("{head}2\r\nok\r\nx\r\nGET /admin")], poison.into()),
        (vec![&*format!("{head}2\r\nok\r\n0\r\nx: y\n\r\n")], poison.into()),
        (vec![&*format!("{good}{head}2\r\nok\r\nx\r\n")], format!("{good}{poison}")),
        (vec!["POST / HT", &*format!("{}x\r\n", &head[9..])], format!("POST / HT{poison}")),
        (vec!["\r", &*format!("\n{head}x\r\n")], format!("\r\n{poison}")),
        // A head that is complete goes on, and one behind a body that began earlier is its own.
        (
            vec![&*format!("{head}2\r\nok\r\n"), &*format!("0\r\n\r\n{head}x\r\n")],
            format!("{head}2\r\nok\r\n0\r\n\r\n{poison}"),
        ),
    ] {
        assert_eq!(arriving(&pieces).await, (arrives, false), "{pieces:?}");
    }
    let late = arriving(&[head, "2\r\nok\r\nx\r\nGET /admin"]).await;
    assert_eq!(late, (format!("{head}2\r\nok\r\nx\r"), true));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_misses_its_deadline_however_long_the_first_may_be_waited_for() {
    // The longer one is that of the app's own connections, which may be opened long before they are used.
    for (first, silent) in [(10, 0), (3600, 60)] {
        let (mut client, server) = duplex(1024);
        let mut strict = Strict::new(server, patience(Duration::from_secs(first)), upgrades());
        let drip = async {
            tokio::time::sleep(Duration::from_secs(silent)).await;
            loop {
                client.write_all(b"G").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let before = Instant::now();
        let mut read = Vec::new();
        let ended =
            tokio::select! { () = drip => unreachable!(), ended = strict.read_to_end(&mut read) => ended };
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(before.elapsed(), Duration::from_secs(silent + 10));
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_quietly_after_its_own_patience() {
    let (mut client, server) = duplex(1024);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let before = Instant::now();
    let mut read = Vec::new();
    Strict::new(server, patience(Duration::from_secs(10)), upgrades()).read_to_end(&mut read).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_body_may_pause_for_a_minute() {
    let (mut client, server) = duplex(1024);
    client.write_all(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc").await.unwrap();
    let before = Instant::now();
    let mut read = Vec::new();
    let ended =
        Strict::new(server, patience(Duration::from_secs(10)), upgrades()).read_to_end(&mut read).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(before.elapsed(), Duration::from_secs(60));
}
