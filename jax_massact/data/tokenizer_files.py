"""The tokenizer of a Hugging Face folder: tokenizer.json, and what the files beside it state.

Where transformers 4 and 5 read a folder differently, version 5 is followed and a note says so.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from jax_massact.data.files import open_binary
from jax_massact.data.pieces import SPACE, byte_level_text, sentencepiece_text
from jax_massact.data.tokenizer import END_OF_TEXT, Tokenizer, put_in_front
from jax_massact.errors import DataError

_CONFIG, _SPECIAL, _ADDED = Tokenizer.FILES[1], "special_tokens_map.json", "added_tokens.json"
_MODEL, _GENERATION = "config.json", "generation_config.json"
# Class of transformers, without "Tokenizer" -> BOS and EOS where no file states them.
_CLASSES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("GPT2", "CodeGen", "GPTNeoX"), {"bos": END_OF_TEXT, "eos": END_OF_TEXT}),
    **dict.fromkeys(("Llama", "CodeLlama", "Bloom"), {"bos": "<s>", "eos": "</s>"}),
    "Gemma": {"bos": "<bos>", "eos": "<eos>"},
    "Cohere": {"bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>"},
    "Qwen2": {"eos": END_OF_TEXT},
}
_OF_MODELS = {"gpt2": "GPT2", "gpt_neox": "GPTNeoX", "llama": "Llama", "mistral": "Llama",
              "qwen2": "Qwen2", "gemma": "Gemma", "cohere": "Cohere", "bloom": "Bloom"}
# Classes that obeyed `add_bos_token` in transformers 4, and its default there.
_OBEYED_4 = {"Llama": True, "CodeLlama": True, "Gemma": True, "Cohere": True, "GPTNeoX": False}
# Classes for which both versions set `add_prefix_space` of a byte-level pre-tokenizer.
_SPACE_IS_SET = ("GPT2", "CodeGen", "GPTNeoX", "Qwen2")
_SOURCES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "merges.txt")


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a `tokenizer.json`, and the settings in the files beside it.

    Whether BOS is put in front is decided by the post-processor of tokenizer.json alone. The token
    is the one that it puts there; else the one that special_tokens_map.json or
    tokenizer_config.json names (null or an empty text: none); else the default of the class; else
    that of config.json or generation_config.json.

    Raises:
      DataError: a file is missing or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(_how_to_make(path))
    text = _read_text(path)
    description = _parsed(path, text)
    names = (_CONFIG, _SPECIAL, _ADDED, _MODEL, _GENERATION)
    files = {name: _parsed(path.with_name(name)) for name in names}
    if "added_tokens_decoder" in files[_CONFIG]:
        files[_SPECIAL] = {}  # of an older version: transformers passes over it
    kind = _class_of(files)
    steps = _steps_of(description)
    notes = _set_prefix_space(description, files[_CONFIG], kind)
    # Large vocabularies take a second to write, and are as they were in most folders.
    text = text if steps == _steps_of(description) else json.dumps(description)
    with _library(path):
        backend = tokenizers.Tokenizer.from_str(text)
        notes += _add_tokens(backend, files)
        in_front = put_in_front(backend)
    bos_id, bos_stated_in = _special_id(backend, files, kind, "bos", path)
    if in_front is not None:
        bos_id, bos_stated_in = in_front, path.name
    notes += _bos_contradiction(backend, files[_CONFIG], kind, in_front)
    placed = "none" if in_front is None else "it"
    return Tokenizer(
        backend,
        source=str(path),
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        bos_id=bos_id,
        eos_id=_special_id(backend, files, kind, "eos", path)[0],
        adds_bos=in_front is not None,
        raw_piece=lambda i: backend.id_to_token(i) if i >= 0 else None,
        readable=_readable_of(description),
        verbatim=backend.get_added_tokens_decoder(),
        bos_stated_in=bos_stated_in,
        adds_bos_because=f"the post-processor of {path.name} puts {placed} in front",
        notes=[f"{path.parent}: {note}" for note in notes],
    )


@contextlib.contextmanager
def _library(path: Path) -> Iterator[None]:
    """Turns what the library raises, panics included, into a DataError that names the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise DataError(f"{path} is not a tokenizer: {error}") from error


def _how_to_make(path: Path) -> str:
    found = [name for name in _SOURCES if path.with_name(name).exists()]
    holds = f" (there is {' and '.join(found)})" if found else ""
    folder = str(path.parent)
    return (
        f"{path} does not exist{holds}; expected: a {path.name}. Where transformers is installed, "
        "this line makes it:\n  python -c \"from transformers import AutoTokenizer; "
        f"AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})\""
    )


