//! The one fd that an event loop polls.
//!
//! ```text
//!  epoll ─┬─ consumer's epoll    a record came, or the other end died; not while too many messages wait
//!         ├─ producer's epoll    there is room again; a member only while somebody waits for it
//!         ├─ socket              greetings before the other end is here, room for fds while somebody waits for it, its hang-up
//!         ├─ bell                something arrived by another thread's hand
//!         └─ timer               the time of a request is over
//! ```

use super::line::Line;
use crate::error::Result;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::{Epoll, Timer};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// What the loop wants to know of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Readable,
    Writable,
    HangUp,
}

impl Interest {
    /// While nobody waits for room in the socket. Once the other end is here, what lies in it are fds whose record comes: an end that
    /// was stopped between the two must not keep a loop busy.
    pub(super) fn calm(line: &Line) -> Interest {
        if line.other().is_some() { Interest::HangUp } else { Interest::Readable }
    }
}

#[derive(Debug)]
pub(super) struct Ready {
    epoll: Epoll,
    bell: EventFd,
    rung: bool,
    timer: Option<Timer>,
    timer_at: Option<Instant>,
    socket: Option<Interest>,
    pub(super) has_consumer: bool,
    has_room: bool,
}

impl Ready {
    pub(super) fn new() -> Result<Ready> {
        let (epoll, bell) = (Epoll::new()?, EventFd::new()?);
        epoll.add(bell.fd())?;
        Ok(Ready { epoll, bell, rung: false, timer: None, timer_at: None, socket: None, has_consumer: false, has_room: false })
    }

    pub(super) fn ring(&mut self) {
        if !self.rung {
            self.rung = true;
            self.bell.signal();
        }
    }

    pub(super) fn quiet(&mut self) {
        if std::mem::take(&mut self.rung) {
            self.bell.clear();
        }
    }

    /// `socket` is always the same open file; an fd of it that is closed leaves by itself.
    pub(super) fn watch_socket(&mut self, socket: BorrowedFd<'_>, want: Interest) -> Result<()> {
        if self.socket == Some(want) {
            return Ok(());
        }
        if self.socket.take().is_some() {
            self.epoll.remove(socket);
        }
        match want {
            Interest::Readable => self.epoll.add(socket),
            Interest::Writable => self.epoll.add_writable(socket),
            Interest::HangUp => self.epoll.add_hang_up(socket),
        }?;
        self.socket = Some(want);
        Ok(())
    }

    /// It is closed, or a child's to use.
    pub(super) fn forget_socket(&mut self, socket: BorrowedFd<'_>) {
        if self.socket.take().is_some() {
            self.epoll.remove(socket);
        }
    }

    pub(super) fn watch_consumer(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.epoll.add(fd)?;
        self.has_consumer = true;
        Ok(())
    }

    /// Nothing more is waited for: the loop hears of the end from now on. The members go when they are closed.
    pub(super) fn end(&mut self) {
        self.ring();
        (self.timer, self.timer_at) = (None, None);
    }

    pub(super) fn forget_consumer(&mut self, fd: BorrowedFd<'_>) {
        if std::mem::take(&mut self.has_consumer) {
            self.epoll.remove(fd);
        }
    }

    pub(super) fn watch_room(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.has_room {
            self.epoll.add(fd)?;
            self.has_room = true;
        }
        Ok(())
    }

    pub(super) fn forget_room(&mut self, fd: BorrowedFd<'_>) {
        if std::mem::take(&mut self.has_room) {
            self.epoll.remove(fd);
        }
    }

    pub(super) fn awaits_room_for_fds(&self) -> bool {
        self.socket == Some(Interest::Writable)
    }

    pub(super) fn set_timer(&mut self, at: Option<Instant>) -> Result<()> {
        if self.timer_at == at {
            return Ok(());
        }
        let mut timer = match self.timer.take() {
            Some(timer) => timer,
            None => {
                let timer = Timer::new()?;
                self.epoll.add(timer.as_fd())?;
                timer
            }
        };
        timer.set(at.map(|at| at.saturating_duration_since(Instant::now())));
        self.timer = Some(timer);
        self.timer_at = at;
        Ok(())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
