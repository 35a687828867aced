//! Wire form of [`Value`](crate::value::Value): MessagePack, and the extension types below.
//!
//! Everything that MessagePack has a form for is written in that form, the smallest one; a reader takes every form that its
//! specification allows. Integers inside payloads marked *uint* are MessagePack unsigned integers.
//!
//! ```text
//!  ext −1  date     MessagePack's own timestamp, in 4, 8 or 12 bytes
//!
//!  ext 1   big      sign │ magnitude …            integers beyond 64 bits
//!                    u8    least significant byte first
//!
//!  ext 2   typed    dtype │ flags │ dims │ shape       │ 0 … 0 │ elements …
//!                    u8      u8     u8     dims × uint   pad     little-endian, C order
//!                                                      │ index        when flags has OUT_OF_BAND: the elements are a buffer
//!                                                        uint
//!                   flags = pad │ OUT_OF_BAND; pad is 0–7, so that the elements lie at a multiple of 8 from the message's first
//!                   byte: whoever has the message in aligned memory reads them in place
//!
//!  ext 3   buffer   what │ index                  a place in the list of buffers that travel beside the message
//!                    u8    uint                   what: 0 a TransferBuffer, 1 bytes
//!
//!  ext 4   error    array of 2 to 5: name, message, stack, cause, properties
//!                   texts, any value or nil, a map with text keys; empty fields at the end are left out.
//!                   Always written with a 32-bit length: its end is known only when its causes are written
//! ```
//!
//! Each buffer of the list is named at most once. A type that is not here, or a flag, is `Corrupt`: peers agree on a wire version first.

/// MessagePack's timestamp.
pub const DATE: i8 = -1;
/// An integer beyond 64 bits.
pub const BIG: i8 = 1;
/// A typed array.
pub const TYPED: i8 = 2;
/// A buffer beside the message.
pub const BUFFER: i8 = 3;
/// Bytes of the shortest name that a message has for a buffer beside it.
pub const REFERENCE_MIN: usize = 4;
/// An error.
pub const ERROR: i8 = 4;

/// In `flags` of a typed array: bytes of zero before the elements.
pub const PAD: u8 = 0b111;
/// In `flags` of a typed array: the elements are a buffer beside the message.
pub const OUT_OF_BAND: u8 = 1 << 7;
/// Elements lie at a multiple of this from the message's first byte.
pub const ALIGN: usize = 8;
/// Most dimensions of a typed array; numpy has the same limit.
pub const MAX_DIMENSIONS: usize = 64;

/// `what` of a buffer: a `TransferBuffer`.
pub const IS_BUFFER: u8 = 0;
/// `what` of a buffer: bytes.
pub const IS_BYTES: u8 = 1;
