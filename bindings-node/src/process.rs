//! Pools of worker processes, and this process as a worker of one. What both say to each other lies in *frames* that `lib/frame.cjs` writes
//! and reads, or, where one of them may be another language, in the core's common calls.
//!
//! ```text
//!  frame: form │ flags │ parts │ table │ body … │ lengths of parts │ 0 … 0 │ part │ 0 … 0 │ part …
//!          u8     u8      u16     u32    up to `table`   u64 each      parts begin at multiples of 64
//! ```
//!
//! The body is what `lib/codec.cjs` writes; a part is a long byte array, or a `TransferBuffer` ([`BUFFER`] in its length), which is copied once on
//! its way and read where it lies. A buffer in memory that a pool shares with its workers is not copied: [`SHARED`] in its length says that the
//! part is the place of it (u64). It moves to the worker with its call, and back with the reply of that call.

use crate::buffer::{self, Handle};
use crate::js::{Call, Env, Fail, JsResult, Raw};
use crate::pool::{Kind, bad, call_options, count, duration, shown, whole};
use crate::state::{State, Told};
use crate::value;
use offloop::TransferBuffer;
use offloop::buffer::Region;
use offloop::codec::{self, Options};
use offloop::pool::call::{self, COMMON, FAILED, NODE};
use offloop::pool::{Deliver, MAX_DURATION, Payload, PoolOptions, ProcessPool, Request, Sent, Stream, SubmitOptions, Work, Worker, frame};
use offloop::supervisor::{self, Event, WorkerId};
use offloop::sys::process::Spec;
use offloop::sys::watch::Watch;
use offloop::value::ErrorValue;
use offloop::{Error, ErrorKind, Result, Value};
use std::any::Any;
use std::borrow::Cow;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Tags of tasks of processes: an entry that no `open` of lib/completion.cjs gives, and the promise's slot.
const ENTRY: u64 = (u32::MAX as u64 - 1) << 32;
/// Of a frame; lib/frame.cjs has the same numbers.
const HEAD: usize = 8;
const ALIGN: usize = 64;
/// Parts from this length on are read where they lie.
const IN_PLACE: usize = 4096;
/// Of the length of a part: it is a `TransferBuffer`; lib/frame.cjs sets it.
const BUFFER: u64 = 1 << 62;
/// … in shared memory.
const SHARED: u64 = 1 << 63;

/// 32-bit words per collected submit, as of any worker: what is called and how, which the frame has here; between them the slot; offset and
/// length of the frame.
const SUBMIT: usize = 5;

// What `processEvents` tells; lib/processes.cjs has the same numbers.
const READY: i64 = 0;
const EXITED: i64 = 1;
const DEGRADED: i64 = 2;
const STOPPED: i64 = 3;

/// Whose task a tag is.
pub(crate) fn is_ours(tag: u64) -> bool {
    tag >> 32 == ENTRY >> 32
}

/// A frame without parts: JavaScript reads it as it is.
pub(crate) fn is_frame(bytes: &[u8]) -> bool {
    bytes.len() >= HEAD && bytes[0] & !FAILED == NODE && bytes[2..4] == [0, 0]
}

fn listener(told: Arc<Told>) -> impl FnMut(&Event) + Send {
    let mut pids = HashMap::<WorkerId, i32>::new();
    move |event| match event {
        Event::Spawned { worker, pid } => drop(pids.insert(*worker, *pid)),
        Event::Ready { worker, .. } => {
            told.tell(vec![Value::Int(READY), Value::Int(pids.get(worker).copied().unwrap_or(0).into())]);
        }
        Event::Exited { worker, cause, ended, text, uptime, .. } => {
            let number = |n: Option<i32>| n.map_or(Value::Nil, |n| Value::Int(n.into()));
            // Whose end nobody asked for, and which had begun to work.
            let failed = uptime.is_some() && !cause.is_asked() && *cause != supervisor::Cause::Killed;
            told.tell(vec![
                Value::Int(EXITED),
                Value::Int(pids.remove(worker).unwrap_or(0).into()),
                number(ended.exit.code),
                number(ended.exit.signal),
                Value::Bool(ended.oom),
                Value::Bool(failed),
                text.as_ref().map_or(Value::Nil, |text| Value::from(text.clone())),
            ]);
        }
        Event::Degraded { failures, .. } => told.tell(vec![Value::Int(DEGRADED), Value::Int(*failures as i64)]),
        Event::Stopped => told.tell(vec![Value::Int(STOPPED)]),
        _ => {}
    }
}

/// A pool of worker processes.
pub(crate) struct Processes {
    /// None once it is closed and was released.
    pool: RefCell<Option<Rc<ProcessPool>>>,
    name: String,
    told: Arc<Told>,
}

impl Processes {
    pub(crate) fn pool(&self) -> Result<Rc<ProcessPool>> {
        let pool = self.pool.borrow();
        pool.clone().ok_or_else(|| Error::new(ErrorKind::Closed, "the pool is closed").with("pool", &self.name))
    }
}

impl Drop for Processes {
    /// With its environment: nobody waits for a result any more, and the processes have time for their `teardown`.
    fn drop(&mut self) {
        // A pool that is closed, or the parent's, is left alone.
        if let Some(pool) = self.pool.get_mut() {
            let _ = pool.close_within(Some(Duration::ZERO), Box::new(|| {}));
        }
    }
}

