//! N copies of a server on the same sockets: kept alive, scaled, and reloaded without losing a request.
//!
//! ```text
//!  host ── start, reload, scale, stop ──► Cluster ──► Supervisor ──► workers: page, lifeline, pidfd
//!   ▲                                       │                          │  sockets from fd 3 on (LISTEN_FDS)
//!   └── events ◄── listener ◄───────────────┤                          │
//!                                         Gates ◄── "listen at …" ─────┤  one socket pair each, answered by a thread of its own
//!  messages ◄─────────────────────────────── Mail ◄═══ channel ═════════╛  one each, for values, buffers, fds and requests
//!                                           │
//!                                        Sockets: bound once, by this process, and open until the cluster ends
//! ```
//!
//! * Workers accept from one shared socket per address, so connections that wait belong to nobody who may die: a worker that drains stops to
//!   accept, and the others go on. This is what makes a reload lose nothing.
//! * [`worker`]: the worker's side, which any program may use; a program that follows `LISTEN_FDS`, or takes the number of an fd, needs none of it to get its sockets.
//! * With [`Balance::RoundRobin`] and its like the cluster accepts by a thread of its own (`pass`), and passes each connection to the worker that `balance` chooses.
//! * `logs`: what workers print, as whole lines; `sink`: where those go; `backlog`: those that a host's loop has not taken yet.
//! * `status`: what it shows of its workers; `endpoint`: that, and the metrics of its workers' pools, by HTTP.
//! * `listen`: addresses and sockets; `launch`: a worker's command line and environment; `gate`: what workers ask for; `mail`: messages; `fork`: workers that are
//!   started one by one, each with a command of its own.
//!
//! User documentation with the table of options: `docs/cluster.md`.

mod backlog;
mod balance;
mod endpoint;
mod fork;
mod gate;
mod launch;
mod listen;
mod logs;
mod mail;
mod page;
mod pass;
mod sink;
mod status;
pub mod worker;

pub use backlog::{Backlog, MAX_BACKLOG, WITH_EACH};
pub use balance::Balance;
pub use launch::Command;
pub use listen::{Address, MAX_SOCKETS, QUEUE};
pub use logs::{Line, MAX_LINE, Stream};
pub use mail::RING;
pub use sink::{Log, Rotation};
pub use status::{Status, WorkerStatus};
pub use worker::Worker;

use crate::channel::{Channel, Incoming, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Collector;
use crate::shared::{self, Counter, Ledger, Limit, RateLimiter};
use crate::supervisor::{self, Launch, Load, Reloaded, State, Stats, Supervisor, View, WorkerId};
use crate::sync::lock;
use crate::sys::confine::{self, Confine};
use crate::sys::fork::PrivateFd;
use crate::sys::{cpu, net};
use crate::value::Value;
use crate::wire::cluster::{CHANNEL, PASS};
use endpoint::Endpoint;
use fork::Forks;
use gate::{Gates, House};
use launch::Resolved;
use listen::{Socket, Sockets};
use logs::Logs;
use mail::{HearMessage, Mail, Standing};
use pass::Passer;
use status::Register;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What happens in a cluster.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Of its workers' processes.
    Worker(supervisor::Event),
    /// A worker got a socket that it has asked for.
    Listening {
        /// Which.
        worker: WorkerId,
        /// Where.
        address: Address,
    },
    /// Something is not as it should be, and the cluster goes on: it has no room for a connection (`Os`, with the address and `EMFILE`, `ENFILE` …: said once, until
    /// one was accepted again), or [`Balance::Reuseport`] loses more than it must (`Unsupported`).
    Warning(Error),
}

type Hear = Box<dyn FnMut(&Event) + Send>;
type TakeChannel = Box<dyn FnMut(WorkerId, Channel) + Send>;

/// The host's function, which is called by two threads, one at a time.
#[derive(Clone)]
struct Listener(Arc<Mutex<Option<Hear>>>);

impl Listener {
    fn tell(&self, event: &Event) {
        if let Some(hear) = &mut *lock(&self.0) {
            supervisor::call_host(|| hear(event));
        }
    }
}

