"""Makes the fixtures of core/tests/images: small pictures of every kind that is read, and what Pillow decodes them to."""
import io, os, struct, sys, zlib
from PIL import Image, ImageDraw
import numpy as np
out = sys.argv[1]
os.makedirs(out, exist_ok=True)
W, H = 21, 13
y, x = np.mgrid[0:H, 0:W]
# Smooth, asymmetric in both directions, coloured.
rgb = np.stack([x * 255 / (W - 1), y * 255 / (H - 1), 128 + 100 * np.sin(x / 5 + y / 7)], -1).astype(np.uint8)
alpha = np.clip((x + y) * 255 / (W + H - 2), 0, 255).astype(np.uint8)
im = Image.fromarray(rgb); gray = im.convert("L")
rgba = Image.fromarray(np.dstack([rgb, alpha]))
la = Image.fromarray(np.dstack([np.asarray(gray), alpha]), "LA")
def put(name, data): open(f"{out}/{name}", "wb").write(data); assert len(data) < 4096, name
def save(name, image, **kw):
    b = io.BytesIO(); image.save(b, **kw); put(name, b.getvalue())
big = im.resize((48, 40), Image.BICUBIC)
for n, ss in (("444", 0), ("422", 1), ("420", 2)):
    save(f"{n}.jpg", big, format="JPEG", quality=90, subsampling=ss)
save("gray.jpg", big.convert("L"), format="JPEG", quality=90)
save("restart.jpg", big, format="JPEG", quality=90, restart_marker_blocks=2)
save("progressive.jpg", big, format="JPEG", quality=90, progressive=True)
save("progressive444.jpg", big, format="JPEG", quality=90, progressive=True, subsampling=0)
save("cmyk.jpg", big.convert("CMYK"), format="JPEG", quality=92)
save("optimized.jpg", big, format="JPEG", quality=60, optimize=True)
save("rgb.jpg", big, format="JPEG", quality=90, keep_rgb=True)
for o in range(1, 9):
    exif = Image.Exif(); exif[0x0112] = o
    save(f"orientation{o}.jpg", big, format="JPEG", quality=60, exif=exif)
exif = Image.Exif(); exif[0x0112] = 6
save("orientation6.png", im, format="PNG", exif=exif)
save("orientation6.webp", im, format="WEBP", lossless=True, exif=exif)
# PNG of every colour type and depth, plain and interlaced (Adam7 by hand: Pillow does not write it).
def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
def png(samples, depth, ct, interlace, extra=b""):
    h, w = samples.shape[:2]
    def rows(a):
        r = b""
        if a.shape[0] == 0 or a.shape[1] == 0: return r
        for line in a.reshape(a.shape[0], -1):
            if depth == 16: d = line.astype(">u2").tobytes()
            elif depth == 8: d = line.astype(np.uint8).tobytes()
            else:
                bits = "".join(format(int(v), f"0{depth}b") for v in line); bits += "0" * (-len(bits) % 8)
                d = bytes(int(bits[i:i+8], 2) for i in range(0, len(bits), 8))
            r += b"\0" + d
        return r
    if interlace:
        raw = b"".join(rows(samples[y0::dy, x0::dx]) for x0, y0, dx, dy in ((0,0,8,8),(4,0,8,8),(0,4,4,8),(2,0,4,4),(0,2,2,4),(1,0,2,2),(0,1,1,2)))
    else: raw = rows(samples)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, ct, 0, 0, interlace)) + extra
            + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))
g = np.asarray(gray).astype(np.uint32)
def scale(a, depth): return (a.astype(np.uint32) * ((1 << depth) - 1) + 127) // 255
for i in (0, 1):
    s = "i" if i else ""
    for d in (1, 2, 4, 8, 16): put(f"gray{d}{s}.png", png(scale(g, d), d, 0, i))
    for d in (8, 16):
        put(f"rgb{d}{s}.png", png(scale(rgb, d), d, 2, i))
        put(f"la{d}{s}.png", png(scale(np.asarray(la), d), d, 4, i))
        put(f"rgba{d}{s}.png", png(scale(np.asarray(rgba), d), d, 6, i))
    for d in (1, 2, 4, 8):
        n = 1 << d; q = im.quantize(min(n, 64)); pal = bytes((q.getpalette() + [0] * 768)[:3 * min(n, 64)])
        put(f"indexed{d}{s}.png", png(np.asarray(q), d, 3, i, chunk(b"PLTE", pal)))
q = im.quantize(16)
put("trns.png", png(np.asarray(q), 4, 3, 0, chunk(b"PLTE", bytes(q.getpalette()[:48])) + chunk(b"tRNS", bytes(range(0, 256, 16)))))
put("trns_gray.png", png(g & 0xf0, 8, 0, 0, chunk(b"tRNS", struct.pack(">H", int(g[0, 0] & 0xf0)))))
save("lossy.webp", im, format="WEBP", quality=90)
save("lossy_alpha.webp", rgba, format="WEBP", quality=90)
save("lossless.webp", im, format="WEBP", lossless=True)
save("lossless_alpha.webp", rgba, format="WEBP", lossless=True, exact=True)
save("animated.webp", im, format="WEBP", lossless=True, save_all=True, append_images=[im.rotate(180)])
save("plain.gif", im.quantize(32), format="GIF")
tq = rgba.quantize(16); save("animated.gif", im.quantize(32), format="GIF", save_all=True, append_images=[im.rotate(180).quantize(32)], transparency=0)
save("plain.bmp", im, format="BMP")
save("gray.bmp", gray, format="BMP")
save("one.bmp", im.convert("1"), format="BMP")
save("rgba.bmp", rgba, format="BMP")
save("indexed.bmp", im.quantize(16), format="BMP")
# The answers: width height channels and pixels (of a 4x4 grid of samples, to stay small): x y r g b a per line.
lines = []
for name in sorted(os.listdir(out)):
    if name.endswith(".txt"): continue
    image = Image.open(f"{out}/{name}"); mode = image.mode
    if mode.startswith("I"): a = (np.asarray(image).astype(np.float64) / 257 + .5).astype(np.uint8); image = Image.fromarray(a)
    w, h = image.size
    px = image.convert("RGBA")
    points = [(int((i + .5) * w / 4), int((j + .5) * h / 4)) for j in range(4) for i in range(4)]
    lines.append(f"{name} {w} {h} " + " ".join("%d,%d,%02x%02x%02x%02x" % (*p, *px.getpixel(p)) for p in points))
open(f"{out}/answers.txt", "w").write("\n".join(lines) + "\n")
