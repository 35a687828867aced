//! One process: order, sizes, policies, damage. Two processes: `core/tests/ring.rs`.

mod cursor;
mod gate;
mod lapped;
mod many;
mod mpmc;
mod named;
#[path = "../../../../tests/src/random.rs"]
mod random;
mod reading;

use super::*;
use crate::sync::mapped::AtomicU32;
use crate::wire::ring::{RECORD_DATA, RECORD_PAD, record_extent, record_word};
use random::Random;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const SHORT: Option<Duration> = Some(Duration::from_millis(5));

fn ring(capacity: usize) -> (RingBuffer, Producer, Consumer) {
    let ring = RingBuffer::builder(Kind::Spsc).capacity(capacity).create().expect("ring");
    let producer = ring.producer(ProducerOptions::default()).expect("producer");
    let consumer = ring.consumer(ConsumerOptions::default()).expect("consumer");
    (ring, producer, consumer)
}

fn pop(consumer: &mut Consumer) -> Option<Vec<u8>> {
    consumer.try_pop().expect("pop").map(|r| r.to_vec())
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("an error").kind()
}

#[test]
fn records_come_in_the_order_of_pushing() {
    let (_ring, mut p, mut c) = ring(4096);
    assert_eq!(pop(&mut c), None);
    for record in [b"one".as_slice(), b"", b"three and more"] {
        assert!(p.try_push(record).expect("push"));
    }
    assert_eq!(c.peek().expect("peek").expect("some").to_vec(), b"one");
    assert_eq!(c.peek().expect("peek").expect("some").to_vec(), b"one", "peeking takes nothing");
    assert_eq!(pop(&mut c).expect("one"), b"one");
    assert_eq!(pop(&mut c).expect("empty record"), b"");
    assert_eq!(pop(&mut c).expect("three"), b"three and more");
    assert_eq!(pop(&mut c), None);
}

#[test]
fn the_longest_record_fits_wherever_the_writer_stands() {
    let (ring, mut p, mut c) = ring(4096);
    let longest = vec![7u8; ring.max_record_len()];
    for shift in 0..600 {
        assert!(p.try_push(&vec![1; shift * 8 % 2000]).expect("push"));
        assert_eq!(pop(&mut c).expect("short").len(), shift * 8 % 2000);
        c.give_back().expect("no damage");
        assert!(p.try_push(&longest).expect("push"), "at shift {shift}");
        assert_eq!(pop(&mut c).expect("long"), longest);
        c.give_back().expect("no damage");
    }
    let e = p.try_push(&vec![0; longest.len() + 1]).expect_err("too long");
    assert_eq!(e.to_string(), "too large: record does not fit the ring (record_len=2041, max_record_len=2040)");
}

#[test]
fn a_full_ring_takes_nothing_until_there_is_room() {
    let (_ring, mut p, mut c) = ring(4096);
    let mut n = 0;
    while p.try_push(&[0; 504]).expect("push") {
        n += 1;
    }
    assert_eq!(n, 8, "records of 512 bytes in 4096");
    assert_eq!(kind(p.push(&[0; 504], SHORT)), ErrorKind::Timeout);
    assert_eq!(kind(p.push(&[0; 504], Some(Duration::ZERO))), ErrorKind::Timeout);
    assert!(pop(&mut c).is_some());
    assert!(p.try_push(&[0; 504]).expect("push"));
}

#[test]
fn an_empty_ring_has_all_its_room_although_the_consumer_does_not_come_again() {
    let (_ring, mut p, mut c) = ring(4096);
    for len in [1900, 200] {
        p.push(&vec![1; len], None).expect("push");
        assert_eq!(pop(&mut c).expect("record").len(), len);
    }
    let longest = p.max_record_len();
    assert!(p.try_push(&vec![2; longest]).expect("push"));
}

