//! What is on the wire between two pods: every TCP payload that passes the mesh's bridge, as tcpdump would see it.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 0x0003;
/// Bytes kept; the demo needs a few kilobytes.
const CAPACITY: usize = 4 * 1024 * 1024;

/// A running capture in the network namespace of the thread that started it.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<io::Result<Vec<Segment>>>,
}

/// The payload of one TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: (IpAddr, u16),
    /// Receiver.
    pub to: (IpAddr, u16),
    /// TCP payload, never empty.
    pub payload: Vec<u8>,
}

impl Capture {
    /// Starts to capture on all interfaces of this namespace; needs CAP_NET_RAW there.
    ///
    /// # Errors
    /// When the packet socket is refused.
    pub fn start() -> io::Result<Self> {
        // DGRAM: the kernel strips the link layer, so a packet starts with its IP header.
        let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader =
            std::thread::Builder::new().name("capture".into()).spawn(move || read_until(socket, &stopped))?;
        Ok(Self { stop, reader })
    }

    /// Ends the capture and returns the segments between `port` of any address of `server` and anyone, in order.
    ///
    /// # Errors
    /// When the socket failed while reading.
    pub fn finish(self, server: &[IpAddr], port: u16) -> io::Result<Vec<Segment>> {
        self.stop.store(true, Ordering::Relaxed);
        let segments = self.reader.join().map_err(|_| io::Error::other("the capture thread panicked"))??;
        let server = |(address, at): (IpAddr, u16)| at == port && server.contains(&address);
        let ours = |s: &Segment| server(s.from) || server(s.to);
        Ok(segments.into_iter().filter(ours).collect())
    }
}

fn read_until(mut socket: Socket, stop: &AtomicBool) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut kept = 0;
    let mut packet = vec![0_u8; 65_536];
    // The bridge and both veth ends see the same packet: neighbours that are equal are one.
    while !stop.load(Ordering::Relaxed) && kept < CAPACITY {
        match socket.read(&mut packet) {
            Ok(length) => {
                let Some(segment) = packet.get(..length).and_then(parse) else { continue };
                if !segments.iter().rev().take(4).any(|s| *s == segment) {
                    kept += segment.payload.len();
                    segments.push(segment);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(segments)
}

/// The TCP segment inside an IP packet; `None` for anything else and for empty payloads.
fn parse(packet: &[u8]) -> Option<Segment> {
    const TCP: u8 = 6;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
            if *packet.get(9)? != TCP {
                return None;
            }
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into(), packet.get(header..total)?)
        }
        6 => {
            let payload = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
            if *packet.get(6)? != TCP {
                return None;
            }
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            let tcp = packet.get(40..40 + payload)?;
            (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), tcp)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let payload = tcp.get(header..)?.to_vec();
    (!payload.is_empty()).then_some(Segment {
        from: (source, port(0)?),
        to: (destination, port(2)?),
        payload,
    })
}

/// What the bytes look like from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Payload bytes.
    pub bytes: usize,
    /// TLS records of type application data (23).
    pub encrypted_records: usize,
    /// Connections that began with a TLS handshake record (22).
    pub handshakes: usize,
}

/// Walks the TLS records of each direction of each connection (RFC 8446 section 5.1).
pub fn shape(segments: &[Segment]) -> Shape {
    use std::collections::BTreeMap;
    type Direction = ((IpAddr, u16), (IpAddr, u16));
    let mut streams: BTreeMap<Direction, Vec<u8>> = BTreeMap::new();
    for segment in segments {
        streams.entry((segment.from, segment.to)).or_default().extend(&segment.payload);
    }
    let mut shape = Shape::default();
    for stream in streams.values() {
        shape.bytes += stream.len();
        shape.handshakes += usize::from(stream.starts_with(&[22, 3]));
        let mut rest = stream.as_slice();
        while let [kind, 3, _, high, low, after @ ..] = rest {
            shape.encrypted_records += usize::from(*kind == 23);
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            rest = after.get(length..).unwrap_or_default();
        }
    }
    shape
}

/// Whether `needle` can be read anywhere in the payloads.
pub fn readable(segments: &[Segment], needle: &[u8]) -> bool {
    segments.iter().any(|s| s.payload.windows(needle.len()).any(|w| w == needle))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ipv4_tcp(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x30, 0x39, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        let total = u16::try_from(packet.len()).unwrap().to_be_bytes();
        packet[2..4].copy_from_slice(&total);
        packet
    }

    #[test]
    fn a_tcp_segment_is_read_with_its_ends_and_payload() {
        let segment = parse(&ipv4_tcp(b"hello")).unwrap();
        assert_eq!(segment.from, ("10.0.0.1".parse().unwrap(), 12345));
        assert_eq!(segment.to, ("10.0.0.2".parse().unwrap(), 8080));
        assert_eq!(segment.payload, b"hello");
    }

    #[test]
    fn ethernet_padding_and_empty_segments_are_not_payload() {
        let mut padded = ipv4_tcp(b"x");
        padded.extend([0; 6]);
        assert_eq!(parse(&padded).unwrap().payload, b"x");
        assert_eq!(parse(&ipv4_tcp(b"")), None);
    }

    #[test]
    fn truncated_packets_are_skipped_at_every_length() {
        let whole = ipv4_tcp(b"hello");
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn tls_records_are_counted_and_plaintext_is_found() {
        let client = ("10.0.0.1".parse().unwrap(), 1);
        let server = ("10.0.0.2".parse().unwrap(), 8080);
        let segment = |payload: &[u8]| Segment { from: client, to: server, payload: payload.to_vec() };
        let segments = [segment(&[22, 3, 1, 0, 2, 9, 9]), segment(&[23, 3, 3, 0, 3, 1]), segment(&[2, 3])];
        assert_eq!(shape(&segments), Shape { bytes: 15, encrypted_records: 1, handshakes: 1 });
        assert!(!readable(&segments, b"POST /v1/charges"));
        assert!(readable(&[segment(b"POST /v1/charges HTTP/1.1")], b"/v1/charges"));
    }
}
