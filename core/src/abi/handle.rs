//! The table of handles.
//!
//! A handle is `kind (8 bits) · generation (32) · index (24)`, given out as a pointer value that no valid object can have.
//! The table is chunks of slots that are never freed; a slot has a lock, the generation of its present object and the
//! object. A freed slot counts its generation up, so an old handle finds another generation and is `Invalid`.
//!
//! Locks: a function holds one slot's lock at a time. The one exception is a root value's or context's slot, under which a new
//! view takes a slot from the free list; nobody who holds the lock of a *valid* slot waits for another, and whoever locks
//! a free slot through a stale handle lets it go at once, so no cycle can form. Objects are dropped outside the locks,
//! because dropping may call a user's free function.

use crate::abi::ctx::CtxState;
use crate::abi::host::Registration;
use crate::abi::value::{self, Root};
use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::value::Value;
use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Kind {
    // Numbers far from zero and from 0xff, so that small integers, user-space pointers and -1 are no handles.
    Value = 0x91,
    Buffer,
    Ctx,
    Registry,
    Pool,
    Task,
    Queue,
    Ring,
    Producer,
    Consumer,
    Channel,
    Listener,
    ProcessPool,
    Stream,
    Cluster,
    Counter,
    Limiter,
}

impl Kind {
    const ALL: [Kind; 17] = [
        Kind::Value,
        Kind::Buffer,
        Kind::Ctx,
        Kind::Registry,
        Kind::Pool,
        Kind::Task,
        Kind::Queue,
        Kind::Ring,
        Kind::Producer,
        Kind::Consumer,
        Kind::Channel,
        Kind::Listener,
        Kind::ProcessPool,
        Kind::Stream,
        Kind::Cluster,
        Kind::Counter,
        Kind::Limiter,
    ];

    fn from_u8(n: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| *k as u8 == n)
    }

    /// The word for messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Value => "value",
            Kind::Buffer => "buffer",
            Kind::Ctx => "task context",
            Kind::Registry => "registry",
            Kind::Pool => "pool",
            Kind::Task => "task",
            Kind::Queue => "completion queue",
            Kind::Ring => "ring",
            Kind::Producer => "producer",
            Kind::Consumer => "consumer",
            Kind::Channel => "channel",
            Kind::Listener => "listener",
            Kind::ProcessPool => "process pool",
            Kind::Stream => "stream",
            Kind::Cluster => "cluster",
            Kind::Counter => "counter",
            Kind::Limiter => "rate limiter",
        }
    }
}

/// The C type of a kind of handle.
pub trait Kinded {
    /// The kind.
    const KIND: Kind;
}

/// A handle as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(u64);

const INDEX_BITS: u32 = 24;
const CHUNK_BITS: u32 = 12;
const CHUNK: usize = 1 << CHUNK_BITS;
/// Handles that may live at the same time.
pub const MAX_HANDLES: usize = 1 << INDEX_BITS;

impl Handle {
    fn new(kind: Kind, generation: u32, index: u32) -> Handle {
        Handle((kind as u64) << 56 | u64::from(generation) << INDEX_BITS | u64::from(index))
    }

    /// The handle behind a C pointer.
    #[must_use]
    pub fn of<T: Kinded>(p: *const T) -> Handle {
        Handle(p as usize as u64)
    }

    /// The C pointer, to be given out and never dereferenced.
    #[must_use]
    pub fn as_ptr<T: Kinded>(self) -> *mut T {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    fn kind(self) -> Option<Kind> {
        Kind::from_u8((self.0 >> 56) as u8)
    }

    fn generation(self) -> u32 {
        (self.0 >> INDEX_BITS) as u32
    }

    fn index(self) -> u32 {
        (self.0 & (MAX_HANDLES as u64 - 1)) as u32
    }
}

/// What a slot holds.
pub enum Object {
    /// Nothing.
    Vacant,
    /// Moved out for the length of a call.
    Busy {
        /// What was moved out is a view, which nobody frees by hand.
        view: bool,
    },
    /// Moved out and freed meanwhile: the handle is `Invalid`, and the end of the call ends the object.
    Freed,
    /// An owned value.
    Value(Box<Root>),
    /// A place in the tree of `root`, which knows its views and ends them.
    View {
        /// A value or a task context.
        root: Handle,
        /// Read under the lock of the root's slot, and only while the root lists this view.
        at: *const Value,
    },
    /// A buffer.
    Buffer(TransferBuffer),
    /// A running task.
    Ctx(Box<CtxState>),
    /// A loading plugin.
    Registry(Vec<Registration>),
    /// An object of a layer above: pool, task, completion queue, ring.
    Shared(Arc<dyn Any + Send + Sync>),
}

// SAFETY: `View::at` is dereferenced only under the lock of its root's slot, by the rule written there; every other
// variant is `Send`.
unsafe impl Send for Object {}

struct Slot {
    generation: u32,
    kind: Option<Kind>,
    object: Object,
}

type Chunk = Box<[Mutex<Slot>]>;

static CHUNKS: [OnceLock<Chunk>; MAX_HANDLES / CHUNK] = [const { OnceLock::new() }; MAX_HANDLES / CHUNK];

/// Slots that were handed out and came back. A forked child begins with none, because a thread that it does not have may hold the lock.
static FREE: ForkCell<Mutex<Vec<u32>>> = ForkCell::new();
/// Slots that have ever been handed out, by this process or by those that it was forked from. Written under the lock of `FREE`.
static FRESH: AtomicU32 = AtomicU32::new(0);

fn free_slots() -> MutexGuard<'static, Vec<u32>> {
    lock(FREE.get(Mutex::default))
}

