"""Times Pillow's bicubic filter on a 1080p frame, with the crop and the normalisation behind it: `resize.py <side> <runs>`."""

import json
import sys
import time

import numpy as np
from PIL import Image

side, runs = map(int, sys.argv[1:])
mean = np.float32([0.48145466, 0.4578275, 0.40821073])
deviation = np.float32([0.26862954, 0.26130258, 0.27577711])
frame = Image.fromarray(np.random.default_rng(4).integers(0, 256, (1080, 1920, 3), dtype=np.uint8))
for run in range(runs + 1):
    began = time.perf_counter()
    width = side * frame.width // frame.height
    small = frame.resize((width, side), Image.Resampling.BICUBIC)
    left = (width - side) // 2
    pixels = np.asarray(small.crop((left, 0, left + side, side)), np.float32) / 255
    pixels = np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1))
    if run > 0:
        print(json.dumps({"seconds": time.perf_counter() - began}))
