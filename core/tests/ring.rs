//! Rings between two processes: order and wholeness, every way to die, `SIGSTOP`, fork.
//!
//! A peer is this test program again, running the ignored test `peer` with the ring's fds and a script in the environment.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::ErrorKind;
use offloop::ring::{Ack, Consumer, ConsumerOptions, Kind, Producer, ProducerOptions, RingBuffer, Role};
use offloop::sys::process::{Child, Exit, Spec, spawn};
use random::Random;
use row::Row;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[path = "../../tests/src/random.rs"]
mod random;

#[path = "../../tests/src/row.rs"]
#[allow(dead_code, unreachable_pub, reason = "the loops of the other crate need more of it")]
mod row;

/// The first fd that a peer gets: the report pipe, then the ring's.
const FIRST: RawFd = 100;
/// Bit of a report: the task was acknowledged.
const DONE: u64 = 1 << 63;
const SOON: Option<Duration> = Some(Duration::from_millis(20));

fn torture() -> bool {
    std::env::var_os("OFFLOOP_TORTURE").is_some()
}

fn spsc(capacity: usize) -> RingBuffer {
    RingBuffer::builder(Kind::Spsc).capacity(capacity).create().unwrap()
}

fn producer(ring: &RingBuffer) -> Producer {
    ring.producer(ProducerOptions::default()).unwrap()
}

fn consumer(ring: &RingBuffer) -> Consumer {
    ring.consumer(ConsumerOptions::default()).unwrap()
}

/// Record number `n`: its number, a length that follows from it, and a pattern over the rest.
fn record(n: u64) -> Vec<u8> {
    let len = 16 + (n.wrapping_mul(0x9E37_79B9) >> 7) as usize % 700;
    let mut bytes: Vec<u8> = (0..len).map(|i| (n as usize + i) as u8).collect();
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

/// The number of a record that is whole.
fn number(bytes: &[u8]) -> u64 {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == record(n), "record {n} is torn");
    n
}

struct Peer {
    child: Child,
    /// What the peer reports, 9 bytes each: a number, and a flag.
    reports: File,
}

impl Peer {
    fn start(ring: &RingBuffer, script: &str) -> Peer {
        Peer::start_with(ring, script, &[])
    }

    fn start_with(ring: &RingBuffer, script: &str, env: &[(&str, &str)]) -> Peer {
        let fds = ring.fds().unwrap();
        // SAFETY: `ring` keeps its fds open for the call.
        let fds: Vec<_> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
        Peer::spawn(&fds, script, env)
    }

    /// A peer that attaches to the ring of `OFFLOOP_TEST_PATH`.
    fn start_named(script: &str, env: &[(&str, &str)]) -> Peer {
        Peer::spawn(&[], script, env)
    }

