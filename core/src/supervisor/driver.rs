//! The thread that carries out what the plans of this process's supervisors want, and tells them what happens.
//!
//! One thread per process, started with the first supervisor and ended with the last, so that a worker's death signal, which the kernel
//! ties to the thread that started it, comes with the process's end only. It waits in one epoll for pidfds, lifelines, and a bell for
//! orders. It reads a worker's page when the lifeline rings, when the worker has ended, and before any time-out is judged.

use super::event::{Ended, Event, State, Stats, WorkerId};
use super::options::Options;
use super::page::Page;
use super::plan::{Action, Input, Plan, nanos};
use super::{Condvar, Launch, Launcher, Listener};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock;
use crate::sys::cgroup::Cgroup;
use crate::sys::eventfd::EventFd;
use crate::sys::fork::{ForkCell, PrivateFd};
use crate::sys::poll::Epoll;
use crate::sys::process::{self, Child, Exit};
use crate::sys::{clock, cpu, socket, thread};
use crate::wire::supervisor::{ENV, Header, MINOR, state};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

/// What the owner of a supervisor wants.
pub(super) enum Order {
    Scale(usize),
    Release(WorkerId),
    Retire(u32),
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
    /// Calls of `scale` that the plan has not heard of.
    pub(super) scaling: usize,
    pub(super) start_error: Option<Error>,
    /// `stop` was called.
    pub(super) closing: bool,
    pub(super) stopped: bool,
}

/// What a handle and the thread share.
pub(super) struct Shared {
    orders: Mutex<Vec<Order>>,
    pub(super) board: Mutex<Board>,
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared { orders: Mutex::default(), board: Mutex::new(Board { scaling: 1, ..Board::default() }), changed: Condvar::new() }
    }
}

/// The thread's doorway.
pub(super) struct Hub {
    epoll: Epoll,
    bell: EventFd,
    new: Mutex<Vec<Machine>>,
    thread: Mutex<Option<ThreadId>>,
}

const BELL: u64 = 0;

/// The thread of this process, if it has one.
static HUB: ForkCell<Mutex<Option<Arc<Hub>>>> = ForkCell::new();

impl Hub {
    pub(super) fn order(&self, shared: &Shared, order: Order) {
        lock(&shared.orders).push(order);
        self.bell.signal();
    }

    /// This is the supervisors' thread.
    pub(super) fn is_here(&self) -> bool {
        *lock(&self.thread) == Some(std::thread::current().id())
    }
}

