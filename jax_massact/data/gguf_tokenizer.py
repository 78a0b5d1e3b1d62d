"""The tokenizer in the keys `tokenizer.ggml.*` of a GGUF file, as llama.cpp reads it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from jax_massact.data.pieces import SPACE, byte_level_text, sentencepiece_text
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import DataError

# `tokenizer.ggml.token_type`, as in the GGUF specification.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


class _Split(NamedTuple):
    """How text is cut before merging: each expression cuts what the one before left whole."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False  # a whole word that is a token is taken as it is
    adds_bos: bool = False  # when `tokenizer.ggml.add_bos_token` is missing
    nfc: bool = False  # characters are composed first, as in the authors' tokenizer.json


# The expressions that the models' authors published, under the names of `tokenizer.ggml.pre`.
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = _Split((_GPT2_WORDS,))
_DIGITS_SINGLY = _Split((r"\p{N}", _GPT2_WORDS))
_CUT_QWEN2 = (f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_SYMBOLS_AND_SPACES}",)
_LLAMA3 = _Split(
    (f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}",),
    ignore_merges=True,
    adds_bos=True,
)
_TEKKEN = _Split(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    ignore_merges=True,
    adds_bos=True,
)
# What llama.cpp falls back on when a file does not name its pre-tokenizer.
_DEFAULT = _Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"))

_SPLITS: dict[str, _Split] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "jais"), _GPT2),
    **dict.fromkeys(("olmo", "mpt"), _GPT2._replace(nfc=True)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS_SINGLY
    ),
    "command-r": _DIGITS_SINGLY._replace(nfc=True),
    "qwen2": _Split(_CUT_QWEN2, nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2"), _Split(_CUT_QWEN2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    "tekken": _TEKKEN,
}


def gguf_tokenizer(metadata: Mapping[str, Any], file: str) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Follows llama.cpp, which defines the format, also in what a missing key means. Supported are
    `tokenizer.ggml.model` = `gpt2` (byte-level BPE, cut as `tokenizer.ggml.pre` says) and `llama`
    (SentencePiece BPE: scores and byte fallback).

    Args:
      metadata: the file's key-values as Python strings, numbers and lists.
      file: its name, for messages.

    Raises:
      DataError: a key is missing or contradicts another, or the kind is not supported.
    """
    kind = _required(metadata, "model", file)
    if kind not in _GGUF_BUILDERS:
        raise DataError(
            f"{file}: tokenizer.ggml.model is {kind!r}; expected: one of {_listed(_GGUF_BUILDERS)}"
        )
    vocabulary = _GgufVocabulary.read(metadata, file)
    built = _GGUF_BUILDERS[kind](metadata, vocabulary)
    special = vocabulary.ids(_UNKNOWN, _CONTROL)
    user_defined = vocabulary.ids(_USER_DEFINED)
    tokens, backend = vocabulary.tokens, built.backend
    backend.add_special_tokens(
        [AddedToken(tokens[i], normalized=False, special=True) for i in special]
    )
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i in user_defined])
    flag = metadata.get("tokenizer.ggml.add_bos_token")
    states_bos = "tokenizer.ggml.bos_token_id" in metadata
    return Tokenizer(
        backend,
        source=file,
        vocab_size=len(tokens),
        bos_id=vocabulary.special_id(metadata, "bos_token_id", built.bos_id),
        eos_id=vocabulary.special_id(metadata, "eos_token_id", built.eos_id),
        adds_bos=built.adds_bos if flag is None else bool(flag),
        raw_piece=lambda i: tokens[i] if 0 <= i < len(tokens) else None,
        readable=built.readable,
        verbatim=[*special, *user_defined],
        bos_stated_in="tokenizer.ggml.bos_token_id" if states_bos else "llama.cpp's default",
        adds_bos_because="tokenizer.ggml.add_bos_token is "
        + ("missing: llama.cpp's default" if flag is None else str(bool(flag)).lower()),
        notes=_gaps(kind, metadata, file),
    )


def _gaps(kind: str, metadata: Mapping[str, Any], file: str) -> list[str]:
    """A warning where the file does not say how text is cut."""
    if kind != "gpt2" or "tokenizer.ggml.pre" in metadata:
        return []
    bos = "tokenizer.ggml.add_bos_token" in metadata
    return [
        f"{file} has no tokenizer.ggml.pre{'' if bos else ' and no tokenizer.ggml.add_bos_token'}: "
        "text is cut as by llama.cpp's default"
        + ("" if bos else ", without BOS")
        + ", and token ids can differ from those that the model was trained on. Converters of "
        "2024-05 and later write it: convert the model again"
    ]


class _GgufVocabulary(NamedTuple):
    """`tokenizer.ggml.tokens` and their types, checked."""

    tokens: list[str]
    types: list[int]
    file: str

    @classmethod
    def read(cls, metadata: Mapping[str, Any], file: str) -> "_GgufVocabulary":
        tokens = _required_strings(metadata, "tokens", file)
        types = _per_token(metadata, "token_type", len(tokens), file)
        return cls(tokens, [_NORMAL] * len(tokens) if types is None else types, file)

    def ids(self, *types: int) -> list[int]:
        # An empty token would match everywhere; some converters leave such holes.
        return [i for i, kind in enumerate(self.types) if kind in types and self.tokens[i]]

    def by_token(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def special_id(self, metadata: Mapping[str, Any], key: str, default: int | None) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}", default)
        if value is None or (isinstance(value, int) and 0 <= value < len(self.tokens)):
            return value
        raise DataError(
            f"{self.file}: tokenizer.ggml.{key} is {value!r}; expected: an id below the number of "
            f"tokens, {len(self.tokens)}"
        )


class _Built(NamedTuple):
    """A tokenizer, and the defaults of its kind."""

    backend: tokenizers.Tokenizer
    readable: Callable[[str], str]
    adds_bos: bool
    bos_id: int | None
    eos_id: int | None


def _byte_level_bpe(metadata: Mapping[str, Any], vocabulary: _GgufVocabulary) -> _Built:
    """GPT-2's byte-level BPE, with merges in order of rank."""
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _SPLITS:
        raise DataError(
            f"{vocabulary.file}: tokenizer.ggml.pre is {name!r}; expected: one of "
            f"{_listed(_SPLITS)}"
        )
    split = _SPLITS[name]
    merges = _required_strings(metadata, "merges", vocabulary.file)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = _bpe(vocabulary, pairs, ignore_merges=split.ignore_merges)
    cuts = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in split.expressions]
    bytes_as_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_as_characters])
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return _Built(backend, byte_level_text, split.adds_bos, bos_id=None, eos_id=None)


