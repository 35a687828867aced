//! The scheduler: which task next, on which slot. Pure: no clock, thread, fd or lock; `now` is a parameter.
//!
//! * **Priority with ageing.** A task of class `p` that was submitted at `t` competes with the score `t − p · 100 ms`; the
//!   smallest score goes first. So a higher class goes first, a waiting task gains one class per 100 ms, and nothing
//!   starves. Within a class the order is first in, first out, so only the heads of the classes are compared.
//! * **Keys.** A key is pinned to one slot while any of its tasks is queued or running there; a new key gets its slot by
//!   rendezvous hashing (Thaler and Ravishankar, 1996), so that a resize moves few keys.
//! * **Slots.** A task may name its slot, and has no key then: what is for each worker. It waits among the keyed ones of that slot.
//! * **Tombstones.** A task that was cancelled while queued stays in its deque and is dropped when it comes up, or by a
//!   sweep once there are more dead than live ones.

use std::collections::{HashMap, VecDeque};

/// What one class is worth against waiting time.
const CLASS_NS: i64 = 100_000_000;

/// What the scheduler needs to know of a task.
pub(crate) trait Item {
    fn priority(&self) -> i8;
    fn submitted_ns(&self) -> u64;
    /// Hash of the key.
    fn key(&self) -> Option<u64>;
    /// The only slot that may take it, whatever its key.
    fn slot(&self) -> Option<usize> {
        None
    }
    /// Not cancelled.
    fn is_live(&self) -> bool;
}

/// Tombstones that were dropped, and the keys they had.
#[derive(Default)]
struct Dropped {
    count: usize,
    keys: Vec<u64>,
}

/// Tasks by class.
struct ReadyQueue<T> {
    /// Which classes are not empty.
    bits: [u64; 4],
    /// By class, lowest priority first; made at first use.
    classes: Vec<VecDeque<T>>,
    len: usize,
}

impl<T: Item> ReadyQueue<T> {
    fn new() -> ReadyQueue<T> {
        ReadyQueue { bits: [0; 4], classes: Vec::new(), len: 0 }
    }

    fn class_of(&mut self, item: &T) -> &mut VecDeque<T> {
        if self.classes.is_empty() {
            self.classes.resize_with(256, VecDeque::new);
        }
        let class = (i16::from(item.priority()) + 128) as usize;
        self.bits[class / 64] |= 1 << (class % 64);
        self.len += 1;
        &mut self.classes[class]
    }

    fn push(&mut self, item: T) {
        self.class_of(&item).push_back(item);
    }

    fn push_front(&mut self, item: T) {
        self.class_of(&item).push_front(item);
    }

    /// The class whose head has the smallest score, and that score. Drops tombstones at the heads, noting their keys.
    fn best(&mut self, dropped: &mut Dropped) -> Option<(i64, usize)> {
        let mut best: Option<(i64, usize)> = None;
        for word in 0..4 {
            let mut bits = self.bits[word];
            while bits != 0 {
                let class = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let queue = &mut self.classes[class];
                while let Some(dead) = queue.pop_front_if(|t| !t.is_live()) {
                    self.len -= 1;
                    dropped.count += 1;
                    dropped.keys.extend(dead.key());
                }
                match queue.front() {
                    None => self.bits[word] &= !(1 << (class % 64)),
                    Some(head) => {
                        let score = head.submitted_ns() as i64 - (class as i64 - 128) * CLASS_NS;
                        // On a tie the higher class goes first.
                        if best.is_none_or(|(s, _)| score <= s) {
                            best = Some((score, class));
                        }
                    }
                }
            }
        }
        best
    }

    fn pop(&mut self, class: usize) -> Option<T> {
        let queue = &mut self.classes[class];
        let item = queue.pop_front()?;
        if queue.is_empty() {
            self.bits[class / 64] &= !(1 << (class % 64));
        }
        self.len -= 1;
        Some(item)
    }

    fn sweep(&mut self, dropped: &mut Dropped) {
        for queue in &mut self.classes {
            queue.retain(|t| {
                let live = t.is_live();
                if !live {
                    dropped.count += 1;
                    dropped.keys.extend(t.key());
                }
                live
            });
        }
        self.len = self.classes.iter().map(VecDeque::len).sum();
        for (class, queue) in self.classes.iter().enumerate() {
            if queue.is_empty() {
                self.bits[class / 64] &= !(1 << (class % 64));
            }
        }
    }

    fn drain_all(&mut self) -> Vec<T> {
        self.bits = [0; 4];
        self.len = 0;
        self.classes.iter_mut().flat_map(std::mem::take).collect()
    }
}

struct Pin {
    slot: usize,
    /// Queued and running tasks of the key.
    tasks: usize,
}

