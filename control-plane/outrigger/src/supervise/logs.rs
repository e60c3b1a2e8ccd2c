//! The lines that services write: captured with a bound on length, kept in a log file of bounded size, shown on the
//! console. Reading them back for `logs` is here too, so that the format of the file has one home.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader as AsyncBufReader};
use tokio::net::unix::pipe;

use super::console::Console;

/// A longer line is cut into pieces of this size.
const LONGEST_LINE: usize = 64 * 1024;
/// A log file that grows beyond this becomes `NAME.log.1`, and the one before that goes.
const LARGEST_FILE: u64 = 10 * 1024 * 1024;
/// Kept in memory to show when a process dies.
const LAST_LINES: usize = 20;

/// Where the lines of one process go.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    inner: Arc<Mutex<Inner>>,
    console: Option<Console>,
    name: Arc<str>,
}

#[derive(Debug)]
struct Inner {
    file: Option<LogFile>,
    last: VecDeque<String>,
}

impl Sink {
    /// A sink into `path`, and onto the console where one is given. A file that cannot be opened is reported and done
    /// without: a full disk must not stop a service.
    pub(crate) fn new(name: &str, path: &Path, console: Option<Console>, report: &Console) -> Self {
        let file = LogFile::create(path)
            .inspect_err(|error| report.note(&format!("no log file for {name}: {}: {error}", path.display())))
            .ok();
        Self {
            inner: Arc::new(Mutex::new(Inner {
                file,
                last: VecDeque::new(),
            })),
            console,
            name: name.into(),
        }
    }

    /// A sink that keeps only the last lines.
    pub(crate) fn memory(name: &str) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                file: None,
                last: VecDeque::new(),
            })),
            console: None,
            name: name.into(),
        }
    }

    /// Takes one line.
    pub(crate) fn line(&self, line: &str) {
        {
            let mut inner = self.inner.lock();
            // A disk that is full may have room again later; the line is still on the console.
            if let Some(file) = &mut inner.file {
                file.write(line).ok();
            }
            if inner.last.len() == LAST_LINES {
                inner.last.pop_front();
            }
            inner.last.push_back(line.chars().take(2000).collect());
        }
        if let Some(console) = &self.console {
            console.line(&self.name, line);
        }
    }

    /// The last lines, oldest first.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.inner.lock().last.iter().cloned().collect()
    }

    /// Forgets the last lines: what follows belongs to a new process.
    pub(crate) fn forget(&self) {
        self.inner.lock().last.clear();
    }

    /// Reads lines from `output` until its end.
    pub(crate) async fn capture(self, output: OwnedFd) -> io::Result<()> {
        let mut reader = AsyncBufReader::with_capacity(16 * 1024, pipe::Receiver::from_owned_fd(output)?);
        let mut line = Vec::new();
        loop {
            let piece = reader.fill_buf().await?;
            if piece.is_empty() {
                if !line.is_empty() {
                    self.raw(&line);
                }
                return Ok(());
            }
            let room = LONGEST_LINE - line.len();
            let (taken, whole) = match memchr::memchr(b'\n', piece) {
                Some(end) if end <= room => (end + 1, true),
                _ if piece.len() >= room => (room, true),
                _ => (piece.len(), false),
            };
            line.extend(piece.iter().take(taken));
            reader.consume(taken);
            if whole {
                self.raw(&line);
                line.clear();
            }
        }
    }

    fn raw(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        self.line(text.trim_end_matches(['\n', '\r']));
    }
}

/// A file of `TIME LINE`, renamed away when it is too large.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    /// Starts a new file; the last one stays as `.1`.
    fn create(path: &Path) -> io::Result<Self> {
        if path.exists() {
            fs::rename(path, older(path))?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            file: File::create(path)?,
            size: 0,
        })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.size > LARGEST_FILE {
            *self = Self::create(&self.path)?;
        }
        let entry = format!("{:.3} {line}\n", Timestamp::now());
        self.size += entry.len() as u64;
        self.file.write_all(entry.as_bytes())
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// When, as written: sorts as text.
    pub(crate) time: String,
    /// The line.
    pub(crate) text: String,
}

impl Entry {
    fn parse(line: &str) -> Self {
        let (time, text) = line.split_once(' ').unwrap_or((line, ""));
        Self {
            time: time.to_owned(),
            text: text.to_owned(),
        }
    }
}

/// Reads a log file and goes on where it stopped, also across the renaming.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    reader: Option<BufReader<File>>,
    partial: Vec<u8>,
}

impl Follower {
    /// A follower from the start of the file.
    pub(crate) fn new(path: PathBuf) -> Self {
        let reader = File::open(&path).ok().map(BufReader::new);
        Self {
            path,
            reader,
            partial: Vec::new(),
        }
    }

    /// What has been added since the last call.
    pub(crate) fn read(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.drain(&mut entries);
        if self.replaced() {
            // The old file may have grown between the reading and the renaming.
            self.drain(&mut entries);
            self.partial.clear();
            self.reader = File::open(&self.path).ok().map(BufReader::new);
            self.drain(&mut entries);
        }
        entries
    }

    fn drain(&mut self, entries: &mut Vec<Entry>) {
        let Some(reader) = &mut self.reader else { return };
        while let Ok(read) = reader.read_until(b'\n', &mut self.partial) {
            if read == 0 || self.partial.last() != Some(&b'\n') {
                return;
            }
            entries.push(Entry::parse(
                String::from_utf8_lossy(&self.partial).trim_end_matches('\n'),
            ));
            self.partial.clear();
        }
    }

    fn replaced(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(now) = fs::metadata(&self.path) else {
            return false;
        };
        let open = self.reader.as_ref().and_then(|reader| reader.get_ref().metadata().ok());
        open.is_none_or(|open| open.ino() != now.ino())
    }
}

/// The names of the processes that have a log file here, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log").map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_reads_on_across_a_renaming() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.log");
        let mut file = LogFile::create(&path).expect("file");
        file.write("one").expect("written");
        let mut follower = Follower::new(path.clone());
        assert_eq!(texts(follower.read()), ["one"]);
        file.write("two").expect("written");
        file.size = LARGEST_FILE + 1;
        file.write("three").expect("written");
        assert_eq!(texts(follower.read()), ["two", "three"]);
        assert!(older(&path).exists());
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_not_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = Sink::new("x", &folder.path().join("x.log"), None, &Console::silent());
        let (reader, mut writer) = io::pipe().expect("pipe");
        let feeder = std::thread::spawn(move || writer.write_all(&vec![b'a'; 3 * LONGEST_LINE + 5]));
        sink.clone().capture(reader.into()).await.expect("captured");
        feeder.join().expect("joined").expect("written");
        let lengths: Vec<usize> = Follower::new(folder.path().join("x.log"))
            .read()
            .iter()
            .map(|entry| entry.text.len())
            .collect();
        assert_eq!(lengths, [LONGEST_LINE, LONGEST_LINE, LONGEST_LINE, 5]);
    }

    fn texts(entries: Vec<Entry>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.text).collect()
    }
}
