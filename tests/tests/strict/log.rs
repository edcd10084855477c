//! S-LOG: what a peer says can spoil no line of the log, secrets are in none, and a log that nobody takes costs no traffic.

use crate::arena::{Arena, Io, read_answer, talk};
use nix::{sys::stat::Mode, unistd::mkfifo};
use postern_proxy::{
    Interception, Sidecar,
    bootstrap::{
        AccessLogSink, JoinToken, JoinTokens,
        access_log::{Audit, Format, Written},
    },
};
use postern_tests::{Request, mesh::within, scenario::policy, up::skipped, workload_api::bootstrap};
use serde_json::Value;
use std::{
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// An arena with another sidecar of checkout-api, whose log goes where the test wants it.
struct Logged {
    arena: Arena,
    sidecar: Sidecar,
    log: PathBuf,
    _folder: Option<TempDir>,
}

impl Logged {
    /// Its log is a file.
    async fn start(lines: Written) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("access.log");
        Self { _folder: Some(folder), ..Self::to(log, lines).await }
    }

    /// Its log is a pipe, of which the other end comes too.
    async fn piped(lines: Written) -> (Self, File) {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).unwrap();
        (Self { _folder: Some(folder), ..Self::to(pipe, lines).await }, reader)
    }

    /// Its log is this file, of whatever kind.
    async fn to(log: PathBuf, lines: Written) -> Self {
        // Of a default deny the explanation tells the rule that came closest, and what failed.
        let rules = "action: ALLOW, rules: [{to: [{operation: {paths: [/denied]}}], \
                     when: [{key: 'request.headers[authorization]', values: [none]}]}, {to: [{operation: {notPaths: [/denied]}}]}]";
        let arena = Arena::new(&policy("denied", rules)).await;
        let mut bootstrap = bootstrap("checkout-api");
        let control = &arena.mesh.control;
        bootstrap.control_plane = control.address().into();
        bootstrap.trust_bundle_pem = control.trust_bundle_pem().into_bytes();
        let token = control.join_token("checkout", "checkout-api", "checkout-api");
        bootstrap.join_token = Some(JoinTokens::Given(JoinToken(token)));
        let service = SocketAddr::from(([10, 96, 0, 1], 80));
        let outbound = vec![("127.0.0.1:0".parse().unwrap(), service)];
        bootstrap.interception = Interception::Explicit { inbound: vec![], outbound };
        bootstrap.access_log = AccessLogSink::File(log.clone());
        bootstrap.access_log_lines = lines;
        let sidecar = postern_proxy::start(bootstrap).await.unwrap();
        within("it is ready", sidecar.ready()).await;
        Self { arena, sidecar, log, _folder: None }
    }

    /// A connection of bytes to the way out.
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.sidecar.addresses().outbound[0]).await.unwrap()
    }

    async fn call(&self, path: &str) -> u16 {
        let through = self.sidecar.addresses().outbound[0];
        Request::new(through, "payments-api.payments").path(path).send().await.unwrap().status
    }

    async fn metric(&self, name: &str) -> f64 {
        let metrics = self.sidecar.addresses().metrics.unwrap();
        let page = Request::new(metrics, "metrics").path("/metrics").send().await.unwrap();
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        let line =
            text.lines().find(|line| line.starts_with(&format!("{name} "))).expect("the metric is there");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// How many lines it says that it has lost.
    async fn dropped(&self) -> f64 {
        self.metric("postern_access_log_dropped_total").await
    }

    /// The lines of its log once there are so many.
    async fn lines(&self, number: usize) -> Vec<String> {
        lines(&self.log, number).await
    }

    /// The line that each attack leaves, which has to be one; with the words that name the attack, and where it came from.
    async fn under_attack(&self, mut check: impl FnMut(&str, &str, SocketAddr)) {
        for (n, attack) in attacks().iter().enumerate() {
            let stream = self.connect().await;
            let from = stream.local_addr().unwrap();
            talk(Box::new(stream), &[attack], Duration::from_secs(8)).await;
            let shown = String::from_utf8_lossy(&attack[..attack.len().min(60)]).into_owned();
            let all = self.lines(n + 1).await;
            assert_eq!(all.len(), n + 1, "S-LOG-01 {shown}: one line each: {all:#?}");
            let line = all.last().unwrap();
            assert!(line.len() < 16 << 10, "S-LOG-01 {shown}: {} bytes", line.len());
            let is_control = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!line.contains(is_control), "S-LOG-01 {shown}: {line:?}");
            check(&shown, line, from);
        }
    }

    /// It stops in time, whatever its log does, and the arena has kept its invariants.
    async fn end(self) {
        let stopping = Instant::now();
        self.sidecar.drain().await;
        assert!(stopping.elapsed() < Duration::from_secs(12), "it takes {:?} to stop", stopping.elapsed());
        self.arena.survived().await;
    }
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
    let logged = Logged::start(Written::default()).await;
    let check = |shown: &str, line: &str, from: SocketAddr| {
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("S-LOG-01 {shown}: {e}: {line}"));
        assert_eq!(value["network.peer.port"], from.port(), "S-LOG-01 {shown}: {line}");
        assert!(value["forged"].is_null() && value["x"].is_null(), "S-LOG-01 {shown}: {line}");
    };
    logged.under_attack(check).await;
    assert_eq!(logged.call("/good").await, 200);
    logged.end().await;
}

