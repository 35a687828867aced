//! Zstandard on the reference library.

use super::{INPUT_STEP, Output, corrupt, ends_early, expecting, fit, room};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::value::Value;
use std::cell::RefCell;
use zstd::zstd_safe::zstd_sys::{ZSTD_EndDirective, ZSTD_ErrorCode};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

/// Content up to which a frame is decompressed in one call, straight into the result: some 4 ms of work.
const ONE_CALL: usize = 4 << 20;

/// Window of `long`, as in the `zstd` command.
const LONG_WINDOW_LOG: u32 = 27;

/// A thread keeps its compression context up to this size: enough for levels up to 9 on 1 MiB, where making one anew (clearing
/// and faulting in its tables) takes a fifth of the time. Larger ones are freed after the call.
const KEPT_CONTEXT: usize = 8 << 20;

thread_local! {
    static CONTEXT: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
}

/// An error of the library that no input should cause.
fn failed(op: &'static str, code: usize) -> Error {
    let kind = if is(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) { ErrorKind::TooLarge } else { ErrorKind::Invalid };
    Error::new(kind, "zstd refused").with("op", op).with("cause", zstd_safe::get_error_name(code))
}

/// Whether a result is this error; libzstd returns `-code` as a `size_t`.
fn is(code: usize, error: ZSTD_ErrorCode) -> bool {
    code.wrapping_neg() == error as usize
}

/// Input bytes between two looks at the token. libzstd works in blocks of at most 128 KiB; the higher levels need
/// some 10 ms and more for one, the lower ones less than 1 ms.
fn step(level: i32) -> usize {
    if level > 5 { 128 << 10 } else { INPUT_STEP }
}

pub(super) fn zstd(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let kept = CONTEXT.with_borrow_mut(Option::take);
    let mut c = kept
        .or_else(CCtx::try_create)
        .ok_or_else(|| Error::new(ErrorKind::TooLarge, "zstd context does not fit in memory").with("op", "zstd"))?;
    let out = zstd_with(ctx, &mut c);
    if c.sizeof() <= KEPT_CONTEXT && c.reset(ResetDirective::SessionAndParameters).is_ok() {
        CONTEXT.with_borrow_mut(|kept| *kept = Some(c));
    }
    out
}

fn zstd_with(ctx: &OpCtx<'_>, c: &mut CCtx<'static>) -> Result<Value> {
    const OP: &str = "zstd";
    let params = ctx.params();
    let level = params.int("level") as i32;
    let refused = |code| failed(OP, code);
    c.set_parameter(CParameter::CompressionLevel(level)).map_err(refused)?;
    c.set_parameter(CParameter::ChecksumFlag(params.bool("checksum"))).map_err(refused)?;
    if params.bool("long") {
        c.set_parameter(CParameter::EnableLongDistanceMatching(true)).map_err(refused)?;
        c.set_parameter(CParameter::WindowLog(LONG_WINDOW_LOG)).map_err(refused)?;
    }
    if let Some(log) = params.opt_int("window_log") {
        c.set_parameter(CParameter::WindowLog(log as u32)).map_err(refused)?;
    }
    let dictionary = params.opt_bytes("dictionary");
    if let Some(dictionary) = dictionary {
        c.load_dictionary(dictionary).map_err(refused)?;
    }
    // libzstd digests a dictionary at the first block, and calls one that is damaged a lack of memory.
    let damaged = |code| {
        if dictionary.is_some() && is(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
            Error::invalid("dictionary is damaged or does not fit in memory").with("op", OP).with("option", "dictionary")
        } else {
            failed(OP, code)
        }
    };
    let input = ctx.input();
    let step = step(level);
    if input.len() <= step {
        ctx.check()?;
        let mut out = Vec::new();
        room(&mut out, zstd_safe::compress_bound(input.len()), "zstd")?;
        c.compress2(&mut out, input).map_err(damaged)?;
        return Ok(fit(out));
    }
    c.set_pledged_src_size(Some(input.len() as u64)).map_err(refused)?;
    let mut out = expecting(input.len() / 3 + CCtx::out_size());
    let mut done = 0;
    loop {
        ctx.check()?;
        let part = &input[done..input.len().min(done + step)];
        let last = done + part.len() == input.len();
        let directive = if last { ZSTD_EndDirective::ZSTD_e_end } else { ZSTD_EndDirective::ZSTD_e_continue };
        // One block and its header fit, so a call is not cut into many.
        room(&mut out, CCtx::out_size(), "zstd")?;
        let filled = out.len();
        let mut source = InBuffer::around(part);
        let left = c.compress_stream2(&mut OutBuffer::around_pos(&mut out, filled), &mut source, directive).map_err(damaged)?;
        done += source.pos();
        if last && done == input.len() && left == 0 {
            return Ok(fit(out));
        }
    }
}

pub(super) fn unzstd(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "unzstd";
    let params = ctx.params();
    let max_window_log = params.int("max_window_log") as u32;
    let mut d = DCtx::try_create().ok_or_else(|| Error::new(ErrorKind::TooLarge, "zstd context does not fit in memory").with("op", OP))?;
    d.set_parameter(DParameter::WindowLogMax(max_window_log)).map_err(|code| failed(OP, code))?;
    if let Some(dictionary) = params.opt_bytes("dictionary") {
        d.load_dictionary(dictionary).map_err(|code| failed(OP, code))?;
    }
    let input = ctx.input();
    let mut out = Output::new(ctx, OP);
    let problem = |code: usize, at: usize| {
        if is(code, ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge) {
            Error::new(ErrorKind::TooLarge, "frame asks for a window over the limit").with("op", OP).with("max_window_log", max_window_log)
        } else if is(code, ZSTD_ErrorCode::ZSTD_error_dictionary_wrong) {
            Error::invalid("dictionary is not the one of this frame").with("op", OP).with("option", "dictionary")
        } else if is(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
            failed(OP, code)
        } else if is(code, ZSTD_ErrorCode::ZSTD_error_srcSize_wrong) {
            ends_early(OP, input.len())
        } else {
            corrupt(OP, "not a valid zstd frame", at).with("cause", zstd_safe::get_error_name(code))
        }
    };
    // One frame of modest, stated size needs no window of its own and no copy.
    if let Ok(Some(size)) = zstd_safe::get_frame_content_size(input)
        && size <= (ONE_CALL as u64).min(out.max as u64)
        && zstd_safe::find_frame_compressed_size(input) == Ok(input.len())
    {
        ctx.check()?;
        out.bytes = vec![0; size as usize];
        let n = d.decompress(&mut out.bytes[..], input).map_err(|code| problem(code, 0))?;
        out.advance(n)?;
        return Ok(out.into_value());
    }
    let mut at = 0;
    loop {
        let part = &input[at..input.len().min(at + INPUT_STEP)];
        let mut source = InBuffer::around(part);
        let mut target = OutBuffer::around(out.space()?);
        let left = d.decompress_stream(&mut target, &mut source).map_err(|code| problem(code, at))?;
        let made = target.pos();
        let used = source.pos();
        out.advance(made)?;
        at += used;
        // 0: a frame is complete and flushed. What follows is another frame, or nothing.
        if left == 0 && at == input.len() {
            return Ok(out.into_value());
        }
        if used == 0 && made == 0 && at == input.len() {
            return Err(ends_early(OP, at));
        }
    }
}
