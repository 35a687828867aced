//! Clusters, and this process as the worker of one. lib/clusters.cjs and lib/member.cjs are the other side.

use crate::buffer::{self, Handle};
use crate::channel;
use crate::js::{Call, Env, JsResult, Raw};
use crate::pool::{bad, count, duration, shown, whole};
use crate::process::texts;
use crate::stack;
use crate::state::Told;
use crate::value;
use offloop::channel::Channel;
use offloop::cluster::{Address, Backlog, Balance, Builder, Cluster, Command, Event, Line, Log, Rotation, Stream, Worker, worker};
use offloop::supervisor::{self, Event as Of, MAX_DURATION, WorkerId};
use offloop::sys::confine::{Confine, UNLIMITED};
use offloop::sys::watch::Watch;
use offloop::{Error, ErrorKind, Value};
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What JavaScript has not heard yet: events and the lines of workers, in one order.
struct Unheard {
    told: Arc<Told>,
    /// Held while one of those lines is added, or all are taken.
    lines: Mutex<Backlog>,
    /// Somebody listens for lines.
    wanted: AtomicBool,
}

impl Unheard {
    fn lines(&self) -> MutexGuard<'_, Backlog> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Value> {
        let mut lines = self.lines();
        let mut all = self.told.take();
        all.extend(lines.taken().map(|error| Value::Array(warning(&error))));
        all
    }

    /// As a list: `log`, what is known of the worker, the stream, the text, and whether there is more of it to come.
    fn hear(&self, line: &Line<'_>) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut lines = self.lines();
        if lines.admit(line).is_some() {
            let Line { worker: id, pid, is_cut, .. } = *line;
            let stream = if line.stream == Stream::Out { "stdout" } else { "stderr" };
            let known = [int(id.slot), int(id.generation), Value::Int(id.incarnation as i64), int(pid)];
            let rest = [Value::from(stream.to_owned()), Value::from(String::from_utf8_lossy(line.bytes).into_owned()), Value::Bool(is_cut)];
            self.told.tell(std::iter::once(Value::from("log".to_owned())).chain(known).chain(rest).collect());
        }
    }

    /// Nothing comes behind it.
    fn end(&self, stopped: Vec<Value>) {
        let mut lines = self.lines();
        lines.close().into_iter().for_each(|error| self.told.tell(warning(&error)));
        self.told.tell(stopped);
    }
}

fn warning(error: &Error) -> Vec<Value> {
    std::iter::once(Value::from("warning".to_owned())).chain(failure(error)).collect()
}