/// Makes a [`Cluster`].
#[must_use]
pub struct Builder {
    supervision: supervisor::Options,
    workers: Option<usize>,
    spares: usize,
    adopted: Vec<OwnedFd>,
    listen: Vec<Address>,
    balance: Balance,
    hear: Option<Hear>,
    hear_message: Option<HearMessage>,
    take_channel: Option<TakeChannel>,
    logs: Option<logs::Hear>,
    log: Option<Log>,
    one_by_one: bool,
    confine: Confine,
    pin_cpus: bool,
    name: String,
    metrics: Option<Address>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("workers", &self.workers).field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl Builder {
    /// Workers: 1 to 1,024. Default: as many as there are usable cores.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = Some(workers);
        self
    }

    /// Workers beside those that are started, load, ask for their sockets, and wait: when a worker has ended, a spare takes its place at once, and another is started. With the workers
    /// no more than 1,024. Default 0.
    ///
    /// A spare accepts nothing, which programs that accept by [`Worker::accept`] or wait for [`active_fd`](supervisor::Worker::active_fd) heed; one that knows nothing of its
    /// cluster gets none ([`Event::Warning`]). Until it takes a place its slot is [`FIRST_SPARE`](supervisor::FIRST_SPARE) or higher.
    pub fn spares(mut self, spares: usize) -> Builder {
        self.spares = spares;
        self
    }

    /// One more socket, which is bound before the first worker starts, and which each worker inherits.
    pub fn listen(mut self, address: Address) -> Builder {
        self.listen.push(address);
        self
    }

    /// No worker starts by itself, and none takes the place of one that has ended: each is started by [`Cluster::fork`]. A worker may take as long as it likes until it is ready, and any
    /// number may start at once. `workers` is not heeded, nor is the command of [`build`](Self::build).
    pub fn one_by_one(mut self) -> Builder {
        self.one_by_one = true;
        self
    }

    /// Niceness, user, group and limits of the workers. Default: those of this process. `cpu` is not heeded.
    pub fn confine(mut self, confine: Confine) -> Builder {
        self.confine = confine;
        self
    }

    /// Each worker runs on one core, by its slot, the usable cores counted round. Default: the kernel chooses.
    pub fn pin_cpus(mut self, pin_cpus: bool) -> Builder {
        self.pin_cpus = pin_cpus;
        self
    }

    /// How connections come to workers. Default: [`Balance::Shared`].
    pub fn balance(mut self, balance: Balance) -> Builder {
        self.balance = balance;
        self
    }

    /// A socket that this process was given and that listens (`LISTEN_FDS`), which each worker inherits: before those of [`listen`](Self::listen). It is made non-blocking; its address and
    /// queue stay as they are, also with [`Balance::Reuseport`]. [`Address::Fd`] takes a copy instead.
    pub fn adopt(mut self, fd: OwnedFd) -> Builder {
        self.adopted.push(fd);
        self
    }

    /// How workers are watched and ended, where nothing else is said: the supervisor's defaults, but 1 s of `min_ready`.
    #[must_use]
    pub fn default_supervision() -> supervisor::Options {
        supervisor::Options { min_ready: Duration::from_secs(1), ..supervisor::Options::default() }
    }

    /// How workers are watched and ended. `workers` is not heeded. Default: [`default_supervision`](Self::default_supervision).
    pub fn supervision(mut self, options: supervisor::Options) -> Builder {
        self.supervision = options;
        self
    }

    /// Called with each event by threads of the cluster, one at a time. It may call any method of the cluster but those that wait for workers, which are `Invalid` in it. A panic in it is
    /// swallowed.
    pub fn on_event(mut self, hear: impl FnMut(&Event) + Send + 'static) -> Builder {
        self.hear = Some(Box::new(hear));
        self
    }

    /// Called with each message and request of a worker, and its channel, which a request is answered on, by a thread of the cluster, one at a time: what it does holds up
    /// what other workers say, and after some messages those workers themselves. What a worker has said is told before its
    /// [`Exited`](supervisor::Event::Exited), and nothing after that. It may call any method of the cluster but those that wait for workers, which are `Invalid` in it. A panic in it is
    /// swallowed.
    ///
    /// Without it messages wait for whoever receives on [`Cluster::channel`].
    pub fn on_message(mut self, hear: impl FnMut(WorkerId, &Channel, Incoming) + Send + 'static) -> Builder {
        self.hear_message = Some(Box::new(hear));
        self
    }

