"""What a device does at most: `limits.py '{"device": "cuda", "rows": 8192, "bytes": 2147483648}'`.

Writes multiplications and additions a second in bfloat16, each counted, and bytes of memory read a second.
"""

import json
import sys
import time

import torch

task = json.loads(sys.argv[1])
device = task["device"]


def seconds(work, runs=20):
    """The quickest of some runs."""
    quickest = float("inf")
    for _ in range(runs):
        if device != "cpu":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        quickest = min(quickest, time.perf_counter() - began)
    return quickest


rows = task["rows"]
left, right = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
product = torch.empty_like(left)
multiply = 2 * rows**3 / seconds(lambda: torch.mm(left, right, out=product))
source = torch.zeros(task["bytes"], dtype=torch.uint8, device=device)
target = torch.empty_like(source)
# A copy reads and writes.
read = 2 * task["bytes"] / seconds(lambda: target.copy_(source))
print(json.dumps({"multiply": multiply, "read": read}))
