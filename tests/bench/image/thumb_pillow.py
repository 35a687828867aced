"""Thumbnails of one photo with Pillow: prints the median in ms as one JSON line and writes the last result for ssim.py.

usage: python thumb_pillow.py PHOTO WIDTH ROUNDS [OUTPUT.png]
"""

import io
import json
import statistics
import sys
import time

import PIL
from PIL import Image, ImageOps

photo, width, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(photo, "rb") as f:
    data = f.read()


def thumbnail():
    image = Image.open(io.BytesIO(data))
    height = round(image.height * width / image.width)
    # `thumbnail` decodes at a reduced scale (`draft`) of at least twice the size, then resizes with Lanczos.
    image.thumbnail((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return ImageOps.exif_transpose(image)


def encoded():
    out = io.BytesIO()
    thumbnail().save(out, "JPEG", quality=80)
    return out.getvalue()


for _ in range(3):
    encoded()
times = []
for _ in range(rounds):
    start = time.perf_counter()
    encoded()
    times.append((time.perf_counter() - start) * 1e3)
if len(sys.argv) > 4:
    thumbnail().save(sys.argv[4])
print(json.dumps({"peer": "pillow", "version": PIL.__version__, "rounds": rounds, "median_ms": statistics.median(times), "min_ms": min(times)}))
