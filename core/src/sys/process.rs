//! Child processes, known by pidfd and never by a signal.
//!
//! ```text
//!  parent                                    child (same memory, own fds and signal table)
//!  ──────                                    ────────────────────────────────────────────
//!  all strings and tables made ready
//!  signals blocked
//!  clone(VM | VFORK | PIDFD) ──────────────► handlers to default, fds moved, the rest close-on-exec,
//!       (suspended)                          group, niceness, limits, user, cwd, death signal, mask emptied
//!  reads the outcome from memory ◄────────── execve, or the failed step and its errno, then _exit
//! ```
//!
//! That is how glibc's `posix_spawn` works: it costs the same for a small and for a huge parent, and runs no fork
//! handlers. The child allocates nothing and takes no lock. A plain `fork` is never used.
//!
//! Without a pidfd (a seccomp policy) a thread waits for the child without reaping it and signals an eventfd, so that
//! [`Child::exit_fd`] can be polled in every case.

use super::confine::{Confine, Prepared};
use super::eventfd::EventFd;
use super::fork;
use super::probe::{Call, has};
use super::thread::{self, BlockedSignals};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use std::ffi::{CString, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What to start and how.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// A path, or a name to look for in `PATH` (that of `env` if it is given).
    pub program: OsString,
    /// Arguments after the program's name.
    pub args: Vec<OsString>,
    /// The whole environment; `None` for this process's.
    pub env: Option<Vec<(OsString, OsString)>>,
    /// Working directory; a relative `program` is resolved in it.
    pub cwd: Option<PathBuf>,
    /// `(fd, number)`: `fd` becomes `number` in the child. Of all others only 0, 1 and 2 reach it, also where they are close-on-exec here.
    pub fds: Vec<(BorrowedFd<'a>, RawFd)>,
    /// Sent to the child when the *thread* that starts it ends (`PR_SET_PDEATHSIG`): start from a thread that lives on.
    pub death_signal: Option<i32>,
    /// Makes the child the leader of a process group of its own, out of reach of a terminal's Ctrl-C, and without a controlling terminal that
    /// could stop it.
    pub new_group: bool,
    /// With its end the rest of its group, if it leads one, is killed.
    pub ends_group: bool,
    /// Niceness, cores, user, limits.
    pub confine: Confine,
    /// A variable of its environment whose value is the child's own process id, as `LISTEN_PID` is.
    pub pid_variable: Option<&'static str>,
}

impl Spec<'_> {
    /// `program` with no arguments and everything inherited but fds above 2.
    pub fn new(program: impl Into<OsString>) -> Self {
        Spec {
            program: program.into(),
            args: Vec::new(),
            env: None,
            cwd: None,
            fds: Vec::new(),
            death_signal: None,
            new_group: false,
            ends_group: false,
            confine: Confine::default(),
            pid_variable: None,
        }
    }
}

/// How a child ended. Both `None`: another part of the program reaped it, or `SIGCHLD` is ignored, and the kernel (before 6.15) does not keep
/// what its pidfd could tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It left a core dump.
    pub core_dumped: bool,
}

impl Exit {
    /// From a status as `wait` gives it.
    fn of_status(status: i32) -> Exit {
        let exited = libc::WIFEXITED(status);
        Exit {
            code: exited.then(|| libc::WEXITSTATUS(status)),
            signal: (!exited).then(|| libc::WTERMSIG(status)),
            core_dumped: !exited && libc::WCOREDUMP(status),
        }
    }
}

/// A child process, or one that is watched like a child. Dropping it neither ends nor waits for the process.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    watch: Watch,
    /// Another process is its parent, as far as is known.
    foreign: bool,
    /// Its group ends with it.
    ends_group: bool,
    /// Set once it was reaped; from then on its pid may belong to another process.
    exit: Mutex<Option<Exit>>,
    epoch: u64,
}

#[derive(Debug)]
enum Watch {
    Pidfd(OwnedFd),
    Thread(Arc<EventFd>),
}

