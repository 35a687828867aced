//! Doorbells: what a sleeping participant waits for, and its peers ring.
//!
//! A ring that is handed over by fds brings an eventfd per seat. A named ring has a FIFO per seat beside its file, which
//! needs nobody alive to hand it over: the owner of a seat makes it, whoever wakes that owner opens it.

use super::named::Named;
use crate::error::Result;
use crate::sys::eventfd::EventFd;
use crate::sys::fifo::Fifo;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

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

/// The doorbells of every seat; those of a named ring are opened when they are needed.
#[derive(Debug)]
pub(super) struct Bells {
    seats: Vec<OnceLock<Bell>>,
    named: Option<Named>,
}

impl Bells {
    pub(super) fn passed(bells: Vec<EventFd>) -> Bells {
        Bells { seats: bells.into_iter().map(|b| OnceLock::from(Bell::Event(b))).collect(), named: None }
    }

    pub(super) fn beside(named: Named, seats: usize) -> Bells {
        Bells { seats: (0..seats).map(|_| OnceLock::new()).collect(), named: Some(named) }
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn named(&self) -> Option<&Named> {
        self.named.as_ref()
    }

    /// The bell of a seat that the caller owns, or is about to.
    pub(super) fn own(&self, seat: usize) -> Result<&Bell> {
        if let (None, Some(named)) = (self.seats[seat].get(), &self.named) {
            let made = named.make_bell(seat)?;
            // Another thread may have been first: both are the same FIFO.
            let _ = self.seats[seat].set(Bell::Fifo(made));
        }
        Ok(self.get(seat))
    }

    /// The bell of a seat whose owner has entered.
    pub(super) fn get(&self, seat: usize) -> &Bell {
        self.seats[seat].get().expect("an owned seat has its bell")
    }

    pub(super) fn ring(&self, seat: usize) {
        if let (None, Some(named)) = (self.seats[seat].get(), &self.named) {
            // Without a bell there is no sleeper: its owner makes it before it enters.
            let Ok(bell) = named.open_bell(seat) else { return };
            let _ = self.seats[seat].set(Bell::Fifo(bell));
        }
        self.get(seat).signal();
    }

    /// The eventfds, if that is what they are.
    pub(super) fn fds(&self) -> Option<impl Iterator<Item = BorrowedFd<'_>>> {
        self.named.is_none().then(|| self.seats.iter().map(|b| b.get().expect("passed bells are there from the start").as_fd()))
    }
}
