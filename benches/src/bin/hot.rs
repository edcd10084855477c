//! How many instructions the parts of ours cost that each request passes through, by callgrind: the same on a busy machine and on a
//! quiet one, so CI holds them to 3 % (`budgets.toml`).
//!
//! Each part runs N and M times in a process of its own under valgrind; the difference, divided by M - N, is its cost.
#![allow(clippy::expect_used, clippy::indexing_slicing)] // a bench stops at what should not be

use clap::Parser;
use http::{HeaderMap, HeaderValue, Method, Request, request};
use postern_benches::{
    Mix,
    budgets::{self, Measured},
};
use postern_config::{
    Snapshot, authorize::judge, documents::Upgrades, path::Normalization, snapshot::Workload,
};
use postern_proxy::{
    bootstrap::otel::Sampler,
    http::{
        canonical::{Size, canonical},
        framing::{Patience, Strict},
        headers,
        http1::{
            downstream_heads,
            upstream_heads::{self, Answerer},
        },
    },
    telemetry::{Direction, Entry, Telemetry, access_log::Lines, entry, propagation::Propagation},
};
use std::{
    hint::black_box,
    net::SocketAddr,
    pin::pin,
    process::{Command, ExitCode},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};
use tokio::{io::AsyncReadExt, time::Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// Run this part, so often, and say nothing: what the bench itself starts under valgrind
    #[arg(requires = "times")]
    part: Option<String>,
    #[arg(requires = "part")]
    times: Option<u64>,
}

type Part = fn(u64);

const PARTS: [(&str, Part); 8] = [
    ("framing", framing),
    ("heads", heads),
    ("canonical", canonical_target),
    ("headers", clean_headers),
    ("decision", decision),
    ("record", record),
    ("trace", trace),
    ("log line", log_line),
];

/// The first ones fill caches and allocate what stays.
const WARM: u64 = 500;
const MORE: u64 = 2000;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let (Some(part), Some(times)) = (arguments.part, arguments.times) {
        let Some((_, run)) = PARTS.iter().find(|(name, _)| *name == part) else {
            eprintln!("error: there is no part {part}");
            return ExitCode::FAILURE;
        };
        run(times);
        return ExitCode::SUCCESS;
    }
    budgets::refuse_debug_build(false);
    let mut measured = Measured::new();
    println!("{:<12} instructions each time", "part");
    for (name, _) in PARTS {
        let counts = [WARM, WARM + MORE].map(|times| instructions(name, times));
        let [Ok(few), Ok(many)] = counts else {
            let cause = counts.into_iter().find_map(Result::err).unwrap_or_default();
            eprintln!("error: {cause}\nhelp: install valgrind (Debian: apt-get install valgrind)");
            return ExitCode::FAILURE;
        };
        let each = (many.saturating_sub(few)) as f64 / MORE as f64;
        println!("{name:<12} {each:.0}");
        measured.insert(format!("{name}/instructions"), each);
    }
    budgets::judge(&["hot"], &measured)
}

/// What one process executes.
fn instructions(part: &str, times: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|cause| cause.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([part, &times.to_string()])
        .output()
        .map_err(|cause| format!("valgrind: {cause}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let count = text.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim());
    count.and_then(|count| count.parse().ok()).ok_or_else(|| format!("valgrind counted nothing:\n{text}"))
}

/// Streams of memory are always ready.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a stream of memory made somebody wait"),
    }
}

const HEAD: &str = "GET /api/v1/orders/4711?page=2 HTTP/1.1\r\nhost: shop.default.svc.cluster.local:8080\r\nuser-agent: curl/8.5.0\r\naccept: */*\r\naccept-encoding: gzip\r\nx-request-id: 2f6bd7a0-57f8-4c46-9fb9-6b2b5a0a2f31\r\n\r\n";

fn framing(times: u64) {
    let whole = HEAD.repeat(times as usize);
    let patience = Patience {
        first_head: Instant::now() + Duration::from_secs(60),
        head: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        body: Duration::from_secs(60),
        stalled: Duration::from_secs(60),
    };
    let stream = tokio::io::join(whole.as_bytes(), tokio::io::sink());
    let mut reader = Strict::new(stream, patience, Upgrades::default());
    let mut buffer = vec![0; HEAD.len()];
    for _ in 0..times {
        now(reader.read_exact(&mut buffer)).expect("it is well framed");
    }
    black_box(&buffer);
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1024\r\nserver: app\r\ndate: Sat, 28 Nov 2026 12:00:00 GMT\r\n\r\n";

/// A request read from the client, its answer read from the upstream and written to the client.
fn heads(times: u64) {
    let (body, mut out) = (http_body_util::Full::new(bytes::Bytes::from_static(&[b'x'; 1024])), Vec::new());
    for _ in 0..times {
        let mut asked =
            downstream_heads::read(&mut HEAD.as_bytes().into(), 0).ok().flatten().expect("a request");
        let (mut answer, room) = (ANSWER.as_bytes().into(), &mut asked.parts.headers);
        let answer = upstream_heads::read(&mut answer, 0, Answerer::Sidecar, false, room);
        let answer = answer.ok().flatten().expect("an answer");
        out.clear();
        black_box(downstream_heads::write(answer.parts, &body, asked.asked, &mut out));
    }
    black_box(&out);
}

fn parts() -> request::Parts {
    let mut lines = HEAD.trim_end().split("\r\n");
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let mut request = Request::builder().method(Method::GET).uri(target);
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header line");
        request = request.header(name, value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 8080))
}

