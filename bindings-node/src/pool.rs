//! The thread pool: handles in, numbers out.
//!
//! A task's tag is two 32-bit numbers that JavaScript chose: `entry` (0 for the plain lane, where one promise waits) and
//! `index` (the promise's slot, or the position in a `runMany`). Results come back through [`drain`], as many per call as
//! fit a budget: small bytes side by side in one scratch array, everything else as values.

use crate::buffer::{self, Handle, Moves};
use crate::js::{Call, Env, Fail, JsResult, Raw};
use crate::process::{self, Reply};
use crate::state::State;
use crate::value;
use offloop::error::nearest;
use offloop::metrics::Histogram;
use offloop::pool::{Deliver, Event, MAX_DURATION, OnFull, ProcessPool, SubmitOptions, Work, priority};
use offloop::{Bytes, Error, ErrorKind, Result, Task, ThreadPool, Value};
use std::ops::Deref;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Bytes results up to this length go through the scratch array: no Node-API call for them.
const INLINE_MAX: usize = 1024;

/// What a drained record holds; `lib/completion.cjs` has the same numbers.
#[repr(u32)]
pub(crate) enum Kind {
    Bytes,
    Nil,
    Value,
    Error,
    Progress,
    /// Of worker processes: what a function of another language threw; parts of a frame; progress as one.
    Thrown,
    Frame,
    ProgressFrame,
}
/// 32-bit words per drained record: index, entry, kind, offset, length.
const RECORD: usize = 5;

/// The pool of a handle, for one call.
enum Pool<'a> {
    Own(&'a ThreadPool),
    OfProcesses(Rc<ProcessPool>),
}

impl Deref for Pool<'_> {
    type Target = ThreadPool;

    fn deref(&self) -> &ThreadPool {
        match self {
            Pool::Own(pool) => pool,
            Pool::OfProcesses(pool) => pool.pool(),
        }
    }
}

fn pool<'a>(call: &'a Call<'_>) -> JsResult<Pool<'a>> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Pool(p) => Ok(Pool::Own(p)),
        Handle::Workers(w) => Ok(Pool::Own(&w.pool)),
        Handle::Processes(p) => Ok(Pool::OfProcesses(p.pool()?)),
        _ => Err(Error::invalid("handle is no pool").into()),
    }
}

pub(crate) fn bad(name: &'static str, got: impl std::fmt::Display, want: &'static str) -> Fail {
    Error::invalid("option has the wrong type or is out of range").with("option", name).with("value", got).with("want", want).into()
}

/// How a value looks in a message.
pub(crate) fn shown(env: Env, value: Raw) -> String {
    match (env.f64(value), env.text(value)) {
        (Some(n), _) => n.to_string(),
        (_, Some(text)) => format!("'{}'", text.chars().take(80).collect::<String>()),
        _ => "neither a number nor text".to_owned(),
    }
}

/// A whole number; the core checks its range.
pub(crate) fn whole(env: Env, value: Raw, name: &'static str) -> JsResult<i64> {
    match env.f64(value) {
        Some(n) if n.fract() == 0.0 => Ok(n as i64),
        _ => Err(bad(name, shown(env, value), "a whole number")),
    }
}

pub(crate) fn count(env: Env, value: Raw, name: &'static str) -> JsResult<usize> {
    usize::try_from(whole(env, value, name)?).map_err(|_| bad(name, shown(env, value), "a whole number from 0"))
}

/// Milliseconds; `Infinity` and absent mean none.
pub(crate) fn duration(env: Env, value: Raw, name: &'static str) -> JsResult<Option<Duration>> {
    if env.is_nullish(value) {
        return Ok(None);
    }
    match env.f64(value) {
        Some(ms) => Ok(offloop::pool::duration(name, ms, 1000)?),
        None => Err(bad(name, shown(env, value), "milliseconds from 0")),
    }
}

