//! Pools of JavaScript workers: the core decides, `worker_threads` run. A task is a number of an export and bytes that only
//! `lib/codec.cjs` reads.
//!
//! ```text
//!  main: lib/workers.cjs ── submits ──► core ── LoopHost::start, end ──► notes ──► main: new Worker, terminate
//!                              │ ▲
//!  worker: lib/run.cjs ◄─ tasks ┘ └─ results ── the worker's Seat
//! ```
//!
//! A [`Seat`] is a worker's place in this process: made by the core's wish, taken by the thread that main starts, and emptied by
//! whoever learns first that the thread has ended: main by its `exit` event, or nobody but the end of the process.

use crate::buffer::{self, Handle, Owned};
use crate::js::{Call, JsResult, Raw};
use crate::pool::{bad, call_options, count, duration, shown};
use crate::state::Wake;
use crate::value;
use offloop::pool::{
    AHEAD, Deliver, Given, LoopHost, LoopOptions, LoopWorker, MAX_DURATION, SubmitError, SubmitOptions, Taken, Work, word,
};
use offloop::{Error, ErrorKind, ThreadPool, TransferBuffer, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What `workerEvents` tells, `lib/workers.cjs` has the same numbers.
const START: u32 = 0;
const END: u32 = 1;

/// 32-bit words per handed-out task: index, export, flags, offset and length of its bytes.
const RECORD: usize = 5;
/// Flags of a task.
const BEGUN: u32 = 1;
const BIG: u32 = 2;
/// What `workerExchange` returns in place of a number of tasks.
const ASLEEP: f64 = -1.0;
const LEAVE: f64 = -2.0;

/// What is submitted.
struct Payload {
    export: u32,
    /// What lib/workers.cjs says of the bytes to lib/run.cjs.
    flags: u32,
    bytes: Box<[u8]>,
    /// Buffers that the call moves, until the worker that runs it takes them.
    buffers: Mutex<Vec<TransferBuffer>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker's place.
pub(crate) struct Seat {
    worker: Mutex<Option<LoopWorker>>,
    names: Arc<Names>,
    /// Of the environment that starts and ends its thread.
    wake: Arc<Wake>,
}

/// Exports by number, of one pool; the threads of its workers ask for them once each.
#[derive(Default)]
struct Names(Mutex<Numbered>);

#[derive(Default)]
struct Numbered {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Names {
    fn number(&self, name: &str) -> u32 {
        let Numbered { names, numbers } = &mut *lock(&self.0);
        if let Some(number) = numbers.get(name) {
            return *number;
        }
        let name: Arc<str> = name.into();
        let number = names.len() as u32;
        names.push(name.clone());
        numbers.insert(name, number);
        number
    }

    fn name(&self, number: u32) -> Option<Arc<str>> {
        lock(&self.0).names.get(number as usize).cloned()
    }
}

/// Every seat of the process: the thread of a worker has its number only.
static SEATS: Mutex<Option<Seats>> = Mutex::new(None);

#[derive(Default)]
struct Seats {
    last: u32,
    all: HashMap<u32, Arc<Seat>>,
}

fn seat(id: u32) -> Option<Arc<Seat>> {
    lock(&SEATS).as_ref().and_then(|seats| seats.all.get(&id).cloned())
}

/// The environment that made a pool, as the core sees it.
struct Home {
    wake: Arc<Wake>,
    note: usize,
    names: Arc<Names>,
    events: Mutex<Vec<(u32, u32)>>,
}

impl LoopHost for Home {
    fn start(&self, worker: LoopWorker) -> Result<(), LoopWorker> {
        if !self.wake.is_open() {
            return Err(worker);
        }
        let id = {
            let mut all = lock(&SEATS);
            let seats = all.get_or_insert_default();
            seats.last = seats.last.wrapping_add(1);
            worker.set_tag(u64::from(seats.last));
            let seat = Seat { worker: Mutex::new(Some(worker)), names: self.names.clone(), wake: self.wake.clone() };
            seats.all.insert(seats.last, Arc::new(seat));
            seats.last
        };
        self.tell(START, id);
        Ok(())
    }

    fn end(&self, tag: u64) {
        self.tell(END, tag as u32);
    }
}

impl Home {
    fn tell(&self, what: u32, id: u32) {
        let first = {
            let mut events = lock(&self.events);
            events.push((what, id));
            events.len() == 1
        };
        if first {
            self.wake.notify(self.note);
        }
    }
}

/// A pool of workers in JavaScript.
pub(crate) struct Workers {
    pub(crate) pool: ThreadPool,
    home: Arc<Home>,
}

fn workers<'a>(call: &'a Call<'_>) -> JsResult<&'a Workers> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Workers(w) => Ok(w),
        _ => Err(Error::invalid("handle is no pool of workers").into()),
    }
}

/// `workersNew(options, note)`: `note` is told when there are events.
pub(crate) fn new(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let mut builder = ThreadPool::builder();
    let (mut concurrency, mut cancel_grace) = (1, Duration::from_secs(1));
    let keys = env.keys(call.arg(0))?;
    for i in 0..env.len(keys)? {
        let key = env.at(keys, i)?;
        let given = env.get(call.arg(0), key)?;
        if env.is_nullish(given) {
            continue;
        }
        let time = |name| Ok::<_, crate::js::Fail>(duration(env, given, name)?.unwrap_or(MAX_DURATION));
        match env.text(key).unwrap_or_default().as_str() {
            "maxWorkers" => builder = builder.max_workers(count(env, given, "maxWorkers")?),
            "minWorkers" => builder = builder.min_workers(count(env, given, "minWorkers")?),
            "idleTimeout" => builder = builder.idle_timeout(time("idleTimeout")?),
            "maxQueue" => builder = builder.max_queue(count(env, given, "maxQueue")?),
            "maxTasksPerWorker" => builder = builder.max_tasks_per_worker(count(env, given, "maxTasksPerWorker")? as u64),
            "maxWorkerAge" => {
                if let Some(age) = duration(env, given, "maxWorkerAge")? {
                    builder = builder.max_worker_age(age);
                }
            }
            "name" => builder = builder.name(env.text(given).ok_or_else(|| bad("name", shown(env, given), "text"))?),
            "concurrency" => concurrency = count(env, given, "concurrency")?,
            "cancelGrace" => cancel_grace = time("cancelGrace")?,
            other => return Err(Error::invalid("unknown option").with("option", other.chars().take(80).collect::<String>()).into()),
        }
    }
    let names = Arc::<Names>::default();
    let note = env.u32(call.arg(1))? as usize;
    let home = Arc::new(Home { wake: call.state.wake.clone(), note, names, events: Mutex::default() });
    let pool = builder.looped(LoopOptions { host: home.clone(), concurrency, cancel_grace }).build()?;
    buffer::external(env, call.state, Handle::Workers(Workers { pool, home }))
}

/// `workersEvents(pool)`: pairs of what is wanted and the number of a seat.
pub(crate) fn events(call: &Call<'_>) -> JsResult<Raw> {
    let events = std::mem::take(&mut *lock(&workers(call)?.home.events));
    let out = call.env.array(events.len() * 2)?;
    for (i, (what, id)) in (0..).zip(events) {
        call.env.set_at(out, i * 2, call.env.number(what.into())?)?;
        call.env.set_at(out, i * 2 + 1, call.env.number(id.into())?)?;
    }
    Ok(out)
}

/// `workersExport(pool, name)`: the number of an export.
pub(crate) fn export(call: &Call<'_>) -> JsResult<Raw> {
    let name = call.env.text(call.arg(1)).ok_or_else(|| Error::invalid("name of an export is not text"))?;
    let number = workers(call)?.home.names.number(&name);
    call.env.number(number.into())
}

/// Tags of tasks of workers: an entry that no `open` of lib/completion.cjs gives, and the promise's slot.
const LANE: u64 = (u32::MAX as u64) << 32;

/// 32-bit words per collected submit: export, slot, flags, offset and length of its bytes.
const SUBMIT: usize = 5;

/// `workersSubmitEach(pool, records, bytes, count, refused)`: tasks without options that JavaScript has collected, in their
/// order. `refused` gets the slot and the error of each one that the pool did not take.
pub(crate) fn submit_each(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let pool = &workers(call)?.pool;
    let (records, bytes) = (buffer::scratch(call, call.arg(1))?, buffer::scratch(call, call.arg(2))?);
    let count = env.u32(call.arg(3))? as usize;
    let (mut work, mut tags) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for record in records.chunks_exact(SUBMIT * 4).take(count) {
        let word = |i: usize| u32::from_ne_bytes(record[i * 4..i * 4 + 4].try_into().expect("four bytes"));
        let (at, len) = (word(3) as usize, word(4) as usize);
        let bytes = bytes.get(at..at + len).ok_or_else(|| Error::invalid("collected task is outside its memory"))?;
        work.push(Work::hosted(Box::new(Payload { export: word(0), flags: word(2), bytes: bytes.into(), buffers: Mutex::default() })));
        tags.push(LANE | u64::from(word(1)));
    }
    if let Err(e) = pool.submit_each(work, &tags, &call.state.queue) {
        let error = call.state.error(env, &e.error)?;
        for (i, tag) in (0..).zip(&tags[tags.len() - e.work.len()..]) {
            env.set_at(call.arg(4), i * 2, env.number((*tag as u32).into())?)?;
            env.set_at(call.arg(4), i * 2 + 1, error)?;
        }
    }
    Ok(env.undefined())
}

/// `workersSubmit(pool, export, slot, flags, bytes, priority, timeout, queueTimeout, key, wait, retries, worker, buffers, trace)`: one task with options;
/// `callCancel(slot)` knows it until `callForget(slot)`.
pub(crate) fn submit(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let pool = &workers(call)?.pool;
    let (export, slot, flags) = (env.u32(call.arg(1))?, env.u32(call.arg(2))?, env.u32(call.arg(3))?);
    let deliver = Deliver::Queue(call.state.queue.clone(), LANE | u64::from(slot));
    let options = SubmitOptions { deliver, trace: env.bool(call.arg(13)) == Some(true), ..call_options(call, 5)? };
    let bytes = buffer::copy(env, call.arg(4))?.into_boxed_slice();
    let (owners, buffers) = take_buffers(call, call.arg(12))?;
    let payload = Payload { export, flags, bytes, buffers: Mutex::new(buffers) };
    let task = match pool.submit(Work::hosted(Box::new(payload)), options) {
        Ok(task) => task,
        Err(SubmitError { error, work }) => {
            let payload = work.into_iter().next().and_then(Work::into_payload).and_then(|p| p.downcast::<Payload>().ok());
            if let Some(payload) = payload {
                give_buffers_back(&owners, std::mem::take(&mut *lock(&payload.buffers)));
            }
            return Err(error.into());
        }
    };
    owners.iter().for_each(|owner| owner.let_go(env));
    call.state.calls.borrow_mut().insert(slot, task);
    Ok(env.undefined())
}

/// The buffers behind an array of handles, which are detached from now on. One that is detached or there twice is an error, and all stay.
fn take_buffers<'a>(call: &'a Call<'_>, given: Raw) -> JsResult<(Vec<&'a Owned>, Vec<TransferBuffer>)> {
    let (mut owners, mut buffers) = (Vec::new(), Vec::new());
    if call.env.is_nullish(given) {
        return Ok((owners, buffers));
    }
    for i in 0..call.env.len(given)? {
        let owner = buffer::owned(call, call.env.at(given, i)?)?;
        let Some(cell) = owner.buffer() else { return Err(Error::invalid("handle is no buffer").into()) };
        let taken = std::mem::take(&mut *cell.borrow_mut());
        if taken.is_detached() {
            give_buffers_back(&owners, buffers);
            return Err(Error::new(ErrorKind::Detached, "buffer was transferred").with("at", i).into());
        }
        owners.push(owner);
        buffers.push(taken);
    }
    Ok((owners, buffers))
}

