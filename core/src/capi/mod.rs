//! The C ABI of pools, tasks, completion queues, rings, channels, process pools and clusters (feature `capi`). Values, buffers and task contexts are in `crate::abi`,
//! because plugins need them in every build.
//!
//! `include/offloop.h` is written from these two modules and from the tables of errors, types and options:
//! `OFFLOOP_BLESS=1 cargo test --release -p offloop-tests header`.
#![allow(non_camel_case_types, reason = "these are the names of the C header")]

use crate::error::Result;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub mod channel;
pub mod cluster;
pub mod completion;
pub mod member;
pub mod metrics;
pub mod pool;
pub mod process;
pub mod ring;
pub mod shared;
pub mod stream;
pub mod task;

/// A pool of native threads.
#[derive(Debug)]
pub struct offloop_pool {
    _opaque: (),
}

/// One submitted call.
#[derive(Debug)]
pub struct offloop_task {
    _opaque: (),
}

/// Delivers outcomes to an event loop.
#[derive(Debug)]
pub struct offloop_cq {
    _opaque: (),
}

/// A bounded queue of records that threads and processes share.
#[derive(Debug)]
pub struct offloop_ring {
    _opaque: (),
}

/// Pushes records into a ring.
#[derive(Debug)]
pub struct offloop_producer {
    _opaque: (),
}

/// Pops records from a ring.
#[derive(Debug)]
pub struct offloop_consumer {
    _opaque: (),
}

/// One end of a two-way connection between two processes.
#[derive(Debug)]
pub struct offloop_channel {
    _opaque: (),
}

/// A pool of worker processes.
#[derive(Debug)]
pub struct offloop_process_pool {
    _opaque: (),
}

/// The values of one call of a worker process, as they come.
#[derive(Debug)]
pub struct offloop_stream {
    _opaque: (),
}

/// Accepts channels at a path.
#[derive(Debug)]
pub struct offloop_listener {
    _opaque: (),
}

/// N copies of a server on the same sockets.
#[derive(Debug)]
pub struct offloop_cluster {
    _opaque: (),
}

/// A number that the processes of a cluster count together.
#[derive(Debug)]
pub struct offloop_counter {
    _opaque: (),
}

/// Token buckets from which the processes of a cluster take together.
#[derive(Debug)]
pub struct offloop_limiter {
    _opaque: (),
}

crate::abi::kinds!(
    offloop_pool = Pool,
    offloop_task = Task,
    offloop_cq = Queue,
    offloop_ring = Ring,
    offloop_producer = Producer,
    offloop_consumer = Consumer,
    offloop_channel = Channel,
    offloop_listener = Listener,
    offloop_process_pool = ProcessPool,
    offloop_stream = Stream,
    offloop_cluster = Cluster,
    offloop_counter = Counter,
    offloop_limiter = Limiter
);

/// # Safety
/// `text` is NULL or NUL-terminated.
pub(crate) unsafe fn path<'a>(text: *const c_char) -> Result<&'a Path> {
    let _ = crate::abi::ffi::out(text.cast_mut(), "path")?; // for NULL
    // SAFETY: not NULL, NUL-terminated by contract. A path is bytes, not text.
    Ok(Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(text) }.to_bytes())))
}

/// Makes the next call of this thread panic inside its boundary. Only in test builds (feature `failpoints`).
#[cfg(feature = "failpoints")]
#[unsafe(no_mangle)]
pub extern "C" fn offloop_failpoint_panic() {
    crate::abi::ffi::panic_next();
}