/// Each event is a list: its name, what JavaScript knows a worker by (slot, generation, incarnation, pid), and what else there is.
fn listener(unheard: Arc<Unheard>) -> impl FnMut(&Event) + Send {
    // Of processes that have not ended.
    let mut pids = HashMap::new();
    move |event| {
        let pids = &mut pids;
        let of = |pids: &HashMap<WorkerId, i32>, name: &'static str, id: &WorkerId, rest: Vec<Value>| {
            let pid = pids.get(id).copied().unwrap_or(0);
            let known = [int(id.slot), int(id.generation), Value::Int(id.incarnation as i64), int(pid)];
            let mut all = vec![Value::from(name.to_owned())];
            all.extend(known);
            all.extend(rest);
            all
        };
        let plain = |name: &'static str, rest: Vec<Value>| std::iter::once(Value::from(name.to_owned())).chain(rest).collect();
        let said = match event {
            Event::Listening { worker, address } => of(pids, "listening", worker, vec![Value::from(address.to_string())]),
            Event::Warning(error) => warning(error),
            Event::Worker(event) => match event {
                Of::Spawned { worker, pid } => {
                    pids.insert(*worker, *pid);
                    of(pids, "fork", worker, vec![])
                }
                Of::Starting { worker } => of(pids, "online", worker, vec![]),
                Of::Ready { worker, after } => of(pids, "ready", worker, vec![ms(*after)]),
                Of::Spare { worker, .. } => of(pids, "spare", worker, vec![]),
                Of::Activated { spare, worker } => {
                    let pid = pids.remove(spare);
                    pids.extend(pid.map(|pid| (*worker, pid)));
                    of(pids, "activated", worker, vec![int(spare.slot), Value::Int(spare.incarnation as i64)])
                }
                Of::Suspect { worker, cause, stack } => {
                    let stack = stack.clone().map_or(Value::Nil, Value::from);
                    of(pids, "unresponsive", worker, vec![Value::from(cause.name().to_owned()), stack])
                }
                Of::Resumed { worker } => of(pids, "responsive", worker, vec![]),
                Of::Expired { worker, why } => of(pids, "expired", worker, vec![Value::from(why.name().to_owned())]),
                Of::Draining { worker, cause } => of(pids, "draining", worker, vec![Value::from(cause.name().to_owned())]),
                Of::Exited { worker, cause, ended, forced, text, uptime } => {
                    let number = |n: Option<i32>| n.map_or(Value::Nil, int);
                    let said = of(
                        pids,
                        "exit",
                        worker,
                        vec![
                            number(ended.exit.code),
                            number(ended.exit.signal),
                            Value::from(cause.name().to_owned()),
                            Value::Bool(*forced),
                            Value::Bool(ended.oom),
                            text.clone().map_or(Value::Nil, Value::from),
                            uptime.map_or(Value::Nil, ms),
                        ],
                    );
                    pids.remove(worker);
                    said
                }
                Of::SpawnFailed { worker, error } => of(pids, "startError", worker, failure(error)),
                Of::BackOff { slot, delay } => plain("backOff", vec![int(*slot), ms(*delay)]),
                Of::Reloading { generation } => plain("reloading", vec![int(*generation)]),
                Of::RollingBack { generation, error } => {
                    plain("rollback", std::iter::once(int(*generation)).chain(failure(error)).collect())
                }
                Of::Reloaded(r) => {
                    plain("reloaded", vec![int(r.generation), Value::Int(r.replaced as i64), Value::Int(r.forced as i64), ms(r.took)])
                }
                Of::ReloadFailed { generation, error, .. } => {
                    plain("reloadFailed", std::iter::once(int(*generation)).chain(failure(error)).collect())
                }
                Of::StartFailed { error } => plain("startFailed", failure(error)),
                Of::Degraded { failures, .. } => plain("degraded", vec![Value::Int(*failures as i64)]),
                Of::Recovered => plain("recovered", vec![]),
                Of::Stopped => return unheard.end(plain("stopped", vec![])),
                _ => return,
            },
            _ => return,
        };
        unheard.told.tell(said);
    }
}

fn int(n: impl Into<i64>) -> Value {
    Value::Int(n.into())
}

fn ms(d: Duration) -> Value {
    Value::Float(d.as_secs_f64() * 1e3)
}

fn failure(error: &Error) -> Vec<Value> {
    vec![int(error.status()), Value::from(error.to_string())]
}

/// Channels to workers of which JavaScript has not heard yet.
type Channels = Arc<Mutex<HashMap<WorkerId, Channel>>>;

/// What runs.
struct Running {
    cluster: Cluster,
    unheard: Arc<Unheard>,
    channels: Channels,
}

/// A cluster; none once it has ended, or before it was started.
pub(crate) struct Clustered(RefCell<Option<Running>>);

impl Drop for Clustered {
    /// With its environment, or with the collector: its workers finish as they would without their cluster's process.
    fn drop(&mut self) {
        let Some(Running { cluster, .. }) = self.0.get_mut().take() else { return };
        if cluster.stop(Builder::default_supervision().orphan_grace).is_ok() {
            // With the last handle they would be killed.
            drop(std::thread::Builder::new().name("offloop-leave".to_owned()).spawn(move || drop(cluster.wait_stopped(None))));
        }
    }
}

