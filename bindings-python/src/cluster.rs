//! Clusters, and this process as the worker of one. offloop/_cluster.py and offloop/_member.py are the other side.

use crate::channel::PyChannel;
use crate::error::{duration, exception, number_option, raise, wrong_type};
use crate::stack::Watched;
use crate::{value, wait};
use offloop::channel::Channel;
use offloop::cluster::{Address, Backlog, Balance, Builder, Cluster, Command, Event, Line, Log, Rotation, Stream, Worker, worker};
use offloop::supervisor::{self, Event as Of, Load, MAX_DURATION, State, WorkerId};
use offloop::sys::confine::Confine;
use offloop::sys::fork;
use offloop::sys::net::{self, Bound as Bind};
use offloop::sys::watch::Watch;
use offloop::{Error, ErrorKind, Value};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Slot, generation, incarnation, process id, where it stands, what it has served, and seconds by which its loop is late.
type WorkerRow = (u32, u32, u64, i32, &'static str, u64, Option<f64>);

/// What happened: a name, values, and what failed.
struct Said {
    name: &'static str,
    values: Vec<Value>,
    error: Option<Error>,
    /// Of the backlog, until Python has heard it.
    cost: Option<usize>,
}

impl Said {
    fn new(name: &'static str, values: Vec<Value>) -> Said {
        Said { name, values, error: None, cost: None }
    }

    fn warning(error: Error) -> Said {
        Said { error: Some(error), ..Said::new("warning", vec![]) }
    }
}

#[derive(Default)]
struct Heard {
    /// Those that Python has not taken yet.
    events: Vec<Said>,
    /// Lines among them, and those that Python has not heard yet.
    lines: Backlog,
    /// Of processes that have not ended.
    pids: HashMap<WorkerId, i32>,
    /// To workers of which Python has not heard yet.
    channels: HashMap<WorkerId, Channel>,
    over: bool,
}

/// What the cluster's threads say, none of which ever takes the GIL.
#[derive(Default)]
struct Told {
    heard: Mutex<Heard>,
    changed: Condvar,
    /// Somebody listens for lines.
    wants_lines: AtomicBool,
}

/// What a line takes of the backlog, until nobody has it any more.
#[pyclass(name = "_Room", module = "offloop._native", frozen)]
struct PyRoom {
    told: Arc<Told>,
    cost: usize,
    epoch: u64,
}

impl Drop for PyRoom {
    fn drop(&mut self) {
        // In a forked child the lock may be held by a thread that is not there.
        if !fork::is_current(self.epoch) {
            return;
        }
        let mut heard = lock(&self.told.heard);
        if let Some(error) = heard.lines.release(self.cost) {
            heard.events.push(Said::warning(error));
            self.told.changed.notify_all();
        }
    }
}

impl Told {
    fn hear(&self, event: &Event) {
        let mut heard = lock(&self.heard);
        if let Some(said) = heard.said(event) {
            if said.name == "stopped" {
                heard.over = true;
                let left_out = heard.lines.close().map(Said::warning);
                heard.events.extend(left_out);
            }
            heard.events.push(said);
            self.changed.notify_all();
        }
    }

    fn hear_line(&self, line: &Line<'_>) {
        if !self.wants_lines.load(Ordering::Relaxed) {
            return;
        }
        let mut heard = lock(&self.heard);
        let Some(cost) = heard.lines.admit(line) else { return };
        let Line { worker: id, pid, .. } = *line;
        let stream = if line.stream == Stream::Out { "stdout" } else { "stderr" };
        let known = [int(id.slot), int(id.generation), Value::Int(id.incarnation as i64), int(pid)];
        let rest = [Value::from(stream.to_owned()), Value::from(String::from_utf8_lossy(line.bytes).into_owned())];
        heard.events.push(Said { cost: Some(cost), ..Said::new("log", known.into_iter().chain(rest).collect()) });
        // Who waits for something else has no use for it.
        if heard.events.len() == 1 {
            self.changed.notify_all();
        }
    }

    /// It is worth looking at what this worker says.
    fn mail(&self, id: WorkerId) {
        let values = vec![int(id.slot), int(id.generation), Value::Int(id.incarnation as i64)];
        lock(&self.heard).events.push(Said::new("mail", values));
        self.changed.notify_all();
    }

    /// Waits until `done` holds, at most `timeout`; true if it does.
    fn wait(&self, timeout: Duration, mut done: impl FnMut(&mut Heard) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.heard), timeout, |heard| !done(heard));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Heard {
    /// Of a worker: slot, generation, incarnation and pid come first.
    fn said(&mut self, event: &Event) -> Option<Said> {
        let said = Said::new;
        let of = |pids: &HashMap<WorkerId, i32>, name, id: &WorkerId, rest: Vec<Value>| {
            let known = [int(id.slot), int(id.generation), Value::Int(id.incarnation as i64), int(pids.get(id).copied().unwrap_or(0))];
            said(name, known.into_iter().chain(rest).collect())
        };
        let failed = |said: Said, error: &Error| Said { error: Some(error.clone()), ..said };
        let text = |text: &str| Value::from(text.to_owned());
        let event = match event {
            Event::Listening { worker, address } => return Some(of(&self.pids, "listening", worker, vec![text(&address.to_string())])),
            Event::Warning(error) => return Some(Said::warning(error.clone())),
            Event::Worker(event) => event,
            _ => return None,
        };
        Some(match event {
            Of::Spawned { worker, pid } => {
                self.pids.insert(*worker, *pid);
                of(&self.pids, "fork", worker, vec![])
            }
            Of::Starting { worker } => of(&self.pids, "online", worker, vec![]),
            Of::Ready { worker, after } => of(&self.pids, "ready", worker, vec![seconds(*after)]),
            Of::Spare { worker, .. } => of(&self.pids, "spare", worker, vec![]),
            Of::Activated { spare, worker } => {
                let pid = self.pids.remove(spare);
                self.pids.extend(pid.map(|pid| (*worker, pid)));
                let was = [int(spare.slot), int(spare.generation), Value::Int(spare.incarnation as i64)];
                of(&self.pids, "activated", worker, was.into())
            }
            Of::Suspect { worker, cause, stack } => {
                let stack = stack.clone().map_or(Value::Nil, Value::from);
                of(&self.pids, "unresponsive", worker, vec![text(cause.name()), stack])
            }
            Of::Resumed { worker } => of(&self.pids, "responsive", worker, vec![]),
            Of::Expired { worker, why } => of(&self.pids, "expired", worker, vec![text(why.name())]),
            Of::Draining { worker, cause } => of(&self.pids, "draining", worker, vec![text(cause.name())]),
            Of::Exited { worker, cause, ended, forced, text: why, uptime } => {
                let number = |n: Option<i32>| n.map_or(Value::Nil, int);
                let rest = vec![
                    number(ended.exit.code),
                    number(ended.exit.signal),
                    text(cause.name()),
                    Value::Bool(*forced),
                    Value::Bool(ended.oom),
                    why.clone().map_or(Value::Nil, Value::from),
                    uptime.map_or(Value::Nil, seconds),
                ];
                let said = of(&self.pids, "exit", worker, rest);
                self.pids.remove(worker);
                said
            }
            Of::SpawnFailed { worker, error } => failed(of(&self.pids, "start_error", worker, vec![]), error),
            Of::BackOff { slot, delay } => said("back_off", vec![int(*slot), seconds(*delay)]),
            Of::Reloading { generation } => said("reloading", vec![int(*generation)]),
            Of::RollingBack { generation, error } => failed(said("rollback", vec![int(*generation)]), error),
            Of::Reloaded(r) => said("reload", reported(r)),
            Of::ReloadFailed { generation, error, .. } => failed(said("reload_failed", vec![int(*generation)]), error),
            Of::Degraded { failures, .. } => said("degraded", vec![Value::Int(*failures as i64)]),
            Of::Recovered => said("recovered", vec![]),
            Of::Stopped => said("stopped", vec![]),
            _ => return None,
        })
    }
}

fn int(n: impl Into<i64>) -> Value {
    Value::Int(n.into())
}

fn seconds(d: Duration) -> Value {
    Value::Float(d.as_secs_f64())
}

fn reported(r: &supervisor::Reloaded) -> Vec<Value> {
    vec![int(r.generation), Value::Int(r.replaced as i64), Value::Int(r.forced as i64), seconds(r.took)]
}

/// What Python calls the options of the supervisor.
const NAMES: &[(&str, &str)] = &[("boot_timeout", "ready_timeout"), ("beat", "heartbeat[0]"), ("hang_timeout", "heartbeat[1]")];

/// The same error with the name that was given.
fn renamed(error: Error) -> Error {
    error.option_named(|core| NAMES.iter().find(|(name, _)| *name == core).map(|(_, python)| (*python).to_owned()))
}

fn whole(name: &'static str, value: &Bound<'_, PyAny>, min: usize) -> PyResult<u64> {
    if value.is_instance_of::<PyBool>() {
        return Err(wrong_type(name, value, "an integer"));
    }
    let n: i64 = number_option(name, value)?;
    let low = || Error::invalid("option is out of range").with("option", name).with("value", n).with("min", min);
    u64::try_from(n).map_err(|_| raise(value.py(), &low()))
}

fn count(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    number_of(name, value, 1)
}

fn number_of(name: &'static str, value: &Bound<'_, PyAny>, min: usize) -> PyResult<usize> {
    let n = whole(name, value, min)?;
    usize::try_from(n).ok().filter(|n| (min..=supervisor::MAX_WORKERS).contains(n)).ok_or_else(|| {
        let error = Error::invalid("option is out of range").with("option", name).with("value", n);
        raise(value.py(), &error.with("min", min).with("max", supervisor::MAX_WORKERS))
    })
}

/// What runs, once it does.
type Running = Option<(Cluster, Arc<Told>)>;

/// A cluster, started or not.
#[pyclass(name = "_Cluster", module = "offloop._native", frozen)]
pub(crate) struct PyCluster {
    workers: Option<usize>,
    spares: usize,
    supervision: supervisor::Options,
    balance: Balance,
    confine: Confine,
    pin_cpus: bool,
    listen: Vec<Address>,
    metrics: Option<Address>,
    log: Option<Log>,
    running: Mutex<Running>,
    /// Workers that were asked for last.
    scaling: AtomicUsize,
    /// Of the channels that are looked at.
    watches: Mutex<HashMap<WorkerId, Watch>>,
}

/// Program and arguments, variables that are added or, by None, removed, and a working directory.
type Given = (Vec<OsString>, Vec<(OsString, Option<OsString>)>, Option<OsString>);

fn command((args, env, cwd): Given) -> Command {
    Command { args, env, cwd: cwd.map(Into::into) }
}

fn worker_id((slot, generation, incarnation): (u32, u32, u64)) -> WorkerId {
    WorkerId { slot, generation, incarnation }
}

impl PyCluster {
    fn get(&self, py: Python<'_>) -> PyResult<(Cluster, Arc<Told>)> {
        let running = lock(&self.running);
        let running = running.as_ref().ok_or_else(|| raise(py, &Error::new(ErrorKind::Closed, "the cluster was not started")))?;
        Ok(running.clone())
    }

    /// The cluster, once it was started.
    pub(crate) fn running(&self, py: Python<'_>) -> PyResult<Cluster> {
        Ok(self.get(py)?.0)
    }

    /// Waits by the cluster's own waits, in slices; false when `timeout` has passed before.
    fn until<T: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        wait: impl Fn(&Cluster, Duration) -> Result<T, Error> + Sync,
    ) -> PyResult<Option<T>> {
        let (cluster, _) = self.get(py)?;
        let mut found = None;
        let wait = &wait;
        wait::until(py, timeout, |left| match wait(&cluster, left) {
            Ok(out) => {
                found = Some(out);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Timeout => Ok(false),
            Err(e) => Err(e),
        })?;
        Ok(found)
    }
}

fn limit(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    timeout.map_or(Ok(None), |t| duration("timeout", t))
}

#[pymethods]
impl PyCluster {
    #[new]
    fn new(py: Python<'_>, options: &Bound<'_, PyDict>, listen: Vec<String>) -> PyResult<PyCluster> {
        let mut supervision = Builder::default_supervision();
        let (mut workers, mut spares) = (None, 0);
        let mut balance = Balance::default();
        let (mut confine, mut pin_cpus) = (Confine::default(), false);
        let (mut metrics, mut log, mut rotation) = (None, None, Rotation::default());
        for (key, value) in options {
            let key: String = key.extract()?;
            let time = |name| Ok::<_, PyErr>(duration(name, &value)?.unwrap_or(MAX_DURATION));
            match key.as_str() {
                "workers" => workers = Some(count("workers", &value)?),
                "spares" => spares = number_of("spares", &value, 0)?,
                "balance" => {
                    let text: String = value.extract().map_err(|_| wrong_type("balance", &value, "the name of a strategy"))?;
                    balance = text.parse().map_err(|e| raise(py, &e))?;
                }
                "metrics" => {
                    let text: String = value.extract().map_err(|_| wrong_type("metrics", &value, "an address"))?;
                    metrics = Some(text.parse().map_err(|e| raise(py, &e))?);
                }
                "log" => {
                    log = Some(value.extract::<OsString>().map_err(|_| wrong_type("log", &value, "'prefixed', 'raw', 'none' or a path"))?)
                }
                "log_size" => rotation.size = whole("log_size", &value, 1)?,
                "log_keep" => rotation.keep = number_option("log_keep", &value)?,
                "ready_timeout" => supervision.boot_timeout = time("ready_timeout")?,
                "min_ready" => supervision.min_ready = time("min_ready")?,
                "drain_timeout" => supervision.drain_timeout = time("drain_timeout")?,
                "kill_grace" => supervision.kill_grace = time("kill_grace")?,
                "beat" => supervision.beat = time("heartbeat[0]")?,
                "hang" => supervision.hang_timeout = time("heartbeat[1]")?,
                "nice" => confine.nice = number_option("nice", &value)?,
                "pin_cpus" => pin_cpus = value.extract().map_err(|_| wrong_type("pin_cpus", &value, "a bool"))?,
                "uid" => confine.uid = Some(number_option("user", &value)?),
                "gid" => confine.gid = Some(number_option("group", &value)?),
                "limits" => confine.limits = value.extract()?,
                "oom_score" => confine.oom_score = Some(number_option("oom_score", &value)?),
                "max_age" => supervision.max_age = Some(time("max_age")?),
                "max_memory" => supervision.max_memory = Some(whole("max_memory", &value, 1)?),
                "max_requests" => supervision.max_requests = Some(whole("max_requests", &value, 1)?),
                _ => return Err(raise(py, &Error::invalid("unknown option").with("option", key))),
            }
        }
        let log = log.map(|text| Log::parse(&text, rotation));
        let mut checked = Cluster::builder().supervision(supervision.clone()).workers(workers.unwrap_or(1)).spares(spares).balance(balance);
        if let Some(log) = &log {
            checked = checked.log(log.clone());
        }
        checked.check().map_err(|e| raise(py, &renamed(e)))?;
        confine.check().map_err(|e| raise(py, &e))?;
        let listen = listen.iter().map(|text| text.parse()).collect::<Result<_, Error>>().map_err(|e| raise(py, &e))?;
        Ok(PyCluster {
            workers,
            spares,
            supervision,
            balance,
            confine,
            pin_cpus,
            listen,
            metrics,
            log,
            running: Mutex::default(),
            scaling: AtomicUsize::new(0),
            watches: Mutex::default(),
        })
    }

    /// Binds and starts; does not wait. `lines`: whether somebody listens for those of workers; None: nobody reads what they print.
    fn start(&self, py: Python<'_>, given: Given, lines: Option<bool>) -> PyResult<()> {
        let told = Arc::new(Told { wants_lines: AtomicBool::new(lines == Some(true)), ..Told::default() });
        let own = Arc::clone(&told);
        let mut builder = Cluster::builder()
            .supervision(self.supervision.clone())
            .spares(self.spares)
            .balance(self.balance)
            .confine(self.confine.clone())
            .pin_cpus(self.pin_cpus)
            .on_event(move |event| own.hear(event));
        let own = Arc::clone(&told);
        builder = builder.on_channel(move |id, channel| drop(lock(&own.heard).channels.insert(id, channel)));
        if lines.is_some() {
            let own = Arc::clone(&told);
            builder = builder.on_line(move |line| own.hear_line(line));
        }
        if let Some(workers) = self.workers {
            builder = builder.workers(workers);
        }
        if let Some(address) = &self.metrics {
            builder = builder.metrics(address.clone());
        }
        if let Some(log) = &self.log {
            builder = builder.log(log.clone());
        }
        builder = self.listen.iter().fold(builder, |b, address| b.listen(address.clone()));
        let built = wait::detached(py, || builder.build(command(given))).map_err(|e| raise(py, &e))?;
        *lock(&self.running) = Some((built, told));
        Ok(())
    }

    /// Events, of which there is one at least; None when there will be no more. Waits.
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let (cluster, told) = self.get(py)?;
        // The thread that waits here is no reason to keep the workers.
        drop(cluster);
        let (events, over) = wait::detached(py, || {
            told.wait(MAX_DURATION, |heard| heard.over || !heard.events.is_empty());
            let mut heard = lock(&told.heard);
            (std::mem::take(&mut heard.events), heard.over)
        });
        if events.is_empty() && over {
            return Ok(None);
        }
        let list = PyList::empty(py);
        for said in events {
            let values = value::to_python(py, Value::Array(said.values))?;
            let error = said.error.map(|e| exception(py, &e)).transpose()?;
            let room = said.cost.map(|cost| PyRoom { told: Arc::clone(&told), cost, epoch: fork::epoch() });
            list.append((said.name, values, error, room))?;
        }
        Ok(Some(list))
    }

    /// Somebody listens for lines from now on.
    fn hear_lines(&self) {
        lock(&self.running).iter().for_each(|(_, told)| told.wants_lines.store(true, Ordering::Relaxed));
    }

    /// False: not within `timeout`.
    fn wait_ready(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        Ok(self.until(py, limit(timeout)?, |cluster, left| cluster.wait_ready(Some(left)))?.is_some())
    }

    /// The new generation, where the generation `of` runs; does not wait.
    fn reload(&self, py: Python<'_>, of: u32, given: Given) -> PyResult<u32> {
        self.get(py)?.0.reload_from(of, command(given)).map_err(|e| raise(py, &e))
    }

    /// Generation, replaced, forced, seconds; None: not within `timeout`.
    fn wait_reload<'py>(
        &self,
        py: Python<'py>,
        generation: u32,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let done = self.until(py, limit(timeout)?, |cluster, left| cluster.wait_reload(generation, Some(left)))?;
        done.map(|r| value::to_python(py, Value::Array(reported(&r)))).transpose()
    }

    /// Does not wait.
    fn scale(&self, py: Python<'_>, workers: &Bound<'_, PyAny>) -> PyResult<()> {
        let n = count("workers", workers)?;
        self.get(py)?.0.scale(n).map_err(|e| raise(py, &e))?;
        self.scaling.store(n, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until so many are ready and no more are there, or another number is wanted; false: not within `timeout`.
    fn wait_scaled(&self, py: Python<'_>, workers: usize, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let (cluster, told) = self.get(py)?;
        let is_scaled = || match cluster.wait_ready(Some(Duration::ZERO)) {
            Err(e) if e.kind() == ErrorKind::Timeout => Ok(false),
            Err(e) => Err(e),
            Ok(()) => {
                let s = cluster.stats()?;
                Ok(self.scaling.load(Ordering::Relaxed) != workers || (s.wanted == workers && s.live <= workers))
            }
        };
        wait::until(py, limit(timeout)?, |left| {
            told.wait(left, |_| is_scaled().unwrap_or(true));
            is_scaled()
        })
    }

    /// Ends all workers; None: now. Does not wait.
    fn stop(&self, py: Python<'_>, grace: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        // One that was let go of has stopped.
        let Some((cluster, _)) = lock(&self.running).clone() else { return Ok(()) };
        match grace {
            None => cluster.stop_now(),
            Some(grace) => cluster.stop(duration("grace", grace)?.unwrap_or(MAX_DURATION)),
        }
        .map_err(|e| raise(py, &e))
    }

    fn wait_stopped(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        if lock(&self.running).is_none() {
            return Ok(true);
        }
        Ok(self.until(py, limit(timeout)?, |cluster, left| cluster.wait_stopped(Some(left)))?.is_some())
    }

    fn kill(&self, py: Python<'_>, worker: (u32, u32, u64)) -> PyResult<()> {
        self.get(py)?.0.kill(worker_id(worker)).map_err(|e| raise(py, &e))
    }

    /// The channel to a worker, once, from its `fork` on.
    fn channel(&self, py: Python<'_>, worker: (u32, u32, u64)) -> PyResult<PyChannel> {
        let (_, told) = self.get(py)?;
        let taken = lock(&told.heard).channels.remove(&worker_id(worker));
        let none = || Error::new(ErrorKind::NotFound, "worker has no channel that was not taken").with("slot", worker.0);
        Ok(PyChannel { channel: taken.ok_or_else(|| raise(py, &none()))? })
    }

    /// Tells `mail` of the worker, once, when it is worth looking at its channel.
    fn watch(&self, py: Python<'_>, worker: (u32, u32, u64), channel: &PyChannel) -> PyResult<()> {
        let (_, told) = self.get(py)?;
        let id = worker_id(worker);
        let mut watches = lock(&self.watches);
        let watched = (|| {
            if let Some(watch) = watches.get(&id) {
                return watch.arm();
            }
            let fd = channel.channel.fd()?;
            // SAFETY: the channel keeps it open for the call, which duplicates it.
            let watch = Watch::new(unsafe { BorrowedFd::borrow_raw(fd) }, move || told.mail(id))?;
            watch.arm()?;
            watches.insert(id, watch);
            Ok(())
        })();
        watched.map_err(|e| raise(py, &e))
    }

    /// Tells `mail` of the worker now.
    fn look(&self, py: Python<'_>, worker: (u32, u32, u64)) -> PyResult<()> {
        self.get(py)?.1.mail(worker_id(worker));
        Ok(())
    }

    /// The worker has ended: nobody looks any more.
    fn unwatch(&self, worker: (u32, u32, u64)) {
        let watch = lock(&self.watches).remove(&worker_id(worker));
        drop(watch);
    }

    /// Slot, generation, incarnation, pid and state of each slot that has a process, but for spares.
    fn workers(&self, py: Python<'_>) -> PyResult<Vec<WorkerRow>> {
        let (cluster, told) = self.get(py)?;
        let slots = cluster.slots().map_err(|e| raise(py, &e))?;
        let loads: HashMap<WorkerId, Load> = cluster.loads().map_err(|e| raise(py, &e))?.into_iter().collect();
        let heard = lock(&told.heard);
        let row = |(id, state): (WorkerId, State)| {
            let load = loads.get(&id).copied().unwrap_or_default();
            let delay = load.loop_delay.map(|late| late.as_secs_f64());
            Some((id.slot, id.generation, id.incarnation, *heard.pids.get(&id)?, shown(state)?, load.served, delay))
        };
        Ok(slots.into_iter().filter(|(id, _)| !id.is_spare()).filter_map(row).collect())
    }

    fn addresses(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.get(py)?.0.addresses().iter().map(ToString::to_string).collect())
    }

    /// None without metrics.
    fn metrics_address(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.get(py)?.0.metrics_address().map(|at| at.to_string()))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = self.get(py)?.0.stats().map_err(|e| raise(py, &e))?;
        let d = PyDict::new(py);
        d.set_item("generation", s.generation)?;
        d.set_item("wanted", s.wanted)?;
        d.set_item("live", s.live)?;
        d.set_item("ready", s.ready)?;
        d.set_item("spares", s.spares)?;
        d.set_item("degraded", s.degraded)?;
        d.set_item("spawned", s.spawned)?;
        d.set_item("crashed", s.exits.unasked())?;
        d.set_item("oom", s.oom)?;
        d.set_item("forced", s.forced)?;
        d.set_item("expired", s.expired.total())?;
        d.set_item("unresponsive", s.suspected)?;
        d.set_item("reloads", s.reloads)?;
        d.set_item("reloads_failed", s.reloads_failed)?;
        d.set_item("served", s.served)?;
        Ok(d)
    }

    /// Lets go of one that has stopped.
    fn release(&self) {
        // Not under the lock: what is dropped may wait.
        let running = lock(&self.running).take();
        drop(running);
    }

    /// What a forked child has of its parent's cluster: nothing that it could use.
    fn forget(&self) {
        // The lock is the parent's, and may be held by a thread that is not here.
        if let Ok(mut running) = self.running.try_lock() {
            std::mem::forget(running.take());
        }
    }
}

