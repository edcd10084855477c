//! What the access log is like: where its lines go, their format, and what happens when they cannot be written.

use super::Failure;
use http::{HeaderName, header};
use std::path::PathBuf;

/// Where access-log lines go.
#[derive(Clone, Debug)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
    /// Tests and embedding.
    Channel(tokio::sync::mpsc::Sender<String>),
    /// Nowhere.
    Off,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Our own fields.
    #[default]
    Json,
    /// Istio's default with `accessLogEncoding: JSON`.
    IstioJson,
    /// Istio's default with `accessLogEncoding: TEXT`.
    IstioText,
}

/// What happens when lines come faster than they can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Audit {
    /// They are dropped and counted; traffic does not feel it.
    #[default]
    BestEffort,
    /// New work waits.
    Lossless,
}

/// What lines are like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// How a line is written; `None`: as the mesh says (`accessLogEncoding`), and our own fields where it says nothing.
    pub format: Option<Format>,
    /// Request headers whose values are in it.
    pub headers: Vec<HeaderName>,
    /// Whether lines may be lost.
    pub audit: Audit,
}

/// Most headers that may be named.
const HEADERS: usize = 16;

/// The flags of the access log.
#[derive(Clone, Debug, clap::Args)]
pub struct AccessLogFlags {
    /// Where access-log lines go: `stdout`, `off`, or a file, which is opened again when it is renamed away
    #[arg(long, value_name = "stdout|off|PATH", default_value = "stdout")]
    pub access_log: String,
    /// Format of access-log lines: our own fields, or Istio's default formats [default: accessLogEncoding of the mesh, else json]
    #[arg(long, value_enum, value_name = "json|istio-json|istio-text")]
    pub access_log_format: Option<Format>,
    /// Request header whose value the access log has, at most 256 bytes of it; repeatable, at most 16. Never credentials
    #[arg(long, value_name = "NAME", value_parser = header)]
    pub access_log_header: Vec<HeaderName>,
    /// With `lossless` new connections and requests wait when access-log lines cannot be written, and none is lost
    #[arg(long, value_enum, default_value_t, value_name = "best-effort|lossless")]
    pub audit: Audit,
}

impl AccessLogFlags {
    /// The sink, and what lines are like.
    ///
    /// # Errors
    /// A [`Failure`] when too many headers are named, or some that the format has no place for.
    pub fn read(self) -> anyhow::Result<(Sink, Written)> {
        if self.access_log_header.len() > HEADERS {
            return Err(Failure::error(
                format!("the access log shall have {} headers.", self.access_log_header.len()),
                format!("Name at most {HEADERS} with `--access-log-header`."),
            ));
        }
        let has_place = |name: &HeaderName| {
            matches!(self.access_log_format, None | Some(Format::Json))
                || name == header::USER_AGENT
                || name == "x-forwarded-for"
        };
        if let Some(name) = self.access_log_header.iter().find(|name| !has_place(name)) {
            return Err(Failure::error(
                format!("Istio's formats of the access log have no place for the header `{name}`."),
                "Choose `--access-log-format json`, or name only user-agent and x-forwarded-for.",
            ));
        }
        let sink = match self.access_log.as_str() {
            "stdout" => Sink::Stdout,
            "off" => Sink::Off,
            path => Sink::File(path.into()),
        };
        if matches!(sink, Sink::Off) && self.audit == Audit::Lossless {
            return Err(Failure::error(
                "no line of the access log may be lost, and it is off.",
                "Give `--access-log` a place, or leave out `--audit lossless`.",
            ));
        }
        let format = self.access_log_format;
        Ok((sink, Written { format, headers: self.access_log_header, audit: self.audit }))
    }
}

/// Credentials are in no log, whoever asks.
fn header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("`{text}` is not the name of a header"))?;
    let secret = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE, header::SET_COOKIE];
    if secret.contains(&name) {
        return Err(format!("`{name}` holds credentials, which the access log never has"));
    }
    Ok(name)
}
