//! `make loom`: every interleaving of the real lane and the real wake protocol, over a model's memory. Each model has a
//! mutant that must fail. What loom cannot model, and what covers it: `README.md`.

use super::broadcast::{self, Copying, Overwritten};
use super::spsc::{Lane, Mark, Reader, Writer};
use super::wait::{BLOCKED, wake};
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

/// Three records of 16 bytes do not fit: the writer meets a full lane, and the positions wrap.
const CAPACITY: u32 = 32;
const RECORDS: u64 = 3;

/// A lane in a model's memory. Cells notice two accesses that nothing orders.
pub(super) struct ModelLane<P> {
    tail: P,
    committed: P,
    high: AtomicU32,
    head: P,
    seen: AtomicU32,
    data: Vec<UnsafeCell<u64>>,
}

impl<P: Word<u64>> ModelLane<P> {
    fn new(at: u32, position: fn(u64) -> P) -> Self {
        Self::with_capacity(CAPACITY, at, position)
    }

    pub(super) fn with_capacity(capacity: u32, at: u32, position: fn(u64) -> P) -> Self {
        let data = (0..capacity / 8).map(|_| UnsafeCell::new(0)).collect();
        ModelLane {
            tail: position(at.into()),
            committed: position(0),
            high: AtomicU32::new(0),
            head: position(at.into()),
            seen: AtomicU32::new(at),
            data,
        }
    }

    fn payload(&self, offset: u32) -> &UnsafeCell<u64> {
        &self.data[offset as usize / 8]
    }

    pub(super) fn write(&self, offset: u32, value: u64) {
        // SAFETY: loom checks the access.
        self.payload(offset).with_mut(|p| unsafe { *p = value });
    }
}

// SAFETY: loom checks every access to the cells.
unsafe impl<P: Sync> Sync for ModelLane<P> {}
// SAFETY: as above.
unsafe impl<P: Send> Send for ModelLane<P> {}

impl<P: Word<u64>> Lane for ModelLane<P> {
    type Position = P;
    type Word = AtomicU32;
    fn tail(&self) -> &P {
        &self.tail
    }
    fn committed(&self) -> &P {
        &self.committed
    }
    fn high(&self) -> &AtomicU32 {
        &self.high
    }
    fn head(&self) -> &P {
        &self.head
    }
    fn seen(&self) -> &AtomicU32 {
        &self.seen
    }
    fn record(&self, offset: u32) -> u64 {
        // SAFETY: loom checks the access.
        self.payload(offset).with(|p| unsafe { *p })
    }
    fn set_record(&self, offset: u32, word: u64) {
        self.write(offset, word);
    }
}

/// The mutant: publishes without Release.
pub(super) struct RelaxedStore(pub(super) AtomicU64);
/// The mutant: looks without Acquire.
struct RelaxedLoad(AtomicU64);

impl Word<u64> for RelaxedStore {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, _: Ordering) {
        self.0.store(value, Ordering::Relaxed);
    }
    fn swap(&self, value: u64, _: Ordering) -> u64 {
        self.0.swap(value, Ordering::Relaxed)
    }
    fn compare_exchange(&self, old: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        Word::compare_exchange(&self.0, old, new, order)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        Word::fetch_add(&self.0, value, order)
    }
}

impl Word<u64> for RelaxedLoad {
    fn load(&self, _: Ordering) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.0.swap(value, order)
    }
    fn compare_exchange(&self, old: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        Word::compare_exchange(&self.0, old, new, order)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        Word::fetch_add(&self.0, value, order)
    }
}

fn push<P: Word<u64>>(writer: &mut Writer, lane: &ModelLane<P>, value: u64) -> bool {
    let Some(offset) = writer.claim(lane, 8).expect("no damage") else { return false };
    lane.write(offset, value);
    writer.commit(lane, 8);
    writer.publish(lane)
}

pub(super) fn pop<P: Word<u64>>(reader: &mut Reader, lane: &ModelLane<P>) -> Option<u64> {
    let found = reader.peek(lane).expect("no damage")?;
    // SAFETY: loom checks the access.
    let value = lane.payload(found.offset).with(|p| unsafe { *p });
    reader.release(found.len);
    reader.publish(lane);
    Some(value)
}

