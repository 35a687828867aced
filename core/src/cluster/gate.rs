//! The thread that answers what workers ask for, so that they are served while the host's own loop is busy.

use super::listen::{Address, Sockets};
use super::pass::Passer;
use super::{Event, Listener};
use crate::error::{Error, Result};
use crate::supervisor::WorkerId;
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::Epoll;
use crate::sys::{socket, thread};
use crate::wire::cluster::{LISTEN, MAX_LEN, SEAT, decode_request, encode_reply};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

const BELL: u64 = 0;

/// The gates of all workers.
pub(super) struct Gates {
    epoll: Epoll,
    bell: EventFd,
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    last: u64,
    by_token: HashMap<u64, (WorkerId, Arc<OwnedFd>)>,
    over: bool,
}

impl Gates {
    /// Starts the thread, which ends with [`close`](Self::close). With a `passer` workers get seats in place of sockets. `first` is told before
    /// anything else.
    pub(super) fn open(sockets: Arc<Sockets>, passer: Option<Arc<Passer>>, listener: Listener, first: Option<Event>) -> Result<Arc<Gates>> {
        let gates = Arc::new(Gates { epoll: Epoll::new()?, bell: EventFd::new()?, rows: Mutex::default() });
        gates.epoll.add_tagged(gates.bell.fd(), BELL)?;
        let own = Arc::clone(&gates);
        let options = thread::Options { name: "offloop-gate".to_owned(), stack_size: Some(256 << 10), nice: 0 };
        let run = move || {
            if let Some(first) = first {
                listener.tell(&first);
            }
            own.run(&sockets, passer.as_deref(), &listener);
        };
        drop(thread::spawn(&options, run)?);
        Ok(gates)
    }

    /// A gate for `id`: the end that it inherits.
    pub(super) fn add(&self, id: WorkerId) -> Result<OwnedFd> {
        let (own, theirs) = socket::pair()?;
        let own = Arc::new(own);
        let mut rows = lock(&self.rows);
        rows.last += 1;
        let token = rows.last;
        self.epoll.add_tagged(own.as_fd(), token)?;
        rows.by_token.insert(token, (id, own));
        Ok(theirs)
    }

    /// The worker has ended, or was not started.
    pub(super) fn remove(&self, id: WorkerId) {
        let mut rows = lock(&self.rows);
        let gone: Vec<u64> = rows.by_token.iter().filter(|(_, (other, _))| *other == id).map(|(token, _)| *token).collect();
        for token in gone {
            if let Some((_, fd)) = rows.by_token.remove(&token) {
                self.epoll.remove(fd.as_fd());
            }
        }
    }

    pub(super) fn close(&self) {
        lock(&self.rows).over = true;
        self.bell.signal();
    }

    fn run(&self, sockets: &Sockets, passer: Option<&Passer>, listener: &Listener) {
        let mut ready = Vec::with_capacity(64);
        loop {
            self.epoll.wait(&mut ready);
            for token in ready.drain(..) {
                if token == BELL {
                    self.bell.clear();
                    if lock(&self.rows).over {
                        return;
                    }
                    continue;
                }
                let found = lock(&self.rows).by_token.get(&token).map(|(id, fd)| (*id, Arc::clone(fd)));
                if let Some((id, fd)) = found
                    && !serve(id, fd.as_fd(), sockets, passer, listener)
                {
                    // It would be readable for good.
                    self.epoll.remove(fd.as_fd());
                    lock(&self.rows).by_token.remove(&token);
                }
            }
        }
    }
}

/// Answers one request; false when there will be no more.
fn serve(id: WorkerId, gate: BorrowedFd<'_>, sockets: &Sockets, passer: Option<&Passer>, listener: &Listener) -> bool {
    let mut bytes = [0; MAX_LEN];
    let len = match socket::peek(gate, &mut bytes) {
        // Fds that it sends are nobody's: they are closed here.
        Ok(socket::Received::Datagram(len, _fds)) => len,
        Ok(socket::Received::Nothing) => return true,
        Ok(socket::Received::End) => return false,
        // No room for fds that nobody has asked for.
        Err(_) => 0,
    };
    socket::skip(gate);
    let answered = match (decode_request(&bytes[..len.min(MAX_LEN)]), passer) {
        (Some((LISTEN, queue, nth, text)), _) => text.parse::<Address>().and_then(|address| sockets.at(&address, nth, queue)),
        (Some((SEAT, index, _, _)), Some(_)) => sockets.nth(index),
        _ => Err(Error::invalid("worker asks for what no cluster has")),
    };
    let answered = answered.and_then(|found| {
        let fd = match passer {
            Some(passer) => passer.seat(id, &found)?,
            None => found.for_worker()?,
        };
        Ok((found.bound.clone(), fd))
    });
    let sent = match &answered {
        Ok((bound, fd)) => socket::send(gate, &encode_reply(0, &bound.to_string()), &[fd.as_fd()]),
        Err(e) => socket::send(gate, &encode_reply(e.errno().map_or(libc::EINVAL, |(errno, _)| errno), &e.to_string()), &[]),
    };
    if let (Ok((address, _)), Ok(socket::Sent::Whole)) = (answered, &sent) {
        listener.tell(&Event::Listening { worker: id, address });
    }
    // Who does not read its replies has no use for more.
    matches!(sent, Ok(socket::Sent::Whole))
}