fn give_buffers_back(owners: &[&Owned], buffers: Vec<TransferBuffer>) {
    for (owner, buffer) in owners.iter().zip(buffers) {
        if let Some(cell) = owner.buffer() {
            *cell.borrow_mut() = buffer;
        }
    }
}

/// Takes a worker out of its seat, for good.
fn vacate(id: u32) -> Option<LoopWorker> {
    let seat = lock(&SEATS).as_mut().and_then(|seats| seats.all.remove(&id))?;
    lock(&seat.worker).take()
}

/// `workerLost(id, exitCode, oom, why)`: its thread has ended after it was ready.
pub(crate) fn lost(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    if let Some(worker) = vacate(env.u32(call.arg(0))?) {
        let oom = env.bool(call.arg(2)) == Some(true);
        let why = if oom { "the worker ran out of memory" } else { "the worker's thread ended before the task did" };
        let error = Error::new(ErrorKind::WorkerLost, why).with("exit_code", env.f64(call.arg(1)).unwrap_or(-1.0));
        let error = if oom { error.with("oom", true) } else { error };
        let error = match env.text(call.arg(3)).unwrap_or_default() {
            text if text.is_empty() => error,
            text => error.with("error", text),
        };
        worker.lost(&error);
    }
    Ok(env.undefined())
}