fn handle<'a>(call: &'a Call<'_>) -> JsResult<&'a Clustered> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Cluster(c) => Ok(c),
        _ => Err(Error::invalid("handle is no cluster").into()),
    }
}

pub(crate) fn cluster(call: &Call<'_>) -> JsResult<Cluster> {
    let cluster = handle(call)?.0.borrow();
    let running = cluster.as_ref().ok_or_else(|| Error::new(ErrorKind::Closed, "the cluster has ended"))?;
    Ok(running.cluster.clone())
}

/// What JavaScript calls the options of the supervisor.
const NAMES: &[(&str, &str)] = &[
    ("boot_timeout", "readyTimeout"),
    ("min_ready", "minReady"),
    ("drain_timeout", "drainTimeout"),
    ("kill_grace", "killGrace"),
    ("beat", "heartbeat.interval"),
    ("hang_timeout", "heartbeat.timeout"),
    ("max_age", "maxAge"),
    ("max_memory", "maxMemory"),
    ("max_requests", "maxRequests"),
    ("oom_score", "oomScore"),
    ("log_size", "log.size"),
    ("log_keep", "log.keep"),
];

/// The same error with the name that was given.
fn renamed(error: Error) -> Error {
    error.option_named(|core| NAMES.iter().find(|(name, _)| *name == core).map(|(_, js)| (*js).to_owned()))
}

fn options(env: Env, given: Raw) -> JsResult<Builder> {
    let mut supervision = Builder::default_supervision();
    let (mut workers, mut spares, mut one_by_one) = (None, 0, false);
    let mut balance = Balance::default();
    let (mut confine, mut pin_cpus) = (Confine::default(), false);
    let (mut metrics, mut log, mut rotation) = (None, None, Rotation::default());
    let keys = env.keys(given)?;
    for i in 0..env.len(keys)? {
        let key = env.at(keys, i)?;
        let value = env.get(given, key)?;
        if env.is_nullish(value) {
            continue;
        }
        let time = |name| Ok::<_, crate::js::Fail>(duration(env, value, name)?.unwrap_or(MAX_DURATION));
        match env.text(key).unwrap_or_default().as_str() {
            "workers" => workers = Some(count(env, value, "workers")?),
            "spares" => spares = count(env, value, "spares")?,
            "oneByOne" => one_by_one = env.bool(value) == Some(true),
            "balance" => balance = env.text(value).ok_or_else(|| bad("balance", shown(env, value), "text"))?.parse()?,
            "metrics" => metrics = Some(env.text(value).ok_or_else(|| bad("metrics", shown(env, value), "text"))?.parse()?),
            "log" => log = Some(env.text(value).ok_or_else(|| bad("log", shown(env, value), "text"))?),
            "logSize" => rotation.size = count(env, value, "log.size")? as u64,
            "logKeep" => rotation.keep = u32::try_from(count(env, value, "log.keep")?).unwrap_or(u32::MAX),
            "readyTimeout" => supervision.boot_timeout = time("readyTimeout")?,
            "minReady" => supervision.min_ready = time("minReady")?,
            "drainTimeout" => supervision.drain_timeout = time("drainTimeout")?,
            "killGrace" => supervision.kill_grace = time("killGrace")?,
            "beat" => supervision.beat = time("heartbeat.interval")?,
            "hang" => supervision.hang_timeout = time("heartbeat.timeout")?,
            "pinCpus" => pin_cpus = env.bool(value).ok_or_else(|| bad("pinCpus", shown(env, value), "true or false"))?,
            "nice" => confine.nice = i32::try_from(whole(env, value, "nice")?).unwrap_or(0),
            "uid" => confine.uid = Some(id(env, value, "uid")?),
            "gid" => confine.gid = Some(id(env, value, "gid")?),
            "limits" => confine.limits = limits(env, value)?,
            "oomScore" => confine.oom_score = Some(i32::try_from(whole(env, value, "oomScore")?).unwrap_or(i32::MAX)),
            "maxAge" => supervision.max_age = Some(time("maxAge")?),
            "maxMemory" => supervision.max_memory = Some(count(env, value, "maxMemory")? as u64),
            "maxRequests" => supervision.max_requests = Some(count(env, value, "maxRequests")? as u64),
            other => return Err(Error::invalid("unknown option").with("option", other.chars().take(80).collect::<String>()).into()),
        }
    }
    let mut builder = Cluster::builder().supervision(supervision).spares(spares).balance(balance).confine(confine).pin_cpus(pin_cpus);
    if let Some(workers) = workers {
        builder = builder.workers(workers);
    }
    if one_by_one {
        builder = builder.one_by_one();
    }
    if let Some(address) = metrics {
        builder = builder.metrics(address);
    }
    if let Some(log) = log {
        builder = builder.log(Log::parse(log.as_ref(), rotation));
    }
    builder.check().map_err(renamed)?;
    Ok(builder)
}

