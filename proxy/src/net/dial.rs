//! Opening connections: to the app, and to endpoints.

use socket2::SockRef;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};

/// Connects within `patience`. `mark` exempts the socket from redirect rules, `source` is the address to come from.
pub async fn connect(
    address: SocketAddr,
    mark: Option<u32>,
    source: Option<IpAddr>,
    patience: Duration,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = tokio::time::timeout(patience, socket.connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}")))??;
    super::tune(&stream)?;
    Ok(stream)
}

/// The ports that [`connect_as`] takes: below those that systems give to their own connections, so that it hardly ever takes one that
/// the other machine uses towards the same app. Two connections with the same four numbers would get each other's packets.
const PORTS: std::ops::Range<u16> = 10_000..32_768;
/// Ports that are tried.
const TRIES: u32 = 8;

/// Connects within `patience` from an address of another machine, `source`, with a port of our choice. Rules send what comes back to
/// that address to us, by the `mark`. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// As connecting has; `AddrInUse` when all ports that were tried are taken.
pub async fn connect_as(
    address: SocketAddr,
    source: IpAddr,
    mark: u32,
    patience: Duration,
) -> io::Result<TcpStream> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"));
    let (began, mut failed) = (Instant::now(), late());
    for attempt in 1..=TRIES {
        // The kernel's choice last, which knows what is free.
        let port = if attempt < TRIES { rand::random_range(PORTS) } else { 0 };
        // Where the four numbers are in use all the same, our packets go to that connection, and nobody answers us.
        let until = (began + patience).min(Instant::now() + patience / 3);
        match tokio::time::timeout_at(until, connect_from(address, SocketAddr::new(source, port), mark)).await
        {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(taken)) if is_taken(&taken) => failed = taken,
            Ok(Err(error)) => return Err(error),
            Err(_) if began.elapsed() < patience => failed = late(),
            Err(_) => return Err(late()),
        }
    }
    Err(failed)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

async fn connect_from(address: SocketAddr, source: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    {
        let socket = SockRef::from(&socket);
        socket.set_mark(mark)?;
        super::set_transparent(&socket, address)?;
    }
    socket.bind(source)?;
    let stream = socket.connect(address).await?;
    super::tune(&stream)?;
    Ok(stream)
}
