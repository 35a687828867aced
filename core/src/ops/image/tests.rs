//! Tests of the `image` family. The pictures and Pillow's reading of them are in `core/tests/images` (made by `make.py` there).
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use super::bitmap::Bitmap;
use super::probe::{self, Header};
use super::resize::{self, Part, Target};
use super::{decode, jpeg};
use crate::buffer::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{self, Control, OpCtx, Params, Splitter};
use crate::value::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/");

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{DIR}{name}")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A pixel: x, y, RGBA.
type Sample = (usize, usize, [u8; 4]);

/// Every picture's name, width, height and some of its pixels.
fn answers() -> Vec<(String, u32, u32, Vec<Sample>)> {
    let text = String::from_utf8(file("answers.txt")).unwrap();
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap();
        let (name, width, height) = (next().to_owned(), next().parse().unwrap(), next().parse().unwrap());
        let points = words.map(|w| {
            let p: Vec<&str> = w.split(',').collect();
            (p[0].parse().unwrap(), p[1].parse().unwrap(), u32::from_str_radix(p[2], 16).unwrap().to_be_bytes())
        });
        (name, width, height, points.collect())
    };
    text.lines().map(parse).collect()
}

fn run(op: &str, data: &[u8], params: Value) -> Result<Vec<u8>> {
    ops::run_inline(op, vec![Bytes::from(data)], &params)?.into_bytes().map(Bytes::into_vec)
}

fn no_params() -> &'static Params {
    static NONE: std::sync::OnceLock<Params> = std::sync::OnceLock::new();
    NONE.get_or_init(|| Params::check("image.convert", &[], &Value::Nil).unwrap())
}

fn ctx() -> OpCtx<'static> {
    OpCtx::inline(Vec::new(), no_params())
}

fn pixels(data: &[u8]) -> Result<Bitmap> {
    let header = probe::probe(data)?;
    decode::check_size(data, &header, 100_000_000)?;
    Ok(decode::decode(&ctx(), data, &header, 1.0)?.bitmap)
}

fn rgba(b: &Bitmap, x: usize, y: usize) -> [u8; 4] {
    let p = &b.row(y)[x * b.channels..(x + 1) * b.channels];
    match *p {
        [l] => [l, l, l, 255],
        [l, a] => [l, l, l, a],
        [r, g, b] => [r, g, b, 255],
        [r, g, b, a] => [r, g, b, a],
        _ => unreachable!(),
    }
}

fn far(a: [u8; 4], b: [u8; 4]) -> u8 {
    // The colour of a transparent pixel does not show.
    if a[3] == 0 && b[3] == 0 {
        return 0;
    }
    a.iter().zip(b).map(|(a, b)| a.abs_diff(b)).max().unwrap()
}

fn kind(result: Result<impl Sized>) -> ErrorKind {
    match result {
        Ok(_) => panic!("no error"),
        Err(e) => e.kind(),
    }
}