fn id(env: Env, value: Raw, name: &'static str) -> JsResult<u32> {
    u32::try_from(whole(env, value, name)?).map_err(|_| bad(name, shown(env, value), "a whole number from 0"))
}

/// Names and numbers by turns.
fn limits(env: Env, given: Raw) -> JsResult<Vec<(String, u64)>> {
    (0..env.len(given)?)
        .step_by(2)
        .map(|i| {
            let (name, value) = (env.text(env.at(given, i)?).unwrap_or_default(), env.at(given, i + 1)?);
            match env.f64(value) {
                Some(n) if n == f64::INFINITY => Ok((name, UNLIMITED)),
                Some(n) if n >= 0.0 && n.fract() == 0.0 => Ok((name, n as u64)),
                _ => Err(bad("limits", format!("{name}: {}", shown(env, value)), "whole numbers from 0, or Infinity")),
            }
        })
        .collect()
}

fn addresses(env: Env, given: Raw) -> JsResult<Vec<Address>> {
    texts(env, given)?.iter().map(|text| Ok(text.to_string_lossy().parse()?)).collect()
}

/// Program and arguments; names and values of variables by turns, a value that is no text removes its variable; a directory or nothing.
fn command(env: Env, [args, variables, cwd]: [Raw; 3]) -> JsResult<Command> {
    let mut command = Command { args: texts(env, args)?, ..Command::default() };
    for i in (0..env.len(variables)?).step_by(2) {
        let name = env.text(env.at(variables, i)?).ok_or_else(|| bad("env", "a name", "text"))?;
        command.env.push((name.into(), env.text(env.at(variables, i + 1)?).map(Into::into)));
    }
    command.cwd = env.text(cwd).map(Into::into);
    if command.args.first().is_none_or(|program| program.is_empty()) {
        return Err(bad("exec", shown(env, args), "a file or a command"));
    }
    Ok(command)
}

/// `clusterCheck(options, listen)`: throws for what `clusterStart` would refuse without trying.
pub(crate) fn check(call: &Call<'_>) -> JsResult<Raw> {
    drop(options(call.env, call.arg(0))?);
    addresses(call.env, call.arg(1))?;
    Ok(call.env.undefined())
}