/// As the events have it.
fn shown(state: State) -> Option<&'static str> {
    Some(match state {
        State::Spawned | State::Starting => "starting",
        State::Ready => "ready",
        State::Suspect => "unresponsive",
        State::Draining | State::Aborting | State::Killing => "draining",
        _ => return None,
    })
}

/// This process, as the worker of a cluster.
#[pyclass(name = "_Member", module = "offloop._native", frozen)]
struct PyMember {
    worker: Worker,
    watched: Arc<Watched>,
}

#[pymethods]
impl PyMember {
    /// None when no cluster started this process.
    #[staticmethod]
    fn attach(py: Python<'_>) -> PyResult<Option<PyMember>> {
        Ok(worker::attach().map_err(|e| raise(py, &e))?.map(|worker| PyMember { worker, watched: Arc::default() }))
    }

    #[getter]
    fn slot(&self) -> u32 {
        self.worker.supervisor().id().slot
    }

    #[getter]
    fn generation(&self) -> u32 {
        self.worker.supervisor().id().generation
    }

    /// Seconds between beats.
    #[getter]
    fn beat_interval(&self) -> f64 {
        self.worker.supervisor().beat_interval().as_secs_f64()
    }

    #[getter]
    fn fds(&self) -> Vec<i32> {
        self.worker.fds()
    }

