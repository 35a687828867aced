//! From a file to pixels: at a reduced scale where that is enough, else whole.

use super::bitmap::Bitmap;
use super::probe::{Format, Header};
use super::{jpeg, probe};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Control, OpCtx};
use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageError, Limits};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use zune_jpeg::zune_core::{colorspace::ColorSpace, options::DecoderOptions};

/// Input between two looks at the token. Deflate makes at most 1032 bytes of one, so this is at most 4 MiB of pixels.
const STEP: usize = 4 << 10;

/// The input as a reader that fails once the task is cancelled: the way into decoders that take no token.
struct Watched<'a> {
    data: &'a [u8],
    pos: usize,
    control: &'a dyn Control,
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.control.check().map_err(|e| io::Error::other(e.to_string()))?;
        let rest = &self.data[self.pos.min(self.data.len())..];
        Ok(&rest[..rest.len().min(STEP)])
    }
    fn consume(&mut self, n: usize) {
        self.pos += n;
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl Seek for Watched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(n) => (0, i64::try_from(n).map_err(io::Error::other)?),
            SeekFrom::End(n) => (self.data.len() as i64, n),
            SeekFrom::Current(n) => (self.pos as i64, n),
        };
        let pos = base.checked_add(by).and_then(|p| usize::try_from(p).ok());
        self.pos = pos.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.pos as u64)
    }
}

/// Pixels, and how much of their grid the picture covers: a reduced decode ends in fractions of a pixel.
pub(super) struct Decoded {
    pub(super) bitmap: Bitmap,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) icc: Option<Vec<u8>>,
}

/// Refuses a picture that is over the limit, or larger than its file can be.
pub(super) fn check_size(data: &[u8], header: &Header, max_pixels: u64) -> Result<()> {
    let (width, height) = (u64::from(header.width), u64::from(header.height));
    let pixels = width * height;
    if pixels > max_pixels {
        return Err(Error::new(ErrorKind::TooLarge, "image has too many pixels")
            .with("width", width)
            .with("height", height)
            .with("pixels", pixels)
            .with("max_pixels", max_pixels));
    }
    // The least that a whole file of these dimensions takes: two bits per block (one in a progressive scan), or the raw rows
    // divided by the highest ratio of deflate, 1032.
    let least = match header.format {
        Format::Jpeg => width.div_ceil(8) * height.div_ceil(8) / if header.progressive { 32 } else { 4 } / 4,
        Format::Png => (width * u64::from(header.bits) / 8 + 1) * height / 1100,
        _ => 0,
    };
    if (data.len() as u64) < least {
        return Err(Error::new(ErrorKind::Corrupt, "file is shorter than any image of its size")
            .with("format", header.format.name())
            .with("width", width)
            .with("height", height)
            .with("len", data.len())
            .with("least", least));
    }
    Ok(())
}

/// Decodes. `reduction` is how many times smaller the result may be on each edge; it is used as far as the format allows.
pub(super) fn decode(ctx: &OpCtx<'_>, data: &[u8], header: &Header, reduction: f64) -> Result<Decoded> {
    let (width, height) = (f64::from(header.width), f64::from(header.height));
    if header.format == Format::Jpeg {
        let icc = probe::jpeg_icc(data);
        if let Some(scale) = [1, 2, 4].into_iter().find(|s| 8.0 / *s as f64 <= reduction)
            && let Some(bitmap) = jpeg::decode(data, scale, &|| ctx.check())?
        {
            let factor = scale as f64 / 8.0;
            return Ok(Decoded { bitmap, width: width * factor, height: height * factor, icc });
        }
        return Ok(Decoded { bitmap: whole_jpeg(ctx, data, header)?, width, height, icc });
    }
    let reader = Watched { data, pos: 0, control: ctx.control() };
    let err = |e: ImageError| failed(ctx, header.format, &e);
    let (bitmap, icc) = match header.format {
        Format::Png => whole(ctx, header, PngDecoder::with_limits(reader, limits(header)).map_err(err)?)?,
        Format::WebP => whole(ctx, header, WebPDecoder::new(reader).map_err(err)?)?,
        Format::Gif => whole(ctx, header, GifDecoder::new(reader).map_err(err)?)?,
        _ => whole(ctx, header, BmpDecoder::new(reader).map_err(err)?)?,
    };
    Ok(Decoded { bitmap, width, height, icc })
}

