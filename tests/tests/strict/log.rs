//! S-LOG: what a peer says can spoil no line of the log, secrets are in none, and a log that nobody takes costs no traffic.

use crate::arena::{Arena, read_answer, talk, talk_until};
use nix::{sys::stat::Mode, unistd::mkfifo};
use postern_proxy::{
    Interception, Sidecar,
    bootstrap::{
        AccessLogSink, JoinToken, JoinTokens,
        access_log::{Audit, Format, Written},
    },
};
use postern_tests::{Request, mesh::within, up::skipped, workload_api::bootstrap};
use serde_json::Value;
use std::{
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Another sidecar of checkout-api, whose log goes where the test wants it.
async fn sidecar(arena: &Arena, sink: AccessLogSink) -> Sidecar {
    sidecar_with(arena, sink, Written::default()).await
}

async fn sidecar_with(arena: &Arena, sink: AccessLogSink, lines: Written) -> Sidecar {
    let mut bootstrap = bootstrap("checkout-api");
    let control = &arena.mesh.control;
    bootstrap.control_plane = control.address().into();
    bootstrap.trust_bundle_pem = control.trust_bundle_pem().into_bytes();
    let token = control.join_token("checkout", "checkout-api", "checkout-api");
    bootstrap.join_token = Some(JoinTokens::Given(JoinToken(token)));
    let service = SocketAddr::from(([10, 96, 0, 1], 80));
    bootstrap.interception =
        Interception::Explicit { inbound: vec![], outbound: vec![("127.0.0.1:0".parse().unwrap(), service)] };
    bootstrap.access_log = sink;
    bootstrap.access_log_lines = lines;
    let sidecar = postern_proxy::start(bootstrap).await.unwrap();
    within("it is ready", sidecar.ready()).await;
    sidecar
}

async fn call(sidecar: &Sidecar, path: &str) -> u16 {
    let through = sidecar.addresses().outbound[0];
    Request::new(through, "payments-api.payments").path(path).send().await.unwrap().status
}

async fn metric(sidecar: &Sidecar, name: &str) -> f64 {
    let page = Request::new(sidecar.addresses().metrics.unwrap(), "metrics").path("/metrics").send().await;
    let text = String::from_utf8(page.unwrap().body.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect("the metric is there");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// The lines of a log once there are so many, as they lie in the file.
async fn lines(log: &Path, number: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let text = std::fs::read(log).map(|bytes| String::from_utf8(bytes).expect("UTF-8")).unwrap();
        if text.matches('\n').count() >= number && text.ends_with('\n') {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(began.elapsed() < Duration::from_secs(8), "fewer than {number} lines: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What peers say to spoil a log.
fn attacks() -> Vec<Vec<u8>> {
    let long = |byte: u8, number: usize| vec![byte; number];
    let request = |method: &[u8], target: &[u8], agent: &[u8]| {
        [
            method,
            b" ",
            target,
            b" HTTP/1.1\r\nHost: a\r\nUser-Agent: ",
            agent,
            b"\r\nConnection: close\r\n\r\n",
        ]
        .concat()
    };
    vec![
        request(b"GET", b"/a%0d%0a{\"x\":1}%1b[31m", b"a"),
        request(b"GET", b"/\"quoted\\\"", b"\"},{\"forged\":\"line"),
        request(b"GET", b"/a\nb", b"a"),
        request(b"GET", b"/a\0b", b"a"),
        request(b"GET", b"/\xe2\x80\xae\xff", b"a"),
        request(b"GET", b"/agent", b"\xff\xfe\xe2\x80\xae right to left"),
        request(b"GET", b"/agent", b"esc \x1b[2J"),
        request(b"GET", b"/agent", &long(b'"', 30 << 10)),
        request(b"GET", &[b"/".to_vec(), long(b'\\', 7 << 10)].concat(), b"a"),
        request(b"GET", &[b"/".to_vec(), long(b'p', 64 << 10)].concat(), b"a"),
        request(&long(b'M', 4 << 10), b"/method", b"a"),
        request(b"G\"T", b"/method", b"a"),
        request(b"GET", b"/host", b"a\r\nx-request-id: {\"forged\":\"\\n\"}"),
        b"\x16\x03\x01\xff\xff\x01 no TLS, no HTTP\r\n\r\n".to_vec(),
    ]
}

/// Line 01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_says_leaves_one_short_line_of_json() {
    let arena = Arena::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let sidecar = sidecar(&arena, AccessLogSink::File(log.clone())).await;
    for (n, attack) in attacks().iter().enumerate() {
        let stream = TcpStream::connect(sidecar.addresses().outbound[0]).await.unwrap();
        let from = stream.local_addr().unwrap();
        talk(Box::new(stream), &[attack], Duration::from_secs(8)).await;
        let shown = String::from_utf8_lossy(&attack[..attack.len().min(60)]).into_owned();
        let all = lines(&log, n + 1).await;
        assert_eq!(all.len(), n + 1, "S-LOG-01 {shown}: one line each: {all:#?}");
        let line = all.last().unwrap();
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("S-LOG-01 {shown}: {e}: {line}"));
        assert_eq!(value["network.peer.port"], from.port(), "S-LOG-01 {shown}: {line}");
        assert!(value["forged"].is_null() && value["x"].is_null(), "S-LOG-01 {shown}: {line}");
        assert!(line.len() < 16 << 10, "S-LOG-01 {shown}: {} bytes", line.len());
        let is_control = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!line.contains(is_control), "S-LOG-01 {shown}: {line:?}");
    }
    assert_eq!(call(&sidecar, "/good").await, 200);
    sidecar.drain().await;
    arena.survived().await;
}

/// Line 01, in the formats that Istio has, with the header that attackers like best.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_says_leaves_one_line_of_istio_s_formats_with_all_fields_in_their_places() {
    let arena = Arena::new("").await;
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::IstioText, Format::IstioJson] {
        let log = folder.path().join(format!("{format:?}.log"));
        let agent = "user-agent".parse().unwrap();
        let written = Written { format: Some(format), headers: vec![agent], ..Written::default() };
        let sidecar = sidecar_with(&arena, AccessLogSink::File(log.clone()), written).await;
        for (n, attack) in attacks().iter().enumerate() {
            let stream = TcpStream::connect(sidecar.addresses().outbound[0]).await.unwrap();
            let from = stream.local_addr().unwrap().to_string();
            talk(Box::new(stream), &[attack], Duration::from_secs(8)).await;
            let shown = String::from_utf8_lossy(&attack[..attack.len().min(60)]).into_owned();
            let all = lines(&log, n + 1).await;
            assert_eq!(all.len(), n + 1, "{format:?} {shown}: one line each: {all:#?}");
            let line = all.last().unwrap();
            let is_control = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!line.contains(is_control) && line.len() < 16 << 10, "{format:?} {shown}: {line:?}");
            if format == Format::IstioJson {
                let value: Value = serde_json::from_str(line).unwrap();
                assert_eq!(value["downstream_remote_address"], from, "{shown}: {line}");
                assert_eq!(value.as_object().unwrap().len(), 24, "{shown}: {line}");
                continue;
            }
            let parts: Vec<&str> = line.split('"').collect();
            assert_eq!(parts.len(), 15, "{shown}: seven fields have quotes: {line}");
            assert_eq!(parts[1].split(' ').count(), 3, "{shown}: {line}");
            let last: Vec<&str> = parts[14].split(' ').collect();
            assert_eq!((last.len(), last[4]), (7, from.as_str()), "{shown}: {line}");
        }
        assert_eq!(call(&sidecar, "/good?token=secret").await, 200);
        let good = lines(&log, attacks().len() + 1).await.pop().unwrap();
        assert!(
            good.contains("/good") && good.contains("via_upstream") && !good.contains("secret"),
            "{good}"
        );
        sidecar.drain().await;
    }
    arena.survived().await;
}

