//! What a file says about itself, read from its headers without decoding a pixel.
//!
//! Sources: T.81 (JPEG), the EXIF 2.3 tag 0x0112, PNG third edition, RFC 9649 (WebP), GIF89a, Microsoft's BITMAPINFOHEADER.

use crate::error::{Error, ErrorKind, Result};

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "jpeg",
            Format::Png => "png",
            Format::WebP => "webp",
            Format::Gif => "gif",
            Format::Bmp => "bmp",
        }
    }
}

/// How the file stores colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Gray,
    Rgb,
    Indexed,
    Cmyk,
}

impl Color {
    pub(super) fn name(self) -> &'static str {
        match self {
            Color::Gray => "gray",
            Color::Rgb => "rgb",
            Color::Indexed => "indexed",
            Color::Cmyk => "cmyk",
        }
    }
}

/// What the headers say.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) format: Format,
    /// Pixels as stored, before the orientation is applied.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) color: Color,
    pub(super) alpha: bool,
    /// Bits per sample, or per palette index.
    pub(super) bits: u8,
    /// EXIF orientation, 1 to 8; 1 when there is none.
    pub(super) orientation: u8,
    /// More than one frame.
    pub(super) animated: bool,
    /// Progressive JPEG, interlaced PNG.
    pub(super) progressive: bool,
}

fn corrupt(format: Format, what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what).with("format", format.name())
}

/// The format by its first bytes.
///
/// # Errors
/// `Unsupported` for anything else, `Corrupt` for nothing at all.
pub(super) fn format_of(data: &[u8]) -> Result<Format> {
    match data {
        [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'B', b'M', ..] => Ok(Format::Bmp),
        [] => Err(Error::new(ErrorKind::Corrupt, "image is empty").with("len", 0)),
        _ => {
            let start: String = data.iter().take(8).map(|b| format!("{b:02x}")).collect();
            Err(Error::new(ErrorKind::Unsupported, "image format is not known")
                .with("starts_with", start)
                .with("known", "jpeg png webp gif bmp"))
        }
    }
}

/// Reads the headers.
///
/// # Errors
/// `Unsupported` format; `Corrupt` when the header is truncated or contradicts its format, or a dimension is zero.
pub(super) fn probe(data: &[u8]) -> Result<Header> {
    let format = format_of(data)?;
    let header = match format {
        Format::Jpeg => jpeg(data),
        Format::Png => png(data),
        Format::WebP => webp(data),
        Format::Gif => gif(data),
        Format::Bmp => bmp(data),
    }?;
    if header.width == 0 || header.height == 0 {
        return Err(corrupt(format, "image has no pixels").with("width", header.width).with("height", header.height));
    }
    Ok(header)
}

/// Integers at positions of a file.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8], Format);

