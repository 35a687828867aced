//! What op tests need beside vectors: a token that fires after some checks, and real threads to split over.

use super::{Control, OpCtx, Params, Splitter, find};
use crate::buffer::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::value::Value;

/// Lets `after` checks pass and refuses every later one.
pub(crate) struct CancelAfter {
    left: AtomicUsize,
}

impl CancelAfter {
    pub(crate) fn new(after: usize) -> CancelAfter {
        CancelAfter { left: AtomicUsize::new(after) }
    }
}

impl Control for CancelAfter {
    fn check(&self) -> Result<()> {
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Cancelled, "the test cancelled")),
        }
    }
}

/// So many threads, all free.
pub(crate) struct Threads(pub(crate) usize);

impl Splitter for Threads {
    fn width(&self) -> usize {
        self.0
    }
    fn join(&self, helpers: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        std::thread::scope(|s| {
            for _ in 0..helpers {
                s.spawn(|| body(&|| false));
            }
            body(&|| false);
        });
    }
}

/// Runs an op with this token over this many threads.
pub(crate) fn run_with(name: &str, input: &[u8], params: &Value, control: &dyn Control, threads: usize) -> Result<Value> {
    let op = find(name)?;
    let params = Params::check(op.name, op.params, params)?;
    (op.run)(&mut OpCtx::new(vec![Bytes::from(input)], &params, control, &Threads(threads)))
}

/// Numbers from a seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % n as u64) as usize
    }
}
