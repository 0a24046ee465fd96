"""Writes fixtures/decoders: tiny random decoders of other families than Vicuna's, and what transformers computes with them.

Run with transformers 5.24.0 and torch 2.15.0 (float32, one thread):

    python tools/reference/decoder_families.py fixtures/decoders

A folder for each: `config.json` and `weights.safetensors` are what the model saves, `tensors.safetensors` holds `input_ids` (1, S)
and the `logits` (1, S, vocabulary) of one pass.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES = dict(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    rope_theta=10000.0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8,
)
CASES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, dict(tie_word_embeddings=True)),
    "llama3": (LlamaConfig, LlamaForCausalLM, dict(rope_scaling=LLAMA3, tie_word_embeddings=False)),
    "dynamic": (LlamaConfig, LlamaForCausalLM, dict(rope_scaling=dict(rope_type="dynamic", factor=4.0), tie_word_embeddings=False)),
    "biased": (LlamaConfig, LlamaForCausalLM, dict(attention_bias=True, tie_word_embeddings=False)),
}
# Beyond what the base model knows in the cases that scale.
POSITIONS = {"dynamic": 50}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for index, (name, (configuration, family, options)) in enumerate(CASES.items()):
        torch.manual_seed(index)
        config = configuration(**SIZES, **options, attn_implementation="eager")
        model = family(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Large enough that attention is no mean of all positions, and biases count.
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5))
            count = POSITIONS.get(name, 24)
            input_ids = torch.randint(3, SIZES["vocab_size"], (1, count))
            logits = model(input_ids, use_cache=False).logits
        case = folder / name
        case.mkdir(parents=True, exist_ok=True)
        # As published checkpoints have it; the present transformers writes `rope_parameters`.
        saved = {key: value for key, value in config.to_dict().items() if not key.startswith("rope")}
        saved |= {key: SIZES[key] for key in ("rope_theta",)} | {"rope_scaling": options.get("rope_scaling")}
        (case / "config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        if config.tie_word_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, case / "weights.safetensors")
        save_file({"input_ids": input_ids.to(torch.uint32), "logits": logits}, case / "tensors.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
