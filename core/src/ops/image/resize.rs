//! Which part of a picture goes where, and the resampling itself.

use super::bitmap::{Bitmap, SLICE};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::sync::lock;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, MulDiv, PixelType, ResizeAlg, ResizeOptions, Resizer};
use std::sync::Mutex;

/// A part of a picture, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) width: Option<u32>,
    pub(super) height: Option<u32>,
    pub(super) fit: &'a str,
    pub(super) position: &'a str,
    pub(super) without_enlargement: bool,
}

/// `part` of the picture becomes `size` pixels, which lie at `corner` of the `canvas`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) part: Part,
    pub(super) size: (usize, usize),
    pub(super) canvas: (usize, usize),
    pub(super) corner: (usize, usize),
}

/// Plans for a picture of `width` × `height` as it is looked at.
///
/// # Errors
/// `Invalid` without a width or height, `TooLarge` when the result is.
pub(super) fn plan(width: u32, height: u32, target: &Target<'_>, max_pixels: u64) -> Result<Plan> {
    let (w, h) = (f64::from(width), f64::from(height));
    let whole = Part { left: 0.0, top: 0.0, width: w, height: h };
    let limit = |scale: f64| if target.without_enlargement { scale.min(1.0) } else { scale };
    let pixels = |x: f64| x.round().max(1.0);
    let (tw, th) = (target.width.map(f64::from), target.height.map(f64::from));
    let mut part = whole;
    let (size, canvas) = match (tw, th) {
        (None, None) => return Err(Error::invalid("resize needs a width or a height")),
        (Some(tw), None) => {
            let s = limit(tw / w);
            let size = (pixels(w * s), pixels(h * s));
            (size, size)
        }
        (None, Some(th)) => {
            let s = limit(th / h);
            let size = (pixels(w * s), pixels(h * s));
            (size, size)
        }
        (Some(tw), Some(th)) => match target.fit {
            "fill" => {
                let size = (pixels(w * limit(tw / w)), pixels(h * limit(th / h)));
                (size, size)
            }
            "inside" | "outside" | "contain" => {
                let s = limit(if target.fit == "outside" { (tw / w).max(th / h) } else { (tw / w).min(th / h) });
                let size = (pixels(w * s), pixels(h * s));
                (size, if target.fit == "contain" { (tw, th) } else { size })
            }
            _ => {
                let s = limit((tw / w).max(th / h));
                let size = (pixels(w * s).min(tw), pixels(h * s).min(th));
                part.width = (size.0 / s).min(w);
                part.height = (size.1 / s).min(h);
                let (x, y) = anchor(target.position);
                part.left = (w - part.width) * x;
                part.top = (h - part.height) * y;
                (size, size)
            }
        },
    };
    let area = canvas.0 * canvas.1;
    if area > max_pixels as f64 {
        return Err(Error::new(ErrorKind::TooLarge, "result has too many pixels")
            .with("width", canvas.0)
            .with("height", canvas.1)
            .with("pixels", area)
            .with("max_pixels", max_pixels));
    }
    let (x, y) = anchor(target.position);
    let corner = (((canvas.0 - size.0) * x) as usize, ((canvas.1 - size.1) * y) as usize);
    let usize2 = |(a, b): (f64, f64)| (a as usize, b as usize);
    Ok(Plan { part, size: usize2(size), canvas: usize2(canvas), corner })
}

fn anchor(position: &str) -> (f64, f64) {
    match position {
        "top" => (0.5, 0.0),
        "bottom" => (0.5, 1.0),
        "left" => (0.0, 0.5),
        "right" => (1.0, 0.5),
        _ => (0.5, 0.5),
    }
}

impl Part {
    /// Where this part of the oriented picture lies in the stored one, which is `w` × `h`.
    pub(super) fn stored(self, orientation: u8, w: f64, h: f64) -> Part {
        let Part { left: x, top: y, width, height } = self;
        let (left, top) = match orientation {
            2 => (w - x - width, y),
            3 => (w - x - width, h - y - height),
            4 => (x, h - y - height),
            5 => (y, x),
            6 => (y, h - x - width),
            7 => (w - y - height, h - x - width),
            8 => (w - y - height, x),
            _ => (x, y),
        };
        let (width, height) = if orientation >= 5 { (height, width) } else { (width, height) };
        Part { left: left.max(0.0), top: top.max(0.0), width, height }
    }
}

