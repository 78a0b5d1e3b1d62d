"""Ids against transformers' and against llama.cpp's algorithm, BOS, and readable pieces."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from jax_massact.data.gguf_tokenizer import gguf_tokenizer
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.tokenizer_files import read_tokenizer
from jax_massact.errors import ConfigError, DataError

FIXTURE = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "tokenizer_smollm2.json").read_text(encoding="utf-8")
)
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    """SmolLM2's tokenizer, with the part of its vocabulary that the fixture's texts can reach."""
    tokens = [f"[hole {i}]" for i in range(FIXTURE["vocab_size"])]
    types = [5] * len(tokens)
    for group, kind in (("tokens", 1), ("special", 3)):
        for i, token in FIXTURE[group].items():
            tokens[int(i)], types[int(i)] = token, kind
    metadata = FIXTURE["metadata"] | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": FIXTURE["merges"],
    }
    return gguf_tokenizer(metadata, "smollm2.gguf")


def bpe_metadata(text: str = "", **keys: Any) -> dict[str, Any]:
    """A byte-level BPE that joins every substring of `text` that pre-tokenization leaves whole."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    word = spelled.pre_tokenize_str(text)[0][0] if text else ""
    ends = [(i, j) for i in range(len(word)) for j in range(i + 2, len(word) + 1)]
    pieces = list(dict.fromkeys(word[i:j] for i, j in ends))
    merges = [f"{p[:cut]} {p[cut:]}" for p in pieces for cut in range(1, len(p))]
    tokens = ["<s>", "</s>", *ALPHABET, *pieces]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3, 3] + [1] * (len(tokens) - 2),
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | keys
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def spm_metadata(scored: dict[str, float], **keys: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, the 256 bytes, then the scored pieces."""
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *scored]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(scored),
        "scores": [0.0] * 259 + list(scored.values()),
    } | keys
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.token_strings(tokenizer.encode(text, bos=False))


@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: ascii(case["text"][:16]))
def test_ids_are_those_of_transformers(smollm2: Tokenizer, case: dict[str, Any]) -> None:
    ids = smollm2.encode(case["text"], bos=False)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ids.tolist() == case["ids"]


def test_smollm2_tells_what_its_file_says(smollm2: Tokenizer) -> None:
    assert (smollm2.bos_id, smollm2.bos_token, smollm2.eos_id) == (1, "<|im_start|>", 2)
    assert smollm2.vocab_size == 49_152
    assert not smollm2.adds_bos


def test_pieces_are_readable_and_join_to_the_text(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("The fox\n<|im_end|> 東", bos=True)
    strings = smollm2.token_strings(ids)
    assert strings[:5] == ["<|im_start|>", "The", " fox", "\n", "<|im_end|>"]
    assert "".join(strings[-3:]).lstrip() == r"\xe6\x9d\xb1"
    assert smollm2.token_strings([49_152, -1]) == ["<id 49152>", "<id -1>"]


CUT = "I'LLy say 12345 x²..  \n\n ok"
CUTS = {
    "gpt-2": ["I", "'", "LLy", " say", " 12345", " x", "²", "..", "  \n\n", " ok"],
    "smollm": ["I", "'", "LLy", " say", " ", *"12345", " x", "²", "..", "  \n\n", " ok"],
    "llama-bpe": ["I", "'LL", "y", " say", " ", "123", "45", " x", "²", "..", "  \n\n", " ok"],
    "qwen2": ["I", "'LL", "y", " say", " ", *"12345", " x", "²", "..", "  \n\n", " ok"],
    "tekken": ["I", "'LLy", " say", " ", *"12345", " x", "²", "..", "  \n\n", " ok"],
    "default": ["I", "'", "LLy", " say", " ", "123", "45", " x", "²", "..", "  \n\n", " ok"],
}


@pytest.mark.parametrize("name", CUTS)
def test_pre_tokenizer_cuts_as_published(name: str) -> None:
    tokenizer = gguf_tokenizer(bpe_metadata(CUT, pre=name), "x.gguf")
    assert pieces_of(tokenizer, CUT) == CUTS[name]


def test_only_tekken_cuts_before_a_capital_letter() -> None:
    for name, cuts in {"llama-bpe": ["camelCase"], "tekken": ["camel", "Case"]}.items():
        tokenizer = gguf_tokenizer(bpe_metadata("camelCase", pre=name), "x.gguf")
        assert pieces_of(tokenizer, "camelCase") == cuts


def test_a_missing_pre_tokenizer_is_the_default_one() -> None:
    tokenizer = gguf_tokenizer(bpe_metadata(CUT, pre=None), "x.gguf")
    assert pieces_of(tokenizer, CUT) == CUTS["default"]


def test_llama3_takes_a_whole_word_that_no_merge_makes() -> None:
    for name, expected in {"llama-bpe": ["whole"], "gpt-2": list("whole")}.items():
        metadata = bpe_metadata("whole", pre=name, merges=[])
        assert pieces_of(gguf_tokenizer(metadata, "x.gguf"), "whole") == expected


@pytest.mark.parametrize("pre", ["qwen2", "olmo", "mpt", "command-r", "gpt-2", "llama-bpe"])
def test_accents_are_composed_where_the_authors_do(pre: str) -> None:
    tokenizer = gguf_tokenizer(bpe_metadata("caf\u00e9", pre=pre), "x.gguf")
    composed, split = ("".join(pieces_of(tokenizer, text)) for text in ("caf\u00e9", "cafe\u0301"))
    assert composed == "caf\u00e9"
    assert (split == composed) is (pre not in ("gpt-2", "llama-bpe"))


def test_a_file_that_does_not_say_how_text_is_cut_is_reported() -> None:
    (note,) = gguf_tokenizer(bpe_metadata(pre=None), "x.gguf").notes
    assert note.startswith("x.gguf has no tokenizer.ggml.pre and no tokenizer.ggml.add_bos_token")
    assert "without BOS" in note and "convert the model again" in note
    (note,) = gguf_tokenizer(bpe_metadata(pre=None, add_bos_token=True), "x.gguf").notes
    assert note.startswith("x.gguf has no tokenizer.ggml.pre: ") and "BOS" not in note
    for metadata in (bpe_metadata(), bpe_metadata(pre="default"), spm_metadata(SPM_SCORES)):
        assert gguf_tokenizer(metadata, "x.gguf").notes == ()


def test_user_defined_tokens_are_taken_whole_in_their_own_spelling() -> None:
    metadata = bpe_metadata("")
    metadata["tokenizer.ggml.tokens"] += ["  ", "café"]
    metadata["tokenizer.ggml.token_type"] += [4, 4]
    tokenizer = gguf_tokenizer(metadata, "x.gguf")
    assert pieces_of(tokenizer, "a  bcafé") == ["a", "  ", "b", "café"]


# SentencePiece


def greedy_merge(text: str, scores: dict[str, float]) -> list[str]:
    """llama.cpp's algorithm, the slow way: merge the best-scoring neighbours, leftmost first."""
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        unions = ["".join(pair) for pair in zip(symbols, symbols[1:], strict=False)]
        known = [i for i, union in enumerate(unions) if union in scores]
        if not known:
            return symbols
        best = max(known, key=lambda i: (scores[unions[i]], -i))
        symbols[best : best + 2] = [unions[best]]


def test_sentencepiece_merges_the_best_scoring_neighbours_first() -> None:
    draw = random.Random(0)
    pieces = {"".join(draw.choices("ab\u2581", k=draw.randint(2, 4))) for _ in range(30)}
    names = ["a", "b", "\u2581", *sorted(pieces)]
    draw.shuffle(names)
    scores = {name: -float(rank) for rank, name in enumerate(names)}
    tokenizer = gguf_tokenizer(spm_metadata(scores), "x.gguf")
    for _ in range(300):
        text = "".join(draw.choices("ab ", k=draw.randint(1, 12)))
        expected = [p.replace("\u2581", " ") for p in greedy_merge(text, scores)]
        assert pieces_of(tokenizer, text) == expected, text


SPM_SCORES = {"\u2581": -1.0, "h": -2.0, "i": -3.0, "hi": -4.0, "\u2581hi": -5.0}


def test_sentencepiece_falls_back_on_bytes_and_knows_special_tokens() -> None:
    tokenizer = gguf_tokenizer(spm_metadata(SPM_SCORES), "x.gguf")
    assert pieces_of(tokenizer, "hi\né</s>hi") == [" hi", "\n", r"\xc3", r"\xa9", "</s>", " hi"]
    assert pieces_of(tokenizer, "") == []


def test_sentencepiece_prefix_space_can_be_off() -> None:
    metadata = spm_metadata(SPM_SCORES, add_space_prefix=False)
    assert pieces_of(gguf_tokenizer(metadata, "x.gguf"), "hi hi") == ["hi", " hi"]


def test_byte_tokens_take_no_part_in_merges() -> None:
    spelled = {piece: -1.0 for piece in ["\u2581", *"<0x4A>", "<0", "x4", "A>", "<0x4"]}
    tokenizer = gguf_tokenizer(spm_metadata(spelled), "x.gguf")
    assert pieces_of(tokenizer, "<0x4A>")[-1] == "A>"


# BOS


@pytest.mark.parametrize(
    ("metadata", "adds"),
    [
        (spm_metadata(SPM_SCORES), True),
        (spm_metadata(SPM_SCORES, add_bos_token=False), False),
        (bpe_metadata(), False),
        (bpe_metadata(add_bos_token=True), True),
        (bpe_metadata(pre="llama-bpe"), True),
        (bpe_metadata(add_bos_token=True, bos_token_id=None), False),
    ],
)
def test_adds_bos_follows_the_file_then_llama_cpp(metadata: dict[str, Any], adds: bool) -> None:
    tokenizer = gguf_tokenizer(metadata, "x.gguf")
    assert tokenizer.adds_bos is adds
    assert tokenizer.resolve_bos("auto") is adds
    assert tokenizer.resolve_bos("false") is False


def test_sentencepiece_bos_and_eos_have_llama_cpp_defaults() -> None:
    tokenizer = gguf_tokenizer(spm_metadata(SPM_SCORES), "x.gguf")
    assert (tokenizer.bos_token, tokenizer.bos_id, tokenizer.eos_id) == ("<s>", 1, 2)


def test_bos_is_in_front_only_when_asked_for() -> None:
    tokenizer = gguf_tokenizer(bpe_metadata(add_bos_token=True), "x.gguf")
    assert tokenizer.resolve_bos("true") is True
    without = tokenizer.encode("ab", bos=False)
    assert tokenizer.encode("ab", bos=True).tolist() == [0, *without]


def test_asking_for_a_bos_that_is_not_there_is_an_error() -> None:
    tokenizer = gguf_tokenizer(bpe_metadata(bos_token_id=None), "x.gguf")
    assert tokenizer.bos_token is None
    with pytest.raises(DataError, match=r"x\.gguf.*BOS"):
        tokenizer.resolve_bos("true")
    with pytest.raises(DataError, match="BOS"):
        tokenizer.encode("a", bos=True)
    with pytest.raises(ConfigError, match="'maybe'.*'auto', 'true', 'false'"):
        tokenizer.resolve_bos("maybe")


# Bad files


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "has no tokenizer.ggml.model"),
        (bpe_metadata(model="bert"), "'bert'; expected: one of gpt2, llama"),
        (bpe_metadata(pre="kimi-k2"), "'kimi-k2'; expected: .*smollm"),
        (bpe_metadata(merges=None), "has no tokenizer.ggml.merges"),
        (bpe_metadata(merges=["a nothere"]), "merges do not fit"),
        (bpe_metadata(merges=[1]), "tokenizer.ggml.merges is of another kind; expected: texts"),
        (bpe_metadata(token_type=[1]), "token_type has 1 entries.*258"),
        (bpe_metadata(bos_token_id=258), "bos_token_id is 258.*258"),
        (spm_metadata(SPM_SCORES, scores=None), "no tokenizer.ggml.scores"),
    ],
)
def test_bad_metadata_is_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        gguf_tokenizer(metadata, "model.gguf")
    assert "model.gguf" in str(caught.value)


