//! Port 15020: the sidecar's metrics with the app's own behind them. What the app does or says, from nothing to far too much, leaves ours
//! whole, and Prometheus takes the page.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::{Bootstrap, Sidecar, bootstrap::app_metrics::AppMetrics};
use postern_tests::{
    Answer, Request, foreign,
    up::{Up, User, skipped, until},
    workload_api::bootstrap,
};
use std::{
    io::Write,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PLAIN: &str = "text/plain; version=0.0.4";
const PAGE: &str = "# HELP shop_orders_total Orders.\n# TYPE shop_orders_total counter\nshop_orders_total{kind=\"a \\\" # {b}\"} 3\n\
    # HELP istio_requests_total Not this sidecar's.\n# TYPE istio_requests_total counter\nistio_requests_total{reporter=\"app\"} 471147114711\n\
    # HELP shop_seconds Time.\n# TYPE shop_seconds histogram\nshop_seconds_bucket{le=\"+Inf\"} 1\nshop_seconds_sum 0.5\nshop_seconds_count 1\n";
const OPEN: &str = "# HELP shop_orders Orders.\n# TYPE shop_orders counter\n# UNIT shop_orders orders\nshop_orders_total 3 # {trace_id=\"ab\"} 1 17.5\n# EOF\n";

/// What an app of this temper answers to one request.
async fn answer(mut stream: TcpStream, temper: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    assert!(head.starts_with(b"GET /m?x=y HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
    let (status, kind, body) = match temper {
        "slow" => return std::future::pending().await,
        "gone" => return,
        "failing" => ("503 Busy", PLAIN, PAGE.to_owned()),
        "huge" => ("200 OK", PLAIN, "shop_orders_total 3\n".repeat(300_000)),
        "broken" => ("200 OK", PLAIN, format!("{PAGE}shop_orders_total{{kind=\"b\n")),
        "markup" => ("200 OK", "text/html", "<html>no metrics</html>".to_owned()),
        "open" => ("200 OK", "application/openmetrics-text; version=1.0.0", OPEN.to_owned()),
        _ => ("200 OK", PLAIN, PAGE.to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
}

/// A sidecar beside an app of this temper.
async fn sidecar(temper: &'static str) -> Sidecar {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    if temper != "absent" {
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, temper));
            }
        });
    }
    let app_metrics = Some(AppMetrics { address, path: "/m?x=y".parse().unwrap() });
    postern_proxy::start(Bootstrap { app_metrics, ..bootstrap("web") }).await.unwrap()
}

async fn ask(address: SocketAddr, path: &str) -> Answer {
    Request::new(address, address.to_string()).path(path).send().await.unwrap()
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).unwrap()
}