/// `clusterStart(options, listen, note, args, env, cwd, lines)`: binds and starts; `note` is told when there are events. `lines`: whether somebody listens for those of workers; null: nobody reads
/// what they print.
pub(crate) fn start(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let mut builder = options(env, call.arg(0))?;
    let lines = env.bool(call.arg(6));
    let wanted = AtomicBool::new(lines == Some(true));
    let unheard = Arc::new(Unheard { told: Told::new(call.state, env.u32(call.arg(2))?), lines: Mutex::default(), wanted });
    let channels = Channels::default();
    let taken = Arc::clone(&channels);
    let take = move |id, channel| drop(taken.lock().unwrap_or_else(PoisonError::into_inner).insert(id, channel));
    builder = builder.on_event(listener(Arc::clone(&unheard))).on_channel(take);
    if lines.is_some() {
        let heard = Arc::clone(&unheard);
        builder = builder.on_line(move |line| heard.hear(line));
    }
    for address in addresses(env, call.arg(1))? {
        builder = builder.listen(address);
    }
    let cluster = builder.build(command(env, [call.arg(3), call.arg(4), call.arg(5)])?)?;
    buffer::external(env, call.state, Handle::Cluster(Clustered(RefCell::new(Some(Running { cluster, unheard, channels })))))
}

/// `clusterEvents(cluster)`: what happened.
pub(crate) fn events(call: &Call<'_>) -> JsResult<Raw> {
    let events = handle(call)?.0.borrow().as_ref().map_or_else(Vec::new, |running| running.unheard.take());
    value::to_js(call.env, call.state, Value::Array(events))
}

/// `clusterLines(cluster, wanted)`: whether somebody listens for them.
pub(crate) fn lines(call: &Call<'_>) -> JsResult<Raw> {
    let wanted = call.env.bool(call.arg(1)) == Some(true);
    handle(call)?.0.borrow().iter().for_each(|running| running.unheard.wanted.store(wanted, Ordering::Relaxed));
    Ok(call.env.undefined())
}

/// `clusterReload(cluster, generation, args, env, cwd)`: the new generation, where that one runs.
pub(crate) fn reload(call: &Call<'_>) -> JsResult<Raw> {
    let given = command(call.env, [call.arg(2), call.arg(3), call.arg(4)])?;
    call.env.number(cluster(call)?.reload_from(call.env.u32(call.arg(1))?, given)?.into())
}

/// `clusterFork(cluster, args, env, cwd)`: slot, generation, incarnation and process id of one more worker, of a cluster with `oneByOne`.
pub(crate) fn fork(call: &Call<'_>) -> JsResult<Raw> {
    let (id, pid) = cluster(call)?.fork(command(call.env, [call.arg(1), call.arg(2), call.arg(3)])?)?;
    let all = vec![int(id.slot), int(id.generation), Value::Int(id.incarnation as i64), int(pid)];
    value::to_js(call.env, call.state, Value::Array(all))
}

/// `clusterScale(cluster, workers)`.
pub(crate) fn scale(call: &Call<'_>) -> JsResult<Raw> {
    cluster(call)?.scale(count(call.env, call.arg(1), "workers")?)?;
    Ok(call.env.undefined())
}

/// `clusterStop(cluster, grace)`: ms; null ends all now.
pub(crate) fn stop(call: &Call<'_>) -> JsResult<Raw> {
    let cluster = cluster(call)?;
    match duration(call.env, call.arg(1), "grace")? {
        None if call.env.is_nullish(call.arg(1)) => cluster.stop_now()?,
        grace => cluster.stop(grace.unwrap_or(MAX_DURATION))?,
    }
    Ok(call.env.undefined())
}

fn worker_id(call: &Call<'_>) -> JsResult<WorkerId> {
    let number = |i| call.env.u32(call.arg(i));
    Ok(WorkerId { slot: number(1)?, generation: number(2)?, incarnation: number(3)?.into() })
}

/// `clusterKill(cluster, slot, generation, incarnation)`.
pub(crate) fn kill(call: &Call<'_>) -> JsResult<Raw> {
    cluster(call)?.kill(worker_id(call)?)?;
    Ok(call.env.undefined())
}

/// `clusterSignal(cluster, slot, generation, incarnation, signal)`: false once that process has ended, also where JavaScript has not heard of it and its number is another's.
pub(crate) fn signal(call: &Call<'_>) -> JsResult<Raw> {
    let id = worker_id(call)?;
    let signal = whole(call.env, call.arg(4), "signal")? as i32;
    let running = handle(call)?.0.borrow();
    let sent = running.as_ref().map_or(Ok(false), |running| running.cluster.signal(id, signal));
    call.env.boolean(sent?)
}