/// `poolNew(options)`.
pub(crate) fn new(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let mut builder = ThreadPool::builder();
    let keys = env.keys(call.arg(0))?;
    for i in 0..env.len(keys)? {
        let key = env.at(keys, i)?;
        let given = env.get(call.arg(0), key)?;
        if env.is_nullish(given) {
            continue;
        }
        builder = match env.text(key).unwrap_or_default().as_str() {
            "maxWorkers" => builder.max_workers(count(env, given, "maxWorkers")?),
            "minWorkers" => builder.min_workers(count(env, given, "minWorkers")?),
            "idleTimeout" => match duration(env, given, "idleTimeout")? {
                Some(idle) => builder.idle_timeout(idle),
                None => builder.idle_timeout(MAX_DURATION),
            },
            "maxQueue" => builder.max_queue(count(env, given, "maxQueue")?),
            "maxOverdue" => builder.max_overdue(count(env, given, "maxOverdue")?),
            "nice" => builder.nice(whole(env, given, "nice")?.clamp(i32::MIN.into(), i32::MAX.into()) as i32),
            "name" => builder.name(env.text(given).ok_or_else(|| bad("name", shown(env, given), "text"))?),
            other => {
                let known = "maxWorkers minWorkers idleTimeout maxQueue maxOverdue nice name onFull trace timeout queueTimeout priority key retries signal onProgress";
                let other: String = other.chars().take(80).collect();
                let error = Error::invalid("unknown option").with("option", &other);
                let error = nearest(&other, known.split(' ')).into_iter().fold(error, |e, meant| e.with("did_you_mean", meant));
                return Err(error.with("known", known).into());
            }
        };
    }
    buffer::external(env, call.state, Handle::Pool(builder.build()?))
}

/// `poolDefault()`.
pub(crate) fn default(call: &Call<'_>) -> JsResult<Raw> {
    buffer::external(call.env, call.state, Handle::Pool(ThreadPool::default_pool()?))
}

/// `poolIntern(pool, name)`: the number of an op name in this environment. A name that the pool does not know is `NotFound` and
/// leaves no trace.
pub(crate) fn intern(call: &Call<'_>) -> JsResult<Raw> {
    let name = call.env.text(call.arg(1)).ok_or_else(|| Error::invalid("op name is not text"))?;
    match pool(call)?.check_op(&name, &Value::Nil) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(e.into()),
        // Its options come with each call.
        _ => {}
    }
    let number = call.state.names.borrow_mut().number(&name);
    call.env.number(number.into())
}

fn tag(entry: u32, index: u32) -> u64 {
    u64::from(entry) << 32 | u64::from(index)
}

/// `poolSubmit(pool, op, slot, bytes)`: one task of the plain lane, without options; `bytes` may be undefined.
pub(crate) fn submit(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let pool = pool(call)?;
    let (op, slot) = (env.u32(call.arg(1))?, env.u32(call.arg(2))?);
    let inputs = if env.is_nullish(call.arg(3)) { Vec::new() } else { vec![buffer::copy(env, call.arg(3))?.into()] };
    let work = prepare(call.state, &pool, op, inputs)?;
    let options = SubmitOptions { deliver: Deliver::Queue(call.state.queue.clone(), tag(0, slot)), ..SubmitOptions::default() };
    pool.submit(work, options).map_err(|e| e.error)?;
    Ok(env.undefined())
}

fn prepare(state: &State, pool: &ThreadPool, op: u32, inputs: Vec<Bytes>) -> Result<Work> {
    pool.op(state.names.borrow().name(op)?, inputs, &Value::Nil).map_err(|(e, _)| e)
}

/// 32-bit words per collected submit: op, slot, offset and length of its input.
const SUBMIT: usize = 4;
/// The length that says that a submit has no input at all.
const NO_INPUT: u32 = u32::MAX;

