"""Prints the mean structural similarity of two images of one size (Wang et al. 2004: luma, 11×11 Gaussian window, sigma 1.5).

usage: python ssim.py A.png B.png
"""

import sys

import numpy as np
from PIL import Image


def gaussian(a):
    x = np.arange(-5, 6)
    k = np.exp(-(x**2) / (2 * 1.5**2))
    k /= k.sum()
    rows = sum(w * a[:, i : a.shape[1] - 10 + i] for i, w in enumerate(k))
    return sum(w * rows[i : rows.shape[0] - 10 + i] for i, w in enumerate(k))


def ssim(a, b):
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = gaussian(a), gaussian(b)
    va, vb, cov = gaussian(a * a) - ma * ma, gaussian(b * b) - mb * mb, gaussian(a * b) - ma * mb
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


if __name__ == "__main__":
    images = [np.asarray(Image.open(path).convert("L"), dtype=np.float64) for path in sys.argv[1:3]]
    if images[0].shape != images[1].shape:
        sys.exit(f"sizes differ: {images[0].shape} and {images[1].shape}")
    print(f"{ssim(*images):.4f}")