impl<'a> Fields<'a> {
    fn bytes(self, at: usize, len: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.0.get(at..end)).ok_or_else(|| corrupt(self.1, "header is truncated").with("len", self.0.len()))
    }
    fn u8(self, at: usize) -> Result<u8> {
        Ok(self.bytes(at, 1)?[0])
    }
    fn be(self, at: usize, len: usize) -> Result<u32> {
        Ok(self.bytes(at, len)?.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
    }
    fn le(self, at: usize, len: usize) -> Result<u32> {
        Ok(self.bytes(at, len)?.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
    }
}

/// The orientation of an EXIF block (a TIFF file); 1 when it has none or is damaged.
fn exif_orientation(tiff: &[u8]) -> u8 {
    let f = Fields(tiff, Format::Jpeg);
    let big = tiff.starts_with(b"MM");
    let int = |at, len| if big { f.be(at, len) } else { f.le(at, len) };
    let find = || -> Result<Option<u8>> {
        let ifd = int(4, 4)? as usize;
        for i in 0..int(ifd, 2)? as usize {
            let entry = ifd + 2 + 12 * i;
            if int(entry, 2)? == 0x0112 {
                return Ok(Some(int(entry + 8, 2)? as u8));
            }
        }
        Ok(None)
    };
    match find() {
        Ok(Some(o @ 1..=8)) => o,
        _ => 1,
    }
}

fn jpeg(data: &[u8]) -> Result<Header> {
    let f = Fields(data, Format::Jpeg);
    let mut header: Option<Header> = None;
    let mut orientation = None;
    let mut pos = 2;
    loop {
        // Bytes between segments are stepped over, as libjpeg does.
        let next = data.get(pos..).and_then(|d| d.windows(2).position(|w| w[0] == 0xff && w[1] != 0xff && w[1] != 0));
        let Some(marker_at) = next.map(|n| pos + n) else { break };
        let marker = data[marker_at + 1];
        if marker == 0x01 || (0xd0..=0xd8).contains(&marker) {
            pos = marker_at + 2;
            continue;
        }
        if marker == 0xd9 || marker == 0xda {
            break;
        }
        let Ok(len) = f.be(marker_at + 2, 2) else { break };
        let at = marker_at + 4;
        match marker {
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf if header.is_none() => {
                let color = match f.u8(at + 5)? {
                    1 => Color::Gray,
                    3 => Color::Rgb,
                    4 => Color::Cmyk,
                    n => return Err(corrupt(Format::Jpeg, "number of components is out of range").with("components", n)),
                };
                if !matches!(marker, 0xc0..=0xc2) {
                    return Err(Error::new(ErrorKind::Unsupported, "lossless, hierarchical or arithmetic jpeg").with("marker", marker));
                }
                header = Some(Header {
                    format: Format::Jpeg,
                    width: f.be(at + 3, 2)?,
                    height: f.be(at + 1, 2)?,
                    color,
                    alpha: false,
                    bits: f.u8(at)?,
                    orientation: 1,
                    animated: false,
                    progressive: marker == 0xc2,
                });
            }
            0xe1 if orientation.is_none() => {
                let segment = data.get(at..(marker_at + 2 + len as usize).min(data.len())).unwrap_or(&[]);
                orientation = segment.strip_prefix(b"Exif\0\0").map(exif_orientation);
            }
            _ => {}
        }
        pos = marker_at + 2 + (len as usize).max(2);
    }
    let mut header = header.ok_or_else(|| corrupt(Format::Jpeg, "file has no frame header"))?;
    header.orientation = orientation.unwrap_or(1);
    Ok(header)
}

fn png(data: &[u8]) -> Result<Header> {
    let f = Fields(data, Format::Png);
    if f.be(8, 4)? != 13 || f.bytes(12, 4)? != b"IHDR" {
        return Err(corrupt(Format::Png, "first chunk is not a header"));
    }
    let (bits, color_type) = (f.u8(24)?, f.u8(25)?);
    let (color, alpha) = match (color_type, bits) {
        (0, 1 | 2 | 4 | 8 | 16) => (Color::Gray, false),
        (2, 8 | 16) => (Color::Rgb, false),
        (3, 1 | 2 | 4 | 8) => (Color::Indexed, false),
        (4, 8 | 16) => (Color::Gray, true),
        (6, 8 | 16) => (Color::Rgb, true),
        _ => return Err(corrupt(Format::Png, "no such color type and depth").with("color_type", color_type).with("bits", bits)),
    };
    let mut header = Header {
        format: Format::Png,
        width: f.be(16, 4)?,
        height: f.be(20, 4)?,
        color,
        alpha,
        bits,
        orientation: 1,
        animated: false,
        progressive: f.u8(28)? == 1,
    };
    let mut pos = 33;
    while let (Ok(len), Ok(kind)) = (f.be(pos, 4), f.bytes(pos + 4, 4)) {
        match kind {
            b"IDAT" | b"IEND" => break,
            b"tRNS" => header.alpha = true,
            b"acTL" => header.animated = f.be(pos + 8, 4).unwrap_or(0) > 1,
            b"eXIf" => header.orientation = f.bytes(pos + 8, len as usize).map_or(1, exif_orientation),
            _ => {}
        }
        pos += 12 + len as usize;
    }
    Ok(header)
}

fn webp(data: &[u8]) -> Result<Header> {
    let f = Fields(data, Format::WebP);
    let mut header = Header {
        format: Format::WebP,
        width: 0,
        height: 0,
        color: Color::Rgb,
        alpha: false,
        bits: 8,
        orientation: 1,
        animated: false,
        progressive: false,
    };
    match f.bytes(12, 4)? {
        b"VP8 " => {
            if f.bytes(23, 3)? != [0x9d, 0x01, 0x2a] {
                return Err(corrupt(Format::WebP, "frame has no start code"));
            }
            (header.width, header.height) = (f.le(26, 2)? & 0x3fff, f.le(28, 2)? & 0x3fff);
        }
        b"VP8L" => {
            if f.u8(20)? != 0x2f {
                return Err(corrupt(Format::WebP, "frame has no signature"));
            }
            let bits = f.le(21, 4)?;
            (header.width, header.height, header.alpha) = ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1, bits >> 28 & 1 == 1);
        }
        b"VP8X" => {
            let flags = f.u8(20)?;
            (header.width, header.height) = (f.le(24, 3)? + 1, f.le(27, 3)? + 1);
            (header.alpha, header.animated) = (flags & 0x10 != 0, flags & 2 != 0);
            let mut pos = 12;
            while let (Ok(kind), Ok(len)) = (f.bytes(pos, 4), f.le(pos + 4, 4)) {
                if kind == b"EXIF" {
                    let exif = f.bytes(pos + 8, len as usize).unwrap_or(&[]);
                    header.orientation = exif_orientation(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
                    break;
                }
                pos += 8 + (len as usize).next_multiple_of(2);
            }
        }
        _ => return Err(corrupt(Format::WebP, "first chunk is not a frame")),
    }
    Ok(header)
}

fn gif(data: &[u8]) -> Result<Header> {
    let f = Fields(data, Format::Gif);
    let flags = f.u8(10)?;
    let mut header = Header {
        format: Format::Gif,
        width: f.le(6, 2)?,
        height: f.le(8, 2)?,
        color: Color::Indexed,
        alpha: false,
        bits: (flags & 7) + 1,
        orientation: 1,
        animated: false,
        progressive: false,
    };
    // From block to block, without reading them, until a second frame shows or the file ends.
    let table = |flags: u8| if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 };
    let mut pos = 13 + table(flags);
    let mut frames = 0;
    while let Ok(kind) = f.u8(pos) {
        match kind {
            0x21 => {
                if frames == 0 && f.u8(pos + 1).is_ok_and(|label| label == 0xf9) {
                    header.alpha = f.u8(pos + 3).is_ok_and(|flags| flags & 1 == 1);
                }
                pos += 2;
            }
            0x2c => {
                frames += 1;
                if frames == 2 {
                    header.animated = true;
                    break;
                }
                let Ok(flags) = f.u8(pos + 9) else { break };
                header.progressive = flags & 0x40 != 0;
                pos += 11 + table(flags);
            }
            _ => break,
        }
        while let Ok(len @ 1..) = f.u8(pos) {
            pos += 1 + usize::from(len);
        }
        pos += 1;
    }
    Ok(header)
}

