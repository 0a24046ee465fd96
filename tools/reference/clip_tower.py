"""Writes fixtures/clip: a tiny random CLIP vision tower and what transformers computes with it.

Run with transformers 4.31.0 and torch 2.7.1 (float32, one thread):

    python tools/reference/clip_tower.py fixtures/clip

`config.json` and `weights.safetensors` are what `CLIPVisionModel` saves; `tensors.safetensors` holds
`pixel_values` (F, 3, S, S), `patch_embed` (F, P, V), `embeddings` and `hidden_states.0` ... (F, P+1, V).
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SIZES = dict(
    image_size=56,
    patch_size=14,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    hidden_act="quick_gelu",
)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases start as ones and zeros, which would hide a wrong one; and weights are large
            # enough for the quick GELU to be told from the exact one.
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            scale = 0.02 if "patch_embedding" in name else 0.25
            parameter.copy_(centre + scale * torch.randn_like(parameter))

        pixel_values = torch.randn(2, 3, SIZES["image_size"], SIZES["image_size"])
        seen = {}
        embeddings = model.vision_model.embeddings
        embeddings.patch_embedding.register_forward_hook(
            lambda _module, _inputs, output: seen.update(patch_embed=output.flatten(2).transpose(1, 2))
        )
        embeddings.register_forward_hook(lambda _module, _inputs, output: seen.update(embeddings=output))
        outputs = model(pixel_values, output_hidden_states=True)

    tensors = {"pixel_values": pixel_values, **seen}
    tensors.update({f"hidden_states.{index}": state for index, state in enumerate(outputs.hidden_states)})
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
