//! Bytes between JavaScript and the core.
//!
//! * Memory of JavaScript is copied while its thread is in here: nobody can detach, shrink or free it meanwhile.
//! * Memory of the core becomes an external `ArrayBuffer` that owns one count of it. A finalizer runs when the
//!   `ArrayBuffer` is collected, not when it is detached, so the count outlives every use.

use crate::channel::{Accepting, ChannelEnd};
use crate::cluster::{Clustered, Intake, Member};
use crate::js::{Call, Env, JsResult, Raw};
use crate::process::{Desk, Processes};
use crate::ring::{End, RingHandle};
use crate::state::State;
use crate::value;
use crate::worker::{Seat, Workers};
use napi::sys;
use offloop::buffer::{Region, TransferToken, revoke_token};
use offloop::pool::Stream;
use offloop::ring::{Consumer, Producer};
use offloop::shared::{Counter, RateLimiter};
use offloop::value::{DType, TypedArray};
use offloop::{Bytes, Error, ErrorKind, ThreadPool, TransferBuffer, Value};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;

/// Results of at least so many bytes become external memory. Measured on Node 20: below 4 KiB a copy costs less than an
/// external buffer with its finalizer (about 1.3 µs).
pub(crate) const EXTERNAL_MIN: usize = 4096;

/// What a native handle in JavaScript may hold.
pub(crate) enum Handle {
    Pool(ThreadPool),
    Workers(Workers),
    /// The place of the worker that runs on this thread.
    Seat(Arc<Seat>),
    Processes(Processes),
    /// This process, as the worker of a pool.
    Desk(Rc<Desk>),
    /// Takes what a task of a process says while it runs.
    Stream(Stream),
    Buffer(RefCell<TransferBuffer>),
    /// An input that is copied in slices.
    Staged(RefCell<Vec<u8>>),
    /// Params of a call, converted before any of its buffers is touched.
    Params(Value),
    Ring(RingHandle),
    Producer(Rc<End<Producer>>),
    Consumer(Rc<End<Consumer>>),
    Channel(Rc<ChannelEnd>),
    Listener(Rc<Accepting>),
    Cluster(Clustered),
    /// This process, as the worker of a cluster.
    Member(Rc<Member>),
    /// What connections come over that are passed to it.
    Intake(Intake),
    Counter(Counter),
    Limiter(RateLimiter),
}

/// Memory outside of the collector's heap that it was told of, so that garbage presses it. A region counts once, however
/// many handles and views still hold it: one that travels between threads and comes back is no new memory.
#[derive(Default)]
pub(crate) struct Held(RefCell<HashMap<*const Region, Count>>);

struct Count {
    holders: usize,
    len: i64,
}

impl Held {
    fn add(self: &Rc<Held>, env: Env, region: &Arc<Region>) -> Hold {
        let region_at = Arc::as_ptr(region);
        let mut regions = self.0.borrow_mut();
        let count = regions.entry(region_at).or_insert_with(|| {
            let len = region.len() as i64;
            adjust(env, len);
            Count { holders: 0, len }
        });
        count.holders += 1;
        Hold { held: self.clone(), region: region_at }
    }
}

/// One holder of a region in [`Held`]; whoever has it has the region too, or the address could be another's.
struct Hold {
    held: Rc<Held>,
    region: *const Region,
}

impl Hold {
    fn release(self, env: Env) {
        let mut regions = self.held.0.borrow_mut();
        let Entry::Occupied(mut count) = regions.entry(self.region) else { return };
        count.get_mut().holders -= 1;
        if count.get().holders == 0 {
            adjust(env, -count.remove().len);
        }
    }
}

/// What an external value points at.
pub(crate) struct Owned {
    handle: Handle,
    /// Of the buffer, until it is moved away.
    hold: Cell<Option<Hold>>,
    /// Bytes of a staged input, until it is submitted.
    staged: Cell<i64>,
}

impl Owned {
    /// The buffer of this handle; `None` for another kind.
    pub(crate) fn buffer(&self) -> Option<&RefCell<TransferBuffer>> {
        if let Handle::Buffer(buffer) = &self.handle { Some(buffer) } else { None }
    }

    /// The memory is no longer this handle's.
    pub(crate) fn let_go(&self, env: Env) {
        adjust(env, -self.staged.take());
        if let Some(hold) = self.hold.take() {
            hold.release(env);
        }
    }
}

