//! Workers whose threads run an event loop of the host (JavaScript): they may not block in here, and a call from there costs more
//! than a small task. So they take tasks ahead, several per call, give results back the same way, and sleep in their loop.
//!
//! What was handed out and where it stands is in the worker's [`Board`], which the host reads and writes itself:
//!
//! ```text
//!             the host's CAS             the host stores
//!   READY ───────────────────► CLAIMED ─────────────────► DONE, FAILED
//!     │ our CAS                   │ our CAS
//!     ▼                           ▼
//!   REVOKED                  CANCELLED, LATE ───────────► DONE, FAILED
//! ```
//!
//! For the core a task that was handed out is RUNNING, whatever its word says. A task with READY has not begun: an idle worker,
//! somebody who cancels it, a tick that finds the task before it running for 4 ms, and the end of its worker all take it back by the same
//! CAS, so a task behind a long one is never stuck and waits where the scheduler orders it,
//! and a thread that ends loses only what it had begun; of that, what has `retries` left waits again, before the rest. What has a deadline or a key is handed out alone, and CLAIMED at once.
//!
//! Results lie in the board too, so that anybody may collect them: the worker with its next call, a tick for those that lie behind a long
//! task, and the end of the thread for what it finished before.
//!
//! | Pair                                     | Release                    | Acquire                               |
//! |------------------------------------------|----------------------------|---------------------------------------|
//! | a result's bytes and its word            | the host's store of DONE   | the load in `Hand::collect`           |
//! | who begins a task, or takes it back      | CAS, both sides            | the same CAS                          |
//! | a claimed sleeper and its token          | `Inner::hand_token`        | the swap in `LoopWorker::rouse`       |
//!
//! **Sleep.** A worker of a loop sleeps as any other ([`idle`](super::idle)): it is on the list, has looked once more, and gets a
//! token. There is no thread to block on the token, so whoever hands one also calls the worker's *waker*. The token is stored before that
//! call, and the waker was set before the worker first lay down, so a wake is never for nothing and never missed. A loop
//! may run for reasons of its own while its worker sleeps; it then takes itself off the list, or its token is on the way and so is its wake.

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Counter, Writer};
use crate::ops::Control;
use crate::pool::idle::{Idle, TOKEN_SEARCH};
use crate::pool::inner::Inner;
use crate::pool::recycle::{Place, Term};
use crate::pool::service;
use crate::pool::task::{Core, WorkKind};
use crate::pool::trace::{Ending, Outcome};
use crate::pool::worker::{Refill, Turn, Worker};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::lock;
use crate::sys::clock;
use crate::value::Value;
use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The host's side of a pool of loops.
pub trait LoopHost: Send + Sync {
    /// Its workers are other processes, which share another memory than a [`Board`] with the pool.
    fn has_lanes(&self) -> bool {
        false
    }

    /// The calling thread waits until `done`, at most to `end`, and looks after the workers meanwhile, so that no other thread has to be woken
    /// between a worker and this one. False if it did not, because another thread does.
    fn lead(&self, _done: &dyn Fn() -> bool, _end: Option<Instant>) -> bool {
        false
    }

    /// A task that the leader may wait for has its outcome.
    fn wake_leader(&self) {}

    /// Starts one more thread for this worker. Called on any thread, under no lock of the pool's queue; it must not block. Gives
    /// the worker back if there can be no thread for it.
    ///
    /// # Errors
    /// The worker.
    #[allow(clippy::result_large_err, reason = "the worker itself comes back")]
    fn start(&self, worker: LoopWorker) -> Result<(), LoopWorker>;

    /// Ends the thread of the worker with this [tag](LoopWorker::set_tag): it is still inside a task that nobody has waited for since the
    /// grace began. [`LoopWorker::lost`] follows once the thread has ended. Must not block.
    fn end(&self, tag: u64);
}

/// How workers of loops are treated.
#[derive(Clone)]
pub struct LoopOptions {
    /// Who starts and ends their threads.
    pub host: Arc<dyn LoopHost>,
    /// Tasks that one worker may run at once, 1 to [`MAX_CONCURRENCY`].
    pub concurrency: usize,
    /// How long a task that nobody waits for may go on before its thread is ended.
    pub cancel_grace: Duration,
}

impl std::fmt::Debug for LoopOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopOptions").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

/// Most tasks at once in one worker of a loop.
pub const MAX_CONCURRENCY: usize = 4096;
/// Most tasks that are handed out at once.
pub const AHEAD: usize = 32;
/// The same in a lane, of tasks that take next to nothing: that fewer wakes pay for more of them.
pub(super) const LANE_AHEAD: usize = 128;
/// More than [`AHEAD`] are worth about this much work at most, so that what is behind them waits no longer.
const AHEAD_NS: u64 = 100_000;
/// Ticks, of a millisecond, after which a task takes too long for others to wait behind it.
const HELD_UP: u32 = 4;
/// Bytes of results that wait in a board.
const OUT: usize = 64 * 1024;

/// Most tasks that a worker has at once: what it runs, and what is ahead. Even, as halves of a word of 64 bits.
pub(super) const fn held_at_once(concurrency: usize, ahead: usize) -> usize {
    (concurrency + ahead).next_multiple_of(2)
}

/// States of a task in a [`Board`].
pub mod word {
    /// Nothing is here.
    pub const FREE: u32 = 0;
    /// Handed out and not begun.
    pub const READY: u32 = 1;
    /// Begun.
    pub const CLAIMED: u32 = 2;
    /// Taken back before it began.
    pub const REVOKED: u32 = 3;
    /// Begun, and cancelled since.
    pub const CANCELLED: u32 = 4;
    /// Begun, and past its timeout since.
    pub const LATE: u32 = 5;
    /// Ended with a result.
    pub const DONE: u32 = 6;
    /// Ended with an error of the function, which is its result.
    pub const FAILED: u32 = 7;
}
use word::{CANCELLED, CLAIMED, DONE, FAILED, FREE, LATE, READY, REVOKED};

/// Memory that one worker of a loop shares with the pool: for each task that it may hold a word, a time, and where its result lies.
///
/// In this order, each part from a multiple of 8 bytes: words (`u32`), run times in ns (`f64`), offset and length of each result in
/// `out` (two `u32`), `out`.
pub struct Board {
    memory: Box<[AtomicU64]>,
    tasks: usize,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Board({})", self.tasks)
    }
}

impl Board {
    fn new(tasks: usize) -> Board {
        let len = tasks / 2 + tasks + tasks + OUT / 8;
        Board { memory: (0..len).map(|_| AtomicU64::new(0)).collect(), tasks }
    }