/// `poolSubmitEach(pool, records, inputs, count, refused)`: tasks of the plain lane that JavaScript has collected, in their
/// order. `refused` gets the slot and the error of each one that the pool did not take.
pub(crate) fn submit_each(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let pool = pool(call)?;
    let (records, bytes) = (buffer::scratch(call, call.arg(1))?, buffer::scratch(call, call.arg(2))?);
    let count = env.u32(call.arg(3))? as usize;
    let (mut work, mut tags) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut refused = 0;
    let mut refuse = |slot: u32, error: &Error| -> JsResult<()> {
        env.set_at(call.arg(4), refused, env.number(slot.into())?)?;
        env.set_at(call.arg(4), refused + 1, call.state.error(env, error)?)?;
        refused += 2;
        Ok(())
    };
    for record in records.chunks_exact(SUBMIT * 4).take(count) {
        let word = |i: usize| u32::from_ne_bytes(record[i * 4..i * 4 + 4].try_into().expect("four bytes"));
        let (op, slot, at, len) = (word(0), word(1), word(2) as usize, word(3));
        let input = match len {
            NO_INPUT => Some(Vec::new()),
            len => bytes.get(at..at + len as usize).map(|input| vec![Bytes::from(input)]),
        };
        let prepared = input
            .ok_or_else(|| Error::invalid("collected input is outside its memory").with("offset", at).with("len", len))
            .and_then(|input| prepare(call.state, &pool, op, input));
        match prepared {
            Ok(prepared) => {
                work.push(prepared);
                tags.push(tag(0, slot));
            }
            Err(e) => refuse(slot, &e)?,
        }
    }
    if let Err(e) = pool.submit_each(work, &tags, &call.state.queue) {
        for tag in &tags[tags.len() - e.work.len()..] {
            refuse(*tag as u32, &e.error)?;
        }
    }
    Ok(env.undefined())
}

/// `poolParams(value)`: params for [`submit_many`]. Getters and proxies of the user run in here, so it is called before any
/// buffer begins to move.
pub(crate) fn params(call: &Call<'_>) -> JsResult<Raw> {
    buffer::external(call.env, call.state, Handle::Params(value::from_js(call, call.arg(0))?))
}

/// What `params` of an argument stand for: undefined, or made by [`params`].
fn given_params<'a>(call: &'a Call<'_>, at: usize) -> JsResult<&'a Value> {
    match call.arg(at) {
        v if call.env.is_nullish(v) => Ok(&Value::Nil),
        v => match buffer::handle(call, v)? {
            Handle::Params(p) => Ok(p),
            _ => Err(Error::invalid("handle is no params").into()),
        },
    }
}

/// `poolCheckOp(pool, op, params)`: what a submit of no tasks checks.
pub(crate) fn check_op(call: &Call<'_>) -> JsResult<Raw> {
    let op = call.env.u32(call.arg(1))?;
    pool(call)?.check_op(call.state.names.borrow().name(op)?, given_params(call, 2)?)?;
    Ok(call.env.undefined())
}

/// `[priority, timeout, queueTimeout, key, wait]` of a call.
fn deliver_options(env: Env, given: &[Raw; 5]) -> JsResult<SubmitOptions> {
    Ok(SubmitOptions {
        priority: match given[0] {
            v if env.is_nullish(v) => 0,
            v => priority(whole(env, v, "priority")?)?,
        },
        timeout: duration(env, given[1], "timeout")?,
        queue_timeout: duration(env, given[2], "queueTimeout")?,
        key: match given[3] {
            v if env.is_nullish(v) => None,
            v => Some(env.text(v).ok_or_else(|| bad("key", shown(env, v), "text"))?),
        },
        on_full: if env.bool(given[4]) == Some(true) { OnFull::Admit } else { OnFull::Reject },
        ..SubmitOptions::default()
    })
}

fn retries(env: Env, given: Raw) -> JsResult<u32> {
    if env.is_nullish(given) {
        return Ok(0);
    }
    let n = count(env, given, "retries")?;
    u32::try_from(n).map_err(|_| bad("retries", n, "a whole number from 0 to 4294967295"))
}

/// `priority, timeout, queueTimeout, key, wait, retries, worker` of a call of a worker: arguments from `first` on.
pub(crate) fn call_options(call: &Call<'_>, first: usize) -> JsResult<SubmitOptions> {
    let (env, arg) = (call.env, |i| call.arg(first + i));
    Ok(SubmitOptions {
        retries: retries(env, arg(5))?,
        worker: if env.is_nullish(arg(6)) { None } else { Some(env.u32(arg(6))? as usize) },
        ..deliver_options(env, &[arg(0), arg(1), arg(2), arg(3), arg(4)])?
    })
}

/// `poolCheck(pool, priority, timeout, queueTimeout, key, retries)`: what a submit of a worker's call checks of its options.
pub(crate) fn check(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let options = deliver_options(env, &[call.arg(1), call.arg(2), call.arg(3), call.arg(4), env.undefined()])?;
    retries(env, call.arg(5))?;
    pool(call)?.submit_many(Vec::new(), &options).map_err(|e| e.error)?;
    Ok(env.undefined())
}

