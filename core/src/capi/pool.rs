//! Pools for C.

use crate::abi::ctx::{Function, offloop_fn};
use crate::abi::ffi::{self, Moved, Options, UserArg, offloop_status};
use crate::abi::handle::{self, Object, Place};
use crate::abi::{buffer::offloop_free_fn, offloop_buffer, offloop_value, value};
use crate::capi::completion::{Callback, Expect, Form, Queue, offloop_done_fn};
use crate::capi::task::Submitted;
use crate::capi::{offloop_cq, offloop_pool, offloop_task};
use crate::error::{Error, Result};
use crate::metrics::Histogram;
use crate::pool::{Deliver, OnFull, PoolStats, SubmitError, SubmitOptions, Task, ThreadPool, Work};
use crate::value::Value;
use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How a pool is made. 0 or NULL means the default everywhere; start from OFFLOOP_POOL_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_pool_options {
    /// sizeof(offloop_pool_options).
    pub struct_size: usize,
    /// Most worker threads, 1 to 1024. Default: usable cores (affinity and cgroup quota).
    pub max_workers: i64,
    /// Workers that stay when idle. Default 0.
    pub min_workers: i64,
    /// Most queued tasks, 1 to 2^24. Default 65,536.
    pub max_queue: i64,
    /// Most replacement threads for tasks that ignore their deadline; below 0: none. Default: max_workers.
    pub max_overdue: i64,
    /// How long an idle worker above min_workers stays, in nanoseconds. Default 30 s.
    pub idle_timeout_ns: i64,
    /// Niceness of the workers, -20 to 19. Below 0 needs privileges: without them no worker starts, and every task ends with
    /// OFFLOOP_ERR_OS (EACCES of setpriority). Default 0.
    pub nice: i32,
    /// 0.
    pub reserved: u32,
    /// Name in metrics and of threads. Default "pool".
    pub name: *const c_char,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_pool_options {
    const MIN_SIZE: usize = size_of::<offloop_pool_options>();
    const NAME: &'static str = "offloop_pool_options";
}

/// A full queue refuses the call with OFFLOOP_ERR_FULL.
pub const OFFLOOP_ON_FULL_REJECT: u32 = 0;
/// A full queue blocks the calling thread until there is room, at most full_timeout_ns. OFFLOOP_ERR_INVALID inside a function of the pool
/// that would wait for ever.
pub const OFFLOOP_ON_FULL_WAIT: u32 = 1;

/// How a task is run and where its outcome goes. 0 or NULL means the default everywhere; start from
/// OFFLOOP_SUBMIT_OPTIONS_INIT. With neither cq nor on_done the outcome waits for offloop_task_wait.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_submit_options {
    /// sizeof(offloop_submit_options).
    pub struct_size: usize,
    /// -128 to 127, higher first. A waiting task gains one class per 100 ms.
    pub priority: i32,
    /// OFFLOOP_ON_FULL_REJECT or OFFLOOP_ON_FULL_WAIT.
    pub on_full: u32,
    /// With OFFLOOP_ON_FULL_WAIT: the longest wait in nanoseconds. 0: for ever.
    pub full_timeout_ns: i64,
    /// Longest time from start to outcome, in nanoseconds. 0: none.
    pub timeout_ns: i64,
    /// Longest wait from submit to start, in nanoseconds. 0: none.
    pub queue_timeout_ns: i64,
    /// Tasks with one key run on one worker, in order. NULL: none.
    pub key: *const c_char,
    /// The outcome becomes an event of this queue, or is passed to on_done inside offloop_cq_drain.
    pub cq: *mut offloop_cq,
    /// Comes back in the event, below 2^63. offloop_pool_submit_many counts up from it.
    pub tag: u64,
    /// Called with the outcome: in offloop_cq_drain if cq is set, else on a thread of offloop that belongs to no pool and holds no lock, so
    /// that it may wait for other tasks. Callbacks without a cq run one after another, unless one takes longer than 10 ms: then others run
    /// beside it, up to 64 at once. By then the submit has written `inputs_io` and `out` and touches neither again.
    pub on_done: offloop_done_fn,
    /// Passed to on_done.
    pub user: *mut c_void,
    /// Called with user after on_done. May be NULL.
    pub user_free: offloop_free_fn,
    /// Of a process pool: how often the call runs again after the loss of its worker, which says that a second run does no harm. Each run
    /// has all of timeout_ns. 0: never.
    pub retries: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_submit_options {
    const MIN_SIZE: usize = size_of::<offloop_submit_options>();
    const NAME: &'static str = "offloop_submit_options";
}

/// One call of a batch: a C function (`function`), or an op by name (`op`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_call {
    /// The function, or NULL for an op.
    pub function: offloop_fn,
    /// Passed to the function.
    pub arg: *mut c_void,
    /// Called once with arg when the function will not be called (again). May be NULL.
    pub arg_free: offloop_free_fn,
    /// Name of the op, or NULL for a function.
    pub op: *const c_char,
    /// The op's inputs, moved: each becomes NULL on OK.
    pub inputs_io: *mut *mut offloop_buffer,
    /// Number of inputs.
    pub input_count: usize,
    /// The op's options: a map, nil or NULL. Copied.
    pub params: *const offloop_value,
}

