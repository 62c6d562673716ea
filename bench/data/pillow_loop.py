"""The loop that most training scripts have: a folder of images through Pillow, in several processes, to one array.

usage: pillow_loop.py FOLDER OUTPUT.npy [PROCESSES=2]     prints the seconds
"""

import multiprocessing
import os
import sys
import time

import numpy as np
from PIL import Image


def decode(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def main():
    start = time.monotonic()
    paths = sorted(os.path.join(d, f) for d, _, names in os.walk(sys.argv[1]) for f in names)
    processes = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    with multiprocessing.Pool(processes) as pool:
        images = np.stack(list(pool.imap(decode, paths, chunksize=64)))
    np.save(sys.argv[2], images)
    print(f"{time.monotonic() - start:.3f}")


if __name__ == "__main__":
    main()
