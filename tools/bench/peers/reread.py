"""Drops what the system holds of a file, or of all in a folder, and reads it again: `reread.py <path>`.

What was just written lies in small pages, what was read in large ones, which are quicker to map and to read. A user's weights were
written before the last start of the machine, most often.
"""

import os
import pathlib
import sys

given = pathlib.Path(sys.argv[1])
for path in [given] if given.is_file() else given.rglob("*"):
    if not path.is_file():
        continue
    with path.open("rb", buffering=0) as file:
        os.fsync(file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass
