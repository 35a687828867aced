//! This process as the worker of a cluster, for C. `capi/cluster.rs` is the other side.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::cluster::{Worker, worker};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::thread;
use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Mutex;

static OWN: ForkCell<Mutex<Option<Worker>>> = ForkCell::new();

/// Attached at the first question.
fn own() -> Result<Worker> {
    let mut own = lock(OWN.get(Mutex::default));
    if own.is_none() {
        *own = worker::attach()?;
    }
    own.clone().ok_or_else(|| Error::new(ErrorKind::Unsupported, "no cluster has started this process"))
}

/// This worker's place in its cluster, from 0 on. OFFLOOP_ERR_UNSUPPORTED when no cluster has started this process, so that a program can be both. The first
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
/// from it.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_fd(index: usize) -> c_int {
    ffi::call_or(-1, || own().ok().and_then(|worker| worker.fds().get(index).copied()).unwrap_or(-1))
}

/// A socket that listens at `address` ("PORT", "HOST:PORT", "unix:PATH"), which all workers that ask for it share; the first that asks has it bound. The caller's to close.
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

/// Shows that the event loop turns: call it from a timer of the loop that does the work, as often as the cluster's beat_ns says, and from no other thread.
#[unsafe(no_mangle)]
pub extern "C" fn offloop_worker_beat() -> offloop_status {
    ffi::call(|| {
        own()?.supervisor().beat();
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
