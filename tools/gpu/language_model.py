"""Times LLaMA's decoder in PyTorch: `language_model.py '{"device": "cuda", "prompt": 2048, "newTokens": 128, …}'`.

Eager, as the reference runs: a module at a time, scaled dot product attention, and a cache of keys and values that grows by concatenation.
Writes the seconds to the first new token and the seconds of the tokens behind it.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

task = json.loads(sys.argv[1])
device, dtype = task["device"], getattr(torch, task["dtype"])
width, heads, inner = task["width"], task["heads"], task["inner"]
head = width // heads


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def rotated(x):
    left, right = x.chunk(2, -1)
    return torch.cat((-right, left), -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x, cosine, sine, past):
        batch, rows, _ = x.shape
        normed = self.norm1(x)
        q, k, v = (
            part(normed).view(batch, rows, heads, head).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        q, k = q * cosine + rotated(q) * sine, k * cosine + rotated(k) * sine
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=rows > 1)
        x = x + self.o(attended.transpose(1, 2).reshape(batch, rows, width))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), (k, v)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(task["vocabulary"], width)
        self.layers = nn.ModuleList(Layer() for _ in range(task["layers"]))
        self.norm, self.head = Norm(), nn.Linear(width, task["vocabulary"], bias=False)
        angles = 10000 ** (-torch.arange(0, head, 2).float() / head)
        self.register_buffer("angles", angles)

    def forward(self, ids, start, past):
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).float()
        angles = positions[:, None] * self.angles.float()
        angles = torch.cat((angles, angles), -1)
        x = self.table(ids)
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        kept = []
        for layer, own in zip(self.layers, past or [None] * len(self.layers)):
            x, own = layer(x, cosine, sine, own)
            kept.append(own)
        return self.head(self.norm(x[:, -1:])).argmax(-1), kept


torch.set_default_dtype(dtype)
with torch.device(device):
    decoder = Decoder().eval()


def generate(prompt, count):
    ids = torch.randint(task["vocabulary"], (1, prompt), device=device)
    began = time.perf_counter()
    with torch.inference_mode():
        token, past = decoder(ids, 0, None)
        # As generation does: it looks at each token before it goes on.
        token.item()
        first = time.perf_counter() - began
        for position in range(prompt, prompt + count - 1):
            token, past = decoder(token, position, past)
            token.item()
    return first, time.perf_counter() - began - first


# What a first run of this length chooses and allocates is not its speed.
generate(task["prompt"], 2)
first, rest = generate(task["prompt"], task["newTokens"])
print(json.dumps({"first": first, "rest": rest, "tokens": task["newTokens"] - 1}))
