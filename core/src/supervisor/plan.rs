//! The state machine of all slots: what happened and when in, what to do out. Pure: no clock, fd, thread or lock.
//!
//! ```text
//!          Spawn              hello               ready
//!  EMPTY ───────► SPAWNED ───────────► STARTING ────────► READY ◄─── beat ───┐
//!    ▲               │  boot_timeout      │                │  no loop beat   │
//!    │               └─────────┬──────────┘                ├─ hang_timeout ► SUSPECT   dump
//!    │                         ▼                  scale,   │                 │ abort_grace
//!  BACK_OFF ◄── DEAD ◄──── KILLING ◄── deadline ─ DRAINING ◄ retire, stop    ▼
//!    │           ▲             ▲                                          ABORTING
//!    ▼ too many  └─ exit, in any state             └───── kill_grace ────────┘
//!  QUARANTINED ── probe_interval, one slot at a time ──► SPAWNED
//! ```
//!
//! With `ready_after` a process that lives for so long without a hello is READY: a *plain* one, whose program knows nothing of its supervisor. It is not
//! judged by beats, and asked to finish by `SIGTERM`. A hello that comes later takes that back: from there on it is STARTING, with what is left of `boot_timeout`.
//!
//! A slot has one process, and a second one while it is being replaced: the successor starts first, then the predecessor drains. One
//! slot at a time is replaced: `reload` has the order of a rolling reload.
//!
//! * Each message names slot and incarnation; one about a process that is gone is counted and dropped.
//! * DEAD lasts until the next [`Input::Tick`]: the owner hears of the exit first and may say that it was charged to a task. Such an
//!   exit is replaced without delay and counts for neither back-off nor degradation. What it says later is taken back then.
//! * The caller carries out what an input gave before the next one, and answers each [`Action::Spawn`] once with `Spawned` or `SpawnFailed`,
//!   there and then or later: until then nothing else is told of that worker, and what would signal it makes it `SpawnFailed`. It calls with `Tick` when [`Plan::next_deadline`] has come, and nothing else is left to tell.
//! * A spare is READY in a slot of its own, whose number says so, and takes no work. As soon as a worker's slot has no process, a spare of its generation moves there, which gives it the slot's next
//!   incarnation; what the caller tells of it by the name that it was started with is about the same process. Its own slot starts another, after the back-off of who has ended.
//! * With `once` a slot is wanted no more when its process has ended, by whatever cause, or did not start.
//! * A worker that is too old, has too much memory or has served enough is replaced like one that was to retire, until that succeeds.
//! * A caller that comes much later than the deadline was held up itself, and maybe its workers with it: deadlines move by that much.

use super::event::{Cause, Ended, Event, Expiry, Reloaded, State, Stats, WorkerId};
use super::options::{Options, ScaleDown};
use super::reload::{Failed, Reload};
use super::restart::{BackOff, Delays, Intensity, Random};
use super::slots::Slots;
use crate::error::{Error, ErrorKind};
use std::collections::VecDeque;
use std::time::Duration;

/// What the caller tells.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// So many workers are wanted.
    Scale(usize),
    /// One worker less is wanted, and it is this one.
    Release(WorkerId),
    /// Replace the slot's worker.
    Retire(u32),
    /// Replace all workers by this generation. One at a time.
    Reload(u32),
    /// The exit of this worker was, or will be, over a task.
    Charged(WorkerId),
    /// End this worker now.
    Kill(WorkerId),
    /// End all; each has so many nanoseconds to finish.
    Stop(u64),
    /// End all now.
    StopNow,
    Spawned(WorkerId, i32),
    SpawnFailed(WorkerId, Error),
    Hello(WorkerId),
    Ready(WorkerId),
    /// The counters of loop and native thread.
    Beats(WorkerId, u64, u64),
    /// So many requests it has served.
    Served(WorkerId, u64),
    /// It has more memory than it may.
    Weighed(WorkerId, bool),
    /// It has nothing left to do.
    Drained(WorkerId),
    /// It wrote what no worker may.
    Corrupt(WorkerId),
    Exited(WorkerId, Ended, Option<String>),
    /// Nothing but time.
    Tick,
}

/// What the caller does, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Spawn(WorkerId),
    Signal(WorkerId, i32),
    /// Ask it to finish.
    Drain(WorkerId),
    /// Answer with [`Input::Weighed`]: whether it has more memory than so many bytes.
    Weigh(WorkerId, u64),
    /// Make it write its stacks, by this signal.
    Dump(WorkerId, i32),
    /// A spare takes work from now on, as the second.
    Activate(WorkerId, WorkerId),
    Report(Event),
}

impl Input {
    /// Whom it is about.
    fn worker_mut(&mut self) -> Option<&mut WorkerId> {
        match self {
            Input::Release(id)
            | Input::Charged(id)
            | Input::Kill(id)
            | Input::Spawned(id, _)
            | Input::SpawnFailed(id, _)
            | Input::Hello(id)
            | Input::Ready(id)
            | Input::Beats(id, _, _)
            | Input::Served(id, _)
            | Input::Weighed(id, _)
            | Input::Drained(id)
            | Input::Corrupt(id)
            | Input::Exited(id, _, _) => Some(id),
            Input::Scale(_) | Input::Retire(_) | Input::Reload(_) | Input::Stop(_) | Input::StopNow | Input::Tick => None,
        }
    }
}

/// Options in nanoseconds.
struct Rules {
    boot: u64,
    beat: u64,
    hang: u64,
    abort_grace: u64,
    drain: u64,
    kill_grace: u64,
    min_ready: u64,
    min_uptime: u64,
    delays: Delays,
    window: u64,
    probe: u64,
    max_starting: usize,
    max_failures: Option<usize>,
    dump_signal: Option<i32>,
    ready_after: Option<u64>,
    scale_down: ScaleDown,
    once: bool,
    max_age: Option<u64>,
    max_memory: Option<u64>,
    max_requests: Option<u64>,
}

/// How often memory is looked at.
const WEIGH: u64 = 1_000_000_000;
/// Looks in a row that find too much.
const HEAVY: u32 = 3;

/// How long the next spare is not started after one took a place: that one answers first what has waited, and a start takes a core.
const SETTLE: u64 = 200_000_000;

/// ±10 %, so that workers that were started together do not leave together.
fn about(n: u64, random: &mut Random) -> u64 {
    (n - n / 10).saturating_add(random.below(n / 10 * 2 + 1))
}

/// What is no delay of a supervisor whose workers are not watched for hanging.
const HELD_UP: u64 = 5_000_000_000;

pub(super) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

struct Proc {
    id: WorkerId,
    /// What it was started as: the caller knows no other.
    key: WorkerId,
    state: State,
    spawned_at: u64,
    ready_at: Option<u64>,
    /// When its state is over.
    deadline: Option<u64>,
    loop_beat: u64,
    loop_at: u64,
    native_beat: u64,
    native_at: u64,
    /// Why we end it.
    cause: Option<Cause>,
    forced: bool,
    charged: bool,
    /// `SIGKILL` was sent: there is nothing more to do.
    killed: bool,
    /// When it is too old.
    expires_at: Option<u64>,
    /// Requests after which it is replaced.
    most: Option<u64>,
    served: u64,
    /// Looks in a row at which it had too much memory.
    heavy: u32,
    /// It is to be replaced.
    expired: bool,
    /// It runs, and was not only asked for.
    there: bool,
    /// It is ready without having said so.
    plain: bool,
}