#[test]
fn the_policy_reject_fails_at_once() {
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).on_full(OnFull::Reject).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    p.push(&[0; 2040], None).expect("room");
    p.push(&[0; 2040], None).expect("room");
    let e = p.push(&[0; 2040], None).expect_err("full");
    assert_eq!((e.kind(), e.to_string().contains("capacity=4096")), (ErrorKind::Full, true), "{e}");
    drop(p);
    let mut waits = ring.producer(ProducerOptions { on_full: Some(OnFull::Wait), ..Default::default() }).expect("producer");
    assert_eq!(kind(waits.push(&[0; 2040], SHORT)), ErrorKind::Timeout);
    drop(waits);
    assert_eq!(kind(ring.producer(ProducerOptions { on_full: Some(OnFull::Overwrite), ..Default::default() })), ErrorKind::Invalid);
}

#[test]
fn a_claim_is_written_in_place_and_may_shrink_or_vanish() {
    let (_ring, mut p, mut c) = ring(4096);
    let mut claim = p.try_claim(100).expect("claim").expect("room");
    assert!(claim.write_at(0, b"hello") && !claim.write_at(96, b"hello") && !claim.write_at(usize::MAX, b"x"));
    assert_eq!(claim.len(), 100);
    claim.commit_len(5).expect("commit");
    p.try_claim(100).expect("claim").expect("room").abort();
    drop(p.claim(2040, SHORT).expect("claim"));
    assert_eq!(kind(p.try_claim(8).expect("claim").expect("room").commit_len(9)), ErrorKind::Invalid);
    assert!(p.try_claim_ptr(8).expect("claim").is_some());
    assert_eq!(kind(p.try_push(b"x")), ErrorKind::InUse);
    p.abort_claim();
    assert_eq!(kind(p.commit_claim(0)), ErrorKind::Invalid);
    assert_eq!(pop(&mut c).expect("record"), b"hello");
    assert_eq!(pop(&mut c), None);
}

#[test]
fn a_batch_is_seen_when_it_is_flushed_or_long_enough() {
    let ring = RingBuffer::builder(Kind::Spsc).capacity(64 << 10).create().expect("ring");
    let mut p = ring.producer(ProducerOptions { batch: true, ..Default::default() }).expect("producer");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    let published = || ring.stat().expect("stat").lanes[0].pushed;
    p.try_push(&[1; 56]).expect("push");
    assert_eq!(published(), 0);
    p.flush().expect("flush");
    assert_eq!(pop(&mut c).expect("flushed").len(), 56);
    for _ in 0..63 {
        p.try_push(&[1; 56]).expect("push");
    }
    assert_eq!(published(), 1);
    p.try_push(&[1; 56]).expect("push");
    assert_eq!(c.read(1000, |r| assert_eq!(r.len(), 56)).expect("read"), 64, "published by itself at 4 KiB");
    p.try_push(&[2; 8]).expect("push");
    drop(p);
    assert_eq!(pop(&mut c).expect("leaving flushes"), [2; 8]);
}

#[test]
fn a_batch_is_published_when_the_ring_is_full() {
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).create().expect("ring");
    let mut p = ring.producer(ProducerOptions { batch: true, ..Default::default() }).expect("producer");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    p.try_push(&[1; 2000]).expect("push");
    p.try_push(&[1; 2000]).expect("push");
    assert_eq!(ring.stat().expect("stat").lanes[0].pushed, 0);
    assert!(!p.try_push(&[1; 2000]).expect("full"));
    assert_eq!(pop(&mut c).expect("published").len(), 2000);
}

/// The producer does nothing after its push: whoever has nothing else to do finds what waits in the batch.
#[test]
fn a_batch_of_a_producer_that_idles_is_found_by_who_waits() {
    for kind in [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc] {
        let ring = RingBuffer::builder(kind).capacity(4096).create().expect("ring");
        let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
        let mut p = ring.producer(ProducerOptions { batch: true, ..Default::default() }).expect("producer");
        for n in 0..1000u32 {
            p.push(&n.to_le_bytes(), None).expect("push");
            assert_eq!(c.pop(None).expect("blocks").to_vec(), n.to_le_bytes(), "{kind:?}");
        }
        c.fd().expect("polled");
        for n in 0..1000u32 {
            p.push(&n.to_le_bytes(), None).expect("push");
            assert_eq!(pop(&mut c).expect("a look that arms"), n.to_le_bytes(), "{kind:?}");
            assert_eq!(pop(&mut c), None);
        }
        // Nobody is told of a consumer that only asks from time to time.
        if kind != Kind::Broadcast {
            drop(c);
        }
        let mut c = ring.consumer(ConsumerOptions::default()).expect("another");
        assert_eq!(pop(&mut c), None);
        p.push(b"seen at last", None).expect("push");
        let found = std::iter::repeat_with(|| pop(&mut c)).flatten().next();
        assert_eq!(found.expect("found"), b"seen at last", "{kind:?}");
    }
}