/// Times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct offloop_histogram {
    /// Number of samples.
    pub count: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Half of the samples are not above this.
    pub p50_ns: u64,
    /// 90 % of the samples are not above this.
    pub p90_ns: u64,
    /// 99 % of the samples are not above this.
    pub p99_ns: u64,
    /// The largest sample.
    pub max_ns: u64,
}

/// What a pool has done since it was made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct offloop_stats {
    /// sizeof(offloop_stats), set by the caller.
    pub struct_size: usize,
    /// Tasks that wait.
    pub queued: u64,
    /// Tasks that run and have no outcome yet.
    pub running: u64,
    /// Live worker threads.
    pub workers: u64,
    /// Functions that run although their task has its outcome (timeout, cancel).
    pub overdue: u64,
    /// Tasks taken in.
    pub submitted: u64,
    /// Outcomes that are results.
    pub completed: u64,
    /// Outcomes that are errors of the function.
    pub failed: u64,
    /// Outcomes OFFLOOP_ERR_TIMEOUT.
    pub timed_out: u64,
    /// Outcomes OFFLOOP_ERR_CANCELLED.
    pub cancelled: u64,
    /// Outcomes OFFLOOP_ERR_WORKER_LOST.
    pub lost: u64,
    /// Calls that were refused as OFFLOOP_ERR_FULL.
    pub rejected: u64,
    /// Of a process pool: runs that were lost with their worker and done again.
    pub retried: u64,
    /// Of a process pool: workers that were replaced because of their tasks or their age.
    pub recycled: u64,
    /// Share of max_workers that was busy, 0 to 1.
    pub utilization: f64,
    /// From submit to start.
    pub wait: offloop_histogram,
    /// From start to return.
    pub run: offloop_histogram,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_stats {
    const MIN_SIZE: usize = size_of::<offloop_stats>();
    const NAME: &'static str = "offloop_stats";
}

fn histogram(h: &Histogram) -> offloop_histogram {
    offloop_histogram { count: h.count, mean_ns: h.mean_ns, p50_ns: h.p50_ns, p90_ns: h.p90_ns, p99_ns: h.p99_ns, max_ns: h.max_ns }
}

pub(super) fn stats_for_c(s: &PoolStats) -> offloop_stats {
    offloop_stats {
        struct_size: size_of::<offloop_stats>(),
        queued: s.queued as u64,
        running: s.running as u64,
        workers: s.workers as u64,
        overdue: s.overdue as u64,
        submitted: s.submitted,
        completed: s.completed,
        failed: s.failed,
        timed_out: s.timed_out,
        cancelled: s.cancelled,
        lost: s.lost,
        rejected: s.rejected,
        retried: s.retried,
        recycled: s.recycled,
        utilization: s.utilization,
        wait: histogram(&s.wait),
        run: histogram(&s.run),
    }
}