    fn spawn(fds: &[BorrowedFd<'_>], script: &str, env: &[(&str, &str)]) -> Peer {
        let mut ends = [0; 2];
        // SAFETY: two writable ints; the fds are new and ours.
        let (read, write) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        let null = File::options().write(true).open("/dev/null").unwrap();
        let mut spec = Spec::new(std::env::current_exe().unwrap());
        spec.args = ["peer", "--exact", "--ignored", "--nocapture"].map(Into::into).to_vec();
        let mut vars: Vec<_> = std::env::vars_os().collect();
        vars.push(("OFFLOOP_TEST_PEER".into(), format!("{}:{script}", fds.len()).into()));
        vars.extend(env.iter().map(|(k, v)| (k.into(), v.into())));
        spec.env = Some(vars);
        spec.fds = vec![(null.as_fd(), 1), (write.as_fd(), FIRST)];
        spec.fds.extend(fds.iter().enumerate().map(|(i, fd)| (*fd, FIRST + 1 + i as RawFd)));
        Peer { child: spawn(&spec).unwrap(), reports: read.into() }
    }

    fn kill(&self) {
        self.child.kill(libc::SIGKILL).unwrap();
        self.wait();
    }

    fn wait(&self) -> Exit {
        self.child.wait(None).unwrap().unwrap()
    }

    /// The next report; `None` when the peer is gone.
    fn report(&mut self) -> Option<(u64, bool)> {
        let mut bytes = [0; 9];
        self.reports.read_exact(&mut bytes).ok()?;
        Some((u64::from_le_bytes(bytes[..8].try_into().unwrap()), bytes[8] != 0))
    }
}

const OK: Exit = Exit { code: Some(0), signal: None, core_dumped: false };

/// What a peer does: the words of the script are its arguments.
#[test]
#[ignore = "the other process of the tests above"]
fn peer() {
    let Ok(script) = std::env::var("OFFLOOP_TEST_PEER") else { return };
    let words: Vec<&str> = script.split(':').collect();
    let fds: Vec<OwnedFd> = (1..=words[0].parse::<RawFd>().unwrap())
        // SAFETY: the parent put its ring's fds here, and they are nobody else's.
        .map(|i| unsafe { OwnedFd::from_raw_fd(FIRST + i) })
        .collect();
    // SAFETY: as above.
    let mut reports = File::from(unsafe { OwnedFd::from_raw_fd(FIRST) });
    let mut report = |n: u64, flag: bool| {
        let mut bytes = [0; 9];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes[8] = flag.into();
        reports.write_all(&bytes).unwrap();
    };
    let ring = match std::env::var_os("OFFLOOP_TEST_PATH") {
        Some(path) => RingBuffer::attach_path(path).unwrap(),
        None => RingBuffer::attach(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap(),
    };
    drop(fds);
    let arg = |i: usize| words[i].parse::<u64>().unwrap();
    // Who is to die when it wakes somebody needs somebody who sleeps.
    let wakes = std::env::var("OFFLOOP_FAILPOINT").is_ok_and(|plan| plan.starts_with("wake."));
    let await_sleeper = |role| {
        while wakes && !ring.is_closed() && !ring.stat().unwrap().participants.iter().any(|p| p.role == Some(role) && p.asleep) {
            std::thread::yield_now();
        }
    };
    match words[1] {
        // produce:from:to:batch, every third in place; tasks the same, and gives up as many claims.
        script @ ("produce" | "tasks") => {
            let mut p = ring.producer(ProducerOptions { batch: arg(4) == 1, ..Default::default() }).unwrap();
            report(0, false);
            for n in arg(2)..arg(3) {
                let bytes = record(n);
                await_sleeper(Role::Consumer);
                if n % 3 == 0 {
                    if script == "tasks" {
                        p.claim(bytes.len(), None).unwrap().abort();
                    }
                    let mut claim = p.claim(bytes.len(), None).unwrap();
                    assert!(claim.write_at(0, &bytes));
                    claim.commit().unwrap();
                } else {
                    p.push(&bytes, None).unwrap();
                }
            }
        }
        // As produce, and then stays, with what it has claimed.
        "hold" => {
            let mut p = producer(&ring);
            for n in 0..arg(2) {
                p.push(&record(n), None).unwrap();
            }
            let _claim = p.claim(100, None).unwrap();
            report(0, false);
            loop {
                std::thread::park();
            }
        }
        // Reports every record before it lets go of it.
        "consume" => {
            let mut c = consumer(&ring);
            loop {
                match c.pop(None) {
                    Ok(r) => {
                        report(number(&r.to_vec()), r.is_redelivered());
                        await_sleeper(Role::Producer);
                    }
                    Err(e) => return assert_eq!(e.kind(), ErrorKind::Closed, "{e}"),
                }
            }
        }
        // Reports every task when it comes, gives every fifth back once, and reports what it has acknowledged.
        "work" => {
            let mut c = ring.consumer(ConsumerOptions { ack: Ack::Manual }).unwrap();
            loop {
                await_sleeper(Role::Producer);
                let (n, again, delivery) = match c.pop(None) {
                    Ok(r) => (number(&r.to_vec()), r.is_redelivered(), r.delivery()),
                    Err(e) => return assert_eq!(e.kind(), ErrorKind::Closed, "{e}"),
                };
                report(n, again);
                if n % 5 == 4 && !again {
                    c.nack(delivery).unwrap();
                } else {
                    c.ack(delivery).unwrap();
                    report(n | DONE, again);
                }
            }
        }
        // Takes so many tasks, and then stays with them.
        "keep" => {
            let mut c = ring.consumer(ConsumerOptions { ack: if arg(3) == 1 { Ack::Manual } else { Ack::Auto } }).unwrap();
            if arg(3) == 1 {
                (0..arg(2)).for_each(|_| drop(c.pop(None).unwrap()));
                report(0, false);
            } else {
                assert_eq!(c.read_held(arg(2) as usize, |_| {}).unwrap(), arg(2) as usize);
                report(0, false);
            }
            loop {
                std::thread::park();
            }
        }
        // Takes the consumer's seat and reads nothing.
        "sit" => {
            let _c = consumer(&ring);
            report(0, false);
            loop {
                std::thread::park();
            }
        }
        // One record pushed, or one task taken; then, when somebody else sleeps, another program in the same process.
        "exec" => {
            let (mut p, mut c);
            if ring.kind() == Kind::Mpmc {
                c = worker(&ring);
                drop(c.pop(None).unwrap());
            } else {
                p = producer(&ring);
                p.push(&record(0), None).unwrap();
            }
            report(0, false);
            while !ring.stat().unwrap().participants.iter().any(|p| p.pid != std::process::id() && p.asleep) {
                std::thread::yield_now();
            }
            // SAFETY: strings that end with 0, in a list that ends with null.
            unsafe {
                libc::execl(c"/bin/sleep".as_ptr(), c"sleep".as_ptr(), c"1000".as_ptr(), std::ptr::null::<libc::c_char>());
            }
        }
        // As hold, with a forked child that outlives it.
        "fork" => {
            let mut p = producer(&ring);
            p.push(&record(0), None).unwrap();
            #[allow(clippy::disallowed_methods, reason = "what a forked child keeps is tested")]
            // SAFETY: the child makes one call of ours, reports and sleeps until the test kills it.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let refused = p.try_push(b"x").err().map(|e| e.kind()) == Some(ErrorKind::Forked)
                    && ring.consumer(ConsumerOptions::default()).err().map(|e| e.kind()) == Some(ErrorKind::Forked);
                ring.close();
                drop(p);
                // SAFETY: a plain query.
                report(u64::from(unsafe { libc::getpid() }.unsigned_abs()), refused);
                loop {
                    std::thread::park();
                }
            }
            loop {
                std::thread::park();
            }
        }
        // As fork, past the atfork handlers: the child keeps the lock of the seat.
        "clone" => {
            let mut p = producer(&ring);
            p.push(&record(0), None).unwrap();
            // SAFETY: as `fork`; the child reports, which allocates nothing, and sleeps.
            let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            if pid == 0 {
                // SAFETY: a plain query; `getpid` of libc may be cached.
                report(unsafe { libc::syscall(libc::SYS_getpid) }.unsigned_abs(), true);
            }
            loop {
                std::thread::park();
            }
        }
        other => panic!("no such script: {other}"),
    }
}

#[test]
fn a_stream_arrives_whole_and_in_order() {
    let records = if torture() { 5_000_000 } else { 100_000 };
    for batch in 0..2 {
        for capacity in [4096, 1 << 20] {
            let ring = spsc(capacity);
            let mut c = consumer(&ring);
            let peer = Peer::start(&ring, &format!("produce:0:{records}:{batch}"));
            for n in 0..records {
                assert_eq!(number(&c.pop(None).unwrap().to_vec()), n);
            }
            assert_eq!(peer.wait(), OK);
            assert!(c.try_pop().unwrap().is_none(), "a producer that left in peace did not die");
        }
    }
}

#[test]
fn a_consumer_in_another_process_sees_close() {
    let ring = spsc(4096);
    let mut p = producer(&ring);
    let mut peer = Peer::start(&ring, "consume");
    for n in 0..10_000 {
        p.push(&record(n), None).unwrap();
        assert_eq!(peer.report(), Some((n, false)));
    }
    ring.close();
    assert_eq!((peer.report(), peer.wait()), (None, OK));
}

#[test]
fn a_dead_producers_records_are_drained_before_its_death_is_told() {
    let ring = spsc(1 << 20);
    let mut c = consumer(&ring);
    let mut peer = Peer::start(&ring, "hold:1000");
    assert!(peer.report().is_some());
    peer.kill();
    for n in 0..1000 {
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), n);
    }
    let e = c.pop(None).map(|_| ()).unwrap_err();
    assert_eq!((e.kind(), e.to_string().contains(&format!("pid={}", peer.child.pid()))), (ErrorKind::PeerDied, true), "{e}");
    assert_eq!(c.try_pop().map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    // The claim left nothing, and a successor goes on.
    let mut p = producer(&ring);
    p.push(&record(5), None).unwrap();
    assert_eq!(number(&c.pop(None).unwrap().to_vec()), 5);
    assert!(c.try_pop().unwrap().is_none());
}

#[test]
fn a_sleeping_consumer_is_woken_by_its_producers_death() {
    let ring = spsc(4096);
    let mut peer = Peer::start(&ring, "hold:0");
    assert!(peer.report().is_some());
    let mut c = consumer(&ring);
    let sleeper = std::thread::spawn(move || c.pop(None).map(|_| ()).unwrap_err().kind());
    peer.kill();
    assert_eq!(sleeper.join().unwrap(), ErrorKind::PeerDied);
}

#[test]
fn a_consumer_that_polls_learns_of_its_producers_death() {
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    let mut peer = Peer::start(&ring, "hold:0");
    assert!(peer.report().is_some());
    peer.kill();
    assert_eq!(until_told(&mut c), ErrorKind::PeerDied);
}

/// Polls an empty ring until it has something else to say.
fn until_told(c: &mut Consumer) -> ErrorKind {
    loop {
        match c.try_pop() {
            Ok(r) => assert!(r.is_none()),
            Err(e) => return e.kind(),
        }
    }
}

/// However seldom it polls: a few calls, a frame apart, are enough.
#[test]
fn a_consumer_that_polls_seldom_gets_what_is_behind_a_dead_ones_claim() {
    for ack in [Ack::Auto, Ack::Manual] {
        let ring = tasks(16);
        let mut peer = Peer::start(&ring, "hold:0");
        assert!(peer.report().is_some());
        producer(&ring).push(&record(7), None).unwrap();
        let mut c = ring.consumer(ConsumerOptions { ack }).unwrap();
        assert!(c.try_pop().unwrap().is_none(), "a claim is open before it");
        peer.kill();
        let calls = (1..).find(|_| {
            std::thread::sleep(Duration::from_millis(25));
            c.try_pop().unwrap().is_some()
        });
        assert!(calls.unwrap() <= 3, "{calls:?} calls");
    }
}