/// Everything that the child needs, made ready before it exists.
struct Plan {
    candidates: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// Where [`PID_DIGITS`] bytes and a NUL wait for the child's process id; null: nowhere.
    pid_at: *mut u8,
    cwd: Option<CString>,
    /// `(fd, number, duplicate)`
    fds: Vec<(RawFd, RawFd, RawFd)>,
    /// Ranges of fds to mark close-on-exec.
    gaps: Vec<(u32, u32)>,
    close_range: bool,
    fd_limit: RawFd,
    death_signal: Option<i32>,
    parent: libc::pid_t,
    new_group: bool,
    confine: Prepared,
    failed: Option<(&'static str, i32)>,
}

/// Digits of the largest process id.
const PID_DIGITS: usize = 10;

/// Writes the calling process's id as decimal digits and a NUL. Allocates nothing.
///
/// # Safety
/// `at` has [`PID_DIGITS`] + 1 writable bytes.
unsafe fn write_pid(at: *mut u8) {
    // SAFETY: a plain query.
    let mut left = unsafe { libc::getpid() }.unsigned_abs();
    let digits = left.checked_ilog10().unwrap_or(0) as usize + 1;
    for i in (0..digits).rev() {
        // SAFETY: a number of 32 bits has no more digits than there is room for.
        unsafe { at.add(i).write(b'0' + (left % 10) as u8) };
        left /= 10;
    }
    // SAFETY: as above; the byte behind the last digit.
    unsafe { at.add(digits).write(0) };
}

fn c_string(what: &'static str, text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::invalid("text for a process contains a NUL byte").with(what, text.display()))
}

/// The paths to try, in order.
fn candidates(spec: &Spec<'_>) -> Result<Vec<CString>> {
    let program = spec.program.as_bytes();
    if program.is_empty() {
        return Err(Error::invalid("program is empty"));
    }
    if program.contains(&b'/') {
        return Ok(vec![c_string("program", &spec.program)?]);
    }
    let path = match &spec.env {
        Some(env) => env.iter().rfind(|(k, _)| k == "PATH").map(|(_, v)| v.clone()),
        None => std::env::var_os("PATH"),
    };
    let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.as_bytes()
        .split(|b| *b == b':')
        .map(|dir| {
            // An empty entry is the working directory.
            let dir = if dir.is_empty() { b".".as_slice() } else { dir };
            c_string("program", OsStr::from_bytes(&[dir, b"/", program].concat()))
        })
        .collect()
}

/// The ranges from 3 on that hold none of the `numbers`.
fn gaps(mut numbers: Vec<RawFd>) -> Vec<(u32, u32)> {
    numbers.sort_unstable();
    let mut from = 3u32;
    let mut gaps = Vec::new();
    for n in numbers.into_iter().filter(|n| *n >= 3).map(|n| n as u32) {
        if n > from {
            gaps.push((from, n - 1));
        }
        from = n + 1;
    }
    gaps.push((from, u32::MAX));
    gaps
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Gives up the controlling terminal, of this process alone: in a group in its background, `SIGTTOU` and `SIGTTIN` would stop whoever writes or
/// reads there. Not `setsid`: a group that is stopped when its session's other processes end is continued and hung up by the kernel, and a
/// session of its own would lose that.
///
/// # Safety
/// In a child that has not exec'ed yet; async-signal-safe.
unsafe fn leave_terminal() {
    // SAFETY: plain calls.
    unsafe {
        let terminal = libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK);
        if terminal >= 0 {
            libc::ioctl(terminal, libc::TIOCNOTTY);
            libc::close(terminal);
        }
    }
}

/// The child's side, on a stack of its own in the parent's memory.
extern "C" fn child_main(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn` passes its `Plan` and is suspended until this function has ended or exec'ed.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    let step = prepare_and_exec(plan);
    plan.failed = Some((step, errno()));
    // SAFETY: ends the child without running anything of the parent.
    unsafe { libc::_exit(127) }
}

/// Returns the name of the step that failed, with errno set. Allocates nothing, cannot panic.
#[allow(clippy::disallowed_methods, reason = "handlers are reset in a child that has not exec'ed yet, not in the host")]
fn prepare_and_exec(plan: &mut Plan) -> &'static str {
    // SAFETY: every call below is async-signal-safe and gets pointers into `plan`, which outlives the child's use of it.
    unsafe {
        // A handler of the parent must not run here once the mask is emptied. Signals are ignored by hosts for themselves (SIGPIPE by
        // Python, Node, Rust); a program expects their default. That of SIGHUP is nohup's word, which goes for children.
        for signal in 1..=64 {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
                continue;
            }
            let action = action.assume_init_mut();
            let reset = match action.sa_sigaction {
                libc::SIG_DFL => false,
                libc::SIG_IGN => signal != libc::SIGHUP,
                _ => true,
            };
            if reset {
                action.sa_sigaction = libc::SIG_DFL;
                action.sa_flags = 0;
                libc::sigaction(signal, action, ptr::null_mut());
            }
        }
        if plan.new_group {
            if libc::setpgid(0, 0) != 0 {
                return "setpgid";
            }
            leave_terminal();
        }
        // First every source to a number that is nobody's target, so that no move overwrites a later source.
        for at in 0..plan.fds.len() {
            let Some(&(source, _, _)) = plan.fds.get(at) else { break };
            let mut from = 3;
            let duplicate = loop {
                let fd = libc::fcntl(source, libc::F_DUPFD_CLOEXEC, from);
                if fd < 0 {
                    return "fcntl(F_DUPFD_CLOEXEC)";
                }
                if !plan.fds.iter().any(|(_, number, _)| *number == fd) {
                    break fd;
                }
                from = fd + 1; // the extra one is overwritten by its own target
            };
            if let Some(row) = plan.fds.get_mut(at) {
                row.2 = duplicate;
            }
        }
        for (_, number, duplicate) in &plan.fds {
            if libc::dup2(*duplicate, *number) < 0 {
                return "dup2";
            }
        }
        // Hosts mark their own as close-on-exec (libuv does). One that is not open gives EBADF.
        for fd in 0..3 {
            libc::fcntl(fd, libc::F_SETFD, 0);
        }
        let by_range = plan.close_range
            && plan.gaps.iter().all(|(from, to)| libc::syscall(libc::SYS_close_range, *from, *to, libc::CLOSE_RANGE_CLOEXEC) == 0);
        if !by_range && !close_on_exec_by_list(plan) {
            for fd in 3..plan.fd_limit {
                close_on_exec(plan, fd);
            }
        }
        if let Err(step) = plan.confine.apply() {
            return step;
        }
        // A change of user takes it away.
        if let Some(signal) = plan.death_signal {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) != 0 {
                return "prctl(PR_SET_PDEATHSIG)";
            }
            // The parent may have died before the line above took effect.
            if libc::getppid() != plan.parent {
                libc::_exit(127);
            }
        }
        if let Some(dir) = &plan.cwd
            && libc::chdir(dir.as_ptr()) != 0
        {
            return "chdir";
        }
        if !plan.pid_at.is_null() {
            write_pid(plan.pid_at);
        }
        let mut none = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        let mut refused = false;
        for path in &plan.candidates {
            libc::execve(path.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr());
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => refused = true,
                _ => return "execve",
            }
        }
        *libc::__errno_location() = if refused { libc::EACCES } else { libc::ENOENT };
        "execve"
    }
}

fn close_on_exec(plan: &Plan, fd: RawFd) {
    if fd >= 3 && !plan.fds.iter().any(|(_, number, _)| *number == fd) {
        // SAFETY: a plain call; a number that is not open gives EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Marks what `/proc/self/fd` lists; false when it cannot be read.
fn close_on_exec_by_list(plan: &Plan) -> bool {
    /// Offsets of `linux_dirent64`: inode 8, offset 8, record length 2, type 1, name.
    const RECLEN: usize = 16;
    const NAME: usize = 19;
    let mut buffer = [0u8; 1024];
    // SAFETY: a NUL-terminated path.
    let dir = unsafe { libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    if dir < 0 {
        return false;
    }
    loop {
        // SAFETY: `buffer` has this many writable bytes.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), buffer.len()) };
        let Some(mut entries) = usize::try_from(got).ok().and_then(|n| buffer.get(..n)) else { return false };
        if entries.is_empty() {
            break;
        }
        while let (Some(&[low, high]), Some(name)) = (entries.get(RECLEN..RECLEN + 2), entries.get(NAME..)) {
            let digit = |b: &u8| b.checked_sub(b'0').filter(|d| *d < 10).map(i32::from);
            let mut digits = name.iter().take_while(|b| **b != 0);
            let fd = digits.try_fold(0i32, |n, b| n.checked_mul(10)?.checked_add(digit(b)?));
            if let Some(fd) = fd {
                close_on_exec(plan, fd);
            }
            let Some(rest) = entries.get(usize::from(u16::from_ne_bytes([low, high])).max(NAME)..) else { break };
            entries = rest;
        }
    }
    // SAFETY: opened above.
    unsafe { libc::close(dir) };
    true
}

/// The environment of this process, but entries whose name begins with '=': no program can ask for one, and some shells leave them.
#[must_use]
pub fn own_env() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !name.as_bytes().starts_with(b"=")).collect()
}

/// This process becomes another program, with `env` beside its variables. Comes back only when it cannot.
#[must_use]
pub fn replace(program: &Path, args: &[OsString], env: &[(OsString, OsString)]) -> Error {
    use std::os::unix::process::CommandExt;
    for fd in 0..3 {
        // SAFETY: a plain call. Hosts mark their own as close-on-exec (libuv does).
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    let mut command = std::process::Command::new(program);
    let name = program.file_name().unwrap_or_default();
    let e = command.arg0(name).args(args).envs(env.iter().map(|(name, value)| (name, value))).exec();
    Error::os("execve", e.raw_os_error().unwrap_or(0)).with("program", program.display())
}

/// Starts a process and returns when its program runs.
///
/// # Errors
/// `NotFound` when there is no such program or working directory, `StartFailed` with the system's text and the step when
/// the child could not get as far as its program, `Os` when no process or fd can be made, `Invalid`.
pub fn spawn(spec: &Spec<'_>) -> Result<Child> {
    let numbers: Vec<RawFd> = spec.fds.iter().map(|(_, n)| *n).collect();
    for (i, n) in numbers.iter().enumerate() {
        if *n < 0 || numbers[..i].contains(n) {
            return Err(Error::invalid("fd number is negative or given twice").with("number", n));
        }
    }
    let args: Vec<CString> = std::iter::once(&spec.program).chain(&spec.args).map(|a| c_string("argument", a)).collect::<Result<_>>()?;
    let env: Vec<CString> = spec
        .env
        .clone()
        .unwrap_or_else(own_env)
        .into_iter()
        .filter(|(k, _)| spec.pid_variable.is_none_or(|name| k != name))
        .map(|(k, v)| {
            if k.is_empty() || k.as_bytes().contains(&b'=') {
                return Err(Error::invalid("name of an environment variable is empty or contains '='").with("name", k.display()));
            }
            c_string("environment", &OsString::from_vec([k.as_bytes(), b"=", v.as_bytes()].concat()))
        })
        .collect::<Result<_>>()?;
    let mut pid = spec.pid_variable.map(|name| [name.as_bytes(), b"=", &[0; PID_DIGITS + 1]].concat());
    let pid_at = match (&mut pid, spec.pid_variable) {
        // SAFETY: behind the name and the '=' there is room for the digits.
        (Some(pid), Some(name)) => unsafe { pid.as_mut_ptr().add(name.len() + 1) },
        _ => ptr::null_mut(),
    };
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain(std::iter::once(ptr::null())).collect::<Vec<_>>();
    let mut plan = Plan {
        candidates: candidates(spec)?,
        argv: pointers(&args),
        envp: pid.iter().map(|pid| pid.as_ptr().cast()).chain(pointers(&env)).collect(),
        pid_at,
        cwd: spec.cwd.as_ref().map(|d| c_string("cwd", d.as_os_str())).transpose()?,
        fds: spec.fds.iter().map(|(fd, n)| (fd.as_raw_fd(), *n, -1)).collect(),
        gaps: gaps(numbers),
        close_range: has(Call::CloseRangeCloexec),
        fd_limit: fd_limit(),
        death_signal: spec.death_signal,
        // SAFETY: a plain query.
        parent: unsafe { libc::getpid() },
        new_group: spec.new_group,
        confine: spec.confine.prepare()?,
        failed: None,
    };
    let (pid, pidfd) = clone(&mut plan)?;
    let started = watch(pid, pidfd).map(|watch| Child {
        pid,
        watch,
        foreign: false,
        ends_group: spec.new_group && spec.ends_group,
        exit: Mutex::new(None),
        epoch: fork::epoch(),
    });
    match (plan.failed, started) {
        (None, Ok(child)) => Ok(child),
        (None, Err(e)) => {
            // Nobody would see its end. SAFETY: the child was not reaped, so the pid is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            reap_failed(pid);
            Err(e)
        }
        (Some((step, errno)), _) => {
            reap_failed(pid);
            Err(failure(spec, &plan, step, errno))
        }
    }
}

fn fd_limit() -> RawFd {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid out pointer.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur.min(1 << 20) as RawFd
}

/// Makes the process; returns when it has exec'ed or ended.
fn clone(plan: &mut Plan) -> Result<(libc::pid_t, Option<OwnedFd>)> {
    // 64 KiB, 16-byte aligned; the child's deepest call needs a few KiB.
    let mut stack = vec![0u128; 4096];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let mut attempt = |flags: libc::c_int| {
        let mut pidfd: libc::c_int = -1;
        // No signal may run a handler on the child's small stack in the shared memory.
        let blocked = BlockedSignals::all_but(&[]);
        // SAFETY: the stack's end is the start of a stack that grows down and outlives the child's use of it, because
        // CLONE_VFORK suspends this thread until then; `plan` likewise. The child does not return from `child_main`.
        let pid =
            unsafe { libc::clone(child_main, stack.as_mut_ptr_range().end.cast(), flags, ptr::from_mut(plan).cast(), &raw mut pidfd) };
        let errno = errno();
        drop(blocked);
        if pid < 0 {
            return Err(errno);
        }
        // SAFETY: with CLONE_PIDFD the kernel has stored a new fd, else it is -1 still.
        Ok((pid, (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) })))
    };
    let first = if has(Call::ClonePidfd) { attempt(flags | libc::CLONE_PIDFD) } else { Err(libc::ENOSYS) };
    match first {
        Err(libc::ENOSYS | libc::EINVAL | libc::EPERM) => attempt(flags),
        other => other,
    }
    .map_err(|errno| Error::os("clone", errno))
}

/// Finds a way to see the end of a child that was not reaped yet.
fn watch(pid: libc::pid_t, pidfd: Option<OwnedFd>) -> Result<Watch> {
    if let Some(fd) = pidfd {
        return Ok(Watch::Pidfd(fd));
    }
    if has(Call::PidfdOpen) {
        // SAFETY: a plain call; the child was not reaped, so the pid is its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(Error::last_os("pidfd_open"));
        }
        // SAFETY: the kernel just gave us this fd, close-on-exec by definition.
        return Ok(Watch::Pidfd(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }));
    }
    let ended = Arc::new(EventFd::new()?);
    let bell = Arc::clone(&ended);
    let options = thread::Options { name: "offloop-child".into(), stack_size: Some(64 << 10), nice: 0 };
    thread::spawn(&options, move || {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // WNOWAIT leaves the reaping to `Child::try_wait`. SAFETY: `info` is a valid out pointer.
        while unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) } != 0
            && errno() == libc::EINTR
        {}
        bell.signal();
    })?;
    Ok(Watch::Thread(ended))
}

/// Reaps a child that is about to end.
fn reap_failed(pid: libc::pid_t) {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is a valid out pointer.
    while unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, info.as_mut_ptr(), libc::WEXITED) } != 0 && errno() == libc::EINTR {}
}

fn failure(spec: &Spec<'_>, plan: &Plan, step: &'static str, errno: i32) -> Error {
    let cwd = spec.cwd.as_deref().unwrap_or(Path::new(""));
    let missing = matches!(errno, libc::ENOENT | libc::ENOTDIR);
    let exists = || plan.candidates.iter().any(|c| cwd.join(OsStr::from_bytes(c.as_bytes())).exists());
    let error = match step {
        "chdir" if missing => Error::new(ErrorKind::NotFound, "no such working directory"),
        "execve" if missing && !exists() => Error::new(ErrorKind::NotFound, "no such program"),
        "execve" if missing => Error::new(ErrorKind::StartFailed, "the interpreter that the program names does not exist"),
        _ => Error::new(ErrorKind::StartFailed, std::io::Error::from_raw_os_error(errno).to_string()),
    };
    let error = error.with("program", spec.program.display()).with("step", step).with("errno", errno);
    if step == "chdir" { error.with("cwd", cwd.display()) } else { error }
}

impl Child {
    /// A process that another one has forked, by its pidfd. Its status is known if it has become a child of this process, or by Linux 6.15
    /// and its reaper; else [`try_wait`](Self::try_wait) has neither code nor signal.
    #[must_use]
    pub fn adopt(pid: i32, pidfd: OwnedFd) -> Child {
        Child { pid, watch: Watch::Pidfd(pidfd), foreign: true, ends_group: false, exit: Mutex::new(None), epoch: fork::epoch() }
    }

    /// The process id. It may belong to another process once this one was waited for.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the process ends, and stays so.
    #[must_use]
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        match &self.watch {
            Watch::Pidfd(fd) => fd.as_fd(),
            Watch::Thread(bell) => bell.fd(),
        }
    }

    /// The pidfd, where the kernel gives one.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.watch {
            Watch::Pidfd(fd) => Some(fd.as_fd()),
            Watch::Thread(_) => None,
        }
    }

    fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "process is a child of this process's parent").with("pid", self.pid))
    }

    /// Sends a signal; false once the process was waited for.
    ///
    /// # Errors
    /// `Os` with `EPERM` (it runs as another user now) or `EINVAL` (no such signal), `Forked`.
    pub fn kill(&self, signal: i32) -> Result<bool> {
        self.check_fork()?;
        // Under the lock: nobody reaps, so the pid cannot become another process's.
        let exit = lock(&self.exit);
        if exit.is_some() {
            return Ok(false);
        }
        let (rc, name) = match &self.watch {
            Watch::Pidfd(fd) if has(Call::PidfdSendSignal) => {
                // SAFETY: a plain call on an fd that we own; no siginfo.
                (unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, 0usize, 0) }, "pidfd_send_signal")
            }
            // SAFETY: a plain call.
            _ => (unsafe { libc::kill(self.pid, signal) }.into(), "kill"),
        };
        // ESRCH: it ended and somebody else reaped it.
        if rc != 0 && errno() != libc::ESRCH {
            return Err(Error::last_os(name).with("pid", self.pid).with("signal", signal));
        }
        Ok(rc == 0)
    }

    /// How the process ended; `None` while it runs. Reaps it.
    ///
    /// # Errors
    /// `Forked`, `Os`.
    pub fn try_wait(&self) -> Result<Option<Exit>> {
        self.check_fork()?;
        let mut exit = lock(&self.exit);
        if exit.is_some() {
            return Ok(*exit);
        }
        // ECHILD says nothing of a process that never was ours.
        if self.foreign && self.pidfd().is_some_and(|fd| !super::pidfd::has_ended(fd)) {
            return Ok(None);
        }
        let (kind, id) = match &self.watch {
            Watch::Pidfd(fd) if has(Call::WaitPidfd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
            _ => (libc::P_PID, self.pid as libc::id_t),
        };
        if self.ends_group {
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: `info` is a valid out pointer, zeroed; the process stays as it is, so its number, which is that of its group, is nobody else's.
            unsafe {
                let ended = libc::waitid(kind, id, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0;
                if ended && info.assume_init_ref().si_pid() != 0 {
                    libc::kill(-self.pid, libc::SIGKILL);
                }
            }
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` is a valid out pointer.
        if unsafe { libc::waitid(kind, id, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG) } != 0 {
            if errno() != libc::ECHILD {
                return Err(Error::last_os("waitid").with("pid", self.pid));
            }
            // Not ours to reap: ended, and somebody else was told.
            let told = self.pidfd().and_then(super::pidfd::exit_status).map(Exit::of_status);
            *exit = Some(told.unwrap_or(Exit { code: None, signal: None, core_dumped: false }));
            return Ok(*exit);
        }
        // SAFETY: zeroed, and filled by `waitid` when a child has ended.
        let info = unsafe { info.assume_init() };
        // SAFETY: the fields of SIGCHLD, which is what `waitid` reports; 0 when nothing has ended.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        let exited = info.si_code == libc::CLD_EXITED;
        *exit = Some(Exit {
            code: exited.then_some(status),
            signal: (!exited).then_some(status),
            core_dumped: info.si_code == libc::CLD_DUMPED,
        });
        Ok(*exit)
    }

