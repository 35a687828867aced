//! The channels to the workers: this process's end of each, whom a slot means, and the thread that hands over what workers say.
//!
//! A channel is made with its worker and ends with that process: what it has sent before is handed over before its exit is told, and nothing after
//! that, so a message belongs to one incarnation. Who receives by a loop of its own takes the channel instead of the thread.

use crate::channel::{Channel, Incoming, MAX_INBOX, Options, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::{self, WorkerId};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::Epoll;
use crate::sys::{fork, thread};
use crate::value::Value;
use crate::wire::channel::HEAD_LEN;
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bytes of the ring of each direction: 64 KiB. It is there for each worker, whether it has something to say or not.
pub const RING: usize = 64 << 10;
const BELL: u64 = 0;
/// Messages of one worker before the next one's.
const TURN: usize = 64;
/// Until the next attempt after fds or memory were missing; nothing is lost meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the end of a channel is waited for in all whose worker has ended: it is there, unless a process that the worker has left behind has its socket.
const END: Duration = Duration::from_millis(100);

pub(super) type HearMessage = Box<dyn FnMut(WorkerId, &Channel, Incoming) + Send>;

/// Whoever has it holds back what workers say.
pub(super) type Hearing<'a> = MutexGuard<'a, Option<HearMessage>>;

/// Whom a slot means while it has several processes: the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Draining,
    Starting,
    Ready,
}

struct Row {
    channel: Channel,
    standing: Standing,
    /// In the epoll, once it is there.
    token: Option<u64>,
}

#[derive(Default)]
struct Rows {
    last: u64,
    by_id: HashMap<WorkerId, Row>,
}

/// The thread's part.
struct Receiving {
    epoll: Epoll,
    bell: EventFd,
    over: AtomicBool,
    /// Held while a message is taken and handed over, so that those of a worker keep their order. None once all is over.
    hear: Mutex<Option<HearMessage>>,
    /// Held until one has that: who hands over many messages in a row would leave it to nobody else.
    next: Mutex<()>,
}

/// The channels of all workers.
pub(super) struct Mail {
    epoch: u64,
    rows: Mutex<Rows>,
    receiving: Option<Receiving>,
}

impl Mail {
    /// With `hear` a thread receives, until [`close`](Self::close).
    pub(super) fn open(hear: Option<HearMessage>) -> Result<Arc<Mail>> {
        let receiving = match hear {
            Some(hear) => {
                let made = Receiving {
                    epoll: Epoll::new()?,
                    bell: EventFd::new()?,
                    over: AtomicBool::new(false),
                    hear: Mutex::new(Some(hear)),
                    next: Mutex::default(),
                };
                made.epoll.add_tagged(made.bell.fd(), BELL)?;
                Some(made)
            }
            None => None,
        };
        let mail = Arc::new(Mail { epoch: fork::epoch(), rows: Mutex::default(), receiving });
        if mail.receiving.is_some() {
            let own = Arc::clone(&mail);
            let options = thread::Options { name: "offloop-mail".to_owned(), ..thread::Options::default() };
            drop(thread::spawn(&options, move || own.run())?);
        }
        Ok(mail)
    }

    /// A channel for `id`: the end that it inherits.
    pub(super) fn add(&self, id: WorkerId) -> Result<OwnedFd> {
        let (channel, theirs) = Channel::pair(Options { capacity: RING, ..Options::default() })?;
        let theirs = theirs.detach()?;
        lock(&self.rows).by_id.insert(id, Row { channel, standing: Standing::Starting, token: None });
        Ok(theirs)
    }

