//! Decoded pixels, 8 bits per sample.

use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::sync::lock;
use std::sync::Mutex;

/// Work between two looks at the token, in bytes of pixels: well under 5 ms of any stage.
pub(super) const SLICE: usize = 1 << 20;

/// Rows of gray (1 channel), gray and alpha (2), RGB (3) or RGB and alpha (4), without gaps.
pub(super) struct Bitmap {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
    pub(super) data: Vec<u8>,
}

impl Bitmap {
    /// A black, transparent image.
    ///
    /// # Errors
    /// `TooLarge` when there is no memory for it.
    pub(super) fn new(width: usize, height: usize, channels: usize) -> Result<Bitmap> {
        let no_memory = || Error::new(ErrorKind::TooLarge, "no memory for the image").with("width", width).with("height", height);
        let len = width.checked_mul(height).and_then(|n| n.checked_mul(channels)).ok_or_else(no_memory)?;
        // Asked for first, because the zeroed allocation aborts when it fails; it is the one that touches no page.
        Vec::<u8>::new().try_reserve_exact(len).map_err(|_| no_memory())?;
        Ok(Bitmap { width, height, channels, data: vec![0; len] })
    }

    pub(super) fn stride(&self) -> usize {
        self.width * self.channels
    }

    pub(super) fn has_alpha(&self) -> bool {
        self.channels.is_multiple_of(2)
    }

    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.stride()..(y + 1) * self.stride()]
    }

    pub(super) fn row_mut(&mut self, y: usize) -> &mut [u8] {
        let stride = self.stride();
        &mut self.data[y * stride..(y + 1) * stride]
    }

    /// Rows that make one slice of work.
    pub(super) fn rows_per_slice(&self) -> usize {
        (SLICE / self.stride().max(1)).max(1)
    }

    /// Calls `work(first row, rows)` for bands of rows, on idle workers too.
    pub(super) fn for_bands(&mut self, ctx: &OpCtx<'_>, work: &(dyn Fn(usize, &mut [u8]) -> Result<()> + Sync)) -> Result<()> {
        let (rows, stride) = (self.rows_per_slice(), self.stride());
        let bands: Vec<Mutex<&mut [u8]>> = self.data.chunks_mut((rows * stride).max(1)).map(Mutex::new).collect();
        ctx.parallel(bands.len(), &|i| work(i * rows, &mut lock(&bands[i])))
    }

    /// The same picture with other channels. Alpha that is dropped must have been applied before.
    pub(super) fn with_channels(self, ctx: &OpCtx<'_>, channels: usize) -> Result<Bitmap> {
        if channels == self.channels {
            return Ok(self);
        }
        let mut out = Bitmap::new(self.width, self.height, channels)?;
        let (from, stride) = (self.channels, self.stride());
        let src = &self.data;
        out.for_bands(ctx, &|y, band| {
            for (o, s) in band.chunks_exact_mut(channels).zip(src[y * stride..].chunks_exact(from)) {
                let alpha = if from.is_multiple_of(2) { s[from - 1] } else { 255 };
                let rgb = if from >= 3 { [s[0], s[1], s[2]] } else { [s[0]; 3] };
                match o {
                    [l] => *l = rgb[0],
                    [l, a] => (*l, *a) = (rgb[0], alpha),
                    [r, g, b] => [*r, *g, *b] = rgb,
                    [r, g, b, a] => {
                        [*r, *g, *b] = rgb;
                        *a = alpha;
                    }
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Lays the picture over a colour and drops alpha.
    pub(super) fn flatten(mut self, ctx: &OpCtx<'_>, background: [u8; 4]) -> Result<Bitmap> {
        if !self.has_alpha() {
            return Ok(self);
        }
        let [r, g, b, _] = background;
        if self.channels == 2 && (r != g || g != b) {
            self = self.with_channels(ctx, 4)?;
        }
        let channels = self.channels;
        self.for_bands(ctx, &|_, band| {
            for p in band.chunks_exact_mut(channels) {
                let a = u32::from(p[channels - 1]);
                for (s, back) in p[..channels - 1].iter_mut().zip([r, g, b]) {
                    *s = ((u32::from(*s) * a + u32::from(back) * (255 - a) + 127) / 255) as u8;
                }
            }
            Ok(())
        })?;
        self.with_channels(ctx, channels - 1)
    }

    /// The picture as it is to be looked at, for an EXIF orientation of 1 to 8.
    pub(super) fn oriented(self, ctx: &OpCtx<'_>, orientation: u8) -> Result<Bitmap> {
        if orientation <= 1 {
            return Ok(self);
        }
        let (w, h, n) = (self.width, self.height, self.channels);
        let (ow, oh) = if orientation >= 5 { (h, w) } else { (w, h) };
        let mut out = Bitmap::new(ow, oh, n)?;
        let src = &self.data;
        let stride = out.stride();
        out.for_bands(ctx, &|y0, band| {
            for (y, line) in (y0..).zip(band.chunks_exact_mut(stride)) {
                for (x, o) in line.chunks_exact_mut(n).enumerate() {
                    let (sx, sy) = match orientation {
                        2 => (w - 1 - x, y),
                        3 => (w - 1 - x, h - 1 - y),
                        4 => (x, h - 1 - y),
                        5 => (y, x),
                        6 => (y, h - 1 - x),
                        7 => (w - 1 - y, h - 1 - x),
                        _ => (w - 1 - y, x),
                    };
                    let at = (sy * w + sx) * n;
                    o.copy_from_slice(&src[at..at + n]);
                }
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// The picture on a larger canvas of one colour, its corner at `left`, `top`.
    pub(super) fn padded(
        mut self,
        ctx: &OpCtx<'_>,
        (width, height): (usize, usize),
        (left, top): (usize, usize),
        background: [u8; 4],
    ) -> Result<Bitmap> {
        if (width, height) == (self.width, self.height) {
            return Ok(self);
        }
        let [r, g, b, a] = background;
        let colour = self.channels >= 3 || r != g || g != b;
        let alpha = self.has_alpha() || a != 255;
        self = self.with_channels(ctx, if colour { 3 } else { 1 } + usize::from(alpha))?;
        let n = self.channels;
        let pixel: &[u8] = match n {
            1 => &[r],
            2 => &[r, a],
            3 => &[r, g, b],
            _ => &background,
        };
        let mut out = Bitmap::new(width, height, n)?;
        let stride = out.stride();
        out.for_bands(ctx, &|y0, band| {
            for (y, line) in (y0..).zip(band.chunks_exact_mut(stride)) {
                for o in line.chunks_exact_mut(n) {
                    o.copy_from_slice(pixel);
                }
                if (top..top + self.height).contains(&y) {
                    line[left * n..left * n + self.stride()].copy_from_slice(self.row(y - top));
                }
            }
            Ok(())
        })?;
        Ok(out)
    }
}
