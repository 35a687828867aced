//! One submitted call: its states, its one outcome, and who gets it.
//!
//! ```text
//!            worker starts it             returns
//!  QUEUED ────────────────────► RUNNING ───────────► FINISHING ─► DONE
//!    │                             │                    ▲
//!    │ cancel, queue timeout,      │ cancel, timeout:   │
//!    │ pool ends                   │ the caller has its │
//!    └─────────────────────────────┴─ outcome at once ──┘
//! ```
//!
//! Whoever moves a task to FINISHING owns its outcome; everybody else lost the race. A running task whose outcome was
//! decided by somebody else is *overdue* until its function returns.
//!
//! | Field      | Written by                               | Ordering                                              |
//! |------------|------------------------------------------|-------------------------------------------------------|
//! | `state`    | CAS by whoever moves it                  | AcqRel; DONE is a SeqCst swap                          |
//! | `work`     | submitter; taken by QUEUED → RUNNING or QUEUED → FINISHING | by `state`                           |
//! | `result`   | owner of FINISHING; taken under `taken`  | Release of DONE pairs with Acquire of `state` in readers |
//! | `trace`    | owner of FINISHING                       | a `OnceLock`                                           |
//! | `waiters`  | waiters, before they look at `state`     | SeqCst; Dekker with the SeqCst swap to DONE            |

use crate::abi::ctx::Function;
use crate::buffer::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Control, OpCtx, OpDef, Params};
use crate::pool::callbacks;
use crate::pool::completion::Queue;
use crate::pool::inner::Inner;
use crate::pool::options::Deliver;
use crate::pool::service::Due;
use crate::pool::stuck::{self, WaitGuard};
use crate::pool::trace::{Ending, Outcome, Trace};
use crate::pool::{DynOp, sched};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::sync::lock;
use crate::sync::stack::{Link, Linked};
use crate::sys::{fork, futex};
use crate::value::Value;
use std::any::Any;
use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

pub(super) const QUEUED: u32 = 0;
pub(super) const RUNNING: u32 = 1;
const FINISHING: u32 = 2;
pub(super) const DONE: u32 = 3;

/// Added to `waiters` by a waiter that may look after the workers meanwhile, and is then not asleep on `state`.
const LEADS: u32 = 1 << 16;
/// Set in `waiters` when `listeners` is not empty.
const HAS_LISTENERS: u32 = 1 << 31;

/// What a task does.
pub struct Work(pub(super) WorkKind);

pub(super) type Closure = Box<dyn FnOnce(&mut OpCtx<'_>) -> Result<Value> + Send>;

pub(super) enum WorkKind {
    Op(&'static OpDef, Vec<Bytes>, Params),
    Plugin(Arc<dyn DynOp>, Vec<Bytes>, Params),
    Call(Closure),
    Function(Function),
    Hosted(Box<dyn Any + Send>),
}

impl Work {
    /// A closure. Its context has no inputs and no options.
    pub fn call(f: impl FnOnce(&mut OpCtx<'_>) -> Result<Value> + Send + 'static) -> Work {
        Work(WorkKind::Call(Box::new(f)))
    }

    /// A C function.
    #[must_use]
    pub fn function(f: Function) -> Work {
        Work(WorkKind::Function(f))
    }

    /// A call that a thread of the host makes; see `Builder::hosted`.
    #[must_use]
    pub fn hosted(payload: Box<dyn Any + Send>) -> Work {
        Work(WorkKind::Hosted(payload))
    }

    /// Gives the inputs of an op back, for a host that keeps what was not submitted.
    #[must_use]
    pub fn into_inputs(self) -> Vec<Bytes> {
        match self.0 {
            WorkKind::Op(_, inputs, _) | WorkKind::Plugin(_, inputs, _) => inputs,
            WorkKind::Call(_) | WorkKind::Function(_) | WorkKind::Hosted(_) => Vec::new(),
        }
    }

    /// Gives the payload of [`Work::hosted`] back.
    #[must_use]
    pub fn into_payload(self) -> Option<Box<dyn Any + Send>> {
        if let WorkKind::Hosted(p) = self.0 { Some(p) } else { None }
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            WorkKind::Op(op, ..) => op.name,
            WorkKind::Plugin(op, ..) => op.name(),
            WorkKind::Call(_) => "call",
            WorkKind::Function(_) => "function",
            WorkKind::Hosted(_) => "hosted",
        })
    }
}

type OnDone = Box<dyn FnOnce(&Task) + Send>;
type Callback = Box<dyn FnOnce(Result<Value>) + Send>;

/// Who is told of the end of a task.
enum Listener {
    /// A user's callback, which may block.
    Callback(OnDone),
    /// A face's own function, which does not: a worker calls it itself.
    Inline(OnDone),
}

impl Listener {
    fn tell(self, task: Task, on_worker: bool) {
        match self {
            // One that panics must not take the worker along; there is nobody to tell.
            Listener::Inline(f) if on_worker => drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&task)))),
            Listener::Inline(f) | Listener::Callback(f) => callbacks::run(Box::new(move || f(&task))),
        }
    }
}

