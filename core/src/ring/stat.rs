//! What a ring looks like from outside: header, participants, positions. Reads only; the ring does not notice.

use super::named;
use super::raw::Map;
use super::seat::{self, Owner, Role};
use crate::error::Result;
use crate::sync::mapped::Ordering;
use crate::sys::pidfd;
use crate::value::Value;
use crate::wire::ring::{
    CLOSED, CONSUMER, HOLDS, Header, Kind, OnFull, POISONED, PRODUCER, SEAT_FREE, SEAT_LIVE, hold_state, ring_word, seat_word,
};
use std::path::Path;

/// A participant as its seat shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// Number of the seat.
    pub seat: usize,
    /// What it does; `None` for a role of a newer version.
    pub role: Option<Role>,
    /// Its process, in its own pid namespace.
    pub pid: u32,
    /// It lives. A dead one is shown until somebody takes its seat.
    pub alive: bool,
    /// It has said that it sleeps.
    pub asleep: bool,
    /// Records of an `mpmc` ring that it has taken and that are not dealt with.
    pub in_flight: u32,
}

/// A lane's positions. Bytes and records are counted from the ring's begin and wrap at 2^32. In `mpmc` every claim counts as a
/// slot, and one that was taken as given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStat {
    /// Bytes published.
    pub tail: u32,
    /// Records published.
    pub pushed: u32,
    /// Bytes given back; in broadcast, by the slowest reader.
    pub head: u32,
    /// Records given back.
    pub popped: u32,
}

impl LaneStat {
    /// Bytes that hold records, with their padding.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Records that hold these bytes.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.pushed.wrapping_sub(self.popped)
    }
}

/// One look at a ring. The values are read one by one while the ring goes on, so they may be a moment apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingStat {
    /// Who writes and who reads.
    pub kind: Kind,
    /// Bytes of a lane, or of all slots.
    pub capacity: usize,
    /// Bytes of a slot of an `mpmc` ring, else 0.
    pub slot_size: usize,
    /// Records of an `mpmc` ring that were taken, and wait to be taken again.
    pub returned: u32,
    /// Participants at most.
    pub max_participants: usize,
    /// What a push does when there is no room, unless its producer was told otherwise.
    pub on_full: OnFull,
    /// The process that made the ring.
    pub creator_pid: u32,
    /// Nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
    /// Nothing more is pushed.
    pub closed: bool,
    /// A participant found damage.
    pub poisoned: bool,
    /// Who sits, or died, on a seat.
    pub participants: Vec<Participant>,
    /// One for `spsc`, `broadcast` and `mpmc`, one per producer's seat for `mpsc`.
    pub lanes: Vec<LaneStat>,
}

impl RingStat {
    /// The same as maps and lists, under the names that other languages show. Sizes beyond 64 signed bits do not occur.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let number = |n: u64| i64::try_from(n).map_or(Value::Nil, Value::Int);
        let participant = |p: &Participant| {
            Value::map([
                ("seat", number(p.seat as u64)),
                ("role", p.role.map_or(Value::Nil, |r| Value::str(r.as_str()))),
                ("pid", number(p.pid.into())),
                ("alive", Value::Bool(p.alive)),
                ("asleep", Value::Bool(p.asleep)),
                ("in_flight", number(p.in_flight.into())),
            ])
        };
        let lane = |l: &LaneStat| {
            Value::map([
                ("tail", number(l.tail.into())),
                ("pushed", number(l.pushed.into())),
                ("head", number(l.head.into())),
                ("popped", number(l.popped.into())),
                ("used", number(l.used().into())),
                ("records", number(l.records().into())),
            ])
        };
        Value::map([
            ("kind", Value::str(self.kind.as_str())),
            ("capacity", number(self.capacity as u64)),
            ("slot_size", number(self.slot_size as u64)),
            ("max_participants", number(self.max_participants as u64)),
            ("on_full", Value::str(self.on_full.as_str())),
            ("creator_pid", number(self.creator_pid.into())),
            ("created_unix_ns", number(self.created_unix_ns)),
            ("closed", Value::Bool(self.closed)),
            ("poisoned", Value::Bool(self.poisoned)),
            ("returned", number(self.returned.into())),
            ("participants", Value::Array(self.participants.iter().map(participant).collect())),
            ("lanes", Value::Array(self.lanes.iter().map(lane).collect())),
        ])
    }
}

pub(super) fn of(map: &Map) -> Result<RingStat> {
    let header: &Header = map.header();
    let state = map.ring_word(ring_word::STATE).load(Ordering::Acquire);
    let namespace = pidfd::namespace();
    let mut participants = Vec::new();
    let slotted = header.slot_len != 0;
    let holds = |seat: usize, state: u64| {
        let hold = |i: usize| map.seat_position(seat, seat_word::HOLDS_AT + i * 8).load(Ordering::Acquire);
        if slotted { (0..HOLDS).filter(|i| hold(*i) & 3 == state).count() as u32 } else { 0 }
    };
    for seat in 0..header.seats as usize {
        let word = |at| map.seat_word(seat, at).load(Ordering::Acquire);
        let status = word(seat_word::STATUS) & 3;
        if status == SEAT_FREE {
            continue;
        }
        participants.push(Participant {
            seat,
            role: match word(seat_word::ROLE) {
                PRODUCER => Some(Role::Producer),
                CONSUMER => Some(Role::Consumer),
                _ => None,
            },
            pid: word(seat_word::PID),
            alive: status == SEAT_LIVE && !matches!(seat::owner(map, seat, namespace)?, Owner::Dead),
            asleep: word(seat_word::WAITING) != 0,
            in_flight: holds(seat, hold_state::HELD),
        });
    }
    let lane = |i: usize| {
        if slotted {
            let position = |at| map.ring_position(at).load(Ordering::Acquire) as u32;
            let (pushed, popped) = (position(ring_word::SLOT_TAIL), position(ring_word::SLOT_HEAD));
            let bytes = |slots: u32| slots.wrapping_mul(header.slot_len);
            return LaneStat { tail: bytes(pushed), pushed, head: bytes(popped), popped };
        }
        let seat = if header.kind == Kind::Broadcast { 0 } else { i + 1 };
        let mark = |at| {
            let word = map.seat_position(seat, at).load(Ordering::Acquire);
            (word as u32, (word >> 32) as u32)
        };
        let ((tail, pushed), (head, popped)) = (mark(seat_word::TAIL), mark(seat_word::HEAD));
        LaneStat { tail, pushed, head, popped }
    };
    Ok(RingStat {
        kind: header.kind,
        capacity: header.capacity as usize,
        slot_size: header.slot_len as usize,
        returned: (0..header.seats as usize).map(|seat| holds(seat, hold_state::RETURNED)).sum(),
        max_participants: header.seats as usize,
        on_full: header.on_full,
        creator_pid: header.pid,
        created_unix_ns: header.created_unix_ns,
        closed: state & CLOSED != 0,
        poisoned: state & POISONED != 0,
        participants,
        lanes: (0..header.lanes as usize).map(lane).collect(),
    })
}

/// Looks at a named ring without attaching to it.
pub(super) fn inspect(path: &Path) -> Result<RingStat> {
    let file = named::open(&named::resolve(path, false)?, false)?;
    of(&Map::look_at(file.into())?)
}
