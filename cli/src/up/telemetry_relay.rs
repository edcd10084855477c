//! Spans on their way out: pods cannot reach the host, so the hub takes their connections and hands them, through a unix
//! socket in the runtime folder, to the outer process, which dials the collector that the person named.
use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};

/// The socket in the runtime folder.
const SOCKET: &str = "telemetry.sock";
/// Connections at a time; each sidecar has one.
const MOST: usize = 1024;
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// The ports of OTLP over gRPC and over HTTP.
const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const WHOLE: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// The collector for the sidecars' spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `http://HOST:PORT/PATH`
    url: String,
    /// The URL is asked as it is, instead of with `/v1/traces` behind it.
    is_whole: bool,
    is_grpc: bool,
    /// The other `OTEL_*` variables of our environment go with it.
    with_rest: bool,
}

impl Endpoint {
    /// A collector of ours, which nothing in the environment concerns.
    pub fn of_story(collector: SocketAddr) -> Self {
        Self { url: format!("http://{collector}"), is_whole: false, is_grpc: true, with_rest: false }
    }

    /// What the person's environment names.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let (whole, base) = (set(WHOLE), set(BASE));
        let protocol =
            set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL"));
        let is_whole = whole.is_some();
        let url = whole.or(base)?;
        Some(Self { url, is_whole, is_grpc: protocol.is_some_and(|named| named == "grpc"), with_rest: true })
    }

    /// `host:port` to dial.
    ///
    /// # Errors
    /// Not `http://`; only plain connections can be handed through.
    pub fn authority(&self) -> Result<String, Failure> {
        let rest = self.url.strip_prefix("http://").ok_or_else(|| {
            Failure::usage(
                format!(
                    "the OTLP endpoint is `{}`, but only http:// can be reached from the pods.",
                    self.url
                ),
                "Name a collector nearby as http://HOST:PORT, which may send on over TLS; or unset it.",
            )
        })?;
        let host = rest.split('/').next().unwrap_or_default();
        let after_brackets = host.rsplit(']').next().unwrap_or(host);
        let port = if self.is_grpc { GRPC_PORT } else { HTTP_PORT };
        Ok(if after_brackets.contains(':') { host.to_owned() } else { format!("{host}:{port}") })
    }

    /// The same as the pods reach it.
    pub fn through(self, relay: SocketAddr) -> Self {
        let path =
            self.url.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| rest.split_at(at).1));
        Self { url: format!("http://{relay}{}", path.unwrap_or_default()), ..self }
    }

    /// What a sidecar's environment has to say. A service name is each pod's own.
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        let is_ours = |name: &str| [BASE, WHOLE, "OTEL_SERVICE_NAME"].contains(&name);
        let rest = |name: &OsString| name.to_str().is_some_and(|n| n.starts_with("OTEL_") && !is_ours(n));
        let mut all: Vec<_> = if self.with_rest {
            std::env::vars_os().filter(|(name, _)| rest(name)).collect()
        } else {
            vec![]
        };
        all.push((if self.is_whole { WHOLE } else { BASE }.into(), self.url.clone().into()));
        let protocol = if self.is_grpc { "grpc" } else { "http/protobuf" };
        all.push(("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL".into(), protocol.into()));
        all
    }
}

/// In the outer process: takes what comes over the socket to the collector. Ends with the runtime that it is started on.
///
/// # Errors
/// The socket cannot be made.
pub fn serve_outside(runtime: &Path, authority: String) -> io::Result<()> {
    let listener = UnixListener::bind(runtime.join(SOCKET))?;
    let places = Arc::new(Semaphore::new(MOST));
    tokio::spawn(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let Ok((mut inner, _)) = listener.accept().await else { continue };
            let authority = authority.clone();
            tokio::spawn(async move {
                let dial = TcpStream::connect(authority.as_str());
                if let Ok(Ok(mut outer)) = tokio::time::timeout(DIAL_DEADLINE, dial).await {
                    let _ = copy_bidirectional(&mut inner, &mut outer).await;
                }
                drop(place);
            });
        }
    });
    Ok(())
}

/// In the supervisor: the address in the hub that sidecars send their spans to.
///
/// # Errors
/// The hub has no port left.
pub async fn serve_inside(runtime: &Path, hub: IpAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((hub, 0)).await?;
    let address = listener.local_addr()?;
    let socket: PathBuf = runtime.join(SOCKET);
    let places = Arc::new(Semaphore::new(MOST));
    tokio::spawn(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let Ok((mut inner, _)) = listener.accept().await else { continue };
            let socket = socket.clone();
            tokio::spawn(async move {
                if let Ok(mut outer) = UnixStream::connect(&socket).await {
                    let _ = copy_bidirectional(&mut inner, &mut outer).await;
                }
                drop(place);
            });
        }
    });
    Ok(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn read(variables: &[(&str, &str)]) -> Option<Endpoint> {
        Endpoint::read(|name| {
            variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn endpoints_are_understood_as_opentelemetry_writes_them() {
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        for (variables, dialled, inside) in [
            (vec![(BASE, "http://localhost:4317"), grpc], "localhost:4317", "http://10.0.0.1:9"),
            (vec![(BASE, "http://collector"), grpc], "collector:4317", "http://10.0.0.1:9"),
            (vec![(BASE, "http://collector")], "collector:4318", "http://10.0.0.1:9"),
            (vec![(BASE, "http://10.0.0.1:9/otlp")], "10.0.0.1:9", "http://10.0.0.1:9/otlp"),
            (
                vec![(WHOLE, "http://a/v1/traces"), (BASE, "http://b")],
                "a:4318",
                "http://10.0.0.1:9/v1/traces",
            ),
            (vec![(BASE, "http://[::1]")], "[::1]:4318", "http://10.0.0.1:9"),
            (vec![(BASE, "http://[::1]:7")], "[::1]:7", "http://10.0.0.1:9"),
        ] {
            let endpoint = read(&variables).unwrap();
            assert_eq!(endpoint.authority().unwrap(), dialled);
            let through = endpoint.through("10.0.0.1:9".parse().unwrap());
            assert_eq!(through.url, inside);
            let told = (if through.is_whole { WHOLE } else { BASE }.into(), inside.into());
            assert!(through.variables().contains(&told), "{through:?}");
        }
        assert_eq!(read(&[(BASE, "https://collector")]).unwrap().authority().unwrap_err().code, 64);
        assert_eq!(read(&[(BASE, ""), grpc]), None);
    }

    #[tokio::test]
    async fn bytes_go_through_both_ends() {
        let runtime = tempfile::tempdir().unwrap();
        let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
        serve_outside(runtime.path(), collector.local_addr().unwrap().to_string()).unwrap();
        let inside = serve_inside(runtime.path(), "127.0.0.1".parse().unwrap()).await.unwrap();
        let mut sidecar = TcpStream::connect(inside).await.unwrap();
        sidecar.write_all(b"span").await.unwrap();
        let (mut received, _) = collector.accept().await.unwrap();
        let mut bytes = [0; 4];
        received.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"span");
    }
}
