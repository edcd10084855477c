//! A folder of YAML files, read and judged: the same for `up`, `check` and the watch on a running mesh.
use crate::failure::Failure;
use postern_config::{
    Documents, Problem, Severity,
    documents::{SourceFile, read},
    validate,
};
use postern_control_plane::registry::from_files;
use std::path::{Path, PathBuf};

/// What a folder says, with everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The documents; not to be used when `has_errors`.
    pub documents: Documents,
    /// All findings, errors and warnings, sorted by place.
    pub problems: Vec<Problem>,
}

impl Folder {
    /// Whether the folder must be rejected.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|p| p.severity == Severity::Error)
    }

    /// Prints all findings on standard error.
    pub fn print_problems(&self) {
        for problem in &self.problems {
            eprintln!("{problem}\n");
        }
    }

    fn sort(&mut self) {
        self.problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    }

    /// `2 errors, 1 warning`.
    pub fn tally(&self) -> String {
        let errors = self.problems.iter().filter(|p| p.severity == Severity::Error).count();
        let warnings = self.problems.len() - errors;
        let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        match (errors, warnings) {
            (e, 0) => plural(e, "error"),
            (0, w) => plural(w, "warning"),
            (e, w) => format!("{}, {}", plural(e, "error"), plural(w, "warning")),
        }
    }
}

/// The real path of a folder that a person named.
///
/// # Errors
/// It does not exist, is no folder, or may not be entered.
pub fn locate(directory: &Path) -> Result<PathBuf, Failure> {
    let shown = directory.display();
    let real = directory.canonicalize().map_err(|e| {
        Failure::new(
            format!("the folder `{shown}` cannot be opened: {e}."),
            "Name a folder that holds your YAML files.",
        )
    })?;
    if !real.is_dir() {
        return Err(Failure::new(
            format!("`{shown}` is not a folder."),
            "Name the folder that holds your YAML files, not one of the files.",
        ));
    }
    Ok(real)
}

/// Reads every `*.yaml` and `*.yml` of `directory` (subfolders are left alone, as `kubectl apply -f` does) and validates
/// them together, including what only `postern up` asks for (a command to run). File names in findings start with
/// `directory` as given.
///
/// # Errors
/// The folder or a file cannot be read, or there is no YAML file in it.
pub fn examine(directory: &Path) -> Result<Folder, Failure> {
    let mut folder = study(directory)?;
    // A command that could not be read looks like one that is missing, so a file with errors of its own is left alone.
    let is_wrong =
        |file: &str| folder.problems.iter().any(|p| p.severity == Severity::Error && p.file == file);
    let missing = validate::runnable(&folder.documents);
    let missing: Vec<_> = missing.into_iter().filter(|p| !is_wrong(&p.file)).collect();
    folder.problems.extend(missing);
    folder.sort();
    Ok(folder)
}

/// As [`examine`], without what only `postern up` asks for: the folder may be meant for a cluster.
///
/// # Errors
/// As for [`examine`].
pub fn study(directory: &Path) -> Result<Folder, Failure> {
    let (documents, problems) = read(&sources(directory)?);
    let mut folder = Folder { documents, problems };
    folder.sort();
    Ok(folder)
}

fn sources(directory: &Path) -> Result<Vec<SourceFile>, Failure> {
    let files = from_files::read_folder(directory).map_err(|e| {
        Failure::new(
            format!("the folder `{}` cannot be read: {e}.", directory.display()),
            "Make every YAML file in it readable UTF-8 text, or move what is no configuration out of the folder.",
        )
    })?;
    if files.is_empty() {
        return Err(Failure::new(
            format!("the folder `{}` holds no YAML file.", directory.display()),
            "Put files that end in .yaml or .yml there; `manifests/examples/payments` is an example.",
        ));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_missing_folder_is_named_with_a_remedy() {
        let failure = locate(Path::new("/no/such/folder")).unwrap_err();
        assert!(failure.cause.contains("/no/such/folder"), "{failure}");
        assert_eq!(failure.code, 1);
    }

    #[test]
    fn a_file_is_not_a_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(locate(file.path()).unwrap_err().cause.contains("is not a folder"));
    }

    #[test]
    fn a_folder_without_yaml_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes.txt"), "x").unwrap();
        assert!(sources(folder.path()).unwrap_err().cause.contains("no YAML"));
    }
}