/// Free slots that one thread keeps to itself, so that most handles are made without the common lock.
struct Local(Vec<u32>);

const LOCAL_REFILL: usize = 32;
const LOCAL_MAX: usize = 128;

impl Drop for Local {
    fn drop(&mut self) {
        free_slots().append(&mut self.0);
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local(Vec::new())) };
}

/// Where a slot's generations start: spread over all 32 bits, so that a guessed or stale number rarely fits.
fn first_generation(index: u32) -> u32 {
    (index ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b1).rotate_left(15).wrapping_mul(0x85eb_ca6b)
}

fn fill(local: &mut Vec<u32>, want: usize) {
    let mut free = free_slots();
    while local.len() < want {
        let fresh = FRESH.load(Ordering::Relaxed);
        if let Some(index) = free.pop() {
            local.push(index);
        } else if (fresh as usize) < MAX_HANDLES {
            local.push(fresh);
            FRESH.store(fresh + 1, Ordering::Relaxed);
        } else {
            return;
        }
    }
}

fn alloc_index() -> Result<u32> {
    let mut found = LOCAL.try_with(|local| {
        let local = &mut local.borrow_mut().0;
        if local.is_empty() {
            fill(local, LOCAL_REFILL);
        }
        local.pop()
    });
    if found.is_err() {
        // The thread is ending and its cache is gone.
        let mut one = Vec::new();
        fill(&mut one, 1);
        found = Ok(one.pop());
    }
    found.ok().flatten().ok_or_else(|| Error::new(ErrorKind::Full, "too many handles are alive").with("max_handles", MAX_HANDLES))
}

fn free_index(index: u32) {
    let spilled = LOCAL.try_with(|local| {
        let local = &mut local.borrow_mut().0;
        local.push(index);
        (local.len() > LOCAL_MAX).then(|| local.split_off(LOCAL_MAX / 2))
    });
    match spilled {
        Ok(None) => {}
        Ok(Some(mut many)) => free_slots().append(&mut many),
        Err(_) => free_slots().push(index),
    }
}

fn chunk(index: u32) -> &'static [Mutex<Slot>] {
    let at = (index as usize) >> CHUNK_BITS;
    CHUNKS[at].get_or_init(|| {
        let first = (at << CHUNK_BITS) as u32;
        (0..CHUNK as u32)
            .map(|i| Mutex::new(Slot { generation: first_generation(first + i), kind: None, object: Object::Vacant }))
            .collect()
    })
}

fn invalid(handle: Handle, want: Option<Kind>) -> Error {
    let want = want.map_or("value", Kind::as_str);
    if handle.0 == 0 {
        return Error::invalid("handle is NULL").with("want", want);
    }
    match handle.kind() {
        Some(kind) if kind.as_str() != want => Error::invalid("handle is of another type").with("want", want).with("got", kind.as_str()),
        Some(_) => Error::invalid("handle was freed or moved").with("want", want).with("handle", format_args!("{:#x}", handle.0)),
        None => Error::invalid("pointer is no handle").with("want", want).with("pointer", format_args!("{:#x}", handle.0)),
    }
}

/// The slot of a handle, if a chunk for it was ever made.
fn slot(handle: Handle) -> Option<&'static Mutex<Slot>> {
    let index = handle.index() as usize;
    CHUNKS[index >> CHUNK_BITS].get().map(|c| &c[index & (CHUNK - 1)])
}

