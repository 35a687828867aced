//! `make loom`: the real slots, and what is done for the dead, over a model's memory.
//!
//! A participant that dies is one whose next access to shared memory never comes: each model runs once for every access at which
//! it may die.

use super::mpmc::{Held, Popper, Pusher, Slots, hint_at_returned, intent, settle};
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::wire::ring::{claim_state, hold_state};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What a mutant does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Slots are published and freed without Release.
    Release,
    /// Slots are looked at without Acquire.
    Acquire,
    /// Nobody says what it is about to own.
    Intents,
    /// Who takes several at once says so of the first alone.
    Run,
    /// Who takes a returned record does not say that it moves.
    Moves,
    /// A producer does not look whether the ring was closed before its claim.
    End,
}

struct Long(AtomicU64, Wrong);
struct Short(AtomicU32, Wrong);

impl Word<u64> for Long {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(if self.1 == Wrong::Acquire { Ordering::Relaxed } else { order })
    }
    fn store(&self, value: u64, order: Ordering) {
        match self.1 {
            Wrong::Intents | Wrong::Run if value & 3 == hold_state::WANTED => {}
            Wrong::Release => self.0.store(value, Ordering::Relaxed),
            _ => self.0.store(value, order),
        }
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.0.swap(value, order)
    }
    fn compare_exchange(&self, old: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        Word::compare_exchange(&self.0, old, new, order)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value, order)
    }
}

impl Word<u32> for Short {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order);
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.0.swap(value, order)
    }
    fn compare_exchange(&self, old: u32, new: u32, order: Ordering) -> Result<u32, u32> {
        Word::compare_exchange(&self.0, old, new, order)
    }
    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        if self.1 == Wrong::Moves { self.0.load(Ordering::Relaxed) } else { self.0.fetch_add(value, order) }
    }
}

const SEATS: usize = 3;
const SLOTS: usize = 2;

/// Two slots, three seats with two holds each, of which most models use one.
struct Model {
    tail: Long,
    head: Long,
    returned: Short,
    moves: Short,
    closed: Short,
    claims: [Long; SEATS],
    holds: [[Long; 2]; SEATS],
    /// How many holds of a seat are used.
    used: usize,
    words: [Long; SLOTS],
    metas: [AtomicU64; SLOTS],
    payloads: [UnsafeCell<u64>; SLOTS],
    /// Touched at every access: loom's search follows only the last access to a word, and a participant's own look at a word would hide
    /// the others'. Relaxed, so that it orders nothing.
    clock: AtomicU64,
}

// SAFETY: loom checks every access to the cells.
unsafe impl Sync for Model {}
// SAFETY: as above.
unsafe impl Send for Model {}

impl Model {
    fn new(wrong: Wrong) -> Arc<Model> {
        Model::with_holds(1, wrong)
    }

    fn with_holds(used: usize, wrong: Wrong) -> Arc<Model> {
        let only = |which: &[Wrong]| if which.contains(&wrong) { wrong } else { Wrong::Nothing };
        let long = |wrong| Long(AtomicU64::new(0), wrong);
        Arc::new(Model {
            tail: long(Wrong::Nothing),
            head: long(Wrong::Nothing),
            returned: Short(AtomicU32::new(0), Wrong::Nothing),
            moves: Short(AtomicU32::new(0), only(&[Wrong::Moves])),
            closed: Short(AtomicU32::new(0), only(&[Wrong::End])),
            claims: std::array::from_fn(|_| long(only(&[Wrong::Intents]))),
            holds: std::array::from_fn(|_| [long(only(&[Wrong::Intents])), long(only(&[Wrong::Intents, Wrong::Run]))]),
            used,
            words: std::array::from_fn(|_| long(only(&[Wrong::Release, Wrong::Acquire]))),
            metas: std::array::from_fn(|_| AtomicU64::new(0)),
            payloads: std::array::from_fn(|_| UnsafeCell::new(0)),
            clock: AtomicU64::new(0),
        })
    }
}

/// A participant's way to the shared words, which ends after so many accesses.
struct Life<'a> {
    model: &'a Model,
    left: Cell<usize>,
}

struct Died;

fn immortal(model: &Model) -> Life<'_> {
    Life { model, left: Cell::new(usize::MAX) }
}

fn mortal(model: &Model, accesses: usize) -> Life<'_> {
    Life { model, left: Cell::new(accesses) }
}