fn processes<'a>(call: &'a Call<'_>) -> JsResult<&'a Processes> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Processes(p) => Ok(p),
        _ => Err(Error::invalid("handle is no pool of processes").into()),
    }
}

pub(crate) fn texts(env: Env, array: Raw) -> JsResult<Vec<OsString>> {
    (0..env.len(array)?).map(|i| Ok(env.text(env.at(array, i)?).unwrap_or_default().into())).collect()
}

/// `processNew(options, note, command, env, setup)`: `note` is told when there are events; `env` is names and values by turns, or undefined.
pub(crate) fn new(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let mut pool = PoolOptions::default();
    let mut supervision = supervisor::Options { hang_timeout: Duration::ZERO, workers: 0, ..supervisor::Options::default() };
    let mut builder = ProcessPool::builder();
    let keys = env.keys(call.arg(0))?;
    for i in 0..env.len(keys)? {
        let key = env.at(keys, i)?;
        let given = env.get(call.arg(0), key)?;
        if env.is_nullish(given) {
            continue;
        }
        let time = |name| Ok::<_, Fail>(duration(env, given, name)?.unwrap_or(MAX_DURATION));
        match env.text(key).unwrap_or_default().as_str() {
            "maxWorkers" => pool.max_workers = Some(count(env, given, "maxWorkers")?),
            "minWorkers" => pool.min_workers = count(env, given, "minWorkers")?,
            "idleTimeout" => pool.idle_timeout = time("idleTimeout")?,
            "maxQueue" => pool.max_queue = count(env, given, "maxQueue")?,
            "maxTasksPerWorker" => pool.max_tasks_per_worker = Some(count(env, given, "maxTasksPerWorker")? as u64),
            "maxWorkerAge" => pool.max_worker_age = duration(env, given, "maxWorkerAge")?,
            "maxWorkerMemory" => pool.max_worker_memory = Some(count(env, given, "maxWorkerMemory")? as u64),
            "nice" => pool.nice = whole(env, given, "nice")?.clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            "name" => pool.name = env.text(given).ok_or_else(|| bad("name", shown(env, given), "text"))?,
            "concurrency" => builder = builder.concurrency(count(env, given, "concurrency")?),
            "cancelGrace" => builder = builder.cancel_grace(time("cancelGrace")?),
            "readyTimeout" => supervision.boot_timeout = time("readyTimeout")?,
            other => return Err(Error::invalid("unknown option").with("option", other.chars().take(80).collect::<String>()).into()),
        }
    }
    let name = pool.name.clone();
    let told = Told::new(call.state, env.u32(call.arg(1))?);
    let mut command = texts(env, call.arg(2))?;
    if command.is_empty() {
        return Err(Error::invalid("command is empty").into());
    }
    let mut spec = Spec::new(command.remove(0));
    spec.args = command;
    if !env.is_nullish(call.arg(3)) {
        let mut pairs = texts(env, call.arg(3))?.into_iter();
        let mut all = Vec::new();
        while let (Some(name), Some(value)) = (pairs.next(), pairs.next()) {
            all.push((name, value));
        }
        spec.env = Some(all);
    }
    let setup = buffer::copy(env, call.arg(4))?;
    let builder = builder.options(pool).setup(setup).supervision(supervision).on_event(listener(told.clone()));
    let pool = RefCell::new(Some(Rc::new(builder.build(move |_| Ok(spec.clone()))?)));
    buffer::external(env, call.state, Handle::Processes(Processes { pool, name, told }))
}

/// `processEvents(pool)`: what happened, each a list that begins with its number.
pub(crate) fn events(call: &Call<'_>) -> JsResult<Raw> {
    value::to_js(call.env, call.state, Value::Array(processes(call)?.told.take()))
}

/// `processEncode(value)`: the setup of workers of any language: the common form of a value.
pub(crate) fn encode(call: &Call<'_>) -> JsResult<Raw> {
    let message = call::encode_reply(Ok(value::from_js(call, call.arg(0))?))?;
    buffer::uint8array(call.env, call.state, message.into())
}

fn submit_all(call: &Call<'_>, pool: &ProcessPool, work: Vec<Work>, tags: &[u64]) -> std::result::Result<(), (Error, usize)> {
    let submitted = pool.submitting(work, |work| pool.pool().submit_each(work, tags, &call.state.queue));
    submitted.map_err(|e| (e.error, e.work.len()))
}

/// `processSubmitEach(pool, records, frames, count, refused)`: tasks without options that JavaScript has collected, in their order.
/// `refused` gets the slot and the error of each one that the pool did not take.
pub(crate) fn submit_each(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let pool = processes(call)?.pool()?;
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
        let (slot, at, len) = (word(1), word(3) as usize, word(4) as usize);
        let frame = bytes.get(at..at + len).ok_or_else(|| Error::invalid("collected task is outside its memory"));
        match frame.and_then(|frame| pool.request(&[frame])) {
            Ok(request) => {
                work.push(Work::hosted(Box::new(request)));
                tags.push(ENTRY | u64::from(slot));
            }
            Err(e) => refuse(slot, &e)?,
        }
    }
    if let Err((error, left)) = submit_all(call, &pool, work, &tags) {
        for tag in &tags[tags.len() - left..] {
            refuse(*tag as u32, &error)?;
        }
    }
    Ok(env.undefined())
}

/// A frame, and where the bytes of its parts are.
struct Written<'a> {
    frame: Cow<'a, [u8]>,
    parts: Vec<Cow<'a, [u8]>>,
}

