//! What workers print: to the terminal or a file, each line with its slot and process, and the last lines for `offloop logs`.

use crate::cluster::{Line, Stream};
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as Io, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Lines that are kept, and their bytes.
pub(super) const KEPT_LINES: usize = 5000;
pub(super) const KEPT_BYTES: usize = 512 << 10;

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To this process's own outputs, with a prefix.
    Prefixed,
    /// The same without.
    Raw,
    /// Nowhere.
    Nowhere,
    /// To a file, with the prefix.
    File(PathBuf),
}

impl Place {
    pub(super) fn parse(text: &str) -> Place {
        match text {
            "prefixed" => Place::Prefixed,
            "raw" => Place::Raw,
            "none" => Place::Nowhere,
            path => Place::File(path.into()),
        }
    }
}

/// When a file is followed by the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation {
    /// Bytes of one file.
    pub(super) size: u64,
    /// Files beside the one that is written.
    pub(super) keep: u32,
}

struct Rotated {
    path: PathBuf,
    file: File,
    len: u64,
    rotation: Rotation,
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

impl Rotated {
    fn nth(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.len > 0 && self.len + line.len() as u64 > self.rotation.size {
            // Who has the file open goes on to read the old one. A directory that does not let itself be written keeps the one file.
            for n in (1..self.rotation.keep).rev() {
                let _ = std::fs::rename(self.nth(n), self.nth(n + 1));
            }
            let moved = if self.rotation.keep == 0 { std::fs::remove_file(&self.path) } else { std::fs::rename(&self.path, self.nth(1)) };
            if moved.is_ok() {
                (self.file, self.len) = open(&self.path)?;
            }
        }
        self.file.write_all(line)?;
        self.len += line.len() as u64;
        Ok(())
    }
}

enum Sink {
    Own { out: File, err: File, prefixed: bool },
    File(Rotated),
    Nowhere,
}

/// One of this process's own outputs may be non-blocking, by whoever shares it.
fn write_whole(mut to: &File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == Io::WouldBlock => poll::wait_readable(&mut [poll::writable(to.as_raw_fd())], None),
            Err(e) if e.kind() == Io::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A line as it is kept.
#[derive(Clone, Debug)]
struct Kept {
    slot: u32,
    generation: u32,
    pid: i32,
    stream: Stream,
    text: String,
}

#[derive(Default)]
struct Tail {
    lines: VecDeque<Kept>,
    bytes: usize,
    /// The number of the first of them; they count from 0 on.
    first: u64,
}

/// The last lines, which the thread of the logs adds to and the run process reads.
pub(super) struct Output {
    tail: Mutex<Tail>,
    /// Somebody wants to hear of each line.
    followed: AtomicBool,
    bell: Arc<EventFd>,
}

impl Output {
    pub(super) fn new(bell: Arc<EventFd>) -> Arc<Output> {
        Arc::new(Output { tail: Mutex::default(), followed: AtomicBool::new(false), bell })
    }

    /// What is called with each line.
    ///
    /// # Errors
    /// `Os` for a file that cannot be opened.
    pub(super) fn hear(self: &Arc<Self>, place: &Place, rotation: Rotation) -> Result<impl FnMut(&Line<'_>) + Send + use<>> {
        let failed = |e: std::io::Error, path: &Path| Error::os("open", e.raw_os_error().unwrap_or(0)).with("log", path.display());
        let mut sink = match place {
            Place::Nowhere => Sink::Nowhere,
            Place::File(path) => {
                let (file, len) = open(path).map_err(|e| failed(e, path))?;
                Sink::File(Rotated { path: path.clone(), file, len, rotation })
            }
            Place::Prefixed | Place::Raw => {
                let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
                match (own(std::io::stdout().as_fd()), own(std::io::stderr().as_fd())) {
                    (Ok(out), Ok(err)) => Sink::Own { out, err, prefixed: *place == Place::Prefixed },
                    // It was started without: nobody can read what is printed.
                    _ => Sink::Nowhere,
                }
            }
        };
        let own = Arc::clone(self);
        let mut buffer = Vec::new();
        Ok(move |line: &Line<'_>| {
            own.keep(line);
            buffer.clear();
            if !matches!(sink, Sink::Own { prefixed: false, .. }) {
                // To memory: it cannot fail.
                let _ = write!(buffer, "[{}:{}]{} ", line.worker.slot, line.pid, if line.goes_on { "+" } else { "" });
            }
            buffer.extend_from_slice(line.bytes);
            buffer.push(b'\n');
            // Whoever reads may be gone, or the disk full: workers go on.
            let _ = match &mut sink {
                Sink::Own { out, err, .. } => write_whole(if line.stream == Stream::Out { out } else { err }, &buffer),
                Sink::File(file) => file.write(&buffer),
                Sink::Nowhere => Ok(()),
            };
        })
    }

    fn keep(&self, line: &Line<'_>) {
        let mut tail = lock(&self.tail);
        let text = String::from_utf8_lossy(line.bytes).into_owned();
        tail.bytes += text.len();
        tail.lines.push_back(Kept { slot: line.worker.slot, generation: line.worker.generation, pid: line.pid, stream: line.stream, text });
        while tail.lines.len() > KEPT_LINES || tail.bytes > KEPT_BYTES {
            let Some(gone) = tail.lines.pop_front() else { break };
            tail.bytes -= gone.text.len();
            tail.first += 1;
        }
        drop(tail);
        // Relaxed: who begins to follow reads what is there by then, and a line that is added later finds the flag or is found itself.
        if self.followed.load(Ordering::Relaxed) {
            self.bell.signal();
        }
    }

    pub(super) fn follow(&self, followed: bool) {
        self.followed.store(followed, Ordering::Relaxed);
    }

    /// The number of the line that is the `n`th from the end.
    pub(super) fn last(&self, n: usize) -> u64 {
        let tail = lock(&self.tail);
        tail.first + tail.lines.len().saturating_sub(n) as u64
    }

    /// The lines from that number on, and the number of the next one.
    pub(super) fn since(&self, n: u64) -> (Vec<Value>, u64) {
        let tail = lock(&self.tail);
        let skip = usize::try_from(n.saturating_sub(tail.first)).unwrap_or(usize::MAX);
        let of = |line: &Kept| {
            let stream = if line.stream == Stream::Out { "out" } else { "err" };
            json!({"slot": line.slot, "generation": line.generation, "pid": line.pid, "stream": stream, "text": line.text})
        };
        (tail.lines.iter().skip(skip).map(of).collect(), tail.first + tail.lines.len() as u64)
    }

    /// The last words of a generation's workers on their error output, as further lines of an error.
    pub(super) fn words(&self, generation: u32) -> String {
        let tail = lock(&self.tail);
        let said = tail.lines.iter().rev().filter(|line| line.generation == generation && line.stream == Stream::Err);
        let mut lines: Vec<&str> = said.take(8).map(|line| line.text.as_str()).collect();
        lines.reverse();
        lines.iter().map(|line| format!("\n  | {line}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::WorkerId;

    fn line(bytes: &[u8], stream: Stream) -> Line<'_> {
        Line { worker: WorkerId { slot: 2, generation: 3, incarnation: 1 }, pid: 77, stream, bytes, goes_on: false, is_cut: false }
    }

    #[test]
    fn files_are_followed_by_the_next_and_no_more_are_kept() {
        let dir = std::env::temp_dir().join(format!("offloop-output-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let path = dir.join("log");
        std::fs::write(&path, "before\n").expect("write");
        let output = Output::new(Arc::new(EventFd::new().expect("bell")));
        let mut hear = output.hear(&Place::File(path.clone()), Rotation { size: 30, keep: 2 }).expect("file");
        for text in ["one", "two", "three", "four", "five"] {
            hear(&line(text.as_bytes(), Stream::Out));
        }
        hear(&Line { goes_on: true, ..line(b"more", Stream::Err) });
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        assert_eq!(read("log").as_deref(), Some("[2:77] five\n[2:77]+ more\n"));
        assert_eq!(read("log.1").as_deref(), Some("[2:77] three\n[2:77] four\n"));
        assert_eq!(read("log.2").as_deref(), Some("before\n[2:77] one\n[2:77] two\n"));
        assert_eq!(read("log.3"), None);
        let refused = output.hear(&Place::File("/no/such/directory/log".into()), Rotation { size: 1, keep: 0 }).err().expect("refused");
        assert!(refused.to_string().contains("/no/such/directory/log"), "{refused}");
        std::fs::remove_dir_all(&dir).expect("clean");
    }

    #[test]
    fn the_last_lines_are_kept_and_not_more() {
        let bell = Arc::new(EventFd::new().expect("bell"));
        let output = Output::new(Arc::clone(&bell));
        let mut hear = output.hear(&Place::Nowhere, Rotation { size: 1, keep: 0 }).expect("nowhere");
        for n in 0..KEPT_LINES + 10 {
            hear(&line(format!("line {n}").as_bytes(), Stream::Out));
        }
        assert!(!bell.clear(), "nobody follows");
        output.follow(true);
        hear(&line(b"last \xff", Stream::Err));
        assert!(bell.clear());
        let (lines, next) = output.since(output.last(2));
        assert_eq!((lines.len(), next), (2, KEPT_LINES as u64 + 11));
        assert_eq!(lines[1], json!({"slot": 2, "generation": 3, "pid": 77, "stream": "err", "text": "last \u{fffd}"}));
        assert_eq!(output.since(0).0.len(), KEPT_LINES);
        assert_eq!(output.since(next).0.len(), 0);
        assert_eq!((output.words(3), output.words(4)), ("\n  | last \u{fffd}".to_owned(), String::new()));
        hear(&line(&vec![b'x'; KEPT_BYTES], Stream::Out));
        assert_eq!(output.since(0).0.len(), 1, "bytes count, too");
    }
}