    /// Called with the channel to each worker before its [`Spawned`](supervisor::Event::Spawned) is told, for a host that receives by a loop of its own: it has it still when the worker has
    /// ended, with what that had said. Must not wait. A panic in it is swallowed.
    pub fn on_channel(mut self, take: impl FnMut(WorkerId, Channel) + Send + 'static) -> Builder {
        self.take_channel = Some(Box::new(take));
        self
    }

    /// Takes what workers print: called with each line by a thread of the cluster, in the order of its stream. A worker that prints faster than lines are taken waits in its own `write`; a host that may
    /// itself wait for its workers puts them by, bounded by a [`Backlog`]. The last lines of a worker come before its [`Exited`](supervisor::Event::Exited), unless this function holds them up for
    /// more than 100 ms; what processes that it has left behind print comes after that. Nothing is printed without [`log`](Self::log). Default: workers have this process's standard output and error
    /// output. A panic in it is swallowed.
    pub fn on_line(mut self, hear: impl FnMut(&Line<'_>) + Send + 'static) -> Builder {
        self.logs = Some(Box::new(hear));
        self
    }

    /// Where what workers print goes, as whole lines in the order of their streams; [`on_line`](Self::on_line)'s function is called before. Lines that cannot be written, to a full disk for example, are
    /// lost, and workers go on. Default: workers have this process's standard output and error output.
    pub fn log(mut self, log: Log) -> Builder {
        self.log = Some(log);
        self
    }

    /// What it is called in its [`Status`] and in metrics. Default `cluster`.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// Where a thread of this process answers HTTP requests: `/metrics` with what [`Cluster::metrics`] gives, `/status` with the JSON of [`Cluster::status`], `/` with a page that shows both as
    /// they change. Whoever can connect can read it: name a loopback address, or a unix socket. Port 0 is one that the system chooses ([`Cluster::metrics_address`]). Default: nowhere.
    pub fn metrics(mut self, address: Address) -> Builder {
        self.metrics = Some(address);
        self
    }

    /// Checks every option but those that only the system can judge.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        let workers = self.workers.unwrap_or(1);
        check_workers(workers)?;
        self.confine.check()?;
        self.log.as_ref().map_or(Ok(()), Log::check)?;
        if self.spares > 0 && self.balance == Balance::Reuseport {
            // The kernel gives connections to every socket that listens.
            let error = Error::invalid("a spare would get connections of its own").with("option", "spares").with("value", self.spares);
            return Err(error.with("balance", self.balance));
        }
        supervisor::Options { workers, spares: self.spares, once: self.one_by_one, ..self.supervision.clone() }.check()
    }

