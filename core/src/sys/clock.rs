//! Clocks as plain nanoseconds, for stamps that another process compares.

fn read(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid out pointer; the clocks exist on every supported kernel, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut ts) };
    (ts.tv_sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(ts.tv_nsec.max(0) as u64)
}

/// `CLOCK_MONOTONIC`: the same value in every process of a machine (and of a time namespace).
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// As [`monotonic_ns`], a few milliseconds late and a few nanoseconds cheap.
#[must_use]
pub fn coarse_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

/// Nanoseconds since the Unix epoch.
#[must_use]
pub fn unix_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

/// A duration as the kernel wants it; saturates.
pub(super) fn timespec(d: std::time::Duration) -> libc::timespec {
    libc::timespec { tv_sec: libc::time_t::try_from(d.as_secs()).unwrap_or(libc::time_t::MAX), tv_nsec: d.subsec_nanos().into() }
}
