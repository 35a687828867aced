//! Rings between two processes, against a pipe, a socket pair and, for task queues, a queue that no crash may touch, in the same run.
//!
//! `cargo run --release -p offloop --no-default-features --example bench_ring [rounds [case…]]` prints medians; `rows` in place of
//! the number makes one round and prints it as `R case who value`, which `make bench` reads, and runs in turns with other peers. Both
//! processes are pinned, every transport copies in from and out to a private buffer unless the line says zero-copy, and the time for a
//! cache line to travel there and back stands beside the numbers, because they follow it.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use offloop::TransferBuffer;
use offloop::ring::{Consumer, ConsumerOptions, Kind, Producer, ProducerOptions, RingBuffer};
use offloop::sys::process::{Child, Spec, spawn};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

const FIRST: RawFd = 100;

/// The cores of this thread before; they are given back on drop.
struct Pinned(libc::cpu_set_t);

impl Pinned {
    fn to(core: usize) -> Pinned {
        // SAFETY: a zeroed set is empty; the calls get valid pointers. On a machine with one core this does nothing.
        unsafe {
            let mut before: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut before);
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
            Pinned(before)
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: a valid set.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.0) };
    }
}

/// Starts this program again with `mode` and `fds`; the child's first act is to write a byte to its report fd.
fn child(mode: &str, fds: &[BorrowedFd<'_>]) -> (Child, File) {
    let mut ends = [0; 2];
    // SAFETY: two writable ints; the fds are new and ours.
    let (read, write) = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    let mut spec = Spec::new(std::env::current_exe().unwrap());
    spec.args = vec!["child".into(), mode.into(), fds.len().to_string().into()];
    spec.fds = vec![(write.as_fd(), FIRST)];
    spec.fds.extend(fds.iter().enumerate().map(|(i, fd)| (*fd, FIRST + 1 + i as RawFd)));
    let child = spawn(&spec).unwrap();
    drop(spec);
    drop(write);
    let mut reports = File::from(read);
    reports.read_exact(&mut [0]).unwrap();
    (child, reports)
}

fn borrow(fds: &[RawFd]) -> Vec<BorrowedFd<'_>> {
    // SAFETY: the caller's ring keeps them open.
    fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect()
}

/// A cache line that takes longer than this travels between cores that are far apart. Virtual cores are moved about, and every figure follows
/// them, so what was measured with such a line before or after it is measured again, this often.
const NEAR_NS: f64 = 110.0;
const TRIES: usize = 8;

/// How often each case is measured, which ones, and how they are printed.
struct Rounds {
    rounds: usize,
    rows: bool,
    only: Vec<String>,
}

impl Rounds {
    /// The median of what `f` gives, which may stand for several cases; not a number for a case that is not asked for.
    fn median(&self, cases: &[&str], who: &str, mut f: impl FnMut() -> f64) -> f64 {
        if !self.only.is_empty() && !cases.iter().any(|case| self.only.iter().any(|o| o == case)) {
            return f64::NAN;
        }
        let mut v: Vec<f64> = (0..self.rounds).map(|_| self.near(cases, who, &mut f)).collect();
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    }

    fn near(&self, cases: &[&str], who: &str, f: &mut impl FnMut() -> f64) -> f64 {
        let mut before = line();
        for _ in 1..TRIES {
            let value = f();
            let after = line();
            if before.max(after) <= NEAR_NS {
                return self.row(cases, who, value, after);
            }
            before = after;
        }
        let value = f();
        self.row(cases, who, value, before)
    }

    fn row(&self, cases: &[&str], who: &str, value: f64, line: f64) -> f64 {
        if self.rows {
            println!("R ring.line offloop {line}");
            cases.iter().for_each(|case| println!("R ring.{case} {who} {value}"));
        }
        value
    }

    /// For people, about what was measured.
    fn say(&self, value: f64, line: &str) {
        if !self.rows && !value.is_nan() {
            println!("{line}");
        }
    }
}

/// One word per page, as someone does who fills or reads a frame elsewhere.
fn touch(ptr: *mut u8, len: usize, write: Option<u64>) -> u64 {
    let mut sum = 0;
    for at in (0..len).step_by(4096) {
        // SAFETY: inside the record, which this side owns now.
        let word = unsafe { ptr.add(at).cast::<u64>() };
        match write {
            // SAFETY: as above; records are 8-aligned.
            Some(n) => unsafe { word.write_volatile(n) },
            // SAFETY: as above.
            None => sum += unsafe { word.read_volatile() },
        }
    }
    sum
}