    /// Binds the sockets and starts the workers.
    ///
    /// # Errors
    /// `Invalid` for an option; `Os` with the address for a socket that cannot be bound, or when an fd or a thread cannot be made.
    pub fn build(self, command: Command) -> Result<Cluster> {
        self.check()?;
        let forks = if self.one_by_one { Some(Forks::default()) } else { None };
        let options = if forks.is_some() {
            let (boot_timeout, max_starting) = (supervisor::MAX_DURATION, Some(supervisor::MAX_WORKERS));
            supervisor::Options { workers: 0, once: true, boot_timeout, max_starting, ..self.supervision }
        } else {
            command.check()?;
            supervisor::Options { workers: self.workers.unwrap_or_else(cpu::usable_cores), spares: self.spares, ..self.supervision }
        };
        let hear: Option<logs::Hear> = match (self.log.as_ref().map(sink::open_log).transpose()?, self.logs) {
            (None, hear) => hear,
            (Some(write), None) => Some(Box::new(write)),
            (Some(mut write), Some(mut hear)) => Some(Box::new(move |line| {
                hear(line);
                write(line);
            })),
        };
        let spares = options.spares;
        let sockets = Arc::new(Sockets::new(self.balance == Balance::Reuseport));
        let mut listen = Vec::with_capacity(self.adopted.len() + self.listen.len());
        for fd in self.adopted {
            listen.push(sockets.adopt(fd)?);
        }
        for (at, address) in self.listen.iter().enumerate() {
            // Of a port of the system's choice each is another one.
            let nth = self.listen[..at].iter().filter(|other| *other == address).count();
            if nth > 0 && matches!(address, Address::Fd(_)) {
                return Err(Error::invalid("address is given twice").with("listen", address));
            }
            let socket = sockets.at(address, if address.is_any_port() { nth as u32 } else { 0 }, QUEUE)?;
            if listen.iter().any(|other| Arc::ptr_eq(other, &socket)) {
                return Err(Error::invalid("address is given twice").with("listen", address).with("same_as", &socket.bound));
            }
            listen.push(socket);
        }
        let endpoint = self.metrics.as_ref().map(Endpoint::bind).transpose()?;
        let listener = Listener(Arc::new(Mutex::new(self.hear)));
        let beat = Some(options.beat).filter(|_| !options.hang_timeout.is_zero());
        let passer = self.balance.passes().then(|| Passer::open(self.balance, beat, listener.clone())).transpose()?;
        let lossy = self.balance == Balance::Reuseport && !net::waiting_connections_move();
        let warning = lossy.then(|| {
            let text = "connections that wait with a worker that leaves are lost: net.ipv4.tcp_migrate_req is not 1";
            Event::Warning(Error::new(ErrorKind::Unsupported, text).with("balance", self.balance))
        });
        // Each has a thread by then.
        let close = |_: &Error| passer.iter().for_each(|passer| passer.close());
        let ledger = Arc::new(Ledger::default());
        let house = House { sockets: Arc::clone(&sockets), passer: passer.clone(), ledger: Arc::clone(&ledger) };
        let gates = Gates::open(house, listener.clone(), warning).inspect_err(close)?;
        let close = |e: &Error| {
            close(e);
            gates.close();
        };
        let mail = Mail::open(self.hear_message).inspect_err(close)?;
        let logs = hear.map(Logs::open).transpose().inspect_err(|_| mail.close()).inspect_err(close)?;
        let commands = Mutex::new(HashMap::from([(1, Arc::new(command.resolve(logs.is_some())))]));
        let inner = Arc::new(Inner {
            name: self.name,
            spares,
            sockets,
            ledger,
            gates,
            mail,
            logs,
            passer,
            forks,
            commands,
            seated: Seated::default(),
            confine: self.confine,
            pin_cpus: self.pin_cpus,
            register: Register::new(),
            view: OnceLock::new(),
            collector: Mutex::default(),
            endpoint,
        });
        if let Some(endpoint) = &inner.endpoint {
            endpoint.start(&inner).inspect_err(|_| inner.close())?;
        }
        let (heard, launched) = (Arc::clone(&inner), Arc::clone(&inner));
        let mut take_channel = self.take_channel;
        let supervisor = Supervisor::builder()
            .options(options)
            .on_event(move |event| heard.hear(event, &mut take_channel, &listener))
            .build(move |id| launched.launch(id, &listen));
        match supervisor {
            Ok(supervisor) => {
                let _ = inner.view.set(supervisor.view());
                Ok(Cluster { supervisor, inner })
            }
            Err(e) => {
                inner.close();
                Err(e)
            }
        }
    }
}

/// The counter of this name: that of the cluster whose worker this process is, once it has [attached](worker::attach); else one of this process alone.
///
/// # Errors
/// Those of [`Worker::counter`] or of [`Ledger::counter`].
pub fn counter(name: &str) -> Result<Counter> {
    worker::current().map_or_else(|| shared::own().counter(name), |worker| worker.counter(name))
}

/// The rate limiter of this name, as [`counter`].
///
/// # Errors
/// Those of [`Worker::limiter`] or of [`Ledger::limiter`].
pub fn limiter(name: &str, limit: Limit) -> Result<RateLimiter> {
    worker::current().map_or_else(|| shared::own().limiter(name, limit), |worker| worker.limiter(name, limit))
}

/// What a generation is started with.
fn of_generation(commands: &HashMap<u32, Arc<Resolved>>, generation: u32) -> Result<Arc<Resolved>> {
    let command = commands.get(&generation).cloned();
    command.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such generation").with("generation", generation))
}

fn check_workers(workers: usize) -> Result<()> {
    if (1..=supervisor::MAX_WORKERS).contains(&workers) {
        return Ok(());
    }
    let error = Error::invalid("option is out of range").with("option", "workers").with("value", workers);
    Err(error.with("min", 1).with("max", supervisor::MAX_WORKERS))
}

