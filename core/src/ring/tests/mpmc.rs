//! `mpmc` in one process.

mod end;
mod hostile;

use super::*;
use crate::ring::mpmc::{Popper, Pusher, Slots};
use crate::sync::atomic::AtomicU64;
use std::panic::{AssertUnwindSafe, catch_unwind};

const MANUAL: ConsumerOptions = ConsumerOptions { ack: Ack::Manual };
/// Slots of the ring that most tests use.
const SLOTS: usize = 64;

fn mpmc(participants: usize) -> RingBuffer {
    RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(64).max_participants(participants).create().expect("ring")
}

fn producer(ring: &RingBuffer) -> Producer {
    ring.producer(ProducerOptions::default()).expect("producer")
}

fn consumer(ring: &RingBuffer) -> Consumer {
    ring.consumer(ConsumerOptions::default()).expect("consumer")
}

fn manual(ring: &RingBuffer) -> Consumer {
    ring.consumer(MANUAL).expect("consumer")
}

fn number(record: &[u8]) -> u64 {
    u64::from_le_bytes(record[..8].try_into().expect("8 bytes"))
}

/// Number, delivery and mark of the next record.
fn deliver(c: &mut Consumer) -> Option<(u64, u64, bool)> {
    c.try_pop().expect("pop").map(|r| (number(&r.to_vec()), r.delivery(), r.is_redelivered()))
}

fn push(p: &mut Producer, n: u64) -> bool {
    p.try_push(&n.to_le_bytes()).expect("push")
}

fn asleep(ring: &RingBuffer, seat: usize) {
    while word(ring, seat, seat_word::WAITING).load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn each_record_goes_to_one_consumer() {
    let ring = mpmc(6);
    let (mut p, mut q) = (producer(&ring), producer(&ring));
    let (mut a, mut b) = (consumer(&ring), consumer(&ring));
    for n in 0..1000 {
        assert!(push(&mut p, 2 * n) && push(&mut q, 2 * n + 1));
        assert_eq!(number(&pop(&mut a).expect("one")), 2 * n);
        assert_eq!(number(&pop(&mut b).expect("other")), 2 * n + 1);
        assert!(pop(&mut a).is_none() && pop(&mut b).is_none());
    }
    let stat = ring.stat().expect("stat");
    assert_eq!((stat.lanes[0].pushed, stat.lanes[0].popped, stat.slot_size, stat.participants.len()), (2000, 2000, 64, 4));
}

#[test]
fn a_record_that_does_not_fit_a_slot_is_told_of_buffers() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(200).create().expect("ring");
    assert_eq!((ring.slot_size(), ring.max_record_len()), (256, 240));
    let (mut p, mut c) = (producer(&ring), consumer(&ring));
    assert!(p.try_push(&[1; 240]).expect("fits"));
    assert_eq!(pop(&mut c).expect("record"), [1; 240]);
    assert!(p.try_push(b"").expect("empty"));
    assert_eq!(pop(&mut c).expect("record"), b"");
    let e = p.try_push(&[0; 241]).expect_err("too long");
    assert_eq!(
        e.to_string(),
        "too large: record does not fit a slot; a buffer's transfer token does (record_len=241, max_record_len=240, slot_size=256)"
    );
}

#[test]
fn a_full_ring_takes_nothing_until_a_record_is_let_go() {
    let ring = mpmc(3);
    let (mut p, mut c) = (producer(&ring), consumer(&ring));
    for n in 0..SLOTS as u64 {
        assert!(push(&mut p, n));
    }
    assert!(!push(&mut p, 0) && !p.has_room(8).expect("look"));
    assert_eq!(kind(p.push(b"x", SHORT)), ErrorKind::Timeout);
    let held = c.try_pop().expect("pop").expect("record");
    assert!(!push(&mut p, 0), "it is still in its slot");
    drop(held);
    assert!((0..100).all(|_| p.has_room(48).expect("look")), "a look takes nothing");
    assert!(push(&mut p, 64) && !push(&mut p, 0));
    for n in 1..=64 {
        assert_eq!(number(&pop(&mut c).expect("record")), n);
    }
}

