//! What the sidecar says of itself, on standard error: JSON for machines, text for a terminal. How much can be changed while it runs.

use std::sync::OnceLock;
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// The largest filter that is taken, in bytes.
pub const LARGEST_FILTER: usize = 4096;

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Begins, with what `wish` asks for: levels, or targets with levels, as in `info,postern_proxy::control=debug`.
pub fn to_stderr(wish: &str) {
    use std::io::IsTerminal;
    let understood = read(wish);
    let is_understood = understood.is_some();
    let (filter, handle) =
        reload::Layer::new(understood.unwrap_or_else(|| Targets::default().with_default(LevelFilter::INFO)));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = tracing_subscriber::registry();
    // Whoever embeds us may have a subscriber already: then that one stays, and its level is not ours to change.
    let begun = if std::io::stderr().is_terminal() {
        log.with(lines.with_target(false).with_filter(filter)).try_init()
    } else {
        log.with(lines.json().flatten_event(true).with_filter(filter)).try_init()
    };
    if begun.is_ok() {
        let _ = FILTER.set(handle);
    }
    if !is_understood {
        tracing::warn!(
            POSTERN_LOG = wish,
            "the filter is not understood, and `info` holds; write levels, or targets with levels, as in `info,postern_proxy::control=debug`"
        );
    }
}

/// The filter in force; `None` when the log is somebody else's.
pub fn level() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Puts another filter in force, at once and until the next one or the end of the process.
///
/// # Errors
/// A sentence: it is not understood, or the log is somebody else's.
pub fn set_level(wish: &str) -> Result<String, &'static str> {
    let handle = FILTER.get().ok_or("the log of this process is not the sidecar's own")?;
    let filter = read(wish.trim()).filter(|_| !wish.trim().is_empty()).ok_or(
        "write a level (off, error, warn, info, debug, trace), or targets with levels, as in `info,postern_proxy::control=debug`",
    )?;
    let text = filter.to_string();
    handle.reload(filter).map_err(|_| "the log is gone")?;
    tracing::info!(filter = text, "the log level was changed");
    Ok(text)
}

/// What names no level for everything is about its targets only. Spans, in brackets, are none of ours.
fn read(wish: &str) -> Option<Targets> {
    if wish.contains(['[', '{']) {
        return None;
    }
    let targets = if wish.is_empty() { Targets::default() } else { wish.parse::<Targets>().ok()? };
    Some(match targets.default_level() {
        None => targets.with_default(LevelFilter::INFO),
        Some(_) => targets,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(wish: &str, expected: Option<&str>) {
        assert_eq!(read(wish).map(|filter| filter.to_string()).as_deref(), expected, "{wish}");
    }

    #[test]
    fn a_filter_names_a_level_or_targets_with_levels() {
        check("", Some("info"));
        check("debug", Some("debug"));
        check("off", Some("off"));
        check("postern_proxy::control=trace", Some("postern_proxy::control=trace,info"));
        check("warn,postern_proxy=debug", Some("postern_proxy=debug,warn"));
        check("a=b=c", None);
        check("info,[span]=debug", None);
    }
}