/// The shared part of a task.
pub(crate) struct Core {
    inject: Link,
    done: Link,
    pub(super) state: AtomicU32,
    waiters: AtomicU32,
    /// 0, or the status of the outcome that was decided while the function runs: what `OpCtx::check` returns.
    token: AtomicU8,
    /// The function has returned; only kept for tasks whose outcome was decided before.
    pub(super) returned: AtomicBool,
    /// Slot and turn of the worker that runs it: `slot << 32 | turn`.
    pub(super) ran_by: AtomicU64,
    /// The result was given away.
    taken: AtomicBool,
    pub(super) priority: i8,
    /// The completion queue, if that is where the outcome goes; apart from `callback` because progress needs it too.
    queue: Option<(Arc<Queue>, u64)>,
    pub(super) key: Option<u64>,
    pub(super) submitted_ns: u64,
    /// When the latest run started. Stored before the task is RUNNING, whose Acquire in [`Core::is_late`] and in who ends it sees it.
    started_ns: AtomicU64,
    pub(super) timeout: Option<Duration>,
    /// It has a deadline, a key or a worker of its own: who takes tasks ahead takes it by itself, when it begins it.
    pub(super) alone: bool,
    /// 1 + the only slot that may run it; 0: any.
    only: u32,
    /// What a task needs that may run more than once.
    pub(super) runs: Option<Box<Runs>>,
    /// Of a task that is traced: set before its outcome is known.
    trace: Option<Box<OnceLock<Trace>>>,
    pub(super) pool: Arc<Inner>,
    work: UnsafeCell<Option<WorkKind>>,
    callback: UnsafeCell<Option<Callback>>,
    result: UnsafeCell<Option<Result<Value>>>,
    rare: OnceLock<Box<Rare>>,
}

/// The runs of a task that is run again when its worker is lost.
pub(super) struct Runs {
    max: u32,
    /// Runs whose worker was lost.
    lost: AtomicU32,
}

/// What few tasks need.
#[derive(Default)]
struct Rare {
    listeners: Mutex<Vec<Listener>>,
    progress: Mutex<Option<Value>>,
}

// SAFETY: the three cells are touched only by the owner that `state` (and `taken`) names, see the module's table; what
// they hold is `Send`.
unsafe impl Send for Core {}
// SAFETY: as above.
unsafe impl Sync for Core {}

pub(crate) struct ByInject;
impl Linked<Core> for ByInject {
    fn link(node: &Core) -> &Link {
        &node.inject
    }
}

pub(crate) struct ByDone;
impl Linked<Core> for ByDone {
    fn link(node: &Core) -> &Link {
        &node.done
    }
}

impl sched::Item for Arc<Core> {
    fn priority(&self) -> i8 {
        self.priority
    }
    fn submitted_ns(&self) -> u64 {
        self.submitted_ns
    }
    fn key(&self) -> Option<u64> {
        self.key
    }
    fn slot(&self) -> Option<usize> {
        self.only.checked_sub(1).map(|slot| slot as usize)
    }
    fn is_live(&self) -> bool {
        self.state.load(Ordering::Relaxed) == QUEUED
    }
}

pub(super) struct NewCore {
    pub(super) work: WorkKind,
    pub(super) deliver: Deliver,
    pub(super) priority: i8,
    pub(super) key: Option<u64>,
    pub(super) submitted_ns: u64,
    pub(super) timeout: Option<Duration>,
    pub(super) alone: bool,
    pub(super) worker: Option<usize>,
    pub(super) retries: u32,
    pub(super) trace: bool,
}

