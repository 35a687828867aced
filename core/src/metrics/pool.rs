//! One pool's region: who writes what, and the sum of it.

use super::histogram::{Histogram, Totals, bucket_of};
use super::{Counter, Gauge};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sync::mapped::AtomicU64;
use crate::sys::fork::{self, ForkCell};
use crate::sys::{clock, words::Words};
use crate::wire::metrics::{HEADER_LEN, Header, MAX_SHARDS, REGION_NAME, SHARD_LEN, SUB_BITS, header_word, shard_word};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, Weak};

/// The pools of this process that have metrics. A forked child begins with none.
static LIVE: ForkCell<Mutex<Vec<Weak<PoolMetrics>>>> = ForkCell::new();

const SHARD_WORDS: usize = SHARD_LEN / 8;

/// Where a histogram lies in a shard.
#[derive(Clone, Copy)]
struct Series {
    sum: usize,
    buckets: usize,
}

const WAIT: Series = Series { sum: shard_word::WAIT, buckets: shard_word::WAIT_BUCKETS };
const RUN: Series = Series { sum: shard_word::RUN, buckets: shard_word::RUN_BUCKETS };

impl Series {
    const fn max(self) -> usize {
        self.sum + 1
    }

    const fn occupied(self) -> usize {
        self.sum + 2
    }

    /// For the shard's only writer.
    #[inline]
    fn record(self, shard: &[AtomicU64; SHARD_WORDS], ns: u64) {
        let bucket = bucket_of(ns);
        let group = 1 << (bucket >> SUB_BITS);
        let occupied = shard[self.occupied()].load(Ordering::Relaxed);
        if occupied & group == 0 {
            shard[self.occupied()].store(occupied | group, Ordering::Relaxed);
        }
        bump(&shard[self.buckets + bucket], 1);
        bump_ns(&shard[self.sum], ns);
        if ns > shard[self.max()].load(Ordering::Relaxed) {
            shard[self.max()].store(ns, Ordering::Relaxed);
        }
    }

    /// For a shard that several threads write.
    #[cold]
    fn record_shared(self, shard: &[AtomicU64; SHARD_WORDS], ns: u64) {
        let bucket = bucket_of(ns);
        shard[self.occupied()].fetch_or(1 << (bucket >> SUB_BITS), Ordering::Relaxed);
        bump_shared(&shard[self.buckets + bucket], 1);
        bump_shared(&shard[self.sum], ns);
        shard[self.max()].fetch_max(ns, Ordering::Relaxed);
    }

    fn add_to(self, shard: &[AtomicU64], totals: &mut Totals) {
        let mut groups = shard[self.occupied()].load(Ordering::Relaxed);
        while groups != 0 {
            let first = (groups.trailing_zeros() as usize) << SUB_BITS;
            groups &= groups - 1;
            // A foreign region may set bits of groups that do not exist.
            let Some(sums) = totals.buckets.get_mut(first..first + (1 << SUB_BITS)) else { break };
            for (sum, word) in sums.iter_mut().zip(&shard[self.buckets + first..]) {
                *sum = sum.saturating_add(word.load(Ordering::Relaxed));
            }
        }
        totals.sum_ns = totals.sum_ns.saturating_add(shard[self.sum].load(Ordering::Relaxed));
        totals.max_ns = totals.max_ns.max(shard[self.max()].load(Ordering::Relaxed));
    }
}

/// Adds as the word's only writer.
#[inline]
fn bump(word: &AtomicU64, n: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// As [`bump`], for nanoseconds, which a caller may give without bound.
#[inline]
fn bump_ns(word: &AtomicU64, ns: u64) {
    word.store(word.load(Ordering::Relaxed).saturating_add(ns), Ordering::Relaxed);
}

/// Adds with other writers around.
fn bump_shared(word: &AtomicU64, n: u64) {
    let (Ok(_) | Err(_)) = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |v| Some(v.saturating_add(n)));
}

/// What a pool has done and does, summed over its shards.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    pub(super) counters: [u64; Counter::COUNT],
    pub(super) gauges: [u64; Gauge::COUNT],
    pub(super) busy_ns: u64,
    pub(super) wait: Totals,
    pub(super) run: Totals,
}

impl Sums {
    pub(super) fn new() -> Sums {
        Sums { counters: [0; Counter::COUNT], gauges: [0; Gauge::COUNT], busy_ns: 0, wait: Totals::new(), run: Totals::new() }
    }

