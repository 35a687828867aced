//! Reduced-scale decoding of baseline JPEGs: one, two or four pixels per edge of an 8×8 block.
//!
//! A thumbnail needs a few low frequencies of each block, and the entropy-coded rest only has to be stepped over. libjpeg decodes
//! every symbol of it; here one look-up steps over several symbols at once, with their value bits (`Huffman::many`). That is most of
//! the work of a reduced decode. A component that is subsampled is transformed at a proportionally larger size, so that chroma needs
//! no upsampling (as libjpeg does with `DCT_scaled_size`).
//!
//! Sources: ITU-T T.81 (format, annexes C, F), the N-point inverse DCT of the N lowest frequencies for the scaled transform.
//! What is unusual (progressive, arithmetic, 12 bits, CMYK, several scans, odd sampling) is not decoded here: [`decode`] returns
//! `None` and the general decoder takes over.

use super::bitmap::Bitmap;
use crate::error::{Error, ErrorKind, Result};

/// Position in the 8×8 block of each coefficient in file order (T.81 figure A.6).
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57,
    50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Bits of one look-up. 12 keep both tables of a component in the first-level cache.
const LOOK: u32 = 12;
/// In an entry of `many`: the block ends after these symbols.
const END: u32 = 1 << 15;

fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what).with("format", "jpeg")
}

struct Huffman {
    /// By the next 12 bits: `length << 8 | symbol`; 0 for a longer code.
    one: Vec<u16>,
    /// By the next 12 bits, as AC symbols: bits to step over (0..=7), coefficients to step over (8..=14), [`END`].
    many: Vec<u32>,
    /// Codes of each length: first code, number of codes, position of the first one's symbol.
    lengths: [(u32, u32, u32); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Huffman> {
        let mut one = vec![0u16; 1 << LOOK];
        let mut lengths = [(0u32, 0u32, 0u32); 17];
        let (mut code, mut at) = (0u32, 0u32);
        for len in 1..=16u32 {
            let n = u32::from(counts[len as usize - 1]);
            if code + n > 1 << len {
                return Err(corrupt("huffman table has more codes than fit"));
            }
            lengths[len as usize] = (code, n, at);
            for i in 0..n {
                if len <= LOOK {
                    let entry = (len as u16) << 8 | u16::from(symbols[(at + i) as usize]);
                    let first = ((code + i) << (LOOK - len)) as usize;
                    one[first..first + (1 << (LOOK - len))].fill(entry);
                }
            }
            at += n;
            code = (code + n) << 1;
        }
        let mut many = vec![0u32; 1 << LOOK];
        for (window, entry) in many.iter_mut().enumerate() {
            let (mut bits, mut coefficients, mut end) = (0u32, 0u32, 0u32);
            // A symbol counts when its code lies in the window; its value bits need not.
            while bits < LOOK && end == 0 {
                let e = one[window << bits & ((1 << LOOK) - 1)];
                let (len, run, size) = (u32::from(e >> 8), u32::from(e >> 4 & 15), u32::from(e & 15));
                if e == 0 || bits + len > LOOK {
                    break;
                }
                match (run, size) {
                    (15, 0) => coefficients += 16,
                    (_, 0) => end = END,
                    _ => coefficients += run + 1,
                }
                bits += len + size;
            }
            // More than one block can hold: such a window is stepped over symbol by symbol.
            *entry = if coefficients > 63 { 0 } else { end | coefficients << 8 | bits };
        }
        Ok(Huffman { one, many, lengths, symbols: symbols.to_vec() })
    }
}

/// The entropy-coded bits of a scan: `bits` holds the next ones, highest first, of which `n` are counted as read.
struct BitReader<'a> {
    data: &'a [u8],
    pos: usize,
    bits: u64,
    n: u32,
    /// Zero bits that were added behind the end of the data.
    padding: u64,
}

