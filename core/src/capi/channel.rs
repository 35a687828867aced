//! Channels for C.

use crate::abi::ffi::{self, Options as CStruct, Out, offloop_status};
use crate::abi::handle::{self, Handle, Kinded, Object, Place};
use crate::abi::{offloop_value, value};
use crate::capi::{offloop_channel, offloop_listener, path};
use crate::channel::{Channel, Incoming, Listener, MAX_FDS, Message, Options, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::value::Value;
use std::ffi::c_char;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

/// Most fds, those of buffers that move included, in one message.
pub const OFFLOOP_CHANNEL_MAX_FDS: usize = 253;

const _: () = assert!(OFFLOOP_CHANNEL_MAX_FDS == MAX_FDS);

/// Sizes of a channel. 0 means the default everywhere; start from OFFLOOP_CHANNEL_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_channel_options {
    /// sizeof(offloop_channel_options).
    pub struct_size: usize,
    /// Bytes of the ring of each direction, for whoever makes the channel (pair, listen): 256 KiB. A message of more than half of them
    /// goes beside the ring.
    pub capacity: usize,
    /// Longest message without the buffers that move: 256 MiB.
    pub max_message: usize,
    /// Bytes that wait in this process, each way: what offloop_channel_post_request queues when there is no room, and what a request reads
    /// ahead for offloop_channel_recv. Whole messages count, with the buffers that move; one alone may be longer: 16 MiB.
    pub max_queued: usize,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl CStruct for offloop_channel_options {
    const MIN_SIZE: usize = size_of::<offloop_channel_options>();
    const NAME: &'static str = "offloop_channel_options";
}

/// A message: `value` and `fds` are the caller's.
pub const OFFLOOP_INCOMING_MESSAGE: u32 = 1;
/// A request, to be answered by offloop_channel_reply with its `id`: `value` and `fds` are the caller's.
pub const OFFLOOP_INCOMING_REQUEST: u32 = 2;
/// The outcome of the request `id`: where `status` is OFFLOOP_OK, `value` and `fds` are the caller's, and `failed` says whether they are
/// a result or an error of whoever was asked.
pub const OFFLOOP_INCOMING_REPLY: u32 = 3;
/// There is room again, after an offloop_channel_try_send or offloop_channel_post_request that found none.
pub const OFFLOOP_INCOMING_DRAINED: u32 = 4;

/// What came over a channel. The caller frees the value and closes the fds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct offloop_incoming {
    /// One of OFFLOOP_INCOMING_….
    pub kind: u32,
    /// Not 0: whoever was asked failed, and the value is its error.
    pub failed: u32,
    /// Of a reply: OFFLOOP_OK, or why there is none.
    pub status: offloop_status,
    /// Fds that came along, close-on-exec.
    pub fd_count: u32,
    /// Of a request or reply.
    pub id: u64,
    /// The value; NULL where there is none.
    pub value: *mut offloop_value,
    /// The fds.
    pub fds: [i32; OFFLOOP_CHANNEL_MAX_FDS],
    /// 0.
    pub reserved: u32,
}

impl offloop_incoming {
    fn empty(kind: u32, id: u64) -> offloop_incoming {
        let value = std::ptr::null_mut();
        offloop_incoming { kind, failed: 0, status: ffi::OK, fd_count: 0, id, value, fds: [-1; OFFLOOP_CHANNEL_MAX_FDS], reserved: 0 }
    }

    pub(super) fn of(place: Place, incoming: Incoming) -> offloop_incoming {
        match incoming {
            Incoming::Message(message) => offloop_incoming::empty(OFFLOOP_INCOMING_MESSAGE, 0).with(place, message),
            Incoming::Request(request) => offloop_incoming::empty(OFFLOOP_INCOMING_REQUEST, request.id).with(place, request.message),
            Incoming::Reply { id, outcome: Ok(reply) } => offloop_incoming::reply(place, id, reply),
            Incoming::Reply { id, outcome: Err(e) } => {
                offloop_incoming { status: e.status(), ..offloop_incoming::empty(OFFLOOP_INCOMING_REPLY, id) }
            }
            Incoming::Drained => offloop_incoming::empty(OFFLOOP_INCOMING_DRAINED, 0),
        }
    }

    fn reply(place: Place, id: u64, reply: Reply) -> offloop_incoming {
        let failed = reply.failed.into();
        offloop_incoming { failed, ..offloop_incoming::empty(OFFLOOP_INCOMING_REPLY, id) }.with(place, reply.message)
    }

