//! Layout of a metrics region: one pool's counters, gauges and histograms, readable from another process.
//!
//! A region is a memfd named [`REGION_NAME`]; it is found under `/proc/<pid>/fd`. All integers are little-endian, every
//! counter is a `u64` that is aligned to 8 and written whole, so a reader never sees half of one. Holes stay unallocated.
//!
//! ```text
//!  region      0            header_len          +shard_len                            total_len
//!              ├── header ──┼── shard 0 ────────┼── shard 1 ── … ── shard `shards-1` ─┤
//!                             any thread          one writer each, kept when the writer changes
//!
//!  header      0       4       8   10  12      16              24              32
//!              ├───────┴───────┼───┼───┼───────┼───────────────┼───────────────┤
//!            0 │ magic         │maj│min│hdr_len│ total_len     │ shard_len     │
//!              ├───────┬───────┼───┼───┼───┬───┼───────┬───────┼───────────────┤
//!           32 │ shards│ used  │cnt│gau│sub│grp│ pid   │ 0     │ created_unix  │
//!              ├───────┴───────┼───┴───┴───┴───┴───────┴───────┴───────────────┤
//!           64 │ created_mono  │ 0                                             │
//!              ├───────────────┴───────────────────────────────────────────────┤
//!           96 │ kind: UTF-8, padded with NUL                                  │
//!          128 │ name: UTF-8, padded with NUL, 128 bytes                       │
//!          256 │ gauges: 16 × u64                                              │
//!          384 │ 0 … header_len                                                │
//!              └───────────────────────────────────────────────────────────────┘
//!
//!  shard       0       8       16      24      32      40      48      56      64
//!              ├───────┴───────┴───────┴───────┴───────┴───────┴───────┴───────┤
//!            0 │ counters: 16 × u64                                            │
//!              ├───────┬───────┬───────┬───────┬───────┬───────┬───────┬───────┤
//!          128 │busy_ns│ 0     │w_sum  │w_max  │w_occ  │r_sum  │r_max  │r_occ  │
//!              ├───────┴───────┴───────┴───────┴───────┴───────┴───────┴───────┤
//!          192 │ 0                                                             │
//!          256 │ wait buckets: 43 groups × 32 × u64                            │
//!        11264 │ run buckets:  43 groups × 32 × u64                            │
//!        22272 │ 0 … shard_len                                                 │
//!              └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! * `magic` is stored last, with Release: a region that shows it is complete.
//! * `cnt` and `gau` are how many counters and gauges the writer knows. Both lists only grow at their end (a new minor
//!   version); a slot that the writer does not know is 0.
//! * `used` is 1 + the highest shard that was ever handed out, so that a reader does not touch the others.
//! * `*_occ` has bit *g* set when bucket group *g* was ever written, so that a reader skips the empty ones.
//! * `created_unix` and `created_mono` are nanoseconds of `CLOCK_REALTIME` and `CLOCK_MONOTONIC`.
//! * Buckets: see [`crate::metrics::bucket_of`].

use crate::error::{Error, ErrorKind, Result};

/// `OFLMETR` and the major version's digit, as bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OFLMETR1");
/// A reader refuses another major version.
pub const MAJOR: u16 = 1;
/// Grows when counters or gauges are appended.
pub const MINOR: u16 = 1;
/// The memfd's name, as `/proc/<pid>/fd` shows it (with `/memfd:` before it).
pub const REGION_NAME: &std::ffi::CStr = c"offloop-metrics";
/// Bytes of the header: one page, so that shards begin on a page of their own.
pub const HEADER_LEN: usize = 4096;
/// Counters that a shard has room for.
pub const COUNTER_SLOTS: usize = 16;
/// Gauges that the header has room for.
pub const GAUGE_SLOTS: usize = 16;
/// `2^SUB_BITS` buckets per power of two.
pub const SUB_BITS: u32 = 5;
/// Groups of `2^SUB_BITS` buckets: group 0 is linear, each further one covers a power of two.
pub const GROUPS: usize = 43;
/// Buckets of one histogram.
pub const BUCKETS: usize = GROUPS << SUB_BITS;
/// Bytes from one shard to the next: whole pages, so that two writers share neither cache line nor page.
pub const SHARD_LEN: usize = 24576;
/// Shards of a region at most: the common one and one per writer.
pub const MAX_SHARDS: usize = 1 + 4096;
/// Bytes of `kind`.
pub const KIND_LEN: usize = 32;
/// Bytes of `name`; a longer name is cut at a character.
pub const NAME_LEN: usize = 128;