fn bmp(data: &[u8]) -> Result<Header> {
    let f = Fields(data, Format::Bmp);
    let size = f.le(14, 4)?;
    let (width, height, bits, compression) = match size {
        12 => (f.le(18, 2)?, f.le(20, 2)?, f.le(24, 2)?, 0),
        40..=256 => ((f.le(18, 4)? as i32).unsigned_abs(), (f.le(22, 4)? as i32).unsigned_abs(), f.le(28, 2)?, f.le(30, 4)?),
        _ => return Err(corrupt(Format::Bmp, "header has no known size").with("size", size)),
    };
    if !matches!(bits, 1 | 2 | 4 | 8 | 16 | 24 | 32) {
        return Err(corrupt(Format::Bmp, "depth is out of range").with("bits", bits));
    }
    let masks_with_alpha = compression == 6 || (compression == 3 && size >= 56);
    let alpha = masks_with_alpha && f.le(66, 4)? != 0;
    Ok(Header {
        format: Format::Bmp,
        width,
        height,
        color: if bits <= 8 { Color::Indexed } else { Color::Rgb },
        alpha,
        bits: if bits <= 8 { bits as u8 } else { if bits == 16 { 5 } else { 8 } },
        orientation: 1,
        animated: false,
        progressive: false,
    })
}

/// The colour profile of a JPEG, joined from its APP2 segments (ICC.1 annex B.4).
pub(super) fn jpeg_icc(data: &[u8]) -> Option<Vec<u8>> {
    let f = Fields(data, Format::Jpeg);
    let mut parts: Vec<(u8, &[u8])> = Vec::new();
    let mut pos = 2;
    while let (Ok(0xff), Ok(marker), Ok(len)) = (f.u8(pos), f.u8(pos + 1), f.be(pos + 2, 2)) {
        if marker == 0xda || marker == 0xd9 || len < 2 {
            break;
        }
        let part = f.bytes(pos + 4, len as usize - 2).ok().and_then(|s| s.strip_prefix(b"ICC_PROFILE\0"));
        if let (0xe2, Some([number, _, profile @ ..])) = (marker, part) {
            parts.push((*number, profile));
        }
        pos += 2 + len as usize;
    }
    parts.sort_by_key(|p| p.0);
    (!parts.is_empty()).then(|| parts.iter().flat_map(|p| p.1).copied().collect())
}
