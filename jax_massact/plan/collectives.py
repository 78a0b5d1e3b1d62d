"""What a compiled program sends between devices: read from its optimized HLO."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One instruction that moves data between devices.

    Attributes:
      kind: one of KINDS.
      bytes: of the whole result on one device; for reduce-scatter, of the whole operand.
      groups: [G, n]: the devices, by their place in the mesh, that take part together.
      times: how often one run of the program executes it.
      counted: False where it is in a loop whose length the compiler does not say; `times` then
        counts that loop as one round.
      dtypes: of what is moved.
      source: the JAX operation that it comes from.
      asynchronous: other instructions run between its start and its end.
    """

    kind: str
    bytes: int
    groups: np.ndarray
    times: int
    counted: bool
    dtypes: tuple[str, ...]
    source: str
    asynchronous: bool = False

    @property
    def devices(self) -> int:
        """Number of members of each group."""
        return self.groups.shape[1]


def find_collectives(hlo: str, devices: int) -> list[Collective]:
    """Every collective of a program, with how often it runs.

    Loops count as often as the compiler found that they run (`known_trip_count`).

    Args:
      hlo: optimized HLO, as `compiled.as_text()` gives it.
      devices: for how many it was partitioned.

    Raises:
      ValueError: groups of devices are written in a way that is not known here.
    """
    computations, entry = _computations(hlo)
    runs = _runs(computations, entry)
    found = []
    for name, lines in computations.items():
        times, counted = runs.get(name, (0, True))
        # XLA for TPU writes a collective that others overlap three times: where it starts, in the
        # fusion that overlaps it, and where it is done.
        text = "".join(lines)
        if name.startswith("async_collective_fusion") or "AsyncCollectiveDone" in text:
            continue
        started = "AsyncCollectiveStart" in text
        for line in lines if times else ():
            collective = _collective(line, devices, times, counted)
            if collective is not None and collective.devices > 1:
                found.append(collective._replace(asynchronous=collective.asynchronous or started))
    return found


def mesh_axes(groups: np.ndarray, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ, in some group.

    Args:
      groups: [G, n], places in the mesh counted with its last axis fastest.
      sizes: of the mesh, in order.
    """
    places = np.stack(np.unravel_index(groups, tuple(sizes.values())))
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, moved in zip(sizes, varies, strict=True) if moved)


def sent(kind: str, size: float, devices: int) -> float:
    """Bytes that each device of a group sends at least, for a result of `size` bytes.

    Each must send what the others lack: (n-1)/n of the whole for all-gather, reduce-scatter and
    all-to-all, twice that for all-reduce, which is one after the other (Patarasuk and Yuan 2009,
    "Bandwidth optimal all-reduce algorithms"); all of it for a permutation.
    """
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            computations[name].append(line)
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no ENTRY")
    return computations, entry


def _runs(computations: Mapping[str, list[str]], entry: str) -> dict[str, tuple[int, bool]]:
    """How often each computation is run, and whether every loop around it has a known length."""
    runs: dict[str, tuple[int, bool]] = defaultdict(lambda: (0, True))

    def visit(name: str, times: int, counted: bool) -> None:
        before, all_counted = runs[name]
        runs[name] = before + times, all_counted and counted
        for line in computations[name]:
            inner, known = times, counted
            if " while(" in line:
                trips = _TRIPS.search(line)
                inner, known = times * (int(trips[1]) if trips else 1), counted and bool(trips)
            for called in _called(line):
                if called in computations:
                    visit(called, inner, known)

    visit(entry, 1, True)
    return dict(runs)


def _called(line: str) -> Iterator[str]:
    for several, one in _CALLED.findall(line):
        yield from (part.strip().lstrip("%") for part in (several or one).split(","))


def _collective(line: str, devices: int, times: int, counted: bool) -> Collective | None:
    found = _COLLECTIVE.search(line)
    if not found:
        return None
    shapes, kind, is_start = found[1], found[2], bool(found[3])
    arrays = [
        (dtype, _bytes(dtype) * math.prod(map(int, filter(None, dims.split(",")))))
        for dtype, dims in _ARRAY.findall(shapes)
    ]
    if is_start and kind == "collective-permute":
        arrays = arrays[1:2]  # operand, result, two counters
    elif is_start and kind == "all-gather":
        arrays = arrays[len(arrays) // 2 :]  # operands, results
    groups = _groups(kind, line, devices)
    size = sum(size for _, size in arrays) * (groups.shape[1] if kind == "reduce-scatter" else 1)
    source = _SOURCE.search(line)
    dtypes = tuple(sorted({dtype for dtype, _ in arrays}))
    return Collective(
        kind, int(size), groups, times, counted, dtypes, source[1] if source else "", is_start
    )


def _bytes(dtype: str) -> float:
    bits = _BITS.match(dtype)
    return int(bits[1]) / 8 if bits else 1


def _groups(kind: str, line: str, devices: int) -> np.ndarray:
    if kind == "collective-permute":
        pairs = _numbers(line.partition("source_target_pairs=")[2].partition("}}")[0])
        return np.array(pairs, int).reshape(-1, 2)
    text = line.partition("replica_groups=")[2]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("{"):
        rows = text.partition("}}")[0] if text.startswith("{{") else ""
        lists = [_numbers(row) for row in rows.split("},{")]
        return np.array(lists, int) if any(lists) else np.arange(devices)[None]
    iota = _IOTA.match(text)
    if not iota:
        raise ValueError(f"unknown replica groups: {line.strip()[:300]}")
    return _iota(iota).reshape(_numbers(iota[1]))


def _iota(match: re.Match[str]) -> np.ndarray:
    """`[G,n]<=[a,b]T(1,0)`, or `[a,b]T(1,0)`: numbers from 0 as an array, transposed."""
    dims = _numbers(match[2] or match[1])
    order = _numbers(match[3]) if match[3] else list(range(len(dims)))
    return np.arange(math.prod(dims)).reshape(dims).transpose(order)


def _mesh_groups(text: str) -> np.ndarray:
    """`mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b', 'a':(1)2}`: groups along named axes.

    `'a':(m)s` is a part of an axis: of size s, with m steps of a larger part before it.
    """
    head, _, rest = text.partition("]")
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", head)}
    order, _, named = rest.partition("{")
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named.partition("}")[0])
    dims: list[int] = []
    along: list[int] = []
    for name, size in sizes.items():
        cuts = sorted((int(m or 1), int(s or size)) for n, m, s in parts if n == name)
        before = 1
        for start, length in cuts:
            if start > before:
                dims.append(start // before)
            along.append(len(dims))
            dims.append(length)
            before = start * length
        if before < size or not cuts:
            dims.append(size // before)
    iota = _IOTA.search(order)
    places = _iota(iota) if iota else np.arange(math.prod(sizes.values()))
    apart = [i for i in range(len(dims)) if i not in along]
    members = math.prod(dims[i] for i in along)
    return places.reshape(dims).transpose(apart + along).reshape(-1, members)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
