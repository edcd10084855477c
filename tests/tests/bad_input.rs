//! What a person reads who has made a mistake: one sentence of cause, one of remedy, the place, and the exit code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    certificates::{Leaf, self_signed},
    up::{Place, Run, SOON, Up, User, find, skipped},
};
use std::{net::TcpListener, process::Command};

/// A mistake, and what must be said about it.
struct Mistake {
    what: &'static str,
    files: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
    code: i32,
    said: &'static [&'static str],
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: pay}
spec: {containers: [{name: app, command: [postern, app, serve, --listen, \"8080\"]}]}
";

const TYPING: (&str, &str) = (
    "typing.yaml",
    "apiVersion: v1
kind: Service
metadata: {name: api, namespace: pay}
spec: {selektor: {app: api}, ports: [{name: http, port: 80}]}
",
);
const KIND: (&str, &str) = (
    "kind.yaml",
    "apiVersion: security.istio.io/v1
kind: PeerAuthentikation
metadata: {name: default, namespace: pay}
",
);
const IMAGE: (&str, &str) = (
    "image.yaml",
    "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: pay}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: app, image: nginx}]}
",
);

const UP: &[&str] = &["up", "yaml"];
const CHECK: &[&str] = &["check", "yaml"];

fn mistakes() -> Vec<Mistake> {
    vec![
        Mistake {
            what: "an unknown field, with the nearest key",
            files: &[TYPING],
            arguments: UP,
            code: 1,
            said: &[
                "unknown field `selektor` in spec",
                "--> yaml/typing.yaml:4:8",
                "spec: {selektor: {app: api}",
                "^^^^^^^^",
                "did you mean `selector`?",
                "nothing was started",
            ],
        },
        Mistake {
            what: "an unknown kind in a group of ours",
            files: &[KIND],
            arguments: UP,
            code: 1,
            said: &[
                "unknown kind `PeerAuthentikation` in `security.istio.io/v1`",
                "--> yaml/kind.yaml:2:7",
                "did you mean `PeerAuthentication`?",
            ],
        },
        Mistake {
            what: "a deployment without a command",
            files: &[IMAGE],
            arguments: UP,
            code: 1,
            said: &[
                "container `app` of pay/web has no command; postern up runs host processes and does not pull images",
                "--> yaml/image.yaml:8:",
                "add `command:",
            ],
        },
        Mistake {
            what: "two services with one name",
            files: &[(
                "twins.yaml",
                "apiVersion: v1
kind: Service
metadata: {name: api, namespace: pay}
spec: {selector: {app: api}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: pay}
spec: {selector: {app: api}, ports: [{name: http, port: 81}]}
",
            )],
            arguments: UP,
            code: 1,
            said: &[
                "Service pay/api is already in yaml/twins.yaml:1",
                "--> yaml/twins.yaml:8:18",
                "rename one of the two",
            ],
        },
        Mistake {
            what: "everything that is wrong with a folder, at once",
            files: &[TYPING, KIND, IMAGE],
            arguments: UP,
            code: 1,
            said: &[
                "`selektor`",
                "`PeerAuthentikation`",
                "has no command",
                "3 errors",
                "nothing was started",
            ],
        },
        Mistake {
            what: "the same, only looked at",
            files: &[TYPING, KIND, IMAGE],
            arguments: CHECK,
            code: 2,
            said: &["`selektor`", "`PeerAuthentikation`", "2 errors"],
        },
        Mistake {
            what: "nothing wrong",
            files: &[("pod.yaml", POD)],
            arguments: CHECK,
            code: 0,
            said: &["no problems"],
        },
        Mistake {
            what: "a command that is not on this machine",
            files: &[(
                "pod.yaml",
                "apiVersion: v1
kind: Pod
metadata: {name: web, namespace: pay}
spec: {containers: [{name: app, command: [no-such-program]}]}
",
            )],
            arguments: UP,
            code: 1,
            said: &[
                "the command `no-such-program` of container `app` in pod pay/web was not found",
                "help:  Install the program",
            ],
        },
        Mistake {
            what: "a folder without YAML",
            files: &[],
            arguments: UP,
            code: 1,
            said: &["the folder `yaml` holds no YAML file", "help:  Put files that end in .yaml"],
        },
        Mistake {
            what: "a folder that is not there",
            files: &[],
            arguments: &["up", "nowhere"],
            code: 1,
            said: &["the folder `nowhere` cannot be opened", "help:  Name a folder"],
        },
        Mistake {
            what: "a file instead of a folder",
            files: &[("pod.yaml", POD)],
            arguments: &["up", "yaml/pod.yaml"],
            code: 1,
            said: &["`yaml/pod.yaml` is not a folder", "help:  Name the folder"],
        },
        Mistake { what: "no folder", files: &[], arguments: &["up"], code: 64, said: &["<DIR>", "--help"] },
        Mistake {
            what: "an unknown command",
            files: &[],
            arguments: &["upp"],
            code: 64,
            said: &["unrecognized subcommand 'upp'", "similar", "up"],
        },
        Mistake {
            what: "a certificate that lives for ever",
            files: &[],
            arguments: &["up", "yaml", "--certificate-lifetime", "99999"],
            code: 64,
            said: &["'99999'", "1..=3600"],
        },
        Mistake {
            what: "a pod of a mesh that is not up",
            files: &[("pod.yaml", POD)],
            arguments: &["exec", "--dir", "yaml", "web", "--", "true"],
            code: 1,
            said: &["no mesh of `yaml` is up", "help:  Start it with `postern up yaml`"],
        },
    ]
}

fn end(command: Command) -> (Option<i32>, String) {
    let (status, said) = Run::start(command).end(SOON);
    (status.code(), said)
}

#[test]
fn every_mistake_is_answered_with_its_cause_its_remedy_and_its_exit_code() {
    for user in User::all() {
        for Mistake { what, files, arguments, code, said } in mistakes() {
            let place = Place::new(user);
            for (name, text) in files {
                place.write(name, text);
            }
            let mut command = place.postern();
            command.args(arguments);
            let (ended, answer) = end(command);
            assert_eq!(ended, Some(code), "{what}: {answer}");
            for part in said {
                assert!(answer.contains(part), "{what}: `{part}` is missing in:\n{answer}");
            }
        }
    }
}

#[test]
fn a_port_in_use_is_named_by_whoever_needs_it() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for user in User::all() {
        let place = Place::new(user);
        place.write("pod.yaml", POD);
        let address = format!("127.0.0.1:{port}");

        let mut control_plane = place.postern();
        control_plane.args([
            "control-plane",
            "--config",
            "yaml",
            "--state",
            "run/state",
            "--listen",
            &address,
        ]);
        let (code, said) = end(control_plane);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("port {port} is in use on 127.0.0.1")), "{said}");
        assert!(said.contains("choose another one with --listen"), "{said}");

        let mut leaf = Leaf::good("spiffe://cluster.local");
        leaf.is_ca = true;
        let bundle = self_signed(&place.yaml(), "root", &leaf).certificate;
        let token = place.yaml().join("token");
        std::fs::write(&token, "a token").unwrap();
        for path in [&bundle, &token] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        let mut sidecar = place.postern();
        sidecar.args(["proxy", "--control-plane", "127.0.0.1:1", "--admin", &address]);
        sidecar.arg("--trust-bundle").arg(&bundle).arg("--join-token-file").arg(&token);
        let (code, said) = end(sidecar);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!("the address {address} cannot be listened on: Address already in use")),
            "{said}"
        );
        assert!(said.contains("help: Stop the process that listens there"), "{said}");

        let pod = format!("[{{containerPort: {port}}}]");
        place.write("pod.yaml", &POD.replace("\"8080\"]", &format!("\"{port}\"], ports: {pod}")));
        let mut mesh = place.postern();
        mesh.args(["up", "yaml", "--no-namespaces"]);
        let (code, said) = end(mesh);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!(":{port}, which cannot be listened on: Address already in use")),
            "{said}"
        );
        assert!(said.contains("help:  Find who has it (ss -ltnp"), "{said}");
    }
}

