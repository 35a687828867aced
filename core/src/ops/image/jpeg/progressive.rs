//! Progressive files (T.81 annex G): coefficients are gathered over the scans, then transformed.

use super::bits::{BitReader, Huffman};
use super::header::{Next, Scan, Segments};
use super::{Grid, Plane, ZIGZAG, corrupt, emit};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::image::bitmap::Bitmap;

/// More scans are not made by any encoder; each costs a pass over all blocks.
const MAX_SCANS: usize = 100;

/// What is kept of a component's blocks: the coefficients that the transform reads, and which of all are not zero, because refining
/// scans depend on that.
struct Coefficients {
    /// Blocks per row, whole MCUs.
    across: usize,
    /// Blocks that a scan of this component alone has.
    alone: (usize, usize),
    kept: usize,
    values: Vec<i16>,
    nonzero: Vec<u64>,
}

impl Coefficients {
    fn block(&mut self, x: usize, y: usize) -> (&mut [i16], &mut u64) {
        let at = y * self.across + x;
        let nonzero = self.nonzero.get_mut(at);
        match nonzero {
            Some(nonzero) => (&mut self.values[at * self.kept..(at + 1) * self.kept], nonzero),
            None => unreachable!("scans stay inside the grid of blocks"),
        }
    }
}

fn missing() -> Error {
    corrupt("huffman table is missing")
}

/// Decodes from the first scan on.
pub(super) fn decode(
    mut segments: Segments<'_>,
    first: Scan,
    planes: &mut [Plane],
    grid: &Grid,
    (width, height): (usize, usize),
    check: &dyn Fn() -> Result<()>,
) -> Result<Bitmap> {
    let Some(frame) = &segments.frame else { return Err(corrupt("scan comes before the frame")) };
    let (full_width, full_height) = (frame.width, frame.height);
    let h_max = planes.iter().map(|p| p.h).max().unwrap_or(1);
    let v_max = planes.iter().map(|p| p.v).max().unwrap_or(1);
    let mut all = Vec::new();
    for p in planes.iter() {
        let (across, down) = (grid.mcus_x * p.h, grid.mcus_y * p.v);
        let alone = ((full_width * p.h).div_ceil(h_max * 8), (full_height * p.v).div_ceil(v_max * 8));
        let kept = p.last + 1;
        let blocks = across * down;
        let reserved = Vec::<u8>::new().try_reserve_exact(blocks * (kept * 2 + 8));
        reserved.map_err(|_| Error::new(ErrorKind::TooLarge, "no memory for the image").with("blocks", blocks))?;
        all.push(Coefficients { across, alone, kept, values: vec![0; blocks * kept], nonzero: vec![0; blocks] });
    }
    let mut scan = first;
    for n in 0.. {
        if n == MAX_SCANS {
            return Err(corrupt("image has too many scans").with("max_scans", MAX_SCANS));
        }
        let needed = scan.first == 0 || scan.components.iter().any(|c| planes[c.at].last > 0);
        if needed {
            segments.pos = decode_scan(&segments, &scan, planes, &mut all, grid, check)?;
        }
        check()?;
        match segments.next()? {
            Next::Scan(next) => scan = next,
            Next::End => break,
            Next::Unusual => return Err(corrupt("image has a second frame")),
        }
    }

    if let Some(frame) = &segments.frame {
        for (p, c) in planes.iter_mut().zip(&frame.components) {
            p.quant = c.quant.ok_or_else(|| corrupt("component has no scan"))?;
        }
    }
    let mut out = Bitmap::new(width, height, planes.len())?;
    for my in 0..grid.mcus_y {
        check()?;
        for (p, c) in planes.iter_mut().zip(&mut all) {
            for by in 0..p.v {
                for x in 0..grid.mcus_x * p.h {
                    let (values, _) = c.block(x, my * p.v + by);
                    let mut block = [0f32; 64];
                    let mut flat = true;
                    for (k, v) in values.iter().enumerate() {
                        block[usize::from(ZIGZAG[k])] = f32::from(*v) * p.quant[k];
                        flat &= k == 0 || *v == 0;
                    }
                    p.put(grid, (x / p.h, x % p.h, by), &block, flat);
                }
            }
        }
        emit(&mut out, planes, grid, my, segments.is_rgb());
    }
    Ok(out)
}

