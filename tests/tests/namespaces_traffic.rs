//! Real traffic between real network namespaces: what `curl`, `openssl` and plain sockets see when they call pods
//! through the redirect rules, over IPv4 and IPv6, as root and as an ordinary user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    certificates::{Leaf, Pair, Signer, self_signed},
    shared::Shared,
    up::{Curl, Process, SOON, Up, find, skipped, until},
};
use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

const MESH: &str = include_str!("namespaces_traffic.yaml");
const GOOD: &str = "URI=spiffe://cluster.local/ns/callers/sa/good";

/// One mesh for each user.
fn meshes() -> Vec<Arc<Up>> {
    static SHARED: Shared = Shared::new();
    SHARED.meshes(MESH)
}

/// The ways to an app on port 8080 of `pod`, behind port 80 of `service`.
fn ways(mesh: &Up, pod: &str, service: &str) -> Vec<(&'static str, String)> {
    let (v4, v6) = mesh.addresses(pod);
    vec![
        ("-4", format!("http://{service}")),
        ("-6", format!("http://{service}")),
        ("-4", format!("http://{v4}:8080")),
        ("-6", format!("http://[{v6}]:8080")),
    ]
}

fn call(mesh: &Up, from: &str, (family, url): &(&str, String), path: &str) -> Curl {
    mesh.curl(from, &[family, &format!("{url}{path}")])
}

/// The app has answered an allowed call after all that came before, so what it has not told by then never reached it.
fn nothing_arrived(mesh: &Up, pod: &str, app: &str, from: usize, canary: &str) {
    let mark = format!("/mark-{}-{from}", canary.trim_start_matches('/'));
    let allowed = mesh.curl("good", &[&format!("http://{app}{mark}")]);
    assert_eq!(allowed.status, 200, "{allowed:?}");
    mesh.app_line(pod, from, &mark);
    let told = mesh.app(pod, from);
    assert!(!told.iter().any(|l| l.contains(canary)), "{canary} reached {pod}: {told:?}");
}

#[test]
fn every_way_to_a_service_reaches_it_over_mutual_tls() {
    for mesh in meshes() {
        let mut all = ways(&mesh, "strict/api", "api.strict");
        all.extend(["-4", "-6"].map(|family| (family, "http://api.strict.svc".to_owned())));
        all.extend(["-4", "-6"].map(|family| (family, "http://api.strict.svc.cluster.local".to_owned())));
        let hosts = mesh.exec("good", &["cat", "/etc/hosts"]).stdout;
        let hosts = String::from_utf8(hosts).unwrap();
        let virtuals: Vec<_> = hosts.lines().filter(|l| l.contains("api.strict.svc ")).collect();
        assert_eq!(virtuals.len(), 2, "one of each family: {hosts}");
        for line in virtuals {
            let address = line.split_whitespace().next().unwrap();
            let (family, host) = if address.contains(':') {
                ("-6", format!("[{address}]"))
            } else {
                ("-4", address.to_owned())
            };
            all.push((family, format!("http://{host}")));
        }
        for way in &all {
            let from = mesh.run.here();
            let answer = call(&mesh, "good", way, "/ways");
            assert_eq!((answer.code, answer.status), (0, 200), "{way:?}: {answer:?}");
            assert!(answer.told().len() == 1 && answer.told()[0].contains(GOOD), "{way:?}: {answer:?}");
            let log =
                mesh.access("api", from, |l| l["postern.direction"] == "inbound" && l["url.path"] == "/ways");
            assert_eq!(log["tls.protocol.version"], "1.3", "{log}");
            assert_eq!(log["network.peer.address"].as_str().unwrap().contains(':'), way.0 == "-6", "{log}");
        }
    }
}

#[test]
fn another_identity_is_refused_by_every_way_and_the_app_receives_nothing() {
    for mesh in meshes() {
        let from = mesh.run.here();
        for way in ways(&mesh, "strict/api", "api.strict") {
            let refused = call(&mesh, "bad", &way, "/stolen");
            assert_eq!((refused.code, refused.status), (0, 403), "{way:?}: {refused:?}");
            assert!(refused.body.contains("RBAC: access denied"), "{refused:?}");
            let twin = call(&mesh, "good", &way, "/bought");
            assert_eq!(twin.status, 200, "{way:?}: {twin:?}");
        }
        let log =
            mesh.access("api", from, |l| l["url.path"] == "/stolen" && l["postern.direction"] == "inbound");
        assert_eq!(log["postern.source.id"], "spiffe://cluster.local/ns/callers/sa/bad", "{log}");
        nothing_arrived(&mesh, "api", "api.strict", from, "/stolen");
    }
}

