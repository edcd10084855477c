//! TPROXY between real network namespaces: the app sees the address of its caller, and everything that holds for redirected
//! connections holds for these as well. Each claim has its twin, a pod of the same kind that is redirected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    shared::Shared,
    up::{Curl, Place, SOON, Up, User, until},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use std::{sync::Arc, time::Duration};

const MESH: &str = include_str!("namespaces_tproxy.yaml");

/// One mesh for each user.
fn meshes() -> Vec<Arc<Up>> {
    static SHARED: Shared = Shared::new();
    SHARED.meshes(MESH)
}

/// The addresses of a pod as a URL has them, by the flag that `curl` has for the family.
fn hosts(mesh: &Up, pod: &str) -> [(&'static str, String); 2] {
    let (v4, v6) = mesh.addresses(pod);
    [("-4", v4), ("-6", format!("[{v6}]"))]
}

/// The address that the app saw, as a URL has it.
fn seen(answer: &Curl) -> String {
    let echoed: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let (address, _port) = echoed["from"].as_str().unwrap().rsplit_once(':').unwrap();
    address.to_owned()
}

/// The app has answered an allowed call after all that came before, so what it has not told by then never reached it.
fn nothing_arrived(mesh: &Up, from: usize, canary: &str) {
    let mark = format!("/mark-{}-{from}", canary.trim_start_matches('/'));
    let allowed = mesh.curl("good", &[&format!("http://clear.strict{mark}")]);
    assert_eq!(allowed.status, 200, "{allowed:?}");
    let told =
        || mesh.run.since(from).into_iter().filter(|l| l.starts_with("clear app") || l.contains(" app | "));
    mesh.run.line(from, |l| l.contains(" | ") && l.contains("clear received") && l.contains(&mark));
    let reached: Vec<String> = told().filter(|l| l.contains(canary) && l.contains("received")).collect();
    assert!(reached.is_empty(), "{canary} reached the app: {reached:?}");
}

#[test]
fn under_tproxy_the_app_sees_the_address_of_its_caller_and_under_redirect_that_of_its_sidecar() {
    for mesh in meshes() {
        for caller in ["good", "good-too"] {
            let own = hosts(&mesh, &format!("callers/{caller}"));
            for (n, (family, address)) in own.iter().enumerate() {
                let [clear, twin] =
                    ["clear", "twin"].map(|pod| hosts(&mesh, &format!("strict/{pod}"))[n].1.clone());
                // Twice each, so that the second call goes over a connection that is kept.
                for url in
                    [format!("http://{clear}:8080"), "http://clear.strict".to_owned()].iter().cycle().take(4)
                {
                    let answer = mesh.curl(caller, &[family, &format!("{url}/seen")]);
                    assert_eq!(answer.status, 200, "{caller} {url}: {answer:?}");
                    assert_eq!(&seen(&answer), address, "{caller} {url}: {answer:?}");
                    assert!(
                        answer.told()[0].contains("URI=spiffe://cluster.local/ns/callers/sa/good"),
                        "{answer:?}"
                    );
                }
                for url in [format!("http://{twin}:8080"), "http://twin.strict".to_owned()] {
                    let answer = mesh.curl(caller, &[family, &format!("{url}/seen")]);
                    let passthrough = if *family == "-4" { "127.0.0.6" } else { "[::6]" };
                    assert_eq!((answer.status, seen(&answer).as_str()), (200, passthrough), "{answer:?}");
                }
                let from = mesh.run.here();
                for (pod, address) in [
                    ("clear", address.as_str()),
                    ("twin", if *family == "-4" { "127.0.0.6" } else { "[::6]" }),
                ] {
                    let host = &hosts(&mesh, &format!("strict/{pod}"))[n].1;
                    let call = ["postern", "app", "call", &format!("tcp://{host}:9000"), "-d", "hello"];
                    let said = mesh.exec(caller, &call);
                    assert_eq!(String::from_utf8_lossy(&said.stdout).trim_end(), "hello", "{pod}: {said:?}");
                    mesh.run.line(from, |l| {
                        l.starts_with(pod)
                            && l.contains(&format!("echo received TCP connection from {address}:"))
                    });
                }
            }
        }
    }
}

#[test]
fn a_forbidden_and_a_plaintext_call_never_reach_an_app_under_tproxy() {
    for mesh in meshes() {
        for (family, clear) in hosts(&mesh, "strict/clear") {
            let from = mesh.run.here();
            let refused = mesh.curl("bad", &[family, &format!("http://{clear}:8080/stolen")]);
            assert_eq!(refused.status, 403, "{refused:?}");
            let reset = mesh.curl("legacy", &[family, &format!("http://{clear}:8080/plain")]);
            assert_eq!((reset.code, reset.status), (56, 0), "connection reset by peer: {reset:?}");
            for pod in ["bad", "legacy"] {
                let call = ["postern", "app", "call", &format!("tcp://{clear}:9000"), "-d", "stolen"];
                let ended = mesh.exec(pod, &call);
                assert!(!ended.status.success() && ended.stdout.is_empty(), "{pod}: {ended:?}");
            }
            mesh.access("clear", from, |l| l["postern.reason"] == "plaintext on a port that is STRICT");
            let denied = mesh
                .access("clear", from, |l| l["url.path"] == "/stolen" && l["postern.direction"] == "inbound");
            assert_eq!(denied["postern.source.id"], "spiffe://cluster.local/ns/callers/sa/bad", "{denied}");
            // The twin: the same pods at the port beside it, which is open to them.
            for (caller, pod) in [("bad", "callers/bad"), ("legacy", "outside/legacy")] {
                let served = mesh.curl(caller, &[family, &format!("http://{clear}:8081/open")]);
                let own = hosts(&mesh, pod).into_iter().find(|(of, _)| *of == family).unwrap().1;
                assert_eq!((served.status, seen(&served)), (200, own), "{served:?}");
            }
            nothing_arrived(&mesh, from, "/stolen");
            nothing_arrived(&mesh, from, "/plain");
            let connections = mesh
                .run
                .since(from)
                .iter()
                .filter(|l| l.starts_with("clear") && l.contains("echo received"))
                .count();
            assert_eq!(connections, 0);
        }
    }
}

#[test]
fn nobody_reaches_the_ports_of_a_sidecar_under_tproxy_and_a_pod_reaches_itself() {
    for mesh in meshes() {
        for (family, clear) in hosts(&mesh, "strict/clear") {
            let mine = if family == "-4" { "127.0.0.1" } else { "[::1]" };
            for port in [15006, 15001] {
                for (caller, host) in [("clear", mine), ("clear", clear.as_str()), ("legacy", clear.as_str())]
                {
                    let refused = mesh.curl(caller, &[family, &format!("http://{host}:{port}/loop")]);
                    assert_eq!(refused.status, 0, "{caller} to {host}:{port}: {refused:?}");
                    assert!(refused.took < Duration::from_secs(1), "{caller} to {host}:{port}: {refused:?}");
                }
            }
            // By its own service it passes its own sidecar twice, as its own identity, and meets its own policy.
            assert_eq!(mesh.curl("clear", &[family, "http://clear.strict/self"]).status, 403);
            let itself = mesh.curl("clear", &[family, "http://clear.strict:81/self"]);
            assert_eq!((itself.status, seen(&itself)), (200, clear.clone()), "{itself:?}");
            assert!(itself.took < Duration::from_secs(2), "no loop: {itself:?}");
            let outward = hosts(&mesh, "outside/legacy").into_iter().find(|(of, _)| *of == family).unwrap().1;
            assert_eq!(mesh.curl("clear", &[&format!("http://{outward}:8080/outward")]).status, 200);
        }
    }
}

#[test]
fn without_its_sidecar_a_pod_under_tproxy_is_closed() {
    for user in User::with_namespaces() {
        let mesh = Up::start(user, MESH, &[]);
        let calls: Vec<(&str, String)> = hosts(&mesh, "strict/clear")
            .iter()
            .map(|(family, host)| (*family, format!("http://{host}:8081/inward")))
            .collect();
        for (family, url) in &calls {
            assert_eq!(mesh.curl("legacy", &[family, url]).status, 200, "{url}");
        }
        let sidecar =
            mesh.processes().into_iter().find(|p| p.command.contains(" proxy --instance=clear ")).unwrap();
        let down = mesh.run.here();
        sidecar.kill();
        let mut failed = 0;
        // It is started again after a tenth of a second: until then calls must fail, and what comes in has passed a sidecar, which
        // says so with a request id that curl does not send.
        for (family, url) in calls.iter().cycle() {
            let tried = mesh.curl("legacy", &[family, url]);
            if tried.status == 200 {
                assert!(tried.body.contains("x-request-id"), "past the sidecar: {url}: {tried:?}");
                break;
            }
            assert_eq!(tried.status, 0, "{url}: {tried:?}");
            failed += 1;
        }
        assert!(failed >= 1, "not one try in the time without a sidecar");
        mesh.run.line(down, |l| l.starts_with("clear: sidecar ended"));
        for (family, url) in &calls {
            until("calls work again", SOON, || mesh.curl("legacy", &[family, url]).status == 200);
        }
    }
}

/// Without a namespace of its own, an ordinary user has no capability at all.
#[test]
fn a_sidecar_that_may_not_take_connections_by_tproxy_says_so_and_does_not_start() {
    let place = Place::new(User::Ordinary);
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    place.write("root.pem", &root.self_signed(&KeyPair::generate().unwrap()).unwrap().pem());
    let start = |mode: &str| {
        let mut command = place.postern();
        command.args([
            "proxy",
            "--control-plane=127.0.0.1:1",
            "--trust-bundle=yaml/root.pem",
            "--interception-mode",
        ]);
        command.args([mode, "--inbound=127.0.0.1:0", "--outbound=127.0.0.1:0", "--admin=127.0.0.1:0"]);
        command.args(["--probes=127.0.0.1:0", "--metrics=127.0.0.1:0", "--merged-metrics=127.0.0.1:0"]);
        command
    };
    let refused = start("tproxy").output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    for part in ["TPROXY", "CAP_NET_ADMIN", "not permitted"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    // The twin gets as far as listening.
    let redirected = postern_tests::up::Run::start(start("redirect"));
    redirected.line(0, |l| l.contains("sidecar listens"));
}
