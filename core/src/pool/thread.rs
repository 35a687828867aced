//! [`ThreadPool`]: the public face of a pool of native threads.

use crate::buffer::Bytes;
use crate::error::{Error, Result};
use crate::metrics::Counter;
use crate::ops::{self, Params};
use crate::pool::callbacks;
use crate::pool::config::Config;
use crate::pool::hosted::Spawner;
use crate::pool::inner::{Inner, closed};
use crate::pool::looped::{LoopOptions, MAX_CONCURRENCY};
use crate::pool::options::{Deliver, MAX_WORKERS, PoolOptions, SubmitOptions, check_duration, check_range};
use crate::pool::service::{self, Due};
use crate::pool::stats::PoolStats;
use crate::pool::stuck;
use crate::pool::task::{Core, NewCore, Task, Work, WorkKind};
use crate::pool::{CompletionQueue, DynOp};
use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::sync::lock;
use crate::sys::{self, clock, fork, fork::ForkCell, futex};
use crate::value::Value;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A submit that was refused: the error, and the work that was not taken.
#[derive(Debug)]
pub struct SubmitError {
    /// Why.
    pub error: Error,
    /// What comes back.
    pub work: Vec<Work>,
}

impl From<SubmitError> for Error {
    fn from(e: SubmitError) -> Error {
        e.error
    }
}

/// Makes a [`ThreadPool`].
#[derive(Default)]
pub struct Builder {
    options: PoolOptions,
    hosted: Option<Spawner>,
    looped: Option<LoopOptions>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.options.fmt(f)
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $ty:ty => $set:expr;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, value: $ty) -> Builder { let set: fn(&mut PoolOptions, $ty) = $set; set(&mut self.options, value); self })*
    };
}

impl Builder {
    setters! {
        /// See [`PoolOptions::max_workers`].
        max_workers: usize => |o, v| o.max_workers = Some(v);
        /// See [`PoolOptions::min_workers`].
        min_workers: usize => |o, v| o.min_workers = v;
        /// See [`PoolOptions::idle_timeout`].
        idle_timeout: Duration => |o, v| o.idle_timeout = v;
        /// See [`PoolOptions::max_queue`].
        max_queue: usize => |o, v| o.max_queue = v;
        /// See [`PoolOptions::max_tasks_per_worker`].
        max_tasks_per_worker: u64 => |o, v| o.max_tasks_per_worker = Some(v);
        /// See [`PoolOptions::max_worker_age`].
        max_worker_age: Duration => |o, v| o.max_worker_age = Some(v);
        /// See [`PoolOptions::max_overdue`].
        max_overdue: usize => |o, v| o.max_overdue = Some(v);
        /// See [`PoolOptions::nice`].
        nice: i32 => |o, v| o.nice = v;
    }

    /// See [`PoolOptions::name`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.options.name = name.into();
        self
    }

    /// All options at once.
    #[must_use]
    pub fn options(mut self, options: PoolOptions) -> Builder {
        self.options = options;
        self
    }

    /// The host brings the threads: `spawner` is called when the pool wants one more and starts a thread that runs the
    /// `HostedWorker`; it gives the worker back if it cannot. It is called by threads that submit and by hosted workers
    /// themselves, under a lock of this pool, so it must neither submit to nor wait for the same pool.
    #[must_use]
    pub fn hosted(mut self, spawner: Spawner) -> Builder {
        self.hosted = Some(spawner);
        self
    }

    /// The host brings threads with event loops of their own, each of which runs a [`LoopWorker`](crate::pool::LoopWorker).
    #[must_use]
    pub fn looped(mut self, options: LoopOptions) -> Builder {
        self.looped = Some(options);
        self
    }

    /// Checks the options and makes the pool. No thread starts before the first submit.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn build(self) -> Result<ThreadPool> {
        self.options.check()?;
        if let Some(looped) = &self.looped {
            check_range("concurrency", looped.concurrency, 1, MAX_CONCURRENCY)?;
            check_duration("cancel_grace", looped.cancel_grace)?;
        }
        let max = self.options.max_workers.unwrap_or_else(|| sys::cpu::usable_cores().min(MAX_WORKERS).max(self.options.min_workers));
        let config = Arc::new(Config::new(self.options, max, self.hosted, self.looped));
        // The fork handler must be there before the first fork that could see this pool.
        let _ = fork::epoch();
        Ok(ThreadPool(Arc::new(Handle { config, cell: ForkCell::new(), closed: AtomicBool::new(false) })))
    }
}

