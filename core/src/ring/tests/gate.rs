//! What a writer or waker that dies, or a reader that is stopped, at the worst moment leaves behind.

use super::*;
use crate::ring::spsc::Mark;
use crate::ring::{broadcast, wait};
use crate::sync::atomic::AtomicU64;
use crate::wire::ring::{CLOSED, SEAT_LIVE, ring_word};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn broadcast_ring(on_full: OnFull) -> RingBuffer {
    RingBuffer::builder(Kind::Broadcast).capacity(4096).max_participants(5).on_full(on_full).create().expect("ring")
}

fn position(ring: &RingBuffer, seat: usize, at: usize) -> &AtomicU64 {
    ring.shared.map.seat_position(seat, at)
}

#[test]
fn a_gate_that_its_dead_writer_had_not_looked_back_from_is_taken_back() {
    let ring = broadcast_ring(OnFull::Wait);
    let producer = || ring.producer(ProducerOptions::default()).expect("producer");
    // A reader that is stopped after it has said where it begins, and before it says that it is there.
    Mark { at: 0, count: 0 }.store(position(&ring, 1, seat_word::HEAD), Ordering::Release);
    let mut p = producer();
    while p.try_push(&[7; 100]).expect("push") {
        let tail = word(&ring, 0, seat_word::TAIL).load(Ordering::Relaxed);
        if tail >= 4096 - 112 {
            break;
        }
    }
    drop(p);
    let gate = position(&ring, 0, seat_word::HEAD);
    let published = Mark::load(position(&ring, 0, seat_word::TAIL), Ordering::Relaxed);
    let mut looks = 0;
    let died = catch_unwind(AssertUnwindSafe(|| {
        broadcast::move_gate(gate, position(&ring, 0, seat_word::SEEN), published, 4096, || {
            looks += 1;
            assert!(looks < 2, "dies here");
            // The reader goes on: it is there, and sees a gate that has not passed it.
            assert_eq!(Mark::load(gate, Ordering::Acquire).at, 0);
            word(&ring, 1, seat_word::STATUS).store(SEAT_LIVE, Ordering::Release);
            std::iter::empty()
        })
    }));
    assert!(died.is_err());
    assert_eq!(Mark::load(gate, Ordering::Relaxed), published, "the dead writer's gate has passed the reader");
    let _successor = producer();
    assert_eq!(Mark::load(gate, Ordering::Relaxed), Mark { at: 0, count: 0 });
}

/// The lane of a broadcast ring in which `turns` half-turns are over, `left` bytes before the next.
fn start_before_a_half_turn(ring: &RingBuffer, turns: u32, left: u32) {
    let at = Mark { at: (turns + 1).wrapping_mul(1 << 31).wrapping_sub(left), count: 0 };
    for word in [seat_word::TAIL, seat_word::HEAD, seat_word::SEEN] {
        at.store(position(ring, 0, word), Ordering::Release);
    }
    word(ring, 0, seat_word::HIGH).store(turns, Ordering::Release);
}

