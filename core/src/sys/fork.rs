//! The fork rule: a forked child is told apart from its parent without a lock.
//!
//! An atfork handler bumps an epoch and closes what the child must not keep. Every handle remembers the epoch that made it.

use crate::error::Result;
use crate::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};
use crate::sync::lock;
use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Mutex;

static EPOCH: AtomicU64 = AtomicU64::new(1);
static REGISTERED: std::sync::Once = std::sync::Once::new();

/// Forks that have begun in this process, and those that are over.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicU64 = AtomicU64::new(0);

extern "C" fn before_fork() {
    BEGUN.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_parent() {
    OVER.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_child() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
    // No thread is here but the one that forked.
    OVER.store(BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
    close_parents_fds();
}

/// Fds that a forked child closes at once, in chunks that are never freed. A negative entry is free.
struct Chunk {
    fds: [AtomicI32; 62],
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    const fn new() -> Chunk {
        Chunk { fds: [const { AtomicI32::new(-1) }; 62], next: AtomicPtr::new(ptr::null_mut()) }
    }
}

static PRIVATE: Chunk = Chunk::new();

fn chunks() -> impl Iterator<Item = &'static Chunk> {
    // SAFETY: a chunk is leaked by whoever appended it, fully made before the Release store of its address.
    std::iter::successors(Some(&PRIVATE), |c| unsafe { c.next.load(Ordering::Acquire).as_ref() })
}

/// Async-signal-safe: walks atomics and calls `close`.
fn close_parents_fds() {
    for entry in chunks().flat_map(|c| &c.fds) {
        let fd = entry.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: the entry's owner is a `PrivateFd` of the parent; the child's copy of it does not close.
            unsafe { libc::close(fd) };
        }
    }
}

/// An fd that a forked child does not keep: what the kernel ties to the open file (a lock) then ends with this process,
/// whatever children it has.
#[derive(Debug)]
pub struct PrivateFd {
    fd: ManuallyDrop<OwnedFd>,
    entry: &'static AtomicI32,
    epoch: u64,
}

/// How often [`PrivateFd::open`] opens anew. A process that forks without a pause, or a fork that does not come to an end because a
/// handler of somebody else's waits for this very thread, must not hold it up; death is known by pidfds, too.
const OPENS: usize = 1000;

impl PrivateFd {
    /// Takes over what `open` opens. A child that another thread forks between that and the entry in the list has a copy that no handler
    /// closes, and what is tied to that open file would last as long as the child: it is given up, and opened anew.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open(mut open: impl FnMut() -> Result<OwnedFd>) -> Result<PrivateFd> {
        // Registers the handlers.
        let _ = epoch();
        for _ in 1..OPENS {
            // In this order: equal, and no fork is under way when the second is read.
            let over = OVER.load(Ordering::SeqCst);
            let begun = BEGUN.load(Ordering::SeqCst);
            let private = PrivateFd::new(open()?);
            // A fork that begins from here on has the entry: SeqCst orders that (in `new`) before this load, and the fork's own add
            // before it copies the memory.
            if over == begun && BEGUN.load(Ordering::SeqCst) == begun {
                return Ok(private);
            }
            std::thread::yield_now();
        }
        open().map(PrivateFd::new)
    }

    /// Takes `fd` over. What a child may have a copy of, that is forked meanwhile, is not for this but for [`open`](Self::open).
    #[must_use]
    pub fn new(fd: OwnedFd) -> PrivateFd {
        let epoch = epoch();
        let raw = fd.as_raw_fd();
        let mut chunk = &PRIVATE;
        loop {
            let free = |entry: &&AtomicI32| entry.compare_exchange(-1, raw, Ordering::SeqCst, Ordering::Relaxed).is_ok();
            if let Some(entry) = chunk.fds.iter().find(free) {
                return PrivateFd { fd: ManuallyDrop::new(fd), entry, epoch };
            }
            let mut next = chunk.next.load(Ordering::Acquire);
            if next.is_null() {
                let fresh = Box::into_raw(Box::new(Chunk::new()));
                // Release: the chunk is whole before its address is seen; pairs with the Acquire loads above.
                next = match chunk.next.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => fresh,
                    Err(winner) => {
                        // SAFETY: `fresh` lost the race, nobody else has seen it.
                        drop(unsafe { Box::from_raw(fresh) });
                        winner
                    }
                };
            }
            // SAFETY: a published chunk is never freed.
            chunk = unsafe { &*next };
        }
    }
}