/// Locks the slot of a living handle.
fn living(handle: Handle, kind: Option<Kind>) -> Result<MutexGuard<'static, Slot>> {
    let bad = || invalid(handle, kind);
    let own = handle.kind().filter(|k| kind.is_none_or(|want| want == *k)).ok_or_else(bad)?;
    let slot = lock(slot(handle).ok_or_else(bad)?);
    if slot.kind != Some(own) || slot.generation != handle.generation() {
        return Err(bad());
    }
    Ok(slot)
}

fn in_use(slot: &Slot) -> Error {
    Error::new(ErrorKind::InUse, "handle is being moved by another call").with("type", slot.kind.map_or("value", Kind::as_str))
}

fn with_slot<R>(handle: Handle, kind: Option<Kind>, f: impl FnOnce(&mut Slot) -> Result<R>) -> Result<R> {
    let mut slot = living(handle, kind)?;
    if matches!(slot.object, Object::Busy { .. }) {
        return Err(in_use(&slot));
    }
    f(&mut slot)
}

/// A free slot, held so that making the handle cannot fail any more once a call has had its effect.
pub struct Place(u32);

impl Place {
    /// Takes a free slot.
    ///
    /// # Errors
    /// `Full` when [`MAX_HANDLES`] are alive.
    pub fn new() -> Result<Place> {
        alloc_index().map(Place)
    }

    /// Makes the handle.
    #[must_use]
    pub fn fill(self, kind: Kind, object: Object) -> Handle {
        let index = self.0;
        std::mem::forget(self); // the slot is in use from here on
        let mut slot = lock(&chunk(index)[index as usize & (CHUNK - 1)]);
        slot.kind = Some(kind);
        slot.object = object;
        Handle::new(kind, slot.generation, index)
    }

    /// Makes the handle of an object of a layer above.
    #[must_use]
    pub fn fill_shared<T: Kinded>(self, object: Arc<dyn Any + Send + Sync>) -> *mut T {
        self.fill(T::KIND, Object::Shared(object)).as_ptr()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        free_index(self.0);
    }
}

/// Makes a handle.
///
/// # Errors
/// `Full` when [`MAX_HANDLES`] are alive; `object` is then dropped.
pub fn insert(kind: Kind, object: Object) -> Result<Handle> {
    Ok(Place::new()?.fill(kind, object))
}

/// Looks at the object of a handle, under its slot's lock. `None` as kind: any.
///
/// # Errors
/// `Invalid` for what is no living handle of that kind, `InUse` while another call moves it, and those of `f`.
pub fn with<R>(handle: Handle, kind: Option<Kind>, f: impl FnOnce(&mut Object) -> Result<R>) -> Result<R> {
    with_slot(handle, kind, |slot| f(&mut slot.object))
}

/// Ends the handle and empties its slot, for the next one.
fn vacate(slot: &mut Slot, handle: Handle) -> Object {
    slot.kind = None;
    slot.generation = slot.generation.wrapping_add(1);
    let object = std::mem::replace(&mut slot.object, Object::Vacant);
    // A slot whose generations are used up is never handed out again.
    if slot.generation != first_generation(handle.index()) {
        free_index(handle.index());
    }
    object
}

/// Ends a handle and gives its object.
///
/// # Errors
/// `Invalid`, `InUse` as [`with`].
pub fn take(handle: Handle, kind: Kind) -> Result<Object> {
    with_slot(handle, Some(kind), |slot| Ok(vacate(slot, handle)))
}

/// Ends a handle and its object. An object that another call has moved out ends with that call, unless the call keeps it: what
/// frees a handle has no result to say that it could not.
///
/// # Errors
/// `Invalid` for what is no living handle of that kind, and for a view.
pub fn free<T: Kinded>(p: *const T) -> Result<()> {
    let handle = Handle::of(p);
    let mut slot = living(handle, Some(T::KIND))?;
    if matches!(slot.object, Object::View { .. } | Object::Busy { view: true }) {
        return Err(Error::invalid("borrowed value ends with the value it came from, not by a free"));
    }
    if matches!(slot.object, Object::Busy { .. }) {
        // A slot without a kind fits no handle: this one is `Invalid` from now on. The call empties the slot.
        slot.kind = None;
        slot.object = Object::Freed;
        return Ok(());
    }
    let object = vacate(&mut slot, handle);
    drop(slot);
    dispose(object);
    Ok(())
}

/// Drops an object that no handle stands for any more, and the views of its tree. No lock is held.
fn dispose(object: Object) {
    drop(value::into_value(object));
}

