//! When a slot is started again, and when too many have failed. Pure: times are nanoseconds of the caller's clock.

use std::collections::VecDeque;

/// Numbers by seed: xorshift64*.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        // 0 is the one state that it never leaves.
        Random(seed.max(1))
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % n
    }
}

/// Jitter of a delay in both directions, in percent.
pub(super) const JITTER: u64 = 20;

/// How long a slot rests after a failure: not at all, then `first`, then twice as long each time up to `cap`, each ±[`JITTER`] %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delays {
    pub(super) first: u64,
    pub(super) cap: u64,
    /// Who worked for so long begins anew.
    pub(super) stable: u64,
}

/// Failures of one slot since it was last stable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// A worker of the slot ended that had been ready for `uptime`, `None`: never. Returns how long the slot rests.
    pub(super) fn failed(&mut self, uptime: Option<u64>, delays: &Delays, random: &mut Random) -> u64 {
        if uptime.is_some_and(|u| u >= delays.stable) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let Some(doublings) = self.failures.checked_sub(2) else { return 0 };
        let whole = delays.first.checked_shl(doublings).filter(|d| d >> doublings == delays.first);
        let base = whole.unwrap_or(u64::MAX).min(delays.cap);
        // In hundredths, so that no product overflows.
        (base - base / 100 * JITTER).saturating_add(random.below(base / 100 * 2 * JITTER + 1))
    }
}

/// Unstable exits of all slots in a sliding window.
#[derive(Clone, Debug, Default)]
pub(super) struct Intensity {
    at: VecDeque<u64>,
}

impl Intensity {
    /// Adds one, and forgets those that the `window` has left.
    pub(super) fn add(&mut self, now: u64, window: u64) {
        while self.at.front().is_some_and(|at| now.saturating_sub(*at) >= window) {
            self.at.pop_front();
        }
        self.at.push_back(now);
    }

    /// One of that time was none.
    pub(super) fn remove(&mut self, at: u64) {
        if let Some(i) = self.at.iter().rposition(|t| *t == at) {
            self.at.remove(i);
        }
    }

    pub(super) fn clear(&mut self) {
        self.at.clear();
    }

    /// More than `limit` in the `window` that ends now.
    pub(super) fn exceeds(&self, now: u64, limit: usize, window: u64) -> bool {
        self.at.iter().filter(|t| now.saturating_sub(**t) < window).count() > limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const DELAYS: Delays = Delays { first: 100 * MS, cap: 30_000 * MS, stable: 30_000 * MS };

    /// The middle of the jitter's range, for each of the failures.
    const BASES: [u64; 13] = [0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000];

    #[test]
    fn a_slot_rests_not_at_all_and_then_twice_as_long_each_time_up_to_the_cap() {
        for seed in 0..500 {
            let (mut back_off, mut random) = (BackOff::default(), Random::new(seed));
            for base in BASES.map(|ms| ms * MS) {
                let delay = back_off.failed(None, &DELAYS, &mut random);
                assert!((base / 100 * 80..=base / 100 * 120).contains(&delay), "seed {seed}: {delay} for {base}");
            }
        }
    }

    #[test]
    fn the_sequence_of_a_seed_is_exact() {
        let (mut back_off, mut random) = (BackOff::default(), Random::new(7));
        let delays: Vec<u64> = (0..8).map(|_| back_off.failed(None, &DELAYS, &mut random)).collect();
        assert_eq!(delays, [0, 86_876_904, 171_741_324, 437_410_848, 858_373_210, 1_658_884_687, 3_425_013_497, 6_531_875_962]);
    }

    #[test]
    fn jitter_reaches_both_ends() {
        let mut random = Random::new(3);
        let of = |random: &mut Random| {
            let mut back_off = BackOff { failures: 1 };
            back_off.failed(None, &DELAYS, random)
        };
        let seen: Vec<u64> = (0..2000).map(|_| of(&mut random)).collect();
        assert!(seen.iter().any(|d| *d < 81 * MS) && seen.iter().any(|d| *d > 119 * MS));
    }

    #[test]
    fn who_was_stable_begins_anew_and_who_was_not_goes_on() {
        let mut random = Random::new(1);
        let mut back_off = BackOff { failures: 7 };
        assert!(back_off.failed(Some(DELAYS.stable - 1), &DELAYS, &mut random) > 5000 * MS);
        assert_eq!(back_off.failed(Some(DELAYS.stable), &DELAYS, &mut random), 0);
        assert_eq!(back_off, BackOff { failures: 1 });
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut random = Random::new(1);
        for (first, cap) in [(1, u64::MAX), (u64::MAX, u64::MAX / 2), (3, 7)] {
            let delays = Delays { first, cap, stable: 1 };
            for failures in (0..200).chain([u32::MAX - 1, u32::MAX]) {
                let delay = BackOff { failures }.failed(None, &delays, &mut random);
                assert!(delay <= cap.saturating_add(cap / 5), "{first} {failures}: {delay}");
            }
        }
    }

    #[test]
    fn the_window_slides() {
        let mut seen = Intensity::default();
        for at in 0..6 {
            assert!(!seen.exceeds(at, 5, 60));
            seen.add(at, 60);
        }
        assert!(seen.exceeds(59, 5, 60), "six within sixty");
        assert!(!seen.exceeds(60, 5, 60), "the first is over");
        seen.remove(3);
        assert!(!seen.exceeds(59, 5, 60), "one was none");
        seen.remove(999);
        seen.add(59, 60);
        assert!(seen.exceeds(59, 5, 60));
        seen.add(62, 60);
        assert_eq!(seen.at, [4, 5, 59, 62], "what is over is forgotten");
        seen.clear();
        assert!(!seen.exceeds(59, 5, 60));
    }
}
