//! The zygote's side: [`attach`], load what workers need, then [`Zygote::serve`] with the program's own fork.
//!
//! ```text
//!  supervisor                       zygote, one thread                  worker
//!  ──────────                       ──────────────────                  ──────
//!  exec ──────────────────────────► attach, loads
//!            ◄─────────── READY ─── serve
//!  FORK, fds ─────────────────────► fork ─────────────────────────────► fds and variables as after an exec
//!            ◄──────────────────────────────────── STARTED, pidfd ───── serve returns, worker::attach …
//!            ◄────────── EXITED ─── reaps ◄──────────────────────────── ends
//! ```
//!
//! Its fork copies one thread only, so what others hold is lost in a worker: with a second thread that no handler of `pthread_atfork` ends,
//! it refuses, and the supervisor starts workers by exec.

use super::worker::check_inherited;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::fork::{self, PrivateFd};
use crate::sys::socket::{self, Received, Sent};
use crate::sys::{mem, pidfd, poll};
use crate::wire::zygote::{CODE, DUMPED, ENV, HEAD, MAX_LEN, Message, NEW_GROUP, SIGNAL, UNKNOWN, VERSION, parse_env};
use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Numbers below this one, from 3 on, are kept free in a zygote for its workers' fds.
pub const RESERVED: RawFd = 32;

/// How often a child is looked for whose pidfd there was no room for.
const BLIND: Duration = Duration::from_millis(20);

/// This process as a zygote.
#[derive(Debug)]
pub struct Zygote {
    socket: OwnedFd,
    setup: Vec<u8>,
    children: Vec<Forked>,
}

#[derive(Debug)]
struct Forked {
    token: u64,
    pid: i32,
    pidfd: Option<PrivateFd>,
}

/// Why [`Zygote::serve`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// This is a worker now: it goes on with [`worker::attach`](super::worker::attach).
    Worker,
    /// No more workers are wanted of this process: it is to end, without what its program does at an exit.
    Over,
}

/// Makes this process the zygote that its supervisor started. `None` when the environment names none. The inherited fds are taken over.
///
/// Call it before anything else of the program: a library whose handlers of `pthread_atfork` stop its threads is loaded afterwards.
///
/// # Errors
/// `Invalid` when the variable or the fds are not what a supervisor leaves, or at a second call; `Os` (`ENOMEM`).
pub fn attach() -> Result<Option<Zygote>> {
    match std::env::var_os(ENV) {
        None => Ok(None),
        Some(text) => attach_as(&text.to_string_lossy()).map(Some),
    }
}

fn attach_as(text: &str) -> Result<Zygote> {
    static ATTACHED: AtomicBool = AtomicBool::new(false);
    let (socket_fd, setup_fd, len) = parse_env(text)?;
    // The first handler that is registered runs last before a fork.
    let _ = fork::epoch();
    check_inherited([socket_fd, setup_fd])?;
    // SAFETY: both are open, as was asked, and stay so: nobody else knows them.
    let (socket_at, setup_at) = unsafe { (BorrowedFd::borrow_raw(socket_fd), BorrowedFd::borrow_raw(setup_fd)) };
    socket::check_kind(socket_at).map_err(|_| Error::invalid("fd is not the socket of a zygote").with("fd", socket_fd))?;
    let setup = if len == 0 { Vec::new() } else { mem::read_sealed(setup_at, len)? };
    if ATTACHED.swap(true, Ordering::Relaxed) {
        return Err(Error::invalid("process is a zygote already"));
    }
    socket::adopt(socket_at)?;
    // SAFETY: what was inherited for this purpose has no other owner.
    let (socket, setup_own) = unsafe { (OwnedFd::from_raw_fd(socket_fd), OwnedFd::from_raw_fd(setup_fd)) };
    drop(setup_own);
    for fd in 3..RESERVED {
        // SAFETY: a plain call; what the program starts by exec does not need to keep the number.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(Zygote { socket, setup, children: Vec::new() })
}

fn errno_of(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EAGAIN)
}

fn last_errno() -> i32 {
    errno_of(&io::Error::last_os_error())
}

/// The names of this process's threads.
fn threads() -> io::Result<Vec<String>> {
    let tasks = std::fs::read_dir("/proc/self/task")?;
    // One that ends meanwhile has no name any more.
    Ok(tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).map(|name| name.trim().to_owned()).collect())
}

/// Ends a process that is to do nothing more.
fn end(code: i32) -> ! {
    // SAFETY: ends the process without its handlers.
    unsafe { libc::_exit(code) }
}

impl Zygote {
    /// What the supervisor's owner says to it.
    #[must_use]
    pub fn setup(&self) -> &[u8] {
        &self.setup
    }

