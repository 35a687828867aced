//! A reader of a ring that overwrites, and a writer who goes round while it copies.

use super::*;
use crate::ring::broadcast::{Copying, Overwritten};
use crate::ring::raw::MappedLane;
use crate::ring::spsc::Lane;
use crate::sync::atomic::AtomicU64;
use std::cell::{Cell, RefCell};

/// A lane whose writer goes round once before each of so many looks at a record.
struct Hasty<'a> {
    lane: &'a MappedLane,
    writer: RefCell<&'a mut dyn FnMut()>,
    laps: Cell<u32>,
}

impl Lane for Hasty<'_> {
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
            (self.writer.borrow_mut())();
        }
        self.lane.record(offset)
    }
    fn set_record(&self, offset: u32, word: u64) {
        self.lane.set_record(offset, word);
    }
}

impl Overwritten for Hasty<'_> {
    fn gate(&self) -> &AtomicU64 {
        self.lane.gate()
    }
}

#[test]
fn whoever_is_lapped_again_and_again_still_gets_what_came_last() {
    for laps in 0..12 {
        let ring = RingBuffer::builder(Kind::Broadcast).capacity(4096).on_full(OnFull::Overwrite).create().expect("ring");
        let mut p = ring.producer(ProducerOptions::default()).expect("producer");
        let mut pushed = 0u64;
        let mut go_round = || {
            for _ in 0..300 {
                assert!(p.try_push(&pushed.to_le_bytes()).expect("push"));
                pushed += 1;
            }
        };
        let lane = MappedLane::new(&ring.shared.map, 0, 0, 1);
        let mut copying = Copying::begin(&lane, 4096).expect("fresh");
        go_round();
        let hasty = Hasty { lane: &lane, writer: RefCell::new(&mut go_round), laps: Cell::new(laps) };
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
        let left = hasty.laps.get();
        assert_eq!((left, last + 1, got + copying.lost()), (0, pushed, pushed), "{laps} laps");
    }
}

#[test]
fn what_was_passed_over_is_lost_once_a_face_has_read_on() {
    let ring = RingBuffer::builder(Kind::Broadcast).capacity(4096).on_full(OnFull::Overwrite).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let mut pushed = 0u64;
    let mut go_round = || {
        for _ in 0..300 {
            assert!(p.try_push(&pushed.to_le_bytes()).expect("push"));
            pushed += 1;
        }
    };
    let lane = MappedLane::new(&ring.shared.map, 0, 0, 1);
    let mut copying = Copying::begin(&lane, 4096).expect("fresh");
    go_round();
    let hasty = Hasty { lane: &lane, writer: RefCell::new(&mut go_round), laps: Cell::new(4) };
    assert_eq!(copying.take(&hasty).expect("no damage"), None);
    assert!(copying.has_passed() && copying.lost() < 5 * 300);
    let mut cursor = copying.cursor();
    copying.set_cursor(cursor).expect("where it stands");
    assert!(copying.has_passed());
    // It has read one itself that came next.
    go_round();
    cursor.at += record_extent(8);
    cursor.count += 1;
    copying.set_cursor(cursor).expect("one further");
    assert!(!copying.has_passed());
    assert_eq!(copying.lost(), 5 * 300);
}

#[test]
fn positions_that_no_writer_has_end_a_look() {
    for lie in [1 << 20, 0u32.wrapping_sub(8)] {
        let ring = RingBuffer::builder(Kind::Broadcast).capacity(4096).on_full(OnFull::Overwrite).create().expect("ring");
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
