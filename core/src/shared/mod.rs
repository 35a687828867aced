//! What the processes of a cluster share by name: [`Counter`] and [`RateLimiter`], in mapped memory, without a lock and without a word to another process.
//!
//! A [`Ledger`] has them: that of a cluster ([`Cluster::ledger`](crate::cluster::Cluster::ledger)), whose workers ask for theirs by name
//! ([`Worker::counter`](crate::cluster::Worker::counter)), or [`own`], that of a process which shares with nobody. A worker that dies leaves what it has counted, and holds up nobody.

mod counter;
mod limiter;

pub use counter::Counter;
pub use limiter::{Limit, RateLimiter, Taken};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sync::mapped::AtomicU64;
use memmap2::MmapRaw;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

/// Names of one ledger, at most: each costs its process an fd.
pub const MAX_NAMES: usize = 256;
/// Bytes of a name, at most.
pub const MAX_NAME: usize = 128;

/// A word of a mapping; the caller keeps inside of it.
fn word(map: &MmapRaw, at: usize) -> &AtomicU64 {
    debug_assert!(at + 8 <= map.len() && at.is_multiple_of(8));
    // SAFETY: inside of the mapping, aligned, and accessed as an atomic by all who have it.
    unsafe { &*map.as_mut_ptr().add(at).cast::<AtomicU64>() }
}

fn no_memory_of_ours(what: &'static str, len: usize) -> Error {
    Error::new(ErrorKind::Corrupt, what).with("len", len)
}

/// What a name stands for.
#[derive(Debug)]
struct Row {
    fd: OwnedFd,
    /// Of a limiter.
    limit: Option<Limit>,
    /// The last whose workers have asked for it.
    generation: u32,
}

/// By name, and whether it is a limiter. A limiter has a second row while a reload changes its limit.
type Rows = BTreeMap<(String, bool), Vec<Row>>;

/// Limits of one limiter: that of the workers, and that of those that replace them.
const MAX_ROWS: usize = 2;

/// Names, and what they stand for. A counter and a limiter may have the same name.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Rows>);

static OWN: Ledger = Ledger(Mutex::new(BTreeMap::new()));

/// The ledger of this process alone.
#[must_use]
pub fn own() -> &'static Ledger {
    &OWN
}

impl Ledger {
    /// The counter of this name: a new one at 0 the first time.
    ///
    /// # Errors
    /// `Invalid` for a name that is empty, longer than [`MAX_NAME`] bytes or has control characters; `Full` at [`MAX_NAMES`]; `Os` when memory or an fd is missing.
    pub fn counter(&self, name: &str) -> Result<Counter> {
        Counter::attach(self.counter_fd(name)?.as_fd())
    }

    /// The limiter of this name: a new one the first time.
    ///
    /// # Errors
    /// Those of [`counter`](Self::counter) and of [`Limit::check`]; `Invalid` where the name stands for another limit. Workers of a later generation of a
    /// cluster begin a new one with theirs.
    pub fn limiter(&self, name: &str, limit: Limit) -> Result<RateLimiter> {
        RateLimiter::attach(self.limiter_fd(name, limit, None)?.as_fd())
    }

    /// The memfd of a counter, for [`Counter::attach`] in another process.
    pub(crate) fn counter_fd(&self, name: &str) -> Result<OwnedFd> {
        self.at(name, None, None, Counter::create)
    }

    /// The memfd of a limiter, for [`RateLimiter::attach`] in another process, of a worker of this generation.
    pub(crate) fn limiter_fd(&self, name: &str, limit: Limit, generation: Option<u32>) -> Result<OwnedFd> {
        limit.check()?;
        self.at(name, Some(limit), generation, || RateLimiter::create(limit))
    }