/// Line 01, in the formats that Istio has, with the header that attackers like best.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_says_leaves_one_line_of_istio_s_formats_with_all_fields_in_their_places() {
    for format in [Format::IstioText, Format::IstioJson] {
        let agent = "user-agent".parse().unwrap();
        let written = Written { format: Some(format), headers: vec![agent], ..Written::default() };
        let logged = Logged::start(written).await;
        let check = |shown: &str, line: &str, from: SocketAddr| {
            let from = from.to_string();
            if format == Format::IstioJson {
                let value: Value = serde_json::from_str(line).unwrap();
                assert_eq!(value["downstream_remote_address"], from, "{shown}: {line}");
                assert_eq!(value.as_object().unwrap().len(), 24, "{shown}: {line}");
                return;
            }
            let parts: Vec<&str> = line.split('"').collect();
            assert_eq!(parts.len(), 15, "{shown}: seven fields have quotes: {line}");
            assert_eq!(parts[1].split(' ').count(), 3, "{shown}: {line}");
            let last: Vec<&str> = parts[14].split(' ').collect();
            assert_eq!((last.len(), last[4]), (7, from.as_str()), "{shown}: {line}");
        };
        logged.under_attack(check).await;
        assert_eq!(logged.call("/good?token=secret").await, 200);
        let good = logged.lines(attacks().len() + 1).await.pop().unwrap();
        assert!(
            good.contains("/good") && good.contains("via_upstream") && !good.contains("secret"),
            "{good}"
        );
        logged.end().await;
    }
}

/// As logrotate does it, with the sidecar running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_renamed_away_goes_on_in_a_new_file_and_misses_no_line() {
    let logged = Logged::start(Written::default()).await;
    let old = logged.log.with_extension("log.1");
    assert_eq!(logged.call("/before").await, 200);
    logged.lines(1).await;
    std::fs::rename(&logged.log, &old).unwrap();
    assert_eq!(logged.call("/after").await, 200);
    let began = Instant::now();
    while !logged.log.exists() {
        assert!(began.elapsed() < Duration::from_secs(8), "no new file");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (before, after) = (lines(&old, 1).await, logged.lines(1).await);
    assert!(before.len() == 1 && before[0].contains("/before"), "{before:?}");
    assert!(after.len() == 1 && after[0].contains("/after"), "{after:?}");
    logged.end().await;
}

