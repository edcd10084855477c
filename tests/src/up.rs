//! `postern up` as a person runs it: the real program, as root or as an ordinary user, on a folder that a test writes.
//!
//! Every [`Up`] has folders of its own and so a mesh of its own. What a mesh says is read line by line; nothing here
//! sleeps for luck, each wait is for a line or a state and has a deadline.

pub use crate::processes::Process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The longest wait for something that should happen soon, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);
/// An ordinary user that need not be in any list of users.
const ORDINARY: u32 = 30_999;
/// Where administrators' programs are; an ordinary user's `PATH` lacks them.
const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Who runs the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    Root,
    Ordinary,
}

impl User {
    /// Whom this test process can be: root can be both.
    pub fn all() -> Vec<Self> {
        if nix::unistd::geteuid().is_root() { vec![Self::Root, Self::Ordinary] } else { vec![Self::Ordinary] }
    }

    /// Those who may make network namespaces here and have the tools for them. Says aloud who may not.
    pub fn with_namespaces() -> Vec<Self> {
        let missing: Vec<_> = ["ip", "nft", "curl"].into_iter().filter(|tool| find(tool).is_none()).collect();
        if !missing.is_empty() {
            skipped(&format!("{} missing on this machine (make setup)", missing.join(", ")));
            return Vec::new();
        }
        Self::all().into_iter().filter(|user| may_make_namespaces(*user)).collect()
    }

    /// Becomes this user.
    pub fn become_in(self, command: &mut Command) {
        if self == Self::Ordinary && nix::unistd::geteuid().is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
    }

    fn owns(self, path: &Path) {
        if self == Self::Ordinary && nix::unistd::geteuid().is_root() {
            chown(path, Some(ORDINARY), Some(ORDINARY)).unwrap();
        }
    }
}

/// A test shows nothing when it is skipped, so this goes past the harness's capture; where `POSTERN_NO_SKIPS=1` is set, it fails.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("POSTERN_NO_SKIPS").is_none_or(|value| value != "1"), "{why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {why}");
}