impl<'a> Written<'a> {
    /// Parts are `Uint8Array`s and handles of `TransferBuffer`s; `place(first byte, length)` says where one lies in shared memory.
    fn new(
        call: &'a Call<'_>,
        frame: &'a [u8],
        parts: Raw,
        place: &mut dyn FnMut(*const u8, usize) -> Result<Option<u64>>,
    ) -> JsResult<Written<'a>> {
        let env = call.env;
        let mut written = Written { frame: frame.into(), parts: Vec::new() };
        if env.is_nullish(parts) {
            return Ok(written);
        }
        let count = env.len(parts)?;
        let table = frame.len().checked_sub(8 * count as usize).ok_or_else(|| Error::invalid("frame has no lengths of its parts"))?;
        for i in 0..count {
            let part = env.at(parts, i)?;
            if env.is_typedarray(part)? {
                // SAFETY: JavaScript, which alone can take the memory away, does not run before the slices are dropped; they are copied from only.
                written.parts.push(unsafe { buffer::view(env, part)?.as_slice() }.into());
                continue;
            }
            let Handle::Buffer(b) = buffer::handle(call, part)? else { return Err(Error::invalid("part is no bytes").into()) };
            let (_, at, len) = b.borrow().view()?;
            if let Some(place) = if len == 0 { None } else { place(at, len)? } {
                let entry = table + 8 * i as usize;
                written.frame.to_mut()[entry..entry + 8].copy_from_slice(&(len as u64 | BUFFER | SHARED).to_ne_bytes());
                written.parts.push(place.to_ne_bytes().to_vec().into());
            } else {
                // SAFETY: as above; the handle, which the running call keeps, owns the memory.
                written.parts.push(if len == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(at, len) } }.into());
            }
        }
        Ok(written)
    }

    /// All bytes, each part at its place.
    fn slices(&self) -> Vec<&[u8]> {
        let mut all = vec![&*self.frame];
        let mut at = self.frame.len();
        for part in &self.parts {
            let gap = at.next_multiple_of(ALIGN) - at;
            all.extend([&ZEROS[..gap], part]);
            at += gap + part.len();
        }
        all
    }
}

/// The frame was taken: the `TransferBuffer`s among its parts are empty from now on.
fn commit(call: &Call<'_>, parts: Raw) -> JsResult<()> {
    let env = call.env;
    if env.is_nullish(parts) {
        return Ok(());
    }
    for i in 0..env.len(parts)? {
        let part = env.at(parts, i)?;
        if env.is_typedarray(part)? {
            continue;
        }
        let given = buffer::owned(call, part)?;
        given.let_go(env);
        if let Some(b) = given.buffer() {
            b.borrow_mut().detach();
        }
    }
    Ok(())
}

const ZEROS: [u8; ALIGN] = [0; ALIGN];

/// As `streamNew` made it; none where the argument is left out.
fn stream<'a>(call: &'a Call<'_>, at: usize) -> JsResult<Option<&'a Stream>> {
    if call.env.is_nullish(call.arg(at)) {
        return Ok(None);
    }
    match buffer::handle(call, call.arg(at))? {
        Handle::Stream(stream) => Ok(Some(stream)),
        _ => Err(Error::invalid("handle is no stream").into()),
    }
}

/// `streamNew(note)`: takes what one task says while it runs; `note` is told when there is something.
pub(crate) fn stream_new(call: &Call<'_>) -> JsResult<Raw> {
    let (wake, note) = (call.state.wake.clone(), call.env.u32(call.arg(0))? as usize);
    buffer::external(call.env, call.state, Handle::Stream(Stream::new(Box::new(move || wake.notify(note)))))
}

/// `streamTake(stream)`: kinds and values of the records of the next frame by turns, none while there is no frame.
pub(crate) fn stream_take(call: &Call<'_>) -> JsResult<Raw> {
    let (env, state) = (call.env, call.state);
    let Some(frame) = stream(call, 0)?.and_then(Stream::take) else { return env.array(0) };
    let mut from = FromWorker { state, slot: None, buffer: None };
    let bytes;
    let (at, len) = match frame {
        Value::Bytes(all) => {
            bytes = all;
            (bytes.as_ptr(), bytes.len())
        }
        Value::Buffer(buffer) => {
            let (_region, at, len) = buffer.view()?;
            from.buffer = Some(buffer);
            (at.cast_const(), len)
        }
        other => return Err(Error::new(ErrorKind::Corrupt, "frame is no bytes").with("type", other.type_name()).into()),
    };
    // SAFETY: `bytes` or `from` keeps `len` bytes.
    let records = unsafe { frame::records_at(at, len)? };
    let out = env.array(2 * records.len())?;
    for (i, record) in (0..).zip(records) {
        // SAFETY: inside of the frame, as `records` says.
        let made = unsafe { reply_at(env, state, at.add(record.start), record.len(), &from) };
        let (kind, value) = match made {
            Ok(Reply::Value(value)) => (Kind::Value, value),
            Ok(Reply::Thrown(error)) => (Kind::Thrown, error),
            Ok(Reply::Frame(parts)) => (Kind::Frame, parts),
            Err(Fail::Error(error)) => (Kind::Thrown, state.error(env, &error)?),
            Err(pending) => return Err(pending),
        };
        env.set_at(out, 2 * i, env.number(f64::from(kind as u32))?)?;
        env.set_at(out, 2 * i + 1, value)?;
    }
    Ok(out)
}