/// Decodes one scan; returns where to look for the next marker.
fn decode_scan(
    segments: &Segments<'_>,
    scan: &Scan,
    planes: &mut [Plane],
    all: &mut [Coefficients],
    grid: &Grid,
    check: &dyn Fn() -> Result<()>,
) -> Result<usize> {
    let in_range = scan.first <= scan.last && scan.last < 64 && scan.low <= 13 && (scan.high == 0 || scan.high == scan.low + 1);
    if !in_range || (scan.first == 0 && scan.last != 0) || (scan.first > 0 && scan.components.len() != 1) {
        return Err(corrupt("scan is out of range"));
    }
    let mut bits = BitReader::new(segments.data(), segments.pos);
    let mut until_restart = segments.restart;
    let mut end_of_band = 0u32;
    planes.iter_mut().for_each(|p| p.pred = 0);
    // A scan of one component has its blocks row by row, without the padding to whole MCUs.
    let alone = scan.components.len() == 1;
    let (across, down) = match scan.components[..] {
        [c] => all[c.at].alone,
        _ => (grid.mcus_x, grid.mcus_y),
    };
    for y in 0..down {
        check()?;
        for x in 0..across {
            if segments.restart != 0 {
                if until_restart == 0 {
                    bits.restart()?;
                    planes.iter_mut().for_each(|p| p.pred = 0);
                    end_of_band = 0;
                    until_restart = segments.restart;
                }
                until_restart -= 1;
            }
            for c in &scan.components {
                let (h, v) = if alone { (1, 1) } else { (planes[c.at].h, planes[c.at].v) };
                for (bx, by) in (0..h * v).map(|i| (i % h, i / h)) {
                    let (values, nonzero) = all[c.at].block(x * h + bx, y * v + by);
                    bits.refill();
                    if scan.first == 0 {
                        if scan.high == 0 {
                            let size = bits.symbol(segments.dc[c.dc].as_ref().ok_or_else(missing)?)?;
                            if size > 15 {
                                return Err(corrupt("dc coefficient is out of range"));
                            }
                            let pred = &mut planes[c.at].pred;
                            *pred = pred.wrapping_add(bits.value(size));
                            values[0] = (*pred << scan.low) as i16;
                        } else if bits.take(1) == 1 {
                            values[0] |= 1 << scan.low;
                        }
                    } else {
                        let table = segments.ac[c.ac].as_ref().ok_or_else(missing)?;
                        if scan.high == 0 {
                            first_pass(&mut bits, table, scan, values, nonzero, &mut end_of_band)?;
                        } else {
                            refine(&mut bits, table, scan, values, nonzero, &mut end_of_band)?;
                        }
                    }
                }
            }
        }
        if bits.overran() {
            return Err(corrupt("data ends before the image"));
        }
    }
    Ok(bits.position())
}

/// The first bits of the coefficients of a band (T.81 G.1.2.2).
fn first_pass(
    bits: &mut BitReader<'_>,
    table: &Huffman,
    scan: &Scan,
    values: &mut [i16],
    nonzero: &mut u64,
    end_of_band: &mut u32,
) -> Result<()> {
    if *end_of_band > 0 {
        *end_of_band -= 1;
        return Ok(());
    }
    let mut k = scan.first;
    while k <= scan.last {
        bits.refill();
        let symbol = bits.symbol(table)?;
        let (run, size) = (symbol >> 4, symbol & 15);
        if size == 0 {
            if run < 15 {
                *end_of_band = (1 << run) + bits.take(run) - 1;
                return Ok(());
            }
            k += 16;
            continue;
        }
        k += run as usize;
        let v = bits.value(size);
        if k > scan.last {
            return Err(corrupt("coefficient is outside of its band"));
        }
        if let Some(value) = values.get_mut(k) {
            *value = (v << scan.low) as i16;
        }
        *nonzero |= 1 << k;
        k += 1;
    }
    Ok(())
}

/// One more bit of the coefficients of a band (T.81 G.1.2.3).
fn refine(
    bits: &mut BitReader<'_>,
    table: &Huffman,
    scan: &Scan,
    values: &mut [i16],
    nonzero: &mut u64,
    end_of_band: &mut u32,
) -> Result<()> {
    let step = 1i16 << scan.low;
    // A coefficient that is known not to be zero has one bit of correction.
    let correct = |bits: &mut BitReader<'_>, values: &mut [i16], k: usize| {
        bits.refill();
        if bits.take(1) == 1
            && let Some(v) = values.get_mut(k)
            && *v & step == 0
        {
            *v = v.wrapping_add(if *v < 0 { -step } else { step });
        }
    };
    let known = *nonzero;
    let mut k = scan.first;
    if *end_of_band == 0 {
        while k <= scan.last {
            bits.refill();
            let symbol = bits.symbol(table)?;
            let (mut run, size) = (symbol >> 4, symbol & 15);
            let mut new = 0;
            if size != 0 {
                if size != 1 {
                    return Err(corrupt("refinement is out of range"));
                }
                new = if bits.take(1) == 1 { step } else { -step };
            } else if run < 15 {
                *end_of_band = (1 << run) + bits.take(run);
                break;
            }
            while k <= scan.last {
                if known >> k & 1 == 1 {
                    correct(bits, values, k);
                } else {
                    if run == 0 {
                        break;
                    }
                    run -= 1;
                }
                k += 1;
            }
            if new != 0 && k <= scan.last {
                if let Some(v) = values.get_mut(k) {
                    *v = new;
                }
                *nonzero |= 1 << k;
            }
            k += 1;
        }
    }
    if *end_of_band > 0 {
        *end_of_band -= 1;
        for k in k..=scan.last {
            if known >> k & 1 == 1 {
                correct(bits, values, k);
            }
        }
    }
    Ok(())
}
