//! Memory of a pool that the host and all of its workers write: requests refer to it.
//!
//! It has a memfd of its own, apart from the requests of other workers, which a worker maps when a request first refers to it.
//! A request keeps what it refers to until its task has ended, and the worker's [`Payload`](super::Payload) of that request for longer.

use super::arena::{Arena, Span};
use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sys::fork;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

/// What is shared now, by its place in the arena. No two overlap.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<BTreeMap<usize, Weak<Entry>>>);

#[derive(Debug)]
struct Entry {
    span: Span,
    table: Arc<Table>,
    epoch: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Before the span is free: nobody has its place yet. A forked child's lock is the parent's.
        if fork::is_current(self.epoch) {
            lock(&self.table.0).remove(&self.span.at());
        }
    }
}

/// A part of the memory that a pool shares with its workers. It is free when the last copy of this handle is dropped, here and in requests.
#[derive(Clone, Debug)]
pub struct SharedPart(Arc<Entry>);

impl SharedPart {
    pub(super) fn new(arena: &Arc<Arena>, table: &Arc<Table>, len: usize) -> Result<SharedPart> {
        let span = arena.alloc_zeroed(len)?;
        let at = span.at();
        let part = Arc::new(Entry { span, table: Arc::clone(table), epoch: fork::epoch() });
        lock(&table.0).insert(at, Arc::downgrade(&part));
        Ok(SharedPart(part))
    }

    /// What lies `at` there for `len` bytes.
    pub(super) fn find(table: &Table, at: usize, len: usize) -> Option<SharedPart> {
        let (begin, part) = {
            let all = lock(&table.0);
            let (begin, part) = all.range(..=at).next_back()?;
            (*begin, part.upgrade())
        };
        // Outside of the lock, which the drop of a last reference takes.
        let part = part?;
        (len <= part.span.len() && at - begin <= part.span.len() - len).then_some(SharedPart(part))
    }

    /// It is this process's own to look at.
    ///
    /// # Errors
    /// `Forked` in a child of the process that has the pool.
    pub fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.0.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "shared memory belongs to this process's parent").with("len", self.len()))
    }

    /// First byte, aligned to a page. Every process may write at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.span.as_ptr()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.span.len()
    }

    /// All of it as a buffer.
    #[must_use]
    pub fn buffer(&self) -> TransferBuffer {
        // SAFETY: the part lies inside of the pool's mapping, and the guard keeps both.
        unsafe { TransferBuffer::from_mapped(self.as_ptr(), self.len(), Box::new(self.clone())) }
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What [`Worker::shared`](super::Worker::shared) finds it by.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.0.span.at() as u64
    }
}
