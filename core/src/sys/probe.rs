//! Which newer system calls this kernel and its seccomp policy let us use.
//!
//! Each is asked for once, by a call that does nothing where it works. A policy may refuse with `EPERM` or `ENOSYS`, an
//! older kernel with `ENOSYS` or `EINVAL`; every one has a fallback that works on the floor (Linux 5.10).

use super::mem;
use crate::sync::atomic::{AtomicU8, Ordering};

/// A call that is newer than some kernel or policy in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Call {
    /// `memfd_create(MFD_NOEXEC_SEAL)`.
    MemfdNoexecSeal,
    /// `clone(CLONE_PIDFD)`.
    ClonePidfd,
    /// `pidfd_open`.
    PidfdOpen,
    /// `pidfd_send_signal`.
    PidfdSendSignal,
    /// `waitid(P_PIDFD)`.
    WaitPidfd,
    /// `close_range(CLOSE_RANGE_CLOEXEC)`.
    CloseRangeCloexec,
}

/// One row of [`probes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Which call.
    pub call: Call,
    /// The call as in its manual page.
    pub name: &'static str,
    /// The first Linux version that has it.
    pub since: &'static str,
    /// It works here.
    pub available: bool,
    /// What is done without it.
    pub fallback: &'static str,
}

const TABLE: [(Call, &str, &str, &str); 6] = [
    (Call::MemfdNoexecSeal, "memfd_create(MFD_NOEXEC_SEAL)", "6.3", "a memfd without that seal"),
    (Call::ClonePidfd, "clone(CLONE_PIDFD)", "5.2", "clone, then pidfd_open"),
    (Call::PidfdOpen, "pidfd_open", "5.3", "a thread that waits for the child and signals an eventfd"),
    (Call::PidfdSendSignal, "pidfd_send_signal", "5.1", "kill, while the child is known not to be reaped"),
    (Call::WaitPidfd, "waitid(P_PIDFD)", "5.4", "waitid(P_PID)"),
    (Call::CloseRangeCloexec, "close_range(CLOSE_RANGE_CLOEXEC)", "5.11", "FD_CLOEXEC on each fd that /proc/self/fd lists"),
];

const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

static STATES: [AtomicU8; TABLE.len()] = [const { AtomicU8::new(UNKNOWN) }; TABLE.len()];

/// Every call with a fallback, probed now if it was not before.
#[must_use]
pub fn probes() -> Vec<Probe> {
    TABLE.iter().map(|&(call, name, since, fallback)| Probe { call, name, since, available: has(call), fallback }).collect()
}

/// `call` works here.
#[must_use]
pub fn has(call: Call) -> bool {
    let state = &STATES[call as usize];
    match state.load(Ordering::Relaxed) {
        UNKNOWN => {
            let available = probe(call);
            // Two threads may both probe; they get the same answer.
            state.store(if available { YES } else { NO }, Ordering::Relaxed);
            available
        }
        known => known == YES,
    }
}

fn probe(call: Call) -> bool {
    // SAFETY: the calls below are made with arguments that fail or change nothing, as each line says.
    let (rc, harmless): (libc::c_long, &[libc::c_int]) = unsafe {
        match call {
            // EMFILE and ENFILE say nothing about the flag, which is checked before.
            Call::MemfdNoexecSeal => (
                libc::memfd_create(c"offloop-probe".as_ptr(), mem::MFD_BASE | mem::MFD_NOEXEC_SEAL).into(),
                &[libc::EMFILE, libc::ENFILE, libc::ENOMEM],
            ),
            // CLONE_THREAD without CLONE_SIGHAND is EINVAL in every version, before anything is made.
            Call::ClonePidfd => {
                (libc::syscall(libc::SYS_clone, libc::CLONE_PIDFD | libc::CLONE_THREAD, 0usize, 0usize, 0usize, 0usize), &[libc::EINVAL])
            }
            Call::PidfdOpen => (libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0), &[libc::EMFILE, libc::ENFILE, libc::ENOMEM]),
            Call::PidfdSendSignal => (libc::syscall(libc::SYS_pidfd_send_signal, -1, 0, 0usize, 0), &[libc::EBADF]),
            // An fd that cannot be open; a negative one is EINVAL also where P_PIDFD is known.
            Call::WaitPidfd => {
                (libc::syscall(libc::SYS_waitid, libc::P_PIDFD, i32::MAX, 0usize, libc::WEXITED | libc::WNOHANG, 0usize), &[libc::EBADF])
            }
            // No fd has this number.
            Call::CloseRangeCloexec => (libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_CLOEXEC), &[]),
        }
    };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if rc >= 0 {
        if matches!(call, Call::MemfdNoexecSeal | Call::PidfdOpen) {
            // SAFETY: the call above gave us this fd.
            unsafe { libc::close(rc as libc::c_int) };
        }
        return true;
    }
    harmless.contains(&errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_call_in_order() {
        for (i, row) in probes().iter().enumerate() {
            assert_eq!(row.call as usize, i);
            assert!(!row.fallback.is_empty() && row.since.split_once('.').is_some());
        }
    }
}