/// Question and answer without a flush: each side sleeps, spins or is about to, as it happens. A long record keeps the stores behind it
/// waiting, so that the look at who sleeps comes long before them.
#[test]
fn batches_of_one_wake_who_sleeps_for_them() {
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 1_000_000u32 } else { 20_000 };
    for kind in [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc] {
        let rings = [(); 2].map(|()| {
            let ring = RingBuffer::builder(kind).capacity(16 << 10);
            if kind == Kind::Mpmc { ring.slot_size(2048) } else { ring }.create().expect("ring")
        });
        let ends = |out: &RingBuffer, back: &RingBuffer| {
            let c = back.consumer(ConsumerOptions::default()).expect("consumer");
            (out.producer(ProducerOptions { batch: true, ..Default::default() }).expect("producer"), c)
        };
        let (mut p, mut c) = ends(&rings[0], &rings[1]);
        let (mut q, mut d) = ends(&rings[1], &rings[0]);
        let echo = std::thread::spawn(move || {
            for n in 0..rounds {
                let mut asked = d.pop(None).expect("asked").to_vec();
                asked.resize(n as usize % 1500 + 4, 0);
                q.push(&asked, None).expect("answer");
            }
            (q, d)
        });
        let mut random = Random(0x5EED_000B);
        for n in 0..rounds {
            (0..random.below(2000)).for_each(|_| std::hint::spin_loop());
            p.push(&vec![n.to_le_bytes(); 1 + random.below(400) as usize].concat(), None).expect("ask");
            assert_eq!(c.pop(None).expect("answered").to_vec()[..4], n.to_le_bytes(), "{kind:?}");
        }
        drop(echo.join().expect("echo"));
    }
}

#[test]
fn after_close_what_is_there_is_drained() {
    let (ring, mut p, mut c) = ring(4096);
    p.try_push(b"last").expect("push");
    ring.close();
    assert!(ring.is_closed());
    assert_eq!(kind(p.try_push(b"late")), ErrorKind::Closed);
    assert_eq!(kind(p.push(b"late", None)), ErrorKind::Closed);
    assert_eq!(c.pop(None).expect("drains").to_vec(), b"last");
    assert_eq!(kind(c.pop(None).map(|r| r.len())), ErrorKind::Closed);
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
    assert_eq!(kind(c.read(1, |_| ())), ErrorKind::Closed);
    assert_eq!(kind(ring.producer(ProducerOptions::default())), ErrorKind::Closed);
}

#[test]
fn a_record_that_is_published_behind_the_end_is_not_promised() {
    for kind in [Kind::Spsc, Kind::Mpsc, Kind::Broadcast] {
        let ring = RingBuffer::builder(kind).capacity(4096).create().expect("create");
        let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
        let mut p = ring.producer(ProducerOptions::default()).expect("producer");
        p.try_claim_ptr(8).expect("open").expect("room");
        ring.close();
        assert_eq!(self::kind(c.try_pop().map(|_| ())), ErrorKind::Closed, "{kind:?}");
        assert_eq!(self::kind(p.commit_claim(8)), ErrorKind::Closed, "{kind:?}");
        assert!(c.try_pop().expect("a consumer that looks again gets it").is_some());
    }
}

