//! The namespaces of one pod: made by a thread that ends at once, kept by file descriptors, so that they vanish with us.
use crate::failure::Failure;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// glibc's table of address preferences.
const ADDRESS_ORDER: &str = "/etc/gai.conf";
const RESOLVER: &str = "/etc/resolv.conf";

/// One pod's namespaces. Dropping it gives them up; the kernel removes them with their last process.
#[derive(Debug)]
pub struct Namespaces {
    network: File,
    mounts: File,
    names: File,
}

/// What the making thread prepares besides the network.
#[derive(Clone, Debug)]
pub struct Dressing {
    /// The pod's host name.
    pub host_name: String,
    /// Stands in for `/etc/hosts`.
    pub hosts: PathBuf,
    /// Stands in for `/etc/gai.conf`, where the host has one.
    pub address_order: PathBuf,
    /// Stands in for `/etc/resolv.conf`, where the host has one.
    pub resolver: PathBuf,
    /// Not to be seen by the app.
    pub hidden: PathBuf,
    /// What the app finds in its place: the folder with the socket of its Workload API.
    pub shown: Option<PathBuf>,
}

impl Namespaces {
    /// Makes them, and runs `furnish` inside before anybody else can be there.
    ///
    /// # Errors
    /// The kernel refuses, or `furnish` fails; nothing stays then.
    pub fn make<F>(dressing: Dressing, furnish: F) -> Result<Self, Failure>
    where
        F: FnOnce() -> Result<(), Failure> + Send + 'static,
    {
        let maker = std::thread::Builder::new().name("pod".to_owned()).spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                .map_err(|e| refused("making the pod's namespaces", &e))?;
            nix::unistd::sethostname(&dressing.host_name).map_err(|e| refused("naming the pod", &e))?;
            mount(Some(&dressing.hosts), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|e| refused("mounting the pod's /etc/hosts", &e))?;
            for (file, place) in [(&dressing.address_order, ADDRESS_ORDER), (&dressing.resolver, RESOLVER)] {
                if Path::new(place).is_file() {
                    mount(Some(file), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                        .map_err(|e| refused(&format!("mounting the pod's {place}"), &e))?;
                }
            }
            furnish()?;
            hide(&dressing).map_err(|e| refused("hiding the run folder", &e))?;
            let open = |kind: &str| {
                File::open(format!("/proc/thread-self/ns/{kind}"))
                    .map_err(|e| refused("keeping the namespace", &e))
            };
            Ok(Self { network: open("net")?, mounts: open("mnt")?, names: open("uts")? })
        });
        maker
            .map_err(|e| refused("starting a thread", &e))?
            .join()
            .unwrap_or_else(|_| Err(Failure::new("the thread that makes a pod panicked.", "Report this.")))
    }

    /// Paths of the network, mount and host name namespaces, for a process of ours to enter.
    pub fn paths(&self) -> [PathBuf; 3] {
        [&self.network, &self.mounts, &self.names]
            .map(|file| own_proc().join("fd").join(file.as_raw_fd().to_string()))
    }

    /// Runs `work` in the pod's network, on a thread of its own.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
    pub fn within<T, F>(&self, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let network = self.network.try_clone()?;
        std::thread::Builder::new()
            .name("pod-visit".to_owned())
            .spawn(move || {
                setns(network, CloneFlags::CLONE_NEWNET)?;
                work()
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the pod's network panicked")))
    }

    /// A connection that begins inside the pod; the socket stays there though we hold it.
    ///
    /// # Errors
    /// As `TcpStream::connect_timeout`.
    pub fn connect(&self, address: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
        self.within(move || TcpStream::connect_timeout(&address, deadline))
    }
}

/// Takes the mesh's files away, and puts what the pod may see in their place. It lies among those files, so that it has to wait
/// elsewhere: `/dev` is always there, and nobody else is in these namespaces yet.
fn hide(dressing: &Dressing) -> nix::Result<()> {
    const WAITING: &str = "/dev";
    let none = None::<&str>;
    if let Some(shown) = &dressing.shown {
        mount(Some(shown), WAITING, none, MsFlags::MS_BIND, none)?;
    }
    umount2(&dressing.hidden, MntFlags::MNT_DETACH)?;
    if dressing.shown.is_some() {
        mount(Some(WAITING), &dressing.hidden, none, MsFlags::MS_MOVE, none)?;
    }
    Ok(())
}

/// `/proc/<our number there>`; `/proc/self` would be somebody else for the one who follows the path.
pub fn own_proc() -> PathBuf {
    let number = std::fs::read_link("/proc/self").unwrap_or_else(|_| std::process::id().to_string().into());
    Path::new("/proc").join(number)
}

fn refused(doing: &str, e: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("{doing} failed: {e}."), "Run as root, or use --no-namespaces.")
}
