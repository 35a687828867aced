//! The Rust driver of the conformance runner: `PROTOCOL.md` through the public API of the crate.

#![allow(clippy::print_stdout, reason = "the protocol is spoken on standard output")]

mod channel;
mod cluster;
mod member;
mod process;
mod ring;

use offloop::buffer::revoke_token;
use offloop::pool::{Deliver, OnFull, ProcessPool, Streamed, SubmitOptions, Work};
use offloop::{Bytes, Error, Task, ThreadPool, TransferBuffer, Value};
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

type Reply = Result<String, Error>;

const LOCK: &str = "no panic under the lock";

/// A task's one outcome, as the text of a reply.
#[derive(Default)]
struct Outcome {
    /// That of `task.wait`, and of `task.error`.
    reply: Mutex<Option<(String, String)>>,
    came: Condvar,
}

impl Outcome {
    fn set(&self, reply: String) {
        self.set_both(reply, String::new());
    }

    fn set_both(&self, reply: String, error: String) {
        *self.reply.lock().expect("no panic under the lock") = Some((reply, error));
        self.came.notify_all();
    }

    fn wait(&self) -> (String, String) {
        let guard = self.reply.lock().expect("no panic under the lock");
        let guard = self.came.wait_while(guard, |r| r.is_none()).expect("no panic under the lock");
        guard.clone().expect("waited for it")
    }
}

struct Pool {
    pool: ThreadPool,
    /// Its workers are processes; `pool` is its queue then.
    processes: Option<ProcessPool>,
    wait_when_full: bool,
}

struct Entry {
    outcome: Arc<Outcome>,
    task: Arc<Mutex<Option<Task>>>,
}

#[derive(Default)]
struct Driver {
    pools: HashMap<String, Pool>,
    tasks: HashMap<String, Entry>,
    buffers: HashMap<String, TransferBuffer>,
    foreign: HashMap<String, Bytes>,
    freed: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<String>>>,
    streams: HashMap<String, Arc<Streamed>>,
    rings: ring::Rings,
    channels: channel::Channels,
    clusters: cluster::Clusters,
}

/// Memory that somebody else owns: counts when it is given back.
struct Foreign {
    data: Vec<u8>,
    freed: Arc<AtomicUsize>,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.data.fill(0xdd);
        self.freed.fetch_add(1, Ordering::SeqCst);
    }
}

/// The arguments of one line.
struct Args(HashMap<String, String>);

impl Args {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
    fn text(&self, key: &str) -> Result<&str, Error> {
        self.get(key).ok_or_else(|| Error::invalid("the line lacks an argument").with("key", key))
    }
    fn number(&self, key: &str) -> Option<usize> {
        self.get(key)?.parse().ok()
    }
    fn ms(&self, key: &str) -> Option<Duration> {
        Some(Duration::from_secs_f64(self.get(key)?.parse::<f64>().ok()? / 1e3))
    }
    fn params(&self) -> Value {
        let mut pairs: Vec<(Value, Value)> = Vec::new();
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix("p.") {
                pairs.push((Value::str(name.to_owned()), param(value)));
            }
        }
        if pairs.is_empty() { Value::Nil } else { Value::Map(pairs) }
    }
}

fn param(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match (text.parse::<i64>(), text.parse::<f64>(), text.strip_prefix("x:")) {
            (Ok(i), ..) => Value::Int(i),
            (_, Ok(f), _) if text.contains('.') => Value::Float(f),
            (.., Some(hex)) => Value::Bytes(unhex(hex).into()),
            _ => Value::str(text.to_owned()),
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).filter_map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()).collect()
}

fn show(result: Result<Value, Error>) -> String {
    match result {
        Ok(Value::Bytes(b)) => format!("ok bytes={}", hex(&b)),
        Ok(Value::Int(i)) => format!("ok int={i}"),
        Ok(Value::Bool(b)) => format!("ok bool={b}"),
        Ok(Value::Str(s)) => format!("ok text={}", hex(s.as_bytes())),
        Ok(_) => "ok other=1".into(),
        Err(e) => format!("err kind={} status={} message={}", e.kind().row().name, e.status(), hex(e.to_string().as_bytes())),
    }
}

