//! The receiving half of an end: records out of the ring for all threads that wait, by whichever of them has the turn.

use super::frame::{self, Content};
use super::inbox::{Inbox, Want};
use super::line::Line;
use super::ready::Interest;
use super::turns::{self, Deadline};
use super::{Found, Inner, Message, is_transient, own_close};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::Consumer;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sys::{failpoint, socket};
use crate::wire::channel::{HEAD_LEN, Head, Kind};
use std::time::{Duration, Instant};

/// The receiving side.
#[derive(Debug, Default)]
pub(super) struct Rx {
    pub(super) consumer: Option<Consumer>,
    pub(super) with_fds: u32,
}

/// What a look at the ring found.
#[derive(Debug)]
pub(super) enum Look {
    /// A record, and the bytes of what it carried.
    Came(Head, Message, usize),
    /// Nothing now.
    Nothing,
    /// A message that stays where it is: too many wait already.
    HeldBack,
}

impl Inner {
    /// The oldest record, if there is one. Says so when there will be none any more.
    pub(super) fn take(&self, rx: &mut Rx) -> Result<Look> {
        self.open()?.map_or(Ok(Look::Nothing), |line| self.take_from(rx, &line))
    }

    fn take_from(&self, rx: &mut Rx, line: &Line) -> Result<Look> {
        if rx.consumer.is_none() {
            rx.consumer = lock(&line.consumer).take();
        }
        let Rx { consumer: Some(consumer), with_fds } = rx else { return Err(own_close()) };
        if self.is_polled.load(Ordering::Relaxed) {
            self.watch(consumer, line)?;
        }
        let found = match consumer.peek() {
            Ok(found) => found.is_some(),
            // A ring that was closed before the other end said anything was closed by it all the same.
            Err(e) => return Err(line.why(e)),
        };
        if !found {
            if line.is_greeted()? != Some(true) {
                return Ok(Look::Nothing);
            }
            // In this order: what was published before the other end went is there at the second look.
            if !socket::is_hung_up(line.socket()) || consumer.peek().map_err(|e| line.why(e))?.is_some() {
                return Ok(Look::Nothing);
            }
            return Err(line.gone());
        }
        let damaged = |what| Error::new(ErrorKind::Corrupt, what);
        // Whoever publishes has greeted.
        match line.is_greeted()? {
            Some(true) => {}
            Some(false) => return Err(damaged("a record came before the greeting")),
            None => return Ok(Look::Nothing),
        }
        let Some(record) = consumer.peek().map_err(|e| line.why(e))? else { return Ok(Look::Nothing) };
        let mut head = [0; HEAD_LEN];
        if !record.read_at(0, &mut head) {
            return Err(damaged("record is shorter than its head").with("len", record.len()));
        }
        let head = Head::decode(&head)?;
        // A reply has somebody who waits for it. Once the other end has gone there is nobody to hold back: what is left is read, and the end
        // is seen.
        if head.kind != Kind::Reply && self.is_full(&lock(&self.inbox)) && !socket::is_hung_up(line.socket()) {
            return Ok(Look::HeldBack);
        }
        // Before the copy: the other end decides on the record's length.
        self.options.check_message(record.len() - HEAD_LEN)?;
        let payload = record.tail_to_vec(HEAD_LEN);
        let fds = if head.fds > 0 { line.fds(head.fds, *with_fds)? } else { Vec::new() };
        // What is missing now (fds, memory) may be there at the next call, which finds the record and its fds again.
        let Content { value, fds, bytes } = frame::read(&head, payload, fds, &self.options)?;
        failpoint::hit("channel.fds_seen");
        if head.fds > 0 {
            line.forget_fds();
            *with_fds = with_fds.wrapping_add(1);
        }
        consumer.release();
        Ok(Look::Came(head, Message { value, fds }, bytes))
    }

    fn is_full(&self, inbox: &Inbox) -> bool {
        inbox.is_full(self.options.max_queued)
    }