#[test]
fn what_was_committed_in_a_batch_comes_before_the_end() {
    for kind in [Kind::Spsc, Kind::Mpsc, Kind::Broadcast] {
        for overwrites in [false, true] {
            if overwrites && kind != Kind::Broadcast {
                continue;
            }
            let on_full = if overwrites { OnFull::Overwrite } else { OnFull::Wait };
            let ring = RingBuffer::builder(kind).capacity(4096).on_full(on_full).create().expect("create");
            let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
            let mut p = ring.producer(ProducerOptions { batch: true, ..Default::default() }).expect("producer");
            assert!(p.try_push(b"not flushed").expect("room"));
            ring.close();
            assert_eq!(c.try_pop().expect("drains").expect("record").to_vec(), b"not flushed", "{kind:?}");
            assert_eq!(self::kind(c.try_pop().map(|_| ())), ErrorKind::Closed, "{kind:?}");
            if !overwrites {
                p.flush().expect("its consumer has let go of it");
            }
        }
    }
}

#[test]
fn a_sleeping_consumer_is_woken_by_a_push_and_by_close() {
    let (ring, mut p, mut c) = ring(4096);
    let sleeper = std::thread::spawn(move || {
        let first = c.pop(None).expect("woken").to_vec();
        (first, kind(c.pop(None).map(|r| r.len())))
    });
    let waiting = || super::wait::is_blocked(ring.shared.map.seat_word(0, seat_word::WAITING).load(Ordering::Relaxed));
    while !waiting() {
        std::thread::yield_now();
    }
    assert!(p.try_push(b"wake").expect("push"));
    while !waiting() {
        std::thread::yield_now();
    }
    ring.close();
    assert_eq!(sleeper.join().expect("join"), (b"wake".to_vec(), ErrorKind::Closed));
}

#[test]
fn a_sleeping_producer_is_woken_by_room() {
    let (ring, mut p, mut c) = ring(4096);
    let sleeper = std::thread::spawn(move || {
        for n in 0..100u64 {
            let mut claim = p.claim(1000, None).expect("room");
            assert!(claim.write_at(0, &n.to_le_bytes()));
            claim.commit().expect("commit");
        }
    });
    for n in 0..100u64 {
        if n < 20 {
            while ring.shared.map.seat_word(1, seat_word::WAITING).load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
        }
        let record = c.pop(None).expect("record");
        let mut head = [0; 8];
        assert!(record.payload().read_at(0, &mut head) && !record.payload().read_at(993, &mut head));
        assert_eq!((u64::from_le_bytes(head), record.len()), (n, 1000));
    }
    sleeper.join().expect("join");
}

#[test]
fn seats_are_taken_once_and_given_back() {
    let (ring, p, c) = ring(4096);
    let e = ring.producer(ProducerOptions::default()).expect_err("taken");
    assert_eq!((e.kind(), e.to_string().contains("role=producer")), (ErrorKind::InUse, true), "{e}");
    assert_eq!(kind(ring.consumer(ConsumerOptions::default())), ErrorKind::InUse);
    drop((p, c));
    ring.producer(ProducerOptions::default()).expect("free");
    ring.consumer(ConsumerOptions::default()).expect("free");
}

#[test]
fn a_successor_goes_on_where_its_predecessor_left() {
    let (ring, mut p, mut c) = ring(4096);
    for n in 0..3u8 {
        p.try_push(&[n; 10]).expect("push");
    }
    assert_eq!(pop(&mut c).expect("first")[0], 0);
    assert!(c.peek().expect("peek").is_some());
    drop((p, c));
    let mut p = ring.producer(ProducerOptions::default()).expect("successor");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("successor");
    p.try_push(&[3; 10]).expect("push");
    for n in 1..4 {
        let record = c.pop(SHORT).expect("record");
        assert_eq!((record.to_vec()[0], record.is_redelivered()), (n, false));
    }
}

#[test]
fn what_a_dead_reader_saw_stays_marked_until_somebody_lets_go_of_it() {
    let (ring, mut p, c) = ring(4096);
    drop(c);
    for n in 0..6u8 {
        p.try_push(&[n; 10]).expect("push");
    }
    let lane = raw::MappedLane::new(&ring.shared.map, 0, 1, 1);
    let look = |count| {
        let mut reader = spsc::Reader::resume(&lane, 4096).expect("positions");
        let marks: Vec<bool> = (0..count)
            .map(|_| {
                let found = reader.peek(&lane).expect("peek").expect("record");
                reader.release(found.len);
                found.redelivered
            })
            .collect();
        (reader, marks)
    };
    // Readers that are forgotten have died without giving anything back.
    assert_eq!(look(4).1, [false; 4]);
    assert_eq!(look(1).1, [true]);
    assert_eq!(look(0).1, [false; 0]);
    // One that leaves in peace has let go of two.
    let (mut reader, marks) = look(2);
    assert_eq!(marks, [true; 2]);
    assert!(reader.publish(&lane));
    reader.leave(&lane);
    assert_eq!(look(4).1, [true, true, false, false]);
}

