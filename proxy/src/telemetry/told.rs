//! What the mesh wants told (`Telemetry` documents): which lines the access log has, which traces are recorded, and with what.
//!
//! Asked for each request: one relaxed load where nobody says anything, one load without a lock where somebody does.

mod facts;
mod metrics;

pub use metrics::ToldMetrics;

use super::{Direction, Entry, attributes::text, record::TEXT_KEPT};
use crate::{bootstrap::otel::Sampler, telemetry::access_log::cut};
use arc_swap::{ArcSwap, Guard};
use http::HeaderName;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use postern_config::{
    cel::Absent,
    documents::telemetry::CustomTag,
    telemetry::{Log, Side, Sides},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// What holds now.
#[derive(Debug, Default)]
pub struct Told {
    /// Whether it is anything but the default: nobody pays for what nobody uses.
    is_said: AtomicBool,
    said: ArcSwap<Said>,
}

/// The answer for both directions, made ready.
#[derive(Debug, Default)]
pub struct Said {
    inbound: Way,
    outbound: Way,
}

/// The answer for one direction.
#[derive(Debug, Default)]
pub struct Way {
    side: Side,
    /// In place of the sidecar's own.
    pub(super) sampler: Option<Sampler>,
    /// Those that a filter or a tag looks at.
    pub(super) headers: Vec<HeaderName>,
}

/// Whether a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Yes,
    No,
    /// The filter looked at what is not there: better one line too many.
    Untold,
}

impl Told {
    /// From now on this holds.
    pub fn put(&self, sides: &Sides) {
        self.said
            .store(Arc::new(Said { inbound: Way::of(&sides.inbound), outbound: Way::of(&sides.outbound) }));
        self.is_said.store(*sides != Sides::default(), Ordering::Release);
    }

    /// Whether anybody says anything.
    pub(super) fn is_said(&self) -> bool {
        self.is_said.load(Ordering::Acquire)
    }

    /// `None` where nobody says anything.
    pub(super) fn said(&self) -> Option<Guard<Arc<Said>>> {
        self.is_said().then(|| self.said.load())
    }

    /// Whether the access log has a line of it. Denials, refusals and what an AUDIT policy matched are always wanted.
    pub(super) fn wants(&self, entry: &Entry) -> Wanted {
        let Some(said) = self.said() else { return Wanted::Yes };
        let filter = match &said.of(entry.direction).side.log {
            Log::All => return Wanted::Yes,
            Log::Off => None,
            Log::Where(filter) => Some(filter),
        };
        if entry.denial().is_some() || entry.decided.as_ref().is_some_and(|decided| decided.audit.is_some()) {
            return Wanted::Yes;
        }
        let is_true = filter.map_or(Ok(false), |filter| {
            filter.matches(|attribute| facts::attribute(entry, attribute), |name| facts::header(entry, name))
        });
        match is_true {
            Ok(true) => Wanted::Yes,
            Ok(false) => Wanted::No,
            Err(Absent) => Wanted::Untold,
        }
    }
}

impl Said {
    pub(super) fn of(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Adds what `customTags` say of `entry` to the attributes of its span. One name, one value: ours are not talked over.
    pub(super) fn add_tags(&self, entry: &Entry, attributes: &mut Vec<KeyValue>) {
        for tag in self.tags(entry) {
            if attributes.iter().all(|attribute| attribute.key != tag.key) {
                attributes.push(tag);
            }
        }
    }

    fn tags<'s>(&'s self, entry: &'s Entry) -> impl Iterator<Item = KeyValue> + 's {
        self.of(entry.direction).side.tags.iter().filter_map(|(name, tag)| {
            let value = match tag {
                CustomTag::Literal(value) => value,
                CustomTag::Header { name, default } => facts::named(entry, name).or(default.as_deref())?,
            };
            Some(text(name, cut(value, TEXT_KEPT)))
        })
    }
}

impl Way {
    fn of(side: &Side) -> Self {
        Self {
            sampler: side.sampling.map(|ratio| Sampler { is_parent_based: true, ratio }),
            headers: side.headers(),
            side: side.clone(),
        }
    }

    /// No span is made, and what the caller says passes as it is.
    pub(super) fn is_silent(&self) -> bool {
        self.side.is_silent
    }
}

#[cfg(test)]
mod tests;
