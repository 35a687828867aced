//! LZ4 frames.

use super::{Grown, Output, corrupt, ends_early, gave_up, trailing};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::value::Value;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use std::io::{Read, Write};

/// Input bytes between two looks at the token.
const STEP: usize = 1 << 20;

const MAGIC: u32 = 0x184d_2204;
/// `0x184d2a50` to `0x184d2a5f` begin frames of user data, which a decoder skips.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Bits of the FLG byte, LZ4 frame format 1.6.
const BLOCK_CHECKSUM: u8 = 0x10;
const CONTENT_SIZE: u8 = 0x08;
const CONTENT_CHECKSUM: u8 = 0x04;
const DICTIONARY_ID: u8 = 0x01;

pub(super) fn lz4(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let (input, params) = (ctx.input(), ctx.params());
    let block_size = match (params.str("block_size"), input.len()) {
        ("64k", _) | ("auto", ..=0x1_0000) => BlockSize::Max64KB,
        ("256k", _) | ("auto", ..=0x4_0000) => BlockSize::Max256KB,
        ("1m", _) | ("auto", ..=0x10_0000) => BlockSize::Max1MB,
        _ => BlockSize::Max4MB,
    };
    let info = FrameInfo::new()
        .block_size(block_size)
        .block_mode(if params.bool("linked") { BlockMode::Linked } else { BlockMode::Independent })
        .content_checksum(params.bool("checksum"))
        .block_checksums(params.bool("block_checksum"))
        .content_size(Some(input.len() as u64));
    let failed = |e: std::io::Error| gave_up("lz4", input.len(), &e);
    let mut encoder = FrameEncoder::with_frame_info(info, Grown::expecting(input.len() / 2 + 64));
    for part in input.chunks(STEP) {
        ctx.check()?;
        encoder.write_all(part).map_err(failed)?;
    }
    ctx.check()?;
    encoder.finish().map_err(|e| failed(e.into()))?.into_value("lz4")
}

pub(super) fn unlz4(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "unlz4";
    let input = ctx.input();
    let mut out = Output::new(ctx, OP);
    let mut at = 0;
    if input.is_empty() {
        return Err(ends_early(OP, 0));
    }
    while at < input.len() {
        let end = frame_end(input, at)?;
        if word(input, at)? == MAGIC {
            let mut decoder = FrameDecoder::new(&input[at..end]);
            loop {
                let n = decoder.read(out.space()?).map_err(|e| corrupt(OP, "not a valid lz4 frame", at).with("cause", e))?;
                if n == 0 {
                    break;
                }
                out.advance(n)?;
            }
        } else {
            ctx.check()?;
        }
        at = end;
    }
    Ok(out.into_value())
}

/// The little-endian word at `at`.
fn word(input: &[u8], at: usize) -> Result<u32> {
    let bytes = input.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(|| ends_early("unlz4", input.len()))?;
    Ok(u32::from_le_bytes(*bytes))
}

/// Where the frame at `at` ends. The decoder takes a stream that stops between two blocks for a whole one, so the
/// block headers are walked first; that reads 4 bytes per block.
fn frame_end(input: &[u8], at: usize) -> Result<usize> {
    const OP: &str = "unlz4";
    if input.len() - at < 4 {
        return Err(if at == 0 { ends_early(OP, input.len()) } else { trailing(OP, at, input.len()) });
    }
    let magic = word(input, at)?;
    let within = |end: usize| if end <= input.len() { Ok(end) } else { Err(ends_early(OP, input.len())) };
    if magic & !0xf == SKIPPABLE {
        return within(at + 8 + word(input, at + 4)? as usize);
    }
    if magic != MAGIC {
        return Err(if at == 0 { corrupt(OP, "not an lz4 frame", 0) } else { trailing(OP, at, input.len()) });
    }
    let flags = *input.get(at + 4).ok_or_else(|| ends_early(OP, input.len()))?;
    if flags & DICTIONARY_ID != 0 {
        return Err(Error::new(ErrorKind::Unsupported, "lz4 frame needs a dictionary").with("op", OP));
    }
    let mut pos = at + 7 + if flags & CONTENT_SIZE != 0 { 8 } else { 0 };
    loop {
        // The highest bit says that the block is stored as it is.
        let size = (word(input, pos)? & 0x7fff_ffff) as usize;
        pos += 4;
        if size == 0 {
            return within(pos + if flags & CONTENT_CHECKSUM != 0 { 4 } else { 0 });
        }
        pos = within(pos + size + if flags & BLOCK_CHECKSUM != 0 { 4 } else { 0 })?;
    }
}