/// Without namespaces too a folder has one mesh, and an unknown pod is answered with the known ones.
#[test]
fn a_second_mesh_and_an_unknown_pod_are_refused_with_what_there_is() {
    for user in User::all() {
        let mut mesh = Up::start(user, POD, &["--no-namespaces"]);
        let mut second = mesh.place.postern();
        second.args(["up", "yaml", "--no-namespaces"]);
        let (code, said) = end(second);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("is already up (process {})", mesh.run.pid())), "{said}");
        let unknown = end(mesh.exec_command("wep", &["true"]));
        assert_eq!(unknown.0, Some(1), "{}", unknown.1);
        assert!(
            unknown.1.contains("there is no pod `wep` in this mesh") && unknown.1.contains("pay/web"),
            "{}",
            unknown.1
        );
        assert_eq!(
            end(mesh.exec_command("web", &["sh", "-c", "exit 7"])).0,
            Some(7),
            "the command's own exit code"
        );
        mesh.stop();
    }
}

/// A program of the system is hidden by a mount that only the started program sees.
fn without(place: &Place, programs: &[&str]) -> Option<Command> {
    let unshare = find("unshare")?;
    let found = programs.iter().filter_map(|name| find(name)).filter_map(|path| path.canonicalize().ok());
    let mut script = String::new();
    for path in found {
        script.push_str(&format!("mount --bind /dev/null '{}' && ", path.display()));
    }
    let mut command = place.command(&unshare);
    // An ordinary user may mount in a user namespace only, and goes on as an ordinary user in another one within.
    if place.user() == User::Root {
        command.arg("-m");
        script.push_str("exec \"$@\"");
    } else {
        command.arg("-Urm");
        script.push_str("exec unshare -U --map-user=1000 --map-group=1000 \"$@\"");
    }
    command.args(["sh", "-c", &script, "sh"]).arg(place.program());
    Some(command)
}

