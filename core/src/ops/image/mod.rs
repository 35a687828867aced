//! The `image` family: probe, thumbnail, resize, convert.
//!
//! ```text
//!  probe (headers) → limits → decode, reduced where enough → resample → orient → sRGB → pad, flatten → encode
//! ```
//!
//! Reads JPEG, PNG, WebP, GIF and BMP; of an animation the first frame. Writes JPEG, PNG and WebP, the last one lossless only. Pixels have
//! 8 bits per sample from the decoder on: 16-bit PNGs lose the lower half. Results carry no metadata; the orientation is applied to the
//! pixels, an embedded colour profile is converted to sRGB, CMYK becomes RGB without its profile.
//!
//! Dimensions are checked against `max_pixels` from the header, before anything is allocated for them.
//!
//! Cancellation is seen between slices of rows (at most 1 MiB of pixels), and in the decoders whenever they read or write 4 KiB. Some
//! libraries do a whole picture between two reads or writes, and there a cancelled task goes on until that stage ends: decoding lossy
//! WebP, encoding WebP, the last stage of a progressive JPEG that is decoded whole. With 12 megapixels that was up to 130 ms; a reduced
//! decode of the same photo looks at the token every 0.5 ms.

mod bitmap;
mod color;
mod decode;
mod encode;
mod jpeg;
mod probe;
mod resize;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::ops::{Cancellable, Inputs, OpCtx, OpDef, ParamDef, ParamDefault, ParamType, Returns};
use crate::value::Value;
use encode::Settings;
use probe::Format;
use resize::{Part, Plan, Target};

/// A reduced decode is at least this many times larger than the result, so that the filter decides what is seen. Pillow's thumbnails
/// have the same figure (`reducing_gap`); sharp goes down to 1.
const GAP: f64 = 2.0;

const MAX_PIXELS: ParamDef = ParamDef {
    name: "max_pixels",
    ty: ParamType::Int { min: 1, max: 1 << 32 },
    default: ParamDefault::Int(100_000_000),
    about: "Most pixels of the input and of the result; more is TooLarge, before any memory is taken. Up to 8 bytes of memory per pixel.",
};
const FORMAT: ParamDef = ParamDef {
    name: "format",
    ty: ParamType::Enum(&["jpeg", "png", "webp"]),
    default: ParamDefault::Absent,
    about: "Format of the result; by default that of the input, or png for gif and bmp. webp is lossless; encoding it sees no cancellation.",
};
const QUALITY: ParamDef = ParamDef {
    name: "quality",
    ty: ParamType::Int { min: 1, max: 100 },
    default: ParamDefault::Int(80),
    about: "Quality of a jpeg; png and webp are lossless and ignore it.",
};
const SUBSAMPLING: ParamDef = ParamDef {
    name: "subsampling",
    ty: ParamType::Enum(&["4:2:0", "4:4:4"]),
    default: ParamDefault::Str("4:2:0"),
    about: "Colour resolution of a jpeg: a quarter or all of the pixels.",
};
const COMPRESSION: ParamDef = ParamDef {
    name: "compression",
    ty: ParamType::Enum(&["fast", "balanced", "best"]),
    default: ParamDefault::Str("balanced"),
    about: "Effort for a png.",
};
const BACKGROUND: ParamDef = ParamDef {
    name: "background",
    ty: ParamType::Str,
    default: ParamDefault::Str("#ffffff"),
    about: "Colour behind transparent pixels in a jpeg and beside a contained picture: #rgb, #rrggbb or #rrggbbaa.",
};
const AUTO_ORIENT: ParamDef = ParamDef {
    name: "auto_orient",
    ty: ParamType::Bool,
    default: ParamDefault::Bool(true),
    about: "Turns and mirrors the pixels as the EXIF orientation says; width and height are those of the turned picture.",
};
const WIDTH: ParamDef = ParamDef {
    name: "width",
    ty: ParamType::Int { min: 1, max: 65535 },
    default: ParamDefault::Absent,
    about: "Width in pixels; without it, it follows from the height.",
};
const HEIGHT: ParamDef = ParamDef {
    name: "height",
    ty: ParamType::Int { min: 1, max: 65535 },
    default: ParamDefault::Absent,
    about: "Height in pixels; without it, it follows from the width.",
};
const FIT: ParamDef = ParamDef {
    name: "fit",
    ty: ParamType::Enum(&["cover", "contain", "fill", "inside", "outside"]),
    default: ParamDefault::Str("cover"),
    about: "With both width and height: cut (cover), padded (contain), distorted (fill), at most that large (inside), at least (outside).",
};
const POSITION: ParamDef = ParamDef {
    name: "position",
    ty: ParamType::Enum(&["center", "top", "bottom", "left", "right"]),
    default: ParamDefault::Str("center"),
    about: "Which part cover keeps, and where contain puts the picture.",
};
const FILTER: ParamDef = ParamDef {
    name: "filter",
    ty: ParamType::Enum(&["lanczos3", "mitchell", "cubic", "bilinear", "box", "nearest"]),
    default: ParamDefault::Str("lanczos3"),
    about: "Resampling filter, in sRGB values.",
};
const WITHOUT_ENLARGEMENT: ParamDef = ParamDef {
    name: "without_enlargement",
    ty: ParamType::Bool,
    default: ParamDefault::Bool(false),
    about: "Keeps a picture that is smaller than asked for at its size.",
};