/// A JavaScript value that owns `handle`.
pub(crate) fn external(env: Env, state: &State, handle: Handle) -> JsResult<Raw> {
    let hold = match &handle {
        Handle::Buffer(b) => b.borrow().view().ok().map(|(region, ..)| state.held.add(env, &region)),
        _ => None,
    };
    let staged = match &handle {
        Handle::Staged(v) => v.borrow().capacity() as i64,
        _ => 0,
    };
    adjust(env, staged);
    let owned = Box::into_raw(Box::new(Owned { handle, hold: Cell::new(hold), staged: Cell::new(staged) }));
    let mut out = null_mut();
    // SAFETY: `owned` is a box that the finalizer takes back once.
    let status = unsafe { sys::napi_create_external(env.0, owned.cast(), Some(drop_handle), null_mut(), &mut out) };
    if status != sys::Status::napi_ok {
        // SAFETY: the runtime did not take it.
        unsafe { Box::from_raw(owned) }.let_go(env);
        env.status(status, "napi_create_external")?;
    }
    Ok(out)
}

fn adjust(env: Env, by: i64) {
    if by != 0 {
        let mut total = 0;
        // SAFETY: only a counter of the runtime.
        unsafe { sys::napi_adjust_external_memory(env.0, by, &mut total) };
    }
}

unsafe extern "C" fn drop_handle(env: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    // SAFETY: the box made in `external`, finalized once.
    let owned = unsafe { Box::from_raw(data.cast::<Owned>()) };
    owned.let_go(Env(env));
}

/// The handle behind a value of [`external`].
pub(crate) fn handle<'a>(call: &'a Call<'_>, value: Raw) -> JsResult<&'a Handle> {
    Ok(&owned(call, value)?.handle)
}

pub(crate) fn owned<'a>(call: &'a Call<'_>, value: Raw) -> JsResult<&'a Owned> {
    let mut data = null_mut();
    // SAFETY: `value` is an argument of the running call, `data` a local.
    let status = unsafe { sys::napi_get_value_external(call.env.0, value, &mut data) };
    call.env.status(status, "napi_get_value_external")?;
    // SAFETY: only `external` makes values that reach these functions (JavaScript keeps them in private fields), and
    // the running call keeps the value alive.
    Ok(unsafe { &*data.cast::<Owned>() })
}

fn buffer<'a>(call: &'a Call<'_>, value: Raw) -> JsResult<&'a RefCell<TransferBuffer>> {
    match handle(call, value)? {
        Handle::Buffer(b) => Ok(b),
        _ => Err(Error::invalid("handle is no buffer").into()),
    }
}

/// Memory of a typed array, valid until JavaScript runs again.
pub(crate) struct View {
    ptr: *const u8,
    /// Bytes.
    pub(crate) len: usize,
    kind: sys::napi_typedarray_type,
}

impl View {
    /// The bytes.
    ///
    /// # Safety
    /// JavaScript does not run while the slice lives, and nobody reads more of it than a copy: another thread may write shared memory.
    pub(crate) unsafe fn as_slice<'a>(&self) -> &'a [u8] {
        // SAFETY: readable for `len` bytes, by this function's contract; an empty array may have no memory.
        if self.len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.ptr, self.len) } }
    }
}

/// Looks at a typed array.
///
/// # Errors
/// `Detached` when its buffer was moved away.
pub(crate) fn view(env: Env, value: Raw) -> JsResult<View> {
    let (mut kind, mut len, mut data, mut arraybuffer) = (0, 0, null_mut(), null_mut());
    // SAFETY: out pointers are locals.
    let status = unsafe { sys::napi_get_typedarray_info(env.0, value, &mut kind, &mut len, &mut data, &mut arraybuffer, null_mut()) };
    if status != sys::Status::napi_ok {
        return Err(Error::invalid("input is no bytes").with("want", "Uint8Array, ArrayBuffer or TransferBuffer").into());
    }
    if len == 0 {
        let mut detached = false;
        // SAFETY: `arraybuffer` was set above.
        unsafe { sys::napi_is_detached_arraybuffer(env.0, arraybuffer, &mut detached) };
        if detached {
            return Err(Error::new(ErrorKind::Detached, "buffer of the input was transferred").into());
        }
    }
    let size = value::dtype(kind).map_or(1, DType::size);
    Ok(View { ptr: data.cast(), len: len * size, kind })
}