/// `streamStop(stream)`: nobody takes any more.
pub(crate) fn stream_stop(call: &Call<'_>) -> JsResult<Raw> {
    if let Some(stream) = stream(call, 0)? {
        stream.stop();
    }
    Ok(call.env.undefined())
}

fn submit_one(call: &Call<'_>, slot: u32, options: SubmitOptions, request: Request) -> JsResult<Raw> {
    let pool = processes(call)?.pool()?;
    let request = match stream(call, 11)? {
        Some(stream) => request.streaming(stream),
        None => request,
    };
    let deliver = Deliver::Queue(call.state.queue.clone(), ENTRY | u64::from(slot));
    let options = SubmitOptions { deliver, trace: call.env.bool(call.arg(12)) == Some(true), ..options };
    let task = pool.submit(request, options).map_err(|e| e.error)?;
    call.state.calls.borrow_mut().insert(slot, task);
    Ok(call.env.undefined())
}

/// `processSubmit(pool, slot, frame, parts, priority, timeout, queueTimeout, key, wait, retries, worker, stream, trace)`: one task; `callCancel(slot)`
/// knows it until `callForget(slot)`.
pub(crate) fn submit(call: &Call<'_>) -> JsResult<Raw> {
    let pool = processes(call)?.pool()?;
    let (slot, options) = (call.env.u32(call.arg(1))?, call_options(call, 4)?);
    // SAFETY: as in `Written::new`.
    let frame = unsafe { buffer::view(call.env, call.arg(2))?.as_slice() };
    let mut given = Vec::new();
    let written = Written::new(call, frame, call.arg(3), &mut |ptr, len| {
        // What is run again gets what was given first, which a worker may have changed by then.
        let Some((part, at)) = (if options.retries == 0 { pool.shared_at(ptr, len)? } else { None }) else { return Ok(None) };
        let whole = (part.at(), part.len()) == (at, len);
        Ok(whole.then(|| {
            given.push(part);
            at
        }))
    })?;
    let request = pool.request_with(&written.slices(), given.clone())?;
    let submitted = submit_one(call, slot, options, request)?;
    if !given.is_empty() {
        call.state.given.borrow_mut().insert(slot, given);
    }
    commit(call, call.arg(3))?;
    Ok(submitted)
}

/// `processAlloc(pool, len)`: a buffer of zeros in memory that the pool shares with its workers.
pub(crate) fn alloc(call: &Call<'_>) -> JsResult<Raw> {
    let part = processes(call)?.pool()?.share(buffer::length(call, 1)?)?;
    buffer::external(call.env, call.state, Handle::Buffer(part.buffer().into()))
}

/// `processCall(pool, slot, name, args, priority, timeout, queueTimeout, key, wait, retries, worker, stream, trace)`: the same for a worker of any
/// language.
pub(crate) fn common(call: &Call<'_>) -> JsResult<Raw> {
    let name = call.env.text(call.arg(2)).unwrap_or_default();
    let Value::Array(args) = value::from_js(call, call.arg(3))? else { return Err(Error::invalid("arguments are no array").into()) };
    let message = call::Call { name, args, named: Vec::new() }.encode()?;
    let request = processes(call)?.pool()?.request(&[&message])?;
    submit_one(call, call.env.u32(call.arg(1))?, call_options(call, 4)?, request)
}

/// `processClose(pool, graceMs, note)`: starts the end; the wake hook gets `note` once every task has its outcome. The event `STOPPED`
/// follows when the processes are gone, if `processStarted`.
pub(crate) fn close(call: &Call<'_>) -> JsResult<Raw> {
    let grace = call.env.f64(call.arg(1)).and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
    let note = call.env.u32(call.arg(2))? as usize;
    let wake = call.state.wake.clone();
    processes(call)?.pool()?.close_within(grace, Box::new(move || wake.notify(note)))?;
    Ok(call.env.undefined())
}

/// `processStarted(pool)`: there was a process.
pub(crate) fn started(call: &Call<'_>) -> JsResult<Raw> {
    call.env.boolean(processes(call)?.pool()?.processes().is_some())
}

/// `processRelease(pool)`: lets go of what a pool has that is closed, and whose processes are gone; whatever it is asked then is `Closed`.
pub(crate) fn release(call: &Call<'_>) -> JsResult<Raw> {
    let pool = processes(call)?.pool.borrow_mut().take();
    drop(pool);
    Ok(call.env.undefined())
}

// ---- what is in a frame ----

/// What a reply is, in the environment of the caller.
pub(crate) enum Reply {
    Value(Raw),
    /// The error of a function of any language.
    Thrown(Raw),
    /// The head of a frame and its parts; JavaScript reads it.
    Frame(Raw),
}

/// Where a frame lies, and what its parts may be.
trait Memory {
    /// What keeps it, for bytes that are read in place; `None` where they are to be copied.
    fn keep(&self) -> Option<Box<dyn Any>>;
    /// Bytes of it as a buffer; `None` where they are to be copied.
    fn part(&self, at: *const u8, len: usize) -> Result<Option<TransferBuffer>>;
    /// A buffer that lies elsewhere, in shared memory.
    fn shared(&self, place: u64, len: u64) -> Result<TransferBuffer>;
}

/// What came from a worker: in memory of its own, or in a buffer that it may still write. With the slot of the call, if it is a reply.
struct FromWorker<'a> {
    state: &'a State,
    slot: Option<u32>,
    buffer: Option<TransferBuffer>,
}