/// Where a program of the system is; `make` unpacks into `POSTERN_TOOLS` what it may not install.
pub fn find(program: &str) -> Option<PathBuf> {
    let unpacked = std::env::var_os("POSTERN_TOOLS").map(PathBuf::from);
    let unpacked =
        unpacked.iter().flat_map(|root| ["usr/sbin", "usr/bin", "sbin", "bin"].map(|f| root.join(f)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(std::env::split_paths(SYSTEM_FOLDERS));
    unpacked.chain(folders).map(|folder| folder.join(program)).find(|p| p.is_file())
}

fn may_make_namespaces(user: User) -> bool {
    let here = Place::new(user);
    let tried =
        here.postern().args(["internal-stage", "probe", "--runtime"]).arg(here.runtime()).output().unwrap();
    if !tried.status.success() {
        skipped(&format!(
            "{user:?} may not make namespaces: {}",
            String::from_utf8_lossy(&tried.stderr).trim()
        ));
    }
    tried.status.success()
}

/// The program where everybody may read it: a test's own target folder may be closed to an ordinary user.
fn program() -> Arc<TempDir> {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(there) = shared.upgrade() {
        return there;
    }
    let built = built();
    let folder = tempfile::Builder::new().prefix("postern-test").tempdir().unwrap();
    open_to_all(folder.path());
    let copy = folder.path().join("postern");
    std::fs::hard_link(&built, &copy).or_else(|_| std::fs::copy(&built, &copy).map(drop)).unwrap();
    let folder = Arc::new(folder);
    *shared = Arc::downgrade(&folder);
    folder
}

/// `target/<profile>/postern`, beside `deps/` where test programs are.
pub fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("postern");
    assert!(path.is_file(), "{} is missing: build it with `cargo build -p postern`", path.display());
    path
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder for YAML, a home and a runtime folder, all of one user.
pub struct Place {
    user: User,
    folder: TempDir,
    program: Arc<TempDir>,
}

impl Place {
    pub fn new(user: User) -> Self {
        let folder = tempfile::Builder::new().prefix("mesh").tempdir().unwrap();
        open_to_all(folder.path());
        for (name, mode) in [("yaml", 0o755), ("run", 0o700)] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            user.owns(&path);
        }
        Self { user, folder, program: program() }
    }

    pub fn user(&self) -> User {
        self.user
    }

    /// Where the YAML is.
    pub fn yaml(&self) -> PathBuf {
        self.folder.path().join("yaml")
    }

    /// A folder that only the user may enter.
    pub fn runtime(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Where `postern up` keeps what belongs to running meshes.
    pub fn meshes(&self) -> PathBuf {
        if self.user == User::Root { "/run/postern".into() } else { self.runtime().join("postern") }
    }

    /// Writes a YAML file as an editor would: a new file in place of the old one.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.folder.path().join("edited");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(new, self.yaml().join(name)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.yaml().join(name)).unwrap();
    }

    /// Copies all YAML of a folder of the repository.
    pub fn copy(&self, folder: &str) {
        for entry in std::fs::read_dir(crate::tree::root().join(folder)).unwrap().flatten() {
            if entry.path().extension().is_some_and(|e| e == "yaml") {
                let name = entry.file_name().into_string().unwrap();
                self.write(&name, &std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }

    /// `postern`, as this user, beside the folder `yaml`.
    pub fn postern(&self) -> Command {
        self.command(&self.program.path().join("postern"))
    }

    /// Any program as this user, with a small environment.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", SYSTEM_FOLDERS).env("HOME", self.folder.path());
        command.env("XDG_RUNTIME_DIR", self.runtime()).stdin(Stdio::null());
        command.envs(std::env::var_os("POSTERN_TOOLS").map(|tools| ("POSTERN_TOOLS", tools)));
        command.current_dir(self.folder.path());
        self.user.become_in(&mut command);
        command
    }

    /// Where `postern` is, for commands that start it in their own way.
    pub fn program(&self) -> PathBuf {
        self.program.path().join("postern")
    }

    /// Starts `postern up yaml` and waits until the mesh is up.
    pub fn up(self, more: &[&str]) -> Up {
        let mut command = self.postern();
        command.args(["up", "yaml"]).args(more);
        self.up_by(command)
    }

    /// The same by a command of the caller's.
    pub fn up_by(self, command: Command) -> Up {
        let up = Up { run: Run::start(command), place: self };
        up.run.line(0, |l| l.starts_with("Up in"));
        up
    }
}

/// A program that runs, and what it has said so far.
pub struct Run {
    child: Child,
    said: Arc<Said>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Said {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Run {
    /// Starts it; it is killed when this is dropped.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Said::default());
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let read = |output: Box<dyn Read + Send>| {
            let said = said.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    said.lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                    said.grown.notify_all();
                }
            })
        };
        let readers = outputs.map(read).into();
        Self { child, said, readers }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// How many lines there are; a place to search from.
    pub fn here(&self) -> usize {
        self.said.lines.lock().unwrap().len()
    }

    /// Everything said after a place.
    pub fn since(&self, from: usize) -> Vec<String> {
        self.said.lines.lock().unwrap()[from..].to_vec()
    }

    /// The first line after `from` that `wanted` accepts.
    pub fn line(&self, from: usize, wanted: impl Fn(&str) -> bool) -> String {
        let (lines, found) = self
            .said
            .grown
            .wait_timeout_while(self.said.lines.lock().unwrap(), SOON, |lines| {
                !lines[from..].iter().any(|l| wanted(l))
            })
            .unwrap();
        assert!(!found.timed_out(), "the line did not come; what came:\n{}", lines[from..].join("\n"));
        lines[from..].iter().find(|l| wanted(l)).unwrap().clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end; how it ended and everything that it said.
    pub fn end(&mut self, deadline: Duration) -> (ExitStatus, String) {
        let began = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if began.elapsed() > deadline => {
                    let _ = self.child.kill();
                    panic!("it did not end in {deadline:?}:\n{}", self.since(0).join("\n"))
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status, self.since(0).join("\n"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // The mesh ends with its outermost process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A mesh that is up.
pub struct Up {
    pub run: Run,
    pub place: Place,
}

impl Up {
    /// A mesh of one file.
    pub fn start(user: User, yaml: &str, more: &[&str]) -> Self {
        let place = Place::new(user);
        place.write("mesh.yaml", yaml);
        place.up(more)
    }

    /// Runs a program in a pod, by `postern exec`.
    pub fn exec(&self, pod: &str, argv: &[&str]) -> Output {
        self.exec_command(pod, argv).output().unwrap()
    }

    pub fn exec_command(&self, pod: &str, argv: &[&str]) -> Command {
        let mut command = self.place.postern();
        command.args(["exec", "--dir", "yaml", pod, "--"]).args(argv);
        command
    }

    /// `curl` in a pod.
    pub fn curl(&self, pod: &str, arguments: &[&str]) -> Curl {
        let curl = find("curl").unwrap().display().to_string();
        let mut argv = vec![
            curl.as_str(),
            "-sS",
            "-g",
            "--max-time",
            "8",
            "--write-out",
            "\n%{http_code} %{time_total}",
        ];
        argv.extend(arguments);
        Curl::read(&self.exec(pod, &argv))
    }

    /// What an app has said after a place.
    pub fn app(&self, pod: &str, from: usize) -> Vec<String> {
        let prefix = format!("{pod} app | ");
        self.run.since(from).iter().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// The line with which an app tells that something has reached it.
    pub fn app_line(&self, pod: &str, from: usize, what: &str) -> String {
        let prefix = format!("{pod} app | ");
        self.run.line(from, |l| l.starts_with(&prefix) && l.contains(what))
    }

    /// A line of a sidecar's access log.
    pub fn access(
        &self,
        pod: &str,
        from: usize,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let prefix = format!("{pod} proxy | ");
        let parsed = |l: &str| {
            let line = serde_json::from_str(l.strip_prefix(&prefix)?).ok()?;
            wanted(&line).then_some(line)
        };
        parsed(&self.run.line(from, |l| parsed(l).is_some())).unwrap()
    }

    /// The addresses of a pod, as the summary tells them.
    pub fn addresses(&self, pod: &str) -> (String, String) {
        let row = self.run.line(0, |l| l.split_whitespace().next() == Some(pod));
        let mut fields = row.split_whitespace().skip(2);
        (fields.next().unwrap().to_owned(), fields.next().unwrap().to_owned())
    }

    /// Every process of this mesh as the host sees it.
    pub fn processes(&self) -> Vec<Process> {
        Process::below(self.run.pid().as_raw())
    }

    /// Starts the same folder again, after this run has ended.
    pub fn restart(&mut self) {
        let mut command = self.place.postern();
        command.args(["up", "yaml"]);
        self.run = Run::start(command);
        self.run.line(0, |l| l.starts_with("Up in"));
    }

    /// Ctrl-C; the mesh must end well.
    pub fn stop(&mut self) -> String {
        self.run.signal(Signal::SIGINT);
        let (status, said) = self.run.end(SOON);
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.run.since(0);
            println!("the last words of the mesh:\n{}", said[said.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// How a call by curl ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Curl {
    /// 0 when an HTTP answer came.
    pub code: i32,
    /// 0 when none came.
    pub status: u16,
    pub body: String,
    pub took: Duration,
    pub error: String,
}

impl Curl {
    pub fn read(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let (body, told) = text.rsplit_once('\n').unwrap_or_else(|| panic!("curl told nothing: {error}"));
        let (status, took) = told.split_once(' ').unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            status: status.parse().unwrap(),
            body: body.to_owned(),
            took: Duration::from_secs_f64(took.parse().unwrap()),
            error,
        }
    }

    /// The identity that the app was told, as it echoes what it received.
    pub fn told(&self) -> Vec<String> {
        let echoed: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        let told = echoed["headers"]["x-forwarded-client-cert"].as_array().cloned().unwrap_or_default();
        told.iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    }
}

/// Waits until something holds.
pub fn until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < deadline, "not in {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}
