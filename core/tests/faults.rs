//! Each system call of a ring's or channel's life fails in turn: the error says so, nothing is left behind, and the same works afterwards.
//! Alone in its file, because it counts what its process has open.
//!
//! The calls fail by a seccomp filter that asks this process (`SECCOMP_RET_USER_NOTIF`), for one thread at a time.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::channel::{Channel, Incoming, Options};
use offloop::ring::{Ack, Consumer, ConsumerOptions, Kind, ProducerOptions, RingBuffer};
use offloop::{Error, ErrorKind, TransferBuffer, Value};
use row::Row;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

#[path = "../../tests/src/row.rs"]
#[allow(dead_code, unreachable_pub, reason = "the loops of the other crate need more of it")]
mod row;

const SHORT: Option<Duration> = Some(Duration::from_millis(2));

/// Calls that fail, by number; of `fcntl` and `mmap` only those that are named.
struct Fault {
    name: &'static str,
    errno: i32,
    calls: &'static [libc::c_long],
    /// `fcntl(F_DUPFD_CLOEXEC)` too.
    dup: bool,
    /// `mmap` of a file too.
    map: bool,
    /// The kernel asks for the call again, so it must be as if nothing had happened.
    retried: bool,
}

const MAKE_FDS: &[libc::c_long] = &[
    libc::SYS_memfd_create,
    libc::SYS_openat,
    libc::SYS_eventfd2,
    libc::SYS_pidfd_open,
    libc::SYS_epoll_create1,
    libc::SYS_timerfd_create,
    libc::SYS_socketpair,
    libc::SYS_socket,
    libc::SYS_accept4,
];
const TAKE_MEMORY: &[libc::c_long] = &[
    libc::SYS_memfd_create,
    libc::SYS_fallocate,
    libc::SYS_eventfd2,
    libc::SYS_pidfd_open,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_create,
    libc::SYS_socketpair,
];
const FAULTS: [Fault; 5] = [
    Fault { name: "EMFILE", errno: libc::EMFILE, calls: MAKE_FDS, dup: true, map: false, retried: false },
    Fault { name: "ENFILE", errno: libc::ENFILE, calls: MAKE_FDS, dup: false, map: false, retried: false },
    Fault { name: "ENOMEM", errno: libc::ENOMEM, calls: TAKE_MEMORY, dup: false, map: true, retried: false },
    Fault { name: "ENOSPC", errno: libc::ENOSPC, calls: &[libc::SYS_fallocate, libc::SYS_linkat], dup: false, map: false, retried: false },
    Fault {
        name: "EINTR",
        errno: libc::EINTR,
        calls: &[libc::SYS_fallocate, libc::SYS_ppoll, libc::SYS_sendmsg, libc::SYS_recvmsg],
        dup: false,
        map: false,
        retried: true,
    },
];

/// Which of the calls fail.
#[derive(Clone, Copy)]
enum Which {
    Nth(u64),
    EverySecond,
}

impl Fault {
    /// Asks about the calls of this thread; the answers are given through the fd.
    fn install(&self) -> OwnedFd {
        let op = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_K | libc::BPF_JEQ) as u16, jt, jf, k };
        let load = |offset: u32| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
        let ask = op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF);
        let mut program = Vec::new();
        // `seccomp_data`: number at 0, arguments from 16, 8 bytes each, low half first.
        for call in self.calls {
            program.extend([load(0), jump(*call as u32, 0, 1), ask]);
        }
        if self.dup {
            let is_dup = jump(libc::F_DUPFD_CLOEXEC as u32, 0, 1);
            program.extend([load(0), jump(libc::SYS_fcntl as u32, 0, 3), load(16 + 8), is_dup, ask]);
        }
        if self.map {
            // An allocator cannot say no to who calls it, so memory without a file is there.
            program.extend([load(0), jump(libc::SYS_mmap as u32, 0, 3), load(16 + 4 * 8), jump(u32::MAX, 1, 0), ask]);
        }
        program.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: a valid filter program that outlives the calls; the fd is new and ours.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
            let fd = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd as i32)
        }
    }

    /// What `f` says when such calls fail, and how many did.
    fn during<T: Send>(&self, which: Which, f: impl FnOnce() -> T + Send) -> (T, u64) {
        std::thread::scope(|s| {
            let (give, take) = mpsc::channel();
            let worker = s.spawn(move || {
                give.send(self.install()).unwrap();
                f()
            });
            let listener = take.recv().unwrap();
            let failed = self.answer(listener.as_fd(), which);
            (worker.join().unwrap(), failed)
        })
    }

    /// Answers until the thread that asks has ended; gives how many calls failed.
    fn answer(&self, listener: BorrowedFd<'_>, which: Which) -> u64 {
        const RECV: libc::Ioctl = 0xC050_2100_u32 as libc::Ioctl;
        const SEND: libc::Ioctl = 0xC018_2101_u32 as libc::Ioctl;
        let (mut calls, mut failed) = (0, 0);
        loop {
            let mut entry = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&raw mut entry, 1, -1) };
            if entry.revents & libc::POLLIN == 0 {
                return failed; // nobody has the filter any more
            }
            // SAFETY: plain data, which must be zero before it is filled; both live for the calls.
            unsafe {
                let mut asked: libc::seccomp_notif = std::mem::zeroed();
                if libc::ioctl(listener.as_raw_fd(), RECV, &raw mut asked) != 0 {
                    continue;
                }
                calls += 1;
                let fails = match which {
                    Which::Nth(n) => calls == n,
                    Which::EverySecond => calls % 2 == 1,
                };
                failed += u64::from(fails);
                let mut answer: libc::seccomp_notif_resp = std::mem::zeroed();
                answer.id = asked.id;
                if fails {
                    answer.error = -self.errno;
                } else {
                    answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
                }
                assert_eq!(libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer), 0, "{}", std::io::Error::last_os_error());
            }
        }
    }
}

