//! The scheduler: which task next, on which slot. Pure: no clock, thread, fd or lock; `now` is a parameter.
//!
//! * **Priority with ageing.** A task of class `p` that was submitted at `t` competes with the score `t − p · 100 ms`; the
//!   smallest score goes first. So a higher class goes first, a waiting task gains one class per 100 ms, and nothing
//!   starves. Within a class the order is first in, first out, so only the heads of the classes are compared.
//! * **Keys.** A key is pinned to one slot while any of its tasks is queued or running there; a new key gets its slot by
//!   rendezvous hashing (Thaler and Ravishankar, 1996), so that a resize moves few keys.
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

    fn push(&mut self, item: T) {
        if self.classes.is_empty() {
            self.classes.resize_with(256, VecDeque::new);
        }
        let class = (i16::from(item.priority()) + 128) as usize;
        self.bits[class / 64] |= 1 << (class % 64);
        self.classes[class].push_back(item);
        self.len += 1;
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
    /// A task with a key; [`Sched::key_done`] must follow.
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

    pub(crate) fn push(&mut self, item: T) -> Place {
        let Some(key) = item.key() else {
            self.free.push(item);
            return Place::Anywhere;
        };
        let home = self.home(key);
        let pin = self.pins.entry(key).or_insert(Pin { slot: home, tasks: 0 });
        pin.tasks += 1;
        let slot = pin.slot;
        if self.keyed.len() <= slot {
            self.keyed.resize_with(slot + 1, ReadyQueue::new);
        }
        self.keyed[slot].push(item);
        Place::Slot(slot)
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
