"""Writes fixtures/speech: a tiny random Whisper and what the public implementation computes with it.

Run with openai-whisper 20250625 and torch (float32, one thread):

    python tools/reference/whisper_model.py fixtures/speech

`tiny.pt` and `multilingual.tiktoken` are a model as the public implementation saves one, over a vocabulary of its own: the
bytes and a few pairs. `tensors.safetensors` holds `signal`'s spectrogram, rows of sound and logits; `cases.json` the texts
of whole transcriptions. The signal itself is a formula, `signal()`, which the test writes again. Draws at temperatures
above 0 come from a generator of our own, `Draws`, which the test writes again too.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import tiktoken
import torch
import whisper
import whisper.decoding
import whisper.tokenizer
from safetensors.torch import save_file
from whisper.audio import N_FRAMES, log_mel_spectrogram, pad_or_trim
from whisper.decoding import DecodingOptions
from whisper.model import ModelDimensions, Whisper

PAIRS = [b" t", b"he", b" -", b" '", b"((", b"in", b" a", b"\xe2\x99"]
LANGUAGES = 3
MARKS = 8
TIMES = 1501
VOCABULARY = 256 + len(PAIRS) + LANGUAGES + MARKS + TIMES
SIZES = dict(
    n_mels=80, n_audio_ctx=1500, n_audio_state=16, n_audio_head=2, n_audio_layer=2,
    n_vocab=VOCABULARY, n_text_ctx=64, n_text_state=16, n_text_head=4, n_text_layer=2,
)


def signal(seconds: float) -> np.ndarray:
    """Tones that come and go, over noise of a linear congruential generator: without it the quiet bins would be roundings."""
    count = round(seconds * 16000)
    time = np.arange(count) / 16000
    state, noise = 12345, np.empty(count)
    for index in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        noise[index] = state / 2**31 - 0.5
    tones = np.sin(2 * np.pi * (220 + 40 * np.floor(time)) * time) * (np.floor(time / 0.7) % 2)
    return (0.3 * tones + 0.05 * noise * (0.2 + np.floor(time / 1.9) % 2)).astype(np.float32)


class Draws:
    """Numbers from 0 up to 1; `sample` takes the token at that share of all probability."""

    state = 1

    @classmethod
    def next(cls) -> float:
        cls.state = (cls.state * 1103515245 + 12345) % 2**31
        return cls.state / 2**31

    def __init__(self, logits):
        self.logits = logits

    def sample(self):
        weights = torch.softmax(self.logits.double(), dim=-1)[0].numpy()
        above = np.nonzero(np.cumsum(weights) > Draws.next())[0]
        return torch.tensor([int(above[0])])


def encoding(name: str = "tiny", num_languages: int = LANGUAGES) -> tiktoken.Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks.update({pair: 256 + index for index, pair in enumerate(PAIRS)})
    names = ["<|endoftext|>", "<|startoftranscript|>"]
    names += [f"<|{code}|>" for code in list(whisper.tokenizer.LANGUAGES)[:LANGUAGES]]
    names += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    names += [f"<|{step * 0.02:.2f}|>" for step in range(TIMES)]
    special = {token: len(ranks) + index for index, token in enumerate(names)}
    pieces = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    return tiktoken.Encoding(name, pat_str=pieces, mergeable_ranks=ranks, special_tokens=special)


def random_model(seed: int) -> Whisper:
    torch.manual_seed(seed)
    model = Whisper(ModelDimensions(**SIZES)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases start as ones and zeros, which would hide a wrong one.
            centre = 1.0 if "ln" in name and name.endswith("weight") else 0.0
            scale = 0.5 if "embedding" in name else 0.35
            parameter.copy_(centre + scale * torch.randn_like(parameter))
        embedding = model.decoder.token_embedding.weight
        end = 256 + len(PAIRS)
        # So that texts end.
        embedding[end] *= 1.3
        # Times are many: as likely as words they would be all there is.
        embedding[end + LANGUAGES + MARKS :] *= 0.6
        model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    return model


def transcribe(model: Whisper, seconds: float, **options) -> dict:
    Draws.state = 1
    result = model.transcribe(signal(seconds), fp16=False, **options)
    for segment in result["segments"]:
        del segment["id"]
    return dict(seconds=seconds, options=options, **result)


def main(folder: Path, seed: int = 3) -> None:
    torch.set_num_threads(1)
    whisper.tokenizer.get_encoding = encoding
    whisper.decoding.Categorical = Draws
    Whisper.is_multilingual = property(lambda self: True)
    Whisper.num_languages = property(lambda self: LANGUAGES)
    model = random_model(seed)
    tensors, cases = {}, {}
    with torch.no_grad():
        for bins in (80, 128):
            mel = log_mel_spectrogram(signal(1.55), bins, padding=480000)
            tensors[f"mel.{bins}"] = mel[:, :160].contiguous()
        mel = pad_or_trim(log_mel_spectrogram(signal(5.0), 80, padding=480000)[:, :500], N_FRAMES)[None]
        encoded = model.encoder(mel)
        tensors["encoded"] = encoded[0, ::25].contiguous()
        ids = torch.tensor([[264, 1, 70, 300, 2, 1500]])
        tensors["ids"] = ids[0].clone()
        tensors["logits"] = model.decoder(ids, encoded)[0].contiguous()
        one = model.decode(mel, DecodingOptions(fp16=False, prompt=[5, 6, 7] * 20))[0]
        cases["window"] = dict(
            language=one.language, tokens=one.tokens, text=one.text, avg_logprob=one.avg_logprob,
            no_speech_prob=one.no_speech_prob, compression_ratio=one.compression_ratio,
        )
        cases["greedy"] = transcribe(model, 75.3, temperature=0.0)
        cases["fallback"] = transcribe(model, 75.3)
        cases["independent"] = transcribe(model, 40.0, language="zh", condition_on_previous_text=False,
                                          logprob_threshold=-3.0, compression_ratio_threshold=1.2)
        cases["silent"] = transcribe(model, 95.0, no_speech_threshold=2e-4, logprob_threshold=-1.5)
        cases["short"] = transcribe(model, 0.5, logprob_threshold=-6.0, no_speech_threshold=None)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() for key, value in model.state_dict().items()}
    torch.save(dict(dims=SIZES, model_state_dict=state), folder / "tiny.pt")
    lines = [f"{base64.b64encode(pair).decode()} {rank}" for pair, rank in encoding()._mergeable_ranks.items()]
    (folder / "multilingual.tiktoken").write_text("\n".join(lines) + "\n")
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