    /// Its bytes. They live as long as the board.
    #[must_use]
    pub fn memory(&self) -> (*mut u8, usize) {
        (self.memory.as_ptr().cast_mut().cast(), size_of_val(&*self.memory))
    }

    /// How many tasks it has room for.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks
    }

    /// Bytes of `out`, at the end.
    #[must_use]
    pub fn out_len(&self) -> usize {
        OUT
    }
}

impl Shared for Board {
    fn words(&self) -> &[AtomicU32] {
        // SAFETY: `tasks / 2` whole `u64` lie there; atomics of both sizes may be read and written by any thread.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.tasks) }
    }

    fn result(&self, index: usize) -> (u64, Result<Value>) {
        let run = f64::from_bits(self.memory[self.tasks / 2 + index].load(Ordering::Relaxed));
        let place = self.memory[self.tasks / 2 + self.tasks + index].load(Ordering::Relaxed);
        let (at, len) = (place as u32 as usize, (place >> 32) as usize);
        if at > OUT || len > OUT - at {
            let error = Error::new(ErrorKind::Corrupt, "result lies outside of the worker's board").with("offset", at).with("len", len);
            return (run as u64, Err(error));
        }
        let mut bytes = Vec::with_capacity(len);
        let first = self.memory.len() - OUT / 8;
        // SAFETY: inside `out`, as checked; the host does not write there again before this task was collected, and what it wrote
        // before it stored the word is seen here, because that was loaded with Acquire.
        unsafe {
            std::ptr::copy_nonoverlapping(self.memory[first..].as_ptr().cast::<u8>().add(at), bytes.as_mut_ptr(), len);
            bytes.set_len(len);
        }
        (run as u64, Ok(Value::Bytes(bytes.into())))
    }
}

/// What a worker and the pool share of the tasks that the worker has.
pub(super) trait Shared: Send + Sync {
    /// Where each stands: [`word`].
    fn words(&self) -> &[AtomicU32];
    /// Run time in ns and reply of a task that has ended; `Corrupt` if the reply lies where it may not.
    fn result(&self, index: usize) -> (u64, Result<Value>);
    /// The worker has seen that this number was given, and then taken back: what was given with it is free. Asked for until it is true.
    fn has_passed(&self, _index: usize) -> bool {
        true
    }
}

type Waker = Box<dyn Fn() + Send + Sync>;
type Payload = Box<dyn Any + Send>;

struct Held {
    core: Arc<Core>,
    payload: Payload,
    started_ns: u64,
    /// Order of handing out.
    order: u64,
}

#[derive(Default)]
struct Hold {
    /// Tasks that were handed out and not taken back.
    begun: u64,
    held: Vec<Option<Held>>,
    free: Vec<usize>,
    /// Taken back; the host still has their numbers, until it asks for more.
    revoked: Vec<usize>,
    order: u64,
    /// Its thread is being ended: it gets nothing more.
    ended: bool,
    /// Tasks that have ended, and how many of them a tick has seen.
    done: u64,
    seen: u64,
    /// Ticks in a row at which something was ahead, something ran, and nothing had ended.
    still: u32,
    /// Its worker wrote what it may not.
    unsound: bool,
}

/// What one worker of a loop holds; the pool's side of its board.
pub(super) struct Hand {
    /// Of a worker in another process: once there is one.
    board: OnceLock<Arc<dyn Shared>>,
    hold: Mutex<Hold>,
    waker: OnceLock<Waker>,
    tag: AtomicU64,
    pub(super) term: Term,
}

/// A task that has ended, out of its board.
struct Ended {
    held: Held,
    failed: bool,
    run_ns: u64,
    result: Result<Value>,
}

impl Hand {
    fn new(tasks: usize, term: Term) -> Hand {
        let hold = Hold { held: (0..tasks).map(|_| None).collect(), free: (0..tasks).rev().collect(), ..Hold::default() };
        Hand { board: OnceLock::new(), hold: Mutex::new(hold), waker: OnceLock::new(), tag: AtomicU64::new(0), term }
    }

    fn words(&self) -> &[AtomicU32] {
        self.board.get().map_or(&[], |board| board.words())
    }

    /// Tasks that it has begun, or may begin: what was handed out and not taken back.
    pub(super) fn begun(&self) -> u64 {
        lock(&self.hold).begun
    }