struct Handle {
    config: Arc<Config>,
    cell: ForkCell<Arc<Inner>>,
    closed: AtomicBool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(inner) = self.cell.peek() {
            inner.close();
        }
    }
}

/// A pool of native threads. Clones are handles on the same pool; when the last is dropped, what is queued still runs.
///
/// ```
/// use offloop::{ThreadPool, Value};
/// let pool = ThreadPool::builder().max_workers(2).build()?;
/// let task = pool.submit_op("sha256", vec![b"hello".to_vec().into()], &Value::Nil, Default::default())?;
/// assert_eq!(task.wait(None)?.into_bytes()?.len(), 32);
/// # Ok::<(), offloop::Error>(())
/// ```
#[derive(Clone)]
pub struct ThreadPool(Arc<Handle>);

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("options", &self.0.config.options).finish_non_exhaustive()
    }
}

static DEFAULT: ForkCell<Mutex<Option<ThreadPool>>> = ForkCell::new();

impl ThreadPool {
    /// Begins a pool.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The pool behind `ops`: one per process, made at first use with `OFFLOOP_THREADS` workers (default: usable cores).
    ///
    /// # Errors
    /// `Invalid` when `OFFLOOP_THREADS` is not a number from 1 to [`MAX_WORKERS`].
    pub fn default_pool() -> Result<ThreadPool> {
        let mut pool = lock(DEFAULT.get(Mutex::default));
        if let Some(pool) = &*pool {
            return Ok(pool.clone());
        }
        let mut builder = ThreadPool::builder().name("default");
        if let Some(text) = std::env::var_os("OFFLOOP_THREADS").filter(|t| !t.is_empty()) {
            let bad = || {
                Error::invalid("OFFLOOP_THREADS is not a number of threads")
                    .with("value", text.to_string_lossy())
                    .with("min", 1)
                    .with("max", MAX_WORKERS)
            };
            let n = text.to_str().and_then(|t| t.trim().parse::<usize>().ok()).filter(|n| (1..=MAX_WORKERS).contains(n)).ok_or_else(bad)?;
            builder = builder.max_workers(n);
        }
        Ok(pool.insert(builder.build()?).clone())
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        self.0.cell.get(|| Inner::new(self.0.config.clone()))
    }

    fn check_open(&self) -> Result<&Arc<Inner>> {
        let inner = self.inner();
        if self.0.closed.load(Ordering::SeqCst) || inner.closing.load(Ordering::SeqCst) {
            return Err(closed(&self.0.config.options.name));
        }
        Ok(inner)
    }

    /// Prepares a call of an op: finds it among the built-in ones and the plugins, and checks inputs and options.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`; the inputs come back.
    pub fn op(&self, name: &str, inputs: Vec<Bytes>, params: &Value) -> Result<Work, (Error, Vec<Bytes>)> {
        if let Some(op) = ops::lookup(name) {
            let checked = ops::check_inputs(op.name, op.inputs, inputs.len()).and_then(|()| Params::check(op.name, op.params, params));
            return match checked {
                Ok(params) => Ok(Work(WorkKind::Op(op, inputs, params))),
                Err(e) => Err((e, inputs)),
            };
        }
        match self.plugin(name).and_then(|plugin| Ok((plugin.clone(), params.deep_clone()?))) {
            Ok((plugin, params)) => Ok(Work(WorkKind::Plugin(plugin, inputs, Params::raw(params)))),
            Err(e) => Err((e, inputs)),
        }
    }

