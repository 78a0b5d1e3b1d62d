"""A checkpoint of a few kilobytes with a tokenizer of its own, as a Hugging Face folder."""

import json
import shutil
from pathlib import Path

import tokenizers

SMOLLM2 = Path(__file__).parent / "parity" / "fixtures" / "smollm2"
VOCABULARY = 97


def make_folder(folder: Path, *, vocabulary: int = VOCABULARY) -> Path:
    """Copies the weights and writes a tokenizer of `vocabulary` characters, BOS first."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(SMOLLM2 / name, folder)
    characters = ["<s>", "<unk>", *map(chr, range(32, 30 + vocabulary))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", behavior="isolated")
    backend.add_special_tokens(["<s>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