/// What this process has, and what lies in its directory.
#[derive(Debug, PartialEq, Eq)]
struct Belongings {
    fds: usize,
    maps: usize,
    threads: usize,
    names: Vec<String>,
}

impl Belongings {
    fn now(dir: &Path) -> Belongings {
        let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        Belongings {
            fds: count("/proc/self/fd"),
            maps: maps.lines().filter(|l| l.contains("offloop")).count(),
            threads: std::fs::read_dir("/proc/self/task")
                .unwrap()
                // One of the harness may end meanwhile.
                .filter(|t| std::fs::read_to_string(t.as_ref().unwrap().path().join("comm")).is_ok_and(|name| name.starts_with("offloop")))
                .count(),
            names,
        }
    }
}

fn record(ring: &RingBuffer, ack: Ack) -> Result<(), Error> {
    let mut p = ring.producer(ProducerOptions::default())?;
    let mut c = ring.consumer(ConsumerOptions { ack })?;
    let done = |c: &Consumer, delivery| if ack == Ack::Manual { c.ack(delivery) } else { Ok(()) };
    // A consumer that finds nothing sleeps.
    match c.pop(SHORT) {
        Err(e) if e.kind() == ErrorKind::Timeout => {}
        other => return other.map(|_| panic!("there is nothing")),
    }
    p.push(b"one", None)?;
    let one = c.pop(None)?;
    assert_eq!(one.to_vec(), b"one");
    let delivery = one.delivery();
    drop(one);
    done(&c, delivery)?;
    // As an event loop.
    let _ = (p.fd()?, c.fd()?);
    assert!(c.try_pop()?.is_none());
    p.push(b"two", None)?;
    let two = c.try_pop()?.expect("it was pushed");
    assert_eq!(two.to_vec(), b"two");
    let delivery = two.delivery();
    drop(two);
    done(&c, delivery)
}

/// A producer that finds no room sleeps, too.
fn no_room(ring: &RingBuffer) -> Result<(), Error> {
    let mut p = ring.producer(ProducerOptions::default())?;
    let mut c = ring.consumer(ConsumerOptions::default())?;
    while p.try_push(&[0; 1000])? {}
    match p.push(&[0; 1000], SHORT) {
        Err(e) if e.kind() == ErrorKind::Timeout => {}
        other => return other.map(|()| panic!("there is no room")),
    }
    while c.try_pop()?.is_some() {}
    p.push(b"room", None)?;
    assert_eq!(c.pop(None)?.to_vec(), b"room");
    Ok(())
}

fn message(a: &Channel, b: &Channel) -> Result<(), Error> {
    let buffer = TransferBuffer::alloc_shared(100)?;
    a.send(&mut Value::Buffer(buffer), &[std::io::stdin().as_fd()], None)?;
    match b.recv(None)? {
        Incoming::Message(m) => assert_eq!(m.fds.len(), 1),
        other => panic!("{other:?}"),
    }
    let _ = (a.fd()?, b.fd()?);
    assert!(b.try_recv()?.is_none());
    Ok(())
}

type Scene<'a> = (&'static str, Box<dyn Fn() -> Result<(), Error> + Send + Sync + 'a>);