/// `poolLive(pool)`: the places of its workers.
pub(crate) fn live(call: &Call<'_>) -> JsResult<Raw> {
    let places = pool(call)?.live_workers();
    let out = call.env.array(places.len())?;
    for (i, place) in (0..).zip(places) {
        call.env.set_at(out, i, call.env.number(place as f64)?)?;
    }
    Ok(out)
}

/// `callCancel(slot)`: true when that call of a worker had not finished.
pub(crate) fn call_cancel(call: &Call<'_>) -> JsResult<Raw> {
    let slot = call.env.u32(call.arg(0))?;
    let task = call.state.calls.borrow().get(&slot).cloned();
    call.env.boolean(task.is_some_and(|task| task.cancel()))
}

/// `callForget(slot)`: its outcome has arrived.
pub(crate) fn call_forget(call: &Call<'_>) -> JsResult<Raw> {
    let slot = call.env.u32(call.arg(0))?;
    call.state.calls.borrow_mut().remove(&slot);
    call.state.given.borrow_mut().remove(&slot);
    Ok(call.env.undefined())
}

/// `poolSubmitMany(pool, op, entry, inputs, params, priority, timeout, queueTimeout, key, wait, trace)`: one task per element of
/// `inputs`, each a list of inputs; all of them or none. `params` is undefined or made by [`params`]; the arrays are plain
/// ones of this package: no code of the user runs while buffers are lent.
pub(crate) fn submit_many(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let pool = pool(call)?;
    let (op, entry) = (env.u32(call.arg(1))?, env.u32(call.arg(2))?);
    let deliver = Deliver::Queue(call.state.queue.clone(), tag(entry, 0));
    let given = [call.arg(5), call.arg(6), call.arg(7), call.arg(8), call.arg(9)];
    let trace = env.bool(call.arg(10)) == Some(true);
    let options = SubmitOptions { deliver, trace, ..deliver_options(env, &given)? };
    let params = given_params(call, 4)?;
    let groups = call.arg(3);
    let count = env.len(groups)?;
    let mut works = Vec::with_capacity(count as usize);
    let mut moves = Moves::default();
    for i in 0..count {
        let group = env.at(groups, i)?;
        let inputs = (0..env.len(group)?).map(|j| moves.input(call, env.at(group, j)?)).collect::<JsResult<Vec<Bytes>>>()?;
        let names = call.state.names.borrow();
        works.push(pool.op(names.name(op)?, inputs, params).map_err(|(e, _)| e)?);
    }
    let tasks = pool.submit_many(works, &options).map_err(|e| e.error)?;
    moves.commit(env);
    call.state.tasks.borrow_mut().insert(entry, tasks);
    Ok(env.undefined())
}

/// `poolCancel(entry)`: true when a task of it had not finished.
pub(crate) fn cancel(call: &Call<'_>) -> JsResult<Raw> {
    let entry = call.env.u32(call.arg(0))?;
    let tasks = call.state.tasks.borrow();
    let some = tasks.get(&entry).is_some_and(|tasks| tasks.iter().fold(false, |some, task| task.cancel() | some));
    call.env.boolean(some)
}

/// `poolForget(entry)`: all outcomes of it have arrived.
pub(crate) fn forget(call: &Call<'_>) -> JsResult<Raw> {
    let entry = call.env.u32(call.arg(0))?;
    call.state.tasks.borrow_mut().remove(&entry);
    Ok(call.env.undefined())
}

/// `[submitted, queueTime, runTime, outcome, worker]` of a traced task that has its outcome, times in ms; null of any other.
fn times_of(env: Env, task: Option<&Task>) -> JsResult<Raw> {
    let Some(trace) = task.and_then(Task::trace) else { return Ok(env.null()) };
    let ms = |ns: u64| env.number(ns as f64 / 1e6);
    let out = env.array(5)?;
    env.set_at(out, 0, ms(trace.submitted_unix_ns)?)?;
    env.set_at(out, 1, ms(trace.queue_ns)?)?;
    env.set_at(out, 2, ms(trace.run_ns)?)?;
    env.set_at(out, 3, env.string(trace.outcome.name())?)?;
    env.set_at(out, 4, trace.worker.map_or_else(|| Ok(env.null()), |place| env.number(place as f64))?)?;
    Ok(out)
}