    fn with(mut self, place: Place, message: Message) -> offloop_incoming {
        self.value = place.fill(offloop_value::KIND, value::Root::object(message.value)).as_ptr();
        for (to, fd) in self.fds.iter_mut().zip(message.fds) {
            *to = fd.into_raw_fd();
            self.fd_count += 1;
        }
        self
    }
}

/// # Safety
/// `options` is NULL or points at a struct of its `struct_size`.
unsafe fn sizes(options: *const offloop_channel_options) -> Result<Options> {
    // SAFETY: this function's contract.
    let given = unsafe { ffi::options(options) }?;
    let defaults = Options::default();
    let or = |n: usize, default| if n == 0 { default } else { n };
    Ok(Options {
        capacity: or(given.capacity, defaults.capacity),
        max_message: or(given.max_message, defaults.max_message),
        max_queued: or(given.max_queued, defaults.max_queued),
    })
}

fn channel(c: *const offloop_channel) -> Result<Arc<Channel>> {
    handle::shared(c)
}

/// Calls `send` with the value and the fds; the value is moved if it succeeds.
///
/// # Safety
/// `value_io` is NULL or points at a handle, `fds` points at `count` numbers.
pub(super) unsafe fn sending<R>(
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    count: usize,
    send: impl FnOnce(&mut Value, &[BorrowedFd<'_>]) -> Result<R>,
) -> Result<R> {
    // SAFETY: this function's contract.
    let fds = unsafe { ffi::slice(fds, count, "fds") }?;
    if let Some(bad) = fds.iter().find(|fd| **fd < 0) {
        return Err(Error::invalid("fd is negative").with("fd", bad));
    }
    // SAFETY: not -1; a number that is not open is refused by the first call on it.
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
    // SAFETY: as above.
    let mut moved = unsafe { ffi::moved(value_io, "value_io") }?;
    let Object::Value(root) = moved.object() else {
        return Err(Error::invalid("borrowed value cannot be sent"));
    };
    let sent = send(&mut root.value, &fds)?;
    if let Object::Value(root) = moved.done() {
        value::end_views(root.views);
    }
    Ok(sent)
}

/// Makes two ends that are connected. Either may be used here, or opened by a child process instead that inherits its socket
/// (offloop_channel_socket) and calls offloop_channel_attach. `options` may be NULL.
///
/// # Safety
/// `options` is NULL or as long as it says, `out_a` and `out_b` are valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_pair(
    options: *const offloop_channel_options,
    out_a: *mut *mut offloop_channel,
    out_b: *mut *mut offloop_channel,
) -> offloop_status {
    ffi::call(|| {
        let (out_a, out_b) = (ffi::out(out_a, "out_a")?, ffi::out(out_b, "out_b")?);
        let (place_a, place_b) = (Place::new()?, Place::new()?);
        // SAFETY: this function's contract.
        let (a, b) = Channel::pair(unsafe { sizes(options) }?)?;
        out_a.set(place_a.fill_shared(Arc::new(a)));
        out_b.set(place_b.fill_shared(Arc::new(b)));
        Ok(())
    })
}

/// Opens the end of a pair whose socket this process inherited. The fd belongs to the channel from now on; after an error it is the
/// caller's still. OFFLOOP_ERR_INVALID when it is no such socket or another user's; OFFLOOP_ERR_CORRUPT, OFFLOOP_ERR_VERSION when nothing
/// of this version waits in it; OFFLOOP_ERR_PEER_DIED when the other end is gone; OFFLOOP_ERR_IN_USE when another end in this process has
/// that fd. `options` may be NULL.
///
/// # Safety
/// `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_attach(
    fd: i32,
    options: *const offloop_channel_options,
    out: *mut *mut offloop_channel,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        // SAFETY: this function's contract.
        let options = unsafe { sizes(options) }?;
        if fd < 0 {
            return Err(Error::invalid("fd is negative").with("fd", fd));
        }
        // SAFETY: not -1; it is given back untouched unless it is an end of a channel, which the caller hands over.
        match Channel::attach(unsafe { OwnedFd::from_raw_fd(fd) }, options) {
            Ok(channel) => {
                out.set(place.fill_shared(Arc::new(channel)));
                Ok(())
            }
            Err((e, fd)) => {
                let _ = fd.into_raw_fd();
                Err(e)
            }
        }
    })
}