fn lookup(pool: *const offloop_pool) -> Result<Arc<ThreadPool>> {
    handle::shared(pool)
}

fn out_of_range(option: &'static str, value: i64) -> Error {
    Error::invalid("option is out of range").with("option", option).with("value", value)
}

/// A count of C; `None` for 0, which means the default.
pub(super) fn count(option: &'static str, value: i64) -> Result<Option<usize>> {
    match usize::try_from(value) {
        Ok(0) => Ok(None),
        Ok(n) => Ok(Some(n)),
        Err(_) => Err(out_of_range(option, value).with("min", 0)),
    }
}

/// A duration of C; `None` for 0, which means the default.
pub(super) fn duration(option: &'static str, ns: i64) -> Result<Option<Duration>> {
    match u64::try_from(ns) {
        Ok(0) => Ok(None),
        Ok(ns) => Ok(Some(Duration::from_nanos(ns))),
        Err(_) => Err(out_of_range(option, ns).with("min", 0)),
    }
}

/// Makes a pool. No thread starts before the first task. `options` may be NULL: all defaults. OFFLOOP_ERR_INVALID names the
/// option, its value and its limits.
///
/// # Safety
/// `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_new(options: *const offloop_pool_options, out: *mut *mut offloop_pool) -> offloop_status {
    ffi::call(|| {
        if !cfg!(test) {
            crate::pool::silence_panics();
        }
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        let mut builder = ThreadPool::builder();
        if let Some(n) = count("max_workers", o.max_workers)? {
            builder = builder.max_workers(n);
        }
        if let Some(n) = count("min_workers", o.min_workers)? {
            builder = builder.min_workers(n);
        }
        if let Some(n) = count("max_queue", o.max_queue)? {
            builder = builder.max_queue(n);
        }
        if o.max_overdue != 0 {
            builder = builder.max_overdue(usize::try_from(o.max_overdue).unwrap_or(0));
        }
        if let Some(t) = duration("idle_timeout_ns", o.idle_timeout_ns)? {
            builder = builder.idle_timeout(t);
        }
        if !o.name.is_null() {
            // SAFETY: NUL-terminated by this function's contract.
            builder = builder.name(unsafe { ffi::str(o.name, "name") }?);
        }
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(builder.nice(o.nice).build()?)));
        Ok(())
    })
}

/// Gives the pool that the ops of every face of this process share: OFFLOOP_THREADS workers, made at first use. Free the handle
/// with offloop_pool_free; the pool stays.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_default(out: *mut *mut offloop_pool) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(ThreadPool::default_pool()?)));
        Ok(())
    })
}

/// Frees the handle and closes the pool without waiting: accepted tasks still run to their end. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_free(pool: *mut offloop_pool) {
    if !pool.is_null() {
        ffi::call(|| handle::free(pool));
    }
}

/// Closes the pool, waits until every accepted task has its outcome, at most `grace_ns` (below 0: for ever), then cancels
/// the rest. Later calls get OFFLOOP_ERR_CLOSED. Inside a function of this pool, OFFLOOP_ERR_INVALID with a grace below 0: it would wait for
/// itself.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_shutdown(pool: *mut offloop_pool, grace_ns: i64) -> offloop_status {
    ffi::call(|| lookup(pool)?.shutdown(ffi::forever_or(grace_ns)))
}

/// Changes the bounds of the number of workers; below 0 leaves one as it is.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_resize(pool: *mut offloop_pool, min_workers: i64, max_workers: i64) -> offloop_status {
    ffi::call(|| lookup(pool)?.resize(usize::try_from(min_workers).ok(), usize::try_from(max_workers).ok()))
}

/// Reads counters and times. The caller sets `stats_io->struct_size`; an older, shorter struct gets what it has room for.
///
/// # Safety
/// `stats_io` is as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_stats(pool: *mut offloop_pool, stats_io: *mut offloop_stats) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let place = unsafe { ffi::filled(stats_io) }?;
        let stats = offloop_stats { struct_size: place.struct_size, ..stats_for_c(&lookup(pool)?.stats()) };
        place.set(stats);
        Ok(())
    })
}

