//! Completion queues: how finished tasks reach an event loop.
//!
//! A queue's fd is level-triggered: while there is unread work it stays readable. A drain that returns fewer than asked
//! has *armed* the queue; the first completion after that rings, the others do not (one wake per batch). Arming and
//! "is there work" are one word (`sync::stack`), so there is no moment in which a completion is neither seen nor rung.

use crate::error::Result;
use crate::pool::task::{ByDone, Core};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::line::Line;
use crate::sync::lock;
use crate::sync::stack::{Stack, Taken};
use crate::sys::{eventfd::EventFd, futex};
use crate::value::Value;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// What a drain delivers.
#[derive(Debug)]
pub enum Event {
    /// A task has its outcome.
    Done {
        /// The tag given at submit.
        tag: u64,
        /// The outcome.
        result: Result<Value>,
    },
    /// A running task said how far it is. Only the latest value between two drains is kept.
    Progress {
        /// The tag given at submit.
        tag: u64,
        /// What the task said.
        value: Value,
    },
}

type Notify = Box<dyn Fn() + Send + Sync>;

/// Delivers finished tasks to one consumer at a time; several queues per process are normal, one per event loop.
#[derive(Clone)]
pub struct CompletionQueue(Arc<Owner>);

/// All handles together: when the last is dropped, nobody can drain, and what is or will be pushed is dropped. (Queued
/// tasks refer to their queue, so an undrained queue would otherwise keep itself alive.)
struct Owner(Arc<Queue>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.discard();
    }
}

/// The shared part of a queue.
pub(crate) struct Queue {
    /// Written by workers; apart from the counts that every submit changes.
    done: Line<Stack<Core, ByDone>>,
    progress: Mutex<Vec<(u64, Value)>>,
    has_progress: AtomicBool,
    /// Taken from `done` and not yet delivered, oldest first. The lock is the consumer's place.
    backlog: Mutex<Taken<Core, ByDone>>,
    /// `backlog` was not empty when the last drain ended.
    left_over: AtomicBool,
    notify: Option<Notify>,
    fd: OnceLock<EventFd>,
    /// The eventfd was written since it was last cleared. Set after the write: a clear that misses it leaves the fd
    /// readable, which costs a spurious wake and never a lost one.
    fd_rung: AtomicBool,
    /// Bumped by each ring, for threads that wait without an fd.
    rings: AtomicU32,
    waiters: AtomicU32,
    /// Nobody will drain any more.
    closed: AtomicBool,
}

impl std::fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionQueue").field("fd", &self.0.0.fd.get().map(|e| e.fd().as_raw_fd())).finish_non_exhaustive()
    }
}

impl CompletionQueue {
    /// A queue that rings an eventfd (made when [`fd`](Self::fd) is first asked for) and wakes [`wait`](Self::wait).
    ///
    /// # Errors
    /// None today; an OS resource may be needed by a later version.
    pub fn new() -> Result<CompletionQueue> {
        Ok(CompletionQueue::make(None))
    }

    /// A queue that calls `notify` instead of ringing an eventfd: once after each time that a drain armed it, on whatever
    /// thread completed the task. `notify` must not block and must not drain.
    #[must_use]
    pub fn with_notify(notify: Box<dyn Fn() + Send + Sync>) -> CompletionQueue {
        let q = CompletionQueue::make(Some(notify));
        let _ = q.0.0.done.arm();
        q
    }

    fn make(notify: Option<Notify>) -> CompletionQueue {
        CompletionQueue(Arc::new(Owner(Arc::new(Queue {
            done: Line(Stack::new()),
            progress: Mutex::default(),
            has_progress: AtomicBool::new(false),
            backlog: Mutex::new(Taken::none()),
            left_over: AtomicBool::new(false),
            notify,
            fd: OnceLock::new(),
            fd_rung: AtomicBool::new(false),
            rings: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        }))))
    }

