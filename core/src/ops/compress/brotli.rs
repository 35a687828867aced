//! Brotli.

use super::{Grown, INPUT_STEP, Output, corrupt, ends_early, gave_up, trailing};
use crate::error::Result;
use crate::ops::OpCtx;
use crate::value::Value;
use brotli::enc::StandardAlloc;
use brotli::enc::backward_references::BrotliEncoderMode;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, CompressorWriter};
use std::io::Write;

/// Input bytes between two looks at the token. Qualities 0 and 1 compress what they are given in one call as a unit, so
/// small pieces cost them up to 12 % of size. From 2 on the encoder collects blocks of up to 256 KiB by itself, which at
/// qualities 10 and 11 takes it some 100 ms each: that is how late it sees a token then.
fn step(quality: i32) -> usize {
    if quality < 2 { INPUT_STEP } else { 64 << 10 }
}

/// Bytes of the encoder's output buffer.
const BUFFER: usize = 64 << 10;

pub(super) fn brotli(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let input = ctx.input();
    let params = brotli::enc::BrotliEncoderParams {
        quality: ctx.params().int("quality") as i32,
        lgwin: ctx.params().int("window") as i32,
        mode: match ctx.params().str("mode") {
            "text" => BrotliEncoderMode::BROTLI_MODE_TEXT,
            "font" => BrotliEncoderMode::BROTLI_MODE_FONT,
            _ => BrotliEncoderMode::BROTLI_MODE_GENERIC,
        },
        size_hint: input.len(),
        ..Default::default()
    };
    let mut writer = CompressorWriter::with_params(Grown::expecting(input.len() / 4 + 64), BUFFER, &params);
    for part in input.chunks(step(params.quality)) {
        ctx.check()?;
        writer.write_all(part).map_err(|e| gave_up("brotli", input.len(), &e))?;
    }
    ctx.check()?;
    // Taking the sink out ends the stream, and does not tell whether it took the end.
    writer.into_inner().into_value("brotli")
}

pub(super) fn unbrotli(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "unbrotli";
    let input = ctx.input();
    let mut out = Output::new(ctx, OP);
    let mut state = BrotliState::new(StandardAlloc::default(), StandardAlloc::default(), StandardAlloc::default());
    let mut at = 0;
    let mut total = 0;
    loop {
        let end = input.len().min(at + INPUT_STEP);
        let mut available_in = end - at;
        let start = at;
        let space = out.space()?;
        let (mut available_out, mut made) = (space.len(), 0);
        let result =
            BrotliDecompressStream(&mut available_in, &mut at, &input[..end], &mut available_out, &mut made, space, &mut total, &mut state);
        out.advance(made)?;
        match result {
            BrotliResult::ResultSuccess if at < input.len() => return Err(trailing(OP, at, input.len())),
            BrotliResult::ResultSuccess => return Ok(out.into_value()),
            BrotliResult::ResultFailure => return Err(corrupt(OP, "not a valid brotli stream", at)),
            BrotliResult::NeedsMoreInput if at == input.len() => return Err(ends_early(OP, at)),
            BrotliResult::NeedsMoreInput if at == start && made == 0 => return Err(corrupt(OP, "not a valid brotli stream", at)),
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
    }
}