    /// Sums a region whose shape was checked: `header` describes it and it has room for all that `header` says.
    pub(super) fn of_region(words: &[AtomicU64], header_len: usize, shard_len: usize, used: usize) -> Sums {
        let mut sums = Sums::new();
        for (gauge, word) in sums.gauges.iter_mut().zip(&words[header_word::GAUGES..]) {
            *gauge = word.load(Ordering::Relaxed);
        }
        for shard in words[header_len / 8..].chunks_exact(shard_len / 8).take(used) {
            for (sum, word) in sums.counters.iter_mut().zip(&shard[shard_word::COUNTERS..]) {
                *sum = sum.saturating_add(word.load(Ordering::Relaxed));
            }
            sums.busy_ns = sums.busy_ns.saturating_add(shard[shard_word::BUSY].load(Ordering::Relaxed));
            WAIT.add_to(shard, &mut sums.wait);
            RUN.add_to(shard, &mut sums.run);
        }
        sums
    }

    pub(super) fn merge(&mut self, other: &Sums) {
        for (mine, theirs) in self.counters.iter_mut().zip(&other.counters) {
            *mine = mine.saturating_add(*theirs);
        }
        for (mine, theirs) in self.gauges.iter_mut().zip(&other.gauges) {
            *mine = mine.saturating_add(*theirs);
        }
        self.busy_ns = self.busy_ns.saturating_add(other.busy_ns);
        self.wait.merge(&other.wait);
        self.run.merge(&other.run);
    }

    pub(super) fn snapshot(&self, age_ns: u64) -> Snapshot {
        Snapshot {
            counters: self.counters,
            gauges: self.gauges,
            busy_ns: self.busy_ns,
            age_ns,
            wait: self.wait.histogram(),
            run: self.run.histogram(),
        }
    }
}

/// The numbers of one pool at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// By [`Counter`].
    pub counters: [u64; Counter::COUNT],
    /// By [`Gauge`].
    pub gauges: [u64; Gauge::COUNT],
    /// Nanoseconds that workers spent in tasks, all workers together.
    pub busy_ns: u64,
    /// Nanoseconds since the pool was made.
    pub age_ns: u64,
    /// From submission to start.
    pub wait: Histogram,
    /// From start to outcome.
    pub run: Histogram,
}

impl Snapshot {
    /// One counter.
    #[must_use]
    pub fn get(&self, c: Counter) -> u64 {
        self.counters[c as usize]
    }

    /// One gauge.
    #[must_use]
    pub fn gauge(&self, g: Gauge) -> u64 {
        self.gauges[g as usize]
    }
}

/// The metrics of one pool. In a forked child of the process that made it, nothing is recorded any more.
#[derive(Debug)]
pub struct PoolMetrics {
    words: Words,
    shards: usize,
    /// Shards that have a live [`Writer`].
    taken: Box<[AtomicBool]>,
    epoch: u64,
    created_ns: u64,
    kind: &'static str,
    name: String,
}

