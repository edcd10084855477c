//! A SPIRE server and agent on loopback, below the mesh's own root, for one workload: this process's user.

use crate::foreign;
use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The two running processes; dropping it kills them.
pub struct Spire {
    folder: PathBuf,
    programs: PathBuf,
    children: Vec<Child>,
}

impl Spire {
    /// Starts both below the root in `root.pem` and `root-key.pem` of `authority`, and lets the agent give `id` to this user,
    /// for `seconds` at a time.
    ///
    /// `None` when SPIRE is not built here, which is said on stderr; with `POSTERN_SPIRE_REQUIRED=1` that is a failure.
    pub fn start(folder: &Path, authority: &Path, id: &str, seconds: u32) -> Option<Self> {
        let programs = foreign::by_script("spire.sh", "POSTERN_SPIRE_REQUIRED", "no SPIRE was tried")?;
        let mut spire = Self { folder: folder.to_owned(), programs, children: Vec::new() };
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (at, root) = (folder.display(), authority.display());
        fs::create_dir(folder.join("data")).unwrap();
        fs::create_dir(folder.join("agent")).unwrap();
        let server = format!(
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{at}/server.sock"
  trust_domain = "cluster.local"
  data_dir = "{at}/data"
  log_level = "WARN"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3", connection_string = "{at}/data/entries.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{root}/root.pem", key_file_path = "{root}/root-key.pem" }} }}
}}
"#
        );
        fs::write(folder.join("server.conf"), server).unwrap();
        spire.spawn("spire-server", "server.conf");
        let server = spire.until("the server answers", |s| {
            s.server(&["token", "generate", "-spiffeID", "spiffe://cluster.local/agent"])
        });
        let token = server.split_whitespace().last().unwrap().to_owned();
        let user = format!("unix:uid:{}", nix::unistd::getuid());
        let entry = [
            "entry",
            "create",
            "-parentID",
            "spiffe://cluster.local/agent",
            "-spiffeID",
            id,
            "-selector",
            &user,
        ];
        let seconds = seconds.to_string();
        spire.server(&[&entry[..], &["-x509SVIDTTL", &seconds]].concat()).expect("the entry is made");
        let agent = format!(
            r#"agent {{
  data_dir = "{at}/agent"
  log_level = "WARN"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{at}/agent.sock"
  trust_domain = "cluster.local"
  insecure_bootstrap = true
  join_token = "{token}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
        );
        fs::write(folder.join("agent.conf"), agent).unwrap();
        spire.spawn("spire-agent", "agent.conf");
        spire.until("the agent listens", |s| s.socket().exists().then(String::new));
        Some(spire)
    }

    /// The agent's Workload API.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Ends the agent; its socket stays, with nobody behind it.
    pub fn kill_agent(&mut self) {
        let mut agent = self.children.pop().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn spawn(&mut self, program: &str, configuration: &str) {
        let log = fs::File::create(self.folder.join(format!("{program}.log"))).unwrap();
        let child = Command::new(self.programs.join(program))
            .args(["run", "-config"])
            .arg(self.folder.join(configuration))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children.push(child);
    }

    /// A command to the server; what it printed when it succeeded.
    fn server(&self, arguments: &[&str]) -> Option<String> {
        let socket = self.folder.join("server.sock");
        let output = Command::new(self.programs.join("spire-server"))
            .args(arguments)
            .arg("-socketPath")
            .arg(socket)
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn until(&self, what: &str, look: impl Fn(&Self) -> Option<String>) -> String {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let said = |program: &str| {
                fs::read_to_string(self.folder.join(format!("{program}.log"))).unwrap_or_default()
            };
            assert!(began.elapsed() < PATIENCE, "{what}: {}{}", said("spire-server"), said("spire-agent"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
