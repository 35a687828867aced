//! gzip, zlib and raw deflate.
//!
//! A split `gzip` or `deflate` works as pigz does: pieces are compressed apart, each primed with the 32 KiB before it and
//! ended by a sync flush, which leaves it on a byte boundary; laid end to end they are one deflate stream, and the CRCs of
//! the pieces combine. Sizes differ from the serial form by a few bytes per piece.

use super::{INPUT_STEP, Output, corrupt, ends_early, expecting, fit, room, trailing};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::sync::lock;
use crate::value::Value;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::sync::Mutex;

/// Input bytes of one piece of a split stream: some ms of work at level 6.
const PIECE: usize = 256 << 10;

/// Input bytes between two looks at the token: 5 ms at 13 MB/s, below what level 9 reaches on ordinary data.
const STEP: usize = 64 << 10;

/// The deflate window, which primes a piece.
const WINDOW: usize = 32 << 10;

/// `FTEXT` … `FCOMMENT`, RFC 1952 section 2.3.1; bits 5 to 7 are reserved and must be zero.
const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// The level of `zlib-rs` for each level of this op: the same number, unless its output is then more than 3 % larger than
/// zlib 1.2.13's on some of 25 files (CSV, JSON, source text, machine code; 0.2 to 3 MB), each compressed whole by both.
///
/// | Level | Means | Why                                                                                              |
/// |-------|-------|--------------------------------------------------------------------------------------------------|
/// | 1     | 2     | 1 (`deflate_quick`) is 16 to 29 % larger; 2 is smaller than zlib's 1 in about two thirds of its time |
/// | 2     | 3     | 2 is up to 16 % larger on repetitive JSON                                                         |
/// | 3     | 4     | 3 is up to 11 % larger on the same                                                                |
/// | 6     | 7     | 6 (`deflate_medium`) is 4.3 % larger on a table of prices; 7 (`deflate_slow`, as zlib's 6) is 1 % larger to 7 % smaller, in 0.3 to 1.2 of zlib's time |
///
/// 5 stays, although that table is 3.8 % larger with it: the next level that is not takes more time than zlib.
const LEVELS: [u32; 10] = [0, 2, 3, 4, 4, 5, 7, 7, 8, 9];

fn level(ctx: &OpCtx<'_>) -> Compression {
    Compression::new(LEVELS[ctx.params().int("level") as usize])
}

/// Feeds `input` to `c` and appends what comes out.
fn push(ctx: &OpCtx<'_>, c: &mut Compress, input: &[u8], end: FlushCompress, out: &mut Vec<u8>) -> Result<()> {
    let mut done = 0;
    loop {
        ctx.check()?;
        let piece = &input[done..input.len().min(done + STEP)];
        let flush = if done + piece.len() == input.len() { end } else { FlushCompress::None };
        if out.capacity() - out.len() < 64 {
            room(out, (input.len() - done) / 4 + 4096, "deflate")?;
        }
        let before = c.total_in();
        let status =
            c.compress_vec(piece, out, flush).map_err(|e| Error::new(ErrorKind::Panic, "deflate lost its state").with("cause", e))?;
        done += (c.total_in() - before) as usize;
        // A full output buffer may hide more; deflate must be asked again with the same flush.
        let drained = out.capacity() > out.len();
        if done == input.len() && (status == Status::StreamEnd || (!matches!(end, FlushCompress::Finish) && drained)) {
            return Ok(());
        }
    }
}

/// Bytes to reserve for the compressed form: most data halves.
fn guess(input: usize) -> usize {
    input / 2 + 64
}

