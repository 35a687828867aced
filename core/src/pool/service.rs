//! One native thread per process for deadlines and ticks, started before the first task is accepted. It runs neither tasks nor
//! callbacks. A process without it accepts no task, so what was accepted can count on it.
//!
//! Deadlines of one duration arrive in order, so each duration has a queue of its own (a *lane*) whose front is the earliest.
//! A heap has the front of each lane, so that a look costs what is due and not what is there.
//! Finished tasks are dropped from the front as new ones arrive; those behind one that is not finished are swept out when
//! the number of deadlines has doubled since the last sweep, so that they are in proportion to what is really in flight.

use crate::error::Result;
use crate::pool::inner::Inner;
use crate::pool::task::Core;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::{clock, futex, thread};
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// What is done when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// Fewer deadlines are not worth a sweep.
const SWEEP_FROM: usize = 128;

/// Timers that one look takes: how long whoever arms one may have to wait for the lock.
const LOOK: usize = 256;

/// What a lane's timers have in common: what is done, and after how many nanoseconds.
type Key = (Due, u64);

#[derive(Default)]
struct State {
    /// None of them is empty.
    lanes: HashMap<Key, VecDeque<Timer>>,
    /// One entry per lane, with a time not after that of its front.
    fronts: BinaryHeap<Reverse<(u64, Key)>>,
    /// Number of timers in all lanes.
    timers: usize,
    /// How many of them the last sweep left.
    unsettled: usize,
    later: Vec<(u64, Call)>,
    ticks: Vec<Weak<Inner>>,
    tick_at_ns: u64,
    /// When the thread wakes by itself; `u64::MAX` when it sleeps without end.
    sleeps_until_ns: u64,
}

impl State {
    /// Adds a timer to its lane. The tasks that were looked at go to `seen`.
    fn push(&mut self, due: Due, after_ns: u64, timer: Timer, seen: &mut Vec<Arc<Core>>) {
        let lane = self.lanes.entry((due, after_ns)).or_default();
        if lane.is_empty() {
            self.fronts.push(Reverse((timer.when_ns, (due, after_ns))));
        }
        // At most two finished ones per new one: amortised constant, and the queue shrinks under load.
        for _ in 0..2 {
            if lane.front().is_some_and(|t| t.is_settled(due, seen)) {
                lane.pop_front();
                self.timers -= 1;
            }
        }
        lane.push_back(timer);
        self.timers += 1;
        if self.timers >= SWEEP_FROM.max(2 * self.unsettled) {
            self.sweep(seen);
        }
    }

    /// Drops every settled timer, and the lanes that are then empty. As many were added since the last sweep as it left,
    /// so its cost per timer is constant.
    fn sweep(&mut self, seen: &mut Vec<Arc<Core>>) {
        let mut left = 0;
        self.lanes.retain(|(due, _), lane| {
            lane.retain(|t| !t.is_settled(*due, seen));
            lane.shrink_to(2 * lane.len());
            left += lane.len();
            !lane.is_empty()
        });
        self.lanes.shrink_to(2 * self.lanes.len());
        self.fronts = self.lanes.iter().filter_map(|(key, lane)| Some(Reverse((lane.front()?.when_ns, *key)))).collect();
        (self.timers, self.unsettled) = (left, left);
    }