impl BitReader<'_> {
    /// Makes at least 48 bits ready.
    #[inline(always)]
    fn refill(&mut self) {
        if self.n >= 48 {
            return;
        }
        if let Some(word) = self.data.get(self.pos..).and_then(<[u8]>::first_chunk::<8>) {
            let word = u64::from_be_bytes(*word);
            // No byte of it is 0xFF, hence neither a marker nor a stuffed byte: "has a zero byte" of the complement.
            if word & 0x8080_8080_8080_8080 & (!word).wrapping_sub(0x0101_0101_0101_0101) == 0 {
                // Bits beyond `n` are those of the same bytes, so that or-ing them again changes nothing.
                self.bits |= word >> self.n;
                let bytes = (63 - self.n) >> 3;
                self.pos += bytes as usize;
                self.n += bytes << 3;
                return;
            }
        }
        self.refill_slow();
    }

    #[cold]
    #[inline(never)]
    fn refill_slow(&mut self) {
        // What the quick path looked ahead is dropped: behind a 0xFF it would be wrong.
        self.bits &= (!0u64).checked_shl(64 - self.n).unwrap_or(0);
        while self.n <= 56 {
            let byte = match self.data[self.pos.min(self.data.len())..] {
                [0xff, 0, ..] => {
                    self.pos += 2;
                    0xff
                }
                [0xff, 0xff, ..] => {
                    self.pos += 1;
                    continue;
                }
                [0xff, ..] | [] => {
                    self.padding += 8;
                    0
                }
                [b, ..] => {
                    self.pos += 1;
                    b
                }
            };
            self.bits |= u64::from(byte) << (56 - self.n);
            self.n += 8;
        }
    }

    #[inline(always)]
    fn consume(&mut self, bits: u32) {
        self.bits <<= bits;
        self.n -= bits;
    }

    /// Whether bits were used that the data does not have.
    fn overran(&self) -> bool {
        self.padding > u64::from(self.n)
    }

    #[inline(always)]
    fn symbol(&mut self, table: &Huffman) -> Result<u32> {
        let e = table.one[(self.bits >> (64 - LOOK)) as usize];
        if e != 0 {
            self.consume(u32::from(e >> 8));
            return Ok(u32::from(e & 0xff));
        }
        self.long_symbol(table)
    }

    #[cold]
    #[inline(never)]
    fn long_symbol(&mut self, table: &Huffman) -> Result<u32> {
        for len in LOOK + 1..=16 {
            let (first, n, at) = table.lengths[len as usize];
            let code = (self.bits >> (64 - len)) as u32;
            if code.wrapping_sub(first) < n {
                self.consume(len);
                return Ok(u32::from(table.symbols[(at + code - first) as usize]));
            }
        }
        Err(corrupt("no such huffman code"))
    }

    /// The next `size` bits as T.81 F.2.2.1 "EXTEND" reads them.
    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let v = (self.bits >> (64 - size)) as i32;
        self.consume(size);
        if v < 1 << (size - 1) { v - (1 << size) + 1 } else { v }
    }

    /// Steps over the coefficients `from..64` of a block.
    #[inline(always)]
    fn skip_ac(&mut self, table: &Huffman, from: usize) -> Result<()> {
        let mut k = from as u32;
        while k < 64 {
            self.refill();
            let e = table.many[(self.bits >> (64 - LOOK)) as usize];
            let after = k + (e >> 8 & 0x7f);
            // At 64 a block ends without a symbol that says so: the symbols behind are the next block's.
            if e != 0 && after < 64 {
                self.consume(e & 0xff);
                if e & END != 0 {
                    return Ok(());
                }
                k = after;
                continue;
            }
            let symbol = self.symbol(table)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => k += 16,
                (_, 0) => return Ok(()),
                (run, size) => {
                    k += run + 1;
                    self.consume(size);
                }
            }
        }
        Ok(())
    }

    /// Starts again behind the restart marker that must come now.
    fn restart(&mut self) -> Result<()> {
        if self.overran() {
            return Err(corrupt("data ends before the image"));
        }
        let rest = &self.data[self.pos.min(self.data.len())..];
        // Bytes between the last used one and the marker are padding.
        let Some(at) = rest.windows(2).position(|w| w[0] == 0xff && w[1] != 0 && w[1] != 0xff) else {
            return Err(corrupt("data ends before the image"));
        };
        if !(0xd0..=0xd7).contains(&rest[at + 1]) {
            return Err(corrupt("restart marker is missing"));
        }
        self.pos += at + 2;
        (self.bits, self.n, self.padding) = (0, 0, 0);
        Ok(())
    }
}

