//! How an end comes into being and goes: the door, whose socket another process may open instead, and the one end of all.

use super::inbox::Inbox;
use super::line::{Line, Seated};
use super::sending::{Behind, Tx};
use super::turns::{Deadline, Turns};
use super::{Inner, Options, is_transient, own_close, wait};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock;
use crate::sys::fork::{self, Inherited, PrivateFd};
use crate::sys::{poll, socket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

const NOT_SENT: &str = "what was queued is not sent";
/// How long a close waits before it tries again what fds or memory were missing for.
const PAUSE: Duration = Duration::from_millis(10);

/// The socket of an end that is not open yet.
#[derive(Debug)]
pub(super) enum Door {
    /// Of a pair: greetings wait in it, and whoever inherits it may open it instead.
    Offered(Inherited),
    /// Connected here, to a listener: nobody else's to open.
    Connected(PrivateFd),
}

pub(super) fn used_here() -> Error {
    Error::new(ErrorKind::InUse, "this end of the channel is used by this process")
}

impl Door {
    pub(super) fn offered(socket: OwnedFd) -> Door {
        Door::Offered(Inherited::new(socket))
    }

    fn into_private(self) -> PrivateFd {
        match self {
            Door::Offered(socket) => PrivateFd::new(socket.into_fd()),
            Door::Connected(socket) => socket,
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Door::Offered(socket) => socket.as_fd(),
            Door::Connected(socket) => socket.as_fd(),
        }
    }
}

impl Inner {
    pub(super) fn new(options: Options, door: Option<Door>) -> Inner {
        Inner {
            options,
            epoch: fork::epoch(),
            door: Mutex::new(door.map(Arc::new)),
            line: Mutex::default(),
            over: AtomicBool::new(false),
            last_peer: OnceLock::new(),
            opening: Turns::new(()),
            tx: Turns::new(Tx::default()),
            behind: Mutex::new(Behind::default()),
            rx: Mutex::default(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            ready: Mutex::default(),
            is_polled: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            queued: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "channel belongs to the parent of this forked process"))
    }

    /// A forked child looks at no lock: the thread that had it is not there to give it back.
    pub(super) fn inbox(&self) -> Result<MutexGuard<'_, Inbox>> {
        self.check_fork()?;
        Ok(lock(&self.inbox))
    }

    pub(super) fn check_not_ended(&self) -> Result<()> {
        self.inbox()?.ended().map_or(Ok(()), |e| Err(e.clone()))
    }

    /// Nothing is sent on a channel that has ended, or is about to be closed.
    pub(super) fn check_open(&self) -> Result<()> {
        self.check_not_ended()?;
        if self.closing.load(Ordering::Relaxed) { Err(own_close()) } else { Ok(()) }
    }

    // ---- opening ----

    /// The line, for the time of a call; `None` before there is one, and after the end.
    pub(super) fn line(&self) -> Option<Arc<Line>> {
        lock(&self.line).clone()
    }

    /// The line; `None` while the other end has not offered it.
    pub(super) fn open(&self) -> Result<Option<Arc<Line>>> {
        match self.line() {
            Some(line) => Ok(Some(line)),
            // Who takes it is waited for; who waits for it is not.
            None => self.opening.enter_unless_waited().map_or(Ok(None), |_turn| self.take_offer()),
        }
    }

    /// The caller has the turn to open.
    fn take_offer(&self) -> Result<Option<Arc<Line>>> {
        let mut door = lock(&self.door);
        if let Some(shut) = &*door {
            match Seated::take(shut.as_fd()) {
                Ok(None) => return Ok(None),
                Ok(Some(seated)) => {
                    let shut = door.take().and_then(Arc::into_inner).expect("whoever waits at the door has the turn to open");
                    *lock(&self.line) = Some(Arc::new(Line::new(shut.into_private(), seated)));
                    // The next look makes the rings members, too, and says that there is room. One before that has seen no line.
                    self.ring();
                    // Before that, the end looked for a line in vain.
                    if self.is_over() {
                        self.leave_line();
                    }
                }
                Err(e) if is_transient(&e) => return Err(e),
                Err(e) => {
                    drop(door);
                    self.end(&e);
                    return Err(e);
                }
            }
        }
        drop(door);
        match self.line() {
            Some(line) => Ok(Some(line)),
            // It was let go of.
            None => self.check_not_ended().map(|()| None),
        }
    }

    pub(super) fn wait_open(&self, deadline: Deadline) -> Result<Arc<Line>> {
        loop {
            self.check_open()?;
            if let Some(line) = self.open()? {
                return Ok(line);
            }
            self.wait_offer(deadline)?;
        }
    }

    /// Opens, or waits once until something is in the socket; may end early.
    pub(super) fn wait_offer(&self, deadline: Deadline) -> Result<()> {
        let mut turn = self.opening.enter(deadline, "other end did not offer its rings")?;
        if self.take_offer()?.is_some() {
            return Ok(());
        }
        let left = deadline.left("other end did not offer its rings")?;
        // Another thread may close it meanwhile.
        let Some(door) = lock(&self.door).clone() else { return Ok(()) };
        turn.while_waiting(|| wait(poll::readable(door.as_fd().as_raw_fd()), left));
        Ok(())
    }

    /// The socket of an end that nobody has opened, for another owner.
    pub(super) fn detach(&self) -> Result<OwnedFd> {
        // Nobody opens it meanwhile, nor waits at the door.
        let _turn = self.opening.try_enter().ok_or_else(used_here)?;
        let door = lock(&self.door).take_if(|door| matches!(**door, Door::Offered(_)));
        let Some(Door::Offered(socket)) = door.and_then(Arc::into_inner) else { return Err(used_here()) };
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.forget_socket(socket.as_fd());
        }
        self.end(&Error::new(ErrorKind::Closed, "end of the channel was detached"));
        Ok(socket.into_fd())
    }

    // ---- ending ----

    pub(super) fn end(&self, why: &Error) {
        let mut inbox = lock(&self.inbox);
        self.end_with(&mut inbox, why);
    }

    pub(super) fn end_with(&self, inbox: &mut Inbox, why: &Error) {
        if !inbox.end(why) {
            return;
        }
        self.let_go(inbox);
        self.arrived.notify_all();
    }

    /// Gives back the fds and memory that only a channel needs that goes on. What a thread uses is let go of by that thread: when it gives its
    /// turn to send back, when it has read for all, when its call returns.
    fn let_go(&self, inbox: &Inbox) {
        // Relaxed: whoever has the turn gives it back under the lock by which it was found taken here.
        self.over.store(true, Ordering::Relaxed);
        self.leave_line();
        drop(self.try_enter());
        self.let_go_of_reading(inbox);
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.end();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Tells the other end, which still gets what was sent.
    fn leave_line(&self) {
        let mut held = lock(&self.line);
        let Some(line) = held.take() else { return };
        if let Some(other) = line.other() {
            let _ = self.last_peer.set(other.pid);
        }
        drop(held);
        line.close();
    }

    /// With the inbox locked nobody begins to read, so that the lock of `rx`, which comes before it elsewhere, is free.
    pub(super) fn let_go_of_reading(&self, inbox: &Inbox) {
        if inbox.ended().is_some() && !inbox.pumping {
            lock(&self.rx).consumer = None;
        }
    }

    pub(super) fn close(&self) {
        if !fork::is_current(self.epoch) {
            return;
        }
        if self.check_not_ended().is_ok() && self.line().is_some_and(|line| self.has_to_send(&line)) {
            // `try_recv` closes when they are sent.
            self.closing.store(true, Ordering::Relaxed);
            self.wants_room.store(true, Ordering::Relaxed);
            self.arrived.notify_all();
            self.ring();
            return;
        }
        self.close_now();
    }

    /// Something is queued that could be sent later, and not now.
    fn has_to_send(&self, line: &Line) -> bool {
        match self.try_enter() {
            Some(mut tx) => self.flush(&mut tx, line).map_or_else(|e| is_transient(&e), |sent| !sent),
            // A thread waits for room.
            None => self.queued.load(Ordering::Relaxed) > 0,
        }
    }

    pub(super) fn wait_closed(&self, deadline: Deadline) -> Result<()> {
        self.check_fork()?;
        let (Some(line), true) = (self.line(), self.closing.load(Ordering::Relaxed) && self.check_not_ended().is_ok()) else {
            return Ok(());
        };
        loop {
            let mut tx = self.sending(self.tx.enter(deadline, NOT_SENT)?);
            match self.push_queued(&mut tx, &line, deadline) {
                Err(e) if e.kind() == ErrorKind::Timeout => return Err(e),
                Err(e) if is_transient(&e) => drop(tx),
                // Sent, or nobody is there to send it to.
                _ => break,
            }
            let left = deadline.left(NOT_SENT)?;
            std::thread::sleep(left.map_or(PAUSE, |left| left.min(PAUSE)));
        }
        self.close_now();
        Ok(())
    }

    pub(super) fn close_now(&self) {
        self.close_with(&own_close());
    }

    pub(super) fn close_with(&self, why: &Error) {
        let mut inbox = lock(&self.inbox);
        self.end_with(&mut inbox, why);
        inbox.drop_unread();
        drop(inbox);
        // An end that was never opened is another process's to open: nothing but this fd ends.
        if let Some(door) = lock(&self.door).take() {
            if let Some(ready) = &mut *lock(&self.ready) {
                ready.forget_socket(door.as_fd());
            }
            if let Door::Connected(socket) = &*door {
                socket::hang_up(socket.as_fd());
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if fork::is_current(self.epoch) {
            self.close_now();
        }
    }
}
