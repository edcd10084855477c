//! The only room that touches sockets of the data plane: listen, original destination, sniff, dial, copy.

pub mod copy;
pub mod dial;
pub mod dials;
mod greeters;
mod listener;
pub mod lookup;
pub mod prefixed;
pub mod sniff;

pub use greeters::Greeters;
pub use listener::{Accepted, Acceptor, Arrival, Listener};
pub use prefixed::Prefixed;

use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::TcpStream;

/// What every stream of ours gets: no Nagle; a peer that is gone is noticed after 60 + 6 × 10 s.
fn tune(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_nodelay(true)?;
    set_keepalive(stream, None, None, None)
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

/// When a silent peer is asked whether it is still there, and how often before it counts as dead. Whoever does not acknowledge
/// what was sent to it is given the same time: the kernel counts no probes where TCP_USER_TIMEOUT (tcp(7)) is set, so that this says
/// when for both.
pub fn set_keepalive(
    stream: &TcpStream,
    time: Option<Duration>,
    interval: Option<Duration>,
    probes: Option<u32>,
) -> io::Result<()> {
    let time = time.unwrap_or(Duration::from_secs(60));
    let interval = interval.unwrap_or(Duration::from_secs(10));
    let probes = probes.unwrap_or(6);
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(probes);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(time.saturating_add(interval.saturating_mul(probes))))
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

/// Nothing more is read: whoever waits for that is called. The other side hears nothing of it.
pub fn stop_reading(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Read);
}

/// Makes the coming close a reset (RST): the other side sees an error, never a clean end.
pub fn reset_on_close(stream: &TcpStream) {
    // A failure means that the socket is dead already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
