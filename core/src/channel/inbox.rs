//! What has arrived and who waits for it. No clock, no fd, no thread.

use super::{Incoming, MAX_INBOX, MAX_INBOX_FDS, MAX_PENDING, Message, Reply, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::channel::{FAILED, Head, Kind, SPILLED};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::thread::{self, ThreadId};
use std::time::Instant;

/// Who waits for a reply.
#[derive(Debug)]
enum Waits {
    /// A thread, which takes it from here.
    Thread(Option<Reply>),
    /// An event loop, which gets it among what arrives.
    Loop(Option<Instant>),
}

/// What a call takes out of the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    All,
    /// Messages and requests.
    Messages,
    /// Replies to a loop, and that there is room.
    Outcomes,
}

#[derive(Debug)]
struct Arrived {
    /// Among all that arrived.
    place: u64,
    incoming: Incoming,
    /// What it counts for against `max_queued`.
    bytes: usize,
    /// What it counts for against [`MAX_INBOX_FDS`].
    fds: usize,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Messages and requests.
    messages: VecDeque<Arrived>,
    /// What a loop asked for.
    outcomes: VecDeque<Arrived>,
    places: u64,
    /// Of the messages and requests together.
    bytes: usize,
    fds: usize,
    /// Who took the last message or request.
    receiver: Option<ThreadId>,
    pending: HashMap<u64, Waits>,
    deadlines: BTreeSet<(Instant, u64)>,
    last_id: u64,
    ended: Option<Error>,
    pub(super) late_replies: u64,
    pub(super) received: u64,
    /// A thread reads from the ring for all.
    pub(super) pumping: bool,
    /// Threads that wait for it.
    pub(super) followers: usize,
}

impl Inbox {
    pub(super) fn ended(&self) -> Option<&Error> {
        self.ended.as_ref()
    }

    /// The oldest of those.
    pub(super) fn take(&mut self, want: Want) -> Option<Incoming> {
        let from = match want {
            Want::Messages => &mut self.messages,
            Want::Outcomes => &mut self.outcomes,
            Want::All => match (self.messages.front(), self.outcomes.front()) {
                (Some(message), Some(outcome)) if outcome.place < message.place => &mut self.outcomes,
                (None, _) => &mut self.outcomes,
                _ => &mut self.messages,
            },
        };
        let Arrived { incoming, bytes, fds, .. } = from.pop_front()?;
        self.bytes -= bytes;
        self.fds -= fds;
        if let Incoming::Message(_) | Incoming::Request(_) = incoming {
            self.receiver = Some(thread::current().id());
        }
        Some(incoming)
    }

    pub(super) fn has(&self, want: Want) -> bool {
        (want != Want::Outcomes && !self.messages.is_empty()) || (want != Want::Messages && !self.outcomes.is_empty())
    }

    /// Messages and requests that nobody has received yet.
    pub(super) fn unread(&self) -> usize {
        self.messages.len()
    }

    /// No more messages and requests are taken from the ring than these. One alone may be as long as it is, and have as many fds. Replies
    /// do not count: they were asked for.
    pub(super) fn is_full(&self, max_queued: usize) -> bool {
        self.messages.len() >= MAX_INBOX || self.fds >= MAX_INBOX_FDS || (self.bytes >= max_queued && !self.messages.is_empty())
    }

    /// Why a thread does not wait for a reply behind messages that no other thread receives; `None` where another one does.
    pub(super) fn in_the_way(&self, max_queued: usize) -> Option<Error> {
        if self.receiver.is_some_and(|receiver| receiver != thread::current().id()) {
            return None;
        }
        let e = Error::new(ErrorKind::Full, "reply lies behind messages that are not received").with("unread", self.unread());
        let e = e.with("max_unread", MAX_INBOX).with("bytes", self.bytes).with("max_queued", max_queued);
        Some(e.with("fds", self.fds).with("max_fds", MAX_INBOX_FDS))
    }

