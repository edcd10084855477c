//! Spans on their way out: pods cannot reach the host, so the hub takes their connections and hands them, through a unix
//! socket in the runtime folder, to the outer process, which dials the collector that the person named.
use crate::failure::Failure;
use std::{
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
/// The port of OTLP over gRPC.
const OTLP_PORT: u16 = 4317;

/// `host:port` of an endpoint as `OTEL_EXPORTER_OTLP_ENDPOINT` has it.
///
/// # Errors
/// Not `http://`; only plain connections can be handed through.
pub fn authority(endpoint: &str) -> Result<String, Failure> {
    let rest = endpoint.strip_prefix("http://").ok_or_else(|| {
        Failure::usage(
            format!(
                "OTEL_EXPORTER_OTLP_ENDPOINT is `{endpoint}`, but only http:// can be reached from the pods."
            ),
            "Name a collector nearby as http://HOST:PORT, which may send on over TLS; or unset it.",
        )
    })?;
    let host = rest.split('/').next().unwrap_or_default();
    let after_brackets = host.rsplit(']').next().unwrap_or(host);
    Ok(if after_brackets.contains(':') { host.to_owned() } else { format!("{host}:{OTLP_PORT}") })
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

    #[test]
    fn endpoints_are_understood_as_opentelemetry_writes_them() {
        for (endpoint, expected) in [
            ("http://localhost:4317", "localhost:4317"),
            ("http://collector", "collector:4317"),
            ("http://10.0.0.1:9/v1", "10.0.0.1:9"),
            ("http://[::1]", "[::1]:4317"),
            ("http://[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(authority(endpoint).unwrap(), expected);
        }
        assert_eq!(authority("https://collector").unwrap_err().code, 64);
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