    /// As [`take`](Self::take), and waits so long; may end early.
    fn take_or_wait(&self, rx: &mut Rx, left: Option<Duration>) -> Result<Look> {
        let deadline = Deadline::new(left);
        let too_soon = |e: Error| if e.kind() == ErrorKind::Timeout { Ok(()) } else { Err(e) };
        match (self.open()?, &mut rx.consumer) {
            (None, _) => self.wait_offer(deadline).or_else(too_soon).map(|()| Look::Nothing),
            // What it finds, and every end but a timeout, is told by `take`.
            (Some(line), Some(consumer)) if line.other().is_some() => match consumer.wait(left) {
                Err(e) if e.kind() == ErrorKind::Timeout => Ok(Look::Nothing),
                _ => self.take_from(rx, &line),
            },
            (Some(line), _) => match self.take_from(rx, &line)? {
                Look::Nothing if line.other().is_none() => {
                    line.wait_greeted(deadline).map(|_| ()).or_else(too_soon).map(|()| Look::Nothing)
                }
                found => Ok(found),
            },
        }
    }

    /// Lets the loop's fd follow the ring, from when there is one.
    fn watch(&self, consumer: &mut Consumer, line: &Line) -> Result<()> {
        let mut ready = lock(&self.ready);
        let Some(ready) = &mut *ready else { return Ok(()) };
        if !ready.has_consumer {
            ready.watch_consumer(consumer.fd().map_err(|e| line.why(e))?)?;
        }
        // The sending side's wait for room for fds goes on: an end that has yet to greet is heard of by it, too.
        if ready.awaits_room_for_fds() { Ok(()) } else { ready.watch_socket(line.socket(), Interest::calm(line)) }
    }

    /// Puts what was found where it belongs. What a later call finds again is the caller's error, and nobody else's.
    pub(super) fn deliver(&self, inbox: &mut Inbox, found: Result<Look>) -> Result<()> {
        let (ended, again) = match found {
            Ok(Look::Nothing | Look::HeldBack) => (None, None),
            Ok(Look::Came(head, message, bytes)) => (inbox.arrive(&head, message, bytes).err(), None),
            Err(e) if is_transient(&e) => (None, Some(e)),
            Err(e) => (Some(e), None),
        };
        if let Some(e) = ended {
            self.end_with(inbox, &e);
        }
        // Another thread may have ended the channel while this one read for all.
        self.let_go_of_reading(inbox);
        again.map_or(Ok(()), Err)
    }

