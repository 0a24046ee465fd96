"""Runs a program and writes down what it took: `measured.py <file for the numbers> <program> [argument ...]`.

The numbers are seconds on the clock, seconds of processors and the largest resident set, of the program and of what it waited for.
"""

import json
import os
import sys
import time

numbers, program, *arguments = sys.argv[1:]
began = time.perf_counter()
child = os.posix_spawnp(program, [program, *arguments], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - began
code = os.waitstatus_to_exitcode(status)
if code == 0:
    # The system counts in KiB, but for macOS, which counts in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    taken = {
        "seconds": seconds,
        "cpuSeconds": usage.ru_utime + usage.ru_stime,
        "peakBytes": usage.ru_maxrss * unit,
    }
    with open(numbers, "w") as file:
        json.dump(taken, file)
sys.exit(code if code >= 0 else 128 - code)