#[test]
fn another_attachment_by_fds_is_the_same_ring() {
    let (ring, mut p, c) = ring(8000);
    drop(c);
    let fds = ring.fds().expect("fds");
    assert_eq!(fds.len(), 3);
    // SAFETY: `ring` keeps the fds open.
    let borrowed: Vec<_> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
    let other = RingBuffer::attach(&borrowed).expect("attach");
    assert_eq!((other.kind(), other.capacity()), (Kind::Spsc, 8192));
    assert_eq!(kind(other.producer(ProducerOptions::default())), ErrorKind::InUse);
    let mut c = other.consumer(ConsumerOptions::default()).expect("consumer");
    p.try_push(b"across").expect("push");
    assert_eq!(c.pop(None).expect("record").to_vec(), b"across");
}

#[test]
fn what_is_no_ring_is_refused() {
    use std::os::fd::AsFd;
    let (ring, _p, _c) = ring(4096);
    let fds = ring.fds().expect("fds");
    // SAFETY: `ring` keeps the fds open.
    let borrowed: Vec<_> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
    assert_eq!(kind(RingBuffer::attach(&[])), ErrorKind::Invalid);
    assert_eq!(kind(RingBuffer::attach(&borrowed[..2])), ErrorKind::Invalid);
    assert_eq!(kind(RingBuffer::attach(&[borrowed[0], borrowed[1], borrowed[0]])), ErrorKind::Invalid);
    let null = std::fs::File::open("/dev/null").expect("open");
    let directory = std::fs::File::open("/").expect("open");
    for file in [null.as_fd(), directory.as_fd(), borrowed[1]] {
        assert_eq!(kind(RingBuffer::attach(&[file, borrowed[1], borrowed[2]])), ErrorKind::Invalid);
    }
    for (len, want) in [(1, ErrorKind::Corrupt), (128, ErrorKind::Corrupt), (8192, ErrorKind::Corrupt)] {
        let (memfd, _map) = crate::sys::mem::create_sealed(c"zeros", len).expect("memfd");
        assert_eq!(kind(RingBuffer::attach(&[memfd.as_fd(), borrowed[1], borrowed[2]])), want, "{len} zeros");
    }
    // A valid header in a file of another size.
    let (memfd, map) = crate::sys::mem::create_sealed(c"short", 4096).expect("memfd");
    let header = ring.shared.map.header().encode();
    // SAFETY: 4096 writable bytes of this test.
    unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), map.as_mut_ptr(), header.len()) };
    let e = RingBuffer::attach(&[memfd.as_fd(), borrowed[1], borrowed[2]]).expect_err("short");
    assert_eq!((e.kind(), e.to_string().contains("file_len=4096")), (ErrorKind::Corrupt, true), "{e}");
}

fn word(ring: &RingBuffer, seat: usize, at: usize) -> &AtomicU32 {
    ring.shared.map.seat_word(seat, at)
}

fn set_record(ring: &RingBuffer, offset: usize, word: u64) {
    // SAFETY: inside the lane of the test's ring, 8-aligned.
    unsafe { ring.shared.map.base().add(ring.shared.map.data_at(0) + offset).cast::<u64>().write_volatile(word) };
}

