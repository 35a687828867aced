//! Counters and rate limiters that processes share, for C.

use crate::abi::ffi::{self, Options, offloop_status};
use crate::abi::handle::{self, Place};
use crate::capi::cluster::running;
use crate::capi::{member, offloop_cluster, offloop_counter, offloop_limiter};
use crate::cluster;
use crate::error::{ErrorKind, Result};
use crate::shared::{Counter, Limit, RateLimiter};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// What a rate limiter lets through. 0 means the default; start from OFFLOOP_LIMIT_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_limit {
    /// sizeof(offloop_limit).
    pub struct_size: usize,
    /// Tokens per second that come back: 0.000001 to 1,000,000. To be given.
    pub rate: f64,
    /// Tokens of a full bucket: 1 to 1,048,576. Default: those of one second, rounded up.
    pub burst: u32,
    /// Keys whose buckets are known at a time: 8 to 16,777,216, of 8 bytes each, rounded up to a power of two. Default 16,384. A key's bucket is among 8; where all 8 are in use, the one that is
    /// nearest to full is forgotten, and its key begins with a full one.
    pub keys: u32,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_limit {
    const MIN_SIZE: usize = size_of::<offloop_limit>();
    const NAME: &'static str = "offloop_limit";
}

/// What became of offloop_limiter_take.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_taken {
    /// sizeof(offloop_taken), set by the caller.
    pub struct_size: usize,
    /// 1: the tokens were there.
    pub allowed: u32,
    /// Whole tokens that are there now.
    pub remaining: u32,
    /// When not allowed: until as many are there, if nobody else takes some. Else 0.
    pub retry_after_ns: i64,
}

// SAFETY: as above.
unsafe impl Options for offloop_taken {
    const MIN_SIZE: usize = size_of::<offloop_taken>();
    const NAME: &'static str = "offloop_taken";
}

/// Makes this process the worker that a cluster has started, if one has: then names are those of that cluster.
fn attached() -> Result<()> {
    match member::own() {
        Err(e) if e.kind() != ErrorKind::Unsupported => Err(e),
        _ => Ok(()),
    }
}

/// The counter of this name, 1 to 128 bytes: a new one at 0 the first time. With `cluster` that which its workers have by this name, until the cluster ends; with NULL that of the cluster whose
/// worker this process is, else one of this process alone. Ask once: a worker waits for its cluster's answer. OFFLOOP_ERR_CLOSED for a cluster that was not started, OFFLOOP_ERR_INVALID for a
/// name that is none, and with more than 256 names.
///
/// # Safety
/// `name` is NUL-terminated, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_counter_new(
    cluster: *mut offloop_cluster,
    name: *const c_char,
    out: *mut *mut offloop_counter,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let name = unsafe { ffi::str(name, "name") }?;
        let place = Place::new()?;
        let counter = if cluster.is_null() {
            attached()?;
            cluster::counter(name)?
        } else {
            running(cluster)?.ledger().counter(name)?
        };
        out.set(place.fill_shared(Arc::new(counter)));
        Ok(())
    })
}

/// Adds `n`, which may be negative; what it is then goes to `value`, which may be NULL. It wraps at 64 bits.
///
/// # Safety
/// `value` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_counter_add(counter: *mut offloop_counter, n: i64, value: *mut i64) -> offloop_status {
    ffi::call(|| {
        let value = ffi::out_opt(value, "value")?;
        let now = handle::shared::<_, Counter>(counter)?.add(n);
        value.into_iter().for_each(|value| value.set(now));
        Ok(())
    })
}

/// Makes it `n`; what it was goes to `before`, which may be NULL.
///
/// # Safety
/// `before` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_counter_set(counter: *mut offloop_counter, n: i64, before: *mut i64) -> offloop_status {
    ffi::call(|| {
        let before = ffi::out_opt(before, "before")?;
        let was = handle::shared::<_, Counter>(counter)?.set(n);
        before.into_iter().for_each(|before| before.set(was));
        Ok(())
    })
}

/// Frees the handle; the counter stays. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_counter_free(counter: *mut offloop_counter) {
    if !counter.is_null() {
        ffi::call(|| handle::free(counter));
    }
}

/// The rate limiter of this name, as offloop_counter_new: token buckets, one per key, which are full at first. OFFLOOP_ERR_INVALID for a limit that is none, and for a name that stands for
/// another limit.
///
/// # Safety
/// `name` is NUL-terminated, `limit` is as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_limiter_new(
    cluster: *mut offloop_cluster,
    name: *const c_char,
    limit: *const offloop_limit,
    out: *mut *mut offloop_limiter,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let (name, given) = unsafe { (ffi::str(name, "name")?, ffi::options(limit)?) };
        let mut limit = Limit::per_second(given.rate);
        if given.burst != 0 {
            limit.burst = given.burst;
        }
        if given.keys != 0 {
            limit.keys = given.keys;
        }
        let place = Place::new()?;
        let limiter = if cluster.is_null() {
            attached()?;
            cluster::limiter(name, limit)?
        } else {
            running(cluster)?.ledger().limiter(name, limit)?
        };
        out.set(place.fill_shared(Arc::new(limiter)));
        Ok(())
    })
}

/// Takes `cost` tokens from the bucket of a key of `len` bytes, all or none; 0 looks only. `taken_io` says whether they were there. OFFLOOP_ERR_INVALID for a cost above the burst.
///
/// # Safety
/// `key` points at `len` bytes, `taken_io` is as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_limiter_take(
    limiter: *mut offloop_limiter,
    key: *const c_void,
    len: usize,
    cost: u32,
    taken_io: *mut offloop_taken,
) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let (place, key) = unsafe { (ffi::filled(taken_io)?, ffi::slice(key.cast::<u8>(), len, "key")?) };
        let taken = handle::shared::<_, RateLimiter>(limiter)?.take(key, cost)?;
        let struct_size = place.struct_size;
        let retry_after_ns = i64::try_from(taken.retry_after.as_nanos()).unwrap_or(i64::MAX);
        place.set(offloop_taken { struct_size, allowed: taken.allowed.into(), remaining: taken.remaining, retry_after_ns });
        Ok(())
    })
}

/// Frees the handle; the limiter stays. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_limiter_free(limiter: *mut offloop_limiter) {
    if !limiter.is_null() {
        ffi::call(|| handle::free(limiter));
    }
}
