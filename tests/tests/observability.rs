//! What operators have: metrics that the docs list, which a Prometheus of the distribution takes; rules that its promtool knows; a
//! dashboard of which every query returns something.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::bootstrap::app_metrics::AppMetrics;
use postern_proxy::telemetry::{
    Direction, Entry, Metrics, Repeat,
    entry::{Decided, Would},
};
use postern_tests::{
    Mesh, Request, foreign,
    mesh::{Settings, within},
    ports,
    scenario::{mode, payments, policy},
    standalone::{Settings as StandaloneSettings, Standalone, until},
    tree,
};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const FOLDER: &str = "manifests/observability";

fn prometheus() -> Option<PathBuf> {
    foreign::by_script("prometheus.sh", "POSTERN_PROMETHEUS_REQUIRED", "no Prometheus was tried")
}

/// Name, kind and meaning of each metric of a page.
fn metrics(page: &str) -> Vec<[String; 3]> {
    let said = |line: &str, what: &str| -> Option<(String, String)> {
        let (name, rest) = line.strip_prefix(what)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let kinds: Vec<_> = page.lines().filter_map(|line| said(line, "# TYPE ")).collect();
    let mut all: Vec<_> = page
        .lines()
        .filter_map(|line| said(line, "# HELP "))
        .map(|(name, help)| {
            let kind = kinds.iter().find(|(named, _)| *named == name).unwrap().1.clone();
            // The text format adds the end that counters have.
            let name = if kind == "counter" { format!("{name}_total") } else { name };
            [name, kind, help.trim_end_matches('.').to_owned()]
        })
        .collect();
    all.sort();
    all
}

/// The page of a sidecar to which everything has happened once.
fn page() -> String {
    let metrics = Metrics::default();
    let address = "10.0.0.1:1".parse().unwrap();
    let mut entry = Entry::new(Direction::Inbound, SystemTime::now(), address, address);
    let would = Would { is_allowed: true, policy: None, rule: None, workload: "n/w".into() };
    entry.decided = Some(Decided {
        is_allowed: false,
        id: None,
        rule: None,
        reason: "",
        version: "1".into(),
        would: Some(Box::new(would)),
        audit: None,
    });
    metrics.observe(&entry);
    metrics.peer_refused(Direction::Inbound, "expired");
    metrics.set_policy_version("1");
    let service: Arc<str> = "shop".into();
    metrics.upstreams().ejected(&service, "connect");
    metrics.upstreams().repeated(&service, Repeat::Sent, 1);
    metrics.upstreams().circuit_open(&service, "connections");
    metrics.encode(SystemTime::now())
}

#[test]
fn the_metrics_of_a_sidecar_stand_in_the_docs() {
    let page = page();
    let rows: String =
        metrics(&page).iter().map(|[name, kind, help]| format!("| `{name}` | {kind} | {help} |\n")).collect();
    let wanted = format!("| Metric | Kind | Meaning |\n|---|---|---|\n{rows}");
    let path = tree::root().join("docs/observability.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- printed: metrics -->\n", "<!-- end -->");
    let (before, rest) = text.split_once(begin).unwrap();
    let (written, after) = rest.split_once(end).unwrap();
    if std::env::var_os("POSTERN_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    assert!(
        written == wanted,
        "docs/observability.md does not list the metrics that there are; write them with:\n  \
         POSTERN_WRITE_DOCS=1 cargo test -p postern-tests --test observability"
    );
}

#[test]
fn the_rules_are_sound_and_alarm_when_they_should() {
    let Some(prometheus) = prometheus() else { return };
    for arguments in
        [["check", "rules", "prometheus-rules.yaml"], ["test", "rules", "prometheus-rules-test.yaml"]]
    {
        let output = Command::new(prometheus.join("promtool"))
            .args(arguments)
            .current_dir(tree::root().join(FOLDER))
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?} {output:?}");
    }
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_there_are() {
    let mut known: Vec<String> = metrics(&page()).into_iter().map(|[name, ..]| name).collect();
    // Of the control plane.
    known.extend(
        ["postern_authority_expiry_timestamp_seconds", "postern_sidecars_missing"].map(str::to_owned),
    );
    for file in ["prometheus-rules.yaml", "grafana-dashboard.json"] {
        let text = std::fs::read_to_string(tree::root().join(FOLDER).join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("postern_") || word.starts_with("istio_")) {
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(known.iter().any(|name| name == base), "{file} names {word}");
        }
    }
}

struct Prometheus {
    child: std::process::Child,
    address: std::net::SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// It scrapes both pages of these sidecars.
    fn start(programs: &std::path::Path, targets: &[String], merged: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], ports::real(9090)));
        let rules = tree::root().join(FOLDER).join("prometheus-rules.yaml");
        let configuration = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": [
                { "job_name": "postern", "static_configs": [{ "targets": targets }] },
                {
                    "job_name": "merged",
                    "metrics_path": "/stats/prometheus",
                    "static_configs": [{ "targets": merged }],
                },
            ],
        });
        // JSON is YAML.
        std::fs::write(folder.path().join("prometheus.yml"), configuration.to_string()).unwrap();
        let child = Command::new(programs.join("prometheus"))
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address, _folder: folder }
    }

    /// What a page of its API says; `None` while it does not listen.
    async fn ask(&self, path: &str) -> Option<Value> {
        let answer = Request::new(self.address, self.address.to_string()).path(path).send().await.ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    async fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.ask(&format!("/api/v1/query?query={encoded}")).await;
        answer.and_then(|answer| Some(answer["data"]["result"].as_array()?.clone())).unwrap_or_default()
    }
}