/// Where a pushed task went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Any slot may take it.
    Anywhere,
    /// Only this slot may.
    Slot(usize),
}

/// What a slot takes at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take<T> {
    /// Nothing is ready for this slot.
    Nothing,
    /// The next task without a key; more may follow in the same batch.
    Free(T),
    /// A task with a key, for which [`Sched::key_done`] must follow, or of this slot alone.
    Keyed(T),
}

/// The queue of one pool.
pub(crate) struct Sched<T> {
    free: ReadyQueue<T>,
    keyed: Vec<ReadyQueue<T>>,
    pins: HashMap<u64, Pin>,
    /// Slots that new keys may go to.
    slots: usize,
    /// Tombstones that were dropped since `take_dropped`.
    dropped: usize,
}

fn mix(mut x: u64) -> u64 {
    // splitmix64's finaliser: every input bit reaches every output bit.
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl<T: Item> Sched<T> {
    pub(crate) fn new(slots: usize) -> Sched<T> {
        Sched { free: ReadyQueue::new(), keyed: Vec::new(), pins: HashMap::new(), slots: slots.max(1), dropped: 0 }
    }

    /// Tasks that any slot may take, tombstones included.
    pub(crate) fn free_len(&self) -> usize {
        self.free.len
    }

    /// Tasks that only `slot` may take, tombstones included.
    pub(crate) fn keyed_len(&self, slot: usize) -> usize {
        self.keyed.get(slot).map_or(0, |q| q.len)
    }

    /// Everything that is queued, tombstones included.
    pub(crate) fn len(&self) -> usize {
        self.free.len + self.keyed.iter().map(|q| q.len).sum::<usize>()
    }

    /// Changes the slots that new keys may go to. Queued keys stay where they are, so that their order holds.
    pub(crate) fn set_slots(&mut self, slots: usize) {
        self.slots = slots.max(1);
    }

    /// The slot of a key by rendezvous hashing.
    fn home(&self, key: u64) -> usize {
        (0..self.slots).max_by_key(|slot| mix(key ^ mix(*slot as u64 + 1))).unwrap_or(0)
    }

    /// The slot that runs the tasks of a key.
    pub(crate) fn slot_of(&self, key: u64) -> usize {
        self.pins.get(&key).map_or_else(|| self.home(key), |pin| pin.slot)
    }

    pub(crate) fn push(&mut self, item: T) -> Place {
        if let Some(slot) = item.slot() {
            self.keyed_at(slot).push(item);
            return Place::Slot(slot);
        }
        let Some(key) = item.key() else {
            self.free.push(item);
            return Place::Anywhere;
        };
        let slot = self.slot_of(key);
        self.pins.entry(key).or_insert(Pin { slot, tasks: 0 }).tasks += 1;
        self.keyed_at(slot).push(item);
        Place::Slot(slot)
    }

    fn keyed_at(&mut self, slot: usize) -> &mut ReadyQueue<T> {
        if self.keyed.len() <= slot {
            self.keyed.resize_with(slot + 1, ReadyQueue::new);
        }
        &mut self.keyed[slot]
    }

    /// Puts a task back that [`take`](Self::take) gave, before those of its class: the last one taken goes first.
    pub(crate) fn put_back(&mut self, item: T) {
        match item.slot().or_else(|| item.key().and_then(|key| self.pins.get(&key)).map(|pin| pin.slot)) {
            Some(slot) => self.keyed_at(slot).push_front(item),
            None => self.free.push_front(item),
        }
    }

    /// A task of this key has an outcome or was dropped.
    pub(crate) fn key_done(&mut self, key: u64) {
        if let Some(pin) = self.pins.get_mut(&key) {
            pin.tasks -= 1;
            if pin.tasks == 0 {
                self.pins.remove(&key);
            }
        }
    }

    /// The best task for `slot`: of those that any slot may take and those pinned to this one.
    pub(crate) fn take(&mut self, slot: usize) -> Take<T> {
        let mut dropped = Dropped::default();
        let free = self.free.best(&mut dropped);
        let keyed = match self.keyed.get_mut(slot) {
            Some(q) if q.len > 0 => q.best(&mut dropped),
            _ => None,
        };
        self.note_dropped(dropped);
        match (free, keyed) {
            (None, None) => Take::Nothing,
            (Some((f, class)), k) if k.is_none_or(|(k, _)| f <= k) => self.free.pop(class).map_or(Take::Nothing, Take::Free),
            (_, Some((_, class))) => self.keyed[slot].pop(class).map_or(Take::Nothing, Take::Keyed),
            (Some(_), None) => Take::Nothing,
        }
    }

    fn note_dropped(&mut self, dropped: Dropped) {
        self.dropped += dropped.count;
        for key in dropped.keys {
            self.key_done(key);
        }
    }

    /// How many tombstones were dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> usize {
        std::mem::take(&mut self.dropped)
    }

    /// Drops tombstones everywhere.
    pub(crate) fn sweep(&mut self) {
        let mut dropped = Dropped::default();
        for queue in std::iter::once(&mut self.free).chain(&mut self.keyed) {
            queue.sweep(&mut dropped);
        }
        self.note_dropped(dropped);
    }

    /// Takes everything out, for the end of a pool.
    pub(crate) fn drain_all(&mut self) -> Vec<T> {
        let mut all = self.free.drain_all();
        for queue in &mut self.keyed {
            all.extend(queue.drain_all());
        }
        self.pins.clear();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[derive(Clone, Debug)]
    struct Job {
        id: u32,
        priority: i8,
        at_ns: u64,
        key: Option<u64>,
        slot: Option<usize>,
        live: Rc<Cell<bool>>,
    }

    impl Item for Job {
        fn priority(&self) -> i8 {
            self.priority
        }
        fn submitted_ns(&self) -> u64 {
            self.at_ns
        }
        fn key(&self) -> Option<u64> {
            self.key
        }
        fn slot(&self) -> Option<usize> {
            self.slot
        }
        fn is_live(&self) -> bool {
            self.live.get()
        }
    }

    fn job(id: u32, priority: i8, at_ms: u64, key: Option<u64>) -> Job {
        Job { id, priority, at_ns: at_ms * 1_000_000, key, slot: None, live: Rc::new(Cell::new(true)) }
    }

    fn order(sched: &mut Sched<Job>, slot: usize) -> Vec<u32> {
        let mut out = Vec::new();
        loop {
            match sched.take(slot) {
                Take::Nothing => return out,
                Take::Free(j) => out.push(j.id),
                Take::Keyed(j) => {
                    out.push(j.id);
                    if let Some(key) = j.key {
                        sched.key_done(key);
                    }
                }
            }
        }
    }

    #[test]
    fn order_by_table() {
        // (priority, submitted at ms) in order of submission → order of ids.
        type Row = (&'static [(i8, u64)], &'static [u32]);
        let table: &[Row] = &[
            (&[(0, 0), (0, 0), (0, 1)], &[0, 1, 2]),
            (&[(0, 0), (1, 0), (-1, 0)], &[1, 0, 2]),
            (&[(-128, 0), (127, 0)], &[1, 0]),
            // One class is worth 100 ms of waiting: at 99 ms the newcomer of a higher class still goes first.
            (&[(0, 0), (1, 99)], &[1, 0]),
            (&[(0, 0), (1, 100)], &[1, 0]), // a tie goes to the higher class
            (&[(0, 0), (1, 101)], &[0, 1]),
            (&[(-5, 0), (0, 499), (0, 501)], &[1, 0, 2]),
        ];
        for (jobs, want) in table {
            let mut s = Sched::new(1);
            for (id, (priority, at)) in (0u32..).zip(*jobs) {
                assert_eq!(s.push(job(id, *priority, *at, None)), Place::Anywhere);
            }
            assert_eq!(order(&mut s, 0), *want, "{jobs:?}");
        }
    }

    #[test]
    fn nothing_starves_under_a_stream_of_higher_priority() {
        let mut s = Sched::new(1);
        s.push(job(0, -10, 0, None));
        for ms in 0..5_000 {
            s.push(job(1, 10, ms, None));
            if let Take::Free(j) = s.take(0)
                && j.id == 0
            {
                assert!((2_000..2_010).contains(&ms), "20 classes are 2 s, it ran at {ms} ms");
                return;
            }
        }
        panic!("starved");
    }

    #[test]
    fn a_key_stays_on_its_slot_while_it_has_tasks_even_when_slots_change() {
        let mut s = Sched::new(8);
        let Place::Slot(home) = s.push(job(0, 0, 0, Some(42))) else { panic!("keyed") };
        s.set_slots(1);
        assert_eq!(s.push(job(1, 0, 1, Some(42))), Place::Slot(home));
        assert_eq!(order(&mut s, home), [0, 1]);
        // Both are done: the key is free to move.
        assert_eq!(s.push(job(2, 0, 2, Some(42))), Place::Slot(0));
    }

    #[test]
    fn a_task_of_one_slot_is_taken_by_nobody_else_and_holds_no_key() {
        let mut s = Sched::new(2);
        let bound = |id, slot| Job { slot: Some(slot), ..job(id, 0, 0, None) };
        assert_eq!(s.push(bound(0, 1)), Place::Slot(1));
        // Also beyond the slots that new keys go to.
        assert_eq!(s.push(bound(1, 5)), Place::Slot(5));
        s.push(job(2, 0, 1, None));
        let Take::Keyed(first) = s.take(1) else { panic!("its own goes first") };
        s.put_back(first);
        assert_eq!((s.keyed_len(1), order(&mut s, 0)), (1, vec![2]));
        assert_eq!((order(&mut s, 1), order(&mut s, 5)), (vec![0], vec![1]));
        assert!(s.pins.is_empty() && s.len() == 0);
    }

    #[test]
    fn resizing_moves_only_the_keys_of_the_lost_slot() {
        let homes = |slots| {
            let s = Sched::<Job>::new(slots);
            (0..10_000).map(|k| s.home(k)).collect::<Vec<_>>()
        };
        let (eight, seven) = (homes(8), homes(7));
        for (a, b) in eight.iter().zip(&seven) {
            assert!(*a == 7 || a == b);
        }
        for slot in 0..8 {
            let share = eight.iter().filter(|h| **h == slot).count();
            assert!((1_100..1_400).contains(&share), "slot {slot} has {share} of 10,000 keys");
        }
    }

    #[test]
    fn tombstones_are_dropped_counted_and_release_their_keys() {
        let mut s = Sched::new(2);
        let jobs: Vec<_> = (0..10).map(|i| job(i, 0, 0, (i % 2 == 0).then_some(7))).collect();
        for j in &jobs {
            s.push(j.clone());
            j.live.set(i64::from(j.id) % 3 != 0);
        }
        s.sweep();
        assert_eq!(s.take_dropped(), 4);
        assert_eq!(s.len(), 6);
        for j in &jobs {
            j.live.set(false);
        }
        for slot in 0..2 {
            assert!(order(&mut s, slot).is_empty());
        }
        assert_eq!((s.take_dropped(), s.len(), s.pins.len()), (6, 0, 0));
    }

    /// Random storms against a model that sorts: same order, nothing lost, nothing twice, keys in order on one slot.
    #[test]
    fn seeded_simulation_agrees_with_a_sorted_list() {
        for seed in 1..=300u64 {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = |n: u64| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x % n
            };
            let slots = 1 + random(4) as usize;
            let mut s = Sched::new(slots);
            let mut model: Vec<(Job, Option<usize>)> = Vec::new();
            let mut key_order: HashMap<u64, Vec<u32>> = HashMap::new();
            let mut now = 0;
            let mut taken = 0;
            let mut pushed = 0;
            let mut killed = 0;
            for id in 0..400 {
                now += random(30);
                match random(5) {
                    0..=2 => {
                        let key = (random(3) == 0).then(|| random(5));
                        // Keys keep the order of submission within a class only, so keyed jobs share one class.
                        let priority = if key.is_some() { 0 } else { (random(7) as i8) - 3 };
                        let j = job(id, priority, now, key);
                        let place = match s.push(j.clone()) {
                            Place::Anywhere => None,
                            Place::Slot(slot) => Some(slot),
                        };
                        model.push((j, place));
                        pushed += 1;
                    }
                    3 => {
                        let slot = random(slots as u64) as usize;
                        let score = |j: &Job| j.at_ns as i64 - i64::from(j.priority) * CLASS_NS;
                        let best = model
                            .iter()
                            .enumerate()
                            .filter(|(_, (_, place))| place.is_none_or(|p| p == slot))
                            // On a tie: free before keyed, then the higher class, then the older.
                            .min_by_key(|(i, (j, place))| (score(j), place.is_some(), -i32::from(j.priority), *i))
                            .map(|(i, _)| i);
                        let got = match s.take(slot) {
                            Take::Nothing => None,
                            Take::Free(j) => Some(j),
                            Take::Keyed(j) => {
                                s.key_done(j.key.expect("keyed"));
                                key_order.entry(j.key.expect("keyed")).or_default().push(j.id);
                                Some(j)
                            }
                        };
                        let want = best.map(|i| model.remove(i).0.id);
                        assert_eq!(got.map(|j| j.id), want, "seed {seed}, id {id}");
                        taken += u32::from(want.is_some());
                    }
                    _ if !model.is_empty() => {
                        let at = random(model.len() as u64) as usize;
                        model.remove(at).0.live.set(false);
                        killed += 1;
                        if random(4) == 0 {
                            s.sweep();
                        }
                    }
                    _ => {}
                }
            }
            let left: usize = (0..slots).map(|slot| order(&mut s, slot).len()).sum();
            assert_eq!((left, taken + killed + left as u32), (model.len(), pushed), "seed {seed}");
            assert!(s.pins.is_empty(), "seed {seed}");
            assert!(key_order.values().all(|ids| ids.is_sorted()), "seed {seed}");
        }
    }
}