def test_a_damaged_byte_is_no_token(folder: Path) -> None:
    raw = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(raw.replace(b"<eos>", b"<e\xffs>"))
    with pytest.raises(DataError, match="tokenizer.json cannot be read as JSON: .* 0xff"):
        read_tokenizer(folder / "tokenizer.json")


def test_a_panic_of_the_library_is_an_error(folder: Path, capfd: pytest.CaptureFixture) -> None:
    edit_json(folder, lambda d: d["post_processor"].update(special_tokens={}))
    with pytest.raises(DataError, match="tokenizer.json is not a tokenizer: "):
        read_tokenizer(folder / "tokenizer.json")


def test_a_lone_surrogate_is_an_error() -> None:
    tokenizer = gguf_tokenizer(bpe_metadata(), "x.gguf")
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("ab\ud800", bos=False)


# tokenizer.json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained byte-level BPE whose post-processor adds BOS and which truncates, as some do."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<bos>", "<eos>"], initial_alphabet=ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(["the cat and the hat, the bat and the mat"] * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def configure(folder: Path, **config: Any) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_tokenizer(folder / "tokenizer.json")


def test_tokenizer_json_alone_says_what_its_post_processor_does(folder: Path) -> None:
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.bos_token, tokenizer.adds_bos) == (0, "<bos>", True)
    assert tokenizer.eos_id is None
    text = "the cat, the é <eos>"
    strings = pieces_of(tokenizer, text)
    assert "".join(strings[:4]) == "the cat, the" and " the" in strings
    assert strings[-1] == "<eos>" and r"\xc3" in "".join(strings)
    assert tokenizer.encode(text, bos=True)[0] == 0
    assert max(tokenizer.encode(text, bos=False)) < tokenizer.vocab_size