/// Gives the thread one more supervisor; starts it if there is none.
pub(super) fn add(options: &Options, launch: Launcher, listener: Option<Listener>, shared: &Arc<Shared>) -> Result<Arc<Hub>> {
    let machine = Machine::new(options, launch, listener, shared);
    // Held until the machine is handed over: the thread ends under this lock only, and only without one.
    let mut current = lock(HUB.get(|| Mutex::new(None)));
    let hub = match &*current {
        Some(hub) => Arc::clone(hub),
        None => {
            let fresh = Hub { epoll: Epoll::new()?, bell: EventFd::new()?, new: Mutex::default(), thread: Mutex::default() };
            fresh.epoll.add_tagged(fresh.bell.fd(), BELL)?;
            let hub = Arc::new(fresh);
            let own = Arc::clone(&hub);
            let options = thread::Options { name: "offloop-super".to_owned(), ..thread::Options::default() };
            let thread = move || {
                let _ = catch_unwind(AssertUnwindSafe(|| run(&own)));
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
enum Source {
    Exit(u64, WorkerId),
    Lifeline(u64, WorkerId),
}

/// Tokens are never used again, so that an event of this round cannot reach a worker that was started in it.
#[derive(Default)]
struct Tokens {
    last: u64,
    sources: HashMap<u64, Source>,
}

impl Tokens {
    fn add(&mut self, source: Source) -> u64 {
        self.last += 1;
        self.sources.insert(self.last, source);
        self.last
    }
}

fn run(hub: &Arc<Hub>) {
    *lock(&hub.thread) = Some(std::thread::current().id());
    let mut machines: HashMap<u64, Machine> = HashMap::new();
    let mut tokens = Tokens::default();
    let mut ready = Vec::with_capacity(64);
    let mut last = 0;
    loop {
        let now = clock::monotonic_ns();
        let deadline = machines.values().filter_map(|m| m.plan.next_deadline()).min();
        hub.epoll.wait_for(&mut ready, deadline.map(|at| Duration::from_nanos(at.saturating_sub(now))));
        for token in ready.drain(..) {
            if token == BELL {
                hub.bell.clear();
                continue;
            }
            // Gone in this very round, if it is not found.
            match tokens.sources.get(&token).copied() {
                Some(Source::Lifeline(machine, id)) => machines.get_mut(&machine).into_iter().for_each(|m| m.rung(id, &hub.epoll)),
                Some(Source::Exit(machine, id)) => {
                    machines.get_mut(&machine).into_iter().for_each(|m| m.ended(id, &hub.epoll, &mut tokens));
                }
                None => {}
            }
        }
        for mut machine in lock(&hub.new).drain(..) {
            last += 1;
            machine.id = last;
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

/// One process of ours.
struct Live {
    child: Child,
    lifeline: PrivateFd,
    page: Page,
    /// What it showed last.
    seen: u32,
    tokens: [u64; 2],
}

/// One supervisor.
struct Machine {
    id: u64,
    plan: Plan,
    launch: Launcher,
    listener: Option<Listener>,
    shared: Arc<Shared>,
    live: HashMap<WorkerId, Live>,
    header: Header,
    inputs: VecDeque<Input>,
    actions: Vec<Action>,
    /// Orders to scale that were heard since the board was written.
    scaled: usize,
    groups: Cgroup,
    /// Kills for want of memory that were seen.
    oom_kills: Option<u64>,
}

impl Machine {
    fn new(options: &Options, launch: Launcher, listener: Option<Listener>, shared: &Arc<Shared>) -> Machine {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let seed = RandomState::new().hash_one(MADE.fetch_add(1, Ordering::Relaxed));
        lock(&shared.orders).push(Order::Scale(options.workers));
        let groups = Cgroup::current();
        Machine {
            id: 0,
            plan: Plan::new(options, cpu::usable_cores(), seed),
            launch,
            listener,
            shared: Arc::clone(shared),
            live: HashMap::new(),
            header: Header {
                minor: MINOR,
                slot: 0,
                generation: 0,
                beat_ns: nanos(options.beat),
                hang_ns: nanos(options.hang_timeout),
                orphan_ns: nanos(options.orphan_grace),
            },
            inputs: VecDeque::new(),
            actions: Vec::new(),
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

    /// A lifeline has something to read.
    fn rung(&mut self, id: WorkerId, epoll: &Epoll) {
        let Some(live) = self.live.get(&id) else { return };
        // One per call: a worker that floods its lifeline takes turns with the others.
        socket::skip(live.lifeline.as_fd());
        if socket::is_hung_up(live.lifeline.as_fd()) {
            // It ends, or closed what it does not know: it would be readable for good.
            epoll.remove(live.lifeline.as_fd());
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
    }

    /// An exit fd is readable.
    fn ended(&mut self, id: WorkerId, epoll: &Epoll, tokens: &mut Tokens) {
        let Some(live) = self.live.get(&id) else { return };
        let exit = match live.child.try_wait() {
            Ok(None) => return,
            Ok(Some(exit)) => exit,
            // It has ended, and nobody says how.
            Err(_) => Exit { code: None, signal: None, core_dumped: false },
        };
        // Who was ready and died before this was seen has been ready.
        self.look(id);
        let Some(live) = self.live.remove(&id) else { return };
        forget(&live, epoll, tokens);
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
        let stopped = self.plan.is_stopped();
        if stopped {
            // What a listener or a launcher holds is dropped before anybody is told that all is over.
            self.listener = None;
            self.launch = Box::new(|_| Err(Error::new(ErrorKind::Closed, "supervisor was stopped")));
            lock(&self.shared.board).stopped = true;
            self.shared.changed.notify_all();
        }
        stopped
    }

    fn publish(&mut self) {
        let mut board = lock(&self.shared.board);
        board.stats = self.plan.stats();
        board.slots.clear();
        board.slots.extend(self.plan.states());
        board.scaling -= std::mem::take(&mut self.scaled);
        drop(board);
        self.shared.changed.notify_all();
    }

    fn perform(&mut self, epoll: &Epoll, tokens: &mut Tokens) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Spawn(id) => match self.spawn(id, epoll, tokens) {
                        Ok(pid) => self.handle(Input::Spawned(id, pid)),
                        Err(error) => self.handle(Input::SpawnFailed(id, error)),
                    },
                    // What has ended meanwhile needs no signal; a refusal (EPERM) leaves the worker where it is.
                    Action::Signal(id, signal) | Action::Dump(id, signal) => {
                        let _ = self.live.get(&id).map(|live| live.child.kill(signal));
                    }
                    Action::Drain(id) => {
                        if let Some(live) = self.live.get(&id) {
                            live.page.ask_to_drain();
                            let _ = socket::send(live.lifeline.as_fd(), &[1], &[]);
                        }
                    }
                    Action::Report(event) => self.report(&event),
                }
            }
        }
    }

    fn report(&mut self, event: &Event) {
        match event {
            Event::StartFailed { error } => lock(&self.shared.board).start_error = Some(error.clone()),
            Event::Ready { .. } => lock(&self.shared.board).start_error = None,
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

    fn spawn(&mut self, id: WorkerId, epoll: &Epoll, tokens: &mut Tokens) -> Result<i32> {
        let launch = catch_unwind(AssertUnwindSafe(|| (self.launch)(id)))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Panic, "the function that launches workers panicked")))?;
        let Launch { spec, fds } = launch;
        let header = Header { slot: id.slot, generation: id.generation, ..self.header };
        let (page_fd, page) = Page::create(&header)?;
        let mut theirs = None;
        let lifeline = PrivateFd::open(|| {
            let (own, other) = socket::pair()?;
            theirs = Some(other);
            Ok(own)
        })?;
        let theirs = theirs.expect("the pair was made");
        let mut spec: process::Spec<'_> = spec;
        spec.fds.extend(fds.iter().map(|(fd, number)| (fd.as_fd(), *number)));
        let mut free = (3..).filter(|n| !spec.fds.iter().any(|(_, number)| number == n));
        let numbers = [free.next(), free.next()].map(|n| n.expect("there are more numbers than fds"));
        drop(free);
        spec.fds.extend([(page_fd.as_fd(), numbers[0]), (theirs.as_fd(), numbers[1])]);
        let mut env = spec.env.take().unwrap_or_else(|| std::env::vars_os().collect());
        env.retain(|(name, _)| name != ENV);
        env.push((ENV.into(), format!("{},{}", numbers[0], numbers[1]).into()));
        spec.env = Some(env);
        spec.death_signal = spec.death_signal.or(Some(libc::SIGKILL));
        let child = process::spawn(&spec)?;
        let live = Live {
            tokens: [tokens.add(Source::Exit(self.id, id)), tokens.add(Source::Lifeline(self.id, id))],
            child,
            lifeline,
            page,
            seen: state::NONE,
        };
        let added =
            epoll.add_tagged(live.child.exit_fd(), live.tokens[0]).and_then(|()| epoll.add_tagged(live.lifeline.as_fd(), live.tokens[1]));
        if let Err(error) = added {
            // Nobody would see its end.
            let _ = live.child.kill(libc::SIGKILL);
            let _ = live.child.wait(None);
            forget(&live, epoll, tokens);
            return Err(error);
        }
        let pid = live.child.pid();
        self.live.insert(id, live);
        Ok(pid)
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
    epoll.remove(live.child.exit_fd());
    epoll.remove(live.lifeline.as_fd());
    for token in live.tokens {
        tokens.sources.remove(&token);
    }
}