    /// Takes what is due, and what has settled before it, at most [`LOOK`] of them. Returns when the next look is needed. The
    /// settled tasks that were looked at go to `seen`.
    fn take_due(&mut self, now: u64, due: &mut Vec<(Due, Duration, Arc<Core>)>, seen: &mut Vec<Arc<Core>>) -> u64 {
        let before = self.timers;
        while let Some(mut top) = self.fronts.peek_mut() {
            if before - self.timers >= LOOK {
                return now;
            }
            let Reverse((at, key)) = *top;
            let lane = self.lanes.get_mut(&key).expect("a lane of each entry");
            let front = lane.front().expect("no lane is empty");
            if front.when_ns <= now {
                due.extend(front.task.upgrade().map(|core| (key.0, Duration::from_nanos(key.1), core)));
            } else if !front.is_settled(key.0, seen) {
                if front.when_ns == at {
                    break;
                }
                *top = Reverse((front.when_ns, key)); // its earlier ones have settled
                continue;
            }
            lane.pop_front();
            self.timers -= 1;
            match lane.front() {
                Some(front) => *top = Reverse((front.when_ns, key)),
                None => {
                    PeekMut::pop(top);
                    self.lanes.remove(&key);
                }
            }
        }
        self.unsettled = self.unsettled.min(self.timers);
        self.fronts.peek().map_or(u64::MAX, |Reverse((at, _))| *at)
    }
}

#[derive(Default)]
struct Service {
    state: Mutex<State>,
    bell: AtomicU32,
    /// Set under the lock of `state`, for good.
    started: AtomicBool,
}

static SERVICE: ForkCell<Service> = ForkCell::new();

/// How often a pool with waiting work and sleeping workers is looked at.
const TICK_NS: u64 = 1_000_000;

fn service() -> &'static Service {
    SERVICE.get(Service::default)
}

/// Starts the thread if this process has none yet.
///
/// # Errors
/// `Os` when the system has no thread for it. The next call tries again.
#[inline]
pub(super) fn ensure_started() -> Result<()> {
    let service = service();
    // Nothing but the fact is read: Relaxed.
    if service.started.load(Ordering::Relaxed) { Ok(()) } else { start(service, &mut lock(&service.state)) }
}