/// Families that a page says it has.
fn families(page: &str) -> Vec<&str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// Whether promtool can read it; what it would name otherwise is not asked.
fn promtool_reads(page: &str) {
    let Some(programs) =
        foreign::by_script("prometheus.sh", "POSTERN_PROMETHEUS_REQUIRED", "no promtool was tried")
    else {
        return;
    };
    let mut child = Command::new(programs.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // 3: it would name something otherwise; 1: it cannot be read.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}\n{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_has_our_metrics_and_the_apps_own_and_each_family_once() {
    for (temper, result) in [
        ("well", "taken"),
        ("open", "taken"),
        ("absent", "unreachable"),
        ("slow", "late"),
        ("gone", "unreachable"),
        ("failing", "refused"),
        ("huge", "too_large"),
        ("broken", "broken"),
        ("markup", "broken"),
    ] {
        let sidecar = sidecar(temper).await;
        let (merged, metrics) =
            (sidecar.addresses().merged_metrics.unwrap(), sidecar.addresses().metrics.unwrap());
        let answer = ask(merged, "/stats/prometheus").await;
        assert_eq!(answer.status, 200, "{temper}");
        assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let page = text(&answer);
        let ours = text(&ask(metrics, "/metrics").await);
        let mut found = families(&page);
        for family in families(&ours) {
            assert_eq!(found.iter().filter(|name| **name == family).count(), 1, "{temper} {family}: {page}");
            found.retain(|name| *name != family);
        }
        let theirs = match temper {
            "well" => vec!["shop_orders_total", "shop_seconds"],
            "open" => vec!["shop_orders_total"],
            _ => vec![],
        };
        assert_eq!(found, theirs, "{temper}: {page}");
        assert_eq!(page.contains("\nshop_orders_total"), !theirs.is_empty(), "{temper}: {page}");
        assert!(!page.contains("471147114711") && !page.contains("# EOF"), "{temper}: {page}");
        assert!(
            page.contains(&format!("postern_app_scrapes_total{{result=\"{result}\"}} 1\n")),
            "{temper}: {page}"
        );
        assert_eq!(page.matches("postern_app_scrapes_total{").count(), 6, "{page}");
        promtool_reads(&page);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_has_this_page_and_readiness_and_nothing_else() {
    let sidecar = sidecar("well").await;
    let merged = sidecar.addresses().merged_metrics.unwrap();
    // There is no certificate, so it is not ready, and says so as the port for probes does.
    assert_eq!(ask(merged, "/healthz/ready").await.status, 503);
    for path in
        ["/", "/metrics", "/m?x=y", "/config", "/healthz/live", "/stats/prometheus/x", "/ready", "/drain"]
    {
        assert_eq!(ask(merged, path).await.status, 404, "{path}");
    }
    let post = Request::new(merged, merged.to_string()).method("POST").path("/stats/prometheus");
    assert_eq!(post.send().await.unwrap().status, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_without_metrics_is_not_asked() {
    let sidecar = postern_proxy::start(bootstrap("web")).await.unwrap();
    let answer = ask(sidecar.addresses().merged_metrics.unwrap(), "/stats/prometheus").await;
    let page = text(&answer);
    assert_eq!(answer.status, 200);
    assert!(page.contains("postern_app_scrapes_total{result=\"taken\"} 0\n"), "{page}");
    promtool_reads(&page);
}

/// A pod with metrics of its own on its loopback address, where only its sidecar reaches them, and one outside of the mesh.
fn pods(python: &str, folder: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio-injection: enabled}}}}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: outside}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: shop}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  annotations: \
         {{prometheus.io/scrape: \"true\", prometheus.io/port: \"9102\", prometheus.io/path: /page}}\nspec:\n  containers:\n  \
         - {{name: app, command: [postern, app, serve, --listen, \"8080\", --name, web], ports: [{{containerPort: 8080}}]}}\n  \
         - {{name: metrics, command: [{python}, -m, http.server, \"9102\", --bind, 127.0.0.1, --directory, {folder}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: prometheus, namespace: outside}}\nspec:\n  containers:\n  \
         - {{name: app, command: [postern, app, serve, --listen, \"8080\", --name, prometheus], ports: [{{containerPort: 8080}}]}}\n"
    )
}

#[test]
fn in_network_namespaces_the_port_is_reached_from_outside_the_mesh_and_the_app_behind_it_is_not() {
    // The system's own, which every user may start.
    let python = "/usr/bin/python3";
    if !std::path::Path::new(python).exists() {
        return skipped(&format!("{python} is missing on this machine"));
    }
    for user in User::with_namespaces() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("page"), PAGE).unwrap();
        let up = Up::start(user, &pods(python, folder.path().to_str().unwrap()), &[]);
        let (address, _) = up.addresses("shop/web");
        let from_outside = |path: &str| up.curl("prometheus", &[&format!("http://{address}:{path}")]);
        until("the app has metrics", Duration::from_secs(20), || {
            from_outside("15020/stats/prometheus")
                .body
                .contains("shop_orders_total{kind=\"a \\\" # {b}\"} 3\n")
        });
        let page = from_outside("15020/stats/prometheus");
        assert!(
            page.status == 200 && page.body.contains("postern_control_plane_connected 1\n"),
            "{user:?} {page:?}"
        );
        assert_eq!(from_outside("15020/healthz/ready").status, 200, "{user:?}");
        assert_eq!(from_outside("15020/page").status, 404, "{user:?}");
        for closed in ["9102/page", "8080/"] {
            let refused = from_outside(closed);
            assert_ne!(refused.code, 0, "{user:?} {closed}: {refused:?}");
        }
    }
}