    #[getter]
    fn draining(&self) -> bool {
        self.worker.supervisor().is_draining()
    }

    /// An fd, which is the caller's, and where it listens. `nth`: how many of that address are open here already. Waits for the cluster's answer.
    fn listen(&self, py: Python<'_>, address: &str, nth: u32, queue: Option<i32>) -> PyResult<(i32, String)> {
        let (fd, at) = wait::detached(py, || self.worker.listen(address, nth, queue)).map_err(|e| raise(py, &e))?;
        Ok((fd.into_raw_fd(), at.to_string()))
    }

    /// The channel to the cluster's process.
    fn channel(&self, py: Python<'_>) -> PyResult<PyChannel> {
        Ok(PyChannel { channel: self.worker.channel().map_err(|e| raise(py, &e))? })
    }

    /// The cluster accepts, and passes connections on: what `listen` and `seat` give does not listen, but they come over it.
    #[getter]
    fn passed(&self) -> bool {
        self.worker.is_passed()
    }

    /// As `listen`, of the socket `index` of the cluster's own.
    fn seat(&self, py: Python<'_>, index: usize) -> PyResult<(i32, String)> {
        let (fd, at) = wait::detached(py, || self.worker.seat(index)).map_err(|e| raise(py, &e))?;
        Ok((fd.into_raw_fd(), at.to_string()))
    }

