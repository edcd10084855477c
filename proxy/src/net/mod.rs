//! The only room that touches sockets of the data plane: listen, original destination, sniff, dial, copy.

pub mod copy;
pub mod dial;
mod listener;
pub mod lookup;
pub mod prefixed;
pub mod sniff;

pub use listener::{Accepted, Acceptor, Arrival, Listener};
pub use prefixed::Prefixed;

use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::TcpStream;

/// What every stream of ours gets: no Nagle; a dead peer is noticed after 60 + 6 × 10 s, unacknowledged bytes after 120 s.
fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(120)))
}

/// Lets a socket have addresses that are not of this machine; needs `CAP_NET_ADMIN` (or `CAP_NET_RAW`).
fn set_transparent(socket: &SockRef<'_>, family: SocketAddr) -> io::Result<()> {
    if family.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Whether this process may do what TPROXY needs: take and open connections with addresses of others, and mark them.
///
/// # Errors
/// What the kernel says to that.
pub fn may_be_transparent(mark: u32) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(mark)
}

/// When a silent peer is asked whether it is still there, and how often before it counts as dead.
pub fn set_keepalive(
    stream: &TcpStream,
    time: Option<Duration>,
    interval: Option<Duration>,
    probes: Option<u32>,
) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(time.unwrap_or(Duration::from_secs(60)))
        .with_interval(interval.unwrap_or(Duration::from_secs(10)))
        .with_retries(probes.unwrap_or(6));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Whether somebody listens there: then it cannot be bound. Nobody is called, so nobody notices. What cannot be told counts as
/// taken, but an address family that this machine does not have.
pub fn is_taken(address: SocketAddr) -> bool {
    let probe = || {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of before that are still ending do not count.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    let is_absent = |error: &io::Error| {
        let code = error.raw_os_error();
        code == Some(nix::libc::EAFNOSUPPORT) || code == Some(nix::libc::EADDRNOTAVAIL)
    };
    probe().is_err_and(|error| !is_absent(&error))
}

/// Makes the coming close a reset (RST): the other side sees an error, never a clean end.
pub fn reset_on_close(stream: &TcpStream) {
    // A failure means that the socket is dead already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
