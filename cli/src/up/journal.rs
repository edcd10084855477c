//! What apps and sidecars say: kept (the newest lines), written to files, shown on the terminal, waited for.
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
};

/// Lines kept in memory for each pod and source.
const LINES: usize = 20_000;
/// A line is cut here; the rest follows as a line of its own.
const LONGEST_LINE: usize = 64 * 1024;
/// A log file is begun anew at this size; one older stays beside it.
const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A container's process.
    App,
    /// The sidecar; its standard output is the access log.
    Proxy,
}

impl Source {
    /// As in the prefix and the file name.
    pub fn word(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Proxy => "proxy",
        }
    }
}

/// A place in one log: what comes after it is new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u64);

/// All logs of a mesh.
pub struct Journal {
    logs: Mutex<BTreeMap<(String, Source), Log>>,
    grown: watch::Sender<u64>,
    folder: Option<PathBuf>,
    echo: AtomicBool,
    colour: bool,
}

#[derive(Default)]
struct Log {
    lines: VecDeque<Arc<str>>,
    dropped: u64,
    file: Option<(File, u64)>,
}

impl Journal {
    /// Files go to `folder`, when given; lines go to the terminal while `echo` is set.
    pub fn new(folder: Option<PathBuf>, echo: bool) -> Self {
        if let Some(folder) = &folder {
            let _ = fs::create_dir_all(folder);
        }
        Self {
            logs: Mutex::default(),
            grown: watch::channel(0).0,
            folder,
            echo: AtomicBool::new(echo),
            colour: std::io::stdout().is_terminal(),
        }
    }

    /// Shows lines on the terminal from now on, or not.
    pub fn set_echo(&self, on: bool) {
        self.echo.store(on, Ordering::Relaxed);
    }

    /// A sentence of the mesh itself, for the person.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stdout().lock(), "{}", self.dim(&printable(text)));
    }

    /// Adds a line.
    pub fn add(&self, pod: &str, source: Source, line: &str) {
        {
            let mut logs = self.logs.lock();
            let log = logs.entry((pod.to_owned(), source)).or_default();
            log.write(self.folder.as_ref().map(|f| f.join(format!("{pod}.{}.log", source.word()))), line);
            log.lines.push_back(line.into());
            if log.lines.len() > LINES {
                log.lines.pop_front();
                log.dropped += 1;
            }
        }
        self.grown.send_modify(|n| *n += 1);
        if self.echo.load(Ordering::Relaxed) {
            let prefix = self.tint(pod, &format!("{pod} {} |", source.word()));
            // A terminal that is gone is no reason to stop the mesh.
            let _ = writeln!(std::io::stdout().lock(), "{prefix} {}", printable(line));
        }
    }

    /// Everything kept of one log.
    pub fn lines(&self, pod: &str, source: Source) -> Vec<Arc<str>> {
        self.since(pod, source, Cursor(0)).0
    }

    /// Where one log is now.
    pub fn cursor(&self, pod: &str, source: Source) -> Cursor {
        let logs = self.logs.lock();
        Cursor(logs.get(&(pod.to_owned(), source)).map_or(0, |l| l.dropped + l.lines.len() as u64))
    }

    /// What came after `cursor` (as far as kept), and the new place.
    pub fn since(&self, pod: &str, source: Source, cursor: Cursor) -> (Vec<Arc<str>>, Cursor) {
        let logs = self.logs.lock();
        let Some(log) = logs.get(&(pod.to_owned(), source)) else { return (Vec::new(), cursor) };
        let skip = usize::try_from(cursor.0.saturating_sub(log.dropped)).unwrap_or(usize::MAX);
        (log.lines.iter().skip(skip).cloned().collect(), Cursor(log.dropped + log.lines.len() as u64))
    }

    /// The first line after `cursor` that `wanted` accepts, there already or within `deadline`.
    pub async fn wait_for_line(
        &self,
        pod: &str,
        source: Source,
        mut cursor: Cursor,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<Arc<str>> {
        let mut grown = self.grown.subscribe();
        let search = async {
            loop {
                grown.mark_unchanged();
                let (lines, next) = self.since(pod, source, cursor);
                if let Some(line) = lines.into_iter().find(|l| wanted(l)) {
                    return Some(line);
                }
                cursor = next;
                grown.changed().await.ok()?;
            }
        };
        tokio::time::timeout(deadline, search).await.ok().flatten()
    }

    /// Reads a process's output until it ends.
    pub async fn follow(self: Arc<Self>, pod: String, source: Source, mut output: impl AsyncRead + Unpin) {
        let mut pending: Vec<u8> = Vec::new();
        let mut chunk = [0_u8; 8192];
        while let Ok(read @ 1..) = output.read(&mut chunk).await {
            for byte in chunk.iter().take(read) {
                if *byte != b'\n' {
                    pending.push(*byte);
                }
                if *byte == b'\n' || pending.len() >= LONGEST_LINE {
                    self.add(&pod, source, String::from_utf8_lossy(&pending).trim_end_matches('\r'));
                    pending.clear();
                }
            }
        }
        if !pending.is_empty() {
            self.add(&pod, source, &String::from_utf8_lossy(&pending));
        }
    }

    fn tint(&self, pod: &str, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let shade = 31 + pod.bytes().fold(0_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into())) % 6;
        format!("\x1b[{shade}m{text}\x1b[0m")
    }

    fn dim(&self, text: &str) -> String {
        if self.colour { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Log {
    fn write(&mut self, path: Option<PathBuf>, line: &str) {
        let Some(path) = path else { return };
        if self.file.as_ref().is_none_or(|(_, size)| *size > FILE_BYTES) {
            let _ = fs::rename(&path, path.with_extension("log.1"));
            self.file = OpenOptions::new().create(true).append(true).open(&path).ok().map(|f| (f, 0));
        }
        // A full disk must not stop anything; the newest lines are in memory.
        if let Some((file, size)) = &mut self.file {
            let _ = file.write_all(format!("{line}\n").as_bytes());
            *size += line.len() as u64 + 1;
        }
    }
}

/// Without what could move a terminal's cursor or change its title.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[tokio::test]
    async fn output_becomes_lines_and_is_found_later() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::new(Some(folder.path().join("logs")), false));
        journal.clone().follow("web-0".into(), Source::App, &b"one\r\ntwo\nrest"[..]).await;
        let lines: Vec<_> = journal.lines("web-0", Source::App).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["one", "two", "rest"]);
        assert!(journal.lines("web-0", Source::Proxy).is_empty());
        let file = fs::read_to_string(folder.path().join("logs/web-0.app.log")).unwrap();
        assert_eq!(file, "one\ntwo\nrest\n");
    }

    #[tokio::test]
    async fn a_line_is_waited_for_from_a_place_on() {
        let journal = Arc::new(Journal::new(None, false));
        journal.add("web-0", Source::Proxy, "old hit");
        let cursor = journal.cursor("web-0", Source::Proxy);
        let late = journal.clone();
        let writer = tokio::spawn(async move { late.add("web-0", Source::Proxy, "new hit") });
        let hit = |l: &str| l.contains("hit");
        let found = journal.wait_for_line("web-0", Source::Proxy, cursor, Duration::from_secs(5), hit).await;
        writer.await.unwrap();
        assert_eq!(found.unwrap().as_ref(), "new hit");
        let never =
            journal.wait_for_line("web-0", Source::Proxy, Cursor(99), Duration::from_millis(1), hit).await;
        assert!(never.is_none());
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
