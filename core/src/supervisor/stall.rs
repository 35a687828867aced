//! Where a loop stands that stands still: what the program says of it when the supervisor asks ([`Worker::on_stall`](super::Worker::on_stall)).

use crate::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use crate::sync::lock;
use crate::sys::thread;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a hook has to answer.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// A loop that stands still.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// The kernel's id of the thread that the loop turned on last.
    pub thread: i32,
    /// What comes later is not heard. 500 ms.
    pub patience: Duration,
}

type Hook = Arc<dyn Fn(&Stall) -> Option<String> + Send + Sync>;

/// What a worker knows for the case.
#[derive(Default)]
pub(super) struct Stalls {
    hook: Mutex<Option<Hook>>,
    thread: AtomicI32,
    asking: AtomicBool,
}

impl fmt::Debug for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stalls").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Stalls {
    pub(super) fn set(&self, hook: Hook) {
        *lock(&self.hook) = Some(hook);
    }

    /// The loop turns on this thread.
    pub(super) fn turned(&self) {
        self.thread.store(thread::id(), Ordering::Relaxed);
    }

    /// False while the hook has not come back.
    pub(super) fn begin(&self) -> bool {
        !self.asking.swap(true, Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.asking.store(false, Ordering::Release);
    }

    /// What the hook says; empty: nothing.
    pub(super) fn ask(&self) -> String {
        // Not under the lock: it may take long.
        let hook = lock(&self.hook).clone();
        let stall = Stall { thread: self.thread.load(Ordering::Relaxed), patience: PATIENCE };
        let said = hook.and_then(|hook| catch_unwind(AssertUnwindSafe(|| hook(&stall))).ok().flatten());
        said.unwrap_or_default()
    }
}
