//! What a running op sees: its inputs, its options, its token, and help from idle workers.

use crate::buffer::Bytes;
use crate::error::Result;
use crate::ops::Params;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::lock;
use crate::value::Value;
use std::sync::Mutex;

/// The two-way line between a running task and whoever waits for it.
pub trait Control: Sync {
    /// `Err(Cancelled)` or `Err(Timeout)` once the outcome no longer matters.
    fn check(&self) -> Result<()>;
    /// Tells the caller how far the task is. Only the latest value is kept until it is read; the one it replaces comes back.
    fn progress(&self, _value: Value) -> Option<Value> {
        None
    }
    /// Gives the caller a value before the task ends; waits while the caller is behind. False when nobody takes any more values, also where
    /// the call is none that takes some.
    ///
    /// # Errors
    /// What keeps the value from travelling: nothing was given.
    fn give(&self, _value: &Value) -> Result<bool> {
        Ok(false)
    }
}

/// Lends idle workers to one op.
pub trait Splitter: Sync {
    /// Threads that could work on this op now, the caller's own included. At least 1.
    fn width(&self) -> usize;
    /// Calls `body` on this thread and on up to `helpers` borrowed ones; returns when all have returned. A helper's call
    /// gets `true` from its argument when it should give its thread back at the next opportunity.
    fn join(&self, helpers: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync));
}

/// Runs everything on the calling thread and never stops.
struct Inline;

impl Control for Inline {
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Splitter for Inline {
    fn width(&self) -> usize {
        1
    }
    fn join(&self, _: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        body(&|| false);
    }
}

/// One call of an op.
pub struct OpCtx<'a> {
    inputs: Vec<Bytes>,
    params: &'a Params,
    control: &'a dyn Control,
    splitter: &'a dyn Splitter,
}

impl<'a> OpCtx<'a> {
    /// A call on a pool.
    pub fn new(inputs: Vec<Bytes>, params: &'a Params, control: &'a dyn Control, splitter: &'a dyn Splitter) -> OpCtx<'a> {
        OpCtx { inputs, params, control, splitter }
    }

    /// A call on this thread, with nobody to help.
    #[cfg(feature = "capi")]
    pub(crate) fn alone(params: &'a Params, control: &'a dyn Control) -> OpCtx<'a> {
        OpCtx { inputs: Vec::new(), params, control, splitter: &Inline }
    }

    /// A call on this thread.
    pub(crate) fn inline(inputs: Vec<Bytes>, params: &'a Params) -> OpCtx<'a> {
        OpCtx { inputs, params, control: &Inline, splitter: &Inline }
    }

    /// The first input; empty when there is none.
    #[must_use]
    pub fn input(&self) -> &[u8] {
        self.inputs.first().map_or(&[], |b| b.as_slice())
    }

    /// All inputs.
    #[must_use]
    pub fn inputs(&self) -> &[Bytes] {
        &self.inputs
    }

    /// Takes an input out, leaving it empty.
    pub fn take_input(&mut self, at: usize) -> Option<Bytes> {
        self.inputs.get_mut(at).map(std::mem::take)
    }

    /// The checked options. Borrowed from the call, not from `self`, so that they live beside a mutable context.
    #[must_use]
    pub fn params(&self) -> &'a Params {
        self.params
    }

    /// `Err(Cancelled)` or `Err(Timeout)` once nobody waits. Call it at least every 1 MiB or 5 ms of work.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        self.control.check()
    }

    /// The token by itself, for a closure that cannot borrow the context.
    #[must_use]
    pub fn control(&self) -> &'a dyn Control {
        self.control
    }

    /// Tells the caller how far the task is.
    pub fn progress(&self, value: Value) {
        drop(self.replace_progress(value));
    }

    /// As [`progress`](Self::progress), for a caller that holds a lock: dropping the value that was replaced may run a host's code.
    pub(crate) fn replace_progress(&self, value: Value) -> Option<Value> {
        self.control.progress(value)
    }

    /// Gives the caller a value before the task ends: [`Control::give`].
    ///
    /// # Errors
    /// What keeps the value from travelling.
    pub fn give(&self, value: &Value) -> Result<bool> {
        self.control.give(value)
    }

    /// Threads that could work on this op now, its own included.
    #[must_use]
    pub fn width(&self) -> usize {
        self.splitter.width()
    }

    /// Runs `work(0) … work(n - 1)` on this thread and on idle workers, in any order, and returns the first error. The
    /// token is checked before each piece. With no idle worker it is a plain loop.
    ///
    /// # Errors
    /// The first error of a piece, `Cancelled`, `Timeout`.
    pub fn parallel(&self, n: usize, work: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
        let helpers = self.width().min(n).saturating_sub(1);
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<crate::Error>> = Mutex::new(None);
        let body = |leave: &dyn Fn() -> bool| {
            while !leave() {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return;
                }
                if let Err(e) = self.control.check().and_then(|()| work(i)) {
                    next.store(n, Ordering::Relaxed);
                    lock(&failed).get_or_insert(e);
                    return;
                }
            }
        };
        if helpers == 0 {
            body(&|| false)
        } else {
            self.splitter.join(helpers, &body)
        }
        lock(&failed).take().map_or(Ok(()), Err)
    }
}
