"""Writes N small PNG files, RGB, of shapes and noise: what a folder of icons or thumbnails compresses like.

usage: make_pngs.py FOLDER [N=20000] [SIDE=32]
"""

import os
import random
import sys

from PIL import Image, ImageDraw


def picture(rng, side):
    image = Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        box = sorted(rng.randrange(side) for _ in range(2)) + sorted(rng.randrange(side) for _ in range(2))
        draw.ellipse((box[0], box[2], box[1], box[3]), fill=tuple(rng.randrange(256) for _ in range(3)))
    noise = Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side))
    return Image.blend(image, noise, 0.1)


def main():
    folder = sys.argv[1]
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    side = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    rng = random.Random(1)
    for i in range(n):
        name = os.path.join(folder, f"class{i % 10}")
        os.makedirs(name, exist_ok=True)
        picture(rng, side).save(os.path.join(name, f"{i:06d}.png"))


main()
