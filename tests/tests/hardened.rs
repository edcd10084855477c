//! Whoever holds keys leaves no core dump, and no other program reads its memory, not even one of the same user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use nix::unistd::Pid;
use postern_tests::{
    envoy::free_ports,
    up::{Place, Run, SOON, User},
};
use std::{path::Path, time::Instant};

const MESH: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {sidecar.istio.io/inject: 'true'}}
spec: {containers: [{name: c, command: [serve]}]}
status: {podIP: 10.0.0.1}
";

/// What the kernel says of core dumps of a process: soft and hard limit.
fn core_limits(pid: Pid) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Max core file size"));
    line.unwrap().split_whitespace().take(2).map(str::to_owned).collect()
}

/// Whether a program of the same user may look into the process: for this the kernel asks what it asks for its memory.
fn is_readable(place: &Place, pid: Pid) -> bool {
    let cat = postern_tests::up::find("cat").unwrap();
    let output = place.command(&cat).arg(format!("/proc/{pid}/environ")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || told.contains("Permission denied"), "{told}");
    output.status.success()
}

fn check(place: &Place, name: &str, run: &Run) {
    let began = Instant::now();
    while core_limits(run.pid()) != ["0", "0"] {
        assert!(began.elapsed() < SOON, "{name} may leave a core dump:\n{}", run.since(0).join("\n"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    while is_readable(place, run.pid()) {
        assert!(began.elapsed() < SOON, "{name} can be read by others of its user");
    }
}

#[test]
fn nobody_but_root_reads_the_memory_of_the_control_plane_or_of_a_sidecar() {
    let place = Place::new(User::Ordinary);
    place.write("mesh.yaml", MESH);
    // The twin: any other program of this user.
    let mut command = place.command(Path::new("/bin/sleep"));
    command.arg("600");
    let twin = Run::start(command);
    assert!(is_readable(&place, twin.pid()));

    let mut command = place.postern();
    command.args(["control-plane", "--config=yaml", "--listen=127.0.0.1:0", "--state=run/state"]);
    command.arg("--join-token-dir=run/tokens");
    let control_plane = Run::start(command);
    let line = control_plane.line(0, |line| line.contains("listening on"));
    let address = line.split("listening on ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    check(&place, "the control plane", &control_plane);

    let mut command = place.postern();
    command.args(["proxy", "--instance=web", "--trust-bundle=run/state/root.pem"]);
    command.arg(format!("--control-plane={address}")).arg("--join-token-file=run/tokens/shop.web.token");
    for (flag, port) in ["admin", "probes", "metrics", "merged-metrics"].into_iter().zip(free_ports(4)) {
        command.arg(format!("--{flag}=127.0.0.1:{port}"));
    }
    let ports = free_ports(2);
    command.arg(format!("--explicit-inbound=127.0.0.1:{}=127.0.0.1:{}", ports[0], ports[1]));
    let sidecar = Run::start(command);
    check(&place, "the sidecar", &sidecar);
}
