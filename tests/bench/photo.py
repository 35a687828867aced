"""Enlarges a real photograph to 4000 × 3000, as a camera would deliver it: `photo.py FROM TO`."""

import sys

from PIL import Image

image = Image.open(sys.argv[1]).convert("RGB")
side = min(image.width // 4, image.height // 3)
image = image.crop((0, 0, side * 4, side * 3)).resize((4000, 3000), Image.Resampling.BICUBIC)
image.save(sys.argv[2], "JPEG", quality=90, subsampling="4:2:0")
