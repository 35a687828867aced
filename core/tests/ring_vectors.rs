//! `tests/vectors/ring/*.json`: what every language that follows `wire::ring` by itself is held to.
//!
//! The files are golden: a change of the layout shows as a difference here and needs a new version. `OFFLOOP_BLESS=1` rewrites them.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::ring::{Ack, ConsumerOptions, Kind, OnFull, ProducerOptions, RingBuffer};
use offloop::wire::ring::{self, Header, claim_state, hold_state, ring_word, seat_word, slot_state};
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

fn golden(name: &str, now: &Json) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/ring").join(name);
    let text = serde_json::to_string_pretty(now).unwrap() + "\n";
    if std::env::var_os("OFFLOOP_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{name}: the layout changed");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_layout_is_golden() {
    golden(
        "layout.json",
        &json!({
            "magic": hex(&ring::MAGIC.to_le_bytes()), "major": ring::MAJOR, "minor": ring::MINOR, "layout": format!("{:#018x}", ring::LAYOUT),
            "fixed_len": ring::FIXED_LEN, "seats_at": ring::SEATS_AT, "seat_len": ring::SEAT_LEN, "max_seats": ring::MAX_SEATS,
            "min_capacity": ring::MIN_CAPACITY, "max_capacity": ring::MAX_CAPACITY, "record_header": ring::RECORD_HEADER, "align": ring::ALIGN,
            "ring_word": { "state": ring_word::STATE, "members": ring_word::MEMBERS, "ready": ring_word::READY, "unfenced": ring_word::UNFENCED },
            "seat_word": {
                "status": seat_word::STATUS, "role": seat_word::ROLE, "pid": seat_word::PID, "pid_ns": seat_word::PID_NS, "tail": seat_word::TAIL,
                "high": seat_word::HIGH, "head": seat_word::HEAD, "seen": seat_word::SEEN, "waiting": seat_word::WAITING, "committed": seat_word::COMMITTED_AT
            },
            "state": { "closed": ring::CLOSED, "poisoned": ring::POISONED },
            "status": { "free": ring::SEAT_FREE, "live": ring::SEAT_LIVE, "dead": ring::SEAT_DEAD },
            "role": { "producer": ring::PRODUCER, "consumer": ring::CONSUMER },
            "committed": ring::COMMITTED,
            "record": { "data": ring::RECORD_DATA, "pad": ring::RECORD_PAD },
            "slots": {
                "layout": format!("{:#018x}", ring::SLOT_LAYOUT), "seat_len": ring::SLOT_SEAT_LEN, "max_seats": ring::MAX_SLOT_SEATS,
                "holds": ring::HOLDS, "min_slot": ring::MIN_SLOT, "slot_header": ring::SLOT_HEADER,
                "ring_word": {
                    "consumers": ring_word::CONSUMERS, "producers": ring_word::PRODUCERS, "returned": ring_word::RETURNED,
                    "moves": ring_word::MOVES, "tail": ring_word::SLOT_TAIL, "head": ring_word::SLOT_HEAD
                },
                "seat_word": { "claim": seat_word::CLAIM, "holds": seat_word::HOLDS_AT },
                "slot": { "free": slot_state::FREE, "full": slot_state::FULL, "held": slot_state::HELD },
                "claim": { "none": claim_state::NONE, "wanted": claim_state::WANTED, "owned": claim_state::OWNED },
                "hold": {
                    "none": hold_state::NONE, "wanted": hold_state::WANTED, "held": hold_state::HELD, "returned": hold_state::RETURNED
                }
            }
        }),
    );
}

#[test]
fn headers_are_golden() {
    let case = |kind: Kind, capacity: usize, slot: usize, seats: usize, on_full: OnFull| {
        let mut h = Header::new(kind, capacity, slot, seats, on_full).unwrap();
        h.pid = 0x0102_0304;
        h.id = *b"0123456789abcdef";
        h.created_unix_ns = 1_700_000_000_123_456_789;
        json!({
            "kind": kind.as_str(), "on_full": on_full.as_str(), "capacity": h.capacity, "seats": h.seats, "lanes": h.lanes,
            "header_len": h.header_len, "total_len": h.total_len(), "hex": hex(&h.encode())
        })
    };
    golden(
        "header.json",
        &json!([
            case(Kind::Spsc, 4096, 0, 2, OnFull::Wait),
            case(Kind::Spsc, 5 << 20, 0, 2, OnFull::Reject),
            case(Kind::Mpsc, 65536, 0, 5, OnFull::Wait),
            case(Kind::Broadcast, 1 << 30, 0, 65, OnFull::Overwrite),
            case(Kind::Broadcast, 1 << 16, 0, 3, OnFull::Wait),
            case(Kind::Mpmc, 1 << 20, 200, 64, OnFull::Wait),
            case(Kind::Mpmc, 4096, 2048, 2, OnFull::Reject),
        ]),
    );
}

