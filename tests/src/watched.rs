//! A mesh and the commands that show it: `postern status`, `top` and the others are asked as a person would.

use crate::{
    Mesh,
    mesh::{Settings, within},
    standalone::program,
};
use serde_json::Value;
use std::{process::Output, time::Duration};

/// A mesh whose sidecars report often, and the socket of its control plane.
pub struct Watched {
    pub mesh: Mesh,
    folder: tempfile::TempDir,
}

impl Watched {
    /// Starts it and waits until every sidecar is ready.
    pub async fn start(yaml: &str) -> Self {
        let settings = Settings { report_interval: Duration::from_millis(50), ..Settings::default() };
        let mesh = Mesh::start_with(yaml, settings).await;
        let folder = tempfile::tempdir().unwrap();
        mesh.control.open_admin_socket(folder.path().join("control.sock")).unwrap();
        Self { mesh, folder }
    }

    /// What a command of the program says; it asks the socket as a person's would.
    pub async fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {told}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        told
    }

    /// What comes of a command, whatever it is.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let socket = self.folder.path().join("control.sock");
        let mut command = tokio::process::Command::new(program());
        command.args(arguments).arg("--socket").arg(socket).kill_on_drop(true);
        within("the command ends", command.output()).await.unwrap()
    }

    /// The page of a command, read.
    pub async fn page(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[arguments, &["-o", "json"]].concat()).await).unwrap()
    }

    /// Asks until the page is as wanted: reports come when they come.
    pub async fn page_becomes(&self, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asking = async {
            loop {
                last = self.page(arguments).await;
                if wanted(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), asking).await.is_err() {
            panic!("{arguments:?} never became as wanted: {last:#}");
        }
        last
    }
}
