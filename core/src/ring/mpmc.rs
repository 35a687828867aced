//! Slots: a bounded queue with many producers and many consumers, each record to one of them.
//!
//! Design: Vyukov's bounded queue (a word per slot says whose turn it is) with *intent words*: before a participant moves
//! `tail` or `head` past a position, its seat says which, so that whoever finds it dead knows what it may own. Protocol and
//! argument: `README.md`.
//!
//! | Word       | Written by                             | Read by                | Ordering                                   |
//! |------------|----------------------------------------|------------------------|--------------------------------------------|
//! | slot word  | owner of the position, or of the record | producers, consumers  | Release at S1, S3; Acquire at S2, S4       |
//! | `tail`     | producers, by compare-and-swap          | everybody             | AcqRel: who sees it sees the claim (S0)    |
//! | `head`     | consumers (and who steps), the same way | everybody             | AcqRel: who sees it sees the hold (S0)     |
//! | claim, hold| their seat, after its death the settler | the settler           | Release, Acquire                           |
//! | `returned` | who returns a record; who looks for one | consumers             | Release, Acquire: a hint                   |
//! | `moves`    | who takes a returned record             | the settler           | AcqRel, before the record changes hands    |

use super::spsc::{Damage, damage};
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::sys::failpoint;
use crate::wire::ring::{claim_state, hold_state, slot_state};

/// The shared words, wherever they lie: mapped memory, or a model's.
pub(super) trait Slots {
    type Long: Word<u64>;
    type Short: Word<u32>;
    fn tail(&self) -> &Self::Long;
    fn head(&self) -> &Self::Long;
    fn returned(&self) -> &Self::Short;
    fn moves(&self) -> &Self::Short;
    fn claim(&self, seat: usize) -> &Self::Long;
    /// `i` is below [`holds`](Self::holds).
    fn hold(&self, seat: usize, i: usize) -> &Self::Long;
    fn word(&self, slot: usize) -> &Self::Long;
    /// Length and lap of the record in a slot.
    fn meta(&self, slot: usize) -> u64;
    fn set_meta(&self, slot: usize, meta: u64);
    /// A hint: the slot is written soon.
    fn will_write(&self, _slot: usize) {}
    fn seats(&self) -> usize;
    fn holds(&self) -> usize;
    /// There are `1 << shift` slots.
    fn shift(&self) -> u32;
    /// The longest payload.
    fn max_len(&self) -> u32;
    /// The ring is closed. Whatever was stored before this look is seen by whoever sees that the ring is closed after it, behind a fence
    /// everywhere.
    fn is_closed(&self) -> bool;
}

fn slot_of<S: Slots>(s: &S, position: u64) -> usize {
    (position & ((1 << s.shift()) - 1)) as usize
}

fn lap_of<S: Slots>(s: &S, position: u64) -> u64 {
    // A word has two bits less for the lap.
    position >> s.shift() & (u64::MAX >> 2)
}

const fn word(lap: u64, state: u64) -> u64 {
    lap << 2 | state
}

pub(super) const fn intent(position: u64, state: u64) -> u64 {
    position << 2 | state
}

pub(super) const fn state_of(word: u64) -> u64 {
    word & 3
}

pub(super) const fn position_of(word: u64) -> u64 {
    word >> 2
}

/// The slot of `position` has the record of that position: not yet taken, or kept by somebody.
fn has_record<S: Slots>(s: &S, position: u64) -> bool {
    let (slot, lap) = (slot_of(s, position), lap_of(s, position));
    // S4.
    let w = s.word(slot).load(Ordering::Acquire);
    match state_of(w) {
        slot_state::FULL => w >> 2 == lap,
        slot_state::HELD => w >> 2 >= lap && s.meta(slot) >> 32 == lap & u64::from(u32::MAX),
        _ => false,
    }
}

/// Position `at`, the head, gives no record: aborted, or passed over.
fn is_void<S: Slots>(s: &S, at: u64, w: u64) -> bool {
    let lap = lap_of(s, at);
    w >> 2 > lap || w == word(lap, slot_state::HELD)
}

/// The first position from `at` on, the head, that has a record or is not decided. A look, nothing more.
fn first_record<S: Slots>(s: &S, at: u64) -> u64 {
    let lap = 1 << s.shift();
    let is_it = |p: &u64| !is_void(s, *p, s.word(slot_of(s, *p)).load(Ordering::Relaxed));
    (0..lap).map(|i| at.wrapping_add(i)).find(is_it).unwrap_or(at.wrapping_add(lap))
}