    fn message(&mut self, incoming: Incoming, bytes: usize, fds: usize) {
        self.places += 1;
        self.bytes += bytes;
        self.fds += fds;
        self.messages.push_back(Arrived { place: self.places, incoming, bytes, fds });
    }

    fn outcome(&mut self, incoming: Incoming) {
        self.places += 1;
        self.outcomes.push_back(Arrived { place: self.places, incoming, bytes: 0, fds: 0 });
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// A number for a request that is about to be sent. With `looped` its reply is delivered among what arrives.
    pub(super) fn ask(&mut self, looped: bool, until: Option<Instant>) -> Result<u64> {
        if let Some(e) = &self.ended {
            return Err(e.clone());
        }
        if self.pending.len() >= MAX_PENDING {
            return Err(Error::new(ErrorKind::Full, "too many requests wait for a reply")
                .with("pending", self.pending.len())
                .with("max_pending", MAX_PENDING));
        }
        self.last_id += 1;
        let id = self.last_id;
        self.pending.insert(id, if looped { Waits::Loop(until) } else { Waits::Thread(None) });
        if let (true, Some(until)) = (looped, until) {
            self.deadlines.insert((until, id));
        }
        Ok(id)
    }

    /// Nobody waits for that reply any more; false if nobody did. One that comes is dropped and counted.
    pub(super) fn abandon(&mut self, id: u64) -> bool {
        let waits = self.pending.remove(&id);
        if let Some(Waits::Loop(Some(until))) = waits {
            self.deadlines.remove(&(until, id));
        }
        waits.is_some()
    }

    /// The reply to a thread's request, once; `Invalid` for a number that no thread waits for.
    pub(super) fn take_reply(&mut self, id: u64) -> Result<Option<Reply>> {
        match self.pending.get_mut(&id) {
            Some(Waits::Thread(reply)) => {
                let reply = reply.take();
                if reply.is_some() {
                    self.pending.remove(&id);
                }
                Ok(reply)
            }
            _ => Err(Error::invalid("no thread waits for a reply to that request").with("id", id)),
        }
    }

    /// Puts what came, so many bytes, where it belongs.
    pub(super) fn arrive(&mut self, head: &Head, message: Message, bytes: usize) -> Result<()> {
        self.received += 1;
        // That of the message itself has been read and closed.
        let fds = usize::from(head.fds).saturating_sub(usize::from(head.flags & SPILLED != 0));
        match head.kind {
            // This end closed while its reader had that in hand, and what was not received is dropped: an end by the other side is told by
            // the reader itself, after the last message. Who waits for a reply may still have it.
            Kind::Message | Kind::Request if self.ended.is_some() => {}
            Kind::Message => self.message(Incoming::Message(message), bytes, fds),
            Kind::Request => self.message(Incoming::Request(Request { id: head.id, message }), bytes, fds),
            Kind::Reply => {
                let reply = Reply { message, failed: head.flags & FAILED != 0 };
                match self.pending.get_mut(&head.id) {
                    Some(Waits::Thread(place @ None)) => *place = Some(reply),
                    Some(Waits::Loop(_)) => {
                        self.abandon(head.id);
                        self.outcome(Incoming::Reply { id: head.id, outcome: Ok(reply) });
                    }
                    _ if head.id <= self.last_id => self.late_replies += 1,
                    _ => {
                        return Err(Error::new(ErrorKind::Corrupt, "reply to a request that was never sent")
                            .with("id", head.id)
                            .with("last_id", self.last_id));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn drained(&mut self) {
        self.outcome(Incoming::Drained);
    }

    /// What was to be told next of room is no longer true.
    pub(super) fn forget_drained(&mut self) {
        while matches!(self.outcomes.front(), Some(Arrived { incoming: Incoming::Drained, .. })) {
            self.outcomes.pop_front();
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Ends the requests whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                return;
            }
            self.abandon(id);
            let error = Error::new(ErrorKind::Timeout, "no reply in time").with("id", id);
            self.outcome(Incoming::Reply { id, outcome: Err(error) });
        }
    }

    /// Nothing more arrives, and whoever waits is told why. True the first time.
    pub(super) fn end(&mut self, why: &Error) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.ended = Some(why.clone());
        self.deadlines.clear();
        let mut asked: Vec<u64> = self.pending.iter().filter(|(_, w)| matches!(w, Waits::Loop(_))).map(|(id, _)| *id).collect();
        asked.sort_unstable();
        for id in asked {
            self.pending.remove(&id);
            self.outcome(Incoming::Reply { id, outcome: Err(why.clone()) });
        }
        true
    }

    /// This end closed: what arrived and was not taken is dropped, but for the outcomes of its own requests.
    pub(super) fn drop_unread(&mut self) {
        self.messages.clear();
        (self.bytes, self.fds) = (0, 0);
        self.outcomes.retain(|arrived| matches!(arrived.incoming, Incoming::Reply { .. }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;
    use std::time::Duration;

    fn arrive(inbox: &mut Inbox, kind: Kind, id: u64) -> Result<()> {
        let head = Head { kind, flags: 0, fds: 0, buffers: 0, id, body_len: 0 };
        inbox.arrive(&head, Message { value: Value::Nil, fds: Vec::new() }, 100)
    }

    fn outcome(inbox: &mut Inbox) -> (u64, Option<ErrorKind>) {
        match inbox.take(Want::All) {
            Some(Incoming::Reply { id, outcome }) => (id, outcome.err().map(|e| e.kind())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reply_that_nobody_waits_for_is_counted_and_one_that_nobody_asked_for_is_damage() {
        let mut inbox = Inbox::default();
        let id = inbox.ask(false, None).expect("id");
        assert!(inbox.abandon(id) && !inbox.abandon(id));
        arrive(&mut inbox, Kind::Reply, id).expect("late");
        assert_eq!((inbox.late_replies, inbox.has(Want::All)), (1, false));
        assert_eq!(arrive(&mut inbox, Kind::Reply, id + 1).expect_err("never sent").kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_second_reply_is_late() {
        let mut inbox = Inbox::default();
        let id = inbox.ask(false, None).expect("id");
        arrive(&mut inbox, Kind::Reply, id).expect("reply");
        arrive(&mut inbox, Kind::Reply, id).expect("again");
        assert_eq!(inbox.late_replies, 1);
        assert!(inbox.take_reply(id).expect("known").is_some());
        assert_eq!(inbox.take_reply(id).expect_err("taken").kind(), ErrorKind::Invalid);
    }

    #[test]
    fn requests_of_a_loop_end_at_their_deadlines_and_at_the_end() {
        let mut inbox = Inbox::default();
        let now = Instant::now();
        let late = inbox.ask(true, Some(now + Duration::from_secs(2))).expect("id");
        let soon = inbox.ask(true, Some(now + Duration::from_secs(1))).expect("id");
        let never = inbox.ask(true, None).expect("id");
        assert_eq!(inbox.next_deadline(), Some(now + Duration::from_secs(1)));
        inbox.expire(now);
        assert!(!inbox.has(Want::All));
        inbox.expire(now + Duration::from_secs(1));
        assert_eq!(outcome(&mut inbox), (soon, Some(ErrorKind::Timeout)));
        arrive(&mut inbox, Kind::Reply, late).expect("in time");
        assert_eq!(outcome(&mut inbox), (late, None));
        assert_eq!(inbox.next_deadline(), None);
        assert!(inbox.end(&Error::new(ErrorKind::PeerDied, "gone")) && !inbox.end(&Error::new(ErrorKind::Closed, "later")));
        assert_eq!(outcome(&mut inbox), (never, Some(ErrorKind::PeerDied)));
        assert_eq!(inbox.ask(true, None).expect_err("ended").kind(), ErrorKind::PeerDied);
    }

    #[test]
    fn nothing_but_a_reply_arrives_after_the_end() {
        let mut inbox = Inbox::default();
        let id = inbox.ask(false, None).expect("id");
        inbox.end(&Error::new(ErrorKind::Closed, "channel was closed"));
        arrive(&mut inbox, Kind::Message, 0).expect("message");
        arrive(&mut inbox, Kind::Request, 1).expect("request");
        arrive(&mut inbox, Kind::Reply, id).expect("reply");
        assert!(!inbox.has(Want::All) && inbox.take_reply(id).expect("known").is_some());
    }

    #[test]
    fn it_is_full_by_bytes_or_by_count_and_one_message_is_always_let_in() {
        let mut inbox = Inbox::default();
        assert!(!inbox.is_full(0), "nothing waits");
        arrive(&mut inbox, Kind::Message, 0).expect("message");
        arrive(&mut inbox, Kind::Request, 1).expect("request");
        assert!(inbox.is_full(200) && !inbox.is_full(201));
        let id = inbox.ask(true, None).expect("id");
        arrive(&mut inbox, Kind::Reply, id).expect("reply");
        assert!(!inbox.is_full(201), "a reply was asked for");
        assert!(inbox.take(Want::Messages).is_some());
        assert!(inbox.is_full(100) && !inbox.is_full(101));
        for _ in 1..MAX_INBOX {
            assert!(!inbox.is_full(usize::MAX));
            arrive(&mut inbox, Kind::Message, 0).expect("message");
        }
        assert!(inbox.is_full(usize::MAX));
        inbox.drop_unread();
        assert!(!inbox.is_full(1));
    }

    #[test]
    fn it_is_full_by_fds_which_the_memory_of_a_spilled_message_is_not() {
        let mut inbox = Inbox::default();
        let come = |inbox: &mut Inbox, flags, fds| {
            let head = Head { kind: Kind::Message, flags, fds, buffers: 0, id: 0, body_len: 0 };
            inbox.arrive(&head, Message { value: Value::Nil, fds: Vec::new() }, 1).expect("message");
        };
        let most = MAX_INBOX_FDS as u16;
        come(&mut inbox, SPILLED, most);
        assert!(!inbox.is_full(usize::MAX));
        come(&mut inbox, 0, 1);
        assert!(inbox.is_full(usize::MAX));
        assert!(inbox.take(Want::All).is_some());
        assert!(!inbox.is_full(usize::MAX));
        come(&mut inbox, 0, 253);
        assert!(inbox.is_full(usize::MAX));
        inbox.drop_unread();
        assert!(!inbox.is_full(usize::MAX));
    }

    #[test]
    fn who_asks_does_not_wait_behind_messages_that_only_it_could_receive() {
        let mut inbox = Inbox::default();
        arrive(&mut inbox, Kind::Message, 0).expect("message");
        arrive(&mut inbox, Kind::Message, 0).expect("message");
        let told = "full: reply lies behind messages that are not received (unread=2, max_unread=1024, bytes=200, max_queued=7, fds=0, max_fds=64)";
        assert_eq!(inbox.in_the_way(7).expect("nobody has received").to_string(), told);
        thread::scope(|scope| scope.spawn(|| inbox.take(Want::All).expect("message")).join().expect("thread"));
        assert_eq!(inbox.in_the_way(7), None);
        inbox.take(Want::All).expect("message");
        assert_eq!(inbox.in_the_way(7).map(|e| e.kind()), Some(ErrorKind::Full));
    }

    #[test]
    fn requests_have_a_bound() {
        let mut inbox = Inbox::default();
        for _ in 0..MAX_PENDING {
            inbox.ask(false, None).expect("id");
        }
        assert_eq!(inbox.ask(false, None).expect_err("full").kind(), ErrorKind::Full);
    }
}
