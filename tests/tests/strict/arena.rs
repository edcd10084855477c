//! Where the attacks happen: two sidecars, an app of bytes behind one of them, a client of bytes on either side; and the seven
//! invariants that every refused row must keep.

use postern_identity::{Accept, Bundle, TrustBundles, tls};
use postern_tests::{
    AccessLog, Mesh, Raw,
    certificates::{Leaf, Signer},
    mesh::Settings,
    scenario::{mode, payments},
};
use rustls_pki_types::ServerName;
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
};

/// The identity of the peer, which policy lets in.
pub const PEER: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
/// Longer than any honest exchange here; a connection that is still open then stays open.
const PATIENCE: Duration = Duration::from_secs(8);

/// Memory is measured, so one arena at a time.
static ONE: Mutex<()> = Mutex::const_new(());

/// From where an attack comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The app of checkout-api, in clear, to its own sidecar.
    App,
    /// A workload with a certificate of the mesh, to the sidecar of payments-api.
    Peer,
    /// The app of checkout-api again, but what it calls has no sidecar: its own speaks with that app, and nobody else does.
    Bare,
}

pub const BOTH: [Side; 2] = [Side::App, Side::Peer];
/// Where a hostile upstream may stand: behind both sidecars, behind the inbound one, behind the outbound one.
pub const UPSTREAMS: [Side; 3] = [Side::App, Side::Peer, Side::Bare];

/// A pod outside of injection, whose app is bytes too.
const BARE: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: outside, labels: {app: bare}}\n\
    spec: {containers: [{name: app, command: [none], ports: [{name: http-raw, containerPort: 8080}]}]}\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: {name: bare, namespace: outside}\n\
    spec: {selector: {app: bare}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";

/// A connection of bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What came back on a connection.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    pub bytes: Vec<u8>,
    /// The sidecar has closed, in order or not.
    pub is_closed: bool,
    /// It was a reset, or TLS ended without its closing alert.
    pub is_abrupt: bool,
}

impl Answer {
    /// The statuses of all answers, in order.
    pub fn statuses(&self) -> Vec<u16> {
        let heads = self.text.match_indices("HTTP/1.");
        heads.filter_map(|(at, _)| self.text.get(at + 9..at + 12)?.parse().ok()).collect()
    }
}