impl Life<'_> {
    fn model(&self) -> &Model {
        let left = self.left.get();
        if left == 0 {
            resume_unwind(Box::new(Died));
        }
        self.left.set(left - 1);
        self.model.clock.fetch_add(1, Ordering::Relaxed);
        self.model
    }

    /// What `f` gives, or `None` if it died.
    fn live<T>(&self, f: impl FnOnce(&Self) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| f(self))) {
            Ok(value) => Some(value),
            Err(why) if why.is::<Died>() => None,
            Err(why) => resume_unwind(why),
        }
    }
}

impl Slots for Life<'_> {
    type Long = Long;
    type Short = Short;
    fn tail(&self) -> &Long {
        &self.model().tail
    }
    fn head(&self) -> &Long {
        &self.model().head
    }
    fn returned(&self) -> &Short {
        &self.model().returned
    }
    fn moves(&self) -> &Short {
        &self.model().moves
    }
    fn claim(&self, seat: usize) -> &Long {
        &self.model().claims[seat]
    }
    fn hold(&self, seat: usize, i: usize) -> &Long {
        &self.model().holds[seat][i]
    }
    fn word(&self, slot: usize) -> &Long {
        &self.model().words[slot]
    }
    fn meta(&self, slot: usize) -> u64 {
        self.model().metas[slot].load(Ordering::Relaxed)
    }
    fn set_meta(&self, slot: usize, meta: u64) {
        self.model().metas[slot].store(meta, Ordering::Relaxed);
    }
    fn seats(&self) -> usize {
        SEATS
    }
    fn holds(&self) -> usize {
        self.model.used
    }
    fn shift(&self) -> u32 {
        1
    }
    fn max_len(&self) -> u32 {
        8
    }
    fn is_closed(&self) -> bool {
        let closed = &self.model().closed;
        fence(Ordering::SeqCst);
        closed.1 != Wrong::End && closed.load(Ordering::Acquire) != 0
    }
}

fn write(s: &Life<'_>, slot: usize, value: u64) {
    // SAFETY: loom checks the access.
    s.model().payloads[slot].with_mut(|p| unsafe { *p = value });
}

/// As [`Producer::push`](super::Producer::push) does it: the short way where nothing stands against it.
fn push(s: &Life<'_>, pusher: &mut Pusher, value: u64) -> bool {
    if pusher.put(s, 8, |slot| write(s, slot, value)) {
        return true;
    }
    // The ring may have been closed.
    !pusher.abort(s) && push_in_place(s, pusher, value)
}

/// As a claim does it that is written in place.
fn push_in_place(s: &Life<'_>, pusher: &mut Pusher, value: u64) -> bool {
    let Some(slot) = pusher.claim(s, 8).expect("no damage") else {
        pusher.abort(s);
        return false;
    };
    write(s, slot, value);
    pusher.commit(s, 8);
    true
}

fn read(s: &Life<'_>, held: Held) -> u64 {
    // SAFETY: loom checks the access.
    s.model.payloads[held.slot(s)].with(|p| unsafe { *p })
}

fn take(s: &Life<'_>, seat: usize) -> Option<Held> {
    Popper::new(seat, false).take(s, Some(0)).expect("no damage")
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(f);
}

/// One producer, one consumer, more records than slots.
fn stream(wrong: Wrong) {
    model(move || {
        let m = Model::new(wrong);
        let mut pusher = Pusher::new(&immortal(&m), 0);
        let writer = {
            let m = Arc::clone(&m);
            thread::spawn(move || (0..3).take_while(|n| push(&immortal(&m), &mut pusher, 100 + n)).count())
        };
        let s = immortal(&m);
        let pop = || {
            let held = take(&s, 1)?;
            let value = read(&s, held);
            held.free(&s, 1).expect("no damage");
            Some(value)
        };
        let mut seen: Vec<u64> = pop().into_iter().collect();
        let pushed = writer.join().expect("writer");
        seen.extend((0..3).map_while(|_| pop()));
        assert_eq!(seen, (0..pushed as u64).map(|n| 100 + n).collect::<Vec<_>>());
        assert!(pushed >= 2);
    });
}

#[test]
fn slots_hand_over_whole_records() {
    stream(Wrong::Nothing);
}

#[test]
#[should_panic(expected = "")]
fn slots_without_release_are_seen() {
    stream(Wrong::Release);
}

#[test]
#[should_panic(expected = "")]
fn slots_without_acquire_are_seen() {
    stream(Wrong::Acquire);
}

/// Two consumers, one record.
#[test]
fn a_record_is_taken_once() {
    model(|| {
        let m = Model::new(Wrong::Nothing);
        push(&immortal(&m), &mut Pusher::new(&immortal(&m), 2), 7);
        let other = {
            let m = Arc::clone(&m);
            thread::spawn(move || take(&immortal(&m), 1).is_some())
        };
        let mine = take(&immortal(&m), 0).is_some();
        assert!(mine != other.join().expect("consumer"), "taken by both or by none");
    });
}

