//! The native threads of a process that call users' callbacks; never a worker of a pool, so that a callback may wait for any task.
//!
//! As a rule there is one, started at first need, and callbacks run on it one after another. When every thread has been inside its
//! callback for [`GRACE`] and others wait, one more is started, at most [`MAX_THREADS`]: a callback may also wait for
//! another one. Surplus threads end when nothing is left to call.

use crate::pool::service;
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::thread;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

type Call = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    calls: VecDeque<Call>,
    threads: usize,
    /// Threads that wait for a call; one that was woken counts until it runs.
    idle: usize,
    /// Calls that a thread has begun, so that a look can tell whether any was since the last.
    begun: u64,
    /// A look is under way.
    watched: bool,
}

#[derive(Default)]
struct Callbacks {
    state: Mutex<State>,
    bell: Condvar,
}

static CALLBACKS: ForkCell<Callbacks> = ForkCell::new();

/// How long the other callbacks wait for one that does not return; also when a thread that could not be started is tried again.
const GRACE: Duration = Duration::from_millis(10);
/// Callbacks that may wait for something at the same time.
const MAX_THREADS: usize = 64;

/// Calls `f` on a callback thread.
pub(super) fn run(f: Call) {
    let callbacks = CALLBACKS.get(Callbacks::default);
    let mut state = lock(&callbacks.state);
    state.calls.push_back(f);
    callbacks.bell.notify_one();
    if state.threads == 0 {
        start(callbacks, &mut state);
    }
    watch(callbacks, state);
}

/// A machine that has no thread now may have one later: [`watch`] sees to it.
fn start(callbacks: &'static Callbacks, state: &mut State) {
    let options = thread::Options { name: "offloop-callback".to_owned(), ..Default::default() };
    state.threads += usize::from(thread::spawn(&options, move || run_loop(callbacks)).is_ok());
}

/// Arranges for a look at the calls that no thread is free for.
fn watch(callbacks: &'static Callbacks, mut state: MutexGuard<'_, State>) {
    if state.watched || state.calls.len() <= state.idle || state.threads == MAX_THREADS {
        return;
    }
    state.watched = true;
    let begun = state.begun;
    drop(state);
    service::run_after(GRACE, Box::new(move || look(callbacks, begun)));
}

/// Starts a thread if no call was begun since `begun` was read.
fn look(callbacks: &'static Callbacks, begun: u64) {
    let mut state = lock(&callbacks.state);
    state.watched = false;
    if state.begun == begun && state.calls.len() > state.idle && state.threads < MAX_THREADS {
        start(callbacks, &mut state);
    }
    watch(callbacks, state);
}

fn run_loop(callbacks: &'static Callbacks) {
    let mut state = lock(&callbacks.state);
    loop {
        if let Some(call) = state.calls.pop_front() {
            state.begun += 1;
            watch(callbacks, state);
            // A callback that panics must not take the others along; there is nobody to tell.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
            state = lock(&callbacks.state);
        } else if state.idle > 0 {
            state.threads -= 1;
            return;
        } else {
            state.idle += 1;
            state = callbacks.bell.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
