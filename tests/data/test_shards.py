"""Files of ids: nanoGPT's, llm.c's and NumPy's."""

from pathlib import Path

import numpy as np
import pytest

from jax_massact.data.shards import open_shards
from jax_massact.errors import DataError

IDS = np.arange(50, dtype=np.uint16) * 3


def llm_c(
    ids: np.ndarray, count: int | None = None, start: tuple[int, int] = (20240520, 1),
    dtype: str = "<u2",
) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = *start, len(ids) if count is None else count
    return header.tobytes() + ids.astype(dtype).tobytes()


def read(path: Path, vocab_size: int = 1000) -> list[int]:
    packed = open_shards([path], vocab_size)
    assert isinstance(packed.parts[0], np.memmap)
    return packed.read(0, len(packed)).tolist()


def test_raw_ids_of_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    IDS.tofile(path)
    assert read(path) == IDS.tolist()
    IDS[:1].tofile(path)  # shorter than the start of a header
    assert read(path) == [0]


def test_the_header_of_llm_c_is_no_data(tmp_path: Path) -> None:
    path = tmp_path / "web_train_000.bin"
    path.write_bytes(llm_c(IDS))
    assert read(path) == IDS.tolist()


def test_llama_3_shards_of_llm_c_have_ids_of_32_bits(tmp_path: Path) -> None:
    path = tmp_path / "web_train_000.bin"
    path.write_bytes(llm_c(np.full(600, 70_000), start=(20240801, 7), dtype="<u4"))
    assert read(path, 128_256) == [70_000] * 600
    path.write_bytes(llm_c(np.full(600, 70_000), 599, start=(20240801, 7), dtype="<u4"))
    with pytest.raises(DataError, match="600 ids; expected: 599, from its header"):
        read(path, 128_256)


def test_small_ids_of_16_bits_are_not_taken_for_wider_ones(tmp_path: Path) -> None:
    for ids in (np.zeros(99), np.arange(99) % 16, np.tile([700, 1], 15), np.arange(99) * 7):
        ids.astype("<u2").tofile(tmp_path / "a.bin")
        assert read(tmp_path / "a.bin") == ids.tolist()


def test_the_index_of_megatron_is_noticed(tmp_path: Path) -> None:
    IDS.tofile(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(b"MMIDIDX\0\0" + bytes(99))
    with pytest.raises(DataError, match="a.bin is a data set of Megatron-LM, whose index a.idx"):
        read(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(b"another index")
    assert read(tmp_path / "a.bin") == IDS.tolist()


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8", ">u2"])
def test_numpy_arrays_of_integers(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", IDS.astype(dtype))
    assert read(tmp_path / "a.npy") == IDS.tolist()


def test_several_files_are_parts_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IDS)
    IDS[::-1].tofile(tmp_path / "b.bin")
    packed = open_shards([tmp_path / "b.bin", tmp_path / "a.npy"], 1000)
    assert packed.read(0, 100).tolist() == [*IDS[::-1], *IDS]
    assert [len(part) for part in packed.parts] == [50, 50]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.bin", b"\0\0\0", "has 3 bytes; expected: ids of 2 bytes each"),
        ("a.bin", llm_c(IDS, start=(20240520, 2)), "mark 20240520 and version 2; expected: .* 1$"),
        ("a.bin", llm_c(IDS, start=(20240801, 1)), "mark 20240801 and version 1; expected: .* 7$"),
        ("a.bin", np.arange(99, dtype="<u4").tobytes(), "looks like ids of 32 bits.*np.save"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\nx", "is a Git LFS pointer"),
        ("a.bin", b"PK\x03\x04" + bytes(40), "is a zip archive"),
        ("a.bin", b"\x80\x02\x8a\x0a" + bytes(40), "begins with .*; expected: ids of 16 bits"),
        ("a.bin", b"\x93NUMPY" + bytes(40), "a name that ends in .npy"),
        ("a.bin", b"", "a.bin holds no ids"),
        ("a.bin", llm_c(IDS[:0]), "a.bin holds no ids"),
        ("a.bin.xz", b"", "is packed; .* unpack it first"),
        ("a.bin", llm_c(IDS, 51), "cut short: 50 ids; expected: 51, from its header"),
        ("a.bin", np.array([3, 1000], "<u2").tobytes(), "id 1000; .* ids from 0 to 999$"),
        ("a.npy", np.array([3, 1001]), "id 1001; .* ids from 0 to 999$"),
        ("a.npy", np.array([3, -1]), "id -1;"),
        ("a.npy", np.zeros((2, 2), int), r"int64 of shape \(2, 2\); expected: integers in one"),
        ("a.npy", np.zeros(2), "float64 of shape"),
        ("a.npy", np.array([{}]), "is not a NumPy array"),
        ("a.npy", np.zeros(0, int), "holds no ids"),
        ("a.npy", b"no array", "is not a NumPy array"),
        ("a.npy", b"", "is not a NumPy array"),
        ("a.npy", b"PK\x03\x04" + b"\0" * 40, "a.npy is a zip archive"),
        ("a.npy", b"version https://git-lfs.github.com/spec/v1\nx", "is a Git LFS pointer"),
        ("none.bin", None, "none.bin cannot be read"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, data: bytes | np.ndarray | None, message: str
) -> None:
    path = tmp_path / name
    if isinstance(data, np.ndarray):
        np.save(path, data, allow_pickle=True)
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_shards([path], 1000)


def test_an_npz_by_another_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", IDS)
    path = (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match="a.npy is a zip archive, which is not read"):
        open_shards([path], 1000)