/// `workerWasReady(id)`: its thread got as far as its seat, whatever main has heard of it.
pub(crate) fn was_ready(call: &Call<'_>) -> JsResult<Raw> {
    let seat = seat(call.env.u32(call.arg(0))?);
    let ready = seat.is_none_or(|seat| lock(&seat.worker).as_ref().is_none_or(LoopWorker::is_ready));
    call.env.boolean(ready)
}

/// `workerNotStarted(id, why)`: its thread has ended, or was ended, before it was ready.
pub(crate) fn not_started(call: &Call<'_>) -> JsResult<Raw> {
    if let Some(worker) = vacate(call.env.u32(call.arg(0))?) {
        let why = call.env.text(call.arg(1)).unwrap_or_default();
        worker.not_started(Error::new(ErrorKind::StartFailed, "the worker did not start").with("error", why));
    }
    Ok(call.env.undefined())
}

/// The environment of `wake` ends, and with it the threads that it has started: nobody else will say so.
pub(crate) fn abandon(wake: &Arc<Wake>) {
    let ids: Vec<u32> = {
        let seats = lock(&SEATS);
        let of_wake = seats.iter().flat_map(|seats| &seats.all).filter(|(_, seat)| Arc::ptr_eq(&seat.wake, wake));
        of_wake.map(|(id, _)| *id).collect()
    };
    // A worker that is dropped may wish for another one, which `Home::start` refuses by now.
    ids.into_iter().for_each(|id| drop(vacate(id)));
}