fn step<S: Slots>(s: &S, at: u64) {
    // Nobody owns the position, so no intent is needed, and it does not matter who is first.
    let _ = s.head().compare_exchange(at, at.wrapping_add(1), Ordering::AcqRel);
}

/// Moving `tail` or `head` waits for every store before it, so for the slot of the position before, which another core looked at last. How many
/// slots ahead of its place a participant fetches, where nobody else is expected to be at work on them.
const AHEAD: u64 = 4;

/// Looks that one call makes at words which others may change meanwhile. An honest change or two is seen; a peer that changes them without end
/// must not keep the call.
const LOOKS: usize = 64;

/// What a producer that found no room saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sight {
    at: u64,
    head: u64,
    word: u64,
    /// Every slot's record is kept by a consumer.
    kept: bool,
}

/// A producer's private side.
#[derive(Debug)]
pub(super) struct Pusher {
    seat: usize,
    /// What `head` was when it was last looked at.
    head: u64,
    /// The position that is being written, and its room.
    claimed: Option<(u64, u32)>,
    stuck: Sight,
}

impl Pusher {
    /// The predecessor on this seat has been settled.
    pub(super) fn new<S: Slots>(s: &S, seat: usize) -> Pusher {
        Pusher { seat, head: s.head().load(Ordering::Acquire), claimed: None, stuck: Sight::default() }
    }

    pub(super) fn claimed(&self) -> Option<u32> {
        self.claimed.map(|(_, len)| len)
    }

    /// The slot for a payload of `len` (at most [`Slots::max_len`]), or `None` while there is none. `None` and a claim if the ring was closed
    /// before it was made: to be [aborted](Self::abort), a consumer may have ended without it.
    #[inline(always)]
    pub(super) fn claim<S: Slots>(&mut self, s: &S, len: u32) -> Result<Option<usize>, Damage> {
        debug_assert!(self.claimed.is_none() && len <= s.max_len());
        let slots = 1u64 << s.shift();
        // A peer that moves the words without end must not keep this call: an honest one needs a few looks per slot.
        let mut passed = 0;
        for _ in 0..4 * slots {
            let p = s.tail().load(Ordering::Acquire);
            if passed == slots {
                return Ok(self.no_room(s, Sight { at: p, head: self.head, word: 0, kept: true }));
            }
            if p.wrapping_sub(self.head) >= slots {
                self.head = s.head().load(Ordering::Acquire);
                let used = p.wrapping_sub(self.head);
                if used.cast_signed() < 0 {
                    if s.tail().load(Ordering::Acquire) == p {
                        return damage("head of the ring is beyond its tail", self.head, p);
                    }
                    continue;
                }
                if used > slots {
                    return damage("more records than slots", used, slots);
                }
                if used == slots {
                    // S4: pairs with what made the position void.
                    let w = s.word(slot_of(s, self.head)).load(Ordering::Acquire);
                    if is_void(s, self.head, w) {
                        step(s, self.head);
                        continue;
                    }
                    return Ok(self.no_room(s, Sight { at: p, head: self.head, word: w, kept: false }));
                }
            }
            let (slot, lap) = (slot_of(s, p), lap_of(s, p));
            // S4: pairs with S3, so that the last reader's loads are over before this producer writes.
            let w = s.word(slot).load(Ordering::Acquire);
            let passes = w == word(lap.wrapping_sub(1), slot_state::HELD);
            if w != word(lap, slot_state::FREE) && !passes {
                if s.tail().load(Ordering::Acquire) != p {
                    continue;
                }
                if w == word(lap.wrapping_sub(1), slot_state::FULL) {
                    // Taken, and not let go of yet.
                    return Ok(self.no_room(s, Sight { at: p, head: self.head, word: w, kept: false }));
                }
                return damage("slot is in a state that it cannot have", w, word(lap, slot_state::FREE));
            }
            if !self.win(s, p) {
                continue;
            }
            if passes {
                // A consumer still keeps the record of an earlier lap: this position is passed over, unless it lets go right now.
                match s.word(slot).compare_exchange(w, word(lap, slot_state::HELD), Ordering::AcqRel) {
                    Ok(_) => {
                        failpoint::hit("claim.passed");
                        passed += 1;
                        continue;
                    }
                    Err(now) if now == word(lap, slot_state::FREE) => {}
                    Err(now) => return damage("slot is in a state that it cannot have", now, word(lap, slot_state::FREE)),
                }
            }
            self.claimed = Some((p, len));
            // S5, as in `put`.
            return Ok((!s.is_closed()).then_some(slot));
        }
        // Overtaken every time. No tail is there, so the next look sees news.
        Ok(self.no_room(s, Sight { at: u64::MAX, ..Sight::default() }))
    }