/// `poolTrace(entry, index)`: of a task of `poolSubmitMany`, until `poolForget`.
pub(crate) fn trace(call: &Call<'_>) -> JsResult<Raw> {
    let (entry, index) = (call.env.u32(call.arg(0))?, call.env.u32(call.arg(1))?);
    let task = call.state.tasks.borrow().get(&entry).and_then(|tasks| tasks.get(index as usize).cloned());
    times_of(call.env, task.as_ref())
}

/// `callTrace(slot)`: of a call of a worker, until `callForget`.
pub(crate) fn call_trace(call: &Call<'_>) -> JsResult<Raw> {
    let slot = call.env.u32(call.arg(0))?;
    let task = call.state.calls.borrow().get(&slot).cloned();
    times_of(call.env, task.as_ref())
}

/// Where [`drain`] writes.
struct Sink<'a> {
    env: Env,
    state: &'a State,
    records: &'a mut [u8],
    scratch: &'a mut [u8],
    values: Raw,
    used: usize,
    count: usize,
    value_count: u32,
    capacity: usize,
}

impl Sink<'_> {
    fn record(&mut self, tag: u64, kind: Kind, a: u32, b: u32) {
        let words = [tag as u32, (tag >> 32) as u32, kind as u32, a, b];
        let at = self.count * RECORD * 4;
        for (slot, word) in self.records[at..at + RECORD * 4].chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        self.count += 1;
    }

    fn value(&mut self, tag: u64, kind: Kind, made: JsResult<Raw>) {
        let (kind, value) = match made {
            Ok(value) => (kind, value),
            Err(Fail::Error(e)) => (Kind::Error, self.state.error(self.env, &e).unwrap_or(self.env.undefined())),
            Err(Fail::Pending) => (Kind::Error, self.env.take_exception().unwrap_or(self.env.undefined())),
        };
        let _ = self.env.set_at(self.values, self.value_count, value);
        self.record(tag, kind, self.value_count, 0);
        self.value_count += 1;
    }

    /// Bytes that go through the scratch array.
    fn is_inline(&self, tag: u64, bytes: &[u8]) -> bool {
        let room = self.scratch.len() - self.used;
        bytes.len() <= INLINE_MAX && bytes.len() <= room && (!process::is_ours(tag) || process::is_frame(bytes))
    }

    /// What a worker process said.
    fn reply(&mut self, tag: u64, value: Value, is_progress: bool) {
        let (kind, made) = match process::reply(self.env, self.state, tag as u32, value) {
            Ok(Reply::Frame(made)) => (if is_progress { Kind::ProgressFrame } else { Kind::Frame }, Ok(made)),
            Ok(Reply::Value(made)) => (if is_progress { Kind::Progress } else { Kind::Value }, Ok(made)),
            Ok(Reply::Thrown(made)) => (Kind::Thrown, Ok(made)),
            // Of what cannot be read nobody was told before either.
            Err(_) if is_progress => return,
            Err(failed) => (Kind::Error, Err(failed)),
        };
        self.value(tag, kind, made);
    }

    fn event(&mut self, event: Event) {
        if self.count == self.capacity {
            // A drain may give more progress values than asked; they wait for the next one.
            return self.state.spill.borrow_mut().push_back(event);
        }
        match event {
            Event::Done { tag, result: Ok(Value::Bytes(b)) } if self.is_inline(tag, &b) => {
                let at = self.used;
                self.scratch[at..at + b.len()].copy_from_slice(&b);
                self.used += b.len();
                self.record(tag, Kind::Bytes, at as u32, b.len() as u32);
            }
            Event::Done { tag, result: Ok(value) } if process::is_ours(tag) => self.reply(tag, value, false),
            Event::Progress { tag, value } if process::is_ours(tag) => self.reply(tag, value, true),
            Event::Done { tag, result: Ok(Value::Nil) } => self.record(tag, Kind::Nil, 0, 0),
            Event::Done { tag, result: Ok(value) } => {
                let made = value::to_js(self.env, self.state, value);
                self.value(tag, Kind::Value, made);
            }
            Event::Done { tag, result: Err(e) } => {
                let made = self.state.error(self.env, &e);
                self.value(tag, Kind::Error, made);
            }
            Event::Progress { tag, value } => {
                let made = value::to_js(self.env, self.state, value);
                self.value(tag, Kind::Progress, made);
            }
        }
    }
}

