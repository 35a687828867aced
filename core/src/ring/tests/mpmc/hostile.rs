//! Participants of an `mpmc` ring that write their words as the protocol does not: errors or data for the others, and an end of each call.

use super::*;
use crate::ring::mpmc::intent;
use crate::sync::atomic::AtomicBool;
use crate::wire::ring::{SEAT_LIVE, claim_state, hold_state, slot_state};

/// How long somebody writes at most. Who is kept so long would be kept for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `f` while some write without end, so many that one is always at it.
fn while_harassed<F: FnMut(&MappedSlots) + Send>(ring: &RingBuffer, scribble: impl Fn(u64) -> F, f: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let slots = ring.shared.slots.as_ref().expect("slots");
    std::thread::scope(|s| {
        let harassers: Vec<_> = (0..3)
            .map(|n| {
                let (mut scribble, done) = (scribble(n), &done);
                s.spawn(move || {
                    let begun = Instant::now();
                    while !done.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
                        scribble(slots);
                    }
                })
            })
            .collect();
        f();
        assert!(!harassers.iter().any(std::thread::ScopedJoinHandle::is_finished), "a call was kept until nobody wrote any more");
        done.store(true, Ordering::Relaxed);
    });
}

const fn word_of(lap: u64, state: u64) -> u64 {
    lap << 2 | state
}

/// Writes one of two words into the first slot, and the other one.
fn alternate([a, b]: [u64; 2]) -> impl FnMut(&MappedSlots) + Send {
    move |slots| {
        slots.word(0).store(a, Ordering::Release);
        slots.word(0).store(b, Ordering::Release);
    }
}

#[test]
fn a_timeout_ends_a_wait_although_there_always_seems_to_be_news() {
    let ring = mpmc(6);
    let mut p = producer(&ring);
    let mut c = consumer(&ring);
    // Nothing was ever returned.
    let returns = |_| {
        |slots: &MappedSlots| {
            slots.returned().swap(1, Ordering::AcqRel);
        }
    };
    while_harassed(&ring, returns, || assert_eq!(kind(c.pop(SHORT).map(|_| ())), ErrorKind::Timeout));
    // The slot that the consumer waits for is free, or kept by a consumer of an earlier lap.
    while p.try_push(b"one").expect("push") {}
    while pop(&mut c).is_some() {}
    let words = [word_of(0, slot_state::HELD), word_of(1, slot_state::FREE)];
    while_harassed(&ring, |_| alternate(words), || assert_eq!(kind(c.pop(SHORT).map(|_| ())), ErrorKind::Timeout));
    // The record that the producer waits for is there, or is being written.
    while p.try_push(b"one").expect("push") {}
    let words = [word_of(1, slot_state::FREE), word_of(1, slot_state::FULL)];
    while_harassed(&ring, |_| alternate(words), || assert_eq!(kind(p.push(b"one", SHORT)), ErrorKind::Timeout));
}

/// What a call of an honest one gives while others are not.
fn judge<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => true,
        Err(e) => {
            assert!([ErrorKind::Timeout, ErrorKind::InUse, ErrorKind::Corrupt].contains(&e.kind()), "{e}");
            e.kind() != ErrorKind::Corrupt
        }
    }
}