    /// After a token was stored, or a task that it runs was cancelled.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    fn count(&self, want: impl Fn(u32) -> bool) -> usize {
        self.words().iter().filter(|w| want(w.load(Ordering::Relaxed))).count()
    }

    /// Tasks that were handed out and not begun.
    pub(super) fn ahead(&self) -> usize {
        self.count(|w| w == READY)
    }

    /// Tasks that run and have no outcome.
    pub(super) fn running(&self) -> usize {
        self.count(|w| w == CLAIMED)
    }

    /// Tasks that have begun and not ended, whether anybody waits for them or not.
    fn at_work(&self) -> usize {
        self.count(|w| matches!(w, CLAIMED | CANCELLED | LATE))
    }

    /// Something was handed out that has not come back.
    pub(super) fn holds(&self) -> bool {
        let hold = lock(&self.hold);
        hold.free.len() + hold.revoked.len() < hold.held.len()
    }

    /// Results wait in the board.
    fn has_ended(&self) -> bool {
        self.count(|w| w >= DONE) > 0
    }

    pub(super) fn all(&self) -> Vec<Arc<Core>> {
        lock(&self.hold).held.iter().flatten().map(|h| h.core.clone()).collect()
    }

    /// Takes one task back that has not begun.
    fn revoke(&self, hold: &mut Hold, index: usize) -> Option<Held> {
        self.words()[index].compare_exchange(READY, REVOKED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        hold.revoked.push(index);
        hold.begun -= 1;
        hold.held[index].take()
    }

    /// What runs takes long, and something waits behind it.
    fn is_held_up(&self) -> bool {
        let (ahead, at_work) = (self.ahead(), self.at_work());
        let mut hold = lock(&self.hold);
        if at_work == 0 || hold.seen != hold.done {
            (hold.seen, hold.still) = (hold.done, 0);
            return false;
        }
        // What was taken back does not go there again before something has ended: the count stays.
        if ahead == 0 {
            return false;
        }
        hold.still = hold.still.saturating_add(1);
        hold.still >= HELD_UP
    }

    /// As the last tick had it, and nothing has ended since.
    fn was_held_up(&self) -> bool {
        let hold = lock(&self.hold);
        hold.still >= HELD_UP && hold.seen == hold.done
    }

    /// It was handed out and has not begun.
    pub(super) fn has_ahead(&self, core: &Arc<Core>) -> bool {
        let hold = lock(&self.hold);
        let index = hold.held.iter().position(|h| h.as_ref().is_some_and(|h| Arc::ptr_eq(&h.core, core)));
        index.is_some_and(|i| self.words()[i].load(Ordering::Relaxed) == READY)
    }

    /// Takes back what has not begun, all of it or the later half of it, in order.
    fn revoke_ahead(&self, half: bool) -> Vec<Held> {
        let mut hold = lock(&self.hold);
        let is_ready = |i: &usize| self.words()[*i].load(Ordering::Relaxed) == READY;
        let mut ready: Vec<usize> = (0..hold.held.len()).filter(|i| hold.held[*i].is_some()).filter(is_ready).collect();
        ready.sort_by_key(|i| hold.held[*i].as_ref().map(|h| h.order));
        let keep = if half { ready.len() / 2 } else { 0 };
        // The last first: the host begins with the first ones meanwhile.
        let mut taken: Vec<Held> = ready[keep..].iter().rev().filter_map(|i| self.revoke(&mut hold, *i)).collect();
        taken.reverse();
        taken
    }

    /// Takes `core` back if it has not begun.
    pub(super) fn revoke_one(&self, core: &Arc<Core>) -> Option<Payload> {
        let mut hold = lock(&self.hold);
        let index = hold.held.iter().position(|h| h.as_ref().is_some_and(|h| Arc::ptr_eq(&h.core, core)))?;
        self.revoke(&mut hold, index).map(|held| held.payload)
    }

    /// Tells the function of `core` that nobody waits for it any more.
    pub(super) fn tell(&self, core: &Arc<Core>, kind: ErrorKind) {
        let told = {
            let hold = lock(&self.hold);
            let index = hold.held.iter().position(|h| h.as_ref().is_some_and(|h| Arc::ptr_eq(&h.core, core)));
            let word = if kind == ErrorKind::Timeout { LATE } else { CANCELLED };
            index.is_some_and(|i| self.words()[i].compare_exchange(CLAIMED, word, Ordering::AcqRel, Ordering::Relaxed).is_ok())
        };
        if told {
            self.wake();
        }
    }

    /// Takes what has ended out of the board. False if a word has ever said what its worker may not say.
    fn collect(&self, ended: &mut Vec<Ended>) -> bool {
        let Some(board) = self.board.get() else { return true };
        let mut sound = true;
        let first = ended.len();
        let mut hold = lock(&self.hold);
        for (index, word) in board.words().iter().enumerate() {
            let state = word.load(Ordering::Acquire);
            if state < DONE {
                // Both are changed under the lock, so who has the word has the task, and who has none has no task.
                sound &= hold.held[index].is_none() == matches!(state, FREE | REVOKED);
                continue;
            }
            if let Some(held) = hold.held[index].take() {
                let (run_ns, result) = if state <= FAILED { board.result(index) } else { (0, Err(no_such_state(state))) };
                // One that this process has no memory for is nobody's lie.
                sound &= !result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt);
                ended.push(Ended { held, failed: state != DONE, run_ns, result });
                hold.free.push(index);
                hold.done += 1;
            }
            word.store(FREE, Ordering::Relaxed);
        }
        // As they were handed out, which is how one that runs one at a time has ended them.
        ended[first..].sort_unstable_by_key(|one| one.held.order);
        // A tick collects as well, and has no way to end a worker.
        hold.unsound |= !sound;
        !hold.unsound
    }
}

fn no_such_state(state: u32) -> Error {
    Error::new(ErrorKind::Corrupt, "the worker wrote a state that no task has").with("state", state)
}

/// Ends tasks whose functions have returned, and counts them.
fn conclude(pool: &Arc<Inner>, writer: &Writer, ended: Vec<Ended>) {
    let mut keys = Vec::new();
    for Ended { held: Held { core, started_ns, .. }, failed, run_ns, result } in ended {
        keys.extend(core.key);
        writer.wait(started_ns.saturating_sub(core.submitted_ns));
        writer.run(run_ns);
        writer.busy(run_ns);
        if core.claim_finish() {
            // Counted first, so that whoever sees the outcome sees it counted.
            let outcome = if failed || result.is_err() { Outcome::Failed } else { Outcome::Completed };
            writer.count(outcome.counter(), 1);
            core.note(outcome, Ending::Ran(run_ns));
            core.publish(result, true);
        } else {
            core.returned.store(true, Ordering::SeqCst);
            pool.overdue.fetch_sub(1, Ordering::SeqCst);
        }
    }
    if !keys.is_empty() {
        let mut state = lock(&pool.state);
        keys.into_iter().for_each(|key| state.sched.key_done(key));
    }
}

/// Makes tasks wait again that were taken back or lost their worker; what has its outcome meanwhile is dropped.
fn unstart(pool: &Inner, taken: Vec<Held>) -> Vec<Arc<Core>> {
    let waits = |Held { core, payload, .. }: Held| {
        if core.unstart(WorkKind::Hosted(payload)) {
            return Some(core);
        }
        pool.drop_decided(&core);
        None
    };
    taken.into_iter().filter_map(waits).collect()
}

impl Inner {
    /// A task that was handed out and has not begun has its outcome: whoever decided it found it running. The caller that has the state's lock
    /// has no task with a key: those are handed out as begun.
    fn drop_decided(&self, core: &Core) {
        core.returned.store(true, Ordering::SeqCst);
        self.overdue.fetch_sub(1, Ordering::SeqCst);
        if let Some(key) = core.key {
            lock(&self.state).sched.key_done(key);
        }
    }

    /// Half of what the worker of a loop has ahead, for a thief.
    pub(super) fn steal_ahead(&self, hand: &Hand) -> Vec<Arc<Core>> {
        unstart(self, hand.revoke_ahead(true))
    }

    /// All that the worker of a loop has ahead.
    pub(super) fn take_ahead(&self, hand: &Hand) -> Vec<Arc<Core>> {
        unstart(self, hand.revoke_ahead(false))
    }

    /// A task that was handed out and has not begun waits again, but in no queue. False if it has begun, or has its outcome.
    pub(super) fn take_back(&self, core: &Arc<Core>) -> bool {
        let hand = self.hand_of(self.slot(Turn::of(core).slot));
        let Some(payload) = hand.and_then(|hand| hand.revoke_one(core)) else { return false };
        let waits = core.unstart(WorkKind::Hosted(payload));
        if !waits {
            self.drop_decided(core);
        }
        waits
    }

