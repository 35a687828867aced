//! A process that has no fd left for a moment. In a file of their own, because the limit holds for the whole process.

use offloop::ring::{ConsumerOptions, Kind, ProducerOptions};
use offloop::{ErrorKind, RingBuffer, ThreadPool};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So many fds may be open, or polled, from now on.
fn limit(n: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: n, rlim_max: 64 };
    // SAFETY: a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

/// Lowers the limit, and keeps the other tests out.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    limit(64);
    guard
}

/// Takes every fd that is left.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut p, 1, 0) == 1 }
}

#[test]
fn the_fd_of_a_consumer_that_could_not_be_made_is_made_whole_later() {
    let _alone = alone();
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    assert!(p.try_push(b"one").expect("push"));
    let mut held: Vec<File> = take_all();
    // One step of it succeeds, then two, and so on: whatever was begun is not taken for the whole.
    let mut refused = 0;
    while let Err(e) = c.fd() {
        assert_eq!(e.errno().map(|(n, _)| n), Some(libc::EMFILE), "{e}");
        refused += 1;
        held.pop().expect("a few are enough");
    }
    assert!(refused >= 2, "{refused}");
    assert!(is_readable(c.fd().expect("made")), "there is a record");
    assert_eq!(c.try_pop().expect("pop").expect("record").to_vec(), b"one");
    assert!(c.try_pop().expect("pop").is_none());
    assert!(!is_readable(c.fd().expect("made")));
    assert!(p.try_push(b"two").expect("push"));
    assert!(is_readable(c.fd().expect("made")), "it was armed");
}

#[test]
fn the_participants_of_a_named_ring_are_rung_without_an_fd() {
    let _alone = alone();
    let path = std::env::temp_dir().join(format!("offloop-no-fds-{}", std::process::id()));
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).path(&path).create().expect("ring");
    // As another process: it has opened what it needs by itself.
    let other = RingBuffer::attach_path(&path).expect("attach");
    ring.remove().expect("remove");
    let mut c = other.consumer(ConsumerOptions::default()).expect("consumer");
    c.fd().expect("fd");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    while c.try_pop().is_err() || is_readable(c.fd().expect("fd")) {}
    let held = take_all();
    p.push(b"one", None).expect("push");
    assert!(is_readable(c.fd().expect("fd")), "it was rung");
    drop(held);
    assert_eq!(c.try_pop().expect("pop").expect("record").to_vec(), b"one");
}

/// No fd may be polled for as long as this lives.
struct Unpolled;

impl Unpolled {
    fn begin() -> Unpolled {
        limit(0);
        Unpolled
    }
}

impl Drop for Unpolled {
    fn drop(&mut self) {
        limit(64);
    }
}

#[test]
fn a_doorbell_rings_where_no_fd_may_be_polled() {
    let _alone = alone();
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    c.fd().expect("fd");
    while c.try_pop().expect("pop").is_some() || is_readable(c.fd().expect("fd")) {}
    let none = Unpolled::begin();
    p.push(b"one", None).expect("push");
    drop(none);
    assert!(is_readable(c.fd().expect("fd")), "it was rung");
    assert_eq!(c.try_pop().expect("pop").expect("record").to_vec(), b"one");
}

#[test]
fn who_may_not_poll_its_doorbell_finds_what_comes_and_rests_meanwhile() {
    let _alone = alone();
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    // By now it knows whom to watch.
    assert_eq!(c.pop(Some(Duration::from_millis(1))).map(|_| ()).expect_err("nothing comes").kind(), ErrorKind::Timeout);
    let _none = Unpolled::begin();
    let cpu = || {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a writable timespec.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) }, 0);
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    };
    let sleeper = std::thread::spawn(move || {
        let before = cpu();
        let e = c.pop(Some(Duration::from_millis(300))).map(|_| ()).expect_err("nothing comes");
        assert_eq!(e.kind(), ErrorKind::Timeout);
        assert!(cpu() - before < Duration::from_millis(150), "it did not rest: {:?}", cpu() - before);
        c.pop(None).expect("found").to_vec()
    });
    std::thread::sleep(Duration::from_millis(350));
    p.push(b"one", None).expect("push");
    assert_eq!(sleeper.join().expect("sleeper"), b"one");
}

#[test]
fn a_consumer_that_cannot_sleep_takes_no_wake_from_one_that_does() {
    let _alone = alone();
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).max_participants(3).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let [mut first, mut sleeps] = [(); 2].map(|()| ring.consumer(ConsumerOptions::default()).expect("consumer"));
    let sleeper = std::thread::spawn(move || sleeps.pop(None).expect("pop").to_vec());
    while !ring.stat().expect("stat").participants[2].asleep {
        std::thread::yield_now();
    }
    let held = take_all();
    let e = first.pop(None).expect_err("no fd to watch the others by");
    assert_eq!(e.errno().map(|(n, _)| n), Some(libc::EMFILE), "{e}");
    p.push(b"task", None).expect("push");
    assert_eq!(sleeper.join().expect("sleeper"), b"task");
    drop(held);
    p.push(b"more", None).expect("push");
    assert_eq!(first.pop(None).expect("there are fds again").to_vec(), b"more");
}

#[test]
fn a_plugin_that_cannot_be_opened_for_want_of_an_fd_is_not_called_a_bad_one() {
    let _alone = alone();
    let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
    let exe = std::env::current_exe().expect("exe");
    let held = take_all();
    let e = pool.load(&exe).expect_err("no fd");
    assert_eq!((e.kind(), e.errno()), (ErrorKind::Os, Some((libc::EMFILE, "open"))));
    drop(held);
    assert_ne!(pool.load(&exe).expect_err("no plugin").kind(), ErrorKind::Os);
}