/// N copies of a server. Copies of the handle are the same cluster; when the last is dropped, its workers are killed.
#[derive(Clone)]
pub struct Cluster {
    supervisor: Supervisor,
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    spares: usize,
    sockets: Arc<Sockets>,
    ledger: Arc<Ledger>,
    gates: Arc<Gates>,
    mail: Arc<Mail>,
    logs: Option<Arc<Logs>>,
    passer: Option<Arc<Passer>>,
    /// Of one whose workers are started one by one.
    forks: Option<Forks>,
    /// By generation.
    commands: Mutex<HashMap<u32, Arc<Resolved>>>,
    confine: Confine,
    pin_cpus: bool,
    /// How often a worker became ready, or active, as all parts have heard.
    seated: Seated,
    register: Register,
    /// Of its supervisor, once that was made.
    view: OnceLock<View>,
    /// Of the workers' own pools, once somebody has asked.
    collector: Mutex<Option<Collector>>,
    endpoint: Option<Endpoint>,
}

type Seated = (Mutex<u64>, Condvar);

impl Inner {
    /// An event of the supervisor: all parts hear of it, then the host.
    fn hear(&self, event: &supervisor::Event, take_channel: &mut Option<TakeChannel>, listener: &Listener) {
        use supervisor::Event as E;
        self.register.hear(event, &self.stats());
        let mut _held_back = None;
        match event {
            E::Spawned { worker, pid } => {
                self.logs.iter().for_each(|logs| logs.spawned(*worker, *pid));
                if let (Some(take), Ok(channel)) = (take_channel, self.mail.of(*worker)) {
                    let _ = catch_unwind(AssertUnwindSafe(|| take(*worker, channel)));
                }
            }
            E::Ready { worker, .. } => {
                self.mail.stand(*worker, Standing::Ready);
                self.passer.iter().for_each(|passer| passer.ready(*worker));
                self.seat_one();
            }
            E::Spare { worker, .. } => {
                self.mail.stand(*worker, Standing::Ready);
                self.seat_one();
            }
            E::Activated { spare, worker } => {
                _held_back = self.mail.rename(*spare, *worker);
                self.gates.rename(*spare, *worker);
                self.logs.iter().for_each(|logs| logs.rename(*spare, *worker));
                self.passer.iter().for_each(|passer| passer.activate(*spare, *worker));
                if let (true, Some(pid)) = (self.pin_cpus, self.register.pid(*worker)) {
                    confine::pin(pid, worker.slot as usize);
                }
                self.seat_one();
            }
            E::Draining { worker, .. } => {
                self.collect(false);
                self.mail.stand(*worker, Standing::Draining);
                self.passer.iter().for_each(|passer| passer.drain(*worker));
            }
            E::Exited { worker, .. } | E::SpawnFailed { worker, .. } => {
                self.gates.remove(*worker);
                self.passer.iter().for_each(|passer| passer.gone(*worker));
                // What it has said comes before its end.
                self.mail.remove(*worker);
                self.logs.iter().for_each(|logs| match event {
                    E::SpawnFailed { .. } => logs.remove(*worker),
                    _ => logs.ended(*worker),
                });
            }
            // The next reload may have begun: who waits for one hears of its end before this event.
            E::Reloaded(report) => lock(&self.commands).retain(|generation, _| *generation >= report.generation),
            E::ReloadFailed { generation, .. } => drop(lock(&self.commands).remove(generation)),
            E::Stopped => self.close(),
            _ => {}
        }
        if let E::SpareRefused { worker } = event {
            let text = "no spare is started: a program that knows nothing of its cluster cannot wait";
            let error = Error::new(ErrorKind::Unsupported, text).with("spares", self.spares).with("slot", worker.slot);
            return listener.tell(&Event::Warning(error));
        }
        // A start that nobody has asked for is nobody's business.
        if self.forks.as_ref().is_none_or(|forks| forks.answer(event)) {
            listener.tell(&Event::Worker(event.clone()));
        }
        match event {
            E::Spawned { worker, .. } => self.mail.begin(*worker),
            // What it holds is dropped before anybody is told that all is over.
            E::Stopped => *lock(&listener.0) = None,
            _ => {}
        }
    }