#[test]
fn an_aborted_claim_leaves_nothing_and_uses_nothing_up() {
    let ring = mpmc(3);
    let (mut p, mut c) = (producer(&ring), consumer(&ring));
    for n in 0..10 * SLOTS as u64 {
        p.try_claim(8).expect("claim").expect("room").abort();
        if n % 7 == 0 {
            assert!(push(&mut p, n));
            assert_eq!(number(&pop(&mut c).expect("record")), n);
        }
    }
    let mut claim = p.try_claim(20).expect("claim").expect("room");
    assert!(claim.write_at(0, &7u64.to_le_bytes()));
    claim.commit_len(8).expect("commit");
    assert_eq!(pop(&mut c).expect("record"), 7u64.to_le_bytes());
    assert!(pop(&mut c).is_none());
}

#[test]
fn a_record_comes_again_until_it_is_acknowledged() {
    let ring = mpmc(4);
    let (mut p, mut a, mut b) = (producer(&ring), manual(&ring), manual(&ring));
    assert!(push(&mut p, 1) && push(&mut p, 2));
    let (n, first, again) = deliver(&mut a).expect("one");
    assert_eq!((n, again), (1, false));
    assert_eq!(ring.stat().expect("stat").participants.iter().map(|p| p.in_flight).sum::<u32>(), 1);
    a.nack(first).expect("nack");
    assert_eq!(ring.stat().expect("stat").returned, 1);
    let (n, second, again) = deliver(&mut b).expect("before the next one");
    assert_eq!((n, again), (1, true));
    for stale in [first, second, 0, 12345, u64::MAX] {
        assert_eq!(kind(a.ack(stale)), ErrorKind::Invalid);
        assert_eq!(kind(a.nack(stale)), ErrorKind::Invalid);
    }
    b.nack(second).expect("nack");
    let (n, third, again) = deliver(&mut b).expect("to the one who gave it back, too");
    assert_eq!((n, again, third == second), (1, true, false));
    assert_eq!(kind(b.ack(second)), ErrorKind::Invalid);
    b.ack(third).expect("ack");
    assert_eq!(deliver(&mut b).map(|d| (d.0, d.2)), Some((2, false)));
    // The one who leaves with it leaves it to others.
    let acks = b.acks().expect("manual");
    drop(b);
    let (n, last, again) = deliver(&mut a).expect("left behind");
    assert_eq!((n, again), (2, true));
    assert_eq!(kind(acks.ack(last)), ErrorKind::Invalid);
    a.ack(last).expect("ack");
    assert!(deliver(&mut a).is_none());
}

#[test]
fn only_consumers_of_tasks_acknowledge() {
    let (ring, _p, c) = ring(4096);
    assert_eq!(kind(c.ack(1)), ErrorKind::Unsupported);
    drop(c);
    let e = ring.consumer(MANUAL).expect_err("no acknowledgement");
    assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains("kind=spsc"), "{e}");
    assert_eq!(kind(consumer(&mpmc(2)).ack(1)), ErrorKind::Unsupported);
    let e = RingBuffer::builder(Kind::Mpsc).slot_size(64).create().expect_err("no slots");
    assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains("slot_size=64, kind=mpsc"), "{e}");
}

#[test]
fn a_consumer_that_keeps_a_record_holds_nobody_up() {
    let ring = mpmc(4);
    let (mut p, mut slow, mut fast) = (producer(&ring), manual(&ring), consumer(&ring));
    let mut kept = Vec::new();
    for n in 0..20 * SLOTS as u64 {
        assert!(push(&mut p, n), "record {n}");
        if n % 40 == 0 {
            kept.push(deliver(&mut slow).expect("record"));
        } else {
            assert_eq!(number(&pop(&mut fast).expect("record")), n);
        }
    }
    assert_eq!(kept.len(), 32);
    // What was kept has not changed, and can be acknowledged in any order.
    for (i, (n, delivery, again)) in kept.into_iter().enumerate().rev() {
        assert_eq!((n, again), (40 * i as u64, false));
        slow.ack(delivery).expect("ack");
    }
    for n in 0..SLOTS as u64 {
        assert!(push(&mut p, n), "every slot is free again");
    }
}