/// How a task left the queue or the worker, for the counters.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was still queued; its inputs and `arg_free` go with the work, best after the caller has its outcome.
    Queued(Work),
    /// It was running and still is.
    Running,
}

impl Core {
    pub(super) fn new(pool: Arc<Inner>, new: NewCore) -> Arc<Core> {
        let (queue, callback) = match new.deliver {
            Deliver::Queue(q, tag) => (Some((q.shared(), tag)), None),
            Deliver::Callback(f) => (None, Some(f)),
            Deliver::Wait => (None, None),
        };
        spare::fill(Core {
            inject: Link::new(),
            done: Link::new(),
            state: AtomicU32::new(QUEUED),
            waiters: AtomicU32::new(0),
            token: AtomicU8::new(0),
            returned: AtomicBool::new(false),
            ran_by: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            priority: new.priority,
            queue,
            key: new.key,
            submitted_ns: new.submitted_ns,
            started_ns: AtomicU64::new(0),
            timeout: new.timeout,
            alone: new.alone,
            only: new.worker.map_or(0, |slot| slot as u32 + 1),
            runs: (new.retries > 0).then(|| Box::new(Runs { max: new.retries.saturating_add(1), lost: AtomicU32::new(0) })),
            trace: new.trace.then(Box::default),
            pool,
            work: UnsafeCell::new(Some(new.work)),
            callback: UnsafeCell::new(callback),
            result: UnsafeCell::new(None),
            rare: OnceLock::new(),
        })
    }

    /// Moves QUEUED → RUNNING and takes the work; `None` if the task already has its outcome.
    pub(super) fn start(&self, now_ns: u64) -> Option<WorkKind> {
        self.started_ns.store(now_ns, Ordering::Relaxed);
        self.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // SAFETY: this thread moved the task out of QUEUED, so the work is its own.
        unsafe { (*self.work.get()).take() }
    }

    /// Its worker has it for itself: another one may not run it.
    pub(super) fn is_bound(&self) -> bool {
        self.key.is_some() || self.only != 0
    }

    /// Counts a run whose worker was lost. True if there may be one more.
    pub(super) fn may_run_again(&self) -> bool {
        self.runs.as_ref().is_some_and(|runs| runs.lost.fetch_add(1, Ordering::Relaxed) + 1 < runs.max)
    }

    /// It has run before.
    pub(super) fn ran_before(&self) -> bool {
        self.runs.as_ref().is_some_and(|runs| runs.lost.load(Ordering::Relaxed) > 0)
    }

