//! This process as the worker of a cluster, for C. `capi/cluster.rs` is the other side.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::abi::handle::{self, Place};
use crate::abi::offloop_value;
use crate::capi::channel::{offloop_incoming, sending};
use crate::capi::offloop_channel;
use crate::cluster::{Worker, worker};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::thread;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

static OWN: ForkCell<Mutex<Option<Worker>>> = ForkCell::new();
/// What connections of the sockets of the option `listen` come over, where they are passed.
static SEATS: ForkCell<Mutex<HashMap<usize, c_int>>> = ForkCell::new();

/// A thread receives messages.
static HEARS: ForkCell<AtomicBool> = ForkCell::new();
/// Until the next attempt after fds or memory were missing; nothing is lost meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Attached at the first question.
pub(super) fn own() -> Result<Worker> {
    let mut own = lock(OWN.get(Mutex::default));
    if own.is_none() {
        *own = worker::attach()?;
    }
    own.clone().ok_or_else(|| Error::new(ErrorKind::Unsupported, "no cluster has started this process"))
}

/// This worker's place in its cluster, from 0 on; that of a spare is 1,024 or higher until it takes a worker's place. OFFLOOP_ERR_UNSUPPORTED when no cluster has started this process, so that a program can be both. The first
/// call of any offloop_worker_ function of a cluster starts a thread that shows the cluster that this process lives; call it on the first thread.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_slot(out: *mut u32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(own()?.supervisor().id().slot);
        Ok(())
    })
}

/// The (re)load that this worker belongs to, from 1 on. OFFLOOP_ERR_UNSUPPORTED as for offloop_worker_slot.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_generation(out: *mut u32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(own()?.supervisor().id().generation);
        Ok(())
    })
}

/// How many listening sockets the cluster's option listen has; 0 also where no cluster has started this process.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_fd_count() -> usize {
    ffi::call_or(0, || own().map_or(0, |worker| worker.fds().len()))
}

/// The listening socket `index` of the cluster's option listen, -1 where there is none. Non-blocking, close-on-exec, and this process's own: closing it keeps no other worker
/// from it. With a balance by which the cluster accepts it is no socket that listens, but what connections come over, from the first call on: poll it for reading, and take
/// them by offloop_worker_accept, which goes with either.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_fd(index: usize) -> c_int {
    ffi::call_or(-1, || own().and_then(|worker| fd_of(&worker, index)).unwrap_or(-1))
}

fn fd_of(worker: &Worker, index: usize) -> Result<c_int> {
    let missing = || Error::new(ErrorKind::NotFound, "cluster has no such socket").with("index", index);
    let fd = worker.fds().get(index).copied().ok_or_else(missing)?;
    if !worker.is_passed() {
        return Ok(fd);
    }
    let mut seats = lock(SEATS.get(Mutex::default));
    if let Some(seat) = seats.get(&index) {
        return Ok(*seat);
    }
    let (seat, _) = worker.seat(index)?;
    Ok(*seats.entry(index).or_insert(seat.into_raw_fd()))
}

/// An fd that is readable from when this worker takes connections, and for good: that of a spare from when it takes a worker's place, that of any other from the start. Poll it, do not
/// read or close it; a program that polls listeners itself begins then. -1 where no cluster has started this process.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_active_fd() -> c_int {
    ffi::call_or(-1, || own().map_or(-1, |worker| worker.supervisor().active_fd().as_raw_fd()))
}