    /// Claims position `p`, if nobody else is first.
    #[inline(always)]
    fn win<S: Slots>(&self, s: &S, p: u64) -> bool {
        s.claim(self.seat).store(intent(p, claim_state::WANTED), Ordering::Release);
        failpoint::hit("claim.wanted");
        // S0: who sees the new tail sees the intent.
        if s.tail().compare_exchange(p, p.wrapping_add(1), Ordering::AcqRel).is_err() {
            // Who goes on without it, for whatever reason, must not seem to be about to say whose the position is.
            s.claim(self.seat).store(claim_state::NONE, Ordering::Release);
            return false;
        }
        s.claim(self.seat).store(intent(p, claim_state::OWNED), Ordering::Release);
        failpoint::hit("claim.made");
        if p.wrapping_add(AHEAD).wrapping_sub(self.head) < 1 << s.shift() {
            // Free, as far as is known: the consumers are behind.
            s.will_write(slot_of(s, p.wrapping_add(AHEAD)));
        }
        true
    }

    /// Makes a record of `len` bytes, which `fill` writes into a slot, where that is all there is to it: the next slot is free, and nobody
    /// claims it at the same time. False, and nothing done, otherwise: [`claim`](Self::claim) looks further. False and a claim, as there, if the
    /// ring was closed before. No claim is open, and `len` is at most [`Slots::max_len`].
    #[inline(always)]
    pub(super) fn put<S: Slots>(&mut self, s: &S, len: u32, fill: impl FnOnce(usize)) -> bool {
        debug_assert!(self.claimed.is_none() && len <= s.max_len());
        let slots = 1u64 << s.shift();
        let p = s.tail().load(Ordering::Acquire);
        if p.wrapping_sub(self.head) >= slots {
            self.head = s.head().load(Ordering::Acquire);
        }
        let (slot, lap) = (slot_of(s, p), lap_of(s, p));
        // S4, as in `claim`.
        let is_free = p.wrapping_sub(self.head) < slots && s.word(slot).load(Ordering::Acquire) == word(lap, slot_state::FREE);
        if !is_free || !self.win(s, p) {
            return false;
        }
        // S5: a consumer that was told the end saw `CLOSED`, then made a fence everywhere, then saw a `tail` without this position: so this look,
        // which is behind the compare-and-swap of `tail`, sees `CLOSED` as well. A consumer that saw this position waits for it.
        if s.is_closed() {
            self.claimed = Some((p, len));
            return false;
        }
        fill(slot);
        self.publish(s, p, len);
        true
    }

    #[cold]
    fn no_room<S: Slots>(&mut self, s: &S, sight: Sight) -> Option<usize> {
        // What a passed position left there.
        s.claim(self.seat).store(claim_state::NONE, Ordering::Release);
        self.stuck = sight;
        None
    }

    /// May [`claim`](Self::claim) find room now? For the look after a producer has said that it will sleep.
    pub(super) fn sees_news<S: Slots>(&self, s: &S) -> bool {
        let (at, head) = (s.tail().load(Ordering::Relaxed), s.head().load(Ordering::Relaxed));
        if self.stuck.kept {
            let is_free = |slot| state_of(s.word(slot).load(Ordering::Relaxed)) == slot_state::FREE;
            return at != self.stuck.at || (0..1 << s.shift()).any(is_free);
        }
        // Full: the word at the head was looked at. Else the one at the tail.
        let full = self.stuck.at.wrapping_sub(self.stuck.head) == 1 << s.shift();
        let slot = slot_of(s, if full { self.stuck.head } else { self.stuck.at });
        at != self.stuck.at || (full && head != self.stuck.head) || s.word(slot).load(Ordering::Relaxed) != self.stuck.word
    }