    /// The run that goes on has reached `limit`: a deadline may be that of an earlier one.
    pub(super) fn is_late(&self, now_ns: u64, limit: Duration) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
            && (self.runs.is_none() || u128::from(now_ns.saturating_sub(self.started_ns.load(Ordering::Relaxed))) >= limit.as_nanos())
    }

    /// Moves RUNNING → QUEUED and puts the work back: it was handed out and has not begun, or is run again. False if it has its outcome.
    pub(super) fn unstart(&self, work: WorkKind) -> bool {
        // SAFETY: whoever moved the task to RUNNING has taken its work, and is the one who calls this; others touch the cell only
        // after they have moved the task out of QUEUED.
        let cell = unsafe { &mut *self.work.get() };
        *cell = Some(work);
        self.state.compare_exchange(RUNNING, QUEUED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The worker's right to decide the outcome; [`publish`](Self::publish) must follow. False if somebody else has it.
    pub(super) fn claim_finish(&self) -> bool {
        self.state.compare_exchange(RUNNING, FINISHING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The right to decide the outcome from outside; [`publish`](Self::publish) must follow. `None` if it was decided.
    pub(super) fn claim_end(&self, kind: ErrorKind) -> Option<Ended> {
        loop {
            if let Some(ended) = self.claim_end_queued() {
                return Some(ended);
            }
            if let Some(ended) = self.claim_end_running(kind) {
                return Some(ended);
            }
            // QUEUED may have become RUNNING between the two attempts.
            if self.state.load(Ordering::Relaxed) >= FINISHING {
                return None;
            }
        }
    }

    /// As [`claim_end`](Self::claim_end), but only while it runs.
    pub(super) fn claim_end_running(&self, kind: ErrorKind) -> Option<Ended> {
        self.claim_finish().then(|| {
            self.token.store((-kind.status()) as u8, Ordering::Release);
            Ended::Running
        })
    }

    /// As [`claim_end`](Self::claim_end), but only while queued.
    pub(super) fn claim_end_queued(&self) -> Option<Ended> {
        self.state.compare_exchange(QUEUED, FINISHING, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // SAFETY: this thread moved the task out of QUEUED, so the work is its own.
        let work = unsafe { (*self.work.get()).take() };
        Some(Ended::Queued(Work(work.expect("a queued task has its work"))))
    }

    /// Notes what became of a task that is traced; its outcome is published next. The caller has claimed it.
    pub(super) fn note(&self, outcome: Outcome, ending: Ending) {
        if let Some(trace) = &self.trace {
            // Claimed once, so this is the only note.
            let _ = trace.set(Trace::new(self, self.started_ns.load(Ordering::Relaxed), outcome, ending));
        }
    }

    /// Makes the outcome known. The caller has claimed it.
    pub(super) fn publish(self: &Arc<Core>, result: Result<Value>, on_worker: bool) {
        // SAFETY: only the owner of FINISHING touches these cells until DONE is visible.
        let callback = unsafe {
            *self.result.get() = Some(result);
            (*self.callback.get()).take()
        };
        self.state.swap(DONE, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) != 0 {
            futex::wake(&self.state, u32::MAX);
            let waiters = self.waiters.load(Ordering::SeqCst);
            if waiters & !HAS_LISTENERS >= LEADS
                && let Some(looped) = &self.pool.config.looped
            {
                looped.host.wake_leader();
            }
            if waiters & HAS_LISTENERS != 0 {
                for listener in std::mem::take(&mut *lock(&self.rare().listeners)) {
                    listener.tell(Task::of(self.clone()), on_worker);
                }
            }
        }
        if let Some((queue, _)) = &self.queue {
            queue.push(self.clone());
        } else if let Some(callback) = callback {
            let result = self.take_result().unwrap_or_else(|| Err(already_taken()));
            callbacks::run(Box::new(move || callback(result)));
        }
    }

    fn take_result(&self) -> Option<Result<Value>> {
        if self.state.load(Ordering::Acquire) != DONE || self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: DONE was seen with Acquire, and `taken` lets one thread in.
        unsafe { (*self.result.get()).take() }
    }

    pub(super) fn take_for_queue(self: Arc<Core>) -> (u64, Result<Value>) {
        let tag = self.queue.as_ref().map_or(0, |(_, tag)| *tag);
        let result = self.take_result().unwrap_or_else(|| Err(already_taken()));
        spare::keep(self);
        (tag, result)
    }

    /// A deadline of this kind no longer matters.
    pub(super) fn is_settled(&self, due: Due) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        match due {
            Due::QueueTimeout => state != QUEUED,
            Due::Timeout => state != RUNNING,
            Due::Replace => self.returned.load(Ordering::Relaxed),
        }
    }

    /// Nobody has decided its outcome.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) < FINISHING
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    fn is_forked(&self) -> bool {
        !fork::is_current(self.pool.epoch())
    }
}

/// Memory of finished tasks, kept by the thread that takes their outcomes, which as a rule is the one that submits the next.
mod spare {
    use super::Core;
    use std::cell::RefCell;
    use std::mem::MaybeUninit;
    use std::sync::Arc;

    /// As many as are commonly taken at once.
    const MAX: usize = 1024;

    thread_local! {
        static SPARE: RefCell<Vec<Arc<MaybeUninit<Core>>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn fill(core: Core) -> Arc<Core> {
        // Without the cache (none left, or the thread ends): the allocator.
        let spare = SPARE.try_with(|all| all.borrow_mut().pop()).ok().flatten();
        let mut memory = spare.unwrap_or_else(Arc::new_uninit);
        Arc::get_mut(&mut memory).expect("memory in the cache has one owner").write(core);
        // SAFETY: written above.
        unsafe { memory.assume_init() }
    }

    /// Drops a task that has its outcome, and keeps its memory if nobody else has a handle.
    pub(super) fn keep(mut core: Arc<Core>) {
        let room = SPARE.try_with(|all| all.borrow().len() < MAX).unwrap_or(false);
        if !room || Arc::get_mut(&mut core).is_none() {
            return;
        }
        let core = Arc::into_raw(core);
        // SAFETY: the only handle, seen by `get_mut`, and it is not used as a `Core` again.
        unsafe { std::ptr::drop_in_place(core.cast_mut()) };
        // SAFETY: made by `into_raw` of an `Arc` of the same size and alignment; what it holds needs no drop.
        let memory = unsafe { Arc::from_raw(core.cast::<MaybeUninit<Core>>()) };
        // Not under a borrow while users' code may run, in the drop above.
        let _ = SPARE.try_with(|all| all.borrow_mut().push(memory));
    }
}

fn already_taken() -> Error {
    Error::invalid("result was already taken")
}

impl Control for Core {
    fn check(&self) -> Result<()> {
        match self.token.load(Ordering::Acquire) {
            0 => Ok(()),
            status => {
                let kind = ErrorKind::from_status(-i32::from(status)).unwrap_or(ErrorKind::Cancelled);
                Err(Error::new(kind, "the task's outcome was decided while it ran"))
            }
        }
    }

    fn progress(&self, value: Value) -> Option<Value> {
        match &self.queue {
            Some((queue, tag)) => queue.progress(*tag, value),
            None => lock(&self.rare().progress).replace(value),
        }
    }
}

/// One submitted call. Clones are handles on the same task; dropping them all lets it run on.
#[derive(Clone)]
pub struct Task(pub(super) ManuallyDrop<Arc<Core>>);

impl Drop for Task {
    fn drop(&mut self) {
        // SAFETY: taken once, and `self` is not used again.
        let core = unsafe { ManuallyDrop::take(&mut self.0) };
        if core.state.load(Ordering::Acquire) == DONE {
            spare::keep(core);
        }
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = ["queued", "running", "finishing", "done"].get(self.0.state.load(Ordering::Relaxed) as usize);
        write!(f, "Task({})", state.unwrap_or(&"?"))
    }
}

fn forked() -> Error {
    Error::new(ErrorKind::Forked, "task belongs to the parent of this forked process")
}

impl Task {
    pub(super) fn of(core: Arc<Core>) -> Task {
        Task(ManuallyDrop::new(core))
    }

    pub(super) fn into_core(self) -> Arc<Core> {
        // SAFETY: taken once: `self` is not dropped.
        unsafe { ManuallyDrop::take(&mut ManuallyDrop::new(self).0) }
    }

    /// Has its outcome. In a forked child every task of the parent has one: what it came to before, else `Forked`.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == DONE || self.0.is_forked()
    }

    /// Was started and has no outcome yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let core = &self.0;
        core.state.load(Ordering::Relaxed) == RUNNING && !core.is_forked() && !core.pool.has_ahead(core)
    }

    /// Waits for the outcome and takes it. The task goes on when the wait times out.
    ///
    /// # Errors
    /// The task's own; `Timeout` of this wait; `Invalid` when the outcome was taken before, and on a thread of the task's pool when the
    /// wait could never end, see [`begin_wait`](Self::begin_wait); `Forked`.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Value> {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        let _waits = if end.is_none() { self.begin_wait()? } else { None };
        loop {
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            if self.wait_slice(left.unwrap_or(Duration::MAX)) {
                return self.try_take().unwrap_or_else(|| Err(already_taken()));
            }
            if left.is_some_and(|l| l.is_zero()) {
                let ms = timeout.unwrap_or_default().as_secs_f64() * 1e3;
                return Err(Error::new(ErrorKind::Timeout, "the task is not done yet").with("waited_ms", ms));
            }
        }
    }

    /// Announces a wait without end, which lasts as long as the guard. Costs nothing outside of the task's own pool.
    ///
    /// # Errors
    /// `Invalid` inside a function of the task's own pool when nobody is left who could run the task: all of the pool's threads
    /// wait for its tasks, or the task's key binds it to this thread.
    pub fn begin_wait(&self) -> Result<Option<WaitGuard>> {
        if self.is_done() {
            return Ok(None);
        }
        stuck::begin(&self.0.pool, stuck::For::Task(Arc::clone(&self.0)))
    }

    /// Waits at most so long; true if the task is done. Ends early when a signal handler ran.
    #[must_use]
    pub fn wait_slice(&self, slice: Duration) -> bool {
        if self.is_done() {
            return true;
        }
        if slice.is_zero() {
            return false;
        }
        let end = Instant::now().checked_add(slice);
        let core = &*self.0;
        if let Some(looped) = &core.pool.config.looped {
            core.waiters.fetch_add(LEADS, Ordering::SeqCst);
            let led = looped.host.lead(&|| core.state.load(Ordering::SeqCst) == DONE, end);
            core.waiters.fetch_sub(LEADS, Ordering::SeqCst);
            if led {
                return core.state.load(Ordering::Acquire) == DONE;
            }
        }
        core.waiters.fetch_add(1, Ordering::SeqCst);
        let done = loop {
            let seen = core.state.load(Ordering::SeqCst);
            if seen == DONE {
                break true;
            }
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                break false;
            }
            if futex::wait(&core.state, seen, left) == futex::Wake::Interrupted {
                break core.state.load(Ordering::Acquire) == DONE;
            }
        };
        core.waiters.fetch_sub(1, Ordering::SeqCst);
        done
    }

    /// What became of a task that was submitted with `trace`, once it is done; else `None`.
    #[must_use]
    pub fn trace(&self) -> Option<&Trace> {
        self.0.trace.as_ref()?.get()
    }

    /// The outcome if it is there and was not taken.
    #[must_use]
    pub fn try_take(&self) -> Option<Result<Value>> {
        // What a thread of the parent was taking at the fork is lost here.
        self.0.take_result().or_else(|| self.0.is_forked().then(|| Err(forked())))
    }

    /// Cancels. Queued: it never starts. Running: its token is set and the caller gets `Cancelled` at once, while the
    /// thread stays with the function until that returns. True if this call decided the outcome.
    pub fn cancel(&self) -> bool {
        !self.0.is_forked() && self.0.pool.end(&self.0, Error::new(ErrorKind::Cancelled, "the task was cancelled"))
    }

    /// Cancels only while queued (`Future.cancel` of Python's stdlib). True if it will never start.
    pub fn cancel_queued(&self) -> bool {
        let core = &self.0;
        let error = || Error::new(ErrorKind::Cancelled, "the task was cancelled");
        if core.is_forked() {
            return false;
        }
        if core.pool.end_queued(core, error()) {
            return true;
        }
        if core.state.load(Ordering::Relaxed) != RUNNING || !core.pool.take_back(core) {
            return false;
        }
        core.pool.end_unqueued(core, error())
    }

    /// Calls `f` once the task is done, soon if it is, on a thread of offloop that is no pool's: it may wait, for tasks too.
    pub fn on_done(&self, f: impl FnOnce(&Task) + Send + 'static) {
        self.listen(Listener::Callback(Box::new(f)));
    }

    /// As [`on_done`](Self::on_done), but where a worker ends the task that worker calls `f` itself, without a change of
    /// threads: `f` must not block.
    pub fn on_done_inline(&self, f: impl FnOnce(&Task) + Send + 'static) {
        self.listen(Listener::Inline(Box::new(f)));
    }

    fn listen(&self, listener: Listener) {
        let core = &*self.0;
        if core.is_forked() {
            // The parent's threads may hold the lock below for ever in this process.
            return listener.tell(self.clone(), false);
        }
        lock(&core.rare().listeners).push(listener);
        core.waiters.fetch_or(HAS_LISTENERS, Ordering::SeqCst);
        if core.state.load(Ordering::SeqCst) == DONE {
            // The finisher may have looked before the flag was set; whoever takes the list tells them.
            for listener in std::mem::take(&mut *lock(&core.rare().listeners)) {
                listener.tell(self.clone(), false);
            }
        }
    }

    /// The latest progress value of a task that does not deliver to a queue, once.
    #[must_use]
    pub fn take_progress(&self) -> Option<Value> {
        if self.0.is_forked() {
            return None;
        }
        lock(&self.0.rare.get()?.progress).take()
    }
}