/// `clusterChannel(cluster, slot, generation, incarnation)`: the handle of the channel to that worker, once, from its `fork` on.
pub(crate) fn take_channel(call: &Call<'_>) -> JsResult<Raw> {
    let id = worker_id(call)?;
    let taken = {
        let running = handle(call)?.0.borrow();
        running.as_ref().and_then(|running| running.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(&id))
    };
    let taken = taken.ok_or_else(|| Error::new(ErrorKind::NotFound, "worker has no channel that was not taken").with("slot", id.slot))?;
    channel::give(call, taken)
}

/// `clusterStats(cluster)`: pairs of name and value.
pub(crate) fn stats(call: &Call<'_>) -> JsResult<Raw> {
    let s = cluster(call)?.stats()?;
    let count = |n: usize| Value::Int(n as i64);
    let total = |n: u64| Value::Int(n as i64);
    let all = [
        ("generation", int(s.generation)),
        ("wanted", count(s.wanted)),
        ("live", count(s.live)),
        ("ready", count(s.ready)),
        ("spares", count(s.spares)),
        ("degraded", Value::Bool(s.degraded)),
        ("served", total(s.served)),
        ("spawned", total(s.spawned)),
        ("crashed", total(s.exits.unasked())),
        ("oom", total(s.oom)),
        ("forced", total(s.forced)),
        ("expired", total(s.expired.total())),
        ("unresponsive", total(s.suspected)),
        ("reloads", total(s.reloads)),
        ("reloadsFailed", total(s.reloads_failed)),
    ];
    let pairs = all.into_iter().map(|(name, value)| Value::Array(vec![Value::from(name.to_owned()), value])).collect();
    value::to_js(call.env, call.state, Value::Array(pairs))
}

/// `clusterLoad(cluster, slot, generation, incarnation)`: what it has served, and ms by which its loop is late or null; null when it has ended.
pub(crate) fn load(call: &Call<'_>) -> JsResult<Raw> {
    let id = worker_id(call)?;
    let loads = cluster(call)?.loads()?;
    let Some((_, load)) = loads.into_iter().find(|(other, _)| *other == id) else { return Ok(call.env.null()) };
    let all = vec![Value::Int(load.served as i64), load.loop_delay.map_or(Value::Nil, ms)];
    value::to_js(call.env, call.state, Value::Array(all))
}

/// `clusterAddresses(cluster)`.
pub(crate) fn where_it_listens(call: &Call<'_>) -> JsResult<Raw> {
    let all = cluster(call)?.addresses().iter().map(|a| Value::from(a.to_string())).collect();
    value::to_js(call.env, call.state, Value::Array(all))
}

/// `clusterMetricsAddress(cluster)`: null without metrics.
pub(crate) fn where_metrics_are(call: &Call<'_>) -> JsResult<Raw> {
    match cluster(call)?.metrics_address() {
        Some(at) => call.env.string(&at.to_string()),
        None => Ok(call.env.null()),
    }
}

/// `clusterRelease(cluster)`: lets go of one that has stopped.
pub(crate) fn release(call: &Call<'_>) -> JsResult<Raw> {
    drop(handle(call)?.0.borrow_mut().take());
    Ok(call.env.undefined())
}

// ---- this process as a worker ----

/// This process, as the worker of a cluster.
pub(crate) struct Member {
    worker: Worker,
    /// "Take no more work."
    _drain: Watch,
    /// "You are no spare any more."
    _active: Option<Watch>,
}

fn member(call: &Call<'_>) -> JsResult<Rc<Member>> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Member(member) => Ok(Rc::clone(member)),
        _ => Err(Error::invalid("handle is no worker of a cluster").into()),
    }
}