/// Word (8 bytes) indices in the header.
pub mod header_word {
    /// `magic`.
    pub const MAGIC: usize = 0;
    /// `shards` (low half) and `used` (high half).
    pub const SHARDS_USED: usize = 4;
    /// The first gauge.
    pub const GAUGES: usize = 32;
}

/// Word (8 bytes) indices in a shard.
pub mod shard_word {
    /// The first counter.
    pub const COUNTERS: usize = 0;
    /// Nanoseconds that the writer spent in tasks.
    pub const BUSY: usize = 16;
    /// The wait histogram: sum, max, occupied groups.
    pub const WAIT: usize = 18;
    /// The run histogram: sum, max, occupied groups.
    pub const RUN: usize = 21;
    /// The first wait bucket.
    pub const WAIT_BUCKETS: usize = 32;
    /// The first run bucket.
    pub const RUN_BUCKETS: usize = WAIT_BUCKETS + super::BUCKETS;
}

const _: () = assert!(GROUPS <= 64, "`occ` has a bit per group");
const _: () = assert!((shard_word::RUN_BUCKETS + BUCKETS) * 8 <= SHARD_LEN);
const _: () = assert!((header_word::GAUGES + GAUGE_SLOTS) * 8 <= HEADER_LEN);

/// The fixed part of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor layout version of the writer.
    pub minor: u16,
    /// Bytes before shard 0.
    pub header_len: u32,
    /// Bytes of the region.
    pub total_len: u64,
    /// Bytes from one shard to the next.
    pub shard_len: u64,
    /// Shards in the region.
    pub shards: u32,
    /// 1 + the highest shard ever handed out.
    pub used: u32,
    /// Counters that the writer knows.
    pub counters: u16,
    /// Gauges that the writer knows.
    pub gauges: u16,
    /// The process that writes.
    pub pid: u32,
    /// Nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub created_mono_ns: u64,
    /// The pool's kind.
    pub kind: String,
    /// The pool's name, cut to [`NAME_LEN`] bytes.
    pub name: String,
}