#[test]
fn damage_is_corrupt_for_everybody() {
    // (what a peer writes, who notices)
    type Scribble = fn(&RingBuffer);
    let reader_sees: &[(&str, Scribble)] = &[
        ("tail beyond the lane", |r| word(r, 1, seat_word::TAIL).store(4096 + 8, Ordering::Release)),
        ("tail behind the head", |r| word(r, 1, seat_word::TAIL).store(0u32.wrapping_sub(8), Ordering::Release)),
        ("tail not aligned", |r| word(r, 1, seat_word::TAIL).store(13, Ordering::Release)),
        ("length beyond what is published", |r| set_record(r, 0, record_word(RECORD_DATA, 9))),
        ("length beyond the ring", |r| set_record(r, 0, record_word(RECORD_DATA, u32::MAX))),
        ("length that overflows", |r| set_record(r, 0, record_word(RECORD_DATA, u32::MAX - 7))),
        ("unknown kind", |r| set_record(r, 0, record_word(7, 8))),
        ("kind 0", |r| set_record(r, 0, record_word(0, 8))),
        ("flags", |r| set_record(r, 0, record_word(RECORD_DATA, 8) | 1 << 48)),
        ("padding at the lane's begin", |r| set_record(r, 0, record_word(RECORD_PAD, 4096 - 8))),
        ("padding of no size", |r| set_record(r, 0, record_word(RECORD_PAD, 0))),
    ];
    for (what, scribble) in reader_sees {
        let (ring, mut p, mut c) = ring(4096);
        p.try_push(&[0; 8]).expect("push");
        scribble(&ring);
        let e = c.try_pop().map(|_| ()).expect_err(what);
        assert_eq!((e.kind(), e.to_string().contains("limit=")), (ErrorKind::Corrupt, true), "{what}: {e}");
        assert_eq!(kind(c.pop(None).map(|_| ())), ErrorKind::Corrupt, "{what}");
        assert_eq!(kind(p.try_push(b"x")), ErrorKind::Corrupt, "{what}: the other side is told");
        assert_eq!(kind(p.push(b"x", None)), ErrorKind::Corrupt, "{what}");
        assert_eq!(kind(ring.producer(ProducerOptions::default())), ErrorKind::Corrupt, "{what}");
    }
    let writer_sees: &[(&str, Scribble)] = &[
        ("head beyond the tail", |r| word(r, 1, seat_word::HEAD).store(5000, Ordering::Release)),
        ("head moved back", |r| word(r, 1, seat_word::HEAD).store(0u32.wrapping_sub(8), Ordering::Release)),
        ("head not aligned", |r| word(r, 1, seat_word::HEAD).store(4, Ordering::Release)),
    ];
    for (what, scribble) in writer_sees {
        let (ring, mut p, mut c) = ring(4096);
        while p.try_push(&[0; 504]).expect("push") {}
        scribble(&ring);
        assert_eq!(kind(p.try_push(&[0; 504])), ErrorKind::Corrupt, "{what}");
        assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Corrupt, "{what}: the other side is told");
    }
    for (what, at) in [("tail", seat_word::TAIL), ("head", seat_word::HEAD), ("seen", seat_word::SEEN)] {
        for lie in [4, 8, 12345, u32::MAX] {
            let (ring, p, c) = ring(4096);
            drop((p, c));
            word(&ring, 1, at).store(lie, Ordering::Release);
            if (at, lie) == (seat_word::TAIL, 8) {
                continue; // a position that a writer may have
            }
            assert_eq!(kind(ring.consumer(ConsumerOptions::default())), ErrorKind::Corrupt, "a consumer enters: {what}={lie}");
        }
    }
}

#[test]
fn a_length_beyond_the_lane_end_is_corrupt() {
    let (ring, mut p, mut c) = ring(4096);
    for _ in 0..3 {
        p.try_push(&[0; 1016]).expect("push");
        pop(&mut c).expect("record");
    }
    c.give_back().expect("no damage");
    // At 3072 with 1024 bytes before the end, and 2000 published in all.
    p.try_push(&[0; 1016]).expect("push");
    p.try_push(&[0; 1016]).expect("push");
    set_record(&ring, 3072, record_word(RECORD_DATA, 1017));
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Corrupt);
}

/// Positions start anywhere, so that they wrap at 2^32 in the middle of things.
fn start_at(ring: &RingBuffer, position: u32) {
    for at in [seat_word::TAIL, seat_word::HEAD, seat_word::SEEN] {
        word(ring, 1, at).store(position, Ordering::Release);
    }
}

