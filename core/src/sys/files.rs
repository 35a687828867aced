//! How many files this process may have open. A soft limit of 1,024 is there for programs that use `select`; one that does not may take what the
//! hard limit allows, and is to give its children what it was given: so do systemd and Go.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The soft limit before it was raised; 0: it was not.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// The soft limit is the hard one as long as this lives. Children get the former one.
#[derive(Debug)]
pub struct Raised(());

fn limit() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid out pointer.
    (unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0).then_some(limit)
}

/// Raises it; `None` where there is nothing to raise, or that was done already.
#[must_use]
pub fn raise() -> Option<Raised> {
    let now = limit().filter(|now| now.rlim_cur < now.rlim_max)?;
    // Relaxed: a number of its own.
    BEFORE.compare_exchange(0, now.rlim_cur, Ordering::Relaxed, Ordering::Relaxed).ok()?;
    let raised = Raised(());
    let all = libc::rlimit { rlim_cur: now.rlim_max, rlim_max: now.rlim_max };
    // SAFETY: `all` is a valid limit. Where the system has a lower one of its own, `raised` goes.
    (unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const all) } == 0).then_some(raised)
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(former) = for_children() {
            // SAFETY: `former` is a valid limit.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const former) };
        }
        // Relaxed: as above.
        BEFORE.store(0, Ordering::Relaxed);
    }
}

/// What children are given, where it is not what this process has.
pub(super) fn for_children() -> Option<libc::rlimit> {
    // Relaxed: as above.
    let before = BEFORE.load(Ordering::Relaxed);
    limit().filter(|_| before > 0).map(|now| libc::rlimit { rlim_cur: before.min(now.rlim_max), ..now })
}

/// The hard limit.
#[must_use]
pub fn most() -> u64 {
    limit().map_or(u64::MAX, |limit| limit.rlim_max)
}
