"""Writes a 4000×3000 JPEG like a camera's: scikit-learn's sample photo, cut to 4:3, enlarged, with noise.

usage: python make_photo.py PHOTO.jpg [--progressive]
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

# The photograph lies in the package; none of its code is needed, nor what that depends on.
image = Image.open(Path(find_spec("sklearn").origin).parent / "datasets/images/china.jpg").convert("RGB")
width, height = image.size
cut = height * 4 // 3
left = (width - cut) // 2
image = image.crop((left, 0, left + cut, height)).resize((4000, 3000), Image.Resampling.LANCZOS)
# Without noise an enlarged picture has hardly any high frequencies to decode.
noise = np.random.default_rng(1).normal(0, 5, (3000, 4000, 1))
image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
image.save(sys.argv[1], quality=90, progressive="--progressive" in sys.argv)