#[test]
fn random_calls_agree_with_a_queue() {
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 300 } else { 30 };
    for seed in 1..=rounds {
        let mut random = Random(seed * 0x9E37_79B9_7F4A_7C15);
        let capacity = 4096u32 << random.below(2);
        let ring = RingBuffer::builder(Kind::Spsc).capacity(capacity as usize).create().expect("ring");
        start_at(&ring, 0u32.wrapping_sub(random.below(u64::from(capacity) * 4) as u32 & !7));
        let batch = random.below(2) == 1;
        let mut p = ring.producer(ProducerOptions { batch, ..Default::default() }).expect("producer");
        let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let mut serial = 0u8;
        for step in 0..2000 {
            let long = if random.below(10) == 0 { ring.max_record_len() as u64 } else { 200 };
            let len = random.below(long + 1) as usize;
            serial = serial.wrapping_add(1);
            let record = vec![serial; len];
            match random.below(8) {
                0..=2 => {
                    if p.try_push(&record).expect("push") {
                        model.push_back(record);
                    }
                }
                3 => {
                    if let Some(mut claim) = p.try_claim(ring.max_record_len()).expect("claim") {
                        assert!(claim.write_at(0, &record));
                        if random.below(2) == 0 {
                            claim.commit_len(len).expect("commit");
                            model.push_back(record);
                        }
                    }
                }
                4 => p.flush().expect("flush"),
                5 => {
                    let n =
                        c.read(random.below(5) as usize, |r| assert_eq!(Some(r.to_vec()), model.pop_front(), "seed {seed} step {step}"));
                    n.expect("read");
                }
                _ => {
                    if let Some(got) = pop(&mut c) {
                        assert_eq!(Some(got), model.pop_front(), "seed {seed} step {step}");
                    } else {
                        assert!(batch || model.is_empty(), "seed {seed} step {step}: a published record is missing");
                    }
                }
            }
            let used: u32 = model.iter().map(|r| record_extent(r.len() as u32)).sum();
            assert!(used <= capacity);
        }
        p.flush().expect("flush");
        while let Some(got) = pop(&mut c) {
            assert_eq!(Some(got), model.pop_front(), "seed {seed}");
        }
        assert!(model.is_empty(), "seed {seed}");
    }
}

#[test]
fn two_threads_exchange_whole_records_in_order() {
    let records: u64 = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 20_000_000 } else { 300_000 };
    for batch in [false, true] {
        let ring = RingBuffer::builder(Kind::Spsc).capacity(8192).create().expect("ring");
        start_at(&ring, 0u32.wrapping_sub(40_000 & !7));
        let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
        let mut p = ring.producer(ProducerOptions { batch, ..Default::default() }).expect("producer");
        let writer = std::thread::spawn(move || {
            for n in 0..records {
                let len = 8 + (n % 57) as usize;
                let mut record = [n as u8; 64];
                record[..8].copy_from_slice(&n.to_le_bytes());
                p.push(&record[..len], None).expect("push");
            }
        });
        for n in 0..records {
            let record = c.pop(None).expect("record").to_vec();
            assert_eq!(record.len(), 8 + (n % 57) as usize);
            assert_eq!(record[..8], n.to_le_bytes());
            assert!(record[8..].iter().all(|b| *b == n as u8));
        }
        writer.join().expect("writer");
    }
}

