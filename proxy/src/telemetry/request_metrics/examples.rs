//! Examples of what histograms count: of each group the last request whose trace is recorded.

use super::{Group, RequestMetrics, Sampled, scrape};
use crate::telemetry::metrics::OTHER;
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    Exemplar, Histogram, LabelPair, MetricFamily,
};
use std::collections::{BTreeMap, HashMap};

/// Name and value of each label of a series.
type Labels = Vec<(String, String)>;

/// The latest of all threads, by the labels of their histograms.
#[derive(Default)]
struct Examples {
    durations: HashMap<Labels, Sampled>,
    proxy_times: HashMap<Labels, Sampled>,
}

impl RequestMetrics {
    /// Adds examples to what a scrape says of durations.
    pub fn add_examples(&self, families: &mut [MetricFamily]) {
        let examples = self.examples();
        for family in families {
            let (examples, value): (_, fn(&Sampled) -> f64) = match family.name.as_str() {
                scrape::DURATIONS => (&examples.durations, |sampled| sampled.micros as f64 / 1e3),
                scrape::PROXY_TIMES => (&examples.proxy_times, |sampled| sampled.proxy_nanos as f64 / 1e9),
                _ => continue,
            };
            if examples.is_empty() {
                continue;
            }
            for series in &mut family.metric {
                let label = |label: &LabelPair| (label.name.clone(), label.value.clone());
                let labels: Labels = series.label.iter().map(label).collect();
                if let Some((sampled, histogram)) = examples.get(&labels).zip(series.histogram.as_mut()) {
                    add(histogram, value(sampled), sampled);
                }
            }
        }
    }

    fn examples(&self) -> Examples {
        let own = self.0.own.load();
        let mut groups: BTreeMap<Option<Group>, Sampled> = BTreeMap::new();
        let mut own_times: BTreeMap<[&'static str; 2], Sampled> = BTreeMap::new();
        for (group, all) in &self.0.kinds.lock().groups {
            let latest = all.places.iter().filter_map(|place| *place.sampled.lock());
            let Some(latest) = latest.max_by_key(|sampled| sampled.ended) else { continue };
            let names =
                group.as_ref().map_or([OTHER; 2], |group| [group.direction().reporter(), group.protocol]);
            keep_later(own_times.entry(names).or_insert(latest), latest);
            let told = group.clone().filter(|_| all.is_told_apart);
            keep_later(groups.entry(told).or_insert(latest), latest);
        }
        let owned = |labels: Vec<(&'static str, &str)>| -> Labels {
            labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        Examples {
            durations: groups
                .iter()
                .map(|(group, sampled)| (owned(scrape::group_labels(group.as_ref(), &own)), *sampled))
                .collect(),
            proxy_times: own_times
                .into_iter()
                .map(|(names, sampled)| (owned(scrape::own_labels(names)), sampled))
                .collect(),
        }
    }
}

fn keep_later(known: &mut Sampled, other: Sampled) {
    if other.ended > known.ended {
        *known = other;
    }
}

/// To the bucket that the value was counted in.
fn add(histogram: &mut Histogram, value: f64, sampled: &Sampled) {
    if let Some(bucket) = histogram.bucket.iter_mut().find(|bucket| value <= bucket.upper_bound) {
        bucket.exemplar = Some(Exemplar {
            label: vec![LabelPair { name: "trace_id".into(), value: format!("{:032x}", sampled.trace_id) }],
            value,
            timestamp: Some(sampled.ended.into()),
        });
    }
}
