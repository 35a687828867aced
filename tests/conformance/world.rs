//! What the runner itself does to the world that the actors of a scenario meet in: rings with damage, files that are no rings, limits.

use offloop::ring::{Kind, RingBuffer};
use offloop::sys::mem;
use offloop::wire::ring::{self, FIXED_LEN, Header, SEATS_AT, ring_word, seat_word};
use offloop_tests::scenario::{Act, Ring};
use std::fs::{File, Permissions};
use std::io::{Error, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why something could not be done.
pub(crate) enum Failure {
    /// It is not for this user to do.
    Forbidden(String),
    /// Anything else.
    Failed(String),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) {
            Failure::Forbidden(e.to_string())
        } else {
            Failure::Failed(e.to_string())
        }
    }
}

impl From<offloop::Error> for Failure {
    fn from(e: offloop::Error) -> Failure {
        Failure::Failed(e.to_string())
    }
}

/// The surroundings of one case.
pub(crate) struct World {
    made: Option<Made>,
    /// Where nothing is until an act puts something there.
    pub(crate) path: PathBuf,
    placed: Option<RingBuffer>,
    mounted: bool,
    /// A control group of the case's own.
    group: Option<PathBuf>,
}

/// The ring that all actors inherit, and fds that are no part of one.
struct Made {
    ring: RingBuffer,
    memory: File,
    header: [u8; FIXED_LEN],
    others: Vec<(String, OwnedFd)>,
}

impl World {
    pub(crate) fn new(ring: Option<&Ring>, kind: Option<Kind>, case: usize) -> Result<World, Failure> {
        let made = ring.map(|want| Made::new(want, kind)).transpose()?;
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let path = base.join(format!("offloop-conformance-{}-{case}", std::process::id()));
        let world = World { made, path, placed: None, mounted: false, group: None };
        std::fs::create_dir(world.names_dir())?;
        Ok(world)
    }

    /// What the actors have for `XDG_RUNTIME_DIR`.
    pub(crate) fn names_dir(&self) -> PathBuf {
        self.path.with_extension("run")
    }