fn say(id: &str, reply: &str) {
    let mut out = std::io::stdout().lock();
    // A runner that is gone needs no answer.
    let _ = writeln!(out, "{id} {}", reply.trim_end());
    let _ = out.flush();
}

/// What waits, on a thread of its own, so that the driver goes on reading.
fn later(id: &str, work: impl FnOnce() -> Reply + Send + 'static) -> Reply {
    let id = id.to_owned();
    std::thread::spawn(move || match work() {
        Ok(fields) => say(&id, &format!("ok {fields}")),
        Err(e) => say(&id, &show(Err::<Value, _>(e))),
    });
    Ok("later".into())
}

fn missing(what: &'static str, name: &str) -> Error {
    Error::invalid("the scenario has not made it").with(what, name)
}

impl Driver {
    fn pool(&self, args: &Args) -> Result<&Pool, Error> {
        let name = args.text("pool")?;
        self.pools.get(name).ok_or_else(|| missing("pool", name))
    }

    fn buffer(&mut self, args: &Args) -> Result<&mut TransferBuffer, Error> {
        let name = args.text("buf")?;
        self.buffers.get_mut(name).ok_or_else(|| missing("buf", name))
    }

    /// The input of a submission: bytes of the line, or a buffer that is moved.
    fn inputs(&mut self, args: &Args) -> Result<Vec<Bytes>, Error> {
        if let Some(name) = args.get("buffer") {
            if let Some(bytes) = self.foreign.remove(name) {
                return Ok(vec![bytes]);
            }
            return Ok(vec![self.buffers.get_mut(name).ok_or_else(|| missing("buf", name))?.take_bytes()?]);
        }
        Ok(args.get("input").map(|h| vec![unhex(h).into()]).unwrap_or_default())
    }

    fn entry(&mut self, name: &str) -> (Arc<Outcome>, Arc<Mutex<Option<Task>>>) {
        let entry = Entry { outcome: Arc::default(), task: Arc::default() };
        let both = (entry.outcome.clone(), entry.task.clone());
        self.tasks.insert(name.to_owned(), entry);
        both
    }

    fn options(args: &Args, wait: bool) -> SubmitOptions {
        SubmitOptions {
            priority: args.get("priority").and_then(|p| p.parse().ok()).unwrap_or(0),
            retries: args.number("retries").and_then(|n| n.try_into().ok()).unwrap_or(0),
            timeout: args.ms("timeout"),
            queue_timeout: args.ms("queue_timeout"),
            key: args.get("key").map(Into::into),
            on_full: if wait { OnFull::Wait(None) } else { OnFull::Reject },
            ..SubmitOptions::default()
        }
    }

    fn deliver(&self, name: &str, outcome: &Arc<Outcome>) -> Deliver {
        let (name, outcome, order) = (name.to_owned(), outcome.clone(), self.order.clone());
        Deliver::Callback(Box::new(move |result| {
            order.lock().expect("no panic under the lock").push(name);
            outcome.set(show(result));
        }))
    }

    /// A call of a function of the workers.
    fn submit_call(&mut self, id: &str, args: &Args, name: &str, input: Option<&str>, wait: bool) -> Reply {
        let (outcome, slot) = self.entry(name);
        let pool = self.pool(args)?.processes.clone().ok_or_else(|| missing("pool", "of processes"))?;
        let (order, done, name) = (self.order.clone(), outcome.clone(), name.to_owned());
        let deliver = Deliver::Callback(Box::new(move |result| {
            order.lock().expect("no panic under the lock").push(name);
            let outcome = process::outcome(result);
            let error = process::error_fields(&outcome);
            done.set_both(process::show_outcome(outcome), error);
        }));
        let options = SubmitOptions { deliver, ..Driver::options(args, wait) };
        let (function, argument) = (args.text("op")?.to_owned(), process::argument(args, input));
        let submit = move || match process::request(&pool, &function, argument)
            .and_then(|request| pool.submit(request, options).map_err(|refused| refused.error))
        {
            Ok(task) => *slot.lock().expect("no panic under the lock") = Some(task),
            Err(error) => outcome.set(show(Err(error))),
        };
        if wait {
            return later(id, move || {
                submit();
                Ok(String::new())
            });
        }
        submit();
        Ok(String::new())
    }