/// An app's own page for Prometheus.
async fn app_page() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let page = "# TYPE shop_orders_total counter\nshop_orders_total 3\n";
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{page}", page.len());
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_takes_what_sidecars_say_and_every_query_of_the_dashboard_returns_something() {
    let Some(programs) = prometheus() else { return };
    let rules = "action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]";
    let documents = payments(&(mode("payments", "STRICT") + &policy("reads", rules)));
    let app = Some(AppMetrics { address: app_page().await, path: "/metrics".parse().unwrap() });
    let mesh = Mesh::start_with(&documents, Settings { app_metrics: app, ..Settings::default() }).await;
    let targets: Vec<_> =
        ["payments-api", "checkout-api"].map(|name| mesh.workload(name).metrics().to_string()).into();
    let merged = [mesh.workload("payments-api").merged_metrics().to_string()];
    let prometheus = Prometheus::start(&programs, &targets, &merged);
    let dashboard =
        std::fs::read_to_string(tree::root().join(FOLDER).join("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut queries: Vec<String> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default())
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .map(|query| {
            query.replace("$__rate_interval", "10s").replace("$namespace", ".*").replace("$workload", ".*")
        })
        .collect();
    assert!(queries.len() >= 20, "{}", queries.len());
    within("every query returns something", async {
        while !queries.is_empty() {
            // Rates need calls between two scrapes.
            mesh.call("checkout-api", "payments-api", "GET", "/v1/charges").await.unwrap();
            assert_eq!(
                mesh.call("checkout-api", "payments-api", "PUT", "/v1/charges").await.unwrap().status,
                403
            );
            let mut silent = Vec::new();
            for query in queries {
                if prometheus.query(&query).await.is_empty() {
                    silent.push(query);
                }
            }
            queries = silent;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    let up = prometheus.query("up == 1").await;
    assert_eq!(up.len(), targets.len() + merged.len(), "all are scraped: {up:?}");
    for ours_and_the_apps in ["istio_requests_total", "postern_proxy_seconds_count", "shop_orders_total"] {
        let found = prometheus.query(&format!("{ours_and_the_apps}{{job=\"merged\"}}")).await;
        assert!(!found.is_empty(), "{ours_and_the_apps}");
    }
    let denied = "istio_requests_total{reporter=\"destination\",decision=\"deny\",job=\"postern\"}";
    let denied = prometheus.query(denied).await;
    assert_eq!(denied.len(), 1, "{denied:?}");
    for (label, value) in [
        ("source_principal", "spiffe://cluster.local/ns/checkout/sa/checkout-api"),
        ("source_workload", "checkout-api"),
        ("destination_workload", "payments-api"),
        ("destination_workload_namespace", "payments"),
        ("connection_security_policy", "mutual_tls"),
        ("response_code", "403"),
    ] {
        assert_eq!(denied[0]["metric"][label], value, "{label}: {denied:?}");
    }
    let rules = prometheus.ask("/api/v1/rules").await.unwrap();
    let count: usize = rules["data"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["rules"].as_array().unwrap().len())
        .sum();
    assert_eq!(count, 15);
    let unhealthy: Vec<_> = rules["data"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .filter(|rule| rule["health"] == "err")
        .collect();
    assert!(unhealthy.is_empty(), "{unhealthy:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_a_sidecar_says_of_itself_is_changed_while_it_runs() {
    let mesh = Standalone::start(StandaloneSettings::default()).await;
    let admin = mesh.admin("client");
    let ask = |method: &'static str, filter: &'static str| async move {
        let request = Request::new(admin, admin.to_string()).method(method).path("/log-level");
        request.body(filter).send().await.unwrap()
    };
    let said = || std::fs::read_to_string(mesh.path("client.err")).unwrap();
    let before = ask("GET", "").await.json()["log_level"].clone();
    assert!(!said().contains("\"level\":\"DEBUG\""), "{before}");

    let refused = ask("POST", "loud=very=much").await;
    assert_eq!(refused.status, 400);
    assert!(String::from_utf8_lossy(&refused.body).contains("postern_proxy::control=debug"), "{refused:?}");
    assert_eq!(ask("GET", "").await.json()["log_level"], before);
    let web_page = Request::new(admin, admin.to_string()).method("POST").path("/log-level");
    assert_eq!(web_page.header("origin", "http://127.0.0.1").body("debug").send().await.unwrap().status, 403);

    assert_eq!(ask("POST", "warn,postern_proxy=debug").await.json()["log_level"], "postern_proxy=debug,warn");
    assert_eq!(ask("GET", "").await.json()["log_level"], "postern_proxy=debug,warn");
    assert_eq!(ask("POST", "trace").await.status, 200);
    until("it says more", || {
        said().contains("\"level\":\"DEBUG\"") || said().contains("\"level\":\"TRACE\"")
    })
    .await;
}
