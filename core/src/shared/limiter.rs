//! Token buckets that processes take from together, one per key.
//!
//! The generic cell rate algorithm (ITU-T I.371): a bucket is one number, the time at which it is full again. To take tokens moves that time on; tokens that would move it further
//! than the whole bucket ahead of now are refused. So a bucket is one word, which a compare-and-swap changes, a bucket that is full is the same as none, and nothing has to refill it.

use super::{no_memory_of_ours, word};
use crate::error::{Error, Result};
use crate::sync::mapped::{AtomicU64, Ordering};
use crate::sys::{clock, mem};
use crate::wire::shared::{BURST_KEYS, HEAD_LEN, INTERVAL, LIMITER_MAGIC, SECRET, TIME_BITS, UNITS, WAYS};
use memmap2::MmapRaw;
use std::fmt;
use std::hash::Hasher;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

const TIME: u64 = (1 << TIME_BITS) - 1;
/// Most tokens of a bucket: with [`MAX_UNITS`] less than half of what a word's time can tell apart.
const MAX_BURST: u32 = 1 << 20;
const MAX_UNITS: u64 = 1 << 20;
const KEYS: std::ops::RangeInclusive<u32> = 8..=1 << 24;
/// Tokens per second: one in eleven days to a million.
const RATE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// What a [`RateLimiter`] lets through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Tokens per second that come back: 0.000001 to 1,000,000. Default: 1.
    pub rate: f64,
    /// Tokens of a full bucket: 1 to 1,048,576. Default: 1.
    pub burst: u32,
    /// Keys whose buckets are known at a time: 8 to 16,777,216, of 8 bytes each; rounded up to a power of two. Default: 16,384. A key's bucket is among 8; where all 8 are in use, the one that is
    /// nearest to full is forgotten, and its key begins with a full one. Two keys have one bucket together with a probability of less than one in 250,000.
    pub keys: u32,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { rate: 1.0, burst: 1, keys: 16_384 }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate {} burst {} keys {}", self.rate, self.burst, self.keys)
    }
}

impl Limit {
    /// With a bucket for one second's tokens, one at least.
    #[must_use]
    pub fn per_second(rate: f64) -> Limit {
        Limit { rate, burst: (rate.ceil() as u32).clamp(1, MAX_BURST), ..Limit::default() }
    }

    /// Checks each field.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        let wrong = |option: &'static str, value: String, min: String, max: String| {
            Err(Error::invalid("option is out of range").with("option", option).with("value", value).with("min", min).with("max", max))
        };
        if !RATE.contains(&self.rate) {
            return wrong("rate", self.rate.to_string(), RATE.start().to_string(), RATE.end().to_string());
        }
        if !(1..=MAX_BURST).contains(&self.burst) {
            return wrong("burst", self.burst.to_string(), 1.to_string(), MAX_BURST.to_string());
        }
        if !KEYS.contains(&self.keys) {
            return wrong("keys", self.keys.to_string(), KEYS.start().to_string(), KEYS.end().to_string());
        }
        Ok(())
    }

    fn interval(&self) -> u64 {
        (1e9 / self.rate).round() as u64
    }
}

/// What became of a [`RateLimiter::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The tokens were there.
    pub allowed: bool,
    /// Whole tokens that are there now.
    pub remaining: u32,
    /// When not: until as many are there, if nobody else takes some. Else zero.
    pub retry_after: Duration,
}

/// Token buckets in mapped memory. Copies of the handle are the same limiter.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Table>);

#[derive(Debug)]
struct Table {
    map: MmapRaw,
    /// ns per token.
    interval: u64,
    /// Units of time per token.
    units: u64,
    burst: u32,
    sets: u64,
    secret: [u64; 2],
}

impl RateLimiter {
    pub(super) fn create(limit: Limit) -> Result<OwnedFd> {
        let keys = limit.keys.next_power_of_two();
        let (fd, map) = mem::create_sealed(c"offloop-limiter", HEAD_LEN + keys as usize * 8)?;
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(|e| Error::os("getrandom", e.raw_os_error().unwrap_or(0)))?;
        let interval = limit.interval();
        // A unit is a 64th of a token, or a millisecond where that is less.
        let units = (interval / 1_000_000).clamp(64, MAX_UNITS);
        let half = |at: usize| u64::from_le_bytes(secret[at..at + 8].try_into().expect("8 bytes"));
        let head = [
            (0, LIMITER_MAGIC),
            (INTERVAL, interval),
            (UNITS, units),
            (BURST_KEYS, u64::from(limit.burst) | u64::from(keys) << 32),
            (SECRET, half(0)),
            (SECRET + 8, half(8)),
        ];
        for (at, value) in head {
            // Nobody else has it yet.
            word(&map, at).store(value.to_le(), Ordering::Relaxed);
        }
        Ok(fd)
    }

