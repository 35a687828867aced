//! The thread that carries out what the plans of this process's supervisors want, and tells them what happens.
//!
//! One thread per process, started with the first supervisor and ended with the last, so that a worker's death signal, which the kernel
//! ties to the thread that started it, comes with the process's end only. It waits in one epoll for pidfds, lifelines, and a bell for
//! orders, and looks at workers' memory where that is limited. It reads a worker's page when the lifeline rings, when the worker has ended, and before any time-out is judged.

use super::event::{Cause, Ended, Event, Reloaded, State, Stats, WorkerId};
use super::forks::{Forks, Kit, News};
use super::options::Options;
use super::page::Page;
use super::plan::{Action, Input, Plan, nanos};
use super::stall::PATIENCE;
use super::{Condvar, Launch, Launcher, Listener, ZygoteLauncher};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock;
use crate::sys::cgroup::Cgroup;
use crate::sys::eventfd::EventFd;
use crate::sys::fork::{ForkCell, PrivateFd};
use crate::sys::poll::Epoll;
use crate::sys::process::{Child, Exit, memory_above};
use crate::sys::{clock, cpu, socket, thread};
use crate::wire::supervisor::{ENV, Header, MINOR, state};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the owner of a supervisor wants.
pub(super) enum Order {
    Scale(usize),
    Release(WorkerId),
    Retire(u32),
    Reload(u32),
    Charged(WorkerId),
    Kill(WorkerId),
    Stop(u64),
    StopNow,
}

impl From<Order> for Input {
    fn from(order: Order) -> Input {
        match order {
            Order::Scale(n) => Input::Scale(n),
            Order::Release(id) => Input::Release(id),
            Order::Retire(slot) => Input::Retire(slot),
            Order::Reload(generation) => Input::Reload(generation),
            Order::Charged(id) => Input::Charged(id),
            Order::Kill(id) => Input::Kill(id),
            Order::Stop(grace) => Input::Stop(grace),
            Order::StopNow => Input::StopNow,
        }
    }
}

/// What a supervisor shows to whoever waits or asks.
#[derive(Default)]
pub(super) struct Board {
    pub(super) stats: Stats,
    pub(super) slots: Vec<(WorkerId, State)>,
    /// Of each process that has not ended.
    pub(super) pages: BTreeMap<WorkerId, Arc<Page>>,
    /// So many of those as were started.
    pub(super) children: BTreeMap<WorkerId, Arc<Child>>,
    /// What those have served that have.
    pub(super) served: u64,
    /// Calls of `scale` that the plan has not heard of.
    pub(super) scaling: usize,
    pub(super) start_error: Option<Error>,
    /// The last generation that was asked for.
    pub(super) generation: u32,
    pub(super) reloading: bool,
    /// What became of the last reload that is over.
    pub(super) reloaded: Option<(u32, Result<Reloaded>)>,
    /// `stop` was called.
    pub(super) closing: bool,
    pub(super) stopped: bool,
}

impl Board {
    /// Counts, with what the pages say at this moment.
    pub(super) fn stats(&self) -> Stats {
        let served = self.pages.values().fold(self.served, |sum, page| sum.saturating_add(page.served()));
        Stats { served, ..self.stats }
    }

    fn rename(&mut self, spare: WorkerId, worker: WorkerId) {
        let page = self.pages.remove(&spare);
        self.pages.extend(page.map(|page| (worker, page)));
        let child = self.children.remove(&spare);
        self.children.extend(child.map(|child| (worker, child)));
    }

    fn forget(&mut self, id: WorkerId) {
        self.children.remove(&id);
        if let Some(page) = self.pages.remove(&id) {
            self.served = self.served.saturating_add(page.served());
        }
    }

    fn end_reload(&mut self, generation: u32, outcome: Result<Reloaded>) {
        self.reloading = false;
        if outcome.is_ok() {
            self.stats.generation = generation;
        }
        self.reloaded = Some((generation, outcome));
    }
}

/// What a handle and the thread share.
pub(super) struct Shared {
    orders: Mutex<Vec<Order>>,
    pub(super) board: Mutex<Board>,
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            orders: Mutex::default(),
            board: Mutex::new(Board { scaling: 1, generation: 1, stats: Stats { generation: 1, ..Stats::default() }, ..Board::default() }),
            changed: Condvar::new(),
        }
    }
}