    /// Would a further producer find a slot? A look, nothing more.
    pub(super) fn has_room<S: Slots>(s: &S) -> bool {
        // In this order, so that the tail is not behind the head: who moved that had seen this.
        let head = first_record(s, s.head().load(Ordering::Acquire));
        let mut p = s.tail().load(Ordering::Relaxed);
        while p.wrapping_sub(head) < 1 << s.shift() {
            let (w, lap) = (s.word(slot_of(s, p)).load(Ordering::Relaxed), lap_of(s, p));
            if w != word(lap.wrapping_sub(1), slot_state::HELD) {
                return w == word(lap, slot_state::FREE);
            }
            p = p.wrapping_add(1); // it would be passed over
        }
        false
    }

    /// Makes the claimed slot a record of `len` bytes, which is published by this.
    #[inline]
    pub(super) fn commit<S: Slots>(&mut self, s: &S, len: u32) {
        let (p, room) = self.claimed.take().expect("a slot was claimed");
        debug_assert!(len <= room);
        self.publish(s, p, len);
    }

    /// What is in the slot of the claimed position `p` is a record.
    #[inline(always)]
    fn publish<S: Slots>(&self, s: &S, p: u64, len: u32) {
        let (slot, lap) = (slot_of(s, p), lap_of(s, p));
        s.set_meta(slot, u64::from(len) | lap << 32);
        failpoint::hit("commit.written");
        failpoint::hit("publish.before");
        // S1: the record is whole. Pairs with S2.
        s.word(slot).store(word(lap, slot_state::FULL), Ordering::Release);
        failpoint::hit("publish.after");
        s.claim(self.seat).store(claim_state::NONE, Ordering::Release);
    }

    /// Gives the claim up; false when there is none.
    #[inline]
    pub(super) fn abort<S: Slots>(&mut self, s: &S) -> bool {
        let Some((p, _)) = self.claimed.take() else { return false };
        s.word(slot_of(s, p)).store(word(lap_of(s, p).wrapping_add(1), slot_state::FREE), Ordering::Release);
        s.claim(self.seat).store(claim_state::NONE, Ordering::Release);
        true
    }
}

/// A record that a consumer owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Which of the seat's holds says so.
    pub(super) hold: usize,
    pub(super) position: u64,
    pub(super) len: u32,
    /// Producers may pass over its slot.
    pub(super) passable: bool,
    pub(super) redelivered: bool,
}

impl Held {
    pub(super) fn slot<S: Slots>(&self, s: &S) -> usize {
        slot_of(s, self.position)
    }

    /// The record has been dealt with: its slot is free.
    #[inline]
    pub(super) fn free<S: Slots>(&self, s: &S, seat: usize) -> Result<(), Damage> {
        let (slot, lap) = (slot_of(s, self.position), lap_of(s, self.position));
        if self.passable {
            let mut w = s.word(slot).load(Ordering::Relaxed);
            for _ in 0..LOOKS {
                if state_of(w) != slot_state::HELD || w >> 2 < lap {
                    break;
                }
                // S3: as below. A producer that passes over the slot meanwhile is seen here.
                match s.word(slot).compare_exchange(w, word((w >> 2).wrapping_add(1), slot_state::FREE), Ordering::AcqRel) {
                    Ok(_) => return self.forget(s, seat),
                    Err(now) => w = now,
                }
            }
            return damage("slot of a kept record is in a state that it cannot have", w, word(lap, slot_state::HELD));
        } else {
            // S3: nothing of the record is read any more. Pairs with S4.
            s.word(slot).store(word(lap.wrapping_add(1), slot_state::FREE), Ordering::Release);
        }
        self.forget(s, seat)
    }

    #[inline]
    fn forget<S: Slots>(&self, s: &S, seat: usize) -> Result<(), Damage> {
        failpoint::hit("hold.freed");
        s.hold(seat, self.hold).store(hold_state::NONE, Ordering::Release);
        Ok(())
    }

    /// Gives the record to whoever takes it.
    pub(super) fn give_up<S: Slots>(&self, s: &S, seat: usize) {
        if !self.passable {
            s.word(slot_of(s, self.position)).store(word(lap_of(s, self.position), slot_state::HELD), Ordering::Release);
        }
        s.hold(seat, self.hold).store(intent(self.position, hold_state::RETURNED), Ordering::Release);
        failpoint::hit("hold.returned");
        s.returned().swap(1, Ordering::AcqRel);
    }
}

