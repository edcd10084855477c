//! The limits, shortened: who drips, waits, floods, or does not read, is ended with one line; who behaves is not.
use super::*;
use crate::{
    bootstrap::AccessLogSink,
    telemetry,
    traffic::{Limits, governor::Level},
};
use std::net::IpAddr;
use tokio::sync::mpsc;

pub const SHORT: Duration = Duration::from_millis(250);
/// Far longer than anything that is waited for here.
pub const LONG: Duration = Duration::from_secs(20);
pub const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

/// The inbound side of one sidecar before an app.
pub struct Gate {
    pub address: SocketAddr,
    pub app: App,
    shared: Arc<Shared>,
    lines: mpsc::Receiver<String>,
    _trigger: drain::Trigger,
    _writers: telemetry::Writers,
}

pub async fn gate(app: App, mode: MtlsMode, limits: Limits, resources: Resources) -> Gate {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arrival::Fixed(app.address)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sink, lines) = mpsc::channel(64);
    let options = telemetry::Options {
        access_log: AccessLogSink::Channel(sink),
        otel: Default::default(),
        access_log_lines: Default::default(),
        service: "payments-api".into(),
    };
    let (telemetry, writers) = Telemetry::start(options).unwrap();
    let store = Arc::new(Store::default());
    store.publish_credentials(Authority::new().credentials(PAYMENTS)).unwrap();
    let spec = spec(app.address.port(), mode, Protocol::Http, vec![]);
    store.publish_inbound(Inbound { version: "1".into(), snapshot: Snapshot::compile(spec).unwrap() });
    let (trigger, drain) = drain::channel();
    let shared = Arc::new(Shared {
        store,
        destinations: Destinations::new(Bounds::default(), telemetry.clone()),
        telemetry,
        settings: Settings { limits, ..Settings::default() },
        governor: Governor::new(resources),
        drain,
    });
    spawn_local(inbound::serve(listener, shared.clone()));
    Gate { address, app, shared, lines, _trigger: trigger, _writers: writers }
}

impl Gate {
    async fn plain(limits: Limits) -> Self {
        gate(app().await, MtlsMode::Disable, limits, Resources::default()).await
    }

    /// The next line of the log.
    async fn line(&mut self) -> serde_json::Value {
        let line = tokio::time::timeout(LONG, self.lines.recv()).await.expect("a line in time").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// How often this limit was reached.
    fn shed(&self, limit: &str) -> u64 {
        let text = self.shared.telemetry.metrics().encode(std::time::SystemTime::now());
        let name = format!("postern_shed_total{{limit=\"{limit}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
    }

    /// Resolves when the listener has paused twice more: whoever waited before the first of them was not taken.
    async fn paused(&self, limit: &str) {
        let before = self.shed(limit);
        let paused = async {
            while self.shed(limit) < before + 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, paused).await.expect("the pause is counted");
    }
}

/// What comes back until the other side closes; in time.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut read)).await.expect("an end in time");
    String::from_utf8_lossy(&read).into_owned()
}

pub async fn open(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// One answer with a length, on a connection that goes on.
pub async fn answer(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        if let (Some(end), Some(length)) = (text.find("\r\n\r\n"), length)
            && read.len() >= end + 4 + length.parse::<usize>().unwrap()
        {
            return text;
        }
        let count = tokio::time::timeout(LONG, stream.read_buf(&mut read)).await.expect("in time").unwrap();
        assert!(count > 0, "closed after {text}");
    }
}

#[tokio::test]
async fn a_head_that_is_not_complete_in_time_is_answered_408_first_or_later() {
    let run = async {
        let mut gate = Gate::plain(Limits { first_request: SHORT, ..Limits::default() }).await;
        let mut slow = open(gate.address, b"GET /slow HT").await;
        let told = rest(&mut slow).await;
        assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("connection: close"), "{told}");
        let line = gate.line().await;
        assert!(
            line["http.response.status_code"] == 408
                && line["postern.flags"] == "DT"
                && line["postern.reason"].is_string(),
            "{line}"
        );
        assert!(gate.app.seen.borrow().is_empty());

        let mut gate = Gate::plain(Limits { head: SHORT, ..Limits::default() }).await;
        let mut good = open(gate.address, GET).await;
        assert!(answer(&mut good).await.starts_with("HTTP/1.1 200 "));
        good.write_all(b"GET /late HTTP/1.1\r\nHo").await.unwrap();
        assert!(rest(&mut good).await.starts_with("HTTP/1.1 408 "), "the head of a second request");
        assert_eq!(gate.line().await["http.response.status_code"], 200);
        let line = gate.line().await;
        assert!(line["http.response.status_code"] == 408 && line["postern.reason"].is_string(), "{line}");
        assert_eq!(gate.app.seen.borrow().len(), 1);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_body_that_pauses_too_long_is_answered_408_and_never_completed_towards_the_app() {
    let run = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = App { address: listener.local_addr().unwrap(), seen: Rc::default() };
        let heard = spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            rest(&mut stream).await
        });
        let limits = Limits { body: SHORT, ..Limits::default() };
        let mut gate = gate(app, MtlsMode::Disable, limits, Resources::default()).await;
        let head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        let mut slow = open(gate.address, head).await;
        let told = rest(&mut slow).await;
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
        let heard = heard.await.unwrap();
        assert!(heard.contains("abc") && !heard.contains("0\r\n\r\n"), "never completed: {heard}");
        let line = gate.line().await;
        assert!(line["http.response.status_code"] == 408 && line["postern.flags"] == "DT", "{line}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word_and_a_silent_one_after_its_deadline() {
    let run = async {
        let mut gate = Gate::plain(Limits { next_request: SHORT, ..Limits::default() }).await;
        let mut idle = open(gate.address, GET).await;
        assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(rest(&mut idle).await, "");
        assert_eq!(gate.line().await["http.response.status_code"], 200);
        let mut gate = Gate::plain(Limits { first_request: SHORT, ..Limits::default() }).await;
        let mut silent = open(gate.address, b"").await;
        assert_eq!(rest(&mut silent).await, "");
        assert_eq!(gate.line().await["postern.flags"], "DT");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_loses_its_connection_and_the_app_is_freed() {
    let run = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = App { address: listener.local_addr().unwrap(), seen: Rc::default() };
        let freed = spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
            while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
        });
        let limits = Limits { stalled: SHORT, ..Limits::default() };
        let mut gate = gate(app, MtlsMode::Disable, limits, Resources::default()).await;
        let unread = open(gate.address, GET).await;
        tokio::time::timeout(LONG, freed).await.expect("the app is freed in time").unwrap();
        let line = gate.line().await;
        assert!(line["http.response.status_code"] == 200 && line["postern.reason"].is_string(), "{line}");
        drop(unread);
    };
    LocalSet::new().run_until(run).await;
}

