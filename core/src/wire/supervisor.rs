//! Layout of a worker's page: the memory in which a supervisor and one worker process see each other.
//!
//! The page is a sealed memfd. The worker inherits it and one end of a socket pair, by the numbers that the variable
//! [`ENV`] of its environment names: `<page>,<lifeline>`. All integers are little-endian.
//!
//! ```text
//!  page        0       4       8   10  12      16              24              32
//!              ├───────┴───────┼───┼───┼───────┼───────────────┼───────┬───────┤
//!            0 │ magic         │maj│min│ len   │ layout        │ slot  │ gener.│  written before the worker exists
//!              ├───────────────┼───┴───┴───────┼───────────────┼───────┴───────┤
//!           32 │ incarnation   │ beat_ns       │ hang_ns       │ orphan_ns     │
//!              ├───────────────┴───────────────┴───────────────┼───────────────┤
//!           64 │ 0                                             │ 0             │
//!           96 │ 0                                             │ check         │
//!              ├───────┬───────┬───────┬───────┬───────────────┴───────────────┤
//!          128 │ flags │ asked │ slot  │ 0     │ incarnation   │ 0             │  supervisor
//!              ├───────┼───────┼───────┴───────┼───────────────┴───────────────┤
//!          256 │ state │ proto │ echo          │ 0                             │  worker
//!          384 │ loop_beat     │ served        │ loop_due      │ late          │  worker's loop
//!          416 │ late_at       │ 0                                             │
//!          512 │ native_beat   │ 0                                             │  worker's native thread
//!          640 │txt_len│ hooked│ told  │stk_len│ 0                             │  worker
//!              ├───────┴───────┴───────┴───────┴───────────────────────────────┤
//!         1024 │ text …                                                        │  worker … 4095
//!              ├───────────────────────────────────────────────────────────────┤
//!         4096 │ stack …                                                       │  worker … PAGE_LEN
//!              └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! * `check` is FNV-1a over bytes 8…119, `layout` is [`LAYOUT`]. The worker copies the fixed part once.
//! * `state` only grows: [`state`]. It is stored with Release, after `proto` (`major | minor << 16`) and `echo` (the incarnation that the
//!   worker read); the supervisor loads it with Acquire. Another value, or one that shrinks, ends the worker.
//! * `loop_beat` and `native_beat` are counters: whether they change is what counts. READY is believed with a `loop_beat` that is not 0.
//! * `served` counts what the worker has served (requests, connections); 0 where it does not count.
//! * `loop_due` is when the next beat of the loop is to come, nanoseconds of `CLOCK_MONOTONIC`; 0 before the first one. `late` is the greatest lateness of a
//!   beat, in nanoseconds, of which half is left after each [`LATE_HALF_NS`] from `late_at` on. One thread writes all three.
//! * A worker whose slot is 1,024 or higher is a spare: it loads, says that it is ready, and takes no work before `flags` has [`ACTIVE`]. What it is from then on stands behind
//!   `flags`, stored before. A worker of minor version 1 takes work as soon as it is ready.
//! * `text` is what the worker says of its failure, UTF-8; `txt_len` is stored with Release after it and read when the worker has ended.
//! * `hooked` is not 0 when the worker can say where its loop stands. The supervisor asks by another number in `asked`; the worker stores `stk_len` and `stack`,
//!   UTF-8, and then, with Release, that number in `told`. A length of 0 is "not known". An answer to an older question is none.
//! * After `state`, `txt_len`, `flags`, `asked` or `told` has changed, one datagram on the socket wakes the other side. Its content means nothing. An end
//!   of the socket that hangs up says that its process is gone.

use super::fnv::{check_sum, layout_of};
use crate::error::{Error, ErrorKind, Result};

/// `OFLWORK` and the major version's digit, as bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OFLWORK1");
/// Another major version is refused.
pub const MAJOR: u16 = 1;
/// Grows when words that were 0 get a meaning that may be ignored.
pub const MINOR: u16 = 2;
/// Bytes of the page.
pub const PAGE_LEN: usize = 8192;
/// Bytes of the fixed part.
pub const FIXED_LEN: usize = 128;
/// Longest `text`.
pub const MAX_TEXT: usize = word::STACK - word::TEXT;
/// Longest `stack`.
pub const MAX_STACK: usize = PAGE_LEN - word::STACK;
/// The variable of the worker's environment that names the two fds.
pub const ENV: &str = "OFFLOOP_SUPERVISOR";