/// Positions that a consumer took at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) len: usize,
}

/// A consumer's private side.
#[derive(Debug)]
pub(super) struct Popper {
    seat: usize,
    /// Kept for long: producers may pass over what this consumer takes.
    keeps: bool,
    /// Position and word that were looked at when nothing was found.
    stuck: (u64, u64),
    /// Records that were taken since nothing was found.
    run: u64,
}

impl Popper {
    pub(super) fn new(seat: usize, keeps: bool) -> Popper {
        Popper { seat, keeps, stuck: (u64::MAX, u64::MAX), run: 0 }
    }

    /// Takes a record: one that was returned, or the oldest. `hold` is a hold of this seat that says nothing; without one, only
    /// what this seat itself has returned can be had.
    #[inline(always)]
    pub(super) fn take<S: Slots>(&mut self, s: &S, hold: Option<usize>) -> Result<Option<Held>, Damage> {
        if s.returned().load(Ordering::Relaxed) != 0
            && let Some(held) = self.take_returned(s, hold)?
        {
            return Ok(Some(held));
        }
        let Some(hold) = hold else { return Ok(None) };
        let slots = 1u64 << s.shift();
        // As in `claim`: the bound is for a peer that breaks the protocol.
        for _ in 0..4 * slots {
            let h = s.head().load(Ordering::Acquire);
            let (slot, lap) = (slot_of(s, h), lap_of(s, h));
            // S2: pairs with S1, so that the record is whole.
            let w = s.word(slot).load(Ordering::Acquire);
            if w == word(lap, slot_state::FULL) {
                match self.win(s, hold, h, lap)? {
                    Some(held) => return Ok(Some(held)),
                    None => continue,
                }
            }
            if is_void(s, h, w) {
                if s.tail().load(Ordering::Acquire).wrapping_sub(h).wrapping_sub(1) >= slots && s.head().load(Ordering::Acquire) == h {
                    return damage("slot is ahead of the tail", w, h);
                }
                step(s, h);
                continue;
            }
            // Free for this position, claimed or not; or still taken by the one before.
            let waits = w == word(lap, slot_state::FREE) || (w >> 2 == lap.wrapping_sub(1) && state_of(w) != slot_state::FREE);
            if waits {
                self.stuck = (h, w);
                self.run = 0;
                return Ok(None);
            }
            if s.head().load(Ordering::Acquire) == h {
                return damage("slot is in a state that it cannot have", w, word(lap, slot_state::FREE));
            }
        }
        self.stuck = (u64::MAX, u64::MAX);
        Ok(None)
    }

    /// The oldest records, as many as lie one behind another and at most as many as there are `holds`, where that is all there is to it: nothing
    /// was returned, and nobody takes one at the same time. The last of `holds`, which said nothing, has the first of them, and so on. One
    /// compare-and-swap for all, and the slots' lines come at the same time. [`take`](Self::take) looks further where this gives none.
    #[inline(always)]
    pub(super) fn take_run<S: Slots>(&self, s: &S, holds: &[u8]) -> Run {
        debug_assert!(!self.keeps);
        let first = s.head().load(Ordering::Acquire);
        let at = |i: usize| first.wrapping_add(i as u64);
        let none = Run { first, len: 0 };
        if s.returned().load(Ordering::Relaxed) != 0 {
            return none;
        }
        // S2, as in `take`.
        let is_full = |p| s.word(slot_of(s, p)).load(Ordering::Acquire) == word(lap_of(s, p), slot_state::FULL);
        let len = (0..holds.len()).take_while(|i| is_full(at(*i))).count();
        if len == 0 {
            return none;
        }
        let say = |word: &dyn Fn(u64) -> u64| {
            for (i, hold) in holds.iter().rev().take(len).enumerate() {
                s.hold(self.seat, usize::from(*hold)).store(word(at(i)), Ordering::Release);
            }
        };
        say(&|p| intent(p, hold_state::WANTED));
        failpoint::hit("pop.wanted");
        // S0: who sees the new head sees all intents.
        if s.head().compare_exchange(first, at(len), Ordering::AcqRel).is_err() {
            say(&|_| hold_state::NONE);
            return none;
        }
        failpoint::hit("pop.won");
        say(&|p| intent(p, hold_state::HELD));
        failpoint::hit("pop.shown");
        Run { first, len }
    }