/// The thread's doorway.
pub(super) struct Hub {
    epoll: Epoll,
    bell: EventFd,
    new: Mutex<Vec<Machine>>,
}

const BELL: u64 = 0;

/// The thread of this process, if it has one.
static HUB: ForkCell<Mutex<Option<Arc<Hub>>>> = ForkCell::new();

impl Hub {
    pub(super) fn order(&self, shared: &Shared, order: Order) {
        lock(&shared.orders).push(order);
        self.bell.signal();
    }
}

/// Gives the thread one more supervisor; starts it if there is none.
pub(super) fn add(
    options: &Options,
    launch: Launcher,
    zygote: Option<ZygoteLauncher>,
    listener: Option<Listener>,
    shared: &Arc<Shared>,
) -> Result<Arc<Hub>> {
    let machine = Machine::new(options, launch, zygote, listener, shared);
    // Held until the machine is handed over: the thread ends under this lock only, and only without one.
    let mut current = lock(HUB.get(|| Mutex::new(None)));
    let hub = match &*current {
        Some(hub) => Arc::clone(hub),
        None => {
            let fresh = Hub { epoll: Epoll::new()?, bell: EventFd::new()?, new: Mutex::default() };
            fresh.epoll.add_tagged(fresh.bell.fd(), BELL)?;
            let hub = Arc::new(fresh);
            let own = Arc::clone(&hub);
            let options = thread::Options { name: "offloop-super".to_owned(), ..thread::Options::default() };
            let thread = move || {
                super::call_host(|| run(&own));
                // Its machines are gone, and with them whoever waited for them; the next supervisor gets another thread.
                let mut current = lock(HUB.get(|| Mutex::new(None)));
                current.take_if(|hub| Arc::ptr_eq(hub, &own));
            };
            drop(thread::spawn(&options, thread)?);
            *current = Some(Arc::clone(&hub));
            hub
        }
    };
    lock(&hub.new).push(machine);
    hub.bell.signal();
    Ok(hub)
}

/// What an fd of the epoll belongs to.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Exit(u64, WorkerId),
    Lifeline(u64, WorkerId),
    ZygoteExit(u64, u64),
    ZygoteSocket(u64, u64),
}

/// Tokens are never used again, so that an event of this round cannot reach a worker that was started in it.
#[derive(Default)]
pub(super) struct Tokens {
    last: u64,
    sources: HashMap<u64, Source>,
}

impl Tokens {
    pub(super) fn add(&mut self, source: Source) -> u64 {
        self.last += 1;
        self.sources.insert(self.last, source);
        self.last
    }

    pub(super) fn remove(&mut self, token: u64) {
        self.sources.remove(&token);
    }
}

fn run(hub: &Arc<Hub>) {
    let mut machines: HashMap<u64, Machine> = HashMap::new();
    let mut tokens = Tokens::default();
    let mut ready = Vec::with_capacity(64);
    let mut last = 0;
    loop {
        let now = clock::monotonic_ns();
        let deadline = machines.values().filter_map(Machine::next_deadline).min();
        hub.epoll.wait_for(&mut ready, deadline.map(|at| Duration::from_nanos(at.saturating_sub(now))));
        for token in ready.drain(..) {
            if token == BELL {
                hub.bell.clear();
                continue;
            }
            // Gone in this very round, if it is not found.
            match tokens.sources.get(&token).copied() {
                Some(Source::Lifeline(machine, id)) => {
                    machines.get_mut(&machine).into_iter().for_each(|m| m.rung(id, &hub.epoll, &mut tokens));
                }
                Some(Source::Exit(machine, id)) => {
                    machines.get_mut(&machine).into_iter().for_each(|m| m.ended(id, &hub.epoll, &mut tokens));
                }
                Some(Source::ZygoteExit(machine, serial)) => {
                    let each = |m: &mut Machine| m.with_forks(&hub.epoll, &mut tokens, |f, e, t| f.ended(serial, e, t));
                    machines.get_mut(&machine).into_iter().for_each(each);
                }
                Some(Source::ZygoteSocket(machine, serial)) => {
                    let each = |m: &mut Machine| m.with_forks(&hub.epoll, &mut tokens, |f, e, t| f.said(serial, e, t));
                    machines.get_mut(&machine).into_iter().for_each(each);
                }
                None => {}
            }
        }
        for mut machine in lock(&hub.new).drain(..) {
            last += 1;
            machine.id = last;
            machine.with_forks(&hub.epoll, &mut tokens, |f, e, t| f.begin(last, e, t));
            machines.insert(last, machine);
        }
        machines.retain(|_, machine| !machine.round(&hub.epoll, &mut tokens));
        if machines.is_empty() {
            let mut current = lock(HUB.get(|| Mutex::new(None)));
            if lock(&hub.new).is_empty() {
                *current = None;
                return;
            }
        }
    }
}