    /// The fd to poll for reading; the queue owns it. Readable at first, so that a loop begins with a drain.
    ///
    /// # Errors
    /// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn fd(&self) -> Result<RawFd> {
        let q = &*self.0.0;
        if q.fd.get().is_none() {
            let fresh = EventFd::new()?;
            if q.fd.set(fresh).is_ok() {
                q.ring();
            }
        }
        Ok(q.fd.get().expect("set above or by another thread").fd().as_raw_fd())
    }

    /// Delivers at most `budget` events; returns how many. Fewer than `budget` means that the queue is empty and armed.
    ///
    /// `deliver` runs on this thread and may submit; it must not drain the same queue.
    pub fn drain(&self, budget: usize, deliver: &mut dyn FnMut(Event)) -> usize {
        let q = &*self.0.0;
        let mut backlog = lock(&q.backlog);
        let mut n = 0;
        let mut cleared = false;
        loop {
            n += q.deliver(&mut backlog, budget - n, deliver);
            if n == budget {
                break;
            }
            // Empty: clear the bell first, then arm. A ring that comes after the arming must not be cleared.
            if !cleared {
                cleared = true;
                if q.fd_rung.load(Ordering::Relaxed)
                    && q.fd_rung.swap(false, Ordering::Acquire)
                    && let Some(fd) = q.fd.get()
                {
                    fd.clear();
                }
            }
            if q.done.arm() {
                // Progress has its own flag: look once more after arming (pairs with the fence in `progress`).
                crate::sync::atomic::fence(Ordering::SeqCst);
                if !q.has_progress.load(Ordering::Relaxed) {
                    q.left_over.store(false, Ordering::Relaxed);
                    return n;
                }
            }
        }
        // Out of budget. An fd that this drain did not clear is still readable; otherwise the bell must sound for what is left.
        let left = !backlog.is_empty() || q.has_progress.load(Ordering::Relaxed);
        q.left_over.store(left, Ordering::Relaxed);
        drop(backlog);
        if (q.notify.is_some() || cleared) && (left || !q.done.arm()) {
            q.ring();
        }
        n
    }

    /// As [`drain`](Self::drain), but neither arms nor rings: for a consumer that comes back by itself until
    /// [`arm`](Self::arm) lets it rest. Meanwhile completions cost nobody a wake.
    pub fn poll(&self, budget: usize, deliver: &mut dyn FnMut(Event)) -> usize {
        let q = &*self.0.0;
        let mut backlog = lock(&q.backlog);
        let n = q.deliver(&mut backlog, budget, deliver);
        q.left_over.store(!backlog.is_empty(), Ordering::Relaxed);
        n
    }

    /// Asks for a ring at the next event. False if there is something to deliver already.
    #[must_use]
    pub fn arm(&self) -> bool {
        let q = &*self.0.0;
        // As in `drain`: progress has its own flag, looked at after arming (pairs with the fence in `progress`).
        lock(&q.backlog).is_empty() && q.done.arm() && {
            crate::sync::atomic::fence(Ordering::SeqCst);
            !q.has_progress.load(Ordering::Relaxed)
        }
    }

    /// Blocks until there is something to drain, at most for `timeout`. True if there is.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let q = &*self.0.0;
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        q.waiters.fetch_add(1, Ordering::SeqCst);
        let ready = loop {
            let seen = q.rings.load(Ordering::Acquire);
            if q.has_work() || !q.done.arm() || q.has_work() {
                break true;
            }
            let left = match end.map(|e| e.checked_duration_since(Instant::now())) {
                Some(None) => break false,
                Some(left) => left,
                None => None,
            };
            futex::wait(&q.rings, seen, left);
        };
        q.waiters.fetch_sub(1, Ordering::SeqCst);
        ready
    }

    pub(super) fn shared(&self) -> Arc<Queue> {
        self.0.0.clone()
    }
}

impl Queue {
    pub(super) fn push(&self, core: Arc<Core>) {
        if self.done.push(core) {
            self.ring();
        }
        // Either the swap in `discard` came after the push and takes the node, or the push saw that swap, and so `closed`.
        if self.closed.load(Ordering::Acquire) {
            self.discard();
        }
    }

    fn discard(&self) {
        let left = std::mem::replace(&mut *lock(&self.backlog), Taken::none());
        drop(left);
        drop(self.done.take_last());
    }

    /// Delivers at most `budget` events; fewer only when there are no more at this moment.
    fn deliver(&self, backlog: &mut Taken<Core, ByDone>, budget: usize, deliver: &mut dyn FnMut(Event)) -> usize {
        let mut n = 0;
        while n < budget {
            if self.has_progress.load(Ordering::Relaxed) && self.has_progress.swap(false, Ordering::AcqRel) {
                n += self.deliver_progress(budget - n, deliver);
                continue;
            }
            if let Some(core) = backlog.next() {
                let (tag, result) = core.take_for_queue();
                deliver(Event::Done { tag, result });
                n += 1;
                continue;
            }
            *backlog = self.done.take_all();
            if backlog.is_empty() {
                break;
            }
        }
        n
    }

    /// Delivers at most `budget` progress values; the others wait for the next drain, unless newer ones replace them.
    fn deliver_progress(&self, budget: usize, deliver: &mut dyn FnMut(Event)) -> usize {
        let mut values = std::mem::take(&mut *lock(&self.progress));
        let mut rest = values.split_off(values.len().min(budget));
        let n = values.len();
        // Dropped after the lock is given back.
        let _outdated: Vec<(u64, Value)>;
        if !rest.is_empty() {
            let mut all = lock(&self.progress);
            let newer = std::mem::take(&mut *all);
            (rest, _outdated) = rest.into_iter().partition(|(tag, _)| newer.iter().all(|(t, _)| t != tag));
            all.extend(rest);
            all.extend(newer);
            self.has_progress.store(true, Ordering::SeqCst);
        }
        for (tag, value) in values {
            deliver(Event::Progress { tag, value });
        }
        n
    }

    /// Gives back the value that nobody has read.
    pub(super) fn progress(&self, tag: u64, value: Value) -> Option<Value> {
        let mut all = lock(&self.progress);
        let replaced = match all.iter_mut().find(|(t, _)| *t == tag) {
            Some(slot) => Some(std::mem::replace(&mut slot.1, value)),
            None => {
                all.push((tag, value));
                None
            }
        };
        drop(all);
        if !self.has_progress.swap(true, Ordering::SeqCst) {
            self.ring();
        }
        replaced
    }

    fn has_work(&self) -> bool {
        self.left_over.load(Ordering::Relaxed) || !self.done.is_empty() || self.has_progress.load(Ordering::Relaxed)
    }

    fn ring(&self) {
        if let Some(notify) = &self.notify {
            notify();
        }
        if let Some(fd) = self.fd.get() {
            fd.signal();
            self.fd_rung.store(true, Ordering::Release);
        }
        self.rings.fetch_add(1, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            futex::wake(&self.rings, u32::MAX);
        }
    }
}