    /// That of a memfd which a ledger gave.
    pub(crate) fn attach(fd: BorrowedFd<'_>) -> Result<RateLimiter> {
        let (_, map, len) = mem::attach_sealed(fd)?;
        let wrong = || no_memory_of_ours("memfd is not a rate limiter", len);
        if len < HEAD_LEN {
            return Err(wrong());
        }
        let read = |at| u64::from_le(word(&map, at).load(Ordering::Relaxed));
        let (magic, interval, units, both) = (read(0), read(INTERVAL), read(UNITS), read(BURST_KEYS));
        let secret = [read(SECRET), read(SECRET + 8)];
        let (burst, keys) = (both as u32, (both >> 32) as u32);
        let sound = magic == LIMITER_MAGIC && interval > 0 && (1..=MAX_UNITS).contains(&units) && (1..=MAX_BURST).contains(&burst);
        if !sound || !keys.is_power_of_two() || !KEYS.contains(&keys) || len != HEAD_LEN + keys as usize * 8 {
            return Err(wrong());
        }
        Ok(RateLimiter(Arc::new(Table { map, interval, units, burst, sets: u64::from(keys) / WAYS as u64, secret })))
    }

    /// Takes `cost` tokens from the bucket of `key`, all or none; 0 looks only.
    ///
    /// # Errors
    /// `Invalid` for a cost above the burst, which would never be there.
    pub fn take(&self, key: &[u8], cost: u32) -> Result<Taken> {
        self.0.take(clock::monotonic_ns(), key, cost)
    }
}

impl Table {
    /// The 8 words that a key may have, and its tag, in place.
    fn place(&self, key: &[u8]) -> (usize, u64) {
        // Its algorithm is part of its name, unlike that of `DefaultHasher`: processes with other builds find the same word.
        #[expect(deprecated, reason = "std has no other hasher whose algorithm is documented")]
        let mut hash = std::hash::SipHasher::new_with_keys(self.secret[0], self.secret[1]);
        hash.write(key);
        let hash = hash.finish();
        // 21 bits and one that is always set: a word in use is not 0.
        ((hash % self.sets) as usize, (hash | 1 << 63) & !TIME)
    }

    fn word(&self, set: usize, way: usize) -> &AtomicU64 {
        word(&self.map, HEAD_LEN + (set * WAYS + way) * 8)
    }