struct Component {
    id: u8,
    h: usize,
    v: usize,
    quant_id: usize,
    dc_id: usize,
    ac_id: usize,
    /// Size of a transformed block in pixels of the output.
    width: usize,
    height: usize,
    /// The last coefficient in file order that the transform reads.
    last: usize,
    quant: [f32; 64],
    pred: i32,
    /// One row of MCUs, at the resolution of the output.
    rows: Vec<u8>,
}

struct Frame {
    width: usize,
    height: usize,
    components: Vec<Component>,
    restart: usize,
    is_rgb: bool,
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    /// Where the entropy-coded data begins.
    data_at: usize,
}

fn be16(b: &[u8], at: usize) -> Result<usize> {
    match b.get(at..at + 2) {
        Some(s) => Ok(usize::from(s[0]) << 8 | usize::from(s[1])),
        None => Err(corrupt("header is truncated")),
    }
}

fn byte(b: &[u8], at: usize) -> Result<u8> {
    b.get(at).copied().ok_or_else(|| corrupt("header is truncated"))
}

/// Reads up to the first scan. `None`: not of the kind that is decoded here.
fn parse(data: &[u8]) -> Result<Option<Frame>> {
    let mut quants: [Option<[u16; 64]>; 4] = [None; 4];
    let mut dc: [Option<Huffman>; 4] = [const { None }; 4];
    let mut ac: [Option<Huffman>; 4] = [const { None }; 4];
    let (mut restart, mut jfif, mut adobe) = (0, false, None);
    let mut frame: Option<(usize, usize, Vec<Component>)> = None;
    let mut pos = 2;
    loop {
        if byte(data, pos)? != 0xff {
            return Err(corrupt("marker is missing"));
        }
        let marker = byte(data, pos + 1)?;
        if marker == 0xff {
            pos += 1;
            continue;
        }
        if marker == 0x01 || (0xd0..=0xd8).contains(&marker) {
            pos += 2;
            continue;
        }
        let len = be16(data, pos + 2)?;
        let seg = match data.get(pos + 4..pos + 2 + len) {
            Some(s) if len >= 2 => s,
            _ => return Err(corrupt("header is truncated")),
        };
        pos += 2 + len;
        match marker {
            0xdb => {
                let mut at = 0;
                while at < seg.len() {
                    let (wide, id) = (seg[at] >> 4, usize::from(seg[at] & 15));
                    if wide > 1 || id > 3 {
                        return Err(corrupt("quantisation table is out of range"));
                    }
                    at += 1;
                    let mut table = [0u16; 64];
                    for q in &mut table {
                        *q = if wide == 1 { be16(seg, at)? as u16 } else { u16::from(byte(seg, at)?) };
                        at += 1 + usize::from(wide);
                    }
                    quants[id] = Some(table);
                }
            }
            0xc4 => {
                let mut at = 0;
                while at < seg.len() {
                    let (class, id) = (seg[at] >> 4, usize::from(seg[at] & 15));
                    let counts: &[u8; 16] = seg.get(at + 1..at + 17).and_then(|s| s.first_chunk()).ok_or_else(|| corrupt("header is truncated"))?;
                    let n = counts.iter().map(|c| usize::from(*c)).sum::<usize>();
                    let symbols = seg.get(at + 17..at + 17 + n).ok_or_else(|| corrupt("header is truncated"))?;
                    if class > 1 || id > 3 || n > 256 {
                        return Err(corrupt("huffman table is out of range"));
                    }
                    let table = Some(Huffman::new(counts, symbols)?);
                    if class == 0 { dc[id] = table } else { ac[id] = table }
                    at += 17 + n;
                }
            }
            0xc0 | 0xc1 => {
                let n = usize::from(byte(seg, 5)?);
                let (height, width) = (be16(seg, 1)?, be16(seg, 3)?);
                if seg[0] != 8 || !(n == 1 || n == 3) || width == 0 || height == 0 || frame.is_some() {
                    return Ok(None);
                }
                let mut components = Vec::with_capacity(n);
                for i in 0..n {
                    let (id, hv, tq) = (byte(seg, 6 + 3 * i)?, byte(seg, 7 + 3 * i)?, byte(seg, 8 + 3 * i)?);
                    let (mut h, mut v) = (usize::from(hv >> 4), usize::from(hv & 15));
                    if !(1..=4).contains(&h) || !(1..=4).contains(&v) || tq > 3 {
                        return Err(corrupt("component is out of range"));
                    }
                    if n == 1 {
                        // A scan of one component has one block per MCU, whatever its sampling says (T.81 A.2.2).
                        (h, v) = (1, 1);
                    }
                    components.push(Component {
                        id,
                        h,
                        v,
                        quant_id: usize::from(tq),
                        dc_id: 0,
                        ac_id: 0,
                        width: 0,
                        height: 0,
                        last: 0,
                        quant: [0.0; 64],
                        pred: 0,
                        rows: Vec::new(),
                    });
                }
                frame = Some((width, height, components));
            }
            // Other frames: progressive, lossless, hierarchical, arithmetic.
            0xc2 | 0xc3 | 0xc5..=0xcf => return Ok(None),
            0xdd => restart = be16(seg, 0)?,
            0xe0 if seg.starts_with(b"JFIF\0") => jfif = true,
            0xee if seg.starts_with(b"Adobe") && seg.len() >= 12 => adobe = Some(seg[11]),
            0xd9 => return Err(corrupt("image ends before its data")),
            0xda => {
                let Some((width, height, mut components)) = frame else { return Err(corrupt("scan comes before the frame")) };
                if usize::from(byte(seg, 0)?) != components.len() {
                    return Ok(None);
                }
                for (i, c) in components.iter_mut().enumerate() {
                    let tables = byte(seg, 2 + 2 * i)?;
                    if byte(seg, 1 + 2 * i)? != c.id {
                        return Ok(None);
                    }
                    (c.dc_id, c.ac_id) = (usize::from(tables >> 4), usize::from(tables & 15));
                    if c.dc_id > 3 || c.ac_id > 3 || dc[c.dc_id].is_none() || ac[c.ac_id].is_none() {
                        return Err(corrupt("huffman table is missing"));
                    }
                    let quant = quants[c.quant_id].ok_or_else(|| corrupt("quantisation table is missing"))?;
                    c.quant = quant.map(f32::from);
                }
                // The rule of libjpeg's `default_decompress_parms`.
                let ids: Vec<u8> = components.iter().map(|c| c.id).collect();
                let is_rgb = components.len() == 3 && !jfif && adobe.map_or(ids == b"RGB", |t| t == 0);
                return Ok(Some(Frame { width, height, components, restart, is_rgb, dc, ac, data_at: pos }));
            }
            _ => {}
        }
    }
}