/// S-H2-09: no window, or a window that is used up and never opened again.
#[tokio::test]
async fn a_client_of_http2_that_opens_no_window_loses_its_connection_and_the_app_is_freed() {
    let run = async {
        for window in [0_u32, 1000] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let app = App { address: listener.local_addr().unwrap(), seen: Rc::default() };
            let freed = spawn_local(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
                while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
            });
            let limits = Limits { stalled: SHORT, ..Limits::default() };
            let mut gate = gate(app, MtlsMode::Disable, limits, Resources::default()).await;
            // SETTINGS_INITIAL_WINDOW_SIZE, and a GET of literal header fields.
            let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04".to_vec();
            hello.extend(window.to_be_bytes());
            hello.extend(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x84\x86\x41\x01a");
            let mut unread = open(gate.address, &hello).await;
            tokio::time::timeout(LONG, freed).await.expect("the app is freed in time").unwrap();
            let _ = rest(&mut unread).await;
            let line = gate.line().await;
            assert!(line["http.response.status_code"] == 200 && line["postern.reason"].is_string(), "{line}");
        }
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn one_source_takes_its_places_and_no_more() {
    let run = async {
        let mut gate = Gate::plain(Limits { connections_per_source: 2, ..Limits::default() }).await;
        let mut first = open(gate.address, GET).await;
        assert!(answer(&mut first).await.starts_with("HTTP/1.1 200 "));
        let mut second = open(gate.address, GET).await;
        assert!(answer(&mut second).await.starts_with("HTTP/1.1 200 "));
        let mut third = open(gate.address, GET).await;
        assert_eq!(rest(&mut third).await, "", "reset before anything was read");
        assert_eq!(gate.shed("source"), 1);
        // Its twin comes from another address.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(IpAddr::from([127, 0, 0, 77]), 0)).unwrap();
        let mut other = socket.connect(gate.address).await.unwrap();
        other.write_all(GET).await.unwrap();
        assert!(answer(&mut other).await.starts_with("HTTP/1.1 200 "));
        // Who is in stays in, and a place that is left can be taken.
        first.write_all(GET).await.unwrap();
        assert!(answer(&mut first).await.starts_with("HTTP/1.1 200 "));
        let mut refused = 0;
        for _ in 0..5 {
            let line = gate.line().await;
            refused += usize::from(line["postern.flags"] == "OM" && line["postern.reason"].is_string());
        }
        assert_eq!(refused, 1, "one line for the refused connection");
        assert_eq!(gate.app.seen.borrow().len(), 4);
    };
    LocalSet::new().run_until(run).await;
}

/// A tunnel is no way around the places: it keeps those of the connection that it began as.
#[tokio::test]
async fn a_tunnel_keeps_its_place_among_the_connections_of_its_source_and_of_all() {
    let run = async {
        let ask = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let switched = async |address| {
            let mut stream = open(address, ask).await;
            let mut read = Vec::new();
            while !read.ends_with(b"hello") {
                let count = tokio::time::timeout(LONG, stream.read_buf(&mut read)).await.expect("in time");
                assert!(count.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
            }
            stream
        };
        let gate = Gate::plain(Limits { connections_per_source: 1, ..Limits::default() }).await;
        let tunnel = switched(gate.address).await;
        let mut second = open(gate.address, GET).await;
        assert_eq!(rest(&mut second).await, "");
        assert_eq!(gate.shed("source"), 1);
        drop(tunnel);

        let resources = Resources { descriptors: Some(45), memory: None };
        let gate = self::gate(app().await, MtlsMode::Disable, Limits::default(), resources).await;
        let tunnels = [switched(gate.address).await, switched(gate.address).await];
        let mut third = open(gate.address, GET).await;
        gate.paused("descriptors").await;
        assert_eq!(gate.app.seen.borrow().len(), 2);
        drop(tunnels);
        assert!(answer(&mut third).await.starts_with("HTTP/1.1 200 "));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn connections_that_prove_nothing_do_not_keep_others_of_their_source_out_for_long() {
    let run = async {
        let limits = Limits { first_request: SHORT, unproven_per_source: 2, ..Limits::default() };
        let mut gate = gate(app().await, MtlsMode::Strict, limits, Resources::default()).await;
        let mut silent = [open(gate.address, b"").await, open(gate.address, b"\x16\x03\x01").await];
        // Both are in when the third is refused: the kernel hands them out in order.
        let mut third = open(gate.address, b"").await;
        assert_eq!(rest(&mut third).await, "");
        assert_eq!(gate.shed("unproven"), 1);
        for stream in &mut silent {
            assert_eq!(rest(stream).await, "");
        }
        let flags: Vec<_> = [gate.line().await, gate.line().await, gate.line().await]
            .iter()
            .map(|line| line["postern.flags"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(flags, ["OM", "DT", "DT"]);
        let mut fourth = open(gate.address, b"").await;
        assert_eq!(rest(&mut fourth).await, "");
        assert_eq!(gate.line().await["postern.flags"], "DT", "its own deadline, not somebody else's place");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn short_of_memory_new_requests_are_refused_and_then_nothing_is_accepted() {
    let run = async {
        let resources = Resources { descriptors: None, memory: Some(1000 << 20) };
        let mut gate = gate(app().await, MtlsMode::Disable, Limits::default(), resources).await;
        let governor = gate.shared.governor.clone();
        let mut stream = open(gate.address, GET).await;
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
        governor.note(900 << 20);
        stream.write_all(GET).await.unwrap();
        let refused = rest(&mut stream).await;
        assert_eq!(gate.shed("memory"), 1);
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("overloaded"), "{refused}");
        assert_eq!(gate.app.seen.borrow().len(), 1);
        governor.note(950 << 20);
        assert_eq!(governor.level(), Level::Full);
        // The kernel takes it; we do not.
        let mut waiting = open(gate.address, GET).await;
        gate.paused("memory").await;
        assert_eq!(gate.app.seen.borrow().len(), 1);
        governor.note(100 << 20);
        assert!(
            answer(&mut waiting).await.starts_with("HTTP/1.1 200 "),
            "and it is served when there is room"
        );
        assert_eq!(gate.line().await["http.response.status_code"], 200);
        let line = gate.line().await;
        assert!(line["http.response.status_code"] == 503 && line["postern.flags"] == "OM", "{line}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn connections_beyond_the_share_of_descriptors_wait_for_a_place() {
    let run = async {
        let resources = Resources { descriptors: Some(45), memory: None };
        let gate = gate(app().await, MtlsMode::Disable, Limits::default(), resources).await;
        let mut two = [open(gate.address, GET).await, open(gate.address, GET).await];
        for stream in &mut two {
            assert!(answer(stream).await.starts_with("HTTP/1.1 200 "));
        }
        let mut third = open(gate.address, GET).await;
        gate.paused("descriptors").await;
        assert_eq!(gate.app.seen.borrow().len(), 2);
        // Who is in goes on, and who waits gets the place that is left.
        let [mut first, second] = two;
        first.write_all(GET).await.unwrap();
        assert!(answer(&mut first).await.starts_with("HTTP/1.1 200 "));
        drop(second);
        assert!(answer(&mut third).await.starts_with("HTTP/1.1 200 "));
    };
    LocalSet::new().run_until(run).await;
}