/// What an auditor wants: no call without its line, whatever it costs the callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_lossless_log_calls_wait_for_its_reader_and_each_answered_one_has_its_line() {
    let (logged, reader) = Logged::piped(Written { audit: Audit::Lossless, ..Written::default() }).await;
    let mut kept: Box<dyn crate::arena::Io> = Box::new(logged.connect().await);
    let keep = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
    kept.write_all(&keep("/kept-0")).await.unwrap();
    assert_eq!(read_answer(&mut kept).await.statuses(), [200]);

    let mut answered = 0;
    let held = loop {
        assert!(answered < 4096, "nobody reads, and calls are answered");
        let path = format!("/call-{answered}");
        let mut called = Box::pin(logged.call(&path));
        match tokio::time::timeout(Duration::from_secs(2), &mut called).await {
            Ok(status) => assert_eq!(status, 200),
            // Dropping it would be one more way to end.
            Err(_) => {
                break tokio::time::timeout(Duration::from_secs(30), async {
                    assert!(logged.metric(r#"postern_shed_total{limit="access_log"}"#).await >= 1.0);
                    // A connection from before is held too.
                    kept.write_all(&keep("/kept-1")).await.unwrap();
                    let early =
                        tokio::time::timeout(Duration::from_millis(500), read_answer(&mut kept)).await;
                    assert!(early.is_err(), "answered without room for its line");
                    // One that would leave a line of its own is not even accepted.
                    let stranger = logged.connect().await;
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
    assert_eq!(logged.dropped().await, 0.0);
    logged.end().await;
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

/// Line 02, on both sides, of a call that passes and of one that policy denies by what it says in secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_a_request_are_in_no_line() {
    const CANARY: &str = "canary-7f3a";
    let logged = Logged::start(Written::default()).await;
    let called = logged.arena.mesh.access_log("payments-api");
    let mut open = Vec::new();
    for (number, path, status) in [(1, "/seen", 200), (2, "/denied", 403)] {
        let seen = called.lines().len();
        let request = format!(
            "GET {path}?token={CANARY} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {CANARY}\r\nCookie: session={CANARY}\r\n\
             Proxy-Authorization: Basic {CANARY}\r\nX-Api-Key: {CANARY}\r\nReferer: http://a/?{CANARY}\r\n\r\n"
        );
        let mut stream: Box<dyn Io> = Box::new(logged.connect().await);
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        open.push(stream);
        assert_eq!(answer.statuses(), [status], "{}", answer.text);
        let line = logged.lines(number).await.remove(number - 1);
        assert!(line.contains(path) && !line.contains(CANARY), "S-LOG-02: {line}");
        called.at_least(seen + 1).await;
        let inbound = called.lines()[seen].to_string();
        assert!(inbound.contains(path) && !inbound.contains(CANARY), "S-LOG-02: {inbound}");
    }
    let heard = logged.arena.app().text();
    assert!(heard.contains(CANARY) && !heard.contains("/denied"), "the app has those of the first: {heard}");
    // Nor on any page of either sidecar, while the connections are still there.
    let page = async |address: SocketAddr, page: &str| {
        let answer = Request::new(address, "localhost").path(page).send().await.unwrap();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(
            answer.status == 200 && !text.is_empty() && !text.contains(CANARY),
            "S-ICPT-11: {address} {page}: {text}"
        );
        text
    };
    let (caller, workload) = (logged.sidecar.addresses(), logged.arena.mesh.workload("payments-api"));
    let (callers, called) =
        ((caller.admin.unwrap(), caller.metrics.unwrap()), (workload.admin(), workload.metrics()));
    for (admin, metrics) in [callers, called] {
        for name in ["/config", "/certificates", "/destinations", "/ejections"] {
            page(admin, name).await;
        }
        assert!(page(admin, "/connections").await.contains("\"requests\": 1"), "the calls are on it");
        assert!(page(metrics, "/metrics").await.contains("istio_requests_total{"), "the calls are on it");
        let decisions: Value = serde_json::from_str(&page(admin, "/decisions").await).unwrap();
        let denials = decisions["denials"].as_array().unwrap();
        assert_eq!(denials.len(), usize::from(admin == called.0), "{decisions}");
        for denial in denials {
            let told = page(admin, &format!("/decisions/{}", denial["decision"].as_str().unwrap())).await;
            assert!(told.contains("/denied") && told.contains("authorization"), "{told}");
        }
    }
    logged.end().await;
}

/// Line 03: a reader that reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_costs_no_request() {
    let (logged, reader) = Logged::piped(Written::default()).await;
    costs_no_request(&logged).await;
    assert!(is_full(&reader), "the pipe was to be full");
    logged.end().await;
    drop(reader);
}

/// Line 04: a disk without room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_room_costs_no_request() {
    let logged = Logged::to("/dev/full".into(), Written::default()).await;
    costs_no_request(&logged).await;
    let dropped = async {
        while logged.dropped().await < 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("what was lost is counted", dropped).await;
    logged.end().await;
}

/// Calls whose lines are more than the 64 KiB of a pipe, which has room for about a hundred.
async fn costs_no_request(logged: &Logged) {
    let began = Instant::now();
    for n in 0..400 {
        assert_eq!(logged.call(&format!("/{n}")).await, 200);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?} for 400 calls");
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
    let filler = disk.0.path().join("filler");
    // Room for a page, which is a handful of lines.
    std::fs::write(&filler, vec![0; 56 << 10]).unwrap();
    let log = disk.0.path().join("access.log");
    let logged = Logged::to(log, Written::default()).await;
    let mut calls = 0;
    let full = async {
        while logged.dropped().await < 3.0 {
            assert_eq!(logged.call(&format!("/full-{calls}")).await, 200);
            calls += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), full).await.expect("the disk gets full");
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(logged.call("/room").await, 200);
    let began = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(&logged.log).unwrap();
        if text.contains("/room") && text.ends_with('\n') {
            break text;
        }
        assert!(began.elapsed() < Duration::from_secs(8), "nothing comes: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    let dropped = logged.dropped().await as usize;
    assert_eq!(text.lines().count() + dropped, calls + 1, "each line is in the file or counted");
    logged.end().await;
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