#[test]
fn a_ring_whose_every_record_is_kept_goes_on_when_one_is_acknowledged() {
    let ring = mpmc(3);
    let (mut p, mut c) = (producer(&ring), manual(&ring));
    let kept: Vec<_> = (0..SLOTS as u64).map(|n| (push(&mut p, n), deliver(&mut c).expect("record")).1).collect();
    for _ in 0..5 {
        assert!(!push(&mut p, 0));
        assert!(deliver(&mut c).is_none());
    }
    let acks = c.acks().expect("manual");
    let writer = std::thread::spawn(move || {
        p.push(&99u64.to_le_bytes(), None).expect("push");
        p
    });
    asleep(&ring, 0);
    acks.ack(kept[17].1).expect("ack");
    let mut p = writer.join().expect("writer");
    assert_eq!(deliver(&mut c).map(|d| d.0), Some(99));
    for (_, delivery, _) in kept.iter().filter(|k| k.0 != 17) {
        acks.ack(*delivery).expect("ack");
    }
    assert!((0..63).all(|n| push(&mut p, n)) && !push(&mut p, 0));
}

#[test]
fn a_consumer_that_may_hold_no_more_waits_for_an_acknowledgement() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(1 << 16).slot_size(64).create().expect("ring");
    let (mut p, mut c) = (producer(&ring), manual(&ring));
    for n in 0..200 {
        assert!(push(&mut p, n));
    }
    let kept: Vec<_> = std::iter::from_fn(|| deliver(&mut c)).collect();
    assert_eq!(kept.len(), crate::wire::ring::HOLDS);
    assert_eq!(kind(c.pop(SHORT).map(|_| ())), ErrorKind::Timeout);
    // Others get what is left.
    let mut other = consumer(&ring);
    assert_eq!(number(&pop(&mut other).expect("record")), 128);
    let acks = c.acks().expect("manual");
    let waiter = std::thread::spawn(move || number(&c.pop(None).expect("record").to_vec()));
    asleep(&ring, 1);
    acks.ack(kept[3].1).expect("ack");
    assert_eq!(waiter.join().expect("waiter"), 129);
}

#[test]
fn a_successor_can_take_what_fills_its_own_seat() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(1 << 16).slot_size(64).max_participants(2).create().expect("ring");
    let (mut p, mut c) = (producer(&ring), manual(&ring));
    for n in 0..crate::wire::ring::HOLDS as u64 {
        assert!(push(&mut p, n) && deliver(&mut c).is_some());
    }
    for _ in 0..2 {
        drop(c);
        c = manual(&ring);
        let mut seen: Vec<u64> = std::iter::from_fn(|| deliver(&mut c)).map(|(n, _, again)| (n, again)).map(|(n, _)| n).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..crate::wire::ring::HOLDS as u64).collect::<Vec<_>>());
    }
    drop(c);
    let mut c = consumer(&ring);
    let mut n = 0;
    while let Some(r) = c.try_pop().expect("pop") {
        assert!(r.is_redelivered());
        n += 1;
    }
    assert_eq!(n, crate::wire::ring::HOLDS);
}

#[test]
fn a_closed_ring_ends_when_nothing_can_come_back() {
    let ring = mpmc(4);
    let (mut p, mut a, mut b) = (producer(&ring), manual(&ring), manual(&ring));
    assert!(push(&mut p, 1) && push(&mut p, 2));
    let (_, one, _) = deliver(&mut a).expect("one");
    ring.close();
    assert_eq!(kind(p.try_push(b"x")), ErrorKind::Closed);
    let (_, two, _) = deliver(&mut b).expect("what is there is delivered");
    b.ack(two).expect("ack");
    assert!(deliver(&mut b).is_none(), "the other's record may come back");
    assert_eq!(kind(b.pop(SHORT).map(|_| ())), ErrorKind::Timeout);
    assert_eq!(kind(a.try_pop().map(|_| ())), ErrorKind::Closed, "who owes an answer itself does not wait for answers");
    let acks = a.acks().expect("manual");
    a.nack(one).expect("nack");
    let (n, one, again) = deliver(&mut b).expect("it came back");
    assert_eq!((n, again), (1, true));
    // The end wakes who waits for it.
    let waiter = std::thread::spawn(move || kind(a.pop(None).map(|_| ())));
    asleep(&ring, 1);
    b.ack(one).expect("ack");
    assert_eq!(waiter.join().expect("waiter"), ErrorKind::Closed);
    assert_eq!(kind(b.try_pop().map(|_| ())), ErrorKind::Closed);
    assert_eq!(kind(acks.ack(one)), ErrorKind::Invalid);
}

