//! What a decision costs as rules are added: Envoy's RBAC filter and our evaluator, on the same rules, in the same minutes.
//!
//! Each Envoy answers 200 by itself behind the filter; its cost is CPU time from the kernel's accounting, over a fixed number
//! of requests on one connection, so waiting does not count. Ours is the time of one call. Rounds are interleaved, medians
//! reported, and each column has its own ratio to one rule, because the two are different amounts of work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

// The translation and the process that the comparison of decisions uses. By path, so that benches need not build the mesh.
#[allow(dead_code)]
#[path = "../../../tests/src/envoy.rs"]
mod envoy;
#[allow(dead_code)]
#[path = "../../../tests/src/envoy_rbac.rs"]
mod envoy_rbac;

use http::HeaderMap;
use postern_config::{
    Facts, HttpFacts, InboundSpec, Snapshot, Verdict,
    authorize::authorize,
    documents::{
        AuthorizationPolicy, MeshConfig, Metadata,
        authorization_policy::{From, Operation, Rule, Source, To},
    },
    snapshot::Workload,
};
use serde_json::json;
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Instant,
};

/// None is the cost of everything around the filter.
const RULES: [usize; 5] = [0, 1, 100, 1_000, 10_000];
const ROUNDS: usize = 7;

/// Enough to be measured; ten thousand rules need fewer.
fn requests(rules: usize) -> u32 {
    if rules > 1_000 { 60 } else { 400 }
}

fn main() {
    let Some(program) = envoy::program() else { return };
    let mut subjects: Vec<Subject> = RULES.iter().map(|rules| Subject::start(&program, *rules)).collect();
    // The first round warms caches and connections up and is not kept.
    for round in 0..=ROUNDS {
        for subject in &mut subjects {
            for verdict in [Verdict::Allow, Verdict::Deny] {
                subject.measure(verdict, round > 0);
            }
        }
    }
    println!(
        "| rules | verdict | Envoy, µs of CPU per request | the filter's part, µs | growth | ours, ns per decision | growth |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (at, verdict) in [(0, Verdict::Allow), (1, Verdict::Deny)] {
        let of = |subject: &Subject| [median(&subject.envoy_ns[at]), median(&subject.own_ns[at])];
        let base = median(&subjects[0].envoy_ns[0]);
        let [one_envoy, one_own] = of(&subjects[1]);
        for subject in subjects.iter().filter(|s| s.rules > 0 || verdict == Verdict::Allow) {
            let [envoy_ns, own_ns] = of(subject);
            let growth = if subject.rules == 0 {
                ["-".to_owned(), "-".to_owned()]
            } else {
                [envoy_ns / one_envoy, own_ns / one_own].map(|times| format!("{times:.1}x"))
            };
            println!(
                "| {} | {verdict:?} | {:.1} | {:.1} | {} | {own_ns:.0} | {} |",
                subject.rules,
                envoy_ns / 1e3,
                (envoy_ns - base) / 1e3,
                growth[0],
                growth[1]
            );
        }
    }
    let memory: Vec<String> =
        subjects.iter().map(|s| format!("{} rules {} MiB", s.rules, s.resident_kib() / 1024)).collect();
    println!("\nEnvoy's resident memory: {}", memory.join(", "));
}

/// One number of rules, in both.
struct Subject {
    rules: usize,
    envoy: envoy::Envoy,
    wire: envoy::Wire<TcpStream>,
    snapshot: Snapshot,
    /// Nanoseconds for one request, by verdict.
    envoy_ns: [Vec<f64>; 2],
    own_ns: [Vec<f64>; 2],
}

