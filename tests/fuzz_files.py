"""Opens mutated model files, in a process of its own: `python fuzz_files.py KIND COUNT FOLDER`.

KIND is `gguf` or `safetensors`. Every mutation follows from its seed. Prints the number of each
outcome as JSON; a mutation that ends otherwise than it may is reported with its seed and raised.

A mutated file may be refused with an error that names it, or give exactly the arrays of the sound
file, or those that an independent reader finds in the mutated bytes (a byte inside a tensor was
flipped, which no reader can tell from a weight). With a digest beside it, it must be refused.
"""

import collections
import hashlib
import json
import random
import resource
import signal
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from weight_files import gguf_bytes, write_folder

from jax_massact.errors import UserError
from jax_massact.loading import open_checkpoint

SECONDS = 5
# Beyond what the process holds after one sound file.
ROOM_BYTES = 64 << 20
# What does not grow with the file: the 256 KiB that a digest is taken through, and the like.
SLACK_BYTES = 320 << 10

NUMBERS = [0, 1, 2, 3, 7, 31, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
JUNK = [None, True, -1, 0, 2**31, 2**64, 10**400, 1.5, "", "F32", "x" * 50, [], [1], {}, [[]]]


def flip(raw: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        raw[rng.randrange(end)] ^= 1 << rng.randrange(8)


def overwrite(raw: bytearray, rng: random.Random, end: int) -> None:
    """A number that lies, anywhere in the header."""
    form = rng.choice(["<I", "<Q"])
    number = rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form))
    struct.pack_into(form, raw, rng.randrange(max(end - 8, 1)), number)


def cut(raw: bytearray, rng: random.Random, end: int) -> None:
    del raw[rng.choice([rng.randrange(end), rng.randrange(len(raw)), len(raw) - 1]) :]


def extend(raw: bytearray, rng: random.Random, end: int) -> None:
    raw += rng.randbytes(rng.choice([1, 8, 500]))


def splice(raw: bytearray, rng: random.Random, end: int) -> None:
    """Leaves bytes out, or has them twice."""
    start, length = rng.randrange(end), rng.choice([1, 4, 8, 64])
    raw[start : start + length] = raw[start : start + length] * rng.choice([0, 2])


def blank(raw: bytearray, rng: random.Random, end: int) -> None:
    start = rng.randrange(end)
    stop = min(start + rng.choice([4, 8, 64]), len(raw))
    raw[start:stop] = rng.choice([b"\0", b"\xff"]) * (stop - start)


def anywhere(raw: bytearray, rng: random.Random, end: int) -> None:
    flip(raw, rng, len(raw))


BYTES = [flip, flip, overwrite, overwrite, overwrite, cut, extend, splice, blank, anywhere]


def lie(node: object, rng: random.Random) -> None:
    """Changes one entry somewhere in a JSON value."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))  # type: ignore
        if not keys:
            return
        key = rng.choice(keys)
        child = node[key]  # type: ignore
        if isinstance(child, dict | list) and child and rng.random() < 0.9:
            node = child
            continue
        change = rng.choice(["junk", "number", "drop", "junk"])
        if change == "drop":
            del node[key]  # type: ignore
        else:
            node[key] = rng.choice(JUNK if change == "junk" else NUMBERS)  # type: ignore
        return


def header_end(raw: bytes) -> int:
    """Where the header of a GGUF or safetensors file ends, roughly."""
    if raw[:4] == b"GGUF":
        return raw.rindex(b"output_norm.weight") + 50
    return 8 + int.from_bytes(raw[:8], "little")


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(raw)
    rng.choice(BYTES)(mutated, rng, header_end(raw))
    return bytes(mutated)


def mutate_header(raw: bytes, rng: random.Random) -> bytes:
    """Lies in the JSON of a safetensors file, whose length then still fits."""
    end = header_end(raw)
    header = json.loads(raw[8:end])
    lie(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[end:]


def mutate_json(raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        mutated = bytearray(raw)
        rng.choice(BYTES)(mutated, rng, len(raw))
        return bytes(mutated)
    value = json.loads(raw)
    lie(value, rng)
    return json.dumps(value).encode()


def read_all(source: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_checkpoint(source).tensors.items()}


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class Fuzzer:
    """Sound files, and what became of their mutations."""

    def __init__(
        self,
        source: Path,
        mutations: list[tuple[Path, Callable[[bytes, random.Random], bytes]]],
        independent: Callable[[], dict[str, np.ndarray]],
    ):
        self.source, self.mutations, self.independent = source, mutations, independent
        self.sound = {path: path.read_bytes() for path, _ in mutations}
        self.expected = read_all(source)
        self.outcomes: collections.Counter[str] = collections.Counter()

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        path, mutate = rng.choice(self.mutations)
        raw = mutate(self.sound[path], rng)
        if raw == self.sound[path]:
            self.outcomes["unchanged"] += 1
            return
        path.write_bytes(raw)
        sidecar = path.with_name(f"{path.name}.sha256")
        try:
            self.outcomes[self.outcome(path)] += 1
            sidecar.write_text(hashlib.sha256(self.sound[path]).hexdigest())
            if self.outcome(path) != "refused":
                raise AssertionError("a wrong digest was not noticed")
        except BaseException as error:
            print(f"seed {seed}, {path.name}, {mutate.__name__}: {error!r}", file=sys.stderr)
            raise
        finally:
            path.write_bytes(self.sound[path])
            sidecar.unlink(missing_ok=True)

    def outcome(self, path: Path) -> str:
        total = sum(file.stat().st_size for file in self.sound)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            open_checkpoint(self.source)
            self.check_peak(before, total)
            arrays = read_all(self.source)
        except UserError as error:
            self.check_peak(before, total)
            if str(self.source) not in str(error):
                raise AssertionError(f"{error} does not name the file") from error
            return "refused"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if equal(arrays, self.expected):
            return "same"
        # Tensors that hold no weights may differ: they are not read.
        found = self.independent()
        if not equal(arrays, {name: found[name] for name in arrays}):
            raise AssertionError("other numbers than the independent reader's")
        return "flipped"

    def check_peak(self, before: int, file_bytes: int) -> None:
        peak = tracemalloc.get_traced_memory()[1] - before
        if peak > 2 * file_bytes + SLACK_BYTES:
            raise AssertionError(f"{peak} bytes were allocated for a file of {file_bytes}")


def make(kind: str, folder: Path) -> Fuzzer:
    if kind == "gguf":
        path = folder / "small.gguf"
        path.write_bytes(gguf_bytes())
        return Fuzzer(path, [(path, mutate_bytes)], lambda: read_gguf(path))
    write_folder(folder)
    weights = folder / "model.safetensors"
    mutations = [(weights, mutate_bytes), (weights, mutate_header)]
    mutations.append((folder / "config.json", mutate_json))
    return Fuzzer(folder, mutations, lambda: load_file(weights))


def too_slow(*_: object) -> None:
    raise AssertionError(f"took longer than {SECONDS} seconds")


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    kind, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    fuzzer = make(kind, folder)
    signal.signal(signal.SIGALRM, too_slow)
    limit_memory()
    tracemalloc.start()
    for seed in range(count):
        fuzzer.run(seed)
    print(json.dumps(fuzzer.outcomes))


if __name__ == "__main__":
    main()