impl PoolMetrics {
    /// Metrics of a new pool with room for `writers` single-writer shards (at most 4096; a writer beyond shares one).
    ///
    /// Lists it for [`super::export`] while it is alive. Without a free fd or address space it uses memory that other
    /// processes cannot see.
    #[must_use]
    pub fn create(kind: &'static str, name: &str, writers: usize) -> Arc<PoolMetrics> {
        let epoch = fork::epoch();
        let shards = writers.saturating_add(1).clamp(1, MAX_SHARDS);
        let bytes = |shards: usize| HEADER_LEN + shards * SHARD_LEN;
        let (words, shards) = match Words::memfd(REGION_NAME, bytes(shards)).or_else(|_| Words::private(bytes(shards))) {
            Ok(words) => (words, shards),
            Err(_) => (Words::heap(bytes(1)), 1),
        };
        let created_ns = clock::monotonic_ns();
        let mut header = Header::new(shards, Counter::COUNT, Gauge::COUNT, kind, name);
        header.pid = std::process::id();
        header.created_unix_ns = clock::unix_ns();
        header.created_mono_ns = created_ns;
        let bytes = header.encode();
        let mut fields = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).zip(words.as_slice());
        let magic = fields.next();
        fields.for_each(|(value, word)| word.store(value, Ordering::Relaxed));
        if let Some((value, word)) = magic {
            // Completes the region. Pairs with the Acquire load in `Reader::attach`.
            word.store(value, Ordering::Release);
        }
        let taken = (0..shards).map(|_| AtomicBool::new(false)).collect();
        let metrics = Arc::new(PoolMetrics { words, shards, taken, epoch, created_ns, kind, name: name.to_owned() });
        let mut live = lock(LIVE.get(Mutex::default));
        live.retain(|m| m.strong_count() > 0);
        live.push(Arc::downgrade(&metrics));
        metrics
    }

    /// Every pool of this process that is alive, oldest first.
    pub(super) fn live() -> Vec<Arc<PoolMetrics>> {
        // Upgraded under the lock, dropped by the caller: the last owner's drop must not run under it.
        LIVE.peek().map(|live| lock(live).iter().filter_map(Weak::upgrade).collect()).unwrap_or_default()
    }

    /// The pool's kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The region's memfd; `None` when other processes cannot see it.
    #[must_use]
    pub fn fd(&self) -> Option<std::os::fd::RawFd> {
        self.words.fd()
    }

    /// The region belongs to a parent of this process, which still counts in it.
    #[inline]
    fn is_forked(&self) -> bool {
        !fork::is_current(self.epoch)
    }

    #[inline]
    fn shard(&self, shard: usize) -> &[AtomicU64; SHARD_WORDS] {
        let from = HEADER_LEN / 8 + shard * SHARD_WORDS;
        self.words.as_slice()[from..from + SHARD_WORDS].try_into().expect("the slice has this length")
    }

    /// Adds `n` to a counter, from any thread.
    #[inline]
    pub fn add(&self, c: Counter, n: u64) {
        if !self.is_forked() {
            self.shard(0)[shard_word::COUNTERS + c as usize].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Sets a gauge, from any thread.
    pub fn set(&self, g: Gauge, v: u64) {
        if !self.is_forked() {
            self.words.as_slice()[header_word::GAUGES + g as usize].store(v, Ordering::Relaxed);
        }
    }

    /// The writer of a slot. While an earlier writer of the slot lives, or when the region has no shard for the slot,
    /// the result counts in the common shard, which costs more per call and loses nothing.
    #[must_use]
    pub fn writer(self: &Arc<Self>, slot: usize) -> Writer {
        let shard = slot.saturating_add(1);
        // Acquire: this thread continues the counts of the slot's previous writer. Pairs with Release in `Writer::drop`.
        let own = !self.is_forked() && self.taken.get(shard).is_some_and(|t| !t.swap(true, Ordering::Acquire));
        if own {
            // The number of shards is the low half and never changes, so the larger word is the one with more in use.
            let used = (shard as u64 + 1) << 32 | self.shards as u64;
            self.words.as_slice()[header_word::SHARDS_USED].fetch_max(used, Ordering::Relaxed);
        }
        Writer { metrics: Arc::clone(self), shard: if own { shard } else { 0 }, _one_thread: PhantomData }
    }

    pub(super) fn sums(&self) -> Sums {
        let used = (self.words.as_slice()[header_word::SHARDS_USED].load(Ordering::Relaxed) >> 32) as usize;
        Sums::of_region(self.words.as_slice(), HEADER_LEN, SHARD_LEN, used)
    }

    /// The pool's numbers now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.sums().snapshot(self.age_ns())
    }

    /// The numbers of this pool and of `other` together, their percentiles too; the age is that of the older one.
    #[must_use]
    pub fn snapshot_with(&self, other: &PoolMetrics) -> Snapshot {
        let mut sums = self.sums();
        sums.merge(&other.sums());
        sums.snapshot(self.age_ns().max(other.age_ns()))
    }

    pub(super) fn age_ns(&self) -> u64 {
        clock::monotonic_ns().saturating_sub(self.created_ns)
    }
}

/// Records what one worker does; belongs to one thread at a time. The counts stay when it is dropped.
#[derive(Debug)]
pub struct Writer {
    metrics: Arc<PoolMetrics>,
    /// 0: the common shard, with other writers.
    shard: usize,
    /// Two threads that share a writer would lose counts.
    _one_thread: PhantomData<Cell<()>>,
}

impl Writer {
    #[inline]
    fn record(&self, series: Series, ns: u64) {
        if self.metrics.is_forked() {
            return;
        }
        let shard = self.metrics.shard(self.shard);
        if self.shard == 0 { series.record_shared(shard, ns) } else { series.record(shard, ns) }
    }

    /// Adds `n` to a counter.
    #[inline]
    pub fn count(&self, c: Counter, n: u64) {
        if self.metrics.is_forked() {
            return;
        }
        let word = &self.metrics.shard(self.shard)[shard_word::COUNTERS + c as usize];
        if self.shard == 0 { bump_shared(word, n) } else { bump(word, n) }
    }

    /// Records the time from a task's submission to its start.
    #[inline]
    pub fn wait(&self, ns: u64) {
        self.record(WAIT, ns);
    }

    /// Records the time from a task's start to its outcome.
    #[inline]
    pub fn run(&self, ns: u64) {
        self.record(RUN, ns);
    }

    /// Adds to the time that the worker spent in tasks.
    #[inline]
    pub fn busy(&self, ns: u64) {
        if self.metrics.is_forked() {
            return;
        }
        let word = &self.metrics.shard(self.shard)[shard_word::BUSY];
        if self.shard == 0 { bump_shared(word, ns) } else { bump_ns(word, ns) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.shard != 0 {
            self.metrics.taken[self.shard].store(false, Ordering::Release);
        }
    }
}
