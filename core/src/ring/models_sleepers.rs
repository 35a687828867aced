//! `make loom`: who of many sleeps and is woken. The real words and wakers, over a model's memory and a model's ring: `published` and
//! `taken` are records, as the slots' words and `head` are. A sleeper ends its thread, and goes on after it if it was rung.

use super::models::Waiting;
use super::sleepers::{self, Sleepers};
use super::wait::BLOCKED;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::sync::{Bits, Word};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

/// What a mutant does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Whoever takes one of several rings nobody.
    KeepsToItself,
    /// Whoever gives up rings nobody.
    LeavesSilently,
    /// A waker does not order what it published before its look at who sleeps.
    WakersFence,
    /// A sleeper's bit is set by a load and a store.
    Bits,
    /// Who wakes by itself does not order what it takes back before its look.
    SleepersFence,
}

struct BitWord(AtomicU64, Wrong);

impl Word<u64> for BitWord {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
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

impl Bits for BitWord {
    fn fetch_or(&self, bits: u64, order: Ordering) {
        if self.1 == Wrong::Bits {
            self.0.store(self.0.load(Ordering::Relaxed) | bits, order);
        } else {
            self.0.fetch_or(bits, order);
        }
    }
    fn fetch_and(&self, bits: u64, order: Ordering) {
        self.0.fetch_and(bits, order);
    }
}

struct Crowd {
    bits: BitWord,
    waiting: [Waiting; 2],
    bells: [AtomicU32; 2],
    published: AtomicU32,
    taken: AtomicU32,
    wrong: Wrong,
}

impl Sleepers for Crowd {
    type Bits = BitWord;
    type Word = Waiting;
    fn bits(&self) -> &BitWord {
        &self.bits
    }
    fn waiting(&self, seat: usize) -> &Waiting {
        &self.waiting[seat]
    }
    fn seats(&self) -> usize {
        2
    }
    /// As an eventfd, whose lock orders who rings and who clears.
    fn ring(&self, seat: usize) {
        self.bells[seat].swap(1, Ordering::AcqRel);
    }
}

impl Crowd {
    fn new(wrong: Wrong) -> Arc<Crowd> {
        Arc::new(Crowd {
            bits: BitWord(AtomicU64::new(0), wrong),
            waiting: [Waiting::new(0), Waiting::new(0)],
            bells: [AtomicU32::new(0), AtomicU32::new(0)],
            published: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            wrong,
        })
    }

    fn has_more(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.published.load(Ordering::Relaxed)
    }

    /// As `Taking::look`.
    fn take(&self) -> bool {
        let took = loop {
            let at = self.taken.load(Ordering::Acquire);
            if at >= self.published.load(Ordering::Acquire) {
                break false;
            }
            if Word::compare_exchange(&self.taken, at, at + 1, Ordering::AcqRel).is_ok() {
                break true;
            }
        };
        if self.wrong != Wrong::KeepsToItself {
            sleepers::wake_if(self, || self.has_more());
        }
        took
    }

    /// As a producer's flush.
    fn wake(&self) {
        if self.wrong != Wrong::WakersFence {
            fence(Ordering::SeqCst);
        }
        sleepers::wake_some(self);
    }

    /// As `Consumer::pop`; false when it sleeps.
    fn pop(&self, seat: usize) -> bool {
        while !self.take() {
            sleepers::announce(self, seat, BLOCKED);
            if !self.has_more() && !self.is_rung(seat) {
                return false;
            }
            sleepers::awake(self, seat);
        }
        true
    }

    /// The words of `sleepers::awake`.
    fn awake_without_fence(&self, seat: usize) {
        self.waiting[seat].store(0, Ordering::Relaxed);
        self.bits.fetch_and(!(1 << seat), Ordering::Relaxed);
    }

    fn is_rung(&self, seat: usize) -> bool {
        self.bells[seat].swap(0, Ordering::AcqRel) == 1
    }

    /// What becomes of those that sleep, when everybody else has come to an end.
    fn settle(&self, done: &mut [bool; 2]) {
        while let Some(seat) = (0..2).find(|seat| !done[*seat] && self.is_rung(*seat)) {
            sleepers::awake(self, seat);
            done[seat] = self.pop(seat);
        }
        assert!(done.iter().all(|d| *d), "asleep beside a record");
    }

    /// As `Consumer::pop` whose timeout ends while it sleeps.
    fn pop_or_give_up(&self, seat: usize) -> bool {
        if self.take() {
            return true;
        }
        sleepers::announce(self, seat, BLOCKED);
        match self.wrong {
            Wrong::LeavesSilently => {
                self.awake_without_fence(seat);
                return false;
            }
            Wrong::SleepersFence => self.awake_without_fence(seat),
            _ => sleepers::awake(self, seat),
        }
        if self.take() {
            return true;
        }
        sleepers::wake_if(self, || self.has_more());
        false
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// Two records by one wake, as with `batch`, for two that sleep or are about to.
fn two_for_two(wrong: Wrong) {
    model(move || {
        let crowd = Crowd::new(wrong);
        let sleepers: Vec<_> = (0..2)
            .map(|seat| {
                let crowd = Arc::clone(&crowd);
                thread::spawn(move || crowd.pop(seat))
            })
            .collect();
        crowd.published.store(2, Ordering::Release);
        crowd.wake();
        let mut done = [false; 2];
        for (seat, sleeper) in sleepers.into_iter().enumerate() {
            done[seat] = sleeper.join().expect("sleeper");
        }
        crowd.settle(&mut done);
    });
}

#[test]
fn ring_sleepers_are_all_woken_when_there_is_something_for_each() {
    two_for_two(Wrong::Nothing);
}

#[test]
#[should_panic(expected = "asleep beside")]
fn ring_sleeper_is_lost_when_who_takes_rings_nobody() {
    two_for_two(Wrong::KeepsToItself);
}

#[test]
#[should_panic(expected = "asleep beside")]
fn ring_sleeper_is_lost_without_the_wakers_fence() {
    two_for_two(Wrong::WakersFence);
}

#[test]
#[should_panic(expected = "asleep beside")]
fn ring_sleeper_is_lost_when_bits_are_not_set_at_once() {
    two_for_two(Wrong::Bits);
}

/// One record; one waits for it as long as it takes, the other gives up. If the other has it, it makes a second one.
fn one_gives_up(wrong: Wrong) {
    model(move || {
        let crowd = Crowd::new(wrong);
        let stays = {
            let crowd = Arc::clone(&crowd);
            thread::spawn(move || crowd.pop(1))
        };
        let leaves = {
            let crowd = Arc::clone(&crowd);
            thread::spawn(move || {
                if crowd.pop_or_give_up(0) {
                    crowd.published.store(2, Ordering::Release);
                    crowd.wake();
                }
            })
        };
        crowd.published.store(1, Ordering::Release);
        crowd.wake();
        let stays = stays.join().expect("sleeper");
        leaves.join().expect("sleeper");
        crowd.settle(&mut [true, stays]);
    });
}

#[test]
fn ring_sleeper_that_gives_up_takes_no_wake_with_it() {
    one_gives_up(Wrong::Nothing);
}

#[test]
#[should_panic(expected = "asleep beside")]
fn ring_sleeper_that_gives_up_without_a_look_takes_a_wake_with_it() {
    one_gives_up(Wrong::LeavesSilently);
}

#[test]
#[should_panic(expected = "asleep beside")]
fn ring_sleeper_that_gives_up_without_a_fence_takes_a_wake_with_it() {
    one_gives_up(Wrong::SleepersFence);
}