    /// The host has heard of it: what it says is received from now on.
    pub(super) fn begin(&self, id: WorkerId) {
        let Some(receiving) = &self.receiving else { return };
        let mut rows = lock(&self.rows);
        rows.last += 1;
        let token = rows.last;
        let Some(row) = rows.by_id.get_mut(&id) else { return };
        let Ok(fd) = row.channel.fd() else { return };
        // SAFETY: the channel, which the row has, keeps it open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if receiving.epoll.add_tagged(fd, token).is_ok() {
            row.token = Some(token);
        }
    }

    pub(super) fn stand(&self, id: WorkerId, standing: Standing) {
        if let Some(row) = lock(&self.rows).by_id.get_mut(&id) {
            row.standing = standing;
        }
    }

    /// A spare has taken a worker's place. Nothing is handed over while the host has what is returned: what the spare says before it is told of that has its old name, and what it
    /// says after that the new one.
    pub(super) fn rename(&self, spare: WorkerId, worker: WorkerId) -> Option<Hearing<'_>> {
        let hearing = self.receiving.as_ref().map(Receiving::hearing);
        let mut rows = lock(&self.rows);
        if let Some(row) = rows.by_id.remove(&spare) {
            rows.by_id.insert(worker, row);
        }
        hearing
    }

    /// Whose channel has this token, who was `last` when it was asked before.
    fn whose(&self, token: u64, last: WorkerId) -> Option<WorkerId> {
        let rows = lock(&self.rows);
        let has = |row: &Row| row.token == Some(token);
        if rows.by_id.get(&last).is_some_and(has) {
            return Some(last);
        }
        rows.by_id.iter().find(|(_, row)| has(row)).map(|(id, _)| *id)
    }

    /// The worker has ended, or was not started: what it has said is handed over, and nobody hears of it any more.
    pub(super) fn remove(&self, id: WorkerId) {
        let Some(row) = lock(&self.rows).by_id.remove(&id) else { return };
        let Some(receiving) = &self.receiving else { return };
        if let (Some(_), Ok(fd)) = (row.token, row.channel.fd()) {
            // SAFETY: the channel, which is held here, keeps it open.
            receiving.epoll.remove(unsafe { BorrowedFd::borrow_raw(fd) });
        }
        receiving.hand_over_rest(id, &row.channel);
        row.channel.close_dead();
    }

    pub(super) fn close(&self) {
        if let Some(receiving) = &self.receiving {
            // Release: pairs with the Acquire in `run`.
            receiving.over.store(true, Ordering::Release);
            receiving.bell.signal();
            let hear = lock(&receiving.hear).take();
            // What it holds is the host's, and may take its time to go.
            drop(hear);
        }
    }

    fn run(&self) {
        let receiving = self.receiving.as_ref().expect("the thread was started for it");
        let mut ready = Vec::with_capacity(64);
        loop {
            receiving.epoll.wait(&mut ready);
            for token in ready.drain(..) {
                if token == BELL {
                    receiving.bell.clear();
                    // Acquire: pairs with the Release in `close`.
                    if receiving.over.load(Ordering::Acquire) {
                        return;
                    }
                    continue;
                }
                let rows = lock(&self.rows);
                let found = rows.by_id.iter().find(|(_, row)| row.token == Some(token)).map(|(id, row)| (*id, row.channel.clone()));
                drop(rows);
                if let Some((id, channel)) = found {
                    self.receive(receiving, token, id, &channel);
                }
            }
        }
    }

    fn receive(&self, receiving: &Receiving, token: u64, mut id: WorkerId, channel: &Channel) {
        for _ in 0..TURN {
            let taken = receiving.hand_over(channel, || {
                id = self.whose(token, id)?;
                Some(id)
            });
            match taken {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) if e.kind() == ErrorKind::Os => return std::thread::sleep(PAUSE),
                Err(_) => {
                    // It would be readable for good.
                    let mut rows = lock(&self.rows);
                    if let (Some(row), Ok(fd)) = (rows.by_id.values_mut().find(|row| row.token == Some(token)), channel.fd()) {
                        row.token = None;
                        // SAFETY: `channel` keeps it open.
                        receiving.epoll.remove(unsafe { BorrowedFd::borrow_raw(fd) });
                    }
                    return;
                }
            }
        }
    }

    // ---- sending ----

    /// A forked child looks at no lock: the thread that had it is not there to give it back.
    fn rows(&self) -> Result<std::sync::MutexGuard<'_, Rows>> {
        if fork::is_current(self.epoch) {
            return Ok(lock(&self.rows));
        }
        Err(Error::new(ErrorKind::Forked, "cluster belongs to the parent of this forked process"))
    }

    pub(super) fn at(&self, slot: u32) -> Result<(WorkerId, Channel)> {
        let rows = self.rows()?;
        let of_slot = rows.by_id.iter().filter(|(id, _)| id.slot == slot);
        let found = of_slot.max_by_key(|(id, row)| (row.standing, id.incarnation));
        found
            .map(|(id, row)| (*id, row.channel.clone()))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "slot has no worker").with("slot", slot))
    }

    pub(super) fn of(&self, id: WorkerId) -> Result<Channel> {
        let found = self.rows()?.by_id.get(&id).map(|row| row.channel.clone());
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "worker has ended").with("slot", id.slot).with("incarnation", id.incarnation))
    }

    pub(super) fn send(&self, slot: u32, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<()> {
        let (_, channel) = self.at(slot)?;
        match timeout {
            Some(Duration::ZERO) => try_send(&channel, value, fds),
            timeout => channel.send(value, fds, timeout),
        }
        .map_err(|e| e.with("slot", slot))
    }

    pub(super) fn request(&self, slot: u32, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Reply> {
        let (_, channel) = self.at(slot)?;
        channel.request(value, fds, timeout).map_err(|e| e.with("slot", slot))
    }

    pub(super) fn broadcast(&self, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<Vec<(WorkerId, Error)>> {
        let mut buffers = 0;
        value.each_buffer_mut(&mut |_| buffers += 1);
        if buffers > 0 {
            return Err(Error::invalid("a buffer moves to one worker: a broadcast copies bytes only").with("buffers", buffers));
        }
        let mut all: Vec<_> = self.rows()?.by_id.iter().map(|(id, row)| (*id, row.channel.clone())).collect();
        all.sort_unstable_by_key(|(id, _)| (id.slot, id.incarnation));
        let missed = all.into_iter().filter_map(|(id, channel)| try_send(&channel, value, fds).err().map(|e| (id, e)));
        Ok(missed.collect())
    }
}

fn try_send(channel: &Channel, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<()> {
    if channel.try_send(value, fds)? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Full, "worker has not received what was sent before").with("ring_bytes", RING))
}

impl Receiving {
    /// After at most one message that is being handed over.
    fn hearing(&self) -> Hearing<'_> {
        let _next = lock(&self.next);
        lock(&self.hear)
    }

    /// One message of the worker that `whose` names; false when there is none now.
    fn hand_over(&self, channel: &Channel, whose: impl FnOnce() -> Option<WorkerId>) -> Result<bool> {
        let mut hear = self.hearing();
        // It keeps its name while this is locked. One that has ended has its rest handed over.
        let (Some(hear), Some(id)) = (&mut *hear, whose()) else { return Ok(false) };
        match channel.try_recv()? {
            None => return Ok(false),
            // Nobody was told that there was none.
            Some(Incoming::Drained) => {}
            Some(incoming) => supervisor::call_host(|| hear(id, channel, incoming)),
        }
        Ok(true)
    }

    /// What a worker that has ended has said, to the channel's end. A thread that waits for a reply may be reading.
    fn hand_over_rest(&self, id: WorkerId, channel: &Channel) {
        let mut hear = self.hearing();
        let Some(hear) = &mut *hear else { return };
        let mut waited = Duration::ZERO;
        // As many as the ring and the inbox hold. Who has the socket may go on to send.
        for _ in 0..RING / HEAD_LEN + MAX_INBOX {
            let from = Instant::now();
            let Ok(incoming) = channel.recv(Some(END.saturating_sub(waited))) else { return };
            waited += from.elapsed();
            if !matches!(incoming, Incoming::Drained) {
                drop(catch_unwind(AssertUnwindSafe(|| hear(id, channel, incoming))));
            }
        }
    }
}
