//! What one sidecar is asked to show of its calls.

use crate::{registry::Index, traffic::tap::Open};
use postern_api::v1::{self, control_message};
use std::sync::Arc;

/// The open taps, as the sidecar of this pod is told them.
pub(super) fn wire(open: &[Arc<Open>], index: &Index, namespace: &str, pod: &str) -> v1::ControlMessage {
    let tap = |open: &Arc<Open>| {
        let tap = open.wire();
        let Some(to) = &open.wanted.to else { return tap };
        let named = index.named(to);
        v1::Tap {
            to_some: true,
            to_own: named.pods.contains(&(namespace.to_owned(), pod.to_owned())),
            to_hosts: named.hosts.into_iter().collect(),
            ..tap
        }
    };
    let taps = v1::Taps { taps: open.iter().map(tap).collect() };
    v1::ControlMessage { message: Some(control_message::Message::Taps(taps)), ..Default::default() }
}