pub struct Arena {
    pub mesh: Mesh,
    /// What the mesh was made of.
    pub yaml: String,
    signer: Signer,
    rss: usize,
    /// Our end of the last connection, by which its lines are found.
    last: std::sync::Mutex<Option<SocketAddr>>,
    /// Connections that were to leave exactly one line.
    logged: std::sync::Mutex<Vec<(Side, SocketAddr)>>,
    _folder: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Arena {
    /// payments-api in STRICT mode, with these policies; its ports 8080 (HTTP) and 8081 (undeclared) are bytes.
    pub async fn new(policies: &str) -> Self {
        Self::with(policies, Settings::default()).await
    }

    /// The same, with what else differs.
    pub async fn with(policies: &str, settings: Settings) -> Self {
        Self::annotated(policies, settings, &[]).await
    }

    /// The same, where pods have this list of upgrades.
    pub async fn annotated(policies: &str, settings: Settings, upgrades: &[(&str, &str)]) -> Self {
        let one = ONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("authority");
        let yaml = payments(&(mode("payments", "STRICT") + BARE + policies)).replace(
            "{name: http, containerPort: 8080}, {name: web, containerPort: 8081}",
            "{name: http-raw, containerPort: 8080}, {name: raw, containerPort: 8081}",
        );
        let yaml = upgrades.iter().fold(yaml, |yaml, (pod, list)| {
            let labels = format!("labels: {{app: {pod}}}}}\nspec:\n  serviceAccountName");
            let annotated =
                labels.replace("}}", &format!("}}, annotations: {{postern.dev/upgrades: '{list}'}}}}"));
            yaml.replace(&labels, &annotated)
        });
        let settings = Settings { state: Some(state.clone()), ..settings };
        let mesh = Mesh::start_with(&yaml, settings).await;
        let signer = Signer::of_mesh(&state, folder.path());
        let (last, logged) = Default::default();
        let mut arena = Self { mesh, yaml, signer, rss: 0, last, logged, _folder: folder, _one: one };
        // What is made at first use is no growth, and takes the time it takes on a busy machine.
        for side in UPSTREAMS {
            let warm = talk_until(arena.open(side, 80).await, b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(warm.statuses(), [200], "{}", warm.text);
        }
        // Nor is a line that comes late one of what follows: each sidecar has seen two of the three.
        for side in BOTH {
            arena.log(side).at_least(2).await;
        }
        arena.rss = rss();
        arena
    }

    /// The app of payments-api.
    pub fn app(&self) -> &Raw {
        &self.mesh.workload("payments-api").raw
    }

    /// The app that is called from there.
    pub fn app_of(&self, side: Side) -> &Raw {
        match side {
            Side::App | Side::Peer => self.app(),
            Side::Bare => &self.mesh.workload("bare").raw,
        }
    }

    /// The access log of the sidecar that is attacked.
    pub fn log(&self, side: Side) -> &AccessLog {
        match side {
            Side::App | Side::Bare => self.mesh.access_log("checkout-api"),
            Side::Peer => self.mesh.access_log("payments-api"),
        }
    }

    fn entry(&self, side: Side, port: u16) -> SocketAddr {
        match side {
            Side::App => self.mesh.entry("checkout-api", &format!("payments-api:{port}")).0,
            Side::Bare => self.mesh.entry("checkout-api", &format!("bare:{port}")).0,
            Side::Peer => self.mesh.workload("payments-api").inbound(port + 8000),
        }
    }

    /// A connection to port 80 (HTTP) or 81 (undeclared) of the service.
    pub async fn open(&self, side: Side, port: u16) -> Box<dyn Io> {
        let alpn: &[&[u8]] = &[b"istio-http/1.1", b"istio", b"http/1.1"];
        self.open_as(side, port, alpn, None).await
    }

    /// The same for HTTP/2.
    pub async fn open_h2(&self, side: Side) -> Box<dyn Io> {
        self.open_as(side, 80, &[b"istio-h2", b"istio", b"h2"], None).await
    }

    /// With a server name of the caller's choice.
    pub async fn open_as(&self, side: Side, port: u16, alpn: &[&[u8]], sni: Option<&str>) -> Box<dyn Io> {
        let to = self.entry(side, port);
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        self.came_from(stream.local_addr().unwrap());
        if side != Side::Peer {
            return Box::new(stream);
        }
        let key = self.signer.issue(&Leaf::good(PEER), |_| {});
        let pem = self.mesh.control.trust_bundle_pem().into_bytes();
        let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), &pem).unwrap();
        let trust = Arc::new(TrustBundles::from_iter([bundle]));
        let accept = Accept::trust_domain("cluster.local".parse().unwrap());
        let config = tls::client_config(Some(key), trust, accept, alpn).unwrap();
        let name = match sni {
            Some(name) => ServerName::try_from(name.to_owned()).unwrap(),
            None => ServerName::IpAddress(to.ip().into()),
        };
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        Box::new(stream)
    }

    /// The next row's line in the log is the one of this connection.
    pub fn came_from(&self, address: SocketAddr) {
        *self.last.lock().unwrap() = Some(address);
    }

    /// Sends these pieces, each in a write of its own, keeps its half open, and reads until the sidecar closes or falls silent.
    pub async fn say(&self, side: Side, pieces: &[&[u8]]) -> Answer {
        let stream = self.open(side, 80).await;
        talk(stream, pieces, PATIENCE).await
    }

    /// One refused row: this status (0: no answer at all) and a close, and all seven invariants.
    pub async fn refused(&self, side: Side, line: &str, bytes: &[u8], status: u16) {
        let what = what(line, side, bytes);
        let before = Before::of(self, side);
        let answer = self.say(side, &[bytes]).await;
        let wanted: Vec<u16> = Some(status).filter(|status| *status > 0).into_iter().collect();
        assert_eq!(answer.statuses(), wanted, "{what}: {}", answer.text);
        assert!(answer.is_closed, "I7, {what}: the connection must close: {}", answer.text);
        before.nothing_happened(self, &what).await;
    }

