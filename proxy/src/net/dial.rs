//! Opening connections: to the app, and to endpoints.

use socket2::SockRef;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream};

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