/// Appends the raw deflate stream of `input` and returns its CRC-32 if `crc` says so.
fn raw(ctx: &OpCtx<'_>, input: &[u8], crc: bool, out: &mut Vec<u8>) -> Result<u32> {
    let level = level(ctx);
    let sum = |part: &[u8]| {
        let mut sum = crc32fast::Hasher::new();
        if crc {
            sum.update(part);
        }
        sum
    };
    if ctx.width() == 1 || input.len() < 2 * PIECE {
        let _ = out.try_reserve(guess(input.len())); // without it `push` makes room as it goes
        let mut whole = crc32fast::Hasher::new();
        if crc {
            for part in input.chunks(INPUT_STEP) {
                ctx.check()?;
                whole.update(part);
            }
        }
        push(ctx, &mut Compress::new(level, false), input, FlushCompress::Finish, out)?;
        return Ok(whole.finalize());
    }
    let pieces = input.len().div_ceil(PIECE);
    let done: Vec<Mutex<(Vec<u8>, crc32fast::Hasher)>> = (0..pieces).map(|_| Mutex::default()).collect();
    ctx.parallel(pieces, &|i| {
        let start = i * PIECE;
        let part = &input[start..input.len().min(start + PIECE)];
        let mut c = Compress::new(level, false);
        if i > 0 {
            c.set_dictionary(&input[start - WINDOW..start])
                .map_err(|e| Error::new(ErrorKind::Panic, "deflate refused its own window").with("cause", e))?;
        }
        let mut bytes = expecting(guess(part.len()));
        let end = if i + 1 == pieces { FlushCompress::Finish } else { FlushCompress::Sync };
        push(ctx, &mut c, part, end, &mut bytes)?;
        *lock(&done[i]) = (bytes, sum(part));
        Ok(())
    })?;
    room(out, done.iter().map(|d| lock(d).0.len()).sum(), "deflate")?;
    let mut whole = crc32fast::Hasher::new();
    for piece in &done {
        let piece = lock(piece);
        out.extend_from_slice(&piece.0);
        whole.combine(&piece.1);
    }
    Ok(whole.finalize())
}

pub(super) fn gzip(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let input = ctx.input();
    // XFL says 2 for the least size and 4 for the least time. No time, and OS 255 (unknown): the output depends on the
    // input alone, not on where and when it was made.
    let xfl = match ctx.params().int("level") {
        9 => 2,
        1 => 4,
        _ => 0,
    };
    let mut out = expecting(guess(input.len()) + 18);
    out.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, xfl, 255]);
    let crc = raw(ctx, input, true, &mut out)?;
    room(&mut out, 8, "deflate")?;
    out.extend_from_slice(&crc.to_le_bytes());
    // ISIZE is the size modulo 2^32.
    out.extend_from_slice(&(input.len() as u32).to_le_bytes());
    Ok(fit(out))
}

pub(super) fn deflate(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let mut out = Vec::new();
    raw(ctx, ctx.input(), false, &mut out)?;
    Ok(fit(out))
}

pub(super) fn zlib(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let input = ctx.input();
    let mut out = expecting(guess(input.len()));
    push(ctx, &mut Compress::new(level(ctx), true), input, FlushCompress::Finish, &mut out)?;
    Ok(fit(out))
}

/// Decompresses one stream that begins at `at` and returns where it ends. `seen` gets the output as it comes.
fn pull(d: &mut Decompress, input: &[u8], at: usize, out: &mut Output<'_, '_>, mut seen: impl FnMut(&[u8])) -> Result<usize> {
    let op = out.op;
    let mut at = at;
    loop {
        let piece = &input[at..input.len().min(at + INPUT_STEP)];
        let (before_in, before_out) = (d.total_in(), d.total_out());
        let status = d.decompress(piece, out.space()?, FlushDecompress::None).map_err(|e| {
            let what = if e.needs_dictionary().is_some() { "stream needs a preset dictionary" } else { "not a valid deflate stream" };
            corrupt(op, what, at + (d.total_in() - before_in) as usize)
        })?;
        let (used, made) = ((d.total_in() - before_in) as usize, (d.total_out() - before_out) as usize);
        at += used;
        seen(out.advance(made)?);
        if status == Status::StreamEnd {
            return Ok(at);
        }
        if used == 0 && made == 0 && at == input.len() {
            return Err(ends_early(op, at));
        }
    }
}

pub(super) fn inflate(ctx: &mut OpCtx<'_>) -> Result<Value> {
    one_stream(ctx, "inflate", false)
}

pub(super) fn unzlib(ctx: &mut OpCtx<'_>) -> Result<Value> {
    one_stream(ctx, "unzlib", true)
}

