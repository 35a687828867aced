//! What processes share by name: counters and rate limiters, each in a sealed memfd of its own. All integers are little-endian.
//!
//! ```text
//!  counter   0 magic u64 │ 64 value i64
//!  limiter   0 magic u64 │ 8 ns per token u64 │ 16 units per token u64 │ 24 burst u32 │ 28 keys u32 │ 32 secret u64 × 2 │ 4096 words, keys × u64
//!  word      42 bits: when the bucket is full again, in units, modulo 2^42 │ 22 bits: tag of a key, never 0;   0: free
//! ```
//!
//! A key has one of 8 neighbouring words, which SipHash-2-4 of the key under the secret chooses, as it does the tag. Words are changed by compare-and-swap,
//! and publish nothing else: whoever dies leaves nothing half done.

/// Of a counter: `OFLCOUN` and the version's digit, as bytes.
pub const COUNTER_MAGIC: u64 = u64::from_le_bytes(*b"OFLCOUN1");
/// Of a limiter.
pub const LIMITER_MAGIC: u64 = u64::from_le_bytes(*b"OFLRATE1");
/// Bytes of a counter, and of a limiter before its words.
pub const HEAD_LEN: usize = 4096;
/// Where a counter counts.
pub const VALUE: usize = 64;
/// Where a limiter has the time that a token takes to come back.
pub const INTERVAL: usize = 8;
/// Units of its words per token.
pub const UNITS: usize = 16;
/// Tokens of a full bucket in the low half, keys in the high one.
pub const BURST_KEYS: usize = 24;
/// The two halves of its secret.
pub const SECRET: usize = 32;
/// Words that a key may have.
pub const WAYS: usize = 8;
/// Bits of a word's time.
pub const TIME_BITS: u32 = 42;