/// One lane of 4 KiB whose positions begin just below 2^32: each step's effect on the words.
#[test]
fn a_trace_is_golden() {
    let start = 0u32.wrapping_sub(2048);
    let ring = RingBuffer::builder(Kind::Spsc).capacity(4096).create().unwrap();
    let base = ring.mapping().0;
    // SAFETY: inside the mapping, which `ring` keeps, and aligned; everybody uses the words as atomics.
    let word = |at: usize| unsafe { &*base.add(ring::SEATS_AT + ring::SEAT_LEN + at).cast::<AtomicU32>() };
    for at in [seat_word::TAIL, seat_word::HEAD, seat_word::SEEN] {
        word(at).store(start, Ordering::Relaxed);
    }
    let mut p = ring.producer(ProducerOptions::default()).unwrap();
    let mut c = ring.consumer(ConsumerOptions::default()).unwrap();
    let mut steps = Vec::new();
    let words = || {
        let [tail, high, head, seen] =
            [seat_word::TAIL, seat_word::HIGH, seat_word::HEAD, seat_word::SEEN].map(|at| word(at).load(Ordering::Relaxed));
        json!({ "tail": tail, "high": high, "head": head, "seen": seen })
    };
    for len in [0usize, 1, 8, 100, 1000, 1000, 3, 2040, 2040, 16, 500, 2040, 7] {
        let tail = word(seat_word::TAIL).load(Ordering::Relaxed);
        let pushed = p.try_push(&vec![len as u8; len]).unwrap();
        let after = word(seat_word::TAIL).load(Ordering::Relaxed);
        // The record words that the step wrote: one, or a padding record and one at the lane's begin.
        let mut records = Vec::new();
        let mut at = tail;
        while at != after {
            let offset = at & 4095;
            // SAFETY: inside the lane, 8-aligned.
            let record = unsafe { &*base.add(ring::data_at(Kind::Spsc, 2) + offset as usize).cast::<AtomicU64>() }.load(Ordering::Relaxed);
            records.push(json!({ "offset": offset, "hex": hex(&record.to_le_bytes()) }));
            at = at.wrapping_add(ring::record_extent(record as u32));
        }
        steps.push(json!({ "push": len, "pushed": pushed, "records": records, "words": words() }));
        if !pushed || len == 8 {
            let popped = c.try_pop().unwrap().map(|r| r.len());
            steps.push(json!({ "pop": popped, "words": words() }));
        }
    }
    while let Some(len) = c.try_pop().unwrap().map(|r| r.len()) {
        steps.push(json!({ "pop": len, "words": words() }));
    }
    steps.push(json!({ "pop": null, "words": words() }));
    golden("trace.json", &json!({ "capacity": 4096, "start": start, "fill": "each byte of a record is its length & 255", "steps": steps }));
}

/// A step of a trace: who (an index of the handles) does what.
#[derive(Clone, Copy)]
enum Step {
    Push(usize, usize),
    Pop(usize),
}
use Step::{Pop, Push};

/// What several handles do to the words of a ring, from positions just below 2^32 on. `readers` come before `writers`, and handles
/// are numbered in that order; `words` are the offsets that a step may change.
fn trace(
    kind: Kind,
    on_full: OnFull,
    (readers, writers): (usize, usize),
    batch: bool,
    words: &[(&str, usize)],
    starts: &[usize],
    steps: &[Step],
) -> Json {
    let start = 0u32.wrapping_sub(1024);
    let ring = RingBuffer::builder(kind).capacity(4096).max_participants(readers + writers).on_full(on_full).create().unwrap();
    let base = ring.mapping().0;
    // SAFETY: inside the mapping, which `ring` keeps, and aligned; everybody uses the words as atomics.
    let word = |at: usize| unsafe { &*base.add(at).cast::<AtomicU32>() };
    for at in starts {
        word(*at).store(start, Ordering::Relaxed);
    }
    let mut consumers: Vec<_> = (0..readers).map(|_| ring.consumer(ConsumerOptions::default()).unwrap()).collect();
    let mut producers: Vec<_> = (0..writers).map(|_| ring.producer(ProducerOptions { batch, ..Default::default() }).unwrap()).collect();
    let steps: Vec<_> = steps
        .iter()
        .map(|step| {
            let mut done = match *step {
                Push(who, len) => {
                    let pushed = producers[who - readers].try_push(&vec![len as u8; len]).unwrap();
                    json!({ "by": who, "push": len, "pushed": pushed })
                }
                Pop(who) => json!({ "by": who, "pop": consumers[who].try_pop().unwrap().map(|r| r.len()) }),
            };
            let after: serde_json::Map<_, _> =
                words.iter().map(|(name, at)| ((*name).to_owned(), word(*at).load(Ordering::Relaxed).into())).collect();
            done["words"] = Json::Object(after);
            done
        })
        .collect();
    let at: serde_json::Map<_, _> = words.iter().map(|(name, at)| ((*name).to_owned(), (*at).into())).collect();
    json!({
        "kind": kind.as_str(), "on_full": on_full.as_str(), "batch": batch, "capacity": 4096, "readers": readers, "writers": writers, "start": start,
        "starts": starts, "at": at, "steps": steps
    })
}

