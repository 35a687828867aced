//! The end of a closed ring, against those who push or take at that moment.

use super::*;
use crate::wire::ring::{claim_state, hold_state};
use std::cell::{Cell, RefCell};
use std::sync::Barrier;

/// Where somebody else comes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Claim,
    /// Of this seat.
    Hold(usize),
}

/// A ring's slots in which something happens once, just before a word is touched.
struct Interrupted<'a> {
    slots: &'a MappedSlots,
    at: At,
    then: RefCell<Option<Box<dyn FnOnce() + 'a>>>,
    happened: Cell<bool>,
}

impl<'a> Interrupted<'a> {
    fn new(slots: &'a MappedSlots, at: At, then: impl FnOnce() + 'a) -> Interrupted<'a> {
        Interrupted { slots, at, then: RefCell::new(Some(Box::new(then))), happened: Cell::new(false) }
    }

    fn touch(&self, at: At) {
        if at == self.at && !self.happened.replace(true) {
            self.then.take().expect("happens once")();
        }
    }
}

impl Slots for Interrupted<'_> {
    type Long = AtomicU64;
    type Short = AtomicU32;
    fn tail(&self) -> &AtomicU64 {
        self.slots.tail()
    }
    fn head(&self) -> &AtomicU64 {
        self.slots.head()
    }
    fn returned(&self) -> &AtomicU32 {
        self.slots.returned()
    }
    fn moves(&self) -> &AtomicU32 {
        self.slots.moves()
    }
    fn claim(&self, seat: usize) -> &AtomicU64 {
        self.touch(At::Claim);
        self.slots.claim(seat)
    }
    fn hold(&self, seat: usize, i: usize) -> &AtomicU64 {
        self.touch(At::Hold(seat));
        self.slots.hold(seat, i)
    }
    fn word(&self, slot: usize) -> &AtomicU64 {
        self.slots.word(slot)
    }
    fn meta(&self, slot: usize) -> u64 {
        self.slots.meta(slot)
    }
    fn set_meta(&self, slot: usize, meta: u64) {
        self.slots.set_meta(slot, meta);
    }
    fn seats(&self) -> usize {
        self.slots.seats()
    }
    fn holds(&self) -> usize {
        self.slots.holds()
    }
    fn shift(&self) -> u32 {
        self.slots.shift()
    }
    fn max_len(&self) -> u32 {
        self.slots.max_len()
    }
    fn is_closed(&self) -> bool {
        self.slots.is_closed()
    }
}

/// What a claim said before.
fn claim_of(slots: &MappedSlots, p: &Producer) -> u64 {
    slots.claim(p.seat()).load(Ordering::Acquire)
}

#[test]
fn a_ring_that_is_closed_before_a_position_is_claimed_gets_no_record() {
    for in_place in [false, true] {
        let ring = mpmc(3);
        let slots = ring.shared.slots.as_ref().expect("slots");
        let (p, mut c) = (producer(&ring), consumer(&ring));
        let mut pusher = Pusher::new(slots, p.seat());
        // The producer has seen that all is well; the consumer is told the end.
        let closed = Interrupted::new(slots, At::Claim, || {
            ring.close();
            assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
        });
        let pushed =
            if in_place { pusher.claim(&closed, 8).expect("claim").is_some() } else { pusher.put(&closed, 8, |_| panic!("is written")) };
        assert!(closed.happened.get() && !pushed);
        assert!(pusher.abort(slots) && claim_of(slots, &p) == claim_state::NONE);
        drop(closed);
        assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed, "nothing is left undecided");
    }
}

#[test]
fn a_producer_that_lost_a_position_does_not_say_that_it_wants_it() {
    let ring = mpmc(3);
    let slots = ring.shared.slots.as_ref().expect("slots");
    let (p, mut q) = (producer(&ring), producer(&ring));
    let mut pusher = Pusher::new(slots, p.seat());
    let overtaken = Interrupted::new(slots, At::Claim, || assert!(push(&mut q, 1)));
    assert!(!pusher.put(&overtaken, 8, |_| panic!("is written")) && overtaken.happened.get());
    // What it does next is nothing: it was told the end.
    assert_eq!(claim_of(slots, &p), claim_state::NONE, "whoever settles the winner would wait for it");
}