#[derive(Clone, Copy)]
struct Stream {
    id: &'static str,
    name: &'static str,
    len: usize,
    records: usize,
    batch: bool,
    zero_copy: bool,
}

const STREAMS: [Stream; 5] = [
    Stream { id: "64_batch", name: "64 B, batched", len: 64, records: 1_000_000, batch: true, zero_copy: false },
    Stream { id: "64", name: "64 B, each published", len: 64, records: 500_000, batch: false, zero_copy: false },
    Stream { id: "1k_batch", name: "1 KiB, batched", len: 1024, records: 500_000, batch: true, zero_copy: false },
    Stream { id: "64k", name: "64 KiB, copied", len: 65536, records: 20_000, batch: false, zero_copy: false },
    Stream { id: "64k_zero_copy", name: "64 KiB, zero-copy", len: 65536, records: 100_000, batch: false, zero_copy: true },
];

fn produce(p: &mut Producer, s: Stream) {
    let record = vec![7u8; s.len];
    for n in 0..s.records {
        if s.zero_copy {
            let mut claim = p.claim(s.len, None).unwrap();
            touch(claim.as_mut_ptr(), s.len, Some(n as u64));
            claim.commit().unwrap();
        } else {
            p.push(std::hint::black_box(&record), None).unwrap();
        }
    }
    p.flush().unwrap();
}

fn consume(c: &mut Consumer, s: Stream) {
    let mut out = vec![0u8; s.len];
    let mut n = 0;
    while n < s.records {
        c.wait(None).unwrap();
        n += c
            .read(s.records, |r| {
                if s.zero_copy {
                    std::hint::black_box(touch(r.as_ptr().cast_mut(), r.len(), None));
                } else {
                    r.copy_to(&mut out);
                    std::hint::black_box(&out);
                }
            })
            .unwrap();
    }
}

/// Nanoseconds per record, from the first push to the last pop.
fn stream(index: usize) -> f64 {
    let s = STREAMS[index];
    let ring = RingBuffer::builder(Kind::Spsc).create().unwrap();
    let mut p = ring.producer(ProducerOptions { batch: s.batch, ..Default::default() }).unwrap();
    let fds = ring.fds().unwrap();
    let (child, mut reports) = child(&format!("stream:{index}"), &borrow(&fds));
    let _pinned = Pinned::to(0);
    let from = Instant::now();
    produce(&mut p, s);
    reports.read_exact(&mut [0]).unwrap();
    let ns = from.elapsed().as_nanos() as f64 / s.records as f64;
    child.wait(None).unwrap();
    ns
}

/// Names, and whether it is a socket.
const KERNEL: [(&str, bool); 2] = [("pipe", false), ("socketpair", true)];

/// Hot round trips that are timed together.
const HOT: usize = 10;

const TASKS: Stream =
    Stream { id: "mpmc_64_batch", name: "task queue, 64 B, batched", len: 64, records: 1_000_000, batch: true, zero_copy: false };

/// As [`stream`], through the slots of an `mpmc` ring with one producer and one consumer.
fn tasks() -> f64 {
    let ring = RingBuffer::builder(Kind::Mpmc).max_participants(4).create().unwrap();
    let mut p = ring.producer(ProducerOptions { batch: TASKS.batch, ..Default::default() }).unwrap();
    let fds = ring.fds().unwrap();
    let (child, mut reports) = child("tasks", &borrow(&fds));
    let _pinned = Pinned::to(0);
    let from = Instant::now();
    produce(&mut p, TASKS);
    reports.read_exact(&mut [0]).unwrap();
    let ns = from.elapsed().as_nanos() as f64 / TASKS.records as f64;
    child.wait(None).unwrap();
    ns
}

/// Vyukov's bounded queue as it is in the books: a process that dies between two of its steps leaves everybody waiting. As many slots,
/// as long, as the ring of [`tasks`] has; it neither sleeps nor wakes, and trusts what it reads.
struct Plain {
    base: *mut u8,
}

