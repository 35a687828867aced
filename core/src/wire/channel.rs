//! What the two ends of a channel write to each other: records in two `spsc` rings, datagrams on a unix socket.
//!
//! All integers are little-endian.
//!
//! ```text
//!  greeting    the first datagrams of each end; later versions may make it longer
//!              0       4       8   10  12      16              24              32
//!              ├───────────────┼───┼───┼───────┼───────────────┼───────────────┤
//!            0 │ magic         │min│max│ flags │ features      │ instance      │
//!              ├───────┬───────┼───┴───┴───────┴───────────────┴───────────────┘
//!           32 │ pid   │ side  │
//!              └───────┴───────┘
//!              min, max   wire versions that the sender speaks; both take the highest that both know
//!              flags      RINGS: the fds of two rings come along (memory and two doorbells of ring 0, then of ring 1);
//!                         the receiver writes ring `side` and reads the other
//!                         HERE: the sender sits in the rings; said once by each end, before it publishes anything
//!              instance   random, one per core: a greeting of one's own process is known by it
//!
//!  fds         a datagram per message that has any; sent before its record is published
//!              0       4       8
//!              ├───┬───┼───────┤
//!            0 │tag│num│ count │  + num fds: of the spilled body, of buffers in their order, of the user in theirs
//!              └───┴───┴───────┘  count: messages with fds that this end has sent before (wraps)
//!
//!  record      0   1   2   4       8               16              24
//!              ├───┼───┼───┼───────┼───────────────┼───────────────┼─────────
//!            0 │knd│flg│fds│buffers│ id            │ body_len      │ body …
//!              └───┴───┴───┴───────┴───────────────┴───────────────┴─────────
//!                    0 … 0 │ entry 0 │ entry 1 │ …  │ bytes of the copied buffers, each up to a multiple of 8
//!                    to 8    8         8
//!              knd        1 message, 2 request, 3 reply
//!              flg        FAILED (reply): the value is the error of whoever was asked
//!                         SPILLED: all from the body on lies in a sealed memfd, the first of the fds; the record ends with its
//!                         length in 8 bytes instead
//!              id         of a request and its reply: counted from 1 by the end that asks
//!              body       a value (`wire::value`) with every TransferBuffer beside it
//!              entry      length << 1 | 1: copied into the record; length << 1: a sealed memfd among the fds
//! ```
//!
//! A record's fds are in the socket before the record is in the ring, so who finds the record finds them. Fds without a record are those
//! of an end that died between the two.

use crate::error::{Error, ErrorKind, Result};

/// `OFLCHAN` and the digit that changes when a greeting can no longer be read.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OFLCHAN1");
/// Oldest wire version that this core speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest wire version that this core speaks.
pub const VERSION_MAX: u16 = 1;
/// Bytes of a greeting of this version.
pub const GREETING_LEN: usize = 40;
/// Fds of a greeting with [`RINGS`].
pub const RING_FDS: usize = 6;
/// Greeting: fds of the rings come along.
pub const RINGS: u32 = 1;
/// Greeting: the sender has taken its seats.
pub const HERE: u32 = 2;

/// Bytes of a datagram with fds.
pub const FDS_LEN: usize = 8;
/// Its tag.
pub const FDS_TAG: u16 = 0x4446;

/// Bytes of a record before its body.
pub const HEAD_LEN: usize = 24;
/// The reply is an error of the other end's user.
pub const FAILED: u8 = 1;
/// The body lies in the first fd.
pub const SPILLED: u8 = 2;
/// Most buffers in a record, copied ones and fds together.
pub const MAX_BUFFERS: usize = 65_536;
/// What follows the body begins at a multiple of this.
pub const ALIGN: usize = 8;

fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The first datagram of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Oldest wire version.
    pub min: u16,
    /// Newest wire version.
    pub max: u16,
    /// [`RINGS`], [`HERE`].
    pub flags: u32,
    /// Features of the sender; none yet.
    pub features: u64,
    /// Which core.
    pub instance: u64,
    /// The sender's process, in its own pid namespace.
    pub pid: u32,
    /// With [`RINGS`]: the ring that the receiver writes.
    pub side: u32,
}

impl Greeting {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; GREETING_LEN] {
        let mut out = [0; GREETING_LEN];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&self.min.to_le_bytes());
        out[10..12].copy_from_slice(&self.max.to_le_bytes());
        out[12..16].copy_from_slice(&self.flags.to_le_bytes());
        out[16..24].copy_from_slice(&self.features.to_le_bytes());
        out[24..32].copy_from_slice(&self.instance.to_le_bytes());
        out[32..36].copy_from_slice(&self.pid.to_le_bytes());
        out[36..].copy_from_slice(&self.side.to_le_bytes());
        out
    }

    /// From bytes that came with so many fds.
    ///
    /// # Errors
    /// `Corrupt`; `Version` when the two sides have none in common.
    pub fn decode(bytes: &[u8], fds: usize) -> Result<Greeting> {
        if bytes.len() < GREETING_LEN || u64_at(bytes, 0) != MAGIC {
            return Err(corrupt("socket carries no greeting of a channel").with("len", bytes.len()));
        }
        let greeting = Greeting {
            min: u16_at(bytes, 8),
            max: u16_at(bytes, 10),
            flags: u32_at(bytes, 12),
            features: u64_at(bytes, 16),
            instance: u64_at(bytes, 24),
            pid: u32_at(bytes, 32),
            side: u32_at(bytes, 36),
        };
        if greeting.min > greeting.max {
            return Err(corrupt("greeting has no version").with("min", greeting.min).with("max", greeting.max));
        }
        // Before anything that a later version may have changed.
        if greeting.max < VERSION_MIN || greeting.min > VERSION_MAX {
            return Err(Error::new(ErrorKind::Version, "the two ends speak no common version; update the older one")
                .with("own", format_args!("{VERSION_MIN}-{VERSION_MAX}"))
                .with("other", format_args!("{}-{}", greeting.min, greeting.max))
                .with("pid", greeting.pid));
        }
        let rings = greeting.flags & RINGS != 0;
        if fds != if rings { RING_FDS } else { 0 } || (rings && greeting.side > 1) {
            return Err(corrupt("greeting and its fds do not belong together").with("flags", greeting.flags).with("fds", fds));
        }
        Ok(greeting)
    }
}

