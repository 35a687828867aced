//! `broadcast`: what a writer that dies, or a reader that is stopped, at the worst moment leaves behind.

use super::*;
use crate::ring::broadcast;
use crate::ring::spsc::Mark;
use crate::wire::ring::SEAT_LIVE;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;

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
