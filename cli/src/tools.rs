//! The programs of the system that the mesh needs: found before anything is started, or asked for by package name.
use crate::failure::Failure;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// Where administrators' programs live, which ordinary users often do not have in their `PATH`.
const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

/// Which program sets the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nftables, both families in one transaction.
    Nft,
    /// iptables and ip6tables.
    Iptables,
}

/// Where to look for programs.
#[derive(Clone, Debug)]
pub struct Tools {
    folders: Vec<PathBuf>,
    libraries: Vec<PathBuf>,
}

impl Tools {
    /// `PATH`, the administrators' folders, and before both the folder in `POSTERN_TOOLS`, where `make` unpacks
    /// packages when it may not install them.
    pub fn from_environment() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::new(
            std::env::var_os("POSTERN_TOOLS").map(PathBuf::from).as_deref(),
            std::env::split_paths(&path),
        )
    }

    /// The same from given values.
    pub fn new(unpacked: Option<&Path>, path: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut folders = Vec::new();
        let mut libraries = Vec::new();
        if let Some(root) = unpacked {
            folders.extend(["usr/sbin", "sbin", "usr/bin", "bin"].map(|f| root.join(f)));
            for lib in [root.join("usr/lib"), root.join("lib")] {
                libraries.extend(architecture_folders(&lib));
                libraries.push(lib);
            }
        }
        folders.extend(path.into_iter().filter(|p| p.is_absolute()));
        folders.extend(SYSTEM_FOLDERS.map(PathBuf::from));
        Self { folders, libraries }
    }

    /// Where `program` is.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        self.folders.iter().map(|f| f.join(program)).find(|p| p.is_file())
    }

    /// A command for `program`, found here, with the libraries of unpacked packages.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.find(program).unwrap_or_else(|| PathBuf::from(program)));
        command.env("PATH", self.path());
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", joined(&self.libraries));
            if let Some(xtables) = self.libraries.iter().map(|l| l.join("xtables")).find(|p| p.is_dir()) {
                command.env("XTABLES_LIBDIR", xtables);
            }
        }
        command
    }

    /// What to use for rules: nft, else iptables.
    ///
    /// # Errors
    /// Neither is there.
    pub fn backend(&self) -> Result<Backend, Failure> {
        if self.find("nft").is_some() {
            return Ok(Backend::Nft);
        }
        if ["iptables-restore", "ip6tables-restore", "iptables-save"].iter().all(|p| self.find(p).is_some()) {
            return Ok(Backend::Iptables);
        }
        Err(Failure::new("neither `nft` nor `iptables-restore` is on this machine.", package_hint("nft")))
    }

    /// Everything that `postern up` needs with namespaces.
    ///
    /// # Errors
    /// One is missing; the remedy names its package.
    pub fn require_network(&self) -> Result<Backend, Failure> {
        if self.find("ip").is_none() {
            return Err(Failure::new("`ip` is not on this machine.", package_hint("ip")));
        }
        self.backend()
    }

    /// A `PATH` with these folders.
    pub fn path(&self) -> OsString {
        joined(&self.folders)
    }
}

/// Which package brings a program, as a remedy.
pub fn package_hint(program: &str) -> String {
    let name = Path::new(program).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let package = match name.as_str() {
        "ip" => "iproute2",
        n if n.contains("tables") => "iptables",
        _ => "nftables",
    };
    format!(
        "Install the package `{package}` (Debian: apt-get install {package}), or use --no-namespaces to do without."
    )
}

fn architecture_folders(lib: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(lib) else { return Vec::new() };
    entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir() && p.to_string_lossy().ends_with("-linux-gnu"))
        .collect()
}

fn joined(folders: &[PathBuf]) -> OsString {
    // A folder with a colon in its name cannot be in a path variable; it is left out.
    std::env::join_paths(folders.iter().filter(|f| !f.to_string_lossy().contains(':'))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn unpacked_packages_come_first_and_bring_their_libraries() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["usr/sbin", "usr/lib/x86_64-linux-gnu/xtables"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        std::fs::write(root.path().join("usr/sbin/nft"), "").unwrap();
        let tools = Tools::new(Some(root.path()), []);
        assert_eq!(tools.find("nft").unwrap(), root.path().join("usr/sbin/nft"));
        assert_eq!(tools.backend().unwrap(), Backend::Nft);
        let command = tools.command("nft");
        let env: Vec<_> = command.get_envs().map(|(k, _)| k.to_string_lossy().into_owned()).collect();
        assert!(env.contains(&"LD_LIBRARY_PATH".to_owned()) && env.contains(&"XTABLES_LIBDIR".to_owned()));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        assert!(package_hint("ip").contains("iproute2"));
        assert!(package_hint("/sbin/ip6tables-restore").contains("`iptables`"));
        assert!(package_hint("nft").contains("nftables"));
    }
}