impl Proc {
    fn is_starting(&self) -> bool {
        matches!(self.state, State::Spawned | State::Starting)
    }

    fn is_watched(&self) -> bool {
        matches!(self.state, State::Ready | State::Suspect)
    }

    /// Its beats count.
    fn is_judged(&self) -> bool {
        self.is_watched() && !self.plain
    }

    fn signal(&mut self, signal: i32, state: State, now: u64, rules: &Rules, out: &mut Vec<Action>) {
        self.state = state;
        self.killed = signal == libc::SIGKILL;
        self.deadline = (!self.killed).then(|| now.saturating_add(rules.kill_grace));
        let cause = self.cause.unwrap_or(Cause::Crash);
        out.push(Action::Signal(self.key, signal));
        out.push(Action::Report(Event::Signalled { worker: self.id, signal, cause }));
    }

    fn terminate(&mut self, now: u64, rules: &Rules, out: &mut Vec<Action>) {
        let signal = if rules.kill_grace == 0 { libc::SIGKILL } else { libc::SIGTERM };
        self.signal(signal, State::Killing, now, rules, out);
    }

    fn kill(&mut self, cause: Cause, now: u64, rules: &Rules, out: &mut Vec<Action>) {
        if !self.killed {
            self.cause = Some(cause);
            self.signal(libc::SIGKILL, State::Killing, now, rules, out);
        }
    }

    /// Ends it for a reason of ours: who has work finishes it within `grace`.
    fn end(&mut self, cause: Cause, grace: u64, now: u64, rules: &Rules, out: &mut Vec<Action>) {
        let until = now.saturating_add(grace);
        match self.state {
            State::Aborting | State::Killing => {}
            State::Draining if grace > 0 => self.deadline = Some(self.deadline.map_or(until, |d| d.min(until))),
            State::Ready | State::Suspect if grace > 0 => {
                self.state = State::Draining;
                self.cause = Some(cause);
                self.deadline = Some(until);
                out.push(Action::Drain(self.key));
                out.extend(self.plain.then_some(Action::Signal(self.key, libc::SIGTERM)));
                out.push(Action::Report(Event::Draining { worker: self.id, cause }));
            }
            _ => {
                self.cause.get_or_insert(cause);
                self.terminate(now, rules, out);
            }
        }
    }
}

/// How a failure may be taken back, until the slot's next process has ended.
struct Undo {
    incarnation: u64,
    cause: Cause,
    back_off: BackOff,
    /// Its time, if it was unstable.
    unstable_at: Option<u64>,
    /// Of the spare slot that rests for it.
    spare: Option<(u32, BackOff)>,
}

struct Slot {
    wanted: bool,
    /// What it is started with.
    generation: u32,
    /// Its last process; incarnation 0 before the first.
    last: WorkerId,
    /// Who has the slot.
    main: Option<Proc>,
    /// Its successor, or a predecessor that drains.
    other: Option<Proc>,
    /// No start before this time.
    until: u64,
    quarantined: bool,
    /// The last end was nobody's fault: it is started whatever befalls the others.
    owed: bool,
    /// No worker was ready since the first start, and this one's failed.
    failed_first: bool,
    back_off: BackOff,
    undo: Option<Undo>,
}

impl Slot {
    fn new(slot: u32) -> Slot {
        Slot {
            wanted: false,
            generation: 0,
            last: WorkerId { slot, generation: 0, incarnation: 0 },
            main: None,
            other: None,
            until: 0,
            quarantined: false,
            owed: false,
            failed_first: false,
            back_off: BackOff::default(),
            undo: None,
        }
    }

    fn number(&self) -> u32 {
        self.last.slot
    }

    fn procs(&self) -> impl Iterator<Item = &Proc> {
        self.main.iter().chain(&self.other)
    }

    fn procs_mut(&mut self) -> impl Iterator<Item = &mut Proc> {
        self.main.iter_mut().chain(&mut self.other)
    }

    /// Its second process is the one that was started last.
    fn has_newer(&self) -> bool {
        self.other.as_ref().is_some_and(|p| p.id == self.last)
    }

    /// A successor is on its way.
    fn has_successor(&self) -> bool {
        // A successor whose predecessor is gone has the slot.
        self.main.is_some() && self.has_newer()
    }
}

/// An exit that is not settled yet.
struct Dead {
    id: WorkerId,
    cause: Cause,
    ended: Ended,
    charged: bool,
    uptime: Option<u64>,
    /// The number of the spare that took its place.
    relieved: Option<u32>,
    /// It was not the one that had the slot.
    successor: bool,
    predecessor: bool,
    /// Why it did not become ready.
    error: Option<Error>,
    /// Its own last words.
    text: Option<String>,
}

struct Degraded {
    since: u64,
    probe_at: u64,
}

/// All slots of one supervisor.
pub(super) struct Plan {
    rules: Rules,
    slots: Slots<Slot>,
    wanted: usize,
    /// Of the last reload that succeeded; from 1 on.
    generation: u32,
    reload: Option<Reload>,
    random: Random,
    intensity: Intensity,
    degraded: Option<Degraded>,
    /// Slots to be replaced.
    retiring: VecDeque<u32>,
    /// The one that is.
    recycling: Option<u32>,
    /// It was said that there is no spare while a program runs that cannot be one.
    refused: bool,
    dead: VecDeque<Dead>,
    ever_ready: bool,
    stopping: bool,
    stopped: bool,
    poll_at: u64,
    weigh_at: u64,
    /// Of the last input.
    now: u64,
    stats: Stats,
}

impl Plan {
    pub(super) fn new(options: &Options, max_starting: usize, seed: u64) -> Plan {
        let o = options;
        Plan {
            rules: Rules {
                boot: nanos(o.boot_timeout),
                beat: nanos(o.beat),
                hang: nanos(o.hang_timeout),
                abort_grace: nanos(o.abort_grace),
                drain: nanos(o.drain_timeout),
                kill_grace: nanos(o.kill_grace),
                min_ready: nanos(o.min_ready),
                min_uptime: nanos(o.min_uptime),
                delays: Delays { first: nanos(o.back_off), cap: nanos(o.max_back_off), stable: nanos(o.stable_uptime) },
                window: nanos(o.window),
                probe: nanos(o.probe_interval),
                max_starting: o.max_starting.unwrap_or(max_starting),
                max_failures: o.max_failures,
                dump_signal: o.dump_signal,
                ready_after: o.ready_after.map(nanos),
                scale_down: o.scale_down,
                once: o.once,
                max_age: o.max_age.map(nanos),
                max_memory: o.max_memory,
                max_requests: o.max_requests,
            },
            slots: Slots::new(o.spares, |number| Slot { wanted: true, generation: 1, ..Slot::new(number) }),
            wanted: 0,
            generation: 1,
            reload: None,
            random: Random::new(seed),
            intensity: Intensity::default(),
            degraded: None,
            retiring: VecDeque::new(),
            recycling: None,
            refused: false,
            dead: VecDeque::new(),
            ever_ready: false,
            stopping: false,
            stopped: false,
            poll_at: 0,
            weigh_at: 0,
            now: 0,
            stats: Stats::default(),
        }
    }