/// Lives of rings and channels, each from its begin to its end.
fn scenes<'a>(ring: &'a [RingBuffer], path: &'a Path) -> Vec<Scene<'a>> {
    let mut scenes: Vec<Scene<'a>> = Vec::new();
    for kind in [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc] {
        scenes.push((
            "create",
            Box::new(move || {
                let ring = RingBuffer::builder(kind).capacity(8192).max_participants(if kind == Kind::Spsc { 2 } else { 3 });
                let ring = if kind == Kind::Mpmc { ring.slot_size(2048) } else { ring }.create()?;
                let other = {
                    let fds = ring.fds()?;
                    // SAFETY: `ring` keeps them open for the call.
                    let fds: Vec<_> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
                    RingBuffer::attach(&fds)?
                };
                drop(ring);
                other.stat().map(drop)
            }),
        ));
    }
    scenes.push((
        "create by path",
        Box::new(move || {
            let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).path(path).create()?;
            let other = RingBuffer::attach_path(path);
            let done = other.and_then(|other| record(&other, Ack::Auto)).and_then(|()| RingBuffer::inspect(path).map(drop));
            // Whatever became of the others, this one takes the name away.
            ring.remove()?;
            done
        }),
    ));
    for ring in ring {
        let acks: &[Ack] = if ring.kind() == Kind::Mpmc { &[Ack::Auto, Ack::Manual] } else { &[Ack::Auto] };
        for ack in acks {
            scenes.push(("take part", Box::new(move || record(ring, *ack))));
        }
        if ring.kind() != Kind::Broadcast {
            scenes.push(("wait for room", Box::new(move || no_room(ring))));
        }
    }
    scenes.push((
        "channel",
        Box::new(move || {
            let (a, b) = Channel::pair(Options { capacity: 8192, ..Options::default() })?;
            message(&a, &b)
        }),
    ));
    scenes.push((
        "channel by path",
        Box::new(move || {
            let listener = Channel::listen(path, Options { capacity: 8192, ..Options::default() })?;
            let a = Channel::begin_connect(path, Options::default())?;
            let b = listener.accept(None)?;
            message(&a, &b)
        }),
    ));
    scenes
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = Dir(std::env::temp_dir().join(format!("offloop-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&dir.0).unwrap();
        dir
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn rings() -> Vec<RingBuffer> {
    let of = |kind| {
        let ring = RingBuffer::builder(kind).capacity(4096).max_participants(if kind == Kind::Spsc { 2 } else { 3 });
        if kind == Kind::Mpmc { ring.slot_size(2048) } else { ring }.create().unwrap()
    };
    [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc].map(of).into()
}

/// After a fault what waits in a ring that lives on is taken, so that the next one begins as this one did.
fn clear(rings: &[RingBuffer]) {
    for ring in rings {
        let mut c = ring.consumer(ConsumerOptions::default()).unwrap();
        while c.try_pop().unwrap().is_some() {}
        drop(c);
        let stat = ring.stat().unwrap();
        assert!(stat.participants.iter().all(|p| !p.alive), "a seat is left: {stat:?}");
        assert!(!stat.poisoned, "{stat:?}");
    }
}

#[test]
fn a_call_that_fails_is_an_error_and_leaves_nothing() {
    in_its_own_process("a_full_file_system_is_an_error");
    in_its_own_process("a_full_address_space_is_an_error");
    let dir = Dir::new("faults");
    let path = dir.0.join("name");
    let rings = rings();
    let scenes = scenes(&rings, &path);
    // What is made once for the process is there from here on.
    for (name, scene) in &scenes {
        scene().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let before = Belongings::now(&dir.0);
    let mut row = Row::begin("a call fails", 400, 0);
    for fault in &FAULTS {
        for (name, scene) in &scenes {
            let what = |k: &str| format!("{name}, {} at call {k}", fault.name);
            for k in 1.. {
                let what = what(&k.to_string());
                let (result, failed) = fault.during(Which::Nth(k), scene);
                match result {
                    Ok(()) => {} // it could do without
                    Err(e) => {
                        assert!(failed == 1 && !fault.retried, "{what}: {e}");
                        assert_eq!((e.kind(), e.errno().map(|(n, _)| n)), (ErrorKind::Os, Some(fault.errno)), "{what}: {e}");
                    }
                }
                clear(&rings);
                assert_eq!(Belongings::now(&dir.0), before, "{what}");
                scene().unwrap_or_else(|e| panic!("after {what}: {e}"));
                if failed == 0 {
                    break;
                }
                row.trials += 1;
            }
            if fault.retried {
                let (result, failed) = fault.during(Which::EverySecond, scene);
                result.unwrap_or_else(|e| panic!("{}: {e}", what("1, 3, 5…")));
                clear(&rings);
                assert_eq!(Belongings::now(&dir.0), before, "{}", what("1, 3, 5…"));
                row.trials += u64::from(failed > 0);
            }
        }
    }
    row.holds();
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 20_000 } else { 1000 };
    let mut row = Row::begin("lives leave nothing", rounds, 0);
    for round in 0..rounds as usize {
        let (name, scene) = &scenes[round % scenes.len()];
        scene().unwrap_or_else(|e| panic!("{name}: {e}"));
        row.trials += 1;
        if round % 100 == 99 {
            assert_eq!(Belongings::now(&dir.0), before, "after {row:?}");
        }
    }
    row.holds();
}

/// A tmpfs of `bytes` at `dir`, which only this thread sees; false where that is not allowed.
fn mount_small(dir: &Path, bytes: usize) -> bool {
    let dir = std::ffi::CString::new(dir.to_str().unwrap()).unwrap();
    let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
    let (tmpfs, root) = (c"tmpfs".as_ptr(), c"/".as_ptr());
    // SAFETY: NUL-terminated strings that outlive the calls. The namespace is this thread's, and goes with it.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(std::ptr::null(), root, std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
            && libc::mount(tmpfs, dir.as_ptr(), tmpfs, 0, options.as_ptr().cast()) == 0
    }
}

/// Runs an ignored test of this file, which the harness would run beside the one that counts.
fn in_its_own_process(test: &str) {
    let mut process = std::process::Command::new(std::env::current_exe().unwrap());
    let done = process.args([test, "--exact", "--ignored", "--nocapture"]).env(ALONE, "1").output().unwrap();
    assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
}

/// Says that a test runs in its own process.
const ALONE: &str = "OFFLOOP_TEST_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

fn assert_os<T>(result: Result<T, Error>, errno: i32, what: &str) {
    let Err(e) = result else { panic!("{what}: there is room") };
    assert_eq!((e.kind(), e.errno().map(|(n, _)| n)), (ErrorKind::Os, Some(errno)), "{what}: {e}");
}

#[test]
#[ignore = "in a process of its own: see `in_its_own_process`"]
fn a_full_file_system_is_an_error() {
    if !is_alone() {
        return;
    }
    let dir = Dir::new("full");
    if !mount_small(&dir.0, 256 << 10) {
        println!("skipped: this process may not mount a tmpfs of its own");
        return;
    }
    let named = |name: &str, capacity| RingBuffer::builder(Kind::Spsc).capacity(capacity).path(dir.0.join(name)).create();
    let ring = named("small", 64 << 10).unwrap();
    assert_os(named("large", 1 << 20), libc::ENOSPC, "create");
    assert!(!dir.0.join("large").exists());
    // What there was before is as it was, to its last page.
    no_room(&ring).unwrap();
    let _ = std::fs::write(dir.0.join("filler"), vec![0; 1 << 20]);
    no_room(&ring).unwrap();
    drop(ring);
    std::fs::remove_file(dir.0.join("filler")).unwrap();
    RingBuffer::attach_path(dir.0.join("small")).unwrap().remove().unwrap();
    named("large", 64 << 10).unwrap().remove().unwrap();
}

type Attempt<'a> = (&'static str, &'a dyn Fn() -> Result<(), Error>);

/// Bounds the address space to what is taken, and `more`.
fn limit_address_space(more: Option<usize>) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').next().unwrap().parse().unwrap();
    let rlim_cur = more.map_or(libc::RLIM_INFINITY, |more| (pages * 4096 + more) as u64);
    let limit = libc::rlimit { rlim_cur, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

#[test]
#[ignore = "in a process of its own: see `in_its_own_process`"]
fn a_full_address_space_is_an_error() {
    if !is_alone() {
        return;
    }
    const LARGE: usize = 32 << 20;
    let dir = Dir::new("space");
    let named = |name: &str| RingBuffer::builder(Kind::Spsc).capacity(LARGE).path(dir.0.join(name)).create();
    let (passed, there) = (RingBuffer::builder(Kind::Spsc).capacity(LARGE).create().unwrap(), named("there").unwrap());
    let small = rings();
    let attach = || {
        let fds = passed.fds()?;
        // SAFETY: `passed` keeps them open for the call.
        let fds: Vec<_> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
        RingBuffer::attach(&fds).map(drop)
    };
    let attempts: [Attempt<'_>; 6] = [
        ("create", &|| RingBuffer::builder(Kind::Mpmc).capacity(LARGE).create().map(drop)),
        ("create by path", &|| named("new")?.remove()),
        ("attach", &attach),
        ("attach by path", &|| RingBuffer::attach_path(dir.0.join("there")).map(drop)),
        ("channel", &|| Channel::pair(Options { capacity: LARGE, ..Options::default() }).map(drop)),
        ("buffer", &|| TransferBuffer::alloc_shared(LARGE).map(drop)),
    ];
    let before = Belongings::now(&dir.0);
    limit_address_space(Some(LARGE / 2));
    for (what, attempt) in attempts {
        assert_os(attempt(), libc::ENOMEM, what);
        assert_eq!(Belongings::now(&dir.0), before, "{what}");
        // Who is there goes on.
        small.iter().for_each(|ring| record(ring, Ack::Auto).unwrap());
    }
    limit_address_space(None);
    for (what, attempt) in attempts {
        attempt().unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    there.remove().unwrap();
}