#[test]
fn a_closed_ring_waits_for_a_claim_that_is_open() {
    let ring = mpmc(4);
    let (mut p, mut c, mut d) = (producer(&ring), consumer(&ring), consumer(&ring));
    let claim = p.try_claim(8).expect("claim").expect("room");
    ring.close();
    assert!(pop(&mut c).is_none());
    let waiters = [std::thread::spawn(move || kind(c.pop(None).map(|_| ()))), std::thread::spawn(move || kind(d.pop(None).map(|_| ())))];
    asleep(&ring, 1);
    asleep(&ring, 2);
    claim.abort();
    for w in waiters {
        assert_eq!(w.join().expect("waiter"), ErrorKind::Closed);
    }
}

#[test]
fn a_batch_of_records_stays_readable_until_the_next_call() {
    let ring = mpmc(3);
    let (mut p, mut c) = (producer(&ring), consumer(&ring));
    for n in 0..SLOTS as u64 {
        assert!(push(&mut p, n));
    }
    let mut seen = Vec::new();
    assert_eq!(c.read_held(50, |r| seen.push((r.as_ptr(), r.len()))).expect("read"), 50);
    assert!(!push(&mut p, 0), "nothing was given back");
    for (n, (at, len)) in seen.iter().enumerate() {
        // SAFETY: readable until the next call.
        assert_eq!(number(unsafe { std::slice::from_raw_parts(*at, *len) }), n as u64);
    }
    let mut next = 50;
    let rest = c.read(100, |r| {
        assert_eq!(number(&r.to_vec()), next);
        next += 1;
    });
    assert_eq!(rest.expect("read"), 14);
    assert!((0..SLOTS as u64).all(|n| push(&mut p, n)));
}

#[test]
fn every_sleeper_is_woken_when_there_is_work_for_each() {
    let ring = mpmc(6);
    let mut p = producer(&ring);
    let consumers: Vec<_> = (0..3).map(|_| consumer(&ring)).collect();
    let waiters: Vec<_> =
        consumers.into_iter().map(|mut c| std::thread::spawn(move || number(&c.pop(None).expect("record").to_vec()))).collect();
    (1..=3).for_each(|seat| asleep(&ring, seat));
    for n in 0..3 {
        assert!(push(&mut p, n));
    }
    let mut got: Vec<u64> = waiters.into_iter().map(|w| w.join().expect("waiter")).collect();
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2]);
}

#[test]
fn who_waits_for_room_is_woken_when_every_claim_before_it_is_given_up() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(2048).max_participants(4).create().expect("ring");
    let (mut p, mut q, mut waits) = (producer(&ring), producer(&ring), producer(&ring));
    let (a, b) = (p.claim(8, None).expect("first slot"), q.claim(8, None).expect("second slot"));
    let waiter = std::thread::spawn(move || waits.push(b"room", None).expect("push"));
    asleep(&ring, 2);
    a.abort();
    b.abort();
    waiter.join().expect("waiter");
    assert_eq!(consumer(&ring).try_pop().expect("pop").expect("record").to_vec(), b"room");
}