impl Memory for FromWorker<'_> {
    fn keep(&self) -> Option<Box<dyn Any>> {
        let (region, ..): (Arc<Region>, _, _) = self.buffer.as_ref()?.view().ok()?;
        Some(Box::new(region))
    }

    fn part(&self, at: *const u8, len: usize) -> Result<Option<TransferBuffer>> {
        let Some(buffer) = &self.buffer else { return Ok(None) };
        let begin = buffer.view()?.1 as usize;
        buffer.part(at as usize - begin, len).map(Some)
    }

    fn shared(&self, place: u64, len: u64) -> Result<TransferBuffer> {
        let mut all = self.state.given.borrow_mut();
        let given = self.slot.and_then(|slot| all.get_mut(&slot));
        let found = given.and_then(|given| {
            let at = given.iter().position(|part| (part.at(), part.len() as u64) == (place, len))?;
            Some(given.swap_remove(at))
        });
        let strange =
            || Error::new(ErrorKind::Corrupt, "reply gives a buffer that its worker did not have").with("at", place).with("len", len);
        Ok(found.ok_or_else(strange)?.buffer())
    }
}

/// What came from the pool, in memory that this process alone writes.
struct FromPool<'a> {
    desk: &'a Desk,
    index: usize,
    payload: Option<Arc<Payload>>,
}

impl Memory for FromPool<'_> {
    fn keep(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.payload.clone()?))
    }

    fn part(&self, at: *const u8, len: usize) -> Result<Option<TransferBuffer>> {
        let Some(payload) = &self.payload else { return Ok(None) };
        // SAFETY: the payload keeps these bytes; parts of a frame do not overlap, and nobody else has this one.
        Ok(Some(unsafe { TransferBuffer::from_foreign(at.cast_mut(), len, Box::new(payload.clone())) }))
    }

    fn shared(&self, place: u64, len: u64) -> Result<TransferBuffer> {
        if let Some(payload) = &self.payload {
            self.desk.given(self.index).push((place, len));
            return self.desk.worker.shared_buffer(place, len, payload.clone());
        }
        let ptr = self.desk.worker.shared(place, len)?;
        // SAFETY: readable while the task that refers to it runs, as it does now. Whoever writes it meanwhile changes what is copied.
        TransferBuffer::from_slice(&unsafe { buffer::copied(ptr, len as usize)? })
    }
}

/// A result, or progress, of the call of a slot, as it came from a worker.
pub(crate) fn reply(env: Env, state: &State, slot: u32, value: Value) -> JsResult<Reply> {
    let mut from = FromWorker { state, slot: Some(slot), buffer: None };
    match value {
        // SAFETY: all of the bytes.
        Value::Bytes(bytes) => unsafe { reply_at(env, state, bytes.as_ptr(), bytes.len(), &from) },
        Value::Buffer(b) => {
            let (_region, at, len) = b.view()?;
            from.buffer = Some(b);
            // SAFETY: the region keeps `len` bytes.
            unsafe { reply_at(env, state, at, len, &from) }
        }
        other => value::to_js(env, state, other).map(Reply::Value),
    }
}

/// # Safety
/// `at` is readable for `len` bytes, which lie in `memory`. Whoever writes meanwhile changes what is seen, not where it is.
unsafe fn reply_at(env: Env, state: &State, at: *const u8, len: usize, memory: &dyn Memory) -> JsResult<Reply> {
    let shape = || Error::new(ErrorKind::Corrupt, "reply is neither a value nor an error");
    if len == 0 {
        return Err(shape().into());
    }
    // SAFETY: by this function's contract.
    let form = unsafe { at.read_volatile() };
    if form & !FAILED == NODE {
        return read_frame(env, state, at, len, memory).map(Reply::Frame);
    }
    if form & !FAILED != COMMON {
        return Err(Error::new(ErrorKind::Unsupported, "the reply is in another language's own form").with("form", form).into());
    }
    // SAFETY: by this function's contract.
    let message = unsafe { buffer::copied(at.add(1), len - 1)? };
    let value = codec::decode_owned(message.into(), &mut [], &Options::default())?;
    match (form & FAILED != 0, value) {
        (false, value) => value::to_js(env, state, value).map(Reply::Value),
        (true, error @ Value::Error(_)) => value::to_js(env, state, error).map(Reply::Thrown),
        (true, _) => Err(shape().into()),
    }
}

