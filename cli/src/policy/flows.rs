//! Access logs as input: what was called, by whom, how often, first and last. Lines may have something in front of their
//! JSON, as `kubectl logs --prefix` writes it. Whatever cannot be used is counted under a name, never dropped in silence.
use crate::failure::Failure;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// Longest line that is read, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// Different flows that are kept; more are counted.
const MAX_FLOWS: usize = 500_000;
/// Paths of this length may have been cut by the log (bytes).
const CUT_PATH: usize = 2048 - 3;
/// Hosts of this length may have been cut by the log (bytes).
const CUT_HOST: usize = 256 - 3;

/// One line, as far as policy is concerned. Fields that are not listed do not matter here.
#[derive(Deserialize)]
struct Line {
    timestamp: String,
    #[serde(rename = "postern.direction")]
    direction: String,
    #[serde(rename = "http.request.method")]
    method: Option<String>,
    #[serde(rename = "server.address")]
    host: Option<String>,
    #[serde(rename = "server.port")]
    host_port: Option<u16>,
    #[serde(rename = "url.path")]
    path: Option<String>,
    #[serde(rename = "postern.source.id")]
    source: Option<String>,
    #[serde(rename = "postern.destination.id")]
    destination: Option<String>,
    #[serde(rename = "network.peer.address")]
    source_ip: IpAddr,
    #[serde(rename = "network.local.address")]
    destination_ip: IpAddr,
    #[serde(rename = "network.local.port")]
    destination_port: u16,
    #[serde(rename = "tls.client.server_name")]
    sni: Option<String>,
    #[serde(rename = "postern.decision")]
    decision: Option<String>,
    #[serde(rename = "postern.would.decision")]
    would_decision: Option<String>,
    #[serde(rename = "postern.would.policy")]
    would_policy: Option<String>,
    #[serde(rename = "postern.would.rule")]
    would_rule: Option<usize>,
}

/// Calls that policy cannot tell apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// SPIFFE ID of the caller; `None` = plaintext.
    pub source: Option<String>,
    /// Address of the caller.
    pub source_ip: IpAddr,
    /// SPIFFE ID of the called, when its sidecar had one.
    pub destination: Option<String>,
    /// Where the call went: address and workload port.
    pub address: SocketAddr,
    /// `None` on TCP.
    pub request: Option<Request>,
    /// Server name of the handshake.
    pub sni: Option<String>,
    /// What policy said then.
    pub allowed: bool,
    /// What the dry-run policies of then would have changed.
    pub would: Option<RecordedWould>,
}

/// The request of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// As sent.
    pub method: String,
    /// Normalized, without query.
    pub path: String,
    /// Host and port.
    pub host: String,
}

/// `postern.would.decision` and its fellows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordedWould {
    /// The other verdict.
    pub allowed: bool,
    /// `namespace/name`.
    pub policy: Option<String>,
    /// From 0.
    pub rule: Option<usize>,
}

/// How often, and when (RFC 3339).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Seen {
    /// Calls.
    pub count: u64,
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
}

impl Seen {
    /// Adds what was seen elsewhere.
    pub fn add(&mut self, other: &Self) {
        if self.count == 0 {
            *self = other.clone();
            return;
        }
        self.count = self.count.saturating_add(other.count);
        if other.first < self.first {
            self.first.clone_from(&other.first);
        }
        if other.last > self.last {
            self.last.clone_from(&other.last);
        }
    }
}

/// What a log holds.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// Inbound calls that policy decided on.
    pub flows: BTreeMap<Flow, Seen>,
    /// All of them together.
    pub seen: Seen,
    /// Outbound lines: the same calls, told by the other end.
    pub outbound: u64,
    /// Lines that cannot be used, by reason.
    pub skipped: BTreeMap<String, u64>,
}