    /// Leaves the reason of a failure for the supervisor, 16,384 bytes at most; the process is to end afterwards.
    pub fn fail(&self, text: &str) {
        let _ = self.say(&Message::Failed(text.to_owned()), &[]);
    }

    /// Forks workers until the supervisor wants no more. `fork` is `fork(2)` as the program's runtime does it: 0 in the child.
    ///
    /// When it has threads that a fork would lose, it tells the supervisor so and returns `Over`. An error that `fork` returns is the
    /// worker's; the zygote goes on.
    ///
    /// # Errors
    /// `Os`, `Corrupt`: then the process is to end.
    pub fn serve(mut self, mut fork: impl FnMut() -> io::Result<i32>) -> Result<Served> {
        if let Some(text) = lone(&mut fork) {
            self.say(&Message::Refused(text), &[])?;
            return Ok(Served::Over);
        }
        self.say(&Message::Ready { version: VERSION }, &[])?;
        let mut bytes = vec![0; MAX_LEN];
        loop {
            self.reap()?;
            bytes[..HEAD].fill(0);
            match socket::peek(self.socket.as_fd(), &mut bytes) {
                Ok(Received::Datagram(len, fds)) => {
                    let message = Message::decode(bytes.get(..len).unwrap_or(&bytes))?;
                    socket::skip(self.socket.as_fd());
                    if self.make(message, fds, &mut fork)? {
                        return Ok(Served::Worker);
                    }
                }
                Ok(Received::Nothing) => self.rest(),
                Ok(Received::End) => return Ok(Served::Over),
                // No room for the worker's fds, but the request is here; of another error there is the token 0, which nobody has.
                Err(e) if e.kind() == ErrorKind::Os => {
                    let errno = e.errno().map_or(libc::EMFILE, |(errno, _)| errno);
                    let token = u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
                    socket::skip(self.socket.as_fd());
                    self.say(&Message::NoFork { token, errno }, &[])?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for a request, or the end of a child.
    fn rest(&self) {
        let mut fds = vec![poll::readable(self.socket.as_raw_fd())];
        let pidfds = self.children.iter().filter_map(|c| c.pidfd.as_ref());
        fds.extend(pidfds.map(|fd| poll::readable(fd.as_fd().as_raw_fd())));
        let blind = self.children.iter().any(|c| c.pidfd.is_none());
        poll::wait_readable(&mut fds, blind.then_some(BLIND));
    }

    /// Tells of children that have ended: of those by their own numbers, because others are the program's.
    fn reap(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        self.children.retain(|child| {
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: `info` is a valid out pointer.
            let rc = unsafe { libc::waitid(libc::P_PID, child.pid as libc::id_t, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG) };
            // SAFETY: zeroed, and filled by `waitid` when the child has ended.
            let info = unsafe { info.assume_init() };
            // SAFETY: the fields of SIGCHLD, which is what `waitid` reports; 0 when nothing has ended.
            let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
            if rc == 0 && pid == 0 {
                return true;
            }
            let how = match info.si_code {
                // A program that ignores SIGCHLD has nothing to wait for.
                _ if rc != 0 => UNKNOWN,
                libc::CLD_EXITED => CODE,
                libc::CLD_DUMPED => DUMPED,
                _ => SIGNAL,
            };
            ended.push(Message::Exited { token: child.token, how, value });
            false
        });
        ended.iter().try_for_each(|message| self.say(message, &[]))
    }

    /// True in the worker.
    fn make(&mut self, message: Message, fds: Vec<OwnedFd>, fork: &mut impl FnMut() -> io::Result<i32>) -> Result<bool> {
        let Message::Fork { token, flags, numbers, env } = message else {
            return Err(Error::new(ErrorKind::Corrupt, "zygote was sent what is not for it"));
        };
        if numbers.len() != fds.len() || numbers.iter().any(|n| !(0..RESERVED).contains(n)) {
            self.say(&Message::NoFork { token, errno: libc::EBADF }, &[])?;
            return Ok(false);
        }
        let pid = match fork() {
            Ok(pid) => pid,
            Err(e) => {
                self.say(&Message::NoFork { token, errno: errno_of(&e) }, &[])?;
                return Ok(false);
            }
        };
        if pid == 0 {
            if let Err(errno) = self.become_worker(token, flags, &numbers, fds, env) {
                let _ = self.say(&Message::NoFork { token, errno }, &[]);
                end(127);
            }
            return Ok(true);
        }
        let opened = pidfd::open(pid.unsigned_abs());
        let pidfd = if let Ok(pidfd::Opened::Process(fd)) = opened { Some(PrivateFd::new(fd)) } else { None };
        self.children.push(Forked { token, pid, pidfd });
        Ok(false)
    }

    /// Gives this process what a worker has after an exec, and tells the supervisor of it.
    fn become_worker(
        &mut self,
        token: u64,
        flags: u32,
        numbers: &[i32],
        fds: Vec<OwnedFd>,
        env: Vec<(OsString, OsString)>,
    ) -> std::result::Result<(), i32> {
        // The others' pidfds; a runtime whose fork runs no handlers left them open.
        self.children.clear();
        // SAFETY: a plain call.
        if flags & NEW_GROUP != 0 && unsafe { libc::setpgid(0, 0) } != 0 {
            return Err(last_errno());
        }
        // What was received has numbers from RESERVED on, as all others were taken.
        for (fd, number) in fds.iter().zip(numbers) {
            // SAFETY: the number was kept free for this.
            if unsafe { libc::dup2(fd.as_raw_fd(), *number) } < 0 {
                return Err(last_errno());
            }
        }
        drop(fds);
        for fd in (3..RESERVED).filter(|fd| !numbers.contains(fd)) {
            // SAFETY: was kept free, and is nobody's.
            unsafe { libc::close(fd) };
        }
        let text = |text: &OsString| CString::new(text.as_bytes()).map_err(|_| libc::EINVAL);
        // SAFETY: this process has one thread, and the texts live for the calls.
        unsafe { libc::unsetenv(c"OFFLOOP_ZYGOTE".as_ptr()) };
        for (name, value) in &env {
            let (name, value) = (text(name)?, text(value)?);
            // SAFETY: as above.
            if unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) } != 0 {
                return Err(last_errno());
            }
        }
        let pid = std::process::id();
        let own = match pidfd::open(pid) {
            Ok(pidfd::Opened::Process(fd)) => fd,
            Ok(_) => return Err(libc::ENOSYS),
            Err(e) => return Err(e.errno().map_or(libc::EMFILE, |(errno, _)| errno)),
        };
        match self.say(&Message::Started { token, pid: pid as i32 }, &[own.as_fd()]) {
            Ok(()) => Ok(()),
            Err(_) => end(127),
        }
    }

    /// Waits for room, as there is nothing to do meanwhile.
    fn say(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = message.encode()?;
        loop {
            match socket::send(self.socket.as_fd(), &bytes, fds)? {
                Sent::Whole => return Ok(()),
                Sent::Full => poll::wait_readable(&mut [poll::writable(self.socket.as_raw_fd())], None),
                // It ends by what `peek` finds.
                Sent::Gone if fds.is_empty() => return Ok(()),
                Sent::Gone => return Err(Error::new(ErrorKind::PeerDied, "the supervisor is gone")),
            }
        }
    }
}

/// What keeps this process from forking workers: a thread that is left when the handlers of `pthread_atfork` have run, as those of libraries
/// with threads of their own (OpenBLAS) end these, and start them anew when they are needed.
fn lone(fork: &mut impl FnMut() -> io::Result<i32>) -> Option<String> {
    let unknown = |e: io::Error| format!("threads cannot be counted: {e}");
    match threads() {
        Err(e) => return Some(unknown(e)),
        Ok(names) if names.len() <= 1 => return None,
        Ok(_) => {}
    }
    match fork() {
        Ok(0) => end(0),
        Ok(pid) => {
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: `info` is a valid out pointer. A child of its own, which ends at once.
            while unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, info.as_mut_ptr(), libc::WEXITED) } != 0
                && last_errno() == libc::EINTR
            {}
        }
        Err(e) => return Some(format!("it cannot fork: {e}")),
    }
    match threads() {
        Err(e) => Some(unknown(e)),
        Ok(names) if names.len() <= 1 => None,
        Ok(names) => Some(format!("it has {} threads, which a fork would lose: {}", names.len(), names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_supervisor_left_is_refused() {
        let kind = |text: &str| attach_as(text).map(|_| ()).expect_err(text).kind();
        assert_eq!(kind("nonsense"), ErrorKind::Invalid);
        assert_eq!(kind("1000000,1000001,0"), ErrorKind::Invalid);
        let null = std::fs::File::open("/dev/null").expect("null");
        let (a, _b) = socket::pair().expect("pair");
        let e = attach_as(&format!("{},{},0", null.as_raw_fd(), a.as_raw_fd())).map(|_| ()).expect_err("no socket");
        assert!(e.to_string().contains("socket of a zygote"), "{e}");
        let e = attach_as(&format!("{},{},1", a.as_raw_fd(), null.as_raw_fd())).map(|_| ()).expect_err("no setup");
        assert!(e.to_string().contains("memfd"), "{e}");
    }
}