fn readable(fd: BorrowedFd<'_>, ms: i32) -> bool {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut p, 1, ms) == 1 }
}

#[test]
fn the_fd_is_readable_when_a_peer_comes_or_dies() {
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    assert!(readable(c.fd().unwrap(), 0));
    assert!(c.try_pop().unwrap().is_none());
    assert!(!readable(c.fd().unwrap(), 0));
    let mut peer = Peer::start(&ring, "hold:0");
    assert!(peer.report().is_some());
    assert!(readable(c.fd().unwrap(), -1), "a new peer is news");
    assert!(c.try_pop().unwrap().is_none());
    assert!(!readable(c.fd().unwrap(), 0));
    peer.kill();
    assert!(readable(c.fd().unwrap(), -1));
    assert_eq!(c.try_pop().map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    assert!(!readable(c.fd().unwrap(), 0), "told once");
}

/// A child that was forked, and waits to be killed, as `multiprocessing` has them.
struct Forked(libc::pid_t);

impl Forked {
    #[allow(clippy::disallowed_methods, reason = "what a forked child keeps is tested")]
    fn start() -> Forked {
        // SAFETY: the child makes plain calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            loop {
                // SAFETY: a plain call.
                unsafe { libc::pause() };
            }
        }
        assert!(pid > 0);
        Forked(pid)
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: its own child, which nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

#[test]
fn a_death_is_told_once_while_a_forked_child_has_copies_of_the_fds() {
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    let mut peer = Peer::start(&ring, "hold:0");
    assert!(peer.report().is_some());
    let _ = c.fd().unwrap();
    while readable(c.fd().unwrap(), 0) {
        assert!(c.try_pop().unwrap().is_none());
    }
    let _copies = Forked::start();
    peer.kill();
    assert!(readable(c.fd().unwrap(), -1));
    assert_eq!(c.try_pop().map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    assert!(!readable(c.fd().unwrap(), 0), "told once");
}

#[test]
fn a_full_ring_without_a_living_consumer_is_an_error() {
    let ring = spsc(4096);
    let mut peer = Peer::start(&ring, "sit");
    assert!(peer.report().is_some());
    let mut p = producer(&ring);
    let sleeper = std::thread::spawn(move || {
        let mut n = 0;
        loop {
            match p.push(&record(n), None) {
                Ok(()) => n += 1,
                Err(e) => return (p, n, e.kind()),
            }
        }
    });
    peer.kill();
    let (mut p, pushed, kind) = sleeper.join().unwrap();
    assert_eq!(kind, ErrorKind::PeerDied);
    // A successor gets everything.
    let mut c = consumer(&ring);
    for n in 0..pushed {
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), n);
    }
    p.push(&record(pushed), None).unwrap();
    assert_eq!(number(&c.pop(None).unwrap().to_vec()), pushed);
}

#[test]
fn a_stopped_process_is_not_dead() {
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    let peer = Peer::start(&ring, "produce:0:1000000000:0");
    let mut next = 0;
    while next < 100 {
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), next);
        next += 1;
    }
    peer.child.kill(libc::SIGSTOP).unwrap();
    let e = loop {
        match c.pop(SOON) {
            Ok(r) => assert_eq!(number(&r.to_vec()), next),
            Err(e) => break e,
        }
        next += 1;
    };
    assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
    for _ in 0..1000 {
        assert!(c.try_pop().unwrap().is_none());
    }
    assert_eq!(ring.producer(ProducerOptions::default()).unwrap_err().kind(), ErrorKind::InUse);
    peer.child.kill(libc::SIGCONT).unwrap();
    for _ in 0..1000 {
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), next);
        next += 1;
    }
    peer.kill();
}

fn until_stopped(peer: &Peer) {
    // The state comes after the name, which is in parentheses.
    while !std::fs::read_to_string(format!("/proc/{}/stat", peer.child.pid())).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
}

#[test]
fn a_producer_that_is_stopped_in_the_middle_of_a_claim_is_not_dead() {
    for kind in [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc] {
        let ring = RingBuffer::builder(kind).capacity(8192).max_participants(if kind == Kind::Spsc { 2 } else { 3 });
        let ring = if kind == Kind::Mpmc { ring.slot_size(1024) } else { ring }.create().unwrap();
        let mut c = consumer(&ring);
        let mut peer = Peer::start(&ring, "hold:2");
        assert!(peer.report().is_some());
        peer.child.kill(libc::SIGSTOP).unwrap();
        until_stopped(&peer);
        let waits = |c: &mut Consumer| {
            assert_eq!(c.pop(SOON).map(|_| ()).unwrap_err().kind(), ErrorKind::Timeout, "{kind:?}");
            (0..1000).for_each(|_| assert!(c.try_pop().unwrap().is_none(), "{kind:?}"));
            assert!(ring.stat().unwrap().participants.iter().all(|p| p.alive), "{kind:?}");
        };
        (0..2).for_each(|n| assert_eq!(number(&c.pop(None).unwrap().to_vec()), n));
        waits(&mut c);
        let many = [Kind::Mpsc, Kind::Mpmc].contains(&kind);
        let other = ring.producer(ProducerOptions::default());
        let mut other = match other {
            Ok(p) if many => Some(p),
            Err(e) if !many && e.kind() == ErrorKind::InUse => None,
            other => panic!("{kind:?}: {other:?}"),
        };
        if let Some(p) = &mut other {
            p.push(&record(7), None).unwrap();
        }
        if kind == Kind::Mpsc {
            assert_eq!(number(&c.pop(None).unwrap().to_vec()), 7, "another lane is not held up");
        }
        // In `mpmc` the claim holds back what is behind it.
        waits(&mut c);
        peer.child.kill(libc::SIGCONT).unwrap();
        waits(&mut c);
        peer.kill();
        match kind {
            Kind::Mpmc => assert_eq!(number(&c.pop(None).unwrap().to_vec()), 7),
            Kind::Mpsc => assert_eq!(c.pop(SOON).map(|_| ()).unwrap_err().kind(), ErrorKind::Timeout),
            _ => assert_eq!(c.pop(None).map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied),
        }
    }
}

/// Its locks are gone and its pidfd says nothing.
#[test]
fn a_participant_that_became_another_program_is_dead_to_who_sleeps() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        for polled in [false, true] {
            let ring = if kind == Kind::Spsc { spsc(4096) } else { tasks(16) };
            if kind == Kind::Mpmc {
                producer(&ring).push(&record(0), None).unwrap();
            }
            let mut peer = Peer::start(&ring, "exec");
            assert!(peer.report().is_some());
            let mut c = if kind == Kind::Spsc { consumer(&ring) } else { worker(&ring) };
            if kind == Kind::Spsc {
                assert_eq!(number(&c.pop(None).unwrap().to_vec()), 0);
            }
            assert!(c.try_pop().unwrap().is_none(), "it is alive");
            if polled {
                let _ = c.fd().unwrap();
                assert!(c.try_pop().unwrap().is_none());
            }
            let told = loop {
                if polled {
                    assert!(readable(c.fd().unwrap(), 60_000), "{kind:?}: nobody told");
                    match c.try_pop() {
                        Ok(None) => {}
                        Ok(Some(r)) => break Ok(r.is_redelivered()),
                        Err(e) => break Err(e.kind()),
                    }
                } else {
                    break c.pop(Some(Duration::from_secs(60))).map(|r| r.is_redelivered()).map_err(|e| e.kind());
                }
            };
            assert_eq!(told, if kind == Kind::Spsc { Err(ErrorKind::PeerDied) } else { Ok(true) }, "polled: {polled}");
            peer.kill();
        }
    }
}

