//! How threads wait for each other and for how long.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a call may wait in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    timeout: Option<Duration>,
    until: Option<Instant>,
}

impl Deadline {
    pub(super) fn new(timeout: Option<Duration>) -> Deadline {
        // Too far away for the clock is without end.
        Deadline { timeout, until: timeout.and_then(|t| Instant::now().checked_add(t)) }
    }

    /// What is left (`None`: without end); `Timeout` when nothing is.
    pub(super) fn left(&self, what: &'static str) -> Result<Option<Duration>> {
        let Some(until) = self.until else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let timeout = self.timeout.unwrap_or_default();
            return Err(Error::new(ErrorKind::Timeout, what).with("timeout_ms", timeout.as_millis()));
        }
        Ok(Some(left))
    }
}

pub(super) fn sleep<'a, T>(signal: &Condvar, guard: MutexGuard<'a, T>, left: Option<Duration>) -> MutexGuard<'a, T> {
    match left {
        None => signal.wait(guard).unwrap_or_else(PoisonError::into_inner),
        Some(left) => signal.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Taken {
    #[default]
    Free,
    Busy,
    /// By a thread that says that it waits for what may never come.
    Waiting,
}

/// What one thread at a time uses, for as long as it waits meanwhile; the others wait no longer than they said.
#[derive(Debug, Default)]
pub(super) struct Turns<T> {
    taken: Mutex<Taken>,
    given_back: Condvar,
    object: Mutex<T>,
}

impl<T> Turns<T> {
    pub(super) fn new(object: T) -> Turns<T> {
        Turns { taken: Mutex::default(), given_back: Condvar::new(), object: Mutex::new(object) }
    }

    pub(super) fn enter(&self, deadline: Deadline, what: &'static str) -> Result<Turn<'_, T>> {
        let mut taken = lock(&self.taken);
        while *taken != Taken::Free {
            taken = sleep(&self.given_back, taken, deadline.left(what)?);
        }
        Ok(self.take(taken))
    }

    /// `None` while a thread has the turn that waits by [`while_waiting`](Turn::while_waiting). One that does not is waited for.
    pub(super) fn enter_unless_waited(&self) -> Option<Turn<'_, T>> {
        let mut taken = lock(&self.taken);
        while *taken == Taken::Busy {
            taken = sleep(&self.given_back, taken, None);
        }
        (*taken == Taken::Free).then(|| self.take(taken))
    }

    fn take<'a>(&'a self, mut taken: MutexGuard<'a, Taken>) -> Turn<'a, T> {
        *taken = Taken::Busy;
        Turn { turns: self, object: lock(&self.object) }
    }

    /// `None` while another thread has the turn.
    pub(super) fn try_enter(&self) -> Option<Turn<'_, T>> {
        let taken = lock(&self.taken);
        (*taken == Taken::Free).then(|| self.take(taken))
    }
}

pub(super) struct Turn<'a, T> {
    turns: &'a Turns<T>,
    object: MutexGuard<'a, T>,
}

impl<T> Turn<'_, T> {
    /// Waits by `wait`, which may last.
    pub(super) fn while_waiting(&mut self, wait: impl FnOnce()) {
        *lock(&self.turns.taken) = Taken::Waiting;
        // Those that do not wait for one that waits go on.
        self.turns.given_back.notify_all();
        wait();
        *lock(&self.turns.taken) = Taken::Busy;
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.object
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        *lock(&self.turns.taken) = Taken::Free;
        // The object's lock is let go of after this; whoever wakes waits for it that long.
        self.turns.given_back.notify_one();
    }
}
