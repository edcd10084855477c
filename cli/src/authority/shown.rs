//! How lives, ends and key ids are shown to a person.

use crate::policy::formats::Paint;
use std::time::{Duration, SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Digits of a key id that are shown; nobody has so many authorities that these are the same.
const SHORT: usize = 8;
/// Cells of a bar.
const CELLS: u32 = 10;
/// Below this share of its life something is odd, for it should have been renewed.
pub(crate) const LATE: f64 = 0.2;

/// The beginning of a key id.
pub(crate) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// A bar and a percentage: `███████░░░ 70 %`.
pub(crate) fn life(remaining: f64, paint: Paint) -> String {
    let share = remaining.clamp(0.0, 1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let percent = (share * 100.0).round() as u32;
    // What is not over has a cell.
    let full = if share > 0.0 { (percent * CELLS / 100).max(1) } else { 0 };
    let cells = |count: u32, cell: &str| cell.repeat(usize::try_from(count).unwrap_or_default());
    let text = format!("{}{} {percent:>3} %", cells(full, "█"), cells(CELLS - full, "░"));
    match share {
        share if share <= LATE / 4.0 => paint.bad(&text),
        share if share <= LATE => paint.odd(&text),
        _ => paint.good(&text),
    }
}

/// From `now` to `end`, both RFC 3339: `47 min`, `over`.
pub(crate) fn left(now: &str, end: &str) -> String {
    match (instant(now), instant(end)) {
        (Some(now), Some(end)) => match end.duration_since(now) {
            Ok(left) if !left.is_zero() => rough(left),
            _ => "over".into(),
        },
        _ => "unknown".into(),
    }
}

/// From `then` to `now`, both RFC 3339: `3 min`.
pub(crate) fn ago(now: &str, then: &str) -> String {
    match (instant(now), instant(then)) {
        (Some(now), Some(then)) => rough(now.duration_since(then).unwrap_or_default()),
        _ => "unknown".into(),
    }
}

/// In the largest unit that fits twice.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "min")];
    let found = units.iter().find(|(unit, _)| seconds >= 2 * unit);
    found.map_or_else(|| format!("{seconds} s"), |(unit, name)| format!("{} {name}", seconds / unit))
}

/// An instant of a page.
pub(crate) fn instant(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_the_share_and_never_looks_empty_before_the_end() {
        for (share, wanted) in [
            (1.0, "██████████ 100 %"),
            (0.7, "███████░░░  70 %"),
            (0.01, "█░░░░░░░░░   1 %"),
            (0.0, "░░░░░░░░░░   0 %"),
            (7.0, "██████████ 100 %"),
        ] {
            assert_eq!(life(share, Paint::default()), wanted);
        }
    }

    #[test]
    fn what_is_left_is_told_in_one_unit() {
        let now = "2026-01-01T00:00:00Z";
        for (end, wanted) in [
            ("2026-01-01T00:00:00Z", "over"),
            ("2025-01-01T00:00:00Z", "over"),
            ("2026-01-01T00:01:59Z", "119 s"),
            ("2026-01-01T00:59:59Z", "59 min"),
            ("2026-01-02T00:00:00Z", "24 h"),
            ("2036-01-01T00:00:00Z", "3652 d"),
            ("soon", "unknown"),
        ] {
            assert_eq!(left(now, end), wanted, "{end}");
        }
    }
}
