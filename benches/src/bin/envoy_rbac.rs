//! What a decision costs as rules are added: Envoy's RBAC filter, our sidecar and our evaluator, on the same rules, in the
//! same minutes.
//!
//! An Envoy and a sidecar for each number of rules stand before the same app. Their cost is CPU time of the whole process
//! from the kernel's accounting, over a fixed number of requests on one connection, so waiting does not count. The last
//! columns are the time of one call of the evaluator, here in this process. Rounds are interleaved, medians reported,
//! and each has its own ratio to one rule, because the three are different amounts of work.
//!
//! The sidecar is this program started again with the flags of `postern-proxy`, which it then is; its control plane
//! stays in this process, so that what it does is not counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

// The translation that the comparison of decisions uses. By path, so that benches need not build the tests.
#[allow(dead_code)]
#[path = "../../../tests/src/envoy_rbac.rs"]
mod envoy_rbac;

use http::HeaderMap;
use postern_benches::{
    beside::{self, App, Sidecar},
    budgets::median,
    envoy,
    process::{cores, cpu, pin, resident_kib},
};
use postern_config::{
    Facts, HttpFacts, InboundSpec, Snapshot, Verdict,
    authorize::authorize,
    documents::{
        AuthorizationPolicy, Located, MeshConfig, Metadata, Origin,
        authorization_policy::{From, Operation, Rule, Source, To},
    },
    snapshot::Workload,
};
use postern_control_plane::ControlPlane;
use serde_json::json;
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    time::Instant,
};

// As in the program that the sidecar's image ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// None is the cost of everything around the decision.
const RULES: [usize; 5] = [0, 1, 100, 1_000, 10_000];
const ROUNDS: usize = 11;
const REQUESTS: u32 = 1_000;
/// Enough for Envoy with the most rules, which takes a hundred times as long.
const SLOW_REQUESTS: u32 = 60;
/// Leaves it to the kernel where everything runs.
const ALL_CORES: &str = "--all-cores";
/// Name of the pod and of its service account.
const POD: &str = "app";

fn main() -> ExitCode {
    if let Some(code) = beside::run_if_sidecar() {
        return code;
    }
    let Some(program) = envoy::program() else { return ExitCode::SUCCESS };
    if !std::env::args_os().any(|argument| argument == ALL_CORES) {
        // Client, proxies and app share one core from here on: to wake an idle one costs more than a decision does, more at
        // one time than at another, and is charged to whoever wakes.
        pin(cores().1);
    }
    let app = App::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let control = runtime.block_on(control_plane(app.address));
    let mut subjects: Vec<Subject> =
        RULES.iter().map(|rules| Subject::start(&program, &control, &app, *rules)).collect();
    // The first round warms caches and connections up and is not kept.
    for round in 0..=ROUNDS {
        for subject in &mut subjects {
            for verdict in [Verdict::Allow, Verdict::Deny] {
                subject.measure(&app, verdict, round > 0);
            }
        }
    }
    report(&subjects);
    ExitCode::SUCCESS
}

fn report(subjects: &[Subject]) {
    println!(
        "| rules | verdict | Envoy, µs of CPU per request | growth | our sidecar, µs of CPU per request | growth | \
         authorize(), ns per call | growth |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (at, verdict) in [(0, Verdict::Allow), (1, Verdict::Deny)] {
        let of = |subject: &Subject| [0, 1, 2].map(|who| median(&subject.spent_ns[at][who]));
        let one = of(&subjects[1]);
        for subject in subjects.iter().filter(|s| s.rules > 0 || verdict == Verdict::Allow) {
            let cells = of(subject);
            let growth = [0, 1, 2].map(|who| match subject.rules {
                0 => "-".to_owned(),
                _ => format!("{:.1}x", cells[who] / one[who]),
            });
            let [envoy, sidecar, own] = cells;
            println!(
                "| {} | {verdict:?} | {:.1} | {} | {:.1} | {} | {own:.0} | {} |",
                subject.rules,
                envoy / 1e3,
                growth[0],
                sidecar / 1e3,
                growth[1],
                growth[2]
            );
        }
    }
    println!("\nLowest and highest round, µs of CPU per request:");
    for subject in subjects {
        for (at, verdict) in [(0, Verdict::Allow), (1, Verdict::Deny)] {
            let [envoy, sidecar] = [0, 1].map(|who| {
                let rounds = &subject.spent_ns[at][who];
                let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
                let most = rounds.iter().copied().fold(0.0, f64::max);
                format!("{:.1} to {:.1}", least / 1e3, most / 1e3)
            });
            println!("{} rules, {verdict:?}: Envoy {envoy}, sidecar {sidecar}", subject.rules);
        }
    }
    let memory = |id: fn(&Subject) -> u32| {
        let all = subjects.iter().map(|s| format!("{} rules {} MiB", s.rules, resident_kib(id(s)) / 1024));
        all.collect::<Vec<_>>().join(", ")
    };
    println!("\nEnvoy's resident memory: {}", memory(|s| s.envoy.id()));
    println!("The sidecar's resident memory: {}", memory(|s| s.sidecar.id()));
}

/// One number of rules, in all three.
struct Subject {
    rules: usize,
    envoy: envoy::Envoy,
    envoy_wire: envoy::Wire<TcpStream>,
    sidecar: Sidecar,
    sidecar_wire: envoy::Wire<TcpStream>,
    snapshot: Snapshot,
    /// Nanoseconds for one request, by verdict, of Envoy, sidecar and evaluator.
    spent_ns: [[Vec<f64>; 3]; 2],
}

