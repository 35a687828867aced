//! Waits inside a pool's own functions: one that could never end is an error.
//!
//! A function that waits for a task of its own pool keeps a thread from running it. That is no harm while another thread is left;
//! whoever would be the last one to wait is told so instead. Only waits without a time limit are known here, because the others end.

use crate::error::{Error, Result};
use crate::pool::inner::Inner;
use crate::pool::task::Core;
use crate::pool::worker::Turn;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    /// The pool whose function this thread runs, by its address, and the slot that runs it.
    static RUNS: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

fn address(pool: &Inner) -> usize {
    std::ptr::from_ref(pool).addr()
}

/// This thread runs a function of `pool` from now on, or (`None`) no longer does.
pub(super) fn running(pool: Option<(&Inner, Turn)>) {
    RUNS.set(pool.map(|(pool, me)| (address(pool), me.slot)));
}

/// The slot of `pool` whose function this thread runs.
pub(super) fn slot_here(pool: &Inner) -> Option<usize> {
    RUNS.get().filter(|(at, _)| *at == address(pool)).map(|(_, slot)| slot)
}

/// What a thread waits for.
pub(super) enum For {
    Task(Arc<Core>),
    /// So much room in the queue.
    Room(usize),
}

impl For {
    /// What is waited for is not there, and only a thread of the pool can bring it.
    fn is_missing(&self, pool: &Inner) -> bool {
        match self {
            For::Task(core) => core.is_open(),
            For::Room(n) => !pool.has_room(*n),
        }
    }
}

/// A wait without end that others know of.
pub struct WaitGuard {
    pool: Arc<Inner>,
    id: u64,
}

impl std::fmt::Debug for WaitGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WaitGuard({})", self.id)
    }
}

/// The waits of a pool's own threads.
#[derive(Default)]
pub(super) struct Waits {
    last_id: u64,
    open: Vec<(u64, For)>,
}

/// Begins a wait; `None` on a thread that runs no function of `pool`.
pub(super) fn begin(pool: &Arc<Inner>, what: For) -> Result<Option<WaitGuard>> {
    let Some(slot) = slot_here(pool) else { return Ok(None) };
    let (keyed_here, threads) = {
        let state = lock(&pool.state);
        let key = if let For::Task(core) = &what { core.key } else { None };
        // A task that was submitted a moment ago may not be pinned yet.
        let home = key.map(|key| state.sched.slot_of(key));
        // A thread that lost its slot to another may wait as well.
        (home == Some(slot), pool.max_workers() + state.replaced)
    };
    let mut waits = lock(&pool.waits);
    if what.is_missing(pool) {
        // Whoever has what it waits for goes on, although it may not have woken yet.
        let others = waits.open.iter().filter(|(_, what)| what.is_missing(pool)).count();
        if keyed_here || others + 1 >= threads {
            let error = Error::invalid(if keyed_here {
                "the function would wait for ever: the task it waits for has a key of its own thread"
            } else {
                "the function would wait for ever: every thread of its pool waits for the pool itself"
            });
            return Err(error.with("pool", &pool.config.options.name).with("max_workers", pool.config.max_workers.load(Ordering::Relaxed)));
        }
    }
    waits.last_id += 1;
    let id = waits.last_id;
    waits.open.push((id, what));
    drop(waits);
    Ok(Some(WaitGuard { pool: pool.clone(), id }))
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let _ended = {
            let mut waits = lock(&self.pool.waits);
            let at = waits.open.iter().position(|(id, _)| *id == self.id);
            // Dropped after the lock: the last owner of a task may run a user's free function.
            at.map(|at| waits.open.swap_remove(at))
        };
    }
}
