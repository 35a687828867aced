//! Values as bytes, the same in every language: MessagePack with the extension types of [`crate::wire::value`].
//!
//! ```
//! use offloop::{Value, codec};
//! let options = codec::Options::default();
//! let mut message = Vec::new();
//! codec::encode(&Value::map([("answer", 42.into())]), &options, &mut message)?;
//! let value = codec::decode(&message, &mut [], &options)?;
//! assert_eq!(value.get("answer").and_then(Value::as_int), Some(42));
//! # Ok::<(), offloop::Error>(())
//! ```
//!
//! The code is our own, because no crate reads into this tree with limits and with the offset of what is wrong: `rmp` gives
//! markers one by one, `rmpv` and `rmp-serde` their own trees. `make bench BENCH=codec` compares the speed.
//!
//! **A message is hostile until it is read.** A container must have a byte left for each item that it and those around it still
//! claim, so what is reserved never exceeds [`Value`]'s size times the bytes that are there; depth, items and bytes are
//! limited beyond that ([`Options`]). Malformed input is `Corrupt` with its offset, a limit is `TooLarge` with its name.
//!
//! **Buffers.** With [`Options::out_of_band`] unset a message holds everything, buffers as bytes. With it set, buffers and long
//! payloads travel beside the message: `encode` numbers them, [`take_buffers`] takes them out of the tree in that order.

mod read;
mod write;

#[cfg(test)]
mod tests;

pub use read::{decode, decode_owned};
pub(crate) use write::each_buffer;
pub use write::{encode, take_buffers};

use crate::error::{Error, ErrorKind, Result};
#[cfg(doc)]
use crate::value::Value;

/// Nesting beyond this is refused whatever the options say: reading and writing recurse.
pub const MAX_DEPTH: usize = 512;

/// Limits, the same for reading and writing, so that the sender learns first; and what travels beside the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most arrays, maps and errors inside each other: 128. At most [`MAX_DEPTH`].
    pub max_depth: usize,
    /// Most array items, map keys, map values and fields of errors together: 4,194,304. An item is up to 40 bytes of memory.
    pub max_items: usize,
    /// Longest message: 256 MiB.
    pub max_bytes: usize,
    /// Bytes and typed arrays of at least this length travel beside the message, and so does every `TransferBuffer`. `None`
    /// (the default) writes everything into the message.
    pub out_of_band: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { max_depth: 128, max_items: 4 << 20, max_bytes: 256 << 20, out_of_band: None }
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        if self.max_depth > MAX_DEPTH {
            return Err(Error::invalid("option is out of range")
                .with("option", "max_depth")
                .with("value", self.max_depth)
                .with("max", MAX_DEPTH));
        }
        Ok(())
    }

    fn beside(&self, len: usize) -> bool {
        self.out_of_band.is_some_and(|min| len >= min)
    }

    /// The depth inside a container at `depth`.
    fn inside(&self, depth: usize) -> Result<usize> {
        if depth >= self.max_depth {
            return Err(Error::new(ErrorKind::TooLarge, "value is nested too deeply").with("max_depth", self.max_depth));
        }
        Ok(depth + 1)
    }

    fn check_items(&self, left: usize, more: usize) -> Result<usize> {
        left.checked_sub(more).ok_or_else(|| Error::new(ErrorKind::TooLarge, "value has too many items").with("max_items", self.max_items))
    }

    #[inline]
    fn check_bytes(&self, len: usize) -> Result<()> {
        if len > self.max_bytes { Err(self.too_long(len)) } else { Ok(()) }
    }

    #[cold]
    fn too_long(&self, len: usize) -> Error {
        Error::new(ErrorKind::TooLarge, "message is longer than the limit").with("len", len).with("max_bytes", self.max_bytes)
    }
}
