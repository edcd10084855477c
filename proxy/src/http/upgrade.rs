//! The tunnel behind a 101: bytes, until either side ends or policy changes its mind.

use crate::{
    error::ProxyError,
    http::http1::server::Downstream,
    net::{
        Prefixed,
        copy::{Counts, Ended, both_ways},
    },
    telemetry::Record,
    tls::Stream,
};
use std::time::Duration;

/// Carries bytes between two upgraded connections, then writes the record. `revoked` resolves when policy withdraws the right.
pub async fn tunnel(
    mut downstream: Downstream,
    upstream: Option<Prefixed<Stream>>,
    half_closed: Duration,
    mut record: Record,
    revoked: impl Future<Output = ProxyError>,
) {
    let Some(mut upstream) = upstream else {
        record
            .set_error(&ProxyError::UpstreamReset("upgrade not completed: the connection has ended".into()));
        return;
    };
    let mut counts = Counts::default();
    let ended = tokio::select! {
        ended = both_ways(&mut downstream, &mut upstream, half_closed, None, &mut counts, |_| {}) => ended_as(ended),
        error = revoked => Some(error),
    };
    if let Some(error) = ended {
        record.set_error(&error);
    }
    record.add_received(counts.received);
    record.add_sent(counts.sent);
}

/// How the end of a conversation of bytes reads in the record.
pub fn ended_as(ended: Ended) -> Option<ProxyError> {
    match ended {
        Ended::Cleanly => None,
        Ended::Downstream(_) => Some(ProxyError::DownstreamGone),
        Ended::Upstream(error) => Some(ProxyError::UpstreamReset(error.to_string())),
        Ended::HalfClosedTooLong | Ended::Idle => Some(ProxyError::DownstreamTimeout),
    }
}