    /// The loop's fd is readable until the next look.
    pub(super) fn ring(&self) {
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.ring();
        }
    }

    /// What is left in the inbox is for the loop, too.
    fn ring_for(&self, inbox: &Inbox, left: Want) {
        if inbox.has(left) && self.is_polled.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    /// The ring is read again, by the loop or whoever waits, once there is room for what is in it.
    fn made_room(&self, inbox: &Inbox, was_full: bool) {
        if was_full && !self.is_full(inbox) {
            self.arrived.notify_all();
            self.ring();
        }
    }

    /// As [`take`](Self::take) for a loop, whose fd does not tell of a ring where a message is held back.
    fn take_or_hold(&self, rx: &mut Rx) -> Result<Look> {
        let found = self.take(rx)?;
        let (Look::HeldBack, Some(line), Some(consumer)) = (&found, self.line(), &mut rx.consumer) else { return Ok(found) };
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.forget_consumer(consumer.fd().map_err(|e| line.why(e))?);
            // Not a member yet if the fd was asked for after the last record was taken.
            if !ready.awaits_room_for_fds() {
                ready.watch_socket(line.socket(), Interest::calm(&line))?;
            }
        }
        Ok(found)
    }

    /// There was room when a look found it, behind a message perhaps whose receiver has filled it: it is told when there is again.
    fn forget_stale(&self, inbox: &mut Inbox) {
        if self.waits_for_room() {
            inbox.forget_drained();
        }
    }

    /// Waits until `take` finds what it looks for in the inbox.
    pub(super) fn wait_for<T>(&self, deadline: Deadline, asks: bool, take: impl FnMut(&mut Inbox) -> Result<Option<T>>) -> Result<T> {
        let mut has_read = false;
        let found = self.read_until(deadline, asks, take, &mut has_read);
        // A thread that has slept at the ring has taken the wakes of the loop's fd, which is armed again by the loop's next look.
        if has_read && self.is_polled.load(Ordering::Relaxed) {
            self.ring();
        }
        found
    }

    /// `has_read` says whether this thread has read for all.
    fn read_until<T>(
        &self,
        deadline: Deadline,
        asks: bool,
        mut take: impl FnMut(&mut Inbox) -> Result<Option<T>>,
        has_read: &mut bool,
    ) -> Result<T> {
        let what = if asks { "no reply in time" } else { "no message on the channel" };
        let mut inbox = self.inbox()?;
        let (mut looked, mut held_back) = (false, false);
        loop {
            let is_full = self.is_full(&inbox);
            self.forget_stale(&mut inbox);
            if let Some(found) = take(&mut inbox)? {
                self.made_room(&inbox, is_full);
                // Those that followed this thread may go on, or find that there is more.
                if inbox.followers > 0 {
                    self.arrived.notify_all();
                }
                return Ok(found);
            }
            if let Some(e) = inbox.ended() {
                return Err(e.clone());
            }
            if self.closing.load(Ordering::Relaxed) {
                return Err(own_close());
            }
            held_back &= is_full;
            if let (true, Some(e)) = (held_back, inbox.in_the_way(self.options.max_queued)) {
                return Err(e);
            }
            let busy = inbox.pumping || held_back;
            // What is there is given to a call that must not wait, too.
            let left = match deadline.left(what) {
                Err(_) if !busy && !looked => Some(Duration::ZERO),
                left => left?,
            };
            looked = true;
            if busy {
                inbox.followers += 1;
                inbox = turns::sleep(&self.arrived, inbox, left);
                inbox.followers -= 1;
                continue;
            }
            inbox.pumping = true;
            *has_read = true;
            drop(inbox);
            let found = self.take_or_wait(&mut lock(&self.rx), left);
            inbox = lock(&self.inbox);
            inbox.pumping = false;
            held_back = matches!(found, Ok(Look::HeldBack));
            let delivered = self.deliver(&mut inbox, found);
            self.ring_for(&inbox, Want::All);
            if inbox.followers > 0 {
                self.arrived.notify_all();
            }
            delivered?;
        }
    }

    /// What a loop looks for, without waiting: from the inbox, or by one look at the ring.
    pub(super) fn find(&self, want: Want) -> Result<Found> {
        // Messages that a loop leaves where they are do not keep its fd readable.
        let left = if want == Want::All { Want::All } else { Want::Outcomes };
        let mut inbox = self.inbox()?;
        self.forget_stale(&mut inbox);
        if !inbox.has(want) && inbox.next_deadline().is_some() {
            inbox.expire(Instant::now());
        }
        let mut more = false;
        if !inbox.has(want) && inbox.ended().is_none() {
            // Before the look: what happens from here on may be missed by it, and rings.
            if let Some(ready) = &mut *lock(&self.ready) {
                ready.quiet();
            }
            let pumps = !std::mem::replace(&mut inbox.pumping, true);
            drop(inbox);
            let (drained, found) = self.look(pumps);
            more = matches!(found, Ok(Look::Came(..)));
            inbox = lock(&self.inbox);
            if pumps {
                inbox.pumping = false;
            }
            let delivered = self.deliver(&mut inbox, found);
            if drained {
                inbox.drained();
            }
            if inbox.followers > 0 {
                self.arrived.notify_all();
            }
            if let Err(e) = delivered {
                self.ring_for(&inbox, left);
                return Err(e);
            }
        }
        let was_full = self.is_full(&inbox);
        let taken = inbox.take(want);
        self.ring_for(&inbox, left);
        if let Some(incoming) = taken {
            self.made_room(&inbox, was_full);
            return Ok(Found::Incoming(incoming));
        }
        if more {
            return Ok(Found::More);
        }
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.set_timer(inbox.next_deadline())?;
        }
        inbox.ended().map_or(Ok(Found::Nothing), |e| Err(e.clone()))
    }

    /// One look without waiting: whether there is room again, and what came. With `pumps` this thread reads for all.
    fn look(&self, pumps: bool) -> (bool, Result<Look>) {
        let mut drained = false;
        if let Some(line) = self.line() {
            match self.look_for_room(&line) {
                Ok(room) => drained = room,
                Err(e) if is_transient(&e) => return (false, Err(e)),
                // What the other end sent before it went is still to be received.
                Err(_) => self.wants_room.store(false, Ordering::Relaxed),
            }
        }
        if self.closing.load(Ordering::Relaxed) {
            let done = drained || !self.wants_room.load(Ordering::Relaxed);
            if done {
                return (false, Err(own_close()));
            }
        }
        if !pumps {
            return (drained, Ok(Look::Nothing));
        }
        let found = self.take_or_hold(&mut lock(&self.rx));
        if self.closing.load(Ordering::Relaxed) {
            // Nobody receives any more; what ends the channel still does.
            return (false, found.map(|_| Look::Nothing));
        }
        (drained, found)
    }
}