impl Plain {
    const SLOTS: u64 = (4 << 20) / 256;
    const BYTES: usize = 4096 + (4 << 20);

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: inside the shared buffer and aligned; both processes use it as an atomic.
        unsafe { &*self.base.add(at).cast() }
    }

    fn slot(&self, position: u64) -> usize {
        4096 + (position % Plain::SLOTS) as usize * 256
    }

    fn init(&self) {
        (0..Plain::SLOTS).for_each(|i| self.word(self.slot(i)).store(i, Ordering::Relaxed));
    }

    fn push(&self, record: &[u8]) {
        loop {
            let p = self.word(0).load(Ordering::Relaxed);
            let at = self.slot(p);
            if self.word(at).load(Ordering::Acquire) != p {
                std::hint::spin_loop();
            } else if self.word(0).compare_exchange_weak(p, p + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.word(at + 8).store(record.len() as u64, Ordering::Relaxed);
                // SAFETY: the slot is this caller's until its word is stored.
                unsafe { std::ptr::copy_nonoverlapping(record.as_ptr(), self.base.add(at + 16), record.len()) };
                return self.word(at).store(p + 1, Ordering::Release);
            }
        }
    }

    fn pop(&self, out: &mut [u8]) {
        loop {
            let p = self.word(128).load(Ordering::Relaxed);
            let at = self.slot(p);
            if self.word(at).load(Ordering::Acquire) != p + 1 {
                std::hint::spin_loop();
            } else if self.word(128).compare_exchange_weak(p, p + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                let len = (self.word(at + 8).load(Ordering::Relaxed) as usize).min(out.len());
                // SAFETY: as in `push`.
                unsafe { std::ptr::copy_nonoverlapping(self.base.add(at + 16), out.as_mut_ptr(), len) };
                return self.word(at).store(p + Plain::SLOTS, Ordering::Release);
            }
        }
    }
}

fn plain() -> f64 {
    let buffer = TransferBuffer::alloc_shared(Plain::BYTES).unwrap();
    // SAFETY: `buffer` keeps the fd open.
    let fd = unsafe { BorrowedFd::borrow_raw(buffer.fd().unwrap()) };
    let (_keep, base, _) = buffer.view().unwrap();
    let queue = Plain { base: base.cast() };
    queue.init();
    let (child, mut reports) = child("plain", &[fd]);
    let _pinned = Pinned::to(0);
    let record = vec![7u8; TASKS.len];
    let from = Instant::now();
    for _ in 0..TASKS.records {
        queue.push(std::hint::black_box(&record));
    }
    reports.read_exact(&mut [0]).unwrap();
    let ns = from.elapsed().as_nanos() as f64 / TASKS.records as f64;
    child.wait(None).unwrap();
    ns
}

/// Waits as an event loop does: polls the fd, and takes what is there.
fn poll(c: &mut Consumer, out: &mut [u8]) -> Option<usize> {
    loop {
        match c.try_pop() {
            Ok(Some(record)) => return Some(record.copy_to(out)),
            Ok(None) => {}
            Err(_) => return None,
        }
        let mut p = libc::pollfd { fd: c.fd().unwrap().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut p, 1, -1) };
    }
}

/// (p50, p99) of a round trip in nanoseconds, both sides spinning or both asleep in a poll loop. Spinning ones are timed by the [`HOT`], because
/// looking at the clock takes a tenth of one.
fn round_trips(asleep: bool) -> (f64, f64) {
    let n = if asleep { 5_000 } else { 100_000 };
    let (there, back) = (RingBuffer::builder(Kind::Spsc).capacity(65536), RingBuffer::builder(Kind::Spsc).capacity(65536));
    let (there, back) = (there.create().unwrap(), back.create().unwrap());
    let mut p = there.producer(ProducerOptions::default()).unwrap();
    let mut c = back.consumer(ConsumerOptions::default()).unwrap();
    let (a, b) = (there.fds().unwrap(), back.fds().unwrap());
    let (child, _reports) = child(if asleep { "poll-echo" } else { "echo" }, &borrow(&[a, b].concat()));
    let _pinned = Pinned::to(0);
    let mut out = [0u8; 64];
    let at_once = if asleep { 1 } else { HOT };
    let mut times: Vec<f64> = (0..n / at_once)
        .map(|_| {
            let from = Instant::now();
            for _ in 0..at_once {
                p.push(&out, None).unwrap();
                if asleep {
                    poll(&mut c, &mut out).unwrap();
                } else {
                    c.pop(None).unwrap().copy_to(&mut out);
                }
            }
            from.elapsed().as_nanos() as f64 / at_once as f64
        })
        .collect();
    there.close();
    child.wait(None).unwrap();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() / 100 * 99])
}