#[test]
fn traces_of_several_handles_are_golden() {
    let at = |seat: usize, word: usize| ring::SEATS_AT + seat * ring::SEAT_LEN + word;
    let lane = |writer: usize, reader: usize| [at(writer, seat_word::TAIL), at(reader, seat_word::HEAD), at(reader, seat_word::SEEN)];
    // Two producers: the hints, and the turns of the lanes, 32 records each.
    let mut steps = vec![Push(2, 8), Push(1, 16), Push(2, 0), Pop(0), Pop(0), Pop(0)];
    steps.extend((0..40).map(|_| Push(1, 24)));
    steps.extend([Push(2, 40), Push(2, 48)]);
    steps.extend((0..42).map(|_| Pop(0)));
    steps.extend([Push(1, 2000), Push(1, 2000), Push(1, 2000), Push(2, 2000), Pop(0), Push(1, 2000), Pop(0), Pop(0), Pop(0), Pop(0)]);
    let mpsc = trace(
        Kind::Mpsc,
        OnFull::Wait,
        (1, 2),
        false,
        &[
            ("ready", ring_word::READY),
            ("tail 1", at(1, seat_word::TAIL)),
            ("high 1", at(1, seat_word::HIGH)),
            ("head 1", at(1, seat_word::HEAD)),
            ("seen 1", at(1, seat_word::SEEN)),
            ("tail 2", at(2, seat_word::TAIL)),
            ("high 2", at(2, seat_word::HIGH)),
            ("head 2", at(2, seat_word::HEAD)),
            ("seen 2", at(2, seat_word::SEEN)),
        ],
        &[lane(1, 1), lane(2, 2)].concat(),
        &steps,
    );
    // Two readers: the gate is where the slower one gave back.
    let steps: Vec<_> = [Push(2, 500), Push(2, 500), Pop(0), Push(2, 1000), Push(2, 1000), Push(2, 1000), Pop(1)]
        .into_iter()
        .chain([Pop(0), Pop(0), Pop(0), Push(2, 1000), Pop(1), Push(2, 1000), Pop(1), Pop(1), Pop(1), Pop(0), Pop(0), Pop(0)])
        .collect();
    let lossless = trace(
        Kind::Broadcast,
        OnFull::Wait,
        (2, 1),
        false,
        &[
            ("tail", at(0, seat_word::TAIL)),
            ("high", at(0, seat_word::HIGH)),
            ("gate", at(0, seat_word::HEAD)),
            ("settled", at(0, seat_word::SEEN)),
            ("head 1", at(1, seat_word::HEAD)),
            ("seen 1", at(1, seat_word::SEEN)),
            ("head 2", at(2, seat_word::HEAD)),
            ("seen 2", at(2, seat_word::SEEN)),
        ],
        &[at(0, seat_word::TAIL), at(0, seat_word::HEAD), at(0, seat_word::SEEN)],
        &steps,
    );
    // One that overwrites: gate and tail with their record numbers, laps, and what a reader that was lapped gets.
    let mut steps = vec![Push(1, 500), Push(1, 3), Pop(0), Pop(0), Pop(0)];
    steps.extend([1000usize, 1000, 1000, 40, 2000, 7, 0, 2040, 100, 100].map(|len| Push(1, len)));
    steps.extend([Pop(0), Pop(0), Push(1, 900), Pop(0), Pop(0), Pop(0), Push(1, 2040), Push(1, 2040), Push(1, 8), Pop(0), Pop(0), Pop(0)]);
    let overwriting = trace(
        Kind::Broadcast,
        OnFull::Overwrite,
        (1, 1),
        false,
        &[
            ("tail", at(0, seat_word::TAIL)),
            ("tail count", at(0, seat_word::TAIL) + 4),
            ("high", at(0, seat_word::HIGH)),
            ("gate", at(0, seat_word::HEAD)),
            ("gate count", at(0, seat_word::HEAD) + 4),
        ],
        &[at(0, seat_word::TAIL), at(0, seat_word::HEAD)],
        &steps,
    );
    // Batches: where the writer stands and what it has published. No pop, which may publish by its clock. The positions wrap, and the ring is full.
    let steps: Vec<_> = [8usize, 1, 100, 500, 700, 2000].map(|len| Push(1, len)).into();
    let batch = |kind, on_full, steps: &[Step]| {
        let writer = usize::from(kind != Kind::Broadcast);
        let words = [
            ("committed", at(writer, seat_word::COMMITTED_AT)),
            ("committed count", at(writer, seat_word::COMMITTED_AT) + 4),
            ("tail", at(writer, seat_word::TAIL)),
            ("high", at(writer, seat_word::HIGH)),
        ];
        let starts = [at(writer, seat_word::TAIL), at(writer, seat_word::HEAD), at(writer, seat_word::SEEN)];
        trace(kind, on_full, (1, 1), true, &words, &starts, steps)
    };
    let lane = batch(Kind::Spsc, OnFull::Wait, &[&steps[..], &[Push(1, 1000)]].concat());
    let laps = batch(Kind::Broadcast, OnFull::Overwrite, &[&steps[..], &steps[..], &steps[..]].concat());
    golden(
        "traces.json",
        &json!({ "fill": "each byte of a record is its length & 255", "traces": [mpsc, lossless, overwriting, lane, laps] }),
    );
}