    /// Takes one input; what is to be done is appended to `out`.
    pub(super) fn handle(&mut self, mut input: Input, now: u64, out: &mut Vec<Action>) {
        if let Some(id) = input.worker_mut() {
            *id = self.current(*id);
        }
        // Before anything of this moment: what begins now has its whole time.
        let skipped = self.catch_up(now, out);
        self.now = now;
        match input {
            Input::Scale(n) => self.scale(n, out),
            Input::Release(id) => self.release(id, out),
            Input::Retire(slot) => self.retire(slot),
            Input::Reload(generation) => self.begin_reload(generation, out),
            Input::Charged(id) => self.charged(id, out),
            Input::Kill(id) => {
                if let Some((proc, rules)) = self.proc(id) {
                    proc.kill(Cause::Killed, now, rules, out);
                }
            }
            Input::Stop(grace) => self.stop(Some(grace), out),
            Input::StopNow => self.stop(None, out),
            Input::Spawned(worker, pid) => {
                self.stats.spawned += 1;
                if let Some(proc) = self.slots.get_mut(worker.slot).and_then(|s| s.procs_mut().find(|p| p.id == worker)) {
                    proc.there = true;
                }
                out.push(Action::Report(Event::Spawned { worker, pid }));
            }
            Input::SpawnFailed(id, error) => self.spawn_failed(id, error, out),
            Input::Hello(id) => {
                if let Some((proc, rules)) = self.proc(id)
                    && (proc.state == State::Spawned || (proc.plain && proc.state == State::Ready))
                {
                    let after = rules.ready_after.filter(|_| !id.is_spare());
                    let left = after.map_or(0, |after| rules.boot.saturating_sub(after));
                    proc.deadline = Some(proc.deadline.unwrap_or(now).saturating_add(left));
                    (proc.state, proc.plain, proc.ready_at) = (State::Starting, false, None);
                    out.push(Action::Report(Event::Starting { worker: id }));
                }
            }
            Input::Ready(id) => self.ready(id, out),
            Input::Beats(id, on_loop, native) => self.beats(id, on_loop, native, out),
            Input::Served(id, n) => {
                if let Some((proc, _)) = self.proc(id) {
                    proc.served = n;
                    self.expire(id.slot, out);
                }
            }
            Input::Weighed(id, too_much) => {
                if let Some((proc, _)) = self.proc(id) {
                    proc.heavy = if too_much { proc.heavy + 1 } else { 0 };
                    self.expire(id.slot, out);
                }
            }
            Input::Drained(id) => {
                if let Some((proc, rules)) = self.proc(id)
                    && proc.state == State::Draining
                {
                    // It ends by itself now, or is made to.
                    let until = now.saturating_add(rules.kill_grace);
                    proc.deadline = proc.deadline.map(|d| d.min(until));
                }
            }
            Input::Corrupt(id) => {
                if let Some((proc, rules)) = self.proc(id) {
                    proc.kill(Cause::Corrupt, now, rules, out);
                }
            }
            Input::Exited(id, ended, text) => self.exited(id, ended, text, out),
            Input::Tick => self.tick(skipped, out),
        }
        self.prove(out);
        self.take_over(out);
        self.fill(out);
        if self.stopping && !self.stopped && self.dead.is_empty() && self.slots.iter().all(|s| s.procs().next().is_none()) {
            self.stopped = true;
            out.push(Action::Report(Event::Stopped));
        }
    }