fn canonical_target(times: u64) {
    let parts = parts();
    for _ in 0..times {
        let mut parts = parts.clone();
        black_box(
            canonical(&mut parts, Normalization::MergeSlashes, Size::Whole, address()).expect("one reading"),
        );
    }
}

fn clean_headers(times: u64) {
    let (asked, mut answered) = (parts().headers, HeaderMap::new());
    for (name, value) in [("content-type", "application/json"), ("content-length", "1024"), ("server", "app")]
    {
        answered.insert(name, HeaderValue::from_static(value));
    }
    for _ in 0..times {
        let (mut asked, mut answered) = (asked.clone(), answered.clone());
        black_box(headers::clean_request(&mut asked));
        headers::ensure_request_id(&mut asked);
        headers::clean_response(&mut answered, false);
        black_box((asked, answered));
    }
}

fn decision(times: u64) {
    let snapshot = Snapshot::compile(Mix::Realistic.spec(100)).expect("it compiles");
    let calls = Mix::Realistic.calls(100);
    for call in calls.iter().cycle().take(times as usize) {
        black_box(judge(&snapshot, &call.facts()));
    }
}

fn record(times: u64) {
    let snapshot = Snapshot::compile(Mix::Realistic.spec(100)).expect("it compiles");
    let calls = Mix::Realistic.calls(100);
    let facts = calls[0].facts();
    let judgement = judge(&snapshot, &facts);
    let (telemetry, workload, version) = (Telemetry::silent(), Workload::default(), Arc::from("7"));
    let parts = parts();
    let mut passed = parts.headers.clone();
    let mut connection = telemetry.connection(Direction::Inbound, address(), address());
    for _ in 0..times {
        let mut record = connection.request();
        record.set_protocol("http/1.1");
        record.set_request(&parts.method, "shop:8080", parts.uri.path(), &parts.headers);
        record.set_decision(&judgement, &facts, &workload, &version);
        record.pass_trace_on(black_box(&mut passed));
        record.set_upstream(address(), None);
        record.upstream_started(std::time::Instant::now());
        record.upstream_answered(std::time::Instant::now());
        record.set_status(200);
        record.answer_handed_over();
        record.add_sent(1024);
    }
}

/// What a request pays for traces of which none is recorded: one is begun and passed on, and the other sidecar continues it.
fn trace(times: u64) {
    let sampler = Sampler { ratio: 0.0, ..Sampler::default() };
    let propagation = Propagation { sampler, ..Propagation::default() };
    let asked = parts().headers;
    for _ in 0..times {
        let mut passed = asked.clone();
        propagation.begin(&passed).pass_on(&mut passed);
        propagation.begin(&passed).pass_on(&mut passed);
        black_box(passed);
    }
}

fn log_line(times: u64) {
    let mut entry = Entry::new(Direction::Inbound, SystemTime::UNIX_EPOCH, address(), address());
    entry.protocol = Some("http/1.1");
    entry.request = Some(entry::Request {
        method: Method::GET,
        authority: "shop.default.svc.cluster.local:8080".into(),
        path: "/api/v1/orders/4711".into(),
        id: Some("2f6bd7a0-57f8-4c46-9fb9-6b2b5a0a2f31".into()),
        headers: vec![],
        noted: None,
    });
    (entry.status, entry.bytes_sent, entry.upstream_address) = (Some(200), 1024, Some(address()));
    entry.source_principal = Some("spiffe://cluster.local/ns/default/sa/web".into());
    entry.destination_principal = Some("spiffe://cluster.local/ns/default/sa/shop".into());
    entry.tls_version = Some("TLSv1.3");
    let (mut lines, mut text) = (Lines::default(), Vec::new());
    for _ in 0..times {
        text.clear();
        lines.write(&entry, &mut text);
        black_box(&text);
    }
}
