//! `mpsc` and `broadcast` in one process.

use super::*;

fn producer(ring: &RingBuffer) -> Producer {
    ring.producer(ProducerOptions::default()).expect("producer")
}

fn consumer(ring: &RingBuffer) -> Consumer {
    ring.consumer(ConsumerOptions::default()).expect("consumer")
}

fn number(record: &[u8]) -> u64 {
    u64::from_le_bytes(record[..8].try_into().expect("8 bytes"))
}

fn mpsc(participants: usize) -> RingBuffer {
    RingBuffer::builder(Kind::Mpsc).capacity(4096).max_participants(participants).create().expect("ring")
}

fn broadcast(on_full: OnFull) -> RingBuffer {
    RingBuffer::builder(Kind::Broadcast).capacity(4096).max_participants(5).on_full(on_full).create().expect("ring")
}

#[test]
fn each_producer_keeps_its_order() {
    let records: u64 = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 5_000_000 } else { 50_000 };
    let ring = mpsc(5);
    let mut c = consumer(&ring);
    let writers: Vec<_> = (0..4u64)
        .map(|id| {
            let mut p = ring.producer(ProducerOptions { batch: id % 2 == 0, ..Default::default() }).expect("producer");
            std::thread::spawn(move || {
                for n in 0..records {
                    let len = 8 + (n % 100) as usize;
                    let mut record = [id as u8; 108];
                    record[..8].copy_from_slice(&(id << 40 | n).to_le_bytes());
                    p.push(&record[..len], None).expect("push");
                }
            })
        })
        .collect();
    assert_eq!(kind(ring.producer(ProducerOptions::default())), ErrorKind::InUse);
    let mut next = [0u64; 4];
    for _ in 0..4 * records {
        let record = c.pop(None).expect("record").to_vec();
        let (id, n) = ((number(&record) >> 40) as usize, number(&record) & ((1 << 40) - 1));
        assert_eq!((n, record.len()), (next[id], 8 + (n % 100) as usize), "producer {id}");
        assert!(record[8..].iter().all(|b| *b == id as u8));
        next[id] += 1;
    }
    writers.into_iter().for_each(|w| w.join().expect("writer"));
    assert!(pop(&mut c).is_none());
}

#[test]
fn a_busy_producer_does_not_starve_another() {
    let ring = RingBuffer::builder(Kind::Mpsc).capacity(64 << 10).max_participants(4).create().expect("ring");
    let (mut busy, mut other, mut c) = (producer(&ring), producer(&ring), consumer(&ring));
    for _ in 0..1000 {
        assert!(busy.try_push(b"busy").expect("push"));
    }
    assert!(other.try_push(b"other").expect("push"));
    let at = (0..).find(|_| pop(&mut c).expect("record") == b"other").expect("found");
    assert!(at <= 64, "after {at} records");
}

#[test]
fn a_lost_hint_loses_no_record() {
    let ring = mpsc(4);
    let (mut p, mut c) = (producer(&ring), consumer(&ring));
    assert!(p.try_push(b"one").expect("push"));
    ring.shared.map.ready().store(0, Ordering::Relaxed);
    assert_eq!(pop(&mut c).expect("found all the same"), b"one");
    // Bits of lanes that do not exist are ignored.
    ring.shared.map.ready().store(u64::MAX, Ordering::Relaxed);
    assert!(pop(&mut c).is_none());
}

#[test]
fn producers_come_and_go_without_an_end() {
    let ring = mpsc(3);
    let mut c = consumer(&ring);
    for n in 0..10u64 {
        let mut p = producer(&ring);
        p.push(&n.to_le_bytes(), None).expect("push");
    }
    for n in 0..10 {
        assert_eq!(number(&pop(&mut c).expect("record")), n);
    }
    assert!(pop(&mut c).is_none(), "no error: the next producer may come");
    ring.close();
    assert_eq!(kind(c.pop(None).map(|_| ())), ErrorKind::Closed);
}

#[test]
fn every_reader_sees_every_record_from_its_coming_on() {
    let ring = broadcast(OnFull::Wait);
    let mut p = producer(&ring);
    assert!(p.try_push(b"before anybody").expect("push"));
    let (mut a, mut b) = (consumer(&ring), consumer(&ring));
    assert!(p.try_push(b"one").expect("push"));
    let mut late = consumer(&ring);
    assert!(p.try_push(b"two").expect("push"));
    for c in [&mut a, &mut b] {
        assert_eq!(pop(c).expect("one"), b"one");
        assert_eq!(pop(c).expect("two"), b"two");
        assert!(pop(c).is_none());
    }
    assert_eq!(pop(&mut late).expect("two"), b"two");
    assert_eq!(kind(ring.producer(ProducerOptions::default())), ErrorKind::InUse);
}