#[test]
fn a_ring_has_not_ended_while_a_returned_record_changes_hands() {
    let ring = mpmc(4);
    let slots = ring.shared.slots.as_ref().expect("slots");
    let (mut p, mut early) = (producer(&ring), manual(&ring));
    let (_last, mut late) = (consumer(&ring), manual(&ring));
    assert!(early.seat() < late.seat());
    assert!(push(&mut p, 7));
    let (_, delivery, _) = deliver(&mut late).expect("record");
    ring.close();
    late.nack(delivery).expect("nack");
    let mut popper = Popper::new(early.seat(), true);
    // The look has passed the earlier seat when its owner takes the record from the later one.
    let moved = Interrupted::new(slots, At::Hold(late.seat()), || {
        let held = popper.take(slots, Some(0)).expect("no damage").expect("record");
        assert!(slots.hold(early.seat(), held.hold).load(Ordering::Acquire) & 3 == hold_state::HELD);
    });
    assert!(Popper::is_awaited(&moved), "it may come back");
    assert!(moved.happened.get());
    drop(moved);
    assert!(deliver(&mut early).is_none());
}

#[test]
fn a_ring_has_not_ended_for_who_gave_back_what_another_one_takes() {
    let ring = mpmc(3);
    let slots = ring.shared.slots.as_ref().expect("slots");
    let (mut p, mut c) = (producer(&ring), manual(&ring));
    assert!(push(&mut p, 7));
    let (_, delivery, _) = deliver(&mut c).expect("record");
    ring.close();
    c.nack(delivery).expect("nack");
    // As one does that looks for it, and has not come there yet.
    assert_eq!(slots.returned().swap(0, Ordering::AcqRel), 1);
    assert!(deliver(&mut c).is_none(), "the other one may give it back in its turn");
    slots.returned().swap(1, Ordering::AcqRel);
    assert_eq!(deliver(&mut c).map(|(n, _, again)| (n, again)), Some((7, true)));
}

/// Threads push until they are told the end, and others pop until then, while somebody closes the ring: what was pushed was popped.
#[test]
fn what_is_pushed_until_the_end_is_popped_before_it() {
    let closes = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 30_000 } else { 300 };
    let mut random = Random(1);
    for round in 0..closes {
        let ring = mpmc(4);
        let (writers, readers) = (1 + round % 2, 1 + round / 2 % 2);
        let begin = Barrier::new(writers + readers + 1);
        let (pushed, popped) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|s| {
            for n in 0..writers {
                let (mut p, begin, pushed) = (producer(&ring), &begin, &pushed);
                s.spawn(move || {
                    begin.wait();
                    let end = loop {
                        let done = if n == 0 { p.push(b"x", None) } else { p.claim(1, None).and_then(ClaimMut::commit) };
                        if let Err(e) = done {
                            break e;
                        }
                        pushed.fetch_add(1, Ordering::Relaxed);
                    };
                    assert_eq!(end.kind(), ErrorKind::Closed);
                });
            }
            for _ in 0..readers {
                let (mut c, begin, popped) = (consumer(&ring), &begin, &popped);
                s.spawn(move || {
                    begin.wait();
                    let end = loop {
                        match c.pop(Some(Duration::from_secs(20))).map(drop) {
                            Ok(()) => popped.fetch_add(1, Ordering::Relaxed),
                            Err(e) => break e,
                        };
                    };
                    assert_eq!(end.kind(), ErrorKind::Closed);
                });
            }
            begin.wait();
            let until = Instant::now() + Duration::from_micros(random.below(300));
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            ring.close();
        });
        assert_eq!(pushed.into_inner(), popped.into_inner(), "round {round}");
    }
}