/// As logrotate does it, with the sidecar running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_renamed_away_goes_on_in_a_new_file_and_misses_no_line() {
    let arena = Arena::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let (log, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let sidecar = sidecar(&arena, AccessLogSink::File(log.clone())).await;
    assert_eq!(call(&sidecar, "/before").await, 200);
    lines(&log, 1).await;
    std::fs::rename(&log, &old).unwrap();
    assert_eq!(call(&sidecar, "/after").await, 200);
    let began = Instant::now();
    while !log.exists() {
        assert!(began.elapsed() < Duration::from_secs(8), "no new file");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (before, after) = (lines(&old, 1).await, lines(&log, 1).await);
    assert!(before.len() == 1 && before[0].contains("/before"), "{before:?}");
    assert!(after.len() == 1 && after[0].contains("/after"), "{after:?}");
    sidecar.drain().await;
    arena.survived().await;
}

/// What an auditor wants: no call without its line, whatever it costs the callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_lossless_log_calls_wait_for_its_reader_and_each_answered_one_has_its_line() {
    let arena = Arena::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).unwrap();
    let written = Written { audit: Audit::Lossless, ..Written::default() };
    let sidecar = sidecar_with(&arena, AccessLogSink::File(pipe), written).await;
    let kept = TcpStream::connect(sidecar.addresses().outbound[0]).await.unwrap();
    let mut kept: Box<dyn crate::arena::Io> = Box::new(kept);
    let keep = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
    kept.write_all(&keep("/kept-0")).await.unwrap();
    assert_eq!(read_answer(&mut kept).await.statuses(), [200]);

    let mut answered = 0;
    let held = loop {
        assert!(answered < 4096, "nobody reads, and calls are answered");
        let path = format!("/call-{answered}");
        let mut called = Box::pin(call(&sidecar, &path));
        match tokio::time::timeout(Duration::from_secs(2), &mut called).await {
            Ok(status) => assert_eq!(status, 200),
            // Dropping it would be one more way to end.
            Err(_) => {
                break tokio::time::timeout(Duration::from_secs(30), async {
                    assert!(metric(&sidecar, r#"postern_shed_total{limit="access_log"}"#).await >= 1.0);
                    // A connection from before is held too.
                    kept.write_all(&keep("/kept-1")).await.unwrap();
                    let early =
                        tokio::time::timeout(Duration::from_millis(500), read_answer(&mut kept)).await;
                    assert!(early.is_err(), "answered without room for its line");
                    // One that would leave a line of its own is not even accepted.
                    let stranger = TcpStream::connect(sidecar.addresses().outbound[0]).await.unwrap();
                    let noise = b"\x16\x03\x01\xff\xff\x01 no HTTP\r\n\r\n";
                    let answer = talk(Box::new(stranger), &[noise], Duration::from_millis(500)).await;
                    assert!(!answer.is_closed, "accepted without room for its line");
                    let reading = tokio::task::spawn_blocking(move || read_until(&reader, "/kept-1"));
                    assert_eq!(called.await, 200, "it goes on");
                    assert_eq!(read_answer(&mut kept).await.statuses(), [200]);
                    reading.await.unwrap()
                })
                .await
                .expect("all goes on when the reader reads");
            }
        }
        answered += 1;
    };
    for n in 0..=answered {
        let (path, times) = (format!(r#""url.path":"/call-{n}""#), 1);
        assert_eq!(held.matches(&path).count(), times, "of {answered}: {path}");
    }
    assert_eq!(metric(&sidecar, "postern_access_log_dropped_total").await, 0.0);
    sidecar.drain().await;
    arena.survived().await;
}

/// All that comes through a pipe until it has said so.
fn read_until(mut pipe: &File, last: &str) -> String {
    use std::io::Read;
    let (mut text, mut buffer, began) = (Vec::new(), vec![0; 64 << 10], Instant::now());
    while !String::from_utf8_lossy(&text).contains(last) || text.last() != Some(&b'\n') {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", String::from_utf8_lossy(&text));
        match pipe.read(&mut buffer) {
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    String::from_utf8(text).unwrap()
}

/// Line 02, on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_a_request_are_in_no_line() {
    const CANARY: &str = "canary-7f3a";
    let arena = Arena::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let sidecar = sidecar(&arena, AccessLogSink::File(log.clone())).await;
    let seen = arena.mesh.access_log("payments-api").lines().len();
    let request = format!(
        "GET /seen?token={CANARY} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {CANARY}\r\nCookie: session={CANARY}\r\n\
         Proxy-Authorization: Basic {CANARY}\r\nX-Api-Key: {CANARY}\r\nReferer: http://a/?{CANARY}\r\n\r\n"
    );
    let stream = TcpStream::connect(sidecar.addresses().outbound[0]).await.unwrap();
    let answer = talk_until(Box::new(stream), request.as_bytes()).await;
    assert_eq!(answer.statuses(), [200], "{}", answer.text);
    assert!(arena.app().text().contains(CANARY), "the app has them");
    let line = lines(&log, 1).await.remove(0);
    assert!(line.contains("/seen") && !line.contains(CANARY), "S-LOG-02: {line}");
    arena.mesh.access_log("payments-api").at_least(seen + 1).await;
    let inbound = arena.mesh.access_log("payments-api").lines()[seen].to_string();
    assert!(inbound.contains("/seen") && !inbound.contains(CANARY), "S-LOG-02: {inbound}");
    sidecar.drain().await;
    arena.survived().await;
}

/// Lines 03 and 04: a reader that reads nothing, and a disk without room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_takes_costs_no_request() {
    let arena = Arena::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).unwrap();
    for (what, sink) in [("S-LOG-03", pipe.as_path()), ("S-LOG-04", Path::new("/dev/full"))] {
        let sidecar = sidecar(&arena, AccessLogSink::File(sink.to_owned())).await;
        // A pipe takes 64 KiB, about a hundred lines.
        let began = Instant::now();
        for n in 0..400 {
            assert_eq!(call(&sidecar, &format!("/{n}")).await, 200, "{what}");
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{what}: {took:?} for 400 calls");
        if what == "S-LOG-04" {
            let dropped = async {
                while metric(&sidecar, "postern_access_log_dropped_total").await < 1.0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            within("what was lost is counted", dropped).await;
        } else {
            assert!(is_full(&reader), "the pipe was to be full");
        }
        let stopping = Instant::now();
        sidecar.drain().await;
        assert!(stopping.elapsed() < Duration::from_secs(12), "{what}: it stops all the same");
    }
    drop(reader);
    arena.survived().await;
}

/// A disk of 64 KiB, which only root can make.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder.path());
        mount.output().is_ok_and(|done| done.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Line 04 with a disk that gets room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_for_a_while_costs_lines_that_are_counted_and_breaks_none() {
    let Some(disk) = SmallDisk::mount() else {
        return skipped("no file system can be mounted here (run as root)");
    };
    let arena = Arena::new("").await;
    let (log, filler) = (disk.0.path().join("access.log"), disk.0.path().join("filler"));
    // Room for a page, which is a handful of lines.
    std::fs::write(&filler, vec![0; 56 << 10]).unwrap();
    let sidecar = sidecar(&arena, AccessLogSink::File(log.clone())).await;
    let mut calls = 0;
    let full = async {
        while metric(&sidecar, "postern_access_log_dropped_total").await < 3.0 {
            assert_eq!(call(&sidecar, &format!("/full-{calls}")).await, 200);
            calls += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), full).await.expect("the disk gets full");
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(call(&sidecar, "/room").await, 200);
    let began = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if text.contains("/room") && text.ends_with('\n') {
            break text;
        }
        assert!(began.elapsed() < Duration::from_secs(8), "nothing comes: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    let dropped = metric(&sidecar, "postern_access_log_dropped_total").await as usize;
    assert_eq!(text.lines().count() + dropped, calls + 1, "each line is in the file or counted");
    sidecar.drain().await;
    arena.survived().await;
}

/// Whether a pipe holds as much as it can, give or take a line.
fn is_full(pipe: &File) -> bool {
    use std::io::Read;
    let mut pipe = pipe;
    let (mut buffer, mut held) = (vec![0; 64 << 10], 0);
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        held += count;
    }
    held >= 60 << 10
}