#[test]
fn who_waits_for_room_is_woken_when_a_consumer_leaves_what_it_had_in_hand() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(1024).max_participants(3).create().expect("ring");
    let (mut p, mut c, mut d) = (producer(&ring), consumer(&ring), consumer(&ring));
    (0..4).for_each(|n| assert!(push(&mut p, n)));
    assert_eq!(number(&c.peek().expect("peek").expect("record").to_vec()), 0);
    (1..4).for_each(|n| assert_eq!(number(&pop(&mut d).expect("record")), n));
    let waiter = std::thread::spawn(move || p.push(&4u64.to_le_bytes(), None).map(|()| p));
    asleep(&ring, 0);
    // From here on its slot is passed over.
    drop(c);
    waiter.join().expect("waiter").expect("push");
    assert_eq!([(); 2].map(|()| deliver(&mut d).expect("record")).map(|(n, _, again)| (n, again)), [(0, true), (4, false)]);
}

#[test]
fn what_is_behind_positions_without_a_record_is_seen() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(2048).max_participants(3).create().expect("ring");
    let (mut p, mut c) = (producer(&ring), manual(&ring));
    let slots = ring.shared.slots.as_ref().expect("slots");
    p.claim(8, None).expect("claim").abort();
    assert!(!Popper::has_more(slots) && Pusher::has_room(slots));
    assert!(push(&mut p, 1));
    assert!(Popper::has_more(slots), "behind the position that was given up");
    assert!(Pusher::has_room(slots), "in the slot that was given up");
    let (one, delivery, _) = deliver(&mut c).expect("record");
    assert!(one == 1 && push(&mut p, 2));
    assert!(!Pusher::has_room(slots), "one is kept, one is full");
    assert_eq!(deliver(&mut c).expect("record").0, 2);
    assert!(!Pusher::has_room(slots), "both are kept");
    c.ack(delivery).expect("ack");
    assert!(Pusher::has_room(slots), "whichever comes first is passed over");
    assert!(push(&mut p, 3) && !Pusher::has_room(slots));
}

#[test]
fn a_blocked_thread_is_woken_before_an_event_loop_and_all_event_loops_without_one() {
    let ring = mpmc(6);
    let (mut p, mut a, mut b) = (producer(&ring), consumer(&ring), consumer(&ring));
    for c in [&mut a, &mut b] {
        assert!(readable(c.fd().expect("fd")));
        assert!(pop(c).is_none());
        assert!(!readable(c.fd().expect("fd")));
    }
    let mut blocked = consumer(&ring);
    for c in [&mut a, &mut b] {
        // A newcomer is news.
        assert!(readable(c.fd().expect("fd")) && pop(c).is_none() && !readable(c.fd().expect("fd")));
    }
    // A thread that is about to sleep finds the record by itself, and is none that could be rung.
    let mut rung = true;
    for _ in 0..100 {
        let waiter = std::thread::spawn(move || {
            let n = number(&blocked.pop(None).expect("record").to_vec());
            (n, blocked)
        });
        asleep(&ring, 3);
        assert!(push(&mut p, 1));
        let n;
        (n, blocked) = waiter.join().expect("waiter");
        assert_eq!(n, 1);
        rung = false;
        for c in [&mut a, &mut b] {
            rung |= readable(c.fd().expect("fd")) && pop(c).is_none();
        }
        if !rung {
            break;
        }
    }
    assert!(!rung, "the event loops, beside a thread that sleeps");
    assert!(push(&mut p, 2));
    assert!(readable(a.fd().expect("fd")) && readable(b.fd().expect("fd")));
    assert_eq!(number(&pop(&mut a).expect("record")), 2);
    assert!(pop(&mut b).is_none() && !readable(b.fd().expect("fd")));
    // What is given back is news, too.
    let mut c = manual(&ring);
    assert!(push(&mut p, 3));
    let (_, delivery, _) = deliver(&mut c).expect("record");
    assert!(pop(&mut b).is_none() && !readable(b.fd().expect("fd")));
    c.nack(delivery).expect("nack");
    assert!(readable(b.fd().expect("fd")));
    assert_eq!(number(&pop(&mut b).expect("record")), 3);
}

