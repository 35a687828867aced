//! Sleeping on a word of memory.
//!
//! Private futexes only: the kernel keys them by address within this process, which is cheaper than by page. Words in
//! memory that other processes map need the shared form, which differs in one flag (`Scope`).

use super::clock::timespec;
use crate::sync::atomic::AtomicU32;
use std::ptr;
use std::time::Duration;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Somebody woke this thread. The word may or may not have changed: look again.
    Woken,
    /// The word did not hold the expected value; the thread did not sleep.
    Changed,
    /// The time is over.
    TimedOut,
    /// A signal handler ran, or the thread was stopped and continued.
    Interrupted,
}

/// Who may sleep on and wake a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Threads of this process.
    Private,
}

impl Scope {
    fn flag(self) -> libc::c_int {
        match self {
            Scope::Private => libc::FUTEX_PRIVATE_FLAG,
        }
    }
}

/// Sleeps while `word` holds `expected`, until a [`wake`], at most for `timeout`. `None` waits without end.
///
/// The comparison and going to sleep are one step to a [`wake`] that comes after the word was changed.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Wake {
    wait_in(Scope::Private, word, expected, timeout)
}

/// Wakes at most `n` threads that sleep on `word`; returns how many.
pub fn wake(word: &AtomicU32, n: u32) -> usize {
    wake_in(Scope::Private, word, n)
}

fn wait_in(scope: Scope, word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Wake {
    let ts = timeout.map(timespec);
    let ts: *const libc::timespec = ts.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `word` is a live, aligned u32 and `ts` is null or a live timespec, both for the duration of the call.
    let rc = unsafe { libc::syscall(libc::SYS_futex, ptr::from_ref(word), libc::FUTEX_WAIT | scope.flag(), expected, ts) };
    if rc == 0 {
        return Wake::Woken;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Wake::Changed,
        Some(libc::ETIMEDOUT) => Wake::TimedOut,
        // Any other error is impossible with valid arguments; the caller looks at the word again in every case.
        _ => Wake::Interrupted,
    }
}

fn wake_in(scope: Scope, word: &AtomicU32, n: u32) -> usize {
    let n = i32::try_from(n).unwrap_or(i32::MAX);
    // SAFETY: the kernel does not read the word for a wake; its address is that of a live u32.
    let rc = unsafe { libc::syscall(libc::SYS_futex, ptr::from_ref(word), libc::FUTEX_WAKE | scope.flag(), n) };
    usize::try_from(rc).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::Ordering;
    use std::sync::Arc;

    #[test]
    fn does_not_sleep_when_the_word_changed() {
        assert_eq!(wait(&AtomicU32::new(1), 0, None), Wake::Changed);
    }

    #[test]
    fn gives_up_after_the_timeout() {
        let word = AtomicU32::new(0);
        let from = std::time::Instant::now();
        while wait(&word, 0, Some(Duration::from_millis(5))) == Wake::Interrupted {}
        assert!(from.elapsed() >= Duration::from_millis(5));
        assert_eq!(wait(&word, 0, Some(Duration::ZERO)), Wake::TimedOut);
    }

    #[test]
    fn a_huge_timeout_is_no_error() {
        let word = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&word);
        let sleeper = std::thread::spawn(move || wait(&seen, 0, Some(Duration::MAX)));
        // The sleeper may not sleep yet: wake until it is gone.
        while !sleeper.is_finished() {
            wake(&word, 1);
            std::thread::yield_now();
        }
        assert_eq!(sleeper.join().expect("join"), Wake::Woken);
    }

    #[test]
    fn wakes_as_many_as_asked() {
        let word = Arc::new(AtomicU32::new(0));
        let sleepers: Vec<_> = (0..3)
            .map(|_| {
                let word = Arc::clone(&word);
                std::thread::spawn(move || {
                    while word.load(Ordering::Acquire) == 0 {
                        wait(&word, 0, None);
                    }
                })
            })
            .collect();
        let mut woken = 0;
        while woken < 2 {
            let n = wake(&word, 1); // they see 0 and sleep again
            assert!(n <= 1);
            woken += n;
            std::thread::yield_now();
        }
        word.store(1, Ordering::Release);
        wake(&word, u32::MAX);
        for s in sleepers {
            s.join().expect("join");
        }
    }
}
