//! `make loom`: what a writer commits and holds back, and a reader, or the next writer, publishes. Over the real lane, each with a mutant
//! that must fail.

use super::models::{ModelLane, RelaxedStore, Swapped, pop};
use super::spsc::{Lane, Mark, Reader, Writer, publish_committed};
use super::wait::{BLOCKED, announce_sleep};
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::wire::ring::COMMITTED;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

const CAPACITY: u32 = 64;

type Position = Swapped<AtomicU64>;

fn position(at: u64) -> Position {
    Swapped(AtomicU64::new(at))
}

fn commit<P: Word<u64>>(writer: &mut Writer, lane: &ModelLane<P>, value: u64) {
    let offset = writer.claim(lane, 8).expect("no damage").expect("room");
    lane.write(offset, value);
    writer.commit(lane, 8);
    writer.show(lane);
}

/// A writer that shows two records, and publishes them when it ends, beside a reader that does not wait for that.
fn hold_back_model<P: Word<u64> + Send + Sync + 'static>(position: fn(u64) -> P, publish_for_it: fn(&ModelLane<P>)) {
    loom::model(move || {
        let lane = Arc::new(ModelLane::with_capacity(CAPACITY, 0u32.wrapping_sub(16), position));
        let mut writer = Writer::resume(&*lane, CAPACITY).expect("fresh");
        let mut reader = Reader::resume(&*lane, CAPACITY).expect("fresh");
        let writer = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                commit(&mut writer, &lane, 100);
                commit(&mut writer, &lane, 101);
                writer.publish(&*lane);
                writer.hide(&*lane);
            })
        };
        publish_for_it(&lane);
        let mut seen: Vec<u64> = pop(&mut reader, &lane).into_iter().collect();
        writer.join().expect("writer");
        seen.extend(std::iter::from_fn(|| pop(&mut reader, &lane)));
        assert_eq!(seen, [100, 101]);
    });
}

fn publish_for_it<P: Word<u64>>(lane: &ModelLane<P>) {
    publish_committed(lane, CAPACITY);
}

#[test]
fn ring_batch_that_a_reader_publishes_is_whole() {
    hold_back_model(position, publish_for_it);
}

#[test]
#[should_panic(expected = "")]
fn ring_batch_that_is_shown_without_release_is_torn() {
    hold_back_model(|n| Swapped(RelaxedStore(AtomicU64::new(n))), publish_for_it);
}

#[test]
#[should_panic(expected = "")]
fn ring_batch_whose_reader_takes_the_writers_word_back_loses_records() {
    hold_back_model(position, |lane| {
        let tail = Mark::load(lane.tail(), Ordering::Acquire).at;
        let committed = lane.committed().load(Ordering::Acquire);
        if committed & u64::from(COMMITTED) != 0 && (committed as u32 & !7).wrapping_sub(tail) <= CAPACITY {
            lane.tail().store(committed & !u64::from(COMMITTED), Ordering::Release);
        }
    });
}

/// A writer has died with a record that it showed. A reader publishes it while the next writer begins.
fn successor_model(resume: fn(&ModelLane<Position>) -> Writer) {
    loom::model(move || {
        let lane = Arc::new(ModelLane::with_capacity(CAPACITY, 0, position));
        let mut reader = Reader::resume(&*lane, CAPACITY).expect("fresh");
        commit(&mut Writer::resume(&*lane, CAPACITY).expect("fresh"), &lane, 100);
        let successor = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                let mut writer = resume(&lane);
                let offset = writer.claim(&*lane, 8).expect("no damage").expect("room");
                lane.write(offset, 200);
                writer.commit(&*lane, 8);
                writer.publish(&*lane);
            })
        };
        publish_for_it(&lane);
        let mut seen: Vec<u64> = pop(&mut reader, &lane).into_iter().collect();
        successor.join().expect("successor");
        publish_for_it(&lane);
        seen.extend(std::iter::from_fn(|| pop(&mut reader, &lane)));
        assert_eq!(seen, [100, 200]);
    });
}

#[test]
fn ring_batch_of_a_dead_writer_is_its_successors() {
    successor_model(|lane| Writer::resume(lane, CAPACITY).expect("no damage"));
}

#[test]
#[should_panic(expected = "")]
fn ring_batch_of_a_dead_writer_that_is_forgotten_is_torn() {
    successor_model(|lane| {
        let committed = lane.committed().load(Ordering::Relaxed);
        lane.committed().store(0, Ordering::Relaxed);
        let writer = Writer::resume(lane, CAPACITY).expect("no damage");
        lane.committed().store(committed, Ordering::Relaxed);
        writer
    });
}

/// P0 and W3: the fence that the sleeper makes everywhere is one in both threads.
fn barrier_model(barrier: fn()) {
    loom::model(move || {
        let lane = Arc::new(ModelLane::with_capacity(CAPACITY, 0, position));
        let waiting = Arc::new(AtomicU32::new(0));
        let mut writer = Writer::resume(&*lane, CAPACITY).expect("fresh");
        let writer = {
            let (lane, waiting) = (Arc::clone(&lane), Arc::clone(&waiting));
            thread::spawn(move || {
                commit(&mut writer, &lane, 100);
                barrier();
                waiting.load(Ordering::Relaxed) != 0
            })
        };
        announce_sleep(&*waiting, BLOCKED);
        let found = publish_committed(&*lane, CAPACITY);
        let rang = writer.join().expect("writer");
        assert!(found || rang, "asleep beside a record that waits in a batch");
    });
}

#[test]
fn ring_batch_never_waits_for_a_sleeper() {
    barrier_model(|| fence(Ordering::SeqCst));
}

#[test]
#[should_panic(expected = "asleep beside a record")]
fn ring_batch_without_a_barrier_waits_for_a_sleeper() {
    barrier_model(|| ());
}
