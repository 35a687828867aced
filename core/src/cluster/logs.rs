//! What workers print, as whole lines: one pipe per stream and worker, read by a thread of its own.
//!
//! ```text
//!  worker 0 ── stdout, stderr ──┐
//!  worker 1 ── stdout, stderr ──┼──► offloop-logs: whole lines, in the order of their pipe ──► the host's function
//!     …                         ┘
//! ```
//!
//! Whoever prints faster than the host's function takes lines waits in its own `write`; supervision waits for neither, but [`LAST_LINES`] for the last lines of a worker that has ended.
//! Memory: [`MAX_LINE`] per pipe at most.

use crate::error::Result;
use crate::supervisor::WorkerId;
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::Epoll;
use crate::sys::{pipe, thread};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Bytes of a line, beyond which it comes in parts.
pub const MAX_LINE: usize = 64 << 10;
/// What is read of one pipe before the others' turn.
const TURN: usize = 64 << 10;
/// Turns in which whatever was in a pipe at their beginning is read: its size is 1 MiB at most, but for a privileged process that wants more.
const TURNS: usize = 16;
/// How long the end of a worker waits until its last lines were heard.
const LAST_LINES: Duration = Duration::from_millis(100);
const BELL: u64 = 0;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error output.
    Err,
}

/// A line that a worker has printed, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Who.
    pub worker: WorkerId,
    /// Its process.
    pub pid: i32,
    /// Where.
    pub stream: Stream,
    /// What, without the newline.
    pub bytes: &'a [u8],
    /// It goes on what the line before of this worker and stream had.
    pub goes_on: bool,
    /// There is more of it to come: it is longer than [`MAX_LINE`].
    pub is_cut: bool,
}

#[cfg(test)]
impl Line<'_> {
    /// A whole line of the process 77, in slot 2 of generation 3.
    pub(crate) fn sample(bytes: &[u8], stream: Stream) -> Line<'_> {
        Line { worker: WorkerId { slot: 2, generation: 3, incarnation: 1 }, pid: 77, stream, bytes, goes_on: false, is_cut: false }
    }
}