/// Nanoseconds for a cache line to go to the other process and come back.
fn line() -> f64 {
    const TRIPS: u32 = 50_000;
    let buffer = TransferBuffer::alloc_shared(4096).unwrap();
    // SAFETY: `buffer` keeps the fd open.
    let fd = unsafe { BorrowedFd::borrow_raw(buffer.fd().unwrap()) };
    let (child, _reports) = child("line", &[fd]);
    let _pinned = Pinned::to(0);
    let (_keep, ptr, _) = buffer.view().unwrap();
    // SAFETY: 4096 mapped bytes, aligned; both processes use the word as an atomic.
    let word = unsafe { &*ptr.cast::<AtomicU32>() };
    let from = Instant::now();
    for n in 0..TRIPS {
        word.store(2 * n + 1, Ordering::Release);
        while word.load(Ordering::Acquire) != 2 * n + 2 {
            std::hint::spin_loop();
        }
    }
    let ns = from.elapsed().as_nanos() as f64 / f64::from(TRIPS);
    word.store(u32::MAX, Ordering::Release);
    child.wait(None).unwrap();
    ns
}

/// Two fds of the kernel, to read from and to write to.
fn fds_of_kernel(socket: bool) -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: two writable ints; the fds are new and ours.
    let (read, write) = unsafe {
        let rc = if socket {
            libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
        } else {
            libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC)
        };
        assert_eq!(rc, 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    if !socket {
        // SAFETY: a plain call; without the right to a large pipe it stays as it is.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) };
    }
    (read, write)
}

/// Nanoseconds per message through them.
fn kernel(socket: bool, len: usize) -> f64 {
    let messages = if len < 4096 { 100_000 } else { 10_000 };
    let (read, write) = fds_of_kernel(socket);
    let (child, mut reports) = child(&format!("kernel:{len}:{messages}"), &[read.as_fd()]);
    drop(read);
    let _pinned = Pinned::to(0);
    let record = vec![7u8; len];
    let mut write = File::from(write);
    let from = Instant::now();
    for _ in 0..messages {
        write.write_all(&record).unwrap();
    }
    reports.read_exact(&mut [0]).unwrap();
    let ns = from.elapsed().as_nanos() as f64 / f64::from(messages);
    child.wait(None).unwrap();
    ns
}