/// Byte offsets of what changes.
pub mod word {
    /// [`DRAIN`](super::DRAIN), [`ACTIVE`](super::ACTIVE); 32 bits.
    pub const FLAGS: usize = 128;
    /// The number of the last question; 32 bits.
    pub const ASKED: usize = 132;
    /// 32 bits; since minor version 2.
    pub const SLOT: usize = 136;
    /// 64 bits; since minor version 2.
    pub const INCARNATION: usize = 144;
    /// [`state`](super::state); 32 bits.
    pub const STATE: usize = 256;
    /// `major | minor << 16`; 32 bits.
    pub const PROTO: usize = 260;
    /// The incarnation that the worker has read; 64 bits.
    pub const ECHO: usize = 264;
    /// 64 bits.
    pub const LOOP_BEAT: usize = 384;
    /// 64 bits; since minor version 1.
    pub const SERVED: usize = 392;
    /// 64 bits; since minor version 2.
    pub const LOOP_DUE: usize = 400;
    /// 64 bits; since minor version 2.
    pub const LATE: usize = 408;
    /// 64 bits; since minor version 2.
    pub const LATE_AT: usize = 416;
    /// 64 bits.
    pub const NATIVE_BEAT: usize = 512;
    /// 32 bits.
    pub const TEXT_LEN: usize = 640;
    /// The worker can say where its loop stands; 32 bits.
    pub const HOOKED: usize = 644;
    /// The number of the question that was answered; 32 bits.
    pub const TOLD: usize = 648;
    /// 32 bits.
    pub const STACK_LEN: usize = 652;
    /// Up to `STACK`.
    pub const TEXT: usize = 1024;
    /// Up to the page's end.
    pub const STACK: usize = 4096;
}

/// How far a worker is.
pub mod state {
    /// Not attached.
    pub const NONE: u32 = 0;
    /// Attached.
    pub const HELLO: u32 = 1;
    /// Takes work.
    pub const READY: u32 = 2;
    /// Was asked to finish, and has.
    pub const DRAINED: u32 = 3;
}

/// `flags`: finish what you have and end.
pub const DRAIN: u32 = 1;
/// `flags`: no spare any more.
pub const ACTIVE: u32 = 2;

/// After this time a lateness counts half, nanoseconds.
pub const LATE_HALF_NS: u64 = 1_000_000_000;

/// Changes with any offset.
pub const LAYOUT: u64 = layout_of(&[
    FIXED_LEN,
    PAGE_LEN,
    word::FLAGS,
    word::STATE,
    word::PROTO,
    word::ECHO,
    word::LOOP_BEAT,
    word::NATIVE_BEAT,
    word::TEXT_LEN,
    word::TEXT,
    word::ASKED,
    word::HOOKED,
    word::TOLD,
    word::STACK_LEN,
    word::STACK,
]);

/// The fixed part of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor layout version of the supervisor.
    pub minor: u16,
    /// The worker's slot.
    pub slot: u32,
    /// The (re)load that it belongs to.
    pub generation: u32,
    /// Which process of its slot it is.
    pub incarnation: u64,
    /// How often it shows that it lives, nanoseconds.
    pub beat_ns: u64,
    /// How long its loop may show nothing, nanoseconds; 0: as long as it likes.
    pub hang_ns: u64,
    /// What it has to finish its work when its supervisor is gone, nanoseconds.
    pub orphan_ns: u64,
}

fn checksum(bytes: &[u8; FIXED_LEN]) -> u64 {
    check_sum(&bytes[8..120])
}

