//! The thread that answers what workers ask for, so that they are served while the host's own loop is busy.

use super::listen::{Address, Sockets};
use super::pass::Passer;
use super::{Event, Listener};
use crate::error::{Error, Result};
use crate::shared::{Ledger, Limit};
use crate::supervisor::WorkerId;
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::fork::PrivateFd;
use crate::sys::poll::Epoll;
use crate::sys::{socket, thread};
use crate::wire::cluster::{Asked, COUNTER, LIMITER, LISTEN, MAX_LEN, SEAT, decode_request, encode_reply};
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
    /// Starts the thread, which ends with [`close`](Self::close). `first` is told before anything else.
    pub(super) fn open(house: House, listener: Listener, first: Option<Event>) -> Result<Arc<Gates>> {
        let gates = Arc::new(Gates { epoll: Epoll::new()?, bell: EventFd::new()?, rows: Mutex::default() });
        gates.epoll.add_tagged(gates.bell.fd(), BELL)?;
        let own = Arc::clone(&gates);
        let options = thread::Options { name: "offloop-gate".to_owned(), stack_size: Some(256 << 10), nice: 0 };
        let run = move || {
            if let Some(first) = first {
                listener.tell(&first);
            }
            own.run(&house, &listener);
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

    /// A spare has taken a worker's place.
    pub(super) fn rename(&self, spare: WorkerId, worker: WorkerId) {
        lock(&self.rows).by_token.values_mut().filter(|(id, _)| *id == spare).for_each(|(id, _)| *id = worker);
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

    fn run(&self, house: &House, listener: &Listener) {
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
                    && !house.serve(id, fd.as_fd(), listener)
                {
                    // It would be readable for good.
                    self.epoll.remove(fd.as_fd());
                    lock(&self.rows).by_token.remove(&token);
                }
            }
        }
    }
}

/// What workers may ask for.
pub(super) struct House {
    pub(super) sockets: Arc<Sockets>,
    /// With it workers get seats in place of sockets.
    pub(super) passer: Option<Arc<Passer>>,
    pub(super) ledger: Arc<Ledger>,
}

impl House {
    /// Answers one request; false when there will be no more.
    fn serve(&self, id: WorkerId, gate: BorrowedFd<'_>, listener: &Listener) -> bool {
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
        let (seq, asked) = decode_request(&bytes[..len.min(MAX_LEN)]).map_or((0, None), |(seq, asked)| (seq, Some(asked)));
        let answered = self.find(id, asked);
        // Before the answer: the host hears of it before the worker can be ready.
        if let Ok((_, Some(address))) = &answered {
            listener.tell(&Event::Listening { worker: id, address: address.clone() });
        }
        let sent = match &answered {
            Ok((fd, at)) => {
                let at = at.as_ref().map(ToString::to_string).unwrap_or_default();
                socket::send(gate, &encode_reply(seq, 0, &at), &[fd.as_fd()])
            }
            Err(e) => {
                // The worker says again that it is invalid.
                let text = e.to_string();
                let text = text.strip_prefix("invalid: ").unwrap_or(&text);
                socket::send(gate, &encode_reply(seq, e.errno().map_or(libc::EINVAL, |(errno, _)| errno), text), &[])
            }
        };
        // Who does not read its replies has no use for more.
        matches!(sent, Ok(socket::Sent::Whole))
    }

    /// What the request asks for, and where it listens, if it does.
    fn find(&self, id: WorkerId, asked: Option<Asked<'_>>) -> Result<(PrivateFd, Option<Address>)> {
        let none = || Error::invalid("worker asks for what no cluster has");
        let found = match (asked.ok_or_else(none)?, &self.passer) {
            ((LISTEN, queue, nth, text), _) => match text.parse()? {
                // It is this process's, not the worker's to name.
                Address::Fd(_) => return Err(none().with("listen", text)),
                address => self.sockets.at(&address, nth, queue)?,
            },
            ((SEAT, index, _, _), Some(_)) => self.sockets.nth(index)?,
            ((COUNTER, _, _, name), _) => return Ok((PrivateFd::new(self.ledger.counter_fd(name)?), None)),
            ((LIMITER, burst, keys, text), _) => {
                let (rate, name) = text.split_once(' ').ok_or_else(none)?;
                let limit = Limit { rate: rate.parse().map_err(|_| none())?, burst: burst as u32, keys };
                return Ok((PrivateFd::new(self.ledger.limiter_fd(name, limit, Some(id.generation))?), None));
            }
            _ => return Err(none()),
        };
        let fd = match &self.passer {
            Some(passer) => PrivateFd::new(passer.seat(id, &found)?),
            // A child that the host forks would go on to listen.
            None => PrivateFd::open(|| found.for_worker())?,
        };
        Ok((fd, Some(found.bound.clone())))
    }
}
