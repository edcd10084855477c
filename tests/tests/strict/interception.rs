//! S-ICPT, as far as one process shows it: own ports are no destination, addresses are what they are, and what a peer says about
//! addresses is believed by nobody but `remoteIp`. Redirect rules themselves are tried in namespaces.

use crate::arena::{Arena, Before, Side, talk, talk_until};
use postern_proxy::{Bootstrap, Interception, bootstrap::AccessLogSink};
use postern_tests::scenario::policy;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Lines 01 and 02: whoever dials the ports that only redirect rules lead to, on any address, is closed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_a_redirect_port_itself_is_closed_within_a_second_and_leads_nowhere() {
    let arena = Arena::new("").await;
    let any = |ip: IpAddr| SocketAddr::new(ip, 0);
    let (v4, v6) = (any(Ipv4Addr::UNSPECIFIED.into()), any(Ipv6Addr::LOCALHOST.into()));
    let (sink, mut lines) = tokio::sync::mpsc::channel(64);
    let sidecar = postern_proxy::start(Bootstrap {
        instance: "redirected".into(),
        control_plane: arena.mesh.control.address().into(),
        service_account_token: None,
        state: None,
        trust_domain: "cluster.local".into(),
        trust_bundle_pem: arena.mesh.control.trust_bundle_pem().into_bytes(),
        join_token: None,
        interception: Interception::Redirect {
            inbound: vec![v4, v6],
            outbound: vec![v4, v6],
            mode: Default::default(),
        },
        admin: any(Ipv4Addr::LOCALHOST.into()),
        probes: any(Ipv4Addr::LOCALHOST.into()),
        metrics: any(Ipv4Addr::LOCALHOST.into()),
        merged_metrics: any(Ipv4Addr::LOCALHOST.into()),
        app_metrics: None,
        identity_from: None,
        workload_api: None,
        workers: 1,
        mark: None,
        access_log: AccessLogSink::Channel(sink),
        otel: Default::default(),
        access_log_lines: Default::default(),
        certificate_lifetime: None,
        drain_deadline: Duration::from_secs(1),
        report_interval: Duration::from_secs(10),
    })
    .await
    .unwrap();
    let addresses = sidecar.addresses().clone();
    for (direction, bound) in [("inbound", &addresses.inbound), ("outbound", &addresses.outbound)] {
        let [four, six] = [bound[0].port(), bound[1].port()];
        for to in [
            SocketAddr::from((Ipv4Addr::LOCALHOST, four)),
            SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), four)),
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, four)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, six)),
        ] {
            let began = Instant::now();
            let mut read = Vec::new();
            let talking = async {
                // The reset may come before connect has returned.
                let Ok(mut stream) = TcpStream::connect(to).await else { return };
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let _ = stream.read_to_end(&mut read).await;
            };
            let ended = tokio::time::timeout(Duration::from_secs(1), talking).await;
            assert!(ended.is_ok() && read.is_empty(), "S-ICPT-01 {direction} {to}: {read:?}");
            assert!(began.elapsed() < Duration::from_secs(1));
            let line = tokio::time::timeout(Duration::from_secs(5), lines.recv()).await.unwrap().unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["postern.direction"], direction, "{line}");
            assert!(line["postern.reason"].as_str().unwrap().contains("loop"), "S-ICPT-01 {to}: {line}");
        }
    }
    assert!(lines.try_recv().is_err(), "I4: one line each");
    arena.survived().await;
}

/// Line 09: the PROXY protocol is nobody's request, and forwarded addresses are not the source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_cannot_choose_its_source_address() {
    let rules = "action: ALLOW, rules: [{from: [{source: {ipBlocks: [203.0.113.7]}}]}, \
                 {to: [{operation: {paths: [/good]}}]}]";
    let arena = Arena::new(&policy("source", rules)).await;
    for headers in [
        "",
        "X-Forwarded-For: 203.0.113.7\r\n",
        "Forwarded: for=203.0.113.7\r\n",
        "X-Real-IP: 203.0.113.7\r\n",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        arena.denied(Side::Peer, "S-ICPT-09", request.as_bytes()).await;
    }
    let request = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    for proxied in ["PROXY TCP4 203.0.113.7 10.0.0.1 1 80\r\n", "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"] {
        let whole = format!("{proxied}{request}");
        arena.refused(Side::Peer, "S-ICPT-09", whole.as_bytes(), 400).await;
    }
    arena.survived().await;
}

/// S-TLS-01 in front of HTTP: what is no handshake is closed without a byte of HTTP, wherever it is split.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_to_a_strict_port_learns_nothing_at_any_split() {
    let arena = Arena::new("").await;
    let gate = arena.mesh.workload("payments-api").inbound(8080);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for at in (1..request.len()).step_by(4) {
        let before = Before::of(&arena, Side::Peer);
        let stream = TcpStream::connect(gate).await.unwrap();
        arena.came_from(stream.local_addr().unwrap());
        let answer = talk(Box::new(stream), &[&request[..at], &request[at..]], Duration::from_secs(8)).await;
        assert!(answer.is_closed && answer.bytes.is_empty(), "split at {at}: {}", answer.text);
        before.nothing_happened(&arena, "S-TLS-01").await;
    }
    assert_eq!(talk_until(arena.open(Side::Peer, 80).await, request).await.statuses(), [200]);
    arena.survived().await;
}