    /// The record of `position`, which is in a run that this seat took, and has `hold`.
    #[inline(always)]
    pub(super) fn of_run<S: Slots>(&self, s: &S, hold: usize, position: u64) -> Result<Held, Damage> {
        self.check(s, Held { hold, position, len: 0, passable: false, redelivered: false })
    }

    /// Takes the record of position `h`, if nobody else is first.
    #[inline(always)]
    fn win<S: Slots>(&mut self, s: &S, hold: usize, h: u64, lap: u64) -> Result<Option<Held>, Damage> {
        s.hold(self.seat, hold).store(intent(h, hold_state::WANTED), Ordering::Release);
        failpoint::hit("pop.wanted");
        // S0: who sees the new head sees the intent.
        if s.head().compare_exchange(h, h.wrapping_add(1), Ordering::AcqRel).is_err() {
            s.hold(self.seat, hold).store(hold_state::NONE, Ordering::Release);
            return Ok(None);
        }
        failpoint::hit("pop.won");
        s.hold(self.seat, hold).store(intent(h, hold_state::HELD), Ordering::Release);
        if self.keeps {
            s.word(slot_of(s, h)).store(word(lap, slot_state::HELD), Ordering::Release);
        }
        failpoint::hit("pop.shown");
        self.run += 1;
        if self.run > AHEAD {
            // The producers are well ahead.
            s.will_write(slot_of(s, h.wrapping_add(AHEAD)));
        }
        self.check(s, Held { hold, position: h, len: 0, passable: self.keeps, redelivered: false }).map(Some)
    }

    /// Takes one of the records that were given up, wherever its hold is.
    #[cold]
    fn take_returned<S: Slots>(&mut self, s: &S, hold: Option<usize>) -> Result<Option<Held>, Damage> {
        // Taken back before the look: who returns something meanwhile sets it again, after the hold. Acquire pairs with `give_up`.
        if s.returned().swap(0, Ordering::AcqRel) == 0 {
            return Ok(None);
        }
        let mut taken = None;
        for seat in 0..s.seats() {
            for i in 0..s.holds() {
                let v = s.hold(seat, i).load(Ordering::Acquire);
                if state_of(v) != hold_state::RETURNED {
                    continue;
                }
                let own = if seat == self.seat { Some(i) } else { hold };
                let (None, Some(own)) = (taken, own) else {
                    // For the next one.
                    s.returned().swap(1, Ordering::AcqRel);
                    continue;
                };
                if self.wins(s, (seat, i), v, own) {
                    taken = Some(Held { hold: own, position: position_of(v), len: 0, passable: true, redelivered: true });
                }
            }
        }
        // Who looked at the hint while it was taken back, and sleeps now, is seen by who hands on what is left.
        fence(Ordering::SeqCst);
        let Some(held) = taken else { return Ok(None) };
        failpoint::hit("pop.shown");
        if !has_record(s, held.position) {
            return damage("returned record is not in its slot", held.position, s.head().load(Ordering::Relaxed));
        }
        self.check(s, held).map(Some)
    }

    /// Makes the record of a returned hold this seat's; false if another was first.
    fn wins<S: Slots>(&self, s: &S, (seat, i): (usize, usize), v: u64, own: usize) -> bool {
        let held = intent(position_of(v), hold_state::HELD);
        if seat == self.seat {
            return s.hold(seat, i).compare_exchange(v, held, Ordering::AcqRel).is_ok();
        }
        s.hold(self.seat, own).store(intent(position_of(v), hold_state::WANTED), Ordering::Release);
        // A settler that looks for the record's owner sees that it may have moved past the place where it looked.
        s.moves().fetch_add(1, Ordering::AcqRel);
        failpoint::hit("take.wanted");
        let won = s.hold(seat, i).compare_exchange(v, hold_state::NONE, Ordering::AcqRel).is_ok();
        failpoint::hit("take.won");
        s.hold(self.seat, own).store(if won { held } else { hold_state::NONE }, Ordering::Release);
        won
    }

    #[inline(always)]
    fn check<S: Slots>(&self, s: &S, held: Held) -> Result<Held, Damage> {
        let meta = s.meta(held.slot(s));
        let (len, lap) = (meta as u32, lap_of(s, held.position) as u32);
        if len > s.max_len() || meta >> 32 != u64::from(lap) {
            return damage("slot's record is longer than a slot, or of another lap", meta, s.max_len());
        }
        Ok(Held { len, ..held })
    }