impl Header {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FIXED_LEN] {
        let mut out = [0; FIXED_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &MAJOR.to_le_bytes());
        put(10, &self.minor.to_le_bytes());
        put(12, &(PAGE_LEN as u32).to_le_bytes());
        put(16, &LAYOUT.to_le_bytes());
        put(24, &self.slot.to_le_bytes());
        put(28, &self.generation.to_le_bytes());
        put(32, &self.incarnation.to_le_bytes());
        put(40, &self.beat_ns.to_le_bytes());
        put(48, &self.hang_ns.to_le_bytes());
        put(56, &self.orphan_ns.to_le_bytes());
        let check = checksum(&out);
        out[120..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a private copy of a fixed part; `len` is what `fstat` says of the memfd.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no page, or contradict each other or the memfd; `Version` for another layout.
    pub fn decode(bytes: &[u8; FIXED_LEN], len: usize) -> Result<Header> {
        fn take<const N: usize>(bytes: &[u8; FIXED_LEN], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        let u16_at = |at| u16::from_le_bytes(take(bytes, at));
        let u32_at = |at| u32::from_le_bytes(take(bytes, at));
        let u64_at = |at| u64::from_le_bytes(take(bytes, at));
        let corrupt = |what: &'static str| Error::new(ErrorKind::Corrupt, what);
        if u64_at(0) & !(0xFF << 56) != MAGIC & !(0xFF << 56) {
            return Err(corrupt("not a worker's page").with("magic", format_args!("{:#018x}", u64_at(0))));
        }
        if u64_at(0) != MAGIC || u16_at(8) != MAJOR || u64_at(16) != LAYOUT {
            return Err(Error::new(ErrorKind::Version, "supervisor has another layout of a worker's page; update the older one")
                .with("magic", format_args!("{:#018x}", u64_at(0)))
                .with("major", u16_at(8))
                .with("known", MAJOR));
        }
        if u64_at(120) != checksum(bytes) {
            return Err(corrupt("page does not match its check sum").with("check", u64_at(120)).with("want", checksum(bytes)));
        }
        if len != PAGE_LEN || u32_at(12) as usize != PAGE_LEN {
            return Err(corrupt("page and memfd differ in size").with("len", u32_at(12)).with("file_len", len).with("want", PAGE_LEN));
        }
        let header = Header {
            minor: u16_at(10),
            slot: u32_at(24),
            generation: u32_at(28),
            incarnation: u64_at(32),
            beat_ns: u64_at(40),
            hang_ns: u64_at(48),
            orphan_ns: u64_at(56),
        };
        if header.generation == 0 || header.incarnation == 0 || header.beat_ns == 0 {
            return Err(corrupt("page has no generation, no incarnation or no beat")
                .with("generation", header.generation)
                .with("incarnation", header.incarnation)
                .with("beat_ns", header.beat_ns));
        }
        Ok(header)
    }
}

/// The numbers that [`ENV`] names: page and lifeline.
///
/// # Errors
/// `Invalid`.
pub fn parse_env(text: &str) -> Result<(i32, i32)> {
    let number = |s: &str| s.parse().ok().filter(|n: &i32| *n >= 0);
    text.split_once(',')
        .and_then(|(page, lifeline)| number(page).zip(number(lifeline)))
        .filter(|(page, lifeline)| page != lifeline)
        .ok_or_else(|| Error::invalid("variable does not name two fds").with("name", ENV).with("value", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header =
        Header { minor: 0, slot: 3, generation: 4, incarnation: 0x0102, beat_ns: 1_000_000_000, hang_ns: 10, orphan_ns: 5 };

    #[test]
    fn a_page_begins_with_these_bytes() {
        let want: [u8; FIXED_LEN] = {
            let mut w = [0; FIXED_LEN];
            w[..16].copy_from_slice(b"OFLWORK1\x01\0\0\0\0\x20\0\0");
            w[16..24].copy_from_slice(&GOLDEN_LAYOUT.to_le_bytes());
            w[24] = 3;
            w[28] = 4;
            w[32..34].copy_from_slice(&[2, 1]);
            w[40..44].copy_from_slice(&[0x00, 0xca, 0x9a, 0x3b]);
            w[48] = 10;
            w[56] = 5;
            w[120..].copy_from_slice(&GOLDEN_CHECK.to_le_bytes());
            w
        };
        assert_eq!(SAMPLE.encode(), want);
        assert_eq!(Header::decode(&want, PAGE_LEN).expect("valid"), SAMPLE);
    }

    /// Written down when the layout was: a change of it shows here.
    const GOLDEN_LAYOUT: u64 = 0x8e60_bd9d_bd25_85cb;
    const GOLDEN_CHECK: u64 = 0x93e4_efd1_1e97_120a;

    #[test]
    fn any_flipped_bit_is_refused() {
        for at in 0..FIXED_LEN {
            for bit in 0..8 {
                let mut bad = SAMPLE.encode();
                bad[at] ^= 1 << bit;
                let e = Header::decode(&bad, PAGE_LEN).expect_err("flipped");
                assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Version), "{at} {bit}: {e}");
            }
        }
    }

    #[test]
    fn lies_with_a_valid_check_sum_are_refused() {
        for (at, lie, text) in [(8, 2u8, "major=2"), (10, 0, ""), (13, 0, "len=0"), (16, 0, "layout"), (32, 0, "incarnation=256")] {
            let mut bad = SAMPLE.encode();
            bad[at] = lie;
            let check = checksum(&bad);
            bad[120..].copy_from_slice(&check.to_le_bytes());
            match Header::decode(&bad, PAGE_LEN) {
                Ok(header) => assert!(text.is_empty() || header.incarnation == 256, "{at}"),
                Err(e) => assert!(e.to_string().contains(text), "{at}: {e}"),
            }
        }
        for none in [Header { generation: 0, ..SAMPLE }, Header { incarnation: 0, ..SAMPLE }, Header { beat_ns: 0, ..SAMPLE }] {
            assert_eq!(Header::decode(&none.encode(), PAGE_LEN).expect_err("refused").kind(), ErrorKind::Corrupt);
        }
        assert!(Header::decode(&SAMPLE.encode(), PAGE_LEN + 1).expect_err("longer").to_string().contains("file_len=8193"));
        let newer = Header { minor: 9, ..SAMPLE };
        assert_eq!(Header::decode(&newer.encode(), PAGE_LEN).expect("a newer minor is read"), newer);
    }

    #[test]
    fn the_variable_names_two_numbers() {
        assert_eq!(parse_env("3,4").expect("two"), (3, 4));
        for bad in ["", "3", "3,", ",4", "3,4,5", "-1,4", "3,3", "3, 4", "99999999999,1"] {
            assert_eq!(parse_env(bad).expect_err(bad).kind(), ErrorKind::Invalid);
        }
    }
}
