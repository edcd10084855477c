//! Listeners: bound once, infallible once they run.
//!
//! An accept loop that goes on at once after `EMFILE` burns a core and fills the log exactly when the process is short of
//! everything; so ours pauses, and says so rarely.

use crate::telemetry::Telemetry;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// How a listener knows where its connections wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Redirect rules brought them: the kernel knows (`SO_ORIGINAL_DST`).
    Redirected,
    /// Rules brought them as they are (TPROXY): our end of the socket is where they wanted to go.
    Transparent,
    /// Every connection wanted to go to this address.
    Fixed(SocketAddr),
}

/// A bound socket (`SO_REUSEPORT`, so that each worker has its own).
#[derive(Debug)]
pub struct Listener {
    socket: std::net::TcpListener,
    arrival: Arrival,
}

impl Listener {
    /// Binds and listens. Needs no runtime. To give every worker its own: bind the first (port 0 is fine), then bind
    /// the others to its [`Listener::local_addr`]. An IPv6 address takes IPv6 only.
    pub fn bind(address: SocketAddr, arrival: Arrival) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        if arrival == Arrival::Transparent {
            super::set_transparent(&SockRef::from(&socket), address)?;
        }
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(Self { socket: socket.into(), arrival })
    }

    /// The real address (port 0 resolved).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Ready to accept, inside the runtime that calls this. Failures are counted in `telemetry`.
    pub fn open(self, telemetry: Telemetry) -> io::Result<Acceptor> {
        let listener = tokio::net::TcpListener::from_std(self.socket)?;
        let back = Back { pause: MIN_PAUSE, resume: None, said: None, in_a_row: 0 };
        Ok(Acceptor { listener, arrival: self.arrival, back, telemetry })
    }
}

const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(500);
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Failures of single connections in a row after which we pause for them, too.
const MANY: u32 = 16;

/// A running listener.
pub struct Acceptor {
    listener: tokio::net::TcpListener,
    arrival: Arrival,
    back: Back,
    telemetry: Telemetry,
}

/// When to try again after a failure, and when to speak of it.
#[derive(Debug)]
struct Back {
    pause: Duration,
    resume: Option<Instant>,
    said: Option<Instant>,
    in_a_row: u32,
}

impl Back {
    fn succeeded(&mut self) {
        (self.pause, self.in_a_row) = (MIN_PAUSE, 0);
    }

    /// What this failure means; true: worth a line in the log. An error of one connection is gone with it, as long as they
    /// do not come one after the other.
    fn failed(&mut self, error: &io::Error, now: Instant) -> bool {
        self.in_a_row += 1;
        if concerns_one_connection(error) && self.in_a_row < MANY {
            return false;
        }
        self.in_a_row = MANY;
        self.resume = Some(now + self.pause);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        let says = self.said.is_none_or(|said| now - said >= SAY_EVERY);
        if says {
            self.said = Some(now);
        }
        says
    }
}

/// A connection with the addresses that policy talks about, IPv4-mapped IPv6 addresses made plain IPv4.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, tuned.
    pub stream: TcpStream,
    /// Who called.
    pub downstream: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// How we know.
    pub arrival: Arrival,
    /// Our end of the socket.
    pub local: SocketAddr,
}

impl Accepted {
    /// Whether the connection was meant for the proxy itself. What rules brought is compared with `own_ports` on every
    /// address that is certainly ours; explicit ones with the listener that took them.
    pub fn is_loop(&self, own_ports: &[u16], own_addresses: &[IpAddr]) -> bool {
        match self.arrival {
            Arrival::Fixed(_) => self.destination == self.local,
            Arrival::Redirected | Arrival::Transparent => {
                let ip = self.destination.ip();
                let ours = ip.is_loopback() || ip.is_unspecified() || ip == self.local.ip();
                own_ports.contains(&self.destination.port()) && (ours || own_addresses.contains(&ip))
            }
        }
    }
}

impl Acceptor {
    /// The next connection. Never fails: on `EMFILE` and its like it pauses (10 to 500 ms, doubling) and tries again.
    /// Cancel safe; the pause survives cancellation.
    pub async fn accept(&mut self) -> Accepted {
        loop {
            if let Some(resume) = self.back.resume {
                tokio::time::sleep_until(resume).await;
                self.back.resume = None;
            }
            match self.listener.accept().await {
                Ok((stream, downstream)) => {
                    self.back.succeeded();
                    // Errors here mean that the client has gone already; nobody is left to tell.
                    if let Ok(accepted) = self.complete(stream, downstream) {
                        return accepted;
                    }
                }
                Err(error) => {
                    self.telemetry.metrics().accept_failed();
                    let pause = self.back.pause;
                    if self.back.failed(&error, Instant::now()) {
                        tracing::warn!(%error, ?pause, "cannot accept connections; pausing. Is the limit of open files too low?");
                    }
                }
            }
        }
    }