/// An empty vector with room for `len` bytes, which are more than there is memory for if another process says so.
///
/// # Errors
/// `Os` (`ENOMEM`).
pub(crate) fn reserve(len: usize) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| Error::os("malloc", 12).with("len", len))?;
    Ok(out)
}

/// A copy of memory that another process may be writing, as [`reserve`]; no reference to it is made.
///
/// # Safety
/// `at` is readable for `len` bytes.
pub(crate) unsafe fn copied(at: *const u8, len: usize) -> Result<Vec<u8>, Error> {
    let mut out = reserve(len)?;
    // SAFETY: by this function's contract; `out` has room.
    unsafe {
        std::ptr::copy_nonoverlapping(at, out.as_mut_ptr(), len);
        out.set_len(len);
    }
    Ok(out)
}

fn append(out: &mut Vec<u8>, view: &View, offset: usize, len: usize) {
    assert!(offset + len <= view.len && out.capacity() - out.len() >= len, "callers check the range and reserve");
    // SAFETY: the range is inside the view, whose memory stays while this thread is not in JavaScript (a shared one may
    // be written by others meanwhile: it is only ever read through this raw copy); `out` has room.
    unsafe {
        std::ptr::copy_nonoverlapping(view.ptr.add(offset), out.as_mut_ptr().add(out.len()), len);
        out.set_len(out.len() + len);
    }
}

/// A copy of a byte view.
pub(crate) fn copy(env: Env, value: Raw) -> JsResult<Vec<u8>> {
    let view = view(env, value)?;
    let mut out = reserve(view.len)?;
    append(&mut out, &view, 0, view.len);
    Ok(out)
}

/// A copy of any typed array: bytes, or typed elements.
pub(crate) fn copy_typed(env: Env, value: Raw) -> JsResult<Value> {
    let kind = view(env, value)?.kind;
    let bytes: Bytes = copy(env, value)?.into();
    Ok(match value::dtype(kind) {
        Some(DType::U8) => Value::Bytes(bytes),
        Some(dtype) => TypedArray { dtype, shape: vec![(bytes.len() / dtype.size()) as u64], bytes }.into(),
        None => {
            return Err(Error::new(ErrorKind::Unserializable, "value cannot travel").with("type", "typed array of an unknown kind").into());
        }
    })
}

/// Buffers that a call moves. They keep their bytes until the pool has taken all of them, so a refused call loses nothing.
#[derive(Default)]
pub(crate) struct Moves<'a>(Vec<&'a Owned>);

impl<'a> Moves<'a> {
    /// An input of a task: a copied view, a moved buffer, or what was copied in slices.
    pub(crate) fn input(&mut self, call: &'a Call<'_>, value: Raw) -> JsResult<Bytes> {
        if call.env.type_of(value)? != sys::ValueType::napi_external {
            return Ok(copy(call.env, value)?.into());
        }
        let given = owned(call, value)?;
        match &given.handle {
            Handle::Buffer(b) => {
                if self.0.iter().any(|moved| std::ptr::eq(*moved, given)) {
                    return Err(Error::new(ErrorKind::Detached, "buffer is given twice in one call").into());
                }
                // SAFETY: JavaScript, the only writer, does not run before `commit` or the drop of the bytes: params were
                // converted by `poolParams`, options are read as primitives, and inputs come in plain arrays of this
                // package, which have no getters. `endMove` detaches the view before any code of the user runs.
                let bytes = unsafe { b.borrow().lend() }?;
                self.0.push(given);
                Ok(bytes)
            }
            Handle::Staged(v) => {
                given.let_go(call.env);
                Ok(std::mem::take(&mut *v.borrow_mut()).into())
            }
            _ => Err(Error::invalid("input is no bytes").into()),
        }
    }

    /// The pool has taken them.
    pub(crate) fn commit(self, env: Env) {
        for given in self.0 {
            given.let_go(env);
            if let Handle::Buffer(b) = &given.handle {
                b.borrow_mut().detach();
            }
        }
    }
}

fn copied_arraybuffer(env: Env, bytes: &[u8]) -> JsResult<Raw> {
    let (mut data, mut out) = (null_mut(), null_mut());
    // SAFETY: out pointers are locals.
    let status = unsafe { sys::napi_create_arraybuffer(env.0, bytes.len(), &mut data, &mut out) };
    if status != sys::Status::napi_ok {
        env.take_exception();
        return Err(Error::new(ErrorKind::TooLarge, "result does not fit an ArrayBuffer").with("len", bytes.len()).into());
    }
    if !bytes.is_empty() {
        // SAFETY: the new buffer has `bytes.len()` bytes and nobody else has seen it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast(), bytes.len()) };
    }
    Ok(out)
}