impl Flows {
    /// Reads a file; `-` is standard input.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let failure = |e: io::Error| {
            Failure::new(
                format!("the access log `{}` cannot be read: {e}.", path.display()),
                "Name a file of access-log lines, or `-` for standard input.",
            )
        };
        if path == Path::new("-") {
            return Self::read(io::stdin().lock()).map_err(failure);
        }
        Self::read(BufReader::new(File::open(path).map_err(failure)?)).map_err(failure)
    }

    /// Reads lines until the end; memory is bounded by the number of different flows.
    ///
    /// # Errors
    /// The source fails.
    pub fn read(mut source: impl BufRead) -> io::Result<Self> {
        let mut flows = Self::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = source.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(flows);
            }
            if read == MAX_LINE && line.last() != Some(&b'\n') {
                skip_line(&mut source)?;
                flows.skip("the line is longer than 64 KiB");
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() {
                flows.take(&text);
            }
        }
    }

    fn take(&mut self, text: &str) {
        let Some(start) = text.find('{') else { return self.skip("not a JSON object") };
        let json = text.get(start..).unwrap_or_default();
        let Ok(line) = serde_json::from_str::<Line>(json.trim_end()) else {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(json.trim_end()).is_ok();
            return self.skip(if is_json { "not a line of the access log" } else { "not a JSON object" });
        };
        match line.direction.as_str() {
            "inbound" => {}
            "outbound" => {
                self.outbound += 1;
                return;
            }
            _ => return self.skip("neither inbound nor outbound"),
        }
        let allowed = match line.decision.as_deref() {
            Some("allow") => true,
            Some("deny") => false,
            _ => return self.skip("it ended before policy decided"),
        };
        let request = match (line.method, line.path) {
            (Some(method), Some(path)) => {
                let mut host = line.host.unwrap_or_default();
                if let Some(port) = line.host_port {
                    host = format!("{host}:{port}");
                }
                Some(Request { method, path, host })
            }
            _ => None,
        };
        if let Some(request) = &request
            && (request.path.len() >= CUT_PATH || request.host.len() >= CUT_HOST)
        {
            return self.skip("its path or host was too long for the log");
        }
        let would = line.would_decision.map(|verdict| RecordedWould {
            allowed: verdict == "allow",
            policy: line.would_policy,
            rule: line.would_rule,
        });
        let flow = Flow {
            source: line.source,
            source_ip: line.source_ip,
            destination: line.destination,
            address: SocketAddr::new(line.destination_ip, line.destination_port),
            request,
            sni: line.sni,
            allowed,
            would,
        };
        let once = Seen { count: 1, first: line.timestamp.clone(), last: line.timestamp };
        self.seen.add(&once);
        if self.flows.len() >= MAX_FLOWS && !self.flows.contains_key(&flow) {
            return self.skip("more than 500000 different flows");
        }
        self.flows.entry(flow).or_default().add(&once);
    }

    fn skip(&mut self, reason: &str) {
        *self.skipped.entry(reason.to_owned()).or_default() += 1;
    }
}

/// Reads on to the end of the line and keeps nothing.
fn skip_line(source: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        source.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// `checkout/checkout-api` of `spiffe://td/ns/checkout/sa/checkout-api`; the whole ID when it has another form.
pub fn short_identity(id: &str) -> String {
    match id.parse::<postern_identity::SpiffeId>() {
        Ok(id) => id.service_account().map_or_else(|| id.to_string(), |(ns, sa)| format!("{ns}/{sa}")),
        Err(_) => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    const ALLOWED: &str = r#"{"timestamp":"2026-01-02T00:00:00.000Z","postern.direction":"inbound","http.request.method":"GET","server.address":"a","server.port":80,"url.path":"/x","postern.source.id":"spiffe://td/ns/a/sa/b","network.peer.address":"10.0.0.1","network.local.address":"10.0.0.2","network.local.port":80,"postern.decision":"allow"}"#;

    fn read(text: &str) -> Flows {
        Flows::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn equal_calls_are_one_flow_with_a_count_and_the_first_and_last_time() {
        let flows = read(&format!("pod-0 | {ALLOWED}\n{}\n", ALLOWED.replace("01-02", "01-01")));
        let (flow, seen) = flows.flows.iter().next().unwrap();
        assert_eq!((flows.flows.len(), seen.count), (1, 2));
        assert!(seen.first.starts_with("2026-01-01") && seen.last.starts_with("2026-01-02"));
        let request = flow.request.as_ref().unwrap();
        assert_eq!((request.path.as_str(), request.host.as_str()), ("/x", "a:80"));
    }

    #[test]
    fn every_line_that_cannot_be_used_is_counted_under_its_reason() {
        let cases = [
            ("hello".to_owned(), "not a JSON object"),
            ("{\"a\":".to_owned(), "not a JSON object"),
            ("{\"a\":1}".to_owned(), "not a line of the access log"),
            (ALLOWED.replace("inbound", "sideways"), "neither inbound nor outbound"),
            (ALLOWED.replace(",\"postern.decision\":\"allow\"", ""), "it ended before policy decided"),
            (ALLOWED.replace("/x", &"/x".repeat(1024)), "its path or host was too long for the log"),
            ("x".repeat(MAX_LINE + 10), "the line is longer than 64 KiB"),
        ];
        for (line, reason) in cases {
            let flows = read(&format!("{line}\n{ALLOWED}\n"));
            assert_eq!(flows.skipped.get(reason), Some(&1), "{reason}: {:?}", flows.skipped);
            assert_eq!(flows.seen.count, 1, "the line behind it is read");
        }
        assert_eq!(read(&ALLOWED.replace("inbound", "outbound")).outbound, 1);
    }
}