/// `poolDrain(records, scratch, values, budget)`: how many records it wrote. It does not arm the wake.
pub(crate) fn drain(call: &Call<'_>) -> JsResult<Raw> {
    let budget = call.env.u32(call.arg(3))? as usize;
    let mut sink = Sink {
        env: call.env,
        state: call.state,
        records: buffer::scratch(call, call.arg(0))?,
        scratch: buffer::scratch(call, call.arg(1))?,
        values: call.arg(2),
        used: 0,
        count: 0,
        value_count: 0,
        capacity: 0,
    };
    sink.capacity = budget.min(sink.records.len() / (RECORD * 4));
    while sink.count < sink.capacity {
        let Some(event) = call.state.spill.borrow_mut().pop_front() else { break };
        sink.event(event);
    }
    let left = sink.capacity - sink.count;
    if left > 0 {
        call.state.queue.poll(left, &mut |event| sink.event(event));
    }
    call.env.number(sink.count as f64)
}

/// `poolArm()`: the next completion wakes the loop. False if something waits already.
pub(crate) fn arm(call: &Call<'_>) -> JsResult<Raw> {
    call.env.boolean(call.state.spill.borrow().is_empty() && call.state.queue.arm())
}

/// `poolLoad(pool, path)`: names of the ops that a plugin added.
pub(crate) fn load(call: &Call<'_>) -> JsResult<Raw> {
    let path = call.env.text(call.arg(1)).ok_or_else(|| Error::invalid("plugin path is not text"))?;
    let names = pool(call)?.load(Path::new(&path))?;
    value::to_js(call.env, call.state, Value::Array(names.into_iter().map(Value::from).collect()))
}

/// `poolResize(pool, min, max)`.
pub(crate) fn resize(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let optional = |at, name| if env.is_nullish(call.arg(at)) { Ok(None) } else { count(env, call.arg(at), name).map(Some) };
    pool(call)?.resize(optional(1, "minWorkers")?, optional(2, "maxWorkers")?)?;
    Ok(env.undefined())
}

/// `poolStats(pool)`. Histograms are in milliseconds.
pub(crate) fn stats(call: &Call<'_>) -> JsResult<Raw> {
    let s = pool(call)?.stats();
    let histogram = |h: &Histogram| {
        let ms = |ns: u64| Value::Float(ns as f64 / 1e6);
        Value::map([
            ("count", Value::Int(h.count as i64)),
            ("mean", Value::Float(h.mean_ns / 1e6)),
            ("p50", ms(h.p50_ns)),
            ("p90", ms(h.p90_ns)),
            ("p99", ms(h.p99_ns)),
            ("max", ms(h.max_ns)),
        ])
    };
    let n = |n: u64| Value::Int(n as i64);
    let level = |n: usize| Value::Int(n as i64);
    let tree = Value::map([
        ("queued", level(s.queued)),
        ("running", level(s.running)),
        ("workers", level(s.workers)),
        ("overdue", level(s.overdue)),
        ("submitted", n(s.submitted)),
        ("completed", n(s.completed)),
        ("failed", n(s.failed)),
        ("timedOut", n(s.timed_out)),
        ("cancelled", n(s.cancelled)),
        ("lost", n(s.lost)),
        ("rejected", n(s.rejected)),
        ("retried", n(s.retried)),
        ("recycled", n(s.recycled)),
        ("utilization", Value::Float(s.utilization)),
        ("wait", histogram(&s.wait)),
        ("run", histogram(&s.run)),
    ]);
    value::to_js(call.env, call.state, tree)
}

/// `poolClose(pool, graceMs, note)`: starts the end; the wake hook gets `note` once every task has its outcome.
pub(crate) fn close(call: &Call<'_>) -> JsResult<Raw> {
    // `closeGrace` in lib/pool.cjs has checked it. What no clock measures is for ever.
    let grace = call.env.f64(call.arg(1)).and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
    let note = call.env.u32(call.arg(2))? as usize;
    let wake = call.state.wake.clone();
    pool(call)?.close_within(grace, Box::new(move || wake.notify(note)))?;
    Ok(call.env.undefined())
}