def _read_text(path: Path) -> str:
    with open_binary(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; expected: UTF-8") from error


def _parsed(path: Path, text: str | None = None) -> dict[str, Any]:
    """The object in a file, of which `text` was read already; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path) if text is None else text)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a JSON {type(value).__name__}; expected: an object")
    return value


def _class_of(files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The class of transformers, one of `_CLASSES`, if the folder names one or implies it."""
    stated = files[_CONFIG].get("tokenizer_class") or files[_MODEL].get("tokenizer_class")
    if isinstance(stated, str):
        kind = stated.removesuffix("Fast").removesuffix("Tokenizer")
        return kind if kind in _CLASSES else None
    return _OF_MODELS.get(str(files[_MODEL].get("model_type")))


# BOS and EOS


def _special_id(
    backend: tokenizers.Tokenizer,
    files: Mapping[str, Mapping[str, Any]],
    kind: str | None,
    name: str,
    path: Path,
) -> tuple[int | None, str]:
    """The id of `bos` or `eos`, and what states it."""
    for file in (_SPECIAL, _CONFIG):
        if f"{name}_token" in files[file]:
            content = _content(files[file][f"{name}_token"])
            if not content:
                return None, file
            i = backend.token_to_id(content)
            if i is None:
                raise DataError(
                    f"{path.with_name(file)}: {name}_token is {content!r}; expected: a token of "
                    f"the vocabulary in {path.name}"
                )
            return i, file
    default = _CLASSES.get(kind or "", {}).get(name)
    if default is not None and (i := backend.token_to_id(default)) is not None:
        return i, f"{kind}Tokenizer"
    for file in (_MODEL, _GENERATION):
        i = files[file].get(f"{name}_token_id")
        i = i[0] if isinstance(i, list) and i else i
        if type(i) is int and i >= 0 and backend.id_to_token(i) is not None:
            return i, file
    return None, ""


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _bos_contradiction(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], kind: str | None, in_front: int | None
) -> list[str]:
    stated = config.get("add_bos_token")
    flag = _OBEYED_4.get(kind or "") if stated is None else bool(stated)
    if flag is None or flag == (in_front is not None):
        return []
    where = f"{_CONFIG} has" if stated is not None else f"by default {kind}Tokenizer has"
    placed = "no BOS" if in_front is None else backend.id_to_token(in_front)
    versions = "transformers 5, but not 4, does" if kind in _OBEYED_4 else "transformers does"
    return [
        f"{where} add_bos_token {str(flag).lower()}, and the post-processor of tokenizer.json puts "
        f"{placed} in front; that is followed, as {versions}"
    ]


# Settings outside tokenizer.json


def _set_prefix_space(
    description: dict[str, Any], config: Mapping[str, Any], kind: str | None
) -> list[str]:
    """Applies `add_prefix_space` to the description, or notes that it contradicts it."""
    stated = config.get("add_prefix_space")
    pre = description.get("pre_tokenizer")
    if isinstance(pre, dict) and pre.get("type") == "ByteLevel":
        wanted = False if stated is None and kind in _SPACE_IS_SET else stated
        if wanted is None or bool(wanted) == pre.get("add_prefix_space"):
            return []
        if kind in _SPACE_IS_SET:
            pre["add_prefix_space"] = bool(wanted)
            return []
    elif kind == "Llama" and stated is False:
        _never_prepend(description)
        return []
    elif stated is None or bool(stated) == _prepends(description):
        return []
    return [
        f"{_CONFIG} has add_prefix_space {str(bool(stated)).lower()}, which contradicts "
        "tokenizer.json; that is followed"
    ]


def _steps(description: Mapping[str, Any], part: str, inner: str) -> list[dict[str, Any]]:
    step = description.get(part)
    steps = step.get(inner) or [step] if isinstance(step, dict) else []
    return [step for step in steps if isinstance(step, dict)]


def _prepends(description: Mapping[str, Any]) -> bool:
    steps = _steps(description, "normalizer", "normalizers")
    cuts = _steps(description, "pre_tokenizer", "pretokenizers")
    return any(step.get("type") == "Prepend" for step in steps) or any(
        cut.get("prepend_scheme", "never") != "never" or cut.get("add_prefix_space") for cut in cuts
    )


def _never_prepend(description: dict[str, Any]) -> None:
    steps = _steps(description, "normalizer", "normalizers")
    if steps:
        kept = [step for step in steps if step.get("type") != "Prepend"]
        description["normalizer"] = {"type": "Sequence", "normalizers": kept}
    for cut in _steps(description, "pre_tokenizer", "pretokenizers"):
        if cut.get("type") == "Metaspace":
            cut["prepend_scheme"] = "never"


def _add_tokens(
    backend: tokenizers.Tokenizer, files: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Adds the tokens that only other files name, under the next ids, as transformers does."""
    notes = []
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token, wanted, special in _stated_tokens(backend, files):
        content = _content(token)
        if not content:
            continue
        if content not in known:
            options = token if isinstance(token, Mapping) else {}
            flags = {key: bool(options.get(key))
                     for key in ("lstrip", "rstrip", "single_word", "normalized")}
            special = bool(options.get("special", special))
            backend.add_tokens([AddedToken(content, **flags, special=special)])
            known.add(content)
        if wanted not in (None, got := backend.token_to_id(content)):
            notes.append(f"{content!r} is stated with id {wanted}; it has id {got}")
    return notes


def _stated_tokens(
    backend: tokenizers.Tokenizer, files: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Any, Any, bool]]:
    """Tokens, the ids that are stated for them if any, and whether they are special by default."""
    decoder = files[_CONFIG].get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        ids = sorted(int(i) for i in decoder if i.isdecimal())
        yield from ((decoder[str(i)], i, True) for i in ids)
    for values in (files[_CONFIG], files[_SPECIAL]):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = values.get(key)
            tokens = tokens.values() if isinstance(tokens, Mapping) else tokens or []
            yield from ((token, None, True) for token in tokens)
        named = [token for key, token in values.items() if key.endswith("_token")]
        yield from ((token, None, True) for token in named
                    if backend.token_to_id(_content(token) or "") is not None)
    by_id = sorted(files[_ADDED].items(), key=lambda item: str(item[1]).zfill(9))
    yield from ((token, i, False) for token, i in by_id)


def _readable_of(description: Mapping[str, Any]) -> Callable[[str], str]:
    """How the pieces of a `tokenizer.json` are spelled."""
    steps = _steps_of(description)
    if '"ByteLevel"' in steps:
        return byte_level_text
    return sentencepiece_text if SPACE in steps else lambda piece: piece


def _steps_of(description: Mapping[str, Any]) -> str:
    """Everything but the vocabulary that decides how text is cut and pieces are spelled."""
    parts = ("normalizer", "pre_tokenizer", "decoder")
    return json.dumps([description.get(part) for part in parts], ensure_ascii=False)
