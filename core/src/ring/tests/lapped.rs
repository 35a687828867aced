//! A reader of a ring that overwrites, and a writer who goes round while it copies.

use super::*;
use crate::ring::broadcast::{Copying, Overwritten};
use crate::ring::raw::MappedLane;
use crate::ring::spsc::Lane;
use crate::sync::atomic::AtomicU64;
use std::cell::{Cell, RefCell};

struct Writer {
    producer: Producer,
    pushed: u64,
}

impl Writer {
    /// Pushes more than the ring holds, each record its number.
    fn go_round(&mut self) {
        for _ in 0..300 {
            assert!(self.producer.try_push(&self.pushed.to_le_bytes()).expect("push"));
            self.pushed += 1;
        }
    }
}

/// A lane whose writer goes round once before each of so many looks at a record.
struct Hasty {
    lane: MappedLane,
    writer: RefCell<Writer>,
    laps: Cell<u32>,
}

impl Hasty {
    /// And a reader that has been lapped once.
    fn open(laps: u32) -> (Hasty, Copying) {
        let ring = overwriting();
        let producer = ring.producer(ProducerOptions::default()).expect("producer");
        let lane = MappedLane::new(&ring.shared.map, 0, 0, 1);
        let copying = Copying::begin(&lane, 4096).expect("fresh");
        let mut writer = Writer { producer, pushed: 0 };
        writer.go_round();
        (Hasty { lane, writer: RefCell::new(writer), laps: Cell::new(laps) }, copying)
    }
}

fn overwriting() -> RingBuffer {
    RingBuffer::builder(Kind::Broadcast).capacity(4096).on_full(OnFull::Overwrite).create().expect("ring")
}

impl Lane for Hasty {
    type Position = AtomicU64;
    type Word = AtomicU32;
    fn tail(&self) -> &AtomicU64 {
        self.lane.tail()
    }
    fn committed(&self) -> &AtomicU64 {
        self.lane.committed()
    }
    fn high(&self) -> &AtomicU32 {
        self.lane.high()
    }
    fn head(&self) -> &AtomicU64 {
        self.lane.head()
    }
    fn seen(&self) -> &AtomicU32 {
        self.lane.seen()
    }
    fn record(&self, offset: u32) -> u64 {
        if let Some(left) = self.laps.get().checked_sub(1) {
            self.laps.set(left);
            self.writer.borrow_mut().go_round();
        }
        self.lane.record(offset)
    }
    fn set_record(&self, offset: u32, word: u64) {
        self.lane.set_record(offset, word);
    }
}

impl Overwritten for Hasty {
    fn gate(&self) -> &AtomicU64 {
        self.lane.gate()
    }
}

#[test]
fn whoever_is_lapped_again_and_again_still_gets_what_came_last() {
    for laps in 0..12 {
        let (hasty, mut copying) = Hasty::open(laps);
        let (mut got, mut last) = (0, 0);
        for takes in 0.. {
            assert!(takes < 10_000, "it goes on and on");
            match copying.take(&hasty).expect("no damage") {
                Some(len) => {
                    // SAFETY: the copy has the record's 8 bytes.
                    last = unsafe { copying.copied().cast::<u64>().read() };
                    assert_eq!(last, got + copying.lost(), "each gap is counted when it is seen");
                    got += 1;
                    copying.release(len);
                }
                None if !copying.has_passed() => break,
                None => assert!(copying.sees_news(&hasty), "a waiter looks again"),
            }
        }
        let (left, pushed) = (hasty.laps.get(), hasty.writer.borrow().pushed);
        assert_eq!((left, last + 1, got + copying.lost()), (0, pushed, pushed), "{laps} laps");
    }
}

#[test]
fn what_was_passed_over_is_lost_once_a_face_has_read_on() {
    let (hasty, mut copying) = Hasty::open(4);
    assert_eq!(copying.take(&hasty).expect("no damage"), None);
    assert!(copying.has_passed() && copying.lost() < 5 * 300);
    let mut cursor = copying.cursor();
    copying.set_cursor(cursor).expect("where it stands");
    assert!(copying.has_passed());
    // It has read one itself that came next.
    hasty.writer.borrow_mut().go_round();
    cursor.at += record_extent(8);
    cursor.count += 1;
    copying.set_cursor(cursor).expect("one further");
    assert!(!copying.has_passed());
    assert_eq!(copying.lost(), 5 * 300);
}

#[test]
fn positions_that_no_writer_has_end_a_look() {
    for lie in [1 << 20, 0u32.wrapping_sub(8)] {
        let ring = overwriting();
        let mut p = ring.producer(ProducerOptions::default()).expect("producer");
        let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
        for n in 0..10u64 {
            assert!(p.try_push(&n.to_le_bytes()).expect("push"));
        }
        word(&ring, 0, seat_word::TAIL).store(lie, Ordering::Release);
        assert!(pop(&mut c).is_none());
        assert_eq!((c.lost(), kind(c.pop(SHORT).map(|_| ()))), (10, ErrorKind::Timeout), "tail at {lie}");
    }
}