/// A producer passes over a slot whose consumer lets go at the same time.
#[test]
fn a_slot_that_is_passed_over_while_it_is_freed_is_used_or_void() {
    model(|| {
        let m = Model::new(Wrong::Nothing);
        let s = immortal(&m);
        let mut pusher = Pusher::new(&s, 0);
        assert!(push(&s, &mut pusher, 1) && push(&s, &mut pusher, 2));
        let held = Popper::new(1, true).take(&s, Some(0)).expect("no damage").expect("first");
        let freer = {
            let m = Arc::clone(&m);
            thread::spawn(move || held.free(&immortal(&m), 1).expect("no damage"))
        };
        // The second slot is full, so the third record needs the first.
        let pushed = push(&s, &mut pusher, 3);
        freer.join().expect("consumer");
        let mut seen = Vec::new();
        for _ in 0..2 {
            if let Some(held) = take(&s, 2) {
                seen.push(read(&s, held));
                held.free(&s, 2).expect("no damage");
            }
        }
        assert_eq!(seen, if pushed { vec![2, 3] } else { vec![2] });
        assert!(push(&s, &mut pusher, 4) && push(&s, &mut pusher, 5), "nothing is wedged");
    });
}

/// Settles seat 0 as who is elected does: `lives` are the seats of the living.
fn settle_dead(s: &Life<'_>, lives: &[usize]) -> bool {
    let done = settle(s, 0, &mut |seat| !lives.contains(&seat));
    hint_at_returned(s);
    done
}

/// Where the record is that seats 0 and 1 race for.
#[derive(Clone, Copy)]
enum From {
    Queue,
    /// Given up by seat 2.
    Hold,
}

/// The consumer on seat 0 dies at some access while the one on seat 1 takes what there is; a settler dies too, another finishes, and
/// with `reuse` a successor takes the seat at once. At the end exactly one of the living has had the record.
fn dying_consumer(from: From, dies: usize, settler_dies: usize, reuse: bool, wrong: Wrong, believed_living: &'static [usize]) {
    model(move || {
        let m = Model::new(wrong);
        let s = immortal(&m);
        push(&s, &mut Pusher::new(&s, 2), 7);
        if let From::Hold = from {
            take(&s, 2).expect("record").give_up(&s, 2);
        }
        let dying = {
            let m = Arc::clone(&m);
            thread::spawn(move || {
                mortal(&m, dies).live(|s| take(s, 0));
                mortal(&m, settler_dies).live(|s| settle_dead(s, believed_living));
                let s = immortal(&m);
                let settled = settle_dead(&s, believed_living);
                (settled, (settled && reuse).then(|| take(&s, 0)).flatten())
            })
        };
        let theirs = take(&s, 1);
        let (settled, early) = dying.join().expect("settler");
        if !settled {
            assert!(settle_dead(&s, believed_living), "nobody is in the way any more");
        }
        let late = early.is_none().then(|| take(&s, 0)).flatten();
        let ours = early.or(late);
        assert!(theirs.is_some() != ours.is_some(), "had by {theirs:?} and {ours:?}, dead at {dies} and {settler_dies}");
        assert_eq!(theirs.or(ours).map(|held| read(&s, held)), Some(7));
    });
}

/// Accesses of the longest of these paths, and a few more: the last ones do not die.
const ACCESSES: usize = 20;

fn every_death(f: impl Fn(usize, usize)) {
    for dies in 0..ACCESSES {
        f(dies, usize::MAX);
    }
    for settler_dies in 0..ACCESSES {
        for dies in [5, 7] {
            f(dies, settler_dies);
        }
    }
}

#[test]
fn a_dead_consumers_record_is_had_by_one_of_the_living() {
    every_death(|dies, settler_dies| dying_consumer(From::Queue, dies, settler_dies, false, Wrong::Nothing, &[1]));
}

#[test]
fn a_returned_record_that_a_dying_consumer_wants_is_had_by_one_of_the_living() {
    every_death(|dies, settler_dies| dying_consumer(From::Hold, dies, settler_dies, false, Wrong::Nothing, &[1]));
}

#[test]
fn a_successor_on_a_dead_consumers_seat_takes_no_record_of_the_living() {
    for dies in 0..ACCESSES {
        dying_consumer(From::Queue, dies, usize::MAX, true, Wrong::Nothing, &[1]);
        dying_consumer(From::Hold, dies, usize::MAX, true, Wrong::Nothing, &[1]);
    }
}

