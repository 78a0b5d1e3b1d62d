"""GGUF files: every type, and every way in which a header can lie."""

import struct
import time

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from weight_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    U64,
    gguf_bytes,
    metadata,
    string,
    strings,
    tensors,
    value,
)

from jax_massact.errors import WeightsError
from jax_massact.loading import open_checkpoint
from jax_massact.weights.gguf import open_gguf


@pytest.fixture
def write(tmp_path):
    def write(raw: bytes, name: str = "small.gguf"):
        path = tmp_path / name
        path.write_bytes(raw)
        return path

    return write


def fails(path, *said):
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    for words in (str(path.parent), *said):
        assert words in str(caught.value)


def test_reads_what_the_gguf_package_reads(write):
    path = write(gguf_bytes())
    ours = open_gguf(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert ours.tensors.keys() == theirs.keys()
    for name, tensor in ours.tensors.items():
        expected = gguf.dequantize(theirs[name].data, theirs[name].tensor_type)
        np.testing.assert_array_equal(tensor.read(), expected)
        assert tensor.dtype == theirs[name].tensor_type.name


def dequantizable(kind: Type) -> bool:
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("kind", [k for k in Type if dequantizable(k)], ids=lambda k: k.name)
def test_every_type_that_the_package_dequantizes(write, kind):
    block, nbytes = GGML_QUANT_SIZES[kind]
    shape = (3, 2 * block)
    # Bytes below 0x3c keep every half-precision scale finite.
    raw = np.random.default_rng(0).integers(0x3C, size=(3, 2 * nbytes), dtype=np.uint8)
    content = {"some.weight": (shape, kind, raw.tobytes())}
    array = open_gguf(write(gguf_bytes(contents=content))).tensors["some.weight"].read()
    np.testing.assert_array_equal(array, gguf.dequantize(raw, kind).reshape(shape))


def test_a_type_that_cannot_be_dequantized(write):
    contents = tensors()
    contents["blk.1.attn_q.weight"] = ((32, 32), Type.Q8_1, bytes(32 * 40))
    fails(
        write(gguf_bytes(contents=contents)), "'blk.1.attn_q.weight'", "Q8_1", "expected: a type of"
    )


def test_metadata_of_every_type(write):
    numbers = struct.pack("<IIQ3i", ARRAY, I32, 3, -1, 0, 7)
    nested = struct.pack("<IIQ", ARRAY, ARRAY, 2) + 2 * struct.pack("<IQ2H", 2, 2, 5, 6)
    pairs = {
        **metadata(),
        **{"a": value(BOOL, True), "b": value(U64, 2**60), "c": value(F32, 0.5), "d": numbers},
        **{"e": nested, "f": strings(["", "é", "x" * 300]), "g": value(STRING, "é")},
    }
    found = open_gguf(write(gguf_bytes(pairs))).metadata
    assert found["a"] is True and found["b"] == 2**60 and found["c"] == 0.5
    assert found["d"] == [-1, 0, 7] and found["e"] == [[5, 6], [5, 6]]
    assert found["f"] == ["", "é", "x" * 300] and found["g"] == "é"
    assert len(found) == len(pairs) and "h" not in found


def test_version_2_and_other_alignments(write):
    pairs = metadata(general__alignment=value(U32, 64))
    path = write(gguf_bytes(pairs, version=2, alignment=64))
    expected = open_gguf(write(gguf_bytes(), "other.gguf")).tensors
    for name, tensor in open_gguf(path).tensors.items():
        np.testing.assert_array_equal(tensor.read(), expected[name].read())


def test_a_long_vocabulary_is_passed_over_quickly(write):
    tokens = strings([f"some token {i}" for i in range(150_000)])
    path = write(gguf_bytes(metadata(tokenizer__ggml__tokens=tokens)))
    start = time.process_time()
    open_gguf(path)
    assert time.process_time() - start < 0.3


FIRST = "blk.0.attn_norm.weight"
DEEP = b"".join(struct.pack("<IQ", ARRAY, 1) for _ in range(2000))
LIES = {
    "empty": (b"", ["has 0 bytes", "at least 24 bytes"]),
    "short": (b"GGUF\3\0\0\0", ["has 8 bytes"]),
    "magic": (gguf_bytes(magic=b"GGML"), ["b'GGML'", "b'GGUF'"]),
    "version 1": (gguf_bytes(version=1), ["version 1", "version 2 or 3"]),
    "big-endian": (gguf_bytes(version=3 << 24), ["big-endian", "little-endian"]),
    "tensor count": (gguf_bytes(counts=(2**61, None)), ["2,305,843,009,213,693,952 tensors"]),
    "pair count": (gguf_bytes(counts=(None, 2**40)), ["1,099,511,627,776 metadata entries"]),
    "key length": (
        gguf_bytes([("a", b"")], counts=(0, 1)).replace(string("a"), struct.pack("<Q", 2**63)),
        ["the name of metadata entry 0", "9,223,372,036,854,775,808 bytes"],
    ),
    "string length": (
        gguf_bytes(metadata(general__name=struct.pack("<IQ", STRING, 2**50))),
        ["general.name", "1,125,899,906,842,624 bytes"],
    ),
    "array length": (
        gguf_bytes(metadata(general__name=struct.pack("<IIQ", ARRAY, F32, 2**62))),
        ["general.name", "where the file ends"],
    ),
    "string array length": (
        gguf_bytes(metadata(general__name=struct.pack("<IIQ", ARRAY, STRING, 2**62))),
        ["entries of general.name"],
    ),
    "string array end": (
        gguf_bytes(metadata(general__name=struct.pack("<IIQQ", ARRAY, STRING, 1, 2**40))),
        ["general.name, of 1 strings, goes on beyond"],
    ),
    "deep nesting": (
        gguf_bytes(metadata(general__name=struct.pack("<I", ARRAY) + DEEP)),
        ["general.name is nested too deeply"],
    ),
    "value type": (
        gguf_bytes(metadata(general__name=struct.pack("<I", 13))),
        ["'general.name' has type 13", "0 to 12"],
    ),
    "two keys": (
        gguf_bytes([*metadata().items(), ("general.name", value(STRING, "b"))]),
        ["'general.name' stands twice"],
    ),
    "two tensors": (
        gguf_bytes(contents=[*tensors().items(), (FIRST, tensors()[FIRST])]),
        [f"{FIRST!r} stands twice"],
    ),
    "not UTF-8": (
        gguf_bytes(metadata(general__architecture=value(STRING, b"ll\xff"))),
        ["general.architecture is b'll\\xff'", "UTF-8"],
    ),
    "alignment": (
        gguf_bytes(metadata(general__alignment=value(U32, 48))),
        ["general.alignment is 48", "a power of two"],
    ),
    "overlap": (gguf_bytes(offsets={FIRST: 0}), [f"{FIRST!r} begins at offset 0", "expected: 1,"]),
    "gap": (gguf_bytes(offsets={FIRST: 2**50}), [FIRST, "begins at offset", "expected: 1,"]),
    "no dimensions": (
        gguf_bytes(contents={"a": ((), Type.F32, b"")}), ["'a' has 0 dimensions", "1 to 4"]
    ),
    "no elements": (
        gguf_bytes(contents={"a": ((0, 8), Type.F32, b"")}), ["'a' has shape [0, 8]"]
    ),
    "wild shape": (
        gguf_bytes(contents={"a": ((2**62, 2**62), Type.F32, b"")}), ["'a'", "is truncated"]
    ),
    "half a block": (
        gguf_bytes(contents={"a": ((2, 33), Type.Q8_0, bytes(96))}),
        ["'a' of type Q8_0 has rows of 33", "a multiple of 32"],
    ),
    "tensor type": (gguf_bytes(contents={"a": ((4,), 99, b"")}), ["'a' has type 99"]),
    "cut": (gguf_bytes()[:-64], ["'output_norm.weight'", "is truncated", "at least"]),
    "cut in the header": (gguf_bytes()[:700], ["tokenizer.ggml.tokens", "700"]),
    "too long": (gguf_bytes() + bytes(40), ["40 bytes follow the last tensor"]),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies(write, name):
    raw, said = LIES[name]
    fails(write(raw), *said, "expected")


def small(**changes):
    return gguf_bytes(metadata(**changes))


SETTINGS = {
    "architecture": (
        small(general__architecture=value(STRING, "mamba")),
        ["general.architecture is 'mamba'", "'llama' or 'qwen2' or 'gpt2'"],
    ),
    "no architecture": (small(general__architecture=None), ["general.architecture is missing"]),
    "no depth": (small(llama__block_count=None), ["llama.block_count is missing"]),
    "zero heads": (small(llama__attention__head_count=value(U32, 0)), ["head_count is 0"]),
    "text for a size": (
        small(llama__embedding_length=value(STRING, "32")), ["embedding_length is '32'"]
    ),
    "experts": (small(llama__expert_count=value(U32, 8)), ["expert_used_count is missing"]),
    "scaling": (
        small(llama__rope__scaling__type=value(STRING, "longer")),
        ["llama.rope.scaling.type is 'longer'", "'none', 'linear' or 'yarn'"],
    ),
    "deepseek": (
        small(general__architecture=value(STRING, "deepseek2")),
        ["general.architecture is 'deepseek2'", "missing: multi-head latent attention"],
    ),
    "partial rotary": (
        small(llama__rope__dimension_count=value(U32, 4)), ["rope.dimension_count is 4", "8"]
    ),
    "kv heads": (small(llama__attention__head_count_kv=value(U32, 3)), ["attention.kv_heads is 3"]),
    "value heads": (
        small(llama__attention__value_length=value(U32, 4)), ["attention.value_length is 4", "8"]
    ),
    "fewer blocks": (small(llama__block_count=value(U32, 1)), ["states 1 blocks", "expected: 2"]),
    "wild depth": (
        small(llama__block_count=value(U32, 2**31 - 1)), ["2,147,483,647 blocks", "expected: 2"]
    ),
    "width": (
        small(llama__embedding_length=value(U32, 64), llama__attention__key_length=value(U32, 8)),
        ["has shape [40, 32]", "expected: [40, 64]"],
    ),
    "wild width": (
        small(llama__feed_forward_length=value(U32, 2**31 - 1)),
        ["'blk.0.ffn_gate.weight' has shape [64, 32]", "expected: [2147483647, 32]"],
    ),
    "vocabulary": (
        small(llama__vocab_size=value(U32, 41)),
        ["'token_embd.weight' has shape [40, 32]", "expected: [41, 32]"],
    ),
    "tokens": (
        small(tokenizer__ggml__tokens=strings(["a"] * 41)), ["has 41 entries", "at most 40"]
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_metadata_that_contradicts_the_tensors_or_is_not_supported(write, name):
    raw, said = SETTINGS[name]
    fails(write(raw), *said)


def without(name):
    return {key: content for key, content in tensors().items() if key != name}


def test_a_missing_tensor(write):
    raw = gguf_bytes(contents=without("blk.1.ffn_up.weight"))
    fails(write(raw), "'blk.1.ffn_up.weight' is missing", "expected: shape [64, 32]")


def test_an_extra_tensor(write):
    contents = tensors() | {"blk.0.attn_q_norm.weight": ((8,), Type.F32, bytes(32))}
    fails(write(gguf_bytes(contents=contents)), "'blk.0.attn_q_norm.weight' is not part of a llama")


def test_a_mis_shaped_tensor(write):
    contents = tensors()
    contents["blk.1.attn_k.weight"] = ((16, 64), Type.F32, bytes(16 * 64 * 4))
    fails(
        write(gguf_bytes(contents=contents)),
        "'blk.1.attn_k.weight' has shape [16, 64]", "expected: [16, 32]",
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none(write, bad):
    contents = tensors()
    norm = np.ones(32, "f4")
    norm[5] = bad
    contents["blk.1.ffn_norm.weight"] = ((32,), Type.F32, norm.tobytes())
    path = write(gguf_bytes(contents=contents))
    checkpoint = open_checkpoint(path)
    with pytest.raises(WeightsError, match=rf"blk.1.ffn_norm.weight' is {bad} at index \[5\]"):
        checkpoint.load_model()


def test_a_head_of_its_own_unties(write):
    contents = tensors() | {"output.weight": ((40, 32), Type.F32, bytes(40 * 32 * 4))}
    assert not open_checkpoint(write(gguf_bytes(contents=contents))).config.head.tied
    assert open_checkpoint(write(gguf_bytes())).config.head.tied


def test_rotary_settings(write):
    freqs = np.array([1, 2, 4, 8], "f4")
    contents = tensors() | {"rope_freqs.weight": ((4,), Type.F32, freqs.tobytes())}
    config = open_checkpoint(write(gguf_bytes(contents=contents))).config
    assert config.block.attention.rope.factors == (1, 2, 4, 8)
    factor = value(F32, 4.0)
    config = open_checkpoint(write(small(llama__rope__scaling__factor=factor))).config
    assert config.block.attention.rope.factors == (4, 4, 4, 4)


def test_rotary_factors_that_cannot_be(write):
    contents = tensors() | {"rope_freqs.weight": ((4,), Type.F32, bytes(16))}
    fails(write(gguf_bytes(contents=contents)), "'rope_freqs.weight' holds 0.0", "above 0")
    contents["rope_freqs.weight"] = ((3,), Type.F32, bytes(12))
    fails(write(gguf_bytes(contents=contents)), "'rope_freqs.weight' has shape [3]", "[4]")


def split_parts(count=2, *, total=None, number=lambda i: i):
    items = list(tensors().items())
    for i in range(count):
        pairs = metadata() if i == 0 else {}
        pairs |= {"split.no": value(U32, number(i)), "split.count": value(U32, count)}
        pairs["split.tensors.count"] = value(U32, total or len(items))
        yield f"m-{i + 1:05d}-of-{count:05d}.gguf", gguf_bytes(pairs, items[i::count])


def test_a_split_file(write):
    paths = [write(raw, name) for name, raw in split_parts()]
    whole = open_checkpoint(write(gguf_bytes()))
    split = open_checkpoint(paths[0])
    assert split.config == whole.config and split.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(split.tensors[name].read(), tensor.read())


def test_a_split_file_that_is_not_whole(write):
    (first, raw), (second, other) = split_parts()
    path = write(raw, first)
    fails(path, second, "is missing", "all 2 parts")
    fails(write(raw, "renamed.gguf"), "split.count", "-00001-of-00002.gguf")
    write(raw, second)
    fails(path, second, "split.no is 0", "expected: 1")
    for name, part in split_parts(total=99):
        write(part, name)
    fails(path, "hold 20 tensors", "expected: 99")
    write(gguf_bytes({"split.no": value(U32, 1), "split.count": value(U32, 2)}, tensors()), second)
    fails(path, "lies in m-00001-of-00002.gguf as well")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(WeightsError, match="a.gguf is a Git LFS pointer.*git lfs pull"):
        open_gguf(path)