#[test]
fn a_half_turn_that_a_dead_writer_counted_and_did_not_come_to_is_counted_once() {
    for turns in [0, 1, u32::MAX] {
        let ring = broadcast_ring(OnFull::Overwrite);
        start_before_a_half_turn(&ring, turns, 128);
        let mut readers: Vec<_> = (0..2).map(|_| ring.consumer(ConsumerOptions::default()).expect("consumer")).collect();
        // One has not looked yet, the other sees the writer's count before its successor comes.
        assert!(readers[0].try_pop().expect("empty").is_none());
        word(&ring, 0, seat_word::HIGH).fetch_add(1, Ordering::Relaxed);
        assert!(readers[1].try_pop().expect("empty").is_none());
        let mut p = ring.producer(ProducerOptions::default()).expect("producer");
        for n in 0..40u64 {
            p.push(&n.to_le_bytes(), None).expect("push");
        }
        assert_eq!(word(&ring, 0, seat_word::HIGH).load(Ordering::Relaxed), turns.wrapping_add(1));
        for (who, c) in readers.iter_mut().enumerate() {
            let came: Vec<_> = std::iter::from_fn(|| pop(c)).collect();
            assert_eq!((came.len(), c.lost()), (40, 0), "reader {who}");
            // A whole turn later the position looks as before.
            word(&ring, 0, seat_word::HIGH).fetch_add(2, Ordering::Relaxed);
            assert!(!matches!(c.cursor(0), Some(at) if at.high == word(&ring, 0, seat_word::HIGH).load(Ordering::Relaxed)));
            word(&ring, 0, seat_word::HIGH).fetch_sub(2, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_reader_that_was_stopped_while_it_joined_is_not_fooled_by_a_turn() {
    let ring = broadcast_ring(OnFull::Wait);
    let p = |at| position(&ring, 0, at);
    let high = word(&ring, 0, seat_word::HIGH);
    // It says where it begins, and goes on when the writer is 4 GiB and 64 bytes on, and its gate 4 GiB.
    let at = broadcast::join(p(seat_word::TAIL), high, p(seat_word::HEAD), position(&ring, 1, seat_word::HEAD), 4096, || {
        high.fetch_add(2, Ordering::Relaxed);
        Mark { at: 64, count: 9 }.store(p(seat_word::TAIL), Ordering::Release);
    });
    assert_eq!(at.expect("no damage"), Mark { at: 64, count: 9 });
}

#[test]
fn a_reader_of_an_overwriting_ring_that_was_stopped_in_a_look_is_not_fooled_by_a_turn() {
    let ring = broadcast_ring(OnFull::Overwrite);
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    p.push(&[1; 8], None).expect("push");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    // A turn behind it, and an honest look: what it holds for its own half-turn is its own.
    word(&ring, 0, seat_word::HIGH).fetch_add(1, Ordering::Relaxed);
    assert_eq!(pop(&mut c), Some(vec![1; 8]));
    assert_eq!(c.cursor(0).expect("one lane").high, 0, "a count that is ahead is not the reader's half-turn");
    word(&ring, 0, seat_word::HIGH).fetch_add(1, Ordering::Relaxed);
    p.push(&[2; 8], None).expect("push");
    assert!(pop(&mut c).is_none_or(|_| c.lost() > 0), "4 GiB are not nothing");
}

#[test]
fn a_waker_rings_before_it_ends_the_sleep_and_ends_no_later_one() {
    let waiting = AtomicU32::new(0);
    assert!(!wait::wake(&waiting, || panic!("nobody sleeps")));
    waiting.store(4 | wait::BLOCKED, Ordering::Relaxed);
    assert!(wait::wake(&waiting, || assert_ne!(waiting.load(Ordering::Relaxed), 0, "who dies here has left it to the next")));
    assert_eq!(waiting.load(Ordering::Relaxed), 0);
    waiting.store(4 | wait::BLOCKED, Ordering::Relaxed);
    // Woken, it sleeps again before the waker goes on.
    assert!(!wait::wake(&waiting, || waiting.store(8 | wait::BLOCKED, Ordering::Relaxed)));
    assert_eq!(waiting.load(Ordering::Relaxed), 8 | wait::BLOCKED);
}

/// As one who closes the ring and dies before the doorbells.
#[test]
fn a_sleeper_finds_by_itself_what_nobody_told_it() {
    let close_silently = |ring: &RingBuffer| {
        ring.shared.map.ring_word(ring_word::STATE).fetch_or(CLOSED, Ordering::AcqRel);
    };
    let (ring, _p, mut c) = ring(4096);
    let sleeper = std::thread::spawn(move || c.pop(Some(Duration::from_secs(60))).map(|_| ()).map_err(|e| e.kind()));
    while word(&ring, 0, seat_word::WAITING).load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    close_silently(&ring);
    assert_eq!(sleeper.join().expect("sleeper"), Err(ErrorKind::Closed));

    let (ring, _p, mut c) = super::ring(4096);
    let _ = c.fd().expect("fd");
    assert!(pop(&mut c).is_none());
    close_silently(&ring);
    let mut fds = [crate::sys::poll::readable(c.fd().expect("fd").as_raw_fd())];
    crate::sys::poll::wait_readable(&mut fds, Some(Duration::from_secs(60)));
    assert!(crate::sys::poll::is_ready(&fds[0]), "the loop's fd has a timer");
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
}
