//! What a pool is made of before it has a thread: its options, its limits, the ops that plugins added.

use crate::error::{Error, ErrorKind, Result};
use crate::ops;
use crate::pool::DynOp;
use crate::pool::hosted::Spawner;
use crate::pool::looped::LoopOptions;
use crate::pool::options::PoolOptions;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What a fork does not change; shared by the handles of parent and child.
pub(super) struct Config {
    pub(super) options: PoolOptions,
    pub(super) max_workers: AtomicUsize,
    pub(super) min_workers: AtomicUsize,
    pub(super) hosted: Option<Spawner>,
    pub(super) looped: Option<LoopOptions>,
    /// Plugin ops: a list that only grows, readable without a lock.
    plugins: AtomicPtr<PluginNode>,
    hasher: RandomState,
}

struct PluginNode {
    op: Arc<dyn DynOp>,
    next: *mut PluginNode,
}

// SAFETY: the only thing that makes it `!Send` is the raw pointer, which names a node of the same list.
unsafe impl Send for PluginNode {}
// SAFETY: nodes do not change once they are published.
unsafe impl Sync for PluginNode {}

impl Config {
    pub(super) fn new(options: PoolOptions, max_workers: usize, hosted: Option<Spawner>, looped: Option<LoopOptions>) -> Config {
        Config {
            max_workers: AtomicUsize::new(max_workers),
            min_workers: AtomicUsize::new(options.min_workers),
            options,
            hosted,
            looped,
            plugins: AtomicPtr::default(),
            hasher: RandomState::new(),
        }
    }

    /// The scheduler knows keys by their hash: two keys that collide share a worker, which breaks no promise.
    pub(super) fn hash_key(&self, key: &str) -> u64 {
        self.hasher.hash_one(key)
    }

    /// A number for this turn of this slot, another one in each pool.
    pub(super) fn random(&self, slot: usize, turn: u64) -> u64 {
        self.hasher.hash_one((slot, turn))
    }

    pub(super) fn plugins(&self) -> impl Iterator<Item = &Arc<dyn DynOp>> {
        // SAFETY: nodes are published with Release by `register`, read with Acquire here, and freed only in `drop`.
        let mut next = unsafe { self.plugins.load(Ordering::Acquire).as_ref() };
        std::iter::from_fn(move || {
            let node = next?;
            // SAFETY: as above; `next` was set before its node was published.
            next = unsafe { node.next.as_ref() };
            Some(&node.op)
        })
    }

    /// Adds a plugin's op; `Exists` when the name is taken.
    pub(super) fn add_plugin(&self, op: Arc<dyn DynOp>) -> Result<()> {
        let name = op.name();
        let node = Box::into_raw(Box::new(PluginNode { op: op.clone(), next: std::ptr::null_mut() }));
        loop {
            let head = self.plugins.load(Ordering::Acquire);
            if ops::lookup(name).is_some() || self.plugins().any(|p| p.name() == name) {
                // SAFETY: never published.
                drop(unsafe { Box::from_raw(node) });
                return Err(Error::new(ErrorKind::Exists, "an op of that name is there already").with("op", name));
            }
            // SAFETY: not published yet, so this thread alone has it.
            unsafe { (*node).next = head };
            if self.plugins.compare_exchange(head, node, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(());
            }
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let mut next = *self.plugins.get_mut();
        while !next.is_null() {
            // SAFETY: every node came from `Box::into_raw`, and nobody can read the list any more.
            next = unsafe { Box::from_raw(next) }.next;
        }
    }
}