    /// One row that is denied by policy: 403, nothing arrives, and the connection may go on.
    pub async fn denied(&self, side: Side, line: &str, bytes: &[u8]) {
        let what = what(line, side, bytes);
        let before = Before::of(self, side);
        let answer = talk_until(self.open(side, 80).await, bytes).await;
        assert_eq!(answer.statuses(), [403], "{what}: {}", answer.text);
        before.nothing_happened(self, &what).await;
    }

    /// One row that passes: the app gets one complete request, and its line and path are what the log says (I2).
    pub async fn passes(&self, side: Side, line: &str, bytes: &[u8]) -> String {
        let what = what(line, side, bytes);
        let (complete, heard) = (self.app().complete(), self.app().bytes().len());
        let lines = self.mesh.access_log("payments-api").lines().len();
        let answer = talk_until(self.open(side, 80).await, bytes).await;
        assert_eq!(answer.statuses(), [200], "{what}: {}", answer.text);
        self.app().until(&what, |all| all.iter().map(|h| h.complete).sum::<usize>() > complete).await;
        assert_eq!(self.app().complete(), complete + 1, "{what}");
        let got = String::from_utf8_lossy(&self.app().bytes()[heard..]).into_owned();
        let log = self.mesh.access_log("payments-api");
        let target = got.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        // The log cuts a long path. Lines of rows before this one may come late, so it is looked for by what the app got.
        let seen = &path[..path.len().min(2048)];
        let what = format!("I2, {what}: policy must have seen {seen}");
        let is_it = |line: &Value| line["http.response.status_code"] == 200 && line["url.path"] == seen;
        log.until(&what, |all| all[lines..].iter().any(is_it)).await;
        got
    }

    /// I4: the line of the last connection. That it is the only one is seen at the end.
    pub async fn one_line(&self, side: Side, what: &str) -> Value {
        let from = self.last.lock().unwrap().unwrap();
        self.logged.lock().unwrap().push((side, from));
        self.log(side).next_matching(what, |line| is_from(line, side, from)).await
    }

    /// A line of the last connection with a reason, where others may stand beside it.
    pub async fn reasoned_line(&self, side: Side, what: &str) -> Value {
        let from = self.last.lock().unwrap().unwrap();
        let is_it = |line: &Value| is_from(line, side, from) && line["postern.reason"].is_string();
        self.log(side).next_matching(what, is_it).await
    }

    /// I6: no panic, and a good request on a new connection is answered within a second, from every side.
    pub async fn is_well(&self) {
        for side in UPSTREAMS {
            let good = talk_until(self.open(side, 80).await, b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = tokio::time::timeout(Duration::from_secs(1), good).await;
            let answer = answer.unwrap_or_else(|_| panic!("I6: no answer within a second on {side:?}"));
            assert_eq!(answer.statuses(), [200], "I6: {}", answer.text);
        }
        for name in ["payments-api", "checkout-api"] {
            let metrics = postern_tests::Request::new(self.mesh.workload(name).metrics(), "metrics");
            let text = metrics.path("/metrics").send().await.unwrap().body;
            assert!(String::from_utf8_lossy(&text).contains("postern_panics_total 0\n"), "I6: a panic");
        }
    }

    /// After the last row: I4 for all of them, I5 and I6.
    pub async fn survived(&self) {
        self.is_well().await;
        for (side, from) in self.logged.lock().unwrap().iter() {
            let lines = self.log(*side).lines();
            let lines: Vec<&Value> = lines.iter().filter(|line| is_from(line, *side, *from)).collect();
            assert_eq!(lines.len(), 1, "I4: one connection, one line: {lines:#?}");
        }
        let limit = self.rss + self.rss / 10 + (8 << 20);
        let freed = async {
            while rss() > limit {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), freed).await.is_err() {
            panic!("I5: {} KiB resident, {} KiB before", rss() >> 10, self.rss >> 10);
        }
    }
}

/// Which row, in a message; long ones are cut.
fn what(line: &str, side: Side, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
    format!("{line} from {side:?}: {text:?}")
}

/// What must not change by a refused row.
pub struct Before {
    side: Side,
    heard: usize,
    complete: usize,
}

impl Before {
    pub fn of(arena: &Arena, side: Side) -> Self {
        let app = arena.app_of(side);
        let (heard, complete) = (app.bytes().len(), app.complete());
        Self { side, heard, complete }
    }