/// `BASES[log2 n][x][u]`: weight of frequency `u` in sample `x` of the n-point transform of an 8-point spectrum:
/// c(u)/2 · cos((2x+1)uπ/2n), c(0) = 1/√2.
type Bases = [[[f32; 8]; 8]; 4];

fn bases() -> Bases {
    let mut out = [[[0f32; 8]; 8]; 4];
    for (log, base) in out.iter_mut().enumerate() {
        let n = 1 << log;
        for (x, row) in base.iter_mut().enumerate().take(n) {
            for (u, w) in row.iter_mut().enumerate().take(n) {
                let c = if u == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
                *w = (c / 2.0 * ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / (2 * n) as f64).cos()) as f32;
            }
        }
    }
    out
}

/// The separable inverse transform of the `W`×`H` lowest frequencies.
fn transform<const W: usize, const H: usize>(bases: &Bases, block: &[f32; 64], out: &mut [u8], stride: usize) {
    let (bx, by) = (&bases[W.trailing_zeros() as usize], &bases[H.trailing_zeros() as usize]);
    let mut rows = [[0f32; W]; H];
    for v in 0..H {
        for u in 0..W {
            let f = block[v * 8 + u];
            for x in 0..W {
                rows[v][x] += f * bx[x][u];
            }
        }
    }
    for y in 0..H {
        let mut line = [128.5f32; W];
        for v in 0..H {
            for x in 0..W {
                line[x] += rows[v][x] * by[y][v];
            }
        }
        for (o, s) in out[y * stride..y * stride + W].iter_mut().zip(line) {
            *o = s as u8;
        }
    }
}

