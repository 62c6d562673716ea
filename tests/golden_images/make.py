"""Makes the files of this folder with Pillow: a picture, and what guided-diffusion's centre crop makes of it.

usage: make.py      (Pillow and NumPy; the files in the repository were made with Pillow 13.0)
"""

import numpy as np
from PIL import Image


def picture(height, width, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([128 + 100 * np.sin(x / 5 + y / 11), 255 * (x + y) / (height + width), 255 * ((x // 4 + y // 6) % 2)], 2)
    return Image.fromarray(np.clip(rgb + rng.normal(0, 8, rgb.shape), 0, 255).astype(np.uint8))


def crop(image, height, width):
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = max(height / image.height, width / image.width)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.BICUBIC)
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def main():
    source = picture(61, 97, 0)
    source.save("source_61x97.png")
    for height, width in [(24, 24), (16, 16), (7, 7), (40, 64), (80, 72)]:
        crop(source, height, width).save(f"crop_{height}x{width}.png")
    source.resize((33, 50), Image.BICUBIC).save("bicubic_50x33.png")
    source.resize((48, 30), Image.BOX).save("box_30x48.png")
    small = picture(24, 40, 1)
    small.save("baseline.jpg", quality=90)
    small.save("progressive.jpg", quality=90, progressive=True)
    small.save("restart.jpg", quality=90, restart_marker_blocks=2)
    small.save("full_chroma.jpg", quality=90, subsampling=0)
    small.convert("L").save("grey.jpg", quality=90)
    small.convert("CMYK").save("cmyk.jpg", quality=90)
    for name in ["baseline", "progressive", "restart", "full_chroma", "grey"]:
        Image.open(name + ".jpg").convert("RGB").save(name + ".jpg.png")
    small.quantize(7).save("palette.png")
    small.quantize(7).convert("RGB").save("palette.png.png")
    np.savez_compressed("numpy.npz", arr_0=(np.arange(24) % 5).astype(np.uint8).reshape(2, 3, 4, 1), arr_1=np.array([3, -1]))
    np.savez("numpy_images.npz", (np.arange(24) % 5).astype(np.uint8).reshape(2, 3, 4))


main()