/// The median round trip of 64 B through them; both sides block.
fn kernel_trip(socket: bool) -> f64 {
    const TRIPS: usize = 5_000;
    let (there, back) = (fds_of_kernel(socket), fds_of_kernel(socket));
    let (child, _reports) = child("kernel-echo", &[there.0.as_fd(), back.1.as_fd()]);
    let _pinned = Pinned::to(0);
    let (mut to, mut from, mut out) = (File::from(there.1), File::from(back.0), [7u8; 64]);
    let mut times: Vec<f64> = (0..TRIPS)
        .map(|_| {
            let start = Instant::now();
            to.write_all(&out).unwrap();
            from.read_exact(&mut out).unwrap();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    // The other side's copies of these two ends are all that is left, and it reads an end of file.
    drop((to, there.0));
    child.wait(None).unwrap();
    times.sort_by(f64::total_cmp);
    times[TRIPS / 2]
}

fn child_main(mode: &str, fds: usize) {
    // SAFETY: the parent put these fds here; they are nobody else's.
    let fds: Vec<OwnedFd> = (0..=fds as RawFd).map(|i| unsafe { OwnedFd::from_raw_fd(FIRST + i) }).collect();
    let mut fds = fds.into_iter();
    let mut reports = File::from(fds.next().unwrap());
    let rest: Vec<OwnedFd> = fds.collect();
    let attach = |fds: &[OwnedFd]| {
        let ring = RingBuffer::attach(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        std::mem::forget(Pinned::to(1)); // not before: a process that may use one core only does not spin
        ring
    };
    let words: Vec<&str> = mode.split(':').collect();
    let arg = |i: usize| words[i].parse::<usize>().unwrap();
    match words[0] {
        "stream" => {
            let mut c = attach(&rest).consumer(ConsumerOptions::default()).unwrap();
            reports.write_all(&[0]).unwrap();
            consume(&mut c, STREAMS[arg(1)]);
            reports.write_all(&[0]).unwrap();
        }
        "tasks" => {
            let mut c = attach(&rest).consumer(ConsumerOptions::default()).unwrap();
            reports.write_all(&[0]).unwrap();
            consume(&mut c, TASKS);
            reports.write_all(&[0]).unwrap();
        }
        "plain" => {
            std::mem::forget(Pinned::to(1));
            let buffer = TransferBuffer::attach(rest[0].as_fd()).unwrap();
            let (_keep, base, _) = buffer.view().unwrap();
            let queue = Plain { base: base.cast() };
            let mut out = vec![0u8; TASKS.len];
            reports.write_all(&[0]).unwrap();
            for _ in 0..TASKS.records {
                queue.pop(&mut out);
                std::hint::black_box(&out);
            }
            reports.write_all(&[0]).unwrap();
        }
        "echo" | "poll-echo" => {
            let mut c = attach(&rest[..3]).consumer(ConsumerOptions::default()).unwrap();
            let mut p = attach(&rest[3..]).producer(ProducerOptions::default()).unwrap();
            reports.write_all(&[0]).unwrap();
            let mut out = [0u8; 64];
            let asleep = words[0] == "poll-echo";
            while let Some(n) = if asleep { poll(&mut c, &mut out) } else { c.pop(None).ok().map(|r| r.copy_to(&mut out)) } {
                p.push(&out[..n], None).unwrap();
            }
        }
        "line" => {
            std::mem::forget(Pinned::to(1));
            let buffer = TransferBuffer::attach(rest[0].as_fd()).unwrap();
            let (_keep, ptr, _) = buffer.view().unwrap();
            // SAFETY: as in `line`.
            let word = unsafe { &*ptr.cast::<AtomicU32>() };
            reports.write_all(&[0]).unwrap();
            loop {
                match word.load(Ordering::Acquire) {
                    u32::MAX => break,
                    n if n % 2 == 1 => word.store(n + 1, Ordering::Release),
                    _ => std::hint::spin_loop(),
                }
            }
        }
        "kernel" => {
            std::mem::forget(Pinned::to(1));
            let mut read = File::from(rest.into_iter().next().unwrap());
            let mut out = vec![0u8; arg(1)];
            reports.write_all(&[0]).unwrap();
            for _ in 0..arg(2) {
                read.read_exact(&mut out).unwrap();
            }
            reports.write_all(&[0]).unwrap();
        }
        "kernel-echo" => {
            std::mem::forget(Pinned::to(1));
            let mut fds = rest.into_iter().map(File::from);
            let (mut from, mut to, mut out) = (fds.next().unwrap(), fds.next().unwrap(), [0u8; 64]);
            reports.write_all(&[0]).unwrap();
            while from.read_exact(&mut out).is_ok() {
                to.write_all(&out).unwrap();
            }
        }
        other => panic!("no such mode: {other}"),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "child") {
        return child_main(&args[2], args[3].parse().unwrap());
    }
    let rows = args.get(1).is_some_and(|a| a == "rows");
    let rounds = args.get(1).map_or(5, |a| a.parse().unwrap_or(1));
    let all = Rounds { rounds, rows, only: args.into_iter().skip(2).collect() };
    for (i, s) in STREAMS.iter().enumerate() {
        let ns = all.median(&[s.id], "offloop", || stream(i));
        all.say(ns, &format!("{}: {ns:.1} ns, {:.1} GiB/s", s.name, s.len as f64 / ns * 1e9 / f64::from(1 << 30)));
    }
    for (len, (name, socket)) in [64, 1024, 65536].into_iter().flat_map(|len| KERNEL.map(|kernel| (len, kernel))) {
        let cases: Vec<&str> = STREAMS.iter().filter(|s| s.len == len).map(|s| s.id).collect();
        let ns = all.median(&cases, name, || kernel(socket, len));
        all.say(ns, &format!("{name}, {len} B: {ns:.0} ns"));
    }
    let (ours, plain) = (all.median(&[TASKS.id], "offloop", tasks), all.median(&[TASKS.id], "vyukov", plain));
    all.say(ours, &format!("{}: {ours:.1} ns; a queue without care for the dead {plain:.1} ns ({:.2} × of it)", TASKS.name, ours / plain));
    for (id, name, asleep) in [("trip_hot", "hot", false), ("trip_asleep", "both sides asleep in poll", true)] {
        let mut worst = Vec::new();
        let p50 = all.median(&[id], "offloop", || {
            let (p50, p99) = round_trips(asleep);
            worst.push(p99);
            p50
        });
        worst.sort_by(f64::total_cmp);
        all.say(
            p50,
            &format!("round trip of 64 B, {name}: p50 {p50:.0} ns, p99 {:.0} ns", worst.get(worst.len() / 2).unwrap_or(&f64::NAN)),
        );
    }
    for (name, socket) in KERNEL {
        let ns = all.median(&["trip_asleep"], name, || kernel_trip(socket));
        all.say(ns, &format!("{name}, round trip of 64 B, p50: {ns:.0} ns"));
    }
    if !rows {
        println!("cache line there and back: {:.0} ns", line());
    }
}