/// Connects to who listens at `name`; waits at most `timeout_ns` (below 0: for ever) until the connection was accepted.
/// OFFLOOP_ERR_NOT_FOUND when nobody listens there. `options` may be NULL.
///
/// # Safety
/// `name` is NUL-terminated, `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_connect(
    name: *const c_char,
    timeout_ns: i64,
    options: *const offloop_channel_options,
    out: *mut *mut offloop_channel,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        // SAFETY: this function's contract.
        let (name, options) = unsafe { (path(name)?, sizes(options)?) };
        out.set(place.fill_shared(Arc::new(Channel::connect(name, ffi::forever_or(timeout_ns), options)?)));
        Ok(())
    })
}

/// Listens for channels at `name`: a path, or a name without a slash, which lies below $XDG_RUNTIME_DIR/offloop. Only this user's
/// processes can connect. OFFLOOP_ERR_EXISTS while somebody listens there. `options` may be NULL.
///
/// # Safety
/// `name` is NUL-terminated, `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_listen(
    name: *const c_char,
    options: *const offloop_channel_options,
    out: *mut *mut offloop_listener,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        // SAFETY: this function's contract.
        let (name, options) = unsafe { (path(name)?, sizes(options)?) };
        out.set(place.fill_shared(Arc::new(Channel::listen(name, options)?)));
        Ok(())
    })
}

/// Takes the next channel; waits for one at most `timeout_ns` (0: not at all; below 0: for ever).
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_listener_accept(
    listener: *mut offloop_listener,
    timeout_ns: i64,
    out: *mut *mut offloop_channel,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        let listener: Arc<Listener> = handle::shared(listener.cast_const())?;
        out.set(place.fill_shared(Arc::new(listener.accept(ffi::forever_or(timeout_ns))?)));
        Ok(())
    })
}

/// An fd that is readable while somebody waits to be accepted. It is the listener's.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_listener_fd(listener: *mut offloop_listener, out: *mut i32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let listener: Arc<Listener> = handle::shared(listener.cast_const())?;
        out.set(listener.fd());
        Ok(())
    })
}

/// Ends the listener; channels that were accepted go on. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_listener_free(listener: *mut offloop_listener) {
    if !listener.is_null() {
        ffi::call(|| handle::take(Handle::of(listener), offloop_listener::KIND).map(drop));
    }
}

/// The socket of an end that was not used yet, for a child process to inherit. It is the channel's: free this end once the child is
/// started. OFFLOOP_ERR_IN_USE once this end was used here.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_socket(c: *mut offloop_channel, out: *mut i32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(channel(c)?.socket()?);
        Ok(())
    })
}

/// Sends a value, whose buffers move, and fds, which are duplicated. Waits for room at most `timeout_ns` (below 0: for ever).
/// OFFLOOP_ERR_TIMEOUT; OFFLOOP_ERR_TOO_LARGE for a message or a number of fds over its limit; OFFLOOP_ERR_CLOSED and
/// OFFLOOP_ERR_PEER_DIED when the channel has ended.
///
/// # Safety
/// `value_io` points at a value of the caller, `fds` points at `fd_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_send(
    c: *mut offloop_channel,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    timeout_ns: i64,
) -> offloop_status {
    ffi::call(|| {
        let channel = channel(c)?;
        // SAFETY: this function's contract.
        unsafe { sending(value_io, fds, fd_count, |value, fds| channel.send(value, fds, ffi::forever_or(timeout_ns))) }
    })
}

/// As offloop_channel_send without waiting: OFFLOOP_ERR_FULL while there is no room. OFFLOOP_INCOMING_DRAINED tells when there is.
///
/// # Safety
/// As offloop_channel_send.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_try_send(
    c: *mut offloop_channel,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
) -> offloop_status {
    ffi::call(|| {
        let channel = channel(c)?;
        let full = || Error::new(ErrorKind::Full, "no room in the channel");
        // SAFETY: this function's contract.
        unsafe { sending(value_io, fds, fd_count, |value, fds| channel.try_send(value, fds)?.then_some(()).ok_or_else(full)) }
    })
}

/// Gives what came next; waits for it at most `timeout_ns` (below 0: for ever). After the last message OFFLOOP_ERR_CLOSED or
/// OFFLOOP_ERR_PEER_DIED, or OFFLOOP_ERR_CORRUPT when the other end broke the protocol. OFFLOOP_ERR_OS when fds or memory for a message are
/// missing: the next call finds it again.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_recv(c: *mut offloop_channel, timeout_ns: i64, out: *mut offloop_incoming) -> offloop_status {
    receiving(out, |place, out| {
        out.set(offloop_incoming::of(place, channel(c)?.recv(ffi::forever_or(timeout_ns))?));
        Ok(())
    })
}