    fn submit(&mut self, id: &str, args: &Args) -> Reply {
        let name = args.text("task")?.to_owned();
        if self.pool(args)?.processes.is_some() {
            let wait = self.pool(args)?.wait_when_full;
            return self.submit_call(id, args, &name, args.get("input"), wait);
        }
        let (outcome, slot) = self.entry(&name);
        let inputs = match self.inputs(args) {
            Ok(inputs) => inputs,
            Err(e) => {
                outcome.set(show(Err(e)));
                return Ok(String::new());
            }
        };
        let Pool { pool, wait_when_full, .. } = self.pool(args)?;
        let (pool, wait) = (pool.clone(), *wait_when_full);
        let work = match pool.op(args.text("op")?, inputs, &args.params()) {
            Ok(work) => work,
            Err((e, inputs)) => {
                self.give_back(args, inputs);
                outcome.set(show(Err(e)));
                return Ok(String::new());
            }
        };
        let options = SubmitOptions { deliver: self.deliver(&name, &outcome), ..Driver::options(args, wait) };
        if wait {
            // A full queue blocks this call: another thread waits, so that the driver goes on reading.
            let id = id.to_owned();
            std::thread::spawn(move || {
                match pool.submit(work, options) {
                    Ok(task) => *slot.lock().expect("no panic under the lock") = Some(task),
                    Err(refused) => outcome.set(show(Err(refused.error))),
                }
                say(&id, "ok");
            });
            return Ok("later".into());
        }
        match pool.submit(work, options) {
            Ok(task) => *slot.lock().expect("no panic under the lock") = Some(task),
            Err(refused) => {
                let inputs = refused.work.into_iter().flat_map(Work::into_inputs).collect();
                self.give_back(args, inputs);
                outcome.set(show(Err(refused.error)));
            }
        }
        Ok(String::new())
    }

    /// Puts the input of a refused submission back where it came from.
    fn give_back(&mut self, args: &Args, inputs: Vec<Bytes>) {
        if let (Some(name), Some(bytes)) = (args.get("buffer"), inputs.into_iter().next())
            && let Ok(buffer) = TransferBuffer::from_slice(&bytes)
        {
            self.buffers.insert(name.to_owned(), buffer);
        }
    }

    fn submit_many(&mut self, args: &Args) -> Reply {
        let names: Vec<String> = args.text("tasks")?.split(',').map(str::to_owned).collect();
        if self.pool(args)?.processes.is_some() {
            let inputs: Vec<&str> = args.text("inputs")?.split(',').collect();
            for (name, input) in names.iter().zip(inputs) {
                self.submit_call("", args, name, Some(input), false)?;
            }
            return Ok(String::new());
        }
        let pool = self.pool(args)?.pool.clone();
        let entries: Vec<_> = names.iter().map(|n| self.entry(n)).collect();
        let mut works = Vec::new();
        for input in args.text("inputs")?.split(',') {
            works.push(pool.op(args.text("op")?, vec![unhex(input).into()], &args.params()).map_err(|(e, _)| e)?);
        }
        let tasks = pool.submit_many(works, &Driver::options(args, false)).map_err(|refused| refused.error)?;
        for (task, (outcome, slot)) in tasks.into_iter().zip(entries) {
            *slot.lock().expect("no panic under the lock") = Some(task.clone());
            std::thread::spawn(move || outcome.set(show(task.wait(None))));
        }
        Ok(String::new())
    }

