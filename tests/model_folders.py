"""A model in memory as a folder with a tokenizer of characters, `<s>` as id 1."""

import json
from pathlib import Path

import tokenizers

from jax_massact.nn.transformer import Transformer
from jax_massact.saving import save

BOS = 1
CHARACTERS = ["<unk>", "<s>", *" .,;:!?\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def folder_of(model: Transformer, folder: Path) -> Path:
    """Writes the model and a tokenizer of as many characters as it has embeddings."""
    save(model, folder)
    characters = CHARACTERS[: model.config.embed.vocab_size]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", behavior="isolated")
    backend.add_special_tokens(["<s>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
