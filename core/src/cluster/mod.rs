//! N copies of a server on the same sockets: kept alive, scaled, and reloaded without losing a request.
//!
//! ```text
//!  host ── start, reload, scale, stop ──► Cluster ──► Supervisor ──► workers: page, lifeline, pidfd
//!   ▲                                       │                          │  sockets from fd 3 on (LISTEN_FDS)
//!   └── events ◄── listener ◄───────────────┤                          │
//!                                         Gates ◄── "listen at …" ─────┘  one socket pair each, answered by a thread of its own
//!                                           │
//!                                        Sockets: bound once, by this process, and open until the cluster ends
//! ```
//!
//! * Workers accept from one shared socket per address, so connections that wait belong to nobody who may die: a worker that drains stops to
//!   accept, and the others go on. This is what makes a reload lose nothing.
//! * [`worker`]: the worker's side, which any program may use; a program that follows `LISTEN_FDS`, or takes the number of an fd, needs none of it to get its sockets.
//! * `listen`: addresses and sockets; `launch`: a worker's command line and environment; `gate`: what workers ask for.
//!
//! User documentation with the table of options: `docs/cluster.md`.

mod gate;
mod launch;
mod listen;
pub mod worker;

pub use launch::Command;
pub use listen::{Address, MAX_SOCKETS, QUEUE};
pub use worker::Worker;

use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::{self, Reloaded, State, Stats, Supervisor, WorkerId};
use crate::sync::lock;
use crate::sys::cpu;
use gate::Gates;
use listen::Sockets;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
}

type Hear = Box<dyn FnMut(&Event) + Send>;

/// The host's function, which is called by two threads, one at a time.
#[derive(Clone)]
struct Listener(Arc<Mutex<Option<Hear>>>);

impl Listener {
    fn tell(&self, event: &Event) {
        if let Some(hear) = &mut *lock(&self.0) {
            let _ = catch_unwind(AssertUnwindSafe(|| hear(event)));
        }
    }
}

/// Makes a [`Cluster`].
#[must_use]
pub struct Builder {
    supervision: supervisor::Options,
    workers: Option<usize>,
    listen: Vec<Address>,
    hear: Option<Hear>,
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

    /// One more socket, which is bound before the first worker starts, and which each worker inherits.
    pub fn listen(mut self, address: Address) -> Builder {
        self.listen.push(address);
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

    /// Called with each event by threads of the cluster, one at a time. It may call any method of the cluster but those that wait. A panic in it is swallowed.
    pub fn on_event(mut self, hear: impl FnMut(&Event) + Send + 'static) -> Builder {
        self.hear = Some(Box::new(hear));
        self
    }

    /// Checks every option but those that only the system can judge.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        check_workers(self.workers.unwrap_or(1))?;
        supervisor::Options { workers: 1, ..self.supervision.clone() }.check()
    }