/// Everything that may be called, at random, against a queue.
#[test]
fn random_calls_agree_with_a_task_queue() {
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 2000 } else { 100 };
    for seed in 1..=rounds {
        let mut random = Random(seed * 0x9E37_79B9_7F4A_7C15);
        let ring = mpmc(6);
        let slots = ring.shared.slots.as_ref().expect("slots");
        // Positions that are in the middle of a lap, and laps that wrap 32 bits.
        let start = (u64::from(u32::MAX) - 3) << slots.shift() | random.below(64);
        for n in 0..64 {
            let lap = (start >> slots.shift()) + u64::from(n < start % 64);
            slots.word(n as usize).store(lap << 2, Ordering::Relaxed);
        }
        slots.tail().store(start, Ordering::Relaxed);
        slots.head().store(start, Ordering::Relaxed);
        let mut producers = [producer(&ring), producer(&ring)];
        let mut consumers = [Some(manual(&ring)), Some(manual(&ring)), Some(consumer(&ring))];
        let (mut queue, mut returned) = (VecDeque::new(), Vec::new());
        let mut flying: Vec<(usize, u64, u64)> = Vec::new();
        // Positions that gave no record, since the ring was last seen empty: a slot that was passed over waits for its next turn.
        let (mut next, mut void) = (0u64, 0usize);
        for step in 0..2000 {
            let who = random.below(3) as usize;
            match random.below(10) {
                0..=3 => {
                    let p = &mut producers[who % 2];
                    let pushed = push(p, next);
                    let used = queue.len() + returned.len() + flying.len() + void;
                    assert!(pushed || used >= SLOTS, "seed {seed} step {step}: {used} of {SLOTS} slots used");
                    if pushed {
                        queue.push_back(next);
                        next += 1;
                    }
                }
                4 => {
                    if let Some(claim) = producers[who % 2].try_claim(8).expect("claim") {
                        claim.abort();
                        void += 1;
                    }
                }
                5..=7 => {
                    let c = consumers[who].as_mut().expect("consumer");
                    let Some((n, delivery, again)) = deliver(c) else {
                        assert!(queue.is_empty() && returned.is_empty(), "seed {seed} step {step}");
                        void = 0;
                        continue;
                    };
                    if again {
                        let at = returned.iter().position(|r| *r == n).expect("was returned");
                        returned.swap_remove(at);
                    } else {
                        assert!(returned.is_empty(), "seed {seed} step {step}: returned ones come first");
                        assert_eq!(queue.pop_front(), Some(n), "seed {seed} step {step}");
                    }
                    if who < 2 {
                        flying.push((who, n, delivery));
                    } else {
                        void += 1;
                    }
                }
                8 if !flying.is_empty() => {
                    let (who, n, delivery) = flying.swap_remove(random.below(flying.len() as u64) as usize);
                    let c = consumers[who].as_ref().expect("consumer");
                    if random.below(4) == 0 {
                        c.nack(delivery).expect("nack");
                        returned.push(n);
                    } else {
                        c.ack(delivery).expect("ack");
                        void += 1;
                    }
                }
                9 if random.below(20) == 0 => {
                    consumers[who] = None;
                    flying.retain(|(owner, n, _)| {
                        let left = *owner == who;
                        returned.extend(left.then_some(*n));
                        !left
                    });
                    consumers[who] = Some(if who < 2 { manual(&ring) } else { consumer(&ring) });
                }
                _ => {}
            }
        }
    }
}

