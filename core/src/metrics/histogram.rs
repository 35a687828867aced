//! Log-linear histograms of nanoseconds.
//!
//! The idea is HdrHistogram's (Gil Tene, <https://hdrhistogram.github.io/HdrHistogram/>): each power of two is cut into
//! the same number of equal buckets, so that the relative width of a bucket is bounded and the bucket of a value is two
//! shifts away. Here 32 buckets per power of two: a bucket is at most 1/32 (3.1 %) wide, and its middle, which stands
//! for its values, is at most 1.6 % off. Values below 32 ns have a bucket each; values from 2^47 ns (39 h) share the
//! last one. Count, sum and maximum are exact.

use crate::wire::metrics::{BUCKETS, GROUPS, SUB_BITS};

const SUB: usize = 1 << SUB_BITS;

/// The bucket of a duration.
#[inline]
#[must_use]
pub const fn bucket_of(ns: u64) -> usize {
    if ns < SUB as u64 {
        return ns as usize;
    }
    let exponent = 63 - ns.leading_zeros();
    let group = (exponent - SUB_BITS + 1) as usize;
    if group >= GROUPS {
        return BUCKETS - 1;
    }
    (group << SUB_BITS) | ((ns >> (exponent - SUB_BITS)) as usize & (SUB - 1))
}

/// The smallest and the largest duration of a bucket.
#[must_use]
pub const fn bucket_range(bucket: usize) -> (u64, u64) {
    let (group, sub) = (bucket >> SUB_BITS, (bucket & (SUB - 1)) as u64);
    if group == 0 {
        return (sub, sub);
    }
    let shift = group as u32 - 1;
    let low = (SUB as u64 + sub) << shift;
    if bucket >= BUCKETS - 1 { (low, u64::MAX) } else { (low, low + (1 << shift) - 1) }
}

/// A distribution of durations, in nanoseconds. All zero when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Durations recorded.
    pub count: u64,
    /// Their mean.
    pub mean_ns: f64,
    /// Half of them are at most this long (within 1.6 %).
    pub p50_ns: u64,
    /// 90 % of them are at most this long (within 1.6 %).
    pub p90_ns: u64,
    /// 99 % of them are at most this long (within 1.6 %).
    pub p99_ns: u64,
    /// The longest, exactly.
    pub max_ns: u64,
}

/// The summed buckets of several shards, or what one thread records for itself.
#[derive(Clone, Debug)]
pub struct Totals {
    pub(super) buckets: Box<[u64]>,
    pub(super) sum_ns: u64,
    pub(super) max_ns: u64,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals::new()
    }
}

impl Totals {
    /// Without any duration.
    #[must_use]
    pub fn new() -> Totals {
        Totals { buckets: vec![0; BUCKETS].into_boxed_slice(), sum_ns: 0, max_ns: 0 }
    }

