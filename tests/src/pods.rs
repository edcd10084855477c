//! The network of a pod of a running mesh, entered from the test: sockets that are made there stay there, whoever uses them.

use crate::up::Up;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs::File,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::Arc,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A network namespace; it stays as long as this is held, though its processes may end.
#[derive(Clone)]
pub struct PodNetwork(Arc<File>);

impl PodNetwork {
    /// Where the first process lives whose command line has `what` in it.
    pub fn of(mesh: &Up, what: &str) -> Self {
        Self::of_process(process(mesh, what))
    }

    /// Where this process lives.
    pub fn of_process(pid: i32) -> Self {
        Self(Arc::new(File::open(format!("/proc/{pid}/ns/net")).unwrap()))
    }

    /// Runs `work` on a thread that is in there. What it starts is in there too.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A connection that begins in there, through the pod's redirect rules.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.within(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))?;
        socket.set_nonblocking(true)?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Listens in there, on every IPv4 address.
    pub fn listen(&self, port: u16) -> TcpListener {
        let listener = self.within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
            socket.listen(1024).unwrap();
            std::net::TcpListener::from(socket)
        });
        TcpListener::from_std(listener).unwrap()
    }

    /// Runs a program in there with this standard input; what it said.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> String {
        let program = crate::up::find(program).unwrap();
        let output = self.within(|| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "{input}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Rules of ours, in a table beside the mesh's; replaces those of the last call.
    pub fn rules(&self, chains: &str) {
        self.run(
            "nft",
            &["-f", "-"],
            &format!("table inet fault {{\n}}\ndelete table inet fault\ntable inet fault {{\n{chains}\n}}\n"),
        );
    }

    /// None of our rules any more.
    pub fn heal(&self) {
        self.run("nft", &["-f", "-"], "table inet fault {\n}\ndelete table inet fault\n");
    }

    /// Packets that the only counter of our rules has seen.
    pub fn counted(&self) -> u64 {
        let told = self.run("nft", &["list", "table", "inet", "fault"], "");
        let mut words = told.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).unwrap_or_else(|| panic!("no counter: {told}")).parse().unwrap()
    }
}

/// The process of the mesh whose command line has `what` in it.
pub fn process(mesh: &Up, what: &str) -> i32 {
    let all = mesh.processes();
    let found = all.iter().find(|process| process.command.contains(what));
    found.unwrap_or_else(|| panic!("no process `{what}`: {all:?}")).pid
}

/// The process that has started this one.
pub fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The process of a pod's sidecar.
pub fn sidecar(mesh: &Up, pod: &str) -> i32 {
    process(mesh, &format!(" proxy --instance={pod} "))
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: i32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Open descriptors of a process.
pub fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