/// Four slots, one producer, one consumer that acknowledges: each step's effect on positions, slots, claim and holds.
#[test]
fn a_trace_of_tasks_is_golden() {
    let ring = RingBuffer::builder(Kind::Mpmc).capacity(4096).slot_size(1024).max_participants(2).create().unwrap();
    let (base, slots) = (ring.mapping().0, 4);
    // SAFETY: inside the mapping, which `ring` keeps, and aligned; everybody uses the words as atomics.
    let long = |at: usize| unsafe { &*base.add(at).cast::<AtomicU64>() }.load(Ordering::Acquire);
    // SAFETY: as above.
    let short = |at: usize| unsafe { &*base.add(at).cast::<AtomicU32>() }.load(Ordering::Acquire);
    let mut p = ring.producer(ProducerOptions::default()).unwrap();
    let mut c = ring.consumer(ConsumerOptions { ack: Ack::Manual }).unwrap();
    let seat = |seat: usize| ring::SEATS_AT + seat * ring::SLOT_SEAT_LEN;
    let (claims, holds) = (seat(p.seat()) + seat_word::CLAIM, seat(c.seat()) + seat_word::HOLDS_AT);
    let words = || {
        let slot = |i: usize| ring::data_at(Kind::Mpmc, 2) + i * 1024;
        let held: Vec<u64> = (0..ring::HOLDS).map(|i| long(holds + i * 8)).filter(|hold| *hold != 0).collect();
        json!({
            "tail": long(ring_word::SLOT_TAIL), "head": long(ring_word::SLOT_HEAD), "returned": short(ring_word::RETURNED),
            "moves": short(ring_word::MOVES), "claim": long(claims), "holds": held,
            "slots": (0..slots).map(|i| json!({ "word": long(slot(i)), "len": short(slot(i) + 8), "lap": short(slot(i) + 12) })).collect::<Vec<_>>(),
        })
    };
    let mut steps = vec![json!({ "step": "made", "words": words() })];
    let mut deliveries = Vec::new();
    // The second round passes over the slot of the record that is kept.
    for step in "push push claim pop pop nack pop ack push push abort push push pop pop ack ack ack ack push pop ack".split(' ') {
        let mut ended = || if deliveries.is_empty() { 0 } else { deliveries.remove(0) };
        let done = match step {
            "push" => json!(p.try_push(&[7; 5]).unwrap()),
            // Seen while it is open, and given up.
            "claim" => {
                p.try_claim_ptr(9).unwrap().unwrap();
                let open = words();
                p.abort_claim();
                open
            }
            "abort" => json!(p.try_claim(9).unwrap().map(offloop::ring::ClaimMut::abort).is_some()),
            "pop" => {
                let taken = c.try_pop().unwrap().map(|r| (r.delivery(), r.len(), r.is_redelivered()));
                deliveries.extend(taken.map(|(delivery, ..)| delivery));
                json!(taken.map(|(_, len, again)| json!({ "len": len, "redelivered": again })))
            }
            "nack" => json!(c.nack(ended()).is_ok()),
            _ => json!(c.ack(ended()).is_ok()),
        };
        steps.push(json!({ "step": step, "done": done, "words": words() }));
    }
    golden("tasks.json", &json!({ "capacity": 4096, "slot_size": 1024, "steps": steps }));
}