#[test]
fn the_slowest_reader_holds_a_lossless_writer() {
    let ring = broadcast(OnFull::Wait);
    let mut p = producer(&ring);
    for _ in 0..100 {
        assert!(p.try_push(&[0; 1016]).expect("nobody reads, nobody waits"));
    }
    let (mut fast, mut slow) = (consumer(&ring), consumer(&ring));
    let mut n = 0;
    while p.try_push(&[0; 504]).expect("push") {
        assert!(pop(&mut fast).is_some());
        n += 1;
    }
    assert_eq!(n, 8);
    assert_eq!(kind(p.push(&[0; 504], SHORT)), ErrorKind::Timeout);
    assert!(pop(&mut slow).is_some());
    assert!(p.try_push(&[0; 504]).expect("push"), "the slow one read");
    assert!(!p.try_push(&[0; 504]).expect("push"));
    drop(slow);
    assert!(p.try_push(&[0; 504]).expect("push"), "the slow one left");
    ring.close();
    assert!(pop(&mut fast).is_some());
}

#[test]
fn a_sleeping_broadcaster_is_woken_when_the_last_reader_reads_or_leaves() {
    let ring = broadcast(OnFull::Wait);
    let mut p = producer(&ring);
    let (mut a, b) = (consumer(&ring), consumer(&ring));
    let writer = std::thread::spawn(move || {
        for n in 0..200u64 {
            let mut record = [0; 800];
            record[..8].copy_from_slice(&n.to_le_bytes());
            p.push(&record, None).expect("push");
        }
        p
    });
    while word(&ring, 0, seat_word::WAITING).load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    drop(b);
    for n in 0..200 {
        assert_eq!(number(&a.pop(None).expect("record").to_vec()), n);
    }
    writer.join().expect("writer");
}

/// Readers come and go while the writer runs: each sees an unbroken run.
#[test]
fn a_reader_that_joins_in_the_middle_sees_an_unbroken_run() {
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 20_000 } else { 300 };
    let ring = broadcast(OnFull::Wait);
    let mut p = producer(&ring);
    let stop = std::sync::Arc::new(crate::sync::atomic::AtomicBool::new(false));
    let writer = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let mut record = [n as u8; 200];
                record[..8].copy_from_slice(&n.to_le_bytes());
                p.push(&record[..8 + (n % 192) as usize], None).expect("push");
                n += 1;
            }
        })
    };
    let readers: Vec<_> = (0..2u64)
        .map(|seed| {
            let ring = ring.clone();
            std::thread::spawn(move || {
                let mut random = Random(seed + 1);
                for _ in 0..rounds {
                    let mut c = consumer(&ring);
                    let mut last: Option<u64> = None;
                    for _ in 0..random.below(60) {
                        let record = c.pop(None).expect("record").to_vec();
                        let n = number(&record);
                        assert!(last.is_none_or(|l| n == l + 1), "{n} after {last:?}");
                        assert!(record.len() == 8 + (n % 192) as usize && record[8..].iter().all(|b| *b == n as u8), "{n} is torn");
                        last = Some(n);
                    }
                }
            })
        })
        .collect();
    readers.into_iter().for_each(|r| r.join().expect("reader"));
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("writer");
}

#[test]
fn a_producer_cannot_decide_whether_a_ring_is_overwritten() {
    let wait = ProducerOptions { on_full: Some(OnFull::Wait), ..Default::default() };
    assert_eq!(kind(broadcast(OnFull::Overwrite).producer(wait)), ErrorKind::Invalid);
    let overwrite = ProducerOptions { on_full: Some(OnFull::Overwrite), ..Default::default() };
    assert_eq!(kind(broadcast(OnFull::Wait).producer(overwrite)), ErrorKind::Invalid);
}

