//! The control plane as a program: exit codes, its one line, token files, the watched folder, signals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use notify::{RecursiveMode, Watcher as _};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(20);

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: shop, labels: {sidecar.istio.io/inject: 'true'}}
spec: {containers: [{name: c, command: [serve]}]}
status: {podIP: 10.0.0.1}
";

fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern-control-plane"));
    command.arg("--config").arg(dir.join("mesh")).arg("--state").arg(dir.join("state"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A folder with one pod.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("mesh")).unwrap();
    fs::write(dir.path().join("mesh/one.yaml"), POD.replace("NAME", "one")).unwrap();
    dir
}

fn check_failure(output: &Output, code: i32, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for word in words {
        assert!(told.contains(word), "`{word}` is missing in: {told}");
    }
}

/// A running program; killed when the test ends early.
struct Running(Child, mpsc::Receiver<String>);

impl Running {
    fn start(mut command: Command) -> (Self, String) {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        (Self(child, told), line)
    }

    /// Waits for a line on standard error.
    fn tells(&self, words: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut heard = Vec::new();
        while let Ok(line) = self.1.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(words) {
                return;
            }
            heard.push(line);
        }
        panic!("`{words}` was not told, only: {heard:#?}");
    }

    fn ends_after(self, signal: nix::sys::signal::Signal) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        let (tell, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let mut running = self;
            tell.send(running.0.wait().unwrap().code())
        });
        ended.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            panic!("it does not end")
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn becomes(folder: &Path, is_so: impl Fn() -> bool, what: &str) {
    let (tell, told) = mpsc::channel::<notify::Result<notify::Event>>();
    let mut watcher = notify::recommended_watcher(tell).unwrap();
    watcher.watch(folder, RecursiveMode::NonRecursive).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        let news = told.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        assert!(news.is_ok(), "not so in {}: {what}", folder.display());
    }
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_postern-control-plane")).arg("--nonsense").output().unwrap();
    check_failure(&output, 64, &["--nonsense"]);
    let help = Command::new(env!("CARGO_BIN_EXE_postern-control-plane")).arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--join-token-dir"));
}

#[test]
fn what_stands_in_the_way_of_a_start_is_said_with_a_remedy_and_ends_with_1() {
    let dir = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let busy = program(dir.path()).arg("--listen").arg(listen.to_string()).output().unwrap();
    check_failure(&busy, 1, &[&format!("port {} is in use", listen.port()), "--listen"]);

    let missing = tempfile::tempdir().unwrap();
    check_failure(&program(missing.path()).output().unwrap(), 1, &["mesh does not exist", "check the path"]);

    let no_state = folder();
    fs::write(no_state.path().join("state"), "a file, not a folder").unwrap();
    let output = program(no_state.path()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    check_failure(&output, 1, &["state"]);

    let other_domain = folder();
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: a.example\n";
    fs::write(other_domain.path().join("mesh/mesh.yaml"), mesh).unwrap();
    let output = program(other_domain.path())
        .args(["--listen", "127.0.0.1:0", "--trust-domain", "b.example"])
        .output();
    check_failure(&output.unwrap(), 1, &["a.example", "b.example", "make them equal"]);
}

#[test]
fn a_life_of_certificates_that_cannot_be_kept_is_refused_at_its_bounds() {
    for (seconds, is_good) in [("299", false), ("300", true), ("86400", true), ("86401", false)] {
        let dir = folder();
        let mut command = program(dir.path());
        command.args(["--listen", "127.0.0.1:0", "--certificate-lifetime", seconds]);
        if is_good {
            let (running, line) = Running::start(command);
            assert!(line.contains("listening"), "{seconds}: {line}");
            assert_eq!(running.ends_after(nix::sys::signal::Signal::SIGTERM), Some(0));
        } else {
            let output = command.output().unwrap();
            check_failure(&output, 1, &[&format!("cannot live {seconds} s"), "300", "86400"]);
            assert!(!dir.path().join("state").exists(), "nothing was begun");
        }
    }
}

/// Answers each request with this, and says what was asked.
fn vault(status: &'static str, body: &'static str) -> (String, mpsc::Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes());
            if tell.send(head).is_err() {
                return;
            }
        }
    });
    (address, told)
}