/// `memberAttach(note)`: `[handle, slot, generation, ms between beats, fds, whether connections are passed, whether it is a spare]`, null when no cluster started this process; `note` is told
/// when it is to drain, and when it is no spare any more.
pub(crate) fn attach(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let Some(worker) = worker::attach()? else { return Ok(env.null()) };
    let note = env.u32(call.arg(0))? as usize;
    let wake = call.state.wake.clone();
    let drain = Watch::new(worker.supervisor().drain_fd(), move || wake.notify(note))?;
    drain.arm()?;
    if let Some(watched) = stack::watch(env)? {
        worker.supervisor().on_stall(move |stall| watched.stack(stall));
    }
    let is_spare = worker.supervisor().is_spare();
    let wake = call.state.wake.clone();
    let active = is_spare.then(|| Watch::new(worker.supervisor().active_fd(), move || wake.notify(note))).transpose()?;
    active.iter().try_for_each(Watch::arm)?;
    let (id, beat, fds) = (worker.supervisor().id(), worker.supervisor().beat_interval(), worker.fds());
    let passed = worker.is_passed();
    let out = env.array(7)?;
    env.set_at(out, 6, env.boolean(is_spare)?)?;
    env.set_at(out, 5, env.boolean(passed)?)?;
    env.set_at(out, 0, buffer::external(env, call.state, Handle::Member(Rc::new(Member { worker, _drain: drain, _active: active })))?)?;
    env.set_at(out, 1, env.number(id.slot.into())?)?;
    env.set_at(out, 2, env.number(id.generation.into())?)?;
    env.set_at(out, 3, env.number(beat.as_secs_f64() * 1e3)?)?;
    env.set_at(out, 4, value::to_js(env, call.state, Value::Array(fds.into_iter().map(int).collect()))?)?;
    Ok(out)
}

/// `memberListen(member, address, nth, queue)`: `[fd, where]`. The fd is the caller's; `nth` is how many of that address it has.
pub(crate) fn listen(call: &Call<'_>) -> JsResult<Raw> {
    let address = call.env.text(call.arg(1)).ok_or_else(|| bad("listen", shown(call.env, call.arg(1)), "text"))?;
    let queue = call.env.f64(call.arg(3)).filter(|n| *n > 0.0).map(|n| n as i32);
    let (fd, at) = member(call)?.worker.listen(&address, call.env.u32(call.arg(2))?, queue)?;
    value::to_js(call.env, call.state, Value::Array(vec![int(fd.into_raw_fd()), Value::from(at.to_string())]))
}

/// What connections come over that are passed to this worker.
pub(crate) struct Intake {
    worker: Worker,
    /// None once it was left.
    seat: RefCell<Option<(Watch, OwnedFd)>>,
}

/// `memberIntake(member, note, address or index, nth, queue)`: `[intake, where]`. Connections of a socket of the option `listen`, or of an address, come over it; `note` is told when
/// there are some, once after each `intakeTake` that found none.
pub(crate) fn intake(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let member = member(call)?;
    let note = env.u32(call.arg(1))? as usize;
    let (seat, at) = match env.text(call.arg(2)) {
        Some(address) => {
            let queue = env.f64(call.arg(4)).filter(|n| *n > 0.0).map(|n| n as i32);
            member.worker.listen(&address, env.u32(call.arg(3))?, queue)?
        }
        None => member.worker.seat(env.u32(call.arg(2))? as usize)?,
    };
    let wake = call.state.wake.clone();
    let watch = Watch::new(seat.as_fd(), move || wake.notify(note))?;
    watch.arm()?;
    let intake = Intake { worker: member.worker.clone(), seat: RefCell::new(Some((watch, seat))) };
    let out = env.array(2)?;
    env.set_at(out, 0, buffer::external(env, call.state, Handle::Intake(intake))?)?;
    env.set_at(out, 1, env.string(&at.to_string())?)?;
    Ok(out)
}

