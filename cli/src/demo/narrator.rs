//! The voice of the demo: numbered steps, a tick or a cross each, and what was seen beneath.

use owo_colors::{OwoColorize, Style};
use std::fmt::Display;

/// What a step saw when its assertion held.
pub struct Shown {
    /// One line beside the tick.
    pub headline: String,
    /// Lines beneath, evidence taken from real traffic.
    pub evidence: Vec<String>,
}

impl Shown {
    /// A headline and its evidence.
    pub fn new(headline: impl Into<String>, evidence: impl IntoIterator<Item = String>) -> Self {
        Self { headline: headline.into(), evidence: evidence.into_iter().collect() }
    }
}

/// Prints the steps and counts them.
#[derive(Default)]
pub struct Narrator {
    step: usize,
    failed: usize,
}

impl Narrator {
    /// Prints the outcome of the next step.
    pub fn tell(&mut self, title: &str, outcome: Result<Shown, String>) {
        self.step += 1;
        let (mark, style, headline, evidence) = match outcome {
            Ok(shown) => (tick(), Style::new().green(), shown.headline, shown.evidence),
            Err(why) => {
                self.failed += 1;
                (cross(), Style::new().red().bold(), why, Vec::new())
            }
        };
        say(format_args!("{:>2} {} {}", self.step, mark.style(style), title.bold(),));
        say(format_args!("     {headline}"));
        for line in evidence {
            say(format_args!("     {}", line.dimmed()));
        }
    }

    /// Steps told.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// Steps whose assertion did not hold.
    pub fn failed(&self) -> usize {
        self.failed
    }
}

/// A line on standard output, without colour when that is not a terminal; a reader that went away is no reason to panic.
pub fn say(line: impl Display) {
    use std::io::Write;
    let _ = writeln!(anstream::stdout().lock(), "{line}");
}

fn tick() -> &'static str {
    if unicode() { "✔" } else { "ok" }
}

fn cross() -> &'static str {
    if unicode() { "✘" } else { "xx" }
}

/// The C locale's users get ASCII. Whoever sets no locale at all has a terminal that copes.
fn unicode() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        })
}