    /// The one that passes has heard of one more.
    fn seat_one(&self) {
        *lock(&self.seated.0) += 1;
        self.seated.1.notify_all();
    }

    /// What the worker `id` is started with.
    fn launch(&self, id: WorkerId, listen: &[Arc<Socket>]) -> Result<Launch> {
        let command = match &self.forks {
            Some(forks) => Arc::new(forks.launch(id)?),
            None => of_generation(&lock(&self.commands), id.generation)?,
        };
        let mut named = vec![(CHANNEL, self.mail.add(id)?)];
        if let Some(passer) = &self.passer {
            named.push((PASS, passer.add(id)?));
        }
        // A spare has its core with its place.
        let cpu = (self.pin_cpus && !id.is_spare()).then_some(id.slot as usize);
        let confine = Confine { cpu, ..self.confine.clone() };
        let mut launch = command.launch(id, confine, listen, self.gates.add(id)?, named)?;
        if let Some(logs) = &self.logs {
            launch.fds.extend(logs.add(id)?.into_iter().map(PrivateFd::new).zip(1..));
        }
        Ok(launch)
    }

    fn stats(&self) -> Stats {
        self.view.get().map(View::stats).unwrap_or_default()
    }

    fn status(&self) -> Status {
        let loads = self.view.get().map(View::loads).unwrap_or_default();
        let stopping = self.view.get().is_some_and(View::is_stopping);
        let status = self.register.status(&self.name, stopping, self.stats(), &loads);
        Status { listen: self.sockets.addresses(), waiting: self.sockets.waiting(), ..status }
    }

    /// Looks at the pools of the workers, which keep counting when those are gone; `begin`: also if nobody has asked for them before.
    fn collect(&self, begin: bool) {
        let mut collector = lock(&self.collector);
        if begin || collector.is_some() {
            collector.get_or_insert_default().look(&self.register.pids());
        }
    }

    /// The numbers of `status`, and those of all pools.
    fn metrics_of(&self, status: &Status) -> String {
        self.collect(true);
        let pools = lock(&self.collector).as_ref().map(Collector::export).unwrap_or_default();
        status.prometheus() + &pools
    }

    /// All threads end, and nobody listens any more.
    fn close(&self) {
        self.endpoint.iter().for_each(Endpoint::close);
        self.logs.iter().for_each(|logs| logs.close());
        self.passer.iter().for_each(|passer| passer.close());
        self.gates.close();
        self.mail.close();
        self.sockets.close();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("listen", &self.inner.sockets.addresses()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Begins one with default options.
    pub fn builder() -> Builder {
        Builder {
            supervision: Builder::default_supervision(),
            workers: None,
            spares: 0,
            adopted: Vec::new(),
            listen: Vec::new(),
            balance: Balance::default(),
            hear: None,
            hear_message: None,
            take_channel: None,
            logs: None,
            log: None,
            one_by_one: false,
            confine: Confine::default(),
            pin_cpus: false,
            name: "cluster".to_owned(),
            metrics: None,
        }
    }

    /// Waits until all workers are ready: see [`Supervisor::wait_ready`].
    ///
    /// # Errors
    /// `StartFailed`, `Degraded`, `Timeout`, `Closed`, `Forked`.
    pub fn wait_ready(&self, timeout: Option<Duration>) -> Result<()> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.supervisor.wait_ready(timeout)?;
        // The supervisor shows it before its listener is told, which is next.
        let stats = self.supervisor.stats()?;
        let ready = stats.became_ready + stats.activated;
        let left = until.map_or(supervisor::MAX_DURATION, |until| until.saturating_duration_since(Instant::now()));
        let (count, changed) = &self.inner.seated;
        let waited = changed.wait_timeout_while(lock(count), left, |seated| *seated < ready);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            return Err(Error::new(ErrorKind::Timeout, "workers are not ready in time").with("ready", stats.ready));
        }
        Ok(())
    }