fn intake_of<'a>(call: &'a Call<'_>) -> JsResult<&'a Intake> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Intake(intake) => Ok(intake),
        _ => Err(Error::invalid("handle takes no connections").into()),
    }
}

/// `intakeTake(intake)`: the fd of a connection, which is the caller's; null when there is none now, or when there is no room for it here.
pub(crate) fn take(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let intake = intake_of(call)?;
    let seat = intake.seat.borrow();
    let Some((watch, seat)) = &*seat else { return Ok(env.null()) };
    match intake.worker.accept(seat.as_fd(), Some(Duration::ZERO)) {
        Ok(Some(connection)) => env.number(connection.into_raw_fd().into()),
        Ok(None) => {
            watch.arm()?;
            Ok(env.null())
        }
        // Nothing comes any more.
        Err(e) if e.kind() == ErrorKind::PeerDied => Ok(env.null()),
        // Another worker has it.
        Err(_) => {
            watch.arm()?;
            Ok(env.null())
        }
    }
}

/// `intakeLeave(intake)`: what is not taken goes to others.
pub(crate) fn leave(call: &Call<'_>) -> JsResult<Raw> {
    let intake = intake_of(call)?;
    if let Some((watch, seat)) = intake.seat.borrow_mut().take() {
        drop(watch);
        intake.worker.leave(seat.as_fd());
    }
    Ok(call.env.undefined())
}

/// `memberClosed(member)`: a connection that was taken has ended.
pub(crate) fn closed(call: &Call<'_>) -> JsResult<Raw> {
    member(call)?.worker.closed();
    Ok(call.env.undefined())
}

fn with(call: &Call<'_>, act: impl FnOnce(&supervisor::Worker)) -> JsResult<Raw> {
    act(member(call)?.worker.supervisor());
    Ok(call.env.undefined())
}

/// `memberChannel(member)`: the handle of the channel to the cluster's process.
pub(crate) fn member_channel(call: &Call<'_>) -> JsResult<Raw> {
    channel::give(call, member(call)?.worker.channel()?)
}

/// `memberBeat(member, next)`: from a timer that comes again in so many ms.
pub(crate) fn beat(call: &Call<'_>) -> JsResult<Raw> {
    let next = duration(call.env, call.arg(1), "next")?;
    member(call)?.worker.beat_within(next.unwrap_or(MAX_DURATION));
    Ok(call.env.undefined())
}

/// `memberServed(member, n)`.
pub(crate) fn served(call: &Call<'_>) -> JsResult<Raw> {
    let n = count(call.env, call.arg(1), "served")?;
    member(call)?.worker.supervisor().served(n as u64);
    Ok(call.env.undefined())
}

/// `memberReady(member)`.
pub(crate) fn ready(call: &Call<'_>) -> JsResult<Raw> {
    let member = member(call)?;
    member.worker.supervisor().ready();
    member.worker.beat();
    Ok(call.env.undefined())
}

/// `memberFail(member, text)`.
pub(crate) fn fail(call: &Call<'_>) -> JsResult<Raw> {
    let text = call.env.text(call.arg(1)).unwrap_or_default();
    with(call, |w| w.fail(&text))
}

/// `memberDrained(member)`.
pub(crate) fn drained(call: &Call<'_>) -> JsResult<Raw> {
    with(call, supervisor::Worker::drained)
}

/// `memberPlace(member)`: the slot of one that is no spare, null for one that is.
pub(crate) fn place(call: &Call<'_>) -> JsResult<Raw> {
    let id = member(call)?.worker.supervisor().id();
    if id.is_spare() { Ok(call.env.null()) } else { call.env.number(id.slot.into()) }
}

/// `memberDraining(member)`.
pub(crate) fn draining(call: &Call<'_>) -> JsResult<Raw> {
    call.env.boolean(member(call)?.worker.supervisor().is_draining())
}
