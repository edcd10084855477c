//! Spans, metrics and access log on their way out: pods cannot reach the host, so the hub takes their connections and hands them, through a unix
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
/// What names a collector: for all signals with a path of their own behind it, and for each one as it is asked.
const NAMES: [&str; 4] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
];

/// The collector for what the sidecars tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    named: Vec<Named>,
    /// For spans only; the other `OTEL_*` variables of our environment do not concern it.
    is_of_story: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    /// One of [`NAMES`].
    variable: String,
    /// `http://HOST:PORT/PATH`
    url: String,
    is_grpc: bool,
}

impl Endpoint {
    /// A collector of ours, for spans, which nothing in the environment concerns.
    pub fn of_story(collector: SocketAddr) -> Self {
        let [_, traces, ..] = NAMES.map(str::to_owned);
        let named = vec![Named { variable: traces, url: format!("http://{collector}"), is_grpc: true }];
        Self { named, is_of_story: true }
    }

    /// What the person's environment names.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let named = |name: &str| {
            let own = match name.strip_suffix("ENDPOINT") {
                Some("OTEL_EXPORTER_OTLP_") | None => set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
                Some(signal) => set(&format!("{signal}PROTOCOL")),
            };
            let is_grpc =
                own.or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL")).is_some_and(|named| named == "grpc");
            Some(Named { variable: name.to_owned(), url: set(name)?, is_grpc })
        };
        let named: Vec<_> = NAMES.into_iter().filter_map(named).collect();
        (!named.is_empty()).then_some(Self { named, is_of_story: false })
    }

    /// `host:port` to dial.
    ///
    /// # Errors
    /// Not `http://`, since only plain connections can be handed through; or more than one collector.
    pub fn authority(&self) -> Result<String, Failure> {
        let mut all = self.named.iter().map(Named::authority).collect::<Result<Vec<_>, _>>()?;
        all.dedup();
        match all.as_slice() {
            [one] => Ok(one.clone()),
            several => Err(Failure::usage(
                format!("several OTLP collectors are named: {}.", several.join(", ")),
                "Name one that can be reached from the pods, which may send on to the others.",
            )),
        }
    }

    /// The same as the pods reach it.
    pub fn through(self, relay: SocketAddr) -> Self {
        let through = |named: Named| {
            let rest = named.url.strip_prefix("http://").unwrap_or_default();
            let path = rest.find('/').map_or("", |at| rest.split_at(at).1);
            Named { url: format!("http://{relay}{path}"), ..named }
        };
        Self { named: self.named.into_iter().map(through).collect(), ..self }
    }

    /// What a sidecar's environment has to say. A service name is each pod's own.
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        let is_ours = |name: &str| NAMES.contains(&name) || name == "OTEL_SERVICE_NAME";
        let rest = |name: &OsString| name.to_str().is_some_and(|n| n.starts_with("OTEL_") && !is_ours(n));
        let mut all: Vec<(OsString, OsString)> = if self.is_of_story {
            vec![("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL".into(), "grpc".into())]
        } else {
            std::env::vars_os().filter(|(name, _)| rest(name)).collect()
        };
        all.extend(self.named.iter().map(|named| (named.variable.clone().into(), named.url.clone().into())));
        all
    }
}

impl Named {
    fn authority(&self) -> Result<String, Failure> {
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

    const BASE: &str = NAMES[0];
    const TRACES: &str = NAMES[1];

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
                vec![(TRACES, "http://a/v1/traces"), (BASE, "http://a:4318")],
                "a:4318",
                "http://10.0.0.1:9/v1/traces",
            ),
            (vec![(BASE, "http://[::1]")], "[::1]:4318", "http://10.0.0.1:9"),
            (vec![(BASE, "http://[::1]:7")], "[::1]:7", "http://10.0.0.1:9"),
        ] {
            let endpoint = read(&variables).unwrap();
            assert_eq!(endpoint.authority().unwrap(), dialled);
            let through = endpoint.through("10.0.0.1:9".parse().unwrap());
            let told = (variables[0].0.into(), inside.into());
            assert!(through.variables().contains(&told), "{through:?}");
        }
        // The sidecars reach one collector through the hub.
        let two = read(&[(BASE, "http://a"), (NAMES[3], "http://b/logs")]).unwrap();
        assert_eq!(two.authority().unwrap_err().code, 64);
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
