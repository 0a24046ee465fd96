"""Writes fixtures/byte-pairs: small tokenizers in the layouts of LLaMA 3 and Qwen2, and what the tokenizers library makes of texts.

Run with tokenizers 0.23.3:

    python tools/reference/byte_pair_tokenizers.py fixtures/byte-pairs

A folder for each: `tokenizer.json` as the library writes it, and `tokenizer_config.json` with the roles of tokens, as the published
folders have them. `texts.json` holds texts and their ids, those that the library puts around them included.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is shown? ASSISTANT: A dog. The dog runs over the bridge in 1234 steps.",
    "for (let i = 0; i < 10; i++) { console.log('<div>', i); }\n\n    return i;\n",
    "It's what they'll say: we've seen the sea, the trees, the houses and the people there.",
]
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TEXTS = [
    "What is shown?",
    "A dog. The dogs run over the bridges.",
    "  two  spaces\n\n and\ttabs \r\n at the end  ",
    "It's WE'VE they'll 1234567 in 12 steps",
    "ü e\u0301 猫 \U0001f600 \u00a0",
    "<frame>the<frame> the",
    "answer</s>USER: what</s>",
    "",
]


def tokenizer(pattern: str, special: list[str], ignore_merges: bool, normalizer, post_processor) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(special)
    made.add_tokens([AddedToken("<frame>", normalized=False)])
    made.post_processor = post_processor(made)
    return made


def llama3() -> tuple[Tokenizer, dict]:
    begin, end, turn = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"

    def around(made):
        template = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, made.token_to_id(begin))]
        )
        return processors.Sequence([processors.ByteLevel(trim_offsets=True), template])

    made = tokenizer(HEAD + r"\p{N}{1,3}" + TAIL, [begin, end, turn], True, None, around)
    return made, {"bos_token": begin, "eos_token": turn, "tokenizer_class": "PreTrainedTokenizerFast"}


def qwen2() -> tuple[Tokenizer, dict]:
    end, start, turn = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
    made = tokenizer(
        HEAD + r"\p{N}" + TAIL,
        [end, start, turn],
        False,
        normalizers.NFC(),
        lambda _made: processors.ByteLevel(trim_offsets=False),
    )
    config = {"add_bos_token": False, "bos_token": None, "eos_token": turn, "pad_token": end, "tokenizer_class": "Qwen2Tokenizer"}
    return made, config


def main(folder: Path) -> None:
    for name, (made, config) in {"llama3": llama3(), "qwen2": qwen2()}.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        made.save(str(place / "tokenizer.json"), pretty=False)
        (place / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        texts = [{"text": text, "ids": made.encode(text).ids} for text in TEXTS]
        (place / "texts.json").write_text(json.dumps(texts, indent=2) + "\n")
        print(name, made.get_vocab_size())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