/// How long the zygote has to say how a worker of its ended.
const STATUS_WAIT: u64 = 1_000_000_000;

/// How long a suspicion is held back for the worker's word on where its loop stands: what its hook has, and the way.
const STACK_WAIT: u64 = PATIENCE.as_nanos() as u64 + 250_000_000;

/// One process of ours.
struct Live {
    /// What it is called: the name that it has here too, until it takes a place as a spare.
    name: WorkerId,
    /// `None`: the zygote was asked for it.
    child: Option<Arc<Child>>,
    lifeline: PrivateFd,
    page: Arc<Page>,
    /// What it showed last.
    seen: u32,
    /// How often it was asked where its loop stands.
    asked: u32,
    /// A suspicion that nobody has heard of is held back until then.
    untold: Option<u64>,
    tokens: Vec<u64>,
    /// The zygote that has forked it, and will say how it ended.
    zygote: Option<u64>,
    /// What that one has said.
    told: Option<Exit>,
    /// It has ended, and how is waited for until then.
    until: Option<u64>,
}

/// One supervisor.
struct Machine {
    id: u64,
    plan: Plan,
    launch: Launcher,
    forks: Option<Forks>,
    listener: Option<Listener>,
    shared: Arc<Shared>,
    /// `boot_timeout`
    boot: Duration,
    live: HashMap<WorkerId, Live>,
    header: Header,
    inputs: VecDeque<Input>,
    actions: Vec<Action>,
    /// `Stopped`, when no zygote is left either.
    last_event: Option<Event>,
    /// Orders to scale that were heard since the board was written.
    scaled: usize,
    groups: Cgroup,
    /// Kills for want of memory that were seen.
    oom_kills: Option<u64>,
}

impl Machine {
    fn new(
        options: &Options,
        launch: Launcher,
        zygote: Option<ZygoteLauncher>,
        listener: Option<Listener>,
        shared: &Arc<Shared>,
    ) -> Machine {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let seed = RandomState::new().hash_one(MADE.fetch_add(1, Ordering::Relaxed));
        lock(&shared.orders).push(Order::Scale(options.workers));
        let groups = Cgroup::current();
        Machine {
            id: 0,
            plan: Plan::new(options, cpu::usable_cores(), seed),
            launch,
            forks: zygote.map(Forks::new),
            listener,
            shared: Arc::clone(shared),
            boot: options.boot_timeout,
            live: HashMap::new(),
            header: Header {
                minor: MINOR,
                slot: 0,
                generation: 0,
                incarnation: 0,
                beat_ns: nanos(options.beat),
                hang_ns: nanos(options.hang_timeout),
                orphan_ns: nanos(options.orphan_grace),
            },
            inputs: VecDeque::new(),
            actions: Vec::new(),
            last_event: None,
            scaled: 0,
            oom_kills: groups.oom_kills(),
            groups,
        }
    }

