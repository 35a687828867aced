//! The `compress` family: gzip, zlib, raw deflate, zstd, brotli and LZ4 frames, each with its inverse.
//!
//! | Ops | Format | Crate |
//! |---|---|---|
//! | `gzip` `gunzip` | RFC 1952 | `flate2` on `zlib-rs`, `crc32fast` |
//! | `zlib` `unzlib`, `deflate` `inflate` | RFC 1950, RFC 1951 | `flate2` on `zlib-rs` |
//! | `zstd` `unzstd` | RFC 8878 | the reference libzstd |
//! | `brotli` `unbrotli` | RFC 7932 | `brotli` |
//! | `lz4` `unlz4` | LZ4 frame format 1.6 | `lz4_flex` |
//!
//! What all inverses have in common:
//! - Input that ends early, has bytes after its end, or fails a checksum is `Corrupt`; nothing is returned in part.
//! - Output above `max_output` is `TooLarge`. Memory grows with what was really produced, never by what a header claims.
//! - The token is seen every 256 KiB of output ([`Output`]) and every MiB of input.

mod brotli;
mod deflate;
mod lz4;
mod zstd;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Cancellable, Inputs, OpCtx, OpDef, OpRun, ParamDef, ParamDefault, ParamType, Returns};
use crate::value::Value;

/// Default of `max_output`: 1 GiB.
const MAX_OUTPUT: i64 = 1 << 30;

/// Most input bytes that a decoder sees between two looks at the token; bounds streams that produce nothing.
const INPUT_STEP: usize = 1 << 20;

/// Most output bytes that a decoder writes between two looks at the token. Fits the L2 cache, so that clearing the
/// bytes first costs little and checksums read them warm.
const OUTPUT_STEP: usize = 256 << 10;

const MAX_OUTPUT_PARAM: ParamDef = ParamDef {
    name: "max_output",
    ty: ParamType::Int { min: 0, max: 1 << 46 },
    default: ParamDefault::Int(MAX_OUTPUT),
    about: "Most bytes of output; more is `TooLarge`. Default 1 GiB.",
};

const DICTIONARY: ParamDef = ParamDef {
    name: "dictionary",
    ty: ParamType::Bytes,
    default: ParamDefault::Absent,
    about: "Dictionary, trained or raw, that both sides must have.",
};

const DEFLATE_LEVEL: ParamDef = ParamDef {
    name: "level",
    ty: ParamType::Int { min: 0, max: 9 },
    default: ParamDefault::Int(6),
    about: "Effort from 0 (stored) over 1 (least time) to 9 (least size).",
};