/// As offloop_channel_recv without waiting: OFFLOOP_ERR_EMPTY when there is nothing now, which arms offloop_channel_fd.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_try_recv(c: *mut offloop_channel, out: *mut offloop_incoming) -> offloop_status {
    receiving(out, |place, out| {
        let empty = || Error::new(ErrorKind::Empty, "nothing on the channel");
        out.set(offloop_incoming::of(place, channel(c)?.try_recv()?.ok_or_else(empty)?));
        Ok(())
    })
}

fn receiving(out: *mut offloop_incoming, f: impl FnOnce(Place, Out<offloop_incoming>) -> Result<()>) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // Before anything is taken.
        f(Place::new()?, out)
    })
}

/// Sends a request and waits for its reply, at most `timeout_ns` in all (below 0: for ever). What comes meanwhile is kept for
/// offloop_channel_recv. OFFLOOP_ERR_TIMEOUT: a later reply is dropped. OFFLOOP_ERR_FULL when too many requests wait for a reply, or when
/// the reply lies behind more messages than are kept while no thread but this one has received any.
///
/// # Safety
/// As offloop_channel_send; `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_request(
    c: *mut offloop_channel,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    timeout_ns: i64,
    out: *mut offloop_incoming,
) -> offloop_status {
    receiving(out, |place, out| {
        let channel = channel(c)?;
        // SAFETY: this function's contract.
        let reply = unsafe { sending(value_io, fds, fd_count, |value, fds| channel.request(value, fds, ffi::forever_or(timeout_ns))) }?;
        out.set(offloop_incoming::reply(place, 0, reply));
        Ok(())
    })
}

/// As offloop_channel_request for an event loop: returns at once, and the outcome comes as OFFLOOP_INCOMING_REPLY with `*id`. Where there is
/// no room it is queued. OFFLOOP_ERR_FULL when too much is queued or not answered.
///
/// # Safety
/// As offloop_channel_send; `id` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_post_request(
    c: *mut offloop_channel,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    timeout_ns: i64,
    id: *mut u64,
) -> offloop_status {
    ffi::call(|| {
        let (channel, id) = (channel(c)?, ffi::out(id, "id")?);
        // SAFETY: this function's contract.
        let posted =
            unsafe { sending(value_io, fds, fd_count, |value, fds| channel.post_request(value, fds, ffi::forever_or(timeout_ns))) }?;
        id.set(posted);
        Ok(())
    })
}

/// Answers the request `id`; waits for room like offloop_channel_send. Where `failed` is not 0 the value is an error.
///
/// # Safety
/// As offloop_channel_send.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_reply(
    c: *mut offloop_channel,
    id: u64,
    failed: i32,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    timeout_ns: i64,
) -> offloop_status {
    ffi::call(|| {
        let (channel, timeout) = (channel(c)?, ffi::forever_or(timeout_ns));
        // SAFETY: this function's contract.
        unsafe { sending(value_io, fds, fd_count, |value, fds| channel.reply(id, failed != 0, value, fds, timeout)) }
    })
}

/// An fd that is readable when offloop_channel_try_recv may have something to give. Level-triggered: a call that gives OFFLOOP_ERR_EMPTY has
/// armed it. It is the channel's.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_fd(c: *mut offloop_channel, out: *mut i32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(channel(c)?.fd()?);
        Ok(())
    })
}

/// Ends the channel for both ends: the other one gets what was sent, and OFFLOOP_ERR_CLOSED after it. Wakes all who wait here. What
/// offloop_channel_post_request queued is sent first, by offloop_channel_try_recv, which gives OFFLOOP_ERR_CLOSED when that is done;
/// offloop_channel_shutdown bounds it. Of an end of a pair that was never used only the socket is closed, for a child may have it; if none
/// has, the other end gets OFFLOOP_ERR_PEER_DIED.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_close(c: *mut offloop_channel) -> offloop_status {
    ffi::call(|| {
        channel(c)?.close();
        Ok(())
    })
}

/// Ends the channel as offloop_channel_close does, and waits at most `grace_ns` (0: not at all; below 0: for ever) until what was queued is
/// sent. What is not by then is dropped: an end that does not read keeps nobody.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_shutdown(c: *mut offloop_channel, grace_ns: i64) -> offloop_status {
    ffi::call(|| {
        channel(c)?.shutdown(ffi::forever_or(grace_ns));
        Ok(())
    })
}

/// Closes the channel, unless another call uses it, and frees the handle. On an end that was never used only its socket is closed: a
/// child that inherited it goes on. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_channel_free(c: *mut offloop_channel) {
    if !c.is_null() {
        ffi::call(|| handle::take(Handle::of(c), offloop_channel::KIND).map(drop));
    }
}