/// Loads a C plugin: a shared library that exports offloop_plugin. `*names`, unless NULL, is an array of the names of its ops.
/// OFFLOOP_ERR_NOT_FOUND without the file or its symbol, OFFLOOP_ERR_VERSION for another ABI, OFFLOOP_ERR_EXISTS for a
/// name that is taken, OFFLOOP_ERR_OS for a file that cannot be opened (EMFILE, EACCES), OFFLOOP_ERR_INVALID for what cannot be loaded. A plugin is native code of this process: one that crashes
/// takes the process with it.
///
/// # Safety
/// `path` is NUL-terminated and names trusted code; `names` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_load(pool: *mut offloop_pool, path: *const c_char, names: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let names = ffi::out_opt(names, "names")?;
        // SAFETY: this function's contract.
        let path = unsafe { ffi::str(path, "path") }?;
        let place = Place::new()?;
        let loaded = lookup(pool)?.load(Path::new(path))?;
        if let Some(names) = names {
            let list = Value::Array(loaded.into_iter().map(Value::from).collect());
            names.set(place.fill(handle::Kind::Value, value::Root::object(list)).as_ptr());
        }
        Ok(())
    })
}

/// Gives the names of all ops that the pool can run, built-in ones and plugins', as an array of texts.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_ops(pool: *mut offloop_pool, out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let names = lookup(pool)?.op_names();
        out.set(value::give(Value::Array(names.into_iter().map(Value::from).collect()))?);
        Ok(())
    })
}

/// The delivery of one call, and what must be undone if the call fails.
struct Delivery {
    options: SubmitOptions,
    callback: Option<Arc<Callback>>,
    queued: Option<(Arc<Queue>, u64)>,
}

impl Delivery {
    /// # Safety
    /// `options` is NULL or as long as it says, its texts are NUL-terminated.
    unsafe fn of(options: *const offloop_submit_options, form: Form) -> Result<Delivery> {
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        let mut out = SubmitOptions {
            priority: i8::try_from(o.priority)
                .map_err(|_| out_of_range("priority", o.priority.into()).with("min", i8::MIN).with("max", i8::MAX))?,
            timeout: duration("timeout_ns", o.timeout_ns)?,
            queue_timeout: duration("queue_timeout_ns", o.queue_timeout_ns)?,
            retries: o.retries,
            on_full: match o.on_full {
                OFFLOOP_ON_FULL_REJECT => OnFull::Reject,
                OFFLOOP_ON_FULL_WAIT => OnFull::Wait(duration("full_timeout_ns", o.full_timeout_ns)?),
                other => return Err(out_of_range("on_full", other.into())),
            },
            ..SubmitOptions::default()
        };
        if !o.key.is_null() {
            // SAFETY: this function's contract.
            out.key = Some(unsafe { ffi::str(o.key, "key") }?.to_owned());
        }
        let queue: Option<Arc<Queue>> = if o.cq.is_null() { None } else { Some(handle::shared(o.cq)?) };
        if queue.is_none() && o.tag != 0 {
            return Err(Error::invalid("a tag needs a completion queue").with("tag", o.tag));
        }
        let callback = o.on_done.map(|f| Arc::new(Callback::new(f, UserArg::new(o.user, o.user_free), form)));
        let mut delivery = Delivery { options: out, callback: None, queued: None };
        match (queue, callback) {
            (None, None) => {}
            (Some(queue), None) => {
                Queue::check_tag(o.tag)?;
                let mut tag = o.tag;
                if let Form::Reply = form {
                    tag = queue.expect(Expect::Reply(o.tag))?;
                    delivery.queued = Some((queue.clone(), tag));
                }
                delivery.options.deliver = Deliver::Queue(queue.queue().clone(), tag);
            }
            (Some(queue), Some(callback)) => {
                let tag = match queue.expect(Expect::Callback(callback.clone())) {
                    Ok(tag) => tag,
                    Err(e) => {
                        ffi::keep_args(callback);
                        return Err(e);
                    }
                };
                delivery.options.deliver = Deliver::Queue(queue.queue().clone(), tag);
                delivery.callback = Some(callback);
                delivery.queued = Some((queue, tag));
            }
            (None, Some(callback)) => {
                let run = callback.clone();
                delivery.options.deliver = Deliver::Callback(Box::new(move |result| run.call(result)));
                delivery.callback = Some(callback);
            }
        }
        Ok(delivery)
    }