    /// May [`take`](Self::take) find something now?
    #[inline]
    pub(super) fn sees_news<S: Slots>(&self, s: &S) -> bool {
        let h = s.head().load(Ordering::Relaxed);
        h != self.stuck.0 || s.word(slot_of(s, h)).load(Ordering::Relaxed) != self.stuck.1 || s.returned().load(Ordering::Relaxed) != 0
    }

    /// Is there something for a further consumer? A look, nothing more.
    #[inline]
    pub(super) fn has_more<S: Slots>(s: &S) -> bool {
        let h = first_record(s, s.head().load(Ordering::Relaxed));
        s.returned().load(Ordering::Relaxed) != 0 || s.word(slot_of(s, h)).load(Ordering::Relaxed) == word(lap_of(s, h), slot_state::FULL)
    }

    /// No position between head and tail has a record, or may have one yet: all were aborted, or passed over. A look, nothing more.
    pub(super) fn finds_only_voids<S: Slots>(s: &S) -> bool {
        first_record(s, s.head().load(Ordering::Acquire)) == s.tail().load(Ordering::Acquire)
    }

    /// Nothing waits to be taken.
    pub(super) fn is_empty<S: Slots>(s: &S) -> bool {
        let head = s.head().load(Ordering::Acquire);
        s.tail().load(Ordering::Acquire) == head && s.returned().load(Ordering::Acquire) == 0
    }

    /// Some hold has a record that could come back. Of a consumer that has dealt with all of its own this is another one's, or one that it gave
    /// back and that another one is about to take.
    pub(super) fn is_awaited<S: Slots>(s: &S) -> bool {
        for _ in 0..LOOKS {
            let moves = s.moves().load(Ordering::Acquire);
            let any = (0..s.seats()).flat_map(|seat| (0..s.holds()).map(move |i| (seat, i))).any(|(seat, i)| {
                let v = s.hold(seat, i).load(Ordering::Acquire);
                match state_of(v) {
                    hold_state::NONE => false,
                    hold_state::RETURNED => true,
                    // Who lost a race still shows what it wanted, and who has freed the slot what it had.
                    _ => has_record(s, position_of(v)),
                }
            });
            if any {
                return true;
            }
            // A returned record that changed hands behind this look's back is looked for again. This load sees the move of whoever emptied the
            // hold that was looked at: Acquire there pairs with the compare-and-swap in `wins`, which is behind its `fetch_add`.
            if s.moves().load(Ordering::Acquire) == moves {
                return false;
            }
        }
        true
    }
}

/// The dead owner of `seat` may own something.
pub(super) fn is_unsettled<S: Slots>(s: &S, seat: usize) -> bool {
    let owes = |v: u64| [hold_state::WANTED, hold_state::HELD].contains(&state_of(v));
    s.claim(seat).load(Ordering::Acquire) != claim_state::NONE || (0..s.holds()).any(|i| owes(s.hold(seat, i).load(Ordering::Acquire)))
}

/// Puts in order what the dead owner of `seat` left. Only the holder of the election lock calls it, and `is_dead` is asked of
/// seats whose words matter. False: a living participant is about to say who owns what; come back.
pub(super) fn settle<S: Slots>(s: &S, seat: usize, is_dead: &mut impl FnMut(usize) -> bool) -> bool {
    let claim = settle_claim(s, seat, is_dead);
    let mut holds = true;
    for i in 0..s.holds() {
        holds &= settle_hold(s, seat, i, is_dead);
    }
    claim && holds
}

fn settle_claim<S: Slots>(s: &S, seat: usize, is_dead: &mut impl FnMut(usize) -> bool) -> bool {
    let claim = s.claim(seat).load(Ordering::Acquire);
    let (p, state) = (position_of(claim), state_of(claim));
    // S0: a tail that is beyond the position was moved there by somebody whose intent is seen from here on.
    let passed = s.tail().load(Ordering::Acquire).wrapping_sub(p).cast_signed() > 0;
    if state != claim_state::NONE && passed && !decide(s, seat, p, state == claim_state::OWNED, is_dead) {
        return false;
    }
    failpoint::hit("settle.claim");
    s.claim(seat).store(claim_state::NONE, Ordering::Release);
    true
}

