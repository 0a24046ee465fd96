"""Times the Q-Former and what makes tokens of it in PyTorch, as LLaMA-VID's reference does: every frame with the question anew.

Usage: query_model.py '{"frames": 64, "words": 32, "layers": 12, …}'. Writes a line of JSON for each run behind the first one.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
width, heads, inner, queries = task["width"], task["heads"], task["inner"], task["queries"]
visual, language = task["visualWidth"], task["languageWidth"]


class Attention(nn.Module):
    """With its output, residual and norm."""

    def __init__(self, memory):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(memory, width), nn.Linear(memory, width)
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x, memory):
        split = lambda rows: rows.unflatten(-1, (heads, -1)).transpose(1, 2)
        q, k, v = split(self.q(x)), split(self.k(memory)), split(self.v(memory))
        return self.norm(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x):
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    def __init__(self, crosses):
        super().__init__()
        self.own = Attention(width)
        self.cross = Attention(visual) if crosses else None
        self.of_queries, self.of_words = FeedForward(), FeedForward()

    def forward(self, x, features):
        x = self.own(x, x)
        first, words = x[:, :queries], x[:, queries:]
        if self.cross is not None:
            first = self.cross(first, features)
        return torch.cat([self.of_queries(first), self.of_words(words)], 1)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30523, width)
        self.positions = nn.Embedding(512, width)
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.norm, self.norm_of_features = nn.LayerNorm(width, 1e-12), nn.LayerNorm(visual)
        self.layers = nn.ModuleList(Layer(index % 2 == 0) for index in range(task["layers"]))
        self.query, self.key, self.value = nn.Linear(width, visual), nn.Linear(visual, visual), nn.Linear(visual, language)
        self.projector = nn.Sequential(nn.Linear(visual, language), nn.GELU(), nn.Linear(language, language))

    def forward(self, features, ids):
        frames = len(features)
        words = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        x = torch.cat([self.queries, words], 1).expand(frames, -1, -1)
        x, seen = self.norm(x), self.norm_of_features(features)
        for layer in self.layers:
            x = layer(x, seen)
        patches = features[:, 1:]
        q, k = self.query(x[:, :queries]), self.key(patches)
        scores = (q @ k.transpose(1, 2) / visual**0.5).softmax(-1)
        context = self.value((scores @ patches).mean(1))
        return torch.stack([context, self.projector(patches.mean(1))], 1)


model = Tokens().eval()
features = torch.rand(task["frames"], task["rows"], visual) * 2 - 1
ids = torch.randint(1000, 30000, (1, task["words"]))
for run in range(task["runs"] + 1):
    began = time.perf_counter()
    with torch.inference_mode():
        model(features, ids)
    if run > 0:
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
