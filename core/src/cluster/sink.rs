//! Where what workers print goes: to this process's own outputs or to a file, each line with its slot and process.

use super::logs::{Line, Stream};
use crate::error::{Error, Result};
use crate::sys::poll;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind as Io, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    pub fn parse(text: &OsStr, rotation: Rotation) -> Log {
        match text.as_bytes() {
            b"prefixed" => Log::Prefixed,
            b"raw" => Log::Raw,
            b"none" => Log::Nowhere,
            _ => Log::File { path: text.into(), rotation },
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

/// When a file is followed by the next, which is made as `FILE.0`: it becomes `FILE.1`, that `FILE.2`, and so on. What is no regular file is not.
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

/// How often it is looked whether a file still has its name, where lines come.
const LOOK: Duration = Duration::from_secs(1);

struct Rotated {
    path: PathBuf,
    file: File,
    /// What it has, as far as this process knows; `None`: it is no regular file, and never followed by another.
    len: Option<u64>,
    rotation: Rotation,
    /// The file ends with a part of a line.
    is_torn: bool,
    /// When it was last looked whether it still has its name.
    looked: Instant,
}

/// Never waits for somebody who reads, as the open of a FIFO would.
fn open(path: &Path) -> std::io::Result<(File, Option<u64>)> {
    let file = OpenOptions::new().append(true).create(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let found = file.metadata()?;
    Ok((file, found.is_file().then_some(found.len())))
}

impl Rotated {
    fn open(path: &Path, rotation: Rotation) -> std::io::Result<Rotated> {
        let (file, len) = open(path)?;
        // The directory of this process may change, and a link stays where it is.
        let path = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path))?;
        Ok(Rotated { path, file, len, rotation, is_torn: false, looked: Instant::now() })
    }

    fn nth(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    /// Somebody else may have moved or removed it: whoever else writes to it, or a program that rotates logs.
    fn has_its_name(&self) -> bool {
        let same = |own: &Metadata, there: &Metadata| (own.dev(), own.ino()) == (there.dev(), there.ino());
        matches!((&self.file.metadata(), &std::fs::metadata(&self.path)), (Ok(own), Ok(there)) if same(own, there))
    }

    /// The file of that name; this one goes on, where it cannot be had.
    fn reopen(&mut self) {
        if let Ok((file, len)) = open(&self.path) {
            (self.file, self.len, self.is_torn) = (file, len, false);
        }
    }

    /// Begins the next file. Nothing is moved before that one is there: this one goes on without room for it, or in a directory that does not let itself be written.
    fn rotate(&mut self) -> std::io::Result<()> {
        let next = self.nth(0);
        let (file, len) = open(&next)?;
        // Who has a file open goes on to read the old one.
        for n in (0..self.rotation.keep).rev() {
            let _ = std::fs::rename(if n == 0 { self.path.clone() } else { self.nth(n) }, self.nth(n + 1));
        }
        std::fs::rename(&next, &self.path)?;
        (self.file, self.len, self.is_torn) = (file, len, false);
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.len.is_some() && self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            if !self.has_its_name() {
                self.reopen();
            }
        }
        let is_full = |len: u64| len > 0 && len + line.len() as u64 > self.rotation.size;
        if self.len.is_some_and(is_full) {
            if self.has_its_name() {
                let _ = self.rotate();
            } else {
                self.reopen();
            }
        }
        if self.is_torn {
            write_whole(&self.file, b"\n").0?;
            self.is_torn = false;
        }
        let (written, n) = write_whole(&self.file, line);
        self.len = self.len.map(|len| len + n as u64);
        self.is_torn = written.is_err() && n > 0;
        written
    }
}

enum Sink {
    Own { out: File, err: File, prefixed: bool },
    File(Rotated),
    Nowhere,
}

/// One of this process's own outputs may be non-blocking, by whoever shares it.
/// Also says how much was written.
fn write_whole(mut to: &File, bytes: &[u8]) -> (std::io::Result<()>, usize) {
    let mut n = 0;
    while n < bytes.len() {
        match to.write(&bytes[n..]) {
            Ok(0) => return (Err(Io::WriteZero.into()), n),
            Ok(more) => n += more,
            Err(e) if e.kind() == Io::WouldBlock => poll::wait_readable(&mut [poll::writable(to.as_raw_fd())], None),
            Err(e) if e.kind() == Io::Interrupted => {}
            Err(e) => return (Err(e), n),
        }
    }
    (Ok(()), n)
}

/// What is called with each line.
///
/// # Errors
/// `Os` for a file that cannot be opened.
pub(super) fn open_log(log: &Log) -> Result<impl FnMut(&Line<'_>) + Send + use<>> {
    let failed = |e: std::io::Error, path: &Path| Error::os("open", e.raw_os_error().unwrap_or(0)).with("log", path.display());
    let mut sink = match log {
        Log::Nowhere => Sink::Nowhere,
        Log::File { path, rotation } => Sink::File(Rotated::open(path, *rotation).map_err(|e| failed(e, path))?),
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
            Sink::Own { out, err, .. } => write_whole(if line.stream == Stream::Out { out } else { err }, &buffer).0,
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

    /// Gone with it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("offloop-log-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("directory");
            Dir(dir)
        }

        fn read(&self, name: &str) -> Option<String> {
            std::fs::read_to_string(self.0.join(name)).ok()
        }

        fn hear(&self, size: u64, keep: u32) -> impl FnMut(&str) + use<> {
            let mut hear = open_log(&Log::File { path: self.0.join("log"), rotation: Rotation { size, keep } }).expect("file");
            move |text| hear(&Line::sample(text.as_bytes(), Stream::Out))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_is_moved_before_the_next_file_is_there() {
        let dir = Dir::new("kept");
        let mut hear = dir.hear(20, 2);
        hear("first line");
        hear("second line");
        // No file can be opened by that name.
        std::fs::create_dir(dir.0.join("log.0")).expect("directory");
        (0..5).for_each(|n| hear(&format!("line {n}")));
        assert_eq!(dir.read("log.1").as_deref(), Some("[2:77] first line\n"));
        assert!(dir.read("log").expect("log").starts_with("[2:77] second line\n[2:77] line 0\n"));
        std::fs::remove_dir(dir.0.join("log.0")).expect("room");
        hear("last");
        assert_eq!(dir.read("log").as_deref(), Some("[2:77] last\n"));
        assert_eq!(dir.read("log.2").as_deref(), Some("[2:77] first line\n"));
        assert!(dir.read("log.1").expect("log.1").ends_with("[2:77] line 4\n"));
    }

    #[test]
    fn a_file_that_another_has_moved_is_not_moved_again() {
        let dir = Dir::new("two");
        let (mut one, mut other) = (dir.hear(30, 3), dir.hear(30, 3));
        one("one one");
        other("other");
        one("two");
        one("three");
        // Its own file is log.1 by now.
        other("four");
        other("five");
        let all: String = ["log.3", "log.2", "log.1", "log"].iter().filter_map(|name| dir.read(name)).collect();
        let mut lines: Vec<_> = all.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["[2:77] five", "[2:77] four", "[2:77] one one", "[2:77] other", "[2:77] three", "[2:77] two"]);
        assert!(dir.read("log").expect("log").ends_with("[2:77] three\n[2:77] five\n"), "{all}");
        assert_eq!(dir.read("log.2"), None);
    }

    #[test]
    fn a_file_that_was_removed_comes_again() {
        let dir = Dir::new("removed");
        let mut file = Rotated::open(&dir.0.join("log"), Rotation::default()).expect("file");
        file.write(b"lost\n").expect("write");
        std::fs::remove_file(dir.0.join("log")).expect("removed");
        file.looked -= LOOK;
        file.write(b"here\n").expect("write");
        assert_eq!(dir.read("log").as_deref(), Some("here\n"));
    }

    #[test]
    fn what_is_no_regular_file_is_neither_moved_nor_waited_for() {
        let dir = Dir::new("odd");
        std::os::unix::fs::symlink("/dev/null", dir.0.join("log")).expect("link");
        let mut file = Rotated::open(&dir.0.join("log"), Rotation { size: 1, keep: 1 }).expect("file");
        assert_eq!((file.len, file.path.as_path()), (None, Path::new("/dev/null")));
        file.write(b"one\n").expect("write");
        assert_eq!(file.len, None);
        let fifo = std::ffi::CString::new(dir.0.join("fifo").into_os_string().into_encoded_bytes()).expect("path");
        // SAFETY: a text that ends with a NUL.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let refused = open_log(&Log::File { path: dir.0.join("fifo"), rotation: Rotation::default() });
        assert!(refused.err().expect("nobody reads").to_string().contains("fifo"));
    }

    #[test]
    fn a_line_that_had_no_room_does_not_spoil_the_next() {
        let dir = Dir::new("full");
        let mut file = Rotated::open(&dir.0.join("log"), Rotation::default()).expect("file");
        file.write(b"whole\n").expect("write");
        // As a full disk leaves it.
        file.file.write_all(b"par").expect("write");
        file.is_torn = true;
        file.write(b"next\n").expect("write");
        assert_eq!(dir.read("log").as_deref(), Some("whole\npar\nnext\n"));
        file.file = File::options().append(true).open("/dev/full").expect("device");
        assert!(file.write(b"none\n").is_err());
        assert!(!file.is_torn);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let file = |size, keep| Log::parse("log".as_ref(), Rotation { size, keep });
        let refused = |log: Log| log.check().expect_err("refused").to_string();
        assert!(refused(file(0, 1)).contains("option=log_size, value=0, min=1"));
        assert!(refused(file(1, 1001)).contains("option=log_keep, value=1001, min=0, max=1000"));
        assert!(refused(Log::parse("".as_ref(), Rotation::default())).contains("option=log"));
        file(1, 0).check().expect("possible");
        let bytes = OsStr::from_bytes(b"/tmp/\xff");
        assert_eq!(Log::parse(bytes, Rotation::default()).file(), Some(Path::new(bytes)));
    }
}
