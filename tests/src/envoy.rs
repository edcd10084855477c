//! Envoy as a second opinion: one process on loopback addresses, and a client that writes requests byte for byte.
//!
//! Not every machine can have it, so tests ask [`program`] first and say so when they go without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use crate::foreign;
use serde_json::{Value, json};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Nothing that Envoy does here takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where Envoy is, after fetching it if need be (`scripts/envoy.sh`).
///
/// `None` when there is none to be had, which is said on stderr; with `POSTERN_ENVOY_REQUIRED=1` that is a failure.
pub fn program() -> Option<PathBuf> {
    foreign::by_script("envoy.sh", "POSTERN_ENVOY_REQUIRED", "nothing was compared with Envoy")
}

/// An address, as a table writes it.
pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// A running Envoy. Dropping it ends it.
pub struct Envoy {
    child: Child,
    folder: tempfile::TempDir,
}

impl Envoy {
    /// Starts it with this configuration and waits until all of `listeners` accept connections.
    ///
    /// # Errors
    /// What Envoy said when it ended instead, a taken port for example.
    pub fn start(program: &Path, config: &Value, listeners: &[SocketAddr]) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "1", "-l", "error", "--disable-hot-restart"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy can be started");
        let mut envoy = Self { child, folder };
        let begin = Instant::now();
        for address in listeners {
            while TcpStream::connect(address).is_err() {
                if envoy.child.try_wait().unwrap().is_some() {
                    return Err(envoy.log());
                }
                assert!(begin.elapsed() < DEADLINE, "Envoy does not listen on {address}: {}", envoy.log());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // Somebody else may have been the one to accept.
        match envoy.child.try_wait().unwrap() {
            None => Ok(envoy),
            Some(_) => Err(envoy.log()),
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many ports of 127.0.0.1 and 127.0.0.2 that are free now.
pub fn free_ports(number: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < number {
        let one = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = one.local_addr().unwrap().port();
        if let Ok(two) = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)) {
            held.push((one, two));
        }
    }
    held.iter().map(|(one, _)| one.local_addr().unwrap().port()).collect()
}

/// A configuration with nothing but listeners.
pub fn bootstrap(listeners: &[Value]) -> Value {
    json!({
        "node": {"id": "beside-postern", "cluster": "beside-postern"},
        "static_resources": {"listeners": listeners},
    })
}

/// A listener on these addresses.
pub fn listener(name: &str, addresses: &[SocketAddr], filter_chains: &[Value]) -> Value {
    let address = |a: &SocketAddr| json!({"socket_address": {"address": a.ip(), "port_value": a.port()}});
    let more: Vec<Value> = addresses[1..].iter().map(|a| json!({"address": address(a)})).collect();
    json!({
        "name": name,
        "address": address(&addresses[0]),
        "additional_addresses": more,
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
        }],
        "filter_chains": filter_chains,
    })
}

/// The connection manager as Istio configures it for a sidecar's inbound side: these filters, then these routes.
pub fn connection_manager(filters: &[Value], routes: &[Value], normalization: &Value) -> Value {
    let mut all = filters.to_vec();
    all.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }));
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound",
        "use_remote_address": false,
        "generate_request_id": false,
        "route_config": {"name": "inbound", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": all,
    });
    for (key, value) in normalization.as_object().unwrap() {
        config[key] = value.clone();
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": config})
}

/// A route for the requests whose header [`CASE`] has this value: 200 at once, and the path as it arrived here.
pub fn route(case: &str, per_filter: &Value) -> Value {
    json!({
        "match": {"prefix": "/", "headers": [{"name": CASE, "string_match": {"exact": case}}]},
        "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        "response_headers_to_add": [{"header": {"key": SEEN_PATH, "value": "%REQ(:PATH)%"}}],
        "typed_per_filter_config": per_filter,
    })
}

/// Chooses the route.
pub const CASE: &str = "x-postern-case";
/// In a response: the path that policy and app see.
pub const SEEN_PATH: &str = "x-seen-path";

/// A connection that carries one request after the other.
pub struct Wire<S> {
    stream: S,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub seen_path: Option<String>,
    /// Nothing more can be sent over this connection.
    pub closed: bool,
}

/// Connects from one address to another.
pub fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&to.into())?;
    socket.set_tcp_nodelay(true)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

impl<S: Read + Write> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// What it was made of.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Sends a request head as it is and reads the whole answer.
    pub fn exchange(&mut self, head: &[u8]) -> io::Result<Reply> {
        self.stream.write_all(head)?;
        self.stream.flush()?;
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status in {head:?}")))?;
        let (mut length, mut seen_path, mut closed) = (0, None, false);
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            match name {
                "content-length" => length = value.parse().unwrap(),
                "connection" => closed = value == "close",
                SEEN_PATH => seen_path = Some(value.to_owned()),
                _ => {}
            }
        }
        let whole = end + 4 + length;
        while self.buffer.len() < whole {
            self.fill()?;
        }
        self.buffer.drain(..whole);
        Ok(Reply { status, seen_path, closed })
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        match self.stream.read(&mut part)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.buffer.extend_from_slice(&part[..n]);
                Ok(())
            }
        }
    }
}