/// What an external `ArrayBuffer` keeps alive.
enum Guard {
    Bytes(Bytes),
    Region {
        hold: Hold,
        _region: Arc<Region>,
    },
    /// Whatever keeps memory that is not the core's `Bytes` or `Region`.
    Other {
        _keeps: Box<dyn Any>,
    },
}

/// An `ArrayBuffer` over memory that `guard` keeps; gives the guard back where the runtime refuses external memory.
fn external_arraybuffer(env: Env, ptr: *mut u8, len: usize, guard: Guard) -> Result<Raw, Guard> {
    let hint = Box::into_raw(Box::new(guard));
    let mut out = null_mut();
    // SAFETY: `ptr..ptr+len` lives as long as the guard, which the finalizer takes back once.
    let status = unsafe { sys::napi_create_external_arraybuffer(env.0, ptr.cast(), len, Some(drop_guard), hint.cast(), &mut out) };
    if status == sys::Status::napi_ok {
        return Ok(out);
    }
    // SAFETY: the runtime did not take it.
    Err(*unsafe { Box::from_raw(hint) })
}

/// An `ArrayBuffer` over memory that `keeps` keeps alive; `None` where the runtime refuses external memory.
pub(crate) fn outside_memory(env: Env, state: &State, at: *mut u8, len: usize, keeps: Box<dyn Any>) -> Option<Raw> {
    if !state.external_allowed() {
        return None;
    }
    let opened = external_arraybuffer(env, at, len, Guard::Other { _keeps: keeps }).ok();
    if opened.is_none() {
        env.take_exception();
        state.forbid_external();
    }
    opened
}

/// All of a new `ArrayBuffer` as a `Uint8Array`.
pub(crate) fn bytes_of(env: Env, arraybuffer: Raw, len: usize) -> JsResult<Raw> {
    let mut out = null_mut();
    // SAFETY: `arraybuffer` is new and has `len` bytes, as the callers say.
    let status = unsafe { sys::napi_create_typedarray(env.0, sys::TypedarrayType::uint8_array, len, arraybuffer, 0, &mut out) };
    env.status(status, "napi_create_typedarray")?;
    Ok(out)
}

unsafe extern "C" fn drop_guard(env: sys::napi_env, _: *mut c_void, hint: *mut c_void) {
    // SAFETY: the box made in `external_arraybuffer`, finalized once.
    if let Guard::Region { hold, .. } = *unsafe { Box::from_raw(hint.cast::<Guard>()) } {
        hold.release(Env(env));
    }
}

/// A typed array over `bytes`: a copy when they are few, may not be written, or external memory is refused.
pub(crate) fn typedarray(env: Env, state: &State, bytes: Bytes, kind: sys::napi_typedarray_type, size: usize) -> JsResult<Raw> {
    let len = bytes.len();
    let buffer = if len < EXTERNAL_MIN || !state.external_allowed() {
        copied_arraybuffer(env, &bytes)?
    } else {
        let bytes = if bytes.is_private() {
            bytes
        } else {
            // SAFETY: borrowed during the call.
            unsafe { copied(bytes.as_ptr(), bytes.len()) }?.into()
        };
        let ptr = bytes.as_slice().as_ptr().cast_mut();
        match external_arraybuffer(env, ptr, len, Guard::Bytes(bytes)) {
            Ok(buffer) => buffer,
            Err(guard) => {
                env.take_exception();
                state.forbid_external();
                let Guard::Bytes(bytes) = guard else { unreachable!("the guard given above") };
                copied_arraybuffer(env, &bytes)?
            }
        }
    };
    let mut out = null_mut();
    // SAFETY: `buffer` is new and has `len` bytes.
    let status = unsafe { sys::napi_create_typedarray(env.0, kind, len / size, buffer, 0, &mut out) };
    env.status(status, "napi_create_typedarray")?;
    Ok(out)
}

/// A `Uint8Array` over `bytes`.
pub(crate) fn uint8array(env: Env, state: &State, bytes: Bytes) -> JsResult<Raw> {
    typedarray(env, state, bytes, sys::TypedarrayType::uint8_array, 1)
}