    /// The fd of a connection that came over `seat`, which is the caller's; None: there is none now.
    fn take(&self, py: Python<'_>, seat: i32) -> PyResult<Option<i32>> {
        // SAFETY: the caller's socket is open during the call.
        let taken = self.worker.accept(unsafe { BorrowedFd::borrow_raw(seat) }, Some(Duration::ZERO)).map_err(|e| raise(py, &e))?;
        Ok(taken.map(IntoRawFd::into_raw_fd))
    }

    /// What is not taken goes to other workers.
    fn leave(&self, seat: i32) {
        // SAFETY: as above.
        self.worker.leave(unsafe { BorrowedFd::borrow_raw(seat) });
    }

    /// A connection that was taken has ended.
    fn closed(&self) {
        self.worker.closed();
    }

    /// From what comes again within so many seconds; None: within the interval.
    #[pyo3(signature = (within=None))]
    fn beat(&self, within: Option<f64>) {
        match within.and_then(|within| Duration::try_from_secs_f64(within).ok()) {
            Some(within) => self.worker.beat_within(within),
            None => self.worker.beat(),
        }
    }

    /// The loop turns on this thread: that is the one whose stack is told when it stands still, by a thread that calls `stalled` and `stack` in turns.
    fn turns_here(&self) {
        self.watched.turns_here();
        let watched = Arc::clone(&self.watched);
        self.worker.supervisor().on_stall(move |stall| watched.stack(stall));
    }