#[test]
fn vault_is_asked_as_the_flags_say_and_one_that_is_sealed_ends_the_start_with_what_to_do() {
    let dir = folder();
    let token = dir.path().join("vault-token");
    fs::write(&token, "s.secret\n").unwrap();
    let (address, asked) = vault("503 Service Unavailable", r#"{"errors":["Vault is sealed"]}"#);
    let mut command = program(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--vault-addr", &address, "--vault-pki-path", "/mesh/pki/"]);
    let output = command.arg("--vault-token-file").arg(&token).output().unwrap();
    check_failure(&output, 1, &["Vault is sealed", "unseal it", &address]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("s.secret"));
    let head = asked.recv_timeout(DEADLINE).unwrap();
    assert!(head.starts_with("POST /v1/mesh/pki/root/sign-intermediate HTTP/1.1"), "{head}");
    assert!(head.contains("x-vault-token: s.secret"), "{head}");
}

#[test]
fn all_errors_of_a_folder_are_printed_at_once() {
    let dir = folder();
    for name in ["x", "y"] {
        fs::write(dir.path().join(format!("mesh/{name}.yaml")), POD.replace("containers", "kontainers"))
            .unwrap();
    }
    let output = program(dir.path()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    check_failure(&output, 1, &["x.yaml", "y.yaml", "errors in"]);
}

#[test]
fn it_says_where_it_listens_follows_the_folder_and_ends_cleanly_on_a_signal() {
    let dir = folder();
    let tokens = dir.path().join("tokens");
    let mut command = program(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--join-token-dir"]).arg(&tokens);
    let (running, line) = Running::start(command);
    let root = dir.path().join("state/root.pem");
    assert!(line.contains("listening on 127.0.0.1:") && line.contains(root.to_str().unwrap()), "{line}");
    assert!(fs::read_to_string(&root).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let token = tokens.join("shop.one.token");
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&token).unwrap().len() > 32);

    fs::write(dir.path().join("mesh/two.yaml"), POD.replace("NAME", "two")).unwrap();
    becomes(&tokens, || tokens.join("shop.two.token").exists(), "a token for the new pod");

    // Who was killed between the use of its token and the removal of the file finds another one.
    fs::write(&token, "pjt1.used").unwrap();
    let is_new = || fs::read_to_string(&token).is_ok_and(|text| text != "pjt1.used");
    becomes(&tokens, is_new, "a token instead of the used one");

    // A bad state is told, and the good one stays: so do its tokens.
    fs::write(dir.path().join("mesh/two.yaml"), "kind: Nonsense\n").unwrap();
    running.tells("stays in force");
    assert!(tokens.join("shop.two.token").exists());

    // Put right, without the second pod: its token goes.
    fs::remove_file(dir.path().join("mesh/two.yaml")).unwrap();
    running.tells("was read again");
    becomes(&tokens, || !tokens.join("shop.two.token").exists(), "no token for a removed pod");
    assert_eq!(running.ends_after(nix::sys::signal::Signal::SIGTERM), Some(0));
}

#[test]
fn an_interrupt_ends_it_too_and_the_root_is_the_same_at_the_next_start() {
    let dir = folder();
    let mut roots = Vec::new();
    for _ in 0..2 {
        let mut command = program(dir.path());
        command.args(["--listen", "127.0.0.1:0"]);
        let (running, line) = Running::start(command);
        assert!(line.contains("listening"), "{line}");
        let mut root = String::new();
        fs::File::open(dir.path().join("state/root.pem")).unwrap().read_to_string(&mut root).unwrap();
        roots.push(root);
        assert_eq!(running.ends_after(nix::sys::signal::Signal::SIGINT), Some(0));
    }
    assert_eq!(roots[0], roots[1]);
}
