//! S-HOST-11: whoever makes up hosts makes no series and no memory (CVE-2025-43915), in the sidecar of the caller and in that of
//! the called one. Both are processes, so that what they hold is theirs alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    pods::resident,
    standalone::{Settings, Standalone},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

const HOSTS: usize = 100_000;
const CLIENTS: usize = 4;
/// Requests that a client sends before it reads the first answer.
const AT_ONCE: usize = 50;
/// One of so many is allowed; the others are denied by the called sidecar, and logged.
const ALLOWED: usize = 2;
/// By which the resident memory of a process that works differs from one moment to the next, in octets: buffers come and go. Half of the
/// hosts in the smallest set there is take more.
const SLACK: u64 = 2 << 20;

/// Asks for these hosts on one connection, and is answered each time.
async fn ask(to: SocketAddr, hosts: std::ops::Range<usize>) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let numbers: Vec<_> = hosts.collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let mut asked = String::new();
        for number in numbers {
            let path = if number % ALLOWED == 0 { "/ok" } else { "/no" };
            asked += &format!("GET {path} HTTP/1.1\r\nHost: h{number:x}.example\r\n\r\n");
        }
        stream.write_all(asked.as_bytes()).await.unwrap();
        let allowed = numbers.iter().filter(|number| *number % ALLOWED == 0).count();
        let (mut read, mut answered) = (Vec::new(), (0, 0));
        while answered != (allowed, numbers.len() - allowed) {
            let count = tokio::time::timeout(Duration::from_secs(20), stream.read_buf(&mut read)).await;
            let text = String::from_utf8_lossy(&read);
            assert!(count.expect("an answer in time").unwrap() > 0, "{text}");
            answered = (text.matches("HTTP/1.1 200 ").count(), text.matches("HTTP/1.1 403 ").count());
        }
    }
}

/// Asks for all of them.
async fn ask_all(mesh: &Standalone, hosts: std::ops::Range<usize>) {
    let each = hosts.len() / CLIENTS;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let first = hosts.start + client * each;
        clients.spawn(ask(mesh.entry("client"), first..first + each));
    }
    while let Some(client) = clients.join_next().await {
        client.expect("every host is answered");
    }
}

/// How many series a sidecar has, and what it holds, in octets.
async fn held(mesh: &Standalone, name: &str) -> (usize, u64) {
    let series = mesh.metrics(name).await.lines().filter(|line| !line.starts_with('#')).count();
    (series, resident(mesh.pid(name).try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_hosts_make_no_new_series_and_no_memory() {
    let mesh = Standalone::start(Settings::default()).await;
    // What is made at first use is no growth.
    ask_all(&mesh, 0..HOSTS / 20).await;
    let before = [held(&mesh, "client").await, held(&mesh, "server").await];
    ask_all(&mesh, HOSTS..2 * HOSTS).await;
    for (name, before) in ["client", "server"].into_iter().zip(before) {
        let after = held(&mesh, name).await;
        assert_eq!(after.0, before.0, "series of {name}");
        assert!(after.1 <= before.1 + SLACK, "{name} holds {} KiB, {} before", after.1 >> 10, before.1 >> 10);
    }
}