    /// When to come with a `Tick`.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        if !self.dead.is_empty() {
            return Some(self.now);
        }
        // What is due already waits for something else than time: `fill` has looked.
        let later = |at: u64| (at > self.now).then_some(at);
        let resting = |slot: &Slot| {
            let retried = self.reload.as_ref().is_some_and(|r| r.is_retrying(slot.number()));
            let waits = slot.main.is_none() || retried || self.retiring.contains(&slot.number());
            (slot.wanted && !slot.quarantined && waits).then_some(slot.until).and_then(later)
        };
        let slots = self.slots.iter().filter_map(resting).min();
        let degraded = self.degraded.as_ref().and_then(|d| {
            let probe = later(d.probe_at).filter(|_| self.slots.iter().any(|s| s.wanted && s.quarantined));
            probe.into_iter().chain(self.probation()).min()
        });
        let proof = self.proof_deadline().filter_map(later).min();
        [self.watch_deadline(), slots, degraded, proof].into_iter().flatten().min()
    }

    /// The earliest time at which a process is judged or looked at.
    fn watch_deadline(&self) -> Option<u64> {
        let procs = || self.slots.iter().flat_map(Slot::procs);
        let deadlines = procs().filter_map(|p| p.deadline);
        let hangs = procs()
            .filter(|p| self.rules.hang > 0 && p.state == State::Ready && !p.plain)
            .map(|p| p.loop_at.saturating_add(self.rules.hang));
        let is_polled = self.rules.hang > 0 || self.rules.max_requests.is_some();
        let poll = (is_polled && procs().any(Proc::is_judged)).then_some(self.poll_at);
        deadlines.chain(hangs).chain(poll).chain(self.expiry_deadline()).min()
    }

    /// When somebody will be too old, or is to be weighed.
    fn expiry_deadline(&self) -> impl Iterator<Item = u64> {
        let mains = || self.slots.workers.iter().filter_map(|s| s.main.as_ref()).filter(|p| p.is_watched() && !p.expired);
        let weigh = self.rules.max_memory.filter(|_| mains().next().is_some()).map(|_| self.weigh_at);
        mains().filter_map(|p| p.expires_at).chain(weigh)
    }

    /// When each worker that came up while degraded has proved itself.
    fn probation(&self) -> impl Iterator<Item = u64> {
        let since = self.degraded.as_ref().map_or(u64::MAX, |d| d.since);
        let ready = self.slots.iter().flat_map(Slot::procs).filter(|p| p.is_watched()).filter_map(|p| p.ready_at);
        ready.filter(move |at| *at >= since).map(|at| at.saturating_add(self.rules.min_uptime))
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn stats(&self) -> Stats {
        let procs = || self.slots.iter().flat_map(Slot::procs);
        Stats {
            wanted: self.wanted,
            generation: self.generation,
            live: procs().filter(|p| !p.id.is_spare()).count(),
            ready: procs().filter(|p| p.is_watched() && !p.id.is_spare()).count(),
            spares: procs().filter(|p| p.is_watched() && p.id.is_spare()).count(),
            degraded: self.degraded.is_some(),
            ..self.stats
        }
    }

    /// Each slot's last incarnation and where it stands.
    pub(super) fn states(&self) -> impl Iterator<Item = (WorkerId, State)> {
        self.slots.iter().map(|slot| {
            let state = match &slot.main {
                Some(proc) => proc.state,
                None if self.dead.iter().any(|d| d.id.slot == slot.number()) => State::Dead,
                None if !slot.wanted => State::Empty,
                None if slot.quarantined => State::Quarantined,
                None => State::BackOff,
            };
            (slot.main.as_ref().map_or(slot.last, |p| p.id), state)
        })
    }

    #[cfg(test)]
    pub(super) fn procs(&self) -> impl Iterator<Item = (WorkerId, State)> {
        self.slots.iter().flat_map(Slot::procs).map(|p| (p.id, p.state))
    }

    #[cfg(test)]
    pub(super) fn wants(&self, slot: u32) -> bool {
        self.slots.get(slot).is_some_and(|s| s.wanted)
    }

    #[cfg(test)]
    pub(super) fn until(&self, slot: u32) -> u64 {
        self.slots[slot].until
    }

    /// Why a process is ended, while it is.
    pub(super) fn cause(&self, id: WorkerId) -> Option<Cause> {
        let id = self.current(id);
        self.slots.get(id.slot)?.procs().find(|p| p.id == id)?.cause
    }

    /// What a process is called by now that was started as `id`: one that was a spare has another name.
    fn current(&self, id: WorkerId) -> WorkerId {
        let was_spare = |p: &&Proc| p.key == id;
        let found = if id.is_spare() { self.slots.workers.iter().flat_map(Slot::procs).find(was_spare) } else { None };
        found.map_or(id, |p| p.id)
    }

    /// A live process; a message about any other is late.
    fn proc(&mut self, id: WorkerId) -> Option<(&mut Proc, &Rules)> {
        let found = self.slots.get_mut(id.slot).and_then(|s| s.procs_mut().find(|p| p.id == id));
        if found.is_none() {
            self.stats.late += 1;
        }
        found.map(|proc| (proc, &self.rules))
    }

    fn limit(&self) -> usize {
        self.rules.max_failures.unwrap_or((2 * self.wanted).max(5))
    }

    // ---- what the owner wants ----

    fn scale(&mut self, n: usize, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        while self.wanted < n {
            // One whose process is gone first, then the lowest; a new one only when all are wanted.
            let slots = &mut self.slots.workers;
            let free = slots.iter().filter(|s| !s.wanted);
            let at = free.min_by_key(|s| (s.procs().count(), s.number())).map_or(slots.len() as u32, Slot::number);
            if at as usize == slots.len() {
                slots.push(Slot::new(at));
            }
            let slot = &mut self.slots[at];
            (slot.wanted, slot.generation) = (true, self.generation);
            slot.quarantined = self.degraded.is_some() && slot.main.is_none();
            if slot.quarantined {
                out.push(Action::Report(Event::Quarantined { slot: at }));
            }
            self.wanted += 1;
            if let Some(reload) = &mut self.reload {
                reload.add(at);
            }
        }
        while self.wanted > n {
            let oldest_first = self.rules.scale_down == ScaleDown::Oldest;
            let rank = |s: &Slot| match &s.main {
                None => 0,
                Some(p) if !p.is_watched() => 1,
                Some(_) => 2,
            };
            let age = |s: &Slot| s.main.as_ref().map_or(0, |p| if oldest_first { p.spawned_at } else { u64::MAX - p.spawned_at });
            let nth = |s: &Slot| if oldest_first { s.number() } else { u32::MAX - s.number() };
            let wanted = self.slots.workers.iter().filter(|s| s.wanted);
            let at = wanted.min_by_key(|s| (rank(s), age(s), nth(s))).expect("as many slots are wanted as `wanted` says").number();
            self.unwant(at, out);
        }
    }

    /// Ends what a slot has.
    fn unwant(&mut self, at: u32, out: &mut Vec<Action>) {
        self.wanted -= 1;
        self.retiring.retain(|s| *s != at);
        if let Some(reload) = &mut self.reload {
            reload.forget(at);
        }
        let slot = &mut self.slots[at];
        (slot.wanted, slot.quarantined) = (false, false);
        for proc in slot.procs_mut() {
            proc.end(Cause::Scale, self.rules.drain, self.now, &self.rules, out);
        }
    }

    /// Its process is gone, and with `once` there is to be no other.
    fn unwant_once(&mut self, at: u32, out: &mut Vec<Action>) {
        if self.rules.once && self.slots[at].wanted && self.slots[at].main.is_none() {
            self.unwant(at, out);
        }
    }

    fn release(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        // Also when it has ended: then its slot is not started again.
        let holds = |s: &Slot| s.wanted && s.main.as_ref().map_or(s.last, |p| p.id) == id;
        if let Some(slot) = self.slots.workers.get(id.slot as usize).filter(|s| holds(s)) {
            // Its owner has used it and lets it go: it has proved itself, however short it was there.
            let served = |since: u64| slot.main.as_ref().is_some_and(|p| p.is_watched() && p.ready_at.is_some_and(|at| at >= since));
            let recovers = self.degraded.as_ref().is_some_and(|d| served(d.since));
            self.unwant(id.slot, out);
            if recovers {
                self.recover(out);
            }
        }
    }

    fn retire(&mut self, slot: u32) {
        let known = self.slots.workers.get(slot as usize).is_some_and(|s| s.wanted && s.main.as_ref().is_some_and(Proc::is_watched));
        if known && self.recycling != Some(slot) && !self.retiring.contains(&slot) {
            self.retiring.push_back(slot);
        }
    }

    fn stop(&mut self, grace: Option<u64>, out: &mut Vec<Action>) {
        self.stopping = true;
        self.wanted = 0;
        self.degraded = None;
        self.retiring.clear();
        self.reload = None;
        for slot in self.slots.iter_mut() {
            (slot.wanted, slot.quarantined) = (false, false);
            for proc in slot.procs_mut() {
                match grace {
                    Some(grace) => proc.end(Cause::Stop, grace, self.now, &self.rules, out),
                    None => proc.kill(Cause::Stop, self.now, &self.rules, out),
                }
            }
        }
    }

    fn charged(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        let now = self.now;
        if let Some(dead) = self.dead.iter_mut().find(|d| d.id == id) {
            dead.charged = true;
            return;
        }
        let Some(slot) = self.slots.get_mut(id.slot) else {
            self.stats.late += 1;
            return;
        };
        if let Some(proc) = slot.procs_mut().find(|p| p.id == id) {
            proc.charged = true;
            return;
        }
        // It was settled without the owner's word.
        let Some(undo) = slot.undo.take_if(|u| u.incarnation == id.incarnation) else {
            self.stats.late += 1;
            return;
        };
        slot.back_off = undo.back_off;
        slot.until = slot.until.min(now);
        slot.quarantined = false;
        if let Some((number, back_off)) = undo.spare {
            let spare = &mut self.slots[number];
            (spare.back_off, spare.until) = (back_off, spare.until.min(now));
        }
        *self.stats.exits.of(undo.cause) -= 1;
        self.stats.exits.charged += 1;
        if let Some(at) = undo.unstable_at {
            self.intensity.remove(at);
            if self.degraded.is_some() && !self.intensity.exceeds(now, self.limit(), self.rules.window) {
                self.recover(out);
            }
        }
    }

    // ---- what a process does ----

    fn ready(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        let Some((proc, _)) = self.proc(id) else { return };
        if proc.state != State::Starting {
            return;
        }
        self.take_as_ready(id, out);
    }

    fn take_as_ready(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        let now = self.now;
        let (random, rules) = (&mut self.random, &self.rules);
        let (age, most) = (rules.max_age.map(|n| about(n, random)), rules.max_requests.map(|n| about(n, random)));
        let Some((proc, _)) = self.proc(id) else { return };
        proc.plain = proc.state == State::Spawned;
        proc.state = State::Ready;
        proc.deadline = None;
        (proc.ready_at, proc.loop_at, proc.native_at) = (Some(now), now, now);
        (proc.expires_at, proc.most) = (age.map(|age| now.saturating_add(age)), most);
        let after = Duration::from_nanos(now.saturating_sub(proc.spawned_at));
        out.push(Action::Report(if id.is_spare() { Event::Spare { worker: id, after } } else { Event::Ready { worker: id, after } }));
        self.stats.became_ready += 1;
        self.ever_ready = true;
        if self.poll_at <= now {
            self.poll_at = now.saturating_add(self.rules.beat);
        }
        if self.weigh_at <= now {
            self.weigh_at = now.saturating_add(WEIGH);
        }
        let slot = &mut self.slots[id.slot];
        slot.failed_first = false;
    }

    /// Who was ready for `min_ready` takes over.
    fn prove(&mut self, out: &mut Vec<Action>) {
        let (now, min_ready) = (self.now, self.rules.min_ready);
        let has_proved = |p: &Proc| p.state == State::Ready && p.ready_at.is_some_and(|at| at.saturating_add(min_ready) <= now);
        // Only one slot at a time has a successor.
        if let Some(slot) = self.slots.iter_mut().find(|s| s.has_successor() && s.other.as_ref().is_some_and(has_proved)) {
            self.stats.retired += 1;
            std::mem::swap(&mut slot.main, &mut slot.other);
            slot.generation = slot.main.as_ref().map_or(slot.generation, |p| p.id.generation);
            if let Some(old) = &mut slot.other {
                old.end(Cause::Retire, self.rules.drain, now, &self.rules, out);
            }
        }
        if let Some(reload) = &mut self.reload
            && let Some(id) = reload.step()
            && self.slots[id.slot].main.as_ref().is_some_and(|p| p.id == id && has_proved(p))
        {
            reload.done(id.slot);
            self.slots[id.slot].generation = id.generation;
            self.retiring.retain(|s| *s != id.slot);
        }
    }

    /// When somebody may have proved itself.
    fn proof_deadline(&self) -> impl Iterator<Item = u64> {
        let step = self.reload.as_ref().and_then(Reload::step);
        let successors = self.slots.iter().filter(|s| s.has_successor()).filter_map(|s| s.other.as_ref());
        let mains = self.slots.iter().filter_map(|s| s.main.as_ref()).filter(move |p| Some(p.id) == step);
        let ready = successors.chain(mains).filter(|p| p.state == State::Ready).filter_map(|p| p.ready_at);
        ready.map(|at| at.saturating_add(self.rules.min_ready))
    }

    // ---- reload ----

    fn begin_reload(&mut self, generation: u32, out: &mut Vec<Action>) {
        if self.stopping || self.reload.is_some() {
            return;
        }
        let wanted = self.slots.workers.iter().filter(|s| s.wanted).map(Slot::number);
        self.reload = Some(Reload::new(self.generation, generation, wanted, self.now, self.stats.forced));
        out.push(Action::Report(Event::Reloading { generation }));
    }

    /// Starts the next slot's new process, if it may be started now.
    fn reload_step(&mut self, out: &mut Vec<Action>) {
        let Some(reload) = &self.reload else { return };
        if reload.is_over() {
            self.end_reload(out);
            // Spares have waited for it.
            return self.fill(out);
        }
        let Some(at) = reload.next() else { return };
        let (generation, retries) = (reload.target(), reload.is_retrying(at));
        let unsettled = self.dead.iter().any(|d| d.id.slot == at);
        let slot = &self.slots[at];
        let dies = slot.main.as_ref().is_some_and(|p| matches!(p.state, State::Draining | State::Aborting | State::Killing));
        if unsettled || dies || slot.other.is_some() || (retries && slot.until > self.now) {
            return;
        }
        let proc = self.spawn(at, generation, out);
        if let Some(reload) = &mut self.reload {
            reload.begin_step(proc.id);
        }
        let slot = &mut self.slots[at];
        if slot.main.is_none() {
            slot.quarantined = false;
            slot.main = Some(proc);
        } else {
            slot.other = Some(proc);
            self.recycling = Some(at);
        }
    }

    /// A process has ended, or did not start.
    fn reload_failed(&mut self, id: WorkerId, error: impl FnOnce() -> Error, out: &mut Vec<Action>) {
        let Some(reload) = self.reload.as_mut().filter(|r| r.step() == Some(id)) else { return };
        match reload.step_failed() {
            Failed::Retry | Failed::Stuck => {}
            Failed::GoBack => self.go_back(error(), out),
            Failed::Over => {
                reload.go_back(error(), std::iter::empty());
                self.end_reload(out);
            }
        }
    }

    fn go_back(&mut self, error: Error, out: &mut Vec<Action>) {
        let Some(reload) = &mut self.reload else { return };
        let (from, to) = (reload.from, reload.to);
        out.push(Action::Report(Event::RollingBack { generation: to, error: error.clone() }));
        let has = |s: &Slot| s.main.as_ref().map_or(s.generation, |p| p.id.generation) == to;
        reload.go_back(error, self.slots.workers.iter().filter(|s| s.wanted && has(s)).map(Slot::number));
        for slot in self.slots.iter_mut() {
            // Who is started from here on is of the old one.
            slot.generation = from;
            if slot.has_successor()
                && let Some(new) = slot.other.as_mut().filter(|p| p.id.generation == to)
            {
                new.end(Cause::Retire, self.rules.drain, self.now, &self.rules, out);
            }
        }
    }

    fn end_reload(&mut self, out: &mut Vec<Action>) {
        let Some(reload) = self.reload.take() else { return };
        let (generation, replaced, stuck) = (reload.to, reload.replaced, reload.stuck);
        let forced = self.stats.forced - reload.forced;
        let took = Duration::from_nanos(self.now.saturating_sub(reload.began));
        match reload.into_error() {
            None => {
                self.generation = generation;
                self.stats.reloads += 1;
                for spare in &mut self.slots.spares {
                    spare.generation = generation;
                    if let Some(old) = spare.main.as_mut().filter(|p| p.id.generation != generation) {
                        old.end(Cause::Retire, self.rules.drain, self.now, &self.rules, out);
                    }
                }
                out.push(Action::Report(Event::Reloaded(Reloaded { generation, replaced, forced, took })));
            }
            Some(error) => {
                self.stats.reloads_failed += 1;
                out.push(Action::Report(Event::ReloadFailed { generation, error, stuck }));
            }
        }
    }

    fn beats(&mut self, id: WorkerId, on_loop: u64, native: u64, out: &mut Vec<Action>) {
        let now = self.now;
        let Some((proc, _)) = self.proc(id) else { return };
        if proc.native_beat != native {
            (proc.native_beat, proc.native_at) = (native, now);
        }
        if proc.loop_beat != on_loop {
            (proc.loop_beat, proc.loop_at) = (on_loop, now);
            if proc.state == State::Suspect {
                (proc.state, proc.deadline, proc.cause) = (State::Ready, None, None);
                self.stats.resumed += 1;
                out.push(Action::Report(Event::Resumed { worker: id }));
            }
        }
    }

    fn exited(&mut self, id: WorkerId, ended: Ended, text: Option<String>, out: &mut Vec<Action>) {
        let now = self.now;
        if self.proc(id).is_none() {
            return;
        }
        let slot = &mut self.slots[id.slot];
        let was_main = slot.main.as_ref().is_some_and(|p| p.id == id);
        let successor = !was_main && slot.has_successor();
        let proc = if was_main { slot.main.take() } else { slot.other.take() };
        let Some(proc) = proc else { return };
        let predecessor = !was_main && !successor;
        if !predecessor {
            slot.undo = None;
        }
        // The kernel's count may be another's: whom we have killed it did not need to.
        let ended = Ended { oom: ended.oom && !proc.killed, ..ended };
        if was_main && slot.has_newer() {
            slot.main = slot.other.take();
        }
        if slot.other.is_none() {
            self.recycling = self.recycling.filter(|s| *s != id.slot);
        }
        let uptime = proc.ready_at.map(|at| now.saturating_sub(at));
        let cause = proc.cause.unwrap_or(if uptime.is_some() { Cause::Crash } else { Cause::Boot });
        let error = uptime.is_none().then(|| boot_error(id, cause, &ended, text.as_deref(), self.rules.boot));
        self.stats.oom += u64::from(ended.oom);
        self.stats.forced += u64::from(proc.forced);
        self.dead.push_back(Dead {
            id,
            cause,
            ended,
            charged: proc.charged,
            uptime,
            relieved: None,
            successor,
            predecessor,
            error,
            text: text.clone(),
        });
        let uptime = uptime.map(Duration::from_nanos);
        self.unwant_once(id.slot, out);
        out.push(Action::Report(Event::Exited { worker: id, cause, ended, forced: proc.forced, text, uptime }));
    }

    fn spawn_failed(&mut self, id: WorkerId, error: Error, out: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(id.slot) else { return };
        let main = slot.main.take_if(|p| p.id == id);
        let successor = main.is_none();
        let Some(proc) = main.or_else(|| slot.other.take_if(|p| p.id == id)) else {
            self.stats.late += 1;
            return;
        };
        if !successor && slot.has_newer() {
            slot.main = slot.other.take();
            self.recycling = self.recycling.filter(|s| *s != id.slot);
        }
        self.stats.spawn_failed += 1;
        self.unwant_once(id.slot, out);
        out.push(Action::Report(Event::SpawnFailed { worker: id, error: error.clone() }));
        let asked = proc.cause.is_some_and(Cause::is_asked);
        if successor {
            self.recycling = None;
            if !asked {
                self.retire_failed(id.slot, out);
            }
        }
        self.reload_failed(id, || error.clone(), out);
        if asked || proc.cause == Some(Cause::Killed) || self.rules.once {
            // It was given up before it was there.
            let slot = &mut self.slots[id.slot];
            (slot.until, slot.owed) = (slot.until.min(self.now), slot.main.is_none());
            return;
        }
        self.failed(id, None, None, Some(error), None, out);
    }

    fn retire_failed(&mut self, slot: u32, out: &mut Vec<Action>) {
        self.stats.retire_failed += 1;
        out.push(Action::Report(Event::RetireFailed { slot }));
    }

    // ---- time ----

    fn tick(&mut self, skipped: bool, out: &mut Vec<Action>) {
        while let Some(dead) = self.dead.pop_front() {
            self.settle(dead, out);
        }
        if skipped {
            return;
        }
        let now = self.now;
        if self.poll_at <= now {
            self.poll_at = now.saturating_add(self.rules.beat);
        }
        let mut plain = Vec::new();
        for proc in self.slots.iter_mut().flat_map(Slot::procs_mut) {
            let rules = &self.rules;
            let quiet = now.saturating_sub(proc.loop_at);
            if proc.state == State::Ready && !proc.plain && rules.hang > 0 && quiet >= rules.hang {
                let fresh = now.saturating_sub(proc.native_at) < rules.hang / 2;
                let cause = if fresh { Cause::Blocked } else { Cause::Frozen };
                (proc.state, proc.cause) = (State::Suspect, Some(cause));
                proc.deadline = Some(now.saturating_add(rules.abort_grace));
                self.stats.suspected += 1;
                out.push(Action::Report(Event::Suspect { worker: proc.id, cause, stack: None }));
                out.extend(rules.dump_signal.map(|signal| Action::Dump(proc.key, signal)));
            }
            if proc.deadline.is_none_or(|at| at > now) {
                continue;
            }
            match proc.state {
                // It has had its time to say hello, and lives.
                State::Spawned if proc.there && rules.ready_after.is_some() && !proc.id.is_spare() => plain.push(proc.id),
                State::Spawned | State::Starting => {
                    proc.cause = Some(Cause::BootTimeout);
                    proc.terminate(now, rules, out);
                }
                State::Suspect => proc.signal(libc::SIGABRT, State::Aborting, now, rules, out),
                State::Draining => {
                    proc.forced = true;
                    proc.terminate(now, rules, out);
                }
                State::Aborting | State::Killing => proc.signal(libc::SIGKILL, State::Killing, now, rules, out),
                _ => proc.deadline = None,
            }
        }
        for id in plain {
            self.take_as_ready(id, out);
        }
        if self.probation().any(|at| at <= now) {
            self.recover(out);
        }
        let is_weighed = self.weigh_at <= now;
        if is_weighed {
            self.weigh_at = now.saturating_add(WEIGH);
        }
        for at in 0..self.slots.workers.len() as u32 {
            self.expire(at, out);
            let main = self.slots[at].main.as_ref().filter(|p| is_weighed && p.is_watched() && !p.expired);
            out.extend(main.zip(self.rules.max_memory).map(|(p, limit)| Action::Weigh(p.key, limit)));
        }
    }

    /// Has a slot's worker replaced, if it is time.
    fn expire(&mut self, at: u32, out: &mut Vec<Action>) {
        let main = self.slots[at].main.as_mut();
        let Some(main) = main.filter(|p| p.is_watched() && !p.expired && !p.id.is_spare()) else { return };
        let why = if main.expires_at.is_some_and(|at| at <= self.now) {
            Expiry::Age
        } else if main.most.is_some_and(|most| main.served >= most) {
            Expiry::Requests
        } else if main.heavy >= HEAVY {
            Expiry::Memory
        } else {
            return;
        };
        main.expired = true;
        *self.stats.expired.of(why) += 1;
        out.push(Action::Report(Event::Expired { worker: main.id, why }));
    }

    /// Nobody is judged by the time that this process was held up for. True if it was for so long that the round is skipped.
    fn catch_up(&mut self, now: u64, out: &mut Vec<Action>) -> bool {
        // Since the last input, because what was late before that has been caught up with.
        let late = self.watch_deadline().map_or(0, |at| now.saturating_sub(at.max(self.now)));
        let procs = self.slots.iter_mut().flat_map(Slot::procs_mut);
        if late <= if self.rules.hang > 0 { self.rules.hang / 2 } else { HELD_UP } {
            for proc in procs.filter(|_| late > 0) {
                proc.loop_at = proc.loop_at.saturating_add(late).min(now);
                proc.native_at = proc.native_at.saturating_add(late).min(now);
            }
            return false;
        }
        for proc in procs {
            (proc.loop_at, proc.native_at) = (now, now);
            proc.deadline = proc.deadline.map(|at| at.saturating_add(late));
        }
        self.stats.skipped += 1;
        self.poll_at = now.saturating_add(self.rules.beat);
        out.push(Action::Report(Event::Skipped { late: Duration::from_nanos(late) }));
        true
    }

    fn settle(&mut self, dead: Dead, out: &mut Vec<Action>) {
        let charged = dead.charged && dead.uptime.is_some() && !dead.cause.is_asked();
        let cause = if charged { Cause::Charged } else { dead.cause };
        *self.stats.exits.of(cause) += 1;
        if dead.successor && !cause.is_asked() {
            self.retire_failed(dead.id.slot, out);
        }
        let error = || dead.error.clone().unwrap_or_else(|| ended_error(dead.id, cause, &dead.ended, dead.text.as_deref()));
        self.reload_failed(dead.id, error, out);
        if dead.predecessor {
            // It was replaced: its slot does not depend on it.
            return;
        }
        if cause.is_asked() || matches!(cause, Cause::Charged | Cause::Killed) || self.rules.once {
            let slot = &mut self.slots[dead.id.slot];
            (slot.until, slot.owed) = (slot.until.min(self.now), slot.main.is_none());
            return;
        }
        self.failed(dead.id, Some(cause), dead.uptime, dead.error, dead.relieved, out);
    }

    /// A process failed that nobody asked to end: the slot rests, and it counts if it was unstable.
    /// Where a spare took its place, the slot of that rests in its stead.
    fn failed(
        &mut self,
        id: WorkerId,
        cause: Option<Cause>,
        uptime: Option<u64>,
        error: Option<Error>,
        relieved: Option<u32>,
        out: &mut Vec<Action>,
    ) {
        let now = self.now;
        let limit = self.limit();
        let spare = relieved.map(|number| (number, self.slots[number].back_off));
        let slot = &mut self.slots[id.slot];
        // While the slot has another worker, or is to have none, nobody is missing.
        let missing = slot.main.is_none() || relieved.is_some();
        // A spare is missed by nobody: a program that fails only as one is no reason to stop starting workers.
        let unstable = slot.wanted && missing && !id.is_spare() && uptime.is_none_or(|u| u < self.rules.min_uptime);
        let undo =
            |cause| Undo { incarnation: id.incarnation, cause, back_off: slot.back_off, unstable_at: unstable.then_some(now), spare };
        // A task can only be blamed for who has been ready.
        slot.undo = uptime.and(cause).map(undo);
        let delay = slot.back_off.failed(uptime, &self.rules.delays, &mut self.random);
        slot.until = now.saturating_add(delay);
        slot.owed = false;
        if unstable {
            self.intensity.add(now, self.rules.window);
        }
        if !slot.wanted {
            return;
        }
        if let Some(number) = relieved {
            let spare = &mut self.slots[number];
            let delay = spare.back_off.failed(uptime, &self.rules.delays, &mut self.random).max(delay);
            spare.until = spare.until.max(now.saturating_add(delay));
        }
        let resting = &mut self.slots[relieved.unwrap_or(id.slot)];
        if resting.main.is_none() && !resting.quarantined {
            let slot = resting.number();
            if self.degraded.is_some() {
                resting.quarantined = true;
                out.push(Action::Report(Event::Quarantined { slot }));
            } else {
                let delay = Duration::from_nanos(resting.until.saturating_sub(now));
                out.push(Action::Report(Event::BackOff { slot, delay }));
            }
        }
        if let Some(error) = error
            && !self.ever_ready
        {
            self.slots[id.slot].failed_first = true;
            if self.slots.workers.iter().filter(|s| s.wanted).all(|s| s.failed_first) {
                self.slots.iter_mut().for_each(|s| s.failed_first = false);
                out.push(Action::Report(Event::StartFailed { error }));
            }
        }
        if self.degraded.is_none() && self.intensity.exceeds(now, limit, self.rules.window) {
            self.degrade(limit + 1, out);
        }
    }

    fn degrade(&mut self, failures: usize, out: &mut Vec<Action>) {
        self.stats.degradations += 1;
        self.degraded = Some(Degraded { since: self.now, probe_at: self.now.saturating_add(self.rules.probe) });
        out.push(Action::Report(Event::Degraded { failures, window: Duration::from_nanos(self.rules.window) }));
        if self.reload.as_ref().is_some_and(|r| r.replaced > 0 && !r.is_going_back()) {
            let error = Error::new(ErrorKind::Degraded, "too many workers fail").with("failures", failures);
            self.go_back(error, out);
        }
        for slot in self.slots.iter_mut() {
            // An exit that is not settled yet may turn out to be nobody's fault.
            let unsettled = self.dead.iter().any(|d| d.id.slot == slot.number() && !d.predecessor);
            if slot.wanted && slot.main.is_none() && !slot.owed && !unsettled {
                slot.quarantined = true;
                out.push(Action::Report(Event::Quarantined { slot: slot.number() }));
            }
        }
    }

    fn recover(&mut self, out: &mut Vec<Action>) {
        self.degraded = None;
        self.intensity.clear();
        self.stats.recoveries += 1;
        for slot in self.slots.iter_mut().filter(|s| s.quarantined) {
            (slot.quarantined, slot.until) = (false, self.now);
        }
        out.push(Action::Report(Event::Recovered));
    }

    // ---- spares ----

    /// Spares may be started: not of a program that knows nothing of its supervisor, which takes work as soon as it runs; not before the workers, and not in a reload, which replaces them in the end.
    fn may_have_spares(&self) -> bool {
        let mut mains = self.slots.workers.iter().filter_map(|s| s.main.as_ref()).filter(|p| p.is_watched()).peekable();
        self.reload.is_none() && mains.peek().is_some() && mains.all(|p| !p.plain)
    }

    /// A spare that is ready takes each place that has no worker, in the step in which that is so.
    fn take_over(&mut self, out: &mut Vec<Action>) {
        if self.stopping || self.slots.spares.is_empty() {
            return;
        }
        let plain = self.slots.workers.iter().filter_map(|s| s.main.as_ref()).find(|p| p.plain).map(|p| p.id);
        if let Some(worker) = plain.filter(|_| !self.refused) {
            out.push(Action::Report(Event::SpareRefused { worker }));
        }
        self.refused = plain.is_some();
        for at in 0..self.slots.workers.len() as u32 {
            let slot = &self.slots[at];
            if !slot.wanted || slot.main.is_some() {
                continue;
            }
            let target = self.reload.as_ref().filter(|r| r.takes(at)).map(Reload::target);
            let fits = |p: &Proc| p.state == State::Ready && (p.id.generation == slot.generation || Some(p.id.generation) == target);
            let Some(from) = self.slots.spares.iter().position(|s| s.main.as_ref().is_some_and(fits)) else { continue };
            self.activate(from, at, out);
        }
    }

    fn activate(&mut self, from: usize, at: u32, out: &mut Vec<Action>) {
        let now = self.now;
        let slot = &mut self.slots.spares[from];
        let Some(mut proc) = slot.main.take() else { return };
        let number = slot.number();
        slot.until = slot.until.max(now.saturating_add(SETTLE));
        slot.quarantined = self.degraded.is_some();
        if slot.quarantined {
            out.push(Action::Report(Event::Quarantined { slot: number }));
        }
        if let Some(dead) = self.dead.iter_mut().rev().find(|d| d.id.slot == at && !d.predecessor && !d.successor) {
            dead.relieved.get_or_insert(number);
        }
        let slot = &mut self.slots[at];
        let spare = proc.id;
        proc.id = WorkerId { slot: at, generation: spare.generation, incarnation: slot.last.incarnation + 1 };
        // Its time begins now: an end that comes soon is one that is not stable.
        let (random, rules) = (&mut self.random, &self.rules);
        proc.expires_at = rules.max_age.map(|age| now.saturating_add(about(age, random)));
        (proc.ready_at, proc.served, proc.heavy) = (Some(now), 0, 0);
        let worker = proc.id;
        (slot.last, slot.quarantined, slot.owed, slot.failed_first) = (worker, false, false, false);
        if let Some(reload) = self.reload.as_mut().filter(|r| r.takes(at) && r.target() == worker.generation) {
            slot.generation = worker.generation;
            reload.done(at);
        }
        self.stats.activated += 1;
        out.push(Action::Activate(proc.key, worker));
        out.push(Action::Report(Event::Activated { spare, worker }));
        slot.main = Some(proc);
    }

    // ---- starts ----

    fn spawn(&mut self, at: u32, generation: u32, out: &mut Vec<Action>) -> Proc {
        let slot = &mut self.slots[at];
        slot.owed = false;
        let id = WorkerId { slot: at, generation, incarnation: slot.last.incarnation + 1 };
        slot.last = id;
        out.push(Action::Spawn(id));
        Proc {
            id,
            key: id,
            state: State::Spawned,
            spawned_at: self.now,
            ready_at: None,
            deadline: Some(self.now.saturating_add(self.rules.ready_after.filter(|_| !id.is_spare()).unwrap_or(self.rules.boot))),
            loop_beat: 0,
            loop_at: self.now,
            native_beat: 0,
            native_at: self.now,
            cause: None,
            forced: false,
            charged: false,
            killed: false,
            expires_at: None,
            most: None,
            served: 0,
            heavy: 0,
            expired: false,
            there: false,
            plain: false,
        }
    }

    /// Starts what may be started now.
    fn fill(&mut self, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        let starting = self.slots.iter().flat_map(Slot::procs).filter(|p| p.is_starting()).count();
        let mut places = self.rules.max_starting.saturating_sub(starting);
        if self.degraded.is_some() && starting == 0 && self.next_start().is_none() {
            self.probe(out);
        }
        while places > 0
            && let Some(at) = self.next_start()
        {
            if let Some(reload) = self.reload.as_mut().filter(|r| r.takes(at)) {
                self.slots[at].generation = reload.target();
                reload.done(at);
            }
            let proc = self.spawn(at, self.slots[at].generation, out);
            self.slots[at].main = Some(proc);
            places -= 1;
        }
        if places == 0 || self.recycling.is_some() {
            return;
        }
        match &self.reload {
            Some(_) => self.reload_step(out),
            None if self.degraded.is_none() => self.recycle(out),
            None => {}
        }
    }

    /// The slot that is to be started now: workers before spares, who was never tried first, then who has rested longest.
    fn next_start(&self) -> Option<u32> {
        let unsettled = |s: &Slot| self.dead.iter().any(|d| d.id.slot == s.number() || d.relieved == Some(s.number()));
        let has_spares = self.may_have_spares();
        let may = |s: &Slot| s.wanted && s.main.is_none() && !s.quarantined && s.until <= self.now && (has_spares || !s.last.is_spare());
        // The reload starts its own slot.
        let next = self.reload.as_ref().filter(|_| self.recycling.is_none()).and_then(Reload::next);
        let due = self.slots.iter().filter(|s| may(s) && !unsettled(s) && next != Some(s.number()));
        due.min_by_key(|s| (s.last.is_spare(), s.last.incarnation > 0, s.until, s.number())).map(Slot::number)
    }

    /// Lets one slot try, when it is time and nobody else starts.
    fn probe(&mut self, out: &mut Vec<Action>) {
        let (now, has_spares) = (self.now, self.may_have_spares());
        let Some(degraded) = &mut self.degraded else { return };
        let quarantined = self.slots.iter_mut().filter(|s| s.wanted && s.quarantined && (has_spares || !s.last.is_spare()));
        let quarantined = quarantined.min_by_key(|s| (s.last.is_spare(), s.until));
        match quarantined {
            Some(slot) if degraded.probe_at <= now => {
                degraded.probe_at = now.saturating_add(self.rules.probe);
                (slot.quarantined, slot.until) = (false, now);
            }
            Some(_) => {}
            // Nobody is left to be tried: who failed is no longer wanted, or is up.
            None => {
                let filled = self.slots.workers.iter().all(|s| !s.wanted || s.main.is_some());
                if filled && self.dead.is_empty() && self.probation().next().is_none() {
                    self.recover(out);
                }
            }
        }
    }

    fn recycle(&mut self, out: &mut Vec<Action>) {
        let slots = &self.slots;
        // Who was replaced otherwise, meanwhile, is new already.
        self.retiring.retain(|s| slots[*s].main.as_ref().is_some_and(Proc::is_watched));
        let expired = |s: &Slot| s.wanted && s.main.as_ref().is_some_and(|p| p.is_watched() && p.expired);
        for at in slots.workers.iter().filter(|s| expired(s)).map(Slot::number) {
            if !self.retiring.contains(&at) {
                self.retiring.push_back(at);
            }
        }
        // How long a slot rests is not known before its last failure is settled.
        let unsettled = |slot: u32| self.dead.iter().any(|d| d.id.slot == slot);
        let may = |slot: &u32| self.slots[*slot].until <= self.now && !unsettled(*slot);
        let Some(i) = self.retiring.iter().position(may) else { return };
        let Some(slot) = self.retiring.remove(i) else { return };
        self.recycling = Some(slot);
        let proc = self.spawn(slot, self.slots[slot].generation, out);
        self.slots[slot].other = Some(proc);
    }
}

