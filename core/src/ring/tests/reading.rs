//! `read`: many records in one call, in every kind that has a shorter way for it.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn handles(kind: Kind) -> (RingBuffer, Producer, Consumer) {
    let ring = RingBuffer::builder(kind).capacity(64 << 10).create().expect("ring");
    let producer = ring.producer(ProducerOptions { batch: true, ..ProducerOptions::default() }).expect("producer");
    let consumer = ring.consumer(ConsumerOptions::default()).expect("consumer");
    (ring, producer, consumer)
}

fn push(p: &mut Producer, numbers: std::ops::Range<u64>) {
    for n in numbers {
        assert!(p.try_push(&n.to_le_bytes()).expect("push"));
    }
    p.flush().expect("flush");
}

fn number(record: RecordRef<'_>) -> u64 {
    u64::from_le_bytes(record.to_vec().try_into().expect("8 bytes"))
}

#[test]
fn a_call_reads_what_it_may_and_what_there_is() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (_ring, mut p, mut c) = handles(kind);
        push(&mut p, 0..200);
        let mut seen = Vec::new();
        assert_eq!(c.read(150, |r| seen.push(number(r))).expect("read"), 150, "{kind:?}");
        assert_eq!(number(c.peek().expect("peek").expect("some")), 150);
        assert_eq!(c.read(1, |r| seen.push(number(r))).expect("read"), 1);
        assert_eq!(c.read(150, |r| seen.push(number(r))).expect("read"), 49);
        assert_eq!(c.read(150, |r| seen.push(number(r))).expect("read"), 0);
        assert_eq!(seen, (0..200).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[test]
fn a_record_whose_reader_panics_is_let_go_of() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (ring, mut p, mut c) = handles(kind);
        push(&mut p, 0..10);
        let read = catch_unwind(AssertUnwindSafe(|| c.read(10, |r| assert_ne!(number(r), 3, "the reader's own failure"))));
        assert!(read.is_err());
        assert_eq!(pop(&mut c).expect("the next one"), 4u64.to_le_bytes(), "{kind:?}");
        drop(c);
        let mut c = ring.consumer(ConsumerOptions::default()).expect("successor");
        let mut seen = Vec::new();
        c.read(10, |r| seen.push((number(r), r.is_redelivered()))).expect("read");
        // What was taken with it comes again.
        let again = |n| kind == Kind::Mpmc && n < 9;
        assert_eq!(seen, (5..10).map(|n| (n, again(n))).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[test]
fn damage_behind_a_record_is_told_by_the_next_call() {
    for (kind, at, word) in [(Kind::Spsc, 2 * 16, record_word(RECORD_DATA, 100_000)), (Kind::Mpmc, 2 * 256 + 8, 100_000)] {
        let (ring, mut p, mut c) = handles(kind);
        push(&mut p, 0..3);
        set_record(&ring, at, word);
        assert_eq!(c.read(10, |_| ()).expect("what is whole"), 2, "{kind:?}");
        assert_eq!(super::kind(c.read(10, |_| ())), ErrorKind::Corrupt, "{kind:?}");
        assert_eq!(super::kind(p.try_push(b"")), ErrorKind::Corrupt, "{kind:?}");
    }
}
