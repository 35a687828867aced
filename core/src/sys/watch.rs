//! Fds for event loops that take a callback instead of an fd: one thread waits for all of them.
//!
//! A watch is one-shot: it is armed, calls once when its fd is readable, and is silent until it is armed again. So a loop
//! that is slow to look is not called a second time.

use super::fork::{self, ForkCell};
use super::poll::Epoll;
use super::thread;
use crate::error::Result;
use crate::sync::lock;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

type Notify = Arc<dyn Fn() + Send + Sync>;

struct Watcher {
    epoll: Epoll,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    last: u64,
    by_token: HashMap<u64, Notify>,
}

/// A forked child starts its own; threads do not survive a fork.
static WATCHER: ForkCell<Mutex<Option<Arc<Watcher>>>> = ForkCell::new();

fn watcher() -> Result<Arc<Watcher>> {
    let mut current = lock(WATCHER.get(|| Mutex::new(None)));
    if let Some(watcher) = &*current {
        return Ok(Arc::clone(watcher));
    }
    let watcher = Arc::new(Watcher { epoll: Epoll::new()?, calls: Mutex::default() });
    let own = Arc::clone(&watcher);
    // Ends with the process: it holds nothing that outlives it.
    drop(thread::spawn(&thread::Options { name: "offloop-watch".to_owned(), ..thread::Options::default() }, move || own.run())?);
    *current = Some(Arc::clone(&watcher));
    Ok(watcher)
}

impl Watcher {
    fn run(&self) {
        let mut ready = Vec::with_capacity(64);
        loop {
            self.epoll.wait(&mut ready);
            for token in ready.drain(..) {
                // Called without the lock: a callback may make or drop a watch.
                let notify = lock(&self.calls).by_token.get(&token).cloned();
                if let Some(notify) = notify {
                    notify();
                }
            }
        }
    }
}

/// A readable fd's way to a callback. A call that was under way when the watch is dropped may still come.
pub struct Watch {
    watcher: Arc<Watcher>,
    token: u64,
    fd: OwnedFd,
    epoch: u64,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("fd", &self.fd).field("token", &self.token).finish_non_exhaustive()
    }
}

impl Watch {
    /// Prepares `notify`, which runs on a thread of this module and must not block; `fd` is duplicated.
    ///
    /// # Errors
    /// `Os` when an fd, memory or a thread is missing.
    pub fn new(fd: BorrowedFd<'_>, notify: impl Fn() + Send + Sync + 'static) -> Result<Watch> {
        let fd = super::poll::duplicate(fd)?;
        let watcher = watcher()?;
        let token = {
            let mut calls = lock(&watcher.calls);
            calls.last += 1;
            let token = calls.last;
            calls.by_token.insert(token, Arc::new(notify));
            token
        };
        let watch = Watch { watcher, token, fd, epoch: fork::epoch() };
        watch.watcher.epoll.add_silent(watch.fd.as_fd(), token)?;
        Ok(watch)
    }

    /// Calls once when the fd is readable; at once if it is now.
    ///
    /// # Errors
    /// `Os` with `ENOMEM`.
    pub fn arm(&self) -> Result<()> {
        self.watcher.epoll.rearm(self.fd.as_fd(), self.token)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A forked child shares the parent's epoll file, and must leave its members alone.
        if fork::is_current(self.epoch) {
            self.watcher.epoll.remove(self.fd.as_fd());
            lock(&self.watcher.calls).by_token.remove(&self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::eventfd::EventFd;
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn calls_once_per_arming_and_not_after_the_drop() {
        let bell = EventFd::new().expect("eventfd");
        let (called, calls) = mpsc::channel();
        let watch = Watch::new(bell.fd(), move || called.send(()).expect("the test receives")).expect("watch");
        bell.signal();
        assert!(calls.try_recv().is_err(), "not armed yet");
        watch.arm().expect("arm");
        calls.recv().expect("readable already");
        watch.arm().expect("arm");
        calls.recv().expect("level-triggered");
        assert!(bell.clear());
        watch.arm().expect("arm");
        bell.signal();
        calls.recv().expect("became readable");
        drop(watch);
        // The sender lives in the callback, which the drop has freed.
        assert_eq!(calls.recv(), Err(mpsc::RecvError));
    }
}