    /// What was sent ahead behind a task that takes long is queued again: who comes next is the scheduler's to say.
    pub(super) fn recall(&self) {
        for (at, slot) in self.slots().enumerate() {
            if let Some(hand) = self.hand_of(slot).filter(|hand| hand.is_held_up()) {
                let mut state = lock(&self.state);
                let tasks = self.take_ahead(&hand);
                self.give_back(&mut state, at, tasks);
            }
        }
    }

    /// A function goes on although nobody has waited for it since the grace began: its thread ends, with what it has begun.
    pub(super) fn end_loop(self: &Arc<Inner>, core: &Arc<Core>, host: &dyn LoopHost) {
        let slot = Turn::of(core).slot;
        let hand = lock(&self.slot(slot).local).hand.clone();
        let Some(hand) = hand.filter(|_| !core.returned.load(Ordering::SeqCst)) else { return };
        {
            let mut hold = lock(&hand.hold);
            let here = hold.held.iter().flatten().any(|h| Arc::ptr_eq(&h.core, core));
            if !here || std::mem::replace(&mut hold.ended, true) {
                return;
            }
        }
        let mut tasks = self.take_ahead(&hand);
        {
            let mut state = lock(&self.state);
            let place = self.slot(slot);
            let mut local = lock(&place.local);
            tasks.extend(local.batch.drain(..));
            place.batch_len.store(0, Ordering::SeqCst);
            drop(local);
            self.give_back(&mut state, slot, tasks);
        }
        host.end(hand.tag.load(Ordering::Acquire));
        Idle::publish();
        if self.has_waiting_work() {
            self.wake_one();
        }
    }

    /// Ends tasks whose results lie behind a long one. True if there may be more of them later.
    pub(super) fn collect_ended(self: &Arc<Inner>) -> bool {
        let mut ended = Vec::new();
        let mut more = false;
        for slot in self.slots() {
            let Some(hand) = lock(&slot.local).hand.clone() else { continue };
            if hand.has_ended() {
                hand.collect(&mut ended);
            }
            more |= hand.ahead() > 0;
        }
        let any = !ended.is_empty();
        if any {
            // No slot's own shard: this thread shares the common one.
            conclude(self, &self.metrics.writer(usize::MAX), ended);
        }
        any || more
    }
}

/// What [`LoopWorker::take`] hands out.
#[derive(Debug)]
pub struct Given<'a> {
    /// Its number in the board.
    pub index: usize,
    /// What was submitted. It stays with the pool until the task has ended.
    pub payload: &'a (dyn Any + Send),
    /// It has begun: nothing else is handed out with it, and it is to be run now.
    pub begun: bool,
}

/// What [`LoopWorker::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many tasks were handed out.
    Tasks(usize),
    /// Nothing, and the worker sleeps: its waker will be called.
    Asleep,
    /// The thread is to end. What it runs goes on until then.
    Leave,
}

/// What [`LoopWorker::feed`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// It has enough to do: it is fed again when something has ended.
    Busy,
    /// Nothing, and it sleeps: its waker will be called.
    Asleep,
    /// Its process is to end.
    Leave,
    /// Its process writes what it may not.
    Corrupt,
}

/// A worker in a loop of the host. Dropping it is [`lost`](Self::lost) without a reason.
pub struct LoopWorker {
    pub(super) worker: Worker,
    pub(super) hand: Arc<Hand>,
    /// Without a lane.
    board: Option<Arc<Board>>,
    concurrency: usize,
    asleep: bool,
    started: bool,
    /// Counted in `Inner::starting`.
    counted: bool,
    /// The place has not been its own.
    pub(super) succeeds: bool,
}

impl std::fmt::Debug for LoopWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoopWorker(slot {})", self.worker.me.slot)
    }
}

impl LoopWorker {
    pub(super) fn new(pool: Arc<Inner>, me: Turn, options: &LoopOptions) -> LoopWorker {
        let term = pool.limits(me.slot, false);
        let mut new = LoopWorker::with(pool, me, options, term);
        let pool = &new.worker.pool;
        lock(&pool.slot(me.slot).local).hand = Some(new.hand.clone());
        pool.starting.fetch_add(1, Ordering::SeqCst);
        new.counted = true;
        new
    }

    fn with(pool: Arc<Inner>, me: Turn, options: &LoopOptions, term: Term) -> LoopWorker {
        let has_lane = options.host.has_lanes();
        let tasks = held_at_once(options.concurrency, if has_lane { LANE_AHEAD } else { AHEAD });
        let hand = Arc::new(Hand::new(tasks, term));
        let board = (!has_lane).then(|| Arc::new(Board::new(tasks)));
        if let Some(board) = &board {
            let _ = hand.board.set(board.clone());
        }
        LoopWorker {
            worker: Worker::new(pool, me, false),
            hand,
            board,
            concurrency: options.concurrency,
            asleep: false,
            started: false,
            counted: false,
            succeeds: false,
        }
    }

    /// One that is to take the place of the worker with the hand `of`; none if that has no place, or a successor.
    pub(super) fn succeeding(pool: &Arc<Inner>, slot: usize, options: &LoopOptions, of: &Arc<Hand>) -> Option<LoopWorker> {
        // The turn is told with the place.
        let me = Turn { slot, turn: 0 };
        let mut new = LoopWorker::with(pool.clone(), me, options, pool.limits(slot, true));
        new.succeeds = true;
        {
            let mut local = lock(&pool.slot(slot).local);
            if local.successor.is_none() && local.hand.as_ref().is_some_and(|h| Arc::ptr_eq(h, of)) {
                local.successor = Some(new.hand.clone());
                return Some(new);
            }
        }
        None
    }

    /// Takes the duty to leave the pool away from a worker that never ran: whoever wanted to start it does that.
    pub(super) fn disarm(mut self) {
        self.leave_place();
        self.worker.disarm();
    }

    /// Takes its hand off the place, if nobody else has it by now.
    fn leave_place(&self) {
        let successor = {
            let mut local = lock(&self.worker.pool.slot(self.worker.me.slot).local);
            // One that was asked for after the place was given up.
            local.hand.take_if(|hand| Arc::ptr_eq(hand, &self.hand)).and_then(|_| local.successor.take())
        };
        if let Some(successor) = successor {
            successor.dismiss();
        }
    }

