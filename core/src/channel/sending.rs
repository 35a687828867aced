//! The sending half of an end: frames into the ring in their order, those that wait for room, and who is told of it.

use super::frame::{self, Frame, Purpose};
use super::line::Line;
use super::ready::Interest;
use super::turns::{Deadline, Turn};
use super::{Inner, is_transient, wait};
use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::Producer;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sys::socket::{self, Sent};
use crate::sys::{failpoint, poll};
use crate::value::Value;
use crate::wire::channel::encode_fds;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// The sending side.
#[derive(Debug, Default)]
pub(super) struct Tx {
    pub(super) producer: Option<Producer>,
    /// The line's producer was taken, or there was none.
    pub(super) opened: bool,
    /// Frames that found no room.
    pub(super) outbox: VecDeque<Frame>,
    /// Messages with fds so far (wraps).
    pub(super) with_fds: u32,
    /// The socket had no room, not the ring.
    pub(super) socket_full: bool,
}

impl Tx {
    pub(super) fn producer(&mut self, line: &Line) -> Result<&mut Producer> {
        if !self.opened {
            self.opened = true;
            self.producer = lock(&line.producer).take();
        }
        self.producer.as_mut().ok_or_else(|| line.gone())
    }

    /// Publishes a frame; false while there is no room.
    fn offer(&mut self, line: &Line, frame: &Frame) -> Result<bool> {
        let count = self.with_fds;
        let offered = publish(self.producer(line)?, line, frame, count)?;
        self.socket_full = offered == Offered::SocketFull;
        if offered != Offered::Published {
            failpoint::hit("channel.no_room");
            return Ok(false);
        }
        if !frame.fds.is_empty() {
            self.with_fds = count.wrapping_add(1);
        }
        Ok(true)
    }
}

/// What came while another thread had the turn to send.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Behind that thread's own.
    frames: VecDeque<Frame>,
    /// Somebody found the turn taken, and has a loop that is to be told of room.
    asks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offered {
    Published,
    RingFull,
    SocketFull,
}

fn publish(producer: &mut Producer, line: &Line, frame: &Frame, count: u32) -> Result<Offered> {
    let Some(mut claim) = producer.try_claim(frame.bytes.len()).map_err(|e| line.why(e))? else { return Ok(Offered::RingFull) };
    let fits = claim.write_at(0, &frame.bytes);
    debug_assert!(fits, "the claim is as long as the frame");
    if !frame.fds.is_empty() {
        let fds: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
        // The claim is dropped, and so given up, where the fds cannot go.
        match socket::send(line.socket(), &encode_fds(fds.len() as u16, count), &fds)? {
            Sent::Whole => failpoint::hit("channel.fds_sent"),
            Sent::Full => return Ok(Offered::SocketFull),
            Sent::Gone => return Err(line.gone()),
        }
    }
    claim.commit().map_err(|e| line.why(e))?;
    Ok(Offered::Published)
}

/// The turn to send. What comes behind it meanwhile is the loop's to send, which is told when the turn is given back.
pub(super) struct Sending<'a> {
    inner: &'a Inner,
    turn: Option<Turn<'a, Tx>>,
    /// Frames of a loop came along from behind.
    took: bool,
}

const HAS_TURN: &str = "the turn is given back by drop only";

impl Deref for Sending<'_> {
    type Target = Tx;
    fn deref(&self) -> &Tx {
        self.turn.as_deref().expect(HAS_TURN)
    }
}

impl DerefMut for Sending<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.turn.as_deref_mut().expect(HAS_TURN)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let inner = self.inner;
        let over = inner.is_over();
        if over {
            inner.drop_queued(self);
            self.producer = None;
        }
        self.turn = None;
        // After that: whoever came behind this turn, or ended the channel, looked in vain for a free one before.
        let mut behind = lock(&inner.behind);
        let left = std::mem::take(&mut behind.asks) || !behind.frames.is_empty();
        drop(behind);
        if inner.is_over() {
            if left || !over {
                drop(inner.try_enter());
            }
            return;
        }
        if left {
            inner.wants_room.store(true, Ordering::Relaxed);
        }
        if left || self.took {
            inner.ring();
        }
    }
}

impl Inner {
    pub(super) fn sending<'a>(&'a self, mut turn: Turn<'a, Tx>) -> Sending<'a> {
        let mut behind = lock(&self.behind);
        let took = !behind.frames.is_empty();
        if took {
            turn.outbox.append(&mut behind.frames);
            // Whoever sends them, their loop is told.
            self.wants_room.store(true, Ordering::Relaxed);
        }
        drop(behind);
        Sending { inner: self, turn: Some(turn), took }
    }

