//! Where Python stands that does not come back to its event loop.
//!
//! ```text
//!  the supervisor's hook ── wanted ──► `offloop-stall`, a thread of Python: the frames of the loop's thread ──► the hook, if it still waits
//!            └── nobody got the GIL: what the interpreter dumps of all threads without it
//! ```

use crate::wait;
use offloop::supervisor::Stall;
use offloop::sys::{mem, symbol, thread};
use offloop::wire::supervisor::MAX_STACK;
use pyo3::prelude::*;
use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What comes before frames of which the innermost is the last, as `logging` has it.
const HEAD: &str = "Stack (most recent call last):\n";
const HELD: &str = "native code holds the GIL";
/// Most bytes of a dump that are looked at.
const MAX_DUMP: u64 = 256 << 10;

#[derive(Default)]
struct Asked {
    wanted: bool,
    stack: Option<String>,
    /// Of the loop's thread: what Python and what the kernel know it by.
    ident: u64,
    thread: i32,
    /// Its `PyThreadState`, which lives as long as that thread does.
    state: usize,
}

/// Between the supervisor's hook and the thread of Python that looks.
#[derive(Default)]
pub(crate) struct Watched {
    asked: Mutex<Asked>,
    changed: Condvar,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop turns on the calling thread.
    pub(crate) fn turns_here(&self) {
        let mut asked = self.lock();
        // SAFETY: a plain query.
        asked.ident = unsafe { libc::pthread_self() };
        asked.thread = thread::id();
        // SAFETY: the caller has the GIL, and so a state.
        asked.state = unsafe { pyo3::ffi::PyThreadState_Get() } as usize;
    }

    /// Waits until somebody wants the stack; the thread to look at. Without the GIL.
    pub(crate) fn wanted(&self, py: Python<'_>) -> u64 {
        wait::detached(py, || {
            let waited = self.changed.wait_while(self.lock(), |asked| !asked.wanted);
            let mut asked = waited.unwrap_or_else(PoisonError::into_inner);
            asked.wanted = false;
            asked.ident
        })
    }

    /// The frames that fit, of which the innermost is the last.
    pub(crate) fn tell(&self, frames: &[String]) {
        let mut room = MAX_STACK - HEAD.len();
        let fits = frames.iter().rev().take_while(|frame| {
            let left = room.checked_sub(frame.len());
            room = left.unwrap_or(0);
            left.is_some()
        });
        let first = frames.len() - fits.count();
        self.lock().stack = Some(HEAD.to_owned() + &frames[first..].concat());
        self.changed.notify_all();
    }

    /// What the supervisor is told.
    pub(crate) fn stack(&self, stall: &Stall) -> Option<String> {
        if wait::is_leaving() {
            return None;
        }
        let mut asked = self.lock();
        (asked.wanted, asked.stack) = (true, None);
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(asked, stall.patience / 2, |asked| asked.stack.is_none());
        let mut asked = waited.unwrap_or_else(PoisonError::into_inner).0;
        asked.wanted = false;
        let (stack, ident, thread, state) = (asked.stack.take(), asked.ident, asked.thread, asked.state);
        drop(asked);
        stack.or_else(|| {
            let call = thread::system_call(thread).map(|call| format!(", in system call {call}")).unwrap_or_default();
            let dumped = if wait::is_leaving() { None } else { dump(ident, state) };
            Some(format!("{HELD}{call}\n{}", dumped.unwrap_or_default()))
        })
    }
}

/// All threads, that of the loop first, as `faulthandler` shows them; `None` where the interpreter keeps the function to itself (Python 3.13 and 3.14).
fn dump(ident: u64, state: usize) -> Option<String> {
    let found = symbol::find(c"_Py_DumpTracebackThreads")?;
    // SAFETY: the function of the interpreters that export it: an fd, an interpreter, a thread of it; an error's text, or null.
    let dump: unsafe extern "C" fn(c_int, *mut c_void, *mut c_void) -> *const c_char = unsafe { std::mem::transmute(found) };
    let mut file = File::from(mem::memfd(c"offloop-stack").ok()?);
    // SAFETY: it takes no lock and allocates nothing, so that it may run while another thread has the GIL. A thread that goes on in this very moment may change what is read: that is what
    // `faulthandler.dump_traceback_later` lives with, and this worker is about to be ended.
    let failed = unsafe { dump(file.as_raw_fd(), null_mut(), null_mut()) };
    let text = read(&mut file)?;
    let own = format!("Thread 0x{ident:016x}");
    let (first, rest): (Vec<&str>, Vec<&str>) = text.trim().split("\n\n").partition(|of| of.starts_with(&own));
    // The interpreter shows the hundred youngest threads, and the loop's is the oldest as a rule.
    let alone = if first.is_empty() { dump_one(state) } else { None };
    let all: Vec<&str> = alone.as_deref().into_iter().chain(first).chain(rest).collect();
    failed.is_null().then(|| all.join("\n"))
}

/// The frames of one thread, by its `PyThreadState`.
fn dump_one(state: usize) -> Option<String> {
    let found = symbol::find(c"_Py_DumpTraceback").filter(|_| state != 0)?;
    // SAFETY: the function of the interpreters that export it: an fd, a thread's state.
    let dump: unsafe extern "C" fn(c_int, *mut c_void) = unsafe { std::mem::transmute(found) };
    let mut file = File::from(mem::memfd(c"offloop-stack").ok()?);
    // SAFETY: as above; the loop's thread lives, because its loop is what this worker is asked about.
    unsafe { dump(file.as_raw_fd(), state as *mut c_void) };
    read(&mut file).map(|text| text.trim().to_owned())
}

fn read(file: &mut File) -> Option<String> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(MAX_DUMP).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
