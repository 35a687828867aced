//! One native thread per process for deadlines, ticks and callbacks, started at first use. It never runs a task.
//!
//! Deadlines of one duration arrive in order, so each duration has a queue of its own whose front is the earliest;
//! finished tasks are dropped from the front as new ones arrive, which keeps a queue as long as what is really in flight.

use crate::pool::inner::Inner;
use crate::pool::task::Core;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::{clock, futex, thread};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// What is done when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Due {
    /// The task waited too long in the queue.
    QueueTimeout,
    /// The task ran too long.
    Timeout,
    /// The function of an ended task has not returned: its thread may be replaced.
    Replace,
}

struct Timer {
    when_ns: u64,
    task: Weak<Core>,
}

impl Timer {
    /// No longer matters. The task that was looked at goes to `seen`, to be dropped without the lock.
    fn is_settled(&self, due: Due, seen: &mut Vec<Arc<Core>>) -> bool {
        let Some(task) = self.task.upgrade() else { return true };
        let settled = task.is_settled(due);
        seen.push(task);
        settled
    }
}

type Call = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    lanes: HashMap<(Due, u64), VecDeque<Timer>>,
    calls: VecDeque<Call>,
    later: Vec<(u64, Call)>,
    ticks: Vec<Weak<Inner>>,
    tick_at_ns: u64,
    /// When the thread wakes by itself; `u64::MAX` when it sleeps without end.
    sleeps_until_ns: u64,
    started: bool,
}

#[derive(Default)]
struct Service {
    state: Mutex<State>,
    bell: AtomicU32,
}

static SERVICE: ForkCell<Service> = ForkCell::new();

/// How often a pool with waiting work and sleeping workers is looked at.
const TICK_NS: u64 = 1_000_000;

fn service() -> &'static Service {
    SERVICE.get(Service::default)
}

/// Adds something under the lock and wakes the thread if it would wake too late.
fn add(change: impl FnOnce(&mut State) -> u64) {
    let service = service();
    let mut state = lock(&service.state);
    let needed_at = change(&mut state);
    if !state.started {
        state.started = true;
        // Without a thread there are no deadlines; a machine that cannot start one thread will say so at every other place.
        let options = thread::Options { name: "offloop-service".to_owned(), ..Default::default() };
        if thread::spawn(&options, move || run_loop(service)).is_err() {
            state.started = false;
        }
    }
    let wake = needed_at < state.sleeps_until_ns;
    drop(state);
    if wake {
        service.bell.fetch_add(1, Ordering::Release);
        futex::wake(&service.bell, 1);
    }
}

/// Calls `f` on the service thread. `f` must be short or be the user's own callback.
pub(super) fn run(f: Call) {
    add(|s| {
        s.calls.push_back(f);
        0
    });
}

/// Calls `f` on the service thread `after` from now on.
pub(super) fn run_after(after: Duration, f: Call) {
    let when_ns = clock::monotonic_ns().saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
    add(|s| {
        s.later.push((when_ns, f));
        when_ns
    });
}

/// Arranges for `due` to happen `after` from `now_ns` on.
pub(super) fn arm(due: Due, task: &Arc<Core>, now_ns: u64, after: Duration) {
    let after_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
    let when_ns = now_ns.saturating_add(after_ns);
    // Dropped after the lock: the last owner of a task may run a user's free function.
    let mut seen = Vec::new();
    add(|s| {
        let lane = s.lanes.entry((due, after_ns)).or_default();
        // At most two finished ones per new one: amortised constant, and the queue shrinks under load.
        for _ in 0..2 {
            if lane.front().is_some_and(|t| t.is_settled(due, &mut seen)) {
                lane.pop_front();
            }
        }
        lane.push_back(Timer { when_ns, task: Arc::downgrade(task) });
        when_ns
    });
}

/// Looks after `pool` once per millisecond until it has no waiting work.
pub(super) fn tick(pool: &Arc<Inner>, now_ns: u64) {
    add(|s| {
        if s.ticks.is_empty() {
            s.tick_at_ns = now_ns + TICK_NS;
        }
        s.ticks.push(Arc::downgrade(pool));
        s.tick_at_ns
    });
}

fn run_loop(service: &'static Service) {
    loop {
        let seen = service.bell.load(Ordering::Acquire);
        let now = clock::monotonic_ns();
        let mut due: Vec<(Due, Arc<Core>)> = Vec::new();
        let mut next = u64::MAX;
        let mut settled = Vec::new();
        let (calls, ticks);
        {
            let mut s = lock(&service.state);
            s.lanes.retain(|(kind, _), lane| {
                while lane.front().is_some_and(|t| t.when_ns <= now) {
                    let timer = lane.pop_front().expect("looked at above");
                    due.extend(timer.task.upgrade().map(|c| (*kind, c)));
                }
                while lane.front().is_some_and(|t| t.is_settled(*kind, &mut settled)) {
                    lane.pop_front();
                }
                if let Some(front) = lane.front() {
                    next = next.min(front.when_ns);
                }
                !lane.is_empty()
            });
            // Few at any time (one per pool that is closing with a grace), so a list does.
            while let Some(at) = s.later.iter().position(|(when, _)| *when <= now) {
                let (_, call) = s.later.swap_remove(at);
                s.calls.push_back(call);
            }
            next = s.later.iter().map(|(when, _)| *when).fold(next, u64::min);
            calls = std::mem::take(&mut s.calls);
            ticks = if s.tick_at_ns <= now { std::mem::take(&mut s.ticks) } else { Vec::new() };
            if !s.ticks.is_empty() {
                next = next.min(s.tick_at_ns);
            }
            let busy = !calls.is_empty() || !due.is_empty() || !ticks.is_empty();
            s.sleeps_until_ns = if busy { 0 } else { next };
        }
        drop(settled);
        let idle = calls.is_empty() && due.is_empty() && ticks.is_empty();
        for call in calls {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        }
        for (kind, core) in due {
            // A user's free function may run, and panic; the deadlines of everybody else go on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || core.pool.clone().on_due(kind, &core)));
        }
        for pool in ticks {
            if let Some(pool) = pool.upgrade()
                && pool.on_tick()
            {
                tick(&pool, clock::monotonic_ns());
            }
        }
        if idle {
            let timeout = (next != u64::MAX).then(|| Duration::from_nanos(next.saturating_sub(clock::monotonic_ns())));
            futex::wait(&service.bell, seen, timeout);
        }
    }
}