#[test]
#[should_panic(expected = "had by")]
fn a_consumer_that_does_not_say_what_it_wants_loses_it() {
    every_death(|dies, settler_dies| dying_consumer(From::Queue, dies, settler_dies, false, Wrong::Intents, &[1]));
}

#[test]
#[should_panic(expected = "had by")]
fn a_settler_that_takes_the_living_for_dead_gives_a_record_twice() {
    every_death(|dies, settler_dies| dying_consumer(From::Queue, dies, settler_dies, false, Wrong::Nothing, &[]));
}

/// Takes records one by one until there is none, and keeps them: their positions.
fn take_each(s: &Life<'_>, seat: usize) -> Vec<u64> {
    let free = |i: &usize| s.model.holds[seat][*i].load(Ordering::Acquire) == hold_state::NONE;
    let take = || Popper::new(seat, false).take(s, (0..s.model.used).find(free)).expect("no damage");
    std::iter::from_fn(take).map(|held| held.position).collect()
}

/// Takes what lies there at once, and keeps it.
fn take_run(s: &Life<'_>, seat: usize) -> Vec<u64> {
    let run = Popper::new(seat, false).take_run(s, &[1, 0]);
    (run.first..run.first + run.len as u64).collect()
}

/// The consumer on seat 0 takes two records at once, deals with the first, and dies at some access, while the one on seat 1 takes what there is
/// by `living`. At the end each record was dealt with, or one of the living has it.
fn dying_run(living: fn(&Life<'_>, usize) -> Vec<u64>, dies: usize, wrong: Wrong) {
    model(move || {
        let m = Model::with_holds(2, wrong);
        let s = immortal(&m);
        let mut pusher = Pusher::new(&s, 2);
        assert!(push(&s, &mut pusher, 7) && push(&s, &mut pusher, 8));
        let dying = {
            let m = Arc::clone(&m);
            thread::spawn(move || {
                mortal(&m, dies).live(|s| {
                    let popper = Popper::new(0, false);
                    let run = popper.take_run(s, &[1, 0]);
                    if run.len > 0 {
                        popper.of_run(s, 0, run.first).expect("no damage").free(s, 0).expect("no damage");
                    }
                });
                settle_dead(&immortal(&m), &[1])
            })
        };
        let mut had = living(&s, 1);
        if !dying.join().expect("settler") {
            assert!(settle_dead(&s, &[1]), "nobody is in the way any more");
        }
        had.extend(take_each(&s, 0));
        // Only the dying one lets go of anything.
        had.extend((0..2).filter(|p| m.words[*p as usize].load(Ordering::Acquire) == 1 << 2));
        had.sort_unstable();
        assert_eq!(had, [0, 1], "had by somebody, dead at {dies}");
    });
}

/// Accesses of a run of two, and a few more.
const RUN_ACCESSES: usize = 16;

#[test]
fn what_a_dead_consumer_took_at_once_is_had_by_the_living() {
    for dies in 0..RUN_ACCESSES {
        dying_run(take_run, dies, Wrong::Nothing);
        dying_run(take_each, dies, Wrong::Nothing);
    }
}

#[test]
#[should_panic(expected = "had by somebody")]
fn a_consumer_that_says_of_the_first_alone_what_it_wants_loses_the_rest() {
    (0..RUN_ACCESSES).for_each(|dies| dying_run(take_run, dies, Wrong::Run));
}

/// A dead consumer wanted a returned record and did not get it; the one that gets it moves behind the settler's back.
fn moving_record(wrong: Wrong) {
    model(move || {
        let m = Model::new(wrong);
        let s = immortal(&m);
        push(&s, &mut Pusher::new(&s, 2), 7);
        take(&s, 2).expect("record").give_up(&s, 2);
        m.holds[0][0].store(intent(0, hold_state::WANTED), Ordering::Release);
        let living = {
            let m = Arc::clone(&m);
            thread::spawn(move || take(&immortal(&m), 1).is_some())
        };
        settle(&s, 0, &mut |seat| seat != 1);
        let theirs = living.join().expect("consumer");
        settle_dead(&s, &[1]);
        let ours = take(&s, 0).is_some();
        assert!(theirs != ours, "taken by {}", if ours { "both" } else { "none" });
    });
}

#[test]
fn a_record_that_moves_while_the_dead_are_settled_is_found() {
    moving_record(Wrong::Nothing);
}

#[test]
#[should_panic(expected = "taken by both")]
fn a_record_that_moves_unannounced_is_taken_twice() {
    moving_record(Wrong::Moves);
}

type Push = fn(&Life<'_>, &mut Pusher, u64) -> bool;

/// The producer on seat 0 dies at some access of `dying` while the one on seat 1 pushes: its position is aborted, and the other's record comes.
fn dying_producer(dying: Push, dies: usize, settler_dies: usize, wrong: Wrong, believed_living: &'static [usize]) {
    model(move || {
        let m = Model::new(wrong);
        let s = immortal(&m);
        let dead = {
            let m = Arc::clone(&m);
            thread::spawn(move || {
                let pushed = mortal(&m, dies).live(|s| dying(s, &mut Pusher::new(s, 0), 5));
                mortal(&m, settler_dies).live(|s| settle_dead(s, believed_living));
                (pushed.is_some(), settle_dead(&immortal(&m), believed_living))
            })
        };
        assert!(push(&s, &mut Pusher::new(&s, 1), 7), "there is room for both");
        let (pushed, settled) = dead.join().expect("settler");
        if !settled {
            assert!(settle_dead(&s, believed_living), "nobody is in the way any more");
        }
        let mut seen = Vec::new();
        for _ in 0..2 {
            if let Some(held) = take(&s, 2) {
                seen.push(read(&s, held));
                held.free(&s, 2).expect("no damage");
            }
        }
        seen.sort_unstable();
        assert!(seen == [5, 7] || (seen == [7] && !pushed), "wedged or lost: {seen:?}");
        let mut successor = Pusher::new(&s, 0);
        assert!(push(&s, &mut successor, 1) && push(&s, &mut successor, 2), "nothing is wedged");
    });
}

#[test]
fn a_dead_producers_claim_wedges_nothing() {
    for dying in [push as Push, push_in_place] {
        every_death(|dies, settler_dies| dying_producer(dying, dies, settler_dies, Wrong::Nothing, &[1]));
    }
}

#[test]
#[should_panic(expected = "")]
fn a_producer_that_does_not_say_what_it_wants_wedges_the_ring() {
    every_death(|dies, settler_dies| dying_producer(push, dies, settler_dies, Wrong::Intents, &[1]));
}

#[test]
#[should_panic(expected = "")]
fn a_settler_that_aborts_a_living_claim_loses_a_record() {
    every_death(|dies, settler_dies| dying_producer(push, dies, settler_dies, Wrong::Nothing, &[]));
}

/// As [`Consumer::try_pop`](super::Consumer::try_pop) does it for a ring that it has seen closed: the consumer on seat 1 is told the end.
fn ends(s: &Life<'_>) -> bool {
    fence(Ordering::SeqCst);
    take(s, 1).is_none() && Popper::is_empty(s) && !Popper::is_awaited(s)
}

/// The ring is closed while the producer on seat 0 pushes, both ways.
fn closing(wrong: Wrong) {
    for way in [push as Push, push_in_place] {
        model(move || {
            let m = Model::new(wrong);
            let writer = {
                let m = Arc::clone(&m);
                thread::spawn(move || way(&immortal(&m), &mut Pusher::new(&immortal(&m), 0), 7))
            };
            let s = immortal(&m);
            s.model().closed.swap(1, Ordering::AcqRel);
            let ended = ends(&s);
            let pushed = writer.join().expect("writer");
            assert!(!(ended && pushed), "lost behind the end");
            assert_eq!(s.claim(0).load(Ordering::Acquire), claim_state::NONE);
        });
    }
}

#[test]
fn a_record_that_is_pushed_is_before_the_end() {
    closing(Wrong::Nothing);
}

#[test]
#[should_panic(expected = "lost behind the end")]
fn a_producer_that_does_not_look_for_the_end_behind_its_claim_loses_a_record() {
    closing(Wrong::End);
}

/// A returned record changes hands while another consumer looks whether the ring has ended.
fn moving_behind_the_end(wrong: Wrong) {
    model(move || {
        let m = Model::new(wrong);
        let s = immortal(&m);
        push(&s, &mut Pusher::new(&s, 2), 7);
        take(&s, 2).expect("record").give_up(&s, 2);
        let taker = {
            let m = Arc::clone(&m);
            thread::spawn(move || take(&immortal(&m), 0).is_some())
        };
        let ended = ends(&s);
        let theirs = taker.join().expect("taker");
        assert!(!(ended && theirs), "told the end before it");
    });
}

#[test]
fn a_record_that_moves_is_before_the_end() {
    moving_behind_the_end(Wrong::Nothing);
}

#[test]
#[should_panic(expected = "told the end before it")]
fn a_record_that_moves_unannounced_is_behind_the_end() {
    moving_behind_the_end(Wrong::Moves);
}