/// Takes a connection that waits at `listener`, an fd of offloop_worker_fd or offloop_worker_listen, at most after `timeout_ns` (0: one that is there; below 0: for ever). It is the
/// caller's to close, non-blocking and close-on-exec. OFFLOOP_ERR_TIMEOUT when none came, and while this worker is a spare. OFFLOOP_ERR_OS with EMFILE when this process has no room for it: it waits, or another worker gets
/// it. OFFLOOP_ERR_PEER_DIED when the cluster is gone. With balance "least-connections" call offloop_worker_closed for each that has ended.
///
/// # Safety
/// `out` is valid for writing; `listener` stays open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_accept(listener: c_int, timeout_ns: i64, out: *mut c_int) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let worker = own()?;
        if listener < 0 {
            return Err(Error::invalid("fd is none").with("listener", listener));
        }
        // SAFETY: the caller keeps it open during the call.
        let from = unsafe { BorrowedFd::borrow_raw(listener) };
        let none = || Error::new(ErrorKind::Timeout, "no connection came").with("timeout_ns", timeout_ns);
        let connection = worker.accept(from, ffi::forever_or(timeout_ns))?.ok_or_else(none)?;
        out.set(connection.into_raw_fd());
        Ok(())
    })
}

/// Says that a connection of offloop_worker_accept has ended, for the balance "least-connections", which counts those that have not. Does nothing with any other.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_closed() -> offloop_status {
    ffi::call(|| {
        own()?.closed();
        Ok(())
    })
}

/// A socket that listens at `address` ("PORT", "HOST:PORT", "unix:PATH"), which all workers that ask for it share; the first that asks has it bound. The caller's to close; with a
/// balance by which the cluster accepts, shut it down before, and take connections by offloop_worker_accept.
/// OFFLOOP_ERR_OS with what the bind failed with, OFFLOOP_ERR_INVALID for an address that is none, OFFLOOP_ERR_PEER_DIED when the cluster is gone.
///
/// # Safety
/// `address` is NUL-terminated, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_listen(address: *const c_char, out: *mut c_int) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let address = unsafe { ffi::str(address, "address") }?;
        let (fd, _) = own()?.listen(address, 0, None)?;
        out.set(fd.into_raw_fd());
        Ok(())
    })
}

/// Says that this worker takes connections. It is ready with this and the first offloop_worker_beat.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_ready() -> offloop_status {
    ffi::call(|| {
        own()?.supervisor().ready();
        Ok(())
    })
}

/// Shows that the event loop turns: call it from a timer of the loop that does the work, as often as the cluster's beat_ns says, and from no other thread. By how much it comes later
/// than that is the loop's delay (offloop_cluster_worker_load).
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_beat() -> offloop_status {
    ffi::call(|| {
        own()?.beat();
        Ok(())
    })
}

/// Counts requests that this worker has served, for the cluster's max_requests. Any thread may.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_served(requests: u64) -> offloop_status {
    ffi::call(|| {
        own()?.supervisor().served(requests);
        Ok(())
    })
}

/// An fd that is readable from when this worker is to accept nothing more and to finish what it has, and for good: poll it, do not read or close it. -1 where no cluster has
/// started this process.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_drain_fd() -> c_int {
    ffi::call_or(-1, || own().map_or(-1, |worker| worker.supervisor().drain_fd().as_raw_fd()))
}

/// Calls `on_drain` once, on a thread of the library, when this worker is to finish what it has. `user_free` is called with `user` afterwards, or never if the call failed.
///
/// # Safety
/// `on_drain` may be called with `user` on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_on_drain(
    on_drain: Option<unsafe extern "C" fn(user: *mut c_void)>,
    user: *mut c_void,
    user_free: Option<unsafe extern "C" fn(user: *mut c_void)>,
) -> offloop_status {
    ffi::call(|| {
        let on_drain = on_drain.ok_or_else(|| Error::invalid("pointer is NULL").with("argument", "on_drain"))?;
        let worker = own()?;
        let options = thread::Options { name: "offloop-drain".to_owned(), ..thread::Options::default() };
        // Freed by the thread alone: one that does not start has not taken it.
        let user = std::mem::ManuallyDrop::new(UserArg::new(user, user_free));
        let wait = move || {
            let user = std::mem::ManuallyDrop::into_inner(user);
            let _ = worker.supervisor().wait_drain(None);
            // SAFETY: this function's contract.
            unsafe { on_drain(user.get()) };
        };
        drop(thread::spawn(&options, wait)?);
        Ok(())
    })
}

