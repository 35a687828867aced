//! One native thread per process for users' callbacks, started at first need. They run in order, apart from deadlines:
//! a callback that waits for something delays other callbacks only.

use crate::pool::service;
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::thread;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

type Call = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    calls: VecDeque<Call>,
    started: bool,
}

#[derive(Default)]
struct Callbacks {
    state: Mutex<State>,
    bell: Condvar,
}

static CALLBACKS: ForkCell<Callbacks> = ForkCell::new();

/// When a thread that could not be started is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Calls `f` on the callback thread.
pub(super) fn run(f: Call) {
    let callbacks = CALLBACKS.get(Callbacks::default);
    lock(&callbacks.state).calls.push_back(f);
    callbacks.bell.notify_one();
    start(callbacks);
}

/// Starts the thread unless it is there. A machine that has no thread now may have one later.
fn start(callbacks: &'static Callbacks) {
    let mut state = lock(&callbacks.state);
    if state.started {
        return;
    }
    let options = thread::Options { name: "offloop-callback".to_owned(), ..Default::default() };
    state.started = thread::spawn(&options, move || run_loop(callbacks)).is_ok();
    if !state.started {
        drop(state);
        service::run_after(RETRY, Box::new(move || start(callbacks)));
    }
}

fn run_loop(callbacks: &'static Callbacks) {
    let mut state = lock(&callbacks.state);
    loop {
        match state.calls.pop_front() {
            Some(call) => {
                drop(state);
                // A callback that panics must not take the others along; there is nobody to tell.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
                state = lock(&callbacks.state);
            }
            None => state = callbacks.bell.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
        }
    }
}