    /// What [`op`](Self::op) checks when there are no inputs to prepare: a batch of no calls names its op and options too.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn check_op(&self, name: &str, params: &Value) -> Result<()> {
        match ops::lookup(name) {
            Some(op) => Params::check(op.name, op.params, params).map(drop),
            None => self.plugin(name).map(drop),
        }
    }

    fn plugin(&self, name: &str) -> Result<&Arc<dyn DynOp>> {
        let plugins = || self.0.config.plugins();
        let found = plugins().find(|p| p.name() == name);
        found.ok_or_else(|| ops::not_found(name, ops::all().map(|o| o.name).chain(plugins().map(|p| p.name()))))
    }

    /// [`op`](Self::op) and [`submit`](Self::submit).
    ///
    /// # Errors
    /// Of both.
    pub fn submit_op(&self, name: &str, inputs: Vec<Bytes>, params: &Value, options: SubmitOptions) -> Result<Task> {
        let work = self.op(name, inputs, params).map_err(|(e, _)| e)?;
        Ok(self.submit(work, options)?)
    }

    /// Submits one task.
    ///
    /// # Errors
    /// `Full`, `Closed`, `Invalid` options, `Os` when the process has no thread for deadlines and can start none; the work comes
    /// back, and nothing of `options` is called.
    pub fn submit(&self, work: Work, options: SubmitOptions) -> Result<Task, SubmitError> {
        self.submit_with(work, options, Task::clone)
    }

    /// As [`submit`](Self::submit), for a caller that keeps no handle: the outcome goes where `options` say, or nowhere.
    ///
    /// # Errors
    /// As `submit`.
    pub fn post(&self, work: Work, options: SubmitOptions) -> Result<(), SubmitError> {
        self.submit_with(work, options, |_| ())
    }

    /// As [`submit`](Self::submit), with `commit` called once the task is accepted and before anybody can run or end it: what
    /// the caller gives up with the submit, or reads in its callback, is settled by then.
    pub(crate) fn submit_with<R>(&self, work: Work, options: SubmitOptions, commit: impl FnOnce(&Task) -> R) -> Result<R, SubmitError> {
        let queue_timeout = options.queue_timeout;
        let task = Task::of(self.admit_one(work, options)?);
        let committed = commit(&task);
        if let Some(limit) = queue_timeout {
            service::arm(Due::QueueTimeout, &task.0, task.0.submitted_ns, limit);
        }
        self.inner().launch(task.into_core());
        Ok(committed)
    }

    /// Counted as queued, and not yet where a worker looks.
    fn admit_one(&self, work: Work, options: SubmitOptions) -> Result<Arc<Core>, SubmitError> {
        let checked = self.check_open().and_then(|inner| options.check().map(|()| inner));
        let inner = match checked.and_then(|inner| service::ensure_started().map(|()| inner)) {
            Ok(inner) => inner,
            Err(error) => return Err(SubmitError { error, work: vec![work] }),
        };
        if let Err(error) = inner.admit(1, options.on_full) {
            inner.metrics.add(Counter::Rejected, 1);
            return Err(SubmitError { error, work: vec![work] });
        }
        let now = clock::monotonic_ns();
        let alone = options.is_alone();
        let core = Core::new(
            inner.clone(),
            NewCore {
                work: work.0,
                deliver: options.deliver,
                priority: options.priority,
                key: options.key.map(|k| self.0.config.hash_key(&k)),
                submitted_ns: now,
                timeout: options.timeout,
                alone,
                worker: options.worker,
                retries: options.retries,
                trace: options.trace,
            },
        );
        inner.metrics.add(Counter::Submitted, 1);
        Ok(core)
    }

    /// Submits several tasks with one clock read and one wake: all or none. With [`Deliver::Queue`] the tags count up;
    /// [`Deliver::Callback`] is for single tasks.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); all work comes back.
    pub fn submit_many(&self, work: Vec<Work>, options: &SubmitOptions) -> Result<Vec<Task>, SubmitError> {
        self.submit_many_with(work, options, <[Task]>::to_vec)
    }

    /// As [`submit_many`](Self::submit_many), for a caller that keeps no handles.
    ///
    /// # Errors
    /// As `submit_many`.
    pub fn post_many(&self, work: Vec<Work>, options: &SubmitOptions) -> Result<(), SubmitError> {
        self.submit_many_with(work, options, |_| ())
    }

    /// As [`submit_many`](Self::submit_many), with `commit` as in [`submit_with`](Self::submit_with).
    pub(crate) fn submit_many_with<R>(
        &self,
        work: Vec<Work>,
        options: &SubmitOptions,
        commit: impl FnOnce(&[Task]) -> R,
    ) -> Result<R, SubmitError> {
        let tasks = self.admit_many(work, options)?;
        let committed = commit(&tasks);
        if let Some(limit) = options.queue_timeout {
            for task in &tasks {
                service::arm(Due::QueueTimeout, &task.0, task.0.submitted_ns, limit);
            }
        }
        self.inner().launch_all(tasks.into_iter().map(Task::into_core).collect());
        Ok(committed)
    }

    fn admit_many(&self, work: Vec<Work>, options: &SubmitOptions) -> Result<Vec<Task>, SubmitError> {
        let checked = self.check_open().and_then(|inner| {
            options.check()?;
            if matches!(options.deliver, Deliver::Callback(_)) {
                return Err(Error::invalid("a callback delivers one task, not a batch"));
            }
            // Of no tasks it is a check of the options.
            if work.is_empty() { Ok(inner) } else { service::ensure_started().map(|()| inner) }
        });
        let inner = match checked {
            Ok(inner) => inner,
            Err(error) => return Err(SubmitError { error, work }),
        };
        let n = work.len();
        if let Err(error) = inner.admit(n, options.on_full) {
            inner.metrics.add(Counter::Rejected, n as u64);
            return Err(SubmitError { error, work });
        }
        let now = clock::monotonic_ns();
        let key = options.key.as_ref().map(|k| self.0.config.hash_key(k));
        let tasks = work
            .into_iter()
            .zip(0u64..)
            .map(|(work, i)| {
                let deliver = match &options.deliver {
                    Deliver::Queue(q, tag) => Deliver::Queue(q.clone(), tag.wrapping_add(i)),
                    _ => Deliver::Wait,
                };
                let new = NewCore {
                    work: work.0,
                    deliver,
                    priority: options.priority,
                    key,
                    submitted_ns: now,
                    timeout: options.timeout,
                    alone: options.is_alone(),
                    worker: options.worker,
                    retries: options.retries,
                    trace: options.trace,
                };
                Task::of(Core::new(inner.clone(), new))
            })
            .collect();
        inner.metrics.add(Counter::Submitted, n as u64);
        Ok(tasks)
    }

    /// Submits as many tasks as the queue takes, in their order, with one clock read and one wake: what a host's loop has
    /// collected. Their outcomes go to `queue` under `tags`, one per task.
    ///
    /// # Errors
    /// `Full`, `Closed`, `Os` as [`submit`](Self::submit): the work that was not taken comes back, the last ones of `work`.
    pub fn submit_each(&self, mut work: Vec<Work>, tags: &[u64], queue: &CompletionQueue) -> Result<(), SubmitError> {
        assert_eq!(work.len(), tags.len(), "one tag per task");
        let inner = match self.check_open().and_then(|inner| service::ensure_started().map(|()| inner)) {
            Ok(inner) => inner,
            Err(error) => return Err(SubmitError { error, work }),
        };
        let rest = work.split_off(inner.reserve_some(work.len()));
        if !work.is_empty() {
            let now = clock::monotonic_ns();
            inner.metrics.add(Counter::Submitted, work.len() as u64);
            let _ = inner.injector.push_all(work.into_iter().zip(tags).map(|(work, tag)| {
                let deliver = Deliver::Queue(queue.clone(), *tag);
                let new = NewCore {
                    work: work.0,
                    deliver,
                    priority: 0,
                    key: None,
                    submitted_ns: now,
                    timeout: None,
                    alone: false,
                    worker: None,
                    retries: 0,
                    trace: false,
                };
                Core::new(inner.clone(), new)
            }));
            inner.after_push();
        }
        if rest.is_empty() {
            return Ok(());
        }
        inner.metrics.add(Counter::Rejected, rest.len() as u64);
        Err(SubmitError { error: inner.full(1), work: rest })
    }

    /// Adds an op to this pool.
    ///
    /// # Errors
    /// `Exists` when the name is taken, `Invalid` when it is empty or longer than 128 bytes.
    pub fn register(&self, op: Arc<dyn DynOp>) -> Result<()> {
        check_range("op name length", op.name().len(), 1, 128)?;
        self.0.config.add_plugin(op)
    }

    /// Names of every op of this pool, the built-in ones first.
    #[must_use]
    pub fn op_names(&self) -> Vec<String> {
        let mut plugins: Vec<String> = self.0.config.plugins().map(|p| p.name().to_owned()).collect();
        plugins.reverse();
        ops::all().map(|o| o.name.to_owned()).chain(plugins).collect()
    }

    /// Counts and times since the pool was made.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats::of(self.inner())
    }

    /// Counts and times of this pool and of `other` as of one, for a face that shows two pools as one.
    #[must_use]
    pub fn stats_with(&self, other: &ThreadPool) -> PoolStats {
        PoolStats::of_both(self.inner(), other.inner())
    }

    /// The places of the workers that there are now, those that start among them, in order: for [`SubmitOptions::worker`].
    #[must_use]
    pub fn live_workers(&self) -> Vec<usize> {
        let state = lock(&self.inner().state);
        (0..state.alive.len()).filter(|slot| state.alive[*slot]).collect()
    }

    /// The most workers it may have now.
    #[must_use]
    pub fn max_workers(&self) -> usize {
        self.0.config.max_workers.load(Ordering::Relaxed)
    }

    /// The most tasks that may be queued: a longer batch never fits.
    #[must_use]
    pub fn max_queue(&self) -> usize {
        self.0.config.options.max_queue
    }

    /// Changes the limits. More workers start when work waits; surplus ones leave after what they hold.
    ///
    /// # Errors
    /// `Invalid` outside the limits, `Closed`.
    pub fn resize(&self, min_workers: Option<usize>, max_workers: Option<usize>) -> Result<()> {
        let inner = self.check_open()?;
        let max = max_workers.unwrap_or_else(|| self.max_workers());
        let min = min_workers.unwrap_or_else(|| self.0.config.min_workers.load(Ordering::Relaxed).min(max));
        check_range("max_workers", max, 1, MAX_WORKERS)?;
        check_range("min_workers", min, 0, max)?;
        {
            let mut state = lock(&inner.state);
            self.0.config.max_workers.store(max, Ordering::SeqCst);
            self.0.config.min_workers.store(min, Ordering::SeqCst);
            state.sched.set_slots(max);
        }
        inner.wake_all(); // surplus sleepers look at the new limit
        fence(Ordering::SeqCst);
        if inner.has_waiting_work() {
            inner.wake_one();
        }
        Ok(())
    }

    /// Refuses new tasks from now on; what is queued still runs.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.inner().close();
    }

    /// [`close`](Self::close), and after `grace` (`None`: never) cancels what is left. `on_closed` is called on an offloop
    /// thread once every task has its outcome.
    ///
    /// # Errors
    /// `Os` when the process has no thread for deadlines and can start none, which happens only before its first task; nothing is
    /// closed then.
    pub fn close_within(&self, grace: Option<Duration>, on_closed: Box<dyn FnOnce() + Send>) -> Result<()> {
        service::ensure_started()?;
        let inner = self.inner();
        self.0.closed.store(true, Ordering::SeqCst);
        {
            let mut state = lock(&inner.state);
            if state.closed {
                callbacks::run(on_closed);
            } else {
                state.on_closed.push(on_closed);
            }
        }
        inner.close();
        if let Some(grace) = grace {
            let pool = Arc::downgrade(inner);
            service::run_after(
                grace,
                Box::new(move || {
                    if let Some(pool) = pool.upgrade().filter(|p| p.closed.load(Ordering::SeqCst) == 0) {
                        pool.terminate();
                    }
                }),
            );
        }
        Ok(())
    }

    /// Refuses new tasks, waits until what is queued has run, at most for `grace` (`None`: without end), then cancels the
    /// rest. Every task has its outcome when it returns; functions that ignore their token may still run.
    ///
    /// # Errors
    /// `Invalid` without a limit inside a function of this pool, which could never end; nothing is closed then.
    pub fn shutdown(&self, grace: Option<Duration>) -> Result<()> {
        if grace.is_none() && stuck::slot_here(self.inner()).is_some() {
            return Err(Error::invalid("a function of the pool cannot wait for the pool's end").with("pool", &self.0.config.options.name));
        }
        self.close();
        if !self.wait_closed(grace) {
            self.inner().terminate();
        }
        Ok(())
    }

    /// Waits for the end of a closing pool, at most so long; true if it has ended.
    #[must_use]
    pub fn wait_closed(&self, timeout: Option<Duration>) -> bool {
        let inner = self.inner();
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        while inner.closed.load(Ordering::SeqCst) == 0 {
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                return false;
            }
            futex::wait(&inner.closed, 0, left);
        }
        true
    }

    /// Cancels everything that was not started and goes on with the rest. Returns how many tasks that ended.
    pub fn cancel_queued(&self) -> usize {
        self.inner().cancel_queued("the pool's waiting tasks were cancelled")
    }

    /// Cancels everything that has no outcome yet and refuses new tasks.
    pub fn terminate(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.inner().terminate();
    }

    /// Refuses new tasks.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.check_open().is_err()
    }
}