impl Subject {
    fn start(program: &Path, control: &ControlPlane, app: &App, rules: usize) -> Self {
        let (envoy, address) = start_envoy(program, &policies(rules), app.address);
        let sidecar = Sidecar::start(control, &namespace(rules), POD, app.address);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let [envoy_wire, sidecar_wire] =
            [address, sidecar.inbound].map(|to| envoy::Wire::new(envoy::connect(local, to).unwrap()));
        let snapshot = compile(rules);
        Self { rules, envoy, envoy_wire, sidecar, sidecar_wire, snapshot, spent_ns: Default::default() }
    }

    fn measure(&mut self, app: &App, verdict: Verdict, keep: bool) {
        // The last rule in the order of both, or none of them. Without rules everything is allowed.
        let number = if verdict == Verdict::Allow { self.rules.saturating_sub(1) } else { self.rules };
        let wanted = if self.rules == 0 { Verdict::Allow } else { verdict };
        let path = format!("/v1/items/{number}");
        let slow = if self.rules > 1_000 { SLOW_REQUESTS } else { REQUESTS };
        let envoy = cost(self.envoy.id(), &mut self.envoy_wire, app, &path, wanted, slow);
        let sidecar = cost(self.sidecar.id(), &mut self.sidecar_wire, app, &path, wanted, REQUESTS);
        let own = own_cost(&self.snapshot, &path, wanted);
        if keep {
            let spent = &mut self.spent_ns[usize::from(verdict == Verdict::Deny)];
            for (rounds, ns) in spent.iter_mut().zip([envoy, sidecar, own]) {
                rounds.push(ns);
            }
        }
    }
}

/// Nanoseconds of CPU of this process for one request. What is denied must not reach the app, and what is allowed must.
fn cost(
    process: u32,
    wire: &mut envoy::Wire<TcpStream>,
    app: &App,
    path: &str,
    wanted: Verdict,
    requests: u32,
) -> f64 {
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    let (status, arriving) = if wanted == Verdict::Allow { (200, requests) } else { (403, 0) };
    let (served, before) = (app.served(), cpu(process));
    for _ in 0..requests {
        let reply = wire.exchange(head.as_bytes()).unwrap();
        assert_eq!((reply.status, reply.closed), (status, false));
    }
    let spent = (cpu(process) - before).as_secs_f64() * 1e9;
    assert_eq!(app.served() - served, arriving);
    spent / f64::from(requests)
}

/// Nanoseconds for one call of the evaluator.
fn own_cost(snapshot: &Snapshot, path: &str, wanted: Verdict) -> f64 {
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
        http: Some(HttpFacts { method: "POST", path, host: "a", headers: &headers }),
    };
    assert_eq!(authorize(snapshot, &facts).verdict, wanted);
    // Long enough to be measured, however fast one is.
    let (begin, mut calls) = (Instant::now(), 0_u32);
    while begin.elapsed().as_millis() < 20 {
        for _ in 0..16 {
            black_box(authorize(black_box(snapshot), black_box(&facts)));
        }
        calls += 16;
    }
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

fn start_envoy(
    program: &Path,
    policies: &[AuthorizationPolicy],
    app: SocketAddr,
) -> (envoy::Envoy, SocketAddr) {
    beside::start_envoy(program, app, |address| {
        let filters = envoy_rbac::filters(policies, &MeshConfig::default());
        let manager =
            envoy::connection_manager(&filters, &[beside::to_app()], &json!({"normalize_path": true}));
        envoy::listener("inbound", &[address], &[json!({"filters": [manager]})])
    })
}

/// One for all sidecars: each number of rules is a namespace with one pod.
async fn control_plane(app: SocketAddr) -> ControlPlane {
    let mut all = String::new();
    for rules in RULES {
        let (namespace, port) = (namespace(rules), app.port());
        all += &format!(
            r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{istio-injection: enabled}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {namespace}}}
spec: {{mtls: {{mode: PERMISSIVE}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {POD}, namespace: {namespace}, labels: {{app: {POD}}}}}
spec: {{serviceAccountName: {POD}, containers: [{{name: app, ports: [{{name: http, containerPort: {port}}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {POD}, namespace: {namespace}}}
spec: {{selector: {{app: {POD}}}, ports: [{{name: http, port: {port}}}]}}
---
"#
        );
    }
    let mut documents = beside::read(all);
    // Not through YAML, which may hold at most 512 rules a policy.
    let policies = RULES.iter().flat_map(|rules| policies(*rules));
    documents.authorization_policies =
        policies.map(|value| Located { origin: Origin::default(), value }).collect();
    beside::control_plane(documents).await
}

fn namespace(rules: usize) -> String {
    format!("rules-{rules}")
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
    let metadata = Metadata { name: "callers".into(), namespace: namespace(rules), ..Metadata::default() };
    let rules: Vec<Rule> = (0..rules).map(rule).collect();
    if rules.is_empty() {
        vec![]
    } else {
        vec![AuthorizationPolicy { metadata, rules, ..AuthorizationPolicy::default() }]
    }
}

fn compile(rules: usize) -> Snapshot {
    let workload = Workload { namespace: namespace(rules), ..Workload::default() };
    let authorization_policies = policies(rules);
    let (mesh, ports, peer_authentications, telemetries) = (MeshConfig::default(), vec![], vec![], vec![]);
    Snapshot::compile(InboundSpec {
        workload,
        mesh,
        ports,
        peer_authentications,
        authorization_policies,
        telemetries,
        upgrades: Default::default(),
    })
    .expect("the rules of this bench are valid")
}