    /// A loop is still to be told that there is room.
    pub(super) fn waits_for_room(&self) -> bool {
        self.wants_room.load(Ordering::Relaxed) || self.queued.load(Ordering::Relaxed) > 0
    }

    /// `None` while another thread sends.
    pub(super) fn try_enter(&self) -> Option<Sending<'_>> {
        self.tx.try_enter().map(|turn| self.sending(turn))
    }

    /// As [`try_enter`](Self::try_enter); the loop is told of room once a turn that is taken is given back.
    fn enter_or_ask(&self) -> Option<Sending<'_>> {
        self.try_enter().or_else(|| {
            lock(&self.behind).asks = true;
            // One that was given back meanwhile may not have seen that.
            self.try_enter()
        })
    }

    fn offer(&self, tx: &mut Tx, line: &Line, frame: &Frame) -> Result<bool> {
        tx.offer(line, frame).map_err(|e| self.why(e))
    }

    /// A channel that has ended closed its rings itself, so they do not say why.
    pub(super) fn why(&self, e: Error) -> Error {
        if is_transient(&e) { e } else { lock(&self.inbox).ended().cloned().unwrap_or(e) }
    }

    fn frame(&self, line: &Line, purpose: Purpose, value: &Value, fds: &[BorrowedFd<'_>]) -> Result<Frame> {
        frame::build(purpose, value, fds, &self.options, line.send_ring.max_record_len())
    }

    fn is_sent(&self, value: &mut Value, buffers: usize) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if buffers > 0 {
            value.each_buffer_mut(&mut TransferBuffer::detach);
        }
    }

    pub(super) fn send(&self, purpose: Purpose, value: &mut Value, fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<()> {
        let line = &*self.wait_open(deadline)?;
        let frame = self.frame(line, purpose, value, fds)?;
        let mut tx = self.sending(self.tx.enter(deadline, "other threads send on the channel")?);
        let sent = self.push_queued(&mut tx, line, deadline).and_then(|()| self.push(&mut tx, line, &frame, deadline));
        drop(tx);
        // Who waits for room takes the wakes of the producer's fd, and sends what the loop waits for: it has to look itself.
        if self.wants_room.load(Ordering::Relaxed) {
            self.ring();
        }
        sent?;
        self.is_sent(value, frame.buffers);
        Ok(())
    }

    /// Publishes what was queued, and waits for room.
    pub(super) fn push_queued(&self, tx: &mut Tx, line: &Line, deadline: Deadline) -> Result<()> {
        while let Some(first) = tx.outbox.pop_front() {
            let sent = self.push(tx, line, &first, deadline);
            if sent.is_err() {
                tx.outbox.push_front(first);
                return sent;
            }
            self.unqueue(&first);
        }
        Ok(())
    }

    /// Publishes, and waits for room.
    pub(super) fn push(&self, tx: &mut Tx, line: &Line, frame: &Frame, deadline: Deadline) -> Result<()> {
        loop {
            if self.offer(tx, line, frame)? {
                return Ok(());
            }
            let left = deadline.left("no room in the channel")?;
            if tx.socket_full {
                wait(poll::writable(line.socket().as_raw_fd()), left);
            } else if line.other().is_none() {
                // An end that was closed meanwhile says so itself, below.
                if let Err(e) = line.wait_greeted(deadline) {
                    self.check_not_ended()?;
                    return Err(e);
                }
            } else {
                let producer = tx.producer(line)?;
                match producer.claim_ptr(frame.bytes.len(), left) {
                    Ok(_) => producer.abort_claim(),
                    // The deadline says so itself.
                    Err(e) if e.kind() == ErrorKind::Timeout => {}
                    Err(e) => return Err(self.why(line.why(e))),
                }
            }
            self.check_not_ended()?;
        }
    }

    /// True: published. False: it waits for room, behind those that do.
    pub(super) fn post(&self, purpose: Purpose, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.check_open()?;
        let line = &*self.open()?.ok_or_else(|| Error::new(ErrorKind::Full, "other end has not offered its rings yet"))?;
        let frame = self.frame(line, purpose, value, fds)?;
        let buffers = frame.buffers;
        let sent = if let Some(mut tx) = self.try_enter() {
            let sent = self.flush(&mut tx, line)? && self.offer(&mut tx, line, &frame)?;
            if !sent {
                // No second look here: one that found room now would leave nobody to say so.
                self.wants_room.store(true, Ordering::Relaxed);
                self.watch_room(&mut tx, line)?;
                self.queue(&mut tx.outbox, frame)?;
            }
            sent
        } else {
            // A thread that waits for room must not hold up a loop.
            self.queue(&mut lock(&self.behind).frames, frame)?;
            // One that gave its turn back meanwhile may have seen nothing behind it; the turn taken here does when it is given back.
            drop(self.tx.try_enter().map(|turn| Sending { inner: self, turn: Some(turn), took: false }));
            false
        };
        self.is_sent(value, buffers);
        Ok(sent)
    }

    /// Room for a frame among those that wait, in both queues together.
    fn queue(&self, queue: &mut VecDeque<Frame>, frame: Frame) -> Result<()> {
        let (len, max) = (frame.kept as u64, self.options.max_queued as u64);
        // One alone may be as long as it is.
        let fits = |queued| queued == 0 || queued + len <= max;
        let grown = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |queued| fits(queued).then_some(queued + len));
        if let Err(queued) = grown {
            return Err(Error::new(ErrorKind::Full, "too much waits to be sent")
                .with("queued", queued)
                .with("len", len)
                .with("max_queued", max));
        }
        queue.push_back(frame);
        Ok(())
    }

    pub(super) fn try_send(&self, purpose: Purpose, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.check_open()?;
        let Some(line) = self.open()? else {
            self.wants_room.store(true, Ordering::Relaxed);
            // Whoever opens it rings, perhaps before that was to be seen.
            if self.line().is_some() {
                self.ring();
            }
            return Ok(false);
        };
        let frame = self.frame(&line, purpose, value, fds)?;
        // Those that wait were first.
        let Some(mut tx) = self.enter_or_ask() else { return Ok(false) };
        if !tx.outbox.is_empty() || !self.offer(&mut tx, &line, &frame)? {
            self.wants_room.store(true, Ordering::Relaxed);
            self.watch_room(&mut tx, &line)?;
            return Ok(false);
        }
        drop(tx);
        self.is_sent(value, frame.buffers);
        Ok(true)
    }

    fn drop_queued(&self, tx: &mut Tx) {
        tx.outbox.drain(..).for_each(|frame| self.unqueue(&frame));
    }

    fn unqueue(&self, frame: &Frame) {
        self.queued.fetch_sub(frame.kept as u64, Ordering::Relaxed);
    }

    /// Publishes what waits, as far as there is room. True when nothing waits any more.
    pub(super) fn flush(&self, tx: &mut Tx, line: &Line) -> Result<bool> {
        while let Some(first) = tx.outbox.pop_front() {
            match self.offer(tx, line, &first) {
                Ok(true) => self.unqueue(&first),
                Ok(false) => {
                    tx.outbox.push_front(first);
                    self.watch_room(tx, line)?;
                    return Ok(false);
                }
                Err(e) => {
                    let lost = !is_transient(&e);
                    tx.outbox.push_front(first);
                    if lost {
                        self.drop_queued(tx);
                    }
                    return Err(e);
                }
            }
        }
        Ok(true)
    }

    /// The loop's fd tells when there is room again where there was none. The producer's fd was armed by the call that found none; one
    /// that is made here is readable until the next look.
    fn watch_room(&self, tx: &mut Tx, line: &Line) -> Result<()> {
        let mut ready = lock(&self.ready);
        let Some(ready) = &mut *ready else { return Ok(()) };
        let socket_full = tx.socket_full;
        let room = tx.producer(line)?.fd()?;
        // One of the two: where there is room already is no news.
        if socket_full {
            ready.forget_room(room);
            return ready.watch_socket(line.socket(), Interest::Writable);
        }
        ready.watch_socket(line.socket(), Interest::calm(line))?;
        ready.watch_room(room)
    }

    /// For a loop: sends what waits, and says once when there is room again.
    pub(super) fn look_for_room(&self, line: &Line) -> Result<bool> {
        if !self.wants_room.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(mut tx) = self.enter_or_ask() else { return Ok(false) };
        // They are told by this look.
        lock(&self.behind).asks = false;
        if !self.flush(&mut tx, line)? {
            return Ok(false);
        }
        if tx.socket_full {
            let mut entry = [poll::writable(line.socket().as_raw_fd())];
            poll::wait_readable(&mut entry, Some(Duration::ZERO));
            if !poll::is_ready(&entry[0]) {
                return Ok(false);
            }
            tx.socket_full = false;
        } else {
            let producer = tx.producer(line)?;
            // Room for a message that is not spilled, or the next one may find none again at once.
            let half = producer.max_record_len() / 2;
            if producer.try_claim_ptr(half).map_err(|e| line.why(e))?.is_none() {
                // Not a member yet if the fd was asked for after the call that found no room.
                self.watch_room(&mut tx, line)?;
                return Ok(false);
            }
            producer.abort_claim();
        }
        if let (Some(ready), Some(producer)) = (&mut *lock(&self.ready), &mut tx.producer) {
            ready.forget_room(producer.fd()?);
            ready.watch_socket(line.socket(), Interest::calm(line))?;
        }
        self.wants_room.store(false, Ordering::Relaxed);
        Ok(true)
    }
}
