//! `postern up` shows its mesh in a browser: on the machine's own loopback whatever network the mesh has, at a port of its own, or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::up::{Place, Run, SOON, Up, User};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

const MESH: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: pay, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: pay, labels: {app: api}}
spec: {serviceAccountName: api, containers: [{name: app, command: [postern, app, serve, --listen, "8080", --name, api], ports: [{containerPort: 8080}]}]}
"#;

fn address(up: &Up) -> SocketAddr {
    let line = up.run.line(0, |line| line.starts_with("In a browser: "));
    line.trim_start_matches("In a browser: http://").trim_end_matches('/').parse().unwrap()
}

fn ask(page: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(page).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {page}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn shows_the_mesh(page: SocketAddr) {
    assert!(page.ip().is_loopback(), "{page}");
    assert!(ask(page, "/").contains("<title>Postern</title>"));
    let status = ask(page, "/status");
    assert!(status.starts_with("HTTP/1.1 200 ") && status.contains(r#""pod":"api""#), "{status}");
    let map = ask(page, "/topology");
    assert!(map.contains(r#""id":"pay/api""#), "{map}");
}

#[test]
fn each_mesh_has_a_page_of_its_own_on_the_loopback_of_the_machine() {
    for user in User::with_namespaces() {
        let (first, second) = (Up::start(user, MESH, &[]), Up::start(user, MESH, &[]));
        let (page, other) = (address(&first), address(&second));
        assert_ne!(page, other, "the usual port is one mesh's only");
        shows_the_mesh(page);
        shows_the_mesh(other);
        drop(first);
        assert!(TcpStream::connect(page).is_err(), "it ends with its mesh");
    }
}

#[test]
fn without_namespaces_it_is_there_as_well() {
    let up = Up::start(User::Ordinary, MESH, &["--no-namespaces"]);
    shows_the_mesh(address(&up));
}

#[test]
fn the_page_is_where_it_was_asked_for_or_the_mesh_does_not_start_or_it_is_off() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = taken.local_addr().unwrap();
    let start = |page: &str| {
        let place = Place::new(User::Ordinary);
        place.write("mesh.yaml", MESH);
        let mut command = place.postern();
        command.args(["up", "yaml", "--no-namespaces", "--page", page]);
        (Run::start(command), place)
    };
    let (mut refused, _place) = start(&wanted.to_string());
    let (status, said) = refused.end(SOON);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&wanted.to_string()) && said.contains("--page"), "{said}");
    for (page, why) in [("0.0.0.0:15013", "others can reach that"), ("15013", "an address and a port")] {
        let (mut refused, _place) = start(page);
        let (status, said) = refused.end(SOON);
        assert_eq!(status.code(), Some(64), "{said}");
        assert!(said.contains(why), "{said}");
    }
    drop(taken);
    let up = Up::start(User::Ordinary, MESH, &["--no-namespaces", "--page", &wanted.to_string()]);
    assert_eq!(address(&up), wanted);
    drop(up);

    let up = Up::start(User::Ordinary, MESH, &["--no-namespaces", "--page", "off"]);
    up.run.line(0, |line| line.trim().ends_with("postern dashboard"));
    assert!(!up.run.since(0).iter().any(|line| line.contains("In a browser")));
    assert!(TcpStream::connect(wanted).is_err());
}
