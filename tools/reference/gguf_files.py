"""Writes GGUF files with ggml's own package: small random decoders that others than this project wrote.

Run with gguf 0.19.0 and numpy 2.4.6:

    python tools/reference/gguf_files.py FOLDER

`source.gguf` is a LLaMA of rows of 256 numbers in f32, for `llama-quantize`. `gguf-py.gguf` is a Qwen2 of rows of 32 in
f32, f16 and bf16 side by side, its tensors in another order than ours, aligned to 64 bytes, with entries that no reader knows.
fixtures/gguf/README.md says what became of them.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

PIECES = ["e", "t", "a", "o", "n", "▁", "th", "▁th", "the", "▁the", "an", "on", "▁a", "▁an", "at", "▁at", "▁on"]


def pieces(vocabulary: int):
    """SentencePiece's vocabulary in LLaMA's order: control pieces, bytes, merges by rank, and one added token."""
    tokens = [("<unk>", 0.0, TokenType.UNKNOWN), ("<s>", 0.0, TokenType.CONTROL), ("</s>", 0.0, TokenType.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, TokenType.BYTE) for byte in range(256)]
    tokens += [(piece, -float(rank), TokenType.NORMAL) for rank, piece in enumerate(PIECES)]
    tokens.append(("<frame>", -1000.0, TokenType.USER_DEFINED))
    tokens += [(f"[PAD{id}]", -1000.0, TokenType.UNUSED) for id in range(len(tokens), vocabulary)]
    return tokens


def letters():
    """GPT-2's letters of the bytes."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(0x100 + unseen.index(byte)) for byte in range(256)]


def add_weights(writer, sizes, random, biased, tied, dtype, order):
    width, inner, layers, heads, kv_heads, head, vocabulary = sizes
    tensors = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    if not tied:
        tensors["output.weight"] = (vocabulary, width)
    for layer in range(layers):
        for name, shape in {
            "attn_norm": (width,),
            "attn_q": (heads * head, width),
            "attn_k": (kv_heads * head, width),
            "attn_v": (kv_heads * head, width),
            "attn_output": (width, heads * head),
            "ffn_norm": (width,),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }.items():
            tensors[f"blk.{layer}.{name}.weight"] = shape
            if biased and name in ("attn_q", "attn_k", "attn_v"):
                tensors[f"blk.{layer}.{name}.bias"] = (shape[0],)
    for name in order(list(tensors)):
        shape = tensors[name]
        size = 1.5 / np.sqrt(shape[-1]) if len(shape) == 2 else 0.3
        values = (random.standard_normal(shape) * size).astype(np.float32)
        values = values + 1 if name.endswith("norm.weight") else values
        kind = dtype(name, shape)
        if kind == GGMLQuantizationType.BF16:
            bits = values.view(np.uint32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            writer.add_tensor(name, rounded.view(np.uint8), raw_dtype=kind)
        else:
            values = values.astype(np.float16 if kind == GGMLQuantizationType.F16 else np.float32)
            writer.add_tensor(name, values)


def describe(writer, sizes, theta):
    width, inner, layers, heads, kv_heads, head, vocabulary = sizes
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(vocabulary)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def source(path: Path) -> None:
    sizes = (256, 256, 1, 4, 2, 32, 280)
    writer = GGUFWriter(path, "llama")
    describe(writer, sizes, 10000.0)
    writer.add_rope_dimension_count(32)
    tokens = pieces(sizes[-1])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(3)
    add_weights(writer, sizes, random, False, True, lambda *_: GGMLQuantizationType.F32, list)
    finish(writer)


def other_writer(path: Path) -> None:
    merges = ["t h", "th e", "Ġ the", "a n", "o n"]
    vocabulary = [*letters(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>", "<frame>"]
    vocabulary += [f"[PAD{id}]" for id in range(len(vocabulary), 268)]
    kinds = [TokenType.NORMAL] * 261 + [TokenType.CONTROL, TokenType.USER_DEFINED] + [TokenType.UNUSED] * 5
    sizes = (32, 48, 2, 4, 2, 8, len(vocabulary))
    writer = GGUFWriter(path, "qwen2")
    writer.add_custom_alignment(64)
    writer.add_name("a decoder of another writer")
    writer.add_array("somebody.list", [1, 2, 3])
    writer.add_array("somebody.names", ["one", "zwei", "三"])
    writer.add_uint64("somebody.large", 1 << 60)
    writer.add_float64("somebody.exact", 0.1)
    describe(writer, sizes, 1000000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(261)
    writer.add_eos_token_id(261)
    writer.add_pad_token_id(261)
    writer.add_add_bos_token(False)

    def dtype(name, shape):
        if len(shape) == 1:
            return GGMLQuantizationType.F32
        kinds = [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16]
        return kinds[sum(name.encode()) % 3]

    add_weights(writer, sizes, np.random.default_rng(4), True, False, dtype, lambda names: sorted(names, key=lambda name: name[::-1]))
    finish(writer)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source(folder / "source.gguf")
    other_writer(folder / "gguf-py.gguf")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