def _sentencepiece_bpe(metadata: Mapping[str, Any], vocabulary: _GgufVocabulary) -> _Built:
    """SentencePiece BPE: of two neighbours, those whose union scores highest merge first.

    That is BPE with one merge for each way to cut a token into two tokens, ranked by the token's
    score. Characters outside the vocabulary become their UTF-8 bytes, as `<0xNN>` tokens.
    """
    scores = _per_token(metadata, "scores", len(vocabulary.tokens), vocabulary.file)
    if scores is None:
        raise DataError(f"{vocabulary.file} has no tokenizer.ggml.scores; expected: one a token")
    unknown = vocabulary.special_id(metadata, "unknown_token_id", 0)
    backend = _bpe(
        vocabulary,
        _merges_of_scores(vocabulary, scores),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    escape_spaces = normalizers.Replace(" ", SPACE)
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape_spaces])
    else:
        backend.normalizer = escape_spaces
    unescape = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(unescape)
    return _Built(backend, sentencepiece_text, adds_bos=True, bos_id=1, eos_id=2)


_GGUF_BUILDERS = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}


def _bpe(
    vocabulary: _GgufVocabulary, merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocabulary.by_token(), merges, **options))
    except Exception as error:  # the library raises no narrower type
        raise DataError(f"{vocabulary.file}: its merges do not fit its tokens: {error}") from error


def _merges_of_scores(
    vocabulary: _GgufVocabulary, scores: Sequence[float]
) -> list[tuple[str, str]]:
    # Control and byte tokens are no part of a merge, however their spelling reads.
    normal = {vocabulary.tokens[i]: i for i in vocabulary.ids(_NORMAL)}
    best_first = sorted(normal.items(), key=lambda item: (-scores[item[1]], item[1]))
    return [
        (token[:cut], token[cut:])
        for token, _ in best_first
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]


def _required(metadata: Mapping[str, Any], key: str, file: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        raise DataError(f"{file} has no tokenizer.ggml.{key}: no tokenizer can be made from it")
    return value


def _required_strings(metadata: Mapping[str, Any], key: str, file: str) -> list[str]:
    value = _required(metadata, key, file)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{file}: tokenizer.ggml.{key} is of another kind; expected: texts")
    return value


def _per_token(metadata: Mapping[str, Any], key: str, count: int, file: str) -> list[Any] | None:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is not None and len(values) != count:
        raise DataError(
            f"{file}: tokenizer.ggml.{key} has {len(values)} entries; expected: one for each of "
            f"the {count} tokens"
        )
    return None if values is None else list(values)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
