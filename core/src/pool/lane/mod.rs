//! Lanes: what a process pool and one worker process share. The bytes are in [`crate::wire::lane`].
//!
//! ```text
//!  pool's process                                              worker's process
//!  ──────────────                                              ────────────────
//!  request → cell or payloads, word = READY, order, tail ────► head, CAS READY → CLAIMED, runs it
//!  word = FREE  ◄──── collects ◄──── word = DONE ◄──────────── reply → cell or results
//! ```
//!
//! A task that was sent and has not begun can be taken back by a CAS on its word (READY → REVOKED), so what is sent ahead to spare wakes is
//! never stuck behind a long task. The pool keeps each request until the task has ended and never reads it back from the lane.
//!
//! | Pair                                     | Release                              | Acquire                                |
//! |------------------------------------------|--------------------------------------|----------------------------------------|
//! | a request, its place, its index          | `Lane::publish` stores `tail`        | `Worker::take` loads it                |
//! | a request was read, its index is free    | `Worker::take` stores `head`         | `Lane::has_passed` loads it            |
//! | who begins a task, or takes it back      | CAS, both sides                      | the same CAS                           |
//! | a reply, its place, its run time         | `Worker::finish` stores DONE, FAILED | `Hand::collect` loads the word         |
//! | a payload is not read any more           | `Payload::drop` stores `returned`    | `Lane::sweep` loads it                 |
//! | a long reply is not read any more        | `Reply::drop` stores `freed`         | `Worker::sweep` loads it               |
//! | "I sleep" and "there is something"       | fences (SeqCst) between store and look, in `Worker::wait` and `Lane::publish`, `Lane::sleep` and `Worker::report` |
//!
//! * `host`: the pool's side of one lane; `worker`: the worker's; `arena`: memory for long payloads; `shared`: memory that requests refer to.
//! * `stream`: what a task says while it runs, frame by frame; `frame`: what a frame says.
//! * `serve`: the loop of a worker whose functions block.
//! * `call`: what a request and a reply say when two languages meet.

mod arena;
pub mod call;
pub mod frame;
mod host;
mod serve;
mod shared;
mod stream;
mod worker;

pub use host::Request;
pub(super) use host::{Lane, Payloads};
pub use serve::{Function, Running, serve};
pub use shared::SharedPart;
pub use stream::{Stream, Streamed};
pub use worker::{Job, MAX_KEPT, Payload, Sent, Woken, Worker};

use crate::sync::mapped::{AtomicU32, AtomicU64};
use memmap2::MmapRaw;

/// A word of a mapping.
fn word32(map: &MmapRaw, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= map.len() && at.is_multiple_of(4), "a word lies inside of the mapping");
    // SAFETY: inside of the mapping and aligned, as asserted; both sides access it as an atomic.
    unsafe { &*map.as_mut_ptr().add(at).cast::<AtomicU32>() }
}

fn word64(map: &MmapRaw, at: usize) -> &AtomicU64 {
    assert!(at + 8 <= map.len() && at.is_multiple_of(8), "a word lies inside of the mapping");
    // SAFETY: inside of the mapping and aligned, as asserted; both sides access it as an atomic.
    unsafe { &*map.as_mut_ptr().add(at).cast::<AtomicU64>() }
}

/// Where a request or a reply lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    len: u64,
    /// 0: in the cell.
    ticket: u32,
}

impl Place {
    fn load(map: &MmapRaw, at: usize) -> Place {
        use crate::sync::mapped::Ordering::Relaxed;
        // Each word once; the caller judges them together.
        Place { at: word64(map, at).load(Relaxed), len: word64(map, at + 8).load(Relaxed), ticket: word32(map, at + 16).load(Relaxed) }
    }

    fn store(self, map: &MmapRaw, at: usize) {
        use crate::sync::mapped::Ordering::Relaxed;
        word64(map, at).store(self.at, Relaxed);
        word64(map, at + 8).store(self.len, Relaxed);
        word32(map, at + 16).store(self.ticket, Relaxed);
    }
}