    /// Starts one more worker, of a cluster that was made with [`one_by_one`](Builder::one_by_one): which it is, and its process id. Returns when the process was started.
    ///
    /// # Errors
    /// `Invalid` for another cluster, for a command without a program, and in what hears of events or messages; `Full` for one worker more than [`MAX_WORKERS`](supervisor::MAX_WORKERS); what the start failed with; `Closed`, `Forked`.
    pub fn fork(&self, command: Command) -> Result<(WorkerId, i32)> {
        let forks = self.inner.forks.as_ref().ok_or_else(|| Error::invalid("cluster starts its workers itself"))?;
        command.check()?;
        supervisor::check_wait()?;
        forks.start(&self.supervisor, command.resolve(self.inner.logs.is_some()))
    }

    /// Replaces all workers by a new generation, without being fewer at any time: see [`Supervisor::reload`]. `command`: what the new ones run; the same as before.
    /// Returns the number of the generation; does not wait.
    ///
    /// # Errors
    /// `InUse` while a reload is under way, `Invalid` for a command without a program, `Closed`, `Forked`.
    pub fn reload(&self, command: Option<Command>) -> Result<u32> {
        self.begin_reload(None, command)
    }

    /// As [`reload`](Self::reload), for who has made the command of what the generation `of` runs.
    ///
    /// # Errors
    /// Those of [`reload`](Self::reload); `InUse` also where another generation runs by now.
    pub fn reload_from(&self, of: u32, command: Command) -> Result<u32> {
        self.begin_reload(Some(of), Some(command))
    }

    fn begin_reload(&self, of: Option<u32>, command: Option<Command>) -> Result<u32> {
        if let Some(command) = &command {
            command.check()?;
        }
        let command = command.map(|command| Arc::new(command.resolve(self.inner.logs.is_some())));
        // Before any lock: a forked child has none.
        self.supervisor.stats()?;
        // Held until the number is known: the launcher asks under this lock, and what runs is forgotten under it.
        let mut commands = lock(&self.inner.commands);
        let (runs, generation) = self.supervisor.reload_from(of)?;
        let command = command.map_or_else(|| of_generation(&commands, runs), Ok)?;
        commands.insert(generation, command);
        Ok(generation)
    }

    /// What its workers run: that of the last (re)load that succeeded.
    ///
    /// # Errors
    /// `Forked`.
    pub fn command(&self) -> Result<Command> {
        // Before any lock, as above; what runs by then is asked for under it.
        self.supervisor.stats()?;
        let commands = lock(&self.inner.commands);
        Ok(of_generation(&commands, self.supervisor.stats()?.generation)?.command.clone())
    }

    /// Waits until a reload is over: see [`Supervisor::wait_reload`].
    ///
    /// # Errors
    /// What made it fail, `NotFound`, `Timeout`, `Closed`, `Forked`.
    pub fn wait_reload(&self, generation: u32, timeout: Option<Duration>) -> Result<Reloaded> {
        self.supervisor.wait_reload(generation, timeout)
    }

    /// So many workers from now on, 1 to 1,024 less the spares. Spares that are ready take the new places.
    ///
    /// # Errors
    /// `Invalid`, `Closed`, `Forked`.
    pub fn scale(&self, workers: usize) -> Result<()> {
        check_workers(workers)?;
        let max = supervisor::MAX_WORKERS - self.inner.spares;
        if workers > max {
            let error = Error::invalid("option is out of range").with("option", "workers").with("value", workers);
            return Err(error.with("min", 1).with("max", max).with("spares", self.inner.spares));
        }
        self.supervisor.scale(workers)
    }