    fn run(&mut self, id: &str, verb: &str, args: &Args) -> Reply {
        match verb {
            "hello" => Ok(
                "lang=rust abi=1 wire=1 caps=foreign,back,ordered,grace,zero,processes,names,classes,counts,leaves,streams,rings,channels,clusters"
                    .into(),
            ),
            "pool.new" if args.get("worker").is_some() => {
                let processes = process::pool(args)?;
                let pool = processes.pool().clone();
                let pool = Pool { pool, processes: Some(processes), wait_when_full: args.get("on_full") == Some("wait") };
                self.pools.insert(args.text("pool")?.to_owned(), pool);
                Ok(String::new())
            }
            "pool.call" => {
                let pool = self.pool(args)?.processes.clone().ok_or_else(|| missing("pool", "of processes"))?;
                process::call(id, &pool, args)
            }
            "stream.open" => {
                let pool = self.pool(args)?.processes.clone().ok_or_else(|| missing("pool", "of processes"))?;
                let request = process::request(&pool, args.text("op")?, process::argument(args, None))?;
                let streamed = pool.stream(request, Driver::options(args, false)).map_err(|refused| refused.error)?;
                self.streams.insert(args.text("stream")?.to_owned(), Arc::new(streamed));
                Ok(String::new())
            }
            "stream.next" | "stream.close" => {
                let name = args.text("stream")?;
                let stream = self.streams.get(name).cloned().ok_or_else(|| missing("stream", name))?;
                if verb == "stream.close" {
                    stream.cancel();
                    return Ok(String::new());
                }
                let id = id.to_owned();
                std::thread::spawn(move || say(&id, &process::next(&stream)));
                Ok("later".into())
            }
            "pool.new" => {
                let mut builder = ThreadPool::builder();
                if let Some(n) = args.number("max_workers") {
                    builder = builder.max_workers(n);
                }
                if let Some(n) = args.number("max_queue") {
                    builder = builder.max_queue(n);
                }
                if let Some(n) = args.number("max_overdue") {
                    builder = builder.max_overdue(n);
                }
                let pool = Pool { pool: builder.build()?, processes: None, wait_when_full: args.get("on_full") == Some("wait") };
                self.pools.insert(args.text("pool")?.to_owned(), pool);
                Ok(String::new())
            }
            "pool.submit" => self.submit(id, args),
            "pool.submit_many" => self.submit_many(args),
            "pool.stats" => {
                let s = self.pool(args)?.pool.stats();
                Ok(format!(
                    "queued={} running={} workers={} overdue={} submitted={} completed={} failed={} timed_out={} cancelled={} lost={} retried={} recycled={} wait_count={} run_count={}",
                    s.queued,
                    s.running,
                    s.workers,
                    s.overdue,
                    s.submitted,
                    s.completed,
                    s.failed,
                    s.timed_out,
                    s.cancelled,
                    s.lost,
                    s.retried,
                    s.recycled,
                    s.wait.count,
                    s.run.count
                ))
            }
            "pool.resize" => {
                self.pool(args)?.pool.resize(args.number("min_workers"), args.number("max_workers"))?;
                Ok(String::new())
            }
            "pool.close" if self.pool(args)?.processes.is_some() => {
                let pool = self.pool(args)?.processes.clone().ok_or_else(|| missing("pool", "of processes"))?;
                process::close(id, &pool, args.ms("grace"))
            }
            "pool.close" => {
                let (pool, grace, id) = (self.pool(args)?.pool.clone(), args.ms("grace"), id.to_owned());
                std::thread::spawn(move || say(&id, &show(pool.shutdown(grace).map(|()| Value::Nil)).replace("ok other=1", "ok")));
                Ok("later".into())
            }
            "task.wait" | "task.error" => {
                let name = args.text("task")?;
                let outcome = self.tasks.get(name).ok_or_else(|| missing("task", name))?.outcome.clone();
                let (id, waits) = (id.to_owned(), verb == "task.wait");
                std::thread::spawn(move || {
                    let (reply, error) = outcome.wait();
                    say(&id, &if waits { reply } else { format!("ok {error}") });
                });
                Ok("later".into())
            }
            "task.cancel" => {
                let name = args.text("task")?;
                let entry = self.tasks.get(name).ok_or_else(|| missing("task", name))?;
                if let Some(task) = &*entry.task.lock().expect("no panic under the lock") {
                    task.cancel();
                }
                Ok(String::new())
            }
            "order.take" => Ok(format!("tasks={}", std::mem::take(&mut *self.order.lock().expect("no panic under the lock")).join(","))),
            "op.run" => {
                let pool = ThreadPool::default_pool()?;
                let inputs = self.inputs(args)?;
                let work = pool.op(args.text("op")?, inputs, &args.params()).map_err(|(e, _)| e)?;
                let task = pool.submit(work, SubmitOptions::default()).map_err(|refused| refused.error)?;
                let id = id.to_owned();
                std::thread::spawn(move || say(&id, &show(task.wait(None))));
                Ok("later".into())
            }
            "foreign.freed" => Ok(format!("count={}", self.freed.load(Ordering::SeqCst))),
            _ if verb.starts_with("ring.") => self.rings.run(id, verb, args),
            _ if verb.starts_with("channel.") => self.channels.run(id, verb, args, &mut self.buffers),
            _ if verb.starts_with("cluster.") => self.clusters.run(id, verb, args, &self.channels.requests),
            _ => self.run_buffer(verb, args),
        }
    }