/// The channel to the process of the cluster, as a handle of the caller's to free, which does not end it: for requests (offloop_channel_request), and for who receives by a loop of its
/// own (offloop_channel_fd). OFFLOOP_ERR_UNSUPPORTED where no cluster has started this process. When that of the cluster is gone it ends with OFFLOOP_ERR_PEER_DIED.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_channel(out: *mut *mut offloop_channel) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(own()?.channel()?)));
        Ok(())
    })
}

/// Sends a value, whose buffers move, and fds, which are duplicated, to the process of the cluster. Waits for room at most `timeout_ns` (0: not at all; below 0: for ever).
/// OFFLOOP_ERR_FULL or OFFLOOP_ERR_TIMEOUT when it has not received what was sent before; the errors of offloop_channel_send.
///
/// # Safety
/// `value_io` points at a value of the caller, `fds` points at `fd_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_send(
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    timeout_ns: i64,
) -> offloop_status {
    ffi::call(|| {
        let channel = own()?.channel()?;
        let full = || Error::new(ErrorKind::Full, "the cluster has not received what was sent before");
        // SAFETY: this function's contract.
        unsafe {
            sending(value_io, fds, fd_count, |value, fds| match timeout_ns {
                0 => channel.try_send(value, fds)?.then_some(()).ok_or_else(full),
                _ => channel.send(value, fds, ffi::forever_or(timeout_ns)),
            })
        }
    })
}

/// Hears of what the process of the cluster says. The value and the fds of `message` are the callee's to free and to close. A request is answered by offloop_channel_reply on `from`, which
/// is the library's.
pub type offloop_worker_message_fn =
    Option<unsafe extern "C" fn(from: *mut offloop_channel, message: *const offloop_incoming, user: *mut c_void)>;

/// Calls `on_message` with each message and request of the cluster, one at a time, on a thread of the library, until the channel ends; then `user_free` with `user`, or never if the
/// call failed. OFFLOOP_ERR_IN_USE the second time.
///
/// # Safety
/// `on_message` may be called with `user` on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_on_message(
    on_message: offloop_worker_message_fn,
    user: *mut c_void,
    user_free: Option<unsafe extern "C" fn(user: *mut c_void)>,
) -> offloop_status {
    ffi::call(|| {
        let on_message = on_message.ok_or_else(|| Error::invalid("pointer is NULL").with("argument", "on_message"))?;
        let channel = own()?.channel()?;
        let place = Place::new()?;
        let hears = HEARS.get(AtomicBool::default);
        if hears.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::InUse, "messages of the cluster are received already"));
        }
        let options = thread::Options { name: "offloop-mail".to_owned(), ..thread::Options::default() };
        // Freed by the thread alone: one that does not start has not taken it.
        let user = std::mem::ManuallyDrop::new(UserArg::new(user, user_free));
        let receive = move || {
            let user = std::mem::ManuallyDrop::into_inner(user);
            let from: *mut offloop_channel = place.fill_shared(Arc::new(channel.clone()));
            loop {
                let incoming = match channel.recv(None) {
                    Ok(incoming) => incoming,
                    Err(e) if e.kind() == ErrorKind::Os => {
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                    Err(_) => break,
                };
                // Without room for handles there is nobody to show it to.
                let Ok(place) = Place::new() else { continue };
                let message = offloop_incoming::of(place, incoming);
                // SAFETY: this function's contract; the message outlives the call.
                unsafe { on_message(from, &raw const message, user.get()) };
            }
            let _ = handle::free(from);
        };
        if let Err(e) = thread::spawn(&options, receive) {
            hears.store(false, Ordering::Relaxed);
            return Err(e);
        }
        Ok(())
    })
}

/// Says that everything is finished: the process is to end now.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_drained() -> offloop_status {
    ffi::call(|| {
        own()?.supervisor().drained();
        Ok(())
    })
}

/// Leaves the reason of a failure for the cluster, at most 3,072 bytes; the process is to end afterwards.
///
/// # Safety
/// `text` is NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_fail(text: *const c_char) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let text = unsafe { ffi::str(text, "text") }?;
        own()?.supervisor().fail(text);
        Ok(())
    })
}
