//! The control plane's unix socket: who asks is who the kernel says, and nobody needs a token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod sidecar;

use postern_control_plane::{ControlPlane, Options};
use sidecar::{Stream, certified, channel_over, csr, issue, read, soon};
use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};
use tonic::Code;

fn options(socket: PathBuf) -> Options {
    Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        state: None,
        trust_domain: "cluster.local".into(),
        certificate_lifetime: Duration::from_secs(3600),
        unix_socket: Some(socket),
        kubernetes: None,
        federation: Default::default(),
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
    }
}

/// A control plane, its socket, and one pod that is the user `uid`.
async fn start(uid: u32) -> (ControlPlane, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control-plane.sock");
    let control_plane = postern_control_plane::start(options(socket.clone())).await.unwrap();
    control_plane.apply(read(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: billing-1\n  namespace: shop\n  \
         labels: {{sidecar.istio.io/inject: \"true\"}}\n  annotations: {{postern.dev/attest-uid: \"{uid}\"}}\n\
         spec: {{serviceAccountName: billing, containers: [{{name: c, command: [serve]}}]}}\n"
    )));
    (control_plane, socket, folder)
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

async fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).await.unwrap()
}

#[tokio::test]
async fn a_process_of_the_pods_user_gets_its_certificate_renews_it_and_gets_its_policy() {
    let (control_plane, socket, _folder) = start(me()).await;
    let (key, request) = csr();
    let first =
        issue(channel_over(&control_plane, None, connect(&socket).await).await, request, "").await.unwrap();
    let first = certified(first, &key);
    let (_, leaf) = x509_parser::parse_x509_certificate(&first.cert[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(format!("{:?}", names.value).contains("spiffe://cluster.local/ns/shop/sa/billing"), "{names:?}");

    let renewing = channel_over(&control_plane, Some(first), connect(&socket).await).await;
    let (key, request) = csr();
    let second = certified(issue(renewing, request, "").await.unwrap(), &key);
    let channel = channel_over(&control_plane, Some(second), connect(&socket).await).await;
    let mut stream = Stream::open(channel, "billing-1").await.unwrap();
    assert_eq!(stream.hear_bundles().await[0].trust_domain, "cluster.local");
    assert_eq!(stream.hear_policy().await.1.workload.name, "billing-1");
}

#[tokio::test]
async fn a_process_of_another_user_gets_nothing_but_the_name_of_the_annotation() {
    // Also when this test runs as root: root is not everybody.
    let (control_plane, socket, _folder) = start(me() + 1).await;
    let stream = connect(&socket).await;
    let refused = issue(channel_over(&control_plane, None, stream).await, csr().1, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains(&format!("`postern.dev/attest-uid: \"{}\"`", me())), "{refused:?}");

    // A token counts before the user does, here as everywhere.
    let token = control_plane.join_token("shop", "billing", "billing-1");
    let stream = connect(&socket).await;
    issue(channel_over(&control_plane, None, stream).await, csr().1, &token).await.expect("by token");
}

/// Opens the connection in a process that may be killed; its child carries bytes between that connection and one to us.
const OPENER: &str = "
import os, socket, sys, threading, time
opened = socket.socket(socket.AF_UNIX); opened.connect(sys.argv[1])
if os.fork() == 0:
    ours = socket.socket(socket.AF_UNIX); ours.connect(sys.argv[2])
    def carry(a, b):
        while data := a.recv(65536): b.sendall(data)
        os._exit(0)
    threading.Thread(target=carry, args=(opened, ours)).start()
    carry(ours, opened)
time.sleep(600)";

async fn opened_by_another_process(socket: &Path, folder: &Path) -> Option<(Child, UnixStream)> {
    let path = folder.join("carried.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", OPENER]).args([socket, &path]).stdin(Stdio::null());
    let Ok(opener) = python.spawn() else {
        eprintln!("SKIPPED: python3, the other process of this test, is missing on this machine");
        return None;
    };
    let (carried, _) = soon("the carried connection", listener.accept()).await.unwrap();
    Some((opener, carried))
}

#[tokio::test]
async fn a_connection_that_its_process_left_behind_gets_no_certificate() {
    let (control_plane, socket, folder) = start(me()).await;
    let Some((mut opener, carried)) = opened_by_another_process(&socket, folder.path()).await else { return };
    let channel = channel_over(&control_plane, None, carried).await;
    issue(channel.clone(), csr().1, "").await.expect("while the process that opened it lives");
    opener.kill().unwrap();
    opener.wait().unwrap();
    let refused = issue(channel, csr().1, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("has ended"), "{refused:?}");
}

#[tokio::test]
async fn one_user_cannot_ask_without_end() {
    let (control_plane, socket, _folder) = start(me()).await;
    let channel = channel_over(&control_plane, None, connect(&socket).await).await;
    let mut refused = None;
    for _ in 0..100 {
        refused = issue(channel.clone(), csr().1, "").await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.expect("a limit").code(), Code::ResourceExhausted);
    // Others are not disturbed.
    let token = control_plane.join_token("shop", "billing", "billing-1");
    issue(sidecar::channel(&control_plane, None).await, csr().1, &token).await.expect("over the network");
}

#[tokio::test]
async fn the_socket_is_for_every_user_takes_a_dead_ones_place_and_goes_with_us() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    // A control plane that was killed leaves its socket behind.
    drop(UnixListener::bind(&socket).unwrap());
    let first =
        postern_control_plane::start(options(socket.clone())).await.expect("in place of the dead one");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    let served = postern_control_plane::start(options(socket.clone())).await.err().unwrap().to_string();
    assert!(served.contains("another program serves it") && served.contains("--unix-socket"), "{served}");
    connect(&socket).await;
    first.shutdown().await;
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    let no_socket = postern_control_plane::start(options(socket.clone())).await.err().unwrap().to_string();
    assert!(no_socket.contains("something that is no socket"), "{no_socket}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}