impl Subject {
    fn start(program: &Path, rules: usize) -> Self {
        let (mesh, policies) = (MeshConfig::default(), policies(rules));
        let mut last = String::new();
        for _ in 0..5 {
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), envoy::free_ports(1)[0]);
            let route = envoy::route("-", &json!({}));
            let manager = envoy::connection_manager(
                &envoy_rbac::filters(&policies, &mesh),
                &[route],
                &json!({"normalize_path": true}),
            );
            let listener = envoy::listener("inbound", &[address], &[json!({"filters": [manager]})]);
            match envoy::Envoy::start(program, &envoy::bootstrap(&[listener]), &[address]) {
                Ok(envoy) => {
                    let wire = envoy::Wire::new(envoy::connect(address.ip(), address).unwrap());
                    let snapshot = compile(policies);
                    return Self {
                        rules,
                        envoy,
                        wire,
                        snapshot,
                        envoy_ns: Default::default(),
                        own_ns: Default::default(),
                    };
                }
                Err(log) => last = log,
            }
        }
        panic!("Envoy did not start: {last}");
    }

    fn measure(&mut self, verdict: Verdict, keep: bool) {
        // The last rule in the order of both, or none of them. Without rules everything is allowed.
        let number = if verdict == Verdict::Allow { self.rules.saturating_sub(1) } else { self.rules };
        let wanted = if self.rules == 0 { Verdict::Allow } else { verdict };
        let path = format!("/v1/items/{number}");
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\n{}: -\r\ncontent-length: 0\r\n\r\n", envoy::CASE);
        let status = if wanted == Verdict::Allow { 200 } else { 403 };
        let before = self.cpu_ns();
        for _ in 0..requests(self.rules) {
            assert_eq!(self.wire.exchange(head.as_bytes()).unwrap().status, status);
        }
        let spent = (self.cpu_ns() - before) / f64::from(requests(self.rules));

        let headers = HeaderMap::new();
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let facts = Facts {
            peer: None,
            source_ip: local,
            remote_ip: local,
            destination_ip: local,
            destination_port: 8080,
            sni: None,
            claims: None,
            http: Some(HttpFacts { method: "POST", path: &path, host: "a", headers: &headers }),
        };
        assert_eq!(authorize(&self.snapshot, &facts).verdict, wanted);
        // Long enough to be measured, however fast one is.
        let (begin, mut calls) = (Instant::now(), 0_u32);
        while begin.elapsed().as_millis() < 20 {
            for _ in 0..16 {
                black_box(authorize(black_box(&self.snapshot), black_box(&facts)));
            }
            calls += 16;
        }
        let own = begin.elapsed().as_secs_f64() * 1e9 / f64::from(calls);
        if keep {
            let at = usize::from(verdict == Verdict::Deny);
            self.envoy_ns[at].push(spent);
            self.own_ns[at].push(own);
        }
    }

    /// CPU time of all of Envoy's threads so far.
    fn cpu_ns(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.envoy.id())).unwrap();
        let spent =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
        spent.filter_map(|line| line.split(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.envoy.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// One ALLOW policy, each rule for a method and a path of its own. Callers are told apart by address, as there is no TLS here.
fn policies(rules: usize) -> Vec<AuthorizationPolicy> {
    let rule = |n| Rule {
        from: vec![From { source: Source { ip_blocks: vec!["127.0.0.0/8".into()], ..Source::default() } }],
        to: vec![To {
            operation: Operation {
                methods: vec!["POST".into()],
                paths: vec![format!("/v1/items/{n}")],
                ..Operation::default()
            },
        }],
        when: vec![],
    };
    let metadata = Metadata { name: "callers".into(), namespace: "payments".into(), ..Metadata::default() };
    let rules: Vec<Rule> = (0..rules).map(rule).collect();
    if rules.is_empty() {
        vec![]
    } else {
        vec![AuthorizationPolicy { metadata, rules, ..AuthorizationPolicy::default() }]
    }
}

fn compile(authorization_policies: Vec<AuthorizationPolicy>) -> Snapshot {
    let workload = Workload { namespace: "payments".into(), ..Workload::default() };
    let (mesh, ports, peer_authentications) = (MeshConfig::default(), vec![], vec![]);
    Snapshot::compile(InboundSpec { workload, mesh, ports, peer_authentications, authorization_policies })
        .expect("the rules of this bench are valid")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