/// One that lives and one that seems to be dead say at any time that they want, have or return any record near the head, or claim any
/// position near the tail.
#[test]
fn who_says_what_is_not_so_holds_nobody_up() {
    const LIVES: usize = 4;
    const SEEMS_DEAD: usize = 5;
    const WORDS: u64 = 1000;
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 400 } else { 24 };
    let mut poisoned = 0;
    for seed in 1..=rounds {
        let ring = mpmc(6);
        let mut p = producer(&ring);
        let ack = if seed % 2 == 0 { Ack::Manual } else { Ack::Auto };
        let mut c = ring.consumer(ConsumerOptions { ack }).expect("consumer");
        let others: Vec<_> = (0..2).map(|_| producer(&ring)).collect();
        let hostile = consumer(&ring);
        assert_eq!(hostile.seat(), LIVES);
        drop(others);
        let written = AtomicU64::new(0);
        // A record that is given back to nobody is damage, so that one does without sometimes.
        let states = if seed % 4 < 2 { 4 } else { 3 };
        let scribble = |n| {
            let (mut random, ring, written) = (Random(seed * 0x1234_5678_9ABC_DEF1 + 2 * n), &ring, &written);
            move |slots: &MappedSlots| {
                let seat = if random.below(2) == 0 { LIVES } else { SEEMS_DEAD };
                let near = |at: u64, by: u64| at.wrapping_add(by).wrapping_sub(8);
                if random.below(2) == 0 {
                    let at = near(slots.tail().load(Ordering::Relaxed), random.below(16));
                    let state = [claim_state::NONE, claim_state::WANTED, claim_state::OWNED][random.below(3) as usize];
                    slots.claim(seat).store(intent(at, state), Ordering::Release);
                } else {
                    let at = near(slots.head().load(Ordering::Relaxed), random.below(16));
                    let state =
                        [hold_state::NONE, hold_state::WANTED, hold_state::HELD, hold_state::RETURNED][random.below(states) as usize];
                    slots.hold(seat, random.below(128) as usize).store(intent(at, state), Ordering::Release);
                }
                slots.moves().fetch_add(1, Ordering::AcqRel);
                slots.returned().fetch_or(random.below(2) as u32, Ordering::AcqRel);
                word(ring, SEEMS_DEAD, seat_word::STATUS).store(4 | SEAT_LIVE, Ordering::Release);
                ring.shared.members_changed();
                written.fetch_add(1, Ordering::Relaxed);
            }
        };
        while_harassed(&ring, scribble, || {
            let mut out = [0; 4096];
            let mut is_sound = true;
            for n in 0.. {
                if !is_sound || written.load(Ordering::Relaxed) > WORDS {
                    break;
                }
                is_sound &= judge(p.push(&[0; 40], Some(Duration::from_millis(1))));
                let taken = c.pop(Some(Duration::from_millis(1))).map(|r| (r.copy_to(&mut out), r.delivery()));
                if let (Ok((len, delivery)), Ack::Manual) = (&taken, ack) {
                    assert!(*len <= 48);
                    // Somebody else may have freed its slot.
                    is_sound &= judge(c.ack(*delivery));
                }
                is_sound &= judge(taken);
                if n % 100 == 99 {
                    is_sound &= judge(ring.consumer(ConsumerOptions::default()));
                }
            }
            poisoned += usize::from(!is_sound);
        });
    }
    assert!(poisoned > 0, "the scribblers scribbled");
}

/// As the scribbler of the lanes: errors, but no hang and no record that is longer than a slot.
#[test]
fn a_scribbler_of_slots_gets_corrupt_or_data() {
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 2000 } else { 100 };
    let mut poisoned = 0;
    for seed in 1..=rounds {
        let ring = mpmc(4);
        let (mut p, mut c) = (producer(&ring), if seed % 2 == 0 { manual(&ring) } else { consumer(&ring) });
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let scribbler = {
            let (ring, stop) = (ring.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut random = Random(seed * 0x1234_5678_9ABC_DEF1);
                let slots = ring.shared.slots.as_ref().expect("slots");
                while !stop.load(Ordering::Relaxed) {
                    let near = slots.head().load(Ordering::Relaxed);
                    let value = match random.below(4) {
                        0 => random.below(u64::MAX),
                        1 => near.wrapping_add(random.below(200)).wrapping_sub(100),
                        2 => (near >> 6) << 2 | random.below(4),
                        _ => near << 2 | random.below(4),
                    };
                    match random.below(8) {
                        0 => slots.tail().store(value, Ordering::Release),
                        1 => slots.head().store(value, Ordering::Release),
                        2 => slots.returned().store(value as u32, Ordering::Release),
                        3 => slots.claim(random.below(4) as usize).store(value, Ordering::Release),
                        4 => slots.hold(random.below(4) as usize, random.below(128) as usize).store(value, Ordering::Release),
                        5 => slots.set_meta(random.below(64) as usize, value),
                        6 => slots.sleepers(Role::Consumer).store(value, Ordering::Release),
                        _ => slots.word(random.below(64) as usize).store(value, Ordering::Release),
                    }
                    if random.below(64) == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let reader = std::thread::spawn(move || {
            let mut out = vec![0u8; 4096];
            for _ in 0..2000 {
                match c.pop(Some(Duration::from_millis(1))) {
                    Ok(record) => assert!(record.copy_to(&mut out) <= 48),
                    Err(e) if e.kind() == ErrorKind::Timeout => {}
                    Err(e) => return assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}"),
                }
            }
        });
        for _ in 0..2000 {
            match p.push(&[0; 40], Some(Duration::from_millis(1))) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Timeout => {}
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                    poisoned += 1;
                    break;
                }
            }
        }
        reader.join().expect("reader");
        stop.store(true, Ordering::Relaxed);
        scribbler.join().expect("scribbler");
    }
    assert!(poisoned > rounds / 2, "the scribbler scribbled: {poisoned} of {rounds}");
}
