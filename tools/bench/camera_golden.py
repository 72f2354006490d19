#!/usr/bin/env python3
"""Makes tests/data/camera: small pictures in every format, and what numpy in double precision makes of one of them.

usage: tools/bench/camera_golden.py [FOLDER]     (needs numpy and pillow)
"""
import io
import os
import sys

import numpy as np
from PIL import Image

WIDTH, HEIGHT, TO = 64, 48, (10, 7)


def picture():
    """Smooth colours with some edges, every second column equal to the one before: YUYV loses nothing of it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    x = x // 2 * 2
    colours = np.stack([40 + 2.5 * x, 60 + 3 * y, 128 + 60 * np.sin(x / 9) * np.cos(y / 7)], axis=-1)
    colours[12:30, 20:44] = (200, 90, 60)
    return np.clip(np.rint(colours), 16, 235).astype(np.uint8)


def area_mean(image, to):
    """Every source pixel by the share of it that lies under a pixel of the result, in double precision."""
    def shares(length, count):
        edges = np.arange(count + 1) * length / count
        left, right = edges[:-1, None], edges[1:, None]
        pixel = np.arange(length)
        return np.clip(np.minimum(right, pixel + 1) - np.maximum(left, pixel), 0, None) / (right - left)
    rows, columns = shares(image.shape[0], to[1]), shares(image.shape[1], to[0])
    return np.rint(np.einsum("ai,bj,ijc->abc", rows, columns, image.astype(np.float64))).astype(np.uint8)


def yuyv(image):
    r, g, b = (image[..., channel].astype(np.float64) for channel in range(3))
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    pairs = lambda plane: (plane[:, 0::2] + plane[:, 1::2]) / 2
    packed = np.stack([y[:, 0::2], pairs(u), y[:, 1::2], pairs(v)], axis=-1)
    return np.rint(packed).astype(np.uint8).tobytes()


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "../../tests/data/camera")
    image = picture()
    files = {
        "picture.rgb": image.tobytes(),
        "picture.yuyv": yuyv(image),
        "picture.jpg": jpeg(image, quality=95, subsampling=0),
        "golden.rgb": area_mean(image, TO).tobytes(),
        "baseline.jpg": jpeg(image, quality=80, subsampling=2),
        "restarts.jpg": jpeg(image, quality=80, subsampling=1, restart_marker_blocks=2),
        "progressive.jpg": jpeg(image, quality=80, progressive=True),
        "grey.jpg": jpeg(image[..., 1], quality=80),
    }
    os.makedirs(folder, exist_ok=True)
    for name, content in files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
        print(f"{name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