/// The libraries for these do a whole picture between two looks at the token.
const STAGES: Cancellable =
    Cancellable::Except("while it decodes a lossy WebP, encodes a WebP, or finishes a progressive JPEG that is decoded whole");

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "image.probe",
        about: "Reads format, stored size, colour, alpha, bits per sample, EXIF orientation, animation and progressive coding from the headers, \
                without decoding.",
        inputs: Inputs::One,
        params: &[],
        returns: Returns::Value(
            "{ format: 'jpeg' | 'png' | 'webp' | 'gif' | 'bmp'; width: number; height: number; color: 'gray' | 'rgb' | 'indexed' | 'cmyk'; \
             alpha: boolean; bits: number; orientation: number; animated: boolean; progressive: boolean }",
            "dict[str, str | int | bool]",
        ),
        cancellable: Cancellable::Always,
        run: run_probe,
    },
    OpDef {
        name: "image.thumbnail",
        about: "Makes a small picture, decoding a jpeg at a reduced scale of at least twice the size; never enlarges.",
        inputs: Inputs::One,
        params: &[WIDTH, HEIGHT, FIT, POSITION, FILTER, FORMAT, QUALITY, SUBSAMPLING, COMPRESSION, BACKGROUND, AUTO_ORIENT, MAX_PIXELS],
        returns: Returns::Bytes,
        cancellable: STAGES,
        run: run_thumbnail,
    },
    OpDef {
        name: "image.resize",
        about: "Makes a picture of another size, decoding a jpeg at a reduced scale of at least twice the size where that is enough.",
        inputs: Inputs::One,
        params: &[
            WIDTH,
            HEIGHT,
            FIT,
            POSITION,
            FILTER,
            WITHOUT_ENLARGEMENT,
            FORMAT,
            QUALITY,
            SUBSAMPLING,
            COMPRESSION,
            BACKGROUND,
            AUTO_ORIENT,
            MAX_PIXELS,
        ],
        returns: Returns::Bytes,
        cancellable: STAGES,
        run: run_resize,
    },
    OpDef {
        name: "image.convert",
        about: "Writes a picture in another format, or again in its own without its metadata.",
        inputs: Inputs::One,
        params: &[FORMAT, QUALITY, SUBSAMPLING, COMPRESSION, BACKGROUND, AUTO_ORIENT, MAX_PIXELS],
        returns: Returns::Bytes,
        cancellable: STAGES,
        run: run_convert,
    },
];

fn run_probe(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let h = probe::probe(ctx.input())?;
    Ok(Value::map([
        ("format", Value::str(h.format.name())),
        ("width", Value::Int(i64::from(h.width))),
        ("height", Value::Int(i64::from(h.height))),
        ("color", Value::str(h.color.name())),
        ("alpha", Value::Bool(h.alpha)),
        ("bits", Value::Int(i64::from(h.bits))),
        ("orientation", Value::Int(i64::from(h.orientation))),
        ("animated", Value::Bool(h.animated)),
        ("progressive", Value::Bool(h.progressive)),
    ]))
}

