"""Times EVA's visual encoder in PyTorch or ONNX Runtime: `visual_encoder.py '{"engine": "torch", "batch": 1, "runs": 4, …}'`.

Writes a line of JSON for each run behind the first one, which warms up. Each run has other frames. PyTorch computes on `"device"` in `"dtype"`,
without them on the CPU in float32.
"""

import json
import sys
import time

import numpy as np

task = json.loads(sys.argv[1])


def pytorch():
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(task["threads"])
    width, heads = task["width"], task["heads"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, task["inner"]), nn.Linear(task["inner"], width)

        def forward(self, x):
            frames, rows, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(frames, rows, 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(attended.transpose(1, 2).reshape(frames, rows, width))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, width, task["patch"], task["patch"])
            rows = (task["side"] // task["patch"]) ** 2 + 1
            self.first = nn.Parameter(torch.randn(1, 1, width))
            self.positions = nn.Parameter(torch.randn(1, rows, width))
            self.blocks = nn.ModuleList(Block() for _ in range(task["depth"]))

        def forward(self, pixels):
            patches = self.patch(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(len(pixels), -1, -1), patches], 1) + self.positions
            for block in self.blocks:
                x = block(x)
            return x

    device, dtype = task.get("device", "cpu"), getattr(torch, task.get("dtype", "float32"))
    encoder = Encoder().eval().to(device, dtype)

    def run(pixels):
        with torch.inference_mode():
            encoder(torch.from_numpy(pixels).to(device, dtype))
            if device != "cpu":
                torch.cuda.synchronize()

    return run


def onnx():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    session = onnxruntime.InferenceSession(task["model"], options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})


run = {"torch": pytorch, "onnx": onnx}[task["engine"]]()
random = np.random.default_rng(2)
for number in range(task["runs"] + 1):
    pixels = random.standard_normal((task["batch"], 3, task["side"], task["side"]), dtype=np.float32)
    began = time.perf_counter()
    run(pixels)
    if number > 0:
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