def test_the_post_processor_alone_decides_about_bos(folder: Path) -> None:
    """As transformers 4.57 and 5.24 do for these classes; 5.24 for LlamaTokenizer, too."""
    for kind in ("PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer"):
        made = configure(folder, tokenizer_class=kind, add_bos_token=False, bos_token="<eos>")
        assert made.adds_bos and made.resolve_bos("auto")
        assert made.encode("the", bos=True)[0] == 0  # what it puts there, not what is named
        (note,) = made.notes
        assert "add_bos_token false" in note and "puts <bos> in front" in note
        assert ("transformers 5, but not 4" in note) is (kind == "LlamaTokenizer")
    assert configure(folder, tokenizer_class="GPT2Tokenizer", add_bos_token=True).notes == ()
    without_template(folder)
    for kind in ("PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer"):
        made = configure(folder, tokenizer_class=kind, add_bos_token=True, bos_token="<bos>")
        assert not made.adds_bos and not made.resolve_bos("auto") and made.bos_id == 0
        assert "add_bos_token true, and the post-processor" in made.notes[0]
    made = configure(folder, tokenizer_class="LlamaTokenizer", bos_token="<bos>")
    assert "by default LlamaTokenizer has add_bos_token true" in made.notes[0]
    made = configure(folder, tokenizer_class="GPT2Tokenizer", bos_token="<bos>")
    assert made.notes == () and configure(folder, add_bos_token=False).notes == ()