    /// The call failed: `user` stays the caller's and nothing is called.
    fn undo(callback: Option<Arc<Callback>>, queued: Option<(Arc<Queue>, u64)>) {
        if let Some((queue, tag)) = queued {
            ffi::keep_args(queue.forget(tag));
        }
        ffi::keep_args(callback);
    }
}

/// Runs `submit` with the delivery of `options`; if it fails, nothing of the caller's was taken.
///
/// # Safety
/// As [`Delivery::of`].
pub(super) unsafe fn delivered<R>(
    options: *const offloop_submit_options,
    form: Form,
    submit: impl FnOnce(SubmitOptions) -> Result<R>,
) -> Result<R> {
    // SAFETY: this function's contract.
    let Delivery { options, callback, queued } = unsafe { Delivery::of(options, form) }?;
    submit(options).inspect_err(|_| Delivery::undo(callback, queued))
}

/// One call with the buffers that it moves.
struct Prepared {
    work: Work,
    inputs: Vec<Moved<offloop_buffer>>,
}

/// # Safety
/// As [`offloop_call`] says.
unsafe fn prepare(pool: &ThreadPool, call: &offloop_call) -> Result<Prepared> {
    match (call.function, call.op.is_null()) {
        (Some(function), true) => {
            // SAFETY: the caller vouches for function and argument on any thread.
            let function = unsafe { Function::new(function, UserArg::new(call.arg, call.arg_free)) };
            Ok(Prepared { work: Work::function(function), inputs: Vec::new() })
        }
        (None, false) => {
            // SAFETY: this function's contract.
            let name = unsafe { ffi::str(call.op, "op") }?;
            // SAFETY: this function's contract.
            let places = unsafe { ffi::slice(call.inputs_io.cast_const(), call.input_count, "inputs_io") }?;
            let mut inputs = Vec::with_capacity(places.len());
            let mut bytes = Vec::with_capacity(places.len());
            for place in places {
                // SAFETY: an element of the caller's array, which is the caller's to write.
                let mut input: Moved<offloop_buffer> = unsafe { ffi::moved(std::ptr::from_ref(place).cast_mut(), "inputs_io") }?;
                if let Object::Buffer(buffer) = input.object() {
                    // SAFETY: `Moved` keeps the buffer from everybody until it is given back or dropped.
                    bytes.push(unsafe { buffer.lend() }?);
                }
                inputs.push(input);
            }
            let made = if call.params.is_null() {
                pool.op(name, bytes, &Value::Nil)
            } else {
                let mut bytes = Some(bytes);
                value::read(call.params, |params| Ok(pool.op(name, bytes.take().unwrap_or_default(), params)))?
            };
            Ok(Prepared { work: made.map_err(|(e, _)| e)?, inputs })
        }
        (Some(_), false) => Err(Error::invalid("call has both a function and an op")),
        (None, true) => Err(Error::invalid("call has neither a function nor an op")),
    }
}

/// What a refused call gives back stays the caller's.
pub(super) fn refused(e: SubmitError) -> Error {
    ffi::keep_args(e.work);
    e.error
}

fn submit_one(
    pool: &ThreadPool,
    call: Prepared,
    options: SubmitOptions,
    place: Option<(ffi::Out<*mut offloop_task>, Place)>,
) -> Result<()> {
    // Of a refused call they go back to the caller, after the work that borrows them.
    let mut inputs = call.inputs;
    let commit = |task: &Task| {
        for input in inputs.drain(..) {
            drop(input.done());
        }
        if let Some((out, place)) = place {
            out.set(give_task(place, task, Form::Result));
        }
    };
    pool.submit_with(call.work, options, commit).map_err(refused)
}