type Transform = fn(&Bases, &[f32; 64], &mut [u8], usize);

fn transform_of(width: usize, height: usize) -> Option<Transform> {
    macro_rules! table {
        ($($w:literal $h:literal),*) => { match (width, height) { $(($w, $h) => Some(transform::<$w, $h>),)* _ => None } };
    }
    table!(1 1, 1 2, 1 4, 2 1, 2 2, 2 4, 2 8, 4 1, 4 2, 4 4, 4 8, 8 2, 8 4, 8 8)
}

fn decode_block(
    bits: &mut BitReader<'_>,
    c: &mut Component,
    dc: &Huffman,
    ac: &Huffman,
    block: &mut [f32; 64],
) -> Result<bool> {
    bits.refill();
    let size = bits.symbol(dc)?;
    if size > 15 {
        return Err(corrupt("dc coefficient is out of range"));
    }
    c.pred = c.pred.wrapping_add(bits.value(size));
    block[0] = c.pred as f32 * c.quant[0];
    let mut k = 1;
    let mut flat = true;
    while k <= c.last {
        bits.refill();
        let symbol = bits.symbol(ac)?;
        let (run, size) = ((symbol >> 4) as usize, symbol & 15);
        if size == 0 {
            if run != 15 {
                return Ok(flat);
            }
            k += 16;
            continue;
        }
        k += run;
        let v = bits.value(size);
        if k <= c.last {
            block[usize::from(ZIGZAG[k])] = v as f32 * c.quant[k];
            flat = false;
        }
        k += 1;
    }
    bits.skip_ac(ac, k)?;
    Ok(flat)
}