    /// For the next round.
    fn tell(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    fn handle(&mut self, input: Input) {
        self.scaled += usize::from(matches!(input, Input::Scale(_)));
        self.plan.handle(input, clock::monotonic_ns(), &mut self.actions);
    }

    fn next_deadline(&self) -> Option<u64> {
        let waits = self.live.values().flat_map(|live| [live.until, live.untold]);
        self.plan.next_deadline().into_iter().chain(waits.flatten()).min()
    }

    /// Does something with the zygotes, and hears what comes of it.
    fn with_forks(&mut self, epoll: &Epoll, tokens: &mut Tokens, act: impl FnOnce(&mut Forks, &Epoll, &mut Tokens)) {
        if let Some(forks) = &mut self.forks {
            act(forks, epoll, tokens);
            self.hear(epoll, tokens);
        }
    }

    fn hear(&mut self, epoll: &Epoll, tokens: &mut Tokens) {
        while let Some(news) = self.forks.as_mut().and_then(|forks| forks.news.pop_front()) {
            match news {
                News::Started(id, child, zygote) => self.started(id, Ok(child), Some(zygote), epoll, tokens),
                News::Exec(id, kit) => self.started(id, kit.exec(), None, epoll, tokens),
                News::Failed(id, error) => self.started(id, Err(error), None, epoll, tokens),
                News::Exited(id, exit) => {
                    let Some(live) = self.live.get_mut(&id) else { continue };
                    live.told = Some(exit);
                    if live.until.is_some() {
                        self.conclude(id, exit, epoll, tokens);
                    }
                }
                News::Gone(zygote) => {
                    let its = |live: &&mut Live| live.zygote == Some(zygote);
                    self.live.values_mut().filter(its).for_each(|live| live.zygote = None);
                    self.conclude_all(|live| live.until.is_some() && live.zygote.is_none(), epoll, tokens);
                }
                News::Event(event) => self.report(&event),
            }
        }
    }

    /// What became of a worker that the zygote was asked for.
    fn started(&mut self, id: WorkerId, child: Result<Child>, zygote: Option<u64>, epoll: &Epoll, tokens: &mut Tokens) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let watched = child.and_then(|child| {
            let token = tokens.add(Source::Exit(self.id, id));
            live.tokens.push(token);
            let added = epoll.add_tagged(child.exit_fd(), token);
            if added.is_err() {
                // Nobody would see its end.
                let _ = child.kill(libc::SIGKILL);
            }
            added.map(|()| child)
        });
        match watched {
            Ok(child) => {
                let (pid, child) = (child.pid(), Arc::new(child));
                lock(&self.shared.board).children.insert(id, Arc::clone(&child));
                (live.child, live.zygote) = (Some(child), zygote);
                self.tell(Input::Spawned(id, pid));
            }
            Err(error) => {
                self.remove(id, epoll, tokens);
                self.tell(Input::SpawnFailed(id, error));
            }
        }
    }

    fn remove(&mut self, id: WorkerId, epoll: &Epoll, tokens: &mut Tokens) -> Option<Live> {
        let live = self.live.remove(&id)?;
        lock(&self.shared.board).forget(live.name);
        forget(&live, epoll, tokens);
        if let Some(forks) = &mut self.forks {
            forks.forget(id);
        }
        Some(live)
    }

    /// A lifeline has something to read.
    fn rung(&mut self, id: WorkerId, epoll: &Epoll, tokens: &mut Tokens) {
        if self.live.get(&id).is_some_and(|live| live.child.is_none()) {
            // It has said that it is there before it rang.
            self.with_forks(epoll, tokens, Forks::listen);
        }
        let Some(live) = self.live.get(&id) else { return };
        // One per call: a worker that floods its lifeline takes turns with the others.
        socket::skip(live.lifeline.as_fd());
        if socket::is_hung_up(live.lifeline.as_fd()) {
            // It ends, or closed what it does not know: it would be readable for good.
            epoll.remove(live.lifeline.as_fd());
        }
        if live.untold.is_some() && live.page.is_told(live.asked) {
            self.tell_suspicion(id);
        }
        self.look(id);
    }

    /// Tells the plan what the worker's page shows.
    fn look(&mut self, id: WorkerId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Some(look) = live.page.look(live.seen, id) else {
            self.tell(Input::Corrupt(id));
            return;
        };
        let before = live.seen;
        // Ready is believed with a first beat.
        let shown = if look.state == state::READY && look.loop_beat == 0 { state::HELLO } else { look.state };
        live.seen = shown;
        if before < state::HELLO && shown >= state::HELLO {
            self.tell(Input::Hello(id));
        }
        if before < state::READY && shown >= state::READY {
            self.tell(Input::Ready(id));
        }
        if before < state::DRAINED && shown >= state::DRAINED {
            self.tell(Input::Drained(id));
        }
        self.tell(Input::Beats(id, look.loop_beat, look.native_beat));
        if look.served > 0 {
            self.tell(Input::Served(id, look.served));
        }
    }