pub(super) fn give_task(place: Place, task: &Task, form: Form) -> *mut offloop_task {
    place.fill_shared(Arc::new(Submitted { task: task.clone(), form }))
}

pub(super) fn task_place(out: *mut *mut offloop_task) -> Result<Option<(ffi::Out<*mut offloop_task>, Place)>> {
    ffi::out_opt(out, "out")?.map(|out| Ok((out, Place::new()?))).transpose()
}

/// Submits a C function. `out` may be NULL when nobody waits for the task.
///
/// The function runs on a thread of the pool and keeps it until it returns. One that waits for another task of its own pool (or for
/// that task's callback, by a lock of its own) needs a second thread there; offloop_task_wait without a limit, OFFLOOP_ON_FULL_WAIT
/// without one and offloop_pool_shutdown are OFFLOOP_ERR_INVALID in it when they would wait for ever.
///
/// OFFLOOP_ERR_OS (EAGAIN of pthread_create) when the process cannot start the one thread that deadlines and callbacks count on.
///
/// `arg_free(arg)`, unless NULL, is called exactly once for an accepted task, whatever its outcome: after the function returned, or
/// when it will never run (cancelled, timed out in the queue, pool ended). If this call fails nothing was taken: `arg` is still
/// the caller's, and neither arg_free nor on_done nor user_free is called.
///
/// # Safety
/// `function` follows its contract and may be called with `arg` on any thread; `options` is NULL or as long as it says; `out` is
/// NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_submit(
    pool: *mut offloop_pool,
    function: offloop_fn,
    arg: *mut c_void,
    arg_free: offloop_free_fn,
    options: *const offloop_submit_options,
    out: *mut *mut offloop_task,
) -> offloop_status {
    ffi::call(|| {
        let (pool, place) = (lookup(pool)?, task_place(out)?);
        if function.is_none() {
            return Err(Error::invalid("pointer is NULL").with("argument", "function"));
        }
        let call = offloop_call {
            function,
            arg,
            arg_free,
            op: std::ptr::null(),
            inputs_io: std::ptr::null_mut(),
            input_count: 0,
            params: std::ptr::null(),
        };
        // SAFETY: this function's contract.
        unsafe { delivered(options, Form::Result, |options| submit_one(&pool, prepare(&pool, &call)?, options, place)) }
    })
}

/// Submits an op by name. On OK the buffers `inputs_io[0]` to `inputs_io[input_count - 1]` are moved and become NULL; on error they
/// are untouched. `params` is a map, nil or NULL, and is copied. `out` may be NULL when nobody waits for the task.
///
/// # Safety
/// `op` is NUL-terminated, `inputs_io` points at `input_count` handles, `options` is NULL or as long as it says; `out` is NULL or
/// valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_submit_op(
    pool: *mut offloop_pool,
    op: *const c_char,
    inputs_io: *mut *mut offloop_buffer,
    input_count: usize,
    params: *const offloop_value,
    options: *const offloop_submit_options,
    out: *mut *mut offloop_task,
) -> offloop_status {
    ffi::call(|| {
        let (pool, place) = (lookup(pool)?, task_place(out)?);
        // SAFETY: this function's contract.
        unsafe { ffi::str(op, "op") }?;
        let call = offloop_call { function: None, arg: std::ptr::null_mut(), arg_free: None, op, inputs_io, input_count, params };
        // SAFETY: this function's contract.
        unsafe { delivered(options, Form::Result, |options| submit_one(&pool, prepare(&pool, &call)?, options, place)) }
    })
}