// ---- in the worker's thread ----

/// `workerSit(id, note)`: the seat, for the thread that runs it; `note` is its wake.
pub(crate) fn sit(call: &Call<'_>) -> JsResult<Raw> {
    let id = call.env.u32(call.arg(0))?;
    let gone = || Error::new(ErrorKind::NotFound, "no worker has this number").with("number", id);
    let seat = seat(id).ok_or_else(gone)?;
    let note = call.env.u32(call.arg(1))? as usize;
    let wake = call.state.wake.clone();
    lock(&seat.worker).as_mut().ok_or_else(gone)?.ready(Box::new(move || wake.notify(note)));
    buffer::external(call.env, call.state, Handle::Seat(seat))
}

fn seat_of<'a>(call: &'a Call<'_>) -> JsResult<&'a Seat> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Seat(seat) => Ok(seat),
        _ => Err(Error::invalid("handle is no seat").into()),
    }
}

/// `workerBoard(seat)`: `[memory, tasks, outLength]`; null where the runtime refuses external memory.
pub(crate) fn board(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let Some(board) = lock(&seat_of(call)?.worker).as_ref().and_then(LoopWorker::board) else { return Ok(env.null()) };
    let (at, len) = board.memory();
    let (tasks, out) = (board.tasks(), board.out_len());
    let Some(memory) = buffer::outside_memory(env, call.state, at, len, Box::new(board)) else { return Ok(env.null()) };
    let all = env.array(3)?;
    env.set_at(all, 0, memory)?;
    env.set_at(all, 1, env.number(tasks as f64)?)?;
    env.set_at(all, 2, env.number(out as f64)?)?;
    Ok(all)
}

/// `workerWords()`: the states of a task in a board, by name.
pub(crate) fn words(call: &Call<'_>) -> JsResult<Raw> {
    let all = [
        (c"FREE", word::FREE),
        (c"READY", word::READY),
        (c"CLAIMED", word::CLAIMED),
        (c"REVOKED", word::REVOKED),
        (c"CANCELLED", word::CANCELLED),
        (c"LATE", word::LATE),
        (c"DONE", word::DONE),
        (c"FAILED", word::FAILED),
    ];
    let out = call.env.object()?;
    for (name, value) in all {
        call.env.set_named(out, name, call.env.number(value.into())?)?;
    }
    Ok(out)
}

/// `workerExport(seat, number)`: its name.
pub(crate) fn export_name(call: &Call<'_>) -> JsResult<Raw> {
    let number = call.env.u32(call.arg(1))?;
    let name = seat_of(call)?.names.name(number).ok_or_else(|| Error::invalid("no export has this number").with("number", number))?;
    call.env.string(&name)
}