    /// Adds a duration.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.buckets[bucket_of(ns)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Forgets every duration.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        (self.sum_ns, self.max_ns) = (0, 0);
    }

    /// Adds those of another one.
    pub fn merge(&mut self, other: &Totals) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |n, b| n.saturating_add(*b))
    }

    /// How many durations lie below `ns`, which is the low end of a bucket.
    pub(super) fn count_below(&self, ns: u64) -> u64 {
        self.buckets[..bucket_of(ns)].iter().fold(0, |n, b| n.saturating_add(*b))
    }

    /// The longest duration. A bucket may be seen before the maximum that its writer stores next.
    fn max(&self) -> u64 {
        let seen = self.buckets.iter().rposition(|n| *n > 0).map_or(0, |b| bucket_range(b).0);
        self.max_ns.max(seen)
    }

    /// The duration of rank `ceil(q * count)`, counted from the shortest.
    fn quantile(&self, q: f64, count: u64, max: u64) -> u64 {
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count.max(1));
        if rank >= count {
            return max;
        }
        let mut below = 0u64;
        for (bucket, n) in self.buckets.iter().enumerate() {
            below = below.saturating_add(*n);
            if below >= rank {
                let (low, high) = bucket_range(bucket);
                // The last bucket has no middle.
                return if bucket == BUCKETS - 1 { max } else { (low + (high - low) / 2).min(max) };
            }
        }
        max
    }

    /// Count, mean, quantiles and maximum.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        let count = self.count();
        if count == 0 {
            return Histogram::default();
        }
        let max_ns = self.max();
        Histogram {
            count,
            mean_ns: (self.sum_ns as f64 / count as f64).min(max_ns as f64),
            p50_ns: self.quantile(0.5, count, max_ns),
            p90_ns: self.quantile(0.9, count, max_ns),
            p99_ns: self.quantile(0.99, count, max_ns),
            max_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator for tests: splitmix64 (Steele, Lea, Flood 2014).
    fn random(seed: u64) -> impl FnMut() -> u64 {
        let mut x = seed;
        move || {
            x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    fn totals(values: &[u64]) -> Totals {
        let mut t = Totals::new();
        values.iter().for_each(|v| t.record(*v));
        t
    }

    #[test]
    fn buckets_tile_all_durations_without_gap_or_overlap() {
        assert_eq!(bucket_range(0), (0, 0));
        for b in 1..BUCKETS {
            assert_eq!(bucket_range(b).0, bucket_range(b - 1).1 + 1, "bucket {b}");
        }
        assert_eq!(bucket_range(BUCKETS - 1).1, u64::MAX);
        for b in 0..BUCKETS {
            let (low, high) = bucket_range(b);
            assert_eq!((bucket_of(low), bucket_of(high)), (b, b));
        }
    }

    #[test]
    fn every_duration_lies_in_its_bucket_which_is_narrow() {
        let mut next = random(7);
        for _ in 0..200_000 {
            let v = next() >> (next() % 64);
            let b = bucket_of(v);
            let (low, high) = bucket_range(b);
            assert!(low <= v && v <= high, "{v} in {low}..={high}");
            if b < BUCKETS - 1 {
                assert!((high - low) as f64 <= low as f64 / 32.0, "{low}..={high}");
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_of(1 << 47), BUCKETS - 1);
        assert_eq!(bucket_range(BUCKETS - 1).0, 63 << 41);
    }

    #[test]
    fn quantiles_agree_with_a_sorted_list() {
        let mut next = random(42);
        for shape in 0..4 {
            for n in [1usize, 2, 3, 10, 99, 100, 101, 10_000] {
                let mut values: Vec<u64> = (0..n)
                    .map(|i| match shape {
                        0 => next() % 1_000,
                        1 => next() % 10_000_000,
                        2 => next() >> (18 + next() % 40),
                        _ => 5_000 + i as u64,
                    })
                    .collect();
                let h = totals(&values).histogram();
                values.sort_unstable();
                let exact = |q: f64| values[((q * n as f64).ceil() as usize).clamp(1, n) - 1];
                for (q, got) in [(0.5, h.p50_ns), (0.9, h.p90_ns), (0.99, h.p99_ns)] {
                    let want = exact(q);
                    assert!(got.abs_diff(want) as f64 <= want as f64 / 64.0 + 1.0, "shape {shape} n {n} q {q}: {got} for {want}");
                }
                assert_eq!(h.max_ns, values[n - 1]);
                assert_eq!(h.count, n as u64);
                let mean = values.iter().sum::<u64>() as f64 / n as f64;
                assert!((h.mean_ns - mean).abs() <= mean * 1e-9);
                assert!(h.p50_ns <= h.p90_ns && h.p90_ns <= h.p99_ns && h.p99_ns <= h.max_ns);
            }
        }
    }

    #[test]
    fn zero_and_huge_durations_are_kept() {
        let h = totals(&[0]).histogram();
        assert_eq!((h.count, h.p50_ns, h.max_ns), (1, 0, 0));
        let h = totals(&[0, u64::MAX, u64::MAX]).histogram();
        assert_eq!((h.count, h.p99_ns, h.max_ns), (3, u64::MAX, u64::MAX));
        assert_eq!(Totals::new().histogram(), Histogram::default());
    }

    #[test]
    fn counts_below_a_power_of_two_exactly() {
        let t = totals(&[0, 1023, 1024, 1025, 4095, 4096, 1 << 40]);
        assert_eq!(t.count_below(1024), 2);
        assert_eq!(t.count_below(4096), 5);
        assert_eq!(t.count_below(1 << 41), 7);
    }
}