fn run_thumbnail(ctx: &mut OpCtx<'_>) -> Result<Value> {
    run(ctx, Some(target(ctx, true)))
}

fn run_resize(ctx: &mut OpCtx<'_>) -> Result<Value> {
    run(ctx, Some(target(ctx, ctx.params().bool("without_enlargement"))))
}

fn run_convert(ctx: &mut OpCtx<'_>) -> Result<Value> {
    run(ctx, None)
}

fn target<'a>(ctx: &OpCtx<'a>, without_enlargement: bool) -> Target<'a> {
    let p = ctx.params();
    let size = |name| p.opt_int(name).and_then(|n| u32::try_from(n).ok());
    Target { width: size("width"), height: size("height"), fit: p.str("fit"), position: p.str("position"), without_enlargement }
}

fn background(text: &str) -> Result<[u8; 4]> {
    let bad =
        || Error::invalid("option is no colour").with("option", "background").with("value", text.chars().take(80).collect::<String>());
    let digits: Vec<u8> = text.strip_prefix('#').unwrap_or("").chars().map_while(|c| c.to_digit(16)).map(|d| d as u8).collect();
    if digits.len() + 1 != text.len() {
        return Err(bad());
    }
    match digits[..] {
        [r, g, b] => Ok([r * 17, g * 17, b * 17, 255]),
        [r, s, g, h, b, c] => Ok([r << 4 | s, g << 4 | h, b << 4 | c, 255]),
        [r, s, g, h, b, c, a, d] => Ok([r << 4 | s, g << 4 | h, b << 4 | c, a << 4 | d]),
        _ => Err(bad()),
    }
}

fn run(ctx: &mut OpCtx<'_>, resize: Option<Target<'_>>) -> Result<Value> {
    let params = ctx.params();
    let background = background(params.str("background"))?;
    let max_pixels = params.int("max_pixels").unsigned_abs();
    let header = probe::probe(ctx.input())?;
    decode::check_size(ctx.input(), &header, max_pixels)?;
    let format = match params.opt_str("format") {
        Some("jpeg") => Format::Jpeg,
        Some("webp") => Format::WebP,
        Some(_) => Format::Png,
        None => match header.format {
            Format::Gif | Format::Bmp => Format::Png,
            f => f,
        },
    };
    let orientation = if params.bool("auto_orient") { header.orientation } else { 1 };
    let turned = orientation >= 5;
    let (width, height) = if turned { (header.height, header.width) } else { (header.width, header.height) };
    let filter = if resize.is_some() { params.str("filter") } else { "" };
    let plan = match resize {
        Some(target) => resize::plan(width, height, &target, max_pixels)?,
        None => {
            let size = (width as usize, height as usize);
            let part = Part { left: 0.0, top: 0.0, width: f64::from(width), height: f64::from(height) };
            Plan { part, size, canvas: size, corner: (0, 0) }
        }
    };
    // Nearest means pixels of the picture, not means of blocks.
    let reduction = match filter {
        "" | "nearest" => 1.0,
        _ => (plan.part.width / plan.size.0 as f64).min(plan.part.height / plan.size.1 as f64) / GAP,
    };

    ctx.check()?;
    let decoded = decode::decode(ctx, ctx.input(), &header, reduction)?;
    let (x, y) = (decoded.width / f64::from(header.width), decoded.height / f64::from(header.height));
    let stored = plan.part.stored(orientation, f64::from(header.width), f64::from(header.height));
    let part = Part { left: stored.left * x, top: stored.top * y, width: stored.width * x, height: stored.height * y };
    let size = if turned { (plan.size.1, plan.size.0) } else { plan.size };
    let mut bitmap = resize::resample(ctx, decoded.bitmap, part, size, filter)?.oriented(ctx, orientation)?;
    if let Some(icc) = decoded.icc {
        color::to_srgb(ctx, &mut bitmap, &icc)?;
    }
    bitmap = bitmap.padded(ctx, plan.canvas, plan.corner, background)?;
    if format == Format::Jpeg {
        bitmap = bitmap.flatten(ctx, background)?;
    }
    let settings = Settings {
        format,
        quality: params.int("quality").clamp(1, 100) as u8,
        subsampling: params.str("subsampling"),
        compression: params.str("compression"),
    };
    encode::encode(ctx, &bitmap, &settings).map(Value::from)
}