/// `workerExchange(seat, tasks, big, more)`: gives what has ended, and with `more` writes tasks into `tasks`, records first; bytes that do
/// not fit are put into the array `big`. The number of tasks; below 0, see [`ASLEEP`] and [`LEAVE`].
pub(crate) fn exchange(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let out = buffer::scratch(call, call.arg(1))?;
    let more = env.bool(call.arg(3)) == Some(true);
    let mut worker = lock(&seat_of(call)?.worker);
    let Some(worker) = worker.as_mut() else { return env.number(LEAVE) };
    let (mut n, mut used, mut bigs) = (0, AHEAD * RECORD * 4, Vec::new());
    let taken = worker.take(more, &mut |Given { index, payload, begun }| {
        let Some(Payload { export, flags, bytes, .. }) = payload.downcast_ref::<Payload>() else { return };
        let mut flags = *flags | if begun { BEGUN } else { 0 };
        let (at, len) = if bytes.len() <= out.len() - used {
            out[used..used + bytes.len()].copy_from_slice(bytes);
            let at = used;
            used += bytes.len();
            (at as u32, bytes.len() as u32)
        } else {
            flags |= BIG;
            bigs.push(bytes.to_vec());
            (bigs.len() as u32 - 1, bytes.len() as u32)
        };
        for (slot, word) in out[n * RECORD * 4..].chunks_exact_mut(4).zip([index as u32, *export, flags, at, len]) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        n += 1;
    });
    for (i, bytes) in (0..).zip(bigs) {
        env.set_at(call.arg(2), i, buffer::uint8array(env, call.state, bytes.into())?)?;
    }
    match taken {
        Taken::Tasks(n) => env.number(n as f64),
        Taken::Asleep => env.number(ASLEEP),
        Taken::Leave => env.number(LEAVE),
    }
}

/// `workerBuffers(seat, index)`: the buffers that a task brings, for the thread that runs it; once.
pub(crate) fn buffers(call: &Call<'_>) -> JsResult<Raw> {
    let index = call.env.u32(call.arg(1))? as usize;
    let take = |payload: &(dyn std::any::Any + Send)| {
        let payload = payload.downcast_ref::<Payload>();
        payload.map(|payload| std::mem::take(&mut *lock(&payload.buffers))).unwrap_or_default()
    };
    let taken = lock(&seat_of(call)?.worker).as_ref().and_then(|worker| worker.payload(index, take)).unwrap_or_default();
    value::to_js(call.env, call.state, Value::Array(taken.into_iter().map(Value::Buffer).collect()))
}

/// `workerFinish(seat, index, failed, runNs, bytes, buffers)`: a result that the board has no room for, or that moves buffers: then it arrives
/// as an array of its bytes and the buffers.
pub(crate) fn finish(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let (index, failed) = (env.u32(call.arg(1))? as usize, env.bool(call.arg(2)) == Some(true));
    let run_ns = env.f64(call.arg(3)).unwrap_or(0.0) as u64;
    let bytes = Value::Bytes(buffer::copy(env, call.arg(4))?.into());
    let (owners, buffers) = take_buffers(call, call.arg(5))?;
    let result = if buffers.is_empty() {
        bytes
    } else {
        Value::Array(std::iter::once(bytes).chain(buffers.into_iter().map(Value::Buffer)).collect())
    };
    owners.iter().for_each(|owner| owner.let_go(env));
    if let Some(worker) = lock(&seat_of(call)?.worker).as_mut() {
        worker.finish_with(index, failed, run_ns, result);
    }
    Ok(env.undefined())
}

/// `workerProgress(seat, index, bytes)`.
pub(crate) fn progress(call: &Call<'_>) -> JsResult<Raw> {
    let index = call.env.u32(call.arg(1))? as usize;
    let bytes = buffer::copy(call.env, call.arg(2))?;
    if let Some(worker) = lock(&seat_of(call)?.worker).as_ref() {
        worker.progress(index, Value::Bytes(bytes.into()));
    }
    Ok(call.env.undefined())
}

/// `workerRetire(seat)`: after an idle time; true if the thread is to end.
pub(crate) fn retire(call: &Call<'_>) -> JsResult<Raw> {
    let gone = lock(&seat_of(call)?.worker).as_mut().is_none_or(LoopWorker::retire);
    call.env.boolean(gone)
}