/// Decodes with `scale` (1, 2 or 4) pixels per block edge: ⌈width·scale/8⌉ × ⌈height·scale/8⌉ pixels, gray or RGB.
///
/// `check` runs once per row of MCUs. `None`: the file is of a kind that the general decoder must take.
///
/// # Errors
/// `Corrupt`; whatever `check` returns.
pub(super) fn decode(data: &[u8], scale: usize, check: &dyn Fn() -> Result<()>) -> Result<Option<Bitmap>> {
    let Some(mut frame) = parse(data)? else { return Ok(None) };
    let h_max = frame.components.iter().map(|c| c.h).max().unwrap_or(1);
    let v_max = frame.components.iter().map(|c| c.v).max().unwrap_or(1);
    let mut transforms: Vec<Transform> = Vec::new();
    let (mcu_w, mcu_h) = (h_max * scale, v_max * scale);
    let (mcus_x, mcus_y) = (frame.width.div_ceil(h_max * 8), frame.height.div_ceil(v_max * 8));
    let stride = mcus_x * mcu_w;
    for c in &mut frame.components {
        if h_max % c.h != 0 || v_max % c.v != 0 {
            return Ok(None);
        }
        (c.width, c.height) = (scale * h_max / c.h, scale * v_max / c.v);
        let Some(t) = transform_of(c.width, c.height) else { return Ok(None) };
        transforms.push(t);
        c.last = (0..64).rev().find(|k| usize::from(ZIGZAG[*k]) % 8 < c.width && usize::from(ZIGZAG[*k]) / 8 < c.height).unwrap_or(0);
        c.rows = vec![0; stride * mcu_h];
    }
    let bases = bases();
    let (width, height) = ((frame.width * scale).div_ceil(8), (frame.height * scale).div_ceil(8));
    let channels = frame.components.len();
    let mut out = Bitmap::new(width, height, channels)?;
    let mut bits = BitReader { data, pos: frame.data_at, bits: 0, n: 0, padding: 0 };
    let mut block = [0f32; 64];
    let mut until_restart = frame.restart;
    for my in 0..mcus_y {
        check()?;
        for mx in 0..mcus_x {
            if frame.restart != 0 {
                if until_restart == 0 {
                    bits.restart()?;
                    frame.components.iter_mut().for_each(|c| c.pred = 0);
                    until_restart = frame.restart;
                }
                until_restart -= 1;
            }
            for (c, transform) in frame.components.iter_mut().zip(&transforms) {
                let (Some(dc), Some(ac)) = (&frame.dc[c.dc_id], &frame.ac[c.ac_id]) else {
                    return Err(corrupt("huffman table is missing"));
                };
                for by in 0..c.v {
                    for bx in 0..c.h {
                        let flat = decode_block(&mut bits, c, dc, ac, &mut block)?;
                        let at = by * c.height * stride + mx * mcu_w + bx * c.width;
                        if flat {
                            let level = (block[0] * 0.125 + 128.5) as u8;
                            for row in c.rows[at..].chunks_mut(stride).take(c.height) {
                                row[..c.width].fill(level);
                            }
                        } else {
                            transform(&bases, &block, &mut c.rows[at..], stride);
                            block = [0.0; 64];
                        }
                    }
                }
            }
        }
        if bits.overran() {
            return Err(corrupt("data ends before the image"));
        }
        for y in 0..mcu_h.min(height - my * mcu_h) {
            let line = out.row_mut(my * mcu_h + y);
            let at = y * stride;
            match &frame.components[..] {
                [gray] => line.copy_from_slice(&gray.rows[at..at + width]),
                [a, b, c] => {
                    let (a, b, c) = (&a.rows[at..at + width], &b.rows[at..at + width], &c.rows[at..at + width]);
                    if frame.is_rgb {
                        for (o, ((a, b), c)) in line.chunks_exact_mut(3).zip(a.iter().zip(b).zip(c)) {
                            o.copy_from_slice(&[*a, *b, *c]);
                        }
                    } else {
                        for (o, ((y, cb), cr)) in line.chunks_exact_mut(3).zip(a.iter().zip(b).zip(c)) {
                            o.copy_from_slice(&ycc_to_rgb(*y, *cb, *cr));
                        }
                    }
                }
                _ => return Err(corrupt("component is out of range")),
            }
        }
    }
    Ok(Some(out))
}

/// JFIF 1.02, in 16 fractional bits with rounding.
#[inline(always)]
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = ((i32::from(y) << 16) + 32768, i32::from(cb) - 128, i32::from(cr) - 128);
    [(y + 91881 * cr) >> 16, (y - 22554 * cb - 46802 * cr) >> 16, (y + 116_130 * cb) >> 16].map(|v| v.clamp(0, 255) as u8)
}
