//! scrypt (RFC 7914), written out so that it can stop.
//!
//! A 64-byte block is kept as the four diagonals of its matrix, so that a quarter round is the same operation on four words
//! at a time and compiles to vector instructions (the layout of djb's `salsa20-merged` and of every SIMD scrypt).

use super::pbkdf2::pbkdf2;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use sha2::Sha256;

/// Four words of a block: one diagonal.
type Row = [u32; 4];
/// 64 bytes as diagonals.
type Block = [Row; 4];

/// Blocks that are mixed between two looks at the token: about 2 ms.
const STEP: usize = 1 << 14;

/// Where word `4 * row + lane` of the diagonal form lies in the plain form.
const DIAGONAL: [usize; 16] = [0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11];

pub(super) fn scrypt(
    op: &'static str,
    ctx: &OpCtx<'_>,
    password: &[u8],
    salt: &[u8],
    (log_n, r, p): (u8, u32, u32),
    out: &mut [u8],
) -> Result<()> {
    let (n, r, p) = (1usize << log_n, r as usize, p as usize);
    let no_memory = |_| Error::new(ErrorKind::TooLarge, "scrypt memory cannot be had").with("op", op).with("memory_kib", (n + p) * r / 8);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(128 * r * p).map_err(no_memory)?;
    bytes.resize(128 * r * p, 0);
    pbkdf2::<Sha256>(ctx, password, salt, 1, &mut bytes)?;
    let mut v: Vec<Block> = Vec::new();
    v.try_reserve_exact(n * 2 * r).map_err(no_memory)?;
    let mut x = vec![Block::default(); 2 * r];
    let mut y = x.clone();
    for lane in bytes.chunks_exact_mut(128 * r) {
        load(lane, &mut x);
        ro_mix(ctx, n, &mut v, &mut x, &mut y)?;
        store(&x, lane);
    }
    pbkdf2::<Sha256>(ctx, password, &bytes, 1, out)
}

fn load(bytes: &[u8], blocks: &mut [Block]) {
    for (bytes, block) in bytes.chunks_exact(64).zip(blocks) {
        for (to, from) in block.as_flattened_mut().iter_mut().zip(DIAGONAL) {
            *to = u32::from_le_bytes(*bytes[4 * from..].first_chunk().expect("a block has 16 words"));
        }
    }
}

fn store(blocks: &[Block], bytes: &mut [u8]) {
    for (bytes, block) in bytes.chunks_exact_mut(64).zip(blocks) {
        for (from, to) in block.as_flattened().iter().zip(DIAGONAL) {
            bytes[4 * to..4 * to + 4].copy_from_slice(&from.to_le_bytes());
        }
    }
}

/// RFC 7914 section 5. `v` is filled anew.
fn ro_mix(ctx: &OpCtx<'_>, n: usize, v: &mut Vec<Block>, x: &mut [Block], y: &mut [Block]) -> Result<()> {
    let blocks = x.len();
    let step = (STEP / blocks).max(1);
    v.clear();
    for i in 0..n {
        if i % step == 0 {
            ctx.check()?;
        }
        v.extend_from_slice(x);
        block_mix(x, None, y);
        x.copy_from_slice(y);
    }
    for i in 0..n {
        if i % step == 0 {
            ctx.check()?;
        }
        // Integerify: the first word of the last block; N is a power of two below 2^32.
        let j = x[blocks - 1][0][0] as usize & (n - 1);
        block_mix(x, Some(&v[j * blocks..(j + 1) * blocks]), y);
        x.copy_from_slice(y);
    }
    Ok(())
}

/// RFC 7914 section 4 on `x`, or on `x` xor `with`.
fn block_mix(x: &[Block], with: Option<&[Block]>, y: &mut [Block]) {
    let input = |i: usize| match with {
        Some(with) => xor(x[i], &with[i]),
        None => x[i],
    };
    let half = x.len() / 2;
    let mut t = input(x.len() - 1);
    for i in 0..x.len() {
        t = salsa20_8(xor(t, &input(i)));
        // Even results come first, odd ones after them.
        y[i / 2 + if i % 2 == 1 { half } else { 0 }] = t;
    }
}

#[inline(always)]
fn xor(mut a: Block, b: &Block) -> Block {
    for (a, b) in a.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
        *a ^= b;
    }
    a
}

/// `to ^= (a + b) <<< n`, lane by lane.
#[inline(always)]
fn quarter(to: &mut Row, a: Row, b: Row, n: u32) {
    for lane in 0..4 {
        to[lane] ^= a[lane].wrapping_add(b[lane]).rotate_left(n);
    }
}

#[inline(always)]
fn turn(row: Row, by: usize) -> Row {
    [row[by % 4], row[(1 + by) % 4], row[(2 + by) % 4], row[(3 + by) % 4]]
}

/// RFC 7914 section 3.
#[inline(always)]
fn salsa20_8(input: Block) -> Block {
    let [mut a, mut b, mut c, mut d] = input;
    for _ in 0..4 {
        // Columns.
        quarter(&mut b, a, d, 7);
        quarter(&mut c, b, a, 9);
        quarter(&mut d, c, b, 13);
        quarter(&mut a, d, c, 18);
        // Rows: the diagonals turn so that lanes meet the words of their row.
        (b, c, d) = (turn(b, 3), turn(c, 2), turn(d, 1));
        quarter(&mut d, a, b, 7);
        quarter(&mut c, d, a, 9);
        quarter(&mut b, c, d, 13);
        quarter(&mut a, b, c, 18);
        (b, c, d) = (turn(b, 1), turn(c, 2), turn(d, 3));
    }
    let mut out = [a, b, c, d];
    for (out, input) in out.as_flattened_mut().iter_mut().zip(input.as_flattened()) {
        *out = out.wrapping_add(*input);
    }
    out
}