/// How a worker ended that had been ready, and was to replace another: its own words, if it has left any.
fn ended_error(id: WorkerId, cause: Cause, ended: &Ended, text: Option<&str>) -> Error {
    let text = text.unwrap_or("worker ended before it had proved itself");
    let error = Error::new(ErrorKind::StartFailed, text.to_owned()).with("slot", id.slot);
    with_exit(error.with("cause", format_args!("{cause:?}")), ended)
}

/// What `start` fails with: the worker's own words, if it has left any.
fn boot_error(id: WorkerId, cause: Cause, ended: &Ended, text: Option<&str>, boot: u64) -> Error {
    let error = match (text, cause) {
        (Some(text), _) => Error::new(ErrorKind::StartFailed, text.to_owned()),
        (None, Cause::BootTimeout) => {
            Error::new(ErrorKind::StartFailed, "worker was not ready in time").with("boot_timeout_ms", boot / 1_000_000)
        }
        (None, _) => Error::new(ErrorKind::StartFailed, "worker ended before it was ready"),
    };
    with_exit(error.with("slot", id.slot), ended)
}

fn with_exit(error: Error, ended: &Ended) -> Error {
    match (ended.exit.code, ended.exit.signal) {
        (Some(code), _) => error.with("exit_code", code),
        (_, Some(signal)) => error.with("signal", signal).with("oom", ended.oom),
        _ => error.with("exit", "unknown"),
    }
}