/// A row with one input and bytes as result.
const fn op(name: &'static str, about: &'static str, params: &'static [ParamDef], run: OpRun) -> OpDef {
    OpDef { name, about, inputs: Inputs::One, params, returns: Returns::Bytes, cancellable: Cancellable::Always, run }
}

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[
    op(
        "gzip",
        "Compresses to one gzip member (RFC 1952) without name or time; \
         inputs of 512 KiB and more are split over idle workers, which adds some 0.1 % of size.",
        &[DEFLATE_LEVEL],
        deflate::gzip,
    ),
    op(
        "gunzip",
        "Decompresses gzip (RFC 1952): all members, checksums verified; zero bytes after the last member are padding.",
        &[MAX_OUTPUT_PARAM],
        deflate::gunzip,
    ),
    op(
        "deflate",
        "Compresses to raw deflate (RFC 1951), without header or checksum; \
         inputs of 512 KiB and more are split over idle workers, which adds some 0.1 % of size.",
        &[DEFLATE_LEVEL],
        deflate::deflate,
    ),
    op("inflate", "Decompresses raw deflate (RFC 1951).", &[MAX_OUTPUT_PARAM], deflate::inflate),
    op("zlib", "Compresses to the zlib format (RFC 1950): deflate with a checksum.", &[DEFLATE_LEVEL], deflate::zlib),
    op("unzlib", "Decompresses the zlib format (RFC 1950), checksum verified.", &[MAX_OUTPUT_PARAM], deflate::unzlib),
    op(
        "zstd",
        "Compresses to one Zstandard frame (RFC 8878) that states its content size.",
        &[
            ParamDef {
                name: "level",
                ty: ParamType::Int { min: -131_072, max: 22 },
                default: ParamDefault::Int(3),
                about: "Effort from 1 to 19; 20 to 22 use more memory (up to 1 GiB); below 0 trades size for time.",
            },
            ParamDef {
                name: "checksum",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(false),
                about: "Adds a checksum of 4 bytes, which decoders verify.",
            },
            ParamDef {
                name: "long",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(false),
                about: "Also finds matches that lie megabytes apart, in a window of 128 MiB.",
            },
            ParamDef {
                name: "window_log",
                ty: ParamType::Int { min: 10, max: 27 },
                default: ParamDefault::Absent,
                about: "Window as a power of two of bytes; every decoder accepts up to 27. Default by level and input size.",
            },
            DICTIONARY,
        ],
        zstd::zstd,
    ),
    op(
        "unzstd",
        "Decompresses Zstandard (RFC 8878): all frames, checksums verified, skippable frames skipped.",
        &[
            MAX_OUTPUT_PARAM,
            ParamDef {
                name: "max_window_log",
                ty: ParamType::Int { min: 10, max: 31 },
                default: ParamDefault::Int(27),
                about: "Largest window that a frame may ask for, as a power of two of bytes; a larger one is `TooLarge`.",
            },
            DICTIONARY,
        ],
        zstd::unzstd,
    ),
    op(
        "brotli",
        "Compresses to brotli (RFC 7932).",
        &[
            ParamDef {
                name: "quality",
                ty: ParamType::Int { min: 0, max: 11 },
                default: ParamDefault::Int(5),
                about: "Effort; 11, which other libraries take by default, is meant for files that are compressed once.",
            },
            ParamDef {
                name: "window",
                ty: ParamType::Int { min: 10, max: 24 },
                default: ParamDefault::Int(22),
                about: "Window as a power of two of bytes.",
            },
            ParamDef {
                name: "mode",
                ty: ParamType::Enum(&["generic", "text", "font"]),
                default: ParamDefault::Str("generic"),
                about: "What the input is: anything, UTF-8 text, or a WOFF 2 font.",
            },
        ],
        brotli::brotli,
    ),
    op("unbrotli", "Decompresses brotli (RFC 7932).", &[MAX_OUTPUT_PARAM], brotli::unbrotli),
    op(
        "lz4",
        "Compresses to one LZ4 frame that states its content size.",
        &[
            ParamDef {
                name: "block_size",
                ty: ParamType::Enum(&["auto", "64k", "256k", "1m", "4m"]),
                default: ParamDefault::Str("auto"),
                about: "Bytes of a block, the memory that a decoder needs; `auto` is the smallest that holds the input, at most 4m.",
            },
            ParamDef {
                name: "linked",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(false),
                about: "Lets a block refer to the one before it: smaller, but decoders cannot work on blocks apart.",
            },
            ParamDef {
                name: "checksum",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(true),
                about: "Adds a checksum of the content, 4 bytes, which decoders verify.",
            },
            ParamDef {
                name: "block_checksum",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(false),
                about: "Adds a checksum to each block.",
            },
        ],
        lz4::lz4,
    ),
    op("unlz4", "Decompresses LZ4 frames: all of them, checksums verified, skippable frames skipped.", &[MAX_OUTPUT_PARAM], lz4::unlz4),
];

/// Where a decoder writes: grows with the output, refuses what goes beyond `max_output`.
struct Output<'c, 'p> {
    ctx: &'c OpCtx<'p>,
    op: &'static str,
    /// Bytes beyond `filled` are zeros, ready to be written.
    bytes: Vec<u8>,
    filled: usize,
    max: usize,
}

impl<'c, 'p> Output<'c, 'p> {
    fn new(ctx: &'c OpCtx<'p>, op: &'static str) -> Output<'c, 'p> {
        Output { ctx, op, bytes: Vec::new(), filled: 0, max: ctx.params().int("max_output") as usize }
    }