/// What is read is what was written, in order, and nothing that was published is missing at the end.
fn lane_model<P: Word<u64> + Send + Sync + 'static>(position: fn(u64) -> P) {
    loom::model(move || {
        // The 32-bit positions wrap between the first record and the second.
        let lane = Arc::new(ModelLane::new(0u32.wrapping_sub(16), position));
        // Both sides enter before the threads part: loom's search follows only the last access to a word, and a writer's own
        // look at `tail` would hide the reader's.
        let mut writer = Writer::resume(&*lane, CAPACITY).expect("fresh");
        let mut reader = Reader::resume(&*lane, CAPACITY).expect("fresh");
        let writer = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                // Two fit; the third finds room only if the reader was there.
                (0..RECORDS).take_while(|n| push(&mut writer, &lane, 100 + n)).count()
            })
        };
        let mut seen: Vec<u64> = (0..2).filter_map(|_| pop(&mut reader, &lane)).collect();
        let pushed = writer.join().expect("writer");
        while let Some(value) = pop(&mut reader, &lane) {
            seen.push(value);
        }
        assert_eq!(seen, (0..pushed as u64).map(|n| 100 + n).collect::<Vec<_>>());
        assert!(pushed >= 2);
    });
}

#[test]
fn ring_lane_hands_over_whole_records() {
    lane_model(AtomicU64::new);
}

#[test]
#[should_panic(expected = "")]
fn ring_lane_without_release_is_seen() {
    lane_model(|n| RelaxedStore(AtomicU64::new(n)));
}

#[test]
#[should_panic(expected = "")]
fn ring_lane_without_acquire_is_seen() {
    lane_model(|n| RelaxedLoad(AtomicU64::new(n)));
}

/// A word that one stores and another compares and swaps. Nothing lies between what that reads and what it stores, but loom would let the store be
/// there; a swap it puts before or behind. A relaxed one orders nothing else.
pub(super) struct Swapped<A>(pub(super) A);

pub(super) type Waiting = Swapped<AtomicU32>;

impl Waiting {
    pub(super) fn new(value: u32) -> Waiting {
        Swapped(AtomicU32::new(value))
    }
}

impl<T, A: Word<T>> Word<T> for Swapped<A> {
    fn load(&self, order: Ordering) -> T {
        self.0.load(order)
    }
    fn store(&self, value: T, order: Ordering) {
        self.0.swap(value, order);
    }
    fn swap(&self, value: T, order: Ordering) -> T {
        self.0.swap(value, order)
    }
    fn compare_exchange(&self, old: T, new: T, order: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, order)
    }
    fn fetch_add(&self, value: T, order: Ordering) -> T {
        self.0.fetch_add(value, order)
    }
}

/// What a wake is about: two things that are published, the sleeper's word, its bell (a count), and how many wakers ended its sleep.
struct Nap {
    published: [AtomicU32; 2],
    waiting: Waiting,
    bell: AtomicU32,
    ended: AtomicU32,
}

impl Nap {
    fn new(waiting: u32) -> Arc<Nap> {
        let word = || AtomicU32::new(0);
        Arc::new(Nap { published: [word(), word()], waiting: Waiting::new(waiting), bell: word(), ended: word() })
    }
}

/// Wakes as `Shared::wake`. True if it was this call that ended the sleep.
type WakeFn = fn(&Nap) -> bool;