/// The bytes of a datagram with `fds`.
#[must_use]
pub fn encode_fds(fds: u16, count: u32) -> [u8; FDS_LEN] {
    let mut out = [0; FDS_LEN];
    out[..2].copy_from_slice(&FDS_TAG.to_le_bytes());
    out[2..4].copy_from_slice(&fds.to_le_bytes());
    out[4..].copy_from_slice(&count.to_le_bytes());
    out
}

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A value.
    Message = 1,
    /// A value that is to be answered.
    Request = 2,
    /// The answer.
    Reply = 3,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What for.
    pub kind: Kind,
    /// [`FAILED`], [`SPILLED`].
    pub flags: u8,
    /// Fds in the datagram that belongs to the record; 0: there is none.
    pub fds: u16,
    /// Buffers beside the value.
    pub buffers: u32,
    /// Of a request or reply.
    pub id: u64,
    /// Bytes of the value.
    pub body_len: u64,
}

impl Head {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[0] = self.kind as u8;
        out[1] = self.flags;
        out[2..4].copy_from_slice(&self.fds.to_le_bytes());
        out[4..8].copy_from_slice(&self.buffers.to_le_bytes());
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..].copy_from_slice(&self.body_len.to_le_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8; HEAD_LEN]) -> Result<Head> {
        let kind = [Kind::Message, Kind::Request, Kind::Reply]
            .into_iter()
            .find(|kind| *kind as u8 == bytes[0])
            .ok_or_else(|| corrupt("record is of no known kind").with("kind", bytes[0]))?;
        let head = Head {
            kind,
            flags: bytes[1],
            fds: u16_at(bytes, 2),
            buffers: u32_at(bytes, 4),
            id: u64_at(bytes, 8),
            body_len: u64_at(bytes, 16),
        };
        let known = if kind == Kind::Reply { FAILED | SPILLED } else { SPILLED };
        if head.flags & !known != 0 {
            return Err(corrupt("record has flags that are not known").with("flags", format_args!("{:#04x}", head.flags)));
        }
        if (head.id == 0) != (kind == Kind::Message) || (head.flags & SPILLED != 0 && head.fds == 0) {
            return Err(corrupt("record contradicts itself").with("kind", bytes[0]).with("id", head.id).with("fds", head.fds));
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: Greeting =
        Greeting { min: 1, max: 3, flags: RINGS | HERE, features: 0, instance: 0x0102_0304_0506_0708, pid: 77, side: 1 };

    #[test]
    fn a_greeting_is_these_bytes() {
        let bytes = GREETING.encode();
        let want = *b"OFLCHAN1\x01\0\x03\0\x03\0\0\0\0\0\0\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01\x4d\0\0\0\x01\0\0\0";
        assert_eq!(bytes, want);
        assert_eq!(Greeting::decode(&bytes, RING_FDS), Ok(GREETING));
        let longer = [&bytes[..], b"of a later version"].concat();
        assert_eq!(Greeting::decode(&longer, RING_FDS), Ok(GREETING));
    }

    #[test]
    fn greetings_that_cannot_be_are_refused() {
        let kind = |greeting: Greeting, fds| Greeting::decode(&greeting.encode(), fds).expect_err("refused").kind();
        assert_eq!(kind(GREETING, 5), ErrorKind::Corrupt);
        assert_eq!(kind(Greeting { side: 2, ..GREETING }, 6), ErrorKind::Corrupt);
        assert_eq!(kind(Greeting { flags: HERE, ..GREETING }, 6), ErrorKind::Corrupt);
        assert_eq!(kind(Greeting { min: 4, ..GREETING }, 6), ErrorKind::Corrupt);
        assert_eq!(Greeting::decode(&GREETING.encode()[..39], 6).expect_err("short").kind(), ErrorKind::Corrupt);
        let newer = Greeting::decode(&Greeting { min: 2, max: 3, ..GREETING }.encode(), 6).expect_err("newer");
        assert_eq!(newer.kind(), ErrorKind::Version);
        assert!(newer.to_string().contains("own=1-1, other=2-3"), "{newer}");
    }

    #[test]
    fn a_head_is_these_bytes() {
        let head = Head { kind: Kind::Reply, flags: FAILED | SPILLED, fds: 2, buffers: 1, id: 0x0203, body_len: 9 };
        let bytes = head.encode();
        assert_eq!(bytes, *b"\x03\x03\x02\0\x01\0\0\0\x03\x02\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        assert_eq!(Head::decode(&bytes), Ok(head));
        for (at, bad) in [(0, 0), (0, 4), (0, 1), (1, 4), (2, 0)] {
            let mut bytes = bytes;
            bytes[at] = bad;
            assert_eq!(Head::decode(&bytes).expect_err("refused").kind(), ErrorKind::Corrupt, "{at} {bad}");
        }
        let no_id = Head { kind: Kind::Request, flags: 0, fds: 0, buffers: 0, id: 0, body_len: 0 };
        assert!(Head::decode(&no_id.encode()).is_err());
    }

    #[test]
    fn a_datagram_with_fds_is_these_bytes() {
        assert_eq!(encode_fds(3, 0x0102_0304), *b"FD\x03\0\x04\x03\x02\x01");
    }
}
