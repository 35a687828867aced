//! Where what workers print goes: to this process's own outputs or to a file, each line with its slot and process.

use super::logs::{Line, Stream};
use crate::error::{Error, Result};
use crate::sys::poll;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as Io, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// Where the lines of workers go ([`Builder::log`](super::Builder::log)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// To this process's own outputs, each line as `[slot:pid] line`.
    Prefixed,
    /// The same without the prefix.
    Raw,
    /// Nowhere.
    Nowhere,
    /// To a file, with the prefix, appended to what it has.
    File {
        /// Where it is.
        path: PathBuf,
        /// When it is followed by the next.
        rotation: Rotation,
    },
}

impl Log {
    /// `prefixed`, `raw`, `none`, or the path of a file.
    #[must_use]
    pub fn parse(text: &str, rotation: Rotation) -> Log {
        match text {
            "prefixed" => Log::Prefixed,
            "raw" => Log::Raw,
            "none" => Log::Nowhere,
            path => Log::File { path: path.into(), rotation },
        }
    }

    /// The file, where it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        if let Log::File { path, .. } = self { Some(path) } else { None }
    }

    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        let Log::File { path, rotation } = self else { return Ok(()) };
        if path.as_os_str().is_empty() {
            return Err(Error::invalid("path of the log is empty").with("option", "log"));
        }
        let out_of_range = |option: &str, value: u64, min: u64, max: u64| {
            let error = Error::invalid("option is out of range").with("option", option).with("value", value);
            Err(error.with("min", min).with("max", max))
        };
        if !(1..=MAX_SIZE).contains(&rotation.size) {
            return out_of_range("log_size", rotation.size, 1, MAX_SIZE);
        }
        if rotation.keep > MAX_KEEP {
            return out_of_range("log_keep", rotation.keep.into(), 0, MAX_KEEP.into());
        }
        Ok(())
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Log::Prefixed => f.write_str("prefixed"),
            Log::Raw => f.write_str("raw"),
            Log::Nowhere => f.write_str("none"),
            Log::File { path, .. } => path.display().fmt(f),
        }
    }
}

/// When a file is followed by the next: it becomes `FILE.1`, that `FILE.2`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of one file, 1 to 2<sup>50</sup>. A line is never parted. Default 10 MiB.
    pub size: u64,
    /// Files beside the one that is written, 0 to 1,000. Default 5.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation { size: 10 << 20, keep: 5 }
    }
}

const MAX_SIZE: u64 = 1 << 50;
const MAX_KEEP: u32 = 1000;

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

/// What is called with each line.
///
/// # Errors
/// `Os` for a file that cannot be opened.
pub(super) fn open_log(log: &Log) -> Result<impl FnMut(&Line<'_>) + Send + use<>> {
    let failed = |e: std::io::Error, path: &Path| Error::os("open", e.raw_os_error().unwrap_or(0)).with("log", path.display());
    let mut sink = match log {
        Log::Nowhere => Sink::Nowhere,
        Log::File { path, rotation } => {
            let (file, len) = open(path).map_err(|e| failed(e, path))?;
            Sink::File(Rotated { path: path.clone(), file, len, rotation: *rotation })
        }
        Log::Prefixed | Log::Raw => {
            let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
            match (own(std::io::stdout().as_fd()), own(std::io::stderr().as_fd())) {
                (Ok(out), Ok(err)) => Sink::Own { out, err, prefixed: *log == Log::Prefixed },
                // It was started without: nobody can read what is printed.
                _ => Sink::Nowhere,
            }
        }
    };
    let mut buffer = Vec::new();
    Ok(move |line: &Line<'_>| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_followed_by_the_next_and_no_more_are_kept() {
        let dir = std::env::temp_dir().join(format!("offloop-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let path = dir.join("log");
        std::fs::write(&path, "before\n").expect("write");
        let file = |path: &Path| Log::File { path: path.to_owned(), rotation: Rotation { size: 30, keep: 2 } };
        let mut hear = open_log(&file(&path)).expect("file");
        for text in ["one", "two", "three", "four", "five"] {
            hear(&Line::sample(text.as_bytes(), Stream::Out));
        }
        hear(&Line { goes_on: true, ..Line::sample(b"more", Stream::Err) });
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        assert_eq!(read("log").as_deref(), Some("[2:77] five\n[2:77]+ more\n"));
        assert_eq!(read("log.1").as_deref(), Some("[2:77] three\n[2:77] four\n"));
        assert_eq!(read("log.2").as_deref(), Some("before\n[2:77] one\n[2:77] two\n"));
        assert_eq!(read("log.3"), None);
        let refused = open_log(&file(Path::new("/no/such/directory/log"))).err().expect("refused");
        assert!(refused.to_string().contains("/no/such/directory/log"), "{refused}");
        std::fs::remove_dir_all(&dir).expect("clean");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let file = |size, keep| Log::parse("log", Rotation { size, keep });
        let refused = |log: Log| log.check().expect_err("refused").to_string();
        assert!(refused(file(0, 1)).contains("option=log_size, value=0, min=1"));
        assert!(refused(file(1, 1001)).contains("option=log_keep, value=1001, min=0, max=1000"));
        assert!(refused(Log::parse("", Rotation::default())).contains("option=log"));
        file(1, 0).check().expect("possible");
    }
}