/// Another thread writes random words all over the region while two sides use it. They may fail; they never hang, and never
/// see a record that is longer than a record can be.
#[test]
fn a_scribbler_gets_corrupt_or_data() {
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 3000 } else { 150 };
    let mut poisoned = 0;
    for seed in 1..=rounds {
        let (ring, mut p, mut c) = ring(4096);
        let stop = std::sync::Arc::new(crate::sync::atomic::AtomicBool::new(false));
        let scribbler = {
            let (ring, stop) = (ring.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut random = Random(seed * 0x1234_5678_9ABC_DEF1);
                let words = [
                    (1, seat_word::TAIL),
                    (1, seat_word::COMMITTED_AT),
                    (1, seat_word::HEAD),
                    (1, seat_word::SEEN),
                    (0, seat_word::STATUS),
                    (1, seat_word::STATUS),
                ];
                while !stop.load(Ordering::Relaxed) {
                    let value = match random.below(3) {
                        0 => random.below(1 << 32) as u32,
                        1 => random.below(600) as u32 * 8,
                        _ => random.below(64) as u32,
                    };
                    if random.below(4) == 0 {
                        let (seat, at) = words[random.below(words.len() as u64) as usize];
                        word(&ring, seat, at).store(value, Ordering::Release);
                    } else {
                        set_record(&ring, random.below(512) as usize * 8, u64::from(value) | random.below(4) << 32);
                    }
                    if random.below(64) == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let consumer = std::thread::spawn(move || {
            let mut out = vec![0u8; 4096];
            for _ in 0..2000 {
                match c.pop(Some(Duration::from_millis(1))) {
                    Ok(record) => assert!(record.copy_to(&mut out) <= 2040),
                    Err(e) if matches!(e.kind(), ErrorKind::Timeout | ErrorKind::PeerDied) => {}
                    Err(e) => return assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}"),
                }
            }
        });
        let mut random = Random(seed);
        for _ in 0..2000 {
            match p.push(&vec![0; random.below(2000) as usize], Some(Duration::from_millis(1))) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Timeout | ErrorKind::PeerDied) => {}
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                    poisoned += 1;
                    break;
                }
            }
        }
        consumer.join().expect("consumer");
        stop.store(true, Ordering::Relaxed);
        scribbler.join().expect("scribbler");
    }
    assert!(poisoned > rounds / 2, "the scribbler scribbled: {poisoned} of {rounds}");
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [crate::sys::poll::readable(fd.as_raw_fd())];
    crate::sys::poll::wait_readable(&mut fds, Some(Duration::ZERO));
    crate::sys::poll::is_ready(&fds[0])
}

#[test]
fn the_consumers_fd_is_readable_while_there_is_work() {
    let (ring, mut p, mut c) = ring(4096);
    p.try_push(b"before").expect("push");
    assert!(readable(c.fd().expect("fd")), "work that was there before");
    assert_eq!(pop(&mut c).expect("record"), b"before");
    assert_eq!(pop(&mut c), None);
    assert!(!readable(c.fd().expect("fd")), "drained and armed");
    p.try_push(b"1").expect("push");
    p.try_push(b"2").expect("push");
    assert!(readable(c.fd().expect("fd")));
    assert_eq!(pop(&mut c).expect("record"), b"1");
    assert!(readable(c.fd().expect("fd")), "level-triggered: unread work remains");
    assert_eq!(c.read(10, |_| ()).expect("read"), 1);
    assert!(!readable(c.fd().expect("fd")), "a read that returns fewer than asked has armed");
    ring.close();
    assert!(readable(c.fd().expect("fd")), "closing is news");
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
}

#[test]
fn the_producers_fd_is_readable_when_room_comes_back() {
    let (_ring, mut p, mut c) = ring(4096);
    assert!(readable(p.fd().expect("fd")));
    while p.try_push(&[0; 504]).expect("push") {}
    assert!(!readable(p.fd().expect("fd")));
    assert!(pop(&mut c).is_some());
    assert!(readable(p.fd().expect("fd")));
    assert!(p.try_push(&[0; 504]).expect("room"));
}

#[test]
fn many_wakes_are_none_while_nobody_sleeps() {
    let (ring, mut p, mut c) = ring(1 << 20);
    for _ in 0..1000 {
        p.try_push(&[0; 64]).expect("push");
    }
    while pop(&mut c).is_some() {}
    assert!((0..2).all(|seat| !ring.shared.bells.get(seat).clear()), "no doorbell was rung");
}

#[test]
fn a_wait_is_no_shorter_than_asked() {
    let (_ring, _p, mut c) = ring(4096);
    let from = Instant::now();
    assert_eq!(kind(c.pop(SHORT).map(|_| ())), ErrorKind::Timeout);
    assert!(from.elapsed() >= SHORT.expect("some"));
    assert_eq!(kind(c.pop(Some(Duration::ZERO)).map(|_| ())), ErrorKind::Timeout);
}
