//! Threads of the library's own: named, quiet and of their own niceness.

use crate::error::{Error, Result};
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

/// Signals that stay open in our threads: the kernel raises them for what the thread itself does, and a host's crash
/// reporter wants to see them.
const SYNCHRONOUS: [libc::c_int; 7] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];

/// Blocks signals of the calling thread until dropped.
pub(super) struct BlockedSignals {
    before: libc::sigset_t,
    /// The mask belongs to the thread that made the guard.
    _one_thread: PhantomData<*const ()>,
}

impl BlockedSignals {
    /// Blocks every signal except `open`.
    pub(super) fn all_but(open: &[libc::c_int]) -> BlockedSignals {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigfillset` initialises `set`; `sigdelset` gets an initialised set; `pthread_sigmask` cannot fail with
        // SIG_SETMASK and initialises `before`.
        unsafe {
            libc::sigfillset(set.as_mut_ptr());
            for signal in open {
                libc::sigdelset(set.as_mut_ptr(), *signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), before.as_mut_ptr());
            BlockedSignals { before: before.assume_init(), _one_thread: PhantomData }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by `pthread_sigmask` on this thread; the guard is not `Send`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Sets the calling thread's niceness (Linux keeps it per thread) to that of the first thread plus `nice`, clamped to -20…19.
///
/// # Errors
/// `Os` with `EACCES` when a negative value is not allowed (`RLIMIT_NICE`, `CAP_SYS_NICE`).
pub fn add_nice(nice: i32) -> Result<()> {
    if nice == 0 {
        return Ok(());
    }
    // SAFETY: plain calls. The errno location is valid; `getpriority` may return -1 without an error.
    unsafe {
        *libc::__errno_location() = 0;
        let now = libc::getpriority(libc::PRIO_PROCESS, libc::getpid() as libc::id_t);
        if now == -1 && *libc::__errno_location() != 0 {
            return Err(Error::last_os("getpriority"));
        }
        if libc::setpriority(libc::PRIO_PROCESS, 0, now.saturating_add(nice).clamp(-20, 19)) != 0 {
            return Err(Error::last_os("setpriority").with("nice", nice));
        }
    }
    Ok(())
}

/// How a thread starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Shown by `top -H` and debuggers; Linux keeps the first 15 bytes.
    pub name: String,
    /// Bytes of stack; `None` for 2 MiB. Only touched pages take memory.
    pub stack_size: Option<usize>,
    /// Added to the niceness of the process's first thread; 0 leaves that of the starting thread.
    pub nice: i32,
}

/// Starts a thread that receives none of the host's signals.
///
/// # Errors
/// `Os`: `EAGAIN` when there are too many threads, `EACCES` when the niceness is not allowed.
pub fn spawn(options: &Options, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let mut builder = Builder::new().name(options.name.replace('\0', ""));
    if let Some(bytes) = options.stack_size {
        builder = builder.stack_size(bytes);
    }
    let nice = options.nice;
    let (ready, outcome) = mpsc::sync_channel(1);
    // A new thread inherits the mask: blocked from its first instruction on.
    let blocked = BlockedSignals::all_but(&SYNCHRONOUS);
    let spawned = builder.spawn(move || {
        if nice != 0 {
            let set = add_nice(nice);
            let refused = set.is_err();
            // The starter waits for exactly one message.
            let _ = ready.send(set);
            if refused {
                return;
            }
        }
        f();
    });
    drop(blocked);
    let thread = spawned.map_err(|e| Error::os("pthread_create", e.raw_os_error().unwrap_or(libc::EAGAIN)).with("name", &options.name))?;
    if nice != 0
        && let Ok(Err(e)) = outcome.recv()
    {
        return Err(e);
    }
    Ok(thread)
}

/// The kernel's id of the calling thread.
#[must_use]
pub fn id() -> i32 {
    thread_local!(static ID: Cell<i32> = const { Cell::new(0) });
    ID.with(|id| {
        if id.get() == 0 {
            // SAFETY: a plain query.
            id.set(unsafe { libc::gettid() });
        }
        id.get()
    })
}

/// The number of the system call that a thread of this process waits in. `None` where it is in none, where it runs, or where the kernel does not tell.
#[must_use]
pub fn system_call(thread: i32) -> Option<u32> {
    // `running`, or number, arguments, stack and instruction pointer; -1 for a thread that waits elsewhere.
    let said = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
    said.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn run<T: Send + 'static>(options: &Options, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = mpsc::channel();
        let thread = spawn(options, move || tx.send(f()).expect("the test waits")).expect("spawn");
        let value = rx.recv().expect("the thread sends");
        thread.join().expect("join");
        value
    }

    fn is_blocked(signal: libc::c_int) -> bool {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: reads this thread's mask into `set`.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr());
            libc::sigismember(set.as_ptr(), signal) == 1
        }
    }

    fn nice() -> i32 {
        // SAFETY: a plain query of the calling thread.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn a_thread_has_its_name_and_none_of_the_hosts_signals() {
        let before = is_blocked(libc::SIGTERM);
        let (name, blocked) = run(&Options { name: "off\0loop-w3".into(), ..Options::default() }, || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").expect("comm");
            (name, [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD, libc::SIGUSR1, libc::SIGSEGV, libc::SIGBUS].map(is_blocked))
        });
        assert_eq!(name.trim(), "offloop-w3");
        assert_eq!(blocked, [true, true, true, true, false, false]);
        assert_eq!(is_blocked(libc::SIGTERM), before, "the starter's mask is as it was");
    }

    #[test]
    fn the_call_that_a_thread_waits_in_has_a_number() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = std::os::unix::net::UnixStream::pair().expect("pair");
        let mut ended = ended;
        let waits = move || {
            tell.send(id()).expect("the test waits");
            let _ = std::io::Read::read(&mut ended, &mut [0]);
        };
        let thread = spawn(&Options::default(), waits).expect("spawn");
        let other = told.recv().expect("id");
        assert_ne!(other, id());
        let known = |call: Option<u32>| call == Some(libc::SYS_recvfrom as u32) || call == Some(libc::SYS_read as u32);
        while std::fs::exists("/proc/self/syscall").unwrap_or(false) && !known(system_call(other)) {
            std::thread::yield_now();
        }
        drop(end);
        thread.join().expect("join");
        assert_eq!(system_call(other), None, "it has ended");
    }

    #[test]
    fn niceness_is_per_thread() {
        let before = nice();
        assert_eq!(run(&Options { nice: 3, ..Options::default() }, nice), (before + 3).min(19));
        assert_eq!(nice(), before);
    }

    #[test]
    fn a_refused_niceness_is_an_error_and_runs_nothing() {
        // Without RLIMIT_NICE or the capability; a privileged test run may raise its priority.
        let r = spawn(&Options { nice: -1, ..Options::default() }, || {});
        match r {
            Ok(t) => t.join().expect("join"),
            Err(e) => assert_eq!((e.kind(), e.errno()), (ErrorKind::Os, Some((libc::EACCES, "setpriority")))),
        }
    }

    #[test]
    fn a_stack_that_does_not_fit_is_an_error() {
        let e = spawn(&Options { stack_size: Some(1 << 60), ..Options::default() }, || {}).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::Os);
    }
}