    /// Binds the sockets and starts the workers.
    ///
    /// # Errors
    /// `Invalid` for an option; `Os` with the address for a socket that cannot be bound, or when an fd or a thread cannot be made.
    pub fn build(self, command: Command) -> Result<Cluster> {
        command.check()?;
        self.check()?;
        let options = supervisor::Options { workers: self.workers.unwrap_or_else(cpu::usable_cores), ..self.supervision };
        let sockets = Arc::new(Sockets::default());
        let mut listen = Vec::with_capacity(self.listen.len());
        for address in &self.listen {
            listen.push(sockets.at(address, 0, QUEUE)?);
        }
        let listener = Listener(Arc::new(Mutex::new(self.hear)));
        let gates = Gates::open(Arc::clone(&sockets), listener.clone())?;
        let commands = Arc::new(Mutex::new(HashMap::from([(1, Arc::new(command))])));
        let inner = Arc::new(Inner { sockets: Arc::clone(&sockets), commands: Arc::clone(&commands), gates: Arc::clone(&gates) });
        let opened = Arc::clone(&gates);
        let past = Arc::clone(&commands);
        let made = Supervisor::builder()
            .options(options)
            .on_event(move |event| {
                if let supervisor::Event::Exited { worker, .. } | supervisor::Event::SpawnFailed { worker, .. } = event {
                    gates.remove(*worker);
                }
                match event {
                    // The next reload may have begun: who waits for one hears of its end before this event.
                    supervisor::Event::Reloaded(report) => lock(&past).retain(|generation, _| *generation >= report.generation),
                    supervisor::Event::ReloadFailed { generation, .. } => drop(lock(&past).remove(generation)),
                    _ => {}
                }
                if *event == supervisor::Event::Stopped {
                    gates.close();
                    sockets.close();
                }
                listener.tell(&Event::Worker(event.clone()));
                if *event == supervisor::Event::Stopped {
                    // What it holds is dropped before anybody is told that all is over.
                    *lock(&listener.0) = None;
                }
            })
            .build(move |id| {
                let command = lock(&commands).get(&id.generation).cloned();
                let command =
                    command.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such generation").with("generation", id.generation))?;
                command.launch(id, &listen, opened.add(id)?)
            });
        match made {
            Ok(supervisor) => Ok(Cluster { supervisor, inner }),
            Err(e) => {
                inner.gates.close();
                Err(e)
            }
        }
    }
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
    sockets: Arc<Sockets>,
    /// By generation.
    commands: Arc<Mutex<HashMap<u32, Arc<Command>>>>,
    gates: Arc<Gates>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("listen", &self.inner.sockets.addresses()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Begins one with default options.
    pub fn builder() -> Builder {
        Builder { supervision: Builder::default_supervision(), workers: None, listen: Vec::new(), hear: None }
    }

    /// Waits until all workers are ready: see [`Supervisor::wait_ready`].
    ///
    /// # Errors
    /// `StartFailed`, `Degraded`, `Timeout`, `Closed`, `Forked`.
    pub fn wait_ready(&self, timeout: Option<Duration>) -> Result<()> {
        self.supervisor.wait_ready(timeout)
    }

    /// Replaces all workers by a new generation, without being fewer at any time: see [`Supervisor::reload`]. `command`: what the new ones run; the same as before.
    /// Returns the number of the generation; does not wait.
    ///
    /// # Errors
    /// `InUse` while a reload is under way, `Invalid` for a command without a program, `Closed`, `Forked`.
    pub fn reload(&self, command: Option<Command>) -> Result<u32> {
        if let Some(command) = &command {
            command.check()?;
        }
        // Held until the number is known: the launcher asks under this lock.
        let mut commands = lock(&self.inner.commands);
        let generation = self.supervisor.reload()?;
        let command = command.map_or_else(|| self.current(&commands), Arc::new);
        commands.insert(generation, command);
        Ok(generation)
    }

    /// What its workers run: that of the last (re)load that succeeded.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::clone(&self.current(&lock(&self.inner.commands)))
    }

    fn current(&self, commands: &HashMap<u32, Arc<Command>>) -> Arc<Command> {
        let generation = self.supervisor.stats().map_or(1, |stats| stats.generation).max(1);
        Arc::clone(commands.get(&generation).expect("the generation that runs has a command"))
    }

    /// Waits until a reload is over: see [`Supervisor::wait_reload`].
    ///
    /// # Errors
    /// What made it fail, `NotFound`, `Timeout`, `Closed`, `Forked`.
    pub fn wait_reload(&self, generation: u32, timeout: Option<Duration>) -> Result<Reloaded> {
        self.supervisor.wait_reload(generation, timeout)
    }

    /// So many workers from now on, 1 to 1,024.
    ///
    /// # Errors
    /// `Invalid`, `Closed`, `Forked`.
    pub fn scale(&self, workers: usize) -> Result<()> {
        check_workers(workers)?;
        self.supervisor.scale(workers)
    }

    /// Ends this worker with `SIGKILL`; another takes its place.
    ///
    /// # Errors
    /// `Closed`, `Forked`.
    pub fn kill(&self, worker: WorkerId) -> Result<()> {
        self.supervisor.kill(worker)
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
}