/// The first bytes of `text` that fit into `room`, cut at a character.
fn cut(text: &str, room: usize) -> &[u8] {
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

impl Header {
    /// A header of this version for `shards` shards.
    #[must_use]
    pub fn new(shards: usize, counters: usize, gauges: usize, kind: &str, name: &str) -> Header {
        let shards = shards.clamp(1, MAX_SHARDS);
        Header {
            minor: MINOR,
            header_len: HEADER_LEN as u32,
            total_len: (HEADER_LEN + shards * SHARD_LEN) as u64,
            shard_len: SHARD_LEN as u64,
            shards: shards as u32,
            used: 1,
            counters: counters as u16,
            gauges: gauges as u16,
            pid: 0,
            created_unix_ns: 0,
            created_mono_ns: 0,
            kind: String::from_utf8_lossy(cut(kind, KIND_LEN)).into_owned(),
            name: String::from_utf8_lossy(cut(name, NAME_LEN)).into_owned(),
        }
    }

    /// The header's first 256 bytes (the rest is gauges and zeros), magic included.
    #[must_use]
    pub fn encode(&self) -> [u8; 256] {
        let mut out = [0u8; 256];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &MAJOR.to_le_bytes());
        put(10, &self.minor.to_le_bytes());
        put(12, &self.header_len.to_le_bytes());
        put(16, &self.total_len.to_le_bytes());
        put(24, &self.shard_len.to_le_bytes());
        put(32, &self.shards.to_le_bytes());
        put(36, &self.used.to_le_bytes());
        put(40, &self.counters.to_le_bytes());
        put(42, &self.gauges.to_le_bytes());
        put(44, &(SUB_BITS as u16).to_le_bytes());
        put(46, &(GROUPS as u16).to_le_bytes());
        put(48, &self.pid.to_le_bytes());
        put(56, &self.created_unix_ns.to_le_bytes());
        put(64, &self.created_mono_ns.to_le_bytes());
        put(96, cut(&self.kind, KIND_LEN));
        put(128, cut(&self.name, NAME_LEN));
        out
    }

    /// Reads a private copy of a header; `region_len` is what `fstat` says.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no header or its sizes contradict each other or the region; `Version` for another
    /// major version.
    pub fn decode(bytes: &[u8; 256], region_len: u64) -> Result<Header> {
        fn take<const N: usize>(bytes: &[u8; 256], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        let u16_at = |at| u16::from_le_bytes(take(bytes, at));
        let u32_at = |at| u32::from_le_bytes(take(bytes, at));
        let u64_at = |at| u64::from_le_bytes(take(bytes, at));
        let corrupt = |what: &'static str| Error::new(ErrorKind::Corrupt, what);

        if u64_at(0) & !(0xFF << 56) != MAGIC & !(0xFF << 56) {
            return Err(corrupt("not a metrics region").with("magic", format_args!("{:#018x}", u64_at(0))));
        }
        if u64_at(0) != MAGIC || u16_at(8) != MAJOR {
            return Err(Error::new(ErrorKind::Version, "metrics region has another layout").with("major", u16_at(8)).with("known", MAJOR));
        }
        let header = Header {
            minor: u16_at(10),
            header_len: u32_at(12),
            total_len: u64_at(16),
            shard_len: u64_at(24),
            shards: u32_at(32),
            used: u32_at(36),
            counters: u16_at(40),
            gauges: u16_at(42),
            pid: u32_at(48),
            created_unix_ns: u64_at(56),
            created_mono_ns: u64_at(64),
            kind: text(&bytes[96..96 + KIND_LEN]).ok_or_else(|| corrupt("kind is not UTF-8"))?,
            name: text(&bytes[128..128 + NAME_LEN]).ok_or_else(|| corrupt("name is not UTF-8"))?,
        };
        if header.total_len != region_len {
            return Err(corrupt("header and region differ in size").with("total_len", header.total_len).with("region_len", region_len));
        }
        if (header.header_len as usize) < HEADER_LEN || !header.header_len.is_multiple_of(8) {
            return Err(corrupt("bad header size").with("header_len", header.header_len));
        }
        if header.shard_len < SHARD_LEN as u64 || !header.shard_len.is_multiple_of(8) {
            return Err(corrupt("bad shard size").with("shard_len", header.shard_len));
        }
        if header.shards == 0 || header.shards as usize > MAX_SHARDS || header.used == 0 || header.used > header.shards {
            return Err(corrupt("bad number of shards").with("shards", header.shards).with("used", header.used));
        }
        if usize::from(header.counters) > COUNTER_SLOTS || usize::from(header.gauges) > GAUGE_SLOTS {
            return Err(corrupt("more counters than slots").with("counters", header.counters).with("gauges", header.gauges));
        }
        if u32::from(u16_at(44)) != SUB_BITS || usize::from(u16_at(46)) != GROUPS {
            return Err(corrupt("bad histogram shape").with("sub_bits", u16_at(44)).with("groups", u16_at(46)));
        }
        let need = header.shard_len.checked_mul(u64::from(header.shards)).and_then(|n| n.checked_add(u64::from(header.header_len)));
        if need.is_none_or(|n| n > region_len) {
            return Err(corrupt("shards do not fit the region").with("shards", header.shards).with("shard_len", header.shard_len));
        }
        Ok(header)
    }
}

/// Text that ends at the first NUL.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        let mut h = Header::new(3, 7, 5, "thread", "thumbs-é");
        h.pid = 0x0102_0304;
        h.created_unix_ns = 1_700_000_000_123_456_789;
        h.created_mono_ns = 0x1122_3344_5566_7788;
        h.used = 2;
        h
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn header_bytes_are_golden() {
        let got = sample().encode();
        assert_eq!(hex(&got[..32]), "4f464c4d45545231010001000010000000300100000000000060000000000000");
        assert_eq!(hex(&got[32..64]), "03000000020000000700050005002b00040302010000000015cd853dfe9c9717");
        assert_eq!(hex(&got[64..96]), format!("8877665544332211{}", "00".repeat(24)));
        assert_eq!(hex(&got[96..128]), format!("746872656164{}", "00".repeat(26)));
        assert_eq!(hex(&got[128..256]), format!("7468756d62732dc3a9{}", "00".repeat(119)));
    }

    #[test]
    fn shard_offsets_are_those_of_the_picture() {
        assert_eq!(shard_word::BUSY * 8, 128);
        assert_eq!(shard_word::WAIT * 8, 144);
        assert_eq!(shard_word::RUN * 8, 168);
        assert_eq!(shard_word::WAIT_BUCKETS * 8, 256);
        assert_eq!(shard_word::RUN_BUCKETS * 8, 11264);
        assert_eq!((shard_word::RUN_BUCKETS + BUCKETS) * 8, 22272);
        assert_eq!(header_word::GAUGES * 8, 256);
    }

    #[test]
    fn decodes_what_it_encodes() {
        let h = sample();
        assert_eq!(Header::decode(&h.encode(), h.total_len).expect("valid"), h);
    }

    #[test]
    fn refuses_bytes_that_contradict_themselves() {
        let h = sample();
        let good = h.encode();
        // (offset, bytes, kind)
        let cases: &[(usize, &[u8], ErrorKind)] = &[
            (0, b"XXXXXXXX", ErrorKind::Corrupt),
            (0, &[0; 8], ErrorKind::Corrupt),
            (7, b"2", ErrorKind::Version),
            (8, &[2, 0], ErrorKind::Version),
            (12, &[0; 4], ErrorKind::Corrupt),
            (12, &[0xFF; 4], ErrorKind::Corrupt),
            (16, &[0xFF; 8], ErrorKind::Corrupt),
            (24, &[0; 8], ErrorKind::Corrupt),
            (24, &[0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], ErrorKind::Corrupt),
            (32, &[0; 4], ErrorKind::Corrupt),
            (32, &[4, 0, 0, 0], ErrorKind::Corrupt),
            (32, &[0xFF; 4], ErrorKind::Corrupt),
            (36, &[4, 0, 0, 0], ErrorKind::Corrupt),
            (36, &[0; 4], ErrorKind::Corrupt),
            (40, &[17, 0], ErrorKind::Corrupt),
            (42, &[17, 0], ErrorKind::Corrupt),
            (44, &[6, 0], ErrorKind::Corrupt),
            (46, &[64, 0], ErrorKind::Corrupt),
            (96, &[0xFF], ErrorKind::Corrupt),
            (128, &[0xC3, 0x28], ErrorKind::Corrupt),
        ];
        for (at, bytes, kind) in cases {
            let mut bad = good;
            bad[*at..at + bytes.len()].copy_from_slice(bytes);
            let e = Header::decode(&bad, h.total_len).expect_err(&format!("offset {at} {bytes:?}"));
            assert_eq!(e.kind(), *kind, "offset {at}: {e}");
        }
        assert_eq!(Header::decode(&good, h.total_len - 1).expect_err("short").kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let h = Header::new(1, 7, 5, "thread", &"é".repeat(100));
        assert_eq!(h.name, "é".repeat(64));
        let h = Header::new(1, 7, 5, "thread", &format!("x{}", "é".repeat(100)));
        assert_eq!(h.name.len(), 127);
        assert_eq!(Header::decode(&h.encode(), h.total_len).expect("valid").name, h.name);
    }
}