#[test]
fn a_forked_child_neither_uses_nor_keeps_its_parents_seat() {
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    let mut peer = Peer::start(&ring, "fork");
    let (pid, refused) = peer.report().unwrap();
    assert!(refused, "the child is refused");
    assert_eq!(number(&c.pop(None).unwrap().to_vec()), 0);
    assert!(c.try_pop().unwrap().is_none(), "what the child did reached nobody");
    peer.kill();
    assert_eq!(c.pop(None).map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    // SAFETY: the test's own grandchild.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

#[test]
fn a_death_is_seen_although_a_forked_child_keeps_the_lock() {
    let watched_before = |ring: &RingBuffer, c: &mut Consumer, peer: &mut Peer| {
        let (pid, _) = peer.report().unwrap();
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), 0);
        assert_eq!(c.pop(SOON).map(|_| ()).unwrap_err().kind(), ErrorKind::Timeout, "the peer lives");
        assert!(ring.stat().unwrap().participants.iter().all(|p| p.alive));
        pid
    };
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    let mut peer = Peer::start(&ring, "clone");
    let pid = watched_before(&ring, &mut c, &mut peer);
    peer.kill();
    assert!(ring.stat().unwrap().participants.iter().all(|p| p.alive == (p.seat == 0)), "{:?}", ring.stat());
    assert_eq!(c.pop(Some(Duration::from_secs(60))).map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    // Who comes later has no pidfd of its own from before.
    drop(c);
    let mut late = consumer(&ring);
    assert_eq!(late.pop(Some(Duration::from_secs(60))).map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    // SAFETY: the test's own grandchild.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

#[test]
fn who_attaches_after_a_death_sees_it_although_a_forked_child_keeps_the_lock() {
    let ring = spsc(4096);
    let mut peer = Peer::start(&ring, "clone");
    let (pid, _) = peer.report().unwrap();
    peer.kill();
    let mut c = consumer(&ring);
    assert_eq!(number(&c.pop(None).unwrap().to_vec()), 0);
    assert_eq!(c.pop(Some(Duration::from_secs(60))).map(|_| ()).unwrap_err().kind(), ErrorKind::PeerDied);
    // SAFETY: the test's own grandchild.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

/// Producers die at random; each successor goes on with the record after the last one that arrived.
#[test]
fn killed_producers_lose_nothing_that_was_published() {
    let rounds = if torture() { 5000 } else { 60 };
    let mut random = Random(0x5EED_0001);
    let mut row = Row::begin("kill spsc producers", rounds, random.0);
    let ring = spsc(4096);
    let mut c = consumer(&ring);
    let mut next = 0;
    for round in 0..rounds {
        let mut peer = Peer::start(&ring, &format!("produce:{next}:1000000000:{}", round % 2));
        // Until it sits, the ring's producer is the dead one.
        assert!(peer.report().is_some());
        for _ in 0..random.below(3000) {
            assert_eq!(number(&c.pop(None).unwrap().to_vec()), next, "round {round}");
            next += 1;
        }
        peer.child.kill(libc::SIGKILL).unwrap();
        let e = loop {
            match c.pop(None) {
                Ok(r) => assert_eq!(number(&r.to_vec()), next, "round {round}"),
                Err(e) => break e,
            }
            next += 1;
        };
        assert_eq!(e.kind(), ErrorKind::PeerDied, "{e}");
        peer.wait();
        row.trials += 1;
    }
    row.holds();
}

/// Consumers die at random; each successor goes on where the dead one had given back, and marks what that one may have seen.
#[test]
fn killed_consumers_lose_nothing_and_repeat_only_what_is_marked() {
    let rounds = if torture() { 5000 } else { 60 };
    let mut random = Random(0x5EED_0002);
    let mut row = Row::begin("kill spsc consumers", rounds, random.0);
    let ring = spsc(8192);
    let mut p = producer(&ring);
    let mut pushed = 0;
    let (mut seen, mut repeated) = (0, 0);
    for round in 0..rounds {
        let mut peer = Peer::start(&ring, "consume");
        let mut last = None;
        let mut until = random.below(400);
        loop {
            while p.try_push(&record(pushed)).or_else(|e| if e.kind() == ErrorKind::PeerDied { Ok(false) } else { Err(e) }).unwrap() {
                pushed += 1;
            }
            let Some((n, redelivered)) = peer.report() else { break };
            assert!(last.is_none_or(|last| n == last + 1), "round {round}: {n} after {last:?}");
            assert!(n <= seen, "round {round}: a gap before {n}");
            assert!(n == seen || redelivered, "round {round}: {n} comes again, unmarked");
            repeated += u64::from(n < seen);
            seen = seen.max(n + 1);
            last = Some(n);
            if until == 0 {
                peer.child.kill(libc::SIGKILL).unwrap();
            }
            until = until.wrapping_sub(1);
        }
        peer.wait();
        row.trials += 1;
    }
    assert!(repeated < seen);
    row.count("again", repeated);
    row.holds();
}

/// Numbers of one of several producers: its own in the high half.
fn of(producer: u64, n: u64) -> u64 {
    producer << 32 | n
}

/// Four producers that die at random and are replaced; one consumer sees each one's records in order and none twice.
#[test]
fn killed_producers_of_many_lose_nothing_that_was_published() {
    let kills = if torture() { 2000 } else { 40 };
    let mut random = Random(0x5EED_0005);
    let mut row = Row::begin("kill mpsc producers", kills, random.0);
    let ring = RingBuffer::builder(Kind::Mpsc).capacity(4096).max_participants(6).create().unwrap();
    let mut c = consumer(&ring);
    let start = |id: u64, next: u64| {
        let mut peer = Peer::start(&ring, &format!("produce:{}:{}:{}", of(id, next), of(id + 1, 0), id % 2));
        assert!(peer.report().is_some());
        peer
    };
    let mut next = [0u64; 4];
    let mut peers: Vec<Peer> = (0..4).map(|id| start(id, 0)).collect();
    let take = |c: &mut Consumer, next: &mut [u64; 4], timeout: Option<Duration>| match c.pop(timeout) {
        Ok(r) => {
            let n = number(&r.to_vec());
            let id = (n >> 32) as usize;
            assert_eq!(n, of(id as u64, next[id]), "producer {id}");
            next[id] += 1;
            true
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
            false
        }
    };
    for _ in 0..kills {
        for _ in 0..random.below(2000) {
            assert!(take(&mut c, &mut next, None));
        }
        let victim = random.below(4);
        peers[victim as usize].kill();
        // What it published is in its lane; its successor may get another one, so it begins when that is drained.
        let stat = ring.stat().unwrap();
        assert!(stat.participants.iter().filter(|p| p.alive).count() <= 4);
        peers.iter().enumerate().filter(|(i, _)| *i as u64 != victim).for_each(|(_, p)| assert!(p.child.kill(libc::SIGSTOP).is_ok()));
        while take(&mut c, &mut next, SOON) {}
        peers.iter().enumerate().filter(|(i, _)| *i as u64 != victim).for_each(|(_, p)| assert!(p.child.kill(libc::SIGCONT).is_ok()));
        peers[victim as usize] = start(victim, next[victim as usize]);
        row.trials += 1;
    }
    peers.iter().for_each(Peer::kill);
    while take(&mut c, &mut next, SOON) {}
    row.holds();
}

/// Readers of a lossless broadcast die at random: the writer goes on, and the others miss nothing.
#[test]
fn killed_readers_neither_hold_the_writer_nor_the_others() {
    let kills = if torture() { 1000 } else { 30 };
    let mut random = Random(0x5EED_0006);
    let mut row = Row::begin("kill broadcast readers", kills, random.0);
    let ring = RingBuffer::builder(Kind::Broadcast).capacity(8192).max_participants(5).create().unwrap();
    let mut p = producer(&ring);
    let mut stays = consumer(&ring);
    let (mut pushed, mut read) = (0, 0);
    for round in 0..kills {
        let mut peer = Peer::start(&ring, "consume");
        let mut until = random.below(200);
        let mut last = None;
        loop {
            // A dead reader's room comes back, so this ends; a full pipe of reports does not hold a reader that is killed.
            p.push(&record(pushed), None).unwrap();
            pushed += 1;
            stays
                .read(usize::MAX, |r| {
                    assert_eq!(number(&r.to_vec()), read, "round {round}");
                    read += 1;
                })
                .unwrap();
            if readable(peer.reports.as_fd(), 0) {
                let Some((n, redelivered)) = peer.report() else { break };
                assert!(last.is_none_or(|last| n == last + 1) && !redelivered, "round {round}: {n} after {last:?}");
                last = Some(n);
                until = until.saturating_sub(1);
                if until == 0 {
                    peer.child.kill(libc::SIGKILL).unwrap();
                }
            }
        }
        peer.wait();
        row.trials += 1;
    }
    assert_eq!(read, pushed);
    row.holds();
}

/// Slots for records of this test, few enough to be full often.
fn tasks(slots: usize) -> RingBuffer {
    RingBuffer::builder(Kind::Mpmc).capacity(slots * 1024).slot_size(1024).max_participants(8).create().unwrap()
}

fn worker(ring: &RingBuffer) -> Consumer {
    ring.consumer(ConsumerOptions { ack: Ack::Manual }).unwrap()
}

/// What became of each task.
#[derive(Default)]
struct Ledger {
    /// How often it came without the mark, and at all.
    fresh: Vec<u32>,
    came: Vec<u32>,
    done: Vec<u32>,
}

impl Ledger {
    fn new(tasks: u64) -> Ledger {
        let zeros = vec![0; tasks as usize];
        Ledger { fresh: zeros.clone(), came: zeros.clone(), done: zeros }
    }

    fn note(&mut self, (n, again): (u64, bool)) {
        let at = (n & !DONE) as usize;
        if n & DONE != 0 {
            self.done[at] += 1;
            assert_eq!(self.done[at], 1, "task {at} was acknowledged twice");
            return;
        }
        self.came[at] += 1;
        self.fresh[at] += u32::from(!again);
        assert!(self.fresh[at] <= 1, "task {at} came twice without the mark");
    }

    /// Takes a task in this process and acknowledges it.
    fn work(&mut self, c: &mut Consumer, timeout: Option<Duration>) -> Result<(), offloop::Error> {
        let r = c.pop(timeout)?;
        let (n, again, delivery) = (number(&r.to_vec()), r.is_redelivered(), r.delivery());
        drop(r);
        self.note((n, again));
        c.ack(delivery)?;
        self.note((n | DONE, again));
        Ok(())
    }

    /// Every task came; at most `unsure` were acknowledged by one who died before it could say so.
    fn check(&self, tasks: u64, unsure: usize) {
        for n in 0..tasks as usize {
            assert!(self.came[n] > 0, "task {n} is lost");
        }
        let open = self.done[..tasks as usize].iter().filter(|d| **d == 0).count();
        assert!(open <= unsure, "{open} tasks were not acknowledged by anybody");
    }
}

fn is_settled(ring: &RingBuffer) -> bool {
    let stat = ring.stat().unwrap();
    stat.returned == 0 && stat.lanes[0].records() == 0 && stat.participants.iter().all(|p| p.in_flight == 0)
}

/// Workers die at random among others that live: no task is lost, none comes again without the mark, and the ring ends.
#[test]
fn killed_workers_lose_no_task() {
    let rounds = if torture() { 2500 } else { 40 };
    let mut random = Random(0x5EED_0005);
    let mut row = Row::begin("kill mpmc workers", rounds, random.0);
    for round in 0..rounds {
        let total = 300;
        let ring = tasks(16);
        let mut p = producer(&ring);
        let mut workers: Vec<Peer> = (0..2).map(|_| Peer::start(&ring, "work")).collect();
        let mut ledger = Ledger::new(total);
        let (first, second) = (random.below(total), random.below(total));
        for n in 0..total {
            p.push(&record(n), None).unwrap();
            if n == first {
                workers[0].child.kill(libc::SIGKILL).unwrap();
            }
            if n == second && round % 2 == 0 {
                workers[1].child.kill(libc::SIGKILL).unwrap();
                workers.push(Peer::start(&ring, "work"));
            }
        }
        drop(p);
        // The last worker may be dead: this process is one, too.
        let mut c = worker(&ring);
        ring.close();
        let e = loop {
            if let Err(e) = ledger.work(&mut c, None) {
                break e;
            }
        };
        assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
        assert!(is_settled(&ring), "round {round}: {:?}", ring.stat().unwrap());
        let mut dead = 0;
        for w in &mut workers {
            while let Some(r) = w.report() {
                ledger.note(r);
            }
            dead += usize::from(w.wait() != OK);
        }
        ledger.check(total, dead);
        // One that had come to the end of the ring was not killed.
        row.trials += dead.max(1) as u64;
    }
    row.holds();
}

/// Producers die at random: what each had pushed arrives, in order, and nobody waits for what it had claimed.
#[test]
fn killed_producers_wedge_no_tasks() {
    let rounds = if torture() { 5000 } else { 60 };
    let mut random = Random(0x5EED_0006);
    let mut row = Row::begin("kill mpmc producers", rounds, random.0);
    let ring = tasks(16);
    let (mut p, mut c) = (producer(&ring), consumer(&ring));
    for round in 0..rounds {
        let base = (round + 1) << 32;
        let mut peers: Vec<Peer> = (0..2)
            .map(|i| Peer::start(&ring, &format!("tasks:{}:{}:{}", base + (i << 24), base + (i << 24) + (1 << 20), round % 2)))
            .collect();
        let mut next = [base, base + (1 << 24)];
        let mut take = |c: &mut Consumer| {
            let n = number(&c.pop(None).unwrap().to_vec());
            if n >= base {
                let who = (n >> 24 & 1) as usize;
                assert_eq!(n, next[who], "round {round}");
                next[who] += 1;
            }
            n
        };
        for _ in 0..random.below(2000) {
            take(&mut c);
        }
        peers.iter_mut().for_each(|peer| assert!(peer.child.kill(libc::SIGKILL).is_ok()));
        // Behind everything that the dead had pushed, and whatever they had claimed.
        let pusher = std::thread::spawn(move || {
            p.push(&record(round), None).unwrap();
            p
        });
        while take(&mut c) != round {}
        p = pusher.join().unwrap();
        for peer in &peers {
            peer.wait();
        }
        while let Some(r) = c.try_pop().unwrap() {
            // Pushed between the sentinel and the signal.
            number(&r.to_vec());
        }
        let stat = ring.stat().unwrap();
        assert!(stat.participants.iter().filter(|p| p.alive).count() == 2, "{stat:?}");
        row.trials += 1;
    }
    row.holds();
}

#[test]
fn a_stopped_worker_keeps_its_task_and_a_dead_one_does_not() {
    for ack in [0, 1] {
        let ring = tasks(16);
        let (mut p, mut c) = (producer(&ring), worker(&ring));
        for n in 0..3 {
            p.push(&record(n), None).unwrap();
        }
        let mut peer = Peer::start(&ring, &format!("keep:2:{ack}"));
        assert!(peer.report().is_some());
        peer.child.kill(libc::SIGSTOP).unwrap();
        let mut ledger = Ledger::new(3);
        ledger.work(&mut c, None).unwrap();
        assert_eq!((ledger.came[2], c.pop(SOON).map(|_| ()).unwrap_err().kind()), (1, ErrorKind::Timeout));
        // A sleeper is woken by the death of one that works beside it.
        let sleeper = std::thread::spawn(move || {
            for _ in 0..2 {
                ledger.work(&mut c, None).unwrap();
            }
            ledger
        });
        peer.kill();
        let ledger = sleeper.join().unwrap();
        assert_eq!((ledger.came.clone(), ledger.fresh.clone()), (vec![1, 1, 1], vec![0, 0, 1]));
        assert!(is_settled(&ring));
    }
}

#[test]
fn an_event_loop_learns_that_a_dead_workers_task_is_there() {
    let ring = tasks(16);
    let (mut p, mut c) = (producer(&ring), worker(&ring));
    p.push(&record(0), None).unwrap();
    let mut peer = Peer::start(&ring, "keep:1:1");
    assert!(peer.report().is_some());
    assert!(readable(c.fd().unwrap(), 0));
    assert!(c.try_pop().unwrap().is_none() && !readable(c.fd().unwrap(), 0));
    peer.kill();
    assert!(readable(c.fd().unwrap(), -1));
    let r = c.try_pop().unwrap().unwrap();
    assert_eq!((number(&r.to_vec()), r.is_redelivered()), (0, true));
}

#[test]
fn a_busy_worker_notices_the_dead() {
    let ring = tasks(16);
    let (mut p, mut c) = (producer(&ring), worker(&ring));
    p.push(&record(0), None).unwrap();
    let mut peer = Peer::start(&ring, "keep:1:1");
    assert!(peer.report().is_some());
    peer.kill();
    // There is always something to do, so this one never sleeps.
    let mut ledger = Ledger::new(1 << 20);
    for n in 1.. {
        p.push(&record(n), None).unwrap();
        ledger.work(&mut c, None).unwrap();
        if ledger.came[0] > 0 {
            break;
        }
    }
    assert_eq!(ledger.fresh[0], 0);
}

#[test]
fn a_named_ring_outlives_its_processes() {
    let name = format!("offloop-test-{}-outlives", std::process::id());
    let path = std::env::temp_dir().join(name);
    let named = || RingBuffer::builder(Kind::Spsc).capacity(64 << 10).path(&path);
    let ring = named().create().unwrap();
    assert_eq!(named().create().unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(ring.fds().unwrap_err().kind(), ErrorKind::Unsupported);
    let mut c = consumer(&ring);
    let env = [("OFFLOOP_TEST_PATH", path.to_str().unwrap())];
    let mut peer = Peer::start_named("hold:20", &env);
    assert!(peer.report().is_some());
    let stat = RingBuffer::inspect(&path).unwrap();
    assert_eq!((stat.lanes[0].pushed, stat.participants.len(), stat.participants.iter().all(|p| p.alive)), (20, 2, true));
    assert_eq!(number(&c.pop(None).unwrap().to_vec()), 0);
    // A sleeper is woken by the death of a peer that attached by path, too.
    for n in 1..20 {
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), n);
    }
    let sleeper = std::thread::spawn(move || (c.pop(None).map(|_| ()).unwrap_err().kind(), c));
    peer.kill();
    let (kind, c) = sleeper.join().unwrap();
    assert_eq!(kind, ErrorKind::PeerDied);
    assert!(RingBuffer::inspect(&path).unwrap().participants.iter().any(|p| !p.alive && p.pid == peer.child.pid() as u32));
    // Nobody is attached while a dead peer's records wait.
    drop((c, ring));
    let mut peer = Peer::start_named("hold:20", &env);
    assert!(peer.report().is_some());
    peer.kill();
    let ring = RingBuffer::attach_path(&path).unwrap();
    let mut c = consumer(&ring);
    for n in 0..20 {
        assert_eq!(number(&c.pop(None).unwrap().to_vec()), n);
    }
    drop((c, ring));
    let fresh = named().create().unwrap();
    assert_eq!(fresh.stat().unwrap().lanes[0].tail, 0, "a stale ring is replaced");
    fresh.remove().unwrap();
    assert_eq!(RingBuffer::attach_path(&path).unwrap_err().kind(), ErrorKind::NotFound);
}

/// `kill -9` at each named point: what the table in `core/src/ring/README.md` says is left is what is found.
#[cfg(feature = "failpoints")]
mod at_each_failpoint {
    use super::*;
    use offloop::sys::failpoint::{BATCH, GATE, NAMES, TASKS};

    const RECORDS: u64 = 400;
    const KILLED: Exit = Exit { code: None, signal: Some(libc::SIGKILL), core_dumped: false };

    fn rounds() -> u64 {
        if torture() { 250 } else { 5 }
    }

    fn has_ended(peer: &Peer) -> bool {
        readable(peer.child.exit_fd(), 0)
    }

    /// One lane, for a participant of each side.
    fn lanes(kind: Kind) -> RingBuffer {
        RingBuffer::builder(kind).capacity(4096).max_participants(2).create().unwrap()
    }

    fn plan(name: &str, n: u64) -> [(&'static str, String); 1] {
        [("OFFLOOP_FAILPOINT", format!("{name}:{n}"))]
    }

    fn start(ring: &RingBuffer, script: &str, name: &str, n: u64) -> Peer {
        let env = plan(name, n);
        Peer::start_with(ring, script, &[(env[0].0, &env[0].1)])
    }

    /// Waits until a process's participant says that it sleeps, or is dead.
    fn until_peer_sleeps(ring: &RingBuffer, peer: &Peer) {
        while !has_ended(peer) && !ring.stat().unwrap().participants.iter().any(|p| p.pid == peer.child.pid() as u32 && p.asleep) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_producer_of_tasks_wedges_nothing() {
        let names = NAMES.iter().chain(TASKS).filter(|n| {
            let others = ["pop.", "head.", "take.", "hold.", "settle.", "commit.padded"];
            !others.iter().any(|o| n.starts_with(o))
        });
        let mut row = Row::begin("kill at each point: mpmc producers", names.clone().count() as u64 * rounds(), 0x5EED_0007);
        for name in names {
            let mut random = Random(row.seed);
            for round in 0..rounds() {
                let ring = tasks(16);
                let (mut p, mut c, mut keeper) = (producer(&ring), consumer(&ring), worker(&ring));
                // A slot whose record is kept is passed over once in each lap.
                p.push(&record(0), None).unwrap();
                assert_eq!(number(&keeper.pop(None).unwrap().to_vec()), 0);
                let per_record = ["claim.", "commit.", "publish."].iter().any(|o| name.starts_with(o));
                let n = if *name == "claim.passed" {
                    1 + random.below(5)
                } else if per_record {
                    1 + random.below(200)
                } else {
                    1
                };
                let peer = start(&ring, &format!("tasks:1:{RECORDS}:{}", round % 2), name, n);
                let mut next = 1;
                loop {
                    if name.starts_with("wait.") {
                        until_peer_sleeps(&ring, &peer);
                    }
                    match c.pop(SOON) {
                        Ok(r) => {
                            assert_eq!(number(&r.to_vec()), next, "{name} round {round}");
                            next += 1;
                        }
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::Timeout, "{name}: {e}");
                            if has_ended(&peer) {
                                break;
                            }
                        }
                    }
                }
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                let seat = producer(&ring);
                for _ in 0..40 {
                    p.push(&record(next), None).unwrap();
                    assert_eq!(number(&c.pop(None).unwrap().to_vec()), next, "{name} round {round}");
                    next += 1;
                }
                assert!(c.try_pop().unwrap().is_none());
                drop(seat);
                row.trials += 1;
            }
        }
        row.holds();
    }

    #[test]
    fn a_worker_loses_no_task_and_repeats_only_what_is_marked() {
        let names = NAMES.iter().chain(TASKS).filter(|n| {
            let others = ["claim.", "commit.", "publish.", "pop.released", "head."];
            !others.iter().any(|o| n.starts_with(o))
        });
        let mut row = Row::begin("kill at each point: mpmc workers", names.clone().count() as u64 * rounds(), 0x5EED_0008);
        for name in names {
            let mut random = Random(row.seed);
            for round in 0..rounds() {
                let ring = tasks(16);
                let mut p = producer(&ring);
                let mut ledger = Ledger::new(RECORDS);
                let mut pushed = 0;
                let mut victims = Vec::new();
                if name.starts_with("settle.") {
                    // Somebody to be settled by the one that dies over it, because nobody else looks.
                    for n in 0..3 {
                        p.push(&record(n), None).unwrap();
                    }
                    pushed = 3;
                    let mut keeper = Peer::start(&ring, &format!("keep:3:{}", round % 2));
                    assert!(keeper.report().is_some());
                    keeper.kill();
                    victims.push(keeper);
                }
                let mut giver = name.starts_with("take.").then(|| worker(&ring));
                if let Some(giver) = &mut giver {
                    // What lies on another's seat.
                    let given: Vec<_> = (0..3)
                        .map(|n| {
                            p.push(&record(n), None).unwrap();
                            let r = giver.pop(None).unwrap();
                            ledger.note((number(&r.to_vec()), r.is_redelivered()));
                            r.delivery()
                        })
                        .collect();
                    given.into_iter().for_each(|d| giver.nack(d).unwrap());
                    pushed = 3;
                }
                let n = match *name {
                    "settle.hold" | "take.wanted" | "take.won" => 1 + random.below(3),
                    "pop.wanted" | "pop.won" | "pop.shown" | "hold.freed" => 1 + random.below(200),
                    "hold.returned" => 1 + random.below(40),
                    _ => 1,
                };
                let mut peer = start(&ring, "work", name, n);
                while pushed < RECORDS && !has_ended(&peer) {
                    if name.starts_with("wait.") {
                        until_peer_sleeps(&ring, &peer);
                    }
                    let done = if name.starts_with("settle.") {
                        // Without a sleep, in which it would look at the dead itself.
                        p.try_push(&record(pushed))
                    } else {
                        p.push(&record(pushed), SOON).map(|()| true)
                    };
                    match done {
                        Ok(done) => pushed += u64::from(done),
                        Err(e) => assert_eq!(e.kind(), ErrorKind::Timeout, "{name}: {e}"),
                    }
                    if name.starts_with("settle.") && pushed >= 8 {
                        break;
                    }
                }
                if name.starts_with("seat.le") {
                    ring.close();
                }
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                while let Some(r) = peer.report() {
                    ledger.note(r);
                }
                // A successor, on a dead one's seat or another, finds everything.
                let mut c = worker(&ring);
                while !is_settled(&ring) {
                    match ledger.work(&mut c, SOON) {
                        Ok(()) => {}
                        Err(e) => assert!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::Closed), "{name}: {e}"),
                    }
                }
                ledger.check(pushed, 1);
                row.trials += 1;
            }
        }
        row.holds();
    }

    #[test]
    fn a_producer_loses_nothing_that_was_published() {
        let names = NAMES.iter().filter(|n| !n.starts_with("pop.") && !n.starts_with("head."));
        let kinds = [Kind::Spsc, Kind::Mpsc, Kind::Broadcast];
        let cases = kinds.into_iter().flat_map(|kind| names.clone().map(move |name| (kind, name)));
        let mut row = Row::begin("kill at each point: producers with a lane", cases.clone().count() as u64 * rounds(), 0x5EED_0003);
        for (kind, name) in cases {
            let mut random = Random(row.seed);
            for round in 0..rounds() {
                let ring = lanes(kind);
                let mut c = consumer(&ring);
                let per_record = name.starts_with("commit.w") || name.starts_with("publish.") || name.starts_with("claim.");
                // A batch is published once in 4 KiB.
                let passes = if name.starts_with("publish.") { 20 } else { 200 };
                let n = if per_record { 1 + random.below(passes) } else { 1 };
                let peer = start(&ring, &format!("produce:0:{RECORDS}:{}", round % 2), name, n);
                let mut next = 0;
                let left = loop {
                    if name.starts_with("wait.") {
                        until_peer_sleeps(&ring, &peer);
                    }
                    match c.pop(SOON) {
                        Ok(r) => {
                            assert_eq!(number(&r.to_vec()), next, "{name} round {round}");
                            next += 1;
                        }
                        Err(e) if e.kind() == ErrorKind::Timeout && has_ended(&peer) => break e,
                        Err(e) if e.kind() == ErrorKind::Timeout => {}
                        Err(e) => break e,
                    }
                };
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                // Before a seat is taken and after it was left there is nobody whose death could be told. Of one that was taken
                // and not yet announced, a consumer hears if it happens to look. Producers of an `mpsc` ring come and go.
                let unknown = kind == Kind::Mpsc || ["seat.locked", "seat.left"].contains(name);
                assert!(*name == "seat.taken" || (left.kind() == ErrorKind::Timeout) == unknown, "{kind:?} {name}: {left}");
                // A successor goes on, whatever was left.
                let mut p = producer(&ring);
                while next < RECORDS {
                    p.push(&record(next), None).unwrap();
                    assert_eq!(number(&c.pop(None).unwrap().to_vec()), next, "{name}");
                    next += 1;
                }
                assert!(c.try_pop().unwrap().is_none());
                row.trials += 1;
            }
        }
        row.holds();
    }

    /// A producer with `batch` dies, and a consumer, or a producer after it, goes on: there is every record that was said to be committed.
    #[test]
    fn a_producer_takes_no_committed_record_of_its_batch_along() {
        let (kinds, names) = ([Kind::Spsc, Kind::Mpsc, Kind::Broadcast], ["claim.made", "commit.written", "committed.shown"]);
        let cases = kinds.into_iter().flat_map(|kind| names.map(|name| (kind, name)));
        let mut row = Row::begin("kill at each point: producers with a batch", cases.clone().count() as u64 * rounds() * 2, 0x5EED_000A);
        for (kind, name) in cases {
            let mut random = Random(row.seed);
            for round in 0..rounds() * 2 {
                let ring = RingBuffer::builder(kind).capacity(1 << 18).max_participants(2).create().unwrap();
                // A reader of a broadcast begins at what is published.
                let early = (kind == Kind::Broadcast).then(|| consumer(&ring));
                let n = 1 + random.below(RECORDS);
                let peer = start(&ring, &format!("produce:0:{RECORDS}:1"), name, n);
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                let successor = (round % 2 == 1).then(|| producer(&ring));
                let mut c = early.unwrap_or_else(|| consumer(&ring));
                for next in 0..if name == "committed.shown" { n } else { n - 1 } {
                    assert_eq!(number(&c.pop(SOON).unwrap().to_vec()), next, "{kind:?} {name} round {round}");
                }
                if let Some(mut p) = successor {
                    p.push(&record(7), None).unwrap();
                    assert_eq!(number(&c.pop(None).unwrap().to_vec()), 7);
                }
                assert!(c.try_pop().map_or(true, |r| r.is_none()));
                row.trials += 1;
            }
        }
        row.holds();
    }

    /// A consumer dies while it publishes for a producer that idles.
    #[test]
    fn a_consumer_that_publishes_for_a_batch_leaves_it_whole() {
        let names = BATCH.iter().filter(|name| **name != "committed.shown");
        let cases = [Kind::Spsc, Kind::Mpsc].into_iter().flat_map(|kind| names.clone().map(move |name| (kind, *name)));
        let mut row = Row::begin("kill at each point: consumers of a batch", cases.clone().count() as u64 * rounds(), 0x5EED_000C);
        for (kind, name) in cases {
            let mut random = Random(row.seed);
            for round in 0..rounds() {
                let ring = lanes(kind);
                let mut p = ring.producer(ProducerOptions { batch: true, ..Default::default() }).unwrap();
                let (dies, mut given, mut seen) = (1 + random.below(5), 0, 0);
                let mut peer = start(&ring, "consume", name, dies);
                while !has_ended(&peer) {
                    // Awake, it finds them when it is about to sleep; asleep, it is told.
                    until_peer_sleeps(&ring, &peer);
                    for _ in 0..1 + random.below(3) {
                        match p.push(&record(given), None) {
                            Ok(()) => given += 1,
                            // It died before it gave back what it had seen, and there is no room beside that.
                            Err(e) => {
                                assert_eq!(e.kind(), ErrorKind::PeerDied, "{e}");
                                break;
                            }
                        }
                    }
                    while seen < given
                        && let Some((n, again)) = peer.report()
                    {
                        assert_eq!((n, again), (seen, false), "{name} round {round}");
                        seen += 1;
                    }
                }
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                let mut c = consumer(&ring);
                while let Ok(r) = c.pop(SOON) {
                    let n = number(&r.to_vec());
                    assert!(n == seen || (r.is_redelivered() && n < seen), "{name} round {round}: {n} after {seen}");
                    seen = seen.max(n + 1);
                }
                assert_eq!(seen, given, "{name} round {round}");
                row.trials += 1;
            }
        }
        row.holds();
    }

    /// Others come and go meanwhile, because the gate is in danger only then.
    #[test]
    fn a_broadcasting_writer_takes_no_record_from_a_reader() {
        for name in GATE {
            let mut random = Random(0x5EED_0009);
            for round in 0..rounds() {
                let ring = RingBuffer::builder(Kind::Broadcast).capacity(4096).max_participants(4).create().unwrap();
                let mut c = consumer(&ring);
                let peer = start(&ring, &format!("produce:0:{RECORDS}:{}", round % 2), name, 1 + random.below(20));
                let mut next = 0;
                let mut guest = None;
                loop {
                    if random.below(4) == 0 {
                        guest = if guest.is_none() { Some(consumer(&ring)) } else { None };
                    }
                    if let Some(Ok(Some(r))) = guest.as_mut().map(Consumer::try_pop) {
                        number(&r.to_vec());
                    }
                    match c.pop(SOON) {
                        Ok(r) => {
                            assert_eq!(number(&r.to_vec()), next, "{name} round {round}");
                            next += 1;
                        }
                        Err(e) if e.kind() == ErrorKind::Timeout => {}
                        Err(e) => break assert_eq!(e.kind(), ErrorKind::PeerDied, "{e}"),
                    }
                }
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                drop(guest);
                let mut p = producer(&ring);
                while next < RECORDS {
                    p.push(&record(next), None).unwrap();
                    assert_eq!(number(&c.pop(None).unwrap().to_vec()), next, "{name} round {round}");
                    next += 1;
                }
            }
        }
    }

    #[test]
    fn a_consumer_loses_nothing_and_repeats_only_what_is_marked() {
        let names = NAMES.iter().filter(|n| !n.starts_with("claim.") && !n.starts_with("commit.") && !n.starts_with("publish."));
        // What a reader of a broadcast leaves is nobody's: `killed_readers_neither_hold_the_writer_nor_the_others`.
        let cases = [Kind::Spsc, Kind::Mpsc].into_iter().flat_map(|kind| names.clone().map(move |name| (kind, name)));
        let mut row = Row::begin("kill at each point: consumers of lanes", cases.clone().count() as u64 * rounds(), 0x5EED_0004);
        for (kind, name) in cases {
            let mut random = Random(row.seed);
            for round in 0..rounds() {
                let ring = lanes(kind);
                let mut p = producer(&ring);
                let per_record = name.starts_with("pop.");
                let n = if per_record { 1 + random.below(200) } else { 1 };
                let mut peer = start(&ring, "consume", name, n);
                // The ring is full most of the time, so the producer sleeps and is woken.
                let mut pushed = 0;
                while pushed < RECORDS && !has_ended(&peer) {
                    if name.starts_with("wait.") {
                        until_peer_sleeps(&ring, &peer);
                    }
                    match p.push(&record(pushed), SOON) {
                        Ok(()) => pushed += 1,
                        Err(e) => assert!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::PeerDied), "{name}: {e}"),
                    }
                }
                if name.starts_with("seat.le") {
                    ring.close();
                }
                assert_eq!(peer.wait(), KILLED, "{name} was passed");
                let mut seen = 0;
                let mut check = |n: u64, redelivered: bool| {
                    assert!(n <= seen, "{name} round {round}: a gap before {n}");
                    assert!(n == seen || redelivered, "{name} round {round}: {n} comes again, unmarked");
                    seen = seen.max(n + 1);
                };
                while let Some((n, redelivered)) = peer.report() {
                    check(n, redelivered);
                }
                let mut c = consumer(&ring);
                c.read(usize::MAX, |r| check(number(&r.to_vec()), r.is_redelivered()))
                    .map_or_else(|e| assert_eq!(e.kind(), ErrorKind::Closed), |_| ());
                assert_eq!(seen, pushed, "{name} round {round}");
                row.trials += 1;
            }
        }
        row.holds();
    }
}