/// `[head, part, …]` of the frame at `at`, which the other side may be writing: what says where parts are is copied before it is judged.
/// A buffer is a handle, other bytes an `Uint8Array`.
fn read_frame(env: Env, state: &State, at: *const u8, len: usize, memory: &dyn Memory) -> JsResult<Raw> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "message of a process is cut short").with("len", len);
    if len < HEAD {
        return Err(corrupt().into());
    }
    // SAFETY: readable, as the callers say, for `len` bytes.
    let fixed = unsafe { at.cast::<[u8; HEAD]>().read_unaligned() };
    let parts = u32::from(u16::from_ne_bytes([fixed[2], fixed[3]]));
    let table = u32::from_ne_bytes(fixed[4..8].try_into().expect("four bytes")) as usize;
    let end = table + 8 * parts as usize;
    if table < HEAD || end > len {
        return Err(corrupt().into());
    }
    // SAFETY: as above.
    let head = unsafe { buffer::copied(at, end)? };
    let lengths: Vec<u64> = head[table..].chunks_exact(8).map(|n| u64::from_ne_bytes(n.try_into().expect("eight bytes"))).collect();
    let out = env.array(1 + parts as usize)?;
    env.set_at(out, 0, buffer::uint8array(env, state, head.into())?)?;
    let mut offset = end;
    for (i, entry) in (1..).zip(lengths) {
        offset = offset.next_multiple_of(ALIGN);
        let size = entry & !(BUFFER | SHARED);
        let stored = if entry & SHARED == 0 { size } else { 8 };
        let stored = usize::try_from(stored).ok().filter(|stored| offset <= len && *stored <= len - offset).ok_or_else(corrupt)?;
        // SAFETY: inside of the frame.
        let part = unsafe { at.add(offset) };
        // SAFETY: as above.
        let copy = |len| unsafe { buffer::copied(part, len) };
        offset += stored;
        let made = if entry & SHARED != 0 {
            let place = u64::from_ne_bytes(copy(8)?.try_into().expect("eight bytes"));
            buffer::external(env, state, Handle::Buffer(memory.shared(place, size)?.into()))?
        } else if entry & BUFFER != 0 {
            let made = if stored < IN_PLACE { None } else { memory.part(part, stored)? };
            let made = made.map_or_else(|| TransferBuffer::from_slice(&copy(stored)?), Ok)?;
            buffer::external(env, state, Handle::Buffer(made.into()))?
        } else {
            let keep = if stored < IN_PLACE { None } else { memory.keep() };
            match keep.and_then(|keep| buffer::outside_memory(env, state, part.cast_mut(), stored, keep)) {
                Some(memory) => buffer::bytes_of(env, memory, stored)?,
                None => buffer::uint8array(env, state, copy(stored)?.into())?,
            }
        };
        env.set_at(out, i, made)?;
    }
    Ok(out)
}

// ---- this process as a worker ----

/// This process, as the worker of a pool.
pub(crate) struct Desk {
    worker: Worker,
    /// Its bell.
    bell: Watch,
    /// "No more jobs come."
    _drain: Watch,
    /// By index: when its job began, ns.
    started: RefCell<Vec<u64>>,
    /// By index: place and length of the shared buffers that came with its job, and have not gone back.
    given: RefCell<Vec<Vec<(u64, u64)>>>,
    concurrency: Cell<usize>,
}

impl Desk {
    fn given(&self, index: usize) -> RefMut<'_, Vec<(u64, u64)>> {
        RefMut::map(self.given.borrow_mut(), |all| {
            if all.len() <= index {
                all.resize_with(index + 1, Vec::new);
            }
            &mut all[index]
        })
    }

    /// Where the bytes of a buffer lie that came with this job.
    fn place(&self, index: usize, ptr: *const u8, len: usize) -> Option<u64> {
        let at = self.worker.shared_at(ptr)?;
        self.given(index).contains(&(at, len as u64)).then_some(at)
    }
}

fn desk<'a>(call: &'a Call<'_>) -> JsResult<&'a Desk> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Desk(desk) => Ok(desk),
        _ => Err(Error::invalid("handle is no worker").into()),
    }
}

/// `processAttach(note)`: this process as a worker, null when no pool started it; `note` is its wake.
pub(crate) fn attach(call: &Call<'_>) -> JsResult<Raw> {
    let Some(worker) = Worker::attach()? else { return Ok(call.env.null()) };
    let note = call.env.u32(call.arg(0))? as usize;
    let watch = |fd| {
        let wake = call.state.wake.clone();
        Watch::new(fd, move || wake.notify(note))
    };
    let (bell, drain) = (watch(worker.fd())?, watch(worker.supervisor().drain_fd())?);
    drain.arm()?;
    let concurrency = Cell::new(worker.concurrency());
    let desk = Desk { worker, bell, _drain: drain, started: RefCell::default(), given: RefCell::default(), concurrency };
    buffer::external(call.env, call.state, Handle::Desk(Rc::new(desk)))
}

/// `processSetup(desk)`: `[concurrency, what the pool says to each of its workers]`: a frame as of [`read_frame`], a common value as
/// `[null, value]`, or null.
pub(crate) fn setup(call: &Call<'_>) -> JsResult<Raw> {
    let (env, desk) = (call.env, desk(call)?);
    let said = desk.worker.setup();
    let what = match said.first() {
        None => env.null(),
        Some(_) => match reply(env, call.state, u32::MAX, Value::Bytes(said.into()))? {
            Reply::Frame(frame) => frame,
            Reply::Value(value) | Reply::Thrown(value) => {
                let wrapped = env.array(2)?;
                env.set_at(wrapped, 0, env.null())?;
                env.set_at(wrapped, 1, value)?;
                wrapped
            }
        },
    };
    let out = env.array(2)?;
    env.set_at(out, 0, env.number(desk.concurrency.get() as f64)?)?;
    env.set_at(out, 1, what)?;
    Ok(out)
}

/// `processReady(desk)`.
pub(crate) fn ready(call: &Call<'_>) -> JsResult<Raw> {
    desk(call)?.worker.ready();
    Ok(call.env.undefined())
}

/// `processFail(desk, text)`: last words.
pub(crate) fn fail(call: &Call<'_>) -> JsResult<Raw> {
    desk(call)?.worker.fail(&call.env.text(call.arg(1)).unwrap_or_default());
    Ok(call.env.undefined())
}