/// Threads of both sides, some of which give back what they took: no record is lost or seen twice unmarked, and each consumer
/// sees each producer's records in order.
#[test]
fn threads_share_the_work_without_loss() {
    let records: u64 = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 3_000_000 } else { 30_000 };
    for capacity in [4096, 1 << 16] {
        let ring = RingBuffer::builder(Kind::Mpmc).capacity(capacity).slot_size(64).create().expect("ring");
        let seen: Vec<Vec<AtomicU64>> = (0..3).map(|_| (0..records).map(|_| AtomicU64::new(0)).collect()).collect();
        let seen = std::sync::Arc::new(seen);
        let writers: Vec<_> = (0..3u64)
            .map(|id| {
                let mut p = ring.producer(ProducerOptions { batch: id == 0, ..Default::default() }).expect("producer");
                std::thread::spawn(move || {
                    for n in 0..records {
                        let mut record = [n as u8; 48];
                        record[..8].copy_from_slice(&(id << 40 | n).to_le_bytes());
                        if n % 11 == 0 {
                            p.claim(8, None).expect("claim").abort();
                        }
                        p.push(&record[..8 + (n % 40) as usize], None).expect("push");
                    }
                })
            })
            .collect();
        let readers: Vec<_> = (0..3u64)
            .map(|id| {
                let (ring, seen) = (ring.clone(), seen.clone());
                let mut c = ring.consumer(ConsumerOptions { ack: if id == 0 { Ack::Auto } else { Ack::Manual } }).expect("consumer");
                std::thread::spawn(move || {
                    let mut random = Random(id + 1);
                    let mut last = [None; 3];
                    let mut kept = VecDeque::new();
                    loop {
                        let (n, again, delivery, whole) = match c.pop(None) {
                            Ok(r) => {
                                let bytes = r.to_vec();
                                let n = number(&bytes);
                                let whole = bytes.len() == 8 + (n % (1 << 40) % 40) as usize && bytes[8..].iter().all(|b| *b == n as u8);
                                (n, r.is_redelivered(), r.delivery(), whole)
                            }
                            Err(e) if e.kind() == ErrorKind::Closed => break,
                            Err(e) => panic!("{e}"),
                        };
                        let (who, n) = ((n >> 40) as usize, n & ((1 << 40) - 1));
                        assert!(whole, "{who} {n} is torn");
                        if !again {
                            assert!(last[who].is_none_or(|l| l < n), "{who}: {n} after {:?}", last[who]);
                            last[who] = Some(n);
                        }
                        if id > 0 && random.below(50) == 0 {
                            c.nack(delivery).expect("nack");
                            continue;
                        }
                        seen[who][n as usize].fetch_add(1, Ordering::Relaxed);
                        if id > 0 {
                            kept.push_back(delivery);
                            while kept.len() > random.below(20) as usize {
                                c.ack(kept.pop_front().expect("kept")).expect("ack");
                            }
                        }
                    }
                    kept.into_iter().for_each(|d| c.ack(d).expect("ack"));
                })
            })
            .collect();
        writers.into_iter().for_each(|w| w.join().expect("writer"));
        ring.close();
        readers.into_iter().for_each(|r| r.join().expect("reader"));
        assert!(seen.iter().flatten().all(|n| n.load(Ordering::Relaxed) == 1));
        let stat = ring.stat().expect("stat");
        assert_eq!((stat.returned, stat.lanes[0].records()), (0, 0));
    }
}

#[test]
fn the_end_of_a_read_gives_what_nobody_saw_to_others() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(64).max_participants(3).create().expect("ring");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    let mut other = ring.consumer(ConsumerOptions::default()).expect("consumer");
    for n in 0..6u8 {
        p.try_push(&[n]).expect("push");
    }
    let mut seen = Vec::new();
    assert_eq!(c.read_held(5, |r| seen.push(r.to_vec()[0])).expect("records"), 5);
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    c.end_read(2).expect("end");
    let mut rest = Vec::new();
    while let Some(r) = other.try_pop().expect("pop") {
        rest.push((r.to_vec()[0], r.is_redelivered()));
    }
    rest.sort_unstable();
    assert_eq!(rest, [(3, true), (4, true), (5, false)]);
    // What was seen is let go of: the ring ends, and every slot is free.
    ring.close();
    assert_eq!(kind(other.try_pop().map(|_| ())), ErrorKind::Closed);
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
}

#[test]
fn a_read_takes_eight_records_at_once_at_most() {
    let ring = mpmc(3);
    let (mut p, mut c, mut other) = (producer(&ring), consumer(&ring), consumer(&ring));
    (0..40).for_each(|n| assert!(push(&mut p, n)));
    let mut seen = Vec::new();
    let mut theirs = Vec::new();
    let read = c.read(20, |r| {
        let n = number(&r.to_vec());
        let next = number(&other.try_pop().expect("pop").expect("record").to_vec());
        assert!((n + 1..=n + 8).contains(&next), "{next} is had by another consumer before {n} is looked at");
        seen.push(n);
        theirs.push(next);
    });
    assert_eq!(read.expect("records"), 20);
    assert!(seen.is_sorted() && theirs.is_sorted());
    let mut all = [seen, theirs].concat();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<_>>());
    assert_eq!(ring.stat().expect("stat").lanes[0].records(), 0);
}