fn algorithm(filter: &str) -> (ResizeAlg, f64) {
    let (kind, support) = match filter {
        "nearest" => return (ResizeAlg::Nearest, 0.5),
        "box" => (FilterType::Box, 0.5),
        "bilinear" => (FilterType::Bilinear, 1.0),
        "cubic" => (FilterType::CatmullRom, 2.0),
        "mitchell" => (FilterType::Mitchell, 2.0),
        _ => (FilterType::Lanczos3, 3.0),
    };
    (ResizeAlg::Convolution(kind), support)
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::invalid("picture cannot be resampled").with("detail", e)
}

/// Resamples `part` of the picture to `width` × `height`. Samples are sRGB values, as in sharp and Pillow; colour counts by its alpha.
///
/// The two passes of a separable filter are cut into bands of source rows, then of result columns: no band needs another's result, so the
/// seams do not show, idle workers can take bands, and the token is looked at between them.
pub(super) fn resample(ctx: &OpCtx<'_>, mut src: Bitmap, part: Part, (width, height): (usize, usize), filter: &str) -> Result<Bitmap> {
    let whole = Part { left: 0.0, top: 0.0, width: src.width as f64, height: src.height as f64 };
    if part == whole && (width, height) == (src.width, src.height) {
        return Ok(src);
    }
    let (alg, support) = algorithm(filter);
    let kind = match src.channels {
        1 => PixelType::U8,
        2 => PixelType::U8x2,
        3 => PixelType::U8x3,
        _ => PixelType::U8x4,
    };
    let (src_width, channels) = (src.width, src.channels);
    let alpha = src.has_alpha() && !matches!(alg, ResizeAlg::Nearest);
    if alpha {
        src.for_bands(ctx, &|_, band| {
            let rows = band.len() / (src_width * channels);
            let mut image = Image::from_slice_u8(src_width as u32, rows as u32, band, kind).map_err(broken)?;
            MulDiv::new().multiply_alpha_inplace(&mut image).map_err(broken)
        })?;
    }
    // Rows that the second pass reads: a filter reaches beyond the part, as far as the picture goes.
    let reach = support * (part.height / height as f64).max(1.0) + 2.0;
    let first = (part.top - reach).floor().max(0.0) as usize;
    let last = ((part.top + part.height + reach).ceil() as usize).min(src.height);
    let options = ResizeOptions::new().resize_alg(alg).use_alpha(false);

    let mut rows = Bitmap::new(width, last - first, channels)?;
    let band_rows = src.rows_per_slice().min(rows.rows_per_slice());
    {
        let stride = rows.stride().max(1);
        let bands: Vec<Mutex<&mut [u8]>> = rows.data.chunks_mut(band_rows * stride).map(Mutex::new).collect();
        ctx.parallel(bands.len(), &|i| {
            let mut band = lock(&bands[i]);
            let n = band.len() / stride;
            let from = (first + i * band_rows) * src.stride();
            let input = ImageRef::new(src_width as u32, n as u32, &src.data[from..from + n * src.stride()], kind).map_err(broken)?;
            let mut output = Image::from_slice_u8(width as u32, n as u32, &mut band, kind).map_err(broken)?;
            let crop = options.crop(part.left, 0.0, part.width, n as f64);
            Resizer::new().resize(&input, &mut output, &crop).map_err(broken)
        })?;
    }
    drop(src);

    let input = ImageRef::new(width as u32, (last - first) as u32, &rows.data, kind).map_err(broken)?;
    let columns = (SLICE / (channels * (last - first).max(height))).max(1);
    let mut out = Bitmap::new(width, height, channels)?;
    let stride = out.stride();
    let shared = Mutex::new(&mut out.data);
    ctx.parallel(width.div_ceil(columns), &|i| {
        let left = i * columns;
        let n = columns.min(width - left);
        let mut output = Image::new(n as u32, height as u32, kind);
        let crop = options.crop(left as f64, part.top - first as f64, n as f64, part.height);
        Resizer::new().resize(&input, &mut output, &crop).map_err(broken)?;
        if alpha {
            MulDiv::new().divide_alpha_inplace(&mut output).map_err(broken)?;
        }
        let mut data = lock(&shared);
        for (to, from) in data.chunks_exact_mut(stride).zip(output.buffer().chunks_exact(n * channels)) {
            to[left * channels..(left + n) * channels].copy_from_slice(from);
        }
        Ok(())
    })?;
    Ok(out)
}