/// Submits a batch in one crossing: all of it or, on error, nothing. `tasks_out` is NULL or has room for `call_count` handles. The
/// options hold for every call, with tags that count up; on_done is not for batches. A batch that is longer than max_queue is
/// OFFLOOP_ERR_FULL at once, also with OFFLOOP_ON_FULL_WAIT.
///
/// # Safety
/// `calls` points at `call_count` calls, each as with the single functions; `tasks_out` as said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_pool_submit_many(
    pool: *mut offloop_pool,
    calls: *const offloop_call,
    call_count: usize,
    options: *const offloop_submit_options,
    tasks_out: *mut *mut offloop_task,
) -> offloop_status {
    ffi::call(|| {
        let pool = lookup(pool)?;
        let tasks_out = ffi::out_opt(tasks_out, "tasks_out")?.map(|_| tasks_out);
        // SAFETY: this function's contract.
        let calls = unsafe { ffi::slice(calls, call_count, "calls") }?;
        // SAFETY: this function's contract.
        if unsafe { ffi::options(options) }?.on_done.is_some() {
            return Err(Error::invalid("on_done is for single tasks, not for batches").with("call_count", call_count));
        }
        // SAFETY: this function's contract.
        unsafe {
            delivered(options, Form::Result, |options| {
                let mut works = Vec::with_capacity(calls.len());
                let mut inputs = Vec::new();
                let mut places = Vec::new();
                let prepared = calls.iter().try_for_each(|call| {
                    let one = prepare(&pool, call)?;
                    works.push(one.work);
                    inputs.extend(one.inputs);
                    if tasks_out.is_some() {
                        places.push(Place::new()?);
                    }
                    Ok(())
                });
                if let Err(e) = prepared {
                    ffi::keep_args(works);
                    return Err(e);
                }
                let commit = |tasks: &[Task]| {
                    for input in inputs.drain(..) {
                        drop(input.done());
                    }
                    if let Some(out) = tasks_out {
                        for (i, (task, place)) in tasks.iter().zip(places).enumerate() {
                            // SAFETY: the caller's array has `call_count` places, as many as there are tasks.
                            out.add(i).write(give_task(place, task, Form::Result));
                        }
                    }
                };
                pool.submit_many_with(works, &options, commit).map_err(refused)
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::buffer;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
    use std::sync::mpsc;

    struct Request {
        input: AtomicPtr<offloop_buffer>,
        task: AtomicPtr<offloop_task>,
        torn: AtomicUsize,
        called: mpsc::Sender<()>,
    }

    unsafe extern "C" fn on_done(user: *mut c_void, _: i32, value: *mut offloop_value) {
        // SAFETY: the test's request lives until its last call; `value` is this function's.
        let request = unsafe { &*user.cast::<Request>() };
        // SAFETY: as above.
        unsafe { value::offloop_value_free(value) };
        let early = !request.input.load(Ordering::Relaxed).is_null() || request.task.load(Ordering::Relaxed).is_null();
        request.torn.fetch_add(usize::from(early), Ordering::Relaxed);
        let _ = request.called.send(());
    }

    #[test]
    fn a_submit_has_written_what_it_writes_before_on_done() {
        let (called, calls) = mpsc::channel();
        let request = Request { input: AtomicPtr::default(), task: AtomicPtr::default(), torn: AtomicUsize::new(0), called };
        let mut pool = ptr::null_mut();
        // SAFETY: every pointer is NULL where that is allowed, or valid; `request` lives until the last call has been made.
        unsafe {
            assert_eq!(offloop_pool_new(ptr::null(), &raw mut pool), 0);
            let mut options: offloop_submit_options = std::mem::zeroed();
            options.struct_size = size_of::<offloop_submit_options>();
            options.on_done = Some(on_done);
            options.user = (&raw const request).cast_mut().cast();
            for _ in 0..2000 {
                assert_eq!(buffer::offloop_buffer_new(16, request.input.as_ptr()), 0);
                request.task.store(ptr::null_mut(), Ordering::Relaxed);
                let status = offloop_pool_submit_op(
                    pool,
                    c"noop".as_ptr(),
                    request.input.as_ptr(),
                    1,
                    ptr::null(),
                    &raw const options,
                    request.task.as_ptr(),
                );
                assert_eq!(status, 0);
                calls.recv().expect("called");
                crate::capi::task::offloop_task_free(request.task.load(Ordering::Relaxed));
            }
            offloop_pool_free(pool);
        }
        assert_eq!(request.torn.load(Ordering::Relaxed), 0, "calls of on_done before the submit had written everything");
    }
}
