//! Pools: one scheduler, several kinds of workers. Today: native threads ([`ThreadPool`]).
//!
//! ```text
//!  submit ─► injector (lock-free) ─► scheduler (priority, ageing, keys) ─► batch of a worker ─► run
//!                                        ▲ idle workers take, or steal from a stuck batch      │
//!  deadlines, cancel ── service thread ──┘                                                     ▼
//!                              completion queue (one wake per batch) ─► Promise / Future / callback / fd
//! ```
//!
//! * `sched`: pure; which task next, on which slot.
//! * `task`: the states of one task, and its one outcome.
//! * `thread`: the public face; `config`: options and plugins; `inner`: one pool's state, and intake.
//! * `crew`: its workers as a whole; `idle`: who searches, who sleeps, who is woken, with the argument and loom's models.
//! * `worker`: take a batch, run it, search, sleep, leave; `hosted`: the same on a host's own threads.
//! * `looped`: the same in event loops of a host, which may not block: tasks are taken ahead, several per call.
//! * `process`: worker processes; `lane`: the memory between the pool and one of them.
//! * `recycle`: workers of loops that have done enough, and those that take their places.
//! * `ending`: deadlines, cancelling, lost threads, the end of a pool.
//! * `split`: lends idle workers to one op.
//! * `stuck`: waits of a pool's own functions that could never end.
//! * `service`: one thread for deadlines and ticks; `callbacks`: those for users' callbacks.
//! * `completion`: how outcomes reach an event loop; `trace`: what is kept of a task for who watches it.
//! * `plugin`: loads ops from shared libraries.

mod callbacks;
mod completion;
mod config;
mod crew;
mod ending;
mod hosted;
mod idle;
mod inner;
mod lane;
mod looped;
mod options;
mod plugin;
mod process;
mod recycle;
mod sched;
mod service;
mod split;
mod stats;
mod stuck;
mod task;
mod thread;
mod trace;
mod worker;

pub use completion::{CompletionQueue, Event};
pub use hosted::{HostedTask, HostedWorker, Next};
pub use lane::{Function, Job, MAX_KEPT, Payload, Request, Running, Sent, SharedPart, Stream, Streamed, Woken, Worker, call, frame, serve};
pub use looped::{AHEAD, Board, Given, LoopHost, LoopOptions, LoopWorker, MAX_CONCURRENCY, Taken, word};
pub use options::{Deliver, MAX_DURATION, MAX_QUEUE, MAX_WORKERS, OnFull, PoolOptions, SubmitOptions, duration, priority};
pub use process::{ProcessPool, ProcessPoolBuilder};
pub use stats::PoolStats;
pub use stuck::WaitGuard;
pub use task::{Task, Work};
pub use thread::{Builder, SubmitError, ThreadPool};
pub use trace::{Outcome, Trace};
pub use worker::silence_panics;

use crate::error::Result;
use crate::ops::OpCtx;
use crate::value::Value;

/// An op that is not in the table: a plugin's. Its options reach it as the caller's tree, see `Params::as_raw`.
pub trait DynOp: Send + Sync {
    /// Its name, unique in the pool.
    fn name(&self) -> &str;
    /// Runs it.
    ///
    /// # Errors
    /// Its own.
    fn run(&self, ctx: &mut OpCtx<'_>) -> Result<Value>;
}