    /// Waits for the end, at most `timeout` (`None`: without end); `None` when the time is over first.
    ///
    /// # Errors
    /// `Forked`, `Os`.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<Exit>> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(Some(exit));
            }
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                return Ok(None);
            }
            let ms = left.map_or(-1, |l| l.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX));
            let mut poll = libc::pollfd { fd: self.exit_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd. A signal ends it early, which the loop takes care of.
            unsafe { libc::poll(&raw mut poll, 1, ms) };
        }
    }
}

/// Whether a process has a proportional set size above `limit` bytes; false for one that cannot be looked at.
#[must_use]
pub fn memory_above(pid: i32, limit: u64) -> bool {
    resident(pid).is_some_and(|all| all > limit) && proportional(pid).is_some_and(|own| own > limit)
}

/// Bytes of pages that it has in memory, shared or not. Costs little.
fn resident(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    // SAFETY: a plain query.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * page)
}

/// Each page divided by the number of processes that have it. The kernel walks all of them.
#[must_use]
pub fn proportional(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kib << 10)
}

/// Time that its threads have run, those that have ended too. `None` when it is gone.
#[must_use]
pub fn cpu_time(pid: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in brackets, and may have some itself.
    let ticks: u64 = text.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // SAFETY: a plain query.
    let second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|n| *n > 0)?;
    Some(Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / second)))
}