#[test]
fn records_that_are_read_and_held_are_let_go_of_together() {
    let ring = mpmc(3);
    let (mut p, mut c, mut other) = (producer(&ring), consumer(&ring), consumer(&ring));
    // More rounds than a seat has holds.
    for round in 0..200 {
        (0..30).for_each(|n| assert!(push(&mut p, n)));
        let mut seen = Vec::new();
        let max = 1 + round % 30;
        assert_eq!(c.read_held(max, |r| seen.push(number(&r.to_vec()))).expect("records"), max);
        assert_eq!(seen, (0..max as u64).collect::<Vec<_>>());
        let stat = ring.stat().expect("stat");
        assert_eq!((stat.participants[1].in_flight, stat.returned), (max as u32, 0));
        let unseen = round % (max + 1);
        c.end_read(unseen).expect("end");
        let again = std::iter::from_fn(|| deliver(&mut other)).filter(|(_, _, again)| *again).count();
        assert_eq!(again, unseen);
    }
    ring.close();
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
}

#[test]
fn a_read_that_panics_leaves_the_records_that_it_did_not_come_to() {
    let ring = mpmc(3);
    let (mut p, mut c, mut other) = (producer(&ring), consumer(&ring), consumer(&ring));
    (0..20).for_each(|n| assert!(push(&mut p, n)));
    let panics = |r: RecordRef<'_>| assert_ne!(number(&r.to_vec()), 4, "on purpose");
    catch_unwind(AssertUnwindSafe(|| c.read(20, panics))).expect_err("it panicked");
    let mut rest: Vec<_> = std::iter::from_fn(|| deliver(&mut other)).map(|(n, _, again)| (n, again)).collect();
    rest.sort_unstable();
    assert_eq!(rest, (5..20).map(|n| (n, n < 9)).collect::<Vec<_>>());
    // The consumer goes on, with all its holds.
    for n in 0..1000 {
        assert!(push(&mut p, n));
        assert_eq!(c.read(1 + n as usize % 9, |r| assert_eq!(number(&r.to_vec()), n)).expect("record"), 1);
    }
    ring.close();
    assert_eq!(kind(other.try_pop().map(|_| ())), ErrorKind::Closed);
    assert_eq!(kind(c.try_pop().map(|_| ())), ErrorKind::Closed);
}

/// Two that keep as many as they may, and a record more: neither can take it, so telling the other one of it would never end.
#[test]
fn a_consumer_that_may_take_no_more_is_told_of_no_record_until_it_acknowledges() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(64 << 10).slot_size(64).max_participants(3).create().expect("ring");
    let mut p = producer(&ring);
    let [mut a, mut b] = [(); 2].map(|()| {
        let mut c = manual(&ring);
        let deliveries: Vec<u64> = (0..128)
            .map(|n| {
                assert!(push(&mut p, n));
                deliver(&mut c).expect("task").1
            })
            .collect();
        (c, deliveries[0])
    });
    assert!(push(&mut p, 1007));
    for (c, _) in [&mut a, &mut b] {
        c.fd().expect("fd");
        assert!(deliver(c).is_none());
    }
    assert!(!readable(a.0.fd().expect("fd")), "told by the other one");
    assert!(push(&mut p, 1008));
    assert!(!readable(a.0.fd().expect("fd")) && !readable(b.0.fd().expect("fd")), "told by the producer");
    for ((c, delivery), n) in [(&mut a, 1007), (&mut b, 1008)] {
        c.ack(*delivery).expect("ack");
        assert!(readable(c.fd().expect("fd")), "it may take one more");
        assert_eq!(deliver(c).expect("task").0, n);
    }
}