/// An object that a call has moved out. Put back when dropped, unless it was [`commit`](Reserved::commit)ted or its handle freed.
pub struct Reserved {
    handle: Handle,
    object: Object,
}

impl Reserved {
    /// The object.
    pub fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Ends the handle for good.
    #[must_use]
    pub fn commit(mut self) -> Object {
        let object = std::mem::replace(&mut self.object, Object::Vacant);
        if let Some(slot) = slot(self.handle) {
            vacate(&mut lock(slot), self.handle);
        }
        std::mem::forget(self); // nothing to put back; holds no other resource
        object
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let object = std::mem::replace(&mut self.object, Object::Vacant);
        let Some(slot) = slot(self.handle) else { return };
        let mut slot = lock(slot);
        if matches!(slot.object, Object::Freed) {
            vacate(&mut slot, self.handle);
            drop(slot);
            dispose(object);
        } else {
            slot.object = object;
        }
    }
}

/// Moves an object out for the length of a call; other calls see `InUse` meanwhile.
///
/// # Errors
/// `Invalid`, `InUse` as [`with`].
pub fn reserve(handle: Handle, kind: Kind) -> Result<Reserved> {
    with_slot(handle, Some(kind), |slot| {
        let busy = Object::Busy { view: matches!(slot.object, Object::View { .. }) };
        Ok(Reserved { handle, object: std::mem::replace(&mut slot.object, busy) })
    })
}

/// The object of a layer above, with a reference of its own, so that freeing the handle meanwhile is safe.
///
/// # Errors
/// `Invalid`, `InUse`.
pub fn shared<T: Kinded, O: Any + Send + Sync>(p: *const T) -> Result<Arc<O>> {
    let object = with(Handle::of(p), Some(T::KIND), |object| match object {
        Object::Shared(arc) => Ok(arc.clone()),
        _ => Err(Error::invalid("handle is of another type").with("want", T::KIND.as_str())),
    })?;
    object.downcast().map_err(|_| Error::invalid("handle is of another type").with("want", T::KIND.as_str()))
}