    /// Waits until the loop stands still; its thread.
    fn stalled(&self, py: Python<'_>) -> u64 {
        self.watched.wanted(py)
    }

    /// Tells where, a frame an item, the innermost last.
    fn stack(&self, frames: Vec<String>) {
        self.watched.tell(&frames);
    }

    fn served(&self, n: u64) {
        self.worker.supervisor().served(n);
    }

    fn ready(&self) {
        self.worker.supervisor().ready();
        self.worker.beat();
    }

    fn fail(&self, text: &str) {
        self.worker.supervisor().fail(text);
    }

    fn drained(&self) {
        self.worker.supervisor().drained();
    }

    /// It is a spare, and waits.
    #[getter]
    fn spare(&self) -> bool {
        self.worker.supervisor().is_spare()
    }

    /// Whether it is no spare any more, at the latest after so many seconds. Waits without the GIL.
    fn wait_active(&self, py: Python<'_>, seconds: f64) -> bool {
        let timeout = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_DURATION);
        wait::detached(py, || self.worker.supervisor().wait_active(Some(timeout)))
    }

    /// Whether it is to finish, at the latest after so many seconds. Waits without the GIL.
    fn wait_drain(&self, py: Python<'_>, seconds: f64) -> bool {
        let timeout = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_DURATION);
        wait::detached(py, || self.worker.supervisor().wait_drain(Some(timeout)))
    }
}

/// Where a connection was accepted that has this fd: a port, or a path; None for any other fd.
#[pyfunction]
fn _accepted_at(py: Python<'_>, fd: i32) -> PyResult<Option<Bound<'_, PyAny>>> {
    if fd < 0 {
        return Ok(None);
    }
    // SAFETY: the caller has it open, or it is gone meanwhile, and the calls below say so.
    match net::accepted_at(unsafe { BorrowedFd::borrow_raw(fd) }) {
        Some(Bind::Tcp(at)) => Ok(Some(at.port().into_pyobject(py)?.into_any())),
        Some(Bind::Unix(Some(path))) => Ok(Some(path.into_os_string().into_pyobject(py)?.into_any())),
        _ => Ok(None),
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_accepted_at, m)?)?;
    m.add_class::<PyCluster>()?;
    m.add_class::<PyRoom>()?;
    m.add_class::<PyMember>()
}
