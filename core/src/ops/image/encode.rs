//! From pixels to a file.

use super::bitmap::Bitmap;
use super::probe::Format;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Control, OpCtx};
use image::ExtendedColorType;
use image::codecs::webp::WebPEncoder;
use jpeg_encoder::{Encoder as JpegEncoder, EncodingError, SamplingFactor};
use std::io::{self, Write};

/// Below this a JPEG is coded in two passes, with Huffman tables of its own (a few per cent smaller); that needs all coefficients in
/// memory and writes nothing until the end, so larger pictures use the tables of T.81 annex K and are written, and can be cancelled,
/// row by row.
const TWO_PASS_PIXELS: usize = 1 << 20;

/// How the file is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    pub(super) format: Format,
    pub(super) quality: u8,
    pub(super) subsampling: &'a str,
    pub(super) compression: &'a str,
}

/// The file in memory, as a writer that fails once the task is cancelled.
struct Sink<'a> {
    out: Vec<u8>,
    control: &'a dyn Control,
    unchecked: usize,
}

impl Write for &mut Sink<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.unchecked += buf.len();
        if self.unchecked >= 4096 {
            self.unchecked = 0;
            self.control.check().map_err(|e| io::Error::other(e.to_string()))?;
        }
        self.out.extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encodes. JPEG takes gray and RGB, the others all channels.
///
/// # Errors
/// `TooLarge` for dimensions beyond the format's; `Cancelled`, `Timeout`.
pub(super) fn encode(ctx: &OpCtx<'_>, bitmap: &Bitmap, settings: &Settings<'_>) -> Result<Vec<u8>> {
    let max = match settings.format {
        Format::Jpeg => 65535,
        Format::WebP => 16384,
        _ => i32::MAX as usize,
    };
    if bitmap.width > max || bitmap.height > max {
        return Err(Error::new(ErrorKind::TooLarge, "result does not fit the format")
            .with("format", settings.format.name())
            .with("width", bitmap.width)
            .with("height", bitmap.height)
            .with("max", max));
    }
    ctx.check()?;
    let mut sink = Sink { out: Vec::new(), control: ctx.control(), unchecked: 0 };
    let written = match settings.format {
        Format::Jpeg => jpeg(&mut sink, bitmap, settings),
        Format::WebP => webp(&mut sink, bitmap),
        _ => png(&mut sink, bitmap, settings),
    };
    ctx.check()?;
    written.map_err(|e| Error::invalid("image does not encode").with("format", settings.format.name()).with("detail", e))?;
    Ok(sink.out)
}

fn jpeg(sink: &mut Sink<'_>, bitmap: &Bitmap, settings: &Settings<'_>) -> Result<(), String> {
    let mut encoder = JpegEncoder::new(sink, settings.quality);
    encoder.set_sampling_factor(if settings.subsampling == "4:4:4" { SamplingFactor::F_1_1 } else { SamplingFactor::F_2_2 });
    encoder.set_optimized_huffman_tables(bitmap.width * bitmap.height <= TWO_PASS_PIXELS);
    let color = if bitmap.channels == 1 { jpeg_encoder::ColorType::Luma } else { jpeg_encoder::ColorType::Rgb };
    encoder.encode(&bitmap.data, bitmap.width as u16, bitmap.height as u16, color).map_err(|e: EncodingError| e.to_string())
}

fn png(sink: &mut Sink<'_>, bitmap: &Bitmap, settings: &Settings<'_>) -> Result<(), String> {
    let mut run = || -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(&mut *sink, bitmap.width as u32, bitmap.height as u32);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_color(match bitmap.channels {
            1 => png::ColorType::Grayscale,
            2 => png::ColorType::GrayscaleAlpha,
            3 => png::ColorType::Rgb,
            _ => png::ColorType::Rgba,
        });
        encoder.set_compression(match settings.compression {
            "fast" => png::Compression::Fast,
            "best" => png::Compression::High,
            _ => png::Compression::Balanced,
        });
        let mut writer = encoder.write_header()?;
        let mut stream = writer.stream_writer_with_size(64 << 10)?;
        for row in bitmap.data.chunks_exact(bitmap.stride()) {
            stream.write_all(row)?;
        }
        stream.finish()
    };
    run().map_err(|e| e.to_string())
}

fn webp(sink: &mut Sink<'_>, bitmap: &Bitmap) -> Result<(), String> {
    let color = match bitmap.channels {
        1 => ExtendedColorType::L8,
        2 => ExtendedColorType::La8,
        3 => ExtendedColorType::Rgb8,
        _ => ExtendedColorType::Rgba8,
    };
    WebPEncoder::new_lossless(sink).encode(&bitmap.data, bitmap.width as u32, bitmap.height as u32, color).map_err(|e| e.to_string())
}
