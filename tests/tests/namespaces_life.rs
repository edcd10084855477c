//! The life of a mesh: it ends without a trace, follows its files, and keeps its last good state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use nix::sys::signal::Signal;
use postern_tests::up::{Place, Process, Run, SOON, Up, User, find, until};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a change of a file may take.
const PROMPT: Duration = Duration::from_secs(1);
/// What the kernel may take to end a mesh whose outermost process was killed.
const GONE: Duration = Duration::from_secs(1);

const MESH: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: pay, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: pay}
spec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: pay, labels: {app: api}}
spec: {serviceAccountName: api, containers: [{name: app, command: [postern, app, serve, --listen, "8080", --name, api], ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: caller, namespace: pay}
spec: {serviceAccountName: caller, containers: [{name: app, command: [postern, app, serve, --listen, "8080", --name, caller], ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: legacy, namespace: outside}
spec: {containers: [{name: app, command: [postern, app, serve, --listen, "8080", --name, legacy], ports: [{containerPort: 8080}]}]}
"#;

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: stop, namespace: pay}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/v1/*"]}}]}]}
"#;

/// What could stay behind on the host.
#[derive(Debug, PartialEq)]
struct Host {
    interfaces: BTreeSet<String>,
    tables: BTreeSet<String>,
    mounts: Vec<String>,
    runtime: Vec<PathBuf>,
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

/// As the host shows it now, as far as it can be of this mesh.
fn host(place: &Place) -> Host {
    let ours =
        format!("{:016x}", postern::up::runtime_dir::fingerprint(&place.yaml().canonicalize().unwrap()));
    let of_postern = |name: &str| name.starts_with("pst") || name.starts_with("postern");
    let tables = find("nft").map(|nft| place.command(&nft).args(["list", "tables"]).output().unwrap().stdout);
    Host {
        interfaces: entries(Path::new("/sys/class/net"))
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .filter(|name| of_postern(name))
            .collect(),
        tables: String::from_utf8(tables.unwrap_or_default())
            .unwrap()
            .lines()
            .filter(|l| l.contains("postern"))
            .map(str::to_owned)
            .collect(),
        mounts: std::fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .lines()
            .filter(|l| l.contains(&ours))
            .map(str::to_owned)
            .collect(),
        runtime: entries(&place.meshes())
            .into_iter()
            .filter(|p| p.to_string_lossy().contains(&ours))
            .collect(),
    }
}

/// The mesh's processes, with whatever else is in its networks, and those networks.
fn alive(mesh: &Up) -> (Vec<Process>, BTreeSet<PathBuf>) {
    let mut processes = mesh.processes();
    let sidecars = processes.iter().filter(|p| p.command.contains(" proxy --instance=")).count();
    assert_eq!(sidecars, 2, "{processes:?}");
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let networks: BTreeSet<_> =
        processes.iter().filter_map(|p| p.network.clone()).filter(|n| *n != here).collect();
    // Looked for now and not at the end: the kernel gives a number that is free to the next mesh.
    let strays = Process::all().into_iter().map(|(_, p)| p);
    let strays = strays.filter(|p| p.network.as_ref().is_some_and(|n| networks.contains(n)));
    processes.extend(strays);
    (processes, networks)
}

fn all_gone(processes: &[Process]) -> bool {
    !processes.iter().any(Process::is_alive)
}

fn serves(mesh: &Up, path: &str) -> bool {
    mesh.curl("caller", &[&format!("http://api.pay{path}")]).status == 200
}

#[test]
fn ctrl_c_leaves_no_process_no_namespace_no_interface_no_rule_and_no_file() {
    for user in User::with_namespaces() {
        let place = Place::new(user);
        let before = host(&place);
        place.write("mesh.yaml", MESH);
        let mut mesh = place.up(&[]);
        assert!(serves(&mesh, "/v1/charges"));
        let (processes, networks) = alive(&mesh);
        if user == User::Root {
            // Another user's namespaces may not be looked at; root's show that each pod has one, and the hub.
            assert_eq!(networks.len(), 4, "{networks:?}");
        }
        let during = host(&mesh.place);
        assert_eq!(during.runtime.len(), 1);
        assert_eq!(
            (&during.interfaces, &during.tables),
            (&before.interfaces, &before.tables),
            "all is in namespaces"
        );
        mesh.stop();
        assert!(all_gone(&processes), "{:?}", processes.iter().filter(|p| p.is_alive()).collect::<Vec<_>>());
        assert_eq!(host(&mesh.place), before);
        assert_eq!(entries(&mesh.place.yaml()).len(), 1, "the folder is as it was");
    }
}

#[test]
fn a_killed_mesh_is_gone_within_a_second_and_starts_again_without_a_trace() {
    for user in User::with_namespaces() {
        let place = Place::new(user);
        let before = host(&place);
        place.write("mesh.yaml", MESH);
        let mut mesh = place.up(&[]);
        let (processes, _) = alive(&mesh);
        mesh.run.signal(Signal::SIGKILL);
        let (status, _) = mesh.run.end(SOON);
        assert!(!status.success());
        until("every process and namespace of it is gone", GONE, || all_gone(&processes));
        let after = host(&mesh.place);
        assert_eq!(
            (&after.interfaces, &after.tables, &after.mounts),
            (&before.interfaces, &before.tables, &before.mounts)
        );

        mesh.restart();
        assert!(serves(&mesh, "/v1/charges"));
        mesh.stop();
        assert_eq!(host(&mesh.place), before);
    }
}

#[test]
fn a_second_start_on_the_same_folder_names_the_first_and_leaves_it_alone() {
    for user in User::with_namespaces() {
        let mut mesh = Up::start(user, MESH, &[]);
        let mut command = mesh.place.postern();
        command.args(["up", "yaml"]);
        let (status, said) = Run::start(command).end(SOON);
        assert_eq!(status.code(), Some(1), "{said}");
        let pid = mesh.run.pid();
        assert!(said.contains(&format!("is already up (process {pid})")), "{said}");
        assert!(said.contains(&format!("help:  Stop it first (kill {pid})")), "{said}");
        assert!(serves(&mesh, "/v1/charges"));
        mesh.stop();
    }
}

#[test]
fn a_policy_that_is_saved_is_in_force_within_a_second_and_so_is_its_removal() {
    for user in User::with_namespaces() {
        let mesh = Up::start(user, MESH, &[]);
        let call = |path: &str| mesh.curl("caller", &[&format!("http://api.pay{path}")]).status;
        assert_eq!(call("/v1/charges"), 200);
        mesh.place.write("policy.yaml", DENY);
        until("the call is denied", PROMPT, || call("/v1/charges") == 403);
        assert_eq!(call("/v2/charges"), 200, "the twin that the policy does not name");
        let from = mesh.run.here();
        assert_eq!(call("/v1/stolen"), 403);
        assert_eq!(call("/v2/mark"), 200);
        mesh.app_line("api", from, "/v2/mark");
        assert!(!mesh.app("api", from).iter().any(|l| l.contains("/v1/stolen")));
        mesh.place.write("policy.yaml", &DENY.replace("/v1/*", "/v2/*"));
        until("the policy is the new one", PROMPT, || {
            call("/v1/charges") == 200 && call("/v2/charges") == 403
        });
        mesh.place.remove("policy.yaml");
        until("the call is allowed again", PROMPT, || call("/v2/charges") == 200);
    }
}

#[test]
fn a_deployment_that_is_added_joins_and_one_that_is_removed_leaves() {
    let deployment = r#"
apiVersion: v1
kind: Service
metadata: {name: late, namespace: pay}
spec: {selector: {app: late}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: late, namespace: pay}
spec:
  replicas: 4
  selector: {matchLabels: {app: late}}
  template:
    metadata: {labels: {app: late}}
    spec: {serviceAccountName: late, containers: [{name: app, command: [postern, app, serve, --listen, "8080", --name, late], ports: [{containerPort: 8080}]}]}
"#;
    for user in User::with_namespaces() {
        let mesh = Up::start(user, MESH, &[]);
        let before = mesh.processes().len();
        let from = mesh.run.here();
        mesh.place.write("late.yaml", deployment);
        mesh.run.line(from, |l| l.contains("the change is in force"));
        let answer = mesh.curl("caller", &["http://late/joined"]);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.told()[0].contains("URI=spiffe://cluster.local/ns/pay/sa/caller"), "{answer:?}");
        assert_eq!(
            mesh.curl("legacy", &["http://late.pay/joined"]).status,
            200,
            "by the old pods' names and rules too"
        );

        let from = mesh.run.here();
        mesh.place.remove("late.yaml");
        mesh.run.line(from, |l| l.contains("the change is in force"));
        assert_eq!(mesh.curl("caller", &["http://late/left"]).code, 6, "the name is gone");
        assert_eq!(mesh.processes().len(), before, "{:?}", mesh.processes());
        assert!(serves(&mesh, "/v1/charges"), "the others are untouched");
    }
}

#[test]
fn a_bad_edit_tells_where_it_is_wrong_and_changes_nothing() {
    for user in User::with_namespaces() {
        let mesh = Up::start(user, MESH, &[]);
        mesh.place.write("policy.yaml", DENY);
        let call = |path: &str| mesh.curl("caller", &[&format!("http://api.pay{path}")]).status;
        until("the policy is in force", PROMPT, || call("/v1/charges") == 403);
        let from = mesh.run.here();
        mesh.place.write("policy.yaml", &DENY.replace("paths", "path"));
        let told = mesh.run.line(from, |l| l.contains("policy.yaml:5:49"));
        assert!(told.contains("--> yaml/policy.yaml:5:49"), "file, line and column: {told}");
        mesh.run.line(from, |l| l.contains("did you mean `paths`"));
        mesh.run.line(from, |l| l.contains("keeps its last good state"));
        assert_eq!((call("/v1/charges"), call("/v2/charges")), (403, 200), "as before");
        let from = mesh.run.here();
        mesh.place.write("policy.yaml", &DENY.replace("DENY", "ALLOW"));
        mesh.run.line(from, |l| l.contains("the change is in force"));
        until("the next good edit counts", PROMPT, || {
            call("/v2/charges") == 403 && call("/v1/charges") == 200
        });
    }
}

#[test]
fn certificates_of_a_few_seconds_are_renewed_under_load_without_a_failed_request() {
    for user in User::with_namespaces() {
        let mesh = Up::start(user, MESH, &["--quiet", "--certificate-lifetime", "4"]);
        let serial = |pod: &str| {
            let told = mesh.curl(pod, &["http://127.0.0.1:15000/certificates"]);
            let told: serde_json::Value = serde_json::from_str(&told.body).unwrap();
            told["current"]["serial"].as_str().unwrap().to_owned()
        };
        let pods = ["api", "caller"];
        let before = pods.map(serial);
        let load = [
            "postern",
            "app",
            "call",
            "--for",
            "6s",
            "--rate",
            "100",
            "--connections",
            "4",
            "http://api.pay/load",
        ];
        let load = Run::start(mesh.exec_command("caller", &load));
        let mut load = load;
        let (status, said) = load.end(SOON);
        assert!(status.success(), "{said}");
        let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(
            (summary["failed"].as_u64(), summary["ok"].as_u64() >= Some(500)),
            (Some(0), true),
            "{summary}"
        );
        let certs = mesh.place.postern().args(["certs", "--dir", "yaml"]).output().unwrap();
        let told = String::from_utf8_lossy(&certs.stdout).into_owned();
        assert!(certs.status.success() && told.contains("ns/pay/sa/"), "{told}{certs:?}");
        let after = pods.map(serial);
        assert!(
            before[0] != after[0] && before[1] != after[1],
            "both have new certificates: {before:?} {after:?}"
        );
    }
}
