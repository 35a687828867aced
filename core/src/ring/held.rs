//! A ring in the hands of an object that its host collects at some time, or never.
//!
//! Once such an object was closed, it gives fds and memory back as soon as nobody can want them any more: no handle of the ring is left in
//! this process, and nothing waits in the ring. What waits is kept, for a consumer that comes later.

use super::mpmc::Popper;
use super::stat::RingStat;
use super::{Builder, Consumer, ConsumerOptions, Kind, OnFull, RingBuffer, spsc};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::Ordering;
use crate::wire::ring::{MIN_CAPACITY, seat_word};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a face keeps in place of a [`RingBuffer`]. Handles are made by [`with`](Self::with) and [`consumer`](Self::consumer); after each
/// close of one of them, and of the ring, the face calls [`settle`](Self::settle).
#[derive(Debug)]
pub struct HeldRing {
    kind: Kind,
    on_full: OnFull,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Here {
        ring: RingBuffer,
        closed: bool,
    },
    /// What the ring looked like at its end; `None` if something waited in it.
    Gone {
        last: Option<RingStat>,
    },
}

impl HeldRing {
    /// Keeps a ring.
    #[must_use]
    pub fn new(ring: RingBuffer) -> HeldRing {
        HeldRing { kind: ring.kind(), on_full: ring.on_full(), state: Mutex::new(State::Here { ring, closed: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the ring; it may not call back.
    ///
    /// # Errors
    /// `Closed` once the ring is gone, and those of `f`.
    pub fn with<R>(&self, f: impl FnOnce(&RingBuffer) -> Result<R>) -> Result<R> {
        match &*self.state() {
            State::Here { ring, .. } => f(ring),
            State::Gone { .. } => Err(gone()),
        }
    }

    /// [`RingBuffer::consumer`]. Of a ring that is gone because nothing was left in it, one that finds that out.
    ///
    /// # Errors
    /// Those of [`RingBuffer::consumer`]; `Closed` for a ring that is gone with what waited in it.
    pub fn consumer(&self, options: ConsumerOptions) -> Result<Consumer> {
        match &*self.state() {
            State::Here { ring, .. } => ring.consumer(options),
            State::Gone { last: Some(_) } => {
                // As closed and as empty as the one that is gone.
                let stand_in = Builder { on_full: self.on_full, capacity: MIN_CAPACITY, ..RingBuffer::builder(self.kind) };
                let stand_in = stand_in.create()?;
                stand_in.close();
                stand_in.consumer(options)
            }
            State::Gone { last: None } => Err(gone()),
        }
    }

    /// [`RingBuffer::stat`]; of a ring that is gone, the last one.
    ///
    /// # Errors
    /// Those of [`RingBuffer::stat`]; `Closed` for a ring that is gone with what waited in it.
    pub fn stat(&self) -> Result<RingStat> {
        match &*self.state() {
            State::Here { ring, .. } => ring.stat(),
            State::Gone { last } => last.clone().ok_or_else(gone),
        }
    }

    /// [`RingBuffer::close`].
    pub fn close(&self) {
        if let State::Here { ring, closed } = &mut *self.state() {
            ring.close();
            *closed = true;
        }
    }

    /// [`RingBuffer::is_closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match &*self.state() {
            State::Here { ring, .. } => ring.is_closed(),
            State::Gone { .. } => true,
        }
    }

    /// Lets go of the ring if this object closed it and nobody can want it any more; with `whatever_waits`, if no handle is left. `besides`:
    /// clones of the ring that `release` drops, and false if it cannot. True if the ring is gone.
    pub fn settle(&self, besides: usize, whatever_waits: bool, release: impl FnOnce() -> bool) -> bool {
        let mut state = self.state();
        let State::Here { ring, closed: true } = &*state else { return matches!(*state, State::Gone { .. }) };
        if Arc::strong_count(&ring.shared) != 1 + besides {
            return false;
        }
        let last = ring.end();
        let goes = (last.is_some() || whatever_waits) && release();
        if goes {
            *state = State::Gone { last };
        }
        goes
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Closed, "ring was closed, and this object has let go of it")
}

impl RingBuffer {
    /// What a closed ring looks like of which nothing can come any more, nor be asked by its name.
    fn end(&self) -> Option<RingStat> {
        let map = &self.shared.map;
        if self.shared.bells.named().is_some_and(|named| named.leads_to(map.file())) {
            return None;
        }
        let stat = self.stat().ok()?;
        let in_flight = stat.returned > 0 || stat.participants.iter().any(|p| p.in_flight > 0);
        // Who comes to a broadcast ring sees what is pushed from then on.
        let waits = match &self.shared.slots {
            Some(slots) => !Popper::finds_only_voids(slots),
            None => self.kind() != Kind::Broadcast && (stat.lanes.iter().any(|lane| lane.used() != 0) || self.has_unpublished()),
        };
        (stat.closed && !stat.poisoned && !in_flight && !waits).then_some(stat)
    }

    /// A producer died, or goes on elsewhere, that has committed what the next consumer publishes for it.
    fn has_unpublished(&self) -> bool {
        let header = self.shared.map.header();
        let word = |seat, at| self.shared.map.seat_position(seat, at).load(Ordering::Acquire);
        let of_lane = |seat| spsc::unpublished(word(seat, seat_word::TAIL), word(seat, seat_word::COMMITTED_AT), header.capacity) > 0;
        header.slot_len == 0 && (1..=header.lanes as usize).any(of_lane)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ring::{Ack, ProducerOptions};

    fn held(kind: Kind) -> HeldRing {
        HeldRing::new(RingBuffer::builder(kind).capacity(4096).create().expect("ring"))
    }

    fn settled(held: &HeldRing) -> bool {
        held.settle(0, false, || true)
    }

    const KINDS: [Kind; 4] = [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc];

    #[test]
    fn a_ring_that_was_closed_goes_with_its_last_handle() {
        for kind in KINDS {
            let held = held(kind);
            assert!(!settled(&held), "it is open");
            let mut producer = held.with(|ring| ring.producer(ProducerOptions::default())).expect("producer");
            let mut consumer = held.consumer(ConsumerOptions::default()).expect("consumer");
            assert!(producer.try_push(b"apple").expect("push"));
            held.close();
            assert!(held.is_closed() && !settled(&held));
            assert_eq!(consumer.pop(None).expect("pop").to_vec(), b"apple");
            drop(producer);
            assert!(!settled(&held));
            drop(consumer);
            assert!(!held.settle(0, false, || false), "what lies beside it stays");
            assert!(settled(&held) && settled(&held), "{kind:?}");
            assert!(held.is_closed() && held.stat().expect("the last one").closed);
            assert_eq!(held.with(|ring| ring.fds()).expect_err("gone").kind(), ErrorKind::Closed);
            let mut late = held.consumer(ConsumerOptions::default()).expect("stands in");
            assert_eq!(late.try_pop().expect_err("over").kind(), ErrorKind::Closed);
            let manual = held.consumer(ConsumerOptions { ack: Ack::Manual });
            assert_eq!(manual.is_ok(), kind == Kind::Mpmc);
        }
    }

    #[test]
    fn what_waits_in_a_closed_ring_is_kept_for_a_consumer_that_comes_later() {
        for kind in [Kind::Spsc, Kind::Mpsc, Kind::Mpmc] {
            let held = held(kind);
            let mut producer = held.with(|ring| ring.producer(ProducerOptions::default())).expect("producer");
            assert!(producer.try_push(b"apple").expect("push"));
            held.close();
            drop(producer);
            assert!(!settled(&held));
            assert_eq!(held.consumer(ConsumerOptions::default()).expect("consumer").pop(None).expect("pop").to_vec(), b"apple");
            assert!(settled(&held), "{kind:?}");
        }
    }

    #[test]
    fn a_claim_that_was_given_up_keeps_no_ring() {
        for kind in KINDS {
            let held = held(kind);
            let mut producer = held.with(|ring| ring.producer(ProducerOptions::default())).expect("producer");
            producer.claim(5, None).expect("claim").abort();
            held.close();
            drop(producer);
            assert!(settled(&held), "{kind:?}");
        }
    }

    #[test]
    fn a_task_that_comes_back_keeps_its_ring() {
        let held = held(Kind::Mpmc);
        let manual = || held.consumer(ConsumerOptions { ack: Ack::Manual }).expect("consumer");
        let mut producer = held.with(|ring| ring.producer(ProducerOptions::default())).expect("producer");
        assert!(producer.try_push(b"apple").expect("push"));
        drop(producer);
        held.close();
        drop(manual().pop(None).expect("task"));
        assert!(!settled(&held));
        let mut consumer = manual();
        let delivery = consumer.pop(None).expect("task").delivery();
        consumer.ack(delivery).expect("ack");
        drop(consumer);
        assert!(settled(&held));
    }

    #[test]
    fn a_task_that_is_kept_keeps_no_ring_whose_consumer_has_left() {
        for acked in [true, false] {
            let held = held(Kind::Mpmc);
            let mut producer = held.with(|ring| ring.producer(ProducerOptions::default())).expect("producer");
            let mut consumer = held.consumer(ConsumerOptions { ack: Ack::Manual }).expect("consumer");
            assert!(producer.try_push(b"apple").expect("push"));
            let delivery = consumer.pop(None).expect("task").delivery();
            let acks = consumer.acks().expect("manual");
            if acked {
                acks.ack(delivery).expect("ack");
            }
            drop(producer);
            held.close();
            let map = held.with(|ring| Ok(Arc::downgrade(&ring.shared.map))).expect("here");
            drop(consumer);
            assert!(held.settle(0, !acked, || true), "acked: {acked}");
            assert_eq!(map.strong_count(), 0);
            for ended in [acks.ack(delivery), acks.nack(delivery)] {
                assert_eq!(ended.expect_err("its consumer left").kind(), ErrorKind::Invalid);
            }
        }
    }

    #[test]
    fn what_a_dead_producer_had_not_published_keeps_its_ring() {
        for kind in [Kind::Spsc, Kind::Mpsc] {
            let held = held(kind);
            let mut producer =
                held.with(|ring| ring.producer(ProducerOptions { batch: true, ..ProducerOptions::default() })).expect("producer");
            assert!(producer.try_push(b"apple").expect("push"));
            held.close();
            assert!(held.with(|ring| Ok(ring.end().is_none())).expect("here"), "as if the producer had died here");
            drop(producer);
        }
    }

    #[test]
    fn whoever_wants_nothing_more_of_a_ring_has_it_go_with_what_waits() {
        let held = held(Kind::Spsc);
        let mut producer = held.with(|ring| ring.producer(ProducerOptions::default())).expect("producer");
        assert!(producer.try_push(b"apple").expect("push"));
        held.close();
        assert!(!held.settle(0, true, || true), "the producer is there");
        drop(producer);
        assert!(held.settle(0, true, || true));
        assert_eq!(held.consumer(ConsumerOptions::default()).expect_err("gone").kind(), ErrorKind::Closed);
        assert_eq!(held.stat().expect_err("gone").kind(), ErrorKind::Closed);
    }
}