    fn run_buffer(&mut self, verb: &str, args: &Args) -> Reply {
        let made = match verb {
            "buffer.new" => {
                let len = args.number("len").ok_or_else(|| Error::invalid("no length"))?;
                if args.get("shared") == Some("1") { TransferBuffer::alloc_shared(len)? } else { TransferBuffer::alloc(len)? }
            }
            "buffer.from" => TransferBuffer::from_slice(&unhex(args.text("data")?))?,
            "buffer.receive" => TransferBuffer::receive(args.text("token")?.parse()?)?,
            "buffer.attach" => {
                let (pid, fd) = args.text("from")?.split_once(':').ok_or_else(|| Error::invalid("not pid:fd"))?;
                let file = std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}"));
                let file = file.map_err(|e| Error::os("open", e.raw_os_error().unwrap_or(0)))?;
                TransferBuffer::attach(file.as_fd())?
            }
            "buffer.foreign" => {
                let owner = Box::new(Foreign { data: unhex(args.text("data")?), freed: self.freed.clone() });
                let (ptr, len) = (owner.data.as_ptr(), owner.data.len());
                // SAFETY: the vector's memory stays where it is when its owner moves, and is written only when that is dropped.
                let bytes = unsafe { Bytes::from_foreign(ptr, len, owner) };
                self.foreign.insert(args.text("buf")?.to_owned(), bytes);
                return Ok(String::new());
            }
            "buffer.info" => {
                let b = self.buffer(args)?;
                let fd = b.fd().map_or("none".into(), |fd| format!("{}:{fd}", std::process::id()));
                return Ok(format!("len={} detached={} fd={fd}", b.len(), i32::from(b.is_detached())));
            }
            "buffer.write" => {
                let data = unhex(args.text("data")?);
                self.buffer(args)?.write_at(args.number("at").unwrap_or(0), &data)?;
                return Ok(String::new());
            }
            "buffer.read" => {
                let all = self.buffer(args)?.to_vec()?;
                let at = args.number("at").unwrap_or(0);
                let end = at + args.number("len").unwrap_or(all.len() - at);
                return Ok(format!("data={}", hex(&all[at..end])));
            }
            "buffer.transfer" => return Ok(format!("token={}", self.buffer(args)?.transfer()?)),
            "buffer.revoke" => {
                revoke_token(args.text("token")?.parse()?)?;
                return Ok(String::new());
            }
            "buffer.free" => {
                let name = args.text("buf")?;
                self.foreign.remove(name);
                self.buffers.remove(name);
                return Ok(String::new());
            }
            _ => return Err(Error::invalid("unknown verb").with("verb", verb)),
        };
        self.buffers.insert(args.text("buf")?.to_owned(), made);
        Ok(String::new())
    }
}

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(how) = words.first() {
        let done = if how == member::MEMBER { member::run(&words[1..]) } else { process::worker(how) };
        return if done.is_ok() { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE };
    }
    let mut driver = Driver::default();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut tokens = line.split(' ');
        let (id, verb) = (tokens.next().unwrap_or_default().to_owned(), tokens.next().unwrap_or_default().to_owned());
        let args = Args(tokens.filter_map(|t| t.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
        match driver.run(&id, &verb, &args) {
            Ok(later) if later == "later" => {}
            Ok(fields) => say(&id, &format!("ok {fields}")),
            Err(e) => say(&id, &show(Err(e))),
        }
    }
    std::process::ExitCode::SUCCESS
}