/// Two wakers, one sleeper: who sleeps although something was published has been rung, and one of them ended the sleep.
fn wake_model(announce: fn(&Waiting), wake: WakeFn) {
    loom::model(move || {
        let nap = Nap::new(0);
        let wakers: Vec<_> = (0..2)
            .map(|n| {
                let nap = Arc::clone(&nap);
                thread::spawn(move || {
                    nap.published[n].store(1, Ordering::Release);
                    if wake(&nap) {
                        nap.ended.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        announce(&nap.waiting);
        let news = nap.published.iter().filter(|p| p.load(Ordering::Relaxed) == 1).count();
        for w in wakers {
            w.join().expect("waker");
        }
        assert!(nap.ended.load(Ordering::Relaxed) <= 1, "ended twice");
        assert!(news > 0 || nap.bell.load(Ordering::Relaxed) > 0, "asleep, something was published, nobody rang");
    });
}

fn announce_sleep(waiting: &Waiting) {
    super::wait::announce_sleep(waiting, BLOCKED);
}

fn ring_bell(nap: &Nap) -> bool {
    wake(&nap.waiting, || {
        nap.bell.fetch_add(1, Ordering::Relaxed);
    })
}

fn fence_and_wake(nap: &Nap) -> bool {
    fence(Ordering::SeqCst);
    ring_bell(nap)
}

#[test]
fn ring_wake_is_never_lost_and_ends_a_sleep_once() {
    wake_model(announce_sleep, fence_and_wake);
}

#[test]
#[should_panic(expected = "nobody rang")]
fn ring_wake_without_the_wakers_fence_is_lost() {
    wake_model(announce_sleep, ring_bell);
}

#[test]
#[should_panic(expected = "nobody rang")]
fn ring_wake_without_the_sleepers_fence_is_lost() {
    wake_model(|waiting| waiting.store(1, Ordering::Relaxed), fence_and_wake);
}

#[test]
#[should_panic(expected = "ended twice")]
fn ring_wake_that_does_not_clear_the_word_is_one_of_many() {
    wake_model(announce_sleep, |nap| {
        fence(Ordering::SeqCst);
        nap.bell.fetch_add(1, Ordering::Relaxed);
        nap.waiting.load(Ordering::Relaxed) != 0
    });
}

/// One waker saw an earlier sleep and may be late; the sleeper sleeps again, for what another one publishes.
fn late_waker_model(wake: WakeFn, next_sleep: u32) {
    loom::model(move || {
        let nap = Nap::new(4 | BLOCKED);
        let wakers: Vec<_> = [false, true]
            .into_iter()
            .map(|publishes| {
                let nap = Arc::clone(&nap);
                thread::spawn(move || {
                    if publishes {
                        nap.published[0].store(1, Ordering::Release);
                    }
                    wake(&nap);
                })
            })
            .collect();
        nap.waiting.store(0, Ordering::Relaxed);
        nap.bell.swap(0, Ordering::AcqRel);
        super::wait::announce_sleep(&nap.waiting, next_sleep);
        let news = nap.published[0].load(Ordering::Relaxed) == 1;
        wakers.into_iter().for_each(|w| w.join().expect("waker"));
        assert!(news || nap.bell.load(Ordering::Relaxed) > 0, "asleep, something was published, nobody rang");
    });
}

#[test]
fn ring_late_waker_does_not_end_a_later_sleep() {
    late_waker_model(fence_and_wake, 8 | BLOCKED);
}

#[test]
#[should_panic(expected = "nobody rang")]
fn ring_late_waker_ends_a_later_sleep_that_has_the_same_number() {
    late_waker_model(fence_and_wake, 4 | BLOCKED);
}

/// A broadcast lane of one record of 8 bytes: a reader joins while the writer wants the room of the record that is there.
struct Join {
    tail: AtomicU64,
    gate: AtomicU64,
    settled: AtomicU64,
    high: AtomicU32,
    cursor: AtomicU64,
    live: AtomicU32,
    record: UnsafeCell<u64>,
}

// SAFETY: loom checks every access to the cell.
unsafe impl Sync for Join {}
// SAFETY: as above.
unsafe impl Send for Join {}

type JoinFn = fn(&Join) -> Mark;
type MoveFn = fn(&Join, Mark) -> bool;

fn cursors(j: &Join) -> impl Iterator<Item = Mark> {
    (j.live.load(Ordering::Acquire) == 1).then(|| Mark::load(&j.cursor, Ordering::Acquire)).into_iter()
}

/// The writer overwrites only what no reader still has to read, and who joined reads what was published.
fn join_model(join: JoinFn, move_gate: MoveFn) {
    loom::model(move || {
        let j = Arc::new(Join {
            tail: AtomicU64::new(0),
            gate: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            high: AtomicU32::new(0),
            cursor: AtomicU64::new(0),
            live: AtomicU32::new(0),
            record: UnsafeCell::new(0),
        });
        let reader = {
            let j = Arc::clone(&j);
            thread::spawn(move || {
                let at = join(&j);
                let tail = Mark::load(&j.tail, Ordering::Acquire).at;
                if tail - at.at == 8 {
                    // SAFETY: loom checks the access.
                    let value = j.record.with(|p| unsafe { *p });
                    assert_eq!(value, u64::from(tail), "the record was overwritten under a reader");
                }
                assert!(tail - at.at <= 8, "the record was overwritten before a reader came to it");
            })
        };
        for published in [0, 8] {
            let full = published - Mark::load(&j.gate, Ordering::Relaxed).at >= 8;
            if full && !move_gate(&j, Mark { at: published, count: 0 }) {
                break;
            }
            // SAFETY: loom checks the access.
            j.record.with_mut(|p| unsafe { *p = u64::from(published) + 8 });
            Mark { at: published + 8, count: 0 }.store(&j.tail, Ordering::Release);
        }
        reader.join().expect("reader");
    });
}

fn real_join(j: &Join) -> Mark {
    broadcast::join(&j.tail, &j.high, &j.gate, &j.cursor, 8, || j.live.store(1, Ordering::Release)).expect("no damage")
}

fn real_move(j: &Join, published: Mark) -> bool {
    broadcast::move_gate(&j.gate, &j.settled, published, 8, || cursors(j)).expect("no damage")
}

#[test]
fn ring_reader_that_joins_is_never_overrun() {
    join_model(real_join, real_move);
}

#[test]
#[should_panic(expected = "")]
fn ring_reader_that_does_not_look_at_the_gate_is_overrun() {
    join_model(
        |j| {
            let at = Mark::load(&j.tail, Ordering::Acquire);
            at.store(&j.cursor, Ordering::Release);
            j.live.store(1, Ordering::Release);
            at
        },
        real_move,
    );
}

#[test]
#[should_panic(expected = "")]
fn ring_writer_that_does_not_look_again_overruns_a_reader() {
    join_model(real_join, |j, published| {
        let to = cursors(j).next().unwrap_or(published);
        let moved = to.at != Mark::load(&j.gate, Ordering::Relaxed).at;
        to.store(&j.gate, Ordering::Release);
        moved
    });
}

/// An overwriting lane of 32 bytes: its words are atomics, as in mapped memory.
struct OverwrittenLane {
    tail: AtomicU64,
    committed: AtomicU64,
    high: AtomicU32,
    head: AtomicU64,
    seen: AtomicU32,
    data: [AtomicU64; 4],
}

impl Lane for OverwrittenLane {
    type Position = AtomicU64;
    type Word = AtomicU32;
    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }
    fn committed(&self) -> &AtomicU64 {
        &self.committed
    }
    fn high(&self) -> &AtomicU32 {
        &self.high
    }
    fn head(&self) -> &AtomicU64 {
        &self.head
    }
    fn seen(&self) -> &AtomicU32 {
        &self.seen
    }
    fn record(&self, offset: u32) -> u64 {
        self.data[offset as usize / 8].load(Ordering::Relaxed)
    }
    fn set_record(&self, offset: u32, word: u64) {
        self.data[offset as usize / 8].store(word, Ordering::Relaxed);
    }
}

impl Overwritten for OverwrittenLane {
    fn gate(&self) -> &AtomicU64 {
        &self.head
    }
}

fn append(writer: &mut Writer, lane: &OverwrittenLane, value: u64) {
    let offset = writer.claim(lane, 8).expect("no damage").expect("room was made");
    lane.set_record(offset, value);
    writer.commit(lane, 8);
    writer.publish(lane);
}

/// What a reader of an overwriting lane believes is what was written at that number.
fn overwrite_model(make_room: fn(&OverwrittenLane, Mark, u32)) {
    loom::model(move || {
        let word = || AtomicU64::new(0);
        let (tail, committed, head) = (word(), word(), word());
        let data = [word(), word(), word(), word()];
        let lane = Arc::new(OverwrittenLane { tail, committed, high: AtomicU32::new(0), head, seen: AtomicU32::new(0), data });
        let mut writer = Writer::resume(&*lane, CAPACITY).expect("fresh");
        append(&mut writer, &lane, 100);
        append(&mut writer, &lane, 101);
        let mut reader = Copying::begin(&*lane, CAPACITY).expect("fresh");
        let writer = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                make_room(&lane, writer.tail(), writer.needs(8));
                append(&mut writer, &lane, 102);
            })
        };
        let first = reader.take(&*lane).expect("no damage");
        if first.is_some() {
            // SAFETY: the copy has the record's 8 bytes.
            let value = unsafe { reader.copied().cast::<u64>().read() };
            assert_eq!(value, 100 + reader.lost(), "a torn record was believed");
        }
        writer.join().expect("writer");
    });
}

#[test]
fn ring_overwritten_records_are_never_believed() {
    overwrite_model(|lane, published, needed| broadcast::overwrite(lane, published, CAPACITY, needed).expect("no damage"));
}

#[test]
#[should_panic(expected = "")]
fn ring_gate_that_moves_without_a_fence_is_too_late() {
    overwrite_model(|lane, _, _| Mark { at: 16, count: 1 }.store(lane.head(), Ordering::Relaxed));
}