    fn at(&self, name: &str, limit: Option<Limit>, generation: Option<u32>, create: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
        check_name(name)?;
        let mut rows = lock(&self.0);
        let len = rows.len();
        let key = (name.to_owned(), limit.is_some());
        let known = rows.get_mut(&key).map(Vec::as_mut_slice).unwrap_or_default();
        let generation = generation.or_else(|| known.iter().map(|row| row.generation).max()).unwrap_or(1);
        if let Some(row) = known.iter().find(|row| row.generation == generation && row.limit != limit) {
            let [has, wanted] = [row.limit, limit].map(|limit| limit.unwrap_or_default().to_string());
            return Err(Error::invalid("limiter has another limit").with("limiter", name).with("has", has).with("wanted", wanted));
        }
        if let Some(row) = known.iter_mut().find(|row| row.limit == limit) {
            row.generation = row.generation.max(generation);
            return copy(row.fd.as_fd());
        }
        if known.is_empty() && len == MAX_NAMES {
            return Err(Error::new(ErrorKind::Full, "too many shared counters and limiters").with("name", name).with("max", MAX_NAMES));
        }
        let fd = create()?;
        let given = copy(fd.as_fd())?;
        let rows = rows.entry(key).or_default();
        if rows.len() == MAX_ROWS {
            // Who has the oldest keeps it.
            let oldest = rows.iter().map(|row| row.generation).min();
            rows.retain(|row| Some(row.generation) != oldest);
        }
        rows.push(Row { fd, limit, generation });
        Ok(given)
    }

    /// The counters: names and values, in the order of their names. One whose memory cannot be had just now is left out.
    #[must_use]
    pub fn counters(&self) -> Vec<(String, i64)> {
        let rows = lock(&self.0);
        let counters = rows.iter().filter(|((_, is_limiter), _)| !is_limiter);
        let values = counters.flat_map(|((name, _), rows)| rows.iter().map(move |row| (name, Counter::attach(row.fd.as_fd()))));
        values.filter_map(|(name, counter)| Some((name.clone(), counter.ok()?.get()))).collect()
    }
}

fn copy(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    crate::sys::poll::duplicate(fd)
}

fn check_name(name: &str) -> Result<()> {
    let shown = || name.chars().take(40).collect::<String>();
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::invalid("name has no possible length").with("name", shown()).with("bytes", name.len()).with("max", MAX_NAME));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid("name has a control character").with("name", shown().escape_debug()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_thing() {
        let ledger = Ledger::default();
        ledger.counter("hits").expect("counter").add(2);
        ledger.counter("errors").expect("counter");
        assert_eq!(ledger.counter("hits").expect("the same").add(1), 3);
        let limit = Limit { rate: 5.0, burst: 10, ..Limit::default() };
        assert!(ledger.limiter("hits", limit).expect("of the same name").take(b"", 10).expect("taken").allowed);
        assert!(!ledger.limiter("hits", limit).expect("the same").take(b"", 10).expect("refused").allowed);
        let e = ledger.limiter("hits", Limit { burst: 11, ..limit }).expect_err("another limit").to_string();
        assert!(e.contains("limiter=hits") && e.contains("burst 10") && e.contains("burst 11"), "{e}");
        assert_eq!(ledger.counters(), [("errors".to_owned(), 0), ("hits".to_owned(), 3)]);
    }

    #[test]
    fn a_later_generation_begins_with_its_own_limit() {
        let ledger = Ledger::default();
        let limit = |rate| Limit { rate, burst: 2, ..Limit::default() };
        let at = |rate, generation| {
            let fd = ledger.limiter_fd("api", limit(rate), Some(generation))?;
            RateLimiter::attach(fd.as_fd())?.take(b"", 1).map(|taken| taken.remaining)
        };
        assert_eq!(at(1.0, 1).expect("new"), 1);
        assert_eq!(at(1.0, 1).expect("the same"), 0);
        assert_eq!(at(2.0, 1).expect_err("another").kind(), ErrorKind::Invalid);
        assert_eq!(at(2.0, 2).expect("a reload changes it"), 1);
        assert_eq!(at(1.0, 2).expect_err("that of before is another, too").kind(), ErrorKind::Invalid);
        // One of before that comes again, and one after the next reload.
        assert_eq!(at(1.0, 1).expect("that of before"), 0);
        assert_eq!(at(2.0, 2).expect("the same"), 0);
        assert_eq!(at(3.0, 3).expect("the next"), 1);
        assert_eq!(ledger.limiter("api", limit(4.0)).expect_err("a host that has another").kind(), ErrorKind::Invalid);
        ledger.limiter("api", limit(3.0)).expect("the newest");
    }

    #[test]
    fn names_have_limits() {
        let ledger = Ledger::default();
        for bad in ["", "a\nb", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(ledger.counter(bad).expect_err(bad).kind(), ErrorKind::Invalid);
        }
        for i in 0..MAX_NAMES {
            ledger.counter(&i.to_string()).expect("room");
        }
        assert_eq!(ledger.counter("more").expect_err("full").kind(), ErrorKind::Full);
        ledger.counter("0").expect("it is there");
    }
}
