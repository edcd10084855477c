//! Taps as the control plane asks for them, and the calls that it is told: bounded, off the path of requests.

use crate::telemetry::{
    Direction, Entry,
    access_log::cut,
    tap::{Called, Filter, TAPS, Tap, Tapped, verdict},
};
use postern_api::v1;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Calls in one message.
pub const CALLS: usize = 16;
const MOST_RATE: u32 = 1000;
const LONGEST: u32 = 600;
/// Longest text, in bytes.
const TEXT: usize = 256;

/// What is open from now on. What asks for more than a tap may have is cut down.
pub fn open(wire: v1::Taps, now: Instant) -> Vec<Tap> {
    let tap = |tap: v1::Tap| {
        let until = now + Duration::from_secs(tap.seconds.min(LONGEST).into());
        Tap::new(tap.id, tap.rate.clamp(1, MOST_RATE), until, filter(tap))
    };
    wire.taps.into_iter().take(TAPS).map(tap).collect()
}

fn filter(tap: v1::Tap) -> Filter {
    let given = |text: String| (!text.is_empty()).then_some(text);
    let status = |status: u32| u16::try_from(status).unwrap_or(u16::MAX);
    Filter {
        direction: match tap.direction() {
            v1::Direction::Unknown => None,
            v1::Direction::Inbound => Some(Direction::Inbound),
            v1::Direction::Outbound => Some(Direction::Outbound),
        },
        is_allowed: match tap.verdict() {
            v1::Verdict::None => None,
            v1::Verdict::Allow => Some(true),
            v1::Verdict::Deny => Some(false),
        },
        to: tap.to_some.then_some(Called { own: tap.to_own, hosts: tap.to_hosts }),
        status: (tap.status_from > 0).then(|| (status(tap.status_from), status(tap.status_to))),
        from: given(tap.from),
        method: given(tap.method),
        path_prefix: tap.path_prefix,
    }
}

/// What the control plane is told.
pub fn told(calls: Vec<Tapped>, left_out: Vec<(u64, u64)>) -> v1::Tapped {
    v1::Tapped {
        calls: calls.into_iter().map(|one| call(one.taps, &one.entry)).collect(),
        left_out: left_out.into_iter().map(|(tap, count)| v1::LeftOut { tap, count }).collect(),
    }
}

fn call(taps: Vec<u64>, entry: &Entry) -> v1::TappedCall {
    let (direction, peer) = match entry.direction {
        Direction::Inbound => (v1::Direction::Inbound, &entry.source_principal),
        Direction::Outbound => (v1::Direction::Outbound, &entry.destination_principal),
    };
    let (request, decided) = (entry.request.as_ref(), entry.decided.as_ref());
    let rule = decided.and_then(|decided| decided.rule.as_ref());
    let text = |text: &str| cut(text, TEXT).to_owned();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    v1::TappedCall {
        taps,
        direction: direction.into(),
        peer: peer.as_deref().unwrap_or_default().to_owned(),
        service: text(entry.destination_service.as_deref().unwrap_or_default()),
        method: request.map(|request| text(request.method.as_str())).unwrap_or_default(),
        path: request.map(|request| text(&request.path)).unwrap_or_default(),
        port: entry.destination_address.port().into(),
        status: entry.status.unwrap_or_default().into(),
        protocol: entry.protocol.unwrap_or_default().to_owned(),
        verdict: match verdict(entry) {
            None => v1::Verdict::None,
            Some(true) => v1::Verdict::Allow,
            Some(false) => v1::Verdict::Deny,
        }
        .into(),
        reason: text(entry.denial().or(entry.reason.as_deref()).unwrap_or_default()),
        policy: rule.map(|rule| rule.policy_name()).unwrap_or_default(),
        rule: rule.map(|rule| u32::try_from(rule.rule).unwrap_or(u32::MAX)),
        decision: decided.and_then(|decided| decided.id.clone()).unwrap_or_default(),
        flag: if entry.flag == "-" { String::new() } else { entry.flag.to_owned() },
        source_ip: entry.source_address.ip().to_string(),
        total_micros: micros(entry.duration),
        proxy_micros: micros(entry.proxy),
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        unix_millis: millis(entry.began),
    }
}

fn millis(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