    fn complete(&self, stream: TcpStream, downstream: SocketAddr) -> io::Result<Accepted> {
        super::tune(&stream)?;
        let local = canonical(stream.local_addr()?);
        let destination = match self.arrival {
            Arrival::Fixed(destination) => destination,
            // Without a redirect rule the kernel knows of no other destination than our own address, which is a loop.
            Arrival::Redirected => original_destination(&stream).map_or(local, canonical),
            // What the sidecar sends to its own pod does not cross the network, and is redirected to the loopback address.
            Arrival::Transparent if local.ip().is_loopback() => {
                original_destination(&stream).map_or(local, canonical)
            }
            Arrival::Transparent => local,
        };
        Ok(Accepted { stream, downstream: canonical(downstream), destination, arrival: self.arrival, local })
    }
}

/// Where a redirected connection wanted to go: `SO_ORIGINAL_DST` / `IP6T_SO_ORIGINAL_DST` of netfilter's conntrack.
fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr().ok()? {
        SocketAddr::V6(local) if local.ip().to_ipv4_mapped().is_none() => socket.original_dst_v6(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => socket.original_dst_v4(),
    };
    address.ok()?.as_socket()
}

/// Plain IPv4 for `::ffff:a.b.c.d`; no scope or flow label, which would break comparisons.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// Every errno of accept(2), for ever: the loop pauses, and says so rarely.
    #[test]
    fn no_error_of_accept_makes_the_loop_spin() {
        use nix::errno::Errno::{
            ECONNABORTED, EINTR, EMFILE, ENETDOWN, ENFILE, ENOBUFS, ENOMEM, ENOPROTOOPT, EPERM, EPROTO,
        };
        for errno in
            [EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED, EINTR, EPERM, EPROTO, ENETDOWN, ENOPROTOOPT]
        {
            let error = io::Error::from(errno);
            let mut back = Back { pause: MIN_PAUSE, resume: None, said: None, in_a_row: 0 };
            let (begin, mut now, mut tries, mut said) = (Instant::now(), Instant::now(), 0, 0);
            while now - begin < Duration::from_secs(60) {
                tries += 1;
                said += u32::from(back.failed(&error, now));
                now = back.resume.take().unwrap_or(now);
            }
            assert!((120..160).contains(&tries), "{error}: {tries} tries in a minute");
            assert!((1..=7).contains(&said), "{error}: said {said} times");
            back.succeeded();
            assert_eq!(back.pause, MIN_PAUSE);
        }
    }

    #[tokio::test]
    async fn two_workers_share_one_port() {
        let fixed = Arrival::Fixed("10.0.0.1:80".parse().unwrap());
        let first = Listener::bind("127.0.0.1:0".parse().unwrap(), fixed).unwrap();
        let second = Listener::bind(first.local_addr().unwrap(), fixed).unwrap();
        let address = first.local_addr().unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
        let (mut first, mut second) =
            (first.open(Telemetry::silent()).unwrap(), second.open(Telemetry::silent()).unwrap());
        let client = TcpStream::connect(address).await.unwrap();
        let accepted = tokio::select! { a = first.accept() => a, a = second.accept() => a };
        assert_eq!(accepted.downstream, client.local_addr().unwrap());
        assert_eq!(accepted.destination, "10.0.0.1:80".parse().unwrap());
        assert!(!accepted.is_loop(&[80], &[]));
    }

    #[tokio::test]
    async fn an_accepted_connection_notices_a_peer_that_is_gone() {
        let fixed = Arrival::Fixed("10.0.0.1:80".parse().unwrap());
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), fixed).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted = listener.open(Telemetry::silent()).unwrap().accept().await;
        let socket = socket2::SockRef::from(&accepted.stream);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
    }

    #[tokio::test]
    async fn a_connection_made_straight_to_a_redirect_port_is_a_loop() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = Listener::bind(bind.parse().unwrap(), Arrival::Redirected) else { continue };
            let address = listener.local_addr().unwrap();
            let mut acceptor = listener.open(Telemetry::silent()).unwrap();
            let _client = TcpStream::connect(address).await.unwrap();
            let accepted = acceptor.accept().await;
            assert_eq!(accepted.destination, address);
            assert!(accepted.is_loop(&[address.port()], &[]));
            assert!(!accepted.is_loop(&[1], &[]));
        }
    }
}
