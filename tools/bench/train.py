"""Times training steps of PyTorch, eager: the models of `training_step.rs`, with the same sizes, on the same task.

Usage: train.py '{"kind": "language", ...}'. Prints what `training_step.rs` prints, and the version.
"""

import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

PATCH = 14


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


def rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class DecoderLayer(nn.Module):
    def __init__(self, task):
        super().__init__()
        width, inner = task["width"], task["inner"]
        self.heads = task["heads"]
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).reshape(batch, length, width))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class LanguageModel(nn.Module):
    def __init__(self, task):
        super().__init__()
        width = task["width"]
        self.embed = nn.Embedding(task["vocabulary"], width)
        self.layers = nn.ModuleList(DecoderLayer(task) for _ in range(task["layers"]))
        self.norm = RmsNorm(width)
        self.head = nn.Linear(width, task["vocabulary"], bias=False)
        head = width // task["heads"]
        angles = torch.outer(torch.arange(task["length"]), 10000 ** (-torch.arange(0, head, 2) / head))
        self.cos, self.sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self, task):
        super().__init__()
        width, inner = task["width"], task["inner"]
        self.heads = task["heads"]
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        frames, rows, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(frames, rows, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(frames, rows, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisualEncoder(nn.Module):
    def __init__(self, task):
        super().__init__()
        width = task["width"]
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.class_row = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (task["length"] // PATCH) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(task) for _ in range(task["layers"]))

    def forward(self, pixels):
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_row.expand(len(x), -1, -1), x), 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x


def memory(name):
    """A number of this process in bytes; 0 where the system does not tell."""
    if not os.path.exists("/proc/self/status"):
        return 0
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def main():
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    batch, length = task["batch"], task["length"]
    if task["kind"] == "language":
        model = LanguageModel(task)
        ids = torch.arange(batch * length).mul(7919).remainder(task["vocabulary"])
        loss_of = lambda: F.cross_entropy(model(ids.view(batch, length)).flatten(0, 1), ids)
    else:
        model = VisualEncoder(task)
        pixels = torch.randn(batch, 3, length, length)
        loss_of = lambda: model(pixels).square().mean()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    before = memory("VmRSS")
    forward = step = float("inf")
    for _ in range(task["steps"]):
        optimizer.zero_grad()
        start = time.perf_counter()
        loss = loss_of()
        forward = min(forward, time.perf_counter() - start)
        loss.backward()
        optimizer.step()
        step = min(step, time.perf_counter() - start)
    result = {"forward": forward, "step": step, "memory": memory("VmHWM") - before}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({**result, "parameters": parameters, "loss": loss.item(), "version": torch.__version__}))


main()
