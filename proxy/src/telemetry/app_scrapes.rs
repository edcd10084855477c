//! How often the app was asked for its own metrics, and what became of that.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppScrape {
    /// They are on the page.
    Taken,
    /// Nobody answered, or not to the end.
    Unreachable,
    /// Not within the time.
    Late,
    /// More than the bound.
    TooLarge,
    /// Another status than 200.
    Refused,
    /// Prometheus would not take it.
    Broken,
}

impl AppScrape {
    const ALL: [Self; 6] =
        [Self::Taken, Self::Unreachable, Self::Late, Self::TooLarge, Self::Refused, Self::Broken];

    fn labels(self) -> Labels {
        let result = match self {
            Self::Taken => "taken",
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::Broken => "broken",
        };
        Labels { result }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

/// The counter.
#[derive(Debug)]
pub struct AppScrapes(Family<Labels, Counter>);

impl Default for AppScrapes {
    fn default() -> Self {
        let all = Family::default();
        for scrape in AppScrape::ALL {
            drop(all.get_or_create(&scrape.labels()));
        }
        Self(all)
    }
}

impl AppScrapes {
    /// Counts one.
    pub fn count(&self, scrape: AppScrape) {
        self.0.get_or_create(&scrape.labels()).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "postern_app_scrapes",
            "Times that the app was asked for its own metrics, by what became of it",
            self.0.clone(),
        );
    }
}
