//! Signals as something to poll: blocked in the calling thread, and in those that it starts from then on, and read from an fd. For a program's own
//! first thread, before it has others; a library does not do this to its host.

use super::{failed, poll};
use crate::error::{Error, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// Signals that come by an fd, as long as this lives.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Takes these over.
    ///
    /// # Errors
    /// `Invalid` for a number that is no signal, `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn take(signals: &[i32]) -> Result<Signals> {
        let mut set = SigSet::empty();
        for signal in signals {
            set.add(Signal::try_from(*signal).map_err(|_| Error::invalid("there is no such signal").with("signal", signal))?);
        }
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(|e| failed("signalfd", e))?;
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(|e| failed("pthread_sigmask", e))?;
        Ok(Signals { fd, before })
    }

    /// The next one, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        self.fd.read_signal().ok().flatten().map(|info| info.ssi_signo.cast_signed())
    }

    /// Sleeps until there is one.
    pub fn wait(&self) {
        use std::os::fd::AsRawFd;
        poll::wait_readable(&mut [poll::readable(self.fd.as_raw_fd())], None);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Fails for no set.
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_the_thread_is_read_and_the_mask_is_as_before() {
        let before = SigSet::thread_get_mask().expect("mask");
        let signals = Signals::take(&[libc::SIGUSR1, libc::SIGUSR2]).expect("taken");
        assert_eq!(signals.next(), None);
        // SAFETY: this thread blocks it.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
        signals.wait();
        assert_eq!((signals.next(), signals.next()), (Some(libc::SIGUSR2), None));
        drop(signals);
        assert_eq!(SigSet::thread_get_mask().expect("mask"), before);
        assert!(Signals::take(&[1000]).is_err());
    }
}