const IPTABLES: &[&str] = &["iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"];

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let nft: Vec<&str> = ["nft"].iter().chain(IPTABLES).copied().collect();
    for user in User::with_namespaces() {
        for (hidden, cause, package) in [
            (nft.as_slice(), "neither `nft` nor `iptables-restore` is on this machine", "nftables"),
            (&["ip"], "`ip` is not on this machine", "iproute2"),
        ] {
            let place = Place::new(user);
            place.write("pod.yaml", POD);
            let Some(mut command) = without(&place, hidden) else {
                return skipped("`unshare` is missing (util-linux)");
            };
            command.args(UP);
            let (code, said) = end(command);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(cause), "{said}");
            assert!(said.contains(&format!("Install the package `{package}`")), "{said}");
            assert!(said.contains("--no-namespaces"), "{said}");
        }
    }
}

#[test]
fn where_only_iptables_is_there_it_redirects_both_families() {
    const MESH: &str = include_str!("namespaces_traffic.yaml");
    if IPTABLES.iter().any(|program| find(program).is_none()) {
        return skipped("iptables is not installed, so its rules were not tried (apt-get install iptables)");
    }
    for user in User::with_namespaces() {
        let place = Place::new(user);
        place.write("mesh.yaml", MESH);
        let Some(mut command) = without(&place, &["nft"]) else {
            return skipped("`unshare` is missing (util-linux)");
        };
        command.args(UP);
        let mesh = place.up_by(command);
        for family in ["-4", "-6"] {
            let call = |pod: &str, url: &str| mesh.curl(pod, &[family, url]);
            let allowed = call("good", "http://api.strict/iptables");
            assert_eq!(allowed.status, 200, "{family}: {allowed:?}");
            assert!(
                allowed.told()[0].contains("URI=spiffe://cluster.local/ns/callers/sa/good"),
                "{allowed:?}"
            );
            let from = mesh.run.here();
            assert_eq!(call("bad", "http://api.strict/stolen").status, 403, "{family}");
            let reset = call("legacy", "http://api.strict/stolen");
            assert_eq!((reset.code, reset.status), (56, 0), "{family}: {reset:?}");
            assert_eq!(call("good", "http://api.strict/mark").status, 200);
            mesh.app_line("api", from, "/mark");
            assert!(!mesh.app("api", from).iter().any(|l| l.contains("/stolen")), "{family}");
            assert_eq!(
                call("legacy", "http://api.open/plain").status,
                200,
                "{family}: the rules of service addresses"
            );
            let loop_ = call("good", "http://localhost:15001/");
            assert_eq!(loop_.status, 0, "{family}: {loop_:?}");
        }
    }
}
