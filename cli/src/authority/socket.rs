//! One question to the control plane on its admin socket, and which socket that is.

use crate::{
    exchange::{DEADLINE, begin, exchange},
    failure::{ERROR, Failure, NEGATIVE, USAGE},
    up::attach,
};
use bytes::Bytes;
use clap::Args;
use http::Method;
use http_body_util::{BodyExt, Limited};
use postern_control_plane::admin::pages::Problem;
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

const LINE_BYTES: usize = 64 * 1024;

/// Which control plane is asked.
#[derive(Args, Debug, Clone)]
pub struct Where {
    /// The admin socket of a control plane: control.sock in its state folder. Default: the mesh that `postern up` runs
    #[arg(long, value_name = "PATH", conflicts_with = "dir")]
    socket: Option<PathBuf>,
    /// The folder of the mesh, when several are up
    #[arg(id = "dir", long = "dir", value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A control plane that can be asked. It runs its own event loop, for commands are plain functions.
pub(crate) struct ControlPlane {
    path: PathBuf,
    threads: tokio::runtime::Runtime,
}

impl ControlPlane {
    /// Finds the socket; nothing is asked yet.
    ///
    /// # Errors
    /// No mesh is up and none was named.
    pub(crate) fn find(place: &Where) -> Result<Self, Failure> {
        let path = match &place.socket {
            Some(path) => path.clone(),
            None => attach::choose(place.dir.as_deref())
                .map_err(|failure| Failure {
                    remedy: format!(
                        "{} A control plane of its own is asked with --socket STATE/control.sock.",
                        failure.remedy
                    ),
                    ..failure
                })?
                .admin_socket(),
        };
        let threads = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let threads = threads.map_err(|cause| {
            Failure::new(format!("no event loop: {cause}."), "Check the limits of this process (ulimit -n).")
        })?;
        Ok(Self { path, threads })
    }

    /// A page.
    ///
    /// # Errors
    /// Nobody answers, or not with that page.
    pub(crate) fn page<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// A page that is no JSON.
    ///
    /// # Errors
    /// Nobody answers, or not with that page.
    pub(crate) fn text(&self, path: &str) -> Result<String, Failure> {
        let asked = self.run(exchange(&self.path, Method::GET, path, Bytes::new()));
        match asked.map_err(|cause| self.silent(&cause))? {
            (200, body) => Ok(String::from_utf8_lossy(&body).into_owned()),
            (status, _) => Err(self.nonsense(&format!("status {status}"))),
        }
    }

    /// A change.
    ///
    /// # Errors
    /// Nobody answers (exit code 1), or the step is refused: exit code 2 when it would cut somebody off, who is named.
    pub(crate) fn change<T: DeserializeOwned>(
        &self,
        path: &str,
        wanted: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(wanted).map_err(|cause| self.nonsense(&cause))?;
        self.ask(Method::POST, path, body.into())
    }

    /// Where it is asked.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something on the event loop.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.threads.block_on(work)
    }

    /// An answer that goes on: `take` gets each line until it says false, or there is no more. Runs on the event loop.
    ///
    /// # Errors
    /// Nobody answers, or the question is refused. That an answer breaks off is no error here.
    pub(crate) async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        wanted: &impl Serialize,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<(), Failure> {
        let body = serde_json::to_vec(wanted).map_err(|cause| self.nonsense(&cause))?;
        let begun = tokio::time::timeout(DEADLINE, begin(&self.path, Method::POST, path, body.into())).await;
        let begun = begun.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())));
        let (answer, connection) = begun.map_err(|cause| self.silent(&cause))?;
        let _ends = connection;
        if !answer.status().is_success() {
            let body = Limited::new(answer.into_body(), LINE_BYTES).collect().await;
            let body = body.map_err(|cause| self.nonsense(&cause))?.to_bytes();
            let problem: Problem = serde_json::from_slice(&body).map_err(|cause| self.nonsense(&cause))?;
            return Err(Failure {
                remedy: match problem.status {
                    404 => "Use a control plane of this program's version.".to_owned(),
                    _ => "See `postern help`.".to_owned(),
                },
                code: if problem.status == 400 { USAGE } else { ERROR },
                ..refusal(&problem)
            });
        }
        let (mut body, mut text) = (answer.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = serde_json::from_slice(&line).map_err(|cause| self.nonsense(&cause))?;
                if !take(line) {
                    return Ok(());
                }
            }
            if text.len() > LINE_BYTES {
                return Err(self.nonsense(&"a line without end"));
            }
        }
        Ok(())
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let asked = self.run(exchange(&self.path, method, path, body));
        let (status, body) = asked.map_err(|cause| self.silent(&cause))?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(|cause| self.nonsense(&cause));
        }
        let problem: Problem = serde_json::from_slice(&body).map_err(|cause| self.nonsense(&cause))?;
        Err(refusal(&problem))
    }

    fn silent(&self, cause: &dyn std::fmt::Display) -> Failure {
        let path = self.path.display();
        Failure::new(
            format!("the control plane does not answer on {path}: {cause}."),
            "Look whether it runs, whether this is its --admin-socket, and whether you are its user or root.",
        )
    }

    fn nonsense(&self, cause: &dyn std::fmt::Display) -> Failure {
        Failure::new(
            format!("the answer on {} is not understood: {cause}.", self.path.display()),
            "Use the program of the same version as the control plane.",
        )
    }
}

fn refusal(problem: &Problem) -> Failure {
    let lagging: String =
        problem.lagging.iter().map(|one| format!("\n       {} {}", one.who, one.reason)).collect();
    match problem.lagging.is_empty() {
        true => Failure::new(format!("{}: {}.", problem.title, problem.detail), "See `postern ca status`."),
        false => Failure {
            cause: format!("{}:{lagging}", problem.title),
            remedy: "Wait, or repair them, and ask again; --force does it all the same and cuts them off."
                .into(),
            code: NEGATIVE,
        },
    }
}