/// Writable memory of a `Uint8Array` that this package's JavaScript allocated for a drain.
#[allow(clippy::mut_from_ref, reason = "the memory belongs to the JavaScript array, not to the call")]
pub(crate) fn scratch<'a>(call: &'a Call<'_>, value: Raw) -> JsResult<&'a mut [u8]> {
    let view = view(call.env, value)?;
    if view.len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the array belongs to this package's JavaScript, which passes each one once per call and does not run meanwhile.
    Ok(unsafe { std::slice::from_raw_parts_mut(view.ptr.cast_mut(), view.len) })
}

/// `stage(len)`: memory for an input that is copied in slices.
pub(crate) fn stage(call: &Call<'_>) -> JsResult<Raw> {
    let len = length(call, 0)?;
    external(call.env, call.state, Handle::Staged(reserve(len)?.into()))
}

/// `stageCopy(handle, view, offset, len, total)`: appends a slice.
///
/// # Errors
/// `Detached`, `Invalid` when the input is no longer `total` bytes long.
pub(crate) fn stage_copy(call: &Call<'_>) -> JsResult<Raw> {
    let Handle::Staged(out) = handle(call, call.arg(0))? else {
        return Err(Error::invalid("handle is no staged input").into());
    };
    let view = view(call.env, call.arg(1))?;
    let (offset, len, total) = (length(call, 2)?, length(call, 3)?, length(call, 4)?);
    if view.len != total {
        return Err(Error::invalid("input changed its length while it was copied").with("len", view.len).with("len_at_call", total).into());
    }
    append(&mut out.borrow_mut(), &view, offset, len);
    Ok(call.env.undefined())
}

/// A length argument.
pub(crate) fn length(call: &Call<'_>, at: usize) -> JsResult<usize> {
    let shown = |text: String| Error::invalid("length is not a whole number of bytes").with("byteLength", text).with("min", 0);
    let n = call.env.f64(call.arg(at)).ok_or_else(|| shown("not a number".into()))?;
    if n.fract() != 0.0 || !(0.0..=9_007_199_254_740_991.0).contains(&n) {
        return Err(shown(n.to_string()).into());
    }
    Ok(n as usize)
}

/// `bufferAlloc(len, shared)`.
pub(crate) fn alloc(call: &Call<'_>) -> JsResult<Raw> {
    let len = length(call, 0)?;
    let made = if call.env.bool(call.arg(1)) == Some(true) { TransferBuffer::alloc_shared(len)? } else { TransferBuffer::alloc(len)? };
    external(call.env, call.state, Handle::Buffer(made.into()))
}

/// `bufferFrom(view)`: a copy.
pub(crate) fn from(call: &Call<'_>) -> JsResult<Raw> {
    let view = view(call.env, call.arg(0))?;
    // SAFETY: the memory stays while this thread is not in JavaScript; `from_slice` only copies from it.
    let bytes = if view.len == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(view.ptr, view.len) } };
    external(call.env, call.state, Handle::Buffer(TransferBuffer::from_slice(bytes)?.into()))
}

/// `bufferLength(handle)`.
pub(crate) fn byte_length(call: &Call<'_>) -> JsResult<Raw> {
    call.env.number(buffer(call, call.arg(0))?.borrow().len() as f64)
}

/// `bufferFd(handle)`: the memfd, or null.
pub(crate) fn fd(call: &Call<'_>) -> JsResult<Raw> {
    match buffer(call, call.arg(0))?.borrow().fd() {
        Some(fd) => call.env.number(f64::from(fd)),
        None => Ok(call.env.null()),
    }
}

/// `bufferView(handle)`: `[Uint8Array, external]`; external is false when the runtime refused and the view is a copy.
pub(crate) fn open_view(call: &Call<'_>) -> JsResult<Raw> {
    let (env, state) = (call.env, call.state);
    let (region, ptr, len): (Arc<Region>, _, _) = buffer(call, call.arg(0))?.borrow().view()?;
    let opened = if state.external_allowed() && len > 0 {
        let guard = Guard::Region { hold: state.held.add(env, &region), _region: region };
        external_arraybuffer(env, ptr, len, guard)
    } else {
        Err(Guard::Bytes(Bytes::default()))
    };
    let external = opened.is_ok() || len == 0;
    let arraybuffer = match opened {
        Ok(opened) => opened,
        Err(guard) => {
            if let Guard::Region { hold, .. } = guard {
                hold.release(env);
            }
            env.take_exception();
            copied_arraybuffer(env, &buffer(call, call.arg(0))?.borrow().to_vec()?)?
        }
    };
    let mut view = null_mut();
    // SAFETY: the buffer is new and has `len` bytes.
    let status = unsafe { sys::napi_create_typedarray(env.0, sys::TypedarrayType::uint8_array, len, arraybuffer, 0, &mut view) };
    env.status(status, "napi_create_typedarray")?;
    let out = env.array(2)?;
    env.set_at(out, 0, view)?;
    env.set_at(out, 1, env.boolean(external)?)?;
    Ok(out)
}

