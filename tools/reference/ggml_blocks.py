"""Writes fixtures/gguf/ggml-blocks.gguf: rows that ggml's own quantisers put into blocks, and what its Python package reads there.

Run with gguf 0.19.0, numpy 2.4.6 and the ggml library of an installed llama.cpp (node-llama-cpp's packages hold one):

    python tools/reference/ggml_blocks.py fixtures/gguf/ggml-blocks.gguf .../libggml-base.so

The file has `rows` in f32, for each format a tensor of its name with these rows in blocks, and `FORMAT.read`, the same read back.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, dequantize

SHAPE = (4, 512)
FORMATS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"]


def blocks(ggml, rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    count, columns = rows.shape
    row_bytes = ggml.ggml_row_size(int(kind), columns)
    stored = np.zeros((count, row_bytes), dtype=np.uint8)
    written = ggml.ggml_quantize_chunk(
        int(kind), rows.ctypes.data_as(ctypes.c_void_p), stored.ctypes.data_as(ctypes.c_void_p), 0, count, columns, None
    )
    assert written == stored.nbytes, (kind, written)
    return stored


def main(path: Path, library: str) -> None:
    ggml = ctypes.CDLL(library)
    ggml.ggml_row_size.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    random = np.random.default_rng(5)
    # Sizes that differ from block to block, one block of nothing but zeros, and one of a single value.
    rows = random.standard_normal(SHAPE) * np.exp(random.uniform(-3, 3, (SHAPE[0], SHAPE[1] // 32))).repeat(32, axis=1)
    rows = rows.astype(np.float32)
    rows[1, :256] = 0
    rows[2, 256:] = 0.75
    writer = GGUFWriter(path, "llamavid")
    writer.add_tensor("rows", rows)
    for name in FORMATS:
        kind = GGMLQuantizationType[name]
        stored = blocks(ggml, rows, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        writer.add_tensor(f"{name}.read", dequantize(stored, kind).astype(np.float32).reshape(SHAPE))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