    /// What the actors inherit: the ring's fds, then the others.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let Some(made) = &self.made else { return Vec::new() };
        // SAFETY: `made.ring` keeps them open as long as what is returned can live.
        let ring = made.numbers().into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
        ring.chain(made.others.iter().map(|(_, fd)| fd.as_fd())).collect()
    }

    /// The numbers that actors know these fds by, when the first is `first`: all of the ring as `ring`, its doorbells as `bells`, each other
    /// by its name.
    pub(crate) fn names(&self, first: RawFd) -> Vec<(String, String)> {
        let Some(made) = &self.made else { return Vec::new() };
        let list = |from: RawFd, to: RawFd| (from..to).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let end = first + made.numbers().len() as RawFd;
        let others = made.others.iter().zip(end..).map(|((name, _), n)| (name.clone(), n.to_string()));
        [("ring".to_owned(), list(first, end)), ("bells".to_owned(), list(first + 1, end))].into_iter().chain(others).collect()
    }

    pub(crate) fn act(&mut self, act: &Act, pid: u32) -> Result<(), Failure> {
        match act {
            Act::Scribble { at, bytes, check } => {
                let made = self.made.as_ref().ok_or_else(|| Failure::Failed("there is no ring to scribble in".into()))?;
                made.scribble(at, bytes, *check)
            }
            Act::Place(what) => self.place(what),
            Act::FileSize(bytes) => {
                let limit = libc::rlimit { rlim_cur: *bytes, rlim_max: libc::RLIM_INFINITY };
                // SAFETY: a valid limit of a process that is a child of this one.
                match unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) } {
                    0 => Ok(()),
                    _ => Err(Error::last_os_error().into()),
                }
            }
            Act::Memory(bytes) => {
                let (own, limit) = memory_group()?;
                let group = own.join(self.path.file_name().expect("a path with a name"));
                std::fs::create_dir(&group)?;
                self.group = Some(group.clone());
                // Version 2 gives a child no controller that its parent keeps.
                let kept = |_| Failure::Forbidden("a control group of the test's own has no limit of memory".into());
                std::fs::write(group.join(limit), bytes.to_string()).map_err(kept)?;
                Ok(std::fs::write(group.join("cgroup.procs"), pid.to_string())?)
            }
        }
    }

    fn named(&self) -> Result<RingBuffer, Failure> {
        Ok(RingBuffer::builder(Kind::Spsc).capacity(4096).path(&self.path).create()?)
    }

    /// Puts something at the path, in place of what was there.
    fn place(&mut self, what: &str) -> Result<(), Failure> {
        self.clear();
        let file = |bytes: &[u8]| {
            std::fs::write(&self.path, bytes)?;
            std::fs::set_permissions(&self.path, Permissions::from_mode(0o600))
        };
        let beside = self.path.with_extension("beside");
        let open = || File::options().write(true).open(&self.path);
        match what {
            "nothing" => {}
            "a directory" => std::fs::create_dir(&self.path)?,
            "a pipe" => drop(offloop::sys::fifo::Fifo::make(&self.path)?),
            "an empty file" => file(&[])?,
            "a short file" => file(&[1; 100])?,
            "zeros" => file(&[0; 8192])?,
            "a symbolic link" => symlink("/dev/null", &self.path)?,
            "a ring" => self.placed = Some(self.named()?),
            "a ring that others may open" => {
                self.placed = Some(self.named()?);
                std::fs::set_permissions(&self.path, Permissions::from_mode(0o644))?;
            }
            "a ring with two names" => {
                self.placed = Some(self.named()?);
                std::fs::hard_link(&self.path, beside)?;
            }
            "a ring of another user" => {
                self.placed = Some(self.named()?);
                chown(&self.path, Some(65534), None)?;
            }
            "a ring that was cut short" => {
                drop(self.named()?);
                open()?.set_len(4096)?;
            }
            "a ring that was made longer" => {
                drop(self.named()?);
                open()?.set_len(1 << 20)?;
            }
            "names that others may see" | "names of another user" => {
                let dir = self.names_dir().join("offloop");
                std::fs::create_dir(&dir)?;
                if what == "names of another user" {
                    std::fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
                    chown(&dir, Some(65534), None)?;
                } else {
                    std::fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
                }
            }
            "a folder with room for 64 KiB" => {
                std::fs::create_dir(&self.path)?;
                let target = std::ffi::CString::new(self.path.as_os_str().as_encoded_bytes()).expect("a path without NUL");
                // SAFETY: all texts are NUL-terminated.
                let done = unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=64k".as_ptr().cast()) };
                if done != 0 {
                    return Err(Error::last_os_error().into());
                }
                self.mounted = true;
            }
            other => return Err(Failure::Failed(format!("nothing is called {other:?}"))),
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.placed.take().into_iter().for_each(|ring| drop(ring.remove()));
        if std::mem::take(&mut self.mounted) {
            let target = std::ffi::CString::new(self.path.as_os_str().as_encoded_bytes()).expect("a path without NUL");
            // SAFETY: a NUL-terminated path. Lazily: an actor may have a ring there.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
        // What is not there needs no removal.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_dir(&self.path);
        let _ = std::fs::remove_file(self.path.with_extension("beside"));
        let _ = std::fs::remove_dir_all(self.names_dir().join("offloop"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.clear();
        let _ = std::fs::remove_dir(self.names_dir());
        if let Some(group) = self.group.take() {
            // The workers of an actor end after it; what is in use cannot be removed.
            let until = Instant::now() + Duration::from_secs(10);
            while std::fs::remove_dir(&group).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The folder of this process's control group for memory, and the name of its limit.
fn memory_group() -> Result<(PathBuf, &'static str), Failure> {
    let root = Path::new("/sys/fs/cgroup");
    for line in std::fs::read_to_string("/proc/self/cgroup")?.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default().trim_start_matches('/'));
        let (dir, limit) = match controllers {
            "memory" => (root.join("memory").join(path), "memory.limit_in_bytes"),
            "" => (root.join(path), "memory.max"),
            _ => continue,
        };
        if dir.join("cgroup.procs").exists() && (limit != "memory.max" || dir.join("cgroup.controllers").exists()) {
            return Ok((dir, limit));
        }
    }
    Err(Failure::Forbidden("no control groups of memory are mounted".into()))
}

impl Made {
    fn new(want: &Ring, kind: Option<Kind>) -> Result<Made, Failure> {
        let mut builder = RingBuffer::builder(kind.unwrap_or(Kind::Spsc)).capacity(want.capacity);
        if let Some(policy) = &want.on_full {
            builder = builder.on_full(policy.parse()?);
        }
        let ring = builder.create()?;
        let memory = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", ring.fds()?[0]))?;
        let mut header = [0; FIXED_LEN];
        memory.read_exact_at(&mut header, 0)?;
        let others = want.others.iter().map(|name| Ok((name.clone(), other(name, &header)?))).collect::<Result<_, Failure>>()?;
        Ok(Made { ring, memory, header, others })
    }

    fn numbers(&self) -> Vec<RawFd> {
        self.ring.fds().expect("it has no name, and this process did not fork")
    }

    /// `at` is a number, or a word's name: `tail` and `head` of lane 0, its first `record`.
    fn scribble(&self, at: &str, bytes: &[u8], check: bool) -> Result<(), Failure> {
        let header = Header::decode(&self.header, self.memory.metadata()?.len())?;
        let seat = |seat: usize, word: usize| SEATS_AT + seat * header.kind.seat_len() + word;
        let data = header.header_len as usize;
        let at = match (at, header.kind) {
            ("tail", Kind::Mpmc) => ring_word::SLOT_TAIL,
            ("head", Kind::Mpmc) => ring_word::SLOT_HEAD,
            // Behind the slot's word.
            ("record", Kind::Mpmc) => data + 8,
            ("tail", Kind::Broadcast) => seat(0, seat_word::TAIL),
            ("tail", _) => seat(1, seat_word::TAIL),
            ("head", _) => seat(1, seat_word::HEAD),
            ("record", _) => data,
            (number, _) => number.parse().map_err(|_| Failure::Failed(format!("no place {number:?}")))?,
        };
        // The fixed part is as it was made, but for these bytes.
        let mut fixed = self.header;
        if at < FIXED_LEN {
            fixed[at..at + bytes.len()].copy_from_slice(bytes);
        } else {
            self.memory.write_all_at(bytes, at as u64)?;
        }
        if check {
            let sum = ring::checksum(&fixed);
            fixed[120..].copy_from_slice(&sum.to_le_bytes());
        }
        Ok(self.memory.write_all_at(&fixed, 0)?)
    }
}

/// An fd that is not a ring's memory.
fn other(name: &str, header: &[u8; FIXED_LEN]) -> Result<OwnedFd, Failure> {
    let memory = |len: usize| -> Result<OwnedFd, Failure> {
        let (fd, _map) = mem::create_sealed(c"other", len)?;
        let file = File::from(fd);
        file.write_all_at(&header[..len.min(FIXED_LEN)], 0)?;
        Ok(file.into())
    };
    Ok(match name {
        "pipe" => std::io::pipe()?.0.into(),
        "directory" => File::open("/")?.into(),
        "device" => File::options().read(true).write(true).open("/dev/null")?.into(),
        // One page less, one more, and less than a header.
        "cut" => memory(4096)?,
        "long" => memory(12288)?,
        "short" => memory(100)?,
        "unsealed" => {
            // SAFETY: the name is NUL-terminated.
            let fd = unsafe { libc::memfd_create(c"unsealed".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
            if fd < 0 {
                return Err(Error::last_os_error().into());
            }
            // SAFETY: new and ours.
            let file = File::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
            file.set_len(8192)?;
            file.write_all_at(header, 0)?;
            file.into()
        }
        other => return Err(Failure::Failed(format!("no fd is called {other:?}"))),
    })
}