impl AsFd for PrivateFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PrivateFd {
    fn drop(&mut self) {
        // The handler has closed it in a child, where the number may be another file's by now.
        if is_current(self.epoch) {
            super::ofd::unlock_all(self.as_fd());
            self.entry.store(-1, Ordering::Relaxed);
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// An fd that forked children keep and may use by its number: a child's copy of this object does not close it.
#[derive(Debug)]
pub struct Inherited {
    /// Always there, until it is taken.
    fd: Option<OwnedFd>,
    epoch: u64,
}

const NOT_TAKEN: &str = "only `into_fd` takes it";

/// Numbers of such fds in this process.
static INHERITED: ForkCell<Mutex<BTreeSet<RawFd>>> = ForkCell::new();

impl Inherited {
    /// Takes `fd` over.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Inherited {
        lock(INHERITED.get(Mutex::default)).insert(fd.as_raw_fd());
        Inherited { fd: Some(fd), epoch: epoch() }
    }

    /// The fd, for another owner.
    #[must_use]
    pub fn into_fd(mut self) -> OwnedFd {
        let fd = self.fd.take().expect(NOT_TAKEN);
        lock(INHERITED.get(Mutex::default)).remove(&fd.as_raw_fd());
        fd
    }
}

impl AsFd for Inherited {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect(NOT_TAKEN).as_fd()
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if is_current(self.epoch) {
            // Before it is closed: the number may be another file's at once.
            lock(INHERITED.get(Mutex::default)).remove(&fd.as_raw_fd());
        } else {
            // Somebody may have taken the number over.
            let _ = fd.into_raw_fd();
        }
    }
}

/// A [`PrivateFd`] or [`Inherited`] of this process owns that number.
#[must_use]
pub fn is_owned(fd: RawFd) -> bool {
    lock(INHERITED.get(Mutex::default)).contains(&fd) || chunks().any(|c| c.fds.iter().any(|entry| entry.load(Ordering::Relaxed) == fd))
}

/// The number of this process in its line of forks. Changes in a forked child, and nowhere else.
///
/// A handle made before the first call of this function in a process would not see a fork, so every constructor calls it.
#[inline]
#[must_use]
pub fn epoch() -> u64 {
    if !REGISTERED.is_completed() {
        REGISTERED.call_once(|| {
            // SAFETY: the handlers touch atomics and call `close`, which is async-signal-safe.
            unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
        });
    }
    EPOCH.load(Ordering::Relaxed)
}

/// `epoch` is that of this process. For hot paths: whoever holds an epoch has registered the handler.
#[inline]
#[must_use]
pub fn is_current(epoch: u64) -> bool {
    EPOCH.load(Ordering::Relaxed) == epoch
}

/// A lazily made global that a forked child makes anew. The parent's copy is leaked in the child on purpose: its locks
/// may be held by threads that do not exist there.
#[derive(Debug)]
pub struct ForkCell<T> {
    current: AtomicPtr<(u64, T)>,
}

impl<T: Send + Sync> ForkCell<T> {
    /// An empty cell.
    #[must_use]
    pub const fn new() -> ForkCell<T> {
        ForkCell { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The value of this process, made by `make` at first use. Two threads may both make one; one is dropped.
    pub fn get(&self, make: impl FnOnce() -> T) -> &T {
        let epoch = epoch();
        let seen = self.current.load(Ordering::Acquire);
        // SAFETY: a non-null pointer was made by `Box::into_raw` below, is fully initialised (Release below, Acquire
        // above) and is never freed while the cell may be read: only a loser of the race frees, and it never published.
        if let Some((made_in, value)) = unsafe { seen.as_ref() }
            && *made_in == epoch
        {
            return value;
        }
        let fresh = Box::into_raw(Box::new((epoch, make())));
        match self.current.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: `fresh` was just published by us and published values are never freed.
            Ok(_) => unsafe { &(*fresh).1 },
            Err(winner) => {
                // SAFETY: `fresh` lost the race, nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                // SAFETY: the winner was published with Release by a thread of this process, see above.
                unsafe { &(*winner).1 }
            }
        }
    }

    /// The value if this process has already made it.
    pub fn peek(&self) -> Option<&T> {
        // SAFETY: as in `get`.
        let (made_in, value) = unsafe { self.current.load(Ordering::Acquire).as_ref() }?;
        (*made_in == epoch()).then_some(value)
    }
}

impl<T> Drop for ForkCell<T> {
    fn drop(&mut self) {
        let last = *self.current.get_mut();
        // SAFETY: a non-null pointer was made by `Box::into_raw` in `get`, is freed nowhere else once it is published, and
        // `&mut self` says that nobody reads it.
        let ours = unsafe { last.as_ref() }.is_some_and(|(made_in, _)| *made_in == epoch());
        if ours {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(last) });
        }
    }
}

impl<T: Send + Sync> Default for ForkCell<T> {
    fn default() -> Self {
        ForkCell::new()
    }
}