    /// Room for the next bytes, between 1 and [`OUTPUT_STEP`] of them. Looks at the token. One byte beyond `max` is offered,
    /// so that a decoder that needs it shows that the limit is passed.
    fn space(&mut self) -> Result<&mut [u8]> {
        self.ctx.check()?;
        if self.filled == self.bytes.len() {
            // Small outputs take small steps; the vector itself grows by doubling.
            let step = self.filled.clamp(16 << 10, OUTPUT_STEP).min(self.max + 1 - self.filled);
            self.bytes.try_reserve(step).map_err(|_| {
                Error::new(ErrorKind::TooLarge, "output does not fit in memory").with("op", self.op).with("output", self.filled + step)
            })?;
            self.bytes.resize(self.filled + step, 0);
        }
        Ok(&mut self.bytes[self.filled..])
    }

    /// Counts `n` bytes of [`Output::space`] as written and returns them.
    fn advance(&mut self, n: usize) -> Result<&[u8]> {
        let start = self.filled;
        self.filled += n;
        if self.filled > self.max {
            return Err(self.too_large());
        }
        Ok(&self.bytes[start..self.filled])
    }

    fn too_large(&self) -> Error {
        Error::new(ErrorKind::TooLarge, "output is over its limit").with("op", self.op).with("max_output", self.max)
    }

    fn into_value(mut self) -> Value {
        self.bytes.truncate(self.filled);
        fit(self.bytes)
    }
}

/// Room for what is expected to come. Where there is none now, the output grows as it comes.
fn expecting(len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = out.try_reserve_exact(len);
    out
}

fn no_room(op: &str, output: usize) -> Error {
    Error::new(ErrorKind::TooLarge, "output does not fit in memory").with("op", op).with("output", output)
}

/// Makes room for `more` bytes behind `out`.
fn room(out: &mut Vec<u8>, more: usize, op: &str) -> Result<()> {
    out.try_reserve(more).map_err(|_| no_room(op, out.len().saturating_add(more)))
}

/// What an encoder writes to, which grows as long as there is memory.
struct Grown {
    bytes: Vec<u8>,
    /// Something was not taken. Remembered here, because not every encoder tells.
    refused: bool,
}

impl Grown {
    fn expecting(len: usize) -> Grown {
        Grown { bytes: expecting(len), refused: false }
    }

    fn into_value(self, op: &str) -> Result<Value> {
        if self.refused { Err(no_room(op, self.bytes.len())) } else { Ok(fit(self.bytes)) }
    }
}

impl std::io::Write for Grown {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if self.bytes.try_reserve(part.len()).is_err() {
            self.refused = true;
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Why an encoder that writes to [`Grown`] gave up after `input` bytes.
fn gave_up(op: &str, input: usize, e: &std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::OutOfMemory => {
            Error::new(ErrorKind::TooLarge, "output does not fit in memory").with("op", op).with("input", input)
        }
        _ => Error::new(ErrorKind::Panic, "encoder lost its state").with("op", op).with("cause", e),
    }
}

/// A result without the slack of a vector that grew by doubling.
fn fit(mut bytes: Vec<u8>) -> Value {
    if bytes.capacity() - bytes.len() > bytes.len() / 4 + 4096 {
        bytes.shrink_to_fit();
    }
    Value::from(bytes)
}

/// `Corrupt` at a place of the input.
fn corrupt(op: &'static str, what: &'static str, at: usize) -> Error {
    Error::new(ErrorKind::Corrupt, what).with("op", op).with("offset", at)
}

/// `Corrupt` for input that stops before its format says so.
fn ends_early(op: &'static str, len: usize) -> Error {
    corrupt(op, "input ends early", len)
}

/// `Corrupt` for bytes after the end.
fn trailing(op: &'static str, at: usize, len: usize) -> Error {
    corrupt(op, "input goes on after its end", at).with("trailing", len - at)
}