    fn take(&self, now: u64, key: &[u8], cost: u32) -> Result<Taken> {
        if cost > self.burst {
            let e = Error::invalid("cost is above the burst: so many tokens are never there").with("cost", cost);
            return Err(e.with("burst", self.burst));
        }
        let now = (u128::from(now) * u128::from(self.units) / u128::from(self.interval)) as u64;
        let (full, wanted) = (u64::from(self.burst) * self.units, u64::from(cost) * self.units);
        let (set, tag) = self.place(key);
        loop {
            // What is further ahead than a bucket can be is long past, or nobody's.
            let ahead = |word: u64| {
                let ahead = u64::from_le(word).wrapping_sub(now) & TIME;
                if word == 0 || ahead > full { 0 } else { ahead }
            };
            let words: [u64; WAYS] = std::array::from_fn(|way| self.word(set, way).load(Ordering::Relaxed));
            let own = words.iter().position(|word| u64::from_le(*word) & !TIME == tag);
            // Two who come with a new key at once may both find a word for it: then it has two buckets until the later one is full.
            let way = own.unwrap_or_else(|| (0..WAYS).min_by_key(|way| ahead(words[*way])).unwrap_or(0));
            let before = own.map_or(0, |way| ahead(words[way]));
            let after = before + wanted;
            let taken = |allowed, ahead: u64, short: u64| Taken {
                allowed,
                remaining: ((full - ahead) / self.units) as u32,
                retry_after: Duration::from_nanos((u128::from(short) * u128::from(self.interval)).div_ceil(u128::from(self.units)) as u64),
            };
            if after > full {
                return Ok(taken(false, before, after - full));
            }
            let new = (tag | now.wrapping_add(after) & TIME).to_le();
            if cost == 0 || self.word(set, way).compare_exchange(words[way], new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Ok(taken(true, after, 0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::os::fd::AsFd;

    const SECOND: u64 = 1_000_000_000;

    fn limiter(rate: f64, burst: u32, keys: u32) -> RateLimiter {
        let limit = Limit { rate, burst, keys };
        limit.check().expect("valid");
        RateLimiter::attach(RateLimiter::create(limit).expect("memfd").as_fd()).expect("attach")
    }

    #[test]
    fn a_bucket_empties_and_comes_back() {
        let l = limiter(10.0, 3, 64).0;
        let take = |now, cost| l.take(now, b"key", cost).expect("taken");
        let now = 1_000 * SECOND;
        assert_eq!(take(now, 0), Taken { allowed: true, remaining: 3, retry_after: Duration::ZERO });
        assert_eq!(take(now, 2), Taken { allowed: true, remaining: 1, retry_after: Duration::ZERO });
        assert_eq!(take(now, 2), Taken { allowed: false, remaining: 1, retry_after: Duration::from_millis(100) });
        assert_eq!(take(now, 1), Taken { allowed: true, remaining: 0, retry_after: Duration::ZERO });
        assert!(l.take(now, b"other", 3).expect("taken").allowed, "each key has a bucket");
        assert!(!take(now + SECOND / 10 - SECOND / 500, 1).allowed);
        assert!(take(now + SECOND / 10, 1).allowed);
        assert_eq!(take(now + 3600 * SECOND, 3), Taken { allowed: true, remaining: 0, retry_after: Duration::ZERO });
        let e = l.take(now, b"key", 4).expect_err("never").to_string();
        assert!(e.contains("cost=4") && e.contains("burst=3"), "{e}");
    }

    #[test]
    fn it_lets_through_what_a_bucket_with_a_level_does() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 11) % below
        };
        for (rate, burst) in [(0.01, 1), (0.5, 3), (3.0, 7), (1_000.0, 50), (1e6, 1_000)] {
            let l = limiter(rate, burst, 8).0;
            let (mut now, mut level, mut allowed) = (u64::MAX / 3, f64::from(burst), 0_u64);
            let unit = 1.0 / l.units as f64;
            for _ in 0..10_000 {
                let pause = next((2e9 / rate) as u64);
                now += pause;
                level = (level + pause as f64 * rate / 1e9).min(f64::from(burst));
                let cost = 1 + next(u64::from(burst.min(4))) as u32;
                let taken = l.take(now, b"k", cost).expect("taken");
                // Within what a unit of time rounds off.
                let doubt = (level - f64::from(cost)).abs() < 2.0 * unit;
                assert!(doubt || taken.allowed == (level >= f64::from(cost)), "rate {rate}: {level} of {cost}, {taken:?}");
                if taken.allowed {
                    level = (level - f64::from(cost)).max(0.0);
                    allowed += u64::from(cost);
                }
                // What was rounded does not add up.
                assert!((f64::from(taken.remaining) - level).abs() < 1.0 + 2.0 * unit, "rate {rate}: {level}, {taken:?}");
            }
            assert!(allowed > 5_000, "{allowed}");
        }
    }

    #[test]
    fn who_is_told_to_wait_gets_it_then() {
        for rate in [1e-6, 0.3, 7.0, 12_345.0, 1e6] {
            let l = limiter(rate, 2, 8).0;
            let now = 77 * SECOND;
            assert!(l.take(now, b"", 2).expect("taken").allowed);
            let wait = l.take(now, b"", 1).expect("refused").retry_after;
            assert!(l.take(now + wait.as_nanos() as u64 + l.interval / l.units, b"", 1).expect("taken").allowed, "{rate}: {wait:?}");
        }
    }

    #[test]
    fn many_take_no_more_than_there_is() {
        let l = limiter(1e-6, 10_000, 64);
        let allowed: u32 = std::thread::scope(|threads| {
            let takers: Vec<_> = (0..4)
                .map(|_| threads.spawn(|| (0..5_000).filter(|_| l.take(b"one key", 1).expect("taken").allowed).count() as u32))
                .collect();
            takers.into_iter().map(|taker| taker.join().expect("no panic")).sum()
        });
        assert_eq!(allowed, 10_000);
    }

    #[test]
    fn keys_beyond_its_room_forget_the_one_that_is_nearest_to_full() {
        let l = limiter(1.0, 10, 8).0;
        let now = 5 * SECOND;
        assert!(l.take(now, b"spent", 10).expect("taken").allowed);
        for key in 0..100_u32 {
            assert!(l.take(now, &key.to_le_bytes(), 1).expect("taken").allowed);
        }
        assert!(!l.take(now, b"spent", 1).expect("refused").allowed, "the one that has spent most is known still");
        // Ten seconds later all are full, so new keys forget nothing.
        assert!(l.take(now + 10 * SECOND, b"spent", 10).expect("taken").allowed);
    }

    #[test]
    fn limits_are_checked_and_memory_that_is_none_refused() {
        let ok = Limit::default();
        for (bad, name) in [
            (Limit { rate: 0.0, ..ok }, "rate"),
            (Limit { rate: f64::NAN, ..ok }, "rate"),
            (Limit { rate: 2e6, ..ok }, "rate"),
            (Limit { burst: 0, ..ok }, "burst"),
            (Limit { burst: MAX_BURST + 1, ..ok }, "burst"),
            (Limit { keys: 7, ..ok }, "keys"),
            (Limit { keys: u32::MAX, ..ok }, "keys"),
        ] {
            let e = bad.check().expect_err(name).to_string();
            assert!(e.contains(&format!("option={name}")) && e.contains("max="), "{e}");
        }
        let (other, _map) = mem::create_sealed(c"other", HEAD_LEN + 64).expect("memfd");
        assert_eq!(RateLimiter::attach(other.as_fd()).expect_err("no limiter").kind(), ErrorKind::Corrupt);
    }
}