fn one_stream(ctx: &OpCtx<'_>, op: &'static str, header: bool) -> Result<Value> {
    let input = ctx.input();
    let mut out = Output::new(ctx, op);
    let end = pull(&mut Decompress::new(header), input, 0, &mut out, |_| ())?;
    if end < input.len() { Err(trailing(op, end, input.len())) } else { Ok(out.into_value()) }
}

pub(super) fn gunzip(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "gunzip";
    let input = ctx.input();
    let mut out = Output::new(ctx, OP);
    let mut d = Decompress::new(false);
    let mut at = 0;
    loop {
        at = header(input, at)?;
        let mut crc = crc32fast::Hasher::new();
        let start = out.filled;
        at = pull(&mut d, input, at, &mut out, |bytes| crc.update(bytes))?;
        let Some(([want_crc, want_len], _)) = input[at..].split_first_chunk::<8>().map(|(t, rest)| (words(*t), rest)) else {
            return Err(ends_early(OP, input.len()));
        };
        let (got_crc, got_len) = (crc.finalize(), (out.filled - start) as u32);
        if want_crc != got_crc {
            return Err(corrupt(OP, "CRC-32 differs", at).with("stored", want_crc).with("computed", got_crc));
        }
        if want_len != got_len {
            return Err(corrupt(OP, "length differs", at).with("stored", want_len).with("computed", got_len));
        }
        at += 8;
        if at == input.len() {
            return Ok(out.into_value());
        }
        // Tapes and block devices pad with zeros; GNU gzip and Python accept that too.
        if input[at] == 0 {
            for part in input[at..].chunks(INPUT_STEP) {
                ctx.check()?;
                if let Some(i) = part.iter().position(|b| *b != 0) {
                    return Err(trailing(OP, at + i, input.len()));
                }
                at += part.len();
            }
            return Ok(out.into_value());
        }
        if !input[at..].starts_with(&[0x1f, 0x8b]) {
            return Err(trailing(OP, at, input.len()));
        }
        d.reset(false);
    }
}

fn words(bytes: [u8; 8]) -> [u32; 2] {
    let all = u64::from_le_bytes(bytes);
    [all as u32, (all >> 32) as u32]
}

/// Checks the member header at `at` (RFC 1952 section 2.3) and returns where its deflate stream begins.
fn header(input: &[u8], at: usize) -> Result<usize> {
    const OP: &str = "gunzip";
    let early = || ends_early(OP, input.len());
    let Some(fixed) = input[at..].first_chunk::<10>() else {
        let is_prefix = [0x1f, 0x8b, 8].iter().zip(&input[at..]).all(|(a, b)| a == b);
        return Err(if is_prefix { early() } else { corrupt(OP, "not a gzip header", at) });
    };
    if !fixed.starts_with(&[0x1f, 0x8b]) {
        return Err(corrupt(OP, "not a gzip header", at));
    }
    if fixed[2] != 8 {
        return Err(corrupt(OP, "unknown compression method", at).with("method", fixed[2]));
    }
    let flags = fixed[3];
    if flags & RESERVED != 0 {
        return Err(corrupt(OP, "reserved flag is set", at).with("flags", flags));
    }
    let mut pos = at + 10;
    if flags & FEXTRA != 0 {
        let len = input[pos..].first_chunk::<2>().ok_or_else(early)?;
        pos += 2 + usize::from(u16::from_le_bytes(*len));
    }
    for text in [FNAME, FCOMMENT] {
        if flags & text != 0 {
            pos += 1 + input.get(pos..).and_then(|r| r.iter().position(|b| *b == 0)).ok_or_else(early)?;
        }
    }
    if flags & FHCRC != 0 {
        let stored = input.get(pos..).and_then(|r| r.first_chunk::<2>()).ok_or_else(early)?;
        let computed = crc32fast::hash(&input[at..pos]) as u16;
        if u16::from_le_bytes(*stored) != computed {
            return Err(corrupt(OP, "header checksum differs", pos).with("computed", computed));
        }
        pos += 2;
    }
    if pos > input.len() { Err(early()) } else { Ok(pos) }
}
