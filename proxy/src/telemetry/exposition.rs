//! Metrics as text: OpenMetrics for those who ask for it, with exemplars, and Prometheus' text format 0.0.4 for all others.
//!
//! Sources: OpenMetrics 1.0; Prometheus, "Exposition formats".

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    Exemplar, LabelPair, MetricFamily, MetricType,
};
use std::fmt::{self, Write};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Plain,
    /// OpenMetrics 1.0.
    Open,
}

impl Format {
    /// What an answer of this form says of itself.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::Open => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The families in their order.
pub fn write(families: &[MetricFamily], format: Format) -> String {
    let mut page = Page { text: String::new(), format };
    for family in families {
        // Writing into a String does not fail.
        let _ = page.family(family);
    }
    if format == Format::Open {
        page.text.push_str("# EOF\n");
    }
    page.text
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn family(&mut self, family: &MetricFamily) -> fmt::Result {
        let name = &family.name;
        let kind = match family.r#type() {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
            _ if self.format == Format::Open => "unknown",
            _ => "untyped",
        };
        // OpenMetrics names a counter's family without the end that its samples have.
        let named = match self.format {
            Format::Open if kind == "counter" => name.trim_end_matches("_total"),
            _ => name,
        };
        write!(self.text, "# HELP {named} ")?;
        escaped(&mut self.text, family.help.trim_end_matches('.'), self.format == Format::Open);
        writeln!(self.text, "\n# TYPE {named} {kind}")?;
        for series in &family.metric {
            let labels = &series.label;
            if let Some(histogram) = &series.histogram {
                for bucket in &histogram.bucket {
                    let bound = self.bound(bucket.upper_bound);
                    self.sample(name, "_bucket", labels, Some(&bound), bucket.cumulative_count as f64)?;
                    self.exemplar(bucket.exemplar.as_ref())?;
                    self.text.push('\n');
                }
                self.line(name, "_sum", labels, histogram.sample_sum)?;
                self.line(name, "_count", labels, histogram.sample_count as f64)?;
            } else if let Some(counter) = &series.counter {
                self.line(name, "", labels, counter.value)?;
            } else if let Some(gauge) = &series.gauge {
                self.line(name, "", labels, gauge.value)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, name: &str, end: &str, labels: &[LabelPair], value: f64) -> fmt::Result {
        self.sample(name, end, labels, None, value)?;
        self.text.push('\n');
        Ok(())
    }

    /// A sample without its newline.
    fn sample(
        &mut self,
        name: &str,
        end: &str,
        labels: &[LabelPair],
        bound: Option<&str>,
        value: f64,
    ) -> fmt::Result {
        self.text.push_str(name);
        self.text.push_str(end);
        let bound = bound.map(|bound| ("le", bound));
        let labels = labels.iter().map(|label| (label.name.as_str(), label.value.as_str()));
        self.labels(bound.into_iter().chain(labels))?;
        write!(self.text, " {value}")
    }

    fn labels<'l>(&mut self, all: impl Iterator<Item = (&'l str, &'l str)>) -> fmt::Result {
        let mut before = '{';
        for (name, value) in all {
            write!(self.text, "{before}{name}=\"")?;
            escaped(&mut self.text, value, true);
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        Ok(())
    }

    fn exemplar(&mut self, exemplar: Option<&Exemplar>) -> fmt::Result {
        let Some(exemplar) = exemplar.filter(|_| self.format == Format::Open) else { return Ok(()) };
        self.text.push_str(" # ");
        self.labels(exemplar.label.iter().map(|label| (label.name.as_str(), label.value.as_str())))?;
        write!(self.text, " {}", exemplar.value)?;
        match &exemplar.timestamp {
            Some(at) => write!(self.text, " {}.{:03}", at.seconds, at.nanos / 1_000_000),
            None => Ok(()),
        }
    }

    /// OpenMetrics wants the point in every bound, so that `le` is one text for one number.
    fn bound(&self, bound: f64) -> String {
        match bound {
            f64::INFINITY => "+Inf".to_owned(),
            whole if self.format == Format::Open && whole.fract() == 0.0 => format!("{whole:.1}"),
            bound => bound.to_string(),
        }
    }
}

fn escaped(text: &mut String, value: &str, with_quotes: bool) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' if with_quotes => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use prometheus_client::{
        encoding::prometheus_protobuf::encode,
        metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
        registry::Registry,
    };

    /// A counter with a label that needs escapes, a gauge, and a histogram with an example.
    fn families() -> Vec<MetricFamily> {
        let mut registry = Registry::default();
        let calls = Family::<Vec<(&'static str, String)>, Counter>::default();
        calls.get_or_create(&vec![("who", "a\\b\"c\nd é".to_owned())]).inc_by(3);
        registry.register("calls", "Calls\nof \\ all", calls);
        registry.register("age", "Age", Gauge::<f64, std::sync::atomic::AtomicU64>::default());
        let seconds = Histogram::new([0.000025, 1.0]);
        seconds.observe(0.5);
        seconds.observe(2.0);
        registry.register("time", "Time", seconds);
        let mut families = encode(&registry).unwrap();
        let example = &mut families[2].metric[0].histogram.as_mut().unwrap().bucket[1].exemplar;
        *example = Some(Exemplar {
            label: vec![LabelPair { name: "trace_id".into(), value: "ab".into() }],
            value: 0.5,
            timestamp: Some(prost_types::Timestamp { seconds: 7, nanos: 8_000_000 }),
        });
        families
    }

    fn check(format: Format, expected: &[&str]) {
        assert_eq!(write(&families(), format).lines().collect::<Vec<_>>(), expected, "{format:?}");
    }

    #[test]
    fn both_formats_are_written_as_they_want_it() {
        check(
            Format::Plain,
            &[
                "# HELP calls_total Calls\\nof \\\\ all",
                "# TYPE calls_total counter",
                "calls_total{who=\"a\\\\b\\\"c\\nd é\"} 3",
                "# HELP age Age",
                "# TYPE age gauge",
                "age 0",
                "# HELP time Time",
                "# TYPE time histogram",
                "time_bucket{le=\"0.000025\"} 0",
                "time_bucket{le=\"1\"} 1",
                "time_bucket{le=\"+Inf\"} 2",
                "time_sum 2.5",
                "time_count 2",
            ],
        );
        check(
            Format::Open,
            &[
                "# HELP calls Calls\\nof \\\\ all",
                "# TYPE calls counter",
                "calls_total{who=\"a\\\\b\\\"c\\nd é\"} 3",
                "# HELP age Age",
                "# TYPE age gauge",
                "age 0",
                "# HELP time Time",
                "# TYPE time histogram",
                "time_bucket{le=\"0.000025\"} 0",
                "time_bucket{le=\"1.0\"} 1 # {trace_id=\"ab\"} 0.5 7.008",
                "time_bucket{le=\"+Inf\"} 2",
                "time_sum 2.5",
                "time_count 2",
                "# EOF",
            ],
        );
    }
}