    /// I1, I4: no byte to the app, one line in the log, with a reason.
    pub async fn nothing_happened(&self, arena: &Arena, what: &str) {
        let line = arena.one_line(self.side, what).await;
        let is_reasoned = line["postern.reason"].is_string()
            || line["postern.decision"] == "deny"
            || line["http.response.status_code"] == 403
            // The same in gRPC's word.
            || line["rpc.response.status_code"] == 7;
        assert!(is_reasoned, "I4, {what}: no reason: {line}");
        let app = arena.app_of(self.side);
        assert_eq!(app.bytes().len(), self.heard, "I1, {what}: {:?}", app.text());
    }

    /// The app may have seen a beginning, but no complete request.
    pub async fn nothing_completed(&self, arena: &Arena, what: &str) {
        let line = arena.one_line(self.side, what).await;
        assert!(line["postern.reason"].is_string(), "I4, {what}: no reason: {line}");
        let app = arena.app_of(self.side);
        assert_eq!(app.complete(), self.complete, "{what}: {:?}", app.text());
    }
}

/// The service of [`BARE`], the second of the arena.
const BARE_SERVICE: &str = "10.96.0.2";

/// Whether it is a line of this connection. Two that lead elsewhere may come from the same port.
fn is_from(line: &Value, side: Side, address: SocketAddr) -> bool {
    line["network.peer.address"] == address.ip().to_string()
        && line["network.peer.port"] == address.port()
        && (line["network.local.address"] == BARE_SERVICE) == (side == Side::Bare)
}

/// Writes the pieces and reads until the other side closes, or for so long.
pub async fn talk(stream: Box<dyn Io>, pieces: &[&[u8]], patience: Duration) -> Answer {
    let (mut read, mut write) = tokio::io::split(stream);
    let writing = async {
        for piece in pieces {
            if write.write_all(piece).await.is_err() || write.flush().await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            match read.read_buf(&mut bytes).await {
                Ok(0) => return (true, false),
                Ok(_) => {}
                Err(_) => return (true, true),
            }
        }
    };
    let both = async { tokio::join!(writing, reading).1 };
    let (is_closed, is_abrupt) = tokio::time::timeout(patience, both).await.unwrap_or((false, false));
    Answer { text: String::from_utf8_lossy(&bytes).into_owned(), bytes, is_closed, is_abrupt }
}

/// Writes, and reads one answer with a length.
pub async fn talk_until(mut stream: Box<dyn Io>, bytes: &[u8]) -> Answer {
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    read_answer(&mut stream).await
}

/// Reads one answer with a length, or to the end.
pub async fn read_answer(stream: &mut Box<dyn Io>) -> Answer {
    let mut read = Vec::new();
    let (mut is_closed, mut is_abrupt) = (false, false);
    let reading = async {
        loop {
            let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text[..end].lines().find_map(|line| line.strip_prefix("content-length: "));
                let body: Option<usize> = length.map(|length| length.parse().unwrap());
                if body.is_some_and(|body| read.len() >= end + 4 + body) {
                    return;
                }
            }
            match stream.read_buf(&mut read).await {
                Ok(0) => return is_closed = true,
                Ok(_) => {}
                Err(_) => return (is_closed, is_abrupt) = (true, true),
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, reading).await;
    Answer { text: String::from_utf8_lossy(&read).into_owned(), bytes: read, is_closed, is_abrupt }
}

/// Resident memory of this process, in bytes.
pub fn rss() -> usize {
    memory("VmRSS:")
}

/// The most of it since [`forget_peak`].
pub fn peak() -> usize {
    memory("VmHWM:")
}

/// From here on the peak is a new one (proc_pid_clear_refs(5)).
pub fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn memory(which: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