pub(super) type Hear = Box<dyn FnMut(&Line<'_>) + Send>;

/// One end that is read from.
struct Source {
    worker: WorkerId,
    pid: i32,
    stream: Stream,
    fd: OwnedFd,
    /// Of a line that is not whole yet.
    rest: Vec<u8>,
    goes_on: bool,
}

#[derive(Default)]
struct Rows {
    last: u64,
    /// Of workers that are not there yet.
    made: HashMap<WorkerId, [OwnedFd; 2]>,
    sources: HashMap<u64, Source>,
    /// The thread has taken out a source of this one.
    busy: Option<WorkerId>,
    /// Those that have ended, and whose last lines are waited for.
    ending: Vec<WorkerId>,
    /// That was in vain, and the thread has not gone on since.
    stuck: bool,
    closing: bool,
    over: bool,
}

/// The pipes of all workers.
pub(super) struct Logs {
    epoll: Epoll,
    bell: EventFd,
    rows: Mutex<Rows>,
    /// A pipe has ended, or the thread.
    ended: Condvar,
}

impl Logs {
    /// Starts the thread, which ends after [`close`](Self::close).
    pub(super) fn open(hear: Hear) -> Result<Arc<Logs>> {
        let logs = Arc::new(Logs { epoll: Epoll::new()?, bell: EventFd::new()?, rows: Mutex::default(), ended: Condvar::new() });
        logs.epoll.add_tagged(logs.bell.fd(), BELL)?;
        let own = Arc::clone(&logs);
        let options = thread::Options { name: "offloop-logs".to_owned(), stack_size: Some(256 << 10), nice: 0 };
        drop(thread::spawn(&options, move || {
            own.run(hear);
            lock(&own.rows).over = true;
            own.ended.notify_all();
        })?);
        Ok(logs)
    }

    /// The ends that a new worker prints to. Nothing is read before it is there.
    pub(super) fn add(&self, worker: WorkerId) -> Result<[OwnedFd; 2]> {
        let ((out, out_end), (err, err_end)) = (pipe::open()?, pipe::open()?);
        lock(&self.rows).made.insert(worker, [out, err]);
        Ok([out_end, err_end])
    }

    /// It is there.
    pub(super) fn spawned(&self, worker: WorkerId, pid: i32) {
        let mut rows = lock(&self.rows);
        let Some(fds) = rows.made.remove(&worker) else { return };
        for (fd, stream) in fds.into_iter().zip([Stream::Out, Stream::Err]) {
            rows.last += 1;
            let token = rows.last;
            // Without a place in the epoll it is closed, and its writer is told.
            if self.epoll.add_tagged(fd.as_fd(), token).is_ok() {
                rows.sources.insert(token, Source { worker, pid, stream, fd, rest: Vec::new(), goes_on: false });
            }
        }
    }

    /// A spare has taken a worker's place.
    pub(super) fn rename(&self, spare: WorkerId, worker: WorkerId) {
        let mut rows = lock(&self.rows);
        let named = rows.sources.values_mut().map(|source| &mut source.worker);
        named.filter(|id| **id == spare).for_each(|id| *id = worker);
        rows.busy = rows.busy.map(|id| if id == spare { worker } else { id });
    }

    /// It could not be started.
    pub(super) fn remove(&self, worker: WorkerId) {
        lock(&self.rows).made.remove(&worker);
    }

    /// It has ended: returns when all that it has printed was heard. That is at once, unless the host's function holds up the thread; a thread that does not go on is waited for once.
    pub(super) fn ended(&self, worker: WorkerId) {
        let until = Instant::now() + LAST_LINES;
        let mut rows = lock(&self.rows);
        if rows.stuck || (rows.busy != Some(worker) && rows.sources.values().all(|source| source.worker != worker)) {
            return;
        }
        rows.ending.push(worker);
        self.bell.signal();
        while !rows.over && rows.ending.contains(&worker) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                rows.stuck = true;
                rows.ending.retain(|other| *other != worker);
                return;
            }
            rows = self.ended.wait_timeout(rows, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// No worker is left: what is in the pipes is read, and nothing is waited for.
    pub(super) fn close(&self) {
        lock(&self.rows).closing = true;
        self.bell.signal();
    }

    /// Waits until the host has heard all that those workers have printed which have ended; at most `timeout`.
    pub(super) fn wait(&self, of: impl Fn(WorkerId) -> bool, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut rows = lock(&self.rows);
        while !rows.over && (rows.closing || rows.busy.is_some_and(&of) || rows.sources.values().any(|source| of(source.worker))) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            rows = self.ended.wait_timeout(rows, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    fn run(&self, mut hear: Hear) {
        let mut ready = Vec::with_capacity(64);
        let mut bytes = vec![0; TURN];
        loop {
            self.epoll.wait(&mut ready);
            for token in ready.drain(..) {
                if token == BELL {
                    self.bell.clear();
                    self.read_ends(&mut bytes, &mut hear);
                } else {
                    self.turn(token, &mut bytes, &mut hear);
                }
            }
            if lock(&self.rows).closing {
                break;
            }
        }
        let mut left: Vec<u64> = lock(&self.rows).sources.keys().copied().collect();
        left.sort_unstable();
        for token in left {
            self.read_rest(token, &mut bytes, &mut hear);
            self.end(token, &mut hear);
        }
    }

    /// What workers that have ended have printed. Others may have their pipes still, and go on.
    fn read_ends(&self, bytes: &mut [u8], hear: &mut Hear) {
        let ending = lock(&self.rows).ending.clone();
        for worker in ending {
            let rows = lock(&self.rows);
            let mut tokens: Vec<u64> = rows.sources.iter().filter(|(_, source)| source.worker == worker).map(|(token, _)| *token).collect();
            drop(rows);
            tokens.sort_unstable();
            for token in tokens {
                self.read_rest(token, bytes, hear);
            }
            lock(&self.rows).ending.retain(|other| *other != worker);
            self.ended.notify_all();
        }
    }

    /// What is in the pipe now; somebody who goes on to print is not waited for.
    fn read_rest(&self, token: u64, bytes: &mut [u8], hear: &mut Hear) {
        for _ in 0..TURNS {
            if !self.turn(token, bytes, hear) {
                return;
            }
        }
    }

    /// Reads once; false when there is nothing to read now, or any more.
    fn turn(&self, token: u64, bytes: &mut [u8], hear: &mut Hear) -> bool {
        let Some(mut source) = self.take_out(token) else { return false };
        let got = pipe::read(source.fd.as_fd(), bytes);
        if let Some(n @ 1..) = got {
            source.take(&bytes[..n], hear);
        }
        let mut rows = lock(&self.rows);
        // It may have another name by now.
        source.worker = rows.busy.take().unwrap_or(source.worker);
        rows.stuck = false;
        rows.sources.insert(token, source);
        drop(rows);
        if got == Some(0) {
            self.end(token, hear);
        }
        got.is_some_and(|n| n > 0)
    }

    /// For this thread alone, so that nobody who wants the lock waits for the host's function.
    fn take_out(&self, token: u64) -> Option<Source> {
        let mut rows = lock(&self.rows);
        let source = rows.sources.remove(&token)?;
        rows.busy = Some(source.worker);
        Some(source)
    }

    /// Its last line needs no newline.
    fn end(&self, token: u64, hear: &mut Hear) {
        let Some(mut source) = self.take_out(token) else { return };
        self.epoll.remove(source.fd.as_fd());
        if !source.rest.is_empty() {
            let rest = std::mem::take(&mut source.rest);
            source.tell(&rest, false, hear);
        }
        drop(source);
        lock(&self.rows).busy = None;
        self.ended.notify_all();
    }
}

impl Source {
    fn take(&mut self, mut bytes: &[u8], hear: &mut Hear) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.add(&bytes[..end], hear);
            let line = std::mem::take(&mut self.rest);
            self.tell(&line, false, hear);
            self.rest = line;
            self.rest.clear();
            bytes = &bytes[end + 1..];
        }
        self.add(bytes, hear);
        if self.rest.is_empty() && self.rest.capacity() > 4096 {
            self.rest = Vec::new();
        }
    }

    /// What has no end yet; told in parts where it is too long.
    fn add(&mut self, mut bytes: &[u8], hear: &mut Hear) {
        while self.rest.len() + bytes.len() > MAX_LINE {
            let room = MAX_LINE - self.rest.len();
            self.rest.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            let mut part = std::mem::take(&mut self.rest);
            self.rest = part.split_off(before_parted_char(&part, bytes[0]));
            self.tell(&part, true, hear);
        }
        self.rest.extend_from_slice(bytes);
    }

    fn tell(&mut self, bytes: &[u8], is_cut: bool, hear: &mut Hear) {
        let line = Line { worker: self.worker, pid: self.pid, stream: self.stream, bytes, goes_on: self.goes_on, is_cut };
        self.goes_on = is_cut;
        let _ = catch_unwind(AssertUnwindSafe(|| hear(&line)));
    }
}

/// How much of `part` comes before a character of UTF-8 that goes on with `next`: all, if there is none.
fn before_parted_char(part: &[u8], next: u8) -> usize {
    let goes_on = |byte: u8| byte & 0xC0 == 0x80;
    let begin = part.iter().rposition(|byte| !goes_on(*byte)).filter(|at| goes_on(next) && part[*at] >= 0xC0 && part.len() - at < 4);
    begin.unwrap_or(part.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    type Heard = Arc<Mutex<Vec<(u32, Stream, Vec<u8>, bool, bool)>>>;

    fn id(slot: u32) -> WorkerId {
        WorkerId { slot, generation: 1, incarnation: 1 }
    }

    fn opened() -> (Arc<Logs>, Heard) {
        let heard: Heard = Arc::default();
        let own = Arc::clone(&heard);
        let hear = move |l: &Line<'_>| own.lock().expect("heard").push((l.worker.slot, l.stream, l.bytes.to_vec(), l.goes_on, l.is_cut));
        (Logs::open(Box::new(hear)).expect("logs"), heard)
    }

    fn worker(logs: &Logs, slot: u32) -> [std::fs::File; 2] {
        let ends = logs.add(id(slot)).expect("pipes").map(std::fs::File::from);
        logs.spawned(id(slot), 100 + slot as i32);
        ends
    }

    const FOREVER: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_whole_in_order_and_the_last_one_needs_no_end() {
        let (logs, heard) = opened();
        let [mut out, mut err] = worker(&logs, 3);
        out.write_all(b"one\ntw").expect("write");
        out.write_all(b"o\n\nthr").expect("write");
        drop(out);
        err.write_all(b"\xff\n").expect("write");
        drop(err);
        logs.wait(|_| true, FOREVER);
        let heard = heard.lock().expect("heard");
        let of = |stream| heard.iter().filter(|l| l.1 == stream).map(|l| l.2.clone()).collect::<Vec<_>>();
        assert_eq!(of(Stream::Out), [&b"one"[..], b"two", b"", b"thr"]);
        assert_eq!(of(Stream::Err), [b"\xff"]);
        assert!(heard.iter().all(|l| l.0 == 3 && !l.3 && !l.4));
        drop(heard);
        logs.close();
        logs.wait(|_| false, FOREVER);
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_parts_that_say_so() {
        let (logs, heard) = opened();
        let [mut out, _err] = worker(&logs, 0);
        let long = vec![b'x'; 2 * MAX_LINE + 1];
        out.write_all(&long).expect("write");
        out.write_all(b"\nnext\n").expect("write");
        let exact = vec![b'y'; MAX_LINE];
        out.write_all(&exact).expect("write");
        out.write_all(b"\n").expect("write");
        drop((out, _err));
        logs.wait(|_| true, FOREVER);
        let heard = heard.lock().expect("heard");
        let shape: Vec<_> = heard.iter().map(|l| (l.2.len(), l.3, l.4)).collect();
        assert_eq!(shape, [(MAX_LINE, false, true), (MAX_LINE, true, true), (1, true, false), (4, false, false), (MAX_LINE, false, false)]);
        drop(heard);
        logs.close();
    }

    #[test]
    fn no_part_ends_within_a_character() {
        let (logs, heard) = opened();
        let [mut out, mut err] = worker(&logs, 0);
        let long = format!("x{}", "\u{1F980}".repeat(MAX_LINE / 2));
        writeln!(out, "{long}").expect("write");
        err.write_all(&[0x80; MAX_LINE + 1]).expect("write");
        drop((out, err));
        logs.wait(|_| true, FOREVER);
        let heard = heard.lock().expect("heard");
        let parts: Vec<_> =
            heard.iter().filter(|l| l.1 == Stream::Out).map(|l| std::str::from_utf8(&l.2).expect("whole characters")).collect();
        assert!(parts.len() > 2 && parts.concat() == long);
        let others: Vec<_> = heard.iter().filter(|l| l.1 == Stream::Err).map(|l| l.2.len()).collect();
        assert_eq!(others, [MAX_LINE, 1]);
        drop(heard);
        logs.close();
    }

    #[test]
    fn the_last_lines_of_a_worker_are_heard_at_its_end_though_somebody_keeps_the_pipe() {
        let (logs, heard) = opened();
        for slot in 0..50 {
            let [mut out, mut kept] = worker(&logs, slot);
            write!(out, "one\ntwo").expect("write");
            writeln!(kept, "three").expect("write");
            drop(out);
            logs.ended(id(slot));
            let heard: Vec<_> = heard.lock().expect("heard").drain(..).map(|l| (l.0, l.2)).collect();
            assert_eq!(heard.len(), 3, "{heard:?}");
            assert!([&b"one"[..], b"two", b"three"].iter().all(|line| heard.contains(&(slot, line.to_vec()))));
        }
        logs.close();
        logs.wait(|_| false, FOREVER);
        logs.ended(id(0));
    }

    #[test]
    fn a_function_that_holds_up_the_thread_is_waited_for_once() {
        let (goes_on, stands) = std::sync::mpsc::channel::<()>();
        let logs = Logs::open(Box::new(move |_: &Line<'_>| assert!(stands.recv().is_err()))).expect("logs");
        for slot in 0..50 {
            let [mut out, _] = worker(&logs, slot);
            writeln!(out, "line").expect("write");
            drop(out);
            logs.ended(id(slot));
        }
        assert!(lock(&logs.rows).stuck);
        drop(goes_on);
        logs.wait(|_| true, FOREVER);
        assert!(!lock(&logs.rows).stuck);
        logs.close();
        logs.wait(|_| false, FOREVER);
    }

    #[test]
    fn who_goes_on_to_print_does_not_keep_the_thread_from_its_end() {
        let (logs, _) = opened();
        let [mut flood, _err] = worker(&logs, 0);
        let writer = std::thread::spawn(move || {
            let lines = [b'\n'; 4096];
            while flood.write_all(&lines).is_ok() {}
        });
        logs.ended(id(0));
        logs.close();
        logs.wait(|_| false, FOREVER);
        writer.join().expect("its pipe is closed");
    }

    #[test]
    fn what_is_printed_before_the_end_is_heard_though_somebody_keeps_the_pipe() {
        let (logs, heard) = opened();
        let [mut out, _kept] = worker(&logs, 1);
        for n in 0..1000 {
            writeln!(out, "line {n}").expect("write");
        }
        logs.close();
        logs.wait(|_| false, FOREVER);
        assert_eq!(heard.lock().expect("heard").len(), 1000);
    }

    #[test]
    fn who_floods_waits_and_the_others_are_heard() {
        let (logs, heard) = opened();
        let [mut flood, _err] = worker(&logs, 0);
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let own = Arc::clone(&over);
        let writer = std::thread::spawn(move || {
            let line = [&[b'f'; 99][..], b"\n"].concat();
            while !own.load(std::sync::atomic::Ordering::Relaxed) && flood.write_all(&line).is_ok() {}
        });
        for slot in 1..5 {
            let [mut out, _] = worker(&logs, slot);
            writeln!(out, "heard").expect("write");
            drop(out);
            logs.wait(|id| id.slot == slot, FOREVER);
            assert!(heard.lock().expect("heard").iter().any(|l| l.0 == slot));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("writer");
        logs.close();
        logs.wait(|_| false, FOREVER);
    }

    #[test]
    fn who_was_not_started_leaves_nothing() {
        let (logs, _) = opened();
        let [mut out, _] = logs.add(id(0)).expect("pipes").map(std::fs::File::from);
        logs.remove(id(0));
        assert_eq!(out.write_all(b"x").expect_err("nobody reads").kind(), std::io::ErrorKind::BrokenPipe);
        logs.close();
        logs.wait(|_| false, FOREVER);
    }
}