#[test]
fn a_slow_reader_of_an_overwriting_ring_loses_the_oldest_and_knows_how_many() {
    let ring = broadcast(OnFull::Overwrite);
    start_at(&ring, 0u32.wrapping_sub(1 << 20));
    let mut p = producer(&ring);
    p.push(&u64::MAX.to_le_bytes(), None).expect("push");
    let mut c = consumer(&ring);
    assert_eq!(number(&pop(&mut c).expect("an overwriting ring begins with the oldest that is there")), u64::MAX);
    let mut random = Random(7);
    let (mut pushed, mut next) = (0u64, 0u64);
    for _ in 0..20_000 {
        for _ in 0..random.below(6) {
            let mut record = [0; 2000];
            record[..8].copy_from_slice(&pushed.to_le_bytes());
            let longest = if random.below(20) == 0 { 1990 } else { 300 };
            let len = 8 + random.below(longest) as usize;
            assert!(p.try_push(&record[..len]).expect("never full"));
            pushed += 1;
        }
        for _ in 0..random.below(4) {
            let before = c.lost();
            let Some(record) = pop(&mut c) else { break };
            assert_eq!(number(&record), next + (c.lost() - before));
            next = number(&record) + 1;
        }
    }
    while pop(&mut c).map(|r| next = number(&r) + 1).is_some() {}
    assert_eq!(next, pushed);
    assert!(c.lost() > 0);
}

/// A writer that never waits, and readers who check what they get: nothing torn, nothing twice, every gap counted.
#[test]
fn readers_of_an_overwriting_ring_get_whole_records() {
    let records: u64 = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 50_000_000 } else { 400_000 };
    let ring = broadcast(OnFull::Overwrite);
    let mut p = producer(&ring);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut c = consumer(&ring);
            std::thread::spawn(move || {
                let (mut next, mut got) = (0u64, 0u64);
                loop {
                    let before = c.lost();
                    let record = match c.pop(None).map(|r| r.to_vec()) {
                        Ok(record) => record,
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
                            return (got, c.lost());
                        }
                    };
                    let n = number(&record);
                    assert!(record.len() == 16 + (n % 192) as usize && record[8..].iter().all(|b| *b == n as u8), "{n} is torn");
                    assert_eq!(n, next + (c.lost() - before));
                    (next, got) = (n + 1, got + 1);
                }
            })
        })
        .collect();
    for n in 0..records {
        let mut record = [n as u8; 208];
        record[..8].copy_from_slice(&n.to_le_bytes());
        p.push(&record[..16 + (n % 192) as usize], None).expect("push");
    }
    ring.close();
    for r in readers {
        let (got, lost) = r.join().expect("reader");
        assert_eq!(got + lost, records);
    }
}

#[test]
fn a_reader_that_slept_for_a_whole_turn_of_the_positions_knows_it() {
    let ring = broadcast(OnFull::Overwrite);
    let mut p = producer(&ring);
    p.push(&0u64.to_le_bytes(), None).expect("push");
    let mut c = consumer(&ring);
    assert!(pop(&mut c).is_some());
    // 2^32 bytes later the positions look as before; `high` does not.
    word(&ring, 0, seat_word::HIGH).fetch_add(2, Ordering::Relaxed);
    p.push(&1u64.to_le_bytes(), None).expect("push");
    let again = pop(&mut c).expect("begins with the oldest");
    assert_eq!(number(&again), 0);
}

#[test]
fn a_reader_of_a_broadcast_takes_over_no_position_that_cannot_be_one() {
    // (what a peer writes to tail and gate, how the writer treats slow readers)
    let lies = [("gate beyond the tail", 0, 8), ("both not aligned", 4092, 4092), ("tail not aligned", 12, 8)];
    for (what, tail, gate) in lies {
        let ring = broadcast(OnFull::Wait);
        word(&ring, 0, seat_word::TAIL).store(tail, Ordering::Release);
        word(&ring, 0, seat_word::HEAD).store(gate, Ordering::Release);
        assert_eq!(kind(ring.consumer(ConsumerOptions::default())), ErrorKind::Corrupt, "{what}");
    }
    let ring = broadcast(OnFull::Overwrite);
    word(&ring, 0, seat_word::HEAD).store(4092, Ordering::Release);
    assert_eq!(kind(ring.consumer(ConsumerOptions::default())), ErrorKind::Corrupt, "gate not aligned");
    for (tail, gate) in [(4096, 4100), (8196, 8192)] {
        let ring = broadcast(OnFull::Overwrite);
        let (mut p, mut c) = (producer(&ring), consumer(&ring));
        assert!(p.try_push(b"x").expect("push"));
        // As if it had been lapped: it goes on with the gate, and after that with the tail.
        word(&ring, 0, seat_word::HEAD).store(gate, Ordering::Release);
        word(&ring, 0, seat_word::TAIL).store(tail, Ordering::Release);
        word(&ring, 0, seat_word::HIGH).fetch_add(2, Ordering::Relaxed);
        assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Corrupt, "lapped to {gate} and {tail}");
    }
}