/// Aborts position `p`, or passes it over, if the dead owner of `seat` left it undecided; false if a living one may have it.
fn decide<S: Slots>(s: &S, seat: usize, p: u64, mut owned: bool, is_dead: &mut impl FnMut(usize) -> bool) -> bool {
    let (slot, lap) = (slot_of(s, p), lap_of(s, p));
    let undecided = [word(lap, slot_state::FREE), word(lap.wrapping_sub(1), slot_state::HELD)];
    for _ in 0..LOOKS {
        let w = s.word(slot).load(Ordering::Acquire);
        if !undecided.contains(&w) {
            return true; // committed, passed over or aborted
        }
        if !owned {
            let mut wanted_by_living = false;
            for other in (0..s.seats()).filter(|other| *other != seat) {
                let theirs = s.claim(other).load(Ordering::Acquire);
                if theirs == intent(p, claim_state::OWNED) {
                    return true; // its own business: it lives, or is settled in its turn
                }
                wanted_by_living |= theirs == intent(p, claim_state::WANTED) && !is_dead(other);
            }
            // Before or after the scan, whoever owned it may have finished.
            if s.word(slot).load(Ordering::Acquire) != w {
                continue;
            }
            if wanted_by_living {
                return false;
            }
            // Of several dead who wanted it, one owned it; which is all the same.
            owned = true;
        }
        let to = if w == undecided[0] { word(lap.wrapping_add(1), slot_state::FREE) } else { word(lap, slot_state::HELD) };
        if s.word(slot).compare_exchange(w, to, Ordering::AcqRel).is_ok() {
            return true;
        }
    }
    false
}

fn settle_hold<S: Slots>(s: &S, seat: usize, i: usize, is_dead: &mut impl FnMut(usize) -> bool) -> bool {
    let hold = s.hold(seat, i).load(Ordering::Acquire);
    let q = position_of(hold);
    let owned = match state_of(hold) {
        hold_state::WANTED => match owns_wanted(s, seat, i, q, is_dead) {
            Some(owned) => owned,
            None => return false,
        },
        hold_state::HELD => has_record(s, q),
        _ => return true,
    };
    if owned {
        // From here on producers pass over it.
        let (slot, lap) = (slot_of(s, q), lap_of(s, q));
        let _ = s.word(slot).compare_exchange(word(lap, slot_state::FULL), word(lap, slot_state::HELD), Ordering::AcqRel);
        failpoint::hit("settle.hold");
        s.hold(seat, i).store(intent(q, hold_state::RETURNED), Ordering::Release);
    } else {
        s.hold(seat, i).store(hold_state::NONE, Ordering::Release);
    }
    true
}

/// Did a dead consumer get the record that it wanted? `None`: a living one that wanted it too is about to say, or the words do not stand still.
fn owns_wanted<S: Slots>(s: &S, seat: usize, i: usize, q: u64, is_dead: &mut impl FnMut(usize) -> bool) -> Option<bool> {
    // S0, as in `settle_claim`.
    if s.head().load(Ordering::Acquire).wrapping_sub(q).cast_signed() <= 0 {
        return Some(false);
    }
    for _ in 0..LOOKS {
        let moves = s.moves().load(Ordering::Acquire);
        let mut wanted_by_living = false;
        for other in 0..s.seats() {
            for j in (0..s.holds()).filter(|j| (other, *j) != (seat, i)) {
                let theirs = s.hold(other, j).load(Ordering::Acquire);
                if theirs == intent(q, hold_state::HELD) || theirs == intent(q, hold_state::RETURNED) {
                    return Some(false);
                }
                wanted_by_living |= theirs == intent(q, hold_state::WANTED) && other != seat && !is_dead(other);
            }
        }
        if !has_record(s, q) {
            return Some(false);
        }
        if wanted_by_living {
            return None;
        }
        // A returned record that changed hands behind this look's back is looked for again.
        if s.moves().load(Ordering::Acquire) == moves {
            return Some(true);
        }
    }
    None
}

/// Some record waits to be taken from a hold: sets the hint that a dead one may not have set.
pub(super) fn hint_at_returned<S: Slots>(s: &S) {
    let holds = (0..s.seats()).flat_map(|seat| (0..s.holds()).map(move |i| (seat, i)));
    if holds.into_iter().any(|(seat, i)| state_of(s.hold(seat, i).load(Ordering::Acquire)) == hold_state::RETURNED) {
        s.returned().swap(1, Ordering::AcqRel);
    }
}