/// What a decoder may allocate besides the picture: its size again at 16 bits and four channels, and 16 MiB.
fn limits(header: &Header) -> Limits {
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(header.width), Some(header.height));
    limits.max_alloc = Some(u64::from(header.width) * u64::from(header.height) * 8 + (16 << 20));
    limits
}

/// A decoder's error as ours; a cancelled task fails its reader, which shows as an error of the decoder.
fn failed(ctx: &OpCtx<'_>, format: Format, e: &dyn std::fmt::Display) -> Error {
    if let Err(cancelled) = ctx.check() {
        return cancelled;
    }
    let detail: String = e.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
    Error::new(ErrorKind::Corrupt, "image does not decode").with("format", format.name()).with("detail", detail)
}

fn whole_jpeg(ctx: &OpCtx<'_>, data: &[u8], header: &Header) -> Result<Bitmap> {
    let err = |e: zune_jpeg::errors::DecodeErrors| match e {
        zune_jpeg::errors::DecodeErrors::Unsupported(what) => {
            Error::new(ErrorKind::Unsupported, "jpeg of this kind is not decoded").with("detail", format!("{what:?}"))
        }
        e => failed(ctx, Format::Jpeg, &e),
    };
    // The decoder fills up what is missing with gray, for browsers. A whole file has an end marker behind its last scan.
    let scan = data.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap_or(0);
    if !data[scan..].windows(2).any(|w| w == [0xff, 0xd9]) {
        return Err(Error::new(ErrorKind::Corrupt, "data ends before the image").with("format", "jpeg").with("len", data.len()));
    }
    let color = if header.color == probe::Color::Gray { ColorSpace::Luma } else { ColorSpace::RGB };
    let options = DecoderOptions::default().set_max_width(65535).set_max_height(65535).jpeg_set_out_colorspace(color);
    let mut decoder =
        zune_jpeg::JpegDecoder::new_with_options(Watched { data, pos: 0, control: ctx.control() }, options.set_strict_mode(false));
    decoder.decode_headers().map_err(err)?;
    let size = (header.width as usize, header.height as usize);
    if decoder.dimensions() != Some(size) {
        return Err(failed(ctx, Format::Jpeg, &"frame header changes"));
    }
    let mut out = Bitmap::new(size.0, size.1, if color == ColorSpace::Luma { 1 } else { 3 })?;
    decoder.decode_into(&mut out.data).map_err(err)?;
    ctx.check()?;
    Ok(out)
}

fn whole(ctx: &OpCtx<'_>, header: &Header, mut decoder: impl ImageDecoder) -> Result<(Bitmap, Option<Vec<u8>>)> {
    let err = |e: ImageError| match e {
        ImageError::Unsupported(e) => Error::new(ErrorKind::Unsupported, "image of this kind is not decoded")
            .with("format", header.format.name())
            .with("detail", e.to_string()),
        ImageError::Limits(e) => Error::new(ErrorKind::TooLarge, "image needs too much memory")
            .with("format", header.format.name())
            .with("detail", e.to_string()),
        e => failed(ctx, header.format, &e),
    };
    decoder.set_limits(limits(header)).map_err(err)?;
    let (width, height) = decoder.dimensions();
    if (width, height) != (header.width, header.height) {
        return Err(failed(ctx, header.format, &"frame has another size than the header"));
    }
    // A damaged profile is no reason to refuse the picture.
    let icc = decoder.icc_profile().ok().flatten();
    let (channels, wide) = match decoder.color_type() {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        other => return Err(Error::new(ErrorKind::Unsupported, "image of this kind is not decoded").with("color", format!("{other:?}"))),
    };
    let (width, height) = (width as usize, height as usize);
    if !wide {
        let mut out = Bitmap::new(width, height, channels)?;
        decoder.read_image(&mut out.data).map_err(err)?;
        ctx.check()?;
        return Ok((out, icc));
    }
    let mut samples = Bitmap::new(width * 2, height, channels)?;
    decoder.read_image(&mut samples.data).map_err(err)?;
    ctx.check()?;
    let mut out = Bitmap::new(width, height, channels)?;
    let (src, stride) = (&samples.data, samples.stride());
    out.for_bands(ctx, &|y, band| {
        for (o, s) in band.iter_mut().zip(src[y * stride..].as_chunks::<2>().0) {
            *o = ((u32::from(u16::from_ne_bytes(*s)) * 255 + 32767) / 65535) as u8;
        }
        Ok(())
    })?;
    Ok((out, icc))
}
