//! The repository as text: every file that people write, for the tests that hold promises about it.

use std::path::{Path, PathBuf};

/// One file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Relative to the root, with `/`.
    pub path: String,
    pub text: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate has a parent folder").to_owned()
}

/// Every text file with one of these endings, sorted by path. Build folders and hidden ones are left out.
pub fn files(endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    walk(&root(), &root(), endings, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Every Rust file.
pub fn rust() -> Vec<Source> {
    files(&[".rs"])
}

fn walk(root: &Path, folder: &Path, endings: &[&str], found: &mut Vec<Source>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).expect("a readable folder").flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if path.is_dir() {
            let is_ours = name == ".ci" || name == ".github" || !name.starts_with('.');
            let is_built = matches!(name.as_str(), "target" | "artifacts" | "coverage" | "corpus");
            if is_ours && !is_built {
                walk(root, &path, endings, found);
            }
        } else if endings.iter().any(|e| name.ends_with(e))
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
}

impl Source {
    /// The part before the tests at the end of the file, without comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(n, line)| (n + 1, line))
            .take_while(|(_, line)| line.trim_start() != "#[cfg(test)]")
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Whether the whole file is tests.
    pub fn is_test(&self) -> bool {
        let in_tests = self.path.starts_with("tests/") || self.path.contains("/tests/");
        in_tests || self.path.ends_with("_tests.rs") || self.path.ends_with("/tests.rs")
    }
}