/// Handles that are alive now; for leak tests. Counts slots, so it is slow.
#[must_use]
pub fn alive() -> usize {
    CHUNKS.iter().filter_map(OnceLock::get).flat_map(|c| c.iter()).filter(|s| lock(s).kind.is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{offloop_buffer, offloop_value};

    fn buffer() -> Handle {
        insert(Kind::Buffer, Object::Buffer(TransferBuffer::alloc(4).expect("alloc"))).expect("insert")
    }

    fn kind_of(r: Result<()>) -> ErrorKind {
        r.expect_err("refused").kind()
    }

    #[test]
    fn a_freed_a_forged_and_a_mistyped_handle_are_invalid() {
        let h = buffer();
        with(h, Some(Kind::Buffer), |_| Ok(())).expect("alive");
        assert_eq!(kind_of(with(h, Some(Kind::Value), |_| Ok(()))), ErrorKind::Invalid);
        let forged = [0, 1, 8, 0xffff_ffff_ffff_ffff, 0x7fff_1234_5678, h.0 ^ 1, h.0 ^ (1 << 30), h.0 ^ (1 << 60)];
        for bad in forged {
            assert_eq!(kind_of(with(Handle(bad), Some(Kind::Buffer), |_| Ok(()))), ErrorKind::Invalid, "{bad:#x}");
        }
        take(h, Kind::Buffer).expect("first free");
        assert_eq!(kind_of(take(h, Kind::Buffer).map(drop)), ErrorKind::Invalid);
        let reused = buffer();
        assert_eq!(reused.index(), h.index(), "the thread's cache hands the slot out again");
        assert_eq!(kind_of(with(h, Some(Kind::Buffer), |_| Ok(()))), ErrorKind::Invalid);
        take(reused, Kind::Buffer).expect("free");
    }

    #[test]
    fn a_reserved_object_is_in_use_and_comes_back_unless_committed() {
        let h = buffer();
        let r = reserve(h, Kind::Buffer).expect("reserve");
        assert_eq!(kind_of(with(h, Some(Kind::Buffer), |_| Ok(()))), ErrorKind::InUse);
        assert_eq!(kind_of(take(h, Kind::Buffer).map(drop)), ErrorKind::InUse);
        drop(r);
        with(h, Some(Kind::Buffer), |_| Ok(())).expect("back");
        drop(reserve(h, Kind::Buffer).expect("reserve").commit());
        assert_eq!(kind_of(with(h, Some(Kind::Buffer), |_| Ok(()))), ErrorKind::Invalid);
    }

    #[test]
    fn a_reserved_object_that_is_freed_ends_with_the_call_and_its_handle_at_once() {
        let weak_one = || {
            let object = Arc::new(7u64);
            (Arc::downgrade(&object), insert(Kind::Buffer, Object::Shared(object)).expect("insert"))
        };
        for keeps in [false, true] {
            let (object, h) = weak_one();
            let r = reserve(h, Kind::Buffer).expect("reserve");
            free(h.as_ptr::<offloop_buffer>()).expect("free");
            assert_eq!(kind_of(with(h, Some(Kind::Buffer), |_| Ok(()))), ErrorKind::Invalid);
            assert_eq!(kind_of(free(h.as_ptr::<offloop_buffer>())), ErrorKind::Invalid, "freed once");
            assert_ne!(buffer().index(), h.index(), "the slot is not free yet");
            assert_eq!(object.strong_count(), 1);
            if keeps {
                let kept = r.commit();
                assert_eq!(object.strong_count(), 1);
                drop(kept);
            } else {
                drop(r);
            }
            assert_eq!(object.strong_count(), 0);
            let next = buffer();
            assert_eq!(next.index(), h.index(), "the slot is handed out again, once");
            assert_eq!(kind_of(with(h, Some(Kind::Buffer), |_| Ok(()))), ErrorKind::Invalid);
            with(next, Some(Kind::Buffer), |_| Ok(())).expect("the next one lives");
            assert_ne!(buffer().index(), h.index());
        }
    }

    #[test]
    fn a_tree_that_is_freed_while_it_changes_ends_its_views() {
        let mut root = Root::default();
        let inner = Value::Int(7);
        let h = insert(Kind::Value, Object::Vacant).expect("insert");
        let view = Handle::of(value::view(&inner, &mut root.views, h).expect("view"));
        let filled = with(h, Some(Kind::Value), |object| {
            *object = Object::Value(Box::new(root));
            Ok(())
        });
        filled.expect("alive");
        assert_eq!(kind_of(free(view.as_ptr::<offloop_value>())), ErrorKind::Invalid, "a view is not freed");
        let r = reserve(h, Kind::Value).expect("reserve");
        let moving = reserve(view, Kind::Value).expect("a view may be moved out by a call that then refuses it");
        assert_eq!(kind_of(free(view.as_ptr::<offloop_value>())), ErrorKind::Invalid);
        drop(moving);
        with(view, Some(Kind::Value), |_| Ok(())).expect("there as before");
        free(h.as_ptr::<offloop_value>()).expect("free");
        drop(r);
        assert_eq!(kind_of(with(view, Some(Kind::Value), |_| Ok(()))), ErrorKind::Invalid);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the host that forks")]
    fn a_child_forked_while_the_free_list_was_locked_makes_handles() {
        let h = buffer();
        let locked = free_slots();
        // SAFETY: the child makes handles and leaves by `_exit`; the alarm ends it if it waits for this thread's lock.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: plain calls.
            unsafe { libc::alarm(20) };
            // More than the thread's own cache holds. None of them is what the parent's handle stands for.
            let fine = (0..=LOCAL_MAX).all(|_| buffer().index() != h.index());
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!fine)) };
        }
        drop(locked);
        let mut status = 0;
        // SAFETY: our own child, a valid place for its status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child ended otherwise than by its own exit");
        take(h, Kind::Buffer).expect("free");
    }

    #[test]
    fn pointers_carry_the_handle() {
        let h = buffer();
        let p: *mut offloop_buffer = h.as_ptr();
        assert_eq!(Handle::of(p), h);
        assert_eq!(kind_of(with(Handle::of(p.cast::<offloop_value>()), Some(Kind::Value), |_| Ok(()))), ErrorKind::Invalid);
        take(h, Kind::Buffer).expect("free");
    }

    #[test]
    fn threads_that_make_and_free_handles_never_share_one() {
        std::thread::scope(|scope| {
            for t in 0..4u64 {
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    for i in 0..5000u64 {
                        let tag = t << 32 | i;
                        let h = insert(Kind::Task, Object::Shared(Arc::new(tag))).expect("insert");
                        mine.push((h, tag));
                        if i % 3 == 0 {
                            let (h, tag) = mine.swap_remove((i as usize * 7) % mine.len());
                            let Object::Shared(o) = take(h, Kind::Task).expect("mine") else { panic!("kind") };
                            assert_eq!(*o.downcast::<u64>().expect("u64"), tag);
                        }
                    }
                    for (h, _) in mine {
                        take(h, Kind::Task).expect("mine");
                    }
                });
            }
        });
    }
}