#[test]
fn every_kind_decodes_as_pillow_does() {
    let answers = answers();
    assert!(answers.len() > 60);
    for (name, width, height, points) in answers {
        let b = pixels(&file(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((b.width as u32, b.height as u32), (width, height), "{name}");
        // Inverse transforms and chroma upsampling may round in their own way; 16 bits are rounded here and cut there.
        let tolerance = match name.rsplit('.').next() {
            Some("jpg") => 6,
            Some("webp") if name.starts_with("lossy") => 4,
            _ => u8::from(name.contains("16")),
        };
        for (x, y, want) in points {
            let got = rgba(&b, x, y);
            assert!(far(got, want) <= tolerance, "{name} at {x},{y}: {got:?}, Pillow {want:?}");
        }
    }
}

#[test]
fn reduced_jpeg_is_the_mean_of_its_pixels() {
    let mut decoded = 0;
    for (name, ..) in answers().into_iter().filter(|a| a.0.ends_with(".jpg")) {
        let data = file(&name);
        let whole = pixels(&data).unwrap();
        for scale in [1, 2, 4] {
            let Some(small) = jpeg::decode(&data, scale, &|| Ok(())).unwrap() else {
                assert!(name.starts_with("cmyk"), "{name} is left to the general decoder");
                continue;
            };
            decoded += 1;
            let n = 8 / scale;
            assert_eq!((small.width, small.height), (whole.width.div_ceil(n), whole.height.div_ceil(n)), "{name}");
            for y in 0..whole.height / n {
                for x in 0..whole.width / n {
                    let mut sum = [0u32; 4];
                    for (sx, sy) in (0..n * n).map(|i| (x * n + i % n, y * n + i / n)) {
                        sum.iter_mut().zip(rgba(&whole, sx, sy)).for_each(|(s, v)| *s += u32::from(v));
                    }
                    let mean = sum.map(|s| (s / (n * n) as u32) as u8);
                    let got = rgba(&small, x, y);
                    assert!(far(got, mean) <= 9, "{name} at 1/{n}, {x},{y}: {got:?}, mean {mean:?}");
                }
            }
        }
    }
    assert!(decoded >= 40, "{decoded}");
}

#[test]
fn probe_reads_headers() {
    let words = |h: &Header| {
        let flags = [(h.alpha, " alpha"), (h.animated, " animated"), (h.progressive, " progressive")];
        let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
        format!("{} {}x{} {} {} o{}{flags}", h.format.name(), h.width, h.height, h.color.name(), h.bits, h.orientation)
    };
    for (name, want) in [
        ("420.jpg", "jpeg 48x40 rgb 8 o1"),
        ("gray.jpg", "jpeg 48x40 gray 8 o1"),
        ("cmyk.jpg", "jpeg 48x40 cmyk 8 o1"),
        ("progressive.jpg", "jpeg 48x40 rgb 8 o1 progressive"),
        ("orientation7.jpg", "jpeg 48x40 rgb 8 o7"),
        ("orientation6.png", "png 21x13 rgb 8 o6"),
        ("orientation6.webp", "webp 21x13 rgb 8 o6"),
        ("gray1.png", "png 21x13 gray 1 o1"),
        ("rgba16i.png", "png 21x13 rgb 16 o1 alpha progressive"),
        ("indexed4.png", "png 21x13 indexed 4 o1"),
        ("trns.png", "png 21x13 indexed 4 o1 alpha"),
        ("lossy.webp", "webp 21x13 rgb 8 o1"),
        ("lossless.webp", "webp 21x13 rgb 8 o1"),
        ("lossy_alpha.webp", "webp 21x13 rgb 8 o1 alpha"),
        ("lossless_alpha.webp", "webp 21x13 rgb 8 o1 alpha"),
        ("plain.bmp", "bmp 21x13 rgb 8 o1"),
        ("rgba.bmp", "bmp 21x13 rgb 8 o1"),
        ("one.bmp", "bmp 21x13 indexed 1 o1"),
    ] {
        assert_eq!(words(&probe::probe(&file(name)).unwrap()), want, "{name}");
    }
    assert!(probe::probe(&file("animated.gif")).unwrap().animated);
    assert!(probe::probe(&file("animated.webp")).unwrap().animated);
    assert!(!probe::probe(&file("plain.gif")).unwrap().animated);
    let value = ops::run_inline("image.probe", vec![file("420.jpg").into()], &Value::Nil).unwrap();
    assert_eq!(value.get("width").and_then(Value::as_int), Some(48));
    assert_eq!(value.get("format").and_then(Value::as_str), Some("jpeg"));
}

/// Where red and green grow in a picture of the fixtures, which grow to the right and down when stored.
fn growth(b: &Bitmap) -> (&'static str, &'static str) {
    let (l, t, r, d) = (b.width / 8, b.height / 8, b.width * 7 / 8, b.height * 7 / 8);
    let direction = |c: usize| {
        let horizontal = i32::from(rgba(b, r, t)[c]) - i32::from(rgba(b, l, t)[c]);
        let vertical = i32::from(rgba(b, l, d)[c]) - i32::from(rgba(b, l, t)[c]);
        match (horizontal, vertical) {
            (h, v) if h > 80 && v.abs() < 40 => "right",
            (h, v) if h < -80 && v.abs() < 40 => "left",
            (h, v) if v > 80 && h.abs() < 40 => "down",
            (h, v) if v < -80 && h.abs() < 40 => "up",
            _ => "nowhere",
        }
    };
    (direction(0), direction(1))
}

#[test]
fn exif_orientation_turns_the_pixels() {
    // EXIF 2.3, tag 0x0112: which side the stored top row and left column are.
    let want = [
        ("right", "down"),
        ("left", "down"),
        ("left", "up"),
        ("right", "up"),
        ("down", "right"),
        ("down", "left"),
        ("up", "left"),
        ("up", "right"),
    ];
    for (o, want) in (1..).zip(want) {
        let data = file(&format!("orientation{o}.jpg"));
        for (op, params) in [
            ("image.convert", Value::map([("format", "png".into())])),
            ("image.thumbnail", Value::map([("format", "png".into()), ("width", 10.into())])),
            ("image.resize", Value::map([("format", "png".into()), ("width", 30.into()), ("height", 30.into()), ("fit", "fill".into())])),
        ] {
            let b = pixels(&run(op, &data, params).unwrap()).unwrap();
            assert_eq!(growth(&b), want, "orientation {o}, {op}");
            match op {
                "image.convert" => assert_eq!((b.width, b.height), if o >= 5 { (40, 48) } else { (48, 40) }),
                "image.thumbnail" => assert_eq!((b.width, b.height), (10, if o >= 5 { 12 } else { 8 })),
                _ => assert_eq!((b.width, b.height), (30, 30)),
            }
        }
        let as_stored = run("image.convert", &data, Value::map([("format", "png".into()), ("auto_orient", false.into())])).unwrap();
        assert_eq!(growth(&pixels(&as_stored).unwrap()), want_stored());
    }
    for name in ["orientation6.png", "orientation6.webp"] {
        assert_eq!(growth(&pixels(&run("image.convert", &file(name), Value::Nil).unwrap()).unwrap()), ("down", "left"), "{name}");
    }
}

fn want_stored() -> (&'static str, &'static str) {
    ("right", "down")
}

#[test]
fn cover_keeps_the_asked_part_of_the_turned_picture() {
    for o in 1..=8 {
        let data = file(&format!("orientation{o}.jpg"));
        let upright = run("image.convert", &data, Value::map([("format", "png".into())])).unwrap();
        for position in ["top", "bottom", "left", "right", "center"] {
            for (w, h) in [(40, 10), (10, 40)] {
                let params = || {
                    let words = [("position", position), ("format", "png")].map(|(k, v)| (k, Value::from(v)));
                    Value::map(words.into_iter().chain([("width", Value::Int(w)), ("height", Value::Int(h))]))
                };
                let one = pixels(&run("image.resize", &data, params()).unwrap()).unwrap();
                let two = pixels(&run("image.resize", &upright, params()).unwrap()).unwrap();
                assert_eq!((one.width as i64, one.height as i64), (w, h));
                assert!(one.data.iter().zip(&two.data).all(|(a, b)| a.abs_diff(*b) <= 2), "orientation {o}, {position}, {w}x{h}");
            }
        }
    }
}

#[test]
fn fits_have_their_sizes() {
    let target = |width, height, fit, without_enlargement| Target { width, height, fit, position: "center", without_enlargement };
    // Picture 400×200; asked width, height; fit; enlarge; size, canvas.
    for (w, h, fit, keep, size, canvas) in [
        (Some(200), None, "cover", false, (200, 100), (200, 100)),
        (None, Some(50), "cover", false, (100, 50), (100, 50)),
        (Some(100), Some(100), "cover", false, (100, 100), (100, 100)),
        (Some(100), Some(100), "contain", false, (100, 50), (100, 100)),
        (Some(100), Some(100), "fill", false, (100, 100), (100, 100)),
        (Some(100), Some(100), "inside", false, (100, 50), (100, 50)),
        (Some(100), Some(100), "outside", false, (200, 100), (200, 100)),
        (Some(800), None, "cover", false, (800, 400), (800, 400)),
        (Some(800), None, "cover", true, (400, 200), (400, 200)),
        (Some(800), Some(100), "cover", true, (400, 100), (400, 100)),
        (Some(800), Some(800), "contain", true, (400, 200), (800, 800)),
        (Some(800), Some(100), "fill", true, (400, 100), (400, 100)),
        (Some(800), Some(800), "inside", true, (400, 200), (400, 200)),
        (Some(1), None, "cover", false, (1, 1), (1, 1)),
    ] {
        let plan = resize::plan(400, 200, &target(w, h, fit, keep), 1 << 30).unwrap();
        assert_eq!((plan.size, plan.canvas), (size, canvas), "{w:?} {h:?} {fit} {keep}");
        assert_eq!(plan.corner, ((canvas.0 - size.0) / 2, (canvas.1 - size.1) / 2));
        assert!(plan.part.left >= 0.0 && plan.part.left + plan.part.width <= 400.0);
    }
    let cut = resize::plan(400, 200, &target(Some(100), Some(100), "cover", false), 1 << 30).unwrap();
    assert_eq!(cut.part, Part { left: 100.0, top: 0.0, width: 200.0, height: 200.0 });
    assert_eq!(kind(resize::plan(400, 200, &target(None, None, "cover", false), 1 << 30)), ErrorKind::Invalid);
    // A strip of 1×60000 made 60000 wide would be 3.6 · 10⁹ high.
    assert_eq!(kind(resize::plan(1, 60_000, &target(Some(60_000), None, "cover", false), 1 << 30)), ErrorKind::TooLarge);
}

/// A picture that is not smooth, so that a seam would show.
fn noise(width: usize, height: usize, channels: usize) -> Bitmap {
    let mut b = Bitmap::new(width, height, channels).unwrap();
    let mut x = 1u32;
    for v in &mut b.data {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *v = (x >> 24) as u8;
    }
    b
}

#[test]
fn bands_leave_no_seams() {
    use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::Image};
    for (channels, kind, (w, h), (ow, oh)) in [
        (3, PixelType::U8x3, (1500, 1300), (700, 633)),
        (3, PixelType::U8x3, (300, 400), (1501, 1733)),
        (1, PixelType::U8, (2500, 1300), (333, 1999)),
    ] {
        let mut src = noise(w, h, channels);
        // Little contrast: what the first pass overshoots and cuts off would depend on which pass is first.
        src.data.iter_mut().for_each(|v| *v = 96 + *v / 4);
        let mut want = Image::new(ow as u32, oh as u32, kind);
        let part = Part { left: 10.25, top: 20.5, width: w as f64 - 30.0, height: h as f64 - 50.75 };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
        let whole = Image::from_vec_u8(w as u32, h as u32, src.data.clone(), kind).unwrap();
        Resizer::new().resize(&whole, &mut want, &options.crop(part.left, part.top, part.width, part.height)).unwrap();
        let got = resize::resample(&ctx(), src, part, (ow, oh), "lanczos3").unwrap();
        // The order of the two passes is free, and each rounds to 8 bits; negative lobes make two of one.
        let worst = got.data.iter().zip(want.buffer()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(2), "{worst:?}");
    }
}

struct Threads;

impl Splitter for Threads {
    fn width(&self) -> usize {
        3
    }
    fn join(&self, helpers: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        std::thread::scope(|s| {
            (0..helpers).for_each(|_| drop(s.spawn(|| body(&|| false))));
            body(&|| false);
        });
    }
}

struct CancelAfter {
    left: AtomicUsize,
    seen: AtomicUsize,
}

impl Control for CancelAfter {
    fn check(&self) -> Result<()> {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        left.map(drop).map_err(|_| Error::new(ErrorKind::Cancelled, "task was cancelled"))
    }
}

fn run_with(op: &str, data: &[u8], options: &Value, checks: usize) -> (Result<Vec<u8>>, usize) {
    let control = CancelAfter { left: checks.into(), seen: 0.into() };
    let op = ops::find(op).unwrap();
    let params = Params::check(op.name, op.params, options).unwrap();
    let result = (op.run)(&mut OpCtx::new(vec![Bytes::from(data)], &params, &control, &Threads));
    (result.and_then(Value::into_bytes).map(Bytes::into_vec), control.seen.into_inner())
}

#[test]
fn work_that_is_split_gives_the_same_picture() {
    let photo = png_of(&noise(1200, 900, 4));
    for options in [
        Value::map([("width", 500.into())]),
        Value::map([("width", 900.into()), ("height", 900.into()), ("fit", "contain".into()), ("format", "jpeg".into())]),
    ] {
        let alone = run("image.resize", &photo, options.deep_clone().unwrap()).unwrap();
        assert_eq!(run_with("image.resize", &photo, &options, usize::MAX).0.unwrap(), alone);
    }
}

fn png_of(b: &Bitmap) -> Vec<u8> {
    let settings = super::Settings { format: probe::Format::Png, quality: 80, subsampling: "4:2:0", compression: "fast" };
    super::encode::encode(&ctx(), b, &settings).unwrap()
}

#[test]
fn cancelled_op_stops_at_any_look() {
    let png = png_of(&noise(1200, 900, 3));
    let jpeg = run("image.convert", &png, Value::map([("format", "jpeg".into())])).unwrap();
    let webp = run("image.convert", &png, Value::map([("format", "webp".into())])).unwrap();
    for (op, data, options) in [
        ("image.thumbnail", &jpeg, Value::map([("width", 64.into())])),
        ("image.resize", &jpeg, Value::map([("width", 1000.into())])),
        ("image.resize", &png, Value::map([("width", 1000.into()), ("format", "png".into())])),
        ("image.convert", &png, Value::map([("format", "jpeg".into())])),
        ("image.convert", &webp, Value::map([("format", "png".into())])),
    ] {
        let (result, looks) = run_with(op, data, &options, usize::MAX);
        result.unwrap();
        assert!(looks >= 20, "{op} looks {looks} times");
        for checks in (0..looks).step_by(looks / 20 + 1) {
            let (result, seen) = run_with(op, data, &options, checks);
            assert_eq!(kind(result), ErrorKind::Cancelled, "{op} cancelled at look {checks} of {looks}");
            // A decoder may look again while it gives up, and each thread looks once more.
            assert!(seen <= checks + 12, "{op} cancelled at look {checks} went on to {seen}");
        }
    }
}

#[test]
fn alpha_weighs_colours_and_is_flattened_on_the_background() {
    // Opaque blue beside transparent red: red must not bleed into what is seen.
    let mut b = Bitmap::new(64, 64, 4).unwrap();
    for (i, p) in b.data.chunks_exact_mut(4).enumerate() {
        p.copy_from_slice(if i % 2 == 0 { &[0, 0, 255, 255] } else { &[255, 0, 0, 0] });
    }
    let png = png_of(&b);
    let small = pixels(&run("image.resize", &png, Value::map([("width", 8.into())])).unwrap()).unwrap();
    let [r, _, b, a] = rgba(&small, 4, 4);
    assert!(r <= 2 && b >= 253 && a.abs_diff(128) <= 2, "{r} {b} {a}");
    let on_green = Value::map([("width", 8.into()), ("format", "jpeg".into()), ("background", "#0f0".into()), ("quality", 95.into())]);
    let flat = pixels(&run("image.resize", &png, on_green).unwrap()).unwrap();
    assert!(far(rgba(&flat, 4, 4), [0, 128, 128, 255]) <= 6, "{:?}", rgba(&flat, 4, 4));
    let contained = Value::map([("width", 8.into()), ("height", 16.into()), ("fit", "contain".into()), ("background", "#10203040".into())]);
    let padded = pixels(&run("image.resize", &file("gray8.png"), contained).unwrap()).unwrap();
    assert_eq!((padded.width, padded.height, rgba(&padded, 0, 0)), (8, 16, [0x10, 0x20, 0x30, 0x40]));
    for bad in ["red", "#12", "#ggg", "#1234567890", "", "#é1"] {
        assert_eq!(kind(run("image.convert", &png, Value::map([("background", bad.into())]))), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn results_are_what_they_say() {
    let source = file("444.jpg");
    for (format, tolerance) in [("jpeg", 16), ("png", 0), ("webp", 0)] {
        let options = [("format", format), ("subsampling", "4:4:4")].map(|(k, v)| (k, Value::from(v)));
        let data = run("image.convert", &source, Value::map(options.into_iter().chain([("quality", 95.into())]))).unwrap();
        assert_eq!(probe::probe(&data).unwrap().format.name(), format);
        let (a, b) = (pixels(&source).unwrap(), pixels(&data).unwrap());
        assert!(a.data.iter().zip(&b.data).all(|(a, b)| a.abs_diff(*b) <= tolerance), "{format}");
    }
    // By default in the format it came in; what is not written becomes png.
    for (name, format) in [("444.jpg", "jpeg"), ("rgb8.png", "png"), ("lossy.webp", "webp"), ("plain.gif", "png"), ("plain.bmp", "png")] {
        let data = run("image.thumbnail", &file(name), Value::map([("width", 5.into())])).unwrap();
        assert_eq!(probe::probe(&data).unwrap().format.name(), format, "{name}");
    }
    let size = |quality: i64| run("image.convert", &source, Value::map([("quality", quality.into())])).unwrap().len();
    assert!(size(20) < size(80) && size(80) < size(100));
    // A thumbnail never grows a picture, resize does.
    let width = |op| probe::probe(&run(op, &source, Value::map([("width", 100.into())])).unwrap()).unwrap().width;
    assert_eq!((width("image.thumbnail"), width("image.resize")), (48, 100));
}

/// Headers that claim 60000×60000 (65535×65535 for JPEG, 16383×16383 for WebP), with nothing behind.
fn bombs() -> BTreeMap<&'static str, Vec<u8>> {
    let edit = |name: &str, at: usize, bytes: &[u8]| {
        let mut data = file(name);
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    let mut jpeg = file("444.jpg");
    let sof = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[sof + 5..sof + 9].fill(0xff);
    let mut progressive = file("progressive.jpg");
    let sof = progressive.windows(2).position(|w| w == [0xff, 0xc2]).unwrap();
    progressive[sof + 5..sof + 9].fill(0xff);
    let mut png = file("rgb8.png");
    png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    BTreeMap::from([
        ("jpeg", jpeg),
        ("progressive", progressive),
        ("png", png),
        ("gif", edit("plain.gif", 6, &[0x60, 0xea, 0x60, 0xea])),
        ("bmp", edit("plain.bmp", 18, &[0x60, 0xea, 0, 0, 0x60, 0xea, 0, 0])),
        ("bmp top-down", edit("plain.bmp", 18, &[0, 0, 0, 0x80, 0, 0, 0, 0x80])),
        ("webp", edit("lossy.webp", 26, &[0xff, 0x3f, 0xff, 0x3f])),
        ("webp lossless", edit("lossless.webp", 21, &[0xff, 0xff, 0xff, 0x0f])),
        ("webp extended", edit("lossy_alpha.webp", 24, &[0xff; 6])),
    ])
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |c, b| (0..8).fold(c ^ u32::from(*b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 }))
}

#[test]
fn bombs_are_too_large_by_their_headers() {
    for (name, data) in bombs() {
        for (op, params) in [("image.thumbnail", Value::map([("width", 10.into())])), ("image.convert", Value::Nil)] {
            let e = run(op, &data, params).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::TooLarge, "{name}: {e}");
            assert!(e.to_string().contains("max_pixels=100000000"), "{e}");
        }
        // The headers are fine to look at.
        ops::run_inline("image.probe", vec![data.into()], &Value::Nil).unwrap();
    }
    let limit = |n: i64| run("image.convert", &file("444.jpg"), Value::map([("max_pixels", n.into())]));
    assert_eq!(kind(limit(48 * 40 - 1)), ErrorKind::TooLarge);
    limit(48 * 40).unwrap();
    let grown = Value::map([("width", 1000.into()), ("max_pixels", 500_000.into())]);
    assert_eq!(kind(run("image.resize", &file("444.jpg"), grown)), ErrorKind::TooLarge);
}

#[test]
fn dimensions_beyond_the_file_are_corrupt_before_memory_is_taken() {
    for name in ["jpeg", "progressive", "png"] {
        let e = run("image.convert", &bombs()[name], Value::map([("max_pixels", (1i64 << 32).into())])).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{name}: {e}");
        assert!(e.message().contains("shorter than any image"), "{name}: {e}");
    }
}

#[test]
fn unknown_and_empty_inputs_are_typed_errors() {
    for (data, want) in [
        (&b""[..], ErrorKind::Corrupt),
        (b"\0", ErrorKind::Unsupported),
        (b"hello world", ErrorKind::Unsupported),
        (b"%PDF-1.7", ErrorKind::Unsupported),
        (b"II*\0\x08\0\0\0", ErrorKind::Unsupported),
        (b"\xff\xd8\xff", ErrorKind::Corrupt),
        (b"\xff\xd8\xff\xd9", ErrorKind::Corrupt),
        (b"\x89PNG\r\n\x1a\n", ErrorKind::Corrupt),
        (b"GIF89a", ErrorKind::Corrupt),
        (b"BM", ErrorKind::Corrupt),
        (b"RIFF\0\0\0\0WEBP", ErrorKind::Corrupt),
    ] {
        assert_eq!(kind(ops::run_inline("image.probe", vec![data.into()], &Value::Nil)), want, "{data:?}");
        assert_eq!(kind(run("image.convert", data, Value::Nil)), want, "{data:?}");
    }
    let mut zero = file("plain.gif");
    zero[6..8].fill(0);
    assert_eq!(kind(run("image.convert", &zero, Value::Nil)), ErrorKind::Corrupt);
    for (params, word) in [
        (Value::map([("width", 0.into())]), "width"),
        (Value::map([("width", 65536.into())]), "65535"),
        (Value::map([("width", (-1).into())]), "-1"),
        (Value::map([("width", "9".into())]), "string"),
        (Value::map([("fit", "crop".into()), ("width", 9.into())]), "cover"),
        (Value::map([("format", "gif".into()), ("width", 9.into())]), "png"),
        (Value::map([("quality", 101.into()), ("width", 9.into())]), "100"),
        (Value::map([("nonsense", 1.into())]), "nonsense"),
        (Value::Nil, "width"),
    ] {
        let e = run("image.resize", &file("444.jpg"), params).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        assert!(e.to_string().contains(word), "{e}");
    }
}

/// Runs every op on damaged bytes; whatever comes out is a picture or a typed error.
fn survive(name: &str, data: &[u8]) -> bool {
    let mut whole = true;
    for (op, params) in [
        ("image.convert", Value::map([("format", "png".into()), ("max_pixels", 1_000_000.into())])),
        ("image.thumbnail", Value::map([("width", 3.into()), ("max_pixels", 1_000_000.into())])),
        ("image.thumbnail", Value::map([("width", 10.into()), ("max_pixels", 1_000_000.into())])),
    ] {
        match run(op, data, params) {
            Ok(out) => drop(pixels(&out).unwrap_or_else(|e| panic!("{name}: {op} wrote a picture that does not decode: {e}"))),
            Err(e) => {
                whole = false;
                let known = matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::TooLarge);
                assert!(known, "{name}: {op}: {e}");
            }
        }
    }
    whole
}

#[test]
fn truncated_pictures_are_errors_at_every_length() {
    for (name, ..) in answers() {
        let data = file(&name);
        for len in (0..data.len()).step_by(data.len() / 60 + 1) {
            let whole = survive(&format!("{name} cut to {len}"), &data[..len]);
            // What stands behind the last pixel may be cut off unnoticed: an end marker, later frames, other chunks.
            let early = if name.starts_with("animated") { data.len() / 4 } else { data.len() / 2 };
            assert!(!whole || len > early, "{name} cut to {len} of {} passes for whole", data.len());
        }
    }
}

#[test]
fn damaged_pictures_never_panic() {
    let mut x = 7u64;
    let mut random = |n: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % n as u64) as usize
    };
    for (name, ..) in answers() {
        let original = file(&name);
        for round in 0..60 {
            let mut data = original.clone();
            for _ in 0..1 + random(8) {
                let at = random(data.len());
                match random(4) {
                    0 => data[at] ^= 1 << random(8),
                    1 => data[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                    2 => drop(data.remove(at)),
                    _ => data.insert(at, random(256) as u8),
                }
            }
            survive(&format!("{name} damaged, round {round}"), &data);
        }
    }
}