// What `processTake` returns beside arrays; lib/worker-main.cjs has the same numbers.
const NOTHING: f64 = 0.0;
const SHORT: f64 = 1.0;
const REFUSED: f64 = 2.0;
/// What its second word says of an array that is a call.
const COMMON_CALL: u32 = 1;
const COMMON_STREAM: u32 = 2;

/// `processTake(desk, inbox)`: the next job. Its index is the first 32-bit word of `inbox`. [`SHORT`]: its frame lies 8 bytes into `inbox`.
/// An array: `[head, part, …]` of a frame whose first word is 0, or `[name, args]` of a common call where the second is [`COMMON_CALL`], or
/// [`COMMON_STREAM`]: its caller takes values while it runs.
pub(crate) fn take(call: &Call<'_>) -> JsResult<Raw> {
    let (env, desk) = (call.env, desk(call)?);
    let inbox = buffer::scratch(call, call.arg(1))?;
    let Some(mut job) = desk.worker.try_take() else { return env.number(NOTHING) };
    {
        let mut started = desk.started.borrow_mut();
        if started.len() <= job.index {
            started.resize(job.index + 1, 0);
        }
        started[job.index] = job.started_ns;
    }
    desk.given(job.index).clear();
    inbox[..4].copy_from_slice(&(job.index as u32).to_ne_bytes());
    let refuse = |error: &Error| {
        answer(&desk.worker, job.index, job.started_ns, Err(call::error_value(error)))?;
        env.number(REFUSED)
    };
    let request = job.request();
    if request.first() != Some(&NODE) {
        let read = match call::Call::decode(request) {
            Ok(read) => read,
            Err(e) => return refuse(&e),
        };
        if let Some((name, _)) = read.named.first() {
            let name = name.as_str().unwrap_or("?").to_owned();
            return refuse(&Error::new(ErrorKind::Unsupported, "a JavaScript function has no arguments by name").with("name", name));
        }
        let form = if desk.worker.is_streamed(job.index) { COMMON_STREAM } else { COMMON_CALL };
        inbox[4..8].copy_from_slice(&form.to_ne_bytes());
        let out = env.array(2)?;
        let args = value::to_js(env, call.state, Value::Array(read.args));
        let args = match args {
            Ok(args) => args,
            // A value that JavaScript has no form for.
            Err(Fail::Error(e)) => return refuse(&e),
            Err(pending) => return Err(pending),
        };
        env.set_at(out, 0, env.string(&read.name)?)?;
        env.set_at(out, 1, args)?;
        return Ok(out);
    }
    inbox[4..8].copy_from_slice(&0u32.to_ne_bytes());
    match job.take_payload() {
        None => {
            let (len, room) = (job.request().len(), inbox.len() - 8);
            if len <= room && is_frame(job.request()) {
                inbox[8..8 + len].copy_from_slice(job.request());
                return env.number(SHORT);
            }
            // One with parts, or a long one that was copied.
            read_frame(env, call.state, job.request().as_ptr(), len, &FromPool { desk, index: job.index, payload: None })
        }
        Some(payload) => {
            let payload = Arc::<Payload>::new(payload);
            let (at, len) = (payload.as_ptr(), payload.len());
            read_frame(env, call.state, at, len, &FromPool { desk, index: job.index, payload: Some(payload) })
        }
    }
}

/// Writes a reply in the common form.
fn answer(worker: &Worker, index: usize, started_ns: u64, result: std::result::Result<Value, ErrorValue>) -> Result<()> {
    let failed = result.is_err();
    let send = |failed: bool, result| {
        let bytes = call::encode_reply(result)?;
        put(worker, index, started_ns, failed, &[&bytes])
    };
    // A result that cannot travel: that is what the caller is told.
    send(failed, result.map_err(Box::new)).or_else(|e| send(true, Err(Box::new(call::error_value(&e)))))
}