/// `bufferWrite(handle, view)`: takes a copied view's bytes back, where the runtime refuses external memory.
pub(crate) fn write_back(call: &Call<'_>) -> JsResult<Raw> {
    let bytes = copy(call.env, call.arg(1))?;
    buffer(call, call.arg(0))?.borrow_mut().write_at(0, &bytes)?;
    Ok(call.env.undefined())
}

/// `bufferSeparate(handle)`: moves the bytes to memory that no view has seen.
pub(crate) fn separate(call: &Call<'_>) -> JsResult<Raw> {
    let buffer = buffer(call, call.arg(0))?;
    let fresh = TransferBuffer::from_slice(&buffer.borrow().to_vec()?)?;
    let given = owned(call, call.arg(0))?;
    given.let_go(call.env);
    given.hold.set(Some(call.state.held.add(call.env, &fresh.view()?.0)));
    *buffer.borrow_mut() = fresh;
    Ok(call.env.undefined())
}

/// `detach(arraybuffer)`: its views have length 0 from now on. Only for memory that `bufferView` opened.
pub(crate) fn detach(call: &Call<'_>) -> JsResult<Raw> {
    // SAFETY: the argument is a value of the running call; the runtime checks that it can be detached.
    let status = unsafe { sys::napi_detach_arraybuffer(call.env.0, call.arg(0)) };
    call.env.status(status, "napi_detach_arraybuffer")?;
    Ok(call.env.undefined())
}

/// Takes the memory away from an `ArrayBuffer`; false if it has none any more, or keeps it.
pub(crate) fn detach_now(env: Env, arraybuffer: Raw) -> bool {
    let mut detached = false;
    // SAFETY: the argument is a value of the running call, the out pointer a local; the runtime checks that it is an `ArrayBuffer`.
    let looked = unsafe { sys::napi_is_detached_arraybuffer(env.0, arraybuffer, &mut detached) };
    // SAFETY: as above.
    looked == sys::Status::napi_ok && !detached && unsafe { sys::napi_detach_arraybuffer(env.0, arraybuffer) } == sys::Status::napi_ok
}

/// `bufferTransfer(handle)`: the token.
pub(crate) fn transfer(call: &Call<'_>) -> JsResult<Raw> {
    let token = buffer(call, call.arg(0))?.borrow_mut().transfer()?;
    owned(call, call.arg(0))?.let_go(call.env);
    call.env.string(&token.to_string())
}

fn token(call: &Call<'_>) -> JsResult<TransferToken> {
    match call.env.text(call.arg(0)) {
        Some(text) => Ok(text.parse::<TransferToken>()?),
        None => Err(Error::invalid("transfer token is not text").into()),
    }
}

/// `bufferReceive(token)`.
pub(crate) fn receive(call: &Call<'_>) -> JsResult<Raw> {
    external(call.env, call.state, Handle::Buffer(TransferBuffer::receive(token(call)?)?.into()))
}

/// `revokeToken(token)`.
pub(crate) fn revoke(call: &Call<'_>) -> JsResult<Raw> {
    revoke_token(token(call)?)?;
    Ok(call.env.undefined())
}

/// A file descriptor argument.
pub(crate) fn raw_fd(env: Env, value: Raw) -> JsResult<RawFd> {
    let given = env.f64(value).unwrap_or(f64::NAN);
    if given.fract() != 0.0 || !(0.0..=f64::from(RawFd::MAX)).contains(&given) {
        return Err(Error::invalid("file descriptor is out of range").with("fd", given).with("min", 0).with("max", RawFd::MAX).into());
    }
    Ok(given as RawFd)
}

/// `bufferAttach(fd)`.
pub(crate) fn attach(call: &Call<'_>) -> JsResult<Raw> {
    // SAFETY: not -1; the core checks that it is an open, sealed memfd and duplicates it.
    let fd = unsafe { BorrowedFd::borrow_raw(raw_fd(call.env, call.arg(0))?) };
    external(call.env, call.state, Handle::Buffer(TransferBuffer::attach(fd)?.into()))
}