/// The caller holds the lock, so that one thread is started.
#[cold]
fn start(service: &'static Service, _state: &mut State) -> Result<()> {
    if !service.started.load(Ordering::Relaxed) {
        let options = thread::Options { name: "offloop-service".to_owned(), ..Default::default() };
        thread::spawn(&options, move || run_loop(service))?;
        service.started.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Adds something under the lock and wakes the thread if it would wake too late.
fn add(change: impl FnOnce(&mut State) -> u64) {
    let service = service();
    let mut state = lock(&service.state);
    let needed_at = change(&mut state);
    if !service.started.load(Ordering::Relaxed) {
        // Only a forked child that has accepted no task comes here, to tell the listeners of those that it inherited. What
        // is added stays until somebody who comes later gets the thread.
        let _ = start(service, &mut state);
    }
    let wake = needed_at < state.sleeps_until_ns;
    drop(state);
    if wake {
        service.bell.fetch_add(1, Ordering::Release);
        futex::wake(&service.bell, 1);
    }
}

/// Calls `f` on the service thread `after` from now on. It must be short: the deadlines of everybody wait meanwhile.
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
        s.push(due, after_ns, Timer { when_ns, task: Arc::downgrade(task) }, &mut seen);
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
        let mut due: Vec<(Due, Duration, Arc<Core>)> = Vec::new();
        let next;
        let mut settled = Vec::new();
        let mut calls: Vec<Call> = Vec::new();
        let ticks;
        {
            let mut s = lock(&service.state);
            let mut next_due = s.take_due(now, &mut due, &mut settled);
            // Few at any time (one per pool that is closing with a grace), so a list does.
            while let Some(at) = s.later.iter().position(|(when, _)| *when <= now) {
                let (_, call) = s.later.swap_remove(at);
                calls.push(call);
            }
            next_due = s.later.iter().map(|(when, _)| *when).fold(next_due, u64::min);
            ticks = if s.tick_at_ns <= now { std::mem::take(&mut s.ticks) } else { Vec::new() };
            next = if s.ticks.is_empty() { next_due } else { next_due.min(s.tick_at_ns) };
            let busy = !calls.is_empty() || !due.is_empty() || !ticks.is_empty();
            s.sleeps_until_ns = if busy { 0 } else { next };
        }
        drop(settled);
        let idle = calls.is_empty() && due.is_empty() && ticks.is_empty();
        for call in calls {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        }
        for (kind, limit, core) in due {
            // A user's free function may run, and panic; the deadlines of everybody else go on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || core.pool.clone().on_due(kind, limit, &core)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{SubmitOptions, Task, ThreadPool, Work};
    use crate::value::Value;
    use std::sync::mpsc;

    const HOUR_NS: u64 = 3_600_000_000_000;

    fn push(state: &mut State, after_ns: u64, task: &Task) {
        let timer = Timer { when_ns: HOUR_NS, task: Arc::downgrade(&task.0) };
        state.push(Due::Timeout, after_ns, timer, &mut Vec::new());
    }

    /// A task that runs until the sender is dropped, and one that is done.
    fn running_and_done(pool: &ThreadPool) -> (mpsc::Sender<()>, Task, Task) {
        let done = pool.submit(Work::call(|_| Ok(Value::Nil)), SubmitOptions::default()).expect("submit");
        done.wait(None).expect("outcome");
        let (open, gate) = mpsc::channel::<()>();
        let (started, starts) = mpsc::channel();
        let work = Work::call(move |_| {
            started.send(()).expect("test waits");
            let _ = gate.recv();
            Ok(Value::Nil)
        });
        let running = pool.submit(work, SubmitOptions::default()).expect("submit");
        starts.recv().expect("started");
        (open, running, done)
    }

    #[test]
    fn finished_tasks_behind_a_slow_one_are_forgotten() {
        let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
        let (_open, running, done) = running_and_done(&pool);
        let mut state = State::default();
        push(&mut state, HOUR_NS, &running);
        for _ in 0..10 * SWEEP_FROM {
            push(&mut state, HOUR_NS, &done);
        }
        let lane = &state.lanes[&(Due::Timeout, HOUR_NS)];
        assert!(lane.len() <= SWEEP_FROM, "{} deadlines for one running task", lane.len());
        assert_eq!(lane.len(), state.timers);
        assert!(Weak::ptr_eq(&lane[0].task, &Arc::downgrade(&running.0)), "the running one keeps its place");
    }

    #[test]
    fn finished_tasks_with_timeouts_of_their_own_are_forgotten() {
        let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
        let (_open, running, done) = running_and_done(&pool);
        let mut state = State::default();
        for i in 0..10 * SWEEP_FROM as u64 {
            push(&mut state, HOUR_NS + i, &done);
        }
        assert!(state.lanes.len() <= SWEEP_FROM, "{} lanes for no running task", state.lanes.len());
        for i in 0..10 * SWEEP_FROM as u64 {
            push(&mut state, HOUR_NS + i, &running);
        }
        assert!(state.timers >= 10 * SWEEP_FROM, "deadlines that matter stay");
    }

    #[test]
    fn a_look_takes_what_is_due_in_bounded_steps_and_says_when_to_come_back() {
        let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
        let (_open, running, done) = running_and_done(&pool);
        let mut state = State::default();
        let mut put = |after_ns: u64, task: &Task| {
            let timer = Timer { when_ns: after_ns, task: Arc::downgrade(&task.0) };
            state.push(Due::Timeout, after_ns, timer, &mut Vec::new());
        };
        let many = 3 * LOOK as u64;
        // Scattered over lanes of their own, two that have settled before the last.
        (0..many).for_each(|i| put(i * 7919 % many + 1, &running));
        put(many + 10, &done);
        put(many + 20, &done);
        put(many + 30, &running);
        let (mut looks, mut taken) = (0, Vec::new());
        let next = loop {
            let before = taken.len();
            let next = state.take_due(many, &mut taken, &mut Vec::new());
            assert!(taken.len() - before <= LOOK);
            looks += 1;
            if next > many {
                break next;
            }
        };
        assert_eq!((looks, taken.len() as u64, next), (4, many, many + 30));
        assert!(taken.is_sorted_by_key(|(_, after, _)| *after), "the earliest first");
        assert_eq!((state.timers, state.lanes.len(), state.fronts.len()), (1, 1, 1));
    }
}