fn put(worker: &Worker, index: usize, started_ns: u64, failed: bool, parts: &[&[u8]]) -> Result<()> {
    let room = worker.reserve(index, parts.iter().map(|p| p.len()).sum())?;
    let mut at = 0;
    for part in parts {
        // SAFETY: `reserve` gave room for all parts.
        unsafe { room.add(at).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
        at += part.len();
    }
    worker.commit(index, started_ns, failed);
    Ok(())
}

fn begun(call: &Call<'_>) -> JsResult<(usize, u64)> {
    let index = call.env.u32(call.arg(1))? as usize;
    let started = desk(call)?.started.borrow().get(index).copied();
    Ok((index, started.ok_or_else(|| Error::invalid("no job has this number").with("number", index))?))
}

/// `processFinish(desk, index, failed, frame, len, parts)`: the end of a job, by the first `len` bytes of `frame`.
pub(crate) fn finish(call: &Call<'_>) -> JsResult<Raw> {
    let (index, started) = begun(call)?;
    let failed = call.env.bool(call.arg(2)) == Some(true);
    // SAFETY: as in `Written::new`.
    let frame = unsafe { buffer::view(call.env, call.arg(3))?.as_slice() };
    let len = call.env.u32(call.arg(4))? as usize;
    let frame = frame.get(..len).ok_or_else(|| Error::invalid("frame is longer than its memory").with("len", len))?;
    let desk = desk(call)?;
    if call.env.is_nullish(call.arg(5)) {
        put(&desk.worker, index, started, failed, &[frame])?;
    } else {
        // An error keeps what came with the call.
        let written = Written::new(call, frame, call.arg(5), &mut |ptr, len| Ok(if failed { None } else { desk.place(index, ptr, len) }))?;
        put(&desk.worker, index, started, failed, &written.slices())?;
        commit(call, call.arg(5))?;
    }
    Ok(call.env.undefined())
}

/// `processAnswer(desk, index, failed, value)`: the end of a common call.
pub(crate) fn reply_common(call: &Call<'_>) -> JsResult<Raw> {
    let (index, started) = begun(call)?;
    let value = value::from_js(call, call.arg(3))?;
    let result = match (call.env.bool(call.arg(2)) == Some(true), value) {
        (false, value) => Ok(value),
        (true, Value::Error(error)) => Err(*error),
        (true, _) => return Err(Error::invalid("what was thrown is no error").into()),
    };
    let failed = result.is_err();
    // An error of its own stays the caller's to tell.
    let bytes = call::encode_reply(result.map_err(Box::new))?;
    put(&desk(call)?.worker, index, started, failed, &[&bytes])?;
    Ok(call.env.undefined())
}

/// `processProgress(desk, index, frame, len)`; without `len`, `frame` is a value for another language.
pub(crate) fn progress(call: &Call<'_>) -> JsResult<Raw> {
    let (index, _) = begun(call)?;
    let worker = &desk(call)?.worker;
    if call.env.is_nullish(call.arg(3)) {
        let bytes = call::encode_reply(Ok(value::from_js(call, call.arg(2))?))?;
        worker.progress(index, &bytes)?;
    } else {
        let frame = buffer::scratch(call, call.arg(2))?;
        worker.progress(index, &frame[..(call.env.u32(call.arg(3))? as usize).min(frame.len())])?;
    }
    Ok(call.env.undefined())
}

// What became of the last frame of a job; lib/frames.cjs has the same numbers.
const UNWANTED: f64 = 0.0;
const NOT_YET: f64 = 1.0;
const TAKEN: f64 = 2.0;

/// `processStreamed(desk, index)`: whether the last frame was taken, [`UNWANTED`] when nobody takes any more.
pub(crate) fn streamed(call: &Call<'_>) -> JsResult<Raw> {
    let (index, _) = begun(call)?;
    let worker = &desk(call)?.worker;
    call.env.number(match () {
        () if !worker.is_streamed(index) => UNWANTED,
        () if worker.is_taken(index) => TAKEN,
        () => NOT_YET,
    })
}

/// `processFrame(desk, index, records, parts)`: sends records, each with its parts or undefined, as one frame; [`TAKEN`] if it is on its way. In
/// any other case nothing has moved.
pub(crate) fn send_frame(call: &Call<'_>) -> JsResult<Raw> {
    let (env, (index, _)) = (call.env, begun(call)?);
    let worker = &desk(call)?.worker;
    let count = env.len(call.arg(2))?;
    let mut written = Vec::with_capacity(count as usize);
    for i in 0..count {
        // SAFETY: as in `Written::new`.
        let record = unsafe { buffer::view(env, env.at(call.arg(2), i)?)?.as_slice() };
        written.push(Written::new(call, record, env.at(call.arg(3), i)?, &mut |_, _| Ok(None))?);
    }
    let records: Vec<Vec<&[u8]>> = written.iter().map(Written::slices).collect();
    let lens: Vec<usize> = records.iter().map(|parts| parts.iter().map(|part| part.len()).sum()).collect();
    let head = frame::head(&lens);
    let mut all = vec![&head[..]];
    for (parts, len) in records.iter().zip(&lens) {
        all.extend(parts.iter().copied().chain([frame::padding(*len)]));
    }
    let sent = worker.try_frame(index, &all)?;
    if sent == Sent::Sent {
        for i in 0..count {
            commit(call, env.at(call.arg(3), i)?)?;
        }
    }
    env.number(match sent {
        Sent::Stopped => UNWANTED,
        Sent::NotYet => NOT_YET,
        Sent::Sent => TAKEN,
    })
}

/// `processOutcome(desk, index)`: 0 while somebody waits for the job, 1 when it was cancelled, 2 past its timeout.
pub(crate) fn outcome(call: &Call<'_>) -> JsResult<Raw> {
    let index = call.env.u32(call.arg(1))? as usize;
    let said = match desk(call)?.worker.is_cancelled(index) {
        None => 0.0,
        Some(ErrorKind::Timeout) => 2.0,
        Some(_) => 1.0,
    };
    call.env.number(said)
}

/// `processArm(desk, busy)`: the next job wakes the loop; false if there is one already. `busy`: so does whatever is told of those that run,
/// and nothing is said of what there is to take.
pub(crate) fn arm(call: &Call<'_>) -> JsResult<Raw> {
    let desk = desk(call)?;
    desk.worker.clear();
    if call.env.bool(call.arg(1)) == Some(true) {
        desk.worker.listen();
    } else if !desk.worker.arm() {
        return call.env.boolean(false);
    }
    desk.bell.arm()?;
    call.env.boolean(true)
}

/// `processDraining(desk)`: no more jobs come.
pub(crate) fn draining(call: &Call<'_>) -> JsResult<Raw> {
    call.env.boolean(desk(call)?.worker.supervisor().is_draining())
}

/// `processDrained(desk)`: everything is finished; the process is to end now.
pub(crate) fn drained(call: &Call<'_>) -> JsResult<Raw> {
    desk(call)?.worker.drained();
    Ok(call.env.undefined())
}