    /// Sends a value, whose buffers move, and fds, which are duplicated, to the worker of `slot`: the ready one that was started last, else one that starts, else one that drains.
    /// Waits for room at most `timeout` (`None`: without end; zero: not at all).
    ///
    /// # Errors
    /// `NotFound` for a slot without a worker; `Full` with a timeout of zero, `Timeout` with another, when the worker has not received the [`RING`] of bytes that was sent before;
    /// those of [`Channel::send`]. Each names the slot.
    pub fn send(&self, slot: u32, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<()> {
        self.inner.mail.send(slot, value, fds, timeout)
    }

    /// As [`send`](Self::send), and waits for the reply, at most `timeout` in all.
    ///
    /// # Errors
    /// Those of [`send`](Self::send) and [`Channel::request`].
    pub fn request(&self, slot: u32, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Reply> {
        self.inner.mail.request(slot, value, fds, timeout)
    }

    /// Sends a copy of a value, and fds, to every worker that lives, those that start or drain and spares included. Does not wait: returns who did not get it, and why (`Full`, or what its channel
    /// ended with). The others did.
    ///
    /// # Errors
    /// `Invalid` for a value with a buffer that would move; `Forked`.
    pub fn broadcast(&self, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<Vec<(WorkerId, Error)>> {
        self.inner.mail.broadcast(value, fds)
    }

    /// The channel to a worker, for who receives by a loop of its own, and for what else a channel can do. It ends with that process, after the last message that it has sent.
    ///
    /// # Errors
    /// `NotFound` once the worker has ended; `Forked`.
    pub fn channel(&self, worker: WorkerId) -> Result<Channel> {
        self.inner.mail.of(worker)
    }

    /// Whom [`send`](Self::send) means by a slot.
    ///
    /// # Errors
    /// `NotFound` for a slot without a worker; `Forked`.
    pub fn worker_at(&self, slot: u32) -> Result<WorkerId> {
        self.inner.mail.at(slot).map(|(id, _)| id)
    }

    /// Ends this worker with `SIGKILL`; another takes its place.
    ///
    /// # Errors
    /// `Closed`, `Forked`.
    pub fn kill(&self, worker: WorkerId) -> Result<()> {
        self.supervisor.kill(worker)
    }

    /// Sends a signal to this worker's process: see [`Supervisor::signal`].
    ///
    /// # Errors
    /// `Os`, `Forked`.
    pub fn signal(&self, worker: WorkerId, signal: i32) -> Result<bool> {
        self.supervisor.signal(worker, signal)
    }

    /// Ends all workers, which have `grace` to finish: see [`Supervisor::stop`]. Does not wait.
    ///
    /// # Errors
    /// `Invalid`, `Forked`.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.supervisor.stop(grace)
    }

    /// Ends all workers with `SIGKILL`. Does not wait.
    ///
    /// # Errors
    /// `Forked`.
    pub fn stop_now(&self) -> Result<()> {
        self.supervisor.stop_now()
    }

    /// Waits until no process is left after `stop`.
    ///
    /// # Errors
    /// `Timeout`, `Forked`.
    pub fn wait_stopped(&self, timeout: Option<Duration>) -> Result<()> {
        self.supervisor.wait_stopped(timeout)
    }

    /// Waits until [`on_line`](Builder::on_line)'s function has been called with all that those workers have printed which have ended, at most `timeout`; once the cluster has stopped: with all.
    pub fn wait_lines(&self, of: impl Fn(WorkerId) -> bool, timeout: Duration) {
        if let Some(logs) = &self.inner.logs {
            logs.wait(of, timeout);
        }
    }

    /// Counters and rate limiters that its workers share, by name; they last as long as the cluster.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    /// Where it listens: the sockets of the option first, then those that workers have asked for.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        self.inner.sockets.addresses()
    }

    /// Counts.
    ///
    /// # Errors
    /// `Forked`.
    pub fn stats(&self) -> Result<Stats> {
        self.supervisor.stats()
    }

    /// Each slot with its last process and where it stands.
    ///
    /// # Errors
    /// `Forked`.
    pub fn slots(&self) -> Result<Vec<(WorkerId, State)>> {
        self.supervisor.slots()
    }

    /// What each worker does that has not ended, requests served and delay of its loop: see [`Supervisor::loads`].
    ///
    /// # Errors
    /// `Forked`.
    pub fn loads(&self) -> Result<Vec<(WorkerId, Load)>> {
        self.supervisor.loads()
    }

    /// Everything that it shows of itself and its workers. Looks at each worker's memory and processor time, which takes some milliseconds.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// The numbers of [`status`](Self::status) and those of all pools of the workers and of this process, summed by kind and name, as Prometheus reads them (text format 0.0.4).
    #[must_use]
    pub fn metrics(&self) -> String {
        self.inner.metrics_of(&self.status())
    }

    /// Where [`metrics`](Builder::metrics) are to be had; `None` without that option.
    #[must_use]
    pub fn metrics_address(&self) -> Option<Address> {
        self.inner.endpoint.as_ref().map(|endpoint| endpoint.address().clone())
    }
}
