//! From an entry to its line, in the format that was asked for.

use super::{super::Entry, istio, json};
use crate::bootstrap::access_log::Format;
use std::time::SystemTime;
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

/// Makes lines. It keeps the second it has written last, since most lines of a batch begin in the same one.
#[derive(Debug, Default)]
pub struct Lines {
    format: Format,
    second: i64,
    timestamp: String,
    // Where the fraction begins.
    fraction: usize,
}

impl Lines {
    /// In this format.
    pub fn new(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// What comes is in this format.
    pub fn set_format(&mut self, format: Format) {
        self.format = format;
    }

    /// Appends one entry as one line, without the newline. Always UTF-8.
    pub fn write(&mut self, entry: &Entry, text: &mut Vec<u8>) {
        self.note_time(entry.began);
        match self.format {
            Format::Json => json::write(entry, &self.timestamp, text),
            Format::IstioJson => istio::write_json(entry, &self.timestamp, text),
            Format::IstioText => istio::write_text(entry, &self.timestamp, text),
        }
    }

    /// `2026-01-02T03:04:05.678Z`
    fn note_time(&mut self, at: SystemTime) {
        let at = OffsetDateTime::from(at);
        if self.timestamp.is_empty() || self.second != at.unix_timestamp() {
            self.second = at.unix_timestamp();
            self.timestamp = at.format(DATE).unwrap_or_default();
            self.fraction = self.timestamp.len();
        }
        self.timestamp.truncate(self.fraction);
        let millis = at.millisecond();
        self.timestamp.push('.');
        self.timestamp.extend(
            [millis / 100, millis / 10 % 10, millis % 10].map(|digit| char::from(b'0' + digit as u8)),
        );
        self.timestamp.push('Z');
    }
}