def without_template(folder: Path) -> None:
    backend = as_others_read(folder)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.save(str(folder / "tokenizer.json"))


def write(folder: Path, **files: Any) -> Tokenizer:
    """Writes `tokenizer_config={...}` and the like, and reads the tokenizer."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return read_tokenizer(folder / "tokenizer.json")


def test_bos_is_found_wherever_a_folder_states_it(folder: Path) -> None:
    without_template(folder)
    assert write(folder, tokenizer_config={"model_max_length": 1024}).bos_id is None
    stated = [
        ("generation_config", {"bos_token_id": 5}, 5),
        ("config", {"bos_token_id": 4, "eos_token_id": [3, 2]}, 4),
        ("tokenizer_config", {"bos_token": "<bos>"}, 0),
        ("special_tokens_map", {"bos_token": {"content": "<eos>"}}, 1),
    ]
    for name, content, bos_id in stated:  # each comes before those above it
        made = write(folder, **{name: content})
        assert (made.bos_id, made.adds_bos) == (bos_id, False)
        assert made.bos_words("true", True) == (
            f"with BOS {made.bos_token} (bos=true; {name}.json states the token)")
    assert made.eos_id == 3  # type: ignore
    # Since special tokens stand in tokenizer_config.json, the map is a leftover.
    newer = {"bos_token": "<bos>", "added_tokens_decoder": {}}
    assert write(folder, tokenizer_config=newer).bos_id == 0
    assert write(folder, config={"bos_token_id": 9999}, tokenizer_config={}).bos_id == 1
    (folder / "special_tokens_map.json").unlink()
    assert write(folder, config={"bos_token_id": 9999}).bos_id == 5


def test_gpt2_as_published_has_the_bos_of_its_class(folder: Path) -> None:
    without_template(folder)
    backend = as_others_read(folder)
    backend.add_special_tokens(["<|endoftext|>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"model_type": "gpt2", "bos_token_id": 3}
    made = write(folder, tokenizer_config={"model_max_length": 1024}, config=config)
    assert (made.bos_token, made.adds_bos) == ("<|endoftext|>", False)
    assert made.eos_id == made.bos_id == backend.token_to_id("<|endoftext|>")
    assert "GPT2Tokenizer states the token" in made.bos_words("true", True)
    other = {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert write(folder, tokenizer_config=other, config=config).bos_id == 3


@pytest.mark.parametrize("none", ["", None])
def test_an_empty_bos_is_none(folder: Path, none: str | None) -> None:
    without_template(folder)
    made = write(folder, tokenizer_config={"bos_token": none}, config={"bos_token_id": 3})
    assert made.bos_id is None and made.resolve_bos("false") is False
    with pytest.raises(DataError, match="BOS was asked for"):
        made.resolve_bos("true")


def test_the_reason_for_bos_in_words(folder: Path) -> None:
    made = read_tokenizer(folder / "tokenizer.json")
    assert made.bos_words("auto", True) == (
        "with BOS <bos> (bos=auto: the post-processor of tokenizer.json puts it in front)")
    assert made.bos_words("false", False) == "without BOS (bos=false)"
    assert made.bos_words("auto", False) == "without BOS (bos=auto)"  # a folded model's
    without_template(folder)
    assert read_tokenizer(folder / "tokenizer.json").bos_words("auto", False) == (
        "without BOS (bos=auto: its tokenizer has none)")
    assert configure(folder, bos_token="<bos>").bos_words("auto", False) == (
        "without BOS (bos=auto: the post-processor of tokenizer.json puts none in front)")
    gguf = gguf_tokenizer(bpe_metadata(add_bos_token=True), "x.gguf")
    assert gguf.bos_words("auto", True) == (
        "with BOS <s> (bos=auto: tokenizer.ggml.add_bos_token is true)")
    gguf = gguf_tokenizer(spm_metadata(SPM_SCORES), "x.gguf")
    assert gguf.bos_words("auto", True) == (
        "with BOS <s> (bos=auto: tokenizer.ggml.add_bos_token is missing: llama.cpp's default)")


def test_a_second_bos_is_noticed(folder: Path) -> None:
    made = read_tokenizer(folder / "tokenizer.json")
    rows = np.array([[0, 0, 7], [0, 7, 0], [0, 0, 0], [7, 0, 0]])
    assert str(made.second_bos(rows)).startswith("2 of 4 sequences begin with <bos> twice")
    assert made.second_bos(rows[[1, 3]]) is None and made.second_bos(rows[:, :1]) is None
    assert write(folder, tokenizer_config={}).with_bos(7).second_bos(rows[:3]) is None


# Settings outside tokenizer.json


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer"])
def test_a_space_in_front_is_set_by_the_config(folder: Path, kind: str) -> None:
    for stated, expected in ((True, [" the", " cat"]), (False, ["the", " cat"])):
        made = configure(folder, tokenizer_class=kind, add_prefix_space=stated)
        assert "".join(pieces_of(made, "the cat")) == "".join(expected) and made.notes == ()
    edit_json(folder, lambda d: d["pre_tokenizer"].update(add_prefix_space=True))
    assert "".join(pieces_of(configure(folder, tokenizer_class=kind), "the cat")) == "the cat"


def edit_json(folder: Path, change: Any) -> None:
    description = json.loads((folder / "tokenizer.json").read_text())
    change(description)
    (folder / "tokenizer.json").write_text(json.dumps(description))


def test_a_space_in_front_that_versions_differ_about_is_reported(folder: Path) -> None:
    made = configure(folder, tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True)
    assert "".join(pieces_of(made, "the")) == "the"  # as transformers 5 reads it
    assert "add_prefix_space true, which contradicts" in made.notes[0]
    assert made.notes[0].startswith(f"{folder}: tokenizer_config.json")


@pytest.mark.parametrize(
    "part",
    [{"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}},
     {"normalizer": None, "pre_tokenizer": {
         "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
         "split": False}}],
    ids=["Prepend", "Metaspace"],
)
def test_llama_without_a_space_in_front(tmp_path: Path, part: dict[str, Any]) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"\u2581": 0, "a": 1, "<s>": 2}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    edit_json(tmp_path, lambda description: description.update(part))
    for stated, expected in ((None, " a a"), (True, " a a"), (False, "a a")):
        made = configure(tmp_path, tokenizer_class="LlamaTokenizer", add_bos_token=False,
                         **({} if stated is None else {"add_prefix_space": stated}))
        assert "".join(pieces_of(made, "a a")) == expected and made.notes == ()
    made = configure(tmp_path, tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=False)
    assert "".join(pieces_of(made, "a a")) == " a a" and "contradicts" in made.notes[0]


@pytest.mark.parametrize(
    "files",
    [{"tokenizer_config": {"added_tokens_decoder": {"273": {"content": "<user>", "special": True,
                                                            "normalized": False}}}},
     {"tokenizer_config": {"additional_special_tokens": ["<user>"]}},
     {"tokenizer_config": {"additional_special_tokens": [{"content": "<user>"}]}},
     {"tokenizer_config": {"extra_special_tokens": {"user_token": "<user>"}}},
     {"special_tokens_map": {"additional_special_tokens": ["<user>"]}},
     {"added_tokens": {"<user>": 273}}],
)
def test_tokens_that_only_other_files_name_are_tokens(folder: Path, files: Any) -> None:
    assert read_tokenizer(folder / "tokenizer.json").vocab_size == 273
    made = write(folder, **files)
    assert made.encode("a<user>", bos=False).tolist()[1:] == [273]
    assert (made.vocab_size, made.notes) == (274, ())
    assert pieces_of(made, "a<user>b") == ["a", "<user>", "b"]


def test_a_token_stated_with_another_id_is_reported(folder: Path) -> None:
    made = write(folder, added_tokens={"<user>": 307, "<bos>": 4})
    assert made.encode("<user>", bos=False).tolist() == [273]
    assert [note.partition(": ")[2] for note in made.notes] == [
        "'<bos>' is stated with id 4; it has id 0", "'<user>' is stated with id 307; it has id 273"]


def test_settings_of_another_kind_are_passed_over(folder: Path) -> None:
    made = write(folder, tokenizer_config={
        "added_tokens_decoder": {"x": "<user>"}, "additional_special_tokens": [None, 3],
        "bos_token": 7, "tokenizer_class": 5, "add_bos_token": None}, config={"bos_token_id": True})
    assert (made.bos_id, made.vocab_size, made.notes) == (0, 273, ())
    assert write(folder, tokenizer_config={"added_tokens_decoder": ["<user>"]}).vocab_size == 273


def test_a_special_token_of_the_vocabulary_is_taken_whole(folder: Path) -> None:
    assert len(pieces_of(read_tokenizer(folder / "tokenizer.json"), " the")) == 1
    made = configure(folder, pad_token="the", unk_token="<never>")
    assert pieces_of(made, "xthex") == ["x", "the", "x"] and made.vocab_size == 273


@pytest.mark.parametrize("there", [["tokenizer.model"], ["vocab.json", "merges.txt"], []])
def test_a_missing_tokenizer_json_comes_with_the_line_that_makes_it(
    tmp_path: Path, there: list[str]
) -> None:
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        read_tokenizer(tmp_path / "tokenizer.json")
    line = f"AutoTokenizer.from_pretrained({str(tmp_path)!r}).save_pretrained({str(tmp_path)!r})"
    assert line in str(caught.value) and "tokenizer.json does not exist" in str(caught.value)
    assert ("(there is " in str(caught.value)) is bool(there)
    assert " and ".join(there) in str(caught.value)


def test_a_pointer_of_git_lfs_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(LFS_POINTER)
    with pytest.raises(DataError, match="tokenizer.json is a Git LFS pointer.*git lfs pull"):
        read_tokenizer(folder / "tokenizer.json")


def test_without_post_processor_nothing_is_added(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"\u2581": 0, "a": 1, "<s>": 2}, []))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = configure(tmp_path, bos_token="<s>")
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (2, False)
    assert pieces_of(tokenizer, "a a") == ["a", " ", "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "does not exist"),
        ("tokenizer.json", "{", "cannot be read as JSON"),
        ("tokenizer.json", "[]", "holds a JSON list"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", '{"bos_token": "<none>"}', "'<none>'; expected: a token of the"),
    ],
)
def test_bad_files_are_named(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_tokenizer(folder / "tokenizer.json")
    assert name in str(caught.value)


# Written again


def rewritten(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    for name, text in tokenizer.files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return read_tokenizer(folder / "tokenizer.json")


def as_others_read(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


WRITTEN_TEXT = "camelCase, 1234  h\u00e9 <s>"


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    "metadata",
    [
        bpe_metadata("camelCase"),
        bpe_metadata("camelCase", pre="tekken"),
        spm_metadata({"\u2581": -1.0, "a": -2.0, "m": -2.0, "am": -3.0, "\u2581h": -4.0}),
    ],
    ids=["bpe", "tekken", "sentencepiece"],
)
def test_a_gguf_tokenizer_can_be_written(
    tmp_path: Path, metadata: dict[str, Any], adds_bos: bool
) -> None:
    metadata = metadata | {"tokenizer.ggml.add_bos_token": adds_bos}
    tokenizer = gguf_tokenizer(metadata, "x.gguf")
    again = rewritten(tokenizer, tmp_path)
    ids = tokenizer.encode(WRITTEN_TEXT, bos=False)
    assert again.encode(WRITTEN_TEXT, bos=False).tolist() == ids.tolist()
    assert again.token_strings(ids) == tokenizer.token_strings(ids)
    for name in ("bos_id", "bos_token", "eos_id", "adds_bos", "vocab_size"):
        assert getattr(again, name) == getattr(tokenizer, name)
    others = as_others_read(tmp_path)
    assert others.encode(WRITTEN_TEXT).ids == [tokenizer.bos_id] * adds_bos + ids.tolist()
    assert others.decode(ids.tolist(), skip_special_tokens=False).strip() == WRITTEN_TEXT


def test_a_tokenizer_json_can_be_written_again(folder: Path, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    (tmp_path / "copy").mkdir()
    again = rewritten(tokenizer, tmp_path / "copy")
    assert (again.bos_id, again.adds_bos, again.eos_id) == (0, True, None)
    text = "the cat and the hat and the bat"
    ids = tokenizer.encode(text, bos=True).tolist()
    assert again.encode(text, bos=True).tolist() == ids
    # BOS once, and no truncation.
    assert as_others_read(tmp_path / "copy").encode(text).ids == ids


def test_bos_is_written_beside_another_post_processor(folder: Path) -> None:
    backend = as_others_read(folder)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = configure(folder, bos_token="<bos>").with_bos(0)
    assert rewritten(tokenizer, folder).adds_bos
    post_processor = json.loads((folder / "tokenizer.json").read_text())["post_processor"]
    assert [step["type"] for step in post_processor["processors"]] == [
        "ByteLevel", "TemplateProcessing"
    ]
    assert as_others_read(folder).encode("the").ids[0] == 0


def test_another_bos_is_written_in_place_of_the_first(folder: Path) -> None:
    made = read_tokenizer(folder / "tokenizer.json").with_bos(1)
    assert (rewritten(made, folder).bos_id, rewritten(made, folder).adds_bos) == (1, True)
    assert as_others_read(folder).encode("a").ids[:2] == [1, made.encode("a", bos=False)[0]]
    made.adds_bos = False
    again = rewritten(made, folder)
    assert (again.bos_id, again.adds_bos, again.notes) == (1, False, ())


def test_a_tokenizer_without_bos_is_written_without(tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer(bpe_metadata("a", bos_token_id=None), "x.gguf")
    again = rewritten(tokenizer, tmp_path)
    assert (again.bos_id, again.adds_bos, again.eos_id) == (None, False, 1)


def test_two_tokens_of_one_spelling_cannot_be_written() -> None:
    tokenizer = gguf_tokenizer(bpe_metadata("<s>"), "x.gguf")
    with pytest.raises(DataError, match=r"x\.gguf: token 0 is spelled '<s>', as token \d+ is"):
        tokenizer.files()
