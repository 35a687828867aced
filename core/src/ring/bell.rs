//! Doorbells: what a sleeping participant waits for, and its peers ring.
//!
//! A ring that is handed over by fds brings an eventfd per seat. A named ring has a FIFO per seat beside its file, which
//! needs nobody alive to hand it over.

use super::named::Named;
use crate::error::Result;
use crate::sys::eventfd::EventFd;
use crate::sys::fifo::Fifo;
use std::os::fd::{AsFd, BorrowedFd};

#[derive(Debug)]
pub(super) enum Bell {
    Event(EventFd),
    Fifo(Fifo),
}

impl Bell {
    pub(super) fn signal(&self) {
        match self {
            Bell::Event(b) => b.signal_shared(),
            Bell::Fifo(b) => b.signal(),
        }
    }

    pub(super) fn clear(&self) -> bool {
        match self {
            Bell::Event(b) => b.clear(),
            Bell::Fifo(b) => b.clear(),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Bell::Event(b) => b.as_fd(),
            Bell::Fifo(b) => b.as_fd(),
        }
    }
}

/// The doorbells of every seat, open from the start: what a waker has to open first it may fail to, for want of an fd.
#[derive(Debug)]
pub(super) struct Bells {
    seats: Vec<Bell>,
    named: Option<Named>,
}

impl Bells {
    pub(super) fn passed(bells: Vec<EventFd>) -> Bells {
        Bells { seats: bells.into_iter().map(Bell::Event).collect(), named: None }
    }

    /// Those of a named ring that is there. Whoever attaches makes what is missing, so it does not matter where its maker died.
    pub(super) fn beside(named: Named, seats: usize) -> Result<Bells> {
        let seats = (0..seats).map(|seat| named.bell(seat).map(Bell::Fifo)).collect::<Result<_>>()?;
        Ok(Bells { seats, named: Some(named) })
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn named(&self) -> Option<&Named> {
        self.named.as_ref()
    }

    pub(super) fn get(&self, seat: usize) -> &Bell {
        &self.seats[seat]
    }

    pub(super) fn ring(&self, seat: usize) {
        self.get(seat).signal();
    }

    /// The eventfds, if that is what they are.
    pub(super) fn fds(&self) -> Option<impl Iterator<Item = BorrowedFd<'_>>> {
        self.named.is_none().then(|| self.seats.iter().map(AsFd::as_fd))
    }
}