    /// The number of its place, from 0.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.worker.me.slot
    }

    /// What [`LoopHost::end`] will be given.
    pub fn set_tag(&self, tag: u64) {
        self.hand.tag.store(tag, Ordering::Release);
    }

    /// The memory that it shares with its thread; `None` for a worker with a lane.
    #[must_use]
    pub fn board(&self) -> Option<Arc<Board>> {
        self.board.clone()
    }

    /// The lane to its process; before [`ready`](Self::ready), once.
    pub(super) fn set_lane(&self, lane: Arc<dyn Shared>) {
        let fresh = self.hand.board.set(lane).is_ok();
        assert!(fresh, "a worker has one lane");
    }

    /// Its thread can run tasks from now on; `waker` may be called by any thread, until the worker is dropped, and must not block.
    pub fn ready(&mut self, waker: Waker) {
        let _ = self.hand.waker.set(waker);
        if !std::mem::replace(&mut self.started, true) {
            self.uncount();
            self.worker.pool.start_failures.store(0, Ordering::SeqCst);
            self.come_of_age();
        }
    }

    /// It is no longer among those that start; a successor never was, because it may not look for work when it has.
    fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.worker.pool.starting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Its thread has said that it can run tasks.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.started
    }

    /// Ends what the board says has ended. With `more` it then hands out up to [`AHEAD`] tasks; without any the worker sleeps. The host asks
    /// for more only when it has begun, or found revoked, all that it was given, and can begin at least one.
    pub fn take(&mut self, more: bool, give: &mut dyn FnMut(Given<'_>)) -> Taken {
        let give = &mut |given: Given<'_>| {
            give(given);
            true
        };
        self.collect();
        if !more {
            return Taken::Tasks(0);
        }
        if !self.rouse() {
            return Taken::Asleep;
        }
        loop {
            if self.worker.gone {
                return Taken::Leave;
            }
            match self.place() {
                Place::Own => {}
                place => {
                    self.worker.end_search();
                    let pool = &self.worker.pool;
                    if pool.has_waiting_work() {
                        pool.wake_one();
                    }
                    return if matches!(place, Place::Later) { Taken::Asleep } else { Taken::Leave };
                }
            }
            let slot = self.worker.pool.slot(self.worker.me.slot);
            if slot.batch_len.load(Ordering::Relaxed) == 0 {
                match self.worker.refill() {
                    Refill::Some => {}
                    Refill::Leave => {
                        self.worker.gone = true;
                        self.leave_place();
                        return Taken::Leave;
                    }
                    Refill::Empty | Refill::NoPermit => {
                        if self.worker.search() {
                            continue;
                        }
                        if self.doze() {
                            return Taken::Asleep;
                        }
                        continue;
                    }
                }
            }
            let given = self.hand_out(give);
            if given > 0 {
                return Taken::Tasks(given);
            }
            if lock(&self.hand.hold).ended {
                return Taken::Leave;
            }
        }
    }

    fn collect(&mut self) -> bool {
        let mut ended = Vec::new();
        let sound = self.hand.collect(&mut ended);
        for one in &ended {
            self.worker.learn(one.run_ns);
        }
        conclude(&self.worker.pool, &self.worker.writer, ended);
        sound
    }

    /// For a worker with a lane: ends what has ended, and hands out what there is as long as few tasks are ahead. It sleeps only when it
    /// can begin something and there is nothing, and goes on sleeping unless its waker was called. `give` writes the request; false if there is
    /// no room for it now.
    pub(super) fn feed(&mut self, woken: bool, give: &mut dyn FnMut(Given<'_>) -> bool) -> Fed {
        if !self.collect() {
            return Fed::Corrupt;
        }
        // Whoever has something for a sleeper calls its waker.
        if self.asleep && (!woken || !self.rouse()) {
            return Fed::Asleep;
        }
        loop {
            if self.worker.gone {
                return Fed::Leave;
            }
            match self.place() {
                Place::Own => {}
                Place::Later => return self.rest(),
                Place::None => {
                    self.rest();
                    return Fed::Leave;
                }
            }
            let ahead = self.hand.ahead();
            if ahead > self.most_ahead() / 2 || (self.hand.was_held_up() && ahead + self.hand.at_work() >= self.concurrency) {
                return self.rest();
            }
            let slot = self.worker.pool.slot(self.worker.me.slot);
            if slot.batch_len.load(Ordering::Relaxed) == 0 {
                match self.worker.refill() {
                    Refill::Some => {}
                    Refill::Leave => {
                        self.worker.gone = true;
                        self.leave_place();
                        return Fed::Leave;
                    }
                    Refill::Empty | Refill::NoPermit => {
                        if ahead + self.hand.at_work() >= self.concurrency {
                            return self.rest();
                        }
                        if self.worker.steal_some() {
                            continue;
                        }
                        if self.doze() {
                            return Fed::Asleep;
                        }
                        continue;
                    }
                }
            }
            if self.hand_out(give) == 0 {
                if lock(&self.hand.hold).ended {
                    return Fed::Leave;
                }
                let pool = &self.worker.pool;
                if pool.slot(self.worker.me.slot).batch_len.load(Ordering::Relaxed) > 0 {
                    // What comes next has to wait for what runs. Idle workers take it over with a tick.
                    pool.arm_tick();
                    return self.rest();
                }
                // All of them had been cancelled: nothing runs that would have it fed again.
            }
        }
    }

    /// Has enough to do. Somebody else looks for work, if there is more.
    fn rest(&mut self) -> Fed {
        self.worker.end_search();
        let pool = &self.worker.pool;
        if self.hand.ahead() > 0 {
            // What ends before a long task is collected, and what is behind it goes to others.
            pool.arm_tick();
        }
        if pool.has_waiting_work() {
            pool.wake_one();
        }
        Fed::Busy
    }

    /// Tells callers how far tasks are, by what `read` finds for the number of a task that has begun.
    pub(super) fn read_progress(&self, read: impl Fn(usize) -> Option<Value>) {
        for (index, word) in self.hand.words().iter().enumerate() {
            if word.load(Ordering::Acquire) == CLAIMED
                && let Some(value) = read(index)
            {
                self.progress(index, value);
            }
        }
    }

    /// It has begun something that has not ended.
    pub(super) fn is_at_work(&self) -> bool {
        self.hand.at_work() > 0
    }

    /// Its pool ends, and nothing waits that it could do.
    pub(super) fn is_needless(&self) -> bool {
        let pool = &self.worker.pool;
        pool.closing.load(Ordering::SeqCst) && !pool.has_waiting_work() && !pool.has_batches() && lock(&pool.state).sched.len() == 0
    }

    /// Tasks that may be ahead now: in a lane more of those that take next to nothing, as long as there are enough for all workers.
    fn most_ahead(&self) -> usize {
        if self.board.is_some() {
            return AHEAD;
        }
        let pool = &self.worker.pool;
        let by_cost = usize::try_from(AHEAD_NS / self.worker.cost_ns.max(1)).unwrap_or(usize::MAX);
        let by_share = pool.queued.load(Ordering::Relaxed) / pool.workers().max(1);
        by_cost.min(by_share).clamp(AHEAD, LANE_AHEAD)
    }

    /// Moves tasks of the slot's batch into the board.
    fn hand_out(&mut self, give: &mut dyn FnMut(Given<'_>) -> bool) -> usize {
        let pool = self.worker.pool.clone();
        let slot = pool.slot(self.worker.me.slot);
        self.worker.now_ns = clock::monotonic_ns();
        {
            let mut hold = lock(&self.hand.hold);
            let board = self.hand.board.get().expect("a worker that is ready has its memory");
            let revoked = std::mem::take(&mut hold.revoked);
            let (passed, pending) = revoked.into_iter().partition(|index| board.has_passed(*index));
            hold.revoked = pending;
            for index in passed {
                self.hand.words()[index].store(FREE, Ordering::Relaxed);
                hold.free.push(index);
            }
        }
        let mut given = 0;
        // A loop asks when it can begin something; a lane is filled without being asked.
        let has_lane = self.board.is_none();
        let mut at_work = self.hand.at_work() + self.hand.ahead();
        let room = self.hand.term.limits.tasks.saturating_sub(self.hand.begun()).min(self.most_ahead() as u64) as usize;
        while given < room {
            let core = {
                let mut local = lock(&slot.local);
                match local.batch.front() {
                    None => break,
                    // It begins when it is handed out.
                    Some(core) if core.alone && (given > 0 || (has_lane && at_work >= self.concurrency)) => break,
                    Some(_) if lock(&self.hand.hold).free.is_empty() => break,
                    Some(_) => {}
                }
                let core = local.batch.pop_front().expect("a front was seen under this lock");
                slot.batch_len.store(local.batch.len(), Ordering::Relaxed);
                core.ran_by.store(self.worker.me.pack(), Ordering::Release);
                core
            };
            let Some((work, started_ns)) = self.worker.start(&core) else { continue };
            let WorkKind::Hosted(payload) = work else {
                let error = Error::new(ErrorKind::Unsupported, "a pool of the host's loops runs the host's functions only");
                self.worker.finish(&core, started_ns, Err(error));
                continue;
            };
            let alone = core.alone;
            let mut hold = lock(&self.hand.hold);
            if hold.ended {
                // Between the batch and here nobody else could give it back.
                drop(hold);
                let tasks = unstart(&pool, vec![Held { core, payload, started_ns, order: 0 }]);
                pool.give_back(&mut lock(&pool.state), self.worker.me.slot, tasks);
                break;
            }
            let index = hold.free.pop().expect("seen to have room, and this worker alone fills it");
            drop(hold);
            let room = give(Given { index, payload: &*payload, begun: alone });
            let mut hold = lock(&self.hand.hold);
            if !room {
                hold.free.push(index);
                drop(hold);
                let tasks = unstart(&pool, vec![Held { core, payload, started_ns, order: 0 }]);
                let mut local = lock(&slot.local);
                tasks.into_iter().for_each(|core| local.batch.push_front(core));
                slot.batch_len.store(local.batch.len(), Ordering::SeqCst);
                break;
            }
            hold.order += 1;
            let order = hold.order;
            if core.is_open() {
                hold.begun += 1;
                self.hand.words()[index].store(if alone { CLAIMED } else { READY }, Ordering::Release);
                hold.held[index] = Some(Held { core, payload, started_ns, order });
            } else {
                // Its outcome was decided before it was in here, where whoever did that looks.
                self.hand.words()[index].store(REVOKED, Ordering::Release);
                hold.revoked.push(index);
                drop(hold);
                pool.drop_decided(&core);
            }
            given += 1;
            at_work += 1;
            if alone {
                break;
            }
        }
        if given > 1 {
            // Results and tasks behind a long one are seen to.
            pool.arm_tick();
        }
        given
    }

    /// What was submitted with a task that was handed out, until it has ended.
    pub fn payload<R>(&self, index: usize, look: impl FnOnce(&(dyn Any + Send)) -> R) -> Option<R> {
        let hold = lock(&self.hand.hold);
        hold.held.get(index)?.as_ref().map(|held| look(&*held.payload))
    }

    /// Ends a task whose result the board has no room for.
    pub fn finish(&mut self, index: usize, failed: bool, run_ns: u64, result: Vec<u8>) {
        self.finish_with(index, failed, run_ns, Value::Bytes(result.into()));
    }

    /// As [`finish`](Self::finish), with a result that is more than bytes: buffers, which are freed if nobody waits for it.
    pub fn finish_with(&mut self, index: usize, failed: bool, run_ns: u64, result: Value) {
        let held = {
            let mut hold = lock(&self.hand.hold);
            let held = hold.held.get_mut(index).and_then(Option::take);
            if held.is_some() {
                self.hand.words()[index].store(FREE, Ordering::Relaxed);
                hold.free.push(index);
            }
            held
        };
        if let Some(held) = held {
            self.worker.learn(run_ns);
            conclude(&self.worker.pool, &self.worker.writer, vec![Ended { held, failed, run_ns, result: Ok(result) }]);
        }
    }

    /// Tells the caller how far a task is that runs.
    pub fn progress(&self, index: usize, value: Value) {
        let core = lock(&self.hand.hold).held.get(index).and_then(|held| Some(held.as_ref()?.core.clone()));
        if let Some(core) = core {
            core.progress(value);
        }
    }

    /// Lies down. False if there is something to look at after all.
    fn doze(&mut self) -> bool {
        let must_look = self.worker.lie_down(false);
        self.asleep = true;
        !(must_look && self.rouse())
    }

    /// Ends a sleep: with the token that woke it, or by itself. False while its token is on the way: its waker will be called.
    pub fn rouse(&mut self) -> bool {
        if !self.asleep {
            return true;
        }
        let pool = &self.worker.pool;
        // Acquire: pairs with the Release of `Inner::hand_token`.
        let token = pool.slot(self.worker.me.slot).park.swap(0, Ordering::AcqRel);
        if token == 0 && !pool.idle.claim(self.worker.me.slot) {
            return false;
        }
        self.worker.searching = token == TOKEN_SEARCH;
        self.asleep = false;
        true
    }

    /// Leaves after an idle time if the pool has more workers than it keeps. True if the thread is to end.
    pub fn retire(&mut self) -> bool {
        if self.worker.gone {
            return true;
        }
        if self.succeeds || self.hand.holds() || !self.rouse() {
            return false;
        }
        if self.hand_over() {
            // What it was handed and others took back does not count: it may be below its limit again, and its successor is there.
            self.worker.gone = true;
            self.worker.end_search();
            return true;
        }
        self.worker.retire();
        let gone = !self.worker.owns_slot();
        if gone {
            self.worker.gone = true;
        } else if self.doze() {
            return false;
        } else {
            // Awake with something to look at: as if a token had come.
            self.hand.wake();
        }
        gone
    }

    /// Its thread has ended: what it had begun fails with `error`, unless its result is there or it has `retries` left; what it had ahead
    /// waits again.
    pub fn lost(mut self, error: &Error) {
        self.end(error);
    }

    /// Its thread could not be started, or ended before it was ready. If no other worker is left, what waits fails with `error`; the next one
    /// is started after a pause that doubles with each failure in a row.
    pub fn not_started(self, error: Error) {
        self.worker.pool.back_off();
        self.refused(error);
    }

    /// As [`not_started`](Self::not_started) without the pause: who starts its thread has said that there is none to be had, and keeps pauses of
    /// its own. What is submitted meanwhile hears the same at once.
    pub(super) fn refused(mut self, error: Error) {
        let pool = self.worker.pool.clone();
        lock(&pool.state).start_error = Some(error.clone());
        self.end(&error);
        drop(self);
        pool.end_stranded();
    }

    fn end(&mut self, error: &Error) {
        let pool = self.worker.pool.clone();
        if !std::mem::replace(&mut self.started, true) {
            self.uncount();
        }
        if self.renounce() {
            return;
        }
        // Its token, if it was claimed, is a few instructions away.
        while !self.rouse() {
            std::thread::yield_now();
        }
        self.collect();
        let ahead = unstart(&pool, self.hand.revoke_ahead(false));
        let mut begun: Vec<Held> = lock(&self.hand.hold).held.iter_mut().filter_map(Option::take).collect();
        begun.sort_by_key(|held| held.order);
        let again = begun.into_iter().filter_map(|held| pool.lose_held(held, error)).collect();
        let mut tasks = unstart(&pool, again);
        pool.metrics.add(Counter::Retried, tasks.len() as u64);
        tasks.extend(ahead);
        let passed_on = {
            let slot = pool.slot(self.worker.me.slot);
            let mut state = lock(&pool.state);
            let mine = lock(&slot.local).hand.as_ref().is_some_and(|h| Arc::ptr_eq(h, &self.hand));
            // Its successor goes on, with what waits for this slot.
            let passed_on = pool.pass_on(&mut state, &mut self.worker, &self.hand);
            if !passed_on {
                self.leave_place();
            }
            let mut local = lock(&slot.local);
            let batch: Vec<Arc<Core>> = if mine { local.batch.drain(..).collect() } else { Vec::new() };
            if mine {
                slot.batch_len.store(0, Ordering::SeqCst);
            }
            drop(local);
            tasks.extend(batch);
            pool.give_back(&mut state, self.worker.me.slot, tasks);
            passed_on
        };
        if passed_on {
            pool.wake_owner(self.worker.me.slot);
            Idle::publish();
            if pool.has_waiting_work() {
                pool.wake_one();
            }
        }
        // Else `Worker::drop` leaves the slot and wakes others.
    }
}

impl Drop for LoopWorker {
    fn drop(&mut self) {
        self.end(&Error::new(ErrorKind::WorkerLost, "the worker's thread ended before the task did"));
    }
}

/// First pause after a worker that did not start.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Longest one.
const MAX_BACK_OFF: Duration = Duration::from_secs(10);

impl Inner {
    /// A started task whose worker is gone ends with `error`, or comes back to be run again.
    fn lose_held(self: &Arc<Inner>, held: Held, error: &Error) -> Option<Held> {
        if held.core.may_run_again() {
            return Some(held);
        }
        let core = held.core;
        let error = if core.runs.is_some() { error.clone().with("poison", true) } else { error.clone() };
        if core.claim_finish() {
            self.metrics.add(Outcome::Lost.counter(), 1);
            core.note(Outcome::Lost, Ending::Running);
            core.publish(Err(error), false);
        } else {
            self.overdue.fetch_sub(1, Ordering::SeqCst);
        }
        core.returned.store(true, Ordering::SeqCst);
        if let Some(key) = core.key {
            lock(&self.state).sched.key_done(key);
        }
        None
    }

    pub(super) fn back_off(self: &Arc<Inner>) {
        let failures = self.start_failures.fetch_add(1, Ordering::SeqCst).min(16);
        let pause = (BACK_OFF * (1 << failures)).min(MAX_BACK_OFF);
        self.backing_off.fetch_add(1, Ordering::SeqCst);
        let pool = Arc::downgrade(self);
        service::run_after(
            pause,
            Box::new(move || {
                let Some(pool) = pool.upgrade() else { return };
                pool.backing_off.fetch_sub(1, Ordering::SeqCst);
                // Whoever queued work before this saw the pause; it is looked for now.
                fence(Ordering::SeqCst);
                if pool.has_waiting_work() {
                    pool.wake_one();
                }
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::service::Due;
    use crate::pool::{SubmitOptions, Task, ThreadPool, Work};

    /// Workers whose thread is that of the test.
    #[derive(Default)]
    struct Kept(Mutex<Vec<LoopWorker>>);

    impl LoopHost for Kept {
        fn start(&self, worker: LoopWorker) -> Result<(), LoopWorker> {
            lock(&self.0).push(worker);
            Ok(())
        }
        fn end(&self, _: u64) {}
    }

    impl Kept {
        /// The worker that was wanted, with the only task begun.
        fn begin(&self) -> LoopWorker {
            let mut worker = lock(&self.0).pop().expect("a worker was wanted");
            worker.ready(Box::new(|| {}));
            assert_eq!(worker.take(true, &mut |given| assert!(given.begun)), Taken::Tasks(1));
            worker
        }
    }

    /// The same with lanes, which are boards.
    #[derive(Default)]
    struct WithLanes(Kept);

    impl LoopHost for WithLanes {
        fn has_lanes(&self) -> bool {
            true
        }
        fn start(&self, worker: LoopWorker) -> Result<(), LoopWorker> {
            self.0.start(worker)
        }
        fn end(&self, _: u64) {}
    }

    fn submit(pool: &ThreadPool, timeout: Option<Duration>) -> Task {
        pool.submit(Work::hosted(Box::new(())), SubmitOptions { timeout, ..SubmitOptions::default() }).expect("submit")
    }

    /// A pool with so many tasks, and its one worker, which has a lane and is ready.
    fn with_lane(tasks: usize) -> (ThreadPool, Vec<Task>, LoopWorker, Arc<Board>) {
        let host = Arc::<WithLanes>::default();
        let options = LoopOptions { host: host.clone(), concurrency: 1, cancel_grace: Duration::ZERO };
        let pool = ThreadPool::builder().max_workers(1).looped(options).build().expect("pool");
        let tasks = (0..tasks).map(|_| submit(&pool, None)).collect();
        let mut worker = lock(&host.0.0).pop().expect("a worker was wanted");
        let lane = Arc::new(Board::new(held_at_once(1, LANE_AHEAD)));
        worker.set_lane(lane.clone());
        worker.ready(Box::new(|| {}));
        (pool, tasks, worker, lane)
    }

    #[test]
    fn a_worker_whose_next_tasks_were_all_cancelled_looks_for_others() {
        let (pool, tasks, mut worker, lane) = with_lane(1);
        let at = std::cell::Cell::new(None);
        let feed = |worker: &mut LoopWorker| {
            worker.feed(true, &mut |given| {
                at.set(Some(given.index));
                true
            })
        };
        assert_eq!(feed(&mut worker), Fed::Busy);
        // One with a deadline is not handed out before this one has ended.
        let next = submit(&pool, Some(Duration::from_secs(3600)));
        assert_eq!(feed(&mut worker), Fed::Busy);
        assert!(next.cancel());
        let word = &lane.words()[at.get().expect("the first was handed out")];
        word.store(CLAIMED, Ordering::Relaxed);
        word.store(DONE, Ordering::Release);
        assert_eq!(feed(&mut worker), Fed::Asleep, "nothing is left that would have it fed again");
        assert!(tasks[0].is_done());
    }

    #[test]
    fn what_was_taken_back_from_behind_a_long_task_does_not_go_there_again() {
        let (pool, tasks, mut worker, lane) = with_lane(1);
        let place = |state| lane.words().iter().position(|w| w.load(Ordering::Relaxed) == state);
        assert_eq!(worker.feed(true, &mut |_| true), Fed::Busy);
        let at = place(READY).expect("the first was handed out");
        lane.words()[at].store(CLAIMED, Ordering::Relaxed);
        let next = submit(&pool, None);
        assert_eq!(worker.feed(true, &mut |_| true), Fed::Busy);
        assert!(place(READY).is_some(), "the next is ahead");
        (0..HELD_UP).for_each(|_| pool.inner().recall());
        for _ in 0..3 * HELD_UP {
            assert_eq!(place(READY), None);
            assert_eq!(worker.feed(true, &mut |_| true), Fed::Busy);
            pool.inner().recall();
        }
        lane.words()[at].store(DONE, Ordering::Release);
        assert_eq!(worker.feed(true, &mut |_| true), Fed::Busy);
        assert!(tasks[0].is_done() && place(READY).is_some());
        drop(next);
    }

    #[test]
    fn tasks_that_are_found_ended_together_end_in_the_order_of_their_begin() {
        let (pool, mut tasks, mut worker, lane) = with_lane(2);
        let mut given = Vec::new();
        let mut feed = |worker: &mut LoopWorker| {
            worker.feed(true, &mut |one| {
                given.push(one.index);
                true
            })
        };
        assert_eq!(feed(&mut worker), Fed::Busy);
        // The third gets the number of the first, before that of the second.
        let first = lane.words().iter().position(|w| w.load(Ordering::Relaxed) == READY).expect("handed out");
        lane.words()[first].store(DONE, Ordering::Release);
        tasks.push(submit(&pool, None));
        assert_eq!(feed(&mut worker), Fed::Busy);
        assert!(given.len() == 3 && given[0] < given[1] && given[2] == given[0], "{given:?}");
        given[1..].iter().for_each(|at| lane.words()[*at].store(DONE, Ordering::Release));
        let mut ended = Vec::new();
        assert!(worker.hand.collect(&mut ended));
        assert_eq!(ended.iter().map(|one| one.held.order).collect::<Vec<_>>(), [2, 3]);
        conclude(&worker.worker.pool, &worker.worker.writer, ended);
        assert!(tasks.iter().all(Task::is_done));
    }

    #[test]
    fn a_lane_has_more_ahead_of_tasks_that_take_next_to_nothing_and_no_more_of_others() {
        let (_pool, tasks, mut worker, lane) = with_lane(1000);
        let ready = || lane.words().iter().filter(|w| w.load(Ordering::Relaxed) == READY).count();
        let end_all = |run_ns: f64| {
            for (index, word) in lane.words().iter().enumerate().filter(|(_, w)| w.load(Ordering::Relaxed) == READY) {
                lane.memory[lane.tasks / 2 + index].store(run_ns.to_bits(), Ordering::Relaxed);
                word.store(DONE, Ordering::Release);
            }
        };
        let mut feed = || worker.feed(true, &mut |_| true);
        assert_eq!(feed(), Fed::Busy);
        assert!(ready() <= AHEAD, "nobody knows what they take: {}", ready());
        for _ in 0..4 {
            end_all(500.0);
            assert_eq!(feed(), Fed::Busy);
        }
        assert!(ready() > AHEAD + AHEAD / 2, "they take next to nothing: {}", ready());
        end_all(1e6);
        assert_eq!(feed(), Fed::Busy);
        assert!(ready() <= AHEAD, "they take long: {}", ready());
        drop(tasks);
    }

    #[test]
    fn a_deadline_of_an_earlier_run_ends_neither_the_wait_for_the_next_run_nor_that_run() {
        const HOUR: Duration = Duration::from_secs(3600);
        let host = Arc::<Kept>::default();
        let options = LoopOptions { host: host.clone(), concurrency: 1, cancel_grace: HOUR };
        let pool = ThreadPool::builder().max_workers(1).looped(options).build().expect("pool");
        let options = SubmitOptions { timeout: Some(HOUR), queue_timeout: Some(HOUR), retries: 1, ..SubmitOptions::default() };
        let task = pool.submit(Work::hosted(Box::new(())), options).expect("submit");
        let due = |due, limit| {
            pool.inner().on_due(due, limit, &task.0);
            task.is_done()
        };
        host.begin().lost(&Error::new(ErrorKind::WorkerLost, "died"));
        assert!(!task.is_running() && !task.is_done());
        assert!(!due(Due::Timeout, Duration::ZERO), "it waits for its second run");
        assert!(!due(Due::QueueTimeout, Duration::ZERO), "it has started once");
        let worker = host.begin();
        assert!(!due(Due::Timeout, HOUR), "this run began a moment ago");
        assert!(due(Due::Timeout, Duration::ZERO));
        assert_eq!(task.wait(None).expect_err("late").kind(), ErrorKind::Timeout);
        worker.lost(&Error::new(ErrorKind::WorkerLost, "died"));
        assert_eq!((pool.stats().timed_out, pool.stats().retried, pool.stats().overdue), (1, 1, 0));
    }
}