    /// An exit fd is readable.
    fn ended(&mut self, id: WorkerId, epoll: &Epoll, tokens: &mut Tokens) {
        if self.live.get(&id).is_some_and(|live| live.zygote.is_some()) {
            self.with_forks(epoll, tokens, Forks::listen);
        }
        let Some(live) = self.live.get_mut(&id) else { return };
        let Some(child) = &live.child else { return };
        let waits = live.zygote.is_some_and(|zygote| self.forks.as_ref().is_some_and(|forks| forks.is_alive(zygote)));
        if waits && live.told.is_none() {
            // Its parent is about to say how.
            epoll.remove(child.exit_fd());
            live.until = Some(clock::monotonic_ns() + STATUS_WAIT);
            return;
        }
        let exit = match live.told.map_or_else(|| child.try_wait(), |told| Ok(Some(told))) {
            Ok(None) => return,
            Ok(Some(exit)) => exit,
            // It has ended, and nobody says how.
            Err(_) => Exit { code: None, signal: None, core_dumped: false },
        };
        self.conclude(id, exit, epoll, tokens);
    }

    /// Those that have ended, and of which nobody has said how.
    fn conclude_all(&mut self, which: impl Fn(&Live) -> bool, epoll: &Epoll, tokens: &mut Tokens) {
        let ids: Vec<WorkerId> = self.live.iter().filter(|(_, live)| which(live)).map(|(id, _)| *id).collect();
        for id in ids {
            let child = self.live.get(&id).and_then(|live| live.child.as_ref());
            let exit = child.and_then(|child| child.try_wait().ok().flatten());
            self.conclude(id, exit.unwrap_or(Exit { code: None, signal: None, core_dumped: false }), epoll, tokens);
        }
    }

    /// A worker has ended.
    fn conclude(&mut self, id: WorkerId, exit: Exit, epoll: &Epoll, tokens: &mut Tokens) {
        // Who was ready and died before this was seen has been ready.
        self.look(id);
        self.tell_suspicion(id);
        let Some(live) = self.remove(id, epoll, tokens) else { return };
        let oom = exit.signal == Some(libc::SIGKILL) && self.was_oom();
        let text = live.page.text();
        self.tell(Input::Exited(id, Ended { exit, oom }, text));
    }

    /// One of the kills that the group has counted is this one.
    fn was_oom(&mut self) -> bool {
        let (Some(seen), Some(now)) = (self.oom_kills, self.groups.oom_kills()) else { return false };
        self.oom_kills = Some(now.min(seen + 1));
        now > seen
    }

    /// Everything that is due; true when the supervisor is at its end.
    fn round(&mut self, epoll: &Epoll, tokens: &mut Tokens) -> bool {
        let now = clock::monotonic_ns();
        self.conclude_all(|live| live.until.is_some_and(|at| at <= now), epoll, tokens);
        let late = |live: &Live| live.untold.is_some_and(|at| at <= now);
        let ids: Vec<WorkerId> = self.live.iter().filter(|(_, live)| late(live)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.tell_suspicion(id));
        if self.plan.next_deadline().is_some_and(|at| at <= clock::monotonic_ns()) {
            let ids: Vec<WorkerId> = self.live.keys().copied().collect();
            ids.into_iter().for_each(|id| self.look(id));
        }
        loop {
            let orders = std::mem::take(&mut *lock(&self.shared.orders));
            self.inputs.extend(orders.into_iter().map(Input::from));
            // An exit is settled by a tick, when the owner has been heard.
            let due = self.plan.next_deadline().is_some_and(|at| at <= clock::monotonic_ns());
            match self.inputs.pop_front() {
                Some(input) => self.handle(input),
                None if due => self.handle(Input::Tick),
                None => break,
            }
            self.perform(epoll, tokens);
        }
        self.publish();
        let stopped = self.plan.is_stopped() && self.forks.as_mut().is_none_or(Forks::end);
        if stopped {
            if let Some(event) = self.last_event.take() {
                self.report(&event);
            }
            // What a listener or a launcher holds is dropped before anybody is told that all is over.
            self.listener = None;
            self.launch = Box::new(|_| Err(Error::new(ErrorKind::Closed, "supervisor was stopped")));
            self.forks = None;
            lock(&self.shared.board).stopped = true;
            self.shared.changed.notify_all();
        }
        stopped
    }

    fn publish(&mut self) {
        let mut board = lock(&self.shared.board);
        let (forked, zygotes) = self.forks.as_ref().map_or((0, 0), |forks| (forks.forked, forks.started));
        let stats = self.plan.stats();
        // That a reload has succeeded is seen when the next one may begin: its event is still to be told.
        let generation = if board.reloading { board.stats.generation } else { stats.generation };
        board.stats = Stats { forked, zygotes, generation, ..stats };
        board.slots.clear();
        board.slots.extend(self.plan.states());
        board.scaling -= std::mem::take(&mut self.scaled);
        drop(board);
        self.shared.changed.notify_all();
    }

