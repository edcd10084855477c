//! What is compared, and by which addresses and ports each of them is told apart.

use std::net::{Ipv4Addr, SocketAddr};

/// The client's end of the veth pair.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// Ours.
pub const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Where the app is.
pub const APP_PORT: u16 = 8080;
/// The same app on a port whose protocol is declared as TCP.
pub const APP_TCP_PORT: u16 = 9000;

/// Its gRPC, on a port that says so.
pub const APP_GRPC_PORT: u16 = 9100;

/// Where it takes what is sent by OTLP over HTTP.
pub const APP_OTLP_PORT: u16 = 4318;

/// Each pair has an address that the client asks and a port at which the server's half is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// No proxy at all.
    Direct,
    /// Ours.
    Postern,
    /// Ours, where a DestinationRule asks for HTTP/2 between.
    PosternHttp2,
    /// Ours, a port that carries bytes.
    PosternTcp,
    /// Ours, a port that carries gRPC.
    PosternGrpc,
    /// Envoy with HTTP/1.1 between.
    EnvoyHttp1,
    /// Envoy with HTTP/2 between.
    EnvoyHttp2,
    /// Envoy as TCP proxy.
    EnvoyTcp,
    /// hyper and rustls, HTTP/1.1 between.
    FloorHttp1,
    /// hyper and rustls, HTTP/2 between.
    FloorHttp2,
}

impl Pair {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Postern => "postern HTTP",
            Self::PosternHttp2 => "postern over HTTP/2",
            Self::PosternTcp => "postern TCP",
            Self::PosternGrpc => "postern gRPC",
            Self::EnvoyHttp1 => "Envoy HTTP/1.1",
            Self::EnvoyHttp2 => "Envoy HTTP/2",
            Self::EnvoyTcp => "Envoy TCP",
            Self::FloorHttp1 => "floor HTTP/1.1",
            Self::FloorHttp2 => "floor HTTP/2",
        }
    }

    /// Tells files and ports apart.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whom the generator asks.
    pub fn target(self) -> SocketAddr {
        match self {
            Self::Direct => (SERVER_IP, APP_PORT + 1).into(),
            Self::Postern => (Ipv4Addr::new(10, 96, 0, 1), 80).into(),
            Self::PosternHttp2 => (Ipv4Addr::new(10, 96, 0, 2), 80).into(),
            Self::PosternTcp => (Ipv4Addr::new(10, 96, 0, 1), APP_TCP_PORT).into(),
            Self::PosternGrpc => (Ipv4Addr::new(10, 96, 0, 1), APP_GRPC_PORT).into(),
            other => (Ipv4Addr::new(10, 96, 0, 10 + other.number()), 80).into(),
        }
    }

    /// Where the redirect rules of the client's side bring its connections.
    pub fn outbound_port(self) -> u16 {
        match self {
            Self::Postern | Self::PosternHttp2 | Self::PosternTcp | Self::PosternGrpc => 15001,
            other => 15100 + u16::from(other.number()),
        }
    }

    /// Where those of the server's side do.
    pub fn inbound_port(self) -> u16 {
        match self {
            Self::Postern | Self::PosternHttp2 | Self::PosternTcp | Self::PosternGrpc => 15006,
            other => 15200 + u16::from(other.number()),
        }
    }

    /// The port that the client's half dials.
    pub fn wire_port(self) -> u16 {
        match self {
            Self::Postern | Self::PosternHttp2 => APP_PORT,
            Self::PosternTcp => APP_TCP_PORT,
            Self::PosternGrpc => APP_GRPC_PORT,
            other => 18000 + u16::from(other.number()),
        }
    }
}