#[test]
fn plaintext_from_outside_is_reset_where_strict_and_served_where_permissive() {
    for mesh in meshes() {
        let from = mesh.run.here();
        for way in ways(&mesh, "strict/api", "api.strict") {
            let reset = call(&mesh, "legacy", &way, "/plain");
            assert_eq!((reset.code, reset.status), (56, 0), "connection reset by peer: {way:?}: {reset:?}");
        }
        mesh.access("api", from, |l| l["postern.reason"] == "plaintext on a port that is STRICT");
        nothing_arrived(&mesh, "api", "api.strict", from, "/plain");
        // The twin: the same calls to a namespace that is PERMISSIVE. What a caller says of itself does not count.
        for (family, url) in ways(&mesh, "open/open-api", "api.open") {
            let lie = "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/callers/sa/good";
            let served = mesh.curl("legacy", &[family, "-H", lie, &format!("{url}/plain")]);
            assert_eq!(served.status, 200, "{family} {url}: {served:?}");
            assert!(served.told().is_empty(), "{served:?}");
            assert!(
                served.body.contains(r#""from":"127.0.0.6"#) || served.body.contains(r#""from":"[::6]"#),
                "it came through the sidecar: {}",
                served.body
            );
        }
    }
}

#[test]
fn a_certificate_that_the_mesh_did_not_issue_ends_the_handshake() {
    for mesh in meshes() {
        let from = mesh.run.here();
        // Below the folder of the YAML, since a pod's programs run there.
        let folder = mesh.place.yaml();
        let good = "spiffe://cluster.local/ns/callers/sa/good";
        let stranger = Signer::stranger("cluster.local", &folder);
        let elsewhere = Signer::stranger("evil.example", &folder);
        let cases: Vec<(&str, Option<Pair>)> = vec![
            ("no certificate", None),
            ("self-signed", Some(self_signed(&folder, "self-signed", &Leaf::good(good)))),
            ("another authority", Some(stranger.sign("stranger", &Leaf::good(good)))),
            ("expired", Some(stranger.sign("expired", &Leaf::good(good).expired()))),
            (
                "another domain",
                Some(elsewhere.sign("domain", &Leaf::good("spiffe://evil.example/ns/callers/sa/good"))),
            ),
        ];
        for (what, pair) in &cases {
            for address in pod_sockets(&mesh, "strict/api") {
                let url = format!("https://{address}/handshake");
                let mut arguments = vec!["--insecure", &url];
                let pair = pair.as_ref().map(|p| (readable(&p.certificate), readable(&p.key)));
                if let Some((certificate, key)) = &pair {
                    arguments.extend(["--cert", certificate, "--key", key]);
                }
                let ended = mesh.curl("legacy", &arguments);
                assert!(ended.code != 0 && ended.status == 0, "{what} at {address}: {ended:?}");
                let Some(openssl) = find("openssl") else { continue };
                let mut s_client =
                    vec![openssl.to_str().unwrap(), "s_client", "-connect", &address, "-ign_eof"];
                if let Some((certificate, key)) = &pair {
                    s_client.extend(["-cert", certificate, "-key", key]);
                }
                let seen = mesh.exec("legacy", &s_client);
                let seen = String::from_utf8_lossy(&seen.stdout) + String::from_utf8_lossy(&seen.stderr);
                assert!(seen.contains("alert"), "{what} at {address}: {seen}");
                assert!(seen.contains("TLSv1.3"), "{what} at {address}: {seen}");
            }
        }
        if find("openssl").is_none() {
            skipped("the half of it that needs openssl, which is missing (make setup)");
        }
        nothing_arrived(&mesh, "api", "api.strict", from, "/handshake");
    }
}

fn pod_sockets(mesh: &Up, pod: &str) -> [String; 2] {
    let (v4, v6) = mesh.addresses(pod);
    [format!("{v4}:8080"), format!("[{v6}]:8080")]
}

/// Keys are made for their owner alone; the pod may be another user.
fn readable(file: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    file.display().to_string()
}

#[test]
fn nobody_reaches_the_ports_of_a_sidecar_by_a_detour() {
    for mesh in meshes() {
        let (v4, v6) = mesh.addresses("callers/good");
        let mine = ["127.0.0.1:15006", "127.0.0.1:15001", "[::1]:15006", "[::1]:15001", "0.0.0.0:15006"];
        let pod: Vec<String> =
            [15006, 15001].iter().flat_map(|p| [format!("{v4}:{p}"), format!("[{v6}]:{p}")]).collect();
        let admin = [format!("{v4}:15000"), format!("[{v6}]:15000")];
        let own =
            mine.iter().map(|a| (*a).to_owned()).chain(pod.iter().cloned()).chain(admin.iter().cloned());
        let calls = own.map(|a| ("good", a)).chain(
            pod.iter().chain(&admin).flat_map(|a| ["legacy", "bad"].map(|caller| (caller, a.clone()))),
        );
        for (caller, address) in calls {
            let refused = mesh.curl(caller, &[&format!("http://{address}/certificates")]);
            // Another pod's own sidecar answers for the one that refuses.
            let status = if caller == "bad" { 503 } else { 0 };
            assert_eq!(refused.status, status, "{caller} to {address}: {refused:?}");
            assert!(refused.took < Duration::from_secs(1), "{caller} to {address}: {refused:?}");
        }
        // And the sidecar is as well as before, with nothing left open.
        let metrics = mesh.curl("good", &["http://127.0.0.1:15000/certificates"]);
        assert_eq!(metrics.status, 200, "its own pod may ask: {metrics:?}");
        assert_eq!(mesh.curl("good", &["http://api.strict/after"]).status, 200);
    }
}

#[test]
fn tcp_is_let_through_or_reset_by_identity_whoever_speaks_first() {
    for mesh in meshes() {
        let from = mesh.run.here();
        let hosts = String::from_utf8(mesh.exec("good", &["cat", "/etc/hosts"]).stdout).unwrap();
        let addresses: Vec<String> = hosts
            .lines()
            .filter(|l| l.contains("echo.strict.svc "))
            .map(|l| l.split_whitespace().next().unwrap())
            .map(|a| if a.contains(':') { format!("[{a}]") } else { a.to_owned() })
            .collect();
        assert_eq!(addresses.len(), 2, "{hosts}");
        let mut served = 0;
        for host in addresses {
            for (port, answer) in [(9000, "hello"), (9001, "220 greeter ready\r\nhello")] {
                let url = format!("tcp://{host}:{port}");
                let call = |pod| mesh.exec(pod, &["postern", "app", "call", &url, "-d", "hello"]);
                let allowed = call("good");
                let said = String::from_utf8_lossy(&allowed.stdout).into_owned();
                assert_eq!((allowed.status.code(), said.trim_end()), (Some(0), answer), "{url}: {allowed:?}");
                served += 1;
                for pod in ["bad", "legacy"] {
                    let reset = call(pod);
                    let why = String::from_utf8_lossy(&reset.stderr).into_owned();
                    assert_eq!(reset.status.code(), Some(1), "{pod} {url}: {reset:?}");
                    assert!(why.contains("reset") && reset.stdout.is_empty(), "{pod} {url}: {reset:?}");
                }
            }
        }
        // A last allowed one, so that everything before it has been told.
        let last = mesh
            .exec("good", &["postern", "app", "call", "tcp://echo.strict:9000", "-d", "a last, longer one"]);
        assert!(last.status.success(), "{last:?}");
        mesh.app_line("echo", from, "echoed 18 bytes");
        let connections =
            mesh.app("echo", from).iter().filter(|l| l.contains("received TCP connection")).count();
        assert_eq!(connections, served + 1, "only the allowed ones: {:?}", mesh.app("echo", from));
        let denied = mesh
            .access("echo", from, |l| l["postern.decision"] == "deny" && l["network.protocol.name"] == "tcp");
        assert_eq!(denied["postern.source.id"], "spiffe://cluster.local/ns/callers/sa/bad", "{denied}");
    }
}

#[test]
fn calls_to_addresses_outside_the_mesh_pass_the_sidecar_in_both_families() {
    for mesh in meshes() {
        for address in pod_sockets(&mesh, "outside/legacy") {
            let from = mesh.run.here();
            let answer = mesh.curl("good", &[&format!("http://{address}/outward")]);
            assert_eq!(answer.status, 200, "{address}: {answer:?}");
            let log = mesh.access("good", from, |l| {
                l["postern.direction"] == "outbound" && l["url.path"] == "/outward"
            });
            let to = address.parse::<SocketAddr>().unwrap();
            assert_eq!(log["network.local.address"], to.ip().to_string(), "{log}");
            assert_eq!(log["network.local.port"], to.port(), "{log}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    for mesh in meshes() {
        for family in ["-4", "-6"] {
            for (n, url) in ["http://api.open/self", "http://api/self"].iter().enumerate() {
                let answer = mesh.curl("open-api", &[family, url]);
                assert_eq!(answer.status, 200, "{family} {url}: {answer:?}");
                assert!(answer.took < Duration::from_secs(2), "no loop ({n}): {answer:?}");
            }
            // Where a policy does not name the pod itself, it is refused like anybody else.
            assert_eq!(mesh.curl("api", &[family, "http://api.strict/self"]).status, 403);
        }
        for address in pod_sockets(&mesh, "open/open-api") {
            assert_eq!(mesh.curl("open-api", &[&format!("http://{address}/self")]).status, 200, "{address}");
        }
    }
}

#[test]
fn the_short_name_means_the_service_of_the_own_namespace() {
    for mesh in meshes() {
        for family in ["-4", "-6"] {
            let own = mesh.curl("open-api", &[family, "http://api/name"]);
            assert!(own.body.contains("\"app\":\"open-api\""), "{own:?}");
            let other = mesh.curl("open-api", &[family, "http://solo.callers/name"]);
            assert!(other.body.contains("\"app\":\"solo\""), "{other:?}");
            let mine = mesh.curl("good", &[family, "http://solo/name"]);
            assert!(mine.body.contains("\"app\":\"solo\""), "{mine:?}");
        }
        for (pod, name) in [("open-api", "solo"), ("legacy", "api"), ("good", "api"), ("good", "api.nowhere")]
        {
            let unknown = mesh.curl(pod, &[&format!("http://{name}/name")]);
            assert_eq!(unknown.code, 6, "{name} does not resolve in {pod}: {unknown:?}");
        }
    }
}

#[test]
fn without_its_sidecar_a_pod_is_cut_off_and_never_in_the_clear() {
    for mesh in meshes() {
        let from = mesh.run.here();
        let (v4, v6) = mesh.addresses("open/victim");
        let inward = [format!("http://{v4}:8080/inward"), format!("http://[{v6}]:8080/inward")];
        let (o4, o6) = mesh.addresses("outside/legacy");
        let outward = [format!("http://{o4}:8080/victims"), format!("http://[{o6}]:8080/victims")];
        let calls: Vec<(&str, &str)> = inward
            .iter()
            .map(|u| ("legacy", u.as_str()))
            .chain(outward.iter().map(|u| ("victim", u.as_str())))
            .collect();
        for (pod, url) in &calls {
            assert_eq!(mesh.curl(pod, &[url]).status, 200, "{pod} {url}");
        }
        let arrived = mesh.app("victim", from).len();
        // It starts again sooner than anything could be tried, so it is killed until the pause is long enough.
        let sidecar =
            || mesh.processes().into_iter().find(|p| p.command.contains(" proxy --instance=victim "));
        for pause in ["100ms", "200ms", "400ms", "800ms"] {
            let down = mesh.run.here();
            until("the sidecar has started", SOON, || sidecar().inspect(Process::kill).is_some());
            mesh.run.line(down, |l| l.starts_with("victim: sidecar ended") && l.contains(pause));
        }
        let killed = Instant::now();
        // What is tried meanwhile must fail.
        let mut failed = 0;
        for (pod, url) in calls.iter().cycle() {
            let tried = mesh.curl(pod, &[url]);
            if killed.elapsed() > Duration::from_millis(750) {
                break;
            }
            assert_eq!(tried.status, 0, "{pod} {url}: {tried:?}");
            failed += 1;
        }
        assert!(failed >= 4, "only {failed} tries in the time without a sidecar");
        assert_eq!(mesh.app("victim", from).len(), arrived, "nothing came in while the sidecar was dead");
        for (pod, url) in &calls {
            until("calls work again", SOON, || mesh.curl(pod, &[url]).status == 200);
        }
        let direct = |l: &String| {
            l.contains("received") && !l.contains("from 127.0.0.6:") && !l.contains("from [::6]:")
        };
        assert!(
            !mesh.app("victim", from).iter().any(direct),
            "all came through a sidecar: {:?}",
            mesh.app("victim", from)
        );
    }
}

/// `FetchX509SVID` with an empty message by nothing but `curl`; the stream does not end by itself.
const FETCH: &str = r#"printf '\0\0\0\0\0' | curl -sS -N --max-time 2 --http2-prior-knowledge \
    --unix-socket "${SPIFFE_ENDPOINT_SOCKET#unix://}" -H 'content-type: application/grpc' -H 'te: trailers' \
    -H 'workload.spiffe.io: true' --data-binary @- http://localhost/SpiffeWorkloadAPI/FetchX509SVID"#;

#[test]
fn programs_of_a_pod_find_its_own_identity_on_its_socket_and_nothing_else_of_the_mesh() {
    for mesh in meshes() {
        let run = |pod: &str, script: &str| {
            let output = mesh.exec(pod, &["sh", "-c", script]);
            let (said, error) = (
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            );
            (said, error)
        };
        for (pod, id) in [
            ("good", "spiffe://cluster.local/ns/callers/sa/good"),
            ("open-api", "spiffe://cluster.local/ns/open/sa/api"),
        ] {
            let (said, error) = run(pod, FETCH);
            assert!(said.contains(id), "{pod}: {said:?} {error}");
            let (seen, _) = run(pod, r#"ls -A "$(dirname "${SPIFFE_ENDPOINT_SOCKET#unix://}")""#);
            assert_eq!(seen, "workload.sock\n", "{pod}");
            let (devices, _) = run(pod, "ls /dev/null");
            assert_eq!(devices, "/dev/null\n", "{pod} has its devices back");
        }
        assert_eq!(run("legacy", "echo \"[$SPIFFE_ENDPOINT_SOCKET]\"").0, "[]\n");
    }
}