    fn perform(&mut self, epoll: &Epoll, tokens: &mut Tokens) {
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            // Work waits for a spare; who hears of an end does not.
            actions.sort_by_key(|action| !matches!(action, Action::Activate(..)));
            for action in actions {
                match action {
                    Action::Spawn(id) => match self.spawn(id, epoll, tokens) {
                        Ok(Some(pid)) => self.handle(Input::Spawned(id, pid)),
                        // The zygote answers later.
                        Ok(None) => {}
                        Err(error) => self.handle(Input::SpawnFailed(id, error)),
                    },
                    Action::Signal(id, signal) | Action::Dump(id, signal) => self.signal(id, signal, epoll, tokens),
                    Action::Weigh(id, limit) => {
                        let pid = self.live.get(&id).and_then(|live| live.child.as_ref()).map(|child| child.pid());
                        self.handle(Input::Weighed(id, pid.is_some_and(|pid| memory_above(pid, limit))));
                    }
                    Action::Drain(id) => {
                        if let Some(live) = self.live.get(&id) {
                            live.page.ask_to_drain();
                            let _ = socket::send(live.lifeline.as_fd(), &[1], &[]);
                        }
                    }
                    Action::Activate(id, worker) => {
                        if let Some(live) = self.live.get_mut(&id) {
                            live.name = worker;
                            lock(&self.shared.board).rename(id, worker);
                            live.page.activate(worker);
                            let _ = socket::send(live.lifeline.as_fd(), &[1], &[]);
                        }
                    }
                    Action::Report(Event::Stopped) => self.last_event = Some(Event::Stopped),
                    Action::Report(Event::Suspect { worker, cause: Cause::Blocked, .. }) if self.ask_stack(worker) => {}
                    Action::Report(event) => self.report(&event),
                }
            }
        }
    }

    fn signal(&mut self, id: WorkerId, signal: i32, epoll: &Epoll, tokens: &mut Tokens) {
        let Some(live) = self.live.get(&id) else { return };
        if let Some(child) = &live.child {
            // What has ended meanwhile needs no signal; a refusal (EPERM) leaves the worker where it is.
            let _ = child.kill(signal);
            return;
        }
        let Some(forks) = &mut self.forks else { return };
        let late = self.plan.cause(id) == Some(Cause::BootTimeout);
        let error = forks.cancel(id, late, self.boot);
        self.remove(id, epoll, tokens);
        self.tell(Input::SpawnFailed(id, error));
    }

    /// The name that this worker has here.
    fn key_of(&self, worker: WorkerId) -> Option<WorkerId> {
        let found = self.live.get_key_value(&worker).filter(|(_, live)| live.name == worker);
        found.or_else(|| self.live.iter().find(|(_, live)| live.name == worker)).map(|(id, _)| *id)
    }

    /// Asks a worker whose native thread lives where its loop stands; false when it cannot say. Until it has, its suspicion is told to nobody.
    fn ask_stack(&mut self, worker: WorkerId) -> bool {
        let Some(live) = self.key_of(worker).and_then(|id| self.live.get_mut(&id)) else { return false };
        live.asked = live.asked.wrapping_add(1);
        let asked = live.page.ask_stack(live.asked);
        if asked {
            let _ = socket::send(live.lifeline.as_fd(), &[1], &[]);
            live.untold = Some(clock::monotonic_ns().saturating_add(STACK_WAIT));
        }
        asked
    }

    /// Tells of a suspicion that was held back, with what the worker has said by now.
    fn tell_suspicion(&mut self, id: WorkerId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        if live.untold.take().is_some() {
            let stack = live.page.stack(live.asked);
            let worker = live.name;
            self.report(&Event::Suspect { worker, cause: Cause::Blocked, stack });
        }
    }

    fn report(&mut self, event: &Event) {
        // What comes of a suspicion is told after it.
        if let Some(id) = event.worker().and_then(|worker| self.key_of(worker)) {
            self.tell_suspicion(id);
        }
        match event {
            Event::StartFailed { error } => lock(&self.shared.board).start_error = Some(error.clone()),
            Event::Ready { .. } => lock(&self.shared.board).start_error = None,
            Event::Reloaded(report) => lock(&self.shared.board).end_reload(report.generation, Ok(*report)),
            Event::ReloadFailed { generation, error, .. } => lock(&self.shared.board).end_reload(*generation, Err(error.clone())),
            _ => {}
        }
        if self.listener.is_some() {
            // Whoever hears of it and asks sees it.
            self.publish();
        }
        if let Some(listener) = &mut self.listener {
            let _ = catch_unwind(AssertUnwindSafe(|| listener(event)));
        }
    }

    /// Its process id; `None` when the zygote was asked for it.
    fn spawn(&mut self, id: WorkerId, epoll: &Epoll, tokens: &mut Tokens) -> Result<Option<i32>> {
        let launch = catch_unwind(AssertUnwindSafe(|| (self.launch)(id)))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Panic, "the function that launches workers panicked")))?;
        let Launch { spec, mut env, mut fds } = launch;
        let header = Header { slot: id.slot, generation: id.generation, incarnation: id.incarnation, ..self.header };
        let (page_fd, page) = Page::create(&header)?;
        let mut theirs = None;
        let lifeline = PrivateFd::open(|| {
            let (own, other) = socket::pair()?;
            theirs = Some(other);
            Ok(own)
        })?;
        let theirs = theirs.expect("the pair was made");
        let taken = |n: &i32| spec.fds.iter().any(|(_, number)| number == n) || fds.iter().any(|(_, number)| number == n);
        let mut free = (3..).filter(|n| !taken(n));
        let numbers = [free.next(), free.next()].map(|n| n.expect("there are more numbers than fds"));
        drop(free);
        fds.extend([(PrivateFd::new(page_fd), numbers[0]), (PrivateFd::new(theirs), numbers[1])]);
        env.retain(|(name, _)| name != ENV);
        env.push((ENV.into(), format!("{},{}", numbers[0], numbers[1]).into()));
        // Before the worker exists: there is no way back then.
        let token = tokens.add(Source::Lifeline(self.id, id));
        let mut live = Live {
            name: id,
            child: None,
            lifeline,
            page: Arc::new(page),
            seen: state::NONE,
            asked: 0,
            untold: None,
            tokens: vec![token],
            zygote: None,
            told: None,
            until: None,
        };
        let kit = Kit { spec, env, fds };
        let asked = epoll.add_tagged(live.lifeline.as_fd(), token).and_then(|()| match &mut self.forks {
            Some(forks) => forks.fork(id, kit, epoll, tokens),
            None => Ok(Some(kit)),
        });
        let child = match asked.and_then(|kit| kit.map(Kit::exec).transpose()) {
            Ok(child) => child,
            Err(error) => {
                forget(&live, epoll, tokens);
                return Err(error);
            }
        };
        lock(&self.shared.board).pages.insert(id, Arc::clone(&live.page));
        let Some(child) = child else {
            self.live.insert(id, live);
            self.hear(epoll, tokens);
            return Ok(None);
        };
        let token = tokens.add(Source::Exit(self.id, id));
        live.tokens.push(token);
        if let Err(error) = epoll.add_tagged(child.exit_fd(), token) {
            // Nobody would see its end.
            let _ = child.kill(libc::SIGKILL);
            let _ = child.wait(None);
            lock(&self.shared.board).forget(id);
            forget(&live, epoll, tokens);
            return Err(error);
        }
        let (pid, child) = (child.pid(), Arc::new(child));
        lock(&self.shared.board).children.insert(id, Arc::clone(&child));
        live.child = Some(child);
        self.live.insert(id, live);
        Ok(Some(pid))
    }
}

impl Drop for Machine {
    /// Without effect at the end of a supervisor that has stopped. One whose thread fell over leaves its workers to their lifelines.
    fn drop(&mut self) {
        let mut board = lock(&self.shared.board);
        (board.closing, board.stopped) = (true, true);
        drop(board);
        self.shared.changed.notify_all();
    }
}

/// Takes a worker's fds out of the epoll, of which a forked child may have a copy.
fn forget(live: &Live, epoll: &Epoll, tokens: &mut Tokens) {
    if let Some(child) = &live.child {
        epoll.remove(child.exit_fd());
    }
    epoll.remove(live.lifeline.as_fd());
    live.tokens.iter().for_each(|token| tokens.remove(*token));
}
